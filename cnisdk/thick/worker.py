"""A worker: takes one request, becomes the process the plugin would have had, runs it, and ends."""

from __future__ import annotations

import atexit
import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, NoReturn

from ..errors import CNIError
from ..linux.netns import NetNS, enter
from ..plugin import process
from ..plugin.launch import Launcher
from ..plugin.main import PluginMain
from ..plugin.signals import Signals
from . import pages
from .metrics import create
from .pages import Ranges
from .peer import Border
from .protocol import PATIENCE, Offer, Request, make_socket, netns_cookie, receive, take

# What plugins look up in /proc: the first time, the kernel makes all that lies on the way.
_FIRST = ("/proc/self/ns/net", "/proc/self/fd/0")

# Added to the niceness: a tenth of the processor's time, where others want it too.
_UNHURRIED = 10

# A shim that has connected says at once what it wants.
_HESITATION = 5.0


class Loaded(NamedTuple):
    """A plugin, ready to serve.

    Attributes:
        type: Its type.
        id: What its launcher is identified by.
        launcher: What its launcher says.
        main: The callable that serves a request.
        lessons: Which pages of memory a request touches, by verb, as far as that is known.
    """

    type: str
    id: str
    launcher: Launcher
    main: Callable[[], Any]
    lessons: Mapping[str, pages.Pages] = {}


