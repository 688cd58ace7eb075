"""Accept what the host forwards for containers, by iptables, in the layout of the reference.

``FORWARD`` of the filter table jumps to ``CNI-FORWARD``, which asks the administrator's chain first, and then has two
rules for each address of a container: one accepts what it sends, the other the replies to it.

The reference compares these rules with comments and all, so ours have none. Their owners are recorded in chains that no
packet gets to, ``CNI-FORWARD-OWNERS-0`` to ``-f``: one rule for each address of an attachment, with its mark as
comment, all in the chain that a hash of the attachment names. Each ADD adds rules of its own, also where another
attachment's are the same, and DEL deletes as many as it had: so the DEL of a container that is gone leaves alone the
rules of the next one with its address.

A record and its two rules are made in this order, in one transaction, so the kernel numbers them one after the other:
CHECK and DEL find the rules by the number of the record. Only where they are not there is the long chain read.

The record also names the bridge for which the attachment asks for a policy (see :mod:`.ingress_iptables`): as the
interface a packet comes from, and for ``isolated`` as the one it leaves by, too. Where something else accepts packets,
such as firewalld, that is all that a record names, and there are no rules beside it.

The reference deletes rules of ours without their record. The next ADD or DEL of the attachment, or GC, deletes such a
record.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from ipaddress import ip_address

from ...errors import IOFailureError, run_all
from ...spec.addresses import IPAddress
from ...spec.names import Attachment, short_hash
from .. import attributes, lock
from . import base_rules, ingress_iptables, iptables, nft, rules, xt, xt_rules
from .base_rules import IP_FAMILIES, XT_COMMENT_MAX, BaseRule, quote, tables
from .ingress import Ingress
from .nft import NftTable, Rule
from .rules import Table

FORWARD_MARK = 0x1000
"""Bit of a packet's mark by which the nftables backend says that the packet is to be accepted."""

_FORWARD, _PRIVATE = "FORWARD", "CNI-FORWARD"
# Records are in the chain of their attachment, so that a request reads few of them, also a DEL that is told no address.
_OWNERS = [f"CNI-FORWARD-OWNERS-{digit:x}" for digit in range(16)]
_PATIENCE = 5.0
# Addresses, or records, for which single rules are looked for. For more it is faster to read all rules.
_FEW = 20
_META_MARK = "meta 3"
_STATES = "RELATED,ESTABLISHED"


# --- rules ------------------------------------------------------------------------------------------------------------


def _base(table: Table, admin: str, ingress: Ingress | None = None, accepts: bool = True) -> list[BaseRule]:
    """Return the shared rules, with those of a policy, in the order in which they are made."""
    found = _jumps(admin) if accepts else []
    if ingress is not None or (accepts and table.has_chain(ingress_iptables.STAGES[0])):
        found.append(ingress_iptables.jump(_PRIVATE))
    return [*found, *(ingress_iptables.bridge_rules(ingress) if ingress is not None else ())]


def _stages(base: Iterable[BaseRule]) -> tuple[str, ...]:
    """Return the chains of policies if a rule jumps there. They are made with it: another program may flush all."""
    return ingress_iptables.STAGES if any(each.word == ingress_iptables.STAGES[0] for each in base) else ()


def _jumps(admin: str) -> list[BaseRule]:
    return [
        BaseRule(
            "filter",
            _FORWARD,
            f'-m comment --comment "CNI firewall plugin rules" -j {_PRIVATE}',
            lambda rule: rule.target == _PRIVATE and not rule.matches,
            _PRIVATE,
            1,
        ),
        BaseRule(
            "filter",
            _PRIVATE,
            f'-m comment --comment "CNI firewall plugin admin overrides" -j {admin}',
            lambda rule: rule.target == admin and not rule.matches,
            admin,
            1,
        ),
    ]


def _accepting(table: Table, admin: str) -> list[BaseRule]:
    """Return the shared rules of the nftables backend, which marks the packets that this one accepts.

    That rule is the second of its chain: it is found again without reading the many that the iptables backend may add.
    """
    bit, text = FORWARD_MARK.to_bytes(4, sys.byteorder), f"{FORWARD_MARK:#x}/{FORWARD_MARK:#x}"
    marked = nft.match(_META_MARK, 0, bit, bit)
    comment = "CNI firewall: marked by table inet cni_firewall"
    return [
        *_base(table, admin),
        BaseRule(
            "filter",
            _PRIVATE,
            f'-m mark --mark {text} -m comment --comment "{comment}" -j ACCEPT',
            lambda rule: rule.verdict == "accept" and (marked in rule.matches or text in rule.spec),
            comment,
            2,
        ),
    ]


