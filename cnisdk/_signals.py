"""Hold signals back while steps run that must not be separated.

A signal handler that raises an exception (SIGTERM in a plugin, Ctrl-C in any program) can do so between any two steps
of Python: after the kernel granted a lock and before a variable holds its descriptor, or at the first step of the code
that releases it. No ``try`` covers that. So the signals are blocked until the block ends, and raised then.

Use it in the main thread, where Python runs handlers. Signals that another thread does not block are not held back.
"""

from __future__ import annotations

from ._light import TYPE_CHECKING

if TYPE_CHECKING:
    import signal as signal
else:  # signal imports enum, and makes three of them
    try:
        import _signal as signal
    except ImportError:
        import signal

# Signals whose handlers raise exceptions. SIGALRM is the deadline of a delegate in this process.
_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)


class HeldBack:
    """Context manager that blocks signals, until :meth:`let_through` or the end of the block. It may be nested."""

    __slots__ = ("_before",)

    def __enter__(self) -> HeldBack:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            self.hold()
        except BaseException:  # raised by a signal that came before
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.let_through()

    def let_through(self) -> None:
        """Raise the signals that came, and let further ones through: for waiting, in a state that may be left."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def hold(self) -> None:
        """Block signals again. A signal that came just before is raised here; they are blocked all the same."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
