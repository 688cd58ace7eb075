"""Run a delegate of this installation in this process, as if it were one of its own (spec §4).

Starting a second interpreter takes longer than the delegate's own work. A second process also outlives a plugin that is
killed, and goes on leasing addresses that no plugin waits for.

Afterwards, the environment and the working directory are as before. The delegate's errors, its output, the signals that
end it and its deadline have the same effect as in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

from .._light import TYPE_CHECKING
from .._signals import signal
from ..errors import TryAgainLaterError
from ..invoke.process import STDERR_TAIL, Finished, pass_on
from ._environment import environment as environment_of
from ._launch import Launcher, find_launcher, load_main, parse_launcher
from ._program import Program
from ._signals import Signals, Terminated
from .reply import check_may_begin, respond

if TYPE_CHECKING:
    from types import FrameType, TracebackType

# Bytes. Launchers, and the shims of the resident mode, which contain one, are much smaller.
_LARGEST = 4 << 20


def run_within(
    ours: Launcher, signals: Signals, path: str, environ: Mapping[str, str], stdin: bytes, timeout: float | None
) -> Finished | None:
    """Run a plugin in this process, if it is one of this installation.

    Args:
        ours: A launcher of this installation.
        signals: Those of this process.
        path: The plugin's executable.
        environ: All of its environment.
        stdin: Its configuration.
        timeout: Seconds it may take; None means for ever.

    Returns:
        The end of the program, as that of a process; None if only a process of its own can run it.

    Raises:
        Terminated: A signal ended it; its work is undone.
        TryAgainLaterError: (11) It missed the deadline.
    """
    main = _find(ours, path)
    if main is None or not _in_main_thread():
        return None
    if timeout is not None and signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
        return None  # other code in this process uses the timer
    armed = signals.armed
    handler = _Handler(signals if armed else None)
    with environment_of(environ), _working_directory(), _alarm(timeout, handler.miss):
        reply = respond(main.plugin, dict(environ), stdin, guard=check_may_begin, interruptible=handler)
    reply.undo.commit()
    stderr = reply.stderr.encode(errors="replace")
    pass_on(stderr)
    if armed:
        if signals.raised is not None:
            raise Terminated(signals.raised)
        signals.__enter__()  # as they were before
    if handler.missed:
        raise TryAgainLaterError(f"{path} did not finish within {timeout:g} seconds and was stopped")
    return Finished(reply.status, reply.stdout, stderr[-STDERR_TAIL:])


def _in_main_thread() -> bool:
    threading = sys.modules.get("threading")
    return threading is None or threading.current_thread() is threading.main_thread()


def _find(ours: Launcher, path: str) -> Program | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(fd, min(os.fstat(fd).st_size, _LARGEST))
        finally:
            os.close(fd)
    except OSError:
        return None
    text = find_launcher(content)
    theirs = None if text is None else _parse_launcher(text)
    if theirs is None or not ours.same_installation(theirs):
        return None
    try:
        main: object = load_main(theirs.module, theirs.attribute)
    except Exception:
        return None  # the process that is started instead reports the error
    return main if isinstance(main, Program) else None


# The resident server has read them before a request comes.
_parse_launcher = lru_cache(maxsize=64)(parse_launcher)


class _Late(BaseException):
    """The delegate missed its deadline."""


class _Handler:
    """Context around the delegate's handler: inside, and only there, a signal or the deadline may end it."""

    def __init__(self, signals: Signals | None) -> None:
        self._signals = signals
        self._running = False
        self.missed = False

    def miss(self, signum: int, frame: FrameType | None) -> None:
        if self._running:
            self._running = False
            self.missed = True
            raise _Late

    def __enter__(self) -> None:
        self._running = True
        if self._signals is not None:
            self._signals.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._signals is not None:
            self._signals.__exit__()
        self._running = False


@contextmanager
def _alarm(timeout: float | None, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if timeout is None:
        yield
        return
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


@contextmanager
def _working_directory() -> Iterator[None]:
    before = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        yield
    finally:
        if not os.path.samestat(os.fstat(before), os.stat(".")):
            os.fchdir(before)
        os.close(before)
