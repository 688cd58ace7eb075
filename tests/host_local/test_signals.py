"""SIGTERM before each line of a request: the answer tells the truth, and no lock stays behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import cnisdk
from cnisdk.plugin._signals import Signals
from cnisdk.plugin.reply import Reply, respond
from cnisdk_plugins import host_local
from cnisdk_plugins.host_local import HostLocal

from .conftest import Network, Program, environment

# Where lines are counted: what is ours, and what stands between `with` and a generator of ours.
OURS = (os.path.dirname(cnisdk.__file__), host_local.__file__, contextlib.__file__)


@pytest.fixture
def signals() -> Iterator[Signals]:
    """This process's, as a plugin's process has them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


ours = Program(HostLocal)


class Interrupting:
    """While the handler runs, counts the lines and sends SIGTERM before one of them."""

    def __init__(self, signals: Signals, line: int) -> None:
        self._signals = signals
        self._line = line
        self.seen = 0

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "call":
            return self._trace if frame.f_code.co_filename.startswith(OURS) else None
        if event == "line" and self._signals.armed:
            self.seen += 1
            if self.seen == self._line:
                signal.raise_signal(signal.SIGTERM)  # for this thread: the test runner may have others
        return self._trace

    def __enter__(self) -> None:
        self._signals.__enter__()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        self._signals.__exit__()
        sys.settrace(None)


def interrupted(signals: Signals, verb: str, stdin: bytes, line: int) -> tuple[Reply, bool]:
    signals.forget()
    signals.raised = None
    interrupting = Interrupting(signals, line)
    try:
        reply = respond(HostLocal, environment(verb, "me"), stdin, interruptible=interrupting)
    finally:
        sys.settrace(None)
    return reply, interrupting.seen >= line


def is_free(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@pytest.mark.parametrize("verb", ["first ADD", "ADD", "DEL"])
def test_a_signal_before_each_line(network: Network, signals: Signals, verb: str) -> None:
    conf = network.conf("10.9.0.0/24", "fd00:9::/64", version="1.1.0", lockTimeout=0.5)
    stdin = json.dumps(conf).encode()
    first, verb = verb == "first ADD", verb[-3:]
    if not first:
        assert ours("ADD", conf, "stays").status == 0
    kept = {} if first else network.leases()
    line, reached, taken_back = 0, True, 0
    while reached:
        line += 1
        if first:
            shutil.rmtree(network.data_dir, ignore_errors=True)
        elif verb == "DEL":
            assert ours("ADD", conf, "me").status == 0
        reply, reached = interrupted(signals, verb, stdin, line)
        assert is_free(network.path / "lock"), line
        if reply.status:
            document = json.loads(reply.stdout)
            assert document["code"] == 11, (line, document)
            assert "failed" not in document["details"], (line, document)
            taken_back += 1
        else:
            reply.undo.unwind()  # the handler was through already: what main does with a reply it cannot deliver
        if verb == "DEL":
            assert ours("DEL", conf, "me").status == 0
        assert network.leases() == kept, line
    assert taken_back > 100  # it did interrupt


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_a_signal_ends_a_wait_for_the_lock(network: Network, signals: Signals, verb: str) -> None:
    """At once, and whoever comes next gets the lock."""
    conf = network.conf("10.9.0.0/24", version="1.1.0")
    assert ours("ADD", conf, "stays").status == 0
    lock = os.open(network.path / "lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    waiter = threading.Thread(target=terminate_when_waiting, args=(os.fstat(lock).st_ino,))
    waiter.start()
    reply = respond(HostLocal, environment(verb, "me"), json.dumps(conf).encode(), interruptible=signals)
    waiter.join()
    assert (reply.status, json.loads(reply.stdout)["code"]) == (1, 11)
    os.close(lock)
    assert ours("ADD", conf, "me").status == 0


def terminate_when_waiting(inode: int) -> None:
    """Send SIGTERM to this process when the kernel says that it waits for the lock of a file."""
    while True:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # "2: -> FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF"
            if fields[1] == "->" and fields[6].endswith(f":{inode}"):
                os.kill(os.getpid(), signal.SIGTERM)
                return
