"""Resident server: keeps workers, replaces those that have ended, and counts what they report.

The server never touches a request. Its workers are forked copies with all plugins loaded. A worker runs one request at
a time. It serves again if the plugin promises to leave the process unchanged and the worker finds it so; else it ends
(:mod:`.worker`). :mod:`.pool` decides how many workers there are.

One loop does everything: it reads reports, reaps processes that have ended, answers ``cnisdk serve --status``, carries
out the pool's orders, and writes the metrics. Between rounds it waits for a report, a signal or a status request, at
most for a second. A connection wakes it only when no worker is idle and the pool would fork one for it. In each round
it also looks if a connection waits that no idle worker takes.

Workers beyond what is needed are retired: each that reads a byte from a pipe ends.

SIGTERM and SIGINT stop the server: it deletes its socket, workers take no further request, and it waits up to
:data:`STOP_TIMEOUT` seconds for those that run. Connections that wait then are closed, unless a service manager holds
the socket. If the server is killed, running requests end normally; idle workers end when the stop pipe closes. It stops
by itself when its socket is gone, and so no request can reach it; a server on demand also when it is not needed
(:mod:`.ondemand`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from ..errors import IOFailureError, cause_of
from . import protocol
from .accept_queue import AcceptQueue
from .caller import CallerPolicy
from .metrics import Metrics
from .ondemand import OnDemand, explain_absence
from .pool import Pool
from .protocol import get_peer_ids
from .rehearsal import rehearse_in_worker
from .worker import ServedPlugin, find_outputs, run_worker

DEFAULT_READY = 2
"""Workers that are kept, at least."""

DEFAULT_LIMIT = 64
"""Idle and busy workers, at most; as many more may be ending. Further requests wait, and are run by their shims after
:data:`.protocol.SHIM_TIMEOUT` seconds."""

# Workers while connections wait: at least, at most, and for each processor.
_CROWD, _MOST_CROWD, _CROWD_PER_PROCESSOR = 4, 16, 2

STOP_TIMEOUT = 150.0
"""Seconds that a server which stops waits for running requests."""

_BACKLOG = 128


class Server:
    """Resident server.

    Args:
        plugins: Plugins to serve, by type.
        directory: Directory of its sockets and metrics. It is made, for this user alone.
        ready: Workers that are kept, at least.
        limit: Idle and busy workers, at most.
        metrics: Path of the metrics file; None means ``metrics.prom`` in the directory.
        on_demand: Decides when a server that was started on demand ends; None for one that ends by a signal only.
    """

    def __init__(
        self,
        plugins: Mapping[str, ServedPlugin],
        directory: str,
        *,
        ready: int = DEFAULT_READY,
        limit: int = DEFAULT_LIMIT,
        metrics: str | None = None,
        on_demand: OnDemand | None = None,
    ) -> None:
        self._plugins = plugins
        self._directory = directory
        self._pool = Pool(ready, choose_crowd(), limit, time.monotonic())
        self._buffer = b""
        self._stopping = False
        self._on_demand = on_demand
        self.metrics = Metrics(metrics or self._path(protocol.METRICS), self._path(protocol.FALLBACKS))

    def run(self, listener: socket.socket | None = None) -> None:
        """Serve until SIGTERM or SIGINT, and then until the running requests have ended.

        Args:
            listener: Listening socket from a service manager; None makes one.

        Raises:
            IOFailureError: (5) The sockets cannot be made.
        """
        ensure_directory(self._directory)
        own = listener is None
        if self._on_demand is not None and is_served(self._directory):
            return  # another server began while this one loaded its plugins
        listener = listener or listen_at(self._path(protocol.SOCKET), socket.SOCK_SEQPACKET)
        control = listen_at(self._path(protocol.CONTROL), socket.SOCK_STREAM)
        control.setblocking(False)
        identity = identify(self._path(protocol.SOCKET)) if own else None
        control_identity = identify(self._path(protocol.CONTROL))
        listener.setblocking(False)
        plugins = {protocol.offer_prefix(each.type, each.id): each for each in self._plugins.values()}
        self._policy = CallerPolicy()
        stop, self._stop = os.pipe()
        retire, self._retire = os.pipe()
        os.set_blocking(retire, False)
        queue = AcceptQueue(listener, stop, retire)
        reading, self._report = os.pipe()
        os.set_blocking(reading, False)
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        gc.collect()
        gc.freeze()  # else a worker's garbage collector would write to, and so copy, all these pages
        gc.set_threshold(100_000)
        self._own_files = [self._stop, self._retire, reading, wake, waker, control.fileno()]
        watched = waiting = False
        look = select.poll()
        look.register(listener, select.POLLIN)
        if self._on_demand is not None:
            self._on_demand.note_start(self._path(protocol.SOCKET))
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, 0, 0)  # it was lower while the plugins were loaded
        notify_manager("READY=1")
        deadline: float | None = None
        poll = select.poll()
        for fd in (reading, wake, control.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            decision = self._pool.decide(time.monotonic())
            if decision.retire and not self._stopping:
                os.write(self._retire, bytes(decision.retire))
            # One worker a round: on a busy machine a fork takes long, and the server must react to signals meanwhile.
            wanted = (decision.fork or (decision.watch and waiting)) and not self._stopping
            forked = wanted and self._fork(queue, plugins, rehearse=not waiting)
            hopeless = (wanted and not forked) or (self._pool.hopeless and not self._stopping)
            if hopeless and not self._pool.idle and not self._pool.busy:
                turn_away(listener)  # a shim can run its plugin without a fork, and need not wait
            if watched != (watched := decision.watch and not self._stopping):
                if watched:
                    poll.register(listener, select.POLLIN)
                else:
                    poll.unregister(listener)
            seconds = 0.0 if forked else 1.0 if decision.again is None else min(1.0, decision.again)
            events = dict(poll.poll(seconds * 1000))
            if wake in events:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            self._read_reports(reading)
            self._reap(reading, queue)
            waiting = bool(look.poll(0))
            self._pool.note_waiting(waiting, time.monotonic())
            if control.fileno() in events:
                self._answer_status(control)
            if not self._stopping:
                reason = self._find_reason_to_end(own)
                if reason is not None:
                    with contextlib.suppress(OSError):
                        os.write(2, f"cnisdk serve: it ends, since {reason}\n".encode(errors="surrogateescape"))
                    self._stopping = True
            if self._stopping:
                if deadline is None:
                    notify_manager("STOPPING=1")
                    deadline = time.monotonic() + STOP_TIMEOUT
                    os.close(self._stop)
                    # A worker that is stopped would not see it until the deadline.
                    for pid in self._pool.idle | self._pool.busy:
                        os.kill(pid, signal.SIGCONT)
                    if identity is not None and not self._is_replaced(protocol.SOCKET, identity):
                        self._unlink(protocol.SOCKET)
                    # A worker that reported ``idle`` before may accept a connection yet. Later ones see the stop.
                    self._read_reports(reading)
                if own and not self._pool.idle:
                    turn_away(listener)
                if (not self._pool.idle and not self._pool.busy) or time.monotonic() > deadline:
                    break
            # Where another server has taken this one's place, the file is the other's.
            if self.metrics.is_due() and not self._is_replaced(protocol.CONTROL, control_identity):
                self.metrics.write(len(self._pool.idle), len(self._pool.busy))
        self._read_reports(reading)
        if not self._is_replaced(protocol.CONTROL, control_identity):
            self._unlink(protocol.CONTROL)
            self.metrics.write(0, 0)

    def _is_replaced(self, default: str, identity: tuple[int, int]) -> bool:
        """Return True if another server's socket is at the path of this one's."""
        try:
            return identify(self._path(default)) != identity
        except OSError:
            return False

    def _unlink(self, default: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(default))

    def _find_reason_to_end(self, own: bool) -> str | None:
        """Find a reason to end, for people; None if the server goes on.

        Args:
            own: The socket is the server's own, and not a service manager's.
        """
        path = self._path(protocol.SOCKET)
        if own and self.metrics.is_due() and not os.path.lexists(path):
            return f"{path} is gone"
        return None if self._on_demand is None else self._on_demand.find_reason(busy=bool(self._pool.busy))

    def _path(self, default: str) -> str:
        return os.path.join(self._directory, os.path.basename(default))

    def _end(self, number: int, _: FrameType | None) -> None:
        self._stopping = True

    def _fork(self, queue: AcceptQueue, plugins: Mapping[bytes, ServedPlugin], *, rehearse: bool) -> bool:
        """Fork a worker. Return False if the kernel refuses: too many processes, or no memory."""
        for stream in find_outputs():
            stream.flush()  # else each worker would have the text too
        try:
            pid = os.fork()
        except OSError:
            self._pool.note_refusal(time.monotonic())
            return False
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for fd in self._own_files:
                    os.close(fd)
                if rehearse:
                    with contextlib.suppress(Exception):  # a fault of a plugin, which its requests will report
                        rehearse_in_worker(plugins.values(), self._policy)
                run_worker(queue, plugins, self._policy, self._report)
            except Exception as exc:
                os.write(2, f"cnisdk: a worker ends, since it cannot take requests: {cause_of(exc)}\n".encode())
            finally:
                os._exit(1)
        self._pool.add(pid)
        return True

    def _read_reports(self, reading: int) -> None:
        """Read the reports of workers."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(reading, 1 << 16):
                self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            event, pid, *rest = line.decode("ascii").split()
            if event == "busy":
                self._pool.note_busy(int(pid), time.monotonic())
            else:
                state, type_, verb, status, took, waited = rest
                self._pool.note_answered(int(pid), float(waited), time.monotonic())
                if state == "idle":
                    self._pool.note_idle(int(pid))
                if status == "declined":
                    self.metrics.declined += 1
                else:
                    self.metrics.count(type_, verb, int(status), float(took))
                    if self._on_demand is not None:
                        self._on_demand.note_request()

    def _reap(self, reading: int, queue: AcceptQueue) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._read_reports(reading)  # those it wrote before it ended
            if status and pid in self._pool.idle:
                self._pool.note_refusal(time.monotonic())  # the next one might fail likewise
            if os.WIFSIGNALED(status):
                self.metrics.died += pid not in self._pool.ending
            if status:
                queue.wake_next()  # it may have been woken for a connection, and died before it accepted it
            self._pool.remove(pid)

    def _answer_status(self, control: socket.socket) -> None:
        """Answer ``cnisdk serve --status``. The answer fits into any socket buffer: no client can block the server."""
        try:
            connection, _ = control.accept()
        except OSError:
            return
        with connection:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                if get_peer_ids(connection)[1] == os.geteuid():
                    status = {
                        "pid": os.getpid(),
                        "stopping": self._stopping,
                        "onDemand": self._on_demand is not None,
                        "plugins": {name: plugin.id for name, plugin in sorted(self._plugins.items())},
                        "idle": len(self._pool.idle),
                        "busy": len(self._pool.busy),
                        **self.metrics.summary(),
                    }
                    connection.sendall(json.dumps(status).encode())


