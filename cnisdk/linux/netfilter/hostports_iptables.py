"""Host ports by iptables, in the layout of the reference, so that each side checks and deletes the other's rules.

In the nat table, what is sent to the host itself goes through ``CNI-HOSTPORT-DNAT``, which jumps from the ports of an
attachment to the attachment's chain. That chain marks what must be masqueraded, and translates. The mark leads to
``CNI-HOSTPORT-MASQ`` after routing.

The reference compares its rules with comments and all, so ours have none, but for the first of an attachment's chain:
it has the owner's mark as comment. It also marks the connection, by which a rule in the filter table's ``FORWARD``
accepts what came through a host port.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

from ...errors import CNIError, IOFailureError, run_all
from ...spec.addresses import IPAddress
from ...spec.names import Attachment, short_hash
from . import base_rules, iptables, nft, rules, xt_rules
from .base_rules import IP_FAMILIES, XT_COMMENT_MAX, BaseRule, quote, tables
from .dnat_chain import SETMARK, ShownRule, group_ports, read_port, show, wanted_rules
from .hostport import CONNECTION_MARK, PROTOCOLS, HostPort, Options, is_same_container, taken
from .nft import Rule
from .rules import Table

_ENTRY, _MASQUERADE = "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ"
# The reference cuts a longer comment, and ends it with dots.
_COMPARED = 250
_PREFIX = "CNI-DN-"
_DIGITS = 21
_ACCEPTED = "CNI portmap: connections to published ports"
_META_MARK = "meta 3"


# --- names ------------------------------------------------------------------------------------------------------------


def _reference_name(owner: Attachment) -> str:
    """Return the name of the reference's chain. It joins network and container: two attachments may have the same."""
    return f"{_PREFIX}{short_hash(owner.network + owner.container_id, digits=_DIGITS)}"


def _own_name(owner: Attachment) -> str:
    return f"{_PREFIX}{short_hash(*owner, digits=_DIGITS)}"


def _reference_comment(owner: Attachment) -> str:
    return f'dnat name: "{owner.network}" id: "{owner.container_id}"'[:XT_COMMENT_MAX]


# --- what all attachments share ---------------------------------------------------------------------------------------


def _leads_local(rule: Rule) -> bool:
    return rule.target == _ENTRY and len(rule.matches) == 1


def _base(options: Options) -> list[BaseRule]:
    found = [
        BaseRule("nat", chain, f"-m addrtype --dst-type LOCAL -j {_ENTRY}", _leads_local, _ENTRY)
        for chain in ("PREROUTING", "OUTPUT")
    ]
    if options.snat and not options.mark_chain:
        mark = 1 << options.mark_bit
        bit = nft.match(_META_MARK, 0, mark.to_bytes(4, sys.byteorder), mark.to_bytes(4, sys.byteorder))
        both = f"{mark:#x}/{mark:#x}"
        found += [
            BaseRule(
                "nat",
                SETMARK,
                f'-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark {both}',
                lambda rule: rule.verdict == f"MARK {both}",
            ),
            BaseRule(
                "nat",
                _MASQUERADE,
                f"-m mark --mark {both} -j MASQUERADE",
                lambda rule: rule.verdict == "masquerade" and (bit in rule.matches or both in rule.spec),
            ),
            # Before the chains of masquerade, which accept what stays in the network. It concerns nothing without mark.
            BaseRule(
                "nat",
                "POSTROUTING",
                f'-m comment --comment "CNI portfwd requiring masquerade" -j {_MASQUERADE}',
                lambda rule: rule.target == _MASQUERADE and not rule.matches,
                _MASQUERADE,
                1,
            ),
        ]
    return [*found, accepting()]


def accepting() -> BaseRule:
    """Return the last rule of ``FORWARD``, which accepts packets that came through a host port."""
    bit = f"{CONNECTION_MARK:#x}"
    conditions = f"-m connmark --mark {bit}/{bit} -m conntrack --ctstate DNAT"
    return BaseRule(
        "filter",
        "FORWARD",
        f'{conditions} -m comment --comment "{_ACCEPTED}" -j ACCEPT',
        lambda rule: (rule.comment, rule.verdict) == (_ACCEPTED, "accept"),
        _ACCEPTED,
    )


