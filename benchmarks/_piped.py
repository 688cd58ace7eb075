"""Start plugins as container runtimes do, and measure them.

A runtime gives a plugin three pipes: it writes the configuration into one, reads the other two to their end, and then
reaps the process (Go's `exec.Cmd`, which libcni uses). So the answer is there when the last copy of stdout and stderr
is closed in every process that holds it; files would not show that.
"""

from __future__ import annotations

import os
import select
import time
from typing import NamedTuple


class Cost(NamedTuple):
    """Cost of one process: seconds, seconds of CPU with its children, and its largest size in KiB."""

    seconds: float
    cpu: float
    peak: int


class Child:
    """A process that was started.

    Attributes:
        argv: Program and arguments.
        environ: Its environment.
        printed: What it printed to stdout so far.
        said: What it printed to stderr so far.
        status: Its wait status, once it is known.
        cost: What it took, once it is known.
    """

    def __init__(self, argv: list[str], environ: dict[str, str], stdin: bytes = b"") -> None:
        self.argv, self.environ = argv, environ
        self.printed, self.said, self.status, self.cost = b"", b"", 0, Cost(0, 0, 0)
        ends = [os.pipe(), os.pipe(), os.pipe()]
        theirs = (ends[0][0], ends[1][1], ends[2][1])
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(theirs)]
        self._start = time.perf_counter()
        self.pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions)
        for fd in theirs:
            os.close(fd)
        try:
            os.write(ends[0][1], stdin)  # less than a pipe holds
        except BrokenPipeError:
            pass  # VERSION reads nothing
        os.close(ends[0][1])
        self.outputs = {ends[1][0]: "printed", ends[2][0]: "said"}

    def read(self, fd: int) -> bool:
        """Read what is there, and return whether the process has ended; if so, it is reaped."""
        data = os.read(fd, 1 << 16)
        name = self.outputs[fd]
        setattr(self, name, getattr(self, name) + data)
        if data:
            return False
        os.close(fd)
        del self.outputs[fd]
        if self.outputs:
            return False
        _, self.status, usage = os.wait4(self.pid, 0)
        seconds = time.perf_counter() - self._start
        self.cost = Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
        return True


class Children:
    """Processes that run at the same time."""

    def __init__(self, *children: Child) -> None:
        self._poll = select.poll()
        self._of: dict[int, Child] = {}
        self._ready: list[int] = []
        for child in children:
            self.add(child)

    def add(self, child: Child) -> None:
        for fd in child.outputs:
            self._of[fd] = child
            self._poll.register(fd, select.POLLIN)

    def __len__(self) -> int:
        return len({child.pid for child in self._of.values()})

    def wait(self) -> Child:
        """Return the next process that has ended."""
        while True:
            if not self._ready:
                self._ready = [fd for fd, _ in self._poll.poll()]
            fd = self._ready.pop()
            child = self._of[fd]
            ended = child.read(fd)
            if fd not in child.outputs:
                self._poll.unregister(fd)
                del self._of[fd]
            if ended:
                return child


def run(argv: list[str], environ: dict[str, str], stdin: bytes = b"") -> Child:
    """Run a process to its end."""
    return Children(Child(argv, environ, stdin)).wait()
