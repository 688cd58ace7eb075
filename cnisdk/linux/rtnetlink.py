"""A small synchronous netlink socket (``rtnetlink(7)``): several requests in one send, every answer read.

Theory of operation. A socket stays for ever in the namespace of the thread that opened it. So :func:`connect` opens it
in a thread inside the namespace, and the caller uses it from its own. The kernel handles the requests of one send in
order, before ``send()`` returns, and answers each with a message, an acknowledgement or an error. It goes on after a
request that it refused. A dump, the answer to a request for a whole table, is marked when the table changed meanwhile,
and is then asked for again.

A socket is not thread-safe: open one for each piece of work.
"""

from __future__ import annotations

import errno
import struct
from _thread import _local
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from .._light import NamedTuple
from ..errors import IOFailureError, cause_of, describe_errno
from . import _sockets, attributes
from .netns import NetNS

#: Flags of any message (linux/netlink.h).
F_REQUEST, F_ACK, F_ECHO, F_DUMP_INTR = 0x1, 0x4, 0x8, 0x10
#: Flags of a request that makes or lists objects.
F_REPLACE, F_EXCL, F_CREATE, F_DUMP = 0x100, 0x200, 0x400, 0x300
#: Flags of an acknowledgement.
F_CAPPED, F_ACK_TLVS = 0x100, 0x200
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NETLINK_ROUTE = 0
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLMSGERR_ATTR_MSG = 1

#: Types of messages about links (linux/rtnetlink.h).
NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
#: Types of messages about addresses.
NEWADDR, DELADDR, GETADDR = 20, 21, 22
#: Types of messages about routes.
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
#: Multicast groups, as bits for bind(2): changes of links, and of IPv6 addresses.
GROUP_LINK, GROUP_IPV6_IFADDR = 0x1, 0x100

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""

# In a dump that the kernel marks as interrupted, the table changed meanwhile: entries may be missing or be there twice.
_DUMP_ATTEMPTS = 20

# Datagrams that finish() reads. A table of a container is in one, mostly, and its end in the next.
_DATAGRAMS_LEFT = 2

SCAN_LIMIT = 500_000
"""Messages that a scan reads at most, about two seconds: a container may fill its tables."""


# Explanations of an errno, for requests to which the kernel gives no reason.
_ADVICE = {
    errno.EPERM: "it takes CAP_NET_ADMIN in the user namespace that owns the network namespace",
    errno.EXFULL: "a bridge has at most 1024 ports (BR_MAX_PORTS): use a second network with a bridge of its own",
}


class KernelError(IOFailureError):
    """Code 5: the kernel refused a request.

    Attributes:
        errno: The error number, as in :mod:`errno`.
        position: Position of the request in its batch, from 0.
        reason: The kernel's own words (its extended acknowledgement); often empty.
    """

    def __init__(self, what: str, number: int, *, position: int = 0, reason: str = "") -> None:
        super().__init__(
            f"{what}: {describe_errno(number)}",
            details=reason or _ADVICE.get(number, ""),
        )
        self.errno = number
        self.position = position
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.msg, self.errno, self.position, self.reason)


def _restore(msg: str, number: int, position: int, reason: str) -> KernelError:
    error = KernelError("", number, position=position, reason=reason)
    error.msg = msg
    error.args = (msg,)
    return error


class Message(NamedTuple):
    """One netlink request.

    Attributes:
        kind: Message type, such as :data:`NEWLINK`.
        body: The message without its header: the fixed part of its type, and :mod:`.attributes`.
        what: Beginning of the error's message: ``cannot set link eth0 up``.
        flags: Beyond F_REQUEST; F_ACK is for requests that answer with nothing else.
    """

    kind: int
    body: bytes
    what: str
    flags: int = F_ACK


