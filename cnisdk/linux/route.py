"""Routes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from ..errors import IOFailureError
from ..spec.addresses import IPAddress, IPNetwork
from . import rtnetlink
from .address import SCOPE_LINK, SCOPE_UNIVERSE
from .attributes import attribute, read, read_uint, uint32
from .netns import NetNS
from .rtnetlink import Request, Socket

# linux/rtnetlink.h
# struct rtmsg: family, lengths of destination and source, type of service, table, protocol, scope, type, flags
_FIXED = struct.Struct("=8BI")
# struct rtnexthop: length with attributes, flags, hops, interface
_NEXT_HOP = struct.Struct("=HBBi")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_MULTIPATH = 1, 4, 5, 6, 8, 9
_RTA_TABLE, _RTA_VIA = 15, 18
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
TABLE_MAIN = 254
TABLE_LOCAL = 255
_TABLE_COMPAT = 252  # for numbers that do not fit the header's byte
_PROTO_BOOT = 3
_TYPE_UNICAST = 1
_F_CLONED = 0x200  # a cached exception, not an entry of the table

CANDIDATES = 256
"""How many routes to the destinations looked for are decoded, which takes the most time: 0.1 ms each."""

_AF_INET, _AF_INET6 = 2, 10
_FAMILIES = {4: _AF_INET, 6: _AF_INET6}
# Of each family: how an address and a network are made, and an address's size in bytes.
_ADDRESSES: dict[int, tuple[Callable[[bytes], IPAddress], Callable[[tuple[bytes, int]], IPNetwork], int]] = {
    _AF_INET: (IPv4Address, IPv4Network, 4),
    _AF_INET6: (IPv6Address, IPv6Network, 16),
}


class KernelRoute(NamedTuple):
    """A route as the kernel has it; one with several next hops is one of these for each.

    Attributes:
        dst: Destination.
        gw: Next hop; None when the destination is on the link.
        link_index: Index of the link packets leave by; 0 for none.
        table: Number of its table, 254 for main.
        priority: Metric; lower is preferred.
        scope: 0 universe, 253 link, 254 host; IPv6 has no scopes and tells 0.
        mtu: Path MTU in bytes, 0 when unset.
        advmss: Advertised maximal segment size in bytes, 0 when unset.
        unicast: It leads somewhere: not local, broadcast, unreachable, ….
    """

    dst: IPNetwork
    gw: IPAddress | None = None
    link_index: int = 0
    table: int = TABLE_MAIN
    priority: int = 0
    scope: int = SCOPE_UNIVERSE
    mtu: int = 0
    advmss: int = 0
    unicast: bool = True


def list_all(netns: NetNS | None = None) -> list[KernelRoute]:
    """List the routes of a namespace in all tables, without those to its own addresses (table ``local``).

    Args:
        netns: None means the calling thread's namespace.

    Raises:
        KernelError: (5) The kernel refused to tell.
    """
    with rtnetlink.connect(netns) as sock:
        return dump(sock)


# -- requests and answers, for modules that send several at once -------------------------------------------------------


def add_request(
    index: int,
    name: str,
    *,
    dst: IPNetwork,
    gw: IPAddress | None = None,
    table: int | None = None,
    priority: int = 0,
    scope: int | None = None,
    mtu: int = 0,
    advmss: int = 0,
) -> Request:
    """Add a route before those there are to the same destination, as ``ip route prepend`` and the reference plugins do.

    Several next hops coexist. Of two networks with a default route, the one attached last has the say for IPv4; IPv6
    spreads over equal routes in whatever order they came.

    Args:
        index: Index of the link.
        name: Its name, for the error.
        dst: Destination.
        gw: Next hop; None when the destination is on the link.
        table: Number of the table; None means main.
        priority: Metric; 0 leaves the kernel's (0 for IPv4, 1024 for IPv6).
        scope: As in ``rtnetlink(7)``; None means universe with a gateway, and link without.
        mtu: Path MTU in bytes; 0 leaves it to the link.
        advmss: Maximal segment size to advertise, in bytes; 0 leaves it to the link.
    """
    table = TABLE_MAIN if table is None else table
    if scope is None:
        scope = SCOPE_LINK if gw is None and dst.version == 4 else SCOPE_UNIVERSE
    number = table if table <= 255 else _TABLE_COMPAT
    family = _FAMILIES[dst.version]
    body = _FIXED.pack(family, dst.prefixlen, 0, 0, number, _PROTO_BOOT, scope, _TYPE_UNICAST, 0)
    body += uint32(_RTA_TABLE, table) + uint32(_RTA_OIF, index)
    if dst.prefixlen:
        body += attribute(_RTA_DST, dst.network_address.packed)
    if gw is not None:
        # IPv4 through an IPv6 next hop (RFC 5549) goes by another attribute, of a family and an address.
        if gw.version == dst.version:
            body += attribute(_RTA_GATEWAY, gw.packed)
        else:
            body += attribute(_RTA_VIA, struct.pack("=H", _FAMILIES[gw.version]), gw.packed)
    if priority:
        body += uint32(_RTA_PRIORITY, priority)
    metrics = [uint32(key, value) for key, value in ((_RTAX_MTU, mtu), (_RTAX_ADVMSS, advmss)) if value]
    if metrics:
        body += attribute(_RTA_METRICS, *metrics)
    what = f"cannot add route {describe(dst, gw)} to link {name}"
    return Request(rtnetlink.NEWROUTE, body, what, rtnetlink.F_ACK | rtnetlink.F_CREATE)


def dump(sock: Socket) -> list[KernelRoute]:
    """List the routes of the socket's namespace in all tables but ``local``."""
    routes = []
    for data in sock.dump(Request(rtnetlink.GETROUTE, bytes(_FIXED.size), "cannot list routes")):
        routes += parse(data)
    return [route for route in routes if route.table != TABLE_LOCAL]


