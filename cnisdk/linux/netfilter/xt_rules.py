"""Rules of iptables based on nftables, added by netlink as ``iptables-restore`` adds them.

Starting ``iptables-restore`` takes milliseconds, a transaction of netlink less than one. This module makes a few kinds
of rules. The tests compare how iptables lists them with how it lists its own. If the kernel refuses a transaction, the
caller starts the program.

Newer programs have shorter ways to write some rules, which older ones do not read: before 1.8.8, ``iptables -S`` shows
a port that is compared without a match as no port at all, and ``iptables-save`` loses it. All versions read the older
ways, so rules are written in those: ports by the protocol's match, and networks by the whole address and a mask.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from ..._light import NamedTuple
from ...spec.addresses import IPAddress, IPNetwork
from ..attributes import attribute
from . import nfnetlink
from ._expressions import (
    ACCEPT,
    DESTINATION,
    JUMP,
    META_IIFNAME,
    META_L4PROTO,
    META_OIFNAME,
    SOURCE,
    compare_address,
    compare_meta,
    compare_network,
    counter,
    expression,
    join,
    number,
    verdict,
)
from .nft import NftTable

_SUBSYSTEM = 10
_NEW_CHAIN, _NEW_RULE, _DELETE_RULE = (_SUBSYSTEM << 8 | number for number in (3, 6, 8))
_APPEND = 0x800
_FAMILIES = {"ip": 2, "ip6": 10}
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_COMPATIBILITY = 1, 2, 4, 5
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
# Structures are padded to the alignment of the kernel's u64 (XT_ALIGN).
_ALIGNMENT = struct.calcsize("BQ") - 8
_COMMENT = 256  # struct xt_comment_info
# struct xt_conntrack_mtinfo3: addresses and ports; what is looked at, what is inverted, states; status and ports.
_CONNTRACK = struct.Struct("=146xHHH12x")
_CONNTRACK_STATE, _RELATED_OR_ESTABLISHED = 1, 0x6
# struct xt_tcp: source and destination ports; an option, flags and what is inverted. struct xt_udp: likewise.
_TCP, _UDP = struct.Struct("=HHHH4x"), struct.Struct("=HHHH2x")
_ALL_PORTS = (0, 0xFFFF)
# struct xt_sctp_info: destination and source ports; a map of chunks, how it is meant, flags of four chunks and their
# number; which of all this is looked at, and what is inverted.
_SCTP = struct.Struct("=HHHH256xI12siII")
_NO_FLAGS, _SCTP_DESTINATION = b"\xff\0\0" * 4, 0x2
# struct xt_multiport_v1: of which end, how many, the ports; which of them begin a range, and if it is inverted.
_MULTIPORT = struct.Struct("=BB15H15xB")
_MULTIPORT_DESTINATION = 1
# struct xt_connmark_tginfo2: mark, mask, mask of the packet's mark; a shift, and what to do.
_CONNMARK = struct.Struct("=III3x")
# struct nf_nat_range2: flags, first and last address, first and last port, a base port.
_RANGE = struct.Struct("=I16s16s2s2s2x")
_MAP_ADDRESS_AND_PORT = 0x3
# Matches of protocols, by number.
_MATCHES = {6: "tcp", 17: "udp", 132: "sctp"}


class IptablesRule(NamedTuple):
    """A rule to add.

    Attributes:
        chain: Its chain.
        expressions: Its expressions, as bytes.
        protocol: Number of the protocol that it is for; 0 for all. Some matches insist on one.
    """

    chain: str
    expressions: tuple[bytes, ...]
    protocol: int = 0


def accept_replies(address: IPAddress) -> tuple[bytes, ...]:
    """Return the expressions of ``-d ADDRESS -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT``."""
    states = _match("conntrack", 3, _CONNTRACK.pack(_CONNTRACK_STATE, 0, _RELATED_OR_ESTABLISHED))
    return (*compare_address(DESTINATION, address), states, counter(), verdict(ACCEPT))


def accept_source(address: IPAddress) -> tuple[bytes, ...]:
    """Return the expressions of ``-s ADDRESS -j ACCEPT``."""
    return (*compare_address(SOURCE, address), counter(), verdict(ACCEPT))


def note(address: IPAddress | None, incoming: str, outgoing: str, comment: str) -> tuple[bytes, ...]:
    """Return the expressions of ``-i INCOMING -o OUTGOING -s ADDRESS -m comment --comment TEXT``, without effect.

    An empty name of an interface leaves its option out, and no address ``-s``.

    Args:
        address: The address, if there is one.
        incoming: Name of the interface it comes from.
        outgoing: Name of the interface it leaves by.
        comment: The comment, at most 255 bytes.
    """
    return (
        *(compare_meta(META_IIFNAME, _name(incoming)) if incoming else ()),
        *(compare_meta(META_OIFNAME, _name(outgoing)) if outgoing else ()),
        *(compare_address(SOURCE, address) if address is not None else ()),
        _comment(comment),
        counter(),
    )


def mark_connection(bit: int, comment: str) -> tuple[bytes, ...]:
    """Return the expressions of ``-m comment --comment TEXT -j CONNMARK --set-xmark BIT/BIT``.

    Args:
        bit: The bit, as a number with just that bit set.
        comment: The comment, at most 255 bytes.
    """
    return (_comment(comment), counter(), _xt("target", "CONNMARK", 2, _CONNMARK.pack(bit, bit, 0xFFFFFFFF)))


def to_port(
    protocol: int, port: int, destination: IPAddress | None, source: IPNetwork | None, action: bytes
) -> tuple[bytes, ...]:
    """Return the expressions of ``-p PROTOCOL -s SOURCE -d DESTINATION --dport PORT``, and an action.

    Args:
        protocol: Number of the protocol.
        port: Destination port.
        destination: Destination address; None means any.
        source: Source network; None means any.
        action: Result of :func:`jump` or :func:`translate`.
    """
    name = _MATCHES[protocol]
    if name == "sctp":
        info = _SCTP.pack(port, port, 0, 0, 0, _NO_FLAGS, 0, _SCTP_DESTINATION, 0)
    else:
        info = (_TCP if name == "tcp" else _UDP).pack(*_ALL_PORTS, port, port)
    return (
        *compare_meta(META_L4PROTO, bytes([protocol])),
        *(compare_network(SOURCE, source, whole_address=True) if source is not None and source.prefixlen else ()),
        *(compare_address(DESTINATION, destination) if destination is not None else ()),
        _match(name, 0, info),
        counter(),
        action,
    )


def to_ports(protocol: int, ports: Sequence[int], comment: str, action: bytes) -> tuple[bytes, ...]:
    """Return the expressions of ``-p PROTOCOL -m comment --comment TEXT -m multiport --destination-ports PORTS``.

    Args:
        protocol: Number of the protocol.
        ports: The ports, at most 15.
        comment: The comment.
        action: Result of :func:`jump`, the last expression.
    """
    numbers = (_MULTIPORT_DESTINATION, len(ports), *ports, *[0] * (15 - len(ports)), 0)
    multiport = _match("multiport", 1, _MULTIPORT.pack(*numbers))
    return (*compare_meta(META_L4PROTO, bytes([protocol])), _comment(comment), multiport, counter(), action)


def jump(chain: str) -> bytes:
    """Return the expression of ``-j CHAIN``."""
    return verdict(JUMP, chain)


def translate(address: IPAddress, port: int) -> bytes:
    """Return the expression of ``-j DNAT --to-destination ADDRESS:PORT``.

    Args:
        address: Address of the container.
        port: Port of the container.
    """
    where, number = address.packed.ljust(16, b"\0"), port.to_bytes(2, "big")
    return _xt("target", "DNAT", 2, _RANGE.pack(_MAP_ADDRESS_AND_PORT, where, where, number, number))


def add(table: NftTable, added: Iterable[IptablesRule], chain: str = "", *, again: bool = False) -> bool:
    """Add rules behind all others of their chains, in one transaction.

    Args:
        table: The table.
        added: The rules.
        chain: Name of a chain to make first; empty for none.
        again: If true, the chain exists already, and its rules are deleted first.

    Returns:
        False if the kernel refused, such as for a chain that is not there, or one to make that is.
    """
    messages: list[nfnetlink.FilterMessage] = []
    if chain:
        body = attribute(_CHAIN_TABLE, table.name.encode(), b"\0") + attribute(_CHAIN_NAME, chain.encode(), b"\0")
        make = (_NEW_CHAIN, nfnetlink.CREATE | nfnetlink.EXCLUSIVE, _FAMILIES[table.family], body)
        rules = attribute(_RULE_TABLE, table.name.encode(), b"\0") + attribute(_RULE_CHAIN, chain.encode(), b"\0")
        messages.append((_DELETE_RULE, 0, _FAMILIES[table.family], rules) if again else make)
    for where, expressions, protocol in added:
        body = attribute(_RULE_TABLE, table.name.encode(), b"\0") + attribute(_RULE_CHAIN, where.encode(), b"\0")
        body += attribute(_RULE_EXPRESSIONS | nfnetlink.NESTED, join(expressions))
        if protocol:
            body += attribute(_RULE_COMPATIBILITY | nfnetlink.NESTED, number(1, protocol), number(2, 0))
        messages.append((_NEW_RULE, nfnetlink.CREATE | _APPEND, _FAMILIES[table.family], body))
    try:
        return nfnetlink.transact(_SUBSYSTEM, messages) == 0
    except OSError:
        return False


def _name(interface: str) -> bytes:
    return interface.encode(errors="surrogateescape") + b"\0"


def _comment(text: str) -> bytes:
    return _match("comment", 0, text.encode(errors="surrogateescape")[: _COMMENT - 1].ljust(_COMMENT, b"\0"))


def _match(name: str, revision: int, info: bytes) -> bytes:
    return _xt("match", name, revision, info)


def _xt(kind: str, name: str, revision: int, info: bytes) -> bytes:
    padded = info + bytes(-len(info) % _ALIGNMENT)
    return expression(kind, attribute(1, name.encode(), b"\0"), number(2, revision), attribute(3, padded))
