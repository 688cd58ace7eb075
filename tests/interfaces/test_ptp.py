"""ptp on the real kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnisdk.errors import InvalidConfigError, IOFailureError, PluginNotAvailableError
from cnisdk.linux import program
from cnisdk.testing import Host, PluginUnderTest, expect_error
from cnisdk_plugins.ptp import Ptp

pytestmark = pytest.mark.kernel

DUAL_STACK = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "2001:db8:1::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}

# As `ip` of iproute2 printed them after an ADD of the reference plugin 1.1.1 with this configuration.
INSIDE = """\
default via 10.1.0.1 dev eth0
10.1.0.0/24 via 10.1.0.1 dev eth0 src 10.1.0.2
10.1.0.1 dev eth0 scope link src 10.1.0.2
2001:db8:1::1 dev eth0 src 2001:db8:1::2 metric 1024 pref medium
2001:db8:1::/64 via 2001:db8:1::1 dev eth0 src 2001:db8:1::2 metric 1024 pref medium
default via 2001:db8:1::1 dev eth0 metric 1024 pref medium
"""
# The reference's first one has scope host, by which 127.0.0.1 would be the source where there is no gateway's address.
OUTSIDE = """\
10.1.0.2 dev VETH scope link
2001:db8:1::1 dev VETH proto kernel metric 256 pref medium
2001:db8:1::2 dev VETH metric 1024 pref medium
"""


@pytest.fixture
def dual(host: Host, plugin_directory: Path) -> PluginUnderTest:
    return host.plugin(Ptp, {"ipam": DUAL_STACK}, path=[plugin_directory])


def make(host: Host, **keys: Any) -> PluginUnderTest:
    return host.plugin(Ptp, {"ipam": host.stub().conf, **keys})


def routes(host: Host, netns: str = "") -> str:
    inside = ["ip", "netns", "exec", netns] if netns else []
    lines = host.run([*inside, "sh", "-c", "ip route; ip -6 route"]).stdout.splitlines()
    return "".join(f"{line.strip()}\n" for line in lines if not line.startswith("fe80::"))


def test_two_containers_and_the_host_reach_each_other(host: Host, dual: PluginUnderTest) -> None:
    """At once, in both families: no address waits for duplicate address detection."""
    web, client = host.container("web"), host.container("client")
    before = host.state()
    result = dual.add(web, mtu=1400, dns={"nameservers": ["192.0.2.53"]})
    host_end, end = result.interfaces
    assert routes(host, "web") == INSIDE
    assert routes(host) == OUTSIDE.replace("VETH", host_end.name)
    dual.add(client)
    assert client.reaches(web, "2001:db8:1::2", protocol="udp", timeout=0.8)
    assert host.reaches(web, "2001:db8:1::2", timeout=0.8)
    for address in ("10.1.0.2", "2001:db8:1::2"):
        assert client.reaches(web, address)
        assert host.reaches(web, address)
    for address in ("10.1.0.1", "2001:db8:1::1"):
        assert web.reaches(host, address)
    assert (end.name, end.sandbox, end.mtu, host_end.mtu) == ("eth0", web.netns, 1400, 1400)
    assert ([ip.interface for ip in result.ips], result.dns.nameservers) == ([1, 1], ("192.0.2.53",))
    assert host.ip("link", "show", host_end.name)[0]["ifalias"] == "cni:testnet/web/eth0"
    assert host.call(settings, host_end.name) == {"accept_ra": "0", "accept_redirects": "0"}
    for each in (web, client):
        dual.check(each)
        dual.delete(each)
        dual.delete(each)
    assert host.state().without("files") == before
    assert (host.sysctl("net/ipv4/ip_forward"), host.sysctl("net/ipv6/conf/all/forwarding")) == ("1", "1")


def settings(ifname: str) -> dict[str, str]:
    keys = ("accept_ra", "accept_redirects")
    return {key: Path(f"/proc/sys/net/ipv6/conf/{ifname}/{key}").read_text().strip() for key in keys}


@pytest.mark.parametrize(
    ("address", "gateway", "inside", "outside"),
    [
        ("10.1.0.5/24", "", "10.1.0.0/24 dev eth0 proto kernel scope link src 10.1.0.5", ""),
        ("10.1.0.5/32", "10.1.0.1", "10.1.0.1 dev eth0 scope link src 10.1.0.5", "10.1.0.1/32"),
        ("10.1.0.5/32", "169.254.1.1", "169.254.1.1 dev eth0 scope link src 10.1.0.5", "169.254.1.1/32"),
        ("10.1.0.5/32", "", "", ""),
        ("2001:db8::5/128", "fe80::1", "fe80::1 dev eth0 src 2001:db8::5 metric 1024 pref medium", "fe80::1/128"),
    ],
)
def test_what_addresses_may_be(host: Host, address: str, gateway: str, inside: str, outside: str) -> None:
    """Without a gateway, of a network of one address, with a gateway outside the network."""
    web = host.container()
    before = host.state()
    stub = host.stub()
    ip = {"address": address} | ({"gateway": gateway} if gateway else {})
    default = "::/0" if ":" in address else "0.0.0.0/0"
    stub.answer("ADD", {"cniVersion": "1.1.0", "ips": [ip], "routes": [{"dst": default}]})
    stub.answer("CHECK")
    plugin = make(host)
    host.shell("ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8:9::1/128 dev lo nodad")
    plugin.add(web)
    assert inside in host.run(["sh", "-c", "ip -n c1 route; ip -n c1 -6 route"]).stdout
    shown = [f"{each['local']}/{each['prefixlen']}" for link in host.ip("addr") for each in link["addr_info"]]
    assert outside in ["", *shown]
    bare = address.partition("/")[0]
    assert host.reaches(web, bare)
    assert web.reaches(host, "2001:db8:9::1" if ":" in address else "192.0.2.1")
    plugin.check(web)
    plugin.delete(web)
    host.shell("ip addr flush dev lo scope global")
    assert host.state().without("addresses", "routes", "files") == before.without("addresses", "routes", "files")


def test_containers_without_gateway_reach_each_other(host: Host) -> None:
    """IPv4 by the host's answers for them. IPv6 has no such setting: a gateway of scope link serves all."""
    web, client = host.container("web"), host.container("client")
    stub = host.stub()
    stub.answer("CHECK")
    plugin = make(host, ipam=stub.conf)
    for number, each in ((2, web), (3, client)):
        ips = [{"address": f"10.1.0.{number}/24"}, {"address": f"2001:db8:1::{number}/64", "gateway": "fe80::1"}]
        stub.answer("ADD", {"cniVersion": "1.1.0", "ips": ips})
        plugin.add(each)
        plugin.check(each)
    for address in ("10.1.0.2", "2001:db8:1::2"):
        assert client.reaches(web, address)
    host.shell("for each in /proc/sys/net/ipv4/conf/veth*/proxy_arp; do echo 0 >$each; done")
    with expect_error(5, "proxy_arp is 0, not 1"):
        plugin.check(client)


