"""Routes of a network namespace, in all its tables."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ..._light import Any, NamedTuple
from ...errors import IOFailureError
from ...spec.addresses import IPAddress, IPNetwork
from .. import rtnetlink
from ..attributes import attribute, iterate, read, read_uint, uint32
from ..links import link
from ..netns import NetNS
from ..rtnetlink import KernelError, Message, Socket
from .address import SCOPE_LINK, SCOPE_UNIVERSE

# linux/rtnetlink.h
# struct rtmsg: family, lengths of destination and source, type of service, table, protocol, scope, type, flags
_FIXED = struct.Struct("=8BI")
_TABLE_OFFSET = 4  # where that header has it
# struct rtnexthop: length with attributes, flags, hops, interface
_NEXT_HOP = struct.Struct("=HBBi")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = 8, 9, 12, 15, 18, 30
# Attributes that the kernel derives from a next hop object (ip nexthop). It refuses them together with RTA_NH_ID.
_BY_NH_ID = frozenset({_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA})
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
#: Routing tables (linux/rtnetlink.h, rt_class_t).
TABLE_MAIN, TABLE_LOCAL = 254, 255
_TABLE_COMPAT = 252  # for numbers that do not fit the header's byte
#: Origin of a route (linux/rtnetlink.h, RTPROT_KERNEL): the kernel made it, for an address.
PROTO_KERNEL = 2
_PROTO_BOOT = 3
_TYPE_UNICAST = 1
_F_ONLINK = 0x4
_F_CLONED = 0x200  # a cached exception, not an entry of the table

CANDIDATES = 256
"""Routes to the wanted destinations that are decoded at most. Decoding one takes 0.1 ms, most of the time."""

_AF_INET, _AF_INET6 = 2, 10
_FAMILIES = {4: _AF_INET, 6: _AF_INET6}
# Of each family: how an address and a network are made, and an address's size in bytes.
_ADDRESSES: dict[int, tuple[Callable[[bytes], IPAddress], Callable[[tuple[bytes, int]], IPNetwork], int]] = {
    _AF_INET: (IPv4Address, IPv4Network, 4),
    _AF_INET6: (IPv6Address, IPv6Network, 16),
}


class KernelRoute(NamedTuple):
    """A route as the kernel has it. A route with several next hops is a list of these, one for each next hop.

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
        src: Source address of what this host sends there; None leaves it to the kernel.
        protocol: Origin of the route, ``rtm_protocol`` of ``rtnetlink(7)``; 2 is the kernel, for an address.
        message: The kernel's message about it, without netlink header.
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
    src: IPAddress | None = None
    protocol: int = 0
    message: bytes = b""


