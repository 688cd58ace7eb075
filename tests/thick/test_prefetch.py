"""The prefetcher: the pages that workers fetch in advance."""

from __future__ import annotations

import os
from collections.abc import Callable

from cnisdk._thick.prefetch import (
    MemoryRanges,
    PageSet,
    Prefetcher,
    dump_pages,
    load_pages,
    private_size,
    read_touched_pages,
)

PAGE = os.sysconf("SC_PAGE_SIZE")
KIND = ("bridge", "ADD")


def numbers(ranges: MemoryRanges) -> set[int]:
    return {number for start, length, _ in ranges for number in range(start // PAGE, (start + length) // PAGE)}


def pages(*written: int, read: tuple[int, ...] = ()) -> PageSet:
    return PageSet(frozenset(written), frozenset(read))


def test_what_half_of_the_requests_touch_is_fetched() -> None:
    prefetcher = Prefetcher()
    for sample in (pages(1, 2, 3, 9), pages(1, 2, 3), pages(1, 2, 8), pages(1, 7)):
        prefetcher.add_sample(KIND, sample)
    assert numbers(prefetcher.ranges_for()) == {1, 2, 3}


def test_what_is_touched_no_more_is_forgotten() -> None:
    prefetcher = Prefetcher()
    prefetcher.add_sample(KIND, pages(1, 2))
    for _ in range(4):
        prefetcher.add_sample(KIND, pages(2, 3))
    assert numbers(prefetcher.ranges_for()) == {2, 3}


def test_what_was_fetched_counts_as_touched() -> None:
    prefetcher = Prefetcher()
    prefetcher.add_sample(KIND, pages(1, 2, read=(5,)))  # a rehearsal
    for _ in range(9):
        prefetcher.add_sample(KIND, pages(), fetched=True)
    prefetcher.add_sample(KIND, pages(3), fetched=True)  # which lies elsewhere by now
    assert numbers(prefetcher.ranges_for()) == {1, 2, 5}
    prefetcher.add_sample(KIND, pages(3), fetched=True)
    assert numbers(prefetcher.ranges_for()) == {1, 2, 3, 5}


def test_only_the_kinds_that_are_asked_for() -> None:
    prefetcher = Prefetcher()
    prefetcher.add_sample(KIND, pages(1))
    prefetcher.add_sample(("bridge", "DEL"), pages(2))
    assert numbers(prefetcher.ranges_for({KIND})) == {1}
    assert numbers(prefetcher.ranges_for()) == {1, 2}
    assert prefetcher.ranges_for(()) == []
    assert prefetcher.ranges_for({("bridge", "GC")}) == []


def test_neighbours_are_fetched_at_once_and_what_is_only_read_costs_no_memory() -> None:
    prefetcher = Prefetcher()
    prefetcher.add_sample(KIND, pages(10, 11, 12, 20, read=(30,)))
    ranges = prefetcher.ranges_for()
    assert [(start // PAGE, length // PAGE) for start, length, _ in ranges] == [(10, 3), (20, 1), (30, 1)]
    assert private_size(ranges) == 4 * PAGE


def test_a_child_tells_which_page_it_wrote_to() -> None:
    data = bytearray(64 * PAGE)
    before, after = touched_of(lambda: None), touched_of(lambda: data.__setitem__(slice(0, None, PAGE), b"x" * 64))
    assert len(after.written - before.written) >= 63  # the first and the last are shared with others


def touched_of(work: Callable[[], object]) -> PageSet:
    """Return the pages that a child touches which calls a function."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            with open(writing, "wb") as file:
                file.write(dump_pages(read_touched_pages()))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return load_pages(data)
