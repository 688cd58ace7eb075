"""The accept queue: which of the idle workers gets a connection."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnisdk._thick.accept_queue import AcceptQueue
from cnisdk._thick.caller import CallerPolicy
from cnisdk._thick.worker import run_worker


class Pool:
    """An accept queue, and processes that wait on it. Each takes one connection and answers with its number."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self.listener.setblocking(False)
        self.pipes = (*os.pipe(), *os.pipe())
        self.queue = AcceptQueue(self.listener, self.pipes[0], self.pipes[2])
        self.waiting: list[int] = []

    def add(self) -> None:
        """Add a worker."""
        pid = os.fork()
        if pid == 0:
            try:
                while (connection := self.queue.wait() and self.queue.accept()) is None:
                    pass
                assert connection
                connection.send(b"%d" % len(self.waiting))
            finally:
                os._exit(0)
        self.waiting.append(pid)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "SZ":
            pass  # it is not waiting yet; then it sleeps in the queue, or has taken a connection and ended

    def ask(self) -> socket.socket:
        """Connect, as a shim does."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(60)
        connection.connect(self.path)
        return connection

    def close(self) -> None:
        for pid in self.waiting:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        self.queue.close()
        os.close(self.pipes[1])
        os.close(self.pipes[3])


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    made = Pool(tmp_path / "queue")
    yield made
    made.close()


def test_the_newest_worker_is_woken_first(pool: Pool) -> None:
    for _ in range(4):
        pool.add()
    answers = []
    for _ in range(4):
        with pool.ask() as connection:
            answers.append(connection.recv(10))
    assert answers == [b"3", b"2", b"1", b"0"]


def test_each_of_many_connections_at_once_is_accepted(pool: Pool) -> None:
    """Also the connections that came before any worker waited, which raise one edge."""
    early = [pool.ask() for _ in range(3)]
    for _ in range(8):
        pool.add()
    late = [pool.ask() for _ in range(5)]
    answers = set()
    for connection in (*early, *late):
        with connection:
            answers.add(connection.recv(10))
    assert answers == {b"%d" % number for number in range(8)}


def test_a_new_worker_finds_the_connection_of_one_that_was_stopped(pool: Pool) -> None:
    """One that was woken for it, and stopped before it could accept."""
    if (stopped := os.fork()) == 0:
        pool.queue.wait()
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    pool.waiting.append(stopped)
    with pool.ask() as connection:
        os.waitpid(stopped, os.WUNTRACED)
        if (new := os.fork()) == 0:
            run_worker(pool.queue, {}, CallerPolicy(), os.open(os.devnull, os.O_WRONLY))
        pool.waiting.append(new)
        connection.send(b"no offer")
        assert connection.recv(100) == b""  # it has read it, and hung up
