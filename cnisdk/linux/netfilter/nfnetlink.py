"""Messages to the kernel's packet filter and its connection tracking (``linux/netfilter/nfnetlink.h``)."""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from ..._light import TypeVar
from .. import _sockets, attributes

FAMILIES = {4: 2, 6: 10}
"""Families of addresses, by IP version."""

NESTED = 0x8000
"""Flag of an attribute's number: attributes are in it."""

CREATE, EXCLUSIVE = 0x400, 0x200
"""Flags of a change: make the object, and refuse if it exists."""

ABSENT = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})
"""Errors that say that there is no such object, or that the kernel has no such subsystem."""

# linux/netlink.h
_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 16, 17
_BATCH_GENERATION = 1
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct(">BBH")  # family, version, resource
# A dump that another process's change interrupts is begun again.
_ATTEMPTS = 50
# Bytes of a part of an answer. The first never has more than the lesser number. While that is taken, the kernel makes
# the next one, of as many bytes as there was room for: in vain, if it is not asked for.
_ROOM, _LITTLE_ROOM = 1 << 18, 1 << 13

_T = TypeVar("_T")

FilterMessage = tuple[int, int, int, bytes]
"""Number with the subsystem's, flags, family, and attributes."""


def ask(messages: Iterable[FilterMessage], absent: Collection[int] = ABSENT) -> list[bytes | None]:
    """Send requests for one object each; return the attributes of each, None for one that does not exist.

    Args:
        messages: The requests.
        absent: Errors that say that there is no such object.

    Raises:
        OSError: The kernel refused to answer.
    """
    requests = list(messages)
    answers: list[bytes | None] = []
    with _socket() as sock:
        for start in range(0, len(requests), 200):
            some = requests[start : start + 200]
            sock.send(
                b"".join(_pack(number, flags | _REQUEST | _ACK, family, body) for number, flags, family, body in some)
            )
            for _ in some:
                try:
                    # For an object that exists, the kernel sends its description before the acknowledgement.
                    answers.append(next(iter([body for _, body in _read(sock)]), None))
                except OSError as exc:
                    if exc.errno not in absent:
                        raise
                    answers.append(None)
    return answers


def dump(number: int, family: int, body: bytes) -> list[bytes]:
    """Return the attributes of all objects that a request asks for; none when the kernel has no such.

    Args:
        number: Number of the request, with the subsystem's.
        family: The family.
        body: Attributes of the request.

    Raises:
        OSError: The kernel refused to answer.
    """
    try:
        return select(number, family, body, lambda found: found)
    except OSError as exc:
        if exc.errno in ABSENT:
            return []
        raise


def select(
    number: int,
    family: int,
    body: bytes,
    read: Callable[[bytes], _T | None],
    needles: Sequence[bytes] = (),
    enough: Callable[[list[_T]], bool] | None = None,
) -> list[_T]:
    """Return the wanted ones of all objects that a request asks for.

    Args:
        number: Number of the request, with the subsystem's.
        family: The family.
        body: Attributes of the request.
        read: Function that reads an object's attributes; it returns None for an object that is not wanted.
        needles: If given, only objects that contain one of these bytes are read.
        enough: Function that is called after each wanted object, with all so far; True if no more are needed.

    Raises:
        OSError: The kernel refused to answer.
    """
    for _ in range(_ATTEMPTS):
        with _socket() as sock:  # of its own: the rest of a dump that was ended early goes with it
            sock.send(_pack(number, _REQUEST | _DUMP, family, body))
            found: list[_T] = []
            interrupted = 0
            for flags, each in _read(sock, needles, _ROOM if enough is None else _LITTLE_ROOM):
                interrupted |= flags & _INTERRUPTED
                if each and (value := read(each)) is not None:
                    found.append(value)
                    if enough is not None and enough(found):
                        return found
            if not interrupted:
                return found
    raise OSError(errno.EAGAIN, f"it changed {_ATTEMPTS} times meanwhile")


def transact(subsystem: int, messages: Iterable[FilterMessage], generation: int = 0) -> int:
    """Carry out changes in one transaction: all of them, or none.

    Args:
        subsystem: Number of the subsystem.
        messages: The changes.
        generation: Generation of the ruleset that they were made for; 0 for any. If it is another one by now, the
            error is ERESTART.

    Returns:
        0, or the number of the first error.

    Raises:
        OSError: The kernel did not take the messages.
    """
    edge = _GENERIC.pack(0, 0, subsystem)
    expected = attributes.attribute(_BATCH_GENERATION, generation.to_bytes(4, "big")) if generation else b""
    batch = [
        _HEADER.pack(_HEADER.size + 4 + len(expected), _BATCH_BEGIN, _REQUEST, 1, 0) + edge + expected,
        *(_pack(number, flags | _REQUEST, family, body) for number, flags, family, body in messages),
        _HEADER.pack(_HEADER.size + 4, _BATCH_END, _REQUEST, 1, 0) + edge,
    ]
    with _socket() as sock:
        sock.send(b"".join(batch))
        # The kernel has handled the whole transaction by now, and answers only what failed.
        try:
            answer = sock.recv(1 << 16, _sockets.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
    return _error(answer, 0)


def _pack(number: int, flags: int, family: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + 4 + len(body), number, flags, 1, 0) + _GENERIC.pack(family, 0, 0) + body


def _socket() -> _sockets.Socket:
    # After a transaction that deletes, the end of any such socket waits until no packet meets what was deleted: 9 ms.
    sock = _sockets.SlowToClose(_sockets.AF_NETLINK, _sockets.SOCK_RAW | _sockets.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _read(sock: _sockets.Socket, needles: Sequence[bytes] = (), room: int = _ROOM) -> Iterator[tuple[int, bytes]]:
    """Yield flags and attributes of each message of an answer, to its end.

    Args:
        sock: The socket.
        needles: If given, messages without any of these have no attributes here.
        room: Bytes that the first part of the answer may have.

    Raises:
        OSError: It is an error.
    """
    while True:
        data = sock.recv(room)
        room = _ROOM
        # Most parts of a long answer have none: those are not taken apart.
        anything = not needles or any(needle in data for needle in needles)
        start = 0
        while start + _HEADER.size <= len(data):
            length, number, flags, _, _ = _HEADER.unpack_from(data, start)
            if number == _DONE:
                yield flags, b""
                return
            if number == _ERROR:
                if error := _error(data, start):
                    raise OSError(error, os.strerror(error))
                return
            if anything:
                body = data[start + _HEADER.size + _GENERIC.size : start + length]
                wanted = not needles or any(needle in body for needle in needles)
                yield flags, body if wanted else b""
            elif flags & _INTERRUPTED:
                yield flags, b""
            start += (length + 3) & ~3


def _error(data: bytes, start: int) -> int:
    start += _HEADER.size
    return -int.from_bytes(data[start : start + 4], sys.byteorder, signed=True)
