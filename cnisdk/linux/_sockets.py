"""Sockets without :mod:`socket`.

socket imports enum and selectors, and makes enumerations of all constants: that takes as long as a few requests to the
kernel. What it adds, such as files around sockets, is of no use here.
"""

from __future__ import annotations

import _socket
import struct
from _socket import (
    AF_NETLINK as AF_NETLINK,
    AF_UNIX as AF_UNIX,
    MSG_DONTWAIT as MSG_DONTWAIT,
    MSG_TRUNC as MSG_TRUNC,
    SO_SNDTIMEO as SO_SNDTIMEO,
    SOCK_CLOEXEC as SOCK_CLOEXEC,
    SOCK_DGRAM as SOCK_DGRAM,
    SOCK_RAW as SOCK_RAW,
    SOCK_STREAM as SOCK_STREAM,
    SOL_SOCKET as SOL_SOCKET,
)


class Socket(_socket.socket):
    """A socket that ``with`` closes."""

    __slots__ = ()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SlowToClose(Socket):
    """A socket whose close(2) takes the kernel milliseconds: see :func:`close_later`."""

    __slots__ = ()

    def __exit__(self, *_: object) -> None:
        if _left_open is None:
            self.close()
        else:
            _left_open.append(self)


_left_open: list[SlowToClose] | None = None


def close_later() -> None:
    """Make ``with`` leave every :class:`SlowToClose` open until :func:`close_all`.

    The resident server's worker calls it, and closes the sockets after it has sent the answer. Then DEL of portmap
    takes 4 ms instead of 28, of firewall 3 instead of 34, and of bridge with ``ipMasq`` 20 instead of 33.
    """
    global _left_open
    _left_open = []


def close_all() -> None:
    """Close the sockets that were left open. From here on, ``with`` closes each at once."""
    global _left_open
    left, _left_open = _left_open or [], None
    for each in left:
        each.close()


def connect_unix(sock: _socket.socket, path: str, timeout: float) -> None:
    """Connect to a Unix socket at a path.

    With ``settimeout``, connect(2) would fail at once when the listener's backlog is full. SO_SNDTIMEO makes the kernel
    wait instead.

    Args:
        sock: The socket.
        path: Path of the listener's socket.
        timeout: Seconds to wait at most.

    Raises:
        TimeoutError: The backlog was still full after that time.
        OSError: The kernel refused.
    """
    whole, part = divmod(max(int(timeout * 1e6), 1), 1_000_000)  # a timeout of 0 would mean no limit
    sock.settimeout(None)
    sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("@ll", whole, part))
    try:
        sock.connect(path)
    except BlockingIOError:
        raise TimeoutError("timed out") from None
