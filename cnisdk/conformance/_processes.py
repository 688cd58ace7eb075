"""Processes of requests: start them on a host, wait for their end, and kill every process that they leave behind.

Each request runs in a session of its own. A process belongs to a request if it is in the request's session, or if it
left the session and is on the request's host. Sessions of other requests that still run, and of daemons that the
preparation of the host has started, are left alone. Zombies do not count: they only wait for their parent.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..testing.sandbox import Sandbox
from ._response import TIMEOUT, Response

_PATIENCE = 1.0
"""Seconds that the pipes of a request may stay open after its end."""

# Bytes that fit into a pipe (pipe(7)).
_PIPE = 1 << 16

# Seconds to wait until the kernel has ended a killed process.
_KILL_TIMEOUT = 30.0

_LIMITS = {resource.RLIMIT_NOFILE: "nofile", resource.RLIMIT_FSIZE: "fsize"}


class RequestProcesses:
    """The processes of all requests on one host.

    Args:
        host: The host.
    """

    def __init__(self, host: Sandbox) -> None:
        self._host = host
        self._leaders: set[int] = set()  # first processes of requests that have not come to an end
        self._daemons: set[int] = set()  # sessions

    def spare_daemons(self) -> None:
        """Record all processes on the host as daemons. They belong to no request, and are not killed."""
        self._daemons = {session for _, session in self._list()}

    def start(
        self, argv: Sequence[str], environ: Mapping[str, str], limits: Sequence[tuple[int, int]] = (), **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a request in a session of its own, with pipes for its standard streams.

        Args:
            argv: Program and arguments.
            environ: Its whole environment.
            limits: Resource limits (``resource.RLIMIT_NOFILE`` and so on) with their values.
            **options: Other options of :class:`subprocess.Popen`.
        """
        if limits:
            argv = ["prlimit", *(f"--{_LIMITS[which]}={value}" for which, value in limits), *argv]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = self._host.popen(argv, env=environ, text=False, start_new_session=True, **{**pipes, **options})
        self._leaders.add(process.pid)
        return process

    def finish(
        self, verb: str, process: subprocess.Popen[Any], data: bytes | None = None, timeout: float = TIMEOUT
    ) -> Response:
        """Wait for the end of a request, and kill its processes that do not end.

        Args:
            verb: ``CNI_COMMAND``.
            process: Its first process, from :meth:`start`.
            data: Rest of its standard input; None means there is none.
            timeout: Seconds that it may take.
        """
        deadline = time.monotonic() + timeout
        left: tuple[int, ...] = ()
        timed_out = ended = held = False
        told: tuple[bytes, bytes] | None = None
        if data is not None and len(data) > _PIPE:
            # communicate() writes no more of its input when it is called again, after a timeout.
            assert process.stdin is not None
            stdin, process.stdin = process.stdin, None
            threading.Thread(target=_write, args=(stdin, data), daemon=True).start()
            data = None
        while told is None:
            try:
                told = process.communicate(data, timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                data = None
                # After its end, its pipes may stay open for one more _PATIENCE.
                held, ended = ended, process.poll() is not None
                timed_out = timed_out or time.monotonic() > deadline
                if held or timed_out:
                    left += self.end(process.pid)
        left += self.end(process.pid)
        return Response(verb, process.returncode, *told, left, timed_out, held)

    def end(self, leader: int) -> tuple[int, ...]:
        """Kill the living processes of a request, and return their process ids.

        Args:
            leader: Process id of its first process, from :meth:`start`.
        """
        left = tuple(self._living(leader))
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if left:
            wait_until(lambda: not any(True for _ in self._living(leader)), _KILL_TIMEOUT)
        self._leaders.discard(leader)
        return left

    def _living(self, leader: int) -> Iterator[int]:
        others = (self._leaders | self._daemons) - {leader}
        return (pid for pid, session in self._list(leader) if session not in others)

    def _list(self, leader: int = 0) -> Iterator[tuple[int, int]]:
        """Find the living processes on the host and in a request's session; yield each with its session."""
        mounts = os.stat(f"/proc/{self._host.pid}/ns/mnt").st_ino
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self._host.pid:
                continue
            pid = int(entry)
            # This runs for every process of the machine after each request: the cheapest test comes first.
            try:
                if os.getsid(pid) != leader and os.stat(f"/proc/{pid}/ns/mnt").st_ino != mounts:
                    continue
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    yield pid, int(fields[3])
            except OSError:
                continue


def feed(process: subprocess.Popen[Any], data: bytes, *, close: bool = True) -> None:
    """Write to the standard input of a request, and close it, even if the request does not read to the end."""
    assert process.stdin is not None
    try:
        process.stdin.write(data)
        process.stdin.flush()
        if close:
            process.stdin.close()
    except BrokenPipeError:
        pass
    if close:
        process.stdin = None


def _write(stdin: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(data)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition until it is true. Return False if it is not within this many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
