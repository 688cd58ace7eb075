"""DHCP options (RFC 2132): their numbers and names, and the values that a client reads from them.

A value that is malformed reads as absent, or as far as it is well formed: a server's mistake in one option must not
keep a container from its address.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from ..errors import InvalidConfigError
from ..spec.names import shorten

#: The network's mask (RFC 2132, section 3.3), routers (3.5) and name servers (3.8).
SUBNET_MASK, ROUTERS, NAME_SERVERS = 1, 3, 6
#: Host name of the client, domain, MTU of the interface, static routes (RFC 2132, sections 3.14, 3.17, 5.1 and 5.8).
HOST_NAME, DOMAIN_NAME, INTERFACE_MTU, STATIC_ROUTES = 12, 15, 26, 33
#: Options of the protocol itself (RFC 2132, section 9).
REQUESTED_ADDRESS, LEASE_TIME, OVERLOAD, MESSAGE_TYPE, SERVER_ID = 50, 51, 52, 53, 54
#: More options of the protocol itself.
PARAMETERS, ERROR_MESSAGE, MAX_MESSAGE_SIZE, RENEWAL_TIME, REBINDING_TIME, CLIENT_ID = 55, 56, 57, 58, 59, 61
#: Search domains (RFC 3397) and classless static routes (RFC 3442).
DOMAIN_SEARCH, CLASSLESS_ROUTES = 119, 121

NAMES = {
    "dhcp-client-identifier": CLIENT_ID,
    "subnet-mask": SUBNET_MASK,
    "routers": ROUTERS,
    "host-name": HOST_NAME,
    "user-class": 77,
    "vendor-class-identifier": 60,
    # The reference knows the names above; these are dhclient's.
    "domain-name-servers": NAME_SERVERS,
    "domain-name": DOMAIN_NAME,
    "domain-search": DOMAIN_SEARCH,
    "interface-mtu": INTERFACE_MTU,
    "static-routes": STATIC_ROUTES,
    "classless-static-routes": CLASSLESS_ROUTES,
    "rfc3442-classless-static-routes": CLASSLESS_ROUTES,
}
"""Numbers of options, by the names that a configuration may use."""

REQUESTED = (
    *(SUBNET_MASK, CLASSLESS_ROUTES, ROUTERS, STATIC_ROUTES),
    *(NAME_SERVERS, DOMAIN_NAME, DOMAIN_SEARCH, RENEWAL_TIME, REBINDING_TIME),
)
"""Options that a client requests unless it is told otherwise, in order: RFC 3442 wants 121 before 3 and 33.

