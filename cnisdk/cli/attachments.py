"""Which addresses host-local has leased, and whether the attachments they belong to are alive.

Shared by the subcommands ``leases``, ``gc`` and ``fsck``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..errors import CNIError
from ..ipam.examine import Examination, LeaseFile, examine, list_networks
from ..ipam.filestore import DATA_DIR, FileStore
from ..ipam.ranges import Pool, RangeSet, make_range_set, parse_range, pools
from ..ipam.store import Lease
from ..linux import netns
from ..runtime.cache import DEFAULT_CACHE_DIR, Cache, CachedAttachment
from ..runtime.load import DEFAULT_CONF_DIR, load_networks
from ..runtime.network import Network
from ..spec.codec import find_key

TYPE = "host-local"

State = Literal["alive", "dead", "unknown"]


class Judged(NamedTuple):
    """A lease, and what is known of its attachment.

    Attributes:
        lease: The lease.
        state: Whether the attachment is alive.
        why: In words.
        netns: The path of its network namespace; empty when it is not known.
    """

    lease: LeaseFile
    state: State
    why: str
    netns: str


class NetworkState(NamedTuple):
    """A network's leases.

    Attributes:
        name: Name of the network.
        network: Its configuration; None when there is none.
        store: Where its leases are.
        pools: What there is to hand out; empty when it is not known.
        leases: Those there are.
        examination: What else was found.
    """

    name: str
    network: Network | None
    store: FileStore
    pools: tuple[Pool, ...]
    leases: tuple[Judged, ...]
    examination: Examination


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options all three subcommands have."""
    parser.add_argument(
        "--conf-dir",
        metavar="DIR",
        default=os.environ.get("NETCONFPATH") or DEFAULT_CONF_DIR,
        help="directory with network configuration (NETCONFPATH, %(default)s)",
    )
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        default=DEFAULT_CACHE_DIR,
        help="where the runtime remembers attachments (%(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help=f"where the leases are, for networks whose configuration does not say ({DATA_DIR})",
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=30.0, help="how long to wait for the lock (%(default)g)"
    )


def ipam_of(network: Network) -> Mapping[str, Any] | None:
    """The ``ipam`` object of the plugin that uses host-local."""
    for plugin in network.plugins:
        ipam = find_key(plugin.document, "ipam")
        if isinstance(ipam, dict) and find_key(ipam, "type") == TYPE:
            return ipam
    return None


def find_range_sets(ipam: Mapping[str, Any]) -> tuple[RangeSet, ...]:
    """The range sets of a configuration; none when it is wrong, which the plugin itself explains better."""
    flat = [ipam] if find_key(ipam, "subnet") else None
    sets = []
    try:
        for index, ranges in enumerate([*([flat] if flat else []), *(find_key(ipam, "ranges") or [])]):
            parsed = [
                parse_range(
                    find_key(each, "subnet") or "",
                    find_key(each, "rangeStart") or "",
                    find_key(each, "rangeEnd") or "",
                    find_key(each, "gateway") or "",
                    find_key(each, "exclude") or (),
                )
                for each in ranges
            ]
            sets.append(make_range_set(parsed, index, "$.ipam.ranges"))
    except (CNIError, TypeError, AttributeError):
        return ()
    return tuple(sets)


def load_states(args: argparse.Namespace, only: str = "") -> tuple[list[NetworkState], list[str]]:
    """Find out about every network, or about one.

    Returns:
        The networks by name, and what could not be read.

    Raises:
        CNIError: The leases, or the cache, cannot be read.
    """
    problems: list[str] = []
    networks: dict[str, tuple[Network | None, str, Mapping[str, Any]]] = {}
    try:
        loaded = load_networks(args.conf_dir)
        problems += map(str, loaded.problems)
        for network in loaded.networks:
            ipam = ipam_of(network)
            if ipam is not None:
                data_dir = find_key(ipam, "dataDir")
                place = data_dir if isinstance(data_dir, str) and data_dir else args.data_dir or DATA_DIR
                networks.setdefault(network.name, (network, place, ipam))
    except CNIError as exc:
        problems.append(str(exc))
    data_dir = args.data_dir or DATA_DIR
    try:
        for name in list_networks(data_dir):
            networks.setdefault(name, (None, data_dir, {}))
    except OSError as exc:
        problems.append(f"cannot read {data_dir}: {exc.strerror}")
    entries, unreadable = Cache(args.cache_dir).entries(only)
    problems += map(str, unreadable)
    states = []
    for name, (found, place, ipam) in sorted(networks.items()):
        if only and name != only:
            continue
        reclaims = find_key(ipam, "reclaimEarlierBoots") is not False
        store = FileStore(place, name, reclaim_earlier_boots=reclaims)
        examination = examine(store, timeout=args.timeout)
        cached = {
            (entry.attachment.container_id, entry.attachment.ifname): entry
            for entry in entries
            if entry.attachment.network == name
        }
        judged = tuple(judge(lease, cached, reclaims=reclaims) for lease in examination.leases)
        states.append(NetworkState(name, found, store, pools(find_range_sets(ipam)), judged, examination))
    return states, problems


def judge(lease: LeaseFile, cached: Mapping[tuple[str, str], CachedAttachment], *, reclaims: bool = True) -> Judged:
    """Say whether the attachment of a lease is alive; ``reclaims``: whether the end of its boot was its end."""
    owner = lease.owner
    if not owner.container_id:
        return Judged(lease, "unknown", "the lease names no owner", "")
    if lease.boot == "earlier" and reclaims:
        return Judged(lease, "dead", "it is of an earlier boot", "")
    entry = cached.get(owner)
    if entry is None and not owner.ifname:
        entry = next((each for key, each in cached.items() if key[0] == owner.container_id), None)
    if entry is None:
        return Judged(lease, "unknown", "the runtime remembers no such attachment", "")
    return Judged(lease, *judge_entry(entry))


def judge_entry(entry: CachedAttachment) -> tuple[State, str, str]:
    """Say whether a cached attachment is alive: its state, why, and the path of its namespace."""
    if not entry.netns:
        return "unknown", "the runtime does not say which namespace it is in", ""
    try:
        namespace = netns.find(entry.netns)
    except CNIError as exc:
        return "unknown", f"its namespace cannot be looked at: {exc.msg}", entry.netns
    if namespace is None:
        return "dead", f"its namespace {entry.netns} is gone", entry.netns
    with namespace:
        return "alive", f"its namespace {entry.netns} exists", entry.netns


def used_in(pool: Pool, leases: Sequence[Judged]) -> int:
    """How many addresses of a pool are leased."""
    return sum(1 for each in leases if pool.range_set.holds(each.lease.address))


def as_lease(judged: Judged) -> Lease:
    """The lease alone."""
    return Lease(judged.lease.address, judged.lease.owner)


def describe_age(seconds: float) -> str:
    """An age for people: ``"3 d"``, ``"17 min"``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
