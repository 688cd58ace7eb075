"""Masquerade traffic from containers to destinations beyond their network, with rules that name their owner.

There are two backends, in the layouts of the reference plugins, so that each side removes the other's rules:

* nftables: a rule for each address in table ``inet cni_plugins_masquerade``, found again by its comment;
* iptables: a chain in the nat tables, named by a hash, with a jump for each address.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial

from ...errors import InvalidConfigError, PluginNotAvailableError, run_all
from ...spec.addresses import IPInterface
from ...spec.names import Attachment, short_hash, shorten
from .. import program
from . import _expressions, iptables, rules
from .nfnetlink import FAMILIES
from .nft import Match, Rule, match
from .rules import OWN, Layout, Part, Table, Wanted

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_KEYWORDS = {4: "ip", 6: "ip6"}
_SOURCE, _DESTINATION = {4: 12, 6: 8}, {4: 16, 6: 24}  # offsets in the header
_PROGRAMS = {"iptables": "iptables", "nftables": "nft"}
_POSTROUTING = "POSTROUTING"
_COMMENT_MAX = 255  # of xt_comment, in bytes


# --- layouts ----------------------------------------------------------------------------------------------------------


def chain_name(attachment: Attachment) -> str:
    """Return the name of the reference's chain. It joins network and container: two attachments may have the same."""
    return f"CNI-{short_hash(attachment.network + attachment.container_id, digits=24)}"


def _jump_comment(attachment: Attachment) -> str:
    """Return the comment by which the reference finds a jump to delete."""
    network, container_id, _ = attachment
    room = _COMMENT_MAX - len(f'name: "{network}" id: ""')
    return f'name: "{network}" id: "{container_id[: max(room, 0)]}"'


_WHERE = "inet cni_plugins_masquerade"
#: Layout of the rules in nftables.
NFTABLES = Layout(
    family="inet",
    table="cni_plugins_masquerade",
    shared=("masq_checks",),
    base=(
        f"add table {_WHERE}",
        f"add chain {_WHERE} masq_checks",
        f"add chain {_WHERE} postrouting {{ type nat hook postrouting priority srcnat ; policy accept ; }}",
        f"flush chain {_WHERE} postrouting",
        f"add rule {_WHERE} postrouting ip daddr {_MULTICAST[4]} return",
        f"add rule {_WHERE} postrouting ip6 daddr {_MULTICAST[6]} return",
        f"add rule {_WHERE} postrouting goto masq_checks",
    ),
    made=(
        *(
            Wanted(
                "postrouting",
                f"{_KEYWORDS[version]} daddr {network} return",
                (iptables.match_address(version, "-d", network),),
                "return",
            )
            for version, network in _MULTICAST.items()
        ),
        Wanted("postrouting", "goto masq_checks", (), "goto masq_checks"),
    ),
    fixed=(Wanted("postrouting", "goto masq_checks", (), "goto masq_checks"),),
)
#: Layout of the rules in iptables, by IP version.
IPTABLES = {
    version: Layout(
        family=_KEYWORDS[version],
        table="nat",
        shared=(_POSTROUTING,),
        prefix="CNI-",
        digits=24,
        reference=chain_name,
        reference_comment=_jump_comment,
        by_iptables=True,
    )
    for version in (4, 6)
}
_LAYOUTS = (*IPTABLES.values(), NFTABLES)


def choose_backend(name: str | None) -> str:
    """Return the backend that a configuration asks for: ``iptables`` or ``nftables``.

    Args:
        name: None or empty: iptables where it is installed, otherwise nftables.

    Raises:
        InvalidConfigError: (7) There is no such backend.
    """
    if not name:
        return "nftables" if program.find("iptables") is None and program.find("nft") is not None else "iptables"
    if name not in _PROGRAMS:
        raise InvalidConfigError(
            f"unknown ipmasq backend {shorten(name)}",
            details=f"$.ipMasqBackend: expected {' or '.join(_PROGRAMS)}",
        )
    return name


