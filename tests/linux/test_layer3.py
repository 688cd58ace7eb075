"""Addresses and routes of a container, compared with what iproute2 says; and CHECK, which must see every drift."""

import re
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from attrs import evolve

from cnisdk.errors import InvalidConfigError, IOFailureError
from cnisdk.linux import address, bridge, bridge_port, layer3, link, netns, route, rtnetlink, sysctl, veth
from cnisdk.spec import Interface, IPConfig, Result, Route
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host, Sandbox

pytestmark = pytest.mark.kernel

BLUE = "/run/netns/blue"


def ip(text: str, gateway: str | None = None, interface: int | None = None) -> IPConfig:
    return IPConfig(address=ip_interface(text), gateway=ip_address(gateway) if gateway else None, interface=interface)


def to(dst: str, gw: str | None = None, **options: Any) -> Route:
    return Route(dst=ip_network(dst), gw=ip_address(gw) if gw else None, **options)


DUAL = Result(
    ips=(ip("10.1.0.5/24", "10.1.0.1"), ip("2001:db8::5/64", "2001:db8::1")),
    routes=(to("0.0.0.0/0"), to("::/0")),
)


def attach(result: Result, *, path: str = BLUE, ifname: str = "eth0", enabledad: bool = False) -> Result:
    """Plug a namespace in, and return the result as a plugin does."""
    with netns.open(path) as inner:
        master = bridge.ensure("br0")
        owner = Attachment("mynet", path.rpartition("/")[2], ifname)
        pair = veth.create(inner, ifname, owner=owner, port=bridge_port.Port(master))
        pair.container.configure(result, enabledad=enabledad)
        return result.with_interfaces(master, pair.host, pair.container)


def verify(result: Result, ifname: str = "eth0") -> None:
    with netns.open(BLUE) as blue:
        layer3.verify(blue, ifname, result)


