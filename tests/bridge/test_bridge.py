"""The bridge plugin on the real kernel."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnisdk.errors import InvalidEnvironmentError
from cnisdk.linux import veth
from cnisdk.testing import Container, Host, Sandbox
from cnisdk_plugins.bridge import Bridge

from .conftest import DUAL_STACK, Bench, config

pytestmark = pytest.mark.kernel


def link(host: Sandbox, name: str, netns: str | None = None) -> Any:
    return host.ip("link", "show", name, netns=netns)[0]


def addresses(host: Sandbox, name: str, netns: str | None = None) -> list[str]:
    (shown,) = host.ip("addr", "show", "dev", name, netns=netns)
    return [f"{each['local']}/{each['prefixlen']}" for each in shown["addr_info"] if each["scope"] == "global"]


def reaches(host: Sandbox, netns: str, address: str) -> bool:
    command = ["ip", "netns", "exec", netns, "ping", "-n", "-c", "1", "-W", "3", address]
    return host.run(command, check=False).returncode == 0


def host_end(result: Any) -> str:
    names = [each["name"] for each in result["interfaces"] if not each.get("sandbox") and each["name"] != "br0"]
    assert isinstance(names[0], str)
    return names[0]


def test_dual_stack_gateway(bench: Bench) -> None:
    """Two containers, both families, default routes, the bridge as gateway; all of it seen by the kernel."""
    host = bench.host
    conf = config("1.1.0", isDefaultGateway=True, ipam=DUAL_STACK, mtu=1400)
    results = {}
    for name in ("c1", "c2"):
        host.add_netns(name)
        results[name] = bench.run("ADD", conf, name).result
    first = results["c1"]
    assert first["cniVersion"] == "1.1.0"
    assert [each["mtu"] for each in first["interfaces"]] == [1400, 1400, 1400]
    assert [each["address"] for each in first["ips"]] == ["10.1.0.2/24", "2001:db8:1::2/64"]
    assert first["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "2001:db8:1::1"}]
    assert addresses(host, "eth0", "c1") == ["10.1.0.2/24", "2001:db8:1::2/64"]
    assert addresses(host, "br0") == ["10.1.0.1/24", "2001:db8:1::1/64"]
    port = link(host, host_end(first))
    assert (port["master"], port["mtu"], port["ifalias"]) == ("br0", 1400, "cni:net/c1/eth0")
    assert port["address"] == first["interfaces"][1]["mac"]
    inside = link(host, "eth0", "c1")
    assert (inside["address"], inside["operstate"]) == (first["interfaces"][2]["mac"], "UP")
    assert link(host, "br0")["address"] == first["interfaces"][0]["mac"]
    for target in ("10.1.0.3", "10.1.0.1", "2001:db8:1::3", "2001:db8:1::1"):
        assert reaches(host, "c1", target), target
    for name in ("c1", "c2"):
        bench.run("CHECK", conf | {"prevResult": results[name]}, name).must_succeed()
        bench.run("DEL", conf, name).must_succeed()
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_router_advertisements_are_off(bench: Bench) -> None:
    """CVE-2020-10749: a container must not give the host, or another container, routes."""
    bench.host.add_netns("c1")
    result = bench.run("ADD", config(ipam=DUAL_STACK)).result
    for name in ("br0", host_end(result)):
        for key in ("accept_ra", "accept_redirects"):
            assert bench.host.run(["cat", f"/proc/sys/net/ipv6/conf/{name}/{key}"]).stdout == "0\n"
    for conf, heard in (
        (config(ipam=DUAL_STACK), 0),
        (config(), 1),  # the container may get its IPv6 addresses from a router of the bridge's network
        (config(ipam=DUAL_STACK, acceptRA=True), 1),
    ):
        bench.run("DEL", conf).must_succeed()
        bench.run("ADD", conf).must_succeed()
        inside = ["ip", "netns", "exec", "c1", "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"]
        assert bench.host.run(inside).stdout == f"{heard}\n", conf


def test_neighbours_of_a_restarted_container_reach_it_at_once(bench: Bench) -> None:
    """They remember its addresses with the hardware address of the link before, and are told of the new one."""
    host = bench.host
    wanted = ["10.1.0.9", "2001:db8:1::9"]
    conf = config(isGateway=True, ipam=DUAL_STACK)
    pinned = conf | {"runtimeConfig": {"ips": wanted}}
    for name in ("c1", "c2"):
        host.add_netns(name)
    bench.run("ADD", conf, "c2").must_succeed()
    before = after = bench.run("ADD", pinned).result["interfaces"][2]["mac"]
    neighbours = {}
    for stage in ("before", "after"):
        assert [reaches(host, "c2", each) for each in wanted] == [True, True], stage
        shown = host.ip("neigh", "show", netns="c2")
        neighbours[stage] = {each["lladdr"] for each in shown if each["dst"] in wanted}
        if stage == "before":
            bench.run("DEL", conf).must_succeed()
            with Container(host, "c2").capture("eth0") as seen:
                after = bench.run("ADD", pinned).result["interfaces"][2]["mac"]
                for address in wanted:
                    frame = seen.wait_for(lambda each: each.announces and str(each.target) == address)  # noqa: B023
                    assert frame.source == after
    assert neighbours == {"before": {before}, "after": {after}}


def read_only_settings(host: Sandbox) -> None:
    """As in a container that is given only what it needs."""
    options = "remount,bind,ro,nosuid,nodev,noexec"
    host.run(["sh", "-euc", f"mount --bind /proc/sys /proc/sys; mount -o {options} /proc/sys"])


def setting(host: Sandbox, key: str, value: int) -> None:
    host.run(["sh", "-c", f"echo {value} > /proc/sys/net/{key}"])


def test_settings_that_cannot_be_written_and_need_not_be(bench: Bench) -> None:
    """A host without IPv6 addresses, and one whose new links refuse advertisements already, need no setting."""
    bench.host.add_netns("c1")
    for key, value in (("disable_ipv6", 1), ("accept_redirects", 0)):
        setting(bench.host, f"ipv6/conf/default/{key}", value)
    setting(bench.host, "ipv4/ip_forward", 1)
    setting(bench.host, "ipv6/conf/default/accept_ra", 1)
    read_only_settings(bench.host)
    conf = config(isGateway=True)
    result = bench.run("ADD", conf).result
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()


def test_settings_that_cannot_be_written_and_must_be(bench: Bench) -> None:
    bench.host.add_netns("c1")
    before = bench.state()
    read_only_settings(bench.host)
    error = bench.run("ADD", config()).error
    assert (error["code"], "cannot set sysctl net/ipv6/conf/br0/accept_ra from 1 to 0" in error["msg"]) == (5, True)
    # The way out is named, and is one.
    wanted = [f"net.ipv6.conf.default.{key}=0" for key in ("accept_ra", "accept_redirects")]
    assert [each for each in wanted if each in error["details"]] == wanted
    assert bench.state() == before
    bench.host.run(["umount", "/proc/sys"])
    for each in wanted:
        key, value = each.split("=")
        setting(bench.host, key.removeprefix("net.").replace(".", "/"), int(value))
    read_only_settings(bench.host)
    bench.run("ADD", config()).must_succeed()
    bench.run("DEL", config()).must_succeed()
    # In the container, they are set only where IPAM gives IPv6 addresses, and a key says that they need not be.
    error = bench.run("ADD", config(ipam=DUAL_STACK)).error
    assert "cannot set sysctl net/ipv6/conf/eth0/accept_ra from 1 to 0" in error["msg"]
    bench.run("ADD", config(ipam=DUAL_STACK, acceptRA=True)).must_succeed()


def test_layer_2(bench: Bench) -> None:
    """Without IPAM: no addresses, and CHECK works all the same."""
    bench.host.add_netns("c1")
    for ipam in (None, {}, {"type": ""}):
        conf = config(ipam=ipam, dns={"nameservers": ["10.9.9.9"]})
        result = bench.run("ADD", conf).result
        assert ("ips" in result, len(result["interfaces"])) == (False, 3)
        assert result["dns"] == {"nameservers": ["10.9.9.9"]}
        assert link(bench.host, "eth0", "c1")["operstate"] == "UP"
        bench.run("CHECK", conf | {"prevResult": result}).must_succeed()
        bench.run("DEL", conf).must_succeed()
        assert bench.state()["links"] == ["br0", "lo"]


def test_a_disabled_interface_stays_down(bench: Bench) -> None:
    bench.host.add_netns("c1")
    conf = config(ipam=None, disableContainerInterface=True)
    result = bench.run("ADD", conf).result
    assert "UP" not in link(bench.host, "eth0", "c1")["flags"]
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()


def test_port_flags(bench: Bench) -> None:
    bench.host.add_netns("c1")
    for key, shown in (("hairpinMode", "hairpin"), ("portIsolation", "isolated")):
        conf = config(**{key: True})
        result = bench.run("ADD", conf).result
        assert link(bench.host, host_end(result))["linkinfo"]["info_slave_data"][shown] is True
        bench.run("CHECK", conf | {"prevResult": result}).must_succeed()
        error = bench.run("CHECK", conf | {"prevResult": result, key: False}).error
        assert f"$.{key} is False" in error["msg"]
        bench.run("DEL", conf).must_succeed()


def test_promiscuous_bridge(bench: Bench) -> None:
    bench.host.add_netns("c1")
    conf = config(promiscMode=True)
    result = bench.run("ADD", conf).result
    assert "PROMISC" in link(bench.host, "br0")["flags"]
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()
    # Somebody else's promiscuous mode, a sniffer's for instance, is none of CHECK's business.
    bench.run("CHECK", conf | {"prevResult": result, "promiscMode": False}).must_succeed()


@pytest.mark.parametrize(
    ("keys", "variables"),
    [
        ({}, {"CNI_ARGS": "IgnoreUnknown=1;MAC=02:00:00:00:00:01"}),
        ({"args": {"cni": {"mac": "02:00:00:00:00:01"}}}, {"CNI_ARGS": "MAC=02:00:00:00:00:02"}),
        (
            {"runtimeConfig": {"mac": "02-00-00-00-00-01"}, "args": {"cni": {"mac": "02:00:00:00:00:03"}}},
            {"CNI_ARGS": "MAC=02:00:00:00:00:02"},
        ),
    ],
)
def test_requested_hardware_address(bench: Bench, keys: dict[str, Any], variables: dict[str, str]) -> None:
    bench.host.add_netns("c1")
    result = bench.run("ADD", config(**keys), **variables).result
    assert result["interfaces"][2]["mac"] == link(bench.host, "eth0", "c1")["address"] == "02:00:00:00:00:01"


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_masquerade(bench: Bench, backend: str) -> None:
    """Rules come, are checked, and go, with nothing to find them by but the attachment."""
    conf = config(isGateway=True, ipMasq=True, ipMasqBackend=backend, ipam=DUAL_STACK)
    bench.host.add_netns("c1")
    result = bench.run("ADD", conf).result
    rules = bench.state()["rules"]
    assert any("10.1.0.2" in rule for rule in rules)  # type: ignore[attr-defined]
    assert any("2001:db8:1::2" in rule for rule in rules)  # type: ignore[attr-defined]
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()
    # A second attachment of the same container: deleting the first leaves its rules alone.
    second = bench.run("ADD", conf, CNI_IFNAME="eth1").result
    bench.host.del_netns("c1")
    bench.run("DEL", conf | {"ipMasq": False}, CNI_NETNS="").must_succeed()
    left = bench.state()
    assert left["leases"] == {"net/10.1.0.3": b"c1\r\neth1", "net/2001:db8:1::3": b"c1\r\neth1"}
    assert not any("10.1.0.2" in rule for rule in left["rules"])  # type: ignore[attr-defined]
    assert any("10.1.0.3" in rule for rule in left["rules"])  # type: ignore[attr-defined]
    bench.run("DEL", conf | {"prevResult": second}, CNI_IFNAME="eth1").must_succeed()
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_spoof_check(bench: Bench) -> None:
    bench.host.add_netns("c1")
    conf = config(macspoofchk=True)
    result = bench.run("ADD", conf).result
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()
    bench.host.run(["nft", "flush", "chain", "bridge", "nat", "PREROUTING"])
    assert "rules that let only" in bench.run("CHECK", conf | {"prevResult": result}).error["msg"]
    bench.run("DEL", conf).must_succeed()
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_a_failed_add_of_another_network_leaves_the_spoof_check_alone(bench: Bench) -> None:
    """The runtime calls DEL after it, for the same container and interface."""
    bench.host.add_netns("c1")
    conf, other = config(macspoofchk=True), config(macspoofchk=True, name="other", bridge="br1")
    result = bench.run("ADD", conf).result
    before = bench.state()["rules"]
    assert bench.run("ADD", other).status == 1  # the container has an eth0
    assert bench.state()["rules"] == before
    bench.run("DEL", other).must_succeed()
    assert bench.state()["rules"] == before
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()


def test_interfaces_whose_names_continue_each_other(bench: Bench) -> None:
    bench.host.add_netns("c1")
    conf = config(macspoofchk=True)
    names = ("eth0", "eth0-mac")
    results = {name: bench.run("ADD", conf, CNI_IFNAME=name).result for name in names}
    for name in names:
        bench.run("CHECK", conf | {"prevResult": results[name]}, CNI_IFNAME=name).must_succeed()
    for name in names:
        bench.run("DEL", conf, CNI_IFNAME=name).must_succeed()
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_routes_with_all_their_attributes(bench: Bench) -> None:
    bench.host.add_netns("c1")
    routes = [
        {"dst": "10.2.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7},
        {"dst": "10.3.0.0/16", "gw": "10.1.0.9", "table": 100},
    ]
    ipam = {"type": "host-local", "subnet": "10.1.0.0/24", "routes": routes}
    conf = config("1.1.0", ipam=ipam)
    result = bench.run("ADD", conf).result
    shown = {
        each["dst"]: each for each in bench.host.ip("route", "show", "table", "all", netns="c1") if "gateway" in each
    }
    assert shown["10.2.0.0/16"]["gateway"] == "10.1.0.1"
    assert shown["10.2.0.0/16"]["metric"] == 7
    assert shown["10.2.0.0/16"]["metrics"] == [{"mtu": 1300, "advmss": 1200}]
    assert (shown["10.3.0.0/16"]["gateway"], shown["10.3.0.0/16"]["table"]) == ("10.1.0.9", "100")
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()
    bench.host.run(["ip", "-n", "c1", "route", "change", "10.2.0.0/16", "via", "10.1.0.1", "metric", "7"])
    assert "mtu 0 instead of 1300" in bench.run("CHECK", conf | {"prevResult": result}).error["details"]


def test_a_route_whose_gateway_is_zeros_leads_onto_the_link(bench: Bench) -> None:
    bench.host.add_netns("c1")
    routes = [{"dst": "10.2.0.0/16", "gw": "0.0.0.0"}, {"dst": "2001:db8:2::/48", "gw": "::"}]
    conf = config(isGateway=True, ipam=DUAL_STACK | {"routes": routes})
    result = bench.run("ADD", conf).result
    for family, dst in (("-4", "10.2.0.0/16"), ("-6", "2001:db8:2::/48")):
        (shown,) = bench.host.ip(family, "route", "show", dst, netns="c1")
        assert ("gateway" in shown, shown["dev"]) == (False, "eth0")
    assert result["routes"] == routes
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()


def test_check_of_a_bridge_whose_hardware_address_follows_its_ports(bench: Bench) -> None:
    """A bridge that an administrator made, or the reference plugin without a gateway, is nobody's attachment."""
    bench.host.add_netns("c1")
    bench.host.run(["ip", "link", "add", "br0", "type", "bridge"])
    result = bench.run("ADD", config()).result
    said = result["interfaces"][0]["mac"]
    bench.host.run(["ip", "link", "add", "p0", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "p1"])
    bench.host.run(["ip", "link", "set", "p0", "master", "br0"])
    assert link(bench.host, "br0")["address"] == "02:00:00:00:00:01" != said
    bench.run("CHECK", config(prevResult=result)).must_succeed()


