"""Hold signals back while steps run that must not be separated.

A signal handler that raises an exception (SIGTERM in a plugin, Ctrl-C in any program) can do so between any two steps
of Python: after the kernel granted a lock and before a variable holds its descriptor, or at the first step of the code
that releases it. No ``try`` covers that. So the signals are blocked until the block ends, and raised then.

Python runs handlers in the main thread, also when the kernel has given the signal to another one, which was started
before and blocks nothing. So where there are other threads, the handlers are also exchanged for one that takes notes.
In any other thread than the main one, no handler runs, and nothing need be held back.
"""

from __future__ import annotations

import _thread

from ._light import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal as signal
    from collections.abc import Callable
    from types import FrameType
else:  # signal imports enum, and makes three of them
    try:
        import _signal as signal
    except ImportError:
        import signal

# Signals whose handlers raise exceptions. SIGALRM is the deadline of a delegate in this process.
_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)


class HeldBack:
    """Context manager that blocks signals, until :meth:`let_through` or the end of the block. It may be nested."""

    __slots__ = ("_before", "_came", "_handlers")

    def __enter__(self) -> HeldBack:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: list[int] = []
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            self.hold()
        except BaseException:  # raised by a signal that came before
            self.let_through()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.let_through()

    def let_through(self) -> None:
        """Raise the signals that came, and let further ones through: for waiting, in a state that may be left."""
        if self._handlers:
            self._let_handlers_through()
        else:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def hold(self) -> None:
        """Block signals again. A signal that came just before is raised here; they are blocked all the same."""
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        finally:
            if _thread._count():
                self._exchange_handlers()

    def _exchange_handlers(self) -> None:
        for number in _HELD:
            handler = signal.getsignal(number)
            if callable(handler) and handler != self._note:
                try:
                    signal.signal(number, self._note)
                except ValueError:  # this is not the main thread
                    return
                self._handlers[number] = handler

    def _note(self, number: int, _: FrameType | None) -> None:
        self._came.append(number)

    def _let_handlers_through(self) -> None:
        raised: BaseException | None = None
        for number, handler in self._handlers.items():
            while signal.getsignal(number) == self._note:
                try:
                    signal.signal(number, handler)
                except BaseException as exc:  # of a handler that is back already; the others follow
                    raised = exc
        handlers, self._handlers = self._handlers, {}
        came, self._came = self._came, []
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
        if raised is not None:
            raise raised
        for number in came:
            handlers[number](number, None)
