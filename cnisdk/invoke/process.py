"""Run one child process: whole environment, whole stdin, stdout captured, stderr passed on while it comes, a deadline.

Theory of operation. ``os.posix_spawn`` starts the child in a process group of its own, with a file as its stdin and
pipes as stdout and stderr. One loop then polls the pipes and a pidfd of the child, until the child has ended, the
deadline is over, or it has printed too much. In the last two cases, and when a signal handler raises, the whole group
gets SIGTERM and, after a grace period, SIGKILL. The child is reaped last, so that its number stays taken while signals
are sent to it. ``subprocess`` would do most of this, but takes 13 ms to import.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence

from .._light import NamedTuple
from .._signals import HeldBack, signal
from ..errors import CNIError, InvalidEnvironmentError, IOFailureError, TryAgainLaterError, cause_of
from ..spec.names import shorten

STDOUT_LIMIT = 64 << 20
"""Bytes read from stdout, at most. Results are much smaller; endless output must not fill the memory."""

STDERR_TAIL = 4096
"""Bytes kept of the end of stderr."""

GRACE = 2.0
"""Seconds from SIGTERM to SIGKILL: enough for a plugin to undo its work."""

KILL_WAIT = 5.0
"""Seconds from SIGKILL to giving up on a process in uninterruptible sleep, which the kernel does not end."""

LINGER = 0.5
"""Seconds to read on after the process has exited: a shell's ``>(tee log)`` may write a little later."""

BUSY_LIMIT = 5.0
"""Seconds to try again after "text file busy": an installer, or a fork of one, has the file open for writing."""


class Finished(NamedTuple):
    """A process that ended.

    Attributes:
        returncode: The exit status; minus the signal's number when one killed it.
        stdout: All of its standard output.
        stderr: The last 4 KiB of its standard error.
    """

    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def reason(self) -> str:
        """The end of the process in words: ``exit status 3``, ``signal: killed``."""
        if self.returncode >= 0:
            return f"exit status {self.returncode}"
        return f"signal: {(signal.strsignal(-self.returncode) or str(-self.returncode)).lower()}"


def pass_on(chunk: bytes) -> None:
    """Write a plugin's diagnostics to this process's own stderr."""
    try:
        while chunk:
            chunk = chunk[os.write(2, chunk) :]
    except OSError:
        pass  # no process reads our stderr any more: that is no reason to fail the plugin


def execute(
    argv: list[str],
    *,
    environ: Mapping[str, str],
    stdin: bytes,
    timeout: float | None = None,
    grace: float = GRACE,
    on_stderr: Callable[[bytes], object] = pass_on,
) -> Finished:
    """Run a program to its end.

    It gets a process group of its own, default signal handling, and no file descriptor but 0, 1 and 2. If it misses the
    deadline, or this call is left by an exception (such as a signal handler's), the whole group gets SIGTERM and, after
    the grace period, SIGKILL. Processes that outlive the program and hold its pipes do not delay the return.

    Args:
        argv: The absolute path of the program, and its arguments.
        environ: All of its environment.
        stdin: Its standard input, of any size.
        timeout: Seconds it may take; None means for ever.
        grace: Seconds from SIGTERM to SIGKILL: more than those of the programs it runs in turn.
        on_stderr: Called with each piece of its stderr as it comes.

    Raises:
        IOFailureError: (5) It could not be started.
        InvalidEnvironmentError: (4) A value cannot be passed in an environment.
        TryAgainLaterError: (11) It missed the deadline.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    opened: list[int] = []
    child = _Child(grace)
    try:
        try:
            source = _above_stdio(_as_file(stdin), opened)
            out, child_out = (_above_stdio(fd, opened) for fd in os.pipe())
            err, child_err = (_above_stdio(fd, opened) for fd in os.pipe())
        except OSError as exc:  # too many open files, or no memory
            raise _cannot_start(argv[0], exc) from exc
        _start(child, argv, environ, (source, child_out, child_err), deadline)
        for fd in (source, child_out, child_err):
            opened.remove(fd)
            os.close(fd)
        stdout, stderr = _Head(), _Tail(on_stderr)
        child.listen({out: stdout, err: stderr})
        in_time = child.wait(deadline, LINGER)
        if stdout.overflow:
            child.end()
            raise IOFailureError(
                f"{argv[0]} printed more than {STDOUT_LIMIT >> 20} MiB and was stopped",
                details=_quote("it begins with", bytes(stdout.data[:4096]), stdin, environ),
            )
        if not in_time:
            child.end()
            raise TryAgainLaterError(
                f"{argv[0]} did not finish within {timeout:g} seconds and was stopped",
                details=_quote("its stderr ends with", bytes(stderr.data), stdin, environ, tail=True),
            )
        return Finished(child.reap(), bytes(stdout.data), bytes(stderr.data))
    finally:
        child.end()
        for fd in opened:
            os.close(fd)


def _quote(what: str, data: bytes, stdin: bytes, environ: Mapping[str, str], *, tail: bool = False) -> str:
    from ._excerpt import excerpt

    text, _ = excerpt(data, stdin, environ, tail=tail, cut=len(data) >= STDERR_TAIL)
    return f"{what}: {text}" if text else ""


# --- starting ---------------------------------------------------------------------------------------------------------


def _as_file(data: bytes) -> int:
    """Make a file that holds `data`, open at its beginning. A pipe would need a writer while the output is read."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("cni-config", os.MFD_CLOEXEC)
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _above_stdio(fd: int, opened: list[int]) -> int:
    """Move a descriptor out of the way of 0, 1 and 2, which a caller may have closed; remember it for closing."""
    if fd <= 2:
        import fcntl

        low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(low)
    opened.append(fd)
    return fd


