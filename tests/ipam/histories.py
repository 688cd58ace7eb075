"""Histories of ADDs and DELs, recorded by all nodes, and a check that no address had two holders at any moment.

Each process notes the begin and the end of each operation, by the clock of the machine that all of them share. An ADD
takes effect at some moment between its begin and its end, and so does a DEL. So a container holds its address for
certain from the end of the ADD to the begin of the DEL, and perhaps some time before and after.

A history is linearizable (moments can be chosen so that an address has at most one holder at each) exactly if the
certain times of the containers of each address are disjoint. If two of them overlap, no choice helps. If none do,
choose the end of each ADD and the begin of each DEL.

An operation without an end was that of a killed process. Its ADD has no certain time: nothing was told of an address.
Its DEL ends the certain time all the same.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["add", "added", "failed", "delete", "deleted"]


class Event(NamedTuple):
    """Begin or end of an operation on a container."""

    time: int
    container: str
    kind: Kind
    addresses: tuple[str, ...] = ()
    pod: str = ""


class Hold(NamedTuple):
    """Time in which a container certainly held an address."""

    address: str
    since: int
    until: float
    container: str


class Recorder:
    """Notes events in a file, to which other processes may write too."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, kind: Kind, container: str, addresses: Iterable[object] = (), pod: str = "") -> None:
        event = Event(time.monotonic_ns(), container, kind, tuple(map(str, addresses)), pod)
        os.write(self._fd, json.dumps(event).encode() + b"\n")


def read_history(paths: Iterable[Path]) -> list[Event]:
    """Read what several processes noted, in the order of time."""
    lines = [line for path in paths for line in path.read_text().splitlines()]
    events = [Event(each[0], each[1], each[2], tuple(each[3]), each[4]) for each in map(json.loads, lines)]
    return sorted(events)


def list_holds(events: Iterable[Event]) -> Iterator[Hold]:
    """Yield the certain times."""
    added: dict[str, Event] = {}
    for event in events:
        if event.kind == "added":
            added[event.container] = event
        elif event.kind == "delete" and event.container in added:
            begin = added.pop(event.container)
            yield from (Hold(each, begin.time, event.time, event.container) for each in begin.addresses)
    for begin in added.values():
        yield from (Hold(each, begin.time, float("inf"), begin.container) for each in begin.addresses)


def find_doubles(events: Iterable[Event]) -> list[tuple[Hold, Hold]]:
    """Return pairs of containers that certainly held one address at one moment."""
    by_address: dict[str, list[Hold]] = defaultdict(list)
    for hold in list_holds(sorted(events)):
        by_address[hold.address].append(hold)
    # Sorted by begin, some neighbours overlap if any two do.
    return [
        (one, other)
        for holds in by_address.values()
        for one, other in pairwise(sorted(holds))
        if other.since < one.until
    ]


def list_alive(events: Iterable[Event]) -> dict[str, tuple[str, ...]]:
    """Return the containers that were not deleted for certain, with the addresses that they have for certain."""
    alive: dict[str, tuple[str, ...]] = {}
    for event in events:
        if event.kind in ("add", "added", "delete"):
            alive[event.container] = event.addresses
        elif event.kind in ("failed", "deleted"):
            alive.pop(event.container, None)
    return alive


def find_unsteady_pods(events: Iterable[Event]) -> dict[str, set[tuple[str, ...]]]:
    """Return the pods that were given other addresses than before."""
    given: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for event in events:
        if event.kind == "added" and event.pod:
            given[event.pod].add(event.addresses)
    return {pod: found for pod, found in given.items() if len(found) > 1}
