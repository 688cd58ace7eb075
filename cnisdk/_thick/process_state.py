"""State of a worker's process at rest: recorded once, and compared after each request.

A worker serves again only if nothing of a request is left in its process. A plugin promises it
(:attr:`cnisdk.Plugin.leaves_process_unchanged`), and the worker verifies what the kernel and Python show of a process:

1. :meth:`RestingState.release_streams` takes the caller's streams out of the process. It runs before the answer, so
   that the end of the caller's pipes comes with it. The steps after it run after the answer: no caller waits for them.
2. :meth:`RestingState.close_leftovers` finds and closes descriptors that the plugin left open. Copies of the caller's
   pipes are among them: then their end comes a moment after the answer.
3. :meth:`RestingState.restore` finds out whether environment, directory, umask and network namespace are still the
   caller's, as the worker had set them, and puts back those of the process at rest.
4. It then compares everything else with the record.

Each step names the first difference. A worker that finds one ends, as does one that cannot put something back. State
that neither shows, such as the variables of a plugin's module, is not verified: the worker relies on the promise.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import atexit
import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..linux import netns
from .caller import NAMESPACE_KINDS, read_field
from .protocol import ShimRequest

# Parts of /proc/self/status that must stay, by the beginnings of their first line and of the line after them: user and
# group ids; groups and namespaces' ids; signals, capabilities, seccomp, processors.
_PARTS = ((b"\nUid:", b"\nFDSize:"), (b"\nGroups:", b"\nVmPeak:"), (b"\nSigBlk:", b"\nvoluntary_ctxt_switches:"))

# Other files of a process that must stay.
_FILES = ("/proc/self/cgroup", "/proc/self/oom_score_adj", "/proc/self/personality")

_LIMITS = tuple(sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}))
# The functions of _signal make no enumerations, which takes ten times as long.
_SIGNALS = tuple(sorted(map(int, signal.valid_signals())))
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_STREAMS = ("stdin", "stdout", "stderr")

# KiB that a process may grow while it serves: a leak of ten KiB a request reaches it after 1,600.
_MAX_GROWTH = 16 << 10

# Seconds to wait for the end of threads that have done their work.
_THREADS_TIMEOUT = 0.05

Identity = tuple[int, int]
"""Device and inode of a file."""


class CallerState(NamedTuple):
    """State that a request gave to the process, taken over from the caller.

    Attributes:
        environ: The environment.
        cwd: The working directory.
        umask: The umask.
        netns: The network namespace; None if it is the worker's own.
    """

    environ: Mapping[bytes, bytes]
    cwd: Identity
    umask: int
    netns: Identity | None

    @classmethod
    def of(cls, request: ShimRequest) -> CallerState:
        """Record the state. Call it before the request runs, since that closes the request's descriptors."""
        netns = _identify(os.fstat(request.netns)) if request.netns >= 0 else None
        return cls(request.environ, _identify(os.fstat(request.files[3])), request.umask, netns)


class _Facts(NamedTuple):
    """Facts about a process that no request may change."""

    status: tuple[bytes, ...]
    files: tuple[bytes, ...]
    namespaces: tuple[str, ...]
    root: Identity
    cwd: Identity
    group: tuple[int, int]
    limits: tuple[Any, ...]
    handlers: tuple[Any, ...]
    timers: tuple[tuple[float, float], ...]
    wakeup: int
    timeout: float | None
    exit_functions: int


