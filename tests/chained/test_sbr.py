"""sbr: answers leave by the interface that the question came in by."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cnisdk.linux import route, rtnetlink, rule
from cnisdk.plugin import respond
from cnisdk.testing import Container, Host, expect_error
from cnisdk_plugins.sbr import Sbr

from .conftest import in_version, routes, two_networks

pytestmark = pytest.mark.kernel


def rules(container: Container) -> list[str]:
    """Rules beside the kernel's own."""
    shown = container.shell("ip rule; ip -6 rule").splitlines()
    return sorted(
        line.split("\t")[1].replace(" proto 197", "").strip()
        for line in shown
        if not line.endswith(("lookup local", "lookup main", "lookup default"))
    )


def snapshot(container: Container) -> tuple[list[str], set[str], set[str]]:
    return rules(container), routes(container, "main"), routes(container, "100") | routes(container, "101")


def add(host: Host, container: Container, result: dict[str, Any], **keys: Any) -> None:
    host.plugin(Sbr, {"prevResult": result, **keys}).add(container, "net1")


def test_each_address_gets_a_table_and_main_keeps_the_rest(host: Host) -> None:
    container, result = two_networks(host)
    plugin = host.plugin(Sbr, {"prevResult": result})
    assert plugin.run("ADD", container, "net1").document == result
    assert rules(container) == ["from 10.2.0.2 lookup 100", "from 2001:db8:2::2 lookup 101"]
    assert routes(container, "100") == {
        "default via 10.2.0.1 dev net1",
        "10.2.0.0/24 via None dev net1",
        "192.0.2.0/24 via 10.2.0.1 dev net1",
        "198.51.100.0/24 via None dev net1",
    }
    assert routes(container, "101") == {
        "default via 2001:db8:2::1 dev net1",
        "2001:db8:2::/64 via None dev net1",
        "fe80::/64 via None dev net1",
    }
    assert {each for each in routes(container, "main") if each.endswith("net1")} == {"fe80::/64 via None dev net1"}
    plugin.check(container, "net1")
    before = snapshot(container)
    plugin.add(container, "net1")
    assert snapshot(container) == before, "a second ADD changes nothing"


def test_routes_that_no_address_of_the_interface_can_use_stay(host: Host) -> None:
    """No rule leads to them otherwise: CHECK of the plugin that made them would fail."""
    container, result = two_networks(host)
    container.shell("ip -6 address flush dev net1 scope global; ip route add 203.0.113.0/24 dev net1")
    container.shell("ip -6 route add 2001:db8:9::/64 dev net1")
    result["ips"] = [each for each in result["ips"] if "2001:db8:2::2" not in each["address"]]
    plugin = host.plugin(Sbr, {"prevResult": result})
    before = routes(container, "main")
    plugin.add(container, "net1")
    left = {each for each in routes(container, "main") if each.endswith("net1")}
    assert left == {"fe80::/64 via None dev net1", "2001:db8:9::/64 via None dev net1"}
    plugin.check(container, "net1")
    plugin.delete(container, "net1")
    assert routes(container, "main") == before


def test_answers_leave_by_the_interface_of_the_question(host: Host) -> None:
    """A host behind the second network's router asks the second address; reverse path filters are strict."""
    container, result = two_networks(host)
    host.shell(
        """
        ip netns add far; ip link add f0 type veth peer name eth0 netns far
        ip address add 203.0.113.1/24 dev f0; ip link set f0 up; sysctl -qw net.ipv4.ip_forward=1
        ip -n far address add 203.0.113.9/24 dev eth0; ip -n far link set eth0 up
        ip -n far route add default via 203.0.113.1
        sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.v1.rp_filter=1 net.ipv4.conf.v2.rp_filter=1
        """
    )
    ping = ["ip", "netns", "exec", "far", "ping", "-c1", "-W1", "10.2.0.2"]
    assert host.run(ping, check=False).returncode != 0, "the answer leaves by eth0, and the host drops it"
    add(host, container, result)
    assert host.run(ping, check=False).returncode == 0


