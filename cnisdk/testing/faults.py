"""Faults: let a plugin fail, or die, at its Nth step; or die after some time.

A step is what a plugin does to the world: a request to the kernel, a file it opens, renames or removes, a program it
starts. Reading counts too, so the first steps change nothing yet, and how many there are depends on the plugin and the
verb: :meth:`~cnisdk.testing.PluginUnderTest.at_each_step` goes through all of them.
A plugin run in process is stopped by an audit hook (PEP 578) in the forked process it runs in; an executable by
``strace``, at the Nth system call of those that change things, in each of its processes.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..linux import rtnetlink

_STEPS = ("open", "os.", "shutil.", "socket.", "subprocess.", "fcntl.")
_NO_STEPS = frozenset({"os.listdir", "os.scandir", "os.getxattr", "os.fwalk", "os.walk", "os.putenv"})

# The system calls that change files, links or processes. Reading, and what an interpreter needs to start, is not among
# them.
_SYSTEM_CALLS = (
    "sendto,sendmsg,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,flock,socket,"
    "bind,ftruncate,setns,unshare"
)

# What strace writes: after a system call that it lets fail; a system call; the end of a killed process. With each goes
# the process (or thread) before it.
_INJECTED = "(INJECTED)"
_CALL = re.compile(r"^(\d+) +\w+\(", re.MULTILINE)
_KILLED = re.compile(r"^(\d+) +\+\+\+ killed by SIGKILL", re.MULTILINE)


class Fault(NamedTuple):
    """Fault at a step.

    Attributes:
        step: 1 is the first.
        error: An errno: the step fails with it. 0: the process is killed (SIGKILL) just before the step.
        seconds: The process is killed after this time, whatever it does then; 0 means that the step counts.
    """

    step: int
    error: int = 0
    seconds: float = 0.0

    def arm(self, on_strike: Callable[[], object] = bool) -> Callable[[], bool]:
        """Have it happen in this process. For forked processes: an audit hook cannot be taken out again.

        Args:
            on_strike: What to call just before the process is killed at the step.

        Returns:
            A function to call at the end. It keeps the fault from happening later, and tells if it has happened.
        """
        if self.seconds:
            # The kernel does it: nothing of the process runs any more.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)
            return bool  # one that comes is never too late
        left = self.step

        def count(what: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                if self.error:
                    raise OSError(self.error, os.strerror(self.error), f"step {self.step}: {what}")
                on_strike()
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, args: tuple[object, ...]) -> None:
            if not event.startswith(_STEPS) or event in _NO_STEPS:
                return
            if event == "open" and str(args[0]).endswith((".py", ".pyc", ".so")):
                return  # imports depend on what was imported before
            count(event)

        exchange = rtnetlink.Socket.exchange

        def counted(sock: rtnetlink.Socket, requests: Sequence[rtnetlink.Message]) -> Any:
            count("netlink request")  # sending is no audited event
            return exchange(sock, requests)

        def disarm() -> bool:
            nonlocal left
            happened = left <= 0
            left = 0  # and never 1 again
            return happened

        rtnetlink.Socket.exchange = counted  # type: ignore[method-assign, assignment]
        sys.addaudithook(hook)
        return disarm

    def strace(self, log: str = os.devnull) -> list[str]:
        """Return words that, before an executable's path, make the fault happen. Needs ``strace``, or coreutils.

        Args:
            log: File that strace writes, for :meth:`was_reached`.
        """
        if self.seconds:
            return ["timeout", "--signal=KILL", str(self.seconds)]
        what = f"error={errno.errorcode[self.error]}" if self.error else "signal=SIGKILL"
        inject = f"inject={_SYSTEM_CALLS}:{what}:when={self.step}"
        return ["strace", "-f", "-qq", "-o", log, "-e", f"trace={_SYSTEM_CALLS}", "-e", inject]

    def was_reached(self, log: str) -> bool:
        """Return True if a process of the executable reached the step, as strace tells it.

        A process that was killed by another, at an earlier step of its own, has not.

        Args:
            log: Text that strace has written.
        """
        if self.error:
            return _INJECTED in log
        calls = Counter(_CALL.findall(log))
        return any(calls[process] >= self.step for process in _KILLED.findall(log))


def fail(step: int, error: int = errno.EIO) -> Fault:
    """Return the fault that the Nth step fails with this errno."""
    return Fault(step, error)


def kill(step: int) -> Fault:
    """Return the fault that the plugin is killed just before its Nth step."""
    return Fault(step)


def kill_after(seconds: float) -> Fault:
    """Have the plugin die after some time, and can do nothing about it: by SIGALRM in process, else by SIGKILL."""
    return Fault(0, seconds=seconds)
