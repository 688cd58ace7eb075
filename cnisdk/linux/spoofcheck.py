"""Drop what a container sends with another source MAC than its own, before it enters the bridge (``macspoofchk``).

The layout is the reference's, so that either side removes what the other added: in table ``bridge nat``, the chain
``PREROUTING`` jumps from the port to a chain of the attachment, that one to a second which lets the MAC pass and drops
the rest.
"""

from __future__ import annotations

from collections.abc import Collection

from ..errors import IOFailureError, PluginNotAvailableError
from ..spec.names import Attachment, network_tag_prefixes, short_hash
from . import nft, program

_FAMILY, _TABLE, _BASE = "bridge", "nat", "PREROUTING"
_WHERE = f"{_FAMILY} {_TABLE}"
_MAC_SUFFIX = "-mac"


def add(attachment: Attachment, port: str, mac: str) -> None:
    """Let only this MAC in. Rules left by an earlier ADD are replaced.

    Args:
        attachment: Whose rules they are.
        port: Name of the host's end, the port of the bridge.
        mac: Hardware address of the container's end.

    Raises:
        IOFailureError: (5) The kernel or ``nft`` refused.
        PluginNotAvailableError: (50) ``nft`` is not installed.
    """
    chain, comment = _chain(attachment), _comment(attachment)
    tag = attachment._replace(ifname=nft.plain(attachment.ifname)).tag[: nft.COMMENT_MAX]
    nft.commit(
        [
            f"add table {_WHERE}",
            f"add chain {_WHERE} {_BASE} {{ type filter hook prerouting priority -300 ; policy accept ; }}",
            f"add chain {_WHERE} {chain}",
            f"add chain {_WHERE} {chain}{_MAC_SUFFIX}",
            f"flush chain {_WHERE} {chain}",
            f"flush chain {_WHERE} {chain}{_MAC_SUFFIX}",
            *_deletions(_jumps(attachment)),
            f'add rule {_WHERE} {chain}{_MAC_SUFFIX} ether saddr {mac} return comment "{comment}"',
            f'add rule {_WHERE} {chain}{_MAC_SUFFIX} drop comment "{tag}"',
            f'add rule {_WHERE} {chain} jump {chain}{_MAC_SUFFIX} comment "{comment}"',
            f'add rule {_WHERE} {_BASE} iifname "{port}" jump {chain} comment "{comment}"',
        ]
    )


def check(attachment: Attachment, mac: str) -> None:
    """Verify that the rules are there.

    Raises:
        IOFailureError: (5) They are not, or let another MAC in.
    """
    rules = nft.list_rules(_FAMILY, _TABLE, _chain(attachment) + _MAC_SUFFIX)
    allowed = [
        part["match"]["right"] for rule in rules for part in rule.expr if isinstance(part, dict) and "match" in part
    ]
    if not _jumps(attachment) or allowed != [mac.lower()]:
        raise IOFailureError(f"the rules that let only {mac} in from {attachment} are missing or changed")


def delete(attachment: Attachment) -> None:
    """Remove the rules. Absence is fine.

    Raises:
        IOFailureError: (5) The kernel or ``nft`` refused.
    """
    _delete_chain(_chain(attachment), _jumps(attachment))


def gc(network: str, valid: Collection[Attachment]) -> None:
    """Remove the rules of a network's attachments that are not valid. Those of the reference do not tell their network.

    Raises:
        IOFailureError: (5) The kernel or ``nft`` refused.
    """
    kept = {_chain(attachment) + _MAC_SUFFIX for attachment in valid}
    rules = nft.list_table(_FAMILY, _TABLE, _BASE)
    for rule in rules:
        ours = rule.comment.startswith(network_tag_prefixes(network)) and rule.chain.endswith(_MAC_SUFFIX)
        if ours and rule.chain not in kept:
            chain = rule.chain.removesuffix(_MAC_SUFFIX)
            _delete_chain(chain, [each for each in rules if each.chain == _BASE and _target(each) == chain])


def status() -> None:
    """Raise :class:`PluginNotAvailableError` (50) unless rules can be added."""
    if program.find("nft") is None:
        raise PluginNotAvailableError("macspoofchk needs the program nft, which is not installed")


def _chain(attachment: Attachment) -> str:
    """The reference's name, with the container's id hashed where the name would be too long for nftables."""
    container_id, ifname = attachment.container_id, nft.plain(attachment.ifname)
    name = f"cni-br-iface-{container_id}-{ifname}"
    if len(name) + len(_MAC_SUFFIX) > nft.NAME_MAX:
        name = f"cni-br-iface-{short_hash(container_id, digits=32)}-{ifname}"
    return name


def _comment(attachment: Attachment) -> str:
    """The reference's comment, hashed likewise."""
    container_id, ifname = attachment.container_id, nft.plain(attachment.ifname)
    text = f"macspoofchk-{container_id}-{ifname}"
    if len(text) > nft.COMMENT_MAX - 1:
        text = f"macspoofchk-{short_hash(container_id, digits=32)}-{ifname}"
    return text


def _target(rule: nft.Rule) -> str:
    for part in rule.expr:
        if isinstance(part, dict) and "jump" in part:
            return str(part["jump"]["target"])
    return ""


def _jumps(attachment: Attachment) -> list[nft.Rule]:
    chain = _chain(attachment)
    return [rule for rule in nft.list_rules(_FAMILY, _TABLE, _BASE) if _target(rule) == chain]


def _deletions(rules: Collection[nft.Rule]) -> list[str]:
    return [f"delete rule {_WHERE} {rule.chain} handle {rule.handle}" for rule in rules]


def _delete_chain(chain: str, jumps: Collection[nft.Rule]) -> None:
    there = [name for name in (chain, chain + _MAC_SUFFIX) if nft.has_chain(_FAMILY, _TABLE, name)]
    nft.commit(
        [
            *_deletions(jumps),
            *(f"flush chain {_WHERE} {name}" for name in there),
            *(f"delete chain {_WHERE} {name}" for name in there),
        ]
    )