def test_a_static_gateway_and_source_hints(host: Host) -> None:
    container, result = two_networks(host)
    add(host, container, result, gateways=["10.2.0.254"], addSourceHints=True)
    assert "default via 10.2.0.254 dev net1" in routes(container, "100")
    hints = container.shell("ip route show dev net1; ip -6 route show dev net1")
    assert "10.2.0.0/24 scope link src 10.2.0.2" in hints
    assert "2001:db8:2::/64 src 2001:db8:2::2" in hints
    host.plugin(Sbr, {"prevResult": result, "gateways": ["10.2.0.254"], "addSourceHints": True}).check(
        container, "net1"
    )


@pytest.mark.parametrize("adder", ["go", "ours"])
def test_a_default_route_of_the_interface_is_kept(host: Host, go: Path, adder: str) -> None:
    """Its next hop may not be the gateway of the address. CHECK of the plugin before looks for it."""
    container, result = two_networks(host)
    result = in_version({**result, "routes": [{"dst": "0.0.0.0/0", "gw": "10.2.0.9"}]}, "1.0.0")
    container.shell("ip route replace default via 10.2.0.9 dev net1")
    conf = {"cniVersion": "1.0.0", "name": "net", "prevResult": result}
    ours = host.plugin(Sbr, conf)
    adding = host.plugin(go / "sbr", conf) if adder == "go" else ours
    adding.add(container, "net1")
    whole = routes(container, "100")
    assert {each for each in whole if each.startswith("default")} == {"default via 10.2.0.9 dev net1"}
    assert "default via 2001:db8:2::1 dev net1" in routes(container, "101")
    ours.check(container, "net1")
    ours.add(container, "net1")
    assert routes(container, "100") == whole
    container.shell("ip route del default table 100")
    with expect_error(5, "table 100 has no default route via 10.2.0.9 on net1"):
        ours.check(container, "net1")


@pytest.mark.parametrize("zeros", ["0.0.0.0", "::"])
def test_a_default_route_onto_the_link_is_kept(host: Host, zeros: str) -> None:
    """Its next hop is zeros in the result, which means none."""
    container, result = two_networks(host)
    family, default, table = ("-6", "::/0", "101") if ":" in zeros else ("-4", "0.0.0.0/0", "100")
    result["routes"] = [{"dst": default, "gw": zeros}]
    container.shell(f"ip {family} route del default; ip {family} route add default dev net1")
    plugin = host.plugin(Sbr, {"prevResult": result})
    plugin.add(container, "net1")
    assert "default via None dev net1" in routes(container, table)
    plugin.check(container, "net1")
    container.shell(f"ip {family} route del default table {table}")
    with expect_error(5, f"table {table} has no default route on net1"):
        plugin.check(container, "net1")


def test_a_table_of_the_administrators(host: Host) -> None:
    container, result = two_networks(host)
    before = routes(container, "main")
    plugin = host.plugin(Sbr, {"prevResult": result, "table": 70000})
    plugin.add(container, "net1")
    plugin.add(container, "net1")
    assert rules(container) == ["from 10.2.0.2 lookup 70000", "from 2001:db8:2::2 lookup 70000"]
    assert routes(container, "main") == before
    plugin.check(container, "net1")
    plugin.delete(container, "net1")
    assert rules(container) == []


@pytest.mark.parametrize(("table", "told"), [(0, "0"), (-1, "-1"), (2**32, "4294967296"), (10**400, f"1{'0' * 78}…")])
def test_a_number_that_no_table_has_is_refused(host: Host, table: int, told: str) -> None:
    container, result = two_networks(host)
    plugin = host.plugin(Sbr, {"prevResult": result, "table": table})
    for ask in (lambda: plugin.add(container, "net1"), lambda: plugin.check(container, "net1"), plugin.status):
        with expect_error(7, f"$.table is {told}, expected 1 to 4294967295"):
            ask()
    plugin.delete(container, "net1")


