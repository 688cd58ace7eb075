"""Policy: when a server that was started on demand ends. It does no I/O: callers pass the time and what they saw.

It ends when one of these holds, the first of which is the reason it gives:

1. A file of its installation has changed or is gone. Its code is then of another version than new shims, and modules
   that it imports later would be, too.
2. Memory is short. The server has little of it, but is not needed: shims run their requests without it.
3. No request came for :data:`IDLE` seconds, and none runs.
"""

from __future__ import annotations

IDLE = 600.0
"""Seconds without a request after which the server ends."""

MOST_WAITING = 20.0
"""Per cent of the last ten seconds in which some process waited for memory, and above which memory may be short."""

MOST_AVAILABLE = 0.25
"""Part of all memory from which on available memory is not short, however long processes wait. A container that has
reached its own limit waits, too, and no other process can help it."""

LEAST_AVAILABLE = 0.05
"""Part of all memory below which available memory is short, on a kernel that does not measure the waiting."""


class Lifetime:
    """Life of a server.

    Args:
        now: The time, in seconds, of a clock that never goes back. All methods take it of the same clock.
    """

    def __init__(self, now: float) -> None:
        self._last = now

    def note_request(self, now: float) -> None:
        """Note that a worker has answered a request. One that was declined does not count."""
        self._last = max(self._last, now)

    def find_reason(self, now: float, *, busy: bool, changed: str | None, short: bool) -> str | None:
        """Find a reason to end.

        Args:
            now: The time.
            busy: A worker runs a request.
            changed: Path of a file of the installation that has changed or is gone; None if there is none.
            short: Memory is short.

        Returns:
            The reason, for people; None if the server goes on.
        """
        if changed is not None:
            return f"{changed} was changed or removed"
        if short:
            return "memory is short"
        if not busy and now >= self._last + IDLE:
            return f"no request came for {IDLE:.0f} seconds"
        return None


def is_memory_short(pressure: str, meminfo: str) -> bool:
    """Return True if processes wait for memory, and not much is available.

    Where the kernel does not measure the waiting, return True if little is available.

    Args:
        pressure: Text of ``/proc/pressure/memory``; empty if the kernel has none.
        meminfo: Text of ``/proc/meminfo``.
    """
    lines = [line.split() for line in meminfo.splitlines()]
    sizes = {words[0]: int(words[1]) for words in lines if words and words[0] in ("MemTotal:", "MemAvailable:")}
    available = sizes["MemAvailable:"] / sizes["MemTotal:"] if len(sizes) == 2 else None
    if pressure.startswith("some avg10="):
        waited = float(pressure.split()[1].partition("=")[2])
        return waited > MOST_WAITING and (available is None or available < MOST_AVAILABLE)
    return available is not None and available < LEAST_AVAILABLE
