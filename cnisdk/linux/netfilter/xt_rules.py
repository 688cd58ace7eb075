"""Rules of iptables based on nftables, added by netlink: in the very bytes in which ``iptables-restore`` adds them.

Starting ``iptables-restore`` takes milliseconds, a transaction of netlink less than one. Few kinds of rules are made
here, and the tests compare their bytes with those of the program.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ...spec.addresses import IPAddress
from ..attributes import attribute
from . import nfnetlink
from .nft import NftTable

_SUBSYSTEM = 10
_NEW_RULE = _SUBSYSTEM << 8 | 6
_APPEND = 0x800
_FAMILIES = {"ip": 2, "ip6": 10}
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_LIST_ITEM, _NAME, _PARTS = 1, 1, 2
_REGISTER = 1
_NETWORK_HEADER = 1
_META_IIFNAME = 6
_ACCEPT = 1
_SOURCE, _DESTINATION = {4: 12, 6: 8}, {4: 16, 6: 24}  # offsets in the header
# Structures are padded to the alignment of the kernel's u64 (XT_ALIGN).
_ALIGNMENT = struct.calcsize("BQ") - 8
_COMMENT = 256  # struct xt_comment_info
# struct xt_conntrack_mtinfo3: addresses and ports; what is looked at, what is inverted, states; status and ports.
_CONNTRACK = struct.Struct("=146xHHH12x")
_CONNTRACK_STATE, _RELATED_OR_ESTABLISHED = 1, 0x6


def accept_replies(address: IPAddress) -> tuple[bytes, ...]:
    """Return ``-d ADDRESS -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT``."""
    states = _match("conntrack", 3, _CONNTRACK.pack(_CONNTRACK_STATE, 0, _RELATED_OR_ESTABLISHED))
    return (*_compare_address(_DESTINATION, address), states, _counter(), _accept())


def accept_source(address: IPAddress) -> tuple[bytes, ...]:
    """Return ``-s ADDRESS -j ACCEPT``."""
    return (*_compare_address(_SOURCE, address), _counter(), _accept())


def note(address: IPAddress, interface: str, comment: str) -> tuple[bytes, ...]:
    """Return ``-i INTERFACE -s ADDRESS -m comment --comment TEXT``, which does nothing; ``-i`` if there is a name."""
    text = comment.encode(errors="surrogateescape")[: _COMMENT - 1]
    return (
        *(_compare_interface(interface) if interface else ()),
        *_compare_address(_SOURCE, address),
        _match("comment", 0, text.ljust(_COMMENT, b"\0")),
        _counter(),
    )


def add(table: NftTable, added: Iterable[tuple[str, tuple[bytes, ...]]]) -> bool:
    """Add rules behind all others of their chains, in one transaction.

    Args:
        table: The table.
        added: The chain and the expressions of each.

    Returns:
        False if the kernel refused, such as for a chain that is not there.
    """
    messages: list[nfnetlink.FilterMessage] = []
    for chain, expressions in added:
        listed = [_nested(_LIST_ITEM, each) for each in expressions]
        body = attribute(_RULE_TABLE, table.name.encode(), b"\0") + attribute(_RULE_CHAIN, chain.encode(), b"\0")
        body += _nested(_RULE_EXPRESSIONS, *listed)
        messages.append((_NEW_RULE, nfnetlink.CREATE | _APPEND, _FAMILIES[table.family], body))
    try:
        return nfnetlink.transact(_SUBSYSTEM, messages) == 0
    except OSError:
        return False


# --- expressions (linux/netfilter/nf_tables.h) ------------------------------------------------------------------------


def _nested(number: int, *payload: bytes) -> bytes:
    return attribute(number | nfnetlink.NESTED, *payload)


def _number(number: int, value: int) -> bytes:
    return attribute(number, value.to_bytes(4, "big"))


def _expression(name: str, *parts: bytes) -> bytes:
    return attribute(_NAME, name.encode(), b"\0") + _nested(_PARTS, *parts)


def _compare(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER), _number(2, 0), _nested(3, attribute(1, value)))


def _compare_address(offsets: dict[int, int], address: IPAddress) -> tuple[bytes, bytes]:
    parts = (_REGISTER, _NETWORK_HEADER, offsets[address.version], len(address.packed))
    return _expression("payload", *(_number(1 + index, each) for index, each in enumerate(parts))), _compare(
        address.packed
    )


def _compare_interface(name: str) -> tuple[bytes, bytes]:
    meta = _expression("meta", _number(2, _META_IIFNAME), _number(1, _REGISTER))
    return meta, _compare(name.encode(errors="surrogateescape") + b"\0")


def _match(name: str, revision: int, info: bytes) -> bytes:
    padded = info + bytes(-len(info) % _ALIGNMENT)
    return _expression("match", attribute(1, name.encode(), b"\0"), _number(2, revision), attribute(3, padded))


def _counter() -> bytes:
    return _expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))


def _accept() -> bytes:
    return _expression("immediate", _number(1, 0), _nested(2, _nested(2, _number(1, _ACCEPT))))