DRIFTS = {
    "ip -n c1 route del 10.1.0.1": "route 10.1.0.1/32 is missing",
    "ip -n c1 route del 10.1.0.0/24": "route 10.1.0.0/24 via 10.1.0.1 is missing",
    "ip -n c1 -6 route del default": "route ::/0 via 2001:db8:1::1 is missing",
    "ip addr del 10.1.0.1/32 dev VETH": "address 10.1.0.1/32 is missing",
    "ip -6 route del 2001:db8:1::2": "route 2001:db8:1::2/128 is missing",
    "ip link set VETH down": "VETH is down",
    "ip link set VETH down; ip link set VETH name other; ip link set other up": "the host end of eth0 is other",
    "echo 0 >/proc/sys/net/ipv4/ip_forward": "the host does not forward IPv4",
    "nft flush chain inet cni_plugins_masquerade masq_checks": "rule",
    "ip -n c1 link set eth0 address 02:00:00:00:00:09": "has the hardware address 02:00:00:00:00:09",
}


def test_what_check_sees(host: Host) -> None:
    web = host.container()
    stub = host.stub()
    ips = [
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1"},
        {"address": "2001:db8:1::2/64", "gateway": "2001:db8:1::1"},
    ]
    stub.answer("ADD", {"cniVersion": "1.1.0", "ips": ips, "routes": [{"dst": "::/0"}]})
    stub.answer("CHECK")
    plugin = make(host, ipMasq=True, ipMasqBackend="nftables")
    for drift, message in DRIFTS.items():
        name = plugin.add(web).interfaces[0].name
        plugin.check(web)
        host.shell(drift.replace("VETH", name))
        with pytest.raises(IOFailureError) as caught:
            plugin.check(web)
        assert message.replace("VETH", name) in f"{caught.value.msg}: {caught.value.details}"
        plugin.delete(web)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mtu": 67}, r"\$\.mtu is 67, expected 68 to 65535"),
    ({"mtu": -1}, r"\$\.mtu is -1"),
    ({"ipMasqBackend": "pf"}, "unknown ipmasq backend 'pf'"),
    ({"ipam": {}}, "names no IPAM plugin"),
]


def test_what_is_refused(host: Host) -> None:
    web = host.container()
    plugin = make(host)
    before = host.state()
    for keys, message in REFUSED:
        with pytest.raises(InvalidConfigError, match=message):
            plugin.add(web, **keys)
        with pytest.raises(InvalidConfigError, match=message):
            plugin.status(**keys)
        plugin.delete(web, **keys)
    assert host.state() == before


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_masquerade(new_host: Callable[[], Host], host: Host, dual: PluginUnderTest, backend: str) -> None:
    """Another host, which knows no route to the containers, is reached through the host's address."""
    beside = new_host()
    host.connect(beside, address="192.0.2.1/24", other_address="192.0.2.2/24")
    keys: Any = {"ipMasq": True, "ipMasqBackend": backend}
    web = host.container()
    dual.status(**keys)
    before = host.state()
    dual.add(web)
    assert not web.reaches(beside, "192.0.2.2", timeout=0.3)
    dual.delete(web)
    dual.add(web, **keys)
    assert web.reaches(beside, "192.0.2.2")
    dual.check(web, **keys)
    # The configuration may have changed, the namespace be gone, and the result be lost.
    web.destroy()
    dual.run("DEL", web, environ={"CNI_NETNS": ""}, mtu=-1).raise_for_error()
    assert host.state().of("").without("nft", "files") == before.of("").without("files")
    assert "10.1.0.2" not in str(host.state())


def test_gc(host: Host, dual: PluginUnderTest) -> None:
    """It removes links, rules and leases of attachments that are gone, and of no other network."""
    containers = [host.container(name) for name in ("c1", "c2", "c3")]
    dual.add(containers[0], ipMasq=True)
    dual.add(containers[2], name="other", ipMasq=True)
    before = host.state()
    dual.add(containers[1], ipMasq=True)
    dual.gc(containers[0])
    assert host.state().without("files") == before.without("files")


def test_status(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = host.stub(size=1)
    plugin = make(host, ipMasq=True, ipMasqBackend="nftables")
    plugin.status()
    monkeypatch.setattr(program, "find", lambda name: None)
    with pytest.raises(PluginNotAvailableError, match="needs the program nft"):
        plugin.status()
    monkeypatch.undo()
    stub.fail("STATUS", 50, "no address is left")
    with pytest.raises(PluginNotAvailableError, match="no address is left"):
        plugin.status()
