"""Addresses as parts of keys: in etcd, and in the files of a node."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from ..spec.addresses import IPAddress


def key_of_address(address: IPAddress) -> str:
    """Return the part of a key that stands for an address: ``4/0a000005``. Such keys sort as addresses do."""
    return f"{address.version}/{address.packed.hex()}"


def address_of_key(text: str) -> IPAddress:
    """Return the address of which :func:`key_of_address` wrote the key."""
    version, _, number = text.partition("/")
    return (IPv4Address if version == "4" else IPv6Address)(bytes.fromhex(number))