def wanted(backend: str, addresses: Iterable[IPInterface]) -> list[Part]:
    """Make the rules that masquerade traffic from these addresses to destinations beyond their networks.

    Args:
        backend: From :func:`choose_backend`.
        addresses: Of the container, with the length of their network's prefix.
    """
    addresses = tuple(dict.fromkeys(addresses))
    if backend == "nftables":
        return [Part(NFTABLES, tuple(map(_nft_rule, addresses)))] if addresses else []
    return [
        Part(layout, _iptables_rules(version, own))
        for version, layout in IPTABLES.items()
        if (own := [address for address in addresses if address.version == version])
    ]


def _nft_rule(address: IPInterface) -> Wanted:
    version, keyword = address.version, _KEYWORDS[address.version]
    text = f"{keyword} saddr {address.ip} {keyword} daddr != {address.network} masquerade"
    source = match("network", _SOURCE[version], address.ip.packed)
    matches = (source, _match_network(address, equal=False))
    return Wanted("masq_checks", text, matches, "masquerade", _expressions_of(address))


def _expressions_of(address: IPInterface) -> tuple[bytes, ...]:
    """Return the expressions in the very bytes of ``nft``."""
    if not address.network.prefixlen:
        return ()
    return (
        *_expressions.compare_meta(_expressions.META_NFPROTO, bytes([FAMILIES[address.version]])),
        *_expressions.compare_address(_expressions.SOURCE, address.ip),
        *_expressions.compare_network(_expressions.DESTINATION, address.network, equal=False),
        _expressions.expression("masq"),
    )


def _match_network(address: IPInterface, *, equal: bool) -> Match:
    network = address.network
    value, mask = network.network_address.packed, network.netmask.packed
    return match("network", _DESTINATION[address.version], value, mask, equal=equal)


def _iptables_rules(version: int, addresses: Sequence[IPInterface]) -> tuple[Wanted, ...]:
    networks = {address.network: address for address in addresses}
    multicast = iptables.match_address(version, "-d", _MULTICAST[version], equal=False)
    return (
        *(
            # iptables leaves out a condition that is always true.
            Wanted(
                OWN,
                f"-d {network} -j ACCEPT",
                (_match_network(address, equal=True),) if network.prefixlen else (),
                "accept",
            )
            for network, address in networks.items()
        ),
        Wanted(OWN, f"! -d {_MULTICAST[version]} -j MASQUERADE", (multicast,), "masquerade"),
        *(
            Wanted(
                _POSTROUTING,
                f"-s {address.ip} -j {{chain}}",
                (match("network", _SOURCE[version], address.ip.packed),),
                "jump {chain}",
            )
            for address in addresses
        ),
    )


# --- what plugins call ------------------------------------------------------------------------------------------------


def check(backend: str, attachment: Attachment, addresses: Iterable[IPInterface]) -> None:
    """Verify that the rules of these addresses are there, ours or the reference's.

    Args:
        backend: From :func:`choose_backend`.
        attachment: The attachment.
        addresses: Its addresses, with the length of their network's prefix.

    Raises:
        IOFailureError: (5) One is missing, or was changed.
    """
    rules.check(attachment, _not_the_references(backend, attachment, addresses))


def repair(backend: str, attachment: Attachment, addresses: Iterable[IPInterface], *, dry_run: bool = False) -> bool:
    """Make the rules of these addresses that :func:`check` would miss, and return True if there were any.

    What the container sent meanwhile, as it was, and has no answer to, is masqueraded from its next packet on.

    Args:
        backend: From :func:`choose_backend`.
        attachment: The attachment.
        addresses: Its addresses, with the length of their network's prefix.
        dry_run: If true, change nothing: only find out if any are missing.

    Raises:
        IOFailureError: (5) The kernel did not forget a flow.
        CNIError: As :func:`.rules.apply` does.
    """
    addresses = tuple(addresses)
    missing = rules.repair(attachment, _not_the_references(backend, attachment, addresses), dry_run=dry_run)
    if not missing or dry_run:
        return missing
    from . import conntrack  # no other verb needs it

    for each in addresses:
        conntrack.forget_unanswered(each)
    return True


def _not_the_references(backend: str, attachment: Attachment, addresses: Iterable[IPInterface]) -> list[Part]:
    """Return the wanted rules without those that the reference has made."""
    return [
        part
        for part in wanted(backend, addresses)
        if not (part.layout.by_iptables and _reference_masquerades(attachment, part))
    ]


