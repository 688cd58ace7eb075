"""Send a signal to a program at a reproducible point: before its Nth change of anything outside it.

The program runs under ptrace(2), with a filter of seccomp(2) that stops it, and each process it starts, at those system
calls alone that change something outside it: messages to the kernel or another process, and what makes, renames and
removes files. At the point asked for it gets a signal. No clock is involved: the same program ends in the same place.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# <sys/ptrace.h>, <linux/ptrace.h>
_TRACEME, _CONT, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 7, 0x4200, 0x420E
_O_FORK, _O_VFORK, _O_CLONE, _O_EXEC, _O_SECCOMP = 0x02, 0x04, 0x08, 0x10, 0x80
_EVENT_SECCOMP = 7
_WALL = 0x40000000
# <linux/prctl.h>, <linux/seccomp.h>
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_RET_TRACE, _RET_ALLOW = 0x7FF00000, 0x7FFF0000
# <linux/filter.h>: load a word, jump if equal, jump if any bit is set, return.
_LD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16

_CHANGES = (
    *("sendto", "sendmsg", "sendmmsg", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat"),
    *("unlink", "unlinkat", "rmdir", "symlink", "symlinkat", "mount", "umount2", "move_mount"),
)
_WAITS = ("recvfrom", "recvmsg", "poll", "ppoll")
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# System calls that count with such an argument only: its position; bits of which one is set (JSET), or its value (JEQ).
_WITH = (("openat", 2, _JSET, _FOR_WRITING), ("open", 1, _JSET, _FOR_WRITING), ("write", 0, _JEQ, 1))


def _table(text: str) -> dict[str, int]:
    return {name: int(number) for name, _, number in (each.partition("=") for each in text.split())}


# Their numbers by machine, as in <asm/unistd.h>, and the architecture's in <linux/audit.h>.
_MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        _table(
            "write=1 open=2 poll=7 sendto=44 recvfrom=45 sendmsg=46 recvmsg=47 rename=82 mkdir=83 rmdir=84 link=86 "
            "unlink=87 symlink=88 mount=165 umount2=166 openat=257 mkdirat=258 unlinkat=263 renameat=264 linkat=265 "
            "symlinkat=266 ppoll=271 sendmmsg=307 renameat2=316 move_mount=429"
        ),
    ),
    "aarch64": (
        0xC00000B7,
        _table(
            "mkdirat=34 unlinkat=35 symlinkat=36 linkat=37 renameat=38 umount2=39 mount=40 openat=56 write=64 ppoll=73 "
            "sendto=206 recvfrom=207 sendmsg=211 recvmsg=212 sendmmsg=269 renameat2=276 move_mount=429"
        ),
    ),
}
_NLM_F_REQUEST, _RTM_GET = 1, 2  # a message of rtnetlink is new, del, get or set, in this order


class Untraceable(Exception):
    """The machine does not allow ptrace(2) or seccomp(2), or its system call numbers are not known here."""


class Traced(NamedTuple):
    """Record of a traced program.

    Attributes:
        leader: Its first process, which has a session of its own.
        status: Its exit status; negative for the signal that ended it; None if it went on, and was killed.
        points: The system calls it was stopped at, by name, in order.
        stdout: Bytes of its standard output.
    """

    leader: int
    status: int | None
    points: tuple[str, ...]
    stdout: bytes


def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    stdin: bytes,
    *,
    at: int = 0,
    number: int = 0,
    waits: bool = False,
    timeout: int = 30,
) -> Traced:
    """Run a program, and send it a signal before its Nth change. This process must have no other child or thread.

    Args:
        argv: The program and its arguments.
        environ: Its environment.
        stdin: Its input.
        at: The number of the change, 1 for the first; 0 means none.
        number: The signal. SIGKILL goes to all of its processes, as when a control group is killed; any other signal
            goes to the first process only.
        waits: Count the system calls that wait for another process (recv, poll), too.
        timeout: Seconds that the whole run may take.

    Raises:
        Untraceable: The machine does not allow it.
    """
    machine, numbers = _MACHINES.get(platform.machine(), (0, {}))
    if not numbers:
        raise Untraceable(f"system calls of {platform.machine()} are not known")
    program = _filter(machine, numbers, waits)
    files = [_file(stdin), _file(b""), _file(b"")]
    leader = os.fork()
    if leader == 0:
        _exec_traced(argv, environ, files, program)
    return _Tracer(leader, {value: key for key, value in numbers.items()}, at, number).follow(timeout, files[1])


def _file(content: bytes) -> int:
    fd = os.memfd_create("traced")
    os.write(fd, content) if content else None
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _exec_traced(argv: Sequence[str], environ: Mapping[str, str], files: Sequence[int], program: bytes) -> None:
    try:
        os.setsid()
        for target, fd in enumerate(files):
            os.dup2(fd, target)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(_TRACEME, 0, None, None) != 0:
            os._exit(126)
        os.kill(os.getpid(), signal.SIGSTOP)
        text = ctypes.create_string_buffer(program, len(program))
        size, where = struct.pack("HHHH", len(program) // 8, 0, 0, 0), struct.pack("P", ctypes.addressof(text))
        if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(size + where), 0, 0) != 0:
            os._exit(126)
        os.execve(argv[0], list(argv), dict(environ))
    finally:
        os._exit(127)


def _filter(machine: int, numbers: Mapping[str, int], waits: bool) -> bytes:
    """Return a BPF program that stops at the system calls that count."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    trace, allow = step(_RET, _RET_TRACE), step(_RET, _RET_ALLOW)
    text = step(_LD, _ARCH) + step(_JEQ, machine, 1) + allow + step(_LD, _NR)
    for name in (*_CHANGES, *(_WAITS if waits else ())):
        if name in numbers:
            text += step(_JEQ, numbers[name], 0, 1) + trace
    for name, argument, code, value in _WITH:
        if name in numbers:
            text += step(_JEQ, numbers[name], 0, 4) + step(_LD, _ARGS + 8 * argument) + step(code, value, 0, 1)
            text += trace + allow
    return text + allow


