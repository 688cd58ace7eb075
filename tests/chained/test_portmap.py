"""portmap: ports of the host that lead to a container, judged by traffic."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address, ip_interface
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cnisdk import AddRequest, Attachment, CNIError
from cnisdk.errors import IOFailureError
from cnisdk.linux import hostports
from cnisdk.linux.netfilter import conntrack, hostports_iptables, hostports_nft, nfnetlink, sets, xt_rules
from cnisdk.linux.netfilter.hostports import HostPort, Options
from cnisdk.plugin._repair import repair
from cnisdk.plugin.request import parse_request
from cnisdk.spec.versions import Verb
from cnisdk.testing import Container, Host, expect_error
from cnisdk_plugins.portmap import Portmap, PortmapConf

from ..programs import started_programs
from .conftest import (
    check_chains_that_came_later,
    check_old_programs_read,
    find_by_iptables,
    in_version,
    kill_adds,
    listing,
    read_iptables,
    received_bytes,
    renumber_iptables,
)

pytestmark = pytest.mark.kernel

BACKENDS = ("iptables", "nftables")
MAPPINGS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
    {"hostPort": 8081, "containerPort": 81, "protocol": "sctp"},
]


def ports(*mappings: dict[str, Any]) -> dict[str, Any]:
    return {"runtimeConfig": {"portMappings": list(mappings or MAPPINGS)}}


def attached(host: Host, name: str, number: int, bridge: str = "br0") -> tuple[Container, dict[str, Any]]:
    """Make a container on a bridge that is its gateway, and the result of the plugin that could have made it."""
    container = Container(host, name) if bridge == "br1" else host.container(name)
    subnet = 1 if bridge == "br0" else 2
    if bridge not in host.links():
        host.shell(
            f"""
            ip link add {bridge} type bridge; ip link set {bridge} up
            ip address add 10.{subnet}.0.1/24 dev {bridge}; ip address add 2001:db8:{subnet}::1/64 dev {bridge} nodad
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            """
        )
    host.shell(
        f"""
        ip link add v{subnet}-{name} type veth peer name eth{subnet - 1} netns {name}
        ip link set v{subnet}-{name} master {bridge} up; bridge link set dev v{subnet}-{name} hairpin on
        """
    )
    address, other = f"10.{subnet}.0.{number}", f"2001:db8:{subnet}::{number}"
    container.shell(
        f"""
        ip address add {address}/24 dev eth{subnet - 1}; ip address add {other}/64 dev eth{subnet - 1} nodad
        ip link set eth{subnet - 1} up; ip link set lo up
        ip route replace default via 10.{subnet}.0.1; ip -6 route replace default via 2001:db8:{subnet}::1
        """
    )
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": f"v{subnet}-{name}"}, {"name": f"eth{subnet - 1}", "sandbox": container.netns}],
        "ips": [{"interface": 1, "address": f"{address}/24"}, {"interface": 1, "address": f"{other}/64"}],
        "foreign": {"key": [1]},
    }
    return container, result


@pytest.fixture
def outside(host: Host) -> Iterator[Host]:
    """A neighbour of the host, which knows no way to the containers."""
    with Host(beside=host) as neighbour:
        host.connect(neighbour, address="198.51.100.1/24", other_address="198.51.100.2/24")
        host.shell("ip address add 2001:db8:9::1/64 dev uplink nodad")
        neighbour.shell("ip address add 2001:db8:9::2/64 dev uplink nodad; ip route del default || true")
        yield neighbour


def rules_of(host: Host, *words: str) -> list[str]:
    """Lines of all rules and elements that have one of the words."""
    return [line.strip() for line in host.shell("nft list ruleset").splitlines() if any(word in line for word in words)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_ports_answer_everybody(host: Host, outside: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    neighbour, _ = attached(host, "c2", 6)
    host.shell("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    plugin = host.plugin(Portmap, {**ports(), "backend": backend, "prevResult": result})
    assert plugin.run("ADD", container).document == result
    plugin.check(container)
    for protocol, port, published in (("tcp", 80, 8080), ("udp", 53, 8053)):
        to: dict[str, Any] = {"protocol": protocol, "port": port, "published": published}
        assert outside.reaches(container, "198.51.100.1", **to)
        assert outside.reaches(container, "2001:db8:9::1", **to)
        assert host.reaches(container, "198.51.100.1", **to)
        assert host.reaches(container, "2001:db8:9::1", **to)
        assert host.reaches(container, "127.0.0.1", **to)
        assert neighbour.reaches(container, "198.51.100.1", **to)
        assert neighbour.reaches(container, "10.1.0.1", **to)
        assert neighbour.reaches(container, "2001:db8:1::1", **to)
        assert container.reaches(container, "198.51.100.1", **to)
        assert container.reaches(container, "2001:db8:9::1", **to)
    plugin.delete(container)
    plugin.delete(container)
    assert not outside.reaches(container, "198.51.100.1", port=80, published=8080, timeout=0.5)
    assert rules_of(host, "10.1.0.5", "2001:db8:1::5", "id: c1", "CNI-DN-", "owner-") == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_of_the_administrators_accepts_what_is_published(host: Host, outside: Host, backend: str) -> None:
    """As the page of firewall tells."""
    container, result = attached(host, "c1", 5)
    host.shell(
        "nft add table inet filter; nft 'add chain inet filter forward"
        " { type filter hook forward priority 0 ; policy drop ; }'"
    )
    host.plugin(Portmap, {**ports(), "backend": backend, "prevResult": result}).add(container)
    assert not outside.reaches(container, "198.51.100.1", port=80, published=8080, timeout=0.3)
    page = Path(__file__).parents[2] / "docs" / "reference" / "firewall.md"
    _, command = [line for line in page.read_text().splitlines() if line.startswith("nft insert rule")]
    host.shell(command)
    for target in ("198.51.100.1", "2001:db8:9::1"):
        assert outside.reaches(container, target, port=80, published=8080)


def test_ports_published_by_the_legacy_variant(legacy: Host, outside: Host) -> None:
    """Traffic, a port that is taken, values that CHECK compares, and both ways to clean up."""
    (container, result), (second, other) = attached(legacy, "c1", 5), attached(legacy, "c2", 6)
    for program in ("iptables", "ip6tables"):
        legacy.shell(f"{program}-legacy -P FORWARD DROP")
    plugin = legacy.plugin(Portmap, {"name": "net", "backend": "iptables", **ports()})
    for _ in range(2):  # the second replaces the first
        plugin.add(container, prevResult=result)
        plugin.check(container, prevResult=result)
    assert legacy.shell("iptables-legacy -t nat -S PREROUTING").count("-j CNI-HOSTPORT-DNAT") == 1
    for protocol, port, published in (("tcp", 80, 8080), ("udp", 53, 8053)):
        to: dict[str, Any] = {"protocol": protocol, "port": port, "published": published}
        for target in ("198.51.100.1", "2001:db8:9::1"):
            assert outside.reaches(container, target, **to)
            assert container.reaches(container, target, **to)
        assert legacy.reaches(container, "127.0.0.1", **to)
    with expect_error(11, "c1"):
        plugin.add(second, prevResult=other)
    plugin.delete(second)
    plugin.check(container, prevResult=result)
    saved = "iptables-legacy-save; ip6tables-legacy-save"
    jumps = legacy.shell("iptables-legacy -t nat -S CNI-HOSTPORT-DNAT").splitlines()[1:]
    legacy.shell(f"iptables-legacy -t nat {jumps[0].replace('-A', '-D', 1)}")
    with expect_error(5, "has no rule like this"):
        plugin.check(container, prevResult=result)
    plugin.gc(second)
    assert not [each for each in legacy.shell(saved).splitlines() if "CNI-DN-" in each or "10.1.0.5" in each]
    plugin.add(container, prevResult=result)
    plugin.run("DEL", container, prevResult=None).raise_for_error()
    assert not [each for each in legacy.shell(saved).splitlines() if "CNI-DN-" in each or "10.1.0.5" in each]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_port_is_one_containers(host: Host, backend: str) -> None:
    (first, one), (second, two) = attached(host, "c1", 5), attached(host, "c2", 6)
    conf = {"name": "net", "backend": backend, **ports()}
    plugin = host.plugin(Portmap, conf)
    plugin.add(first, prevResult=one)
    before = rules_of(host, "")
    for other in BACKENDS:
        with expect_error(11, "port 8080/tcp of the host is taken by container c1"):
            plugin.add(second, prevResult=two, backend=other)
    for other_port in (
        {"hostPort": 8053, "containerPort": 1, "protocol": "tcp"},
        {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
    ):
        plugin.add(second, prevResult=two, **ports(other_port))
        plugin.delete(second)
    plugin.check(first, prevResult=one)
    assert [line for line in rules_of(host, "") if "10.1.0.6" in line] == []
    assert len(rules_of(host, "10.1.0.5")) == len([line for line in before if "10.1.0.5" in line])
    plugin.delete(first)
    plugin.add(second, prevResult=two)
    plugin.check(second, prevResult=two)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ports_of_single_addresses(host: Host, outside: Host, backend: str) -> None:
    host.shell("ip address add 198.51.100.7/24 dev uplink")
    (first, one), (second, two) = attached(host, "c1", 5), attached(host, "c2", 6)
    plugin = host.plugin(Portmap, {"backend": backend})
    single = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    plugin.add(first, prevResult=one, **ports({**single, "hostIP": "198.51.100.1"}))
    plugin.add(second, prevResult=two, **ports({**single, "hostIP": "198.51.100.7"}))
    assert outside.reaches(first, "198.51.100.1", port=80, published=8080)
    assert outside.reaches(second, "198.51.100.7", port=80, published=8080)
    assert not outside.reaches(first, "2001:db8:9::1", port=80, published=8080, timeout=0.5)
    third, three = attached(host, "c3", 7)
    with expect_error(11, "is taken by container c"):
        plugin.add(third, prevResult=three, **ports({**single, "hostIP": "0.0.0.0"}))
    plugin.delete(first)
    plugin.delete(second)
    plugin.add(third, prevResult=three, **ports({**single, "hostIP": "0.0.0.0"}))
    assert rules_of(host, "2001:db8:1::7") == []
    with expect_error(11, "is taken by container c3"):
        plugin.add(first, prevResult=one, **ports({**single, "hostIP": "198.51.100.1"}))


@pytest.mark.parametrize("backend", BACKENDS)
def test_networks_of_one_container_share_their_ports(host: Host, outside: Host, backend: str) -> None:
    """Podman gives all networks of a container the same mappings."""
    container, first = attached(host, "c1", 5)
    _, second = attached(host, "c1", 5, "br1")
    one = host.plugin(Portmap, {"name": "one", "backend": backend, "prevResult": first, **ports()})
    two = host.plugin(Portmap, {"name": "two", "backend": backend, "prevResult": second, **ports()})
    one.add(container, "eth0")
    two.add(container, "eth1")
    one.check(container, "eth0")
    two.check(container, "eth1")
    assert outside.reaches(container, "198.51.100.1", port=80, published=8080)
    one.delete(container, "eth0")
    two.check(container, "eth1")
    assert outside.reaches(container, "198.51.100.1", port=80, published=8080)
    two.delete(container, "eth1")
    assert rules_of(host, "10.1.0.5", "10.2.0.5", "CNI-DN-", "owner-") == []


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("adder", ["go", "ours"])
@pytest.mark.interop
def test_go_and_ours_check_and_delete_what_the_other_added(host: Host, go: Path, version: str, adder: str) -> None:
    container, result = attached(host, "c1", 5)
    del result["foreign"]  # which the reference loses
    mappings = [*MAPPINGS, {"hostPort": 99, "containerPort": 99, "protocol": "tcp", "hostIP": "10.1.0.1"}]
    conf = {"name": "net", "cniVersion": version, "prevResult": in_version(result, version), **ports(*mappings)}
    one, other = host.plugin(go / "portmap", conf), host.plugin(Portmap, conf)
    if adder == "ours":
        one, other = other, one
    answered = one.run("ADD", container).document
    assert host.reaches(container, "10.1.0.1", port=99, published=99)
    if adder == "go":
        by_go = set(host.shell("iptables -t nat -S; ip6tables -t nat -S").splitlines())
        other.run("ADD", container).raise_for_error()
        ours = set(host.shell("iptables -t nat -S; ip6tables -t nat -S").splitlines())
        assert by_go <= ours, "all that the reference's CHECK looks for; that itself never passes for two IP versions"
        assert all("CONNMARK" in line for line in ours - by_go)
    if adder == "go" and version != "0.3.1":
        other.run("DEL", container).raise_for_error()
        one.run("ADD", container).raise_for_error()
        other.run("CHECK", container, prevResult=answered).raise_for_error()
    other.run("DEL", container, prevResult=answered).raise_for_error()
    assert rules_of(host, "10.1.0.5", "2001:db8:1::5", "CNI-DN-", "id: c1", "owner-") == []


@pytest.mark.interop
def test_the_references_chain_of_another_interface_stays(host: Host, go: Path) -> None:
    """It names network and container only."""
    container, first = attached(host, "c1", 5)
    _, second = attached(host, "c1", 5, "br1")
    del first["foreign"]
    conf = {"name": "net", "cniVersion": "1.0.0"}
    reference = host.plugin(go / "portmap", {**conf, "prevResult": in_version(first, "1.0.0"), **ports()})
    ours = host.plugin(Portmap, {**conf, "prevResult": in_version(second, "1.0.0"), **ports()})
    reference.add(container)
    ours.add(container, "eth1")
    for _ in range(2):
        ours.delete(container, "eth1")
        assert host.reaches(container, "10.1.0.1", port=80, published=8080)
    host.plugin(Portmap, {**conf, "prevResult": in_version(first, "1.0.0"), **ports()}).delete(container)
    assert rules_of(host, "CNI-DN-") == []


@pytest.mark.interop
def test_the_references_chain_for_the_version_that_another_interface_lacks_stays(host: Host, go: Path) -> None:
    """The reference has published ports of both versions for one interface; ours has IPv4 only, or no port."""
    container, first = attached(host, "c1", 5)
    _, second = attached(host, "c1", 5, "br1")
    second["ips"] = second["ips"][:1]
    conf = {"name": "net", "cniVersion": "1.0.0"}
    of_first = {**in_version(first, "1.0.0"), "foreign": None}
    host.plugin(go / "portmap", {**conf, "prevResult": of_first, **ports(MAPPINGS[0])}).run("ADD", container)
    ours = host.plugin(Portmap, {**conf, "prevResult": in_version(second, "1.0.0"), **ports(MAPPINGS[1])})
    without = host.plugin(Portmap, {**conf, "prevResult": in_version(second, "1.0.0")})
    for plugin in (ours, without):
        for verb in ("ADD", "DEL"):
            plugin.run(verb, container, "eth1").raise_for_error()
            for address in ("10.1.0.1", "2001:db8:1::1"):
                assert host.reaches(container, address, port=80, published=8080)
    host.plugin(Portmap, {**conf, "prevResult": of_first}).run("DEL", container).raise_for_error()
    assert rules_of(host, "CNI-DN-") == []


@pytest.mark.interop
def test_the_references_chain_of_an_attachment_whose_names_make_the_same_text_stays(host: Host, go: Path) -> None:
    """It names the chain by a hash of network and container, joined."""
    container, result = attached(host, "c1", 5)
    other = host.container("1")
    conf = {"cniVersion": "1.0.0", **ports()}
    host.plugin(go / "portmap", {**conf, "name": "net", "prevResult": in_version(result, "1.0.0")}).add(container)
    ours = host.plugin(Portmap, {**conf, "name": "netc"})
    ours.run("DEL", other).raise_for_error()
    assert host.reaches(container, "10.1.0.1", port=80, published=8080)
    host.plugin(Portmap, {"cniVersion": "1.1.0", "name": "netc"}).gc()
    assert host.reaches(container, "10.1.0.1", port=80, published=8080)


# --- CVE-2019-9946, CVE-2025-67499 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_cve_2019_9946_rules_of_others_come_first(host: Host, outside: Host, backend: str) -> None:
    """An administrator's translation of the port wins, whichever was there first."""
    (container, result), (other, _) = attached(host, "c1", 5), attached(host, "c2", 6)
    host.shell(
        "iptables -t nat -A PREROUTING -p tcp -d 198.51.100.1 --dport 8080 -j DNAT --to-destination 10.1.0.6:80;"
        "iptables -t nat -A OUTPUT -p tcp -d 198.51.100.1 --dport 8080 -j DNAT --to-destination 10.1.0.6:80"
    )
    host.plugin(Portmap, {**ports(), "backend": backend, "prevResult": result}).add(container)
    assert outside.reaches(other, "198.51.100.1", port=80, published=8080)
    assert host.reaches(other, "198.51.100.1", port=80, published=8080)
    shown = host.shell("iptables -t nat -S PREROUTING; iptables -t nat -S OUTPUT; iptables -S FORWARD").splitlines()
    assert next(line for line in shown if line.startswith("-A")).endswith("--to-destination 10.1.0.6:80")