def _inheritable() -> list[int]:
    """Return the descriptors a child would inherit: those this process itself inherited, not those Python opened."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return []
    found = []
    for fd in numbers:
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            pass  # the descriptor of the listing itself, or one that another thread closed
    return found


def _start(
    child: _Child, argv: list[str], environ: Mapping[str, str], stdio: Sequence[int], deadline: float | None
) -> None:
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    give_up = time.monotonic() + BUSY_LIMIT
    if deadline is not None:
        give_up = min(give_up, deadline)
    pause = 0.001
    while True:
        try:
            return child.spawn(argv, environ, actions)
        except ValueError as exc:
            raise _bad_environment(argv, environ) from exc
        except OSError as exc:
            left = give_up - time.monotonic()
            if exc.errno != errno.ETXTBSY or left <= 0:
                raise _cannot_start(argv[0], exc) from exc
        time.sleep(min(pause, left))
        pause = min(pause * 2, 0.25)


def _bad_environment(argv: list[str], environ: Mapping[str, str]) -> CNIError:
    for name, value in environ.items():
        if "\0" in name or "\0" in value:
            return InvalidEnvironmentError(f"cannot run {argv[0]}: environment variable {shorten(name)} contains NUL")
        if "=" in name or not name:
            return InvalidEnvironmentError(
                f"cannot run {argv[0]}: {shorten(name)} is no name of an environment variable"
            )
    return IOFailureError(f"cannot run {shorten(argv)}: an argument cannot be passed to a program")


_HINTS = {
    errno.ENOENT: "the interpreter named in its first line does not exist, or is for another libc",
    errno.ENOEXEC: "it is neither a program of this machine nor a script with a #! line",
    errno.EACCES: "check its mode, its #! interpreter, and noexec on its file system",
    errno.EMFILE: "this process has too many files open",
    errno.E2BIG: "CNI_ARGS or another environment variable is too long",
    errno.ETXTBSY: "a process has had the file open for writing for seconds: is it being installed?",
}


def _cannot_start(path: str, exc: OSError) -> CNIError:
    hint = _HINTS.get(exc.errno or 0, "")
    if exc.errno == errno.ENOENT and not os.path.exists(path):
        hint = "it does not exist"
    return IOFailureError(f"cannot run {path}: {cause_of(exc)}", details=hint)


# --- talking ----------------------------------------------------------------------------------------------------------


class _Head:
    """Stream that keeps its data, up to a limit."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.overflow = False

    def feed(self, chunk: bytes) -> None:
        if not self.overflow:
            self.data += chunk
            self.overflow = len(self.data) > STDOUT_LIMIT


class _Tail:
    """Stream that hands its data on, and keeps the end of it."""

    overflow = False

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self.data = bytearray()
        self._sink = sink

    def feed(self, chunk: bytes) -> None:
        self.data += chunk
        del self.data[:-STDERR_TAIL]
        self._sink(chunk)


