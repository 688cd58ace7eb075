"""Addresses as CNI writes them: ``10.1.2.3``, ``10.1.2.3/24``, ``2001:db8::/64``.

The standard library reads more than CNI allows (dotted masks, host masks, zones, a missing prefix length), so the text
is checked first. As in the reference, an IPv4-mapped IPv6 address is the IPv4 address it maps.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address

#: An address.
IPAddress = IPv4Address | IPv6Address
#: An address with the length of its network's prefix.
IPInterface = IPv4Interface | IPv6Interface
#: A network.
IPNetwork = IPv4Network | IPv6Network

_ADDRESS = frozenset("0123456789abcdefABCDEF:.")
_NUMBER = frozenset("0123456789")
_LENGTH_DIGITS = 3
_MAPPED_BITS = 96


def parse_address(text: str) -> IPAddress:
    """Read an address without prefix length.

    Raises:
        ValueError: ``text`` is not an address, or has a zone.
    """
    if "%" in text:
        raise ValueError(f"{text!r} has a zone")
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def specified(address: IPAddress | None) -> IPAddress | None:
    """Return the address, or None for ``0.0.0.0`` and ``::``, which as a gateway stand for none."""
    return None if address is None or address.is_unspecified else address


def network_of_one(address: IPAddress) -> IPNetwork:
    """Return the network that has this address and no other: ``10.1.2.3/32``, ``2001:db8::1/128``."""
    kind = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
    return kind((int(address), address.max_prefixlen))


def parse_interface(text: str) -> IPInterface:
    """Read an address with its prefix length; the host part is kept.

    Raises:
        ValueError: ``text`` is not an address, a slash and a prefix length.
    """
    before, _, after = text.partition("/")
    if not (before and 0 < len(after) <= _LENGTH_DIGITS and _ADDRESS.issuperset(before) and _NUMBER.issuperset(after)):
        raise ValueError(f"{text!r} is not an address, a slash and a prefix length")
    address, length = ip_address(before), int(after)
    if length > address.max_prefixlen:
        raise ValueError(f"the prefix length of {text!r} is more than {address.max_prefixlen}")
    if isinstance(address, IPv4Address):
        return IPv4Interface((int(address), length))  # given the object, it would make a text and parse that
    if address.ipv4_mapped is None:
        return IPv6Interface((int(address), length))
    if length < _MAPPED_BITS:
        raise ValueError(f"the prefix length of the IPv4-mapped {text!r} is less than {_MAPPED_BITS}")
    return IPv4Interface((int(address.ipv4_mapped), length - _MAPPED_BITS))


@lru_cache(maxsize=64)
def parse_network(text: str) -> IPNetwork:
    """Read a network; host bits are cleared. The requests of a worker name the same subnets and routes again and again.

    Raises:
        ValueError: As :func:`parse_interface`.
    """
    return parse_interface(text).network
