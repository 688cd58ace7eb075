"""The attachments of this host, with their leases and cached results, each judged: alive, dead or unknown.

Shared by the subcommands ``leases``, ``gc`` and ``fsck``. Leases come from the tables of the IPAM plugins
(:mod:`.tables`), cached results from :mod:`cnisdk.runtime.caches`, judgements from :mod:`cnisdk.runtime.liveness`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..errors import CNIError
from ..ipam.ranges import Pool
from ..ipam.store import Owner
from ..ipam.table import Examination, LeaseRecord, LeaseTable
from ..runtime.caches import Memory, Unreadable, addresses_of, find_places, known_directories, namespace_of, read_all
from ..runtime.hostview import Survey
from ..runtime.liveness import LeaseTrace, Liveness, LivenessState, Traces, assess
from ..runtime.load import load_networks
from ..runtime.network import Network
from ..runtime.survey import survey_host
from ..spec.addresses import IPAddress
from ..spec.names import Attachment
from .options import add_cache_dir, add_conf_dir, add_inside, add_seconds
from .tables import search_tables

_GRACE = 600.0


class HeldLease(NamedTuple):
    """Lease of an attachment, with the table that holds it."""

    table: LeaseTable
    lease: LeaseRecord

    @property
    def path(self) -> str:
        """Place of the lease, for messages."""
        return f"{self.table.place}/{self.lease.address}"


class JudgedLease(NamedTuple):
    """Lease, with the judgement of its attachment.

    Attributes:
        lease: The lease.
        state: State of the attachment: alive, dead or unknown.
        why: The reason, as a sentence.
        netns: Path of its network namespace; empty when it is not known.
    """

    lease: LeaseRecord
    state: LivenessState
    why: str
    netns: str


class JudgedAttachment(NamedTuple):
    """Attachment, with its judgement.

    Attributes:
        traces: The leases, cached results and unreadable files that name it.
        held: Its leases.
        verdict: The judgement.
    """

    traces: Traces
    held: tuple[HeldLease, ...]
    verdict: Liveness

    @property
    def owner(self) -> Owner:
        """Container and interface of the attachment."""
        return Owner(self.traces.attachment.container_id, self.traces.attachment.ifname)

    @property
    def stamps(self) -> frozenset[Hashable]:
        """Stamps of its leases and cached results. A later attachment with the same names has other stamps."""
        return frozenset([each.lease.stamp for each in self.held] + [each.stamp for each in self.traces.entries])

    def drop_leases(self, *, timeout: float) -> list[HeldLease]:
        """Delete its leases, except those that have changed since the judgement. Return the deleted ones.

        Raises:
            CNIError: A table cannot be read or written.
        """
        dropped: list[HeldLease] = []
        for table in dict.fromkeys(each.table for each in self.held):
            own = [each.lease for each in self.held if each.table is table]
            dropped += (HeldLease(table, lease) for lease in table.drop(own, timeout=timeout))
        return dropped


class JudgedTable(NamedTuple):
    """Table of leases, with the judgement of each lease.

    Attributes:
        type: Type of the IPAM plugin.
        table: The table.
        examination: Its contents.
        leases: Its leases, judged.
    """

    type: str
    table: LeaseTable
    examination: Examination
    leases: tuple[JudgedLease, ...]


class JudgedNetwork(NamedTuple):
    """Network, with its tables of leases and its attachments.

    Attributes:
        name: Name of the network.
        network: Its configuration; None when there is none.
        tables: Tables of its IPAM plugins; empty if no registered IPAM plugin has a table of it.
        attachments: Attachments that a lease or a cached result names, sorted.
    """

    name: str
    network: Network | None
    tables: tuple[JudgedTable, ...]
    attachments: tuple[JudgedAttachment, ...]


class HostState(NamedTuple):
    """Networks, attachments and leases of a host at one moment.

    Attributes:
        networks: Networks, sorted by name.
        problems: Configurations and tables that could not be read.
        notes: Networks whose leases are not known, IPAM plugins that cannot be loaded, and directories that were named
            and do not exist.
        unknown: Names of the networks whose leases are not known.
        memory: Cached results of all runtimes.
        seen: Links, addresses and namespaces of the host.
    """

    networks: tuple[JudgedNetwork, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unknown: frozenset[str]
    memory: Memory
    seen: Survey


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``leases``, ``gc`` and ``fsck`` have in common."""
    add_conf_dir(parser)
    add_cache_dir(parser)
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="directory with leases, for networks whose configuration names none (the IPAM plugin's default)",
    )
    add_seconds(
        parser,
        "--grace",
        _GRACE,
        "judge no attachment that is younger, with or without a cached result: its ADD may still be running",
    )
    add_inside(parser)
    add_seconds(parser, "--timeout", 30.0, "longest time to wait for the lock of the leases")