@pytest.mark.parametrize("backend", BACKENDS)
def test_cve_2025_67499_what_is_sent_elsewhere_is_not_taken(host: Host, outside: Host, backend: str) -> None:
    """A container, and a machine that routes over this host, reach the same port of a machine outside."""
    (container, result), (client, _) = attached(host, "c1", 5), attached(host, "c2", 6)
    outside.shell("ip route add 10.1.0.0/24 via 198.51.100.1; ip -6 route add 2001:db8:1::/64 via 2001:db8:9::1")
    host.plugin(Portmap, {**ports(), "backend": backend, "prevResult": result}).add(container)
    for address in ("198.51.100.2", "2001:db8:9::2"):
        assert client.reaches(outside, address, port=8080)
        assert host.reaches(outside, address, port=8080)
        assert container.reaches(outside, address, protocol="udp", port=8053)
    assert outside.reaches(client, "10.1.0.6", port=8080)


# --- UDP flows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_udp_flows_of_the_host_port_are_forgotten(host: Host, outside: Host, backend: str) -> None:
    """A client that never stops sending reaches each container that gets the port, one after the other."""
    (first, one), (second, two) = attached(host, "c1", 5), attached(host, "c2", 6)
    plugin = host.plugin(Portmap, {"backend": backend, **ports(MAPPINGS[1])})
    client = outside.open_socket(socket.AF_INET, socket.SOCK_DGRAM, bind=("198.51.100.2", 5000))
    servers = [each.open_socket(socket.AF_INET, socket.SOCK_DGRAM, bind=("0.0.0.0", 53)) for each in (first, second)]
    with client, servers[0], servers[1]:
        client.sendto(b"nobody", ("198.51.100.1", 8053))
        plugin.add(first, prevResult=one)
        for container, result, server in ((first, one, servers[0]), (second, two, servers[1])):
            server.settimeout(60)
            if container is second:
                plugin.add(second, prevResult=two)
            client.sendto(container.id.encode(), ("198.51.100.1", 8053))
            assert server.recv(10) == container.id.encode()
            plugin.delete(container, prevResult=result)
            flows = host.call(udp_flows, 4)
            assert not any((8053).to_bytes(2, "big") in flow for flow in flows), "DEL forgets the flow, too"