def list_all(netns: NetNS | None = None) -> list[KernelRoute]:
    """List the routes of a namespace in all tables, without those to its own addresses (table ``local``).

    Args:
        netns: None means the calling thread's namespace.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    with rtnetlink.connect(netns) as sock:
        return dump(sock)


def list_to(destinations: Collection[IPNetwork], netns: NetNS | None = None) -> list[KernelRoute]:
    """List the routes to these destinations, in all tables but ``local``, however many others there are.

    Args:
        destinations: Networks; a route to a part of one, or to more, is not listed.
        netns: None means the calling thread's namespace.

    Raises:
        IOFailureError: (5) There are more than :data:`CANDIDATES`, or the kernel refused the query.
    """
    found: list[KernelRoute] = []
    for version in sorted({each.version for each in destinations}):
        wanted = {each for each in destinations if each.version == version}
        with rtnetlink.connect(netns) as sock:
            found += [each for each in scan(sock, version, wanted) if each.dst in wanted]
    return found


def find_default_link(netns: NetNS | None = None) -> link.Link | None:
    """Look up the link of the default route, of IPv4 if there is one, or else of IPv6; None when there is neither.

    Of several default routes the kernel's first counts: that with the lowest metric.

    Args:
        netns: None means the calling thread's namespace.

    Raises:
        IOFailureError: (5) The kernel refused the query.
    """
    for default in (IPv4Network("0.0.0.0/0"), IPv6Network("::/0")):
        with rtnetlink.connect(netns) as sock:
            leads = (
                each.unicast and each.table == TABLE_MAIN and each.link_index
                for each in scan(sock, default.version, [default])
            )
            index = next(filter(None, leads), 0)
        if index:
            return link.get_by_index(index, netns)
    return None


def find_link_to(address: IPAddress, netns: NetNS | None = None) -> link.Link | None:
    """Look up the link by which packets to an address leave, in whatever table the kernel finds the route.

    Args:
        address: The destination.
        netns: None means the calling thread's namespace.

    Returns:
        The link; None when there is no route.
    """
    fixed = _FIXED.pack(_FAMILIES[address.version], address.max_prefixlen, *[0] * 7)
    request = Message(rtnetlink.GETROUTE, fixed + attribute(_RTA_DST, address.packed), f"route to {address}")
    with rtnetlink.connect(netns) as sock:
        (answer,) = sock.exchange([request])
    if answer is None or isinstance(answer, KernelError):
        return None
    index = read_uint(read(answer, rtnetlink.HEADER.size + _FIXED.size).get(_RTA_OIF, b""))
    return link.get_by_index(index, netns) if index else None


def add(end: link.Link, dst: IPNetwork, gw: IPAddress | None = None, **more: Any) -> None:
    """Add a route over a link, before those there are to the same destination.

    Args:
        end: The link; the route is in its namespace.
        dst: Destination.
        gw: Next hop; None when the destination is on the link.
        **more: ``src``, ``table``, ``priority``, ``scope``, ``mtu`` and ``advmss``, see :func:`add_request`.

    Raises:
        KernelError: (5) The kernel refused: EEXIST when there is this route, ENETUNREACH when no link leads to `gw`.
    """
    _send(end.netns, add_request(end.index, end.name, dst=dst, gw=gw, **more))


def replace(end: link.Link, dst: IPNetwork, gw: IPAddress | None = None, **more: Any) -> None:
    """Put a route over a link in place of the one that its table has with the same destination and metric, if any.

    Args:
        end: The link.
        dst: Destination.
        gw: Next hop; None when the destination is on the link.
        **more: As for :func:`add`.

    Raises:
        KernelError: (5) The kernel refused.
    """
    request = add_request(end.index, end.name, dst=dst, gw=gw, **more)
    flags = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_REPLACE
    _send(end.netns, request._replace(flags=flags, what=request.what.replace("cannot add", "cannot replace")))


def delete(route: KernelRoute, netns: NetNS | None = None) -> None:
    """Delete a route that :func:`list_all` returned. Absence is fine.

    Args:
        route: The route, with all its next hops.
        netns: None means the calling thread's namespace.

    Raises:
        KernelError: (5) The kernel refused.
    """
    with rtnetlink.connect(netns) as sock:
        (answer,) = sock.exchange([delete_request(route)])
    if isinstance(answer, KernelError) and answer.errno != errno.ESRCH:
        raise answer


def copy(route: KernelRoute, table: int, netns: NetNS | None = None, *, src: bool = True) -> None:
    """Copy a route that :func:`list_all` returned into another table, with all its attributes.

    A route that is there already is fine.

    Args:
        route: The route.
        table: Number of the table; its own puts back a route that the kernel has dropped.
        netns: None means the calling thread's namespace.
        src: If false, the copy has no source address: the kernel refuses one of a VRF outside of the VRF's table.

    Raises:
        KernelError: (5) The kernel refused.
    """
    with rtnetlink.connect(netns) as sock:
        (answer,) = sock.exchange([copy_request(route, table, src=src)])
    if isinstance(answer, KernelError) and answer.errno != errno.EEXIST:
        raise answer


def _send(netns: NetNS | None, request: Message) -> None:
    with rtnetlink.connect(netns) as sock:
        sock.send([request])


# -- requests and answers, for modules that send several at once -------------------------------------------------------


def delete_request(route: KernelRoute) -> Message:
    """Make the request that deletes a route, with all its next hops."""
    body = route.message[: _FIXED.size] + b"".join(_asked_for(route))
    return Message(rtnetlink.DELROUTE, body, f"cannot delete route {describe(route.dst, route.gw)}")


def copy_request(route: KernelRoute, table: int, *, src: bool = True) -> Message:
    """Make the request that copies a route into another table: see :func:`copy`."""
    family, prefix, _, tos, _, protocol, scope, kind, flags = _FIXED.unpack_from(route.message)
    number = _number_of(table)
    # All other flags are the route's present state (its link is down), and no property that was asked for.
    fixed = _FIXED.pack(family, prefix, 0, tos, number, protocol, scope, kind, flags & _F_ONLINK)
    without = [_RTA_TABLE] if src else [_RTA_TABLE, _RTA_PREFSRC]
    body = b"".join((fixed, uint32(_RTA_TABLE, table), *_asked_for(route, *without)))
    what = f"cannot put route {describe(route.dst, route.gw)} into table {table}"
    return Message(rtnetlink.NEWROUTE, body, what, rtnetlink.F_ACK | rtnetlink.F_CREATE)


def _asked_for(route: KernelRoute, *without: int) -> list[bytes]:
    """Return the attributes that made a route: not what the kernel derived from them."""
    present = list(iterate(route.message, _FIXED.size))
    dropped = {_RTA_CACHEINFO, *without}
    if any(number == _RTA_NH_ID for number, _ in present):
        dropped |= _BY_NH_ID
    return [attribute(number, payload) for number, payload in present if number not in dropped]


def add_request(
    index: int,
    name: str,
    *,
    dst: IPNetwork,
    gw: IPAddress | None = None,
    onlink: bool = False,
    src: IPAddress | None = None,
    table: int | None = None,
    priority: int = 0,
    scope: int | None = None,
    mtu: int = 0,
    advmss: int = 0,
) -> Message:
    """Make the request that adds a route before those to the same destination.

    ``ip route prepend`` and the reference plugins do the same. Several next hops coexist. If two networks have a
    default route, IPv4 uses that of the network attached last; IPv6 spreads packets over equal routes.

    Args:
        index: Index of the link.
        name: Its name, for the error.
        dst: Destination.
        gw: Next hop; None when the destination is on the link.
        onlink: The next hop is a neighbour on the link, though no route says so.
        src: Source address of what this host sends there, one of the link's; None leaves the choice to the kernel.
        table: Number of the table; None means main.
        priority: Metric; 0 leaves the kernel's (0 for IPv4, 1024 for IPv6).
        scope: As in ``rtnetlink(7)``; None means universe with a gateway, and link without.
        mtu: Path MTU in bytes; 0 leaves it to the link.
        advmss: Maximal segment size to advertise, in bytes; 0 leaves it to the link.
    """
    table = TABLE_MAIN if table is None else table
    if scope is None:
        scope = SCOPE_LINK if gw is None and dst.version == 4 else SCOPE_UNIVERSE
    number = _number_of(table)
    family = _FAMILIES[dst.version]
    body = _FIXED.pack(
        family, dst.prefixlen, 0, 0, number, _PROTO_BOOT, scope, _TYPE_UNICAST, _F_ONLINK if onlink else 0
    )
    body += uint32(_RTA_TABLE, table) + uint32(_RTA_OIF, index)
    if dst.prefixlen:
        body += attribute(_RTA_DST, dst.network_address.packed)
    if gw is not None:
        # IPv4 through an IPv6 next hop (RFC 5549) goes by another attribute, of a family and an address.
        if gw.version == dst.version:
            body += attribute(_RTA_GATEWAY, gw.packed)
        else:
            body += attribute(_RTA_VIA, struct.pack("=H", _FAMILIES[gw.version]), gw.packed)
    if src is not None:
        body += attribute(_RTA_PREFSRC, src.packed)
    if priority:
        body += uint32(_RTA_PRIORITY, priority)
    metrics = [uint32(key, value) for key, value in ((_RTAX_MTU, mtu), (_RTAX_ADVMSS, advmss)) if value]
    if metrics:
        body += attribute(_RTA_METRICS, *metrics)
    what = f"cannot add route {describe(dst, gw)} to link {name}"
    return Message(rtnetlink.NEWROUTE, body, what, rtnetlink.F_ACK | rtnetlink.F_CREATE)


def dump(
    sock: Socket, table: int | None = None, destinations: Collection[IPNetwork] | None = None
) -> list[KernelRoute]:
    """List the routes of the socket's namespace.

    Args:
        sock: The socket.
        table: The table; None means all but ``local``.
        destinations: Routes to other networks may be left out: to decode a route takes longer than to list it.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    routes = []
    number = _number_of(table or 0)
    prefixes = None if destinations is None else _prefixes(destinations)
    for data in sock.dump(Message(rtnetlink.GETROUTE, bytes(_FIXED.size), "cannot list routes")):
        in_table = table is None or data[rtnetlink.HEADER.size + _TABLE_OFFSET] == number
        if in_table and (prefixes is None or data in prefixes):
            routes += parse(data)
    return [each for each in routes if (each.table != TABLE_LOCAL if table is None else each.table == table)]


