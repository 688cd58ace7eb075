"""Host ports by nftables: a table for each IP version, in which ports are looked up in maps.

However many containers there are, a packet is looked up twice, in maps of ports of one address and of ports of all, and
an ADD changes nothing but elements, by netlink. ``nft`` is needed only where the table is not there, or not as it
should be.

Each attachment has a chain that no packet gets to. Its rules' comments record the owner and the ports, from which the
elements follow. So DEL knows what to delete without being told; GC reads all such chains. Each element has its owner's
mark as comment, too: an element of another owner is never deleted.

A port can be held once. When several networks of one container ask for the same port, the first has it, and the others
wait in the set ``spares``: a DEL gives the port to one of them, in the same transaction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from ipaddress import ip_address, ip_interface

from ..._light import NamedTuple
from ..._signals import HeldBack
from ...errors import IOFailureError, run_all
from ...spec.addresses import IPNetwork
from ...spec.names import Attachment, short_hash
from .. import lock
from . import nft, rules, sets
from .hostport import CONNECTION_MARK, PROTOCOLS, HostPort, Options, is_same_container, taken
from .nft import NftTable
from .sets import Change, Element, Shape, concat

_NAME = "cni_portmap"
_FAMILIES = {4: "ip", 6: "ip6"}
# Any change of the ruleset in between makes a deletion look again.
_ATTEMPTS = 100
_PATIENCE = 5.0
_OWNER = "owner-"
_LOCALHOST = {4: ("127.0.0.0/8",), 6: ()}


class _Record(NamedTuple):
    """One port as the chain of its attachment records it."""

    port: HostPort
    snat: bool
    masq_all: bool
    ending: str  # of the names of the maps: that of the conditions

    def __str__(self) -> str:
        where = self.port.host_ip or "*"
        how = "all" if self.masq_all else "snat" if self.snat else "plain"
        target, target_port = self.port.target, self.port.target_port
        return f"{self.port.protocol} {where} {self.port.port} {target} {target_port} {how} {self.ending}".rstrip()


def _read_record(comment: str) -> _Record | None:
    words = comment.split(" ")
    try:
        protocol, where, port, target, target_port, how, *ending = words
        host_ip = None if where == "*" else ip_address(where)
        host_port = HostPort(protocol, int(port), host_ip, ip_interface(target), int(target_port))
    except ValueError:
        return None
    return _Record(host_port, how != "plain", how == "all", "".join(ending)) if protocol in PROTOCOLS else None


# --- elements ---------------------------------------------------------------------------------------------------------


def _table(version: int) -> NftTable:
    return NftTable(_FAMILIES[version], _NAME)


def _holding(record: _Record, comment: str = "") -> Element:
    """Return the element by which an attachment holds a port."""
    port = record.port
    where = concat(bytes([PROTOCOLS[port.protocol]]), port.port.to_bytes(2, "big"))
    data = concat(port.target.ip.packed, port.target_port.to_bytes(2, "big"))
    if port.host_ip is None:
        return Element(f"ports{record.ending}", where, data=data, comment=comment)
    return Element(f"addresses{record.ending}", port.host_ip.packed + where, data=data, comment=comment)


def _spare(record: _Record, comment: str = "") -> Element:
    """Return the element by which an attachment waits for a port that its container holds by another."""
    held = _holding(record)
    any_address = b"" if record.port.host_ip is not None else bytes(len(record.port.target.ip.packed))
    return Element(f"spares{record.ending}", any_address + held.key + held.data, comment=comment)


def _surroundings(record: _Record, comment: str = "") -> list[Element]:
    """Return the elements by which connections to the container are accepted, and masqueraded where they must be."""
    port = record.port
    to = port.target.ip.packed + concat(bytes([PROTOCOLS[port.protocol]]), port.target_port.to_bytes(2, "big"))
    found = [Element("published", to, comment=comment)]
    for each in _sources(record):
        found.append(Element(f"hairpins{each.prefixlen}", each.network_address.packed + to, comment=comment))
    return found


def _sources(record: _Record) -> list[IPNetwork]:
    """List the networks from which connections to a port are masqueraded."""
    target = record.port.target
    if not record.snat:
        return []
    if record.masq_all:
        return [ip_interface(f"{target.ip}/0").network]
    return [target.network, *(ip_interface(each).network for each in _LOCALHOST[target.version])]


def _prefixlens(records: Iterable[_Record]) -> list[int]:
    return sorted({each.prefixlen for record in records for each in _sources(record)})


def _everywhere(record: _Record) -> Element:
    """Return the element that would hold a port for all addresses of the host."""
    return _holding(record._replace(port=record.port._replace(host_ip=None)))


def _find_holders(records: Sequence[_Record], table: NftTable) -> list[list[Element]]:
    """Find for each record the elements that hold its port, or one that overlaps."""
    found = {each[:2]: each for each in sets.find(table, map(_holding, records))}
    return [
        [*(found[name] for name in [_holding(record)[:2]] if name in found), *overlapping]
        for record, overlapping in zip(records, _find_overlapping(records, table), strict=True)
    ]


def _find_overlapping(records: Sequence[_Record], table: NftTable) -> list[list[Element]]:
    """Find for a port of all addresses those of single ones, and for a port of a single address that of all."""
    single = [each for each in records if each.port.host_ip is not None]
    everywhere = {each[:2]: each for each in (sets.find(table, map(_everywhere, single)) if single else ())}
    numbers: dict[str, list[bytes]] = {}
    for each in records:
        if each.port.host_ip is None:
            numbers.setdefault(f"addresses{each.ending}", []).append(_holding(each).key)
    listed = [each for where, endings in numbers.items() for each in sets.list_all(table, where, endings)]
    found = []
    for record in records:
        if record.port.host_ip is None:
            found.append([each for each in listed if each.key.endswith(_holding(record).key)])
        else:
            name = _everywhere(record)[:2]
            found.append([everywhere[name]] if name in everywhere else [])
    return found


# --- the table --------------------------------------------------------------------------------------------------------


def _ending(conditions: Iterable[str]) -> str:
    """Return the ending of the names of the maps for ports under these conditions."""
    words = tuple(conditions)
    return f"_{short_hash(*words, digits=12)}" if words else ""


def _script(version: int, conditions: Sequence[str], prefixlens: Iterable[int]) -> list[str]:
    """Return the commands that make the table, and put its rules right."""
    family, where = _FAMILIES[version], f"{_FAMILIES[version]} {_NAME}"
    address, ending = f"ipv{version}_addr", _ending(conditions)
    port = "inet_proto . inet_service"
    to = f"{family} daddr . meta l4proto . th dport"
    mark = f"{CONNECTION_MARK:#x}"
    chain = f"translate{ending}"
    commands = [
        f"add table {where}",
        f"add set {where} published {{ type {address} . {port} ; }}",
        # A set for each length of prefix: ranges would take the kernel longer the more there are.
        *(f"add set {where} hairpins{each} {{ type {address} . {address} . {port} ; }}" for each in prefixlens),
        # After the chains of iptables and kube-proxy: a rule of the administrator's wins.
        f"add chain {where} prerouting {{ type nat hook prerouting priority -99 ; policy accept ; }}",
        f"add chain {where} output {{ type nat hook output priority -99 ; policy accept ; }}",
        f"add chain {where} postrouting {{ type nat hook postrouting priority 99 ; policy accept ; }}",
        f"add chain {where} forward {{ type filter hook forward priority -1 ; policy accept ; }}",
        f"add chain {where} conditional",
        *(f"flush chain {where} {each}" for each in ("prerouting", "output", "forward")),
    ]
    for each in dict.fromkeys(("translate", chain)):
        own = each.removeprefix("translate")
        said = f"{' '.join(conditions)} " if own else ""
        commands += [
            f"add map {where} ports{own} {{ type {port} : {address} . inet_service ; }}",
            f"add map {where} addresses{own} {{ type {address} . {port} : {address} . inet_service ; }}",
            f"add set {where} spares{own} {{ type {address} . {port} . {address} . inet_service ; }}",
            f"add chain {where} {each}",
            f"flush chain {where} {each}",
            f"add rule {where} {each} {said}dnat {family} to {to} map @addresses{own}",
            f"add rule {where} {each} {said}dnat {family} to meta l4proto . th dport map @ports{own}",
        ]
    for each in ("prerouting", "output"):
        # Only what is sent to the host itself: CVE-2025-67499.
        commands.append(f"add rule {where} {each} fib daddr type local jump conditional")
        commands.append(f"add rule {where} {each} fib daddr type local jump translate")
    for length in prefixlens:
        mask = ip_interface(f"{'0.0.0.0' if version == 4 else '::'}/{length}").netmask
        commands.append(
            f"add rule {where} postrouting ct status dnat {family} saddr and {mask} . {to} @hairpins{length} masquerade"
        )
    commands.append(
        f"add rule {where} forward ct direction original ct status dnat ct mark and {mark} == 0 {to} @published"
        f" ct mark set ct mark or {mark}"
    )
    return commands


_LOCAL = (2).to_bytes(4, sys.byteorder)  # RTN_LOCAL
_TO_LOCAL = tuple(Shape(f"jump {chain}", "fib", compared=_LOCAL) for chain in ("conditional", "translate"))
_SHAPES = {
    "prerouting": _TO_LOCAL,
    "output": _TO_LOCAL,
    "forward": (Shape("", "ct", named="published"),),
}


def _missing(version: int, conditions: Sequence[str], prefixlens: Sequence[int]) -> tuple[str, list[int]]:
    """Return what is missing of the table, for people, and the lengths of prefixes for which no rule masquerades."""
    table, ending = _table(version), _ending(conditions)
    expected = {**_SHAPES, "translate": _translating("")}
    # These chains were made with the table, before those of attachments.
    there = table.list_leading(*expected, *(["postrouting"] if prefixlens else []))
    if ending:
        expected[f"translate{ending}"] = _translating(ending)
        there += table.list_rules(f"translate{ending}")
    lacking = [
        each
        for each in prefixlens
        if not any(
            rule.chain == "postrouting" and Shape("masquerade", named=f"hairpins{each}").is_like(rule) for rule in there
        )
    ]
    for chain, shapes in expected.items():
        own = [rule for rule in there if rule.chain == chain]
        if len(own) != len(shapes) or not all(map(Shape.is_like, shapes, own)):
            return f"rules of chain {chain}", lacking
    return "the rule for the conditions" if ending and not _is_conditional(table, ending) else "", lacking


def _translating(ending: str) -> tuple[Shape, ...]:
    return tuple(Shape("", "nat", f"{kind}{ending}") for kind in ("addresses", "ports"))


def _is_conditional(table: NftTable, ending: str) -> bool:
    return any(rule.target == f"translate{ending}" for rule in table.list_rules("conditional"))


def _ensure(version: int, conditions: Sequence[str], prefixlens: Sequence[int]) -> None:
    """Make what is missing of the table."""
    if not any(_missing(version, conditions, prefixlens)):
        return
    with lock.exclusive(_PATIENCE):  # or two processes would add the same rules
        _, lacking = _missing(version, conditions, prefixlens)
        commands = _script(version, conditions, lacking)
        ending = _ending(conditions)
        if ending and not _is_conditional(_table(version), ending):
            commands.append(f"add rule {_FAMILIES[version]} {_NAME} conditional jump translate{ending}")
        nft.commit(commands)


# --- apply, check, delete, gc -----------------------------------------------------------------------------------------


def _records(ports: Iterable[HostPort], options: Options) -> list[_Record]:
    ending = _ending(options.conditions)
    return [_Record(port, options.snat, options.masq_all, ending) for port in dict.fromkeys(ports)]


def apply(
    owner: Attachment,
    version: int,
    ports: Collection[HostPort],
    options: Options,
    undo: rules.Undo = rules.no_undo,
) -> list[HostPort]:
    """Publish ports of one IP version, in place of those that an earlier ADD of the attachment published.

    Args:
        owner: The attachment.
        version: 4 or 6.
        ports: The ports.
        options: How they lead to the container.
        undo: Function that remembers the inverse. That publishes what the earlier ADD did, and returns the ports that
            it withdraws.

    Returns:
        The ports that the earlier ADD published.

    Raises:
        TryAgainLaterError: (11) Another container has one of them.
        IOFailureError: (5) The kernel or ``nft`` refused.
        PluginNotAvailableError: (50) ``nft`` is needed, and not installed.
    """
    table, records = _table(version), _records(ports, options)
    ensure = partial(_ensure, version, options.conditions, _prefixlens(records))
    ensure()
    # Packets look for a port of one address first: adding it would take connections from the container that has all.
    for record, holder in _find_rivals(records, table, owner):
        raise taken(record.port, holder.comment)
    before = _exchange(table, owner, records, undo, ensure)
    # A port of one address and that of all are two elements: two processes may have added them at the same time.
    for record, holder in _find_rivals(records, table, owner):
        if _was_before(table, record, holder, owner):
            _take_back(table, owner, before)
            raise taken(record.port, holder.comment)
    return [each.port for each in before]


def _exchange(
    table: NftTable,
    owner: Attachment,
    records: Sequence[_Record],
    undo: rules.Undo,
    ensure: Callable[[], object] = lambda: None,
) -> list[_Record]:
    """Publish what records say, in place of what an attachment has published; return the records of that.

    Before each new attempt, `ensure` makes what is missing of the table: `nft flush ruleset` may have deleted it.
    """
    comment, chain = rules.mark(owner, nft.COMMENT_MAX - 1), _chain(owner)
    key, noted = _key(comment), ((chain, (comment, *map(str, records))),)
    # Mostly all of it is new, and one transaction does it. The kernel refuses what exists already.
    fresh = Change(added=_elements(records, map(partial(_holding, comment=comment), records)), records=noted)
    with HeldBack():
        done = sets.carry_out(table, fresh, 0)
        if done:
            undo(_take_back, table, owner, [])
    before: list[_Record] | None = [] if done else None
    for _ in range(_ATTEMPTS):
        if done:
            break
        ensure()
        generation = sets.read_generation()
        old = _owned(table, chain, key)
        added = _elements(records, _choose(records, table, owner, comment))
        # The attachment that had the container's address before is gone: an address is one container's at a time.
        stale = [each for each in sets.find(table, added) if each.where.startswith(("published", "hairpins"))]
        deleted = {each[:2]: each for each in (*old.elements, *stale)}
        change = Change(
            deleted=tuple(deleted.values()), forgotten=(chain,) if old.chain else (), added=added, records=noted
        )
        with HeldBack():
            done = sets.carry_out(table, change, generation)
            if done:
                undo(_take_back, table, owner, old.records)
        if done and before is None:
            before = old.records
        done = done and _are_held(records, table)
    if not done or before is None:
        raise rules.changed_too_often(table, _ATTEMPTS)
    return before


def _take_back(table: NftTable, owner: Attachment, before: Sequence[_Record]) -> list[HostPort]:
    """Restore what an attachment had published before, delete what it has now, and return the deleted ports."""
    if not before:
        return _delete(table, _chain(owner), _key(rules.mark(owner)))
    return [record.port for record in _exchange(table, owner, before, rules.no_undo)]


def _find_rivals(records: Sequence[_Record], table: NftTable, owner: Attachment) -> list[tuple[_Record, Element]]:
    """Find the ports of other containers that overlap with these, but are not the same."""
    key = _key(rules.mark(owner))
    return [
        (record, holder)
        for record, overlapping in zip(records, _find_overlapping(records, table), strict=True)
        for holder in overlapping
        if not holder.comment.startswith(key) and not is_same_container(holder.comment, owner, nft.COMMENT_MAX - 1)
    ]


def _was_before(table: NftTable, record: _Record, holder: Element, owner: Attachment) -> bool:
    """Return True if a rival had its port before the owner. Of two ADDs at the same time, the first gets the port.

    The kernel numbers the rules of a table in the order of their transactions. An attachment's elements and the rules
    that record it are of one transaction.
    """
    key = _key(holder.comment)
    theirs = [rule.handle for rule in table.list_rules("", key) if rule.comment.startswith(key)]
    if theirs:
        return min(theirs) < min((rule.handle for rule in table.list_rules(_chain(owner))), default=0)
    # It has withdrawn since, or nothing records it.
    return holder in _find_overlapping([record], table)[0]


def _elements(records: Sequence[_Record], holding: Iterable[Element]) -> tuple[Element, ...]:
    """Return all elements of records, each once: those that hold the ports, and those around them."""
    found: dict[tuple[str, bytes], Element] = {}
    for record, element in zip(records, holding, strict=True):
        for each in (element, *_surroundings(record, element.comment)):
            found.setdefault(each[:2], each)
    return tuple(found.values())


def check_holders(owner: Attachment, version: int, ports: Iterable[HostPort], *, siblings: bool = False) -> None:
    """Refuse ports that another container has.

    Args:
        owner: The attachment.
        version: 4 or 6.
        ports: The ports.
        siblings: Refuse also those of another attachment of the owner's container.

    Raises:
        TryAgainLaterError: (11) Another container has one of them.
    """
    table = _table(version)
    if table.has_chain("translate"):
        mark, records = rules.mark(owner, nft.COMMENT_MAX - 1), _records(ports, Options())
        for record, holders in zip(records, _find_holders(records, table) if siblings else (), strict=siblings):
            for holder in holders:
                if not holder.comment.startswith(_key(mark)):
                    raise taken(record.port, holder.comment)
        _choose(records, table, owner, mark)


def _choose(records: Sequence[_Record], table: NftTable, owner: Attachment, comment: str) -> list[Element]:
    """Return for each record the element that holds its port, or that waits for it."""
    chosen = []
    for record, holders in zip(records, _find_holders(records, table), strict=True):
        element = wanted = _holding(record, comment)
        for holder in holders:
            if holder.comment.startswith(_key(comment)):
                continue
            if not is_same_container(holder.comment, owner, nft.COMMENT_MAX - 1):
                raise taken(record.port, holder.comment)
            if holder[:2] == wanted[:2]:
                element = _spare(record, comment)
        chosen.append(element)
    return chosen


def _are_held(records: Iterable[_Record], table: NftTable) -> bool:
    """Return True if each port has a holder. A port has none if the container that this one waited for has gone."""
    wanted = {_holding(record) for record in records}
    return len(sets.find(table, wanted)) == len({each[:2] for each in wanted})


def check(owner: Attachment, version: int, ports: Collection[HostPort], options: Options) -> None:
    """Verify that the ports are published.

    Args:
        owner: The attachment.
        version: 4 or 6.
        ports: The ports of that IP version.
        options: How they lead to the container.

    Raises:
        IOFailureError: (5) One is not, or a chain or set of the table is missing or changed.
    """
    table, records, key = _table(version), _records(ports, options), _key(rules.mark(owner))
    missing, lacking = _missing(version, options.conditions, _prefixlens(records))
    if missing := missing or ("rules of chain postrouting" if lacking else ""):
        raise IOFailureError(f"{table}: {missing} are missing or were changed")
    asked = [element for each in records for element in (_holding(each), _spare(each), *_surroundings(each))]
    there = {each[:2]: each for each in sets.find(table, asked)}
    for record in records:
        wanted = _holding(record)
        holder, spare = there.get(wanted[:2]), there.get(_spare(record)[:2])
        waits = spare is not None and spare.comment.startswith(key)
        same = holder is not None and (
            (holder.comment.startswith(key) and holder.data == wanted.data)
            or (waits and is_same_container(holder.comment, owner, nft.COMMENT_MAX - 1))
        )
        if not same or any(each[:2] not in there for each in _surroundings(record)):
            raise IOFailureError(f"{owner} has no {record.port} that leads to {record.port.destination} in {table}")


class _Owned(NamedTuple):
    chain: bool
    records: list[_Record]
    elements: list[Element]


def _key(mark: str) -> str:
    """Return the hashes of a mark, by which its owner is known however long the names are."""
    key, comma, _ = mark.partition(",")
    return key + comma


def _chain(owner: Attachment) -> str:
    return f"{_OWNER}{short_hash(*owner, digits=32)}"


def _owned(table: NftTable, chain: str, key: str) -> _Owned:
    """Find what an attachment has, by the records in its chain."""
    comments = [rule.comment for rule in table.list_rules(chain)]
    records = [record for each in comments if (record := _read_record(each)) is not None]
    wanted: dict[Element, None] = {}
    for record in records:
        wanted |= dict.fromkeys((_holding(record), _spare(record), *_surroundings(record)))
    elements = [each for each in sets.find(table, wanted) if each.comment.startswith(key)] if wanted else []
    return _Owned(bool(comments) or table.has_chain(chain), records, elements)


def delete(owner: Attachment, version: int, undo: rules.Undo = rules.no_undo) -> list[HostPort]:
    """Take back what an attachment has published. Absence is fine.

    Args:
        owner: The attachment.
        version: 4 or 6.
        undo: Function that remembers the inverse, as for :func:`apply`.

    Returns:
        The ports that it had.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    table = _table(version)
    return _delete(table, _chain(owner), _key(rules.mark(owner)), partial(undo, _take_back, table, owner))


