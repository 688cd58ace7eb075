"""Worker: a process forked from the server that runs requests, one at a time, as the plugin's own process would.

A worker goes through these states:

idle
    :func:`prepare_worker` makes what does not depend on a request. The worker waits on the accept queue.
accepted
    It has a connection from a shim. It checks the caller (:mod:`.caller`), reports ``busy`` to the server, and checks
    the offer. It either declines with a reason, or takes the request. From then on, the shim cannot run it.
running
    :func:`run_request` takes over the caller's streams, working directory, umask, network namespace and environment,
    and calls the plugin. If the shim is killed, the kernel sends SIGKILL to the worker: F_SETSIG on the connection.
answered
    It has closed the caller's streams, and sends ``exit STATUS`` to the shim. The rest costs the caller no time: it
    closes what the plugin left open. If the plugin leaves the process unchanged, and the process is as it was before
    (:mod:`.process_state`), the worker reports ``done`` with ``idle`` to the server, and waits on the accept queue
    again. Otherwise it reports ``done`` with ``ending``, and ends.

When the server stops, a worker that has served ends. A new one accepts one of the connections that wait already.
A worker also ends after :data:`_MOST_REQUESTS` requests, after an offer that was declined, after a request that was
ended by a signal or failed in a way that no plugin foresees, and when a plugin ran in it that does not promise to leave
the process unchanged. A caller that the check declines, or that has ended, leaves nothing in the worker: it goes on.

When a worker dies, the shim notices the end of its connection, and the server reaps the process. Before it took the
request, the shim runs the plugin itself. After that, the request is an error.

Reports go through one pipe that all workers share. A report is one line, shorter than PIPE_BUF, so lines never mix.
Each report wakes the server, which then needs a processor. So there are only two for each request, at moments when the
caller waits for something else, or no longer waits.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, NoReturn, TextIO

from ..errors import CNIError, InternalError, cause_of
from ..invoke import _local
from ..linux import _sockets
from ..linux.netns import NetNS, enter
from ..plugin import _process, reply
from ..plugin._launch import Launcher
from ..plugin._signals import Signals
from ..plugin.main import PluginMain
from ..plugin.reply import promises_unchanged_process
from .accept_queue import AcceptQueue
from .caller import CallerPolicy
from .process_state import CallerState, RestingState
from .protocol import SHIM_TIMEOUT, RequestOffer, ShimRequest, netns_cookie, receive_offer, take_request

# Paths in /proc that plugins read. On the first look, the kernel makes the directories of a process.
_PROC_PATHS = ("/proc/self/ns/net", "/proc/self/fd/0")

# Requests that a worker serves at most. It bounds what a plugin can gather in memory.
_MOST_REQUESTS = 256

# Milliseconds to wait for the end of a shim that has its answer.
_END_TIMEOUT = 1000

# Seconds to wait for the offer of a shim that has connected. It sends the offer at once.
_OFFER_TIMEOUT = 5.0


class ServedPlugin(NamedTuple):
    """Plugin that the server has loaded.

    Attributes:
        type: Type of the plugin.
        id: Identity of its launcher, see :func:`.shim.launcher_id`.
        launcher: Contents of its launcher.
        main: Callable that runs a request.
    """

    type: str
    id: str
    launcher: Launcher
    main: Callable[[], Any]


class PreparedWorker(NamedTuple):
    """State that a worker makes before a request comes.

    Attributes:
        signals: Its signal handlers.
        pid: Its process id.
        pidfd: Descriptor of its process.
        netns: Cookie of its network namespace.
        exit_functions: Number of functions to call at its end.
        outputs: Objects of standard output and error: its own, and those that plugins may have kept when the server
            loaded them.
    """

    signals: Signals
    pid: int
    pidfd: int
    netns: bytes
    exit_functions: int
    outputs: tuple[TextIO, ...]


def find_outputs() -> tuple[TextIO, ...]:
    """Find the objects of standard output and error that code of this process may write to."""
    return tuple([each for each in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) if each is not None])


def prepare_worker() -> PreparedWorker:
    """Give this process, forked from the server, the state of a fresh process, as far as it depends on no request."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setpgid(0, 0)
    os.environ.clear()
    inherited = find_outputs()
    for name, fd, mode in _STREAMS:
        _open_stream(name, fd, mode)
    for path in _PROC_PATHS:
        os.stat(path)
    pid = os.getpid()
    with socket.socket(socket.AF_UNIX) as sock:
        netns = netns_cookie(sock)
    outputs = (sys.stdout, sys.stderr, *inherited)
    return PreparedWorker(Signals(), pid, os.pidfd_open(pid), netns, atexit._ncallbacks(), outputs)