def scan(sock: Socket, version: int, destinations: Iterable[IPNetwork]) -> Iterator[KernelRoute]:
    """Yield the routes to destinations of one IP version, in all tables but ``local``, however many others there are.

    Close the socket afterwards: the kernel may not be through.

    Raises:
        IOFailureError: (5) There are more than :data:`CANDIDATES`, or the kernel refused to tell.
    """
    prefixes = rtnetlink.Wanted(
        (_FAMILIES[each.version], each.prefixlen, each.network_address.packed if each.prefixlen else b"")
        for each in destinations
    )
    request = Request(rtnetlink.GETROUTE, _FIXED.pack(_FAMILIES[version], *[0] * 8), f"cannot list IPv{version} routes")
    left = CANDIDATES
    for data in sock.scan(request):
        if data not in prefixes:
            continue
        if left == 0:
            raise IOFailureError(f"{request.what}: there are more than {CANDIDATES} to what is looked for")
        left -= 1
        for each in parse(data):
            if each.table != TABLE_LOCAL:
                yield each


def parse(data: bytes) -> list[KernelRoute]:
    """Read a route message, with its header; none for families other than IP and for cached entries."""
    start = rtnetlink.HEADER.size
    family, prefix, _, _, table, _, scope, kind, flags = _FIXED.unpack_from(data, start)
    if family not in _ADDRESSES or flags & _F_CLONED:
        return []
    found = read(data, start + _FIXED.size)
    make, network, size = _ADDRESSES[family]
    metrics = read(found.get(_RTA_METRICS, b""))
    common = KernelRoute(
        dst=network((found.get(_RTA_DST, bytes(size)), prefix)),
        gw=_next_hop(found, make),
        link_index=read_uint(found.get(_RTA_OIF, b"")),
        table=read_uint(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        priority=read_uint(found.get(_RTA_PRIORITY, b"")),
        scope=scope,
        mtu=read_uint(metrics.get(_RTAX_MTU, b"")),
        advmss=read_uint(metrics.get(_RTAX_ADVMSS, b"")),
        unicast=kind == _TYPE_UNICAST,
    )
    hops = found.get(_RTA_MULTIPATH, b"")
    if not hops:
        return [common]
    routes = []
    while len(hops) >= _NEXT_HOP.size:
        length, _, _, index = _NEXT_HOP.unpack_from(hops)
        if length < _NEXT_HOP.size:
            break
        gateway = _next_hop(read(hops[:length], _NEXT_HOP.size), make)
        routes.append(common._replace(gw=gateway, link_index=index))
        hops = hops[(length + 3) & ~3 :]
    return routes


def _next_hop(found: dict[int, bytes], make: Callable[[bytes], IPAddress]) -> IPAddress | None:
    """Read the next hop from the attributes of a route, or of one of its several next hops."""
    if _RTA_GATEWAY in found:
        return make(found[_RTA_GATEWAY])
    if _RTA_VIA in found:  # of another family than the route: struct rtvia
        return _ADDRESSES[read_uint(found[_RTA_VIA][:2])][0](found[_RTA_VIA][2:])
    return None


def describe(dst: IPNetwork, gw: IPAddress | None) -> str:
    """``0.0.0.0/0 via 10.1.2.1``."""
    return f"{dst} via {gw}" if gw is not None else str(dst)
