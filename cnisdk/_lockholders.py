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
    """Find the processes that have the lock of the file at a path; none if there is no such file."""
    try:
        about = os.stat(path)
    except OSError:
        return set()
    return find_holders(about.st_dev, about.st_ino, only_exact=True)


def find_holders(device: int, inode: int, *, only_exact: bool = False) -> set[int]:
    """Find the processes that have the lock of a file.

    Args:
        device: Number of its file system's device, as of stat(2).
        inode: Its number there.
        only_exact: Pass over files of the same number elsewhere. Some file systems (btrfs, overlayfs) report another
            device in ``/proc/locks`` than stat(2) does; that of ``/run`` does not.

    Returns:
        Their ids, but of those in another pid namespace.
    """
    try:
        with open("/proc/locks") as file:
            lines = [line.split() for line in file]
    except OSError:
        return set()
    # "2: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF"; those who wait have "->" before FLOCK.
    held = [(fields[5], int(fields[4])) for fields in lines if len(fields) >= 8 and fields[1] == "FLOCK"]
    exact = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    found = {pid for place, pid in held if place == exact}
    if not found and not only_exact:
        found = {pid for place, pid in held if place.rpartition(":")[2] == str(inode)}
    return {pid for pid in found if pid > 0}


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
    """Describe processes, such as ``process 4711 (nft, stopped)``, but those that have ended."""
    found = []
    for pid in sorted(pids):
        with suppress(OSError), open(f"/proc/{pid}/stat", errors="replace") as file:
            name, _, rest = file.read().partition(" (")[2].rpartition(") ")
            found.append(f"process {pid} ({name}{_STOPPED.get(rest[:1], '')})")
    return found
