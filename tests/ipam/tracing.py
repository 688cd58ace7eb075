"""Run a function in a child process and kill it at one exact system call, by ptrace(2)."""

import ctypes
import os
import signal
import warnings
from collections.abc import Callable

_PTRACE_TRACEME, _PTRACE_SYSCALL, _PTRACE_SETOPTIONS = 0, 24, 0x4200
_PTRACE_O_EXITKILL, _PTRACE_O_TRACESYSGOOD = 1 << 20, 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def run_until(work: Callable[[], object], stop: int) -> bool:
    """Run `work` in a child; kill it at the given stop. Stops are the entries and the exits of system calls, from 1.

    Returns:
        Whether it was killed. False: it ended before.
    """
    with warnings.catch_warnings():
        # Python warns of threads that may hold locks; the child touches nothing of the test runner's.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        try:
            _ptrace(_PTRACE_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        finally:
            os._exit(code)
    os.waitpid(child, 0)
    _ptrace(_PTRACE_SETOPTIONS, child, _PTRACE_O_EXITKILL | _PTRACE_O_TRACESYSGOOD)
    seen, forward = 0, 0
    while True:
        _ptrace(_PTRACE_SYSCALL, child, forward)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
            return False
        assert os.WIFSTOPPED(status), f"ended by signal {os.WTERMSIG(status)}"
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            forward = os.WSTOPSIG(status)  # a real signal: hand it on
            continue
        forward = 0
        seen += 1
        if seen == stop:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
