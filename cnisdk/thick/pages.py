"""Which pages of memory requests touch, so that workers have them before a request comes.

A forked process shares its memory with the server, and the kernel copies each page when it is first written to:
in Python, that is when any object on it is used, since its count of references changes. 1,000 pages a request and more,
at 2 to 3 microseconds each, are most of what a small request costs. Every worker is a copy of one server, so the pages
that most requests of a kind touched are those the next one will touch: a worker that waits gets them in advance.

Nothing depends on it: ``madvise(2)`` with MADV_POPULATE_* (Linux 5.14) changes no content; where it fails, the pages
are copied one by one as they would be anyway.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_POPULATE_READ, _POPULATE_WRITE = 22, 23

# Documentation/admin-guide/mm/pagemap.rst
_PRESENT, _EXCLUSIVE = 1 << 63, 1 << 56

# So many requests of a kind are remembered: where the server's memory moves on, theirs does.
_LESSONS = 4

# 32 MiB: no plugin needs that, and each worker would hold it.
_MOST = 8192


Kind = tuple[str, str]
"""Type of a plugin, and verb."""

Ranges = list[tuple[int, int, int]]
"""Address, length and what to do, as madvise(2) takes them."""


class Pages(NamedTuple):
    """Numbers of pages: those written to, and those only read."""

    written: frozenset[int]
    read: frozenset[int]

    def without(self, ranges: Ranges) -> Pages:
        """Those that are not in any of the ranges."""
        fetched = {number for start, length, _ in ranges for number in range(start // _PAGE, (start + length) // _PAGE)}
        return Pages(self.written - fetched, self.read - fetched)

    def __or__(self, other: Pages) -> Pages:
        written, read = self.written | other.written, self.read | other.read
        return self if len(written) + len(read) > _MOST else Pages(written, read)


NONE = Pages(frozenset(), frozenset())


def usual(lessons: Collection[Pages]) -> Pages:
    """What at least half of some requests touched: what is special to one is not worth the memory of every worker."""
    written, read = (
        frozenset(number for number, times in Counter(chain.from_iterable(each)).items() if 2 * times >= len(lessons))
        for each in ([lesson.written for lesson in lessons], [lesson.read for lesson in lessons])
    )
    return Pages(written, read)


def touched() -> Pages:
    """The pages this process, forked a moment ago, has to itself or has looked at."""
    written: set[int] = set()
    read: set[int] = set()
    with (
        open("/proc/self/maps", encoding="utf-8", errors="replace") as maps,
        open("/proc/self/pagemap", "rb", 0) as map_,
    ):
        for line in maps:
            bounds, permissions, _ = line.split(" ", 2)
            if permissions[3] != "p" or permissions[0] != "r" or line.rstrip().endswith(("[vvar]", "[vsyscall]")):
                continue
            first, last = (int(each, 16) // _PAGE for each in bounds.split("-"))
            entries = array("Q", os.pread(map_.fileno(), (last - first) * 8, first * 8))
            if permissions[1] == "w":
                written.update(first + at for at, entry in enumerate(entries) if entry & _EXCLUSIVE)
            else:
                read.update(first + at for at, entry in enumerate(entries) if entry & _PRESENT)
    return Pages(frozenset(written), frozenset(read))


def dump(pages: Pages) -> bytes:
    """Write pages down for :func:`load`."""
    return array("Q", [len(pages.written), *pages.written, *pages.read]).tobytes()


def load(data: bytes) -> Pages:
    """Read what :func:`dump` wrote."""
    count, *numbers = array("Q", data)
    return Pages(frozenset(numbers[:count]), frozenset(numbers[count:]))


class Populate:
    """Fetches pages in advance. Made in the server, called in its workers."""

    def __init__(self) -> None:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._madvise: Callable[[int, int, int], int] = madvise
        self._lessons: dict[Kind, deque[Pages]] = {}
        self._chosen: dict[frozenset[Kind], Ranges] = {}

    def learn(self, kind: Kind, pages: Pages, *, fetched: bool = False) -> None:
        """Note what a request touched, which the next of its kind will touch too.

        Args:
            kind: What kind of request it was.
            pages: What it touched.
            fetched: Whether its worker had fetched pages, which are not among these: it is taken for granted that the
                request touched those that requests of its kind usually do.
        """
        lessons = self._lessons.setdefault(kind, deque(maxlen=_LESSONS))
        lessons.append(pages | usual(lessons) if fetched else pages)
        self._chosen.clear()

    def choose(self, kinds: Collection[Kind] | None = None) -> Ranges:
        """What requests of these kinds usually touch; of all kinds, for None."""
        key = frozenset(self._lessons if kinds is None else kinds)
        if key not in self._chosen:
            pages = NONE
            for kind in key & self._lessons.keys():
                pages |= usual(self._lessons[kind])
            self._chosen[key] = [
                (start * _PAGE, count * _PAGE, advice)
                for numbers, advice in ((pages.written, _POPULATE_WRITE), (pages.read, _POPULATE_READ))
                for start, count in _ranges(numbers)
            ]
        return self._chosen[key]

    def __call__(self, ranges: Ranges) -> Ranges:
        """Fetch them, in a worker that waits."""
        for start, length, advice in ranges:
            self._madvise(start, length, advice)
        return ranges


def size_of(ranges: Ranges) -> int:
    """Bytes a worker has to itself when it has fetched them."""
    return sum(length for _, length, advice in ranges if advice == _POPULATE_WRITE)


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First page and count of each run of pages."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found
