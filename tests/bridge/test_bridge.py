"""The bridge plugin on the real kernel."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from cnisdk.errors import CNIError
from cnisdk.linux import veth
from cnisdk.testing import Container, Host, PluginUnderTest, State, expect_error
from cnisdk_plugins.bridge import Bridge

from ..modes import IN_ONE_MODE, Plugins
from .conftest import DUAL_STACK, NOTHING, Network, host_end, left

pytestmark = pytest.mark.kernel


def link(host: Host, name: str, netns: str | None = None) -> Any:
    return host.ip("link", "show", name, netns=netns)[0]


def test_dual_stack_gateway(net: Network) -> None:
    """Two containers, both families, default routes, the bridge as gateway; all of it seen by the kernel."""
    host, bridge = net.host, net.plugin("1.1.0", isDefaultGateway=True, ipam=DUAL_STACK, mtu=1400)
    c1, c2 = host.container("c1"), host.container("c2")
    first = bridge.run("ADD", c1).document
    assert first["cniVersion"] == "1.1.0"
    assert [each["mtu"] for each in first["interfaces"]] == [1400, 1400, 1400]
    assert [each["address"] for each in first["ips"]] == ["10.1.0.2/24", "2001:db8:1::2/64"]
    assert first["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "2001:db8:1::1"}]
    assert c1.addresses("eth0") == ["10.1.0.2/24", "2001:db8:1::2/64"]
    assert host.addresses("br0") == ["10.1.0.1/24", "2001:db8:1::1/64"]
    port = link(host, host_end(first))
    assert (port["master"], port["mtu"], port["ifalias"]) == ("br0", 1400, "cni:net/c1/eth0")
    assert port["address"] == first["interfaces"][1]["mac"]
    inside = link(host, "eth0", "c1")
    assert (inside["address"], inside["operstate"]) == (first["interfaces"][2]["mac"], "UP")
    assert link(host, "br0")["address"] == first["interfaces"][0]["mac"]
    bridge.add(c2)
    assert [c1.reaches(c2, each) for each in ("10.1.0.3", "2001:db8:1::3")] == [True, True]
    assert [c1.reaches(host, each) for each in ("10.1.0.1", "2001:db8:1::1")] == [True, True]
    bridge.check(c1, prevResult=first)
    bridge.check(c2)
    for container in (c1, c2):
        bridge.delete(container)
    assert left(host) == NOTHING


def test_a_port_too_small_for_ipv6_does_not_take_the_gateway_of_others(net: Network) -> None:
    """The kernel gives a bridge the least MTU of its ports, and deletes the IPv6 addresses where that is below 1280."""
    host, dual = net.host, net.plugin(isDefaultGateway=True, ipam=DUAL_STACK)
    c1, c2 = host.container("c1"), host.container("c2")
    dual.add(c1)
    addresses = host.addresses("br0")
    narrow = net.plugin(mtu=1000)
    with expect_error(5, "$.mtu is 1000, but bridge br0 has the IPv6 address 2001:db8:1::1/64, which needs 1280"):
        narrow.add(c2)
    assert host.addresses("br0") == addresses
    assert c1.reaches(host, "2001:db8:1::1")
    dual.delete(c1)
    host.shell("ip -6 address flush dev br0 scope global")
    narrow.add(c2)
    assert link(host, "br0")["mtu"] == 1000
    narrow.delete(c2)


def test_router_advertisements_are_off(net: Network) -> None:
    """CVE-2020-10749: a container must not give the host, or another container, routes."""
    container = net.host.container()
    with_ipv6 = net.plugin(ipam=DUAL_STACK)
    result = with_ipv6.run("ADD", container).document
    for name in ("br0", host_end(result)):
        for key in ("accept_ra", "accept_redirects"):
            assert net.host.sysctl(f"net/ipv6/conf/{name}/{key}") == "0"
    for plugin, heard in (
        (with_ipv6, "0"),
        (net.plugin(), "1"),  # the container may get its IPv6 addresses from a router of the bridge's network
        (net.plugin(ipam=DUAL_STACK, acceptRA=True), "1"),
    ):
        plugin.delete(container)
        plugin.add(container)
        assert container.sysctl("net/ipv6/conf/eth0/accept_ra") == heard, plugin.conf


def test_neighbours_of_a_restarted_container_reach_it_at_once(net: Network) -> None:
    """They remember its addresses with the hardware address of the link before, and are told of the new one."""
    wanted = ["10.1.0.9", "2001:db8:1::9"]
    bridge = net.plugin(isGateway=True, ipam=DUAL_STACK)
    restarted, neighbour = net.host.container("c1"), net.host.container("c2")
    bridge.add(neighbour)

    def start() -> str:
        return bridge.add(restarted, runtimeConfig={"ips": wanted}).interfaces[2].mac

    def known() -> set[str]:
        assert [neighbour.reaches(restarted, each) for each in wanted] == [True, True]
        return {each["lladdr"] for each in net.host.ip("neigh", "show", netns="c2") if each["dst"] in wanted}

    before = start()
    assert known() == {before}
    bridge.delete(restarted)
    with neighbour.capture("eth0") as seen:
        after = start()
        for address in wanted:
            frame = seen.wait_for(lambda each: each.announces and str(each.target) == address)  # noqa: B023
            assert frame.source == after
    assert known() == {after}


# --- settings of the host's kernel: on hosts of their own -------------------------------------------------------------


def read_only_settings(host: Host) -> None:
    """As in a container that is given only what it needs."""
    host.shell("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro,nosuid,nodev,noexec /proc/sys")


def setting(host: Host, key: str, value: int) -> None:
    host.shell(f"echo {value} > /proc/sys/net/{key}")


def test_settings_that_cannot_be_written_and_need_not_be(host: Host, plugins: Plugins) -> None:
    """A host without IPv6 addresses, and one whose new links refuse advertisements already, need no setting."""
    for key, value in (("disable_ipv6", 1), ("accept_redirects", 0), ("accept_ra", 1)):
        setting(host, f"ipv6/conf/default/{key}", value)
    setting(host, "ipv4/ip_forward", 1)
    with plugins.on(host):
        read_only_settings(host)
        bridge, container = Network(host, plugins.directory, plugins.directory).plugin(isGateway=True), host.container()
        bridge.add(container)
        bridge.check(container)


def test_settings_that_cannot_be_written_and_must_be(host: Host, plugins: Plugins) -> None:
    with plugins.on(host):
        net = Network(host, plugins.directory, plugins.directory)
        container, before = host.container(), left(host)
        read_only_settings(host)
        with expect_error(5, "cannot set sysctl net/ipv6/conf/br0/accept_ra from 1 to 0") as expected:
            net.plugin().add(container)
        # The way out is named, and is one.
        wanted = [f"net.ipv6.conf.default.{key}=0" for key in ("accept_ra", "accept_redirects")]
        assert [each for each in wanted if each in expected.error.details] == wanted
        assert left(host) == before
        host.shell("umount /proc/sys")
        for each in wanted:
            key, value = each.split("=")
            setting(host, key.removeprefix("net.").replace(".", "/"), int(value))
        read_only_settings(host)
        net.plugin().add(container)
        net.plugin().delete(container)
        # In the container, they are set only where IPAM gives IPv6 addresses, and a key says that they need not be.
        with expect_error(5, "cannot set sysctl net/ipv6/conf/eth0/accept_ra from 1 to 0"):
            net.plugin(ipam=DUAL_STACK).add(container)
        net.plugin(ipam=DUAL_STACK, acceptRA=True).add(container)


# --- keys of the configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ipam", [None, {}, {"type": ""}], ids=["absent", "empty", "without a type"])
def test_layer_2(net: Network, ipam: object) -> None:
    """Without IPAM: no addresses, and CHECK works all the same."""
    bridge, container = net.plugin(ipam=ipam, dns={"nameservers": ["10.9.9.9"]}), net.host.container()
    result = bridge.add(container)
    assert (result.ips, len(result.interfaces), result.dns.nameservers) == ((), 3, ("10.9.9.9",))
    assert link(net.host, "eth0", "c1")["operstate"] == "UP"
    bridge.check(container)
    bridge.delete(container)
    assert left(net.host) == NOTHING


def test_a_disabled_interface_stays_down(net: Network) -> None:
    bridge, container = net.plugin(ipam=None, disableContainerInterface=True), net.host.container()
    bridge.add(container)
    assert "UP" not in link(net.host, "eth0", "c1")["flags"]
    bridge.check(container)


@pytest.mark.parametrize(("key", "shown"), [("hairpinMode", "hairpin"), ("portIsolation", "isolated")])
def test_port_flags(net: Network, key: str, shown: str) -> None:
    bridge, container = net.plugin("1.0.0", **{key: True}), net.host.container()
    result = bridge.run("ADD", container).document
    assert link(net.host, host_end(result))["linkinfo"]["info_slave_data"][shown] is True
    bridge.check(container, prevResult=result)
    off: dict[str, Any] = {key: False}
    with expect_error(5, f"$.{key} is False"):
        bridge.check(container, prevResult=result, **off)


def test_promiscuous_bridge(net: Network) -> None:
    bridge, container = net.plugin(promiscMode=True), net.host.container()
    bridge.add(container)
    assert "PROMISC" in link(net.host, "br0")["flags"]
    bridge.check(container)
    # Somebody else's promiscuous mode, a sniffer's for instance, is none of CHECK's business.
    bridge.check(container, promiscMode=False)


@pytest.mark.parametrize(
    ("keys", "args"),
    [
        ({}, "IgnoreUnknown=1;MAC=02:00:00:00:00:01"),
        ({"args": {"cni": {"mac": "02:00:00:00:00:01"}}}, "MAC=02:00:00:00:00:02"),
        (
            {"runtimeConfig": {"mac": "02-00-00-00-00-01"}, "args": {"cni": {"mac": "02:00:00:00:00:03"}}},
            "MAC=02:00:00:00:00:02",
        ),
    ],
)
def test_requested_hardware_address(net: Network, keys: dict[str, Any], args: str) -> None:
    document = net.plugin(**keys).run("ADD", net.host.container(), args=args).document
    assert document["interfaces"][2]["mac"] == link(net.host, "eth0", "c1")["address"] == "02:00:00:00:00:01"


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_masquerade(net: Network, backend: str) -> None:
    """Rules come, are checked, and go, with nothing to find them by but the attachment."""
    bridge = net.plugin(isGateway=True, ipMasq=True, ipMasqBackend=backend, ipam=DUAL_STACK)
    container = net.host.container()
    bridge.add(container)
    rules = str(left(net.host).rules)
    assert ("10.1.0.2" in rules, "2001:db8:1::2" in rules) == (True, True)
    bridge.check(container)
    # A second attachment of the same container: deleting the first leaves its rules alone.
    bridge.add(container, "eth1")
    container.destroy()
    bridge.run("DEL", container, ipMasq=False, environ={"CNI_NETNS": ""}).raise_for_error()
    now = left(net.host)
    assert now.leases == {"net/10.1.0.3": "c1/eth1", "net/2001:db8:1::3": "c1/eth1"}
    assert ("10.1.0.2" in str(now.rules), "10.1.0.3" in str(now.rules)) == (False, True)
    bridge.delete(container, "eth1")
    assert left(net.host) == NOTHING


def test_spoof_check(net: Network) -> None:
    bridge, container = net.plugin(macspoofchk=True), net.host.container()
    bridge.add(container)
    bridge.check(container)
    net.host.shell("nft flush chain bridge nat PREROUTING")
    with expect_error(5, "rules that let only"):
        bridge.check(container)
    bridge.delete(container)
    assert left(net.host) == NOTHING


def test_a_failed_add_of_another_network_leaves_the_spoof_check_alone(net: Network) -> None:
    """The runtime calls DEL after it, for the same container and interface."""
    bridge, container = net.plugin(macspoofchk=True), net.host.container()
    other = net.plugin(macspoofchk=True, name="other", bridge="br1")
    bridge.add(container)
    before = left(net.host).rules
    with expect_error(4, "eth0"):
        other.add(container)
    assert left(net.host).rules == before
    other.delete(container)
    assert left(net.host).rules == before
    bridge.check(container)


def test_interfaces_whose_names_continue_each_other(net: Network) -> None:
    bridge, container = net.plugin(macspoofchk=True), net.host.container()
    for verb in (bridge.add, bridge.check, bridge.delete):
        for name in ("eth0", "eth0-mac"):
            verb(container, name)
    assert left(net.host) == NOTHING


def test_routes_with_all_their_attributes(net: Network) -> None:
    routes = [
        {"dst": "10.2.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7},
        {"dst": "10.3.0.0/16", "gw": "10.1.0.9", "table": 100},
    ]
    bridge = net.plugin("1.1.0", ipam={"type": "host-local", "subnet": "10.1.0.0/24", "routes": routes})
    container = net.host.container()
    bridge.add(container)
    shown = {
        each["dst"]: each for each in net.host.ip("route", "show", "table", "all", netns="c1") if "gateway" in each
    }
    assert shown["10.2.0.0/16"]["gateway"] == "10.1.0.1"
    assert shown["10.2.0.0/16"]["metric"] == 7
    assert shown["10.2.0.0/16"]["metrics"] == [{"mtu": 1300, "advmss": 1200}]
    assert (shown["10.3.0.0/16"]["gateway"], shown["10.3.0.0/16"]["table"]) == ("10.1.0.9", "100")
    bridge.check(container)
    container.shell("ip route change 10.2.0.0/16 via 10.1.0.1 metric 7")
    with expect_error(5, "mtu 0 instead of 1300"):
        bridge.check(container)


def test_a_route_whose_gateway_is_zeros_leads_onto_the_link(net: Network) -> None:
    routes = [{"dst": "10.2.0.0/16", "gw": "0.0.0.0"}, {"dst": "2001:db8:2::/48", "gw": "::"}]
    bridge, container = net.plugin(isGateway=True, ipam=DUAL_STACK | {"routes": routes}), net.host.container()
    result = bridge.run("ADD", container).document
    for family, dst in (("-4", "10.2.0.0/16"), ("-6", "2001:db8:2::/48")):
        (shown,) = net.host.ip(family, "route", "show", dst, netns="c1")
        assert ("gateway" in shown, shown["dev"]) == (False, "eth0")
    assert result["routes"] == routes
    bridge.check(container, prevResult=result)


# --- CHECK ------------------------------------------------------------------------------------------------------------


def test_check_of_a_bridge_whose_hardware_address_follows_its_ports(net: Network) -> None:
    """A bridge that an administrator made, or the reference plugin without a gateway, is nobody's attachment."""
    bridge, container = net.plugin(), net.host.container()
    net.host.shell("ip link add br0 type bridge")
    said = bridge.add(container).interfaces[0].mac
    net.host.shell("ip link add p0 address 02:00:00:00:00:01 type veth peer name p1; ip link set p0 master br0")
    assert link(net.host, "br0")["address"] == "02:00:00:00:00:01" != said
    bridge.check(container)