def ensure_accepted(version: int) -> None:
    """Make iptables accept packets that came through a host port, if iptables filters what the host forwards.

    Raises:
        IOFailureError: (5) ``iptables-restore`` refused.
        PluginNotAvailableError: (50) It is not installed.
    """
    for variant, _ in base_rules.list_filters(version):
        base_rules.commit(version, [accepting()], {}, {}, variant=variant)


def check_accepted(version: int) -> None:
    """Verify that the host forwards what came through a host port.

    The chain of iptables may be newer than the attachment: where it drops nothing, nothing is missing.

    Raises:
        IOFailureError: (5) The rule for that is missing.
    """
    for _, table in base_rules.list_filters(version):
        if not accepting().is_in(table) and base_rules.may_drop_forwarded(table):
            raise IOFailureError(f"a rule of chain FORWARD of {table} is missing or was changed: {accepting().text}")


# --- apply, check, delete, gc -----------------------------------------------------------------------------------------


def apply(
    owner: Attachment,
    version: int,
    ports: Collection[HostPort],
    options: Options,
    listed: Sequence[tuple[str, int]],
    undo: rules.Undo = rules.no_undo,
) -> list[HostPort]:
    """Publish ports of one IP version, in place of those that an earlier ADD of the attachment published.

    The first rule for a port counts. So an ADD is alone from its rules to the look whose come first: otherwise one that
    replaces its own rules could lose a port to another that has made its rules in between, and looks afterwards.

    Args:
        owner: The attachment.
        version: 4 or 6.
        ports: The ports.
        options: How they lead to the container.
        listed: Protocols and ports for which the reference expects rules: also those of the other IP version.
        undo: Function that remembers the inverse. That puts back what the earlier ADD published, and returns the ports
            that it withdraws.

    Returns:
        The ports that the earlier ADD published.

    Raises:
        TryAgainLaterError: (11) Another container has one of them.
        IOFailureError: (5) The kernel or ``iptables-restore`` refused.
        PluginNotAvailableError: (50) ``iptables-restore`` is not installed.
    """
    own, replaced = {port.target.ip for port in ports}, list[HostPort]()
    with rules.alone(owner) as sign, _alone(version):
        look, table = _look_for(owner, version, own, []), iptables.current(version, "nat")
        kept = rules.keep_found(tables(version, "nat"), _look_for(owner, version, own, replaced))
        undo(_take_back, owner, version, own, kept)
        commit = partial(_commit, owner, version, ports, options, listed, sign)

        def make() -> str:
            """Make all rules, and return the name of the attachment's chain."""
            if kept and (there := [*look(table)[0]]):
                commit(there[0], again=True)
                return there[0]
            name = _reference_name(owner)
            with rules.reserve(f"{IP_FAMILIES[version]}-{name}") as reserved:
                if not reserved or any(each.has_chain(name) for each in tables(version, "nat")):
                    name = _own_name(owner)
                commit(name)
            return name

        name = rules.repeat(make)
        if kept:
            # Earlier rules are deleted afterwards, so that the ports stay published.
            rules.delete_earlier(tables(version, "nat"), look, table, name, {_ENTRY: len(group_ports(listed))})
        try:
            check_holders(owner, version, ports)
        except CNIError:
            _put_back(owner, version, own, kept)
            raise
    return replaced


def _alone(version: int) -> AbstractContextManager[int]:
    """Wait until no other attachment claims ports."""
    return rules.hold(f"cnisdk-{IP_FAMILIES[version]}-{_ENTRY}")


def _take_back(owner: Attachment, version: int, own: Collection[IPAddress], kept: rules.Kept) -> list[HostPort]:
    with rules.alone(owner), _alone(version):
        return _put_back(owner, version, own, kept)


def _put_back(owner: Attachment, version: int, own: Collection[IPAddress], kept: rules.Kept) -> list[HostPort]:
    """Restore what an attachment had published before, delete what it has now, and return the deleted ports."""
    gone: list[HostPort] = []
    rules.put_back(tables(version, "nat"), _look_for(owner, version, own, gone), kept)
    return gone


