"""Who of the workers that wait takes a request."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnisdk.thick.worker import Door


class Hall:
    """A door, and processes that wait at it, of which each takes one request and answers with its number."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self.listener.setblocking(False)
        self.pipes = (*os.pipe(), *os.pipe())
        self.door = Door(self.listener, self.pipes[0], self.pipes[2])
        self.waiting: list[int] = []

    def add(self) -> None:
        """Have one more wait."""
        pid = os.fork()
        if pid == 0:
            try:
                while (connection := self.door.wait(-1) and self.door.accept()) is None:
                    pass
                assert connection
                connection.send(b"%d" % len(self.waiting))
            finally:
                os._exit(0)
        self.waiting.append(pid)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "SZ":
            pass  # it is on its way to the door, where it sleeps, or takes what is there and ends

    def ask(self) -> socket.socket:
        """Come with a request."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(20)
        connection.connect(self.path)
        return connection

    def close(self) -> None:
        for pid in self.waiting:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        self.door.close()
        os.close(self.pipes[1])
        os.close(self.pipes[3])


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    made = Hall(tmp_path / "door")
    yield made
    made.close()


def test_the_last_that_came_goes_first(hall: Hall) -> None:
    for _ in range(4):
        hall.add()
    answers = []
    for _ in range(4):
        with hall.ask() as connection:
            answers.append(connection.recv(10))
    assert answers == [b"3", b"2", b"1", b"0"]


def test_of_requests_that_come_together_each_is_taken(hall: Hall) -> None:
    """Also those that came before anybody waited, which the kernel tells of once."""
    early = [hall.ask() for _ in range(3)]
    for _ in range(8):
        hall.add()
    late = [hall.ask() for _ in range(5)]
    answers = set()
    for connection in (*early, *late):
        with connection:
            answers.add(connection.recv(10))
    assert answers == {b"%d" % number for number in range(8)}
