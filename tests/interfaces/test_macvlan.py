"""macvlan on the real kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cnisdk.errors import InvalidConfigError, InvalidEnvironmentError, IOFailureError, PluginNotAvailableError
from cnisdk.linux import kinds
from cnisdk.testing import Host, PluginUnderTest, expect_error
from cnisdk_plugins.macvlan import Macvlan

pytestmark = pytest.mark.kernel


@pytest.fixture
def uplink(host: Host) -> Host:
    """A host with a link to lie on."""
    host.shell("ip link add up0 type veth peer name up0x; ip link set up0 up; ip link set up0x up")
    return host


def make(host: Host, **keys: Any) -> PluginUnderTest:
    return host.plugin(Macvlan, {"master": "up0", "ipam": host.stub().conf, **keys})


def shown(host: Host, ifname: str = "eth0", netns: str = "c1") -> Any:
    return host.ip("-d", "link", "show", ifname, netns=netns)[0]


def test_attached_checked_and_detached(uplink: Host) -> None:
    web = uplink.container()
    before = uplink.state()
    plugin = make(uplink, mtu=1400, mode="private", bcqueuelen=2000, dns={"nameservers": ["192.0.2.53"]})
    result = plugin.add(web, args="MAC=02:00:00:00:00:07")
    end = shown(uplink)
    assert (end["address"], end["mtu"], end["ifalias"]) == ("02:00:00:00:00:07", 1400, "cni:testnet/c1/eth0")
    assert end["linkinfo"]["info_kind"] == "macvlan"
    assert {"mode": "private", "bcqueuelen": 2000}.items() <= end["linkinfo"]["info_data"].items()
    assert web.addresses() == ["10.9.0.2/24"]
    (interface,) = result.interfaces
    assert (interface.name, interface.mac, interface.sandbox) == ("eth0", "02:00:00:00:00:07", web.netns)
    assert ([ip.interface for ip in result.ips], result.dns.nameservers) == ([0], ("192.0.2.53",))
    plugin.check(web)
    with pytest.raises(IOFailureError, match="mode private, not vepa"):
        plugin.check(web, mode="vepa")
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists in /run/netns/c1"):
        plugin.add(web)
    plugin.check(web)
    # The master and the mode may be gone from the configuration.
    plugin.delete(web, master="gone", mode="nonsense", mtu=-1)
    assert uplink.state() == before
    plugin.delete(web)


def test_layer_2_on_the_default_route(uplink: Host) -> None:
    web = uplink.container()
    plugin = make(uplink, master="", ipam={"type": ""})
    with pytest.raises(PluginNotAvailableError, match="no default route interface found"):
        plugin.status()
    with pytest.raises(IOFailureError, match="no default route interface found"):
        plugin.add(web)
    uplink.shell("ip addr add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.2")
    plugin.status()
    assert plugin.add(web).ips == ()
    plugin.check(web)
    assert "UP" in shown(uplink)["flags"]
    uplink.shell("ip route del default")
    plugin.check(web)
    plugin.delete(web)
    assert web.links() == ["lo"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"master": "nope"}, 'failed to lookup master "nope": Link not found'),
        ({"mtu": 1501}, r"invalid MTU 1501, must be \[0, master MTU\(1500\)\]"),
        ({"mtu": -1}, "invalid MTU -1"),
        ({"mode": "source"}, 'unknown macvlan mode: "source"'),
        ({"mac": "02:00:00:00:00"}, r'\$\.mac is "02:00:00:00:00", expected the hardware address'),
    ],
)
def test_what_is_refused(uplink: Host, keys: dict[str, Any], message: str) -> None:
    web = uplink.container()
    before = uplink.state()
    with pytest.raises((InvalidConfigError, IOFailureError), match=message):
        make(uplink, **keys).add(web)
    assert uplink.state() == before
    make(uplink, **keys).delete(web)


def test_the_master_in_the_container(uplink: Host) -> None:
    web = uplink.container()
    uplink.shell("ip link set up0x netns c1")
    web.shell("ip link set up0x up")
    plugin = make(uplink, master="up0x", linkInContainer=True)
    plugin.status()
    plugin.add(web)
    assert shown(uplink)["link"] == "up0x"
    plugin.check(web)
    # A macvlan on a macvlan lies on what that one lies on.
    plugin.add(web, "eth1", master="eth0")
    plugin.check(web, "eth1", master="eth0")
    plugin.delete(web, "eth1", master="eth0")
    plugin.delete(web)
    assert web.links() == ["lo", "up0x"]


def test_it_deletes_what_is_its_own(uplink: Host) -> None:
    """Whatever a container makes of its aliases, only a link of its own attachment is deleted, and only inside."""
    web, other = uplink.container(), uplink.container("c2")
    plugin = make(uplink)
    plugin.add(web)
    plugin.add(other)
    web.shell("ip link set eth0 alias cni:testnet/c2/eth0")
    plugin.delete(web)
    assert (web.links(), other.links()) == (["eth0", "lo"], ["eth0", "lo"])
    # The reference plugin sets no alias.
    web.shell('ip link set eth0 alias ""')
    plugin.delete(
        web, prevResult={"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x", "mac": "02:1:"}]}
    )
    assert web.links() == ["eth0", "lo"]
    plugin.delete(web)
    assert web.links() == ["lo"]
    web.shell("ip link add eth0 type veth peer name x")
    plugin.delete(web)
    assert web.links() == ["eth0", "lo", "x"]


def test_containers_reach_each_other_and_what_is_behind_the_uplink_but_not_the_host(
    host: Host, new_host: Callable[[], Host]
) -> None:
    far = new_host()
    host.connect(far, "up0", "10.9.0.250/24", "10.9.0.200/24")
    web, client = host.container("web"), host.container("client")
    plugin = make(host)
    for each in (web, client):
        plugin.add(each)
    assert client.reaches(web)
    assert web.reaches(far, "10.9.0.200")
    assert far.reaches(client, "10.9.0.3")
    # The kernel hands nothing from a macvlan to the link that it lies on.
    assert not web.reaches(host, "10.9.0.250", timeout=0.3)
    plugin.delete(client)
    plugin.add(client, mode="private")
    plugin.delete(web)
    plugin.add(web, mode="private")
    assert not client.reaches(web, timeout=0.3)
    assert client.reaches(far, "10.9.0.200")


def test_status_looks_for_the_kernels_support(uplink: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str) -> None:
        raise PluginNotAvailableError(f"the kernel lacks {kind}")

    monkeypatch.setattr(kinds, "require", refuse)
    with expect_error(50, "the kernel lacks macvlan"):
        make(uplink).status()