class _Child:
    """A child process, its group, and their output."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self.pid: int | None = None
        self._pidfd: int | None = None
        self._returncode: int | None = None
        self._lost = False
        self._streams: dict[int, _Head | _Tail] = {}

    def spawn(self, argv: list[str], environ: Mapping[str, str], actions: Sequence[tuple[int, ...]]) -> None:
        with HeldBack():  # a signal handler that raises right after the start would leave a child that is never reaped
            self.pid = os.posix_spawn(
                argv[0],
                argv,
                environ,
                file_actions=actions,
                setpgroup=0,
                setsigmask=(),
                # Python ignores these two signals, and ignored signals stay so across exec.
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
            )
        if hasattr(os, "pidfd_open"):
            try:
                self._pidfd = os.pidfd_open(self.pid)
            except OSError:
                pass  # an old kernel, or a seccomp filter

    def listen(self, streams: Mapping[int, _Head | _Tail]) -> None:
        self._streams.update(streams)

    def wait(self, deadline: float | None, linger: float) -> bool:
        """Read the streams until the process has ended, and then to their end, for `linger` seconds at most.

        Returns:
            False if the process is still there at the deadline, or prints without end.
        """
        pause = 0.001
        ended = False
        while True:
            now = time.monotonic()
            if not ended and self._ended():
                ended = True
                limit = now + linger
                deadline = limit if deadline is None else min(deadline, limit)
            if ended and not self._streams:
                return True
            if deadline is not None and now >= deadline:
                return ended
            left = None if deadline is None else deadline - now
            if self._pidfd is None and not ended:  # a kernel before 5.3: ask from time to time
                left = pause if left is None else min(left, pause)
                pause = min(pause * 2, 0.05)
            if not self._take(left, ended):
                return False

    def _take(self, seconds: float | None, ended: bool) -> bool:
        """Wait for data or the end of the process, and read the data. Return false if a stream is over its limit."""
        import select

        poll = select.poll()
        for fd in self._streams:
            poll.register(fd, select.POLLIN)
        if self._pidfd is not None and not ended:
            poll.register(self._pidfd, select.POLLIN)
        for fd, _ in poll.poll(None if seconds is None else max(seconds * 1000, 1)):
            stream = self._streams.get(fd)
            if stream is None:
                continue
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                del self._streams[fd]
                continue
            over_before = stream.overflow
            stream.feed(chunk)
            if stream.overflow and not over_before:
                return False
        return True

    def _ended(self) -> bool:
        try:
            # Not reaped yet: its number, and that of its group, must stay taken while signals may be sent to them.
            return os.waitid(os.P_PID, self.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            self._lost = True
            return True

    def reap(self) -> int:
        """Reap the process; return its exit status, or minus the number of the signal that killed it."""
        if self._returncode is None:
            try:
                _, status = os.waitpid(self.pid or 0, 0)
            except ChildProcessError as exc:
                self._lost = True
                raise IOFailureError(
                    f"the exit status of process {self.pid} was taken by other code of this process",
                    details="SIGCHLD is ignored, or another thread waits for any child",
                ) from exc
            self._returncode = os.waitstatus_to_exitcode(status)
        return self._returncode

    def end(self) -> None:
        """Stop the whole group, unless the process was reaped already, and reap it."""
        try:
            if self.pid is None or self._returncode is not None or self._lost:
                return
            try:
                self._signal(signal.SIGTERM)
                # The process may be a shell that is gone at once, and the plugin its child, still undoing its work.
                self.wait(time.monotonic() + self._grace, self._grace)
            finally:  # also when a second exception arrives
                self._signal(signal.SIGKILL)
                # A worker of the resident server, which runs the plugin behind a shim, is killed by the kernel a moment
                # after the shim. With it go the pipes. A process that holds them longer is none.
                self._streams = dict.fromkeys(self._streams, _Tail(lambda _: None))
                # A process in uninterruptible sleep is left to init.
                if self.wait(time.monotonic() + KILL_WAIT, LINGER) and not self._lost:
                    self.reap()
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None

    def _signal(self, number: int) -> None:
        try:
            if not self._lost:
                os.killpg(self.pid or 0, number)
        except (ProcessLookupError, PermissionError):
            pass