def run_worker(
    queue: AcceptQueue,
    plugins: Mapping[bytes, ServedPlugin],
    policy: CallerPolicy,
    report: int,
) -> NoReturn:
    """Run requests, and end this process. Call it in a process forked for it.

    Args:
        queue: Accept queue of the server.
        plugins: Plugins by the prefix of their offers, see :func:`.protocol.offer_prefix`.
        policy: Check of the caller.
        report: Write end of the pipe for reports to the server.

    Raises:
        OSError: The kernel refuses what a worker needs.
    """
    worker = prepare_worker()
    # A process that a plugin forks, and that lives on, is not to keep the server's sockets open, nor the connection, at
    # whose end the shim sees that this process died. After an exec, it has none of them anyway.
    connections: list[socket.SocketType] = []
    os.register_at_fork(after_in_child=partial(_leave_server, queue, [report], connections))
    rest = RestingState()
    queue.wake_next()  # a worker that is stopped may have been woken for a connection that still waits
    requests = 0
    while (connection := _accept(queue, served=requests > 0)) is not None:
        requests += 1
        connections[:] = [connection]
        start = time.monotonic()
        admitted = True
        try:
            admitted = _admit(connection, policy, worker, report)
            taken = _take_from_shim(connection, plugins, worker) if admitted else None
        except (CNIError, OSError):
            taken = None  # the shim runs the plugin itself
        if taken is None:
            connections.clear()
            connection.close()
            # Nothing of a caller that was not admitted was read. A fork for each would let it use the processor as the
            # server may.
            stays = not admitted and rest.has_schedule() and requests < _MOST_REQUESTS and not queue.is_stopped()
            _report_line(report, f"done {worker.pid} {'idle' if stays else 'ending'} - - declined 0 0")
            if stays:
                continue
            break
        plugin, offer, request = taken
        last = not _promises_reuse(plugin) or requests >= _MOST_REQUESTS
        if last:
            # Not earlier: a worker that serves again needs the listener. If the server is killed meanwhile, shims that
            # connect wait until the request has ended, or run the plugin themselves after a while.
            queue.close()
        status, caller = _run_and_answer(connection, plugin, request, worker, rest, offer.end)
        verb = os.fsdecode(request.environ.get(b"CNI_COMMAND", b"-"))
        verb = verb if verb.isalpha() and verb.isascii() and len(verb) < 16 else "-"
        waited = min(max(0.0, start - offer.since), SHIM_TIMEOUT)
        took = time.monotonic() - start
        reusable = not last and caller is not None and _wait_for_end(connection) and _is_as_before(rest, caller)
        reusable = reusable and not queue.is_stopped()
        state = "idle" if reusable else "ending"
        connections.clear()
        connection.close()
        _report_line(report, f"done {worker.pid} {state} {plugin.type} {verb} {status} {took:.6f} {waited:.6f}")
        if not reusable:
            break
    os._exit(0)


def _leave_server(queue: AcceptQueue, others: list[int], connections: list[socket.SocketType]) -> None:
    """Close the descriptors that a worker shares with server and shim, in a process that the worker has forked.

    A process forked from that one finds the lists empty, and closes nothing: its descriptors may be others by then.
    """
    queue.close()
    while others:
        os.close(others.pop())
    while connections:
        os.close(connections.pop().detach())