class _Tracer:
    def __init__(self, leader: int, names: Mapping[int, str], at: int, number: int) -> None:
        self.leader = leader
        self.names = names
        self.at = at
        self.number = number
        self.points: list[str] = []
        self.known = {leader}
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

    def follow(self, timeout: int, stdout: int) -> Traced:
        """Run the program to its end, or kill it after ``timeout`` seconds."""
        _, status = os.waitpid(self.leader, _WALL)
        if not os.WIFSTOPPED(status):
            raise Untraceable("ptrace(2) is not allowed")
        options = _O_FORK | _O_VFORK | _O_CLONE | _O_EXEC | _O_SECCOMP
        self.libc.ptrace(_SETOPTIONS, self.leader, None, options)
        self._go_on(self.leader)
        ended: int | None = None
        previous = signal.signal(signal.SIGALRM, _raise_timeout)
        signal.alarm(timeout)
        try:
            while True:
                pid, status = os.waitpid(-1, _WALL)
                if os.WIFSTOPPED(status):
                    self._stopped(pid, status)
                    continue
                self.known.discard(pid)
                if pid == self.leader:
                    ended = os.waitstatus_to_exitcode(status)
                    signal.alarm(5)  # for the processes it has started
        except (ChildProcessError, TimeoutError):
            pass
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
            self._kill()
        if ended == 126 and not self.points:
            raise Untraceable("seccomp(2) is not allowed")
        return Traced(self.leader, ended, tuple(self.points), os.pread(stdout, 1 << 24, 0))

    def _stopped(self, pid: int, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        new = pid not in self.known
        self.known.add(pid)
        if event == _EVENT_SECCOMP:
            self._at_call(pid)
        # A process that was just started stops once, and events are no signals.
        swallow = event or (new and number == signal.SIGSTOP) or number == signal.SIGTRAP
        self._go_on(pid, 0 if swallow else number)

    def _at_call(self, pid: int) -> None:
        info = ctypes.create_string_buffer(96)
        if self.libc.ptrace(_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info)) <= 0:
            return
        call, *arguments = struct.unpack_from("7Q", info, 24)
        name = self.names.get(call, str(call))
        if not self._counts(pid, name, arguments):
            return
        self.points.append(name)
        if len(self.points) == self.at:
            if self.number == signal.SIGKILL:
                self._kill()
            else:
                os.kill(self.leader, self.number)

    def _counts(self, pid: int, name: str, arguments: Sequence[int]) -> bool:
        """Return False for a system call that changes nothing after all."""
        try:
            if name in ("open", "openat"):
                return not self._read(pid, arguments[name == "openat"], 5).startswith(b"/dev/")
            if name == "write":
                return os.path.samefile(f"/proc/{pid}/fd/1", f"/proc/{self.leader}/fd/1") and self._is_leader(pid)
            if name in ("sendto", "sendmsg"):
                where = arguments[1]
                if name == "sendmsg":
                    (vector,) = struct.unpack("Q", self._read(pid, where + 16, 8))
                    (where,) = struct.unpack("Q", self._read(pid, vector, 8))
                _, kind, flags = struct.unpack("IHH", self._read(pid, where, 8))
                return not (flags & _NLM_F_REQUEST and 16 <= kind < 256 and kind % 4 == _RTM_GET)
        except (OSError, struct.error):
            pass
        return True

    def _is_leader(self, pid: int) -> bool:
        with open(f"/proc/{pid}/status") as file:
            return f"\nTgid:\t{self.leader}\n" in file.read()

    def _read(self, pid: int, where: int, size: int) -> bytes:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(where)
            return memory.read(size)

    def _go_on(self, pid: int, number: int = 0) -> None:
        self.libc.ptrace(_CONT, pid, None, number)

    def _kill(self) -> None:
        for pid in self.known:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _raise_timeout(*_: Any) -> None:
    raise TimeoutError