def choose_crowd() -> int:
    """Choose how many workers there may be while connections wait."""
    return min(_MOST_CROWD, max(_CROWD, _CROWD_PER_PROCESSOR * len(os.sched_getaffinity(0))))


def identify(path: str) -> tuple[int, int]:
    """Return device and inode of a file."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def ensure_directory(path: str) -> None:
    """Make the directory of the sockets, for this user alone. One that exists must belong to this user, with mode 0700.

    Raises:
        IOFailureError: (5) It belongs to another user, or other users may enter it.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path, follow_symlinks=False)
        if status.st_uid != os.geteuid() or status.st_mode & 0o170077 != 0o040000:
            raise IOFailureError(
                f"{path} is not a directory of this user alone", details="remove it, or chown it and chmod it to 0700"
            )
    except OSError as exc:
        raise IOFailureError(f"cannot make {path}: {cause_of(exc)}") from exc


def is_served(directory: str) -> bool:
    """Return True if a server listens at the socket in a directory, or a service manager does for one.

    Workers that have outlived their server still hold its socket, but it is of no use.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        try:
            connection.connect(os.path.join(directory, os.path.basename(protocol.SOCKET)))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
        pid, *_ = protocol.get_peer_ids(connection)
    if pid == 0:
        return True  # of another PID namespace
    try:
        os.stat(f"/proc/{pid}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended, or is about to: it loses its program before it loses the lock
    except OSError:
        pass  # it is another user's
    return True


def listen_at(path: str, kind: socket.SocketKind) -> socket.socket:
    """Listen at a path, in place of a server that listens there. Each connection reaches one of the two.

    Raises:
        IOFailureError: (5) The socket cannot be made.
    """
    temporary = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        mask = os.umask(0o177)
        try:
            listener.bind(temporary)
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
        os.rename(temporary, path)
    except OSError as exc:
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise IOFailureError(f"cannot listen at {path}: {cause_of(exc)}") from exc
    return listener


def turn_away(listener: socket.socket) -> None:
    """Close the connections that wait. Their shims then run the plugins."""
    with contextlib.suppress(OSError):
        while True:
            listener.accept()[0].close()


def find_inherited_listener(kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> socket.socket | None:
    """Find the listening socket that the service manager made for this server (``sd_listen_fds(3)``).

    Raises:
        IOFailureError: (5) It is no Unix socket of that kind.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    listener = socket.socket(fileno=3)
    os.set_inheritable(3, False)
    if listener.family != socket.AF_UNIX or listener.type != kind:
        wanted = "ListenSequentialPacket=" if kind == socket.SOCK_SEQPACKET else "ListenStream="
        raise IOFailureError(
            f"the socket that the service manager hands over is of another kind: its unit must say {wanted}"
        )
    return listener


def notify_manager(state: str) -> None:
    """Report the state of the server to the service manager (``sd_notify(3)``), if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def ask_status(directory: str) -> dict[str, Any]:
    """Ask a running server for its status.

    Returns:
        The status, as ``cnisdk serve --status`` prints it.

    Raises:
        IOFailureError: (5) No server runs, or it does not answer.
    """
    path = os.path.join(directory, os.path.basename(protocol.CONTROL))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(path)
            data = b""
            while chunk := connection.recv(1 << 16):
                data += chunk
        answer: dict[str, Any] = json.loads(data)
    except (OSError, ValueError) as exc:
        details = f"{explain_absence(directory)}; `cnisdk serve` starts one by hand"
        raise IOFailureError(f"no server answers at {path}: {exc}", details=details) from exc
    return answer
