"""History of bursts: how many requests ran at the same time, within the last minute.

Where many requests came together, more will. So as many workers wait as the largest burst of the last
:data:`BURST_SECONDS` had requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

from .prefetch import RequestKind

BURST_SECONDS = 60.0
"""Seconds for which a burst is remembered."""


class Burst(NamedTuple):
    """Requests that ran at the same time.

    Attributes:
        at: Time of the burst: :func:`time.monotonic`, in seconds.
        size: Most requests at one moment, including those that waited for a worker.
        kinds: Kinds of these requests.
    """

    at: float
    size: int
    kinds: frozenset[RequestKind]


class BurstHistory:
    """Bursts that may still be the largest one. Their sizes fall from the oldest to the newest.

    Args:
        first: Burst to begin with.
    """

    def __init__(self, first: Burst) -> None:
        self._falling = deque([first])

    @property
    def largest(self) -> Burst:
        """The largest burst that is remembered."""
        return self._falling[0]

    def add(self, burst: Burst) -> None:
        """Add a burst, and forget those that are too old."""
        while self._falling and self._falling[-1].size <= burst.size:
            self._falling.pop()  # the new one is at least as large, and stays longer
        self._falling.append(burst)
        while burst.at - self._falling[0].at >= BURST_SECONDS and len(self._falling) > 1:
            self._falling.popleft()


def peak_concurrency(spans: Iterable[tuple[float, float]]) -> int:
    """Count how many spans of time overlap at most.

    Args:
        spans: Start and end of each span, in seconds.
    """
    changes = sorted(change for start, end in spans for change in ((start, 1), (end, -1)))
    return max(accumulate(change for _, change in changes), default=0)
