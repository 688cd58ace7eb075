"""sbr: route by source address, so that answers leave by the interface that the question came in by.

Takes the configuration of the reference plugin of that name and returns its results. Each address of the interface gets
a table with the routes of that interface, and a rule that looks there what comes from the address. All of it is in the
container's namespace and goes with it.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

from collections.abc import Iterable
from functools import partial

from cnisdk import (
    AddRequest,
    CheckRequest,
    DelRequest,
    InvalidConfigError,
    IOFailureError,
    IPConfig,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    frozen,
    run_all,
)
from cnisdk.linux import address, link, lock, route, rule, tables
from cnisdk.linux.ip.route import TABLE_MAIN, KernelRoute
from cnisdk.linux.links.link import Link
from cnisdk.linux.netns import NetNS
from cnisdk.plugin import interface
from cnisdk.spec.addresses import IPAddress, parse_network, specified
from cnisdk.spec.names import shorten

FIRST_TABLE = 100
LOCK_PATIENCE = 5.0  # seconds; a container can hold this lock for ever
PROTOCOL = 0xC5
"""Mark of our rules, as ``ip rule`` shows it: DEL knows by it whose a rule is when address and link are gone."""
DEFAULT = {4: parse_network("0.0.0.0/0"), 6: parse_network("::/0")}
STAYS = (parse_network("fe80::/64"), parse_network("ff00::/8"))
"""Without these in the main table, a link finds no neighbour and hears no router."""


@frozen(kw_only=True)
class SbrConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        table: Only add rules that look here, and leave routes as they are; None finds a table for each address.
        gateways: Next hops of the default routes in the tables, at most one of each IP version; by default those of the
            addresses.
        add_source_hints: Keep the routes to the interface's own networks in the main table, with the address as source.
    """

    table: int | None = None
    gateways: tuple[IPAddress, ...] = ()
    add_source_hints: bool = False

    def validate(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InvalidConfigError: (7) The table is no table's number, or there are two gateways of one IP version.
        """
        if self.table is not None and not 1 <= self.table <= tables.LAST:
            raise InvalidConfigError(f"$.table is {shorten(self.table)}, expected 1 to {tables.LAST}")
        versions = [each.version for each in self.gateways]
        if len(set(versions)) < len(versions):
            raise InvalidConfigError(
                "$.gateways has several of one IP version", details="expected at most one for IPv4 and one for IPv6"
            )


class Sbr(Plugin[SbrConf]):
    """CNI sbr plugin: routing by source address."""

    leaves_process_unchanged = True
    leaves_only_links = True  # nothing outside the container

    @classmethod
    def conformance(cls) -> dict[str, object]:
        return {"kind": "chained"}

    def add(self, request: AddRequest[SbrConf]) -> Result:
        conf, netns = request.conf, request.open_netns()
        conf.validate()
        result = request.require_prev_result()
        own = interface.own_ips(result, request.ifname)
        end = link.get(request.ifname, netns)
        with lock.exclusive(LOCK_PATIENCE, netns):  # another interface's ADD must not choose the same table
            if conf.table is not None:
                for ip in own:
                    add_rule(request, rule_for(ip, conf.table), netns)
                return result
            there = tables.list_over(end, None)
            moving = [each for each in there if each.table == TABLE_MAIN]
            for ip, table in zip(own, choose_tables(netns, own), strict=True):
                # The rule first: by it DEL finds the table when this ADD is killed.
                add_rule(request, rule_for(ip, table), netns)
                request.undo(tables.put_back, [each for each in there if each.table == table], end, table)
                fill(conf, end, ip, table, there)
            request.undo(tables.put_back, moving, end, TABLE_MAIN)
            for each in reversed(moving):
                if not stays(conf, own, each):
                    route.delete(each, netns)
            if conf.add_source_hints:
                for ip in own:
                    route.replace(end, ip.address.network, src=ip.address.ip, table=TABLE_MAIN)
        return result

    def delete(self, request: DelRequest[SbrConf]) -> None:
        netns = request.find_netns()
        if netns is None:
            return
        end, result = link.find(request.ifname, netns), request.prev_result
        known = {ip.address.ip for ip in interface.own_ips(result, request.ifname)} if result is not None else set()
        present = {each.interface.ip for there in link.list_all(netns) for each in address.list_on(there)}
        own = known | ({each.interface.ip for each in address.list_on(end)} if end is not None else set())
        marked = None  # those of any address
        if end is not None and not interface.is_own(request, end, end.kind):
            # The path of the namespace seems to lead to another container by now, which needs no rule of these.
            end, own, marked = None, set(), known
        going = [
            each
            for each in rule.list_all(netns)
            if (ip := host_of(each)) is not None
            and (ip in own or (each.protocol == PROTOCOL and ip not in present and (marked is None or ip in marked)))
            and request.conf.table in (None, each.table)
        ]
        run_all(*(partial(rule.delete, each, netns) for each in going))
        if end is not None and request.conf.table is None:
            for table in {each.table for each in going}:
                # The default route may be one that was not in the main table.
                moved = [each for each in tables.list_over(end, table) if each.dst.prefixlen]
                tables.copy_all(moved, TABLE_MAIN, netns)
                tables.clear(end, table)

    def check(self, request: CheckRequest[SbrConf]) -> None:
        conf, netns = request.conf, request.open_netns()
        conf.validate()
        result = request.require_prev_result()
        own = interface.own_ips(result, request.ifname)
        end = link.get(request.ifname, netns)
        # Nothing else of what there is: a container may have any number of routes and rules of its own.
        looked_up = {host_of(each): each.table for each in rule.list_from([ip.address.ip for ip in own], netns)}
        routes = route.list_to({DEFAULT[ip.address.version] for ip in own}, netns)
        for ip in own:
            table = looked_up.get(ip.address.ip)
            if table is None or conf.table not in (None, table):
                looks = "no rule" if table is None else f"a rule that looks up table {table}, not {conf.table}"
                raise IOFailureError(f"{looks} for packets from {ip.address.ip}")
            gateway, default = static_gateway(conf, ip) or gateway_of(ip), DEFAULT[ip.address.version]
            given = [each.gw for each in result.routes if each.dst == default and each.gw is not None]
            hops = [*map(specified, given), gateway]
            there = [each for each in routes if each.table == table and each.dst == default]
            found = any(each.gw in hops and each.link_index == end.index for each in there)
            if conf.table is None and gateway is not None and not found:
                via = f" via {hops[0]}" if hops[0] is not None else ""
                raise IOFailureError(f"table {table} has no default route{via} on {end.name}")
        if conf.table is not None:
            return
        moved = tables.list_over(end, destinations=interface.own_destinations(result, request.ifname))
        if left := [each for each in moved if not stays(conf, own, each)]:
            shown = route.describe(left[0].dst, left[0].gw)
            raise IOFailureError(f"route {shown} of {end.name} is in the main table again")

    def status(self, request: StatusRequest[SbrConf]) -> None:
        request.conf.validate()


def rule_for(ip: IPConfig, table: int) -> rule.PolicyRule:
    """Return the rule that looks up a table for what comes from an address."""
    source = parse_network(f"{ip.address.ip}/{ip.address.max_prefixlen}")
    return rule.PolicyRule(ip.address.version, table, src=source, protocol=PROTOCOL)


def host_of(each: rule.PolicyRule) -> IPAddress | None:
    """Return the single address that a rule of this shape is for; None for any other rule."""
    if each.src is None or each.src.num_addresses > 1 or each.table in tables.OF_THE_KERNEL:
        return None
    narrower = each.dst is not None or each.iif or each.oif or each.fwmark or each.has_more
    return None if narrower else each.src.network_address


def add_rule(request: AddRequest[SbrConf], wanted: rule.PolicyRule, netns: NetNS) -> None:
    """Add a rule, unless the same is there from an ADD before, ours or the reference's."""
    if any((host_of(each), each.table) == (host_of(wanted), wanted.table) for each in rule.list_all(netns)):
        return
    request.undo(rule.delete, wanted, netns)
    rule.add(wanted, netns)


def choose_tables(netns: NetNS, own: Iterable[IPConfig]) -> list[int]:
    """Return a table for each address: that of an ADD before, or else one that nothing uses."""
    before = {host_of(each): each.table for each in rule.list_all(netns)}
    free = tables.find_unused(netns, FIRST_TABLE)
    return [before.get(ip.address.ip) or next(free) for ip in own]


def stays(conf: SbrConf, own: Iterable[IPConfig], each: KernelRoute) -> bool:
    """Tell whether a route of the interface stays in the main table, as do those of an IP version without address."""
    hinted = conf.add_source_hints and each.gw is None and each.dst.prefixlen > 0
    return hinted or each.dst in STAYS or all(ip.address.version != each.dst.version for ip in own)


def static_gateway(conf: SbrConf, ip: IPConfig) -> IPAddress | None:
    """Return the next hop that the configuration has for the default route in an address's table."""
    return next((each for each in conf.gateways if each.version == ip.address.version), None)


def gateway_of(ip: IPConfig) -> IPAddress | None:
    """Return the gateway of an address."""
    return ip.gateway if specified(ip.gateway) else None


def fill(conf: SbrConf, end: Link, ip: IPConfig, table: int, there: Iterable[KernelRoute]) -> None:
    """Put the interface's routes that an address can use into a table, and a default route if none of them is one."""
    gateway, network, default = static_gateway(conf, ip), ip.address.network, DEFAULT[ip.address.version]
    has_default = any((each.table, each.dst) == (table, default) for each in there)  # from an ADD before
    for each in there:
        bound = [hop for hop in (each.src, each.gw) if hop is not None]
        near = any(hop in network or hop == ip.gateway or (hop.is_link_local and each.dst != default) for hop in bound)
        fits = each.dst.version == ip.address.version and (near or not bound)
        if each.table == TABLE_MAIN and fits and not (gateway is not None and each.dst == default):
            route.copy(each, table, end.netns)
            has_default = has_default or each.dst == default
    if gateway is None and not has_default:
        gateway = gateway_of(ip)
    if gateway is not None:
        route.replace(end, default, gateway, table=table)


main = PluginMain(Sbr, "CNI sbr plugin v1.9.1")

if __name__ == "__main__":
    main()
