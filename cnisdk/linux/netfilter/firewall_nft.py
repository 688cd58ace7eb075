"""Accept what the host forwards for containers, by nftables: addresses and bridges are looked up in sets.

However many containers there are, a packet takes the same look-ups, and an ADD changes nothing but elements, by
netlink. ``nft`` is needed only where a table is not there, or not as it should be.

A verdict of one table cannot keep the chains of another from dropping a packet. So table ``inet cni_firewall`` sets a
bit of the packet's mark, and a rule in the chains of iptables, where those are, accepts what has the bit: see
:mod:`.firewall_iptables`. After those chains, the table clears the bit. A packet that the table drops, because of a
policy between bridges, no other table can accept.

Table ``bridge cni_firewall`` keeps isolated containers from the others on their bridge. It also filters frames that
stay on a bridge and that the module br_netfilter does not show to iptables and other tables.

Each attachment has a chain in each table that no packet gets to. Its rules' comments record the owner, its addresses or
ports, and the policy of its bridge. So DEL knows what to delete without being told; GC reads all such chains. The
element of an address or port has its owner's mark as comment, too. So the DEL of a container that is gone leaves alone
the element that the next container with its address has taken over. If by mistake both live and the next one goes
first, it gives the element back: an attachment that has taken over an element has a record of that, and its DEL looks
for other records of the address. The elements of a bridge are deleted with its last record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from ipaddress import ip_address

from ..._light import NamedTuple
from ..._signals import HeldBack
from ...errors import IOFailureError, run_all
from ...spec.addresses import IPAddress
from ...spec.names import Attachment, short_hash
from .. import lock
from . import nft, rules, sets
from .firewall_iptables import FORWARD_MARK
from .ingress import POLICIES, Ingress, read_ingress
from .nft import NftTable
from .sets import Change, Element, Shape

_OWNER = "owner-"
_SHARED = "shared"
# Any change of the ruleset in between makes a deletion look again.
_ATTEMPTS = 100
_PATIENCE = 5.0
_SETS = {4: "addresses4", 6: "addresses6"}
_KEYWORDS = {4: "ip", 6: "ip6"}


# --- the tables -------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """A table with its sets and chains: each chain as ``nft`` is given it, and as the kernel shows it afterwards."""

    table: NftTable
    sets: Mapping[str, str]
    chains: Mapping[str, tuple[str, Sequence[tuple[str, Shape]]]]

    def script(self) -> list[str]:
        """Return the commands that make the table, and put its rules right."""
        where = f"{self.table.family} {self.table.name}"
        commands = [f"add table {where}"]
        commands += [f"add set {where} {name} {{ type {kind} ; }}" for name, kind in self.sets.items()]
        for chain, (priority, written) in self.chains.items():
            hook = f"type filter hook forward priority {priority} ; policy accept ;"
            commands += [f"add chain {where} {chain} {{ {hook} }}", f"flush chain {where} {chain}"]
            commands += [f"add rule {where} {chain} {text}" for text, _ in written]
        return commands

    def missing_chain(self) -> str:
        """Return the chain whose rules are missing or were changed; empty if there is none."""
        for chain, (_, written) in self.chains.items():
            there = self.table.list_rules(chain)
            shapes = [shape for _, shape in written]
            if len(there) != len(shapes) or not all(map(Shape.is_like, shapes, there)):
                return chain
        return ""


_MARK, _REST = f"{FORWARD_MARK:#x}", f"{0xFFFFFFFF ^ FORWARD_MARK:#x}"
_SET_MARK = f"meta mark set meta mark or {_MARK}"
_INET = _Place(
    NftTable("inet", "cni_firewall"),
    {
        "addresses4": "ipv4_addr",
        "addresses6": "ipv6_addr",
        "bridges": "ifname",
        "same_bridge": "ifname . ifname",
        "isolated": "ifname . ifname",
    },
    {
        "isolation": (
            "-1",
            (
                ("iifname . oifname @isolated drop", Shape("drop", "lookup", "isolated")),
                ("iifname . oifname @same_bridge accept", Shape("accept", "lookup", "same_bridge")),
                ("iifname @bridges oifname @bridges drop", Shape("drop", "lookup", "bridges")),
            ),
        ),
        # Before and after the chains of iptables, whose priority is 0.
        "marking": (
            "-1",
            tuple(
                rule
                for version, name in _SETS.items()
                for rule in (
                    (f"{_KEYWORDS[version]} saddr @{name} {_SET_MARK}", Shape("", "lookup", name)),
                    (
                        f"{_KEYWORDS[version]} daddr @{name} ct state established,related {_SET_MARK}",
                        Shape("", "ct", name),
                    ),
                )
            ),
        ),
        "unmarking": ("1", ((f"meta mark and {_MARK} == {_MARK} meta mark set meta mark and {_REST}", Shape("")),)),
    },
)
_BRIDGE = _Place(
    NftTable("bridge", "cni_firewall"),
    {"isolated": "ifname"},
    {
        "isolation": (
            "0",
            tuple((f"{which} @isolated drop", Shape("drop", "lookup", "isolated")) for which in ("iifname", "oifname")),
        )
    },
)
_PLACES = (_INET, _BRIDGE)


def _ensure(places: Collection[_Place]) -> None:
    if any(place.missing_chain() for place in places):
        with lock.exclusive(_PATIENCE):  # or two processes would add the same rules
            nft.commit([command for place in places if place.missing_chain() for command in place.script()])


# --- apply, check, delete, gc -----------------------------------------------------------------------------------------


def apply(
    owner: Attachment,
    addresses: Collection[IPAddress],
    ingress: Ingress | None = None,
    ports: Iterable[str] = (),
    undo: rules.Undo = rules.no_undo,
) -> None:
    """Accept what is forwarded for addresses, in place of those that an earlier ADD of the attachment had.

    Args:
        owner: The attachment.
        addresses: Its addresses; without any, nothing is made but the policy.
        ingress: The policy for its bridge, if it has one.
        ports: Names of the host's ends of its links, to be kept from the other ports of their bridges.
        undo: Function that remembers the inverse. That gives the attachment what the earlier ADD had.

    Raises:
        IOFailureError: (5) The kernel or ``nft`` refused.
        PluginNotAvailableError: (50) ``nft`` is needed, and not installed.
    """
    bridge = () if ingress is None else (str(ingress),)
    forwarded = _wanted(owner, {str(each): _element(each) for each in addresses}, bridge)
    isolated = _wanted(owner, {f"port {each}": _port(each) for each in ports})
    forwarded = forwarded._replace(yields=ingress is not None and ingress.yields)
    parts = ((_INET, forwarded), (_BRIDGE, isolated))
    _ensure([place for place, wanted in parts if wanted.records])
    for place, wanted in parts:
        _settle(place, wanted, undo)


class _Wanted(NamedTuple):
    """Chain, records and elements that an attachment is to have in a table; a policy is among the records.

    The policy may yield to another: see :class:`.Ingress`.
    """

    chain: str
    records: tuple[str, ...] = ()
    elements: tuple[Element, ...] = ()
    yields: bool = False

    @property
    def ingress(self) -> Ingress | None:
        """The policy for a bridge that is among the records."""
        return next((found for each in self.records[1:] if (found := read_ingress(each)) is not None), None)

    def noted(self, shared: bool) -> tuple[str, ...]:
        """Return the records; the one that an element was taken over comes right after the mark."""
        return (*self.records[:1], _SHARED, *self.records[1:]) if shared else self.records


def _wanted(owner: Attachment, elements: Mapping[str, Element], bridge: Sequence[str] = ()) -> _Wanted:
    if not elements and not bridge:
        return _Wanted(_chain(owner))
    comment = rules.mark(owner, nft.COMMENT_MAX - 1)
    own = tuple(each._replace(comment=comment) for each in elements.values())
    return _Wanted(_chain(owner), (comment, *elements, *bridge), own)


class _Owned(NamedTuple):
    """Chain, records and elements of an attachment in a table, and the bridges for which it asks for a policy.

    It is shared if an element was taken over, so that another attachment may have a record of it.
    """

    chain: bool
    records: tuple[str, ...]
    elements: list[Element]
    bridges: set[str]
    shared: bool


def _settle(place: _Place, wanted: _Wanted, undo: rules.Undo = rules.no_undo) -> None:
    """Give an attachment the wanted records and elements, and delete what it had. The inverse restores that."""
    for attempt in range(_ATTEMPTS):
        if attempt and wanted.records:
            _ensure([place])  # `nft flush ruleset` may have deleted it since
        has_policy = wanted.ingress is not None or bool(_owned(place, wanted.chain).bridges)
        # Another process may delete the elements of a bridge when it finds no record.
        with lock.exclusive(_PATIENCE) if has_policy else nullcontext():
            generation = sets.read_generation()
            old = _owned(place, wanted.chain)
            unneeded, lacking = _compare_policy(place, wanted, old.bridges)
            # The attachment that had the container's address before is gone: an address is one container's at a time.
            # If by mistake it is not gone, it gets the element back when this attachment goes.
            taken = sets.find(place.table, wanted.elements)
            shared = old.shared or any(each not in old.elements for each in taken)
            kept = {each[:2] for each in wanted.elements}
            going = [each for each in old.elements if each[:2] not in kept]
            deleted = [*old.elements, *taken, *unneeded]
            change = Change(
                deleted=tuple({each[:2]: each for each in deleted}.values()),
                forgotten=(wanted.chain,) if old.chain else (),
                added=(*wanted.elements, *lacking, *(_hand_back(place, wanted.chain, going) if old.shared else ())),
                records=((wanted.chain, wanted.noted(shared)),) if wanted.records else (),
            )
            with HeldBack():
                if sets.carry_out(place.table, change, generation):
                    undo(_settle, place, _Wanted(wanted.chain, old.records, tuple(old.elements)))
                    return
    raise rules.changed_too_often(place.table, _ATTEMPTS)


def _hand_back(place: _Place, chain: str, going: Collection[Element]) -> list[Element]:
    """Return the elements of which another attachment has a record, too, with that one as their owner."""
    wanted = {each[:2] for each in going}
    marks: dict[str, str] = {}
    shared: set[str] = set()
    heirs: dict[tuple[str, bytes], str] = {}
    for rule in place.table.list_rules("") if going else ():
        if rule.chain == chain or not rule.chain.startswith(_OWNER):
            continue
        marks.setdefault(rule.chain, rule.comment)
        if rule.comment == _SHARED:
            shared.add(rule.chain)
        element = _read_element(rule.comment)
        # Of all that have a record, only the first does not know that it shares: so it is the last to get the element.
        if element is not None and element[:2] in wanted and (element[:2] not in heirs or rule.chain in shared):
            heirs[element[:2]] = rule.chain
    return [Element(*each, comment=marks[heir]) for each, heir in heirs.items()]


def _compare_policy(place: _Place, wanted: _Wanted, before: Collection[str]) -> tuple[list[Element], list[Element]]:
    """Return the elements of bridges that no attachment needs any more, and those that are lacking."""
    ingress = wanted.ingress
    bridges = {*before}
    if ingress is not None:
        bridges.discard(ingress.bridge)
    bridges = {each for each in bridges if not _is_needed(place, each, wanted.chain)}
    elements = []
    if ingress is not None and not wanted.yields:
        elements = _policy(ingress)
        bridges.add(ingress.bridge)
    there = sets.find(
        place.table, {each for name in bridges for policy in POLICIES[1:] for each in _policy(Ingress(policy, name))}
    )
    present, asked = {each[:2] for each in there}, {each[:2] for each in elements}
    return [each for each in there if each[:2] not in asked], [each for each in elements if each[:2] not in present]


def _is_needed(place: _Place, bridge: str, chain: str) -> bool:
    """Return True if an attachment asks for a policy for a bridge, other than the one of a chain."""

    def asks(rule: nft.Rule) -> bool:
        ingress = read_ingress(rule.comment)
        return ingress is not None and ingress.bridge == bridge and rule.chain != chain

    return place.table.find_rule("", asks, bridge) is not None


def _chain(owner: Attachment) -> str:
    return f"{_OWNER}{short_hash(*owner, digits=32)}"


def _owned(place: _Place, chain: str) -> _Owned:
    """Find what an attachment has, by the records in its chain."""
    comments = [rule.comment for rule in place.table.list_rules(chain)]
    if not comments:
        return _Owned(place.table.has_chain(chain), (), [], set(), False)
    mark, *records = comments
    key, comma, _ = mark.partition(",")
    found = sets.find(place.table, [element for each in records if (element := _read_element(each)) is not None])
    policies = [ingress for each in records if (ingress := read_ingress(each)) is not None]
    return _Owned(
        True,
        tuple(each for each in comments if each != _SHARED),
        [each for each in found if each.comment.startswith(key + comma)],
        {each.bridge for each in policies},
        _SHARED in records,
    )


def _element(address: IPAddress) -> Element:
    return Element(_SETS[address.version], address.packed)


def _port(name: str) -> Element:
    return Element("isolated", _interface(name))


def _policy(ingress: Ingress) -> list[Element]:
    """Return the elements of a bridge under a policy."""
    name = _interface(ingress.bridge)
    return [Element("bridges", name), Element(ingress.policy.replace("-", "_"), name + name)]


def _interface(name: str) -> bytes:
    return name.encode(errors="surrogateescape").ljust(16, b"\0")


def _read_element(record: str) -> Element | None:
    kind, _, name = record.partition(" ")
    if kind == "port":
        return _port(name)
    try:
        return _element(ip_address(record))
    except ValueError:
        return None


def check(owner: Attachment, addresses: Iterable[IPAddress], ingress: Ingress | None = None) -> None:
    """Verify that what is forwarded for addresses is accepted, and the policy.

    Args:
        owner: The attachment.
        addresses: Its addresses, of both IP versions.
        ingress: The policy for its bridge; None for a bridge without one.

    Raises:
        IOFailureError: (5) An element or a rule is missing, or was changed, or is one of another policy.
    """
    _check_rules(_INET)
    for address in addresses:
        _check_has(_INET, owner, str(address))
    if ingress is not None and not ingress.yields:
        for each in _policy_differs(ingress):
            raise IOFailureError(f"{_INET.table}: set {each.where} is not as $.ingressPolicy {ingress.policy} asks for")


def _policy_differs(ingress: Ingress) -> list[Element]:
    """Return the elements of the bridge that are not as a policy asks for."""
    unneeded, lacking = _compare_policy(_INET, _Wanted("", ("", str(ingress))), ())
    return [*unneeded, *lacking]


def is_overruled(owner: Attachment, ingress: Ingress) -> bool:
    """Return True if another policy holds for the bridge, for which another attachment asks.

    Args:
        owner: The attachment.
        ingress: The policy that it asks for.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """

    def overrules(rule: nft.Rule) -> bool:
        other = read_ingress(rule.comment)
        return (
            other is not None
            and other.bridge == ingress.bridge
            and other.policy != ingress.policy
            and rule.chain != _chain(owner)
            and not _policy_differs(other)
        )

    return _INET.table.find_rule("", overrules, ingress.bridge) is not None


def check_isolation(owner: Attachment, ports: Collection[str]) -> None:
    """Verify that ports of bridges are kept from the other ports.

    Args:
        owner: The attachment that the ports are of.
        ports: Names of the ports: the host's ends of its links.

    Raises:
        IOFailureError: (5) One is not.
    """
    if ports:
        _check_rules(_BRIDGE)
    for port in ports:
        _check_has(_BRIDGE, owner, f"port {port}")


def _check_has(place: _Place, owner: Attachment, record: str) -> None:
    """Verify that an element is there, and an attachment's.

    It may have the mark of another attachment, which has taken it over. Because of the record, that one gives it back.
    """
    element = _read_element(record)
    assert element is not None
    recorded = any(rule.comment == record for rule in place.table.list_rules(_chain(owner)))
    if not recorded or not sets.find(place.table, [element]):
        raise IOFailureError(f"{owner} has no element {record} in set {element.where} of {place.table}")


def _check_rules(place: _Place) -> None:
    if missing := place.missing_chain():
        raise IOFailureError(f"{place.table}: rules of chain {missing} are missing or were changed")


def delete(owner: Attachment) -> None:
    """Delete what an attachment has. Absence is fine.

    Raises:
        CNIError: The kernel refused; the rest was deleted nevertheless.
    """
    run_all(*(partial(_settle, place, _Wanted(_chain(owner))) for place in _PLACES))


def gc(network: str, valid: Collection[Attachment]) -> None:
    """Delete what a network's attachments that are not valid have.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        CNIError: The kernel refused; the rest was cleaned nevertheless.
    """
    run_all(
        *(
            partial(_settle, place, _Wanted(chain))
            for place in _PLACES
            for chain in sorted({each.chain for each in rules.list_stale(place.table, "", network, valid)})
            if chain.startswith(_OWNER)
        )
    )
