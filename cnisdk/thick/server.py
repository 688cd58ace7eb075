"""The server: keeps workers ready, replaces those that took a request, and tells how it is.

It never touches a request itself. Its workers hold a copy of all that plugins need; each serves one request and ends,
so nothing a request leaves in memory reaches the next, and nothing grows.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import accumulate
from types import FrameType
from typing import Any, NamedTuple

from ..errors import IOFailureError
from . import pages, protocol
from .metrics import Metrics
from .peer import Border
from .protocol import peer_uid
from .worker import Door, Loaded, schedule, work

READY = 4
"""Workers that wait for requests."""

LIMIT = 64
"""Workers at a time, beside as many that have answered and end. More requests than that wait, and after a second run in
processes of their own."""

MEMORY = 384
"""What workers that wait may hold, in MiB."""

# What a worker has to itself beside pages fetched in advance, in bytes: its tables, and what it has written to.
_WORKER = 1 << 20

# A server that is told to end waits that long for the requests that run.
GRACE = 150.0
_BACKLOG = 128

# Requests come in groups. So many seconds without any means that those which run need the processor no more.
_BUSY = 0.005

# Seconds without a request after which the pool is filled up.
_QUIET = 0.05

REMEMBER = 60.0
"""Where many requests came together, more will: for so many seconds, as many workers wait as there were requests. A
server that starts expects many."""

# Of so many requests at a time is it looked at how many came together.
_SPANS = 256

# The first requests of each plugin and verb show which pages such requests touch, beside those a rehearsal did; and so
# does one each time their number has doubled.
_LESSONS = 4


class Peak(NamedTuple):
    """How many requests there were at a time, when, and of which kinds."""

    at: float
    number: int
    kinds: frozenset[pages.Kind]


class Peaks:
    """The highest of the last :data:`REMEMBER` seconds."""

    def __init__(self, first: Peak) -> None:
        self._falling = deque([first])

    @property
    def highest(self) -> Peak:
        """Of those that are remembered."""
        return self._falling[0]

    def add(self, peak: Peak) -> None:
        """Note one, and forget what is too long ago."""
        while self._falling and self._falling[-1].number <= peak.number:
            self._falling.pop()  # the new one is remembered longer
        self._falling.append(peak)
        while peak.at - self._falling[0].at >= REMEMBER and len(self._falling) > 1:
            self._falling.popleft()


class Server:
    """A resident server.

    Args:
        plugins: What to serve, by type.
        directory: Where its sockets and its metrics are; made, for this user alone.
        ready: Workers that wait for requests.
        limit: Workers at a time.
        memory: What those that wait may hold, in MiB; as many as are to wait always, do.
        metrics: The file for those who scrape; None means one in the directory.
    """

    def __init__(
        self,
        plugins: Mapping[str, Loaded],
        directory: str,
        *,
        ready: int = READY,
        limit: int = LIMIT,
        memory: int = MEMORY,
        metrics: str | None = None,
    ) -> None:
        self._plugins = plugins
        self._directory = directory
        self._ready, self._limit, self._memory = ready, max(limit, ready), memory << 20
        self._spans: list[tuple[float, float]] = []
        self._kinds: set[pages.Kind] = set()
        # After a boot, all containers of a node start at once.
        self._peaks = Peaks(Peak(time.monotonic(), self._limit, frozenset((name, "ADD") for name in plugins)))
        self._retiring = 0
        self._idle: set[int] = set()
        self._busy: set[int] = set()
        # Those that have answered: only their end is left, which may take long where others need the processors.
        self._ending: set[int] = set()
        self._buffer = b""
        self._stopping = False
        self._last = -_QUIET
        self._populate = pages.Populate()
        self._learned: Counter[pages.Kind] = Counter()
        self._lessons: Counter[pages.Kind] = Counter()
        for plugin in plugins.values():
            for verb, touched in plugin.lessons.items():
                self._populate.learn((plugin.type, verb), touched)
        self.metrics = Metrics(metrics or self._path(protocol.METRICS), self._path(protocol.FALLBACKS))

    def run(self, listener: socket.socket | None = None) -> None:
        """Serve until SIGTERM or SIGINT, and then until the requests that run have ended.

        Args:
            listener: A listening socket handed over by a service manager; None makes one.

        Raises:
            IOFailureError: (5) The sockets cannot be made.
        """
        prepare_directory(self._directory)
        own = listener is None
        listener = listener or listen(self._path(protocol.SOCKET), socket.SOCK_SEQPACKET)
        control = listen(self._path(protocol.CONTROL), socket.SOCK_STREAM)
        control.setblocking(False)
        identity = None if not own else os.stat(self._path(protocol.SOCKET)).st_ino
        listener.setblocking(False)
        plugins = {protocol.describe(each.type, each.id): each for each in self._plugins.values()}
        self._border = Border()
        stop, self._stop = os.pipe()
        retire, self._retire = os.pipe()
        os.set_blocking(retire, False)
        door = Door(listener, stop, retire)
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
        gc.freeze()  # a worker's collector must not copy all these pages
        gc.set_threshold(100_000)
        self._mine = (self._stop, self._retire, reading, wake, waker, control.fileno())
        # To be told of a request is no reason to take the processor from it.
        schedule(os.SCHED_OTHER, os.SCHED_BATCH)
        more = self._fill(door, plugins)
        notify("READY=1")
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
            self._hear(reading)
            self._reap(reading, door)
            if control.fileno() in events:
                self._answer(control)
            if self._stopping:
                more = False
                if deadline is None:
                    notify("STOPPING=1")
                    deadline = time.monotonic() + GRACE
                    os.close(self._stop)
                if (not self._idle and not self._busy) or time.monotonic() > deadline:
                    break
            else:
                more = self._fill(door, plugins)
            self.metrics.write(len(self._idle), len(self._busy))
        self._hear(reading)
        self.metrics.write(0, 0, now=True)
        # Another server may have taken the place already: what is there now may not be ours.
        path = self._path(protocol.SOCKET)
        with contextlib.suppress(OSError):
            if identity is not None and os.stat(path).st_ino == identity:
                os.unlink(path)

    def _path(self, default: str) -> str:
        return os.path.join(self._directory, os.path.basename(default))

    def _end(self, number: int, _: FrameType | None) -> None:
        self._stopping = True

    def _fill(self, door: Door, plugins: Mapping[bytes, Loaded]) -> bool:
        """Fork a worker if one is missing.

        Returns:
            True if more are. One at a time: where the machine is busy a fork takes long, and the server must hear
            signals and questions in between.
        """
        # To fork, and what a new worker does first, takes time from requests that run, and requests come in groups: as
        # long as others wait, it can wait too.
        now = time.monotonic()
        quiet = not self._busy and now - self._last >= _QUIET
        if len(self._idle) > self._ready // 4 and not quiet:
            return False
        if quiet:
            self._look_back(now)
        ready, peak = self._ready, self._peaks.highest
        if quiet:
            room = self._memory // (_WORKER + pages.size_of(self._populate.choose(peak.kinds)))
            ready = max(ready, min(peak.number, self._limit, room))
        if (surplus := len(self._idle) - self._retiring - ready) > 0:
            self._retiring += os.write(self._retire, bytes(surplus))
        # The ends of a burst must not keep new workers out, and without a bound there would be too many processes.
        full = len(self._idle) + len(self._busy) >= self._limit or len(self._ending) >= self._limit
        if len(self._idle) >= ready or full:
            return False
        # Those that are more than usual hold no more than such requests need as came together. The last go first.
        ranges = self._populate.choose(None if len(self._idle) >= ready - self._ready else peak.kinds)
        populate = partial(self._populate, ranges)
        pause = 0 if quiet else _BUSY
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError:  # too many processes, or no memory: later there may be room
            return False
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for fd in self._mine:
                    os.close(fd)
                work(door, plugins, self._border, self._report, pause, populate, self._learn)
            finally:
                os._exit(1)
        self._idle.add(pid)
        return quiet  # else one for each that was taken

    def _look_back(self, now: float) -> None:
        """See how many of the requests that have ended were there at a time, those included that waited."""
        self._peaks.add(Peak(now, count_together(self._spans), frozenset(self._kinds)))
        self._spans.clear()
        self._kinds.clear()

    def _hear(self, reading: int) -> None:
        """Take what workers report."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(reading, 1 << 16):
                self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._last = time.monotonic()
            what, pid, *rest = line.decode("ascii").split()
            if what == "busy":
                self._idle.discard(int(pid))
                self._busy.add(int(pid))
            elif what == "pages":
                self._take_pages(pid, (rest[0], rest[1]), fetched=rest[2] != "0")
            else:
                self._busy.discard(int(pid))
                self._ending.add(int(pid))
                self._count(*rest)
        if len(self._spans) >= _SPANS:
            self._look_back(self._last)

    def _count(self, type_: str, verb: str, status: str, took: str, waited: str) -> None:
        """Count a request that was answered, or declined."""
        if status == "declined":
            self.metrics.declined += 1
            return
        self.metrics.count(type_, verb, int(status), float(took))
        self._spans.append((self._last - float(took) - float(waited), self._last))
        self._kinds.add((type_, verb))
        self._learned[type_, verb] += 1

    def _learn(self, type_: str, verb: str) -> str | None:
        """Where a worker is to write down the pages it touched; None when enough is known of such requests."""
        number = self._learned[type_, verb]
        return f"{self._path('pages')}.{os.getpid()}" if number < _LESSONS or number & (number - 1) == 0 else None

    def _take_pages(self, pid: str, kind: pages.Kind, *, fetched: bool) -> None:
        path = f"{self._path('pages')}.{pid}"
        with contextlib.suppress(OSError, ValueError):
            # When many requests come together, each of their workers takes itself for one of the first.
            if self._lessons[kind] < _LESSONS + self._learned[kind].bit_length():
                self._lessons[kind] += 1
                with open(path, "rb") as file:
                    self._populate.learn(kind, pages.load(file.read()), fetched=fetched)
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _reap(self, reading: int, door: Door) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._hear(reading)  # what it said before it ended
            if os.WIFSIGNALED(status):
                self.metrics.died += pid not in self._ending
                door.tell()  # it may have been woken for a request, and died before it took it
            if pid in self._idle and self._retiring:
                self._retiring -= 1
            for workers in (self._idle, self._busy, self._ending):
                workers.discard(pid)

    def _answer(self, control: socket.socket) -> None:
        """Tell the one who asks how the server is. Nobody is waited for: what is told fits into any socket."""
        try:
            connection, _ = control.accept()
        except OSError:
            return
        with connection:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                if peer_uid(connection)[1] == os.geteuid():
                    status = {
                        "pid": os.getpid(),
                        "stopping": self._stopping,
                        "plugins": {name: plugin.id for name, plugin in sorted(self._plugins.items())},
                        "idle": len(self._idle),
                        "busy": len(self._busy),
                        **self.metrics.summary(),
                    }
                    connection.sendall(json.dumps(status).encode())