def _delete(
    table: NftTable, chain: str, key: str, undo: Callable[[list[_Record]], object] = lambda _: None
) -> list[HostPort]:
    for _ in range(_ATTEMPTS):
        generation = sets.read_generation()
        old = _owned(table, chain, key)
        if not old.chain:
            return []
        with HeldBack():
            if sets.carry_out(table, _hand_on(table, chain, key, old), generation):
                undo(old.records)
                return [record.port for record in old.records]
    raise rules.changed_too_often(table, _ATTEMPTS)


def _hand_on(table: NftTable, chain: str, key: str, old: _Owned) -> Change:
    """Return the change that deletes what an attachment has, and gives its ports to those that wait for them."""
    deleted, added = list(old.elements), []
    for record in old.records:
        held = _holding(record)
        if not any(each[:2] == held[:2] for each in old.elements):
            continue
        start = _spare(record).key[: -len(held.data)]
        for spare in sets.list_all(table, f"spares{record.ending}"):
            if spare.key.startswith(start) and not spare.comment.startswith(key):
                deleted.append(spare)
                added.append(held._replace(data=spare.key[len(start) :], comment=spare.comment))
                break
    return Change(deleted=tuple(deleted), forgotten=(chain,), added=tuple(added))


def gc(network: str, valid: Collection[Attachment]) -> list[HostPort]:
    """Take back what a network's attachments that are not valid have published.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Returns:
        The ports that they had.

    Raises:
        CNIError: The kernel refused; the rest was cleaned nevertheless.
    """
    kept = {_chain(owner) for owner in valid}
    network_key = f"{short_hash(network, digits=16)}-"
    gone: list[HostPort] = []

    def clean(table: NftTable, chain: str, key: str) -> None:
        gone.extend(_delete(table, chain, key))

    stale = [
        (_table(version), rule.chain, _key(rule.comment))
        for version in _FAMILIES
        for rule in _table(version).list_rules("", network_key)
        if rule.chain.startswith(_OWNER) and rule.comment.startswith(network_key) and rule.chain not in kept
    ]
    run_all(*(partial(clean, *each) for each in stale))
    return gone