def _texts(address: IPAddress) -> tuple[str, str]:
    """Return the rules of an address: for the replies to it, and for what it sends."""
    return f"-d {address} -m conntrack --ctstate {_STATES} -j ACCEPT", f"-s {address} -j ACCEPT"


def _accepts_source(rule: Rule, address: IPAddress) -> bool:
    return rule.matches == (iptables.match_address(address.version, "-s", str(address)),)


def _accepts_replies(rule: Rule, address: IPAddress) -> bool:
    if rule.matches[:1] != (iptables.match_address(address.version, "-d", str(address)),):
        return False
    if rule.spec:
        return f" {_STATES} " in rule.spec and len(rule.spec.split()) == len(_texts(address)[0].split())
    others = [attributes.read(each.value) for each in rule.matches[1:] if each.what == "match"]
    states = [xt.read_states(attributes.read_text(each[1]), each.get(3, b"")) for each in others]
    return states == [_STATES] and len(rule.matches) == 2


_KINDS = (_accepts_replies, _accepts_source)


def _is_plain(rule: Rule) -> bool:
    return rule.verdict == "accept" and not rule.comment


def _list_accepts(table: Table, addresses: Collection[IPAddress]) -> dict[IPAddress, list[list[Rule]]]:
    """List the rules of addresses: for each those for the replies to it, and those for what it sends."""
    found: dict[IPAddress, list[list[Rule]]] = {each: [[] for _ in _KINDS] for each in addresses}
    packed = {each.packed: each for each in addresses}
    for rule in table.list_rules(_PRIVATE, *_words(table, addresses)) if addresses else ():
        address = packed.get(rule.matches[0].value) if rule.matches else None
        if address is not None and _is_plain(rule):
            for kind, rules_of_kind in zip(_KINDS, found[address], strict=True):
                if kind(rule, address):
                    rules_of_kind.append(rule)
    return found


def _words(table: Table, addresses: Collection[IPAddress]) -> list[str]:
    """Return what a rule about one of these addresses contains, to tell it from most others before it is read."""
    if len(addresses) > _FEW:
        return []
    if isinstance(table, iptables.LegacyTable):
        return list(map(str, addresses))
    return [address.packed.decode(errors="surrogateescape") for address in addresses]


def _find_beside(table: Table, records: Iterable[Rule]) -> dict[Rule, list[Rule]]:
    """Find the rules that were made with records, without reading others: two for each record, if they are there.

    The kernel numbers the rules of a table in the order in which they are made.
    """
    found: dict[Rule, list[Rule]] = {each: [] for each in records}
    if not isinstance(table, NftTable):
        return found
    handles = [each.handle + place for each in found for place in (1, 2)]
    there = {each.handle: each for each in table.find_rules(_PRIVATE, handles)}
    for record, beside in found.items():
        for place, kind in enumerate(_KINDS, 1):
            rule, address = there.get(record.handle + place), _address_of(record)
            if rule is not None and address is not None and _is_plain(rule) and kind(rule, address):
                beside.append(rule)
    return found


# --- records ----------------------------------------------------------------------------------------------------------


def _address_of(record: Rule) -> IPAddress | None:
    return next((ip_address(each.value) for each in record.matches if each.what == "network"), None)


def _addresses_of(records: Iterable[Rule]) -> Counter[IPAddress]:
    return Counter(address for each in records if (address := _address_of(each)) is not None)


def _bridge_of(record: Rule) -> str:
    ingress = _ingress_of(record)
    return ingress.bridge if ingress is not None else ""


def _ingress_of(record: Rule) -> Ingress | None:
    names = {each.what: ingress_iptables.name_of(each) for each in record.matches}
    bridge = names.get(iptables.INTERFACES["-i"])
    if bridge is None:
        return None
    return Ingress("isolated" if iptables.INTERFACES["-o"] in names else "same-bridge", bridge)


def _chain_of(owner: Attachment) -> str:
    return _OWNERS[int(short_hash(*owner, digits=1), 16)]


def _list_records(table: Table, owner: Attachment) -> list[Rule]:
    """List the records of an attachment."""
    return [each for each in table.list_rules(_chain_of(owner), rules.key(owner)) if rules.is_of(each, owner)]


def _list_all(table: Table, *words: str) -> list[Rule]:
    """List all records; only those that contain one of the words."""
    return [record for chain in sorted(table.find_chains(*_OWNERS)) for record in table.list_rules(chain, *words)]