@pytest.mark.parametrize("backend", BACKENDS)
def test_flows_to_what_a_second_add_gives_up_are_forgotten(host: Host, outside: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    plugin = host.plugin(Portmap, {"backend": backend, "prevResult": result, **ports(MAPPINGS[1])})
    client = outside.open_socket(socket.AF_INET, socket.SOCK_DGRAM, bind=("198.51.100.2", 5000))
    server = container.open_socket(socket.AF_INET, socket.SOCK_DGRAM, bind=("0.0.0.0", 53))
    less = [{"runtimeConfig": None}, ports(MAPPINGS[0]), {"prevResult": {**result, "ips": result["ips"][1:]}}]
    with client, server:
        server.settimeout(60)
        for keys in (*less, {"backend": {"iptables": "nftables", "nftables": "iptables"}[backend]}):
            plugin.add(container)
            client.sendto(b"hello", ("198.51.100.1", 8053))
            assert server.recv(10) == b"hello"
            assert len(host.call(udp_flows, 4)) == 1
            plugin.add(container, **keys)
            assert host.call(udp_flows, 4) == []


@pytest.mark.parametrize("holder", BACKENDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_late_del_keeps_the_flows_of_the_next_container(host: Host, outside: Host, backend: str, holder: str) -> None:
    """DEL comes once more, with the result of ADD, when another container has the port."""
    (first, one), (second, two) = attached(host, "c1", 5), attached(host, "c2", 6)
    late = host.plugin(Portmap, {"backend": backend, "prevResult": one, **ports(MAPPINGS[1])})
    late.add(first)
    late.delete(first)
    host.plugin(Portmap, {"backend": holder, "prevResult": two, **ports(MAPPINGS[1])}).add(second)
    client = outside.open_socket(socket.AF_INET, socket.SOCK_DGRAM, bind=("198.51.100.2", 5000))
    server = second.open_socket(socket.AF_INET, socket.SOCK_DGRAM, bind=("0.0.0.0", 53))
    with client, server:
        server.settimeout(60)
        client.sendto(b"hello", ("198.51.100.1", 8053))
        assert server.recv(10) == b"hello"
        assert len(host.call(udp_flows, 4)) == 1
        late.delete(first)
        assert len(host.call(udp_flows, 4)) == 1


def udp_flows(version: int) -> list[bytes]:
    """The flows to ports 8053 and 8054."""
    numbers = [port.to_bytes(2, "big") for port in (8053, 8054)]
    flows = nfnetlink.dump(0x101, nfnetlink.FAMILIES[version], b"")
    return [flow for flow in flows if any(number in flow for number in numbers)]


def test_an_empty_filter_forgets_nothing(host: Host, outside: Host) -> None:
    """Other ports, other addresses, and the other IP version."""
    container, result = attached(host, "c1", 5)
    host.shell("iptables -A INPUT -m conntrack --ctstate NEW -j ACCEPT")  # so that flows are tracked
    plugin = host.plugin(Portmap, {"backend": "nftables", "prevResult": result})
    with outside.open_socket(socket.AF_INET, socket.SOCK_DGRAM, bind=("198.51.100.2", 5000)) as client:
        for port in (8053, 8054):
            client.sendto(b"?", ("198.51.100.1", port))
        before = host.call(udp_flows, 4)
        assert len(before) == 2
        tcp = {"hostPort": 8053, "containerPort": 53, "protocol": "tcp"}
        for mapping in (tcp, {**tcp, "protocol": "udp", "hostIP": "198.51.100.77"}, {**tcp, "hostIP": "::"}):
            plugin.add(container, **ports(mapping))
            plugin.delete(container)
        plugin.run("DEL", container, runtimeConfig=None, prevResult=None).raise_for_error()
        assert len(host.call(udp_flows, 4)) == 2
        plugin.add(container, **ports({**tcp, "protocol": "udp"}))
        assert [(8054).to_bytes(2, "big") in each for each in host.call(udp_flows, 4)] == [True]


# --- what is whose ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_del_and_gc_need_nothing_but_the_owner(host: Host, backend: str) -> None:
    net, other = ({"name": name, "backend": backend} for name in ("net", "other"))
    kept = []
    for number in range(5):
        container, result = attached(host, f"c{number}", 10 + number)
        conf = other if number == 4 else net
        mapping = {"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"}
        host.plugin(Portmap, {**conf, **ports(mapping)}).add(container, prevResult=result)
        kept.append(container)
    kept[1].destroy()
    changed = "iptables" if backend == "nftables" else "nftables"
    host.plugin(Portmap, {**net, "backend": changed}).run("DEL", kept[1]).raise_for_error()
    assert rules_of(host, "10.1.0.11", "2001:db8:1::b") == []
    host.plugin(Portmap, net).gc(kept[0], kept[3])
    assert rules_of(host, "10.1.0.12", "2001:db8:1::c") == []
    for number, conf in ((0, net), (3, net), (4, other)):
        mapping = {"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"}
        assert host.reaches(kept[number], "10.1.0.1", port=80, published=8000 + number)
        _, result = kept[number], {"cniVersion": "1.1.0", "ips": [{"address": f"10.1.0.{10 + number}/24"}]}
        host.plugin(Portmap, {**conf, **ports(mapping)}).check(kept[number], prevResult=result)


def test_a_reused_address_is_not_cut_off_by_a_late_del(host: Host, outside: Host) -> None:
    host.shell("iptables -P FORWARD DROP")
    container, result = attached(host, "c1", 5)
    late = host.container("late")
    for backend in BACKENDS:
        plugin = host.plugin(Portmap, {"backend": backend, "prevResult": result})
        plugin.add(late, **ports({"hostPort": 8000, "containerPort": 80, "protocol": "tcp"}))
        plugin.add(container, **ports())
        plugin.delete(late)
        assert outside.reaches(container, "198.51.100.1", port=80, published=8080)
        assert container.reaches(container, "198.51.100.1", port=80, published=8080)
        plugin.check(container, **ports())
        plugin.delete(container)


def test_a_del_deletes_only_what_it_has_seen(host: Host) -> None:
    """The next container gets the address after DEL has looked whose it is, and before DEL deletes it."""
    gone, new = (Attachment("net", name, "eth0") for name in ("c1", "c2"))
    first, second = (HostPort("tcp", port, None, ip_interface("10.1.0.5/24"), 80) for port in (8080, 8081))
    options, carry_out = {4: Options()}, sets.carry_out

    def late(*arguments: Any) -> bool:
        patch.undo()
        hostports.publish("nftables", new, [second], options, [("tcp", 8081)])
        return carry_out(*arguments)

    def add_and_delete() -> None:
        hostports.publish("nftables", gone, [first], options, [("tcp", 8080)])
        patch.setattr(sets, "carry_out", late)
        hostports.withdraw(gone)
        hostports.check("nftables", new, [second], options, [("tcp", 8081)])
        hostports.withdraw(new)

    with pytest.MonkeyPatch.context() as patch:
        host.call(add_and_delete)


@pytest.mark.parametrize("asked", [None, "198.51.100.1"])
def test_a_port_of_all_addresses_and_that_of_one_are_not_both_given(host: Host, asked: str | None) -> None:
    """Two elements hold them: another process adds the other one just before this one does."""
    early, late = (Attachment("net", name, "eth0") for name in ("c1", "c2"))
    single = ip_address("198.51.100.1")
    mine = HostPort("tcp", 8080, ip_address(asked) if asked else None, ip_interface("10.1.0.5/24"), 80)
    others = HostPort("tcp", 8080, None if asked else single, ip_interface("10.1.0.6/24"), 80)
    options, listed, carry_out = {4: Options()}, [("tcp", 8080)], sets.carry_out

    def after_another(*arguments: Any) -> bool:
        patch.undo()
        hostports.publish("nftables", early, [others], options, listed)
        return carry_out(*arguments)

    def add() -> None:
        patch.setattr(sets, "carry_out", after_another)
        with pytest.raises(CNIError, match="c1"):
            hostports.publish("nftables", late, [mine], options, listed)
        hostports.check("nftables", early, [others], options, listed)

    with pytest.MonkeyPatch.context() as patch:
        host.call(add)
    assert rules_of(host, "id: c2", "10.1.0.5") == []


@pytest.mark.parametrize("asked", [None, "198.51.100.1"])
def test_a_refused_add_changes_nothing(host: Host, asked: str | None) -> None:
    """Not even for a moment: its element would take connections from the container that has the port."""
    first, second = (Attachment("net", name, "eth0") for name in ("c1", "c2"))
    single = ip_address("198.51.100.1")
    mine = HostPort("tcp", 8080, ip_address(asked) if asked else None, ip_interface("10.1.0.5/24"), 80)
    others = HostPort("tcp", 8080, None if asked else single, ip_interface("10.1.0.6/24"), 80)
    options, listed = {4: Options()}, [("tcp", 8080)]

    def add() -> None:
        hostports.publish("nftables", first, [others], options, listed)
        before = sets.read_generation()
        with pytest.raises(CNIError, match="c1") as caught:
            hostports.publish("nftables", second, [mine], options, listed)
        assert (caught.value.code, sets.read_generation()) == (11, before)

    host.call(add)


@pytest.mark.parametrize("asked", [None, "198.51.100.1"])
def test_one_of_two_adds_at_once_gets_the_port(host: Host, asked: str | None) -> None:
    """Neither sees the other before it adds its element; both see both afterwards."""
    first, second = (Attachment("net", name, "eth0") for name in ("c1", "c2"))
    single = ip_address("198.51.100.1")
    mine = HostPort("tcp", 8080, ip_address(asked) if asked else None, ip_interface("10.1.0.5/24"), 80)
    others = HostPort("tcp", 8080, None if asked else single, ip_interface("10.1.0.6/24"), 80)
    options, listed, carry_out = {4: Options()}, [("tcp", 8080)], sets.carry_out

    def first_and_second(*of_second: Any) -> bool:
        done = []

        def both(*of_first: Any) -> bool:
            patch.undo()
            done.extend([carry_out(*of_first), carry_out(*of_second)])
            return done[0]

        patch.setattr(sets, "carry_out", both)
        hostports.publish("nftables", first, [others], options, listed)
        assert done == [True, True]
        return done[1]

    def add() -> None:
        patch.setattr(sets, "carry_out", first_and_second)
        with pytest.raises(CNIError, match="c1"):
            hostports.publish("nftables", second, [mine], options, listed)
        hostports.check("nftables", first, [others], options, listed)

    with pytest.MonkeyPatch.context() as patch:
        host.call(add)
    assert rules_of(host, "id: c2", "10.1.0.5") == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_container_keeps_its_port_when_another_asks_in_the_midst_of_its_second_add(host: Host, backend: str) -> None:
    """The second ADD has a port more. The other container's ADD begins once it has read what the first one made."""
    holder, rival = (Attachment("net", name, "eth0") for name in ("c1", "c2"))
    here, there = (HostPort("tcp", 8080, None, ip_interface(f"10.1.0.{each}/24"), 80) for each in (5, 6))
    options, module = {4: Options()}, {"iptables": hostports_iptables, "nftables": hostports_nft}[backend]
    asked: tuple[str, Attachment, list[HostPort], dict[int, Options], list[tuple[str, int]]]
    asked = backend, holder, [here, here._replace(port=8081)], options, [("tcp", 8080), ("tcp", 8081)]
    step = {"iptables": "_commit", "nftables": "_choose"}[backend]
    act, look, sleep = getattr(module, step), module.check_holders, time.sleep
    is_made, is_held, refused = Event(), Event(), list[CNIError]()

    def ask() -> None:
        with pytest.raises(CNIError, match="c1") as caught:
            hostports.publish(backend, rival, [there], options, [("tcp", 8080)])
        refused.append(caught.value)

    other = Thread(target=ask)

    def act_after_another(*arguments: Any, **keys: Any) -> Any:
        if current_thread() is not other:
            other.start()
            assert is_made.wait(60)
        try:
            return act(*arguments, **keys)
        finally:
            is_made.set()

    def look_when_all_is_done(*arguments: Any, **keys: Any) -> None:
        if current_thread() is other:
            assert is_held.wait(60)
        look(*arguments, **keys)

    def wait(seconds: float) -> None:
        is_made.set()  # it waits for the second ADD to be done
        sleep(seconds)

    def add_twice() -> None:
        hostports.publish(backend, holder, [here], options, [("tcp", 8080)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, step, act_after_another)
            patch.setattr(module, "check_holders", look_when_all_is_done)
            patch.setattr(time, "sleep", wait)
            hostports.publish(*asked)
            is_held.set()
            other.join()
        assert [each.code for each in refused] == [11]
        hostports.check(*asked)

    host.call(add_twice)


@pytest.mark.parametrize("backend", BACKENDS)
def test_check_compares_values_and_repair_puts_them_back(host: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    plugin = host.plugin(Portmap, {"name": "net", "backend": backend, "prevResult": result, **ports()})
    plugin.add(container)
    changes = {
        "iptables": (
            "iptables -t nat -I $(iptables -t nat -S | sed -n 's/-N \\(CNI-DN-.*\\)/\\1/p') 2 -j RETURN",
            "iptables -t nat -F CNI-HOSTPORT-DNAT",
            "iptables -t nat -F CNI-HOSTPORT-MASQ",
            "ip6tables -F FORWARD; ip6tables -P FORWARD DROP",
        ),
        "nftables": (
            "nft delete element ip cni_portmap ports '{ tcp . 8080 }'",
            "nft flush set ip6 cni_portmap hairpins64",
            "nft flush chain ip cni_portmap prerouting",
            "nft flush chain ip cni_portmap translate",
        ),
    }
    for change in (*changes[backend], "nft flush ruleset"):
        plugin.check(container)
        host.shell(change)
        with expect_error(5):
            plugin.check(container)
        assert host.call(put_back, plugin.conf, container.netns)
    plugin.check(container)


def put_back(conf: dict[str, Any], netns: str) -> bool:
    environ = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
    return repair(Portmap, environ, json.dumps(conf).encode())


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_nftables_beside_iptables_that_drops(variant: str, request: pytest.FixtureRequest) -> None:
    """Of either variant."""
    host: Host = request.getfixturevalue("legacy" if variant == "legacy" else "host")
    outside: Host = request.getfixturevalue("outside")
    container, result = attached(host, "c1", 5)
    host.shell("; ".join(f"ip{each}tables-{variant} -P FORWARD DROP" for each in ("", "6")))
    plugin = host.plugin(Portmap, {"name": "net", "backend": "nftables", "prevResult": result, **ports()})
    for _ in range(2):
        plugin.add(container)
        plugin.check(container)
        for there in ("198.51.100.1", "2001:db8:9::1"):
            assert outside.reaches(container, there, port=80, published=8080)
        host.shell(f"iptables-{variant} -F FORWARD")
        with expect_error(5, "chain FORWARD"):
            plugin.check(container)


@pytest.mark.parametrize("used", ["nft", "legacy"])
def test_nftables_beside_both_variants_of_iptables_that_drop(
    used: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program of the host brings the variant that `iptables` is not."""
    host: Host = request.getfixturevalue("legacy")
    if used == "nft":
        monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    outside: Host = request.getfixturevalue("outside")
    container, result = attached(host, "c1", 5)
    both = [f"ip{each}tables-{variant}" for each in ("", "6") for variant in ("nft", "legacy")]
    host.shell("; ".join(f"{each} -P FORWARD DROP" for each in both))
    plugin = host.plugin(Portmap, {"name": "net", "backend": "nftables", "prevResult": result, **ports()})
    plugin.add(container)
    for program in both:
        plugin.check(container)
        for there in ("198.51.100.1", "2001:db8:9::1"):
            assert outside.reaches(container, there, port=80, published=8080)
        host.shell(f"{program} -F FORWARD")
        with expect_error(5, "chain FORWARD"):
            plugin.check(container)
        assert host.call(put_back, plugin.conf, container.netns)
    host.shell("; ".join(f"{each} -F FORWARD; {each} -P FORWARD ACCEPT" for each in both))
    plugin.check(container)


def test_chains_of_iptables_that_came_later_are_no_damage_unless_they_can_drop(host: Host) -> None:
    """Another plugin of the list may make them, or Docker."""
    container, result = attached(host, "c1", 5)
    plugin = host.plugin(Portmap, {"name": "net", "backend": "nftables", "prevResult": result, **ports()})
    plugin.add(container)
    again = partial(host.call, put_back, plugin.conf, container.netns)
    check_chains_that_came_later(host, plugin, container, "chain FORWARD", again)


# --- conditions, other chains, programs -------------------------------------------------------------------------------


def test_conditions_hold_for_their_network_alone(host: Host, outside: Host) -> None:
    outside.shell("ip address add 198.51.100.3/24 dev uplink")
    (first, one), (second, two) = attached(host, "c1", 5), attached(host, "c2", 6)
    languages = {
        "iptables": ["-s", "198.51.100.3/32"],
        "nftables": ["ip", "saddr", "198.51.100.3"],
        "": ["!", "-s", "198.51.100.2"],
    }
    for backend, conditions in languages.items():
        plain = host.plugin(Portmap, {"name": "plain", "backend": backend, "prevResult": two})
        plain.add(second, **ports({"hostPort": 9090, "containerPort": 90, "protocol": "tcp"}))
        some = host.plugin(Portmap, {"name": "some", "backend": backend, "conditionsV4": conditions, "prevResult": one})
        some.add(first, **ports())
        some.check(first, **ports())
        assert not outside.reaches(first, "198.51.100.1", port=80, published=8080, timeout=0.3)
        outside.shell("ip route replace 198.51.100.1 dev uplink src 198.51.100.3")
        assert outside.reaches(first, "198.51.100.1", port=80, published=8080)
        outside.shell("ip route del 198.51.100.1")
        assert outside.reaches(second, "198.51.100.1", port=90, published=9090)
        some.delete(first)
        plain.delete(second)
    assert rules_of(host, "10.1.0.5", "10.1.0.6") == []


@pytest.mark.parametrize(
    ("backend", "key", "conditions", "reason"),
    [
        ("nftables", "conditionsV4", ["ip", "sadr", "198.51.100.3"], "syntax error, unexpected string"),
        ("nftables", "conditionsV6", ["ip6", "saddr", "198.51.100.3"], "Could not resolve hostname"),
        ("iptables", "conditionsV4", ["--from", "198.51.100.3"], 'unknown option "--from"'),
        ("iptables", "conditionsV6", ["-s", "2001:db8::g"], "host/network `2001:db8::g' not found"),
    ],
)
def test_bad_conditions_are_named_with_the_programs_reason(
    host: Host, backend: str, key: str, conditions: list[str], reason: str
) -> None:
    container, result = attached(host, "c1", 5)
    plugin = host.plugin(Portmap, {"backend": backend, "prevResult": result, **ports(), key: conditions})
    answer = plugin.run("ADD", container)
    assert answer.document["code"] == 7
    assert answer.document["msg"].startswith(f"$.{key} is '{' '.join(conditions)}', expected conditions of ")
    assert reason in answer.document["msg"]
    assert len(answer.stdout) < 500
    assert rules_of(host, "10.1.0.5", "2001:db8:1::5", "id: c1", "TRIAL", "cnisdk_trial") == []


def test_marks_of_others(host: Host) -> None:
    container, result = attached(host, "c1", 5)
    host.shell("iptables -t nat -N KUBE-MARK-MASQ; ip6tables -t nat -N KUBE-MARK-MASQ")
    plugin = host.plugin(Portmap, {"prevResult": result, **ports()})
    plugin.add(container, externalSetMarkChain="KUBE-MARK-MASQ")
    shown = host.shell("iptables -t nat -S")
    assert "--dport 8080 -j KUBE-MARK-MASQ" in shown
    assert "SETMARK" not in shown
    plugin.check(container, externalSetMarkChain="KUBE-MARK-MASQ")
    plugin.add(container, markMasqBit=5)
    assert "-j MARK --set-xmark 0x20/0x20" in host.shell("iptables -t nat -S")
    plugin.check(container, markMasqBit=5)
    plugin.add(container, snat=False)
    assert "-s 10.1.0.0/24" not in host.shell("iptables -t nat -S")
    plugin.add(container, masqAll=True, backend="nftables")
    assert "0.0.0.0 . 10.1.0.5 . tcp . 80" in host.shell("nft list table ip cni_portmap")


@pytest.mark.parametrize(
    ("backend", "first", "later"),
    [
        ("iptables", ["ip6tables-restore", "iptables-restore"], []),
        ("nftables", ["nft", "nft"], []),
    ],
)
def test_programs_started(host: Host, backend: str, first: list[str], later: list[str]) -> None:
    """At most one for each IP version; none where nothing has to be compiled."""
    owner = Attachment("net", "c1", "eth0")
    mapped = [
        HostPort("tcp", port, None, ip_interface(address), port)
        for port in (80, 81, 82)
        for address in ("10.1.0.5/24", "2001:db8::5/64")
    ]
    options = {4: Options(), 6: Options()}
    listed = [("tcp", port) for port in (80, 81, 82)]
    assert sorted(host.call(started_programs, hostports.publish, backend, owner, mapped, options, listed)) == first
    assert sorted(host.call(started_programs, hostports.publish, backend, owner, mapped, options, listed)) == later
    assert host.call(started_programs, hostports.check, backend, owner, mapped, options, listed) == []
    assert host.call(started_programs, hostports.withdraw, owner) == []
    assert host.call(started_programs, hostports.gc, "net", frozenset()) == []


Published = tuple[Attachment, list[HostPort], dict[int, Options], list[tuple[str, int]]]


def published(name: str, port: int) -> Published:
    """Return an attachment with three ports, and the other arguments of :func:`.hostports.publish`."""
    both = ("10.1.0.5/24", "2001:db8::5/64")
    ports = [HostPort("tcp", port + each, None, ip_interface(address), 80) for each in range(3) for address in both]
    listed = [(each.protocol, each.port) for each in ports if each.version == 4]
    return Attachment("net", name, "eth0"), ports, {4: Options(), 6: Options()}, listed


def test_check_and_del_read_no_rules_of_others(host: Host) -> None:
    """One chain has the jumps of all attachments. Those of one are found without reading it."""

    def read() -> tuple[int, int]:
        asked = published("c0", 8080)
        hostports.publish("iptables", *asked)
        checked = received_bytes(hostports.check, "iptables", *asked)
        return checked, received_bytes(hostports.withdraw, asked[0])

    def add_others(first: int, last: int) -> tuple[int, int]:
        for number in range(first, last):
            hostports.publish("iptables", *published(f"c{number}", 8080 + 10 * number))
        return read()

    few, many = (host.call(add_others, *each) for each in ((1, 4), (4, 40)))
    assert many == few


def test_rules_with_other_numbers_are_found(host: Host) -> None:
    """An administrator has saved and restored all rules: the jumps no longer come next to the rules of their chain."""

    def publish_and_withdraw() -> None:
        for name, port in (("c1", 8080), ("c2", 8090), ("c3", 8100)):
            hostports.publish("iptables", *published(name, port))
        renumber_iptables()
        asked = published("c2", 8090)
        hostports.check("iptables", *asked)
        hostports.withdraw(asked[0])
        assert not any("8090" in line or "8091" in line for line in listing())
        for name, port in (("c1", 8080), ("c3", 8100)):
            hostports.check("iptables", *published(name, port))

    host.call(publish_and_withdraw)


@pytest.mark.parametrize("options", [Options(), Options(snat=False), Options(masq_all=True, mark_chain="MARKED")])
@pytest.mark.parametrize("prefixlen", [12, 16, 25])
def test_rules_are_those_of_the_program(host: Host, options: Options, prefixlen: int) -> None:
    """Rules added by netlink and by iptables-restore look the same to the program, and old programs read them, too."""
    owner, other = (Attachment("net", name * 60, "eth0") for name in ("c1", "c2"))
    both = ((f"10.1.2.5/{prefixlen}", "198.51.100.1"), (f"2001:db8::5/{prefixlen * 3}", "2001:db8:9::1"))
    mapped = [
        HostPort(protocol, port, ip_address(where) if port % 2 else None, ip_interface(address), 80)
        for protocol in ("tcp", "udp", "sctp")
        for port in range(8080, 8097)
        for address, where in both
    ]
    listed = [(each.protocol, each.port) for each in mapped if each.version == 4]
    chains = (hostports_iptables._reference_name(owner), "CNI-HOSTPORT-DNAT")
    asked = ("iptables", owner, mapped, {4: options, 6: options}, listed)

    def add_twice() -> None:
        if options.mark_chain:
            for program in ("iptables", "ip6tables"):
                subprocess.run([program, "-t", "nat", "-N", options.mark_chain], check=True)
        hostports.publish("iptables", other, [mapped[0]._replace(port=1), mapped[1]._replace(port=1)], *asked[3:])
        hostports.withdraw(other)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xt_rules, "add", lambda *_, **__: False)
            assert sorted(started_programs(hostports.publish, *asked)) == ["ip6tables-restore", "iptables-restore"]
        by_program = read_iptables(*chains)
        hostports.withdraw(owner)
        assert sum(map(len, read_iptables(*chains).values())) < 20
        assert started_programs(hostports.publish, *asked) == []
        assert read_iptables(*chains) == by_program
        assert min(map(len, by_program.values())) > 50
        find_by_iptables(by_program)
        check_old_programs_read(*(each.encode() for each in chains))
        hostports.check(*asked)

    host.call(add_twice)


@pytest.mark.parametrize(
    ("conf", "texts"),
    [
        (
            ports({"hostPort": 0, "containerPort": 80, "protocol": "tcp"}),
            ["Invalid host port number: 0", "[0].hostPort"],
        ),
        (ports({"hostPort": 1, "containerPort": 65536, "protocol": "tcp"}), ["Invalid container port number: 65536"]),
        (ports({"hostPort": 1, "containerPort": 1, "protocol": "icmp"}), ["[0].protocol"]),
        (ports({"hostPort": 1, "containerPort": 1}), ["[0].protocol"]),
        (ports({"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "localhost"}), ["[0].hostIP"]),
        ({"markMasqBit": 32}, ["MasqMarkBit must be between 0 and 31"]),
        ({"markMasqBit": 1, "externalSetMarkChain": "X"}, ["Cannot specify externalSetMarkChain and markMasqBit"]),
        ({"externalSetMarkChain": 'X" -j ACCEPT'}, ["$.externalSetMarkChain"]),
        ({"backend": "pf"}, ["unrecognized backend", "pf"]),
        ({"backend": "nftables", "conditionsV4": ["-s", "10.0.0.0/8"]}, ["not for the backend nftables"]),
        ({"conditionsV6": ["ip6", "saddr ::1; flush ruleset"]}, ["$.conditionsV6[1]"]),
        ({"prevResult": None}, ["required prevResult missing"]),
    ],
)
def test_what_cannot_be_meant_is_refused(module_host: Host, conf: dict[str, Any], texts: list[str]) -> None:
    container = Container(module_host, "refused")
    module_host.shell("ip netns list | grep -q refused || ip netns add refused")
    result = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/24"}]}
    plugin = module_host.plugin(Portmap, {**ports(), "prevResult": result, **conf})
    with expect_error(7, *texts):
        plugin.add(container)
    plugin.delete(container)


# --- hostile inputs ---------------------------------------------------------------------------------------------------

HOSTILE = "\"'`$;#{}\\ \n\t-,:|&<>*é☃\0ax"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("examples", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_odd_names_and_values_reach_no_rule_unquoted(module_host: Host, backend: str, examples: int) -> None:
    """Rules that were made say what was asked for, and nothing else; what cannot be asked for is refused."""
    words = st.text(HOSTILE, min_size=1, max_size=12)
    mapping = st.fixed_dictionaries(
        {"hostPort": st.just(8080), "containerPort": st.just(80), "protocol": st.sampled_from(["tcp", "TCP"]) | words},
        optional={"hostIP": words | st.just("10.1.0.1")},
    )
    ifnames = st.text("".join(set(HOSTILE) - set(" \n\t:\0")), min_size=1, max_size=5)
    ids = st.text("ab.-_", max_size=250).map(lambda text: f"c{text}")
    conf = st.fixed_dictionaries(
        {}, optional={"conditionsV4": st.lists(words, max_size=3), "externalSetMarkChain": words, "backend": words}
    )

    def attempt(values: tuple[dict[str, Any], dict[str, Any], str, str]) -> None:
        mapped, more, ifname, container_id = values
        owner = Attachment("net", container_id, ifname)
        result = {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": ifname, "sandbox": "/run/netns/c1"}],
            "ips": [{"interface": 0, "address": "10.1.0.5/24"}],
        }
        document = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "portmap",
            "backend": backend,
            **more,
            **ports(mapped),
        }
        environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container_id, "CNI_IFNAME": ifname, "CNI_NETNS": "/n"}
        text = json.dumps({**document, "prevResult": result}).encode()
        before = listing()
        refused: CNIError | None = None
        try:
            request = parse_request(Verb.ADD, environ, text, PortmapConf, Portmap.supported_versions)
            assert isinstance(request, AddRequest)
            Portmap().add(request)
        except CNIError as exc:
            refused = exc
        if refused is not None:
            assert refused.code in (4, 5, 6, 7), refused
            hostports.withdraw(owner)
            assert listing() == before
            return
        made = [line for line in listing() if line not in before]
        assert any("10.1.0.5" in line for line in made)
        assert not [line for line in made if "accept" in line]
        hostports.withdraw(owner)
        assert listing() == before

    def attempts() -> None:
        owner, mapped = Attachment("net", "base", "eth0"), HostPort("tcp", 1, None, ip_interface("10.1.0.9/24"), 1)
        for each in BACKENDS:  # the tables and the rules that stay
            hostports.publish(each, owner, [mapped], {4: Options()}, [("tcp", 1)])
            hostports.withdraw(owner)
        given(st.tuples(mapping, conf, ifnames, ids))(
            settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
                attempt
            )
        )()

    module_host.call(attempts)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_add_leaves_nothing_after_del(host: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    plugin = host.plugin(Portmap, {"backend": backend, "prevResult": result, **ports()})

    def check() -> None:
        assert rules_of(host, "10.1.0.5", "2001:db8:1::5", "id: c1", "CNI-DN-", "owner-") == []

    kill_adds(plugin, container, check=check, runtimeConfig=None)


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_flows_of_another_interface_are_not_forgotten(host: Host, backend: str) -> None:
    """A DEL that comes late: by now another interface of the same container has the UDP port."""
    late, new = Attachment("net", "c1", "eth0"), Attachment("net", "c1", "eth1")
    port = HostPort("udp", 5353, None, ip_interface("10.1.0.5/24"), 53)

    def forgotten() -> list[object]:
        asked: list[object] = []
        hostports.publish(backend, new, [port], {4: Options()}, [("udp", 5353)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conntrack, "forget_udp", lambda _, ports: asked.append(list(ports)))
            hostports.withdraw(late, [port._replace(target=ip_interface("10.1.0.6/24"))])
            kept = list(filter(None, asked))
            hostports.withdraw(new, [port])
        return [kept, list(filter(None, asked))]

    assert host.call(forgotten) == [[], [[(5353, None)]]]


def test_a_failing_lookup_leaves_the_ports_that_were_deleted_to_be_forgotten(host: Host) -> None:
    owner = Attachment("net", "c1", "eth0")
    port = HostPort("udp", 5353, None, ip_interface("10.1.0.5/24"), 53)

    def fail(*_: object, **__: object) -> None:
        raise IOFailureError("no answer")

    def forgotten() -> list[object]:
        asked: list[object] = []
        hostports.publish("nftables", owner, [port], {4: Options()}, [("udp", 5353)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conntrack, "forget_udp", lambda _, ports: asked.extend(ports))
            patch.setattr(hostports_nft, "check_holders", fail)
            with pytest.raises(CNIError, match="no answer"):
                hostports.withdraw(owner, [port, port._replace(port=5354)])
        return asked

    assert host.call(forgotten) == [(5353, None)]
