"""Find the processes that others may be waiting for: those that have a lock, as the kernel lists them.

A lock is a file's (flock(2)), or the name of an abstract socket, which one process at a time can have. A process may be
gone before it is described, and one that this user may not look at is not found: this serves messages alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

_STOPPED = {"T": ", stopped", "t": ", stopped by a debugger", "D": ", waiting for the kernel"}


def find_file_holders(path: str) -> set[int]:
    """Find the processes that have the lock of a file; none if there is no such file."""
    with suppress(OSError, ValueError, IndexError):
        about = os.stat(path)
        wanted = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
        with open("/proc/locks") as file:
            # 1: FLOCK  ADVISORY  WRITE 4711 00:04:4026531840 0 EOF; "->" marks one that waits
            rows = [line.split() for line in file if "->" not in line]
        return {int(row[4]) for row in rows if row[5] == wanted and int(row[4]) > 0}
    return set()


def find_socket_holders(name: str) -> set[int]:
    """Find the processes that have the abstract socket of a name, in this process's network namespace."""
    with suppress(OSError):
        with open("/proc/self/net/unix", errors="replace") as file:  # a name may be any bytes
            rows = [line.split() for line in file]
        wanted = {f"socket:[{row[6]}]" for row in rows if row[7:] == [f"@{name}"]}
        return {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has_open(pid, wanted)}
    return set()


def _has_open(pid: int, links: set[str]) -> bool:
    with suppress(OSError):
        return bool(links) and any(os.readlink(f"/proc/{pid}/fd/{fd}") in links for fd in os.listdir(f"/proc/{pid}/fd"))
    return False


def find_children() -> set[int]:
    """Find the processes that this one has started."""
    with suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        return {int(each) for each in file.read().split()}
    return set()


def describe(pids: Iterable[int]) -> list[str]:
    """Describe processes, such as ``process 4711 (nft, stopped)``, but this one and those that have ended."""
    found = []
    for pid in sorted({*pids} - {os.getpid()}):
        with suppress(OSError), open(f"/proc/{pid}/stat", errors="replace") as file:
            name, _, rest = file.read().partition(" (")[2].rpartition(") ")
            found.append(f"process {pid} ({name}{_STOPPED.get(rest[:1], '')})")
    return found
