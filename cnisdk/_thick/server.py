"""Resident server: keeps idle workers, replaces those that took a request, and counts what they report.

The server never touches a request. Its workers are forked copies with all plugins loaded. A worker runs one request and
ends, unless the plugin promises to leave the process unchanged and the worker finds it so (:mod:`.worker`).

It knows three sets of workers, by process id:

idle
    forked, and waiting on the accept queue.
busy
    running a request: the worker reported ``busy``.
ending
    answered: the worker reported ``done``. On a busy machine its end may still take long. A worker that serves again
    reports ``idle``.

One loop does everything: it reads reports, reaps processes that have ended, answers ``cnisdk serve --status``, forks at
most one worker, and writes the metrics. It waits between rounds for a report, a signal or a question.

Forks take the processor from running requests. So while requests run, the server forks a worker only when at most a
quarter of ``ready`` are idle. After :data:`_QUIET` seconds without a request the pool is filled, up to the largest
burst of the last minute (:mod:`.bursts`), within ``limit`` and ``memory``. Workers beyond that are retired: each that
reads a byte from a pipe ends.

SIGTERM and SIGINT stop the server: workers take no further request, and it waits up to :data:`STOP_TIMEOUT` seconds for
those that run. If the server is killed, running requests end normally; idle workers end when the stop pipe closes.
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
from collections import Counter
from collections.abc import Mapping
from functools import partial
from types import FrameType
from typing import Any

from ..errors import IOFailureError, cause_of
from . import prefetch, protocol
from .accept_queue import AcceptQueue
from .bursts import Burst, BurstHistory, peak_concurrency
from .caller import CallerPolicy
from .metrics import Metrics
from .protocol import get_peer_ids
from .worker import ServedPlugin, change_scheduling, find_outputs, run_worker

DEFAULT_READY = 4
"""Idle workers, at least."""

DEFAULT_LIMIT = 64
"""Idle and busy workers, at most; as many more may be ending. Further requests wait, and are run by their shims after a
second."""

DEFAULT_MEMORY = 384
"""Memory that idle workers may hold, in MiB."""

# Bytes that a worker holds beside fetched pages: page tables, and pages it has written to.
_WORKER = 1 << 20

STOP_TIMEOUT = 150.0
"""Seconds that a server which stops waits for running requests."""

_BACKLOG = 128

# Requests come in groups. A new worker waits this many seconds before it fetches pages, so that the others of a group
# have the processor.
_GROUP_GAP = 0.005

# Seconds without a request after which the pool is filled.
_QUIET = 0.05

# Recompute the peak concurrency after this many finished requests.
_BURST_SAMPLE = 256

# Requests of each kind that report their pages: the first ones, then one each time the number of requests has doubled.
_FIRST_SAMPLES = 4


class Server:
    """Resident server.

    Args:
        plugins: Plugins to serve, by type.
        directory: Directory of its sockets and metrics. It is made, for this user alone.
        ready: Idle workers, at least.
        limit: Idle and busy workers, at most.
        memory: Memory that idle workers may hold, in MiB. ``ready`` workers wait even if they hold more.
        metrics: Path of the metrics file; None means ``metrics.prom`` in the directory.
    """

    def __init__(
        self,
        plugins: Mapping[str, ServedPlugin],
        directory: str,
        *,
        ready: int = DEFAULT_READY,
        limit: int = DEFAULT_LIMIT,
        memory: int = DEFAULT_MEMORY,
        metrics: str | None = None,
    ) -> None:
        self._plugins = plugins
        self._directory = directory
        self._ready, self._limit, self._memory = ready, max(limit, ready), memory << 20
        self._spans: list[tuple[float, float]] = []
        self._kinds: set[prefetch.RequestKind] = set()
        # A server starts with the boot, when all containers of the node start at once: expect as many as may run.
        self._bursts = BurstHistory(Burst(time.monotonic(), self._limit, frozenset((name, "ADD") for name in plugins)))
        self._retiring = 0
        self._idle: set[int] = set()
        self._busy: set[int] = set()
        self._ending: set[int] = set()
        self._buffer = b""
        self._stopping = False
        self._last = -_QUIET
        self._prefetcher = prefetch.Prefetcher()
        self._finished: Counter[prefetch.RequestKind] = Counter()
        self._samples: Counter[prefetch.RequestKind] = Counter()
        for plugin in plugins.values():
            for verb, touched in plugin.samples.items():
                self._prefetcher.add_sample((plugin.type, verb), touched)
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
        listener = listener or listen_at(self._path(protocol.SOCKET), socket.SOCK_SEQPACKET)
        control = listen_at(self._path(protocol.CONTROL), socket.SOCK_STREAM)
        control.setblocking(False)
        identity = None if not own else os.stat(self._path(protocol.SOCKET)).st_ino
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
        self._own_files = (self._stop, self._retire, reading, wake, waker, control.fileno())
        # A report must not take the processor from the request it is about.
        change_scheduling(os.SCHED_OTHER, os.SCHED_BATCH)
        more = self._fill(queue, plugins)
        notify_manager("READY=1")
        deadline: float | None = None
        poll = select.poll()
        for fd in (reading, wake, control.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            soon = self._spans or len(self._idle) < self._ready
            events = dict(poll.poll(0 if more else _QUIET * 1000 if soon else 1000))
            if wake in events:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            self._read_reports(reading)
            self._reap(reading, queue)
            if control.fileno() in events:
                self._answer_status(control)
            if self._stopping:
                more = False
                if deadline is None:
                    notify_manager("STOPPING=1")
                    deadline = time.monotonic() + STOP_TIMEOUT
                    os.close(self._stop)
                    # A worker that reported ``idle`` before may accept a connection yet. Later ones see the stop.
                    self._read_reports(reading)
                if (not self._idle and not self._busy) or time.monotonic() > deadline:
                    break
            else:
                more = self._fill(queue, plugins)
            self.metrics.write(len(self._idle), len(self._busy))
        self._read_reports(reading)
        self.metrics.write(0, 0, now=True)
        # Another server may listen at this path by now: delete the socket only if it is still this server's.
        path = self._path(protocol.SOCKET)
        with contextlib.suppress(OSError):
            if identity is not None and os.stat(path).st_ino == identity:
                os.unlink(path)

    def _path(self, default: str) -> str:
        return os.path.join(self._directory, os.path.basename(default))

    def _end(self, number: int, _: FrameType | None) -> None:
        self._stopping = True

    def _fill(self, queue: AcceptQueue, plugins: Mapping[bytes, ServedPlugin]) -> bool:
        """Fork one worker if one is missing.

        One at a time: on a busy machine a fork takes long, and in between the server must see signals and questions.

        Returns:
            True if more workers are missing.
        """
        # A fork and the start of a worker take time from running requests: wait as long as some workers are idle.
        now = time.monotonic()
        quiet = not self._busy and now - self._last >= _QUIET
        if len(self._idle) > self._ready // 4 and not quiet:
            return False
        if quiet:
            self._record_burst(now)
        ready, burst = self._ready, self._bursts.largest
        if quiet:
            room = self._memory // (_WORKER + prefetch.private_size(self._prefetcher.ranges_for(burst.kinds)))
            ready = max(ready, min(burst.size, self._limit, room))
        if (surplus := len(self._idle) - self._retiring - ready) > 0:
            self._retiring += os.write(self._retire, bytes(surplus))
        # Ending workers are counted apart: the end of a burst must not delay new workers, but needs a bound.
        full = len(self._idle) + len(self._busy) >= self._limit or len(self._ending) >= self._limit
        if len(self._idle) >= ready or full:
            return False
        # Extra workers fetch only the pages of the burst's kinds. The last ones, which are woken first, fetch all.
        ranges = self._prefetcher.ranges_for(None if len(self._idle) >= ready - self._ready else burst.kinds)
        fetch = partial(self._prefetcher.fetch, ranges)
        pause = 0 if quiet else _GROUP_GAP
        for stream in find_outputs():
            stream.flush()  # else each worker would have the text too
        try:
            pid = os.fork()
        except OSError:  # too many processes, or no memory: try again later
            return False
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for fd in self._own_files:
                    os.close(fd)
                run_worker(queue, plugins, self._policy, self._report, pause, fetch, self._sample_path)
            finally:
                os._exit(1)
        self._idle.add(pid)
        return quiet  # else replace one worker for each request

    def _record_burst(self, now: float) -> None:
        """Add the peak concurrency of the finished requests to the history. Their waiting time counts too."""
        self._bursts.add(Burst(now, peak_concurrency(self._spans), frozenset(self._kinds)))
        self._spans.clear()
        self._kinds.clear()

    def _read_reports(self, reading: int) -> None:
        """Read the reports of workers."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(reading, 1 << 16):
                self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._last = time.monotonic()
            event, pid, *rest = line.decode("ascii").split()
            if event == "busy":
                self._idle.discard(int(pid))
                self._busy.add(int(pid))
            elif event == "idle":
                self._ending.discard(int(pid))
                self._idle.add(int(pid))
            elif event == "pages":
                self._add_sample(pid, (rest[0], rest[1]), fetched=rest[2] != "0")
            else:
                self._busy.discard(int(pid))
                self._ending.add(int(pid))
                self._count(*rest)
        if len(self._spans) >= _BURST_SAMPLE:
            self._record_burst(self._last)

    def _count(self, type_: str, verb: str, status: str, took: str, waited: str) -> None:
        """Count a request that was answered or declined."""
        if status == "declined":
            self.metrics.declined += 1
            return
        self.metrics.count(type_, verb, int(status), float(took))
        self._spans.append((self._last - float(took) - float(waited), self._last))
        self._kinds.add((type_, verb))
        self._finished[type_, verb] += 1

    def _sample_path(self, type_: str, verb: str) -> str | None:
        """Return the file in which a worker writes the pages it touched; None if no sample of the request is needed."""
        number = self._finished[type_, verb]
        return f"{self._path('pages')}.{os.getpid()}" if number < _FIRST_SAMPLES or number & (number - 1) == 0 else None

    def _add_sample(self, pid: str, kind: prefetch.RequestKind, *, fetched: bool) -> None:
        path = f"{self._path('pages')}.{pid}"
        with contextlib.suppress(OSError, ValueError):
            # In a burst each worker counts itself among the first requests: take no more samples than are needed.
            if self._samples[kind] < _FIRST_SAMPLES + self._finished[kind].bit_length():
                self._samples[kind] += 1
                with open(path, "rb") as file:
                    self._prefetcher.add_sample(kind, prefetch.load_pages(file.read()), fetched=fetched)
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _reap(self, reading: int, queue: AcceptQueue) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._read_reports(reading)  # those it wrote before it ended
            if os.WIFSIGNALED(status):
                self.metrics.died += pid not in self._ending
                queue.wake_next()  # it may have been woken for a connection, and died before it accepted it
            if pid in self._idle and self._retiring:
                self._retiring -= 1
            for workers in (self._idle, self._busy, self._ending):
                workers.discard(pid)

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
                        "plugins": {name: plugin.id for name, plugin in sorted(self._plugins.items())},
                        "idle": len(self._idle),
                        "busy": len(self._busy),
                        **self.metrics.summary(),
                    }
                    connection.sendall(json.dumps(status).encode())


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
        raise IOFailureError(f"no server answers at {path}: {exc}", details="start `cnisdk serve`") from exc
    return answer