def _run_and_answer(
    connection: socket.SocketType,
    plugin: ServedPlugin,
    request: ShimRequest,
    worker: PreparedWorker,
    rest: RestingState,
    end: socket.SocketType,
) -> tuple[int, CallerState | None]:
    """Run a request, and send its exit status to the shim.

    Args:
        connection: Connection to the shim.
        plugin: The plugin.
        request: The request.
        worker: State of this process.
        rest: State of this process at rest.
        end: End of the shim's socket pair, for the message that the answer begins. It is closed.

    Returns:
        The exit status, and what the request took over from the caller; None if this process is to serve no other.
    """
    status, caller = 1, None
    try:
        found = CallerState.of(request)
        reply.is_spent = False
        _sockets.close_later()
        status = run_request(plugin, request, worker, partial(_announce_answer, end))
        caller = None if reply.is_spent else found
    except BaseException:  # a worker that ends without an answer would be taken for one that died
        pass
    try:
        rest.release_streams()
        fcntl.fcntl(connection, fcntl.F_SETFL, 0)  # its end shall not kill this process any more
        connection.send(b"exit %03d\n" % status)
    except OSError:
        caller = None
    end.close()
    _sockets.close_all()
    try:
        if rest.close_leftovers(connection.fileno()) is not None:
            caller = None
    except OSError:
        caller = None
    return status, caller


def _announce_answer(end: socket.SocketType) -> None:
    """Tell the shim that there may be something on standard output from now on. It reads this if this process dies.

    The shim does not wait for it, so it costs no switch to another process.
    """
    with contextlib.suppress(OSError):  # a worker that dies may then look as if it had written nothing
        end.send(b"answering\n", socket.MSG_DONTWAIT)


def _promises_reuse(plugin: ServedPlugin) -> bool:
    return isinstance(plugin.main, PluginMain) and promises_unchanged_process(plugin.main.plugin)


def _wait_for_end(connection: socket.SocketType) -> bool:
    """Wait for the end of the shim. Until then it may pass signals on, which must not reach another request.

    Returns:
        True if it has ended.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    try:
        return bool(poll.poll(_END_TIMEOUT)) and connection.recv(1) == b""
    except OSError:
        return False


def _is_as_before(rest: RestingState, caller: CallerState) -> bool:
    """Put the process back to rest, and verify it."""
    try:
        return rest.restore(caller) is None
    except (CNIError, OSError, ValueError):
        return False


def _report_line(report: int, line: str) -> None:
    """Report a line to the server. If it is gone, the request goes on nevertheless."""
    with contextlib.suppress(OSError):
        os.write(report, f"{line}\n".encode())  # less than PIPE_BUF: written whole


def _accept(queue: AcceptQueue, *, served: bool) -> socket.SocketType | None:
    """Wait for a connection.

    A connection that waits already is accepted even when this worker shall end. But a worker that has served accepts
    none after the server's stop: else it would go on as long as there are connections.

    Args:
        queue: Accept queue of the server.
        served: True if this worker has served before.

    Returns:
        The connection; None when this worker shall end.

    Raises:
        OSError: The kernel refuses to accept: too many open files.
    """
    while True:
        ready = queue.wait()
        if served and queue.stop in ready:
            return None
        connection = queue.accept()
        if connection is not None:
            return connection
        if queue.stop in ready or (queue.retire in ready and _read_retirement(queue.retire)):
            return None


def _read_retirement(retire: int) -> bool:
    """Read a byte of the pipe: the worker that gets one shall end. False if another worker was faster."""
    try:
        return os.read(retire, 1) != b""
    except BlockingIOError:
        return False


def _admit(connection: socket.SocketType, policy: CallerPolicy, worker: PreparedWorker, report: int) -> bool:
    """Check the caller, while the shim is still preparing its offer. One that is declined is not waited for.

    Returns:
        False if it was declined, or has ended.

    Raises:
        OSError: The kernel refuses the check: too many open files.
    """
    try:
        reason = policy.find_objection(connection)
    except (FileNotFoundError, ProcessLookupError):
        return False
    finally:
        # Now the shim waits, and its processor is free for the server. Earlier, the server would take this worker's.
        _report_line(report, f"busy {worker.pid}")
    if reason is not None:
        with contextlib.suppress(OSError):
            connection.send(reason.encode() + b"\n")
    return reason is None


def _take_from_shim(
    connection: socket.SocketType, plugins: Mapping[bytes, ServedPlugin], worker: PreparedWorker
) -> tuple[ServedPlugin, RequestOffer, ShimRequest] | None:
    """Take the request if this process can run it as the plugin's own process would; else decline, and return None."""
    try:
        offer = receive_offer(connection, socket.MSG_DONTWAIT)
    except BlockingIOError:
        connection.settimeout(_OFFER_TIMEOUT)
        offer = receive_offer(connection)
        # Blocking again: a send that waits for room would make the kernel send the signal that kills, below.
        connection.settimeout(None)
    plugin = plugins.get(offer.about)
    if plugin is None:
        connection.send(_reason_to_decline(offer.about, plugins).encode() + b"\n")
        return None
    worker.signals.forget()
    request = take_request(offer, worker.netns)
    # From here on, the kernel kills this process when the shim ends. The recv() below sees a shim that ended before.
    fcntl.fcntl(connection, fcntl.F_SETOWN, worker.pid)
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        connection.recv(1)
    except BlockingIOError:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, worker.pidfd.to_bytes(4, sys.byteorder))
        offer.end.sendmsg([b"started\n"], [rights])
        return plugin, offer, request
    return None