def test_a_table_that_is_in_use_is_left_alone(host: Host) -> None:
    container, result = two_networks(host)
    container.shell("ip route add 172.16.0.0/12 dev eth0 table 100; ip rule add from 172.16.0.1 lookup 101")
    add(host, container, result)
    assert routes(container, "100") == {"172.16.0.0/12 via None dev eth0"}
    assert {each.rpartition(" ")[2] for each in rules(container) if "10.2" in each or "db8" in each} == {"102", "103"}


NARROWER = (
    "iif eth0",
    "oif eth0",
    "fwmark 0/5",
    "tos 0x10",
    "ipproto tcp",
    "sport 5-9",
    "dport 80",
    "uidrange 0-0",
    "suppress_prefixlength 0",
)


def test_rules_with_other_conditions_are_the_administrators(host: Host) -> None:
    """They decide of some packets from the address, of a port or a user; sbr decides of all."""
    container, result = two_networks(host)
    source = "from 10.2.0.2"
    for number, condition in enumerate(NARROWER):
        container.shell(f"ip rule add {source} {condition} lookup {300 + number}")
    container.shell("ip rule add not from 10.2.0.2 lookup 350; ip -6 rule add not from 2001:db8:2::2 lookup 351")
    before = rules(container)
    plugin = host.plugin(Sbr, {"prevResult": result})
    plugin.add(container, "net1")
    assert sorted(set(rules(container)) - set(before)) == [f"{source} lookup 100", "from 2001:db8:2::2 lookup 101"]
    plugin.check(container, "net1")
    plugin.delete(container, "net1")
    assert rules(container) == before
    with expect_error(5, "no rule for packets from 10.2.0.2"):
        plugin.check(container, "net1")
    plugin.add(container, "net1")
    plugin.delete(container, "net1", prevResult=None)
    assert rules(container) == before


