"""Signals that end a request: raised while the handler works, which undo follows, and remembered at all other times."""

from __future__ import annotations

from .._light import TYPE_CHECKING
from .._signals import signal

if TYPE_CHECKING:
    from types import FrameType


class Terminated(BaseException):
    """Raised in the main thread when a signal asks the process to end, so that the request is undone."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """Turn SIGTERM, SIGINT and SIGHUP into :class:`Terminated`, inside ``with`` only.

    Outside, while the undo runs or the reply is made, a signal is remembered: it must not cut the undo short.

    Attributes:
        raised: The signal that was turned into an exception, if one was.
    """

    def __init__(self) -> None:
        self._armed = False
        self._received: int | None = None
        self.raised: int | None = None
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(each) is not signal.SIG_IGN:  # as under nohup
                signal.signal(each, self._handle)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            self.raised = signum
            raise Terminated(signum)
        self._received = signum

    def forget(self) -> None:
        """Forget the signals that came so far: they were meant for an earlier request."""
        self._armed = False
        self._received = self.raised = None

    @property
    def armed(self) -> bool:
        """True if a signal raises :class:`Terminated` now."""
        return self._armed

    def __enter__(self) -> None:
        self._armed = True
        if self._received is not None:
            self._armed = False
            self.raised = self._received
            raise Terminated(self._received)

    def __exit__(self, *_: object) -> None:
        self._armed = False
