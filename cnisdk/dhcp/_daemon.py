"""The daemon: one loop for the clients of all containers, and a Unix socket on which plugins ask.

Theory of operation. A client is a state machine with a deadline, and sockets while it waits for a server. The loop
waits for the nearest deadline, and for any of the sockets. Nothing in it blocks but requests to the kernel and the
files of leases, each of a few hundred bytes. A thread exists only while a socket is opened in a namespace.

A plugin connects, sends one line of JSON, and gets one line. If it ends while ADD waits for a server, its client is
given up, with what the server may have leased. An answer that does not get through gives up the lease, too.

Killed at any time, the daemon leaves files by which the next one goes on (:mod:`._store`): what a container uses is
renewed, and what was asked for by an ADD that did not end is released. On SIGTERM it ends in the same way, at once.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from .._light import Any
from ..classes import evolve, frozen
from ..errors import (
    CNIError,
    InternalError,
    IOFailureError,
    TryAgainLaterError,
    UnknownContainerError,
    as_cni_error,
    cause_of,
    name_and_text,
    run_all,
)
from ..spec.names import Attachment
from ._client import Client, Surroundings, make_record, release
from ._machine import Identity, Timing
from ._store import LeaseFiles
from ._wire import Wire

_LONGEST_REQUEST = 1 << 20
_REQUEST_TIME = 5.0
# Seconds to wait for the lock, which a plugin that works without a daemon may hold.
_LOCK_TIME = 2.0
# Seconds between searches for clients to forget: they have no lease, and their interface is gone.
_LOOK_FOR_DEAD = 60.0
# Seconds until an attached client that met with a fault tries again.
_AFTER_FAULT = 10.0
# Seconds that sockets stay open when their client is done: long enough for the DEL that may follow at once.
_LINGER = 0.05
# Further seconds while a plugin waits for an answer.
_LINGER_ON = 1.0
_MOST_LINGERING = 32
_GO = b"CONNECT "
_ANSWER_TO_GO = b"HTTP/1.0 400 This is the daemon of cnisdk: install the plugin dhcp of cnisdk, too\r\n\r\n"


@frozen(kw_only=True)
class Settings:
    """Options of the daemon.

    Attributes:
        directory: Directory of the lease files.
        beside: Directory beside the socket, where plugins look for them first; empty if it is the same.
        timing: Delays.
        patience: Seconds that an ADD waits for a server.
        prefix: Put in front of the paths of namespaces.
        broadcast: If true, clients ask servers to broadcast their answers.
    """

    directory: str
    timing: Timing = Timing()
    patience: float = 60.0
    prefix: str = ""
    broadcast: bool = False
    beside: str = ""


class _Connection:
    """A plugin that asks."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.data = b""
        self.deadline = now + _REQUEST_TIME
        self.client: Client | None = None  # its ADD waits for this one

    def answer(self, document: Mapping[str, Any]) -> bool:
        """Send the answer; return False if it does not get through."""
        try:
            self.sock.settimeout(1.0)
            self.sock.sendall(json.dumps(document).encode() + b"\n")
        except OSError:
            return False
        return True