class Socket:
    """A netlink socket in the calling thread's namespace, by default of the family ``NETLINK_ROUTE``.

    Args:
        groups: Multicast groups to join, as bits, for :meth:`listen`.
        family: Netlink family.
    """

    def __init__(self, groups: int = 0, *, family: int = _NETLINK_ROUTE) -> None:
        self._sequence = 0
        self._reading = False
        self._interrupted = False
        self._socket: _sockets.Socket = _sockets.Socket(
            _sockets.AF_NETLINK, _sockets.SOCK_RAW | _sockets.SOCK_CLOEXEC, family
        )
        try:
            self._socket.bind((0, groups))
            # Since Linux 4.12, 4.3 and 4.20. Without them, errors have fewer words and dumps are longer.
            for option in (_NETLINK_EXT_ACK, _NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK):
                try:
                    self._socket.setsockopt(_SOL_NETLINK, option, 1)
                except OSError:
                    pass
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def exchange(self, requests: Sequence[Message]) -> list[bytes | KernelError | None]:
        """Send all requests at once and collect the answers, in order.

        The kernel carries them out one after the other, and goes on after one that it refuses.

        Returns:
            For each request the message of the answer, None for a plain acknowledgement, or the error.
        """
        if not requests:
            return []
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(
            b"".join(_encode(request, number) for number, request in enumerate(requests, start=first)),
        )
        answers: dict[int, bytes | KernelError | None] = {}
        while len(answers) < len(requests):
            for kind, _, sequence, body in self._receive():
                position = sequence - first
                if not 0 <= position < len(requests):
                    continue  # an answer to a request of an earlier call that was interrupted
                if kind == _NLMSG_ERROR:
                    answers.setdefault(position, _read_error(body, requests[position], position))
                else:
                    # Requests that answer with a message carry no F_ACK, so this is all there is.
                    answers[position] = body
        return [answers[position] for position in range(len(requests))]

    def send(self, requests: Sequence[Message]) -> list[bytes | None]:
        """Send requests as :meth:`exchange` does, and raise the first error.

        Raises:
            KernelError: (5) The kernel refused a request; it carried out the following ones all the same.
        """
        answers: list[bytes | None] = []
        for answer in self.exchange(requests):
            if isinstance(answer, KernelError):
                raise answer
            answers.append(answer)
        return answers

    def dump(self, request: Message) -> list[bytes]:
        """Read a whole table. Read it again if it changed meanwhile.

        Returns:
            The messages, each with its header.

        Raises:
            KernelError: (5) The kernel refused, or the table changed during each attempt (EINTR).
        """
        for _ in range(_DUMP_ATTEMPTS):
            messages = list(self._stream(request))
            if not self._interrupted:
                return messages
        raise _kept_changing(request)

    def scan(self, request: Message) -> Iterator[bytes]:
        """Yield the messages of a table one by one, for a reader that stops when it has found its entry.

        No message is kept, so a table of any length takes no memory. If the table changed meanwhile, all of it is
        yielded again. If the reader stops early, call :meth:`finish` before the next request.

        Raises:
            KernelError: (5) The kernel refused, or the table changed during each attempt (EINTR).
            IOFailureError: (5) The reader has not stopped after :data:`SCAN_LIMIT` messages.
        """
        left = SCAN_LIMIT
        for _ in range(_DUMP_ATTEMPTS):
            for message in self._stream(request):
                if left == 0:
                    raise IOFailureError(f"{request.what}: there are more than {SCAN_LIMIT}, not all were looked at")
                left -= 1
                yield message
            if not self._interrupted:
                return
        raise _kept_changing(request)

    def finish(self) -> bool:
        """Read the rest of a table whose reader has stopped, if it is short.

        Returns:
            False if the kernel has still more to send. It would refuse to begin with another table (EBUSY): close the
            socket.
        """
        for _ in range(_DATAGRAMS_LEFT):
            if not self._reading:
                break
            try:
                received = list(self._receive(_sockets.MSG_DONTWAIT))
            except BlockingIOError:  # the end came with what the reader got
                self._reading = False
            else:
                self._reading = all(kind not in (_NLMSG_DONE, _NLMSG_ERROR) for kind, *_ in received)
        return not self._reading

    def listen(self, deadline: float) -> Iterator[tuple[int, bytes]]:
        """Yield the notifications of the groups joined, as pairs of message type and message, until a deadline.

        Args:
            deadline: On the clock of :func:`time.monotonic`, in seconds.

        Raises:
            TimeoutError: The deadline is over.
            OSError: (ENOBUFS) Notifications were lost: look at the state itself.
        """
        import time

        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                for kind, _, _, body in self._receive():
                    yield kind, body
        finally:
            self._socket.settimeout(None)

    def _stream(self, request: Message) -> Iterator[bytes]:
        """Yield the messages of a dump, and note whether the table changed meanwhile."""
        self._sequence += 1
        self._interrupted = False
        self._reading = True
        self._socket.send(_encode(request._replace(flags=F_DUMP), self._sequence))
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                self._interrupted = self._interrupted or bool(flags & F_DUMP_INTR)
                if kind == _NLMSG_ERROR:
                    error = _read_error(body, request, 0)
                    if error is not None:
                        self._reading = False
                        raise error
                elif kind == _NLMSG_DONE:
                    self._reading = False
                    (status,) = struct.unpack_from("=i", body, HEADER.size) if len(body) > HEADER.size else (0,)
                    if status < 0:
                        raise KernelError(request.what, -status)
                    return
                else:
                    yield body

    def _receive(self, flags: int = 0) -> Iterator[tuple[int, int, int, bytes]]:
        """Read one datagram: (type, flags, sequence number, message with header) of each message in it."""
        # The kernel never sends more than 32 KiB in one datagram, unless a single message is larger than that.
        data = self._socket.recv(65536, _sockets.MSG_TRUNC | flags)
        if len(data) > 65536:
            raise IOFailureError("a netlink message is larger than 64 KiB")
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, marks, sequence, _ = HEADER.unpack_from(data, offset)
            if length < HEADER.size:
                break
            yield kind, marks, sequence, data[offset : offset + length]
            offset += (length + 3) & ~3


