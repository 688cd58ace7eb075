"""Queue on which all idle workers wait for connections. The worker that came last is woken first (LIFO).

The memory of the newest worker is the likeliest to be in the processor's caches. ``epoll_wait(2)`` wakes the newest of
the processes that share one epoll descriptor. Workers that wait on the socket itself, or on epoll descriptors of their
own, would be woken oldest first.

The listening socket is registered edge-triggered (EPOLLET), so that one connection wakes one worker. Then connections
that arrive together wake one worker only, and each worker must wake the next one: :meth:`AcceptQueue.wake_next`. The
server calls it too when a worker has died, and so does each new worker when it begins: a worker that was woken may die,
or be stopped (SIGSTOP), before it accepts the connection.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Collection

from .protocol import make_socket


class AcceptQueue:
    """Accept queue, made by the server and inherited by its workers.

    Args:
        listener: The server's listening socket, non-blocking.
        stop: Read end of a pipe. Its write end closes when workers shall take no further request.
        retire: Read end of a pipe that holds a byte for each worker that shall end.
    """

    def __init__(self, listener: socket.socket, stop: int, retire: int) -> None:
        self._listener = listener
        self.stop, self.retire = stop, retire
        self._poll = select.epoll()
        self._poll.register(listener, select.EPOLLIN | select.EPOLLET)
        for fd in (stop, retire):
            self._poll.register(fd, select.EPOLLIN)

    def wait(self) -> Collection[int]:
        """Wait for a connection, or for an order to end.

        Returns:
            The descriptors that are ready: listener, stop or retire.
        """
        return [fd for fd, _ in self._poll.poll()]

    def is_stopped(self) -> bool:
        """Return True if workers shall take no further request."""
        poll = select.poll()
        poll.register(self.stop, select.POLLIN)
        return bool(poll.poll(0))

    def accept(self) -> socket.SocketType | None:
        """Accept a connection; None when there is none."""
        try:
            # Like listener.accept(), but without asking the kernel for the socket's family and type.
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return None
        finally:
            self.wake_next()
        return make_socket(fd)

    def wake_next(self) -> None:
        """Wake another worker if a connection waits: registering the socket again raises the edge again."""
        self._poll.modify(self._listener, select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        """Close the queue in this process, which accepts nothing more. Closing it again does nothing."""
        if not self._poll.closed:
            self._poll.close()
            for fd in (self._listener.detach(), self.stop, self.retire):
                os.close(fd)