def routes(host: Sandbox, *selector: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = host.ip(*selector, netns="blue") or []
    return [each for each in found if each.get("protocol") == "boot"]


def test_addresses(host: Sandbox) -> None:
    host.add_netns("blue")
    host.call(attach, DUAL)
    (said,) = host.ip("addr", "show", "eth0", netns="blue")
    assert "UP" in said["flags"]
    four, six, *link_local = said["addr_info"]
    assert (four["local"], four["prefixlen"], four["broadcast"]) == ("10.1.0.5", 24, "10.1.0.255")
    assert (four["scope"], four["label"]) == ("global", "eth0")
    assert (six["local"], six["prefixlen"], six["nodad"]) == ("2001:db8::5", 64, True)
    assert "tentative" not in six
    assert [each["scope"] for each in link_local] == ["link"]


def test_default_routes_go_to_the_gateways(host: Sandbox) -> None:
    host.add_netns("blue")
    host.call(attach, DUAL)
    (four,) = routes(host, "route", "show", "default")
    (six,) = routes(host, "-6", "route", "show", "default")
    assert (four["gateway"], four["dev"]) == ("10.1.0.1", "eth0")
    assert (six["gateway"], six["dev"]) == ("2001:db8::1", "eth0")


def test_what_a_route_can_say(host: Sandbox) -> None:
    host.add_netns("blue")
    result = Result(
        ips=DUAL.ips,
        routes=(
            to("10.2.0.0/16", "10.1.0.9", mtu=1300, advmss=1200, priority=77),
            to("10.3.0.0/16", table=1000),
            to("169.254.1.1/32", scope=253),
            to("2001:db8:2::/48", mtu=1300, priority=5, table=300),
        ),
    )
    result = host.call(attach, result)
    (metrics,) = routes(host, "route", "show", "10.2.0.0/16")
    assert metrics["gateway"] == "10.1.0.9"
    assert metrics["metric"] == 77
    assert metrics["metrics"] == [{"mtu": 1300, "advmss": 1200}]
    (other_table,) = routes(host, "route", "show", "table", "1000")
    assert (other_table["dst"], other_table["gateway"]) == ("10.3.0.0/16", "10.1.0.1")
    (scoped,) = routes(host, "route", "show", "169.254.1.1")
    assert scoped["scope"] == "link"
    (six,) = routes(host, "-6", "route", "show", "table", "300")
    assert (six["dst"], six["metric"], six["metrics"]) == ("2001:db8:2::/48", 5, [{"mtu": 1300}])
    host.call(verify, result)


def test_without_a_gateway_routes_lead_onto_the_link(host: Sandbox) -> None:
    host.add_netns("blue")
    result = Result(ips=(ip("10.1.0.5/24"),), routes=(to("10.2.0.0/16"), to("2001:db8::/32")))
    result = host.call(attach, result)
    (four,) = routes(host, "route", "show", "10.2.0.0/16")
    assert "gateway" not in four
    assert four["scope"] == "link"
    (six,) = routes(host, "-6", "route", "show", "2001:db8::/32")
    assert "gateway" not in six
    host.call(verify, result)


def test_several_next_hops_to_one_destination(host: Sandbox) -> None:
    host.add_netns("blue")
    result = Result(
        ips=DUAL.ips,
        routes=(
            to("10.2.0.0/16", "10.1.0.8"),
            to("10.2.0.0/16", "10.1.0.9"),
            to("10.2.0.0/16", "10.1.0.9"),  # twice the same is once
            to("2001:db8:2::/48", "2001:db8::8"),
            to("2001:db8:2::/48", "2001:db8::9"),
        ),
    )
    result = host.call(attach, result)
    # As with the reference, the last one comes first; IPv6 has one route with several next hops.
    assert [each["gateway"] for each in routes(host, "route", "show", "10.2.0.0/16")] == ["10.1.0.9", "10.1.0.8"]
    (six,) = routes(host, "-6", "route", "show", "2001:db8:2::/48")
    assert [each["gateway"] for each in six["nexthops"]] == ["2001:db8::8", "2001:db8::9"]
    host.call(verify, result)


@pytest.mark.parametrize(
    ("own", "none", "dst"),
    [("10.1.0.5/24", "0.0.0.0", "10.2.0.0/16"), ("2001:db8::5/64", "::", "2001:db8:2::/48")],
)
def test_a_gateway_of_zeros_is_none(host: Sandbox, own: str, none: str, dst: str) -> None:
    """In a route, it is no next hop even where there is a gateway; of an address, it is no gateway for routes."""
    host.add_netns("blue")
    gateway = str(ip_interface(own).network[1])
    for result in (
        Result(ips=(ip(own, gateway),), routes=(to(dst, none),)),
        Result(ips=(ip(own, none),), routes=(to(dst),)),
    ):
        result = host.call(attach, result)
        (there,) = routes(host, "-6" if ":" in dst else "-4", "route", "show", dst)
        assert ("gateway" in there, there["dev"]) == (False, "eth0")
        host.call(verify, result)
        host.call(lambda: veth.delete(Attachment("mynet", "blue", "eth0")))


def test_a_next_hop_that_a_route_before_makes_reachable(host: Sandbox) -> None:
    host.add_netns("blue")
    result = Result(ips=(ip("10.1.0.5/32"),), routes=(to("169.254.1.1/32", scope=253), to("0.0.0.0/0", "169.254.1.1")))
    host.call(verify, host.call(attach, result))


SETTINGS = (
    "ipv4/conf/eth0/arp_notify",
    "ipv6/conf/lo/disable_ipv6",
    *(
        f"ipv6/conf/eth0/{each}"
        for each in ("accept_ra", "accept_dad", "ndisc_notify", "keep_addr_on_down", "disable_ipv6")
    ),
)


def settings() -> dict[str, str | None]:
    with netns.open(BLUE) as blue:
        return blue.call(lambda: {each.rpartition("/")[2]: sysctl.find(f"net/{each}") for each in SETTINGS})


def test_settings_of_the_interface(host: Sandbox) -> None:
    host.add_netns("blue")
    host.run(["ip", "netns", "exec", "blue", "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"])
    host.run(["ip", "netns", "exec", "blue", "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"])
    host.call(attach, DUAL)
    assert host.call(settings) == {
        "arp_notify": "1",
        "accept_ra": "0",
        "accept_dad": "0",
        "ndisc_notify": "1",
        "keep_addr_on_down": "1",
        "disable_ipv6": "0",
    }


@pytest.mark.parametrize("addresses", ["10.1.0.5/24", "2001:db8::5/64", ""])
@pytest.mark.parametrize("asked", [None, True, False])
def test_routers_are_heard_unless_ipv6_addresses_come_from_ipam(
    host: Sandbox, addresses: str, asked: bool | None
) -> None:
    """Or as asked. What else concerns an address is set for either family, as the reference does."""
    host.add_netns("blue")
    result = Result(ips=(ip(addresses),) if addresses else ())

    def work() -> None:
        with netns.open(BLUE) as blue:
            pair = veth.create(blue, "eth0", owner=Attachment("mynet", "blue", "eth0"))
            pair.container.configure(result, accept_ra=asked)

    host.call(work)
    heard = asked if asked is not None else ":" not in addresses
    seen = host.call(settings)
    assert (seen["accept_ra"], seen["arp_notify"], seen["accept_dad"]) == (str(int(heard)), "1", "0")
    assert "UP" in host.ip("link", "show", "eth0", netns="blue")[0]["flags"]


@pytest.mark.parametrize("kind", ["macvlan", "veth"])
def test_addresses_are_announced(host: Host, kind: str) -> None:
    """To whoever hears the link, when asked: once frames get through, whatever plugin made it."""
    host.add_netns("blue")
    host.run(["ip", "link", "add", "p0", "type", "veth", "peer", "name", "p1"])
    made = ["ip", "link", "add", "link", "p0", "name", "eth0", "netns", "blue", "type", "macvlan", "mode", "bridge"]
    host.run(made if kind == "macvlan" else ["ip", "link", "set", "p0", "netns", "blue", "name", "eth0"])
    host.run(["sh", "-euc", "ip link set p1 up; if [ -e /proc/sys/net/ipv4/conf/p0 ]; then ip link set p0 up; fi"])

    def work(configure: bool) -> str:
        with netns.open(BLUE) as blue:
            end = link.get("eth0", blue)
            if configure:
                layer3.configure(end, DUAL)
            layer3.announce(end)
            return end.mac

    host.call(work, True)
    with host.capture("p1") as seen:
        mac = host.call(work, False)
        arp = seen.wait_for(lambda frame: frame.announces and frame.kind.startswith("arp"))
        advertised = seen.wait_for(lambda frame: frame.announces and str(frame.target) == "2001:db8::5")
    assert (arp.source, arp.destination, str(arp.target)) == (mac, "ff:ff:ff:ff:ff:ff", "10.1.0.5")
    assert (advertised.source, advertised.kind) == (mac, "neighbour advertisement")
    # RFC 4861, section 4.4: neither from a router nor asked for, and it overrides what is remembered.
    assert advertised.data[14 + 40 + 4] == 0x20


def test_an_address_of_another_interface_is_refused(host: Sandbox) -> None:
    host.add_netns("blue")
    for index in (0, 3, -1):
        result = Result(interfaces=(Interface(name="eth9"),), ips=(ip("10.1.0.5/24", interface=index),))
        with pytest.raises(InvalidConfigError, match=r"10.1.0.5/24 is for interface number .*which is not eth0"):
            host.call(attach, result)
        host.call(lambda: veth.delete(Attachment("mynet", "blue", "eth0")))


def test_what_the_kernel_refuses_is_named(host: Sandbox) -> None:
    host.add_netns("blue")
    twice = Result(ips=(ip("10.1.0.5/24"), ip("10.1.0.5/24")))
    with pytest.raises(IOFailureError, match=r"cannot add address 10.1.0.5/24 to link eth0: EEXIST"):
        host.call(attach, twice)
    host.call(lambda: veth.delete(Attachment("mynet", "blue", "eth0")))
    nowhere = Result(ips=(ip("10.1.0.5/24"),), routes=(to("0.0.0.0/0", "192.0.2.1"),))
    with pytest.raises(IOFailureError, match=r"cannot add route 0.0.0.0/0 via 192.0.2.1 to link eth0: ENETUNREACH"):
        host.call(attach, nowhere)


def test_duplicate_address_detection(host: Sandbox) -> None:
    host.add_netns("blue")
    host.add_netns("red")
    result = Result(ips=(ip("2001:db8::5/64", "2001:db8::1"),), routes=(to("::/0"),))
    host.call(lambda: attach(result, path="/run/netns/red"))
    with pytest.raises(IOFailureError, match=r"address 2001:db8::5/64 of link eth0 is in use by another host"):
        host.call(lambda: attach(result, enabledad=True))
    host.call(lambda: veth.delete(Attachment("mynet", "blue", "eth0")))
    other = Result(ips=(ip("2001:db8::6/64", "2001:db8::1"),), routes=(to("::/0"),))
    host.call(verify, host.call(lambda: attach(other, enabledad=True)))
    (said,) = host.ip("addr", "show", "eth0", netns="blue")
    assert "nodad" not in said["addr_info"][0]
    assert "tentative" not in said["addr_info"][0]


EVERYTHING = Result(
    ips=DUAL.ips,
    routes=(
        *DUAL.routes,
        to("10.2.0.0/16", "10.1.0.9", mtu=1300, advmss=1200, priority=77),
        to("10.3.0.0/16", table=9),
    ),
)


@pytest.mark.parametrize(
    ("drift", "words"),
    [
        ("addr del 10.1.0.5/24 dev eth0", "address 10.1.0.5/24 is missing"),
        ("addr del 2001:db8::5/64 dev eth0", "address 2001:db8::5/64 is missing"),
        ("route del default", "route 0.0.0.0/0 via 10.1.0.1 is missing"),
        ("route replace default via 10.1.0.77", "via 10.1.0.1 is missing: there is 0.0.0.0/0 via 10.1.0.77"),
        ("-6 route del default", "route ::/0 via 2001:db8::1 is missing"),
        ("route del 10.2.0.0/16", "route 10.2.0.0/16 via 10.1.0.9 is missing"),
        ("route change 10.2.0.0/16 via 10.1.0.9 metric 77 mtu 1200 advmss 1200", "has mtu 1200 instead of 1300"),
        ("route flush table 9", "route 10.3.0.0/16 via 10.1.0.1 in table 9 is missing"),
        ("link set eth0 down", "eth0 is down"),
        ("link set eth0 name eth7", "link eth0 does not exist in network namespace /run/netns/blue"),
    ],
)
def test_drift_is_seen(host: Sandbox, drift: str, words: str) -> None:
    host.add_netns("blue")
    result = host.call(attach, EVERYTHING)
    host.call(verify, result)
    host.run(["ip", "-n", "blue", *drift.split()])
    with pytest.raises(IOFailureError, match=re.escape(words)):
        host.call(verify, result)


@pytest.mark.parametrize(
    "chained",
    [
        # sbr: what goes out by this interface is looked up in a table of its own.
        [["route", "del", "default"], ["route", "add", "default", "via", "10.1.0.1", "table", "100"]],
        # an administrator adds more
        [["addr", "add", "10.9.0.1/24", "dev", "eth0"], ["route", "add", "10.8.0.0/16", "via", "10.1.0.3"]],
    ],
)
def test_what_others_add_or_move_is_no_drift(host: Sandbox, chained: list[list[str]]) -> None:
    host.add_netns("blue")
    result = host.call(attach, DUAL)
    for each in chained:
        host.run(["ip", "-n", "blue", *each])
    host.call(verify, result)


def batch(host: Host, *lines: str) -> None:
    host.run(["ip", "-n", "blue", "-batch", "-"], input="\n".join(lines) + "\n")


def test_a_container_does_not_decide_what_its_check_costs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses and routes it has, only those are decoded that can be what is looked for."""
    host.add_netns("blue")
    result = Result(ips=DUAL.ips, routes=(*DUAL.routes, to("203.0.113.0/24")))
    result = host.call(attach, result)
    batch(host, *(f"addr add 10.9.{number}.1/24 dev eth0" for number in range(200)))
    batch(host, *(f"route add 10.8.{number >> 8}.{number & 255}/32 dev eth0" for number in range(2000)))
    batch(host, *(f"route add 2001:db8:8::{number:x}/128 dev eth0" for number in range(1, 200)))
    decoded: list[object] = []

    def count(module: Any) -> None:
        original = module.parse

        def parse(data: bytes) -> object:
            decoded.append(data)
            return original(data)

        monkeypatch.setattr(module, "parse", parse)

    def work() -> int:
        count(address)
        count(route)
        verify(result)
        return len(decoded)

    # Two addresses and three routes, and the others that IPv6's default route is among: one of the kernel's own.
    assert host.call(work) <= 8
    drift = "route 203.0.113.0/24 via 10.1.0.1 is missing"
    host.run(["ip", "-n", "blue", "route", "del", "203.0.113.0/24"])
    with pytest.raises(IOFailureError, match=drift):
        host.call(verify, result)
    # What it looks at in the end is bounded, in each way that there is to hide what it looks for.
    with monkeypatch.context() as patch:
        patch.setattr(rtnetlink, "SCAN_LIMIT", 1000)
        with pytest.raises(IOFailureError, match="cannot list IPv4 routes: there are more than 1000"):
            host.call(verify, result)
    batch(host, *(f"route add 203.0.113.0/24 via 10.1.0.9 metric {number}" for number in range(1, 300)))
    with pytest.raises(IOFailureError, match="more than 256 lead to the destinations looked for"):
        host.call(verify, result)


def test_addresses_of_other_interfaces_are_not_looked_for(host: Sandbox) -> None:
    host.add_netns("blue")
    first = host.call(attach, Result(ips=(ip("10.1.0.5/24"),)))
    second = host.call(lambda: attach(Result(ips=(ip("10.2.0.5/24"),)), ifname="eth1"))
    together = Result(
        interfaces=(first.interfaces[-1], second.interfaces[-1]),
        ips=(ip("10.1.0.5/24", interface=0), ip("10.2.0.5/24", interface=1)),
        routes=(),
    )
    host.call(verify, together)
    host.call(lambda: verify(together, "eth1"))


def test_routes_are_what_iproute2_says(host: Sandbox) -> None:
    host.add_netns("blue")
    host.call(attach, EVERYTHING)
    host.run(["ip", "-n", "blue", "route", "add", "unreachable", "10.66.0.0/16"])
    host.run(["ip", "-n", "blue", "route", "add", "10.67.0.0/16", "via", "inet6", "2001:db8::9", "dev", "eth0"])
    hops = ["nexthop", "via", "10.1.0.7", "nexthop", "via", "10.1.0.8"]
    host.run(["ip", "-n", "blue", "route", "add", "10.68.0.0/16", *hops])

    def work() -> list[route.KernelRoute]:
        with netns.open(BLUE) as blue:
            return [each for each in route.list_all(blue) if each.table == 254]

    ours = {(str(each.dst), str(each.gw) if each.gw else None, each.priority, each.mtu) for each in host.call(work)}
    theirs = set()
    for each in [*host.ip("-4", "route", "show", netns="blue"), *host.ip("-6", "route", "show", netns="blue")]:
        dst = each["dst"]
        dst = {True: "::/0", False: "0.0.0.0/0"}["pref" in each] if dst == "default" else dst
        mtu = each.get("metrics", [{}])[0].get("mtu", 0)
        for hop in each.get("nexthops", [each]):
            gw = hop.get("gateway") or hop.get("via", {}).get("host")
            theirs.add((dst if "/" in dst else f"{dst}/32", gw, each.get("metric", 0), mtu))
    assert ours == theirs
    unreachable = next(each for each in host.call(work) if str(each.dst) == "10.66.0.0/16")
    assert not unreachable.unicast


def test_refused_work_leaves_the_thread_where_it_was(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add_netns("blue")

    def fail(*args: object, **kwargs: object) -> None:
        raise sysctl.SysctlError("injected")

    def attempt(break_it: Callable[[], None]) -> None:
        before = netns.current()
        break_it()
        with pytest.raises(sysctl.SysctlError, match="injected"):
            attach(DUAL)
        assert netns.current() == before
        assert link.find("br0") is not None

    def in_the_container() -> None:
        monkeypatch.setattr(layer3, "_prepare", fail)

    def on_the_host() -> None:
        monkeypatch.setattr(sysctl, "refuse_advertisements", lambda name, **_: fail() if name != "br0" else None)

    host.call(attempt, in_the_container)
    host.call(lambda: veth.delete(Attachment("mynet", "blue", "eth0")))
    host.call(attempt, on_the_host)


def test_a_link_that_leads_to_its_gateways_alone(host: Sandbox) -> None:
    """A gateway outside the address's network, a network of one address, and an address without a gateway."""
    host.add_netns("blue")
    result = Result(
        ips=(
            ip("10.1.0.5/24", "10.1.0.1"),
            ip("10.2.0.5/32", "169.254.1.1"),
            ip("10.3.0.5/24"),
            ip("2001:db8::5/64", "2001:db8::1"),
        ),
        routes=(to("0.0.0.0/0"), to("::/0"), to("10.9.0.0/16", "10.1.0.9"), to("2001:db8:9::/48", "2001:db8::9")),
    )

    def work() -> Result:
        with netns.open(BLUE) as inner:
            pair = veth.create(inner, "eth0", owner=Attachment("mynet", "blue", "eth0"))
            pair.container.configure(result, routed=True)
            added = result.with_interfaces(pair.host, pair.container)
            layer3.verify(inner, "eth0", added)
            own = [each for ip in result.ips for each in layer3.gateway_routes(ip)]
            layer3.verify(inner, "eth0", evolve(added, routes=(*own, *added.routes)))
            return added

    host.call(work)
    shown = host.run(["ip", "netns", "exec", "blue", "sh", "-c", "ip route; ip -6 route show proto boot"]).stdout
    assert sorted(line.strip() for line in shown.splitlines()) == [
        "10.1.0.0/24 via 10.1.0.1 dev eth0 src 10.1.0.5",
        "10.1.0.1 dev eth0 scope link src 10.1.0.5",
        "10.3.0.0/24 dev eth0 proto kernel scope link src 10.3.0.5",
        # The reference has these two before it takes the route to the network away.
        "10.9.0.0/16 via 10.1.0.9 dev eth0 onlink",
        "169.254.1.1 dev eth0 scope link src 10.2.0.5",
        "2001:db8:9::/48 via 2001:db8::9 dev eth0 metric 1024 onlink pref medium",
        "2001:db8::/64 via 2001:db8::1 dev eth0 src 2001:db8::5 metric 1024 pref medium",
        "2001:db8::1 dev eth0 src 2001:db8::5 metric 1024 pref medium",
        "default via 10.1.0.1 dev eth0",
        "default via 2001:db8::1 dev eth0 metric 1024 pref medium",
    ]
