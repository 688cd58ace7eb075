"""Drop frames of a container with another source MAC than its own, before they enter the bridge (``macspoofchk``).

In table ``bridge nat``, as with the reference plugin, the chain ``PREROUTING`` jumps from the port to a chain of the
attachment, which lets the MAC pass and drops all other frames. The names are not the reference's: those leave the
network out, and join container and interface with a character that both may contain. So two attachments may get the
same chain.
"""

from __future__ import annotations

from collections.abc import Collection

from ...errors import IOFailureError, PluginNotAvailableError
from ...spec.names import Attachment
from ..links import link
from . import nft, rules
from ._expressions import DROP, META_IIFNAME, RETURN, compare_meta, compare_source_mac, verdict
from .nft import BaseChain, NftTable, Rule, match, match_interface
from .rules import JUMP_TO_OWN, OWN, Layout, Part, Wanted

_BASE = "PREROUTING"
_TABLE = NftTable("bridge", "nat")
_SOURCE_MAC = 6  # offset in the Ethernet header
_IFNAME_SIZE = 16  # IFNAMSIZ, with the NUL
#: Layout of the rules.
LAYOUT = Layout(
    family="bridge",
    table="nat",
    shared=(_BASE,),
    base=(
        "add table bridge nat",
        f"add chain bridge nat {_BASE} {{ type filter hook prerouting priority -300 ; policy accept ; }}",
    ),
    base_chain=BaseChain(_BASE, hook=0, priority=-300),
    prefix="cni-macspoofchk-",
)


def wanted(port: str, mac: str) -> Part:
    """Make the rules that let only this MAC in.

    Args:
        port: Name of the host's end, the port of the bridge.
        mac: Hardware address of the container's end.
    """
    passes = (*compare_source_mac(_bytes_of(mac)), verdict(RETURN))
    from_port = compare_meta(META_IIFNAME, port.encode(errors="surrogateescape").ljust(_IFNAME_SIZE, b"\0"))
    return Part(
        LAYOUT,
        (
            Wanted(OWN, f"ether saddr {mac} return", (_match_mac(mac),), "return", passes),
            Wanted(OWN, "drop", (), "drop", (verdict(DROP),)),
            Wanted(_BASE, f'iifname "{port}" jump {{chain}}', (match_interface(port),), JUMP_TO_OWN, from_port),
        ),
    )


def check(attachment: Attachment, port: str, mac: str) -> None:
    """Verify that the rules are there, ours or the reference's.

    Args:
        attachment: The attachment.
        port: Name of the host's end, the port of the bridge.
        mac: Hardware address of the container's end.

    Raises:
        IOFailureError: (5) They are missing, or let another MAC in.
    """
    part = wanted(port, mac)
    missing = rules.missing_in(LAYOUT, _TABLE, attachment, part.wanted)
    if missing and not _reference_checks(attachment, port, mac):
        raise IOFailureError(
            f"the rules that let only {mac} in from {attachment} are missing or changed", details=f"no {missing}"
        )


def repair(attachment: Attachment, port: str, mac: str, *, dry_run: bool = False) -> bool:
    """Make the rules if :func:`check` would miss one, and return True if it would.

    Args:
        attachment: The attachment.
        port: Name of the host's end, the port of the bridge.
        mac: Hardware address of the container's end.
        dry_run: If true, change nothing: only find out if one is missing.

    Raises:
        CNIError: As :func:`.rules.apply` does.
    """
    if _reference_checks(attachment, port, mac):
        return False
    return rules.repair(attachment, [wanted(port, mac)], dry_run=dry_run)


def delete(attachment: Attachment) -> None:
    """Remove the rules, once the port is gone. Absence is fine.

    Our rules are found by their owner. Rules of the reference do not name their network. They are removed only if
    their port is gone, since a living attachment of that name still has its port.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    _, chain = _reference_names(attachment)
    rules.delete(LAYOUT, attachment, foreign=chain, look=lambda _: _reference_leftovers(attachment))


def gc(network: str, valid: Collection[Attachment]) -> None:
    """Remove the rules of a network's attachments that are not valid. The reference's stay: they name no network.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    rules.gc(LAYOUT, network, valid)


def status() -> None:
    """Raise :class:`PluginNotAvailableError` (50) unless rules can be added."""
    try:
        supported = _TABLE.is_supported()
    except IOFailureError as exc:
        raise PluginNotAvailableError(f"the kernel's nf_tables cannot be used: {exc.msg}") from exc
    if not supported:
        raise PluginNotAvailableError("macspoofchk needs nf_tables for bridges, which this kernel lacks")


def _match_mac(mac: str) -> nft.Match:
    return match("link", _SOURCE_MAC, _bytes_of(mac))


def _bytes_of(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


# --- the reference's layout: PREROUTING jumps to cni-br-iface-ID-IFNAME, that one to cni-br-iface-ID-IFNAME-mac -------


def _reference_names(attachment: Attachment) -> tuple[str, str]:
    """Return comment and chain."""
    name = f"{attachment.container_id}-{attachment.ifname}"
    return f"macspoofchk-{name}", f"cni-br-iface-{name}"


def _reference_jumps(attachment: Attachment) -> list[Rule]:
    comment, chain = _reference_names(attachment)
    return [
        rule
        for rule in _TABLE.list_rules(_BASE, comment)
        if rule.comment == comment and rule.verdict == f"jump {chain}"
    ]


def _reference_checks(attachment: Attachment, port: str, mac: str) -> bool:
    _, chain = _reference_names(attachment)
    return (
        any(rule.matches == (match_interface(port),) for rule in _reference_jumps(attachment))
        and [rule.verdict for rule in _TABLE.list_rules(chain)] == [f"jump {chain}-mac"]
        and [(rule.matches, rule.verdict) for rule in _TABLE.list_rules(f"{chain}-mac")]
        == [((_match_mac(mac),), "return"), ((), "drop")]
    )


def _reference_leftovers(attachment: Attachment) -> tuple[list[str], list[Rule]]:
    """Find the reference's rules of an attachment whose port is gone."""
    jumps = _reference_jumps(attachment)
    dead = [rule for rule in jumps if not _has_live_port(rule)]
    if not dead:
        return [], []
    comment, chain = _reference_names(attachment)
    going = {name for name in (chain, f"{chain}-mac") if _TABLE.has_chain(name)}
    rest = [rule for rule in _TABLE.list_rules("", chain) if rule not in dead]
    # Another interface may have a chain of the same name: so a chain with other rules, or other jumps to it, stays.
    while kept := {rule.chain for rule in rest if rule.chain in going and rule.comment != comment} | {
        rule.target for rule in rest if rule.target in going and rule.chain not in going
    }:
        going -= kept
    return sorted(going), dead


def _has_live_port(rule: Rule) -> bool:
    names = [
        each.value.rstrip(b"\0").decode(errors="surrogateescape") for each in rule.matches if each.what == "iifname"
    ]
    return len(names) != 1 or link.find(names[0]) is not None
