"""vrf: an interface in a routing domain of its own, with all its routes, and out of it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnisdk.errors import PluginNotAvailableError
from cnisdk.linux import kinds, link, netns, tables
from cnisdk.testing import Container, Host, PluginUnderTest, expect_error
from cnisdk_plugins.bridge import Bridge
from cnisdk_plugins.sbr import Sbr
from cnisdk_plugins.vrf import Vrf

from .conftest import attached, in_version, kill_adds, routes, two_networks

pytestmark = pytest.mark.kernel

ALL = {
    "10.2.0.0/24 via None dev net1",
    "192.0.2.0/24 via 10.2.0.1 dev net1",
    "198.51.100.0/24 via None dev net1",
    "2001:db8:2::/64 via None dev net1",
    "2001:db8:99::/48 via 2001:db8:2::1 dev net1",
}
"""The routes over the second interface, before and after."""
MADE = {each for each in ALL if each.startswith(("10.2.0.0", "2001:db8:2::/64"))}
"""Those that the kernel makes with the addresses."""


def network(host: Host) -> tuple[Container, PluginUnderTest]:
    """A container whose second interface has routes of all sorts, and the plugin for it."""
    container, result = two_networks(host)
    container.shell("ip -6 route add 2001:db8:99::/48 via 2001:db8:2::1")
    return container, host.plugin(Vrf, {"vrfname": "blue", "prevResult": result})


def over_net1(container: Container, table: str = "main") -> set[str]:
    # The kernel has more in the table of a VRF: addresses, broadcasts, multicast; and the link-local route comes late.
    found = {each for each in routes(container, table) if each.endswith("net1") and "/" in each.partition(" ")[0]}
    return {each for each in found if not each.startswith(("ff00::", "fe80::"))}


def over_others(container: Container) -> set[str]:
    found = routes(container, "main")
    return {each for each in found if not each.endswith("net1") and not each.startswith("fe80::")}


def listed(container: Container, more: str = "true") -> list[str]:
    """The lines of all routes, and of a command, but for the link-local ones, which the kernel makes when it likes."""
    lines = container.shell(f"ip route; ip -6 route; {more}").splitlines()
    return sorted(" ".join(each.split()) for each in lines if "fe80::" not in each)


def test_what_cannot_be_meant_is_refused(host: Host) -> None:
    container, result = attached(host)
    plugin = host.plugin(Vrf, {"prevResult": result})
    for keys, message in (
        ({}, "configuration is expected to have a valid vrf name"),
        ({"vrfname": "a/b"}, '$.vrfname is "a/b"'),
        ({"vrfname": "blue", "table": 254}, "$.table is 254"),
        ({"vrfname": "blue", "table": -1}, "$.table is -1"),
        ({"vrfname": "blue", "table": 10**400}, f"$.table is 1{'0' * 78}…, expected"),
    ):
        with expect_error(7, message):
            plugin.add(container, **keys)
    with expect_error(7, "required prevResult missing"):
        plugin.add(container, vrfname="blue", prevResult=None)
    with expect_error(5, "Netlink lo is not a VRF"):
        plugin.add(container, vrfname="lo")
    for environ in ({}, {"CNI_NETNS": "/run/netns/none"}):
        plugin.run("DEL", container, vrfname="", environ=environ).raise_for_error()


def test_status_says_whether_the_kernel_has_vrfs(host: Host) -> None:
    plugin = host.plugin(Vrf, {"vrfname": "blue"})
    try:
        host.call(kinds.require, "vrf")
    except PluginNotAvailableError:
        with expect_error(50, "cannot create links of kind vrf"):
            plugin.status()
    else:
        plugin.status()


@pytest.mark.kinds
def test_an_interface_moves_with_its_routes_and_back(host: Host) -> None:
    container, plugin = network(host)
    container.shell("ip route add 10.99.0.0/16 dev eth0 table 1; ip rule add from 10.99.0.1 lookup 2")
    assert over_net1(container) == ALL
    elsewhere = over_others(container)
    plugin.status()
    answer = plugin.run("ADD", container, "net1")
    assert answer.document == plugin.conf["prevResult"]
    (domain,) = host.ip("-d", "link", "show", "blue", netns="c1")
    table = domain["linkinfo"]["info_data"]["table"]
    assert (table, domain["ifalias"]) == (3, "cni:testnet/c1/net1"), "a route has the first table, a rule the second"
    assert over_net1(container, "3") == ALL
    assert over_net1(container) == set()
    assert over_others(container) == elsewhere
    assert container.addresses("net1")[:2] == ["10.2.0.2/24", "2001:db8:2::2/64"]
    plugin.check(container, "net1")
    for family in ("-4", "-6"):
        gateway = "10.2.0.1" if family == "-4" else "2001:db8:2::1"
        container.shell(f"ping {family} -c1 -W5 -I blue {gateway}")
    everything = "ip route show table all; ip -6 route show table all; ip link"
    before = listed(container, everything)
    plugin.add(container, "net1")
    assert listed(container, everything) == before
    for spoil, mend, text in (
        ("ip link set blue down", "ip link set blue up", "VRF blue is down"),
        ("ip route add 10.2.0.0/24 dev net1 table main", "ip route del 10.2.0.0/24 table main", "in the main table"),
        ("ip address del 10.2.0.2/24 dev net1", "ip address add 10.2.0.2/24 dev net1", "10.2.0.2/24 is missing"),
        ("ip link set net1 nomaster", "ip link set net1 master blue", "interface net1 is not in VRF blue"),
    ):
        container.shell(spoil)
        with expect_error(5, text):
            plugin.check(container, "net1")
        container.shell(mend)
    with expect_error(5, "already exist with different routing table 3"):
        plugin.check(container, "net1", table=7)
    plugin.delete(container, "net1")
    plugin.delete(container, "net1")
    assert "blue" not in container.links()
    assert {"10.2.0.0/24 via None dev net1", "2001:db8:2::/64 via None dev net1"} <= over_net1(container)


@pytest.mark.kinds
def test_del_puts_the_routes_back(host: Host) -> None:
    container, plugin = network(host)
    # Several next hops over one link, which the reference leaves behind (IPv6: plugins#1253).
    container.shell(
        "ip route add 203.0.113.0/24 nexthop via 10.2.0.1 dev net1 nexthop via 10.2.0.254 dev net1; "
        "ip -6 route add 2001:db8:77::/48 nexthop via 2001:db8:2::1 dev net1 nexthop via 2001:db8:2::fe dev net1; "
        "ip route add 10.88.0.0/16 via 10.2.0.1 table 500"
    )
    before = listed(container, "ip route show table 500")
    plugin.add(container, "net1", table=70000)
    moved = container.shell("ip route show vrf blue; ip -6 route show vrf blue; ip route show table 500")
    assert moved.count("nexthop") == 4
    assert "10.88.0.0/16 via 10.2.0.1" in moved
    plugin.run("DEL", container, "net1", vrfname="renamed since").raise_for_error()
    assert listed(container, "ip route show table 500") == before


@pytest.mark.kinds
def test_a_late_del_leaves_the_next_container_at_the_path_alone(host: Host) -> None:
    container, plugin = network(host)
    plugin.add(container, "net1")
    result = plugin.conf["prevResult"]
    host_end, end = ({**each, "mac": "02:00:00:00:00:99"} for each in result["interfaces"])
    for late in (
        {**result, "interfaces": [{**host_end, "name": "v9"}, end]},
        {**result, "interfaces": [host_end, end], "ips": [{"interface": 1, "address": "10.2.0.9/24"}]},
    ):
        plugin.run("DEL", container, "net1", environ={"CNI_CONTAINERID": "late"}, prevResult=late).raise_for_error()
        plugin.check(container, "net1")


@pytest.mark.kinds
@pytest.mark.parametrize("told", ["by the host end", "by the addresses", "by the mark of the VRF"])
def test_del_after_tuning_put_the_hardware_address_back(host: Host, told: str) -> None:
    container, plugin = network(host)
    before = listed(container)
    plugin.add(container, "net1")
    result = plugin.conf["prevResult"]
    host_end, end = ({**each, "mac": "02:00:00:00:00:99"} for each in result["interfaces"])
    if told == "by the host end":
        del host_end["mac"]
        container.shell("ip address flush dev net1")
    ips = [] if told == "by the mark of the VRF" else result["ips"]
    changed = {**result, "interfaces": [host_end, end], "ips": ips}
    plugin.run("DEL", container, "net1", prevResult=changed).raise_for_error()
    assert "blue" not in container.links()
    if told != "by the host end":
        assert listed(container) == before


@pytest.mark.kinds
def test_a_vrf_of_several_goes_with_the_last(host: Host) -> None:
    container, plugin = network(host)
    plugin.add(container, "net1")
    first = {**plugin.conf["prevResult"], "interfaces": [{"name": "eth0", "sandbox": container.netns}], "ips": []}
    plugin.run("ADD", container, "eth0", prevResult=first).raise_for_error()
    host.shell("ip link del v2")  # without the link
    plugin.run("DEL", container, "net1", prevResult=None).raise_for_error()
    assert "blue" in container.links()
    with expect_error(5, "has already a master set: blue"):
        plugin.run("ADD", container, "eth0", vrfname="green", prevResult=first).raise_for_error()
    assert "green" not in container.links()
    plugin.run("DEL", container, "eth0", vrfname="green").raise_for_error()
    assert host.ip("link", "show", "eth0", netns="c1")[0]["master"] == "blue", "another VRF than its own is left alone"
    plugin.run("DEL", container, "eth0").raise_for_error()
    assert "blue" not in container.links()
    container.shell("ip link add mine type vrf table 9; ip link set mine alias 'of the administrator'")
    plugin.run("DEL", container, "eth0", vrfname="mine").raise_for_error()
    assert "mine" in container.links()


@pytest.mark.kinds
def test_a_failed_add_puts_everything_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    container, plugin = network(host)

    clear = tables.clear

    def fail_once(end: link.Link, number: int) -> None:
        """Fail in ADD, when the kernel has dropped the routes, and not in its undo."""
        monkeypatch.setattr(tables, "clear", clear)
        raise OSError("injected")

    monkeypatch.setattr(tables, "clear", fail_once)
    with expect_error(5, "injected"):
        plugin.add(container, "net1")
    assert "blue" not in container.links()
    assert over_net1(container) == ALL


@pytest.mark.kinds
@pytest.mark.parametrize("more", [None, Sbr])
def test_check_of_the_plugins_before_passes(host: Host, more: type[Any] | None) -> None:
    container, ipam = host.container(), host.stub()
    ips = [{"address": "10.6.0.2/24", "gateway": "10.6.0.1"}, {"address": "fd06::2/64", "gateway": "fd06::1"}]
    routes_ = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.7.0.0/16", "table": 500}]
    ipam.answer("ADD", {"cniVersion": "1.1.0", "ips": ips, "routes": routes_})
    for verb in ("DEL", "CHECK"):
        ipam.answer(verb)
    plugins = [host.plugin(Bridge, {"bridge": "br0", "isGateway": True, "ipam": ipam.conf})]
    plugins += [host.plugin(each, {"vrfname": "blue"}) for each in (more, Vrf) if each is not None]
    result: Any = None
    for plugin in plugins:
        answer = plugin.run("ADD", container, prevResult=result)
        answer.raise_for_error()
        result = answer.document
    for plugin in plugins:
        plugin.run("CHECK", container, prevResult=result).raise_for_error()
    container.shell("ping -c1 -W5 -I blue 10.6.0.1; ping -c1 -W5 -I blue fd06::1")
    for plugin in plugins:  # in any order
        plugin.run("DEL", container, prevResult=result).raise_for_error()
    assert container.links() == ["lo"]


@pytest.mark.kinds
@pytest.mark.parametrize("adder", ["go", "ours"])
@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_go_and_ours_delete_what_the_other_added(host: Host, go: Path, version: str, adder: str) -> None:
    container, plugin = network(host)
    conf = {"cniVersion": version, "vrfname": "blue", "prevResult": in_version(plugin.conf["prevResult"], version)}
    one, other = host.plugin(go / "vrf", conf | {"type": "vrf"}), host.plugin(Vrf, conf)
    if adder == "ours":
        one, other = other, one
    answered = one.run("ADD", container, "net1").document
    # The packaged one moves none but those that the kernel makes.
    assert over_net1(container, "1") == (ALL if adder == "ours" else MADE)
    if version != "0.3.1":
        other.run("CHECK", container, "net1", prevResult=answered).raise_for_error()
    other.run("DEL", container, "net1", prevResult=answered).raise_for_error()
    assert "blue" not in container.links()


@pytest.mark.kinds
@pytest.mark.slow
def test_a_killed_add_leaves_no_vrf_after_del(host: Host) -> None:
    """Routes that the kernel dropped with the change are gone: a killed process cannot put them back."""
    container, plugin = network(host)

    def links() -> list[tuple[str, int]]:
        with netns.open(container.netns) as space:
            return sorted((each.name, each.master) for each in link.list_all(space))

    before = host.call(links)

    def check() -> None:
        assert links() == before

    # In a process on the host, where only an ADD that is killed needs one more: this kernel is often an emulated one.
    there = PluginUnderTest(None, plugin.plugin, plugin.conf, plugin.path)
    host.call(kill_adds, there, container, "net1", check=check)