def _list_for(table: Table, addresses: Collection[IPAddress]) -> list[Rule]:
    """List the records of addresses, whosever they are."""
    there = _list_all(table, *_words(table, addresses)) if addresses else []
    return [each for each in there if _address_of(each) in addresses]


def _with_rules(
    table: Table,
    going: list[Rule],
    known: Collection[IPAddress] = (),
    kept: str = "",
    is_used: Callable[[IPAddress], bool] | None = None,
) -> list[Rule]:
    """Return the rules to delete together with some records, and then the records.

    They are the rules that were made with each record. If some of those are not there, then for each address as many of
    its rules as no other record needs. The reference has deleted those of a record, and may have made others since, of
    which no record tells whether they are the same container's or the next one's.

    Args:
        table: The table.
        going: The records that go.
        known: Addresses whose rules go if no record goes.
        kept: Bridge whose policy does not go.
        is_used: Function that tells if another container uses an address: then rules without a record of their own
            stay. It need not be asked where a record keeps some. Without it they stay in any case.
    """
    policies = _list_policies(table, going, kept)
    beside = _find_beside(table, going) if len(going) <= _FEW else {}
    if beside and all(len(each) == len(_KINDS) for each in beside.values()):
        return [*policies, *(rule for each in beside.values() for rule in each), *going]
    found: list[Rule] = []
    wanted = _addresses_of(going) if going else Counter(known)
    gone = {*going}
    others = [each for each in _list_for(table, wanted) if each not in gone]
    accepts = _list_accepts(table, wanted)
    if others:  # those that have gone since, with their rules, need none of the rules that were found then
        staying = {*_list_for(table, wanted)}
        others = [each for each in others if each in staying]
    needed = _addresses_of(others)
    last: dict[IPAddress | None, int] = {}
    if isinstance(table, NftTable):
        for each in sorted(going, key=lambda each: each.handle):
            last[_address_of(each)] = each.handle + len(_KINDS)
    for address, kinds in accepts.items():
        for there in kinds:
            count = max(min(wanted[address], len(there) - needed[address]), 0)
            own = [each for each in there if each.handle <= last.get(address, each.handle)][:count] if going else []
            found += own
            if count > len(own) and is_used is not None and (needed[address] or not is_used(address)):
                found += [each for each in there if each not in own][: count - len(own)]
    return [*policies, *found, *going]


def _list_policies(table: Table, going: Collection[Rule], kept: str = "") -> list[Rule]:
    """List the policies' rules that no attachment needs once these records are gone; none of the kept bridge."""
    bridges = {bridge for each in going if (bridge := _bridge_of(each)) not in ("", kept)}
    unused = {each for each in bridges if not _is_needed(table, each, {*going})}
    return ingress_iptables.list_own(table, unused)


def _is_needed(table: Table, bridge: str, going: Collection[Rule]) -> bool:
    """Return True if an attachment asks for a policy for a bridge, other than those that go."""

    def asks(record: Rule) -> bool:
        return _bridge_of(record) == bridge and record not in going

    return any(table.find_rule(chain, asks, bridge) is not None for chain in table.find_chains(*_OWNERS))


def _delete_found(table: Table, look: Callable[[], list[Rule]]) -> None:
    """Delete the rules that `look` finds; alone, if a policy may be among them that another ADD relies on."""
    with _held_policies(table):
        rules.delete_found(table, lambda: ([], look()))


def _held_policies(table: Table) -> AbstractContextManager[object]:
    """Keep other processes from changing policies, if there are any."""
    return lock.exclusive(_PATIENCE) if table.has_chain(ingress_iptables.STAGES[0]) else nullcontext()


# --- apply, check, delete, gc -----------------------------------------------------------------------------------------


