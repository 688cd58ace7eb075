"""Footprint of a host: the objects that plugins made there, as a set of lines. Sets are compared and subtracted.

A footprint has a line for each link, address, route, rule, lease and temporary file, and for each file that names a
container. It leaves out what changes by itself (a bridge's MAC address, packet counters) and what is no leak: empty
nft tables, caches and indexes that name no container.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ..testing.hosts import Host
from ..testing.state import State, collect, read_regular_file
from ..testing.stub import HOME, StubPlugin, read_leases

TEMPORARY = "/run/cnisdk-testing/tmp"
"""``TMPDIR`` of requests."""

WATCHED = ("/tmp", "/var/tmp", "/var/log")
"""Directories where plugins log, or make files although ``TMPDIR`` says another one."""

_MAIN = 254  # RT_TABLE_MAIN of <linux/rtnetlink.h>
_LOOPBACK = ("127.0.0.1/8", "::1/128")  # the kernel's own addresses


def watched_for(path: str) -> list[str]:
    """Return the directories of :data:`WATCHED` to watch on a host, without the one that contains the plugin."""
    return [place for place in WATCHED if place != os.path.dirname(path)]


class Snapshot(NamedTuple):
    """State of a host that plugins change, read in one call.

    Attributes:
        state: Its links, addresses, routes, rules and leases.
        files: Paths of the files whose path or content has the ID of a container.
        temporary: Paths of the temporary files.
        stub_leases: Addresses that the stub has leased, with their owners.
    """

    state: State
    files: list[str]
    temporary: list[str]
    stub_leases: dict[str, str]

    def footprint(self) -> frozenset[str]:
        """Return a line for each object, without those that every host has."""
        state = self.state
        found = {f"link {each.place or 'host'}:{each.name}" for each in state.links}
        found |= {
            f"address {each.place or 'host'}:{each.link} {each.address}"
            for each in state.addresses
            if each.link != "lo" or each.address not in _LOOPBACK
        }
        for way in state.routes:
            table = f" table {way.table}" if way.table != _MAIN else ""
            found.add(f"route {way.place or 'host'}: {way.dst} {way.link}{table}")
        found |= {f"rule {each.place or 'host'}: {each.rule}" for each in state.rules}
        # An empty table is no leak: a plugin that only looks for a rule may make one.
        found |= {f"nft {each.place or 'host'}: {each.chain}: {each.line}" for each in state.nft if each.chain}
        found |= {f"lease {each.network}: {each.address} of {each.container_id}" for each in state.leases}
        found |= {f"lease {address} of {owner}" for address, owner in self.stub_leases.items()}
        found |= {f"file {path}" for path in self.files}
        found |= {f"temporary file {path}" for path in self.temporary}
        return frozenset(found)

    def condition(self) -> frozenset[str]:
        """Return the footprint, which links are up, and which bridge each is in."""
        links = [(f"link {each.place or 'host'}:{each.name}", each) for each in self.state.links]
        up = {f"{name} up" for name, each in links if each.up}
        return self.footprint() | up | {f"{name} in {each.master}" for name, each in links if each.master}


def look(host: Host, containers: Collection[str], stub: StubPlugin | None = None) -> Snapshot:
    """Read the state of a host.

    Args:
        host: The host.
        containers: The IDs of its containers.
        stub: The stub on it; None means that there is none.
    """
    return Snapshot(*host.call(_look, list(containers), stub))


def generalize(item: str, containers: Collection[str]) -> str:
    """Return a line with ``@`` for names of containers and ``#`` for numbers, so that lines of attachments compare."""
    names = "|".join(sorted(map(re.escape, containers), key=len, reverse=True))
    alike = re.sub(rf"(?<![A-Za-z0-9])({names})(?![A-Za-z0-9])", "@", item) if names else item
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "#", alike)


def read_files() -> dict[str, bytes]:
    """Return the content of every file below the directories that plugins write to, by path; without the stubs'.

    Call it on the host (:meth:`~cnisdk.testing.Sandbox.call`).
    """
    found = {}
    for top in ("/run", "/var/lib", "/etc/cni", *WATCHED):
        for directory, subdirectories, names in os.walk(top):
            if top in WATCHED:  # directories mounted there were there before
                subdirectories[:] = [name for name in subdirectories if not os.path.ismount(f"{directory}/{name}")]
            if directory == "/run":
                subdirectories[:] = [name for name in subdirectories if name != "netns"]
            if directory == str(HOME):
                subdirectories[:] = ["tmp"]
            for name in names:
                path = Path(directory, name)
                content = read_regular_file(path)
                if content is not None:
                    found[str(path)] = content
    return found


def _look(containers: list[str], stub: StubPlugin | None) -> tuple[State, list[str], list[str], dict[str, str]]:
    telling = []
    if containers:
        names = re.compile(rb"(?<![A-Za-z0-9])(%s)(?![A-Za-z0-9])" % b"|".join(map(str.encode, containers)))
        for path, content in read_files().items():
            if not path.startswith(TEMPORARY) and (names.search(path.encode()) or names.search(content)):
                telling.append(path)
    places = (TEMPORARY, *(place for place in WATCHED if place != "/var/log" and os.path.isdir(place)))
    temporary = [f"{place}/{name}" for place in places for name in os.listdir(place)]
    temporary = [path for path in temporary if not os.path.ismount(path)]
    return collect(), telling, temporary, read_leases(stub.directory) if stub else {}
