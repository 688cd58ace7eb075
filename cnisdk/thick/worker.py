"""A worker: takes one request, becomes the process the plugin would have had, runs it, and ends."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from ..errors import CNIError
from ..linux.netns import NetNS, enter
from ..plugin import process
from ..plugin.launch import Launcher
from ..plugin.main import PluginMain
from . import pages
from .pages import Populate
from .protocol import Handover, peer_uid, read_environment, receive

# What a plugin sees of the machine depends on these; a worker can only change its network namespace.
_SAME = ("mnt", "user", "pid", "uts", "ipc")

# Requests come in groups. So many seconds without any means that there is time.
_BUSY = 0.005

# A shim that heard "hello" answers at once.
_HESITATION = 5.0


class Loaded(NamedTuple):
    """A plugin, ready to serve.

    Attributes:
        id: What its launcher is identified by.
        launcher: What its launcher says.
        main: The callable that serves a request.
    """

    id: str
    launcher: Launcher
    main: Callable[[], Any]


def work(
    listener: socket.socket,
    plugins: Mapping[str, Loaded],
    stop: int,
    report: int,
    populate: Populate,
    learn: Callable[[str, str], str | None],
) -> NoReturn:
    """Serve one request, and end this process. To be called in a process forked for it.

    Args:
        listener: The server's socket.
        plugins: By type.
        stop: A pipe whose other end closes when no further request is to be taken.
        report: A pipe to the server: a line when a request comes, and another when it is done.
        populate: Fetches memory in advance.
        learn: Given type and verb, the file to write down the pages a request touched; None when they are known.
    """
    connection = _accept(listener, stop, populate)
    if connection is None:
        os._exit(0)
    _tell(report, f"busy {os.getpid()}")
    start = time.monotonic()
    try:
        request = _agree(connection, plugins)
    except (CNIError, OSError):
        request = None  # the shim runs the plugin itself
    if request is None:
        _tell(report, f"done {os.getpid()} - - declined 0")
        os._exit(0)
    listener.close()
    os.close(stop)
    handover, environ, name = request
    status = 1
    try:
        status = _serve(connection, handover, environ, name, plugins[handover.type])
    finally:
        verb = environ.get("CNI_COMMAND", "-")
        verb = verb if verb.isalpha() and verb.isascii() and len(verb) < 16 else "-"
        seconds = time.monotonic() - start
        _tell(report, f"done {os.getpid()} {handover.type} {verb} {status} {seconds:.6f}")
        try:
            for fd in (0, 1, 2):
                os.close(fd)  # who reads to their end is not to wait until this process is gone
            fcntl.fcntl(connection, fcntl.F_SETFL, 0)  # no longer a reason to be killed
            connection.send(b"exit %d\n" % status)
        except OSError:
            pass
        _write_down_pages(learn(handover.type, verb), report)
        os._exit(status)


def _write_down_pages(path: str | None, report: int) -> None:
    if path is None:
        return
    try:
        data = pages.dump(pages.touched())
        with open(path, "wb") as file:
            file.write(data)
        _tell(report, f"pages {os.getpid()}")
    except (OSError, ValueError):
        pass  # the next requests take longer, that is all


def _tell(report: int, line: str) -> None:
    try:
        os.write(report, f"{line}\n".encode())  # less than PIPE_BUF: in one piece
    except OSError:
        pass  # the server was killed; this request goes on


def _accept(listener: socket.socket, stop: int, populate: Populate) -> socket.socket | None:
    """Wait for a request; None when there shall be no more. Those that wait already are still taken."""
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)  # wakes one worker, not all
    poll.register(stop, select.EPOLLIN)
    patience = _BUSY
    while True:
        ready = dict(poll.poll(patience))
        if not ready:
            populate()  # not while requests that run, in other workers, need the processor
            patience = -1
            continue
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            if stop in ready:
                return None
            continue
        except OSError:
            return None
        poll.close()
        return connection


def _agree(connection: socket.socket, plugins: Mapping[str, Loaded]) -> tuple[Handover, dict[str, str], str] | None:
    """Take the request if this process can run it exactly as one of its own would."""
    connection.settimeout(_HESITATION)
    pid, uid = peer_uid(connection)
    if uid != os.geteuid():
        connection.send(b"only the server's own user may use it\n")
        return None
    fd = os.pidfd_open(os.getpid())
    socket.send_fds(connection, [b"hello\n"], [fd])
    os.close(fd)
    handover = receive(connection)
    refusal = _refuse(handover, pid, plugins)
    if refusal:
        connection.send(refusal.encode() + b"\n")
        return None
    name, environ = read_environment(handover.files[5])
    # Without a timeout: waiting for room would make the kernel signal room later on, which is to be deadly below.
    connection.settimeout(None)
    connection.send(b"started\n")
    # From here on the kernel kills this process when the shim is killed, or hangs up; it may have done so already.
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        connection.recv(1)
    except BlockingIOError:
        return handover, environ, name
    return None


def _refuse(handover: Handover, pid: int, plugins: Mapping[str, Loaded]) -> str:
    plugin = plugins.get(handover.type)
    if plugin is None:
        return f"it has no plugin {handover.type}"
    if plugin.id != handover.id:
        return "it is of another version: restart it, or run `cnisdk install --thick` again"
    for kind in _SAME:
        try:
            theirs, ours = os.stat(f"/proc/{pid}/ns/{kind}"), os.stat(f"/proc/self/ns/{kind}")
        except OSError:
            return f"it cannot see the {kind} namespace of the caller"
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            return f"the caller is in another {kind} namespace"
    return ""


def _open_streams() -> None:
    """Make the streams Python makes for descriptors like these: the server's own were made for others."""
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        old = getattr(sys, name)
        buffering = 1 if name == "stderr" or os.isatty(fd) else -1
        stream = open(fd, mode, buffering, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)


def _serve(connection: socket.socket, handover: Handover, environ: Mapping[str, str], name: str, plugin: Loaded) -> int:
    """Become what a fresh process would be, and run the plugin."""
    stdin, stdout, stderr, cwd, netns, _ = handover.files
    for number, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, number)
    os.fchdir(cwd)
    os.umask(handover.umask)
    theirs, ours = os.fstat(netns), os.stat("/proc/self/ns/net")
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
        enter(NetNS("the caller's", os.dup(netns)))
    for fd in handover.files:
        os.close(fd)
    for key in os.environ.keys() - environ.keys():
        del os.environ[key]
    for key, value in environ.items():
        os.environ[key] = value
    sys.argv[:] = ["-c", name]
    _open_streams()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setpgid(0, 0)
    try:
        if isinstance(plugin.main, PluginMain):
            status: object = process.serve(plugin.main, plugin.launcher)
        else:
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
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120
    return (status if isinstance(status, int) else 0) & 0xFF