@pytest.mark.parametrize(
    ("address", "gateway", "hop"),
    [
        ("10.3.0.2/32", "169.254.1.1", "169.254.1.1 dev net1 onlink"),
        ("10.3.0.2/32", "10.99.0.1", "10.99.0.1 dev net1 onlink"),
        ("2001:db8:3::2/128", "fe80::1", "fe80::1 dev net1"),
        ("2001:db8:3::2/64", "2001:db8:99::1", "2001:db8:99::1 dev net1 onlink"),
    ],
)
def test_a_next_hop_outside_the_addresses_network(host: Host, address: str, gateway: str, hop: str) -> None:
    """Such as of a host route, and all that IPv6 routers advertise of themselves: their link-local addresses."""
    container = host.container("c1")
    family, far = ("-6", "2001:db8:77::/48") if ":" in address else ("-4", "172.30.0.0/16")
    host.shell(
        f"""
        ip link add v2 type veth peer name net1 netns c1; ip link set v2 up; ip -n c1 link set net1 up
        ip -n c1 {family} address add {address} dev net1 nodad
        ip -n c1 {family} route add default via {hop}; ip -n c1 {family} route add {far} via {hop}
        """
    )
    ip = {"interface": 0, "address": address, "gateway": gateway}
    interfaces = [{"name": "net1", "sandbox": container.netns}]
    plugin = host.plugin(Sbr, {"prevResult": {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": [ip]}})
    plugin.add(container, "net1")
    assert {f"default via {gateway} dev net1", f"{far} via {gateway} dev net1"} <= routes(container, "100")
    plugin.check(container, "net1")
    plugin.delete(container, "net1")
    assert f"{far} via {gateway} dev net1" in routes(container, "main")


@pytest.mark.parametrize("gone", ["nothing", "prevResult", "the link", "the link and prevResult", "the namespace"])
def test_del_whatever_is_gone(host: Host, gone: str) -> None:
    container, result = two_networks(host)
    plugin = host.plugin(Sbr, {"prevResult": result})
    plugin.add(container, "net1")
    if "link" in gone:
        host.shell("ip link delete v2")
    if gone == "the namespace":
        container.destroy()
    keys: dict[str, Any] = {"prevResult": None} if "prevResult" in gone else {}
    for _ in range(2):
        plugin.run("DEL", container, "net1", **keys).raise_for_error()
    if gone != "the namespace":
        assert snapshot(container)[::2] == ([], set())
    if "link" not in gone and gone != "the namespace":
        assert "192.0.2.0/24 via 10.2.0.1 dev net1" in routes(container, "main")


def test_a_late_del_leaves_the_next_container_at_the_path_alone(host: Host) -> None:
    """The path of a namespace, such as that of a process, leads to another container by now; its interface tells."""
    container, result = two_networks(host)
    plugin = host.plugin(Sbr, {"prevResult": result})
    plugin.add(container, "net1")
    before = snapshot(container)
    host_end, end = ({**each, "mac": "02:00:00:00:00:99"} for each in result["interfaces"])
    for interfaces, ips in (
        ([{**host_end, "name": "v9"}, end], result["ips"]),
        ([host_end, end], list[Any]()),
        ([host_end, end], [{"interface": 1, "address": "10.2.0.9/24"}]),
    ):
        late = {**result, "interfaces": interfaces, "ips": ips}
        plugin.run("DEL", container, "net1", environ={"CNI_CONTAINERID": "late"}, prevResult=late).raise_for_error()
        assert snapshot(container) == before
    plugin.delete(container, "net1")
    assert snapshot(container)[::2] == ([], set())


@pytest.mark.parametrize(
    "told", ["by the host end", "by the alias of the host end", "by the addresses", "by the rules"]
)
def test_del_after_tuning_put_the_hardware_address_back(host: Host, told: str) -> None:
    """DEL goes from the last plugin to the first, and the result that a runtime has kept tells of ADD's end."""
    container, result = two_networks(host)
    plugin = host.plugin(Sbr, {"prevResult": result})
    plugin.add(container, "net1")
    host_end, end = ({**each, "mac": "02:00:00:00:00:99"} for each in result["interfaces"])
    if told == "by the host end":
        del host_end["mac"]
    elif told == "by the alias of the host end":
        host.shell("ip link set v2 alias cni:testnet/c1/net1")
    if told != "by the addresses":
        container.shell("ip address flush dev net1; ip -6 address flush dev net1")
    plugin.run("DEL", container, "net1", prevResult={**result, "interfaces": [host_end, end]}).raise_for_error()
    assert rules(container) == []


def test_a_failed_add_puts_everything_back(host: Host) -> None:
    container, result = two_networks(host)
    before = snapshot(container)
    with expect_error(5, "cannot replace route"):
        add(host, container, result, gateways=["2001:db8:9::1", "10.9.0.1"])
    assert snapshot(container) == before
    with expect_error(7, "$.gateways has several of one IP version"):
        add(host, container, result, gateways=["10.2.0.3", "10.2.0.4"])
    with expect_error(7, "$.table is 0"):
        add(host, container, result, table=0)
    assert snapshot(container) == before


def test_an_address_of_the_hosts_link_of_that_name_is_not_the_containers(host: Host) -> None:
    container, result = two_networks(host)
    result["interfaces"][0] = {"name": "net1"}  # on the host
    result["ips"].append({"interface": 0, "address": "10.2.0.1/24"})
    plugin = host.plugin(Sbr, {"prevResult": result})
    plugin.add(container, "net1")
    assert [each for each in rules(container) if "10.2.0.1 " in each] == []
    assert [each for each in rules(container) if "10.2.0.2 " in each] != []
    plugin.check(container, "net1")


def test_check_names_what_differs(host: Host) -> None:
    container, result = two_networks(host)
    result["routes"] = [{"dst": "192.0.2.0/24", "gw": "10.2.0.1"}]
    plugin = host.plugin(Sbr, {"prevResult": result})
    plugin.add(container, "net1")
    container.shell("ip route add 172.16.0.0/12 dev net1")  # the container's own
    plugin.check(container, "net1")
    for spoil, text in (
        ("ip route add 192.0.2.0/24 dev net1", "route 192.0.2.0/24 of net1 is in the main table again"),
        ("ip route replace 10.2.0.0/24 dev net1", "route 10.2.0.0/24 of net1 is in the main table again"),
        ("ip route delete default table 100", "table 100 has no default route via 10.2.0.1"),
        ("ip rule delete from 10.2.0.2", "no rule for packets from 10.2.0.2"),
    ):
        container.shell(spoil)
        with expect_error(5, text):
            plugin.check(container, "net1")


def test_a_container_does_not_decide_what_its_check_costs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many routes and rules it has, only those are decoded that can be what is looked for."""
    container, result = two_networks(host)
    host.plugin(Sbr, {"prevResult": result}).add(container, "net1")
    for kind, lines in (
        ("route", (f"10.8.{number >> 8}.{number & 255}/32 dev net1" for number in range(2000))),
        ("-6 route", (f"2001:db8:8::{number:x}/128 dev net1 table 7" for number in range(1, 200))),
        ("rule", (f"from 10.9.{number >> 8}.{number & 255} lookup 7" for number in range(500))),
    ):
        family, _, what = kind.rpartition(" ")
        batch = "".join(f"{what} add {line}\n" for line in lines)
        host.run(["ip", *filter(None, [family]), "-n", "c1", "-batch", "-"], input=batch)
    environ = {
        "CNI_COMMAND": "CHECK",
        "CNI_CONTAINERID": container.id,
        "CNI_NETNS": container.netns,
        "CNI_IFNAME": "net1",
    }
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "testnet", "type": "sbr", "prevResult": result}).encode()
    decoded: list[bytes] = []

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def parse(data: bytes) -> object:
            decoded.append(data)
            return original(data)

        monkeypatch.setattr(module, name, parse)

    def work() -> tuple[int, int]:
        count(route, "parse")
        count(rule, "_parse")
        return respond(Sbr, environ, stdin).status, len(decoded)

    status, number = host.call(work)
    assert status == 0
    assert number <= 16
    monkeypatch.setattr(rtnetlink, "SCAN_LIMIT", 300)
    with expect_error(5, "there are more than 300"):
        host.plugin(Sbr, {"prevResult": result}).check(container, "net1")


@pytest.mark.parametrize("adder", ["go", "ours"])
@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_go_and_ours_delete_what_the_other_added(host: Host, go: Path, version: str, adder: str) -> None:
    container, result = two_networks(host)
    conf = {"cniVersion": version, "prevResult": in_version(result, version)}
    one, other = host.plugin(go / "sbr", conf | {"type": "sbr"}), host.plugin(Sbr, conf)
    if adder == "ours":
        one, other = other, one
    answered = one.run("ADD", container, "net1").document
    tables = routes(container, "100"), routes(container, "101")
    if version != "0.3.1":
        other.run("CHECK", container, "net1", prevResult=answered).raise_for_error()
    other.run("DEL", container, "net1", prevResult=answered).raise_for_error()
    assert rules(container) == []
    assert "default via 10.2.0.1 dev net1" in tables[0]
    assert {"default via 2001:db8:2::1 dev net1", "2001:db8:2::/64 via None dev net1"} <= tables[1]


@pytest.mark.slow
def test_a_killed_add_leaves_no_rule_after_del(host: Host, plugin_directory: Path) -> None:
    container, result = two_networks(host)
    plugin = host.plugin(plugin_directory / "sbr", {"prevResult": result})
    environ = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": container.id,
        "CNI_NETNS": container.netns,
        "CNI_IFNAME": "net1",
        "CNI_PATH": "/nowhere",
    }
    chance = random.Random(4)
    for _ in range(int(os.environ.get("CNISDK_TEST_KILLS", "100"))):
        process = host.popen([plugin_directory / "sbr"], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        with process:
            process.stdin.write(json.dumps(plugin.conf))
            process.stdin.close()
            try:
                process.wait(chance.uniform(0.05, 0.25))
            except subprocess.TimeoutExpired:
                process.kill()
        plugin.run("DEL", container, "net1").raise_for_error()
        assert rules(container) == []