class Daemon:
    """The daemon.

    Args:
        settings: Its options.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files = LeaseFiles(os.path.realpath(settings.directory))
        self._beside = LeaseFiles(os.path.realpath(settings.beside or settings.directory))
        self._locks: list[int] = []
        self._around = Surroundings(
            files=self._files,
            random=random.random,
            timing=settings.timing,
            log=_log,
            close_later=self._close_later,
        )
        self._clients: dict[Attachment, Client] = {}
        self._connections: dict[int, _Connection] = {}
        self._heard: dict[int, Client] = {}
        self._lingering: deque[tuple[float, Wire]] = deque()  # when to close them, in order
        self._poll = select.epoll()
        self._next_look = 0.0
        self._stopping = False

    def lock(self) -> None:
        """Make sure that no other daemon keeps these leases.

        Raises:
            IOFailureError: (5) One does.
        """
        for directory in (self._beside.directory, self._files.directory):
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                if self._locks and os.path.samefile(directory, self._beside.directory):
                    continue  # also by another path: a mount
                lock = LeaseFiles(directory).lock(alone=True, patience=_LOCK_TIME)
            except OSError as exc:
                raise IOFailureError(f"cannot use the directory {directory}: {cause_of(exc)}") from exc
            if lock is None:
                raise IOFailureError(f"another daemon keeps the leases in {directory}")
            self._locks.append(lock)
        try:
            before = self._beside.point_to(self._files.directory)
        except OSError as exc:
            raise IOFailureError(f"cannot write into {self._beside.directory}: {cause_of(exc)}") from exc
        if before:
            _log(f"cnisdk dhcp: the daemon before had its leases in {before}: this one does not know them")

    def load(self) -> None:
        """Take over the leases of the previous daemon.

        Raises:
            IOFailureError: (5) The directory cannot be read.
        """
        deleted = self._beside.take_deleted()
        for record in self._files.load(_log):
            if record.attached and record.owner not in deleted:
                client = self._clients[record.owner] = Client(record, self._around)
                self._guard(client, lambda client=client: client.resume(_now()))
            else:
                with _logging():
                    release(record, self._files, random.random, _log)
        for note in deleted.values():
            self._beside.delete_note(note)

    def run(self, listener: socket.socket) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            listener: Socket that plugins connect to; it is closed.
        """
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a client that waits for a server has four
        wake, waker = os.pipe()
        for fd in (wake, waker):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        listener.setblocking(False)
        self._poll.register(listener.fileno(), select.EPOLLIN)
        self._poll.register(wake, select.EPOLLIN)
        _log(f"cnisdk dhcp: ready, with {len(self._clients)} leases in {self._settings.directory}")
        self._tick(_now())  # the interfaces come first: then the status tells which do not take their lease
        while not self._stopping:
            for fd, events in self._poll.poll(self._pause()):
                if fd == listener.fileno():
                    self._accept(listener)
                elif fd in self._connections:
                    self._read_connection(self._connections[fd], ended=bool(events & ~select.EPOLLIN))
                elif fd in self._heard:
                    client = self._heard[fd]
                    self._guard(client, lambda client=client: client.read(_now()))
            self._tick(_now())
        listener.close()
        for client in self._clients.values():
            client.forget()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _pause(self) -> float:
        """Return the seconds until the next deadline."""
        deadlines = [each.deadline for each in self._clients.values()]
        deadlines += [each.deadline for each in self._connections.values()]
        return max(0.0, min([*deadlines, self._closing_time, _now() + _LOOK_FOR_DEAD]) - _now())

    def _tick(self, now: float) -> None:
        """Do what is due."""
        for client in list(self._clients.values()):
            if client.deadline <= now:
                self._guard(client, lambda client=client: client.wake(now))
        for connection in list(self._connections.values()):
            if connection.deadline <= now:
                self._give_up(connection)
        if self._closing_time <= now:
            self._close_oldest()  # one at a time: a plugin may ask meanwhile
        if now >= self._next_look:
            self._next_look = now + _LOOK_FOR_DEAD
            for client in [each for each in self._clients.values() if each.is_dead]:
                _log(f"{client.owner}: its interface is gone")
                self._drop(client)

    def _guard(self, client: Client, step: Any) -> None:
        """Run a step of a client. Answer the waiting ADD if the client has a lease now, or if the step failed."""
        try:
            step()
            if not client.attached and client.machine.state == "bound":
                client.accept()
                self._answer_add(client)
                client.rest()
        except Exception as exc:  # no fault of one client may end the others
            error = as_cni_error(exc)
            if client.attached:
                _log(f"{client.owner}: {error}")
                client.postpone(_now() + _AFTER_FAULT)
            else:
                self._fail(client, error)
        self._listen(client)

    def _listen(self, client: Client) -> None:
        """Wait on the sockets that a client has open, and on no others of it.

        A descriptor that was closed has left the kernel's list, and its number may be another client's by now.
        """
        wanted = set(client.filenos()) if self._clients.get(client.owner) is client else set()
        for fd in [fd for fd, each in self._heard.items() if each is client and fd not in wanted]:
            del self._heard[fd]
        for fd in wanted:
            self._heard[fd] = client
            with suppress(FileExistsError):
                self._poll.register(fd, select.EPOLLIN)

    def _close_later(self, wire: Wire) -> None:
        """Close the sockets of a client that is done, when no plugin waits for it. Until then, do not listen."""
        for fd in wire.filenos():
            with suppress(FileNotFoundError):
                self._poll.unregister(fd)
        self._lingering.append((_now() + _LINGER, wire))
        if len(self._lingering) > _MOST_LINGERING:  # GC of many leases: descriptors are limited
            self._close_oldest()

    @property
    def _closing_time(self) -> float:
        """Time at which to close the sockets that linger longest."""
        if not self._lingering:
            return float("inf")
        return self._lingering[0][0] + (_LINGER_ON if self._connections else 0.0)

    def _close_oldest(self) -> None:
        _, wire = self._lingering.popleft()
        with suppress(OSError):
            wire.close()

    # --- plugins ------------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            sock, _ = listener.accept()
            sock.setblocking(False)
            self._connections[sock.fileno()] = _Connection(sock, _now())
            self._poll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def _read_connection(self, connection: _Connection, *, ended: bool) -> None:
        """Take a part of a request, or the end of its plugin."""
        data = b""
        with suppress(BlockingIOError, ConnectionError):
            data = connection.sock.recv(1 << 16)
        if connection.client is not None:
            if ended or not data:
                client = connection.client
                _log(f"{client.owner}: the plugin has ended")
                self._drop(client)
                self._close(connection)
            return
        connection.data += data
        if connection.data.startswith(_GO):
            with suppress(OSError):
                connection.sock.send(_ANSWER_TO_GO)
            self._close(connection)
        elif b"\n" in connection.data:
            self._serve(connection)
        elif ended or not data or len(connection.data) > _LONGEST_REQUEST:
            self._close(connection)

    def _serve(self, connection: _Connection) -> None:
        """Carry out a request."""
        try:
            request = json.loads(connection.data)
            answer = _VERBS[request["verb"]](self, connection, request)
        except CNIError as exc:
            answer = _error(exc)
        except Exception as exc:
            answer = _error(InternalError(f"the daemon does not understand the request: {name_and_text(exc)}"))
        if answer is not None:
            connection.answer(answer)
            self._close(connection)

    def _add(self, connection: _Connection, request: Mapping[str, Any]) -> None:
        owner, now = _owner(request), _now()
        identity = Identity(
            mac="",
            provided={int(number): bytes.fromhex(value) for number, value in request["provided"].items()},
            requested=tuple(map(int, request["requested"])),
        )
        record = make_record(
            owner,
            self._settings.prefix + request["netns"],
            identity,
            int(request["priority"]),
            broadcast=self._settings.broadcast,
            add=str(request.get("add", "")),
        )
        before = self._clients.get(owner)
        if before is not None:
            # ADD again, after one that failed at its end. The server knows the client, and has the same address for it.
            self._fail(before, TryAgainLaterError(f"another ADD of {owner} has begun"), keep=True)
            before = before.before or before
            record = evolve(record, lease=before.machine.lease, stale=before.list_stale(record))
            if not (before.attached and before.machine.lease is not None and before.is_of(record)):
                before = None
            else:
                record = evolve(record, add=before.add)
        client = self._clients[owner] = Client(record, self._around)
        client.before = before
        connection.client = client
        connection.deadline = now + min(self._settings.patience, float(request["timeout"]))
        self._guard(client, lambda: client.begin(now))

    def _check(self, connection: _Connection, request: Mapping[str, Any]) -> dict[str, Any]:
        owner = _owner(request)
        client = self._clients.get(owner)
        if client is None or not client.attached:
            raise UnknownContainerError(f"dhcp: there is no lease of {owner}")
        lease = client.machine.lease
        if lease is None:
            raise IOFailureError(f"dhcp: {owner} has lost its lease", details=client.trouble)
        return {"lease": lease.to_json()}

    def _delete(self, connection: _Connection, request: Mapping[str, Any]) -> dict[str, Any]:
        owner, add = _owner(request), str(request.get("add", ""))
        client = self._clients.get(owner)
        if client is not None:
            if add and client.add != add:
                return {}  # an ADD that failed takes nothing from another one
            self._tell(client, TryAgainLaterError(f"DEL of {owner} came before its ADD had ended"))
            self._end(client)
        elif (record := self._files.find(owner)) is not None and add in ("", record.add):
            release(record, self._files, random.random, _log, self._close_later)
        return {}

    def _gc(self, connection: _Connection, request: Mapping[str, Any]) -> dict[str, Any]:
        network = str(request["network"])
        valid = {Attachment(network, *map(str, each)) for each in request["valid"]}
        stale = [each for owner, each in self._clients.items() if owner.network == network and owner not in valid]
        # Files of no client: their deletion failed before.
        left = [each for each in self._files.load() if each.owner.network == network and each.owner not in valid]
        run_all(
            # An ADD that waits is no attachment yet that the runtime could know of.
            *(partial(self._end, client) for client in stale if client.attached),
            *(
                partial(release, record, self._files, random.random, _log, self._close_later)
                for record in left
                if record.owner not in self._clients
            ),
        )
        return {}

    def _status(self, connection: _Connection, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid(), "leases": [self._describe(each) for each in self._clients.values()]}

    @staticmethod
    def _describe(client: Client) -> dict[str, Any]:
        lease, now = client.machine.lease, _now()
        left = None if lease is None or lease.lifetime == float("inf") else round(lease.expires - now)
        return {
            "network": client.owner.network,
            "containerID": client.owner.container_id,
            "ifname": client.owner.ifname,
            "state": client.machine.state,
            "address": str(lease.interface) if lease is not None else None,
            "server": str(lease.server) if lease is not None else None,
            "secondsLeft": left,
            "trouble": client.trouble,
        }

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _find_connection(self, client: Client) -> _Connection | None:
        return next((each for each in self._connections.values() if each.client is client), None)

    def _answer_add(self, client: Client) -> None:
        connection, lease = self._find_connection(client), client.machine.lease
        assert lease is not None
        told = connection is not None and connection.answer({"lease": lease.to_json()})
        if connection is not None:
            self._close(connection)
        if not told:
            _log(f"{client.owner}: the plugin has ended")
            if client.before is None:
                self._drop(client)
        client.before = None

    def _fail(self, client: Client, error: CNIError, *, keep: bool = False) -> None:
        """End a client, and the ADD that waits for it."""
        self._tell(client, error)
        self._drop(client, keep=keep)

    def _give_way(self, client: Client, before: Client) -> None:
        """End a client whose ADD failed, and let that of an earlier ADD go on, whose lease the container uses."""
        self._clients[client.owner] = before
        _log(f"{client.owner}: the lease of the ADD before stays")
        try:
            client.give_way(before)
        finally:
            self._listen(client)

    def _tell(self, client: Client, error: CNIError) -> None:
        """Answer the ADD that waits for a client, if one does."""
        connection = self._find_connection(client)
        if connection is not None:
            connection.answer(_error(error))
            self._close(connection)

    def _give_up(self, connection: _Connection) -> None:
        """End a request that takes too long."""
        client = connection.client
        if client is None:
            self._close(connection)
            return
        error = TryAgainLaterError(
            f"dhcp: no lease for {client.owner.ifname} within the time",
            details=client.machine.trouble or "no server answered: is one on this network, and its pool not exhausted?",
        )
        self._fail(client, error)

    def _drop(self, client: Client, *, keep: bool = False) -> None:
        """End a client. No plugin waits for the answer, so errors are logged."""
        with _logging():
            if client.before is not None and not keep:
                self._give_way(client, client.before)
            else:
                self._end(client, keep=keep)

    def _end(self, client: Client, *, keep: bool = False) -> None:
        """Forget a client, and release its lease unless the next one of the attachment goes on with that.

        Raises:
            CNIError: The lease's file cannot be deleted. It is found again by the next DEL or GC.
        """
        self._clients.pop(client.owner, None)
        try:
            if keep:
                client.forget()
            else:
                client.release()
        finally:
            self._listen(client)

    def _close(self, connection: _Connection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        connection.sock.close()


_VERBS = {
    "add": Daemon._add,
    "check": Daemon._check,
    "delete": Daemon._delete,
    "gc": Daemon._gc,
    "status": Daemon._status,
}


def _owner(request: Mapping[str, Any]) -> Attachment:
    return Attachment(str(request["network"]), str(request["containerID"]), str(request["ifname"]))


def _error(error: CNIError) -> dict[str, Any]:
    return {"error": {"code": error.code, "msg": error.msg, "details": error.details}}


def _now() -> float:
    """Return the seconds since the boot: unlike the monotonic clock, this one counts in suspend, as servers do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _log(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class _logging(suppress):
    """Log an error, and go on."""

    def __init__(self) -> None:
        super().__init__(CNIError, OSError)

    def __exit__(self, kind: Any, exc: Any, traceback: Any) -> bool:
        caught = super().__exit__(kind, exc, traceback)
        if caught:
            _log(str(exc))
        return caught
