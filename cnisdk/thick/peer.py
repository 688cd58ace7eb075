"""Judge the process at the other end of a connection: may the server work for it?

A worker has the server's power and sees the server's files. So the server works only for a caller that has that power
itself, and to which paths and numbers mean the same. A caller cannot prove this by what it says; the kernel shows it:

1. The kernel recorded the caller when it connected: its user and its process (SO_PEERCRED).
2. ``/proc/PID`` shows that process, of which everything below is read through one descriptor of the directory.
3. Then the process must still be there. Until its end its number belongs to it; so what was read is the caller's, and
   not that of a process which got the number later. A descriptor of the process (SO_PEERPIDFD, Linux 6.5) tells. On
   older kernels a descriptor is opened by the number, which covers the time from then on.

What is left is in SECURITY.md.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from .protocol import peer_uid

NAMESPACES = ("mnt", "user", "pid", "uts", "ipc", "cgroup", "time")
"""What a path, a number or a time means depends on these; a worker can only change its network namespace."""

_CAP_SETGID = 1 << 6
_RESET_ON_FORK = 0x40000000
_SO_PEERPIDFD = 77

# A process's status is shorter, unless it is in thousands of groups.
_STATUS = 1 << 14

# statx(2)
_STATX_INO_AND_MNT_ID, _STATX_SIZE = 0x1100, 256
_INODE, _DEVICE, _MOUNT = struct.Struct("=32xQ"), struct.Struct("=136xII"), struct.Struct("=144xQ")
_statx = ctypes.CDLL(None, use_errno=True).statx


class Standing(NamedTuple):
    """What the kernel shows of a process.

    Attributes:
        users: Its real, effective, saved and file system user, and the same of its group, as text.
        groups: Its supplementary groups.
        capabilities: The effective ones, as bits.
        no_new_privs: 1 if it can gain none by execve(2).
        filters: How many seccomp filters it has.
        profile: Of AppArmor; empty where there is none.
        namespaces: Those that were asked for.
        root: Inode, device and mount of its root directory.
    """

    users: bytes
    groups: frozenset[bytes]
    capabilities: int
    no_new_privs: int
    filters: int
    profile: bytes
    namespaces: tuple[str, ...]
    root: tuple[int, ...]


def look(directory: int, kinds: Sequence[str], *, profile: bool) -> Standing:
    """Ask the kernel about a process.

    Args:
        directory: A descriptor of its directory in ``/proc``.
        kinds: The namespaces to ask for.
        profile: Whether to ask for AppArmor's profile.

    Raises:
        OSError: The kernel does not tell, or the process has ended.
        ValueError: It tells something else than expected.
    """
    status = _read("status", directory)
    spaces = os.open("ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        namespaces = tuple([os.readlink(kind, dir_fd=spaces) for kind in kinds])
    finally:
        os.close(spaces)
    return Standing(
        _field(status, b"Uid") + b"/" + _field(status, b"Gid"),
        frozenset(_field(status, b"Groups").split()),
        int(_field(status, b"CapEff"), 16),
        int(_field(status, b"NoNewPrivs")),
        _count_filters(status),
        _read("attr/apparmor/current", directory).strip() if profile else b"",
        namespaces,
        _identify_root(directory),
    )


class Border:
    """What a caller must be for this process, a server, to work for it.

    No process can compare two seccomp filters, nor say what an LSM such as Landlock forbids one that has
    no_new_privs. So a caller may have been restricted in these ways only as PID 1 is, from which it inherits.
    """

    def __init__(self) -> None:
        own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._profile = os.path.exists("/proc/self/attr/apparmor/current")
            # An old kernel has no time namespaces.
            self._kinds = [kind for kind in NAMESPACES if os.path.exists(f"/proc/self/ns/{kind}")]
            self._own = look(own, self._kinds, profile=self._profile)
        finally:
            os.close(own)
        self._user = os.geteuid()
        try:
            with open("/proc/1/status", "rb") as file:
                status = file.read()
            first = int(_field(status, b"NoNewPrivs")), _count_filters(status)
        except (OSError, ValueError):  # hidden from this process
            first = 0, 0
        self._no_new_privs = min(self._own.no_new_privs, first[0])
        self._filters = min(self._own.filters, first[1])
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with here, there:
            try:
                os.close(here.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
                self._has_peerpidfd = True
            except OSError:
                self._has_peerpidfd = False

    def judge(self, connection: socket.SocketType) -> str | None:
        """Decide whether to work for the peer; if so, become scheduled as it is.

        Returns:
            Why not; None to go on.

        Raises:
            OSError: It has ended.
        """
        pid, user = peer_uid(connection)
        if user != self._user:
            return "only the server's own user may use it"
        if pid == 0:
            return "the caller is in another pid namespace"
        process = self._open_process(connection, pid)
        try:
            directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                reason = self.compare(look(directory, self._kinds, profile=self._profile))
            except PermissionError as exc:
                reason = f"the kernel does not show it the caller ({exc.strerror}): it needs CAP_SYS_PTRACE"
            except ValueError as exc:
                reason = f"the kernel does not tell of the caller: {exc}"
            finally:
                os.close(directory)
            if reason is None:
                reason = _take_over_schedule(pid)
            signal.pidfd_send_signal(process, 0)  # it is still there
        finally:
            os.close(process)
        return reason

    def compare(self, caller: Standing) -> str | None:
        """Say why a caller is not one to work for; None if it is."""
        own = self._own
        for kind, here, there in zip(self._kinds, own.namespaces, caller.namespaces, strict=True):
            if here != there:
                return f"the caller is in another {kind} namespace"
        if caller.root != own.root:
            return "the caller has another root directory"
        if caller.users != own.users:
            return "the caller has other user or group ids"
        if own.capabilities & ~caller.capabilities:
            return "the caller has fewer capabilities"
        if own.groups - caller.groups and not caller.capabilities & _CAP_SETGID:
            return "the caller is not in all groups of the server"
        if caller.no_new_privs > self._no_new_privs:
            return "the caller is confined by no_new_privs"
        if caller.filters > self._filters:
            return "the caller is confined by seccomp"
        if caller.profile not in (own.profile, b"unconfined"):
            return "the caller is confined by AppArmor"
        return None

    def _open_process(self, connection: socket.SocketType, pid: int) -> int:
        if self._has_peerpidfd:
            return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        return os.pidfd_open(pid)


def _take_over_schedule(pid: int) -> str | None:
    """Run where, when and as often as that process, or less often: to run more often takes a capability.

    Returns:
        Why that cannot be.
    """
    try:
        _set_schedule(pid)
    except OSError as exc:
        return f"the server cannot be scheduled as the caller: {exc.strerror}"
    return None


def _set_schedule(pid: int) -> None:
    policy = os.sched_getscheduler(pid) & ~_RESET_ON_FORK
    if policy != os.sched_getscheduler(0):
        try:
            os.sched_setscheduler(0, policy, os.sched_getparam(pid))
        except PermissionError:
            pass
    nice = os.getpriority(os.PRIO_PROCESS, pid)
    if nice != os.getpriority(os.PRIO_PROCESS, 0):
        try:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        except PermissionError:
            pass
    processors = os.sched_getaffinity(pid)
    if processors != os.sched_getaffinity(0):
        os.sched_setaffinity(0, processors)


def _read(name: str, directory: int) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        data = os.read(file, _STATUS)
    finally:
        os.close(file)
    if len(data) == _STATUS:
        raise ValueError(f"{name} is too long")
    return data


def _field(status: bytes, name: bytes) -> bytes:
    """The value of a line. The first line holds the process's name, of which the kernel escapes line ends."""
    start = status.index(b"\n" + name + b":\t") + len(name) + 3
    return status[start : status.index(b"\n", start)]


def _count_filters(status: bytes) -> int:
    if b"\nSeccomp:\t" not in status or _field(status, b"Seccomp") == b"0":
        return 0
    try:
        return int(_field(status, b"Seccomp_filters"))
    except ValueError:  # before Linux 5.9: more than can be compared
        return 1 << 30


def _identify_root(directory: int) -> tuple[int, ...]:
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if _statx(directory, b"root", 0, _STATX_INO_AND_MNT_ID, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return _INODE.unpack_from(found) + _DEVICE.unpack_from(found) + _MOUNT.unpack_from(found)