def _prefixes(destinations: Iterable[IPNetwork]) -> rtnetlink.Prefixes:
    return rtnetlink.Prefixes(
        (_FAMILIES[each.version], each.prefixlen, each.network_address.packed if each.prefixlen else b"")
        for each in destinations
    )


def _number_of(table: int) -> int:
    """Return the byte that a message has for the number of a table."""
    return table if table <= 255 else _TABLE_COMPAT


def scan(sock: Socket, version: int, destinations: Iterable[IPNetwork]) -> Iterator[KernelRoute]:
    """Yield the routes to destinations of one IP version, in all tables but ``local``, however many others there are.

    If the reader stops early, call :meth:`.Socket.finish` before the next request.

    Args:
        sock: Socket in the namespace.
        version: 4 or 6.
        destinations: The destinations; those of the other IP version are passed over.

    Raises:
        IOFailureError: (5) There are more than :data:`CANDIDATES`, or the kernel refused the query.
    """
    prefixes = _prefixes(destinations)
    request = Message(rtnetlink.GETROUTE, _FIXED.pack(_FAMILIES[version], *[0] * 8), f"cannot list IPv{version} routes")
    left = CANDIDATES
    for data in sock.scan(request):
        if data not in prefixes:
            continue
        if left == 0:
            raise IOFailureError(f"{request.what}: more than {CANDIDATES} lead to the destinations looked for")
        left -= 1
        for each in parse(data):
            if each.table != TABLE_LOCAL:
                yield each


def parse(data: bytes) -> list[KernelRoute]:
    """Read a route message, with its header; none for families other than IP and for cached entries."""
    start = rtnetlink.HEADER.size
    family, prefix, _, _, table, protocol, scope, kind, flags = _FIXED.unpack_from(data, start)
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
        src=make(found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else None,
        protocol=protocol,
        message=data[start:],
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
    """Return a route for messages: ``0.0.0.0/0 via 10.1.2.1``."""
    return f"{dst} via {gw}" if gw is not None else str(dst)
