"""What shim and worker say to each other, over Unix sockets that keep messages apart (``SOCK_SEQPACKET``).

The shim makes a pair of sockets and puts its request into one end: ``argv[0]`` and the environment, each text ended by
a NUL, with the descriptors of standard input, output and error and of the working directory. Its network namespace is
the one the pair was made in, which the kernel tells, as it tells the user. Then the shim connects to the server, whose
workers all wait for connections:

====== ============================================ ===============================================
from   message                                      with it
====== ============================================ ===============================================
shim   ``cnisdk4 TYPE ID KIND UMASK SIZE TIME``     the other end of the pair
worker why not, and no more                         the worker ends
worker ``started``, through the pair                a descriptor of its process, for signals
worker ``exit STATUS``                              three digits
====== ============================================ ===============================================

KIND is the caller's personality(2), SIZE the bytes of the request, and TIME is the clock (CLOCK_MONOTONIC, in
microseconds). What the caller may do, and in which namespaces it is, it does not say: the worker asks the kernel
(:mod:`.peer`).

Whoever receives the request from the pair runs it, and the other side never does: the worker, or the shim itself when
its patience is over or its connection ended. So nothing is run twice, nothing of the caller's stays open in the queue
of a server that hangs, and nobody waits for an answer before the plugin's own.

When the shim goes away, the kernel kills the worker, as it would have killed the plugin.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import DecodingError

DIRECTORY = "/run/cnisdk"
"""Where the server's socket, metrics and counts are. Only root may enter it."""

SOCKET = f"{DIRECTORY}/server.sock"
CONTROL = f"{DIRECTORY}/control.sock"
METRICS = f"{DIRECTORY}/metrics.prom"
FALLBACKS = f"{DIRECTORY}/fallbacks"

GREETING = "cnisdk4"
FILES = 4

PATIENCE = 1.0
"""Seconds a shim waits for a worker. A process of its own takes a tenth of that, but a burst makes everybody wait."""


# An environment and argv[0] that execve(2) took may be 6 MiB; what a socket takes in one message is less.
_LARGEST = 8 << 20
_PEER = struct.Struct("=iII")
_FAMILY, _KIND = int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET)
_SO_NETNS_COOKIE, _SIOCGSKNS = 71, 0x894C
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
# Numbers, since to combine the library's own names takes longer than a system call.


class Offer(NamedTuple):
    """What a shim wants run.

    Attributes:
        about: Plugin, installation and personality, as :func:`describe` writes them.
        umask: The caller's.
        size: Bytes of the request.
        since: When it began to wait, on the clock of :func:`time.monotonic`, in seconds.
        end: Where the request is to be had.
    """

    about: bytes
    umask: int
    size: int
    since: float
    end: socket.SocketType


class Request(NamedTuple):
    """A request, taken from its shim.

    Attributes:
        name: ``argv[0]``.
        environ: The environment.
        files: stdin, stdout, stderr, working directory.
        netns: The network namespace; -1 if it is that of who takes the request.
        umask: The caller's.
    """

    name: str
    environ: dict[bytes, bytes]
    files: Sequence[int]
    netns: int
    umask: int


def describe(type: str, id: str) -> bytes:
    """What a shim says of the request it wants run.

    Args:
        type: Type of the plugin.
        id: What launcher the shim would run, see :func:`.shim.identify`.
    """
    with open("/proc/self/personality", encoding="ascii") as file:
        return f"{GREETING} {type} {id} {int(file.read(), 16):x}".encode()


def receive(connection: socket.SocketType, flags: int = 0) -> Offer:
    """Hear what a shim wants.

    Args:
        connection: To the shim.
        flags: As for ``recv(2)``.

    Raises:
        DecodingError: (6) It does not say. All descriptors that came are closed.
        OSError: The other side is gone.
    """
    text, files, _ = _receive(connection, 1024, 1, flags)
    try:
        about, umask, size, since = text.rsplit(b" ", 3)
        if len(files) != 1 or not 0 < int(size) <= _LARGEST:
            raise ValueError
        return Offer(about, int(umask, 8), int(size), int(since) / 1e6, make_socket(files[0]))
    except (ValueError, OSError) as exc:
        for fd in files:
            os.close(fd)
        raise DecodingError("not a request of this protocol") from exc


def take(offer: Offer, netns: bytes) -> Request:
    """Take the request from the shim, which will not run it any more.

    Args:
        offer: What the shim said of it.
        netns: The cookie of this process's network namespace.

    Raises:
        BlockingIOError: The shim was faster.
        OSError: The kernel does not let this user into the caller's network namespace.
        DecodingError: (6) It is not what was offered.
    """
    theirs = _find_netns(offer.end, netns)
    data, files, flags = _receive(offer.end, offer.size, FILES, socket.MSG_DONTWAIT)
    if len(files) != FILES or len(data) != offer.size or flags & _CUT:
        for fd in files:
            os.close(fd)
        raise DecodingError("not the request that was offered")
    name, *entries = data.split(b"\0")
    pairs = (entry.partition(b"=") for entry in entries)
    environ = {key: value for key, divider, value in pairs if divider and key}
    return Request(os.fsdecode(name), environ, files, theirs, offer.umask)


def _receive(sock: socket.SocketType, size: int, number: int, flags: int = 0) -> tuple[bytes, array[int], int]:
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(number * 4), flags)
    files = array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(payload[: len(payload) // 4 * 4])
    return data, files, flags


def make_socket(fd: int) -> socket.SocketType:
    """A socket of this protocol, of the type that has methods but no more."""
    return socket.SocketType(_FAMILY, _KIND, 0, fd)


def _find_netns(sock: socket.SocketType, own: bytes) -> int:
    """A descriptor of the network namespace a socket was made in; -1 if that is the one with this cookie.

    Raises:
        OSError: The kernel does not give it to this user.
    """
    return -1 if own and netns_cookie(sock) == own else fcntl.ioctl(sock, _SIOCGSKNS)


def netns_cookie(sock: socket.SocketType) -> bytes:
    """What the kernel tells apart network namespaces by, since Linux 5.14; before, nothing."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""


def peer_uid(connection: socket.SocketType) -> tuple[int, int]:
    """Process and user at the other end."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = _PEER.unpack(data)
    return pid, uid