def _kept_changing(request: Message) -> KernelError:
    return KernelError(request.what, errno.EINTR, reason=f"the table changed during each of {_DUMP_ATTEMPTS} dumps")


class Prefixes:
    """Filter that passes the messages of a scan which may be about certain addresses or destinations.

    It compares bytes, since decoding all messages takes too long: struct ifaddrmsg and struct rtmsg both begin with the
    family and the length of the prefix.

    Args:
        prefixes: Address family, length of the prefix, and address of each; no address for a default route, whose
            message has none.
    """

    def __init__(self, prefixes: Iterable[tuple[int, int, bytes]]) -> None:
        self._addresses: dict[tuple[int, int], list[bytes]] = {}
        for family, length, packed in prefixes:
            self._addresses.setdefault((family, length), []).append(packed)

    def __contains__(self, message: bytes) -> bool:
        """Return True if the message may be about one of the prefixes."""
        candidates = self._addresses.get((message[HEADER.size], message[HEADER.size + 1]), ())
        return any(packed in message for packed in candidates)


def connect(netns: NetNS | None = None, groups: int = 0) -> AbstractContextManager[Socket]:
    """Open a socket in a namespace, to be used in ``with``.

    Args:
        netns: None means the calling thread's own namespace.
        groups: Multicast groups to join, as bits.

    Raises:
        IOFailureError: (5) The kernel does not let this process enter the namespace, or open one more file.
    """
    kept = _kept.sockets
    if groups or netns not in kept:
        return _open(netns, groups)
    sock = kept[netns]
    if sock is not None and not sock.finish():
        sock.close()
        sock = None
    if sock is None:
        sock = kept[netns] = _open(netns)
    return nullcontext(sock)


def keep(netns: NetNS | None) -> Callable[[], None]:
    """Use one socket for all calls of :func:`connect` for a namespace in this thread, from here on.

    A plugin sends a dozen requests. To open a socket for each takes longer than most answers, and in another namespace
    it takes a thread, too. So a request of the runtime keeps one for the container's namespace, from
    :meth:`~cnisdk.AddRequest.open_netns` to its end. For the plugin's own namespace there is :func:`sharing`.

    Args:
        netns: None means the calling thread's own namespace, which must stay the same meanwhile.

    Returns:
        A function that closes the socket. From then on, :func:`connect` opens a new one for each call.
    """
    kept = _kept.sockets
    if netns in kept:
        return lambda: None
    kept[netns] = None

    def close() -> None:
        if (sock := kept.pop(netns)) is not None:
            sock.close()

    return close


@contextmanager
def sharing() -> Iterator[None]:
    """Use one socket for all calls of :func:`connect` for the calling thread's own namespace, inside ``with``.

    The thread must stay in this namespace meanwhile.
    """
    close = keep(None)
    try:
        yield
    finally:
        close()


class _Kept(_local):
    """Sockets that the calling thread keeps; None stands for one that was not asked for yet."""

    def __init__(self) -> None:
        self.sockets: dict[NetNS | None, Socket | None] = {}


_kept = _Kept()


def _open(netns: NetNS | None, groups: int = 0) -> Socket:
    try:
        return Socket(groups) if netns is None else netns.call(Socket, groups)
    except OSError as exc:
        where = "" if netns is None else f" in {netns.path}"
        raise IOFailureError(f"cannot open a netlink socket{where}: {cause_of(exc)}") from exc


def _encode(request: Message, sequence: int) -> bytes:
    header = HEADER.pack(HEADER.size + len(request.body), request.kind, F_REQUEST | request.flags, sequence, 0)
    return header + request.body


def _read_error(body: bytes, request: Message, position: int) -> KernelError | None:
    """Read an acknowledgement (struct nlmsgerr): None for success."""
    (status,) = struct.unpack_from("=i", body, HEADER.size)
    if status == 0:
        return None
    flags = HEADER.unpack_from(body)[2]
    offset = HEADER.size + 4
    (echoed,) = struct.unpack_from("=I", body, offset)
    offset += HEADER.size if flags & F_CAPPED else (echoed + 3) & ~3
    found = attributes.read(body, offset) if flags & F_ACK_TLVS else {}
    reason = found.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    return KernelError(request.what, -status, position=position, reason=reason)