dnsmasq sends the times that its configuration gives only to clients that request them.
"""

_LONGEST = 255
# What may stand in resolv.conf without meaning anything else there.
_LABEL = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_LABEL_MAX, _NAME_MAX = 63, 253
# Owned by the protocol: a configuration that provides one would break the exchange.
_RESERVED = frozenset({0, OVERLOAD, MESSAGE_TYPE, SERVER_ID, PARAMETERS, 255})


def parse_option(name: str, path: str) -> int:
    """Return the number of an option, from its name or its decimal number.

    Args:
        name: Name or number.
        path: Where it is in the configuration.

    Raises:
        InvalidConfigError: (7) There is no such option.
    """
    number = NAMES.get(name)
    if number is None and name.isascii() and name.isdigit() and int(name) <= 255:
        number = int(name)
    if number is None:
        raise InvalidConfigError(
            f"Can not parse option {shorten(name)}",
            details=f"{path}: expected a number from 0 to 255, or one of {', '.join(NAMES)}",
        )
    return number


def check_requested(number: int, path: str) -> int:
    """Return the number of an option that a client may ask for.

    Raises:
        InvalidConfigError: (7) It is the number of a filler, or of the end of the options.
    """
    if number in (0, 255):
        raise InvalidConfigError(f"option {number} cannot be requested", details=f"{path}: it has no value")
    return number


def check_provided(number: int, value: bytes, path: str) -> bytes:
    """Return the value that a client is to send for an option.

    Raises:
        InvalidConfigError: (7) It is too long, or the option is the protocol's own.
    """
    if number in _RESERVED:
        raise InvalidConfigError(f"option {number} cannot be provided", details=f"{path}: the client sets it itself")
    if len(value) > _LONGEST:
        raise InvalidConfigError(
            f"value of option {number} is longer than {_LONGEST} bytes: it has {len(value)}", details=path
        )
    return value


def read_number(options: Mapping[int, bytes], number: int) -> int | None:
    """Return the unsigned number in an option of two or four bytes; None without one."""
    value = options.get(number, b"")
    return int.from_bytes(value, "big") if len(value) in (2, 4) else None


def is_host(address: IPv4Address) -> bool:
    """Return True if a host can have an address: it is in no block for a special purpose (RFC 1122, section 3.2.1.3).

    Those are ``0.0.0.0/8``, loopback, multicast, and ``240.0.0.0/4`` with the broadcast address.
    """
    return 1 <= address.packed[0] < 224 and address.packed[0] != 127


def read_addresses(options: Mapping[int, bytes], number: int) -> tuple[IPv4Address, ...]:
    """Return the addresses of hosts in an option, each once; see :func:`is_host`."""
    value = options.get(number, b"")
    found = (IPv4Address(value[start : start + 4]) for start in range(0, len(value) - 3, 4))
    return tuple(dict.fromkeys(each for each in found if is_host(each)))


def read_text(options: Mapping[int, bytes], number: int) -> str:
    """Return the text of an option; empty if it is absent, or has other characters than printable ASCII."""
    text = options.get(number, b"").rstrip(b"\0").decode("ascii", "replace")
    return text if text.isascii() and text.isprintable() else ""


def read_domain(options: Mapping[int, bytes]) -> str:
    """Return the domain of option 15; empty if it is absent, or has other characters than names of hosts have."""
    name = options.get(DOMAIN_NAME, b"").rstrip(b"\0").removesuffix(b".")
    labels = name.split(b".")
    sound = len(name) <= _NAME_MAX and all(0 < len(each) <= _LABEL_MAX and _LABEL.issuperset(each) for each in labels)
    return name.decode() if sound else ""


def read_prefix_length(options: Mapping[int, bytes]) -> int | None:
    """Return the prefix length that the subnet mask means; None if it is absent or no mask."""
    mask = options.get(SUBNET_MASK, b"")
    if len(mask) != 4:
        return None
    bits = f"{int.from_bytes(mask, 'big'):032b}"
    return bits.count("1") if "01" not in bits else None


def read_classless_routes(options: Mapping[int, bytes]) -> tuple[tuple[IPv4Network, IPv4Address], ...]:
    """Return destination and router of the classless static routes (RFC 3442), up to the first malformed one.

    The router ``0.0.0.0`` means that the destination is on the link.
    """
    value, routes, at = options.get(CLASSLESS_ROUTES, b""), [], 0
    while at < len(value) and value[at] <= 32:
        length = value[at]
        size = (length + 7) // 8
        if len(value) < at + 1 + size + 4:
            break
        destination = int.from_bytes(value[at + 1 : at + 1 + size].ljust(4, b"\0"), "big")
        router = IPv4Address(value[at + 1 + size : at + 5 + size])
        routes.append((IPv4Network((destination, length), strict=False), router))
        at += 5 + size
    return tuple(routes)


def read_static_routes(options: Mapping[int, bytes]) -> tuple[tuple[IPv4Network, IPv4Address], ...]:
    """Return destination and router of the static routes of option 33, whose masks go by the destination's class.

    The default route is no legal destination there (RFC 2132, section 5.8), and is left out.
    """
    value, routes = options.get(STATIC_ROUTES, b""), []
    for start in range(0, len(value) - 7, 8):
        destination, router = struct.unpack_from("!I4s", value, start)
        length = _class_length(destination)
        if destination and length:
            routes.append((IPv4Network((destination, length), strict=False), IPv4Address(router)))
    return tuple(routes)


def _class_length(destination: int) -> int:
    """Return the prefix length of an address's class (RFC 791, section 3.2); 0 for multicast and beyond."""
    for leading, bits, length in ((0, 1, 8), (0b10, 2, 16), (0b110, 3, 24)):
        if destination >> (32 - bits) == leading:
            return length
    return 0


def read_domains(options: Mapping[int, bytes]) -> tuple[str, ...]:
    """Return the search domains of option 119 (RFC 3397), each once, up to the first malformed one.

    A pointer leads to an earlier place of the option (RFC 1035, section 4.1.4). A name that is longer than names can be
    is malformed: a few bytes could mean thousands of long names otherwise.
    """
    value, domains, at = options.get(DOMAIN_SEARCH, b""), [], 0
    while at < len(value):
        labels: list[str] = []
        end = _read_labels(value, at, labels)
        if end is None:
            break
        if labels:
            domains.append(".".join(labels))
        at = end
    return tuple(dict.fromkeys(domains))


def _read_labels(value: bytes, at: int, labels: list[str]) -> int | None:
    """Read one name; return where it ends, or None if it is malformed. Each pointer must lead backwards."""
    end, lowest, size = None, at, -1
    while at < len(value):
        length = value[at]
        if length == 0:
            return end or at + 1
        if length >= 0xC0:
            target = int.from_bytes(value[at : at + 2], "big") & 0x3FFF
            if at + 2 > len(value) or target >= lowest:
                return None
            end, at, lowest = end or at + 2, target, target
            continue
        label = value[at + 1 : at + 1 + length]
        if not 0 < len(label) <= _LABEL_MAX or not _LABEL.issuperset(label) or len(label) < length:
            return None
        size += 1 + length
        if size > _NAME_MAX:
            return None
        labels.append(label.decode())
        at += 1 + length
    return None