def _commit(
    owner: Attachment,
    version: int,
    ports: Iterable[HostPort],
    options: Options,
    listed: Iterable[tuple[str, int]],
    sign: int,
    name: str,
    *,
    again: bool = False,
) -> None:
    """Make a chain, or replace the rules in it, and make the jumps to it."""
    wanted, grouped = list(wanted_rules(ports, options)), group_ports(listed)
    mark, bit = rules.mark(owner, XT_COMMENT_MAX), f"{CONNECTION_MARK:#x}"
    jump = _reference_comment(owner) if name == _reference_name(owner) else mark
    conditions = "".join(f" {quote(word)}" for word in options.conditions)
    own = [
        f"-F {name}" if again else f"-N {name}",
        f"-A {name} -m comment --comment {quote(mark)} -j CONNMARK --set-xmark {bit}/{bit}",
        *(f"-A {name} {rule.text}" for rule in wanted),
        *(
            f"-A {_ENTRY} -m comment --comment {quote(jump)} -m multiport -p {protocol}"
            f" --destination-ports {','.join(map(str, some))}{conditions} -j {name}"
            for protocol, some in grouped
        ),
    ]

    def add() -> bool:
        """Add the same by netlink, if it can be done."""
        table = iptables.current(version, "nat")
        if options.conditions or not isinstance(table, nft.NftTable):
            return False
        rules_added = [
            xt_rules.IptablesRule(name, xt_rules.mark_connection(CONNECTION_MARK, mark)),
            *(rule.written(name) for rule in wanted),
        ]
        for protocol, some in grouped:
            number = PROTOCOLS[protocol]
            jumps = xt_rules.to_ports(number, some, jump, xt_rules.jump(name))
            rules_added.append(xt_rules.IptablesRule(_ENTRY, jumps, number))
        return xt_rules.add(table, rules_added, name, again=again)

    chains = {_ENTRY, *({SETMARK, _MASQUERADE} if options.snat and not options.mark_chain else ())}
    base_rules.commit(version, _base(options), {"nat": chains}, {"nat": own}, [sign], quickly=add)


def check_holders(owner: Attachment, version: int, ports: Collection[HostPort], *, siblings: bool = False) -> None:
    """Refuse ports that another container published before.

    The first rule for a port in the shared chain counts. ADD calls this after it has made its own rules: so two
    processes cannot both win.

    Args:
        owner: The attachment.
        version: 4 or 6.
        ports: The ports.
        siblings: Refuse also those of another attachment of the owner's container.

    Raises:
        TryAgainLaterError: (11) Another container has one of them.
    """
    numbers = {port.port for port in ports}
    own = (_reference_name(owner), _own_name(owner))
    for table in tables(version, "nat"):
        for jump in table.list_rules(_ENTRY, *_words(table, numbers)):
            shown = show(jump)
            if not numbers & shown.ports:
                continue
            inside = table.list_rules(jump.target)
            holder = inside[0].comment if inside and rules.is_marked(inside[0]) else jump.comment
            if jump.target in own and inside and rules.is_of(inside[0], owner):
                return
            same = is_same_container(holder, owner, XT_COMMENT_MAX)
            if not siblings and (same or jump.comment.endswith(f'id: "{owner.container_id}"')):
                continue
            for wanted in ports:
                if any(_overlap(wanted, show(each)) for each in inside):
                    raise taken(wanted, holder)


def _words(table: Table, ports: Iterable[int]) -> list[str]:
    """Return what a rule about one of these ports contains, to tell it from most others before it is read."""
    if isinstance(table, iptables.LegacyTable):
        return list(map(str, ports))
    return [
        port.to_bytes(2, sys.byteorder).decode(errors="surrogateescape") for port in ports
    ]  # as xt_multiport has it


def _overlap(wanted: HostPort, held: ShownRule) -> bool:
    if not held.verdict.startswith("DNAT ") or held.protocol != PROTOCOLS[wanted.protocol]:
        return False
    addresses = {each for each in held.others if each.what == "network"}
    specific = wanted.host_ip is not None and iptables.match_address(wanted.version, "-d", str(wanted.host_ip))
    return wanted.port in held.ports and (not specific or not addresses or specific in addresses)