def judge_host(args: argparse.Namespace, only: str = "") -> HostState:
    """Read and judge the attachments of every network, or of one.

    Raises:
        CNIError: The leases of a configured network cannot be read.
    """
    problems: list[str] = []
    configured: dict[str, Network] = {}
    try:
        loaded = load_networks(args.conf_dir)
        problems += map(str, loaded.problems)
        configured = {network.name: network for network in loaded.networks}
    except CNIError as exc:
        problems.append(str(exc))
    found = search_tables(configured.values(), args.data_dir or "", only)
    problems += found.problems
    # Leases and cached results are read before the kernel is asked: liveness.assess relies on that order.
    examined = [(each.type, each.table, each.table.examine(timeout=args.timeout)) for each in found.tables]
    memory = read_all(find_places(known_directories(args.cache_dir)), only)
    seen = survey_host(
        [*map(namespace_of, memory.entries)], places=memory.places, hidden=memory.hidden, inside=args.inside
    )
    missing = [each for each in known_directories(args.cache_dir)[1:] if not os.path.lexists(each)]
    notes = (*found.notes, *(f"there is no directory {each}, so no cached results in it" for each in missing))
    names = {table.network for _, table, _ in examined}
    names |= {each.entry.attachment.network for each in memory.entries}
    names |= {only} & configured.keys()
    states = []
    for name in sorted(names):
        own = [each for each in examined if each[1].network == name]
        attachments = _judge_attachments(name, [each[1:] for each in own], memory, seen, args.grace)
        by_owner = {each.owner: each for each in attachments}
        tables = tuple(
            JudgedTable(
                kind,
                table,
                examination,
                tuple(_judge_lease(lease, by_owner.get(lease.owner)) for lease in examination.leases),
            )
            for kind, table, examination in own
        )
        states.append(JudgedNetwork(name, configured.get(name), tables, attachments))
    judged = [each.traces for state in states for each in state.attachments]
    matched = {file: None for traces in judged for file in traces.unreadable if file in memory.loose}
    memory = memory._replace(unreadable=(*memory.unreadable, *matched))
    return HostState(tuple(states), tuple(problems), notes, found.unknown, memory, seen)


def _judge_attachments(
    network: str,
    tables: Iterable[tuple[LeaseTable, Examination]],
    memory: Memory,
    seen: Survey,
    grace: float,
) -> tuple[JudgedAttachment, ...]:
    """Judge each attachment of a network that a lease or a cached result names."""
    held: dict[Attachment, list[HeldLease]] = {}
    traces: dict[Attachment, list[LeaseTrace]] = {}
    holders: dict[IPAddress, Owner] = {}
    for table, examination in tables:
        for lease in examination.leases:
            holders[lease.address] = lease.owner
            if lease.owner.container_id:
                attachment = Attachment(network, *lease.owner)
                held.setdefault(attachment, []).append(HeldLease(table, lease))
                traces.setdefault(attachment, []).append(_trace(lease, examination))
    entries = [each for each in memory.entries if each.entry.attachment.network == network]
    files: dict[str, list[Unreadable]] = {}
    for file in (*memory.unreadable, *memory.loose):
        files.setdefault(os.path.basename(file.path), []).append(file)
    judged = []
    for attachment in sorted({*held, *(each.entry.attachment for each in entries)}):
        own = tuple(each for each in entries if _covers(attachment, each.entry.attachment))
        # Only the file name of a record without interface has to be searched for.
        near = files.get("-".join(attachment), ()) if attachment.ifname else (*memory.unreadable, *memory.loose)
        known = {each.path for each in own}
        unreadable = tuple(each for each in near if each.path not in known and each.may_be_of(attachment))
        found = Traces(attachment, tuple(traces.get(attachment, ())), own, unreadable)
        found = found._replace(passed_on=find_passed_on(found, holders))
        judged.append(JudgedAttachment(found, tuple(held.get(attachment, ())), assess(found, seen, grace=grace)))
    living = {each.owner.container_id: each.owner.ifname for each in judged if each.verdict.state == "alive"}
    return tuple(_keep_with_container(each, living) for each in judged)


def _keep_with_container(each: JudgedAttachment, living: Mapping[str, str]) -> JudgedAttachment:
    """Keep what is dead of a container that lives: some plugins have one object for all its interfaces on a network.

    Args:
        each: The attachment.
        living: An interface that is alive of each container that has one.
    """
    if each.verdict.state != "dead" or each.owner.container_id not in living:
        return each
    interface = living[each.owner.container_id]
    why = "its container lives" + (f": its interface {interface} does" if interface else "")
    return each._replace(verdict=Liveness("unknown", why, "doubt"))


def find_passed_on(traces: Traces, holders: Mapping[IPAddress, Owner]) -> tuple[tuple[IPAddress, str], ...]:
    """Find the addresses in an attachment's cached results that another container has leased, each with its owner.

    Args:
        traces: The attachment.
        holders: The owners of all leases of the network.
    """
    addresses = dict.fromkeys(address for entry in traces.entries for address in addresses_of(entry))
    held = [(each, holders[each]) for each in addresses if each in holders]
    ours = ("", traces.attachment.container_id)  # a lease may name no owner
    return tuple((address, str(owner)) for address, owner in held if owner.container_id not in ours)


def _trace(lease: LeaseRecord, examination: Examination) -> LeaseTrace:
    """Make the trace of a lease. With ``reclaimEarlierBoots`` off, the end of a boot ends no lease."""
    boot = "unknown" if lease.boot == "earlier" and not examination.reclaims else lease.boot
    return LeaseTrace(lease.address, lease.age, lease.written, boot, not examination.exclusive)


def _covers(attachment: Attachment, other: Attachment) -> bool:
    """Return True if a record of ``attachment`` covers ``other``. Without interface it covers the whole container."""
    return attachment == other or (not attachment.ifname and attachment.container_id == other.container_id)


def _judge_lease(lease: LeaseRecord, judgement: JudgedAttachment | None) -> JudgedLease:
    if judgement is None:
        return JudgedLease(lease, "unknown", "the lease names no owner", "")
    path = next(filter(None, map(namespace_of, judgement.traces.entries)), "")
    return JudgedLease(lease, judgement.verdict.state, judgement.verdict.why, path)


def count_used(pool: Pool, leases: Sequence[JudgedLease]) -> int:
    """Return how many addresses of a pool are leased."""
    return sum(1 for each in leases if pool.range_set.holds(each.lease.address))