class RestingState:
    """Record of this process between two requests."""

    def __init__(self) -> None:
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._cwd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._spaces = os.open("/proc/self/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._kinds = ("net", *[kind for kind in NAMESPACE_KINDS if os.path.exists(f"/proc/self/ns/{kind}")])
        self._netns = netns.current()
        self._listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._umask = os.umask(0o22)
        os.umask(self._umask)
        self._descriptors: dict[int, Identity] = {}
        for fd in map(int, os.listdir(self._listing)):
            with contextlib.suppress(OSError):  # the descriptor that listed them
                self._descriptors[fd] = _identify(os.fstat(fd))
        for fd in range(3):
            self._descriptors.pop(fd, None)
        self._streams: tuple[Any, ...] = ()
        self._schedule = _read_schedule()
        self.note_streams()
        status = _read("/proc/self/status")
        self._memory = _memory(status)
        self._facts = self._look(status)

    def has_schedule(self) -> bool:
        """Return True if this process is scheduled as at rest."""
        return _read_schedule() == self._schedule

    def note_streams(self) -> None:
        """Note the objects of the standard streams, which must be the same after the request."""
        self._streams = tuple(getattr(sys, name) for name in _STREAMS)

    def release_streams(self) -> None:
        """Take the caller's streams out of the process.

        A runtime reads a plugin's output until its end. That end must come with the exit status.
        """
        for fd in range(3):
            os.dup2(self._null, fd)

    def close_leftovers(self, connection: int) -> str | None:
        """Close descriptors that the plugin left open.

        Args:
            connection: Descriptor of the connection to the shim, which stays open.

        Returns:
            The first difference; None if there is none.
        """
        difference = None
        missing = dict(self._descriptors)
        for fd in map(int, os.listdir(self._listing)):
            if fd < 3 or fd == connection:
                continue
            with contextlib.suppress(OSError):  # the descriptor that listed them
                if missing.get(fd) == _identify(os.fstat(fd)):
                    del missing[fd]
                else:
                    os.close(fd)
                    difference = f"descriptor {fd} is open"
        return f"descriptor {min(missing)} is closed" if missing else difference

    def restore(self, caller: CallerState) -> str | None:
        """Put back what a request takes over from its caller, and compare the process with the record.

        Raises:
            OSError, IOFailureError: Something cannot be put back.

        Returns:
            The first difference; None if there is none.
        """
        if not _wait_for_threads():
            return "a thread runs"
        if os.environb._data != caller.environ:  # type: ignore[attr-defined]
            return "the environment"
        os.environ.clear()
        if _identify(os.stat(".")) != caller.cwd:
            return "the working directory"
        os.fchdir(self._cwd)
        if os.umask(self._umask) != caller.umask:
            return "the umask"
        if caller.netns is not None:
            if _identify(os.stat("/proc/self/ns/net")) != caller.netns:
                return "the network namespace"
            netns.enter(self._netns)
        if any(getattr(sys, name) is not stream for name, stream in zip(_STREAMS, self._streams, strict=True)):
            return "a standard stream"
        if has_children():
            return "a child process"
        _write_schedule(self._schedule)
        status = _read("/proc/self/status")
        facts = self._look(status)
        if facts != self._facts:
            return next(name for name, now, then in zip(_Facts._fields, facts, self._facts, strict=True) if now != then)
        if _memory(status) - self._memory > _MAX_GROWTH:
            return "the memory"
        return None

    def _look(self, status: bytes) -> _Facts:
        return _Facts(
            tuple([status[status.index(start) : status.index(end)] for start, end in _PARTS]),
            tuple([_read(path) for path in _FILES]),
            tuple([os.readlink(kind, dir_fd=self._spaces) for kind in self._kinds]),
            _identify(os.stat("/")),
            _identify(os.stat(".")),
            (os.getpgid(0), os.getsid(0)),
            tuple([resource.getrlimit(each) for each in _LIMITS]),
            tuple(map(_signal.getsignal, _SIGNALS)),
            tuple([signal.getitimer(each) for each in _TIMERS]),
            signal.set_wakeup_fd(-1),
            socket.getdefaulttimeout(),
            atexit._ncallbacks(),
        )


def has_children() -> bool:
    """Return True if this process has children, also such as have ended and were not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _wait_for_threads() -> bool:
    """Wait for the end of all other threads. A thread that has handed over its result may still be ending.

    Returns:
        True if there are no others.
    """
    deadline = time.monotonic() + _THREADS_TIMEOUT
    while os.stat("/proc/self/task").st_nlink > 3:  # two, and one for each thread
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    threading = sys.modules.get("threading")
    return threading is None or threading.active_count() == 1


def _identify(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # this kernel does not have it
        return b""
    try:
        return os.read(fd, 1 << 14)
    finally:
        os.close(fd)


def _memory(status: bytes) -> int:
    """Return the size of this process's own memory, in KiB, from its status file."""
    return int(read_field(status, b"RssAnon").split()[0])


_Schedule = tuple[int, int, int, set[int]]


def _read_schedule() -> _Schedule:
    return (
        os.sched_getscheduler(0),
        os.sched_getparam(0).sched_priority,
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getaffinity(0),
    )


def _write_schedule(wanted: _Schedule) -> None:
    """Put back scheduling class, nice value and processors.

    Raises:
        OSError: The kernel refuses it, as to a process without CAP_SYS_NICE.
    """
    if _read_schedule() == wanted:
        return
    policy, priority, nice, processors = wanted
    os.sched_setscheduler(0, policy, os.sched_param(priority))
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    os.sched_setaffinity(0, processors)