class Door:
    """Where requests come in: what all workers wait at, of whom the one that came last goes first.

    Its memory is the likeliest to be in the processor's caches, however many wait. That is how ``epoll_wait(2)`` wakes
    those who share a descriptor; a socket itself, or descriptors of their own, would wake the one that has waited
    longest.

    Args:
        listener: The server's socket.
        stop: A pipe whose other end closes when no further request is to be taken.
        retire: A pipe with a byte for each worker that is to end.
    """

    def __init__(self, listener: socket.socket, stop: int, retire: int) -> None:
        self._listener = listener
        self.stop, self.retire = stop, retire
        self._poll = select.epoll()
        # A request is told to one worker: without EPOLLET the next one would be woken too, to find it gone.
        self._poll.register(listener, select.EPOLLIN | select.EPOLLET)
        for fd in (stop, retire):
            self._poll.register(fd, select.EPOLLIN)

    def wait(self, seconds: float) -> Collection[int]:
        """What there is to be had, as descriptors; nothing after so many seconds, which may be -1 for ever."""
        return [fd for fd, _ in self._poll.poll(seconds)]

    def accept(self) -> socket.SocketType | None:
        """Take a request; None when there is none."""
        try:
            # As listener.accept(), without asking the kernel what is known.
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return None
        finally:
            self.tell()
        return make_socket(fd)

    def tell(self) -> None:
        """Wake another worker if there are requests: of those that come together, only the first wakes one."""
        self._poll.modify(self._listener, select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        """Take no further request, in this process."""
        self._poll.close()
        for fd in (self._listener.detach(), self.stop, self.retire):
            os.close(fd)


class Ready(NamedTuple):
    """What a worker has made before a request comes.

    Attributes:
        signals: Its handlers of signals.
        pid: Its process.
        pidfd: A descriptor of that.
        netns: The cookie of its network namespace.
    """

    signals: Signals
    pid: int
    pidfd: int
    netns: bytes


def prepare() -> Ready:
    """Make this process, forked from the server, what a fresh one is, as far as no request need be known for that."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setpgid(0, 0)
    schedule(os.SCHED_BATCH, os.SCHED_OTHER)
    os.environ.clear()
    for name, fd, mode in _STREAMS:
        _open_stream(name, fd, mode)
    for path in _FIRST:
        os.stat(path)
    pid = os.getpid()
    with socket.socket(socket.AF_UNIX) as sock:
        netns = netns_cookie(sock)
    return Ready(Signals(), pid, os.pidfd_open(pid), netns)


def work(
    door: Door,
    plugins: Mapping[bytes, Loaded],
    border: Border,
    report: int,
    pause: float,
    populate: Callable[[], Ranges],
    learn: Callable[[str, str], str | None],
) -> NoReturn:
    """Serve one request, and end this process. To be called in a process forked for it.

    Args:
        door: Where requests come in.
        plugins: By what shims say of them.
        border: Judges callers.
        report: A pipe to the server: a line when a request comes, and another when it is done.
        pause: Where no request waits, that of others may run: so many seconds later memory is fetched.
        populate: Fetches memory in advance.
        learn: Given type and verb, the file to write down the pages a request touched; None when they are known.
    """
    ready = prepare()
    accepted = _accept(door, pause, populate)
    if accepted is None:
        os._exit(0)
    connection, fetched = accepted
    start = time.monotonic()
    _tell(report, f"busy {ready.pid}")
    try:
        agreed = _agree(connection, plugins, border, ready)
    except (CNIError, OSError):
        agreed = None  # the shim runs the plugin itself
    if agreed is None:
        _tell(report, f"done {ready.pid} - - declined 0 0")
        os._exit(0)
    door.close()
    plugin, offer, request = agreed
    status = 1
    try:
        status = serve(plugin, request, ready)
    finally:
        try:
            _close_all_but(connection.fileno(), report)
            fcntl.fcntl(connection, fcntl.F_SETFL, 0)  # no longer a reason to be killed
            connection.send(b"exit %03d\n" % status)
        except OSError:
            pass
        verb = os.fsdecode(request.environ.get(b"CNI_COMMAND", b"-"))
        verb = verb if verb.isalpha() and verb.isascii() and len(verb) < 16 else "-"
        waited = min(max(0.0, start - offer.since), PATIENCE)  # its clock may be that of another time namespace
        took = time.monotonic() - start
        _tell(report, f"done {ready.pid} {plugin.type} {verb} {status} {took:.6f} {waited:.6f}")
        # An answer is waited for, the end of this process is not. SCHED_IDLE would be too little: on a busy machine,
        # such a process does not end for seconds, and holds a worker's place and locks of the kernel as long.
        os.nice(_UNHURRIED)
        _write_down_pages(learn(plugin.type, verb), fetched, report, f"{plugin.type} {verb}")
        os._exit(status)


def _close_all_but(*kept: int) -> None:
    """Close every other descriptor, copies of the caller's streams among them.

    A runtime reads a plugin's output to its end. The end must come with the exit status, not with the end of this
    process.
    """
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) not in kept:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed them


def schedule(usual: int, policy: int) -> None:
    """Make the class of this process in the scheduler another one, unless somebody chose one for it."""
    try:
        if os.sched_getscheduler(0) == usual:
            os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:
        pass  # not allowed: things take longer, that is all


def _write_down_pages(path: str | None, fetched: Ranges, report: int, kind: str) -> None:
    if path is None:
        return
    try:
        data = pages.dump(pages.touched().without(fetched))
        with create(path) as file:
            file.write(data)
        if not _tell(report, f"pages {os.getpid()} {kind} {len(fetched)}"):
            os.unlink(path)
    except (OSError, ValueError):
        pass  # the next requests take longer, that is all


def _tell(report: int, line: str) -> bool:
    """Report to the server; False if it is gone. The request goes on nevertheless."""
    try:
        os.write(report, f"{line}\n".encode())  # less than PIPE_BUF: in one piece
    except OSError:
        return False
    return True


def _accept(door: Door, pause: float, populate: Callable[[], Ranges]) -> tuple[socket.SocketType, Ranges] | None:
    """Wait for a request; None when there shall be no more. Those that wait already are still taken.

    Returns:
        The connection, and what memory was fetched meanwhile.
    """
    fetched: Ranges = []
    patience = 0
    while True:
        ready = door.wait(patience)
        if not ready:
            time.sleep(pause)  # not at the door: whoever has fetched memory already is to go first
            fetched = populate()
            patience = -1
            continue
        try:
            connection = door.accept()
        except OSError:
            return None
        if connection is not None:
            return connection, fetched
        if door.stop in ready or (door.retire in ready and _is_retired(door.retire)):
            return None


def _is_retired(retire: int) -> bool:
    """Is it this worker that is to end? One is for each byte in the pipe."""
    try:
        return os.read(retire, 1) != b""
    except BlockingIOError:
        return False


def _agree(
    connection: socket.SocketType, plugins: Mapping[bytes, Loaded], border: Border, ready: Ready
) -> tuple[Loaded, Offer, Request] | None:
    """Take the request if this process can run it exactly as one of its own would."""
    # While the shim still puts its request together. Who is no caller to work for is not waited for, either.
    if (reason := border.judge(connection)) is not None:
        connection.send(reason.encode() + b"\n")
        return None
    try:
        offer = receive(connection, socket.MSG_DONTWAIT)
    except BlockingIOError:
        connection.settimeout(_HESITATION)
        offer = receive(connection)
        # Waiting for room to send would make the kernel signal room later on, which is to be deadly below.
        connection.settimeout(None)
    plugin = plugins.get(offer.about)
    if plugin is None:
        connection.send(_refusal(offer.about, plugins).encode() + b"\n")
        return None
    ready.signals.forget()
    request = take(offer, ready.netns)
    # From here on the kernel kills this process when the shim is killed, or hangs up; it may have done so already.
    fcntl.fcntl(connection, fcntl.F_SETOWN, ready.pid)
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        connection.recv(1)
    except BlockingIOError:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, ready.pidfd.to_bytes(4, sys.byteorder))
        offer.end.sendmsg([b"started\n"], [rights])
        offer.end.close()
        return plugin, offer, request
    return None


def _refusal(about: bytes, plugins: Mapping[bytes, Loaded]) -> str:
    """What is wrong with a request this server does not run."""
    theirs = about.split()
    for each in plugins:
        ours = each.split()
        if theirs[:2] != ours[:2]:
            continue  # another plugin
        if theirs[:3] != ours[:3]:
            return "it is of another version: restart it, or run `cnisdk install --thick` again"
        return "the caller has another personality (setarch)"
    return "it has no such plugin"


_STREAMS = (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w"))


def _open_stream(name: str, fd: int, mode: str) -> None:
    """Make the stream Python makes for a descriptor like this: the server's own was made for another."""
    old = getattr(sys, name)
    buffering = 1 if name == "stderr" or os.isatty(fd) else -1
    stream = open(fd, mode, buffering, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
    setattr(sys, name, stream)


def serve(plugin: Loaded, request: Request, ready: Ready) -> int:
    """Become what a fresh process would be, and run the plugin."""
    *streams, cwd = request.files
    for (name, number, mode), fd in zip(_STREAMS, streams, strict=True):
        os.dup2(fd, number)
        if os.isatty(number):  # those made in advance are for files and pipes
            _open_stream(name, number, mode)
    os.fchdir(cwd)
    os.umask(request.umask)
    if request.netns >= 0:
        with NetNS("the caller's", request.netns) as netns:
            enter(netns)
    for fd in (*request.files, ready.pidfd):
        os.close(fd)
    for key, value in request.environ.items():
        os.environb[key] = value
    sys.argv[:] = ["-c", request.name]
    try:
        if isinstance(plugin.main, PluginMain):
            status: object = process.serve(plugin.main, plugin.launcher, ready.signals)
        else:
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = plugin.main()
    except SystemExit as exc:
        status = exc.code
    except BaseException:
        from traceback import print_exc

        print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)  # noqa: T201 - as Python does at its end
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120
    return (status if isinstance(status, int) else 0) & 0xFF
