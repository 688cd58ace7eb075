"""Expressions of rules as bytes (``linux/netfilter/nf_tables.h``): of those few kinds that are added by netlink."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache

from ...spec.addresses import IPAddress, IPNetwork
from ..attributes import attribute
from . import nfnetlink

SOURCE, DESTINATION = {4: 12, 6: 8}, {4: 16, 6: 24}
"""Offsets of the addresses in the header, by IP version."""

META_IIFNAME, META_OIFNAME, META_NFPROTO, META_L4PROTO = 6, 7, 15, 16
"""Keys of :func:`compare_meta`."""

DROP, ACCEPT, JUMP, RETURN = 0, 1, 0x100000000 - 3, 0x100000000 - 5
"""Codes of :func:`verdict`."""

_REGISTER = 1
_LIST_ITEM, _NAME, _PARTS = 1, 1, 2
_LINK_HEADER, _NETWORK_HEADER = 0, 1
_SOURCE_MAC = 6  # offset in the Ethernet header


def join(expressions: tuple[bytes, ...]) -> bytes:
    """Return expressions as the payload of a rule's attribute."""
    return b"".join(_nested(_LIST_ITEM, each) for each in expressions)


def compare_address(offsets: Mapping[int, int], address: IPAddress) -> tuple[bytes, bytes]:
    """Make the expressions that compare :data:`SOURCE` or :data:`DESTINATION` with an address."""
    return _payload(_NETWORK_HEADER, offsets[address.version], len(address.packed)), _compare(address.packed)


def compare_network(
    offsets: Mapping[int, int], network: IPNetwork, *, equal: bool = True, whole_address: bool = False
) -> tuple[bytes, ...]:
    """Make the expressions that compare :data:`SOURCE` or :data:`DESTINATION` with a network.

    Args:
        offsets: The field.
        network: The network, with a prefix length of at least 1.
        equal: If true, the address must be in the network; if false, it must not.
        whole_address: Load the whole address, also where the prefix has whole bytes.
    """
    value, mask = network.network_address.packed, network.netmask.packed
    if network.prefixlen == network.max_prefixlen or (network.prefixlen % 8 == 0 and not whole_address):
        size = network.prefixlen // 8
        return _payload(_NETWORK_HEADER, offsets[network.version], size), _compare(value[:size], equal=equal)
    whole = _payload(_NETWORK_HEADER, offsets[network.version], len(value))
    numbers = (number(1, _REGISTER), number(2, _REGISTER), number(3, len(value)))
    bits = expression("bitwise", *numbers, _nested(4, attribute(1, mask)), _nested(5, attribute(1, bytes(len(mask)))))
    return whole, bits, _compare(value, equal=equal)


def compare_source_mac(mac: bytes) -> tuple[bytes, bytes]:
    """Make the expressions that compare the source MAC of a frame."""
    return _payload(_LINK_HEADER, _SOURCE_MAC, len(mac)), _compare(mac)


@lru_cache(maxsize=64)
def compare_meta(key: int, value: bytes) -> tuple[bytes, bytes]:
    """Make the expressions that compare metadata of a packet (nft(8), meta expressions)."""
    return expression("meta", number(2, key), number(1, _REGISTER)), _compare(value)


@cache
def counter() -> bytes:
    """Make the expression that counts packets and bytes."""
    return expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))


@lru_cache(maxsize=64)
def verdict(code: int, chain: str = "") -> bytes:
    """Make the expression that gives the verdict on the packet.

    Args:
        code: :data:`DROP`, :data:`ACCEPT`, :data:`JUMP` or :data:`RETURN`.
        chain: Name of the chain to jump to; empty for other verdicts.
    """
    parts = [number(1, code), *([attribute(2, chain.encode(), b"\0")] if chain else [])]
    return expression("immediate", number(1, 0), _nested(2, _nested(2, *parts)))


def expression(name: str, *parts: bytes) -> bytes:
    """Make an expression of its name and the attributes that it has."""
    return attribute(_NAME, name.encode(), b"\0") + _nested(_PARTS, *parts)


def number(attribute_number: int, value: int) -> bytes:
    """Make an attribute of four bytes, in the network's byte order."""
    return attribute(attribute_number, value.to_bytes(4, "big"))


def _nested(attribute_number: int, *payload: bytes) -> bytes:
    return attribute(attribute_number | nfnetlink.NESTED, *payload)


@cache  # of a few fields of headers
def _payload(base: int, offset: int, size: int) -> bytes:
    return expression("payload", number(1, _REGISTER), number(2, base), number(3, offset), number(4, size))


def _compare(value: bytes, *, equal: bool = True) -> bytes:
    return expression("cmp", number(1, _REGISTER), number(2, 0 if equal else 1), _nested(3, attribute(1, value)))