def apply(
    owner: Attachment,
    version: int,
    addresses: Collection[IPAddress],
    admin: str,
    ingress: Ingress | None = None,
    undo: rules.Undo = rules.no_undo,
) -> None:
    """Accept what is forwarded for addresses, in place of those that an earlier ADD of the attachment had.

    Args:
        owner: The attachment.
        version: 4 or 6.
        addresses: Its addresses of that version; without any, nothing is made but the policy.
        admin: Name of the administrator's chain.
        ingress: The policy for its bridge, if it has one.
        undo: Function that remembers the inverse. That puts back what the earlier ADD had.

    Raises:
        InvalidConfigError: (7) iptables would take the name of the bridge for something else.
        IOFailureError: (5) The kernel or ``iptables-restore`` refused.
        PluginNotAvailableError: (50) ``iptables-restore`` is not installed.
    """
    table = iptables.current(version, "filter")
    base = _base(table, admin, ingress, bool(addresses))
    mark = rules.mark(owner, XT_COMMENT_MAX)
    option = "" if ingress is None else f" -i {ingress.bridge}{f' -o {ingress.bridge}' if ingress.isolates else ''}"
    chain, lines = _chain_of(owner), list[str]()
    for each in addresses:
        lines.append(f"-A {chain} -s {each}{option} -m comment --comment {quote(mark)}")
        lines += [f"-A {_PRIVATE} {text}" for text in _texts(each)]
    if option and not addresses:
        lines.append(f"-A {chain}{option} -m comment --comment {quote(mark)}")
    # CNI-FORWARD in any case: where the table is saved and restored, it and its numbers then precede those of records.
    chains = {_PRIVATE, *_OWNERS, *((admin,) if addresses else ()), *_stages(base)}
    with rules.alone(owner) as sign:
        # Earlier rules are deleted afterwards: an ADD that is killed in between leaves records of all rules.
        before = {str(table): _list_records(table, owner) for table in tables(version, "filter")}
        if not lines and not any(before.values()):
            return
        undo(_put_back, owner, version, _keep(owner, version) if any(before.values()) else {})
        if lines:
            base_rules.commit(
                version,
                base,
                {"filter": chains},
                {"filter": lines},
                [sign],
                locked=ingress is not None,
                quickly=partial(_add, table, chain, mark, addresses, ingress),
            )
        for table in tables(version, "filter"):
            look = partial(_list_replaced, table, owner, before.get(str(table), ()), ingress)
            if look():
                _delete_found(table, look)


def _add(table: Table, records: str, mark: str, addresses: Collection[IPAddress], ingress: Ingress | None) -> bool:
    """Add an attachment's records and rules without a program; return whether that could be done."""
    if not isinstance(table, NftTable):
        return False
    incoming = ingress.bridge if ingress is not None else ""
    outgoing = incoming if ingress is not None and ingress.isolates else ""
    added = [
        xt_rules.IptablesRule(chain, expressions)
        for address in addresses
        for chain, expressions in (
            (records, xt_rules.note(address, incoming, outgoing, mark)),
            (_PRIVATE, xt_rules.accept_replies(address)),
            (_PRIVATE, xt_rules.accept_source(address)),
        )
    ]
    if not added:
        added = [xt_rules.IptablesRule(records, xt_rules.note(None, incoming, outgoing, mark))]
    return xt_rules.add(table, added)


def _keep(owner: Attachment, version: int) -> rules.Kept:
    """Read all that an attachment has."""
    return rules.keep_found(tables(version, "filter"), lambda table: ([], _list_own(table, owner)))


def _put_back(owner: Attachment, version: int, kept: rules.Kept) -> None:
    """Restore what an attachment had before, and delete what it has now."""
    with rules.alone(owner):
        for table in tables(version, "filter"):
            with _held_policies(table):
                rules.put_back([table], lambda table: ([], _list_own(table, owner)), kept)


def _list_replaced(table: Table, owner: Attachment, before: Collection[Rule], ingress: Ingress | None) -> list[Rule]:
    """List what an ADD has replaced: what was there before, and the rule of another policy for the bridge."""
    outdated = ingress_iptables.list_outdated(table, ingress) if ingress is not None else []
    there = _list_records(table, owner) if before else []
    own = [each for each in before if each in there]  # of equal ones, which the legacy variant has, as many as before
    kept = ingress.bridge if ingress is not None else ""
    return [*outdated, *_with_rules(table, own, kept=kept)]


def check(
    owner: Attachment, version: int, addresses: Collection[IPAddress], admin: str, ingress: Ingress | None = None
) -> None:
    """Verify that what is forwarded for addresses is accepted, and the policy, by our rules or the reference's.

    Without addresses, nothing is verified but the policy.

    Args:
        owner: The attachment.
        version: 4 or 6.
        addresses: Its addresses of that version.
        admin: Name of the administrator's chain.
        ingress: The policy for its bridge; None for a bridge without one.

    Raises:
        IOFailureError: (5) A rule is missing, or was changed, or is one of another policy.
    """
    written = str(iptables.current(version, "filter"))
    problems = {
        str(table): _missing_base(table, _base(table, admin, ingress, bool(addresses)))
        or _missing_accept(table, owner, addresses)
        for table in tables(version, "filter")
    }
    if all(problems.values()):
        raise IOFailureError(problems.get(written) or f"{written} does not exist")
    if ingress is not None and any(ingress_iptables.list_outdated(each, ingress) for each in tables(version, "filter")):
        raise IOFailureError(
            f"iptables rules isolate containers on bridge {ingress.bridge}, but $.ingressPolicy is {ingress.policy}"
        )


