"""Departure of a server on demand from the program whose request started it.

A process inherits much from its parent. A server that lives on must keep nothing of the container runtime, or of the
user's shell, for which it was started: it would be charged to their control group and killed with it, and would serve
others with their limits.
"""

from __future__ import annotations

import os
import resource

from ..errors import cause_of

LOG = "server.log"
"""Name of the file with the output of a server that systemd did not start."""

# Number of resource limits (RLIM_NLIMITS).
_LIMITS = 16


def leave_caller(directory: str) -> list[str]:
    """Drop what this process has inherited from the shim's caller.

    The shim has done so for session, descriptors, environment, working directory, umask and signals. If systemd started
    this process, it has nothing of the caller.

    Args:
        directory: Directory of the server. Output goes to a file there.

    Returns:
        The things that this process keeps of the caller, for messages.
    """
    if "INVOCATION_ID" in os.environ:
        return []
    _open_log(os.path.join(directory, LOG))
    return [each for each in (_leave_cgroups(), _leave_limits(), _leave_score(), _leave_schedule()) if each]


def _open_log(path: str) -> None:
    """Make stdout and stderr a new file that this user alone can read."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)


def _leave_cgroups() -> str | None:
    """Move this process into the root of the unified hierarchy, unless a service manager owns it."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        groups = [line.rstrip("\n").split(":", 2) for line in file]
    if any(number == "0" and path != "/" for number, _, path in groups):
        if os.path.isdir("/run/systemd/system"):
            return "its control group: systemd did not start the server as a unit"
        try:
            with open("/sys/fs/cgroup/cgroup.procs", "wb", buffering=0) as procs:
                procs.write(b"0")
        except OSError as exc:
            return f"its control group: {cause_of(exc)}"
    old = [name for number, name, path in groups if number != "0" and path != "/"]
    return f"its control groups of version 1: {', '.join(old)}" if old else None


def _leave_limits() -> str | None:
    """Take the resource limits of PID 1."""
    failed = []
    for number in range(_LIMITS):
        try:
            limits = resource.prlimit(1, number)
            if resource.getrlimit(number) != limits:
                resource.setrlimit(number, limits)
        except (OSError, ValueError):
            failed.append(str(number))
    return f"its resource limits {', '.join(failed)}" if failed else None


def _leave_score() -> str | None:
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"0")
    except OSError as exc:
        return f"its OOM score adjustment: {cause_of(exc)}"
    return None


def _leave_schedule() -> str | None:
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, os.sched_getaffinity(1))
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError as exc:
        return f"its scheduling: {cause_of(exc)}"
    return None
