"""Protocol between a shim and a worker, over Unix sockets that keep message boundaries (``SOCK_SEQPACKET``).

The shim makes a socket pair and writes its request into one end. The request is ``argv[0]`` and the environment, each
text ended by a NUL, with the descriptors of standard input, output, error and the working directory. The kernel tells
the worker the network namespace in which the pair was made: it is the shim's. Then the shim connects to the server's
socket, on which all idle workers wait. These messages follow:

====== ============================================ ===============================================
sender message                                      meaning and what goes with it
====== ============================================ ===============================================
shim   ``cnisdk4 TYPE ID KIND UMASK SIZE TIME``     the offer; with it, the other end of the pair
worker a reason                                     the worker declines
worker ``started``, through the pair                a descriptor of its process, for signals
worker ``answering``, through the pair              from now on there may be something on standard output
worker ``exit STATUS``                              the request has ended; three digits
====== ============================================ ===============================================

KIND is the shim's personality(2). SIZE counts the bytes of the request. TIME is the shim's CLOCK_MONOTONIC in
microseconds. The shim does not state its rights or namespaces: the worker asks the kernel (:mod:`.caller`).

The pair holds one message, the request, and both sides can receive it. The side that receives it runs the request;
the other side never does. The worker receives it to serve the shim. The shim takes it back when no worker has taken it
within :data:`SHIM_TIMEOUT`, or when its connection has ended. So no request runs twice, no descriptor of the caller
stays in the queue of a server that hangs, and the shim waits for no answer but the plugin's own.

The shim reads the pair only when it needs to. If a worker dies that has not said ``answering``, the shim prints an
error. If it has, the answer or a part of it may stand on standard output, and a second document there would spoil
both: then the shim only says so on standard error. Either way its exit status is 1, and the request is not run again.

When the shim ends, the kernel kills the worker, as it would have killed the plugin's own process. That takes a moment:
a system call that runs is finished first. The worker holds the caller's streams as long. So a runtime that reads the
output of a shim to its end has waited for both.
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
"""Directory of the server's sockets, metrics and fallback counts. Only root may enter it."""

SOCKET = f"{DIRECTORY}/server.sock"
CONTROL = f"{DIRECTORY}/control.sock"
METRICS = f"{DIRECTORY}/metrics.prom"
FALLBACKS = f"{DIRECTORY}/fallbacks"

PROTOCOL = "cnisdk4"
FILE_COUNT = 4

SHIM_TIMEOUT = 5.0
"""Seconds a shim waits for a worker. On a busy machine the last of many requests waits long, and a process of its own,
which takes ten times the processor time of a worker, would make the others wait longer."""

# execve(2) takes an environment of up to 6 MiB. A socket takes less in one message.
_MAX_REQUEST = 8 << 20
_PEER = struct.Struct("=iII")
_FAMILY, _KIND = int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET)
_SO_NETNS_COOKIE, _SIOCGSKNS = 71, 0x894C
_TRUNCATED = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
# Plain numbers: combining the enumerations of the socket module takes longer than a system call.


class RequestOffer(NamedTuple):
    """Offer of a request, which a shim sends to the server.

    Attributes:
        about: Plugin, installation and personality, as :func:`offer_prefix` writes them.
        umask: The shim's umask.
        size: Bytes of the request.
        since: Time at which the shim began to wait: :func:`time.monotonic`, in seconds.
        end: End of the socket pair from which the request can be received.
    """

    about: bytes
    umask: int
    size: int
    since: float
    end: socket.SocketType


class ShimRequest(NamedTuple):
    """Request that a worker has taken from a shim.

    Attributes:
        name: The shim's ``argv[0]``.
        environ: The shim's environment.
        files: Descriptors of stdin, stdout, stderr and the working directory.
        netns: Descriptor of the shim's network namespace; -1 if the worker is in it already.
        umask: The shim's umask.
    """

    name: str
    environ: dict[bytes, bytes]
    files: Sequence[int]
    netns: int
    umask: int


def offer_prefix(type: str, id: str) -> bytes:
    """Make the first fields of an offer. The server recognises requests for its plugins by them.

    Args:
        type: Type of the plugin.
        id: Identity of the launcher that the shim would run, see :func:`.shim.launcher_id`.
    """
    with open("/proc/self/personality", encoding="ascii") as file:
        return f"{PROTOCOL} {type} {id} {int(file.read(), 16):x}".encode()


def receive_offer(connection: socket.SocketType, flags: int = 0) -> RequestOffer:
    """Receive the offer of a shim.

    Args:
        connection: Connection from the shim.
        flags: Flags of ``recv(2)``.

    Raises:
        DecodingError: (6) The message is not an offer. All descriptors that came with it are closed.
        OSError: The shim has closed the connection.
    """
    text, files, _ = _receive(connection, 1024, 1, flags)
    try:
        about, umask, size, since = text.rsplit(b" ", 3)
        if len(files) != 1 or not 0 < int(size) <= _MAX_REQUEST:
            raise ValueError
        return RequestOffer(about, int(umask, 8), int(size), int(since) / 1e6, make_socket(files[0]))
    except (ValueError, OverflowError, OSError) as exc:
        for fd in files:
            os.close(fd)
        raise DecodingError("not a request of this protocol") from exc


def take_request(offer: RequestOffer, netns: bytes) -> ShimRequest:
    """Take the request out of the socket pair. From then on the shim cannot run it.

    Args:
        offer: The shim's offer.
        netns: Cookie of this process's network namespace.

    Raises:
        BlockingIOError: The shim has taken the request back.
        OSError: The kernel does not let this user into the shim's network namespace.
        DecodingError: (6) The request is not the one that was offered.
    """
    theirs = _open_netns(offer.end, netns)
    data, files, flags = _receive(offer.end, offer.size, FILE_COUNT, socket.MSG_DONTWAIT)
    if len(files) != FILE_COUNT or len(data) != offer.size or flags & _TRUNCATED:
        for fd in files:
            os.close(fd)
        raise DecodingError("not the request that was offered")
    name, *entries = data.split(b"\0")
    pairs = (entry.partition(b"=") for entry in entries)
    environ = {key: value for key, divider, value in pairs if divider and key}
    return ShimRequest(os.fsdecode(name), environ, files, theirs, offer.umask)


def _receive(sock: socket.SocketType, size: int, number: int, flags: int = 0) -> tuple[bytes, array[int], int]:
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(number * 4), flags)
    files = array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(payload[: len(payload) // 4 * 4])
    return data, files, flags


def make_socket(fd: int) -> socket.SocketType:
    """Make a socket object for a descriptor. The base type is used, which is faster to make than ``socket.socket``."""
    return socket.SocketType(_FAMILY, _KIND, 0, fd)


def _open_netns(sock: socket.SocketType, own: bytes) -> int:
    """Open the network namespace in which a socket was made. Return -1 if ``own`` is its cookie.

    Raises:
        OSError: The kernel refuses it to this user.
    """
    return -1 if own and netns_cookie(sock) == own else fcntl.ioctl(sock, _SIOCGSKNS)


def netns_cookie(sock: socket.SocketType) -> bytes:
    """Return the cookie of the network namespace of a socket (Linux 5.14); empty on older kernels."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""


def get_peer_ids(connection: socket.SocketType) -> tuple[int, int]:
    """Return process and user id of the peer of a Unix socket, as they were when it connected (SO_PEERCRED)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = _PEER.unpack(data)
    return pid, uid