def delete(attachment: Attachment, addresses: Collection[IPInterface] = (), *, gone: bool = False) -> None:
    """Remove the rules of an attachment, of both backends: the configuration may have changed since ADD.

    Our rules are found by their owner. The reference's chains of iptables do not name the interface: from those, the
    rules of the attachment's addresses are removed.

    Args:
        attachment: The attachment.
        addresses: Its addresses, as far as they are known.
        gone: If true, the container is gone, and all of the reference's rules for it and the network are removed.

    Raises:
        CNIError: One backend failed; the other was tried nevertheless.
    """
    chain = chain_name(attachment)

    def look(table: Table) -> tuple[list[str], list[Rule]]:
        return _reference_rules(table, attachment, addresses, gone)

    run_all(
        *(partial(rules.delete, layout, attachment, foreign=chain, look=look) for layout in IPTABLES.values()),
        partial(rules.delete, NFTABLES, attachment),
    )


def gc(network: str, valid: Collection[Attachment]) -> None:
    """Remove the rules of attachments that are not valid, of both backends.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        CNIError: One backend failed; the other was tried nevertheless.
    """
    run_all(
        *(partial(rules.gc, layout, network, valid) for layout in _LAYOUTS),
        *(
            partial(rules.delete_found, table, partial(_stale_reference_rules, table, network, valid))
            for layout in IPTABLES.values()
            for table in layout.tables()
        ),
    )


def status(backend: str) -> None:
    """Raise :class:`PluginNotAvailableError` (50) unless rules can be added."""
    name = _PROGRAMS[backend]
    if program.find(name) is None:
        raise PluginNotAvailableError(f"ipMasq needs the program {name}, which is not installed")


# --- what the reference added by iptables -----------------------------------------------------------------------------


def _reference_jumps(table: Table, attachment: Attachment) -> list[Rule]:
    """Find the reference's jumps for a container on a network: all its interfaces have the same comment and chain."""
    chain, comment = chain_name(attachment), _jump_comment(attachment)
    inside = table.list_rules(chain)
    if inside and all(map(rules.is_marked, inside)):
        return []  # our chain: the marks of its rules name the owner
    return [rule for rule in table.list_rules(_POSTROUTING, chain) if (rule.target, rule.comment) == (chain, comment)]


def _reference_masquerades(attachment: Attachment, part: Part) -> bool:
    chain = chain_name(attachment)
    for table in part.layout.tables():
        jumps = [] if rules.has_rule_of(table, chain, attachment) else _reference_jumps(table, attachment)
        inside = table.list_rules(chain) if jumps else []
        if jumps and all(
            any(rule.is_like(each, chain) for each in (inside if rule.chain == OWN else jumps)) for rule in part.wanted
        ):
            return True
    return False


def _reference_rules(
    table: Table, attachment: Attachment, addresses: Collection[IPInterface], gone: bool
) -> tuple[list[str], list[Rule]]:
    own = {(match("network", _SOURCE[address.version], address.ip.packed),) for address in addresses}
    jumps = [rule for rule in _reference_jumps(table, attachment) if rule.matches in own or (gone and not own)]
    return _with_chains(table, jumps)


def _stale_reference_rules(table: Table, network: str, valid: Collection[Attachment]) -> tuple[list[str], list[Rule]]:
    """Find jumps whose comment names the network and no valid container, and the chains that only they used."""
    kept = {_jump_comment(attachment) for attachment in valid}
    start = f'name: "{network}" id: "'
    jumps = [
        rule
        for rule in table.list_rules(_POSTROUTING, start)
        if rule.comment.startswith(start) and rule.comment not in kept and rule.target.startswith("CNI-")
    ]
    ours = {name for name in {rule.target for rule in jumps} if any(map(rules.is_marked, table.list_rules(name)))}
    return _with_chains(table, [rule for rule in jumps if rule.target not in ours])


def _with_chains(table: Table, jumps: list[Rule]) -> tuple[list[str], list[Rule]]:
    """Return the jumps, and the chains that no other rule of ``POSTROUTING`` jumps to, unless they have our rules."""
    targets = {rule.target for rule in jumps}
    used = {rule.target for target in targets for rule in table.list_rules(_POSTROUTING, target) if rule not in jumps}
    return [name for name in sorted(targets - used) if not any(map(rules.is_marked, table.list_rules(name)))], jumps