DAMAGES = {
    "address gone": "ip -n c1 address del 10.1.0.2/24 dev eth0",
    "default route gone": "ip -n c1 route del default",
    "default route elsewhere": "ip -n c1 route replace default via 10.1.0.9",
    "container's end down": "ip -n c1 link set eth0 down",
    "container's end gone": "ip -n c1 link del eth0",
    "other hardware address": "ip -n c1 link set eth0 address 02:00:00:00:00:09",
    "bridge gone": "ip link del br0",
    "bridge down": "ip link set br0 down",
    "gateway address gone": "ip address flush dev br0",
    "not a port": "ip link set HOST nomaster",
    "forwarding off": "sysctl -w net.ipv4.ip_forward=0",
    "lease gone": "rm /var/lib/cni/networks/net/10.1.0.2",
    "rules gone": "nft flush ruleset",
}


def everything(host: Host) -> State:
    """Return what a request could change, without what a resident server keeps for itself."""
    state = host.state("net/ipv4/ip_forward")
    return evolve(state, files=tuple(each for each in state.files if not each.path.startswith("/run/cnisdk/")))


@IN_ONE_MODE
@pytest.mark.parametrize("damage", DAMAGES)
def test_check_notices_damage_and_repairs_nothing(net: Network, damage: str) -> None:
    bridge, container = net.plugin(isDefaultGateway=True, ipMasq=True), net.host.container()
    result = bridge.run("ADD", container).document
    net.host.shell(DAMAGES[damage].replace("HOST", host_end(result)))
    before = everything(net.host)
    with pytest.raises(CNIError, match=r"."):
        bridge.check(container, prevResult=result)
    assert everything(net.host) == before
    bridge.delete(container, prevResult=result)
    now = left(net.host)
    assert (now.leases, "10.1.0.2" in str(now.rules)) == ({}, False)


