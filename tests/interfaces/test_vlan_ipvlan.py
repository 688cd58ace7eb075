"""vlan and ipvlan on a kernel that has both kinds."""

from __future__ import annotations

from typing import Any

import pytest

from cnisdk import Plugin
from cnisdk.errors import CNIError, InvalidConfigError, InvalidEnvironmentError, IOFailureError
from cnisdk.testing import Container, Host, PluginUnderTest
from cnisdk_plugins.ipvlan import Ipvlan
from cnisdk_plugins.vlan import Vlan

pytestmark = [pytest.mark.kernel, pytest.mark.kinds]

BOTH = pytest.mark.parametrize("name", ["vlan", "ipvlan"])
PLUGINS: dict[str, type[Plugin[Any]]] = {"vlan": Vlan, "ipvlan": Ipvlan}
KEYS: dict[str, dict[str, Any]] = {"vlan": {"vlanId": 5}, "ipvlan": {}}


@pytest.fixture
def uplink(host: Host) -> Host:
    """A host with the link up0, whose other end is in the container `far`."""
    host.container("far")
    host.shell("ip link add up0 type veth peer name up0x netns far; ip link set up0 up; ip -n far link set up0x up")
    return host


def make(host: Host, name: str, **keys: Any) -> PluginUnderTest:
    return host.plugin(PLUGINS[name], {"master": "up0", "ipam": host.stub().conf, **KEYS[name], **keys})


def shown(host: Host, ifname: str = "eth0", netns: str = "c1") -> Any:
    return host.ip("-d", "link", "show", ifname, netns=netns)[0]


@BOTH
def test_attached_checked_and_detached(uplink: Host, name: str) -> None:
    web = uplink.container()
    before = uplink.state(rules=False)
    plugin = make(uplink, name, mtu=1400, dns={"nameservers": ["192.0.2.53"]})
    plugin.status()
    result = plugin.add(web)
    end = shown(uplink)
    assert (end["mtu"], end["ifalias"], end["linkinfo"]["info_kind"]) == (1400, "cni:testnet/c1/eth0", name)
    (interface,) = result.interfaces
    assert (interface.name, interface.mac, interface.sandbox) == ("eth0", end["address"], web.netns)
    assert ([ip.interface for ip in result.ips], result.dns.nameservers) == ([0], ("192.0.2.53",))
    assert web.addresses() == ["10.9.0.2/24"]
    web.shell("ip link set eth0 mtu 1300")  # as tuning may
    plugin.check(web)
    for keys, message in (
        ({"vlanId": 6}, "vlan eth0 has id 5, not 6") if name == "vlan" else ({"mode": "l3"}, "has mode l2, not l3"),
        ({"master": "lo"}, "does not lie on lo"),
        ({"master": "gone"}, 'failed to lookup master "gone": Link not found'),
    ):
        with pytest.raises(IOFailureError, match=message):
            plugin.check(web, **keys)
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists in /run/netns/c1"):
        make(uplink, name, **({"vlanId": 6} if name == "vlan" else {})).add(web)
    # The reference's DEL wants the master. Nothing in the configuration may be wrong for that.
    plugin.run("DEL", web, master="gone", vlanId=9999, mode="x", mtu=-1, linkInContainer=True).raise_for_error()
    assert uplink.state(rules=False) == before
    plugin.add(web)
    uplink.shell("ip link set up0 down")
    plugin.run("DEL", web, environ={"CNI_NETNS": ""}).raise_for_error()
    assert (web.links(), uplink.state(rules=False).leases) == (["eth0", "lo"], ())
    plugin.delete(web)
    assert web.links() == ["lo"]
    # Without addresses, which the reference cannot do.
    uplink.shell("ip link set up0 up")
    assert plugin.add(web, ipam=None).ips == ()
    assert "UP" in shown(uplink)["flags"]
    plugin.check(web, ipam=None)
    plugin.gc(ipam=None)
    plugin.delete(web, ipam=None)
    assert web.links() == ["lo"]


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        (
            "vlan",
            [
                ({"master": ""}, r'"master" field is required'),
                ({"master": "gone"}, 'failed to lookup master "gone": Link not found'),
                ({"master": "idle"}, "master idle is down"),
                ({"vlanId": 4095}, "invalid VLAN ID 4095"),
                ({"vlanId": -1}, "invalid VLAN ID -1"),
                ({"mtu": 1501}, r"invalid MTU 1501, must be \[0, master MTU\(1500\)\]"),
                ({"vlanId": 7}, "File exists; another link has this VLAN of it"),
            ],
        ),
        (
            "ipvlan",
            [
                ({"master": ""}, "no default route interface found"),
                ({"master": "gone"}, 'failed to lookup master "gone": Link not found'),
                ({"mtu": 1501}, r"invalid MTU 1501, must be \[0, master MTU\(1500\)\]"),
                ({"mode": "l4"}, 'unknown ipvlan mode: "l4"'),
                ({"master": "idle"}, "EBUSY"),
            ],
        ),
    ],
)
def test_refused_without_a_trace(uplink: Host, name: str, cases: list[tuple[dict[str, Any], str]]) -> None:
    web = uplink.container()
    # `idle` has a macvlan, and a link with a macvlan takes no ipvlan; VLAN 7 is taken.
    uplink.shell("ip link add idle type dummy; ip link add link idle mv0 type macvlan")
    uplink.shell("ip link add link up0 taken type vlan id 7")
    before = uplink.state(rules=False)
    for keys, message in cases:
        plugin = make(uplink, name, **keys)
        with pytest.raises((InvalidConfigError, IOFailureError), match=message):
            plugin.add(web)
        # An ipvlan without master may be a chained one, which the readiness of its network does not tell.
        if "master" in keys and message != "EBUSY" and (name, keys["master"]) != ("ipvlan", ""):
            with pytest.raises(CNIError, match=message):
                plugin.status()
        plugin.delete(web)
        assert uplink.state(rules=False) == before, keys