def _reason_to_decline(about: bytes, plugins: Mapping[bytes, ServedPlugin]) -> str:
    """Explain why the server has no plugin for an offer."""
    theirs = about.split()
    for prefix in plugins:
        ours = prefix.split()
        if theirs[:2] != ours[:2]:
            continue  # another plugin
        if theirs[:3] != ours[:3]:
            return "it is of another version: restart it, or install the shims again"
        return "the caller has another personality (setarch)"
    return "it has no such plugin"


_STREAMS = (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w"))


def _open_stream(name: str, fd: int, mode: str) -> None:
    """Make the stream that Python makes at its start. It depends on the descriptor, and the server's differs."""
    old = getattr(sys, name)
    buffering = 1 if name == "stderr" or os.isatty(fd) else -1
    stream = open(fd, mode, buffering, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
    setattr(sys, name, stream)


def _take_over(request: ShimRequest) -> None:
    """Give this process the streams, directory, umask, network namespace and environment of the caller."""
    *streams, cwd = request.files
    for (name, number, mode), fd in zip(_STREAMS, streams, strict=True):
        os.dup2(fd, number)
        if os.isatty(number):  # prepare_worker() made streams for files and pipes
            _open_stream(name, number, mode)
    os.fchdir(cwd)
    os.umask(request.umask)
    if request.netns >= 0:
        with NetNS("the caller's", request.netns) as netns:
            enter(netns)
    for fd in request.files:
        os.close(fd)
    for key, value in request.environ.items():
        os.environb[key] = value
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].__dict__["tempdir"] = None  # found by the environment of another
    sys.argv[:] = ["-c", request.name]
    _local.runner = None  # that of an earlier request


def run_request(
    plugin: ServedPlugin, request: ShimRequest, worker: PreparedWorker, announce: Callable[[], object]
) -> int:
    """Take over the caller's state, run the plugin, and return its exit status.

    Args:
        plugin: The plugin.
        request: The request.
        worker: State of this process.
        announce: Called right before anything is written to standard output.
    """
    try:
        _take_over(request)
    except Exception as exc:  # too late for the shim to run it
        reply.is_spent = True
        announce()
        os.write(1, reply.print_error(InternalError(f"the resident server cannot run this request: {cause_of(exc)}")))
        return 1
    try:
        if isinstance(plugin.main, PluginMain):
            status: object = _process.serve(plugin.main, plugin.launcher, worker.signals, announce)
        else:
            announce()  # it may print at any time
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
        reply.is_spent = True
    if isinstance(status, str):
        print(status, file=sys.stderr)  # noqa: T201 - as Python does at its end
        status = 1
    if not _promises_reuse(plugin) or atexit._ncallbacks() != worker.exit_functions:
        reply.is_spent = True
        atexit._run_exitfuncs()
    # Now, while the descriptors are the caller's: later, the text would reach the caller of another request.
    for stream in (sys.stdout, sys.stderr, *worker.outputs):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120
            reply.is_spent = True  # the text is still in the buffer
    return (status if isinstance(status, int) else 0) & 0xFF