def kernel_state(bench: Bench) -> Any:
    """What CHECK could change, without what changes by itself (timers)."""

    def links(netns: str | None) -> list[Any]:
        return [
            [each.get(key) for key in ("ifname", "address", "master", "mtu")]
            + ["UP" in each["flags"], [address["local"] for address in each["addr_info"]]]
            for each in bench.host.ip("addr", netns=netns)
        ]

    forwarding = bench.host.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout
    return bench.state(), links(None), links("c1"), bench.host.ip("route", netns="c1"), forwarding


DAMAGES = {
    "address gone": ["ip -n c1 address del 10.1.0.2/24 dev eth0"],
    "default route gone": ["ip -n c1 route del default"],
    "default route elsewhere": ["ip -n c1 route replace default via 10.1.0.9"],
    "container's end down": ["ip -n c1 link set eth0 down"],
    "container's end gone": ["ip -n c1 link del eth0"],
    "other hardware address": ["ip -n c1 link set eth0 address 02:00:00:00:00:09"],
    "bridge gone": ["ip link del br0"],
    "bridge down": ["ip link set br0 down"],
    "gateway address gone": ["ip address flush dev br0"],
    "not a port": ["ip link set HOST nomaster"],
    "forwarding off": ["sysctl -w net.ipv4.ip_forward=0"],
    "lease gone": ["rm /var/lib/cni/networks/net/10.1.0.2"],
    "rules gone": ["nft flush ruleset"],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_notices_damage_and_repairs_nothing(bench: Bench, damage: str) -> None:
    bench.host.add_netns("c1")
    conf = config(isDefaultGateway=True, ipMasq=True)
    result = bench.run("ADD", conf).result
    for command in DAMAGES[damage]:
        bench.host.run(command.replace("HOST", host_end(result)).split())
    before = kernel_state(bench)
    error = bench.run("CHECK", conf | {"prevResult": result}).error
    assert error["msg"]
    assert kernel_state(bench) == before
    bench.run("DEL", conf | {"prevResult": result}).must_succeed()
    assert bench.state()["leases"] == {}
    assert "10.1.0.2" not in str(bench.state()["rules"])


def test_check_accepts_another_spelling_of_the_namespace(bench: Bench) -> None:
    bench.host.add_netns("c1")
    result = bench.run("ADD", config()).result
    bench.run("CHECK", config(prevResult=result), CNI_NETNS="/var/run/netns/c1").must_succeed()
    bench.host.add_netns("c2")
    error = bench.run("CHECK", config(prevResult=result), CNI_NETNS="/run/netns/c2").error
    assert error["msg"]
    assert "prevResult" in bench.run("CHECK", config()).error["msg"]


DELETIONS: dict[str, dict[str, Any]] = {
    "as added": {},
    "without a namespace": {"CNI_NETNS": ""},
    "with a namespace that is gone": {"CNI_NETNS": "/run/netns/gone"},
    "with a plain file for a namespace": {"CNI_NETNS": "/etc/hostname"},
    "with a configuration that became invalid": {"conf": {"mtu": "x", "vlan": -1, "ipMasq": "yes", "isGateway": 3}},
    "with another bridge": {"conf": {"bridge": "br1"}},
}


@pytest.mark.parametrize("with_result", [True, False])
@pytest.mark.parametrize("way", DELETIONS)
def test_every_way_to_delete(bench: Bench, way: str, with_result: bool) -> None:
    variables = dict(DELETIONS[way])
    conf = config(isGateway=True, ipMasq=True)
    bench.host.add_netns("c1")
    result = bench.run("ADD", conf).result
    changed = conf | variables.pop("conf", {}) | ({"prevResult": result} if with_result else {})
    for _ in range(2):
        bench.run("DEL", changed, **variables).must_succeed()
        assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_deleting_what_was_never_added(bench: Bench) -> None:
    assert bench.run("DEL", config(), "never").status == 0
    bench.host.add_netns("c1")
    bench.run("ADD", config()).must_succeed()
    before = bench.state()
    assert bench.run("DEL", config(), "other", CNI_NETNS="/run/netns/c1", CNI_IFNAME="eth1").status == 0
    assert bench.run("DEL", config(name="other")).status == 0  # the same interface, but of another network
    assert bench.state() == before


def test_nobody_can_hold_up_an_add(bench: Bench) -> None:
    """Any user may lock the file of the host's namespace: ADD neither waits for it nor fails."""
    bench.host.add_netns("c1")
    for mode in ("-x", "-s"):
        holder = bench.host.popen(
            ["flock", mode, "/proc/self/ns/net", "sh", "-c", "echo locked; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            bench.run("ADD", config()).must_succeed()
            bench.run("DEL", config()).must_succeed()
            bench.host.run(["ip", "link", "del", "br0"])
            assert bench.run("ADD", config(ipam={"type": "absent"})).status == 1
            bench.host.run(["ip", "link", "del", "br0"], check=False)
            holder.stdin.close()


def test_an_ipam_plugin_that_hangs(bench: Bench, tmp_path: Path) -> None:
    """A runtime that gives up, and rolls nothing back, finds nothing left."""
    ipam = tmp_path / "hangs"
    ipam.write_text("#!/bin/sh\nexec sleep 1000\n")
    ipam.chmod(0o755)
    (tmp_path / "net.conf").write_text(json.dumps(config(ipam={"type": "hangs"})))
    environ = {
        "PATH": os.environ["PATH"],
        "CNI_PATH": f"{bench.plugins}:{tmp_path}",
        "NETCONFPATH": str(tmp_path),
    }
    netns = bench.host.add_netns("c1")
    command = [sys.executable, "-m", "cnisdk.cli.cnitool", "add", "net", netns, "--timeout", "1", "--no-rollback"]
    done = bench.host.run(command, env=environ, check=False)
    assert (done.returncode, "did not finish within 1 seconds" in done.stderr) == (1, True), done.stderr
    assert bench.state()["links"] == ["lo"]
    assert [each["ifname"] for each in bench.host.ip("link", netns="c1")] == ["lo"]


def test_a_result_that_cnitool_cannot_print(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "net.conf").write_text(json.dumps(config()))
    environ = {"PATH": os.environ["PATH"], "CNI_PATH": str(bench.ipam), "NETCONFPATH": str(tmp_path)}
    netns = bench.host.add_netns("c1")
    for where in ("/dev/full", "&-"):
        command = f"{shlex.quote(sys.executable)} -m cnisdk.cli.cnitool add net {netns} >{where}"
        done = bench.host.run(["sh", "-c", command], env=environ, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
        assert "cannot print the result" in done.stderr
        assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


FAILURES: dict[str, tuple[dict[str, Any], dict[str, str], int, str]] = {
    "no such namespace": ({}, {"CNI_NETNS": "/run/netns/gone"}, 8, "/run/netns/gone"),
    "a plain file": ({}, {"CNI_NETNS": "/etc/hostname"}, 8, "not a network namespace"),
    "a directory": ({}, {"CNI_NETNS": "/etc"}, 8, "not a network namespace"),
    "no such IPAM plugin": ({"ipam": {"type": "absent"}}, {}, 7, 'failed to find plugin "absent"'),
    "an IPAM plugin that is a path": ({"ipam": {"type": "../bin/host-local"}}, {}, 7, "invalid plugin name"),
    "no ranges": ({"ipam": {"type": "host-local"}}, {}, 7, "no IP ranges"),
    "an address outside": ({}, {"CNI_ARGS": "IP=10.9.9.9"}, 7, "10.9.9.9"),
    "a malformed address": ({}, {"CNI_ARGS": "IP=10.9"}, 4, "10.9"),
    "a malformed hardware address": ({}, {"CNI_ARGS": "MAC=02:00"}, 4, "02:00"),
    "a multicast hardware address": ({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}, {}, 7, "$.runtimeConfig.mac"),
    "a malformed bridge name": ({"bridge": "a/b"}, {}, 7, "$.bridge"),
    "a bridge that is none": ({"bridge": "lo"}, {}, 5, "not a bridge"),
    "a negative MTU": ({"mtu": -1}, {}, 7, "$.mtu"),
    "an MTU no veth has": ({"mtu": 60}, {}, 7, "$.mtu"),
    "an MTU too small for IPv6": ({"mtu": 1000, "ipam": DUAL_STACK}, {}, 7, "$.mtu is 1000, but IPv6 needs 1280"),
    "a route the kernel could not take": (
        {"ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "routes": [{"dst": "10.2.0.0/16", "mtu": -1}]}},
        {},
        7,
        "$.ipam.routes[0]",
    ),
    "a pattern for a bridge": ({"bridge": "br%d"}, {}, 7, "$.bridge"),
    "a pattern for an interface": ({}, {"CNI_IFNAME": "eth%d"}, 4, "CNI_IFNAME"),
    "no hardware address": ({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}, {}, 7, "$.runtimeConfig.mac"),
    "an impossible VLAN": ({"vlan": 4095}, {}, 7, "4095"),
    "an impossible trunk": ({"vlanTrunk": [{"minID": 5, "maxID": 4}]}, {}, 7, "minID is greater than maxID"),
    "half a trunk": ({"vlanTrunk": [{"minID": 5}]}, {}, 7, "maxID is missing"),
    "a trunk of nothing": ({"vlanTrunk": [{}]}, {}, 7, "$.vlanTrunk[0]"),
    "hairpin and promiscuous": ({"hairpinMode": True, "promiscMode": True}, {}, 7, "promiscMode"),
    "addresses for a disabled interface": ({"disableContainerInterface": True}, {}, 7, "disableContainerInterface"),
    "an unknown backend": ({"ipMasq": True, "ipMasqBackend": "ebtables"}, {}, 7, "ebtables"),
    "a wrong type": ({"isGateway": "false"}, {}, 7, "$.isGateway is 'false', expected true or false"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_add_leaves_nothing(bench: Bench, failure: str) -> None:
    keys, variables, code, text = FAILURES[failure]
    bench.host.add_netns("c1")
    before = bench.state()
    error = bench.run("ADD", config(**{"isGateway": True} | keys), **variables).error
    assert (error["code"], text in json.dumps(error).replace('\\"', '"')) == (code, True), error
    assert bench.state() == before
    assert [each["ifname"] for each in bench.host.ip("link", netns="c1")] == ["lo"]


def test_an_interface_name_that_is_taken(bench: Bench) -> None:
    bench.host.add_netns("c1")
    bench.host.run(["ip", "-n", "c1", "link", "add", "eth0", "type", "veth", "peer", "name", "eth9"])
    error = bench.run("ADD", config()).error
    assert (error["code"], "CNI_IFNAME eth0" in error["msg"]) == (4, True)
    assert bench.state() == {"links": ["lo"], "rules": [], "leases": {}}


def test_a_second_add_leaves_the_first_alone(bench: Bench) -> None:
    bench.host.add_netns("c1")
    conf = config(isGateway=True, ipMasq=True, macspoofchk=True)
    result = bench.run("ADD", conf).result
    before = bench.state()
    error = bench.run("ADD", conf).error
    assert error["code"] == 4
    assert bench.state() == before
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()


def test_two_adds_of_one_attachment_at_the_same_moment(bench: Bench) -> None:
    """One succeeds, and what the other takes back is not the first one's."""
    from concurrent.futures import ThreadPoolExecutor

    conf = config(isGateway=True, macspoofchk=True)
    bench.host.add_netns("c1")
    bench.run("ADD", conf).must_succeed()  # so that none waits for the bridge to be made
    bench.run("DEL", conf).must_succeed()
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: bench.run("ADD", conf), range(3)))
        (result,) = [answer.document for answer in answers if answer.status == 0]
        assert [answer.error["code"] for answer in answers if answer.status] == [4, 4]
        bench.run("CHECK", conf | {"prevResult": result}).must_succeed()
        bench.run("DEL", conf).must_succeed()
        assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_the_loser_of_a_race_leaves_the_winner_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked before the winner made the link, and fails as it makes its own."""
    plugin = host.plugin(Bridge, {"bridge": "br0", "ipam": host.stub().conf, "macspoofchk": True})
    container = host.container("c1")
    plugin.add(container)
    before = host.state()
    monkeypatch.setattr(veth, "find_host_end", lambda owner: None)
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists"):
        plugin.add(container)
    assert host.state() == before
    plugin.check(container)


def test_a_full_range(bench: Bench) -> None:
    conf = config("1.1.0", isGateway=True, ipam={"type": "host-local", "subnet": "10.1.0.0/30"})
    for name in ("c1", "c2"):
        bench.host.add_netns(name)
    bench.run("ADD", conf).must_succeed()
    before = bench.state()
    error = bench.run("ADD", conf, "c2").error
    assert (error["code"], "no IP addresses available in range set: 10.1.0.1-10.1.0.2" in error["msg"]) == (11, True)
    assert bench.state() == before
    assert bench.run("STATUS", conf).error["code"] == 50


def test_gateways_do_not_evict_each_other(bench: Bench) -> None:
    """Two IPv4 range sets, each with its gateway on the bridge; a foreign address is replaced only by force."""
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]
    conf = config(isGateway=True, ipam={"type": "host-local", "ranges": ranges})
    bench.host.add_netns("c1")
    bench.run("ADD", conf).must_succeed()
    assert addresses(bench.host, "br0") == ["10.1.0.1/24", "10.2.0.1/24"]
    bench.run("DEL", conf).must_succeed()
    other = config(isGateway=True, ipam={"type": "host-local", "subnet": "10.3.0.0/24"})
    before = bench.state()
    error = bench.run("ADD", other).error
    assert '"br0" already has an IP address different from 10.3.0.1/24' in error["msg"]
    assert bench.state() == before
    bench.run("ADD", other | {"forceAddress": True}).must_succeed()
    assert addresses(bench.host, "br0") == ["10.3.0.1/24"]


def test_gc_drops_exactly_what_is_not_valid(bench: Bench) -> None:
    conf = config("1.1.0", isGateway=True, ipMasq=True, macspoofchk=True)
    results = {}
    for name in ("c1", "c2", "c3"):
        bench.host.add_netns(name)
        results[name] = bench.run("ADD", conf, name).result
    other = conf | {
        "name": "other",
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100"},
    }
    bench.host.add_netns("c4")
    results["c4"] = bench.run("ADD", other, "c4").result
    bench.host.del_netns("c3")
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    bench.run("GC", conf | {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}).must_succeed()
    left = bench.state()
    assert sorted(left["leases"]) == ["net/10.1.0.2", "other/10.1.0.100"]  # type: ignore[call-overload]
    assert left["links"] == sorted(["br0", "lo", host_end(results["c1"]), host_end(results["c4"])])
    assert "10.1.0.3" not in str(left["rules"])
    assert not re.search(r"[-/]c2[-/]", str(left["rules"]))
    bench.run("CHECK", conf | {"prevResult": results["c1"]}, "c1").must_succeed()
    bench.run("CHECK", other | {"prevResult": results["c4"]}, "c4").must_succeed()


def test_status(bench: Bench) -> None:
    conf = config("1.1.0", ipMasq=True, macspoofchk=True)
    variables = {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": "", "CNI_ARGS": ""}
    bench.run("STATUS", conf, **variables).must_succeed()
    error = bench.run("STATUS", conf | {"bridge": "lo"}, **variables).error
    assert (error["code"], "not a bridge" in error["msg"]) == (50, True)
    error = bench.run("STATUS", conf | {"ipam": {"type": "absent"}}, **variables).error
    assert 'failed to find plugin "absent"' in error["msg"]


def test_vlans_need_a_kernel_that_filters_them(bench: Bench) -> None:
    """Where the kernel has bridge VLAN filtering the port gets its VLAN; elsewhere the error says what is missing."""
    bench.host.add_netns("c1")
    conf = config(vlan=100, ipam=None)
    answer = bench.run("ADD", conf)
    if answer.status:
        assert "CONFIG_BRIDGE_VLAN_FILTERING" in json.dumps(answer.error)
        assert bench.state()["links"] == ["lo"]
    else:
        shown = json.loads(bench.host.run(["bridge", "-j", "vlan", "show", "dev", host_end(answer.result)]).stdout)
        assert shown[0]["vlans"] == [{"vlan": 100, "flags": ["PVID", "Egress Untagged"]}]
        bench.run("CHECK", conf | {"prevResult": answer.result}).must_succeed()


def test_many_at_once(bench: Bench) -> None:
    """Sixteen first ADDs of a network at the same time: one bridge, sixteen addresses."""
    from concurrent.futures import ThreadPoolExecutor

    conf = config(isGateway=True, ipMasq=True)
    names = [f"c{number}" for number in range(16)]
    for name in names:
        bench.host.add_netns(name)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: bench.run("ADD", conf, name), names))
        assert len({answer.result["ips"][0]["address"] for answer in answers}) == 16
        for answer in pool.map(lambda name: bench.run("DEL", conf, name), names):
            answer.must_succeed()
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_gc_through_cnitool(bench: Bench, tmp_path: Path) -> None:
    """``cnitool gc`` takes away all but what it is told to keep, in our plugins too."""
    conf = config("1.1.0", name="net", isGateway=True, ipMasq=True)
    (tmp_path / "net.conf").write_text(json.dumps(conf))
    environ = {"PATH": os.environ["PATH"], "CNI_PATH": str(bench.ipam), "NETCONFPATH": str(tmp_path)}

    def cnitool(*arguments: str) -> None:
        bench.host.run([sys.executable, "-m", "cnisdk.cli.cnitool", *arguments], env=environ)

    for name in ("c1", "c2"):
        bench.host.add_netns(name)
        cnitool("add", "net", f"/run/netns/{name}", "--container-id", name)
    bench.run("ADD", conf, "c3", CNI_NETNS="/run/netns/c2", CNI_IFNAME="eth1").must_succeed()  # no runtime knows it
    cnitool("status", "net")
    cnitool("gc", "net", "--valid", "c1/eth0")
    assert bench.state()["leases"] == {"net/10.1.0.2": b"c1\r\neth0"}
    cnitool("gc", "net")
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}
