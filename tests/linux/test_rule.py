"""Routing rules, and routes moved between tables, against `ip`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cnisdk.linux import link, route, rtnetlink, rule
from cnisdk.spec.addresses import parse_network
from cnisdk.testing import Host

pytestmark = pytest.mark.kernel

RULES = {
    "from 10.1.0.2 lookup 100": rule.PolicyRule(4, 100, src=parse_network("10.1.0.2/32")),
    "from 10.1.0.2 to 10.0.0.0/8 lookup 70000": rule.PolicyRule(
        4, 70000, src=parse_network("10.1.0.2/32"), dst=parse_network("10.0.0.0/8"), priority=77
    ),
    "from all fwmark 0x7 iif lo oif v0 lookup main": rule.PolicyRule(4, iif="lo", oif="v0", fwmark=7, protocol=4),
    "from 2001:db8::/64 lookup 100": rule.PolicyRule(6, 100, src=parse_network("2001:db8::/64")),
}


@pytest.mark.parametrize("shown", RULES)
def test_a_rule_is_what_ip_shows(host: Host, shown: str) -> None:
    host.shell("ip link add v0 type veth peer name v1")
    wanted = RULES[shown]
    before = host.call(rule.list_all)
    for _ in range(2):
        host.call(rule.add, wanted)
    assert f"\t{shown}" in host.shell(f"ip -{wanted.version} rule").replace(" proto static", "")
    (made,) = set(host.call(rule.list_all)) - set(before)
    assert made._replace(priority=wanted.priority) == wanted
    for _ in range(2):
        host.call(rule.delete, wanted)
    assert host.call(rule.list_all) == before


def routes(host: Host, table: str) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for family in ("-4", "-6"):
        done = host.run(["ip", "-j", family, "route", "show", "table", table], check=False)
        shown += json.loads(done.stdout) if done.returncode == 0 else []  # a table without routes does not exist
    for each in shown:
        each["flags"] = [flag for flag in each["flags"] if flag == "onlink"]  # the others are its present state
    return [{key: value for key, value in each.items() if key != "pref"} for each in shown]


def test_routes_are_copied_with_everything_that_they_have(host: Host) -> None:
    host.shell(
        """
        for each in 0 1; do ip link add v$each type veth peer name p$each; ip link set v$each up; ip link set p$each up
        done
        ip address add 10.1.0.2/24 dev v0; ip address add 10.2.0.2/24 dev v1; ip address add 2001:db8::2/64 dev v0 nodad
        ip route add default via 10.1.0.1 src 10.1.0.2 metric 50 mtu 1300 advmss 1200
        ip route add 192.0.2.0/24 proto static nexthop via 10.1.0.1 weight 3 nexthop via 10.2.0.1
        ip route add unreachable 198.51.100.0/24
        ip route add 198.18.0.0/16 via 10.9.9.9 dev v0 onlink
        ip route add 198.19.0.0/16 nexthop via 10.9.9.9 dev v0 onlink nexthop via 10.2.0.1
        ip -6 route add 2001:db8:2::/48 via 2001:db8:9::9 dev v0 onlink
        ip nexthop add id 9 via 10.1.0.1 dev v0
        ip route add 203.0.113.0/24 nhid 9
        ip route add 2001:db8:1::/48 via 2001:db8::1 metric 7
        """
    )
    before = routes(host, "main")

    def copy() -> None:
        for each in route.list_all():
            if each.table == route.TABLE_MAIN:
                route.copy(each, 100)

    host.call(copy)
    host.call(copy)

    def comparable(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(({**each, "table": ""} for each in found), key=str)

    copied = comparable(routes(host, "100"))
    assert copied == comparable(before)
    assert len(copied) >= 8

    def delete() -> None:
        for each in route.list_all():
            if each.table == 100:
                route.delete(each)
                route.delete(each)

    host.call(delete)
    assert routes(host, "100") == []
    assert routes(host, "main") == before


def test_routes_are_added_and_replaced(host: Host) -> None:
    host.shell(
        "ip link add v0 type veth peer name p0; ip link set v0 up; ip link set p0 up; ip a add 10.1.0.2/24 dev v0"
    )

    def work() -> None:
        end = link.get("v0")
        there, gateway = parse_network("192.0.2.0/24"), parse_network("10.1.0.1/32").network_address
        route.add(end, there, gateway, table=100, mtu=1300)
        route.replace(end, there, gateway, table=100, mtu=1200)
        with pytest.raises(rtnetlink.KernelError, match="to link v0: EEXIST"):
            route.add(end, there, gateway, table=100, mtu=1200)

    host.call(work)
    assert [(each["dst"], each["metrics"]) for each in routes(host, "100")] == [("192.0.2.0/24", [{"mtu": 1200}])]