def check(
    owner: Attachment, version: int, ports: Collection[HostPort], options: Options, listed: Sequence[tuple[str, int]]
) -> None:
    """Verify that the ports are published, by our rules or the reference's.

    Args:
        owner: The attachment.
        version: 4 or 6.
        ports: The ports of that IP version.
        options: How they lead to the container.
        listed: Protocols and numbers of all ports, whatever their host address.

    Raises:
        IOFailureError: (5) A rule is missing, or was changed.
    """
    written = str(iptables.current(version, "nat"))
    owned = [(table, _chains(table, owner)) for table in tables(version, "nat")]
    problems = {
        str(table): _problem(table, owner, chains, ports, options, listed) or _missing_base(table, options)
        for table, chains in owned
    }
    if all(problems.values()):
        raise IOFailureError(f"{owner} has no rule like this: {problems.get(written) or next(iter(problems.values()))}")
    if any(has and rules.is_of(has[0], owner) for _, chains in owned for has in chains.values()):
        check_accepted(version)


def _missing_base(table: Table, options: Options) -> str:
    base = [each for each in _base(options) if each.table == "nat"]
    lacking = [each for each in base if not each.is_in(table)]
    return f"{lacking[0].text} in chain {lacking[0].chain}" if lacking else ""


def _problem(
    table: Table,
    owner: Attachment,
    chains: Mapping[str, Sequence[Rule]],
    ports: Iterable[HostPort],
    options: Options,
    listed: Iterable[tuple[str, int]],
) -> str:
    chain, inside = next(iter(chains.items()), (_reference_name(owner), ()))
    shown = [show(rule) for rule in (inside[1:] if inside and rules.is_marked(inside[0]) else inside)]
    for index, rule in enumerate(wanted_rules(ports, options)):
        if index >= len(shown) or shown[index] != rule.shown:
            return f"{rule.text} in chain {chain} of {table}"
    jumps = [show(rule) for rule in _list_jumps(table, {chain: inside})]
    for protocol, some in group_ports(listed):
        if not any(
            (each.protocol, each.ports) == (PROTOCOLS[protocol], frozenset(some))
            and bool(each.others) == bool(options.conditions)
            for each in jumps
        ):
            return f"-p {protocol} to ports {some} jump {chain} in chain {_ENTRY} of {table}"
    return ""


def _chains(table: Table, owner: Attachment) -> dict[str, list[Rule]]:
    """Find the chains of an attachment, with their rules: those its mark is in, or else the reference's.

    What is last, if it is there, is the chain that only this attachment can have, emptied by ``iptables -F``.
    """
    named, own = _reference_name(owner), _own_name(owner)
    inside = {name: table.list_rules(name) for name in sorted(table.find_chains(named, own))}
    ours = {name: has for name, has in inside.items() if has and rules.is_of(has[0], owner)}
    foreign = {named: inside[named]} if named in inside and not any(map(rules.is_marked, inside[named])) else {}
    found = ours or (foreign if foreign and _lead_to(table, foreign, owner) else {})
    return found if inside.get(own, True) else {**found, own: []}


def _lead_to(table: Table, chains: Mapping[str, Sequence[Rule]], owner: Attachment) -> bool:
    """Return True if the reference's jumps to chains name the owner: a hash of joined names may be another's, too."""
    comment = f'dnat name: "{owner.network}" id: "{owner.container_id}"'[:_COMPARED]
    return all(rule.comment[:_COMPARED] == comment for rule in _list_jumps(table, chains))


def _list_jumps(table: Table, chains: Mapping[str, Sequence[Rule]]) -> list[Rule]:
    """List the jumps to chains of attachments.

    The shared chain has the jumps of all attachments, so reading it takes long. It is read only for chains whose jumps
    are not all found without.

    Args:
        table: The table.
        chains: The chains, each with its rules.
    """
    found: list[Rule] = []
    others: list[str] = []
    for chain, inside in chains.items():
        jumps = _find_jumps(table, chain, inside)
        if jumps is None:
            others.append(chain)
        else:
            found += jumps
    return found + [rule for rule in (table.list_rules(_ENTRY, *others) if others else ()) if rule.target in others]


