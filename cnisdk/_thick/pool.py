"""Policy of the worker pool: how many workers the server keeps. It starts no process, and reads no clock.

A worker that serves again answers most requests within some milliseconds, and nearly all of that is work for the
processor. So a few workers serve any number of such requests as fast as many would, and each worker costs memory of its
own. There are two exceptions:

- Requests wait for something else: another program, a lock, a DHCP server. They hold their workers, and must not hold
  up the others. Then no request is answered for a while. (How long each takes shows nothing: on a busy machine all take
  long.)
- The machine is busy with other processes, each of which gets as much of the processor as a worker. Then the last of
  many requests would wait until its shim gives up (:data:`.protocol.SHIM_TIMEOUT`) and starts a process of its own,
  which takes ten times the processor time of a new worker. The sign: requests have waited long when a worker takes one.

:class:`Pool` knows the workers by process id, in three states. The server tells it what happened, and the time:

idle
    forked, or finished with a request that left nothing behind: waits for a connection.
busy
    runs a request.
ending
    has answered, and does not serve again. On a busy machine its end may still take long.

An idle worker takes a connection at once, if it runs. One that stayed idle while connections waited for :data:`STALL`
seconds does not run: it is stopped, frozen or held by a debugger. Until it takes a request, it is *stuck*: it does not
count as idle, and others do its work.

The rules, which :meth:`Pool.decide` applies:

1. ``ready`` workers that are not stuck are there at least.
2. While a connection waits and no worker is idle, there may be ``crowd`` workers. The server forks them one by one.
3. When no request has been taken or answered for :data:`STALL` seconds, and no worker is idle, there may be twice as
   many as there are. When a request had waited for long, there may be more, as :data:`PATIENCE` tells. Both hold until
   some worker is idle throughout a window.
4. There are never more than ``limit``, the stuck ones among them; nor do more than ``limit`` end at a time.
5. When the kernel has refused a fork, or a new worker has failed before it took a request, there is no fork for
   :data:`PAUSE` seconds; for twice as long after each further refusal, up to :data:`LONGEST_PAUSE`, until a worker
   takes a request.
6. Workers that were idle throughout a window of :data:`WINDOW` seconds, beyond ``ready``, are surplus and retire, also
   under load.
"""

from __future__ import annotations

from typing import NamedTuple

STALL = 0.15
"""Seconds without a request that is taken or answered, after which busy workers are taken to wait for something."""

PATIENCE = ((0.5, 2), (1.0, 4), (2.0, 8))
"""Seconds that a request has waited for a worker, and by how much ``crowd`` is then multiplied."""

WINDOW = 1.0
"""Seconds in which workers must have been idle throughout to be surplus."""

PAUSE = 0.1
"""Seconds without another attempt after the kernel has refused a fork, or a worker has failed."""

LONGEST_PAUSE = 1.6
"""Seconds without another attempt after many refusals."""


class Decision(NamedTuple):
    """Orders to the server.

    Attributes:
        fork: Fork a worker.
        watch: Fork a worker if a connection waits.
        retire: Tell so many idle workers to end.
        again: Seconds after which the passing of time alone may change the decision; None for never.
    """

    fork: bool
    watch: bool
    retire: int
    again: float | None


class Pool:
    """Workers of a server.

    Args:
        ready: Workers that are kept, at least.
        crowd: Workers while connections wait.
        limit: Workers, at most.
        now: The time, in seconds, of a clock that never goes back. All methods take it of the same clock.
    """

    def __init__(self, ready: int, crowd: int, limit: int, now: float) -> None:
        self.ready, self.crowd, self.limit = ready, max(crowd, ready), max(limit, ready)
        self.idle: set[int] = set()
        self.busy: set[int] = set()
        self.ending: set[int] = set()
        self._retiring = 0
        self._window, self._fewest = now, 0
        self._pause = self._progress = now
        self._next_pause = PAUSE
        self._most = self.crowd
        self._stuck: set[int] = set()
        self._waiting: float | None = None  # connections wait since then
        self._suspects: set[int] = set()  # that have been idle all the time since

    def add(self, pid: int) -> None:
        """Note a new worker."""
        self.idle.add(pid)

    def note_refusal(self, now: float) -> None:
        """Note that the kernel has refused a fork, or that a worker has failed before it took a request."""
        self._pause = now + self._next_pause
        self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)

    def note_waiting(self, waiting: bool, now: float) -> None:
        """Note that a connection waits, or that none does."""
        if not waiting or not self._suspects:
            self._waiting = now if waiting else None
            self._suspects = self._awake if waiting else set()
        elif self._waiting is not None and now >= self._waiting + STALL:
            self._stuck |= self._suspects
            self._suspects = set()
            self._fewest = min(self._fewest, len(self._awake))

    def note_busy(self, pid: int, now: float) -> None:
        """Note that a worker has taken a request."""
        self._leave_idle(pid)
        self.busy.add(pid)
        self._progress = now
        self._next_pause = PAUSE

    def note_answered(self, pid: int, waited: float, now: float) -> None:
        """Note that a worker has answered a request, which had waited so many seconds for a worker."""
        self._progress = now
        for seconds, crowds in PATIENCE:
            if waited >= seconds:
                self._most = max(self._most, crowds * self.crowd)
        if pid in self.busy:
            self.busy.discard(pid)
            self.ending.add(pid)

    def note_idle(self, pid: int) -> None:
        """Note that a worker that has answered serves again."""
        self.ending.discard(pid)
        self.idle.add(pid)

    def remove(self, pid: int) -> None:
        """Note the end of a worker."""
        if pid in self.idle and self._retiring:
            self._retiring -= 1
        self._leave_idle(pid)
        self.busy.discard(pid)
        self.ending.discard(pid)

    @property
    def hopeless(self) -> bool:
        """True if forks were refused, or workers have failed, so often that the next one is not to be waited for."""
        return self._next_pause >= LONGEST_PAUSE

    @property
    def _awake(self) -> set[int]:
        """Idle workers that are not stuck."""
        return self.idle - self._stuck

    def _leave_idle(self, pid: int) -> None:
        for workers in (self.idle, self._stuck, self._suspects):
            workers.discard(pid)
        self._fewest = min(self._fewest, len(self._awake))

    def decide(self, now: float) -> Decision:
        """Decide what to do now. Each order counts as carried out."""
        awake, count = len(self._awake), len(self.idle) + len(self.busy)
        expected = bool(self.busy or self._waiting is not None)
        if now >= self._progress + STALL and not awake and expected:
            self._most, self._progress = max(self._most, 2 * count), now
        retire = 0
        if now >= self._window + WINDOW:
            if self._fewest:
                self._most = self.crowd
            retire = max(0, self._fewest - self._retiring - self.ready)
            self._retiring += retire
            self._window, self._fewest = now, awake
        space = count < self.limit and len(self.ending) < self.limit
        room = space and now >= self._pause
        changes = []
        if space and not room:
            changes.append(self._pause - now)
        elif room and not awake and count >= self._most and expected:
            changes.append(self._progress + STALL - now)
        if self._waiting is not None and self._suspects:
            changes.append(max(0.0, self._waiting + STALL - now))
        if awake - self._retiring > self.ready:
            changes.append(self._window + WINDOW - now)
        return Decision(
            room and awake + len(self.busy) < self.ready and count < self._most,
            room and not awake and count < self._most,
            retire,
            min(changes, default=None),
        )
