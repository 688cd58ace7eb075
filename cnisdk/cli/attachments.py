"""Which attachments there are, whose leases and cached results they hold, and whether they are alive.

Shared by the subcommands ``leases``, ``gc`` and ``fsck``; the judgement is :mod:`cnisdk.runtime.liveness`'s.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import CNIError
from ..ipam.examine import Examination, LeaseFile, examine, list_networks
from ..ipam.filestore import DATA_DIR, FileStore
from ..ipam.ranges import Pool, RangeSet, make_range_set, parse_range, pools
from ..ipam.records import BootOf
from ..ipam.store import Owner
from ..runtime.cache import DEFAULT_CACHE_DIR
from ..runtime.caches import VARIABLE, Memory, find_places, known_directories, read_all
from ..runtime.liveness import LeaseTrace, State, Survey, Traces, Verdict, assess, namespace_of
from ..runtime.load import DEFAULT_CONF_DIR, load_networks
from ..runtime.network import Network
from ..runtime.survey import survey_host
from ..spec.codec import find_key
from ..spec.names import Attachment

TYPE = "host-local"

_GRACE = 600.0


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


class Judgement(NamedTuple):
    """An attachment, and what is known of it.

    Attributes:
        traces: What speaks of it.
        leases: Its leases.
        verdict: Whether it is alive.
    """

    traces: Traces
    leases: tuple[LeaseFile, ...]
    verdict: Verdict

    @property
    def owner(self) -> Owner:
        """Its container and interface."""
        return Owner(self.traces.attachment.container_id, self.traces.attachment.ifname)

    @property
    def stamps(self) -> frozenset[tuple[int, int]]:
        """What tells it from a later attachment of the same name."""
        return frozenset([each.stamp for each in self.leases] + [each.stamp for each in self.traces.entries])


class NetworkState(NamedTuple):
    """A network, its leases and its attachments.

    Attributes:
        name: Name of the network.
        network: Its configuration; None when there is none.
        store: Where its leases are; None when it has none of host-local's.
        pools: What there is to hand out; empty when it is not known.
        leases: Those there are.
        examination: What else was found.
        attachments: All that anything speaks of, sorted.
    """

    name: str
    network: Network | None
    store: FileStore | None
    pools: tuple[Pool, ...]
    leases: tuple[Judged, ...]
    examination: Examination
    attachments: tuple[Judgement, ...]


class Situation(NamedTuple):
    """A look at everything.

    Attributes:
        networks: By name.
        problems: Configurations, and places of leases, that could not be read.
        memory: What the runtimes remember.
        seen: What was seen of the host.
    """

    networks: tuple[NetworkState, ...]
    problems: tuple[str, ...]
    memory: Memory
    seen: Survey


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
        action="append",
        default=[],
        help=f"one more directory where a runtime remembers attachments; may be given several times ({VARIABLE}). "
        f"{DEFAULT_CACHE_DIR} and the directories in it are always looked into",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help=f"where the leases are, for networks whose configuration does not say ({DATA_DIR})",
    )
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=float,
        default=_GRACE,
        help="judge no attachment that is younger, remembered or not: its ADD may still be running (%(default)g)",
    )
    parser.add_argument(
        "--inside",
        action="store_true",
        help="take the namespaces this command runs in for the host's, as in a node that is itself a container; "
        "without it, they must be those of process 1 of the machine",
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


def look(args: argparse.Namespace, only: str = "") -> Situation:
    """Find out about every network, or about one.

    Raises:
        CNIError: The leases cannot be read.
    """
    problems: list[str] = []
    networks: dict[str, tuple[Network | None, str, Mapping[str, Any]]] = {}
    others: dict[str, Network] = {}
    try:
        loaded = load_networks(args.conf_dir)
        problems += map(str, loaded.problems)
        for network in loaded.networks:
            ipam = ipam_of(network)
            if ipam is None:
                others.setdefault(network.name, network)
                continue
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
    # What speaks of attachments is read first, and the kernel is asked then: see liveness.assess.
    stores: dict[str, tuple[FileStore, Examination]] = {}
    for name, (_, place, ipam) in sorted(networks.items()):
        if not only or name == only:
            reclaims = find_key(ipam, "reclaimEarlierBoots") is not False
            store = FileStore(place, name, reclaim_earlier_boots=reclaims)
            stores[name] = store, examine(store, timeout=args.timeout)
    memory = read_all(find_places(known_directories(args.cache_dir)), only)
    seen = survey_host(
        [*map(namespace_of, memory.entries)], places=memory.places, hidden=memory.hidden, inside=args.inside
    )
    names = {*stores, *(each.entry.attachment.network for each in memory.entries)}
    if only and only in others:
        names.add(only)
    states = []
    for name in sorted(names):
        found, _, ipam = networks.get(name, (others.get(name), "", {}))
        kept, examination = stores.get(name, (None, Examination((), ())))
        attachments = _judge(name, kept, examination, memory, seen, args.grace)
        by_owner = {each.owner: each for each in attachments}
        leases = tuple(_judged(lease, by_owner.get(lease.owner)) for lease in examination.leases)
        ranges = pools(find_range_sets(ipam))
        states.append(NetworkState(name, found, kept, ranges, leases, examination, attachments))
    return Situation(tuple(states), tuple(problems), memory, seen)


def _judge(
    network: str,
    store: FileStore | None,
    examination: Examination,
    memory: Memory,
    seen: Survey,
    grace: float,
) -> tuple[Judgement, ...]:
    """Judge each attachment of a network that a lease or a cached result speaks of."""
    held: dict[Attachment, list[LeaseFile]] = {}
    for lease in examination.leases:
        if lease.owner.container_id:
            held.setdefault(Attachment(network, *lease.owner), []).append(lease)
    entries = [each for each in memory.entries if each.entry.attachment.network == network]
    for each in entries:
        held.setdefault(each.entry.attachment, [])
    judged = []
    for attachment, own in sorted(held.items()):
        traces = Traces(
            attachment,
            tuple(
                LeaseTrace(each.address, each.age, each.written, _boot(each, store), not examination.exclusive)
                for each in own
            ),
            tuple(each for each in entries if _covers(attachment, each.entry.attachment)),
            tuple(each for each in memory.unreadable if each.may_be_of(attachment)),
        )
        judged.append(Judgement(traces, tuple(own), assess(traces, seen, grace=grace)))
    return tuple(judged)


def _covers(attachment: Attachment, other: Attachment) -> bool:
    """Is a record of the first one of the second? One without interface is of all of its container."""
    return attachment == other or (not attachment.ifname and attachment.container_id == other.container_id)


def _boot(lease: LeaseFile, store: FileStore | None) -> BootOf:
    """Which boot a lease is from; with ``reclaimEarlierBoots`` off, the end of its boot was not its end."""
    return "unknown" if lease.boot == "earlier" and (store is None or not store.reclaims) else lease.boot


def _judged(lease: LeaseFile, judgement: Judgement | None) -> Judged:
    if judgement is None:
        return Judged(lease, "unknown", "the lease names no owner", "")
    path = next(filter(None, map(namespace_of, judgement.traces.entries)), "")
    return Judged(lease, judgement.verdict.state, judgement.verdict.why, path)


def used_in(pool: Pool, leases: Sequence[Judged]) -> int:
    """How many addresses of a pool are leased."""
    return sum(1 for each in leases if pool.range_set.holds(each.lease.address))