def _find_jumps(table: Table, chain: str, inside: Sequence[Rule]) -> list[Rule] | None:
    """Find the jumps to a chain by their handles; None if these are not all.

    The kernel numbers the rules of a table in the order in which they are made. ADD makes the jumps directly after the
    rules of the chain, in one transaction. The kernel also counts the rules that are in a chain, or lead to it.
    """
    if not inside or not isinstance(table, nft.NftTable):
        return None
    first, number = inside[-1].handle + 1, table.count_uses(chain) - len(inside)
    found = [rule for rule in table.find_rules(_ENTRY, range(first, first + number)) if rule.target == chain]
    return found if len(found) == number else None


def delete(owner: Attachment, version: int, own: Collection[IPAddress] | None = None) -> list[HostPort]:
    """Take back what an attachment has published by iptables, whether we or the reference made it. Absence is fine.

    Args:
        owner: The attachment.
        version: 4 or 6.
        own: Its addresses, None if they are not known. The reference's chains do not name the interface: those that
            lead to other addresses only are of another interface, and stay.

    Returns:
        The ports that it had.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    with rules.alone(owner):
        return _delete(owner, version, own)


def _delete(owner: Attachment, version: int, own: Collection[IPAddress] | None) -> list[HostPort]:
    gone: list[HostPort] = []
    look = _look_for(owner, version, own, gone)
    for table in tables(version, "nat"):
        rules.delete_found(table, partial(look, table))
    return gone


def delete_marked(owner: Attachment, version: int, undo: rules.Undo) -> list[HostPort]:
    """Take back what an earlier ADD of an attachment has published by iptables, but not what the reference made.

    Args:
        owner: The attachment.
        version: 4 or 6.
        undo: Function that remembers the inverse, as for :func:`apply`.

    Returns:
        The ports that it had.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    look = _look_for(owner, version, (), [])
    if not any(any(look(table)) for table in tables(version, "nat")):
        return []
    with rules.alone(owner):
        undo(_take_back, owner, version, (), rules.keep_found(tables(version, "nat"), look))
        return _delete(owner, version, ())


def _look_for(
    owner: Attachment, version: int, own: Collection[IPAddress] | None, ports: list[HostPort]
) -> Callable[[Table], tuple[Collection[str], list[Rule]]]:
    """Return a function that finds an attachment's chains and the jumps to them, and notes the ports that lead there.

    Args:
        owner: The attachment.
        version: 4 or 6.
        own: As for :func:`delete`.
        ports: List for the ports.
    """

    def look(table: Table) -> dict[str, list[Rule]]:
        return {name: has for name, has in _chains(table, owner).items() if not _is_of_another(has, own)}

    return lambda table: _found(table, partial(look, table), ports)


def _is_of_another(inside: Sequence[Rule], own: Collection[IPAddress] | None) -> bool:
    leads_to = {port.target.ip for rule in inside if (port := read_port(rule)) is not None}
    return own is not None and not any(map(rules.is_marked, inside)) and bool(leads_to) and leads_to.isdisjoint(own)


def _found(
    table: Table, look: Callable[[], dict[str, list[Rule]]], ports: list[HostPort]
) -> tuple[Collection[str], list[Rule]]:
    """Find chains and the jumps to them, and note the ports that lead there."""
    chains = look()
    ports += [port for has in chains.values() for rule in has if (port := read_port(rule)) is not None]
    return chains.keys(), _list_jumps(table, chains)


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
    kept = {rules.mark(owner, XT_COMMENT_MAX) for owner in valid}
    kept_names = {_reference_name(owner) for owner in valid}
    start = f"{short_hash(network, digits=16)}-"
    foreign = f'dnat name: "{network}" id: "'

    def stale(table: Table) -> dict[str, list[Rule]]:
        found = {}
        for name in table.list_chains(_PREFIX):
            inside = table.list_rules(name)
            comment = inside[0].comment if inside else ""
            if comment.startswith(start):
                if comment not in kept:
                    found[name] = inside
            elif not rules.is_marked(Rule(name, 0, comment, (), "")) and name not in kept_names:
                jumps = _list_jumps(table, {name: inside})
                if jumps and all(rule.comment.startswith(foreign) for rule in jumps):
                    found[name] = inside
        return found

    gone: list[HostPort] = []
    run_all(
        *(
            partial(rules.delete_found, table, partial(_found, table, partial(stale, table), gone))
            for version in IP_FAMILIES
            for table in tables(version, "nat")
        )
    )
    return gone