def _missing_base(table: Table, base: Iterable[BaseRule]) -> str:
    lacking = [rule for rule in base if not rule.is_in(table)]
    if not lacking:
        return ""
    return f"a rule is missing or was changed: {lacking[0].text} in chain {lacking[0].chain} of {table}"


def _missing_accept(table: Table, owner: Attachment, addresses: Collection[IPAddress]) -> str:
    own = _find_beside(table, _list_records(table, owner))
    accepted = {_address_of(record) for record, beside in own.items() if len(beside) == len(_KINDS)}
    others = [each for each in addresses if each not in accepted]
    for address, kinds in _list_accepts(table, others).items():
        for text, there in zip(_texts(address), kinds, strict=True):
            if not there:
                return f"a rule is missing or was changed: {text} in chain {_PRIVATE} of {table}"
    return ""


def is_overruled(owner: Attachment, version: int, ingress: Ingress) -> bool:
    """Return True if another policy holds for the bridge, for which another attachment asks.

    Args:
        owner: The attachment.
        version: 4 or 6.
        ingress: The policy that it asks for.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    table = iptables.current(version, "filter")

    def overrules(record: Rule) -> bool:
        other = _ingress_of(record)
        return (
            other is not None
            and other.bridge == ingress.bridge
            and other.policy != ingress.policy
            and not rules.is_of(record, owner)
            and ingress_iptables.holds(table, other)
        )

    return any(map(overrules, _list_all(table, ingress.bridge)))


def delete(
    owner: Attachment,
    version: int,
    known: Collection[IPAddress] = (),
    is_used: Callable[[IPAddress], bool] = lambda _: False,
) -> None:
    """Delete the rules of an attachment. Absence is fine.

    Args:
        owner: The attachment.
        version: 4 or 6.
        known: Its addresses, as far as they are known. The reference's rules name no owner: if there is no record,
            those of these addresses are deleted that no other attachment needs.
        is_used: Function that tells if another container uses an address: one of the reference's has no record either.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    own = [address for address in known if address.version == version]
    with rules.alone(owner):
        for table in tables(version, "filter"):
            _delete_found(table, partial(_list_own, table, owner, own, is_used))


def _list_own(
    table: Table,
    owner: Attachment,
    known: Collection[IPAddress] = (),
    is_used: Callable[[IPAddress], bool] | None = None,
) -> list[Rule]:
    """List the rules and records that :func:`delete` deletes."""
    return _with_rules(table, _list_records(table, owner), known, is_used=is_used)


def gc(network: str, valid: Collection[Attachment]) -> None:
    """Delete the rules of a network's attachments that are not valid. The reference's stay: they name no network.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        IOFailureError: (5) The kernel refused; the other tables were cleaned nevertheless.
    """

    def look(table: Table) -> list[Rule]:
        return _with_rules(table, [*filter(rules.is_stale(network, valid), _list_all(table))])

    run_all(
        *(
            partial(_delete_found, table, partial(look, table))
            for version in IP_FAMILIES
            for table in tables(version, "filter")
        )
    )


# --- for the nftables backend -----------------------------------------------------------------------------------------


def ensure_accepted(version: int, admin: str) -> None:
    """Make iptables accept what the nftables backend has marked, if iptables filters what the host forwards.

    Args:
        version: 4 or 6.
        admin: Name of the administrator's chain, whose rules come first.

    Raises:
        IOFailureError: (5) ``iptables-restore`` refused.
        PluginNotAvailableError: (50) It is not installed.
    """
    for variant, table in base_rules.list_filters(version):
        base = _accepting(table, admin)
        base_rules.commit(version, base, {"filter": {_PRIVATE, admin, *_stages(base)}}, {}, variant=variant)


def check_accepted(version: int, admin: str) -> None:
    """Verify that iptables accepts what the nftables backend has marked.

    Its chain may be newer than the attachment: where it drops nothing, nothing is missing.

    Args:
        version: 4 or 6.
        admin: Name of the administrator's chain, whose rules come first.

    Raises:
        IOFailureError: (5) A rule for that is missing.
    """
    for _, table in base_rules.list_filters(version):
        problem = _missing_base(table, _accepting(table, admin))
        if problem and base_rules.may_drop_forwarded(table):
            raise IOFailureError(problem)