def test_check_accepts_another_spelling_of_the_namespace(net: Network) -> None:
    bridge, container = net.plugin(), net.host.container()
    net.host.container("c2")
    result = bridge.run("ADD", container).document

    def check(netns: str, prev: object) -> None:
        bridge.run("CHECK", container, environ={"CNI_NETNS": netns}, prevResult=prev).raise_for_error()

    check("/var/run/netns/c1", result)
    with pytest.raises(CNIError, match=r"."):
        check("/run/netns/c2", result)
    with pytest.raises(CNIError, match="prevResult"):
        check("/run/netns/c1", None)


# --- DEL --------------------------------------------------------------------------------------------------------------


DELETIONS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "as added": ({}, {}),
    "without a namespace": ({}, {"CNI_NETNS": ""}),
    "with a namespace that is gone": ({}, {"CNI_NETNS": "/run/netns/gone"}),
    "with a plain file for a namespace": ({}, {"CNI_NETNS": "/etc/hostname"}),
    "with a configuration that became invalid": ({"mtu": "x", "vlan": -1, "ipMasq": "yes", "isGateway": 3}, {}),
    "with another bridge": ({"bridge": "br1"}, {}),
}


@IN_ONE_MODE
@pytest.mark.parametrize("with_result", [True, False])
@pytest.mark.parametrize("way", DELETIONS)
def test_every_way_to_delete(net: Network, way: str, with_result: bool) -> None:
    keys, variables = DELETIONS[way]
    bridge, container = net.plugin(isGateway=True, ipMasq=True), net.host.container()
    result = bridge.run("ADD", container).document
    keys = keys | ({"prevResult": result} if with_result else {})
    for _ in range(2):
        bridge.run("DEL", container, environ=variables, **keys).raise_for_error()
        assert left(net.host) == NOTHING


