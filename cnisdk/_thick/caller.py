"""Decide whether the server may run a request for the process at the other end of a connection, the caller.

A worker has the server's rights and sees the server's files. So the server works only for a caller that has the same
rights, and for which paths and numbers mean the same. It believes nothing that the caller says, and asks the kernel, in
this order:

1. The kernel recorded user and process id of the caller when it connected (SO_PEERCRED).
2. ``/proc/PID`` shows the rights and namespaces of that process. One descriptor of the directory is opened, and all
   files are read through it.
3. Afterwards the process must still exist. A process keeps its id until it ends. So everything that was read belongs
   to the caller, and not to a later process with the same id. The kernel gives a descriptor of the process
   (SO_PEERPIDFD, Linux 6.5). On older kernels the server opens one by the process id: a process that took over the id
   before that is not noticed.

SECURITY.md lists what this check cannot see.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from .protocol import get_peer_ids

NAMESPACE_KINDS = ("mnt", "user", "pid", "uts", "ipc", "cgroup", "time")
"""Namespaces that give paths, numbers and times their meaning. A worker can change none but its network namespace."""

_CAP_SETGID = 1 << 6
_RESET_ON_FORK = 0x40000000
_SO_PEERPIDFD = 77

# Bytes read of a file in /proc. The status of a process is shorter, unless it is in thousands of groups.
_STATUS = 1 << 14

# statx(2)
_STATX_INO_AND_MNT_ID, _STATX_SIZE = 0x1100, 256
_INODE, _DEVICE, _MOUNT = struct.Struct("=32xQ"), struct.Struct("=136xII"), struct.Struct("=144xQ")
_statx = ctypes.CDLL(None, use_errno=True).statx


class ProcessCredentials(NamedTuple):
    """Rights and namespaces of a process, as the kernel shows them.

    Attributes:
        users: Real, effective, saved and file system user id, then the four group ids, as text.
        groups: Supplementary group ids.
        capabilities: Effective capabilities, as bits.
        no_new_privs: 1 if execve(2) cannot add rights.
        filters: Number of seccomp filters.
        profile: AppArmor profile; empty where the kernel has no AppArmor.
        namespaces: The namespaces that were asked for, as ``mnt:[4026531841]``.
        root: Inode, device and mount id of the root directory.
    """

    users: bytes
    groups: frozenset[bytes]
    capabilities: int
    no_new_privs: int
    filters: int
    profile: bytes
    namespaces: tuple[str, ...]
    root: tuple[int, ...]


def read_credentials(directory: int, kinds: Sequence[str], *, profile: bool) -> ProcessCredentials:
    """Read rights and namespaces of a process.

    Args:
        directory: Descriptor of the process's directory in ``/proc``.
        kinds: Kinds of namespaces to read, of :data:`NAMESPACE_KINDS`.
        profile: Read the AppArmor profile.

    Raises:
        OSError: The kernel refuses it, or the process has ended.
        ValueError: A file has another form than expected.
    """
    status = _read("status", directory)
    spaces = os.open("ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        namespaces = tuple([os.readlink(kind, dir_fd=spaces) for kind in kinds])
    finally:
        os.close(spaces)
    return ProcessCredentials(
        read_field(status, b"Uid") + b"/" + read_field(status, b"Gid"),
        frozenset(read_field(status, b"Groups").split()),
        int(read_field(status, b"CapEff"), 16),
        int(read_field(status, b"NoNewPrivs")),
        _count_filters(status),
        _read("attr/apparmor/current", directory).strip() if profile else b"",
        namespaces,
        _identify_root(directory),
    )


class CallerPolicy:
    """Rights that a caller must have, taken from this process, the server.

    No process can compare two seccomp filters. Nor can it tell what an LSM such as Landlock forbids a process with
    no_new_privs. So in these two ways a caller must not be more restricted than PID 1, from which it inherits.
    """

    def __init__(self) -> None:
        own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._profile = _has_profiles()
            # An old kernel has no time namespaces.
            self._kinds = [kind for kind in NAMESPACE_KINDS if os.path.exists(f"/proc/self/ns/{kind}")]
            self._own = read_credentials(own, self._kinds, profile=self._profile)
        finally:
            os.close(own)
        self._user = os.geteuid()
        try:
            with open("/proc/1/status", "rb") as file:
                status = file.read()
            first = int(read_field(status, b"NoNewPrivs")), _count_filters(status)
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

    def find_objection(self, connection: socket.SocketType) -> str | None:
        """Look for a reason not to run a request of the peer. If there is none, take over the peer's scheduling.

        Returns:
            The reason, for people; None if the server may run the request.

        Raises:
            OSError: The peer has ended.
        """
        pid, user = get_peer_ids(connection)
        if user != self._user:
            return "only the server's own user may use it"
        if pid == 0:
            return "the caller is in another pid namespace"
        process = self._open_process(connection, pid)
        try:
            directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                reason = self.compare(read_credentials(directory, self._kinds, profile=self._profile))
            except PermissionError as exc:
                reason = f"the server may not read /proc of the caller ({exc.strerror}): it needs CAP_SYS_PTRACE"
            except ValueError as exc:
                reason = f"/proc of the caller cannot be understood: {exc}"
            finally:
                os.close(directory)
            if reason is None:
                reason = _copy_schedule(pid)
            signal.pidfd_send_signal(process, 0)  # fails if the process has ended
        finally:
            os.close(process)
        return reason

    def compare(self, caller: ProcessCredentials) -> str | None:
        """Return the first right or namespace in which a caller differs, as a sentence; None if there is none."""
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


def _copy_schedule(pid: int) -> str | None:
    """Take over scheduling class, nice value and processors of a process.

    A higher priority needs a capability. Without it, the server's lower priority stays.

    Returns:
        Why the processors cannot be taken over, as a sentence; None on success.
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


def _has_profiles() -> bool:
    """Return True if AppArmor is in use. Where it is only compiled in, the file is there, and cannot be read."""
    try:
        with open("/proc/self/attr/apparmor/current", "rb") as file:
            return bool(file.read())
    except OSError:
        return False


def _read(name: str, directory: int) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        data = os.read(file, _STATUS)
    finally:
        os.close(file)
    if len(data) == _STATUS:
        raise ValueError(f"{name} is too long")
    return data


def read_field(status: bytes, name: bytes) -> bytes:
    """Return the value of a line. The process's own name, in the first line, cannot forge one: newlines are escaped."""
    start = status.index(b"\n" + name + b":\t") + len(name) + 3
    return status[start : status.index(b"\n", start)]


def _count_filters(status: bytes) -> int:
    if b"\nSeccomp:\t" not in status or read_field(status, b"Seccomp") == b"0":
        return 0
    try:
        return int(read_field(status, b"Seccomp_filters"))
    except ValueError:  # before Linux 5.9 there is no count: assume more filters than the server has
        return 1 << 30


def _identify_root(directory: int) -> tuple[int, ...]:
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if _statx(directory, b"root", 0, _STATX_INO_AND_MNT_ID, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return _INODE.unpack_from(found) + _DEVICE.unpack_from(found) + _MOUNT.unpack_from(found)