def count_together(spans: Iterable[tuple[float, float]]) -> int:
    """How many of these spans of time, each from its start to its end, there are at a time."""
    changes = sorted(change for start, end in spans for change in ((start, 1), (end, -1)))
    return max(accumulate(change for _, change in changes), default=0)


def prepare_directory(path: str) -> None:
    """Make the directory of the sockets, for this user alone, or check that it is so.

    Raises:
        IOFailureError: (5) It is another user's, or others may enter it.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path, follow_symlinks=False)
        if status.st_uid != os.geteuid() or status.st_mode & 0o170077 != 0o040000:
            raise IOFailureError(
                f"{path} is not a directory of this user alone", details="remove it, or chown it and chmod it to 0700"
            )
    except OSError as exc:
        raise IOFailureError(f"cannot make {path}: {exc.strerror}") from exc


def listen(path: str, kind: socket.SocketKind) -> socket.socket:
    """Listen at a path, in place of whoever did: requests in between reach the one or the other.

    Raises:
        IOFailureError: (5) It cannot be made.
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
        raise IOFailureError(f"cannot listen at {path}: {exc.strerror}") from exc
    return listener


def inherited() -> socket.socket | None:
    """The socket a service manager listens at for this server (``sd_listen_fds(3)``), or None.

    Raises:
        IOFailureError: (5) It is not a Unix socket that keeps messages apart.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    listener = socket.socket(fileno=3)
    os.set_inheritable(3, False)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_SEQPACKET:
        raise IOFailureError("the socket the service manager hands over is not ListenSequentialPacket=")
    return listener


def notify(state: str) -> None:
    """Tell the service manager (``sd_notify(3)``), if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def ask_status(directory: str) -> dict[str, Any]:
    """Ask a running server how it is.

    Raises:
        IOFailureError: (5) There is none, or it does not answer.
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