def test_deleting_what_was_never_added(net: Network) -> None:
    bridge, never = net.plugin(), Container(net.host, "never")
    bridge.delete(never)
    container = net.host.container()
    bridge.add(container)
    before = everything(net.host)
    bridge.run("DEL", never, "eth1", environ={"CNI_NETNS": container.netns}).raise_for_error()
    net.plugin(name="other").delete(container)  # the same interface, but of another network
    assert everything(net.host) == before


def test_nobody_can_hold_up_an_add(net: Network) -> None:
    """Any user may lock the file of the host's namespace: ADD neither waits for it nor fails."""
    bridge, container = net.plugin(), net.host.container()
    for mode in ("-x", "-s"):
        holder = net.host.popen(
            ["flock", mode, "/proc/self/ns/net", "sh", "-c", "echo locked; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            bridge.add(container)
            bridge.delete(container)
            net.host.shell("ip link del br0")
            with expect_error(7, "absent"):
                net.plugin(ipam={"type": "absent"}).add(container)
            # While another process holds the lock, a bridge that was made for nothing may stay.
            assert set(left(net.host).links) <= {"br0", "lo"}
            holder.stdin.close()


# --- cnitool ----------------------------------------------------------------------------------------------------------


class Tool:
    """cnitool on the network's host."""

    def __init__(self, net: Network, directory: Path, plugin: PluginUnderTest) -> None:
        self.host = net.host
        (directory / "net.conf").write_text(json.dumps(plugin.conf))
        path = f"{net.ipam}:{directory}"
        self.environ = {"PATH": os.environ["PATH"], "CNI_PATH": path, "NETCONFPATH": str(directory)}

    def __call__(self, *arguments: str, to: str = "") -> subprocess.CompletedProcess[str]:
        """Run it; `to` is where a shell sends its output."""
        command = shlex.join([sys.executable, "-m", "cnisdk._cli.cnitool", *arguments])
        return self.host.run(["sh", "-c", command + to], env=self.environ, check=False)


def test_an_ipam_plugin_that_hangs(net: Network, tmp_path: Path) -> None:
    """A runtime that gives up, and rolls nothing back, finds nothing left."""
    ipam = tmp_path / "hangs"
    ipam.write_text("#!/bin/sh\nexec sleep 1000\n")
    ipam.chmod(0o755)
    cnitool, container = Tool(net, tmp_path, net.plugin(ipam={"type": "hangs"})), net.host.container()
    done = cnitool("add", "net", container.netns, "--timeout", "1", "--no-rollback")
    assert (done.returncode, "did not finish within 1 seconds" in done.stderr) == (1, True), done.stderr
    assert (net.host.links(), container.links()) == (["lo"], ["lo"])


def test_a_result_that_cnitool_cannot_print(net: Network, tmp_path: Path) -> None:
    cnitool, container = Tool(net, tmp_path, net.plugin()), net.host.container()
    for where in (">/dev/full", ">&-"):
        done = cnitool("add", "net", container.netns, to=where)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
        assert "cannot print the result" in done.stderr
        assert left(net.host) == NOTHING


def test_gc_through_cnitool(net: Network, tmp_path: Path) -> None:
    """``cnitool gc`` takes away all but what it is told to keep, in our plugins too."""
    bridge = net.plugin("1.1.0", isGateway=True, ipMasq=True)
    tool = Tool(net, tmp_path, bridge)

    def cnitool(*arguments: str) -> None:
        done = tool(*arguments)
        assert done.returncode == 0, done.stderr

    c1, c2 = net.host.container("c1"), net.host.container("c2")
    for container in (c1, c2):
        cnitool("add", "net", container.netns, "--container-id", container.id)
    bridge.run("ADD", c2, "eth1", environ={"CNI_CONTAINERID": "c3"}).raise_for_error()  # no runtime knows it
    cnitool("status", "net")
    cnitool("gc", "net", "--valid", "c1/eth0")
    assert left(net.host).leases == {"net/10.1.0.2": "c1/eth0"}
    cnitool("gc", "net")
    assert left(net.host) == NOTHING


# --- failures ---------------------------------------------------------------------------------------------------------


FAILURES: dict[str, tuple[dict[str, Any], dict[str, str], int, str]] = {
    "no such namespace": ({}, {"CNI_NETNS": "/run/netns/gone"}, 8, "/run/netns/gone"),
    "a plain file": ({}, {"CNI_NETNS": "/etc/hostname"}, 8, "not a network namespace"),
    "a directory": ({}, {"CNI_NETNS": "/etc"}, 8, "not a network namespace"),
    "no such IPAM plugin": ({"ipam": {"type": "absent"}}, {}, 7, 'failed to find plugin "absent"'),
    "itself as IPAM plugin": ({"ipam": {"type": "bridge"}}, {}, 7, "plugin bridge is its own IPAM plugin"),
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


@IN_ONE_MODE
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_add_leaves_nothing(net: Network, failure: str) -> None:
    keys, variables, code, text = FAILURES[failure]
    bridge, container = net.plugin(**{"isGateway": True} | keys), net.host.container()
    before = everything(net.host)
    with expect_error(code, text):
        bridge.run("ADD", container, environ=variables).raise_for_error()
    assert everything(net.host) == before


def test_an_interface_name_that_is_taken(net: Network) -> None:
    container = net.host.container()
    container.shell("ip link add eth0 type veth peer name eth9")
    with expect_error(4, "CNI_IFNAME eth0"):
        net.plugin().add(container)
    assert left(net.host) == NOTHING._replace(links=["lo"])


def test_a_second_add_leaves_the_first_alone(net: Network) -> None:
    bridge, container = net.plugin(isGateway=True, ipMasq=True, macspoofchk=True), net.host.container()
    bridge.add(container)
    before = everything(net.host)
    with expect_error(4, "eth0"):
        bridge.add(container)
    assert everything(net.host) == before
    bridge.check(container)


def test_two_adds_of_one_attachment_at_the_same_moment(net: Network) -> None:
    """One succeeds, and what the other takes back is not the first one's."""
    bridge, container = net.plugin(isGateway=True, macspoofchk=True), net.host.container()
    bridge.add(container)  # so that none waits for the bridge to be made
    bridge.delete(container)
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: bridge.run("ADD", container), range(3)))
        (result,) = [answer.document for answer in answers if answer.status == 0]
        assert [answer.document["code"] for answer in answers if answer.status] == [4, 4]
        bridge.check(container, prevResult=result)
        bridge.delete(container)
        assert left(net.host) == NOTHING


def test_the_loser_of_a_race_leaves_the_winner_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked before the winner made the link, and fails as it makes its own."""
    plugin = host.plugin(Bridge, {"bridge": "br0", "ipam": host.stub().conf, "macspoofchk": True})
    container = host.container("c1")
    plugin.add(container)
    before = host.state()
    monkeypatch.setattr(veth, "find_host_end", lambda owner: None)
    with expect_error(4, "CNI_IFNAME eth0 already exists"):
        plugin.add(container)
    assert host.state() == before
    plugin.check(container)


def test_a_full_range(net: Network) -> None:
    bridge = net.plugin("1.1.0", isGateway=True, ipam={"type": "host-local", "subnet": "10.1.0.0/30"})
    c1, c2 = net.host.container("c1"), net.host.container("c2")
    bridge.add(c1)
    before = everything(net.host)
    with expect_error(11, "no IP addresses available in range set: 10.1.0.1-10.1.0.2"):
        bridge.add(c2)
    assert everything(net.host) == before
    with expect_error(50):
        bridge.status()


def test_gateways_do_not_evict_each_other(net: Network) -> None:
    """Two IPv4 range sets, each with its gateway on the bridge; a foreign address is replaced only by force."""
    ranges = [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]
    bridge, container = net.plugin(isGateway=True, ipam={"type": "host-local", "ranges": ranges}), net.host.container()
    bridge.add(container)
    assert net.host.addresses("br0") == ["10.1.0.1/24", "10.2.0.1/24"]
    bridge.delete(container)
    other = net.plugin(isGateway=True, ipam={"type": "host-local", "subnet": "10.3.0.0/24"})
    before = everything(net.host)
    with expect_error(5, '"br0" already has an IP address different from 10.3.0.1/24'):
        other.add(container)
    assert everything(net.host) == before
    other.add(container, forceAddress=True)
    assert net.host.addresses("br0") == ["10.3.0.1/24"]


# --- GC and STATUS ----------------------------------------------------------------------------------------------------


def test_gc_drops_exactly_what_is_not_valid(net: Network) -> None:
    keys: dict[str, Any] = {"isGateway": True, "ipMasq": True, "macspoofchk": True}
    bridge = net.plugin("1.1.0", **keys)
    elsewhere = {"type": "host-local", "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100"}
    other = net.plugin("1.1.0", name="other", ipam=elsewhere, **keys)
    c1, c2, c3, c4 = (net.host.container(f"c{number}") for number in range(1, 5))
    first = bridge.run("ADD", c1).document
    for container in (c2, c3):
        bridge.add(container)
    foreign = other.run("ADD", c4).document
    c3.destroy()
    bridge.gc(c1)
    now = left(net.host)
    assert sorted(now.leases) == ["net/10.1.0.2", "other/10.1.0.100"]
    assert now.links == sorted(["br0", "lo", host_end(first), host_end(foreign)])
    assert not re.search(r"10\.1\.0\.3|[-/]c2[-/]", str(now.rules))
    bridge.check(c1, prevResult=first)
    other.check(c4, prevResult=foreign)


def test_status(net: Network) -> None:
    bridge = net.plugin("1.1.0", ipMasq=True, macspoofchk=True)
    bridge.status()
    with expect_error(50, "not a bridge"):
        bridge.status(bridge="lo")
    with expect_error(7, 'failed to find plugin "absent"'):
        bridge.status(ipam={"type": "absent"})


def test_vlans_need_a_kernel_that_filters_them(net: Network) -> None:
    """Where the kernel has bridge VLAN filtering the port gets its VLAN; elsewhere the error says what is missing."""
    bridge, container = net.plugin(vlan=100, ipam=None), net.host.container()
    answer = bridge.run("ADD", container)
    if answer.status:
        assert "CONFIG_BRIDGE_VLAN_FILTERING" in json.dumps(answer.document)
        assert net.host.links() == ["lo"]
    else:
        shown = json.loads(net.host.shell(f"bridge -j vlan show dev {host_end(answer.document)}"))
        assert shown[0]["vlans"] == [{"vlan": 100, "flags": ["PVID", "Egress Untagged"]}]
        bridge.check(container, prevResult=answer.document)


def test_many_at_once(net: Network) -> None:
    """Sixteen first ADDs of a network at the same time: one bridge, sixteen addresses."""
    bridge = net.plugin(isGateway=True, ipMasq=True)
    containers = [net.host.container(f"c{number}") for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(bridge.add, containers))
        assert len({result.ips[0].address for result in results}) == 16
        for _ in pool.map(bridge.delete, containers):
            pass
    assert left(net.host) == NOTHING
