"""Signals that end a request: they are raised where work can be taken back, and remembered elsewhere."""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(BaseException):
    """A signal asked the process to end. Raised in the main thread, so that what was done is taken back."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """Turns SIGTERM, SIGINT and SIGHUP into :class:`Terminated`, inside ``with`` only.

    Outside, where what was done is taken back or the reply is made, a signal is remembered: taking back must not be cut
    short by it.

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
        """Start afresh: what came so far was meant for something else."""
        self._received = None

    @property
    def armed(self) -> bool:
        """Would a signal raise :class:`Terminated` now?"""
        return self._armed

    def __enter__(self) -> None:
        self._armed = True
        if self._received is not None:
            self._armed = False
            self.raised = self._received
            raise Terminated(self._received)

    def __exit__(self, *_: object) -> None:
        self._armed = False
