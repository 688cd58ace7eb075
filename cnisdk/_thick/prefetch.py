"""Prefetcher of memory pages: idle workers copy the pages that the next request will touch.

A forked worker shares its memory with the server. The kernel copies a page when the worker first writes to it. Python
writes to each object it uses, since it changes the object's reference count. A request touches 1,000 pages and more,
and each copy costs 2 to 3 microseconds: most of the time of a small request.

Every worker is a copy of the same server, so requests of one kind touch mostly the same pages. Rehearsals and some
requests report the pages they touched (:func:`read_touched_pages`, from ``/proc/self/pagemap``). The server keeps the
last of these samples for each kind (:meth:`Prefetcher.add_sample`) and chooses the pages that at least half of them
touched (:meth:`Prefetcher.ranges_for`). An idle worker then populates these pages (:meth:`Prefetcher.fetch`).

No result depends on it: ``madvise(2)`` with MADV_POPULATE_* (Linux 5.14) changes no content. Where it fails, the
kernel copies the pages one by one during the request.
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

# Samples kept of each kind of request. Old ones are dropped, since the server's memory layout changes over time.
_SAMPLES_KEPT = 4

# 32 MiB. No plugin needs more, and each idle worker would hold it.
_MAX_PAGES = 8192


RequestKind = tuple[str, str]
"""Type of the plugin, and verb."""

MemoryRanges = list[tuple[int, int, int]]
"""Address, length and advice of each range, as madvise(2) takes them."""


class PageSet(NamedTuple):
    """Set of pages, by page number.

    Attributes:
        written: Pages that were written to: the process has copies of its own.
        read: Pages that were only read.
    """

    written: frozenset[int]
    read: frozenset[int]

    def without(self, ranges: MemoryRanges) -> PageSet:
        """Return the pages that lie in none of the ranges."""
        fetched = {number for start, length, _ in ranges for number in range(start // _PAGE, (start + length) // _PAGE)}
        return PageSet(self.written - fetched, self.read - fetched)

    def __or__(self, other: PageSet) -> PageSet:
        written, read = self.written | other.written, self.read | other.read
        return self if len(written) + len(read) > _MAX_PAGES else PageSet(written, read)


NO_PAGES = PageSet(frozenset(), frozenset())


def common_pages(samples: Collection[PageSet]) -> PageSet:
    """Return the pages that at least half of the samples have. Rarer pages are not worth the memory of each worker."""
    written, read = (
        frozenset(number for number, times in Counter(chain.from_iterable(each)).items() if 2 * times >= len(samples))
        for each in ([sample.written for sample in samples], [sample.read for sample in samples])
    )
    return PageSet(written, read)


def read_touched_pages() -> PageSet:
    """Return the pages that this process has copied or read since it was forked."""
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
    return PageSet(frozenset(written), frozenset(read))


def dump_pages(pages: PageSet) -> bytes:
    """Serialize a set of pages for :func:`load_pages`."""
    return array("Q", [len(pages.written), *pages.written, *pages.read]).tobytes()


def load_pages(data: bytes) -> PageSet:
    """Read what :func:`dump_pages` wrote."""
    count, *numbers = array("Q", data)
    return PageSet(frozenset(numbers[:count]), frozenset(numbers[count:]))


class Prefetcher:
    """Chooses pages in the server, and fetches them in its workers."""

    def __init__(self) -> None:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._madvise: Callable[[int, int, int], int] = madvise
        self._samples: dict[RequestKind, deque[PageSet]] = {}
        self._chosen: dict[frozenset[RequestKind], MemoryRanges] = {}

    def add_sample(self, kind: RequestKind, pages: PageSet, *, fetched: bool = False) -> None:
        """Add the pages that a request touched.

        Args:
            kind: Kind of the request.
            pages: Pages it touched.
            fetched: True if the worker had fetched pages before, and ``pages`` leaves these out. The request is then
                taken to have touched the common pages of its kind as well.
        """
        samples = self._samples.setdefault(kind, deque(maxlen=_SAMPLES_KEPT))
        samples.append(pages | common_pages(samples) if fetched else pages)
        self._chosen.clear()

    def ranges_for(self, kinds: Collection[RequestKind] | None = None) -> MemoryRanges:
        """Return the ranges that requests of these kinds commonly touch; None stands for all kinds."""
        key = frozenset(self._samples if kinds is None else kinds)
        if key not in self._chosen:
            pages = NO_PAGES
            for kind in key & self._samples.keys():
                pages |= common_pages(self._samples[kind])
            self._chosen[key] = [
                (start * _PAGE, count * _PAGE, advice)
                for numbers, advice in ((pages.written, _POPULATE_WRITE), (pages.read, _POPULATE_READ))
                for start, count in _ranges(numbers)
            ]
        return self._chosen[key]

    def fetch(self, ranges: MemoryRanges) -> MemoryRanges:
        """Populate ranges in this process, an idle worker, and return them."""
        for start, length, advice in ranges:
            self._madvise(start, length, advice)
        return ranges


def private_size(ranges: MemoryRanges) -> int:
    """Return how many bytes of its own a worker holds when it has fetched these ranges."""
    return sum(length for _, length, advice in ranges if advice == _POPULATE_WRITE)


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Join page numbers into runs; return the first page and the length of each run."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found
