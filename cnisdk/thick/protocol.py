"""What shim and worker say to each other, over a Unix socket that keeps messages apart (``SOCK_SEQPACKET``).

====== =============================== ==================================================================
from   message                         with it
====== =============================== ==================================================================
worker ``hello``                       a descriptor of its process
shim   ``cnisdk1 TYPE ID UMASK``       stdin, stdout, stderr, working directory, network namespace, and a file
                                       with ``argv[0]`` and the environment
worker ``started``, or why not
worker ``exit STATUS``
====== =============================== ==================================================================

A worker does nothing for a request before it has said ``started``. A shim that has not heard that, and whose patience
is over, kills the worker; if the word is not there even then, it runs the request by itself, and else it never does.
Nothing of the caller's is handed over before ``hello``: what lies in the queue of a server that hangs stays open.

When the shim goes away, the kernel kills the worker, as it would have killed the plugin.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import NamedTuple

from ..errors import DecodingError

DIRECTORY = "/run/cnisdk"
"""Where the server's socket, metrics and counts are. Only root may enter it."""

SOCKET = f"{DIRECTORY}/server.sock"
CONTROL = f"{DIRECTORY}/control.sock"
METRICS = f"{DIRECTORY}/metrics.prom"
FALLBACKS = f"{DIRECTORY}/fallbacks"

GREETING = "cnisdk1"
FILES = 6

PATIENCE = 1.0
"""Seconds a shim waits for a worker. A process of its own takes a tenth of that, but a burst makes everybody wait."""

_LARGEST = 16 << 20


class Handover(NamedTuple):
    """A request as it comes.

    Attributes:
        type: Type of the plugin.
        id: What launcher the shim would run, see :func:`.shim.identify`.
        umask: The caller's.
        files: stdin, stdout, stderr, working directory, network namespace, environment.
    """

    type: str
    id: str
    umask: int
    files: list[int]


def receive(connection: socket.socket) -> Handover:
    """Take a request.

    Raises:
        DecodingError: (6) It is none. All descriptors that came are closed.
        OSError: The other side is gone.
    """
    text, files, _, _ = socket.recv_fds(connection, 256, FILES)
    try:
        greeting, type_, id_, umask = text.decode("ascii").split()
        if greeting != GREETING or len(files) != FILES:
            raise ValueError
        return Handover(type_, id_, int(umask, 8), files)
    except ValueError as exc:
        for fd in files:
            os.close(fd)
        raise DecodingError("not a request of this protocol") from exc


def read_environment(fd: int) -> tuple[str, dict[str, str]]:
    """Read ``argv[0]`` and the environment from the file they come in.

    Raises:
        DecodingError: (6) It is too large.
    """
    size = os.fstat(fd).st_size
    if size > _LARGEST:
        raise DecodingError(f"the environment is {size} bytes, expected {_LARGEST} at most")
    data = os.pread(fd, size, 0)
    encoding = sys.getfilesystemencoding()
    name, *entries = data.decode(encoding, "surrogateescape").split("\0")
    pairs = (entry.partition("=") for entry in entries)
    return name, {key: value for key, divider, value in pairs if divider and key}


def peer_uid(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid = (int.from_bytes(data[at : at + 4], sys.byteorder) for at in (0, 4))
    return pid, uid