@BOTH
def test_the_master_in_the_container(uplink: Host, name: str) -> None:
    web = uplink.container()
    uplink.shell("ip link set up0 netns c1 up; ip link add up0 type dummy")
    plugin = make(uplink, name, linkInContainer=True)
    plugin.status(master="of the container")
    plugin.add(web)
    assert shown(uplink)["link"] == "up0"
    plugin.check(web)
    with pytest.raises(IOFailureError, match="does not lie on"):
        plugin.check(web, linkInContainer=False)
    plugin.delete(web)
    assert web.links() == ["lo", "up0"]


def test_frames_of_a_vlan_are_tagged(uplink: Host) -> None:
    web, far = uplink.container(), Container(uplink, "far")
    far.shell("ip link add v5 link up0x type vlan id 5; ip addr add 10.9.0.200/24 dev v5; ip link set v5 up")
    with far.capture("up0x") as seen:
        make(uplink, "vlan").add(web)
        announced = seen.wait_for(lambda frame: frame.announces)
        assert (announced.vlan, str(announced.target)) == (5, "10.9.0.2")
        assert web.reaches(far, "10.9.0.200")
        assert {frame.vlan for frame in seen.frames if frame.kind in ("arp request", "arp reply", "0x0800")} == {5}


def test_ipvlans_of_layer_3_by_routes(uplink: Host) -> None:
    """Each container has a network of its own; none asks who has an address."""
    one, two = uplink.container("one"), uplink.container("two")
    uplink.shell("ip addr add 192.0.2.1/24 dev up0; ip -n far addr add 192.0.2.2/24 dev up0x")
    uplink.shell("ip -n far route add 10.8.0.0/15 via 192.0.2.1")
    for container, prefix in ((one, "10.8.0"), (two, "10.9.0")):
        stub = uplink.stub(f"stub-{container.name}", prefix=prefix, routes=[{"dst": "0.0.0.0/0"}])
        plugin = make(uplink, "ipvlan", mode="l3", ipam=stub.conf)
        plugin.add(container)
        plugin.check(container)
    assert one.reaches(two)
    far = Container(uplink, "far")
    assert one.reaches(far, "192.0.2.2")
    assert far.reaches(two, "10.9.0.2")
    with one.capture("eth0") as seen:
        assert two.reaches(one)
        assert not {"arp request", "arp reply"} & seen.kinds()


def test_an_ipvlan_without_master(uplink: Host) -> None:
    web = uplink.container()
    uplink.shell("ip addr add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.2")
    plugin = make(uplink, "ipvlan", master="")
    plugin.status()
    plugin.add(web)
    assert shown(uplink)["link_index"] == uplink.ip("link", "show", "up0")[0]["ifindex"]
    plugin.check(web)
    uplink.shell("ip route del default")
    plugin.check(web)
    plugin.status()  # it may be chained, and then needs no default route
    # One without alias is the reference's. Its hardware address follows the master's.
    web.shell("ip link set eth0 alias ''")
    uplink.shell("ip link set up0 address 02:00:00:00:00:77")
    plugin.delete(web)
    assert (web.links(), uplink.state(rules=False).leases) == (["lo"], ())


def test_an_ipvlan_on_the_link_of_the_plugin_before(uplink: Host) -> None:
    web = uplink.container()
    plugin = make(uplink, "ipvlan", master="", ipam=None, dns={"domain": "example.org"})
    plugin.status()
    before: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "up0"}],
        "ips": [{"address": "10.7.0.9/24", "gateway": "10.7.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"domain": "lost.example.org"},
    }
    result = plugin.add(web, prevResult=before)
    assert [(each.name, each.sandbox) for each in result.interfaces] == [("eth0", web.netns)]
    assert [(str(each.address), each.interface) for each in result.ips] == [("10.7.0.9/24", 0)]
    assert ([str(each.dst) for each in result.routes], result.dns.domain) == (["0.0.0.0/0"], "example.org")
    assert web.addresses() == ["10.7.0.9/24"]
    plugin.check(web)
    plugin.delete(web)
    # The link may be in the container, where the reference looks only with linkInContainer.
    uplink.shell("ip link set up0 netns c1 up; ip link add up0 type dummy")
    inside = before | {"interfaces": [{"name": "up0", "sandbox": web.netns}]}
    plugin.add(web, prevResult=inside)
    assert shown(uplink)["link"] == "up0"
    plugin.delete(web)
    for interfaces in ([], [{"name": "a"}, {"name": "b"}], [{"name": ""}]):
        with pytest.raises(InvalidConfigError, match="chained master failure"):
            plugin.add(web, prevResult=before | {"interfaces": interfaces})
    other = [{"name": "up0", "sandbox": "/run/netns/far"}]
    with pytest.raises(IOFailureError, match="which is not CNI_NETNS"):
        plugin.add(web, prevResult=before | {"interfaces": other})
    assert web.links() == ["lo", "up0"]
