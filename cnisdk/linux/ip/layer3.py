"""Set and verify the addresses and routes that a result gives a container's interface."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence

from ..._light import TYPE_CHECKING
from ...errors import InvalidConfigError, IOFailureError
from ...spec.addresses import IPAddress, network_of_one, specified
from .. import rtnetlink, sysctl
from ..links import link, messages
from ..links.link import Link
from ..netns import NetNS
from ..rtnetlink import KernelError, Message, Socket
from . import address, route

if TYPE_CHECKING:
    from ...spec.result import IPConfig, Result, Route


def configure(
    end: Link,
    result: Result,
    *,
    enabledad: bool = False,
    accept_ra: bool | None = None,
    routed: bool = False,
    peer: Link | None = None,
    timeout: float = 5.0,
) -> None:
    """Give a link the addresses and routes of a result and set it up.

    Addresses are added before the link goes up, so that the kernel announces them as it goes up. Routes follow then.

    A route without a next hop goes to the first gateway of its family. It goes onto the link if there is no gateway,
    if its scope is link, or if its next hop is ``0.0.0.0`` or ``::``. Several routes to one destination coexist; the
    one that was added last goes first.

    Args:
        end: The link, in ``end.netns``.
        result: Its addresses without an interface, or with this link's; all its routes.
        enabledad: If true, duplicate address detection runs for IPv6 addresses, and this waits for it.
        accept_ra: True keeps the kernel's setting for router advertisements; false makes the link ignore them. None
            makes it ignore them if the result has IPv6 addresses.
        routed: If true, only the gateways are neighbours on the link, and each address's own network is reached
            through its gateway, see :func:`gateway_routes`.
        peer: The other end of a veth, a port of a bridge in the calling thread's namespace. A port drops frames until
            it is operational; so this waits for that, and then announces the addresses again. The port may have been
            moved out of that namespace.
        timeout: Seconds to wait for duplicate address detection, and for the other end.

    Raises:
        InvalidConfigError: (7) An address names another interface.
        IOFailureError: (5) The kernel refused, another host has an address, or the other end is not operational.
    """
    ips = list(_only_own_ips(result, end.name))
    addresses = [ip.address for ip in ips]
    groups = rtnetlink.GROUP_IPV6_IFADDR if enabledad else 0

    def prepare() -> Socket:
        ipv6 = any(each.version == 6 for each in addresses)
        _prepare(end.name, ipv6=ipv6, enabledad=enabledad, accept_ra=not ipv6 if accept_ra is None else accept_ra)
        return Socket(groups)

    routes = [
        *(_gateway_requests(end, ips) if routed else ()),
        *_route_requests(end, result.routes, ips, routed=routed),
    ]
    sock = end.netns.call(prepare) if end.netns is not None else prepare()
    with sock:
        _send(
            sock,
            [
                *(
                    address.add_request(
                        end.index,
                        end.name,
                        ip.address,
                        nodad=not enabledad,
                        prefix_route=not (routed and specified(ip.gateway)),
                    )
                    for ip in ips
                ),
                messages.up_request(end.index, end.name),
            ],
            [] if enabledad else routes,
        )
        if enabledad:
            address.wait_for_dad(sock, end, [each for each in addresses if each.version == 6], timeout)
            _send(sock, [], routes)
        if peer is not None:
            try:
                peer = peer.refresh()
                if peer.link_index == end.index and not peer.running:
                    peer.wait_running(timeout)
            except link.LinkNotFoundError:
                pass
            sock.exchange(_announce_requests(end))


def gateway_routes(ip: IPConfig) -> list[Route]:
    """Return the routes of an address on a link whose only neighbour is the gateway, such as a veth to the host.

    The first leads to the gateway, which need not be in the address's network. The second leads through it to that
    network, unless the address is all of it. They replace the route to the network that the kernel adds with an
    address. An address without a gateway keeps the kernel's route, and gets none of these.
    """
    from ...spec.result import Route

    if (gateway := specified(ip.gateway)) is None:
        return []
    routes = [Route(dst=network_of_one(gateway), scope=address.SCOPE_LINK)]
    if ip.address.network.num_addresses > 1:
        routes.append(Route(dst=ip.address.network, gw=gateway))
    return routes


def announce(end: Link) -> None:
    """Announce the addresses of a link to its neighbours, once frames get through.

    Neighbours keep the hardware address that an IP address had before for half a minute or longer. The kernel sends a
    gratuitous ARP for each IPv4 address (RFC 5227, section 3) and an unsolicited neighbour advertisement for each IPv6
    address (RFC 4861, section 7.2.6) in two cases, if :func:`configure` could set ``arp_notify`` and ``ndisc_notify``:
    when a link goes up, and when its hardware address is set, even to the same one. This sets it to the same one. A
    packet socket was rejected: the kernel takes 10 ms and more to close one.

    Links that refuse it (an ipvlan, which has its parent's hardware address) have announced their addresses on going
    up. A bridge that runs the spanning tree protocol lets no frame through for twice its forward delay. ADD does not
    wait for that, so there the announcement is lost.

    Args:
        end: The link, configured and up.
    """
    with rtnetlink.connect(end.netns) as sock:
        sock.exchange(_announce_requests(end))


def verify(netns: NetNS | None, ifname: str, result: Result) -> Link:
    """Check that an interface is up and has the addresses and routes of a result.

    Addresses: those of the interface, with prefix length, and not found to be duplicates. Routes: each must exist with
    its next hop (its own, or the first gateway of the family), and, if the result gives them, table, metric, scope, MTU
    and MSS. A route without a table may have been moved to another one, as the chained plugins sbr and vrf do.

    Args:
        netns: The container's namespace.
        ifname: Name of the interface.
        result: The result of ADD.

    Returns:
        The interface.

    Raises:
        LinkNotFoundError: (5) There is no such interface.
        IOFailureError: (5) Addresses or routes are missing or different: the message names all of them.
    """
    end = link.get(ifname, netns)
    sandbox = netns.path if netns is not None else "the host"
    ips = own_ips(result, ifname)
    # A container may have any number of addresses and routes. So each table is read only until the wanted entries were
    # found.
    with rtnetlink.connect(netns) as sock:
        present = address.scan(sock, end.index, [ip.address for ip in ips])
    problems = [] if end.up else [f"{ifname} is down"]
    for ip in ips:
        state = present.get(ip.address)
        if state is None:
            problems.append(f"address {ip.address} is missing")
        elif state.duplicate:
            problems.append(f"address {ip.address} is in use by another host")
    gateways = _gateways(ips)
    # A result with several interfaces does not say to which of them a route belongs.
    alone = sum(1 for each in result.interfaces if each.sandbox) <= 1
    for version in sorted({each.dst.version for each in result.routes}):
        wanted = [each for each in result.routes if each.dst.version == version]
        with rtnetlink.connect(netns) as sock:
            problems += _route_problems(sock, version, wanted, gateways, end.index if alone else 0)
    if problems:
        raise IOFailureError(f"interface {ifname} in {sandbox} is not as it was added", details="; ".join(problems))
    return end


def own_ips(result: Result, ifname: str) -> list[IPConfig]:
    """List the addresses of one interface of a result: those that name it, and those that name none.

    A link of the host may have the same name: it is meant only if the result places no interface of that name in a
    container.
    """
    named = [index for index, each in enumerate(result.interfaces) if each.name == ifname]
    own = [index for index in named if result.interfaces[index].sandbox] or named
    return [ip for ip in result.ips if ip.interface is None or ip.interface in own]


def _only_own_ips(result: Result, ifname: str) -> Iterator[IPConfig]:
    own = own_ips(result, ifname)
    for position, ip in enumerate(result.ips):
        if ip not in own:
            raise InvalidConfigError(
                f"address {ip.address} is for interface number {ip.interface}, which is not {ifname}",
                details=f"$.ips[{position}].interface of the result of IPAM",
            )
        yield ip


def _gateways(ips: Iterable[IPConfig]) -> dict[int, IPAddress]:
    gateways: dict[int, IPAddress] = {}
    for ip in ips:
        if (gateway := specified(ip.gateway)) is not None:
            gateways.setdefault(gateway.version, gateway)
    return gateways


def _announce_requests(end: Link) -> list[Message]:
    return [messages.set_request(f"cannot announce link {end.name}", index=end.index, mac=end.mac)] if end.mac else []


def _prepare(ifname: str, *, ipv6: bool, enabledad: bool, accept_ra: bool) -> None:
    """Make the settings that must be made before the addresses are added, in the namespace of the calling thread."""
    conf6 = f"net/ipv6/conf/{ifname}"
    # As the reference does, for any addresses: with IPv6 the link has a link-local one in any case.
    _try(f"net/ipv4/conf/{ifname}/arp_notify", "1")
    if enabledad:
        _try(f"{conf6}/enhanced_dad", "1")
    _try(f"{conf6}/accept_dad", "1" if enabledad else "0")
    if ipv6:
        # Container runtimes disable IPv6 where they expect none.
        for each in ("lo", ifname):
            sysctl.ensure(f"net/ipv6/conf/{each}/disable_ipv6", "0")
        _try(f"{conf6}/keep_addr_on_down", "1")
        _try(f"{conf6}/ndisc_notify", "1")
    if not accept_ra:
        # A router advertisement, which any neighbour can send, adds addresses and routes of its own.
        sysctl.refuse_advertisements(ifname, redirects=False)


def _try(key: str, value: str) -> None:
    """Change a setting that the interface can do without."""
    try:
        sysctl.ensure_if_present(key, value)
    except sysctl.SysctlError:
        pass


def _send(sock: Socket, required: list[Message], routes: list[Message]) -> None:
    """Send all requests at once and raise the first error; accept a route that is there already."""
    for number, answer in enumerate(sock.exchange([*required, *routes])):
        if isinstance(answer, KernelError) and not (number >= len(required) and answer.errno == errno.EEXIST):
            raise answer


def _gateway_requests(end: Link, ips: Iterable[IPConfig]) -> list[Message]:
    return [
        route.add_request(end.index, end.name, dst=each.dst, gw=each.gw, src=ip.address.ip)
        for ip in ips
        for each in gateway_routes(ip)
    ]


def _route_requests(end: Link, routes: Iterable[Route], ips: Sequence[IPConfig], *, routed: bool) -> list[Message]:
    gateways, reached = _gateways(ips), {ip.gateway for ip in ips}
    requests = []
    for each in routes:
        gw = _next_hop(each, gateways)
        request = route.add_request(
            end.index,
            end.name,
            dst=each.dst,
            gw=gw,
            # On a link to its gateways alone, the kernel knows no route to other neighbours.
            onlink=routed and gw is not None and gw not in reached and any(gw in ip.address.network for ip in ips),
            table=each.table,
            priority=each.priority,
            scope=each.scope,
            mtu=each.mtu,
            advmss=each.advmss,
        )
        requests.append(request)
    return requests


def _next_hop(wanted: Route, gateways: dict[int, IPAddress]) -> IPAddress | None:
    """Return a route's own next hop, or else the gateway of its family, unless its scope says that it ends on the link.

    An own next hop of ``0.0.0.0`` or ``::`` means none: the route leads onto the link.
    """
    if wanted.gw is not None:
        return specified(wanted.gw)
    ends_here = wanted.scope is not None and wanted.scope >= address.SCOPE_LINK
    return None if ends_here else gateways.get(wanted.dst.version)


def _route_problems(
    sock: Socket, version: int, wanted: list[Route], gateways: dict[int, IPAddress], index: int
) -> list[str]:
    """Return the differences between a result's routes of one IP version and those of a link; index 0 is any link."""
    candidates: list[route.KernelRoute] = []
    problems = [_route_problem(each, gateways, candidates) for each in wanted]
    for found in route.scan(sock, version, [each.dst for each in wanted]):
        if found.unicast and index in (0, found.link_index):
            candidates.append(found)
            problems = [
                problem and _route_problem(each, gateways, candidates)
                for each, problem in zip(wanted, problems, strict=True)
            ]
            if not any(problems):
                break
    return [problem for problem in problems if problem is not None]


def _route_problem(wanted: Route, gateways: dict[int, IPAddress], candidates: list[route.KernelRoute]) -> str | None:
    """Return the difference between a route and those there are, in words; None when it is there."""
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
        others = [route.describe(each.dst, each.gw) for each in same]
        return f"{what} is missing: there is {', '.join(others[:3])}{', …' if len(others) > 3 else ''}"
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
