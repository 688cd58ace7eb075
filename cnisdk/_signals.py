"""Hold signals back while something must not be torn apart.

A signal handler that raises (SIGTERM to a plugin, Ctrl-C to anything) does so between any two steps of Python: after
the kernel gave a lock and before a variable has its descriptor, or at the first step of the code that gives it back. No
``try`` covers that. So the kernel keeps the signals until the block ends; then they are raised.

It is for the main thread, where Python runs handlers. A signal that another thread of the process lets in is not held.
"""

from __future__ import annotations

import signal

# Those whose handlers raise in programs; SIGALRM is the deadline of a delegate in this process.
_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)


class HeldBack:
    """Inside ``with``, no signal is raised, unless :meth:`let_through` allows it. May be nested."""

    __slots__ = ("_before",)

    def __enter__(self) -> HeldBack:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            self.hold()
        except BaseException:  # a signal that came before
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.let_through()

    def let_through(self) -> None:
        """Raise what has come, and from now on what comes: to wait, in something that may be left half way."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def hold(self) -> None:
        """Hold signals back again. What came before this took hold is raised by it, and they are held nevertheless."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
