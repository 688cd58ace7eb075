"""Addresses and routes of a container's interface, as a result asks for them: set, and verified."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..errors import InvalidConfigError, IOFailureError
from ..spec.addresses import IPAddress, IPInterface, specified
from . import address, link, route, rtnetlink, sysctl
from .link import Link
from .netns import NetNS
from .rtnetlink import KernelError, Request, Socket

if TYPE_CHECKING:
    from ..spec.result import IPConfig, Result, Route


def configure(end: Link, result: Result, *, enabledad: bool = False, timeout: float = 5.0) -> None:
    """Give a link the addresses and routes of a result and set it up.

    Addresses come before it is up, so that going up announces them (gratuitous ARP, unsolicited neighbour
    advertisement); routes after. A route without a next hop goes to the first gateway of its family, and onto the link
    where there is none, where its scope is link, or where its next hop is ``0.0.0.0`` or ``::``. Several routes to one
    destination coexist; the one that was added last goes first.

    Args:
        end: The link, in ``end.netns``.
        result: Its addresses without an interface, or with this link's; all its routes.
        enabledad: Ask, and wait, whether other hosts have an IPv6 address, instead of using it at once.
        timeout: Seconds to wait for that.

    Raises:
        InvalidConfigError: (7) An address names another interface.
        IOFailureError: (5) The kernel refused, or another host has an address.
    """
    ips = list(_own_ips(result, end.name))
    gateways = _gateways(ips)
    addresses = [ip.address for ip in ips]
    groups = rtnetlink.GROUP_IPV6_IFADDR if enabledad else 0

    def prepare() -> Socket:
        _prepare(end.name, ipv4=4 in _versions(addresses), ipv6=6 in _versions(addresses), enabledad=enabledad)
        return Socket(groups)

    sock = end.netns.call(prepare) if end.netns is not None else prepare()
    with sock:
        _send(
            sock,
            [
                *(address.add_request(end.index, end.name, each, nodad=not enabledad) for each in addresses),
                link.up_request(end.index, end.name),
            ],
            [] if enabledad else _route_requests(end, result.routes, gateways),
        )
        if enabledad:
            address.wait_for_dad(sock, end, [each for each in addresses if each.version == 6], timeout)
            _send(sock, [], _route_requests(end, result.routes, gateways))


def verify(netns: NetNS | None, ifname: str, result: Result) -> Link:
    """Check that an interface is up and has what a result says.

    Addresses: those of the interface, with prefix length, and not found to be duplicates. Routes: each must exist with
    its next hop (its own, or the first gateway of the family), and, where the result tells them, table, metric, scope,
    MTU and MSS. A route without a table may have been moved to another one, as the chained plugins sbr and vrf do.

    Args:
        netns: The container's namespace.
        ifname: Name of the interface.
        result: What ADD returned.

    Returns:
        The interface.

    Raises:
        LinkNotFoundError: (5) There is no such interface.
        IOFailureError: (5) Something is missing or different: all of that is named.
    """
    end = link.get(ifname, netns)
    sandbox = netns.path if netns is not None else "the host"
    with rtnetlink.connect(netns) as sock:
        present = {each.interface: each for each in address.dump(sock, end.index)}
        routes = [each for each in route.dump(sock) if each.unicast]
    problems = [] if end.up else [f"{ifname} is down"]
    ips = [ip for ip in result.ips if _belongs(ip, result, ifname)]
    for ip in ips:
        state = present.get(ip.address)
        if state is None:
            problems.append(f"address {ip.address} is missing")
        elif state.duplicate:
            problems.append(f"address {ip.address} is in use by another host")
    gateways = _gateways(ips)
    # With several interfaces the result does not tell which one a route belongs to.
    alone = sum(1 for each in result.interfaces if each.sandbox) <= 1
    candidates = [each for each in routes if not alone or each.link_index == end.index]
    problems += [problem for wanted in result.routes if (problem := _route_problem(wanted, gateways, candidates))]
    if problems:
        raise IOFailureError(f"interface {ifname} in {sandbox} is not as it was added", details="; ".join(problems))
    return end


def _versions(addresses: Iterable[IPInterface]) -> set[int]:
    return {each.version for each in addresses}


def _own_ips(result: Result, ifname: str) -> Iterator[IPConfig]:
    for position, ip in enumerate(result.ips):
        if not _belongs(ip, result, ifname):
            raise InvalidConfigError(
                f"address {ip.address} is for interface number {ip.interface}, which is not {ifname}",
                details=f"$.ips[{position}].interface of the result of IPAM",
            )
        yield ip


def _belongs(ip: IPConfig, result: Result, ifname: str) -> bool:
    if ip.interface is None:
        return True
    return 0 <= ip.interface < len(result.interfaces) and result.interfaces[ip.interface].name == ifname


def _gateways(ips: Iterable[IPConfig]) -> dict[int, IPAddress]:
    gateways: dict[int, IPAddress] = {}
    for ip in ips:
        if (gateway := specified(ip.gateway)) is not None:
            gateways.setdefault(gateway.version, gateway)
    return gateways


def _prepare(ifname: str, *, ipv4: bool, ipv6: bool, enabledad: bool) -> None:
    """Set what must be set before the addresses are added, in the namespace of the calling thread."""
    conf4, conf6 = f"net/ipv4/conf/{ifname}", f"net/ipv6/conf/{ifname}"
    if ipv4:
        _try(f"{conf4}/arp_notify", "1")
    if ipv6:
        # Container runtimes disable IPv6 where they expect none.
        for each in ("lo", ifname):
            sysctl.ensure(f"net/ipv6/conf/{each}/disable_ipv6", "0")
        sysctl.ensure_if_present(f"{conf6}/keep_addr_on_down", "1")
        if enabledad:
            _try(f"{conf6}/enhanced_dad", "1")
        _try(f"{conf6}/accept_dad", "1" if enabledad else "0")
        _try(f"{conf6}/ndisc_notify", "1")
        # Addresses come from the configuration; a router advertisement, which any neighbour can send, adds others.
        sysctl.ensure_if_present(f"{conf6}/accept_ra", "0")
    elif ipv4:
        _try(f"{conf6}/accept_ra", "0")


def _try(key: str, value: str) -> None:
    """Set what is good to have: the interface works without."""
    try:
        sysctl.ensure_if_present(key, value)
    except sysctl.SysctlError:
        pass


def _send(sock: Socket, firmly: list[Request], routes: list[Request]) -> None:
    """Send everything at once, raising the first error; a route that is there already is fine."""
    for number, answer in enumerate(sock.exchange([*firmly, *routes])):
        if isinstance(answer, KernelError) and not (number >= len(firmly) and answer.errno == errno.EEXIST):
            raise answer


def _route_requests(end: Link, routes: Iterable[Route], gateways: dict[int, IPAddress]) -> list[Request]:
    return [
        route.add_request(
            end.index,
            end.name,
            dst=each.dst,
            gw=_next_hop(each, gateways),
            table=each.table,
            priority=each.priority,
            scope=each.scope,
            mtu=each.mtu,
            advmss=each.advmss,
        )
        for each in routes
    ]


def _next_hop(wanted: Route, gateways: dict[int, IPAddress]) -> IPAddress | None:
    """The route's own next hop, or else the gateway of its family, unless its scope says that it ends on the link.

    An own next hop of ``0.0.0.0`` or ``::`` says that there is none: the route leads onto the link.
    """
    if wanted.gw is not None:
        return specified(wanted.gw)
    ends_here = wanted.scope is not None and wanted.scope >= address.SCOPE_LINK
    return None if ends_here else gateways.get(wanted.dst.version)


def _route_problem(wanted: Route, gateways: dict[int, IPAddress], candidates: list[route.KernelRoute]) -> str | None:
    """Tell what is wrong with a route; None when it is there."""
    gw = _next_hop(wanted, gateways)
    what = f"route {route.describe(wanted.dst, gw)}"
    same = [each for each in candidates if each.dst == wanted.dst]
    if wanted.table is not None:
        what += f" in table {wanted.table}"
        same = [each for each in same if each.table == wanted.table]
    if not same:
        return f"{what} is missing"
    via = [each for each in same if each.gw == gw]
    if not via:
        return f"{what} is missing: there is {', '.join(route.describe(each.dst, each.gw) for each in same)}"
    differences: list[list[str]] = [list(_differences(wanted, each)) for each in via]
    fewest: list[str] = min(differences, key=len)
    return f"{what} has {', '.join(fewest)}" if fewest else None


def _differences(wanted: Route, present: route.KernelRoute) -> Iterator[str]:
    for name, asked, actual in (
        ("priority", wanted.priority or None, present.priority),
        ("mtu", wanted.mtu or None, present.mtu),
        ("advmss", wanted.advmss or None, present.advmss),
        # IPv6 has no scopes.
        ("scope", wanted.scope if wanted.dst.version == 4 else None, present.scope),
    ):
        if asked is not None and asked != actual:
            yield f"{name} {actual} instead of {asked}"
