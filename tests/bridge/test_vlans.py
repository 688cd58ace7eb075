"""VLANs of the bridge's ports, on a kernel that filters them: which frames pass, and with which tags."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cnisdk.errors import CNIError
from cnisdk.linux import link
from cnisdk.testing import Container, Fault, Host, PluginUnderTest, fail, kill
from cnisdk.testing.state import collect
from cnisdk_plugins.bridge import Bridge

pytestmark = [pytest.mark.kernel, pytest.mark.kinds]


def plug(host: Host, **keys: Any) -> PluginUnderTest:
    return host.plugin(Bridge, {"bridge": "br0", "ipam": host.stub().conf, **keys})


def vlans_of(host: Host, name: str) -> dict[int, set[str]]:
    """Return the VLANs of an attachment's port, by ``bridge -j vlan``."""
    alias = f"cni:testnet/{name}/eth0"
    port = next(each["ifname"] for each in host.ip("link") if each.get("ifalias") == alias)
    (shown,) = json.loads(host.run(["bridge", "-j", "vlan", "show", "dev", port]).stdout)
    found: dict[int, set[str]] = {}
    for each in shown["vlans"]:
        for vlan in range(each["vlan"], each.get("vlanEnd", each["vlan"]) + 1):
            found[vlan] = set(each.get("flags", ()))
    return found


UNTAGGED = {"PVID", "Egress Untagged"}


def test_containers_reach_those_of_their_vlan_alone(host: Host) -> None:
    first, second, other = (host.container(name) for name in ("first", "second", "other"))
    plugins = {first: plug(host, vlan=100), second: plug(host, vlan=100), other: plug(host, vlan=200)}
    for container, plugin in plugins.items():
        plugin.add(container)
        plugin.check(container)
    assert vlans_of(host, "first") == {100: UNTAGGED}
    assert first.reaches(second)
    assert not first.reaches(other, timeout=0.3)
    for container, plugin in plugins.items():
        plugin.delete(container)
    assert [each["ifname"] for each in host.ip("link")] == ["lo", "br0"]


def test_the_default_vlan_stays_when_asked_for(host: Host) -> None:
    kept, replaced = host.container("kept"), host.container("replaced")
    plug(host, vlan=100, preserveDefaultVlan=True).add(kept)
    plug(host, vlan=100).add(replaced)
    assert vlans_of(host, "kept") == {1: {"Egress Untagged"}, 100: UNTAGGED}
    assert vlans_of(host, "replaced") == {100: UNTAGGED}


def tagged(container: Container, vlan: int, address: str) -> None:
    """Give a container a tagged interface of a VLAN."""
    container.shell(
        f"ip link add eth0.{vlan} link eth0 type vlan id {vlan}; ip address add {address}/24 dev eth0.{vlan}; "
        f"ip link set eth0.{vlan} up"
    )


def test_a_trunk_carries_its_vlans_tagged(host: Host) -> None:
    trunk, access, outside = (host.container(name) for name in ("trunk", "access", "outside"))
    plugin = plug(host, vlanTrunk=[{"id": 100}, {"minID": 300, "maxID": 302}])
    plugin.add(trunk)
    plugin.check(trunk)
    assert vlans_of(host, "trunk") == {1: UNTAGGED, 100: set(), 300: set(), 301: set(), 302: set()}
    plug(host, vlan=100).add(access)
    plug(host, vlan=400).add(outside)
    for container, vlan in ((access, 100), (outside, 400)):
        container.shell(f"ip address add 10.{vlan // 100}.0.1/24 dev eth0")
        tagged(trunk, vlan, f"10.{vlan // 100}.0.2")
    with trunk.capture("eth0") as seen:
        assert access.reaches(trunk, "10.1.0.2")
        assert seen.wait_for(lambda frame: frame.vlan == 100)
    assert not outside.reaches(trunk, "10.4.0.2", timeout=0.3)


def test_the_gateway_of_a_vlan_answers_in_it(host: Host) -> None:
    inside, other = host.container("inside"), host.container("other")
    plugin = plug(host, **GATEWAY)
    result = plugin.add(inside)
    plugin.check(inside)
    gateway = next(str(ip.gateway) for ip in result.ips)
    assert result.interfaces[-1].name == "br0.100"
    assert inside.reaches(host, gateway)
    plug(host, vlan=200).add(other)
    assert not other.reaches(host, gateway, timeout=0.3)


GATEWAY = {"vlan": 100, "isGateway": True}


def links(host: Host) -> list[str]:
    """The host's links but those of attachments and of the gateway's port."""
    return [each["ifname"] for each in host.ip("link") if not each["ifname"].startswith("veth")]


def test_the_gateway_goes_with_the_last_attachment_of_its_vlan(host: Host) -> None:
    """That may belong to another network; then its DEL or GC deletes the gateway."""
    first, tagged, plain = (host.container(name) for name in ("first", "tagged", "plain"))
    gateway = plug(host, **GATEWAY)
    gateway.add(first)
    trunk, access = plug(host, name="other", vlanTrunk=[{"id": 100}], ipam=None), plug(host, vlan=100, ipam=None)
    trunk.add(tagged)
    access.add(plain)
    # An uplink carries all VLANs for good: it counts for none.
    host.shell("ip link add up0 type dummy; ip link set up0 master br0 up; bridge vlan add dev up0 vid 100")
    gateway.delete(first)
    assert links(host) == ["lo", "br0", "br0.100", "up0"]
    access.delete(plain)
    gateway.delete(first)
    assert links(host) == ["lo", "br0", "br0.100", "up0"]
    trunk.gc()
    assert [each["ifname"] for each in host.ip("link")] == ["lo", "br0", "up0"]


def test_an_add_that_fails_takes_back_the_gateway_it_made(host: Host) -> None:
    """After the DEL that follows, nothing of it is left either, killed or not; the bridge stays."""
    container = host.container()
    plugin = plug(host, **GATEWAY, isDefaultGateway=True)
    host.call(disturb, PluginUnderTest(None, plugin.plugin, plugin.conf, plugin.path), container)


def disturb(plugin: PluginUnderTest, container: Container) -> None:
    """Disturb ADD at some steps; in a process on the host, where only a request with a fault needs one more."""

    def add(fault: Fault) -> int:
        plugin.fault = fault
        try:
            return plugin.run("ADD", container).status
        finally:
            plugin.fault = None

    def names() -> set[str]:
        return {each.name for each in link.list_all()}

    before = collect(rules=False).without("files")
    for step in range(2, 70, 6):  # there are some fifty; the gateway is made from the thirtieth on
        if add(fail(step)) != 0:
            assert collect(rules=False).without("files") == before, step
        plugin.delete(container)
        if "br0" in names():
            link.get("br0").delete()
        assert names() == {"lo"}
    for killed in range(30, 50, 2):
        add(kill(killed))
        plugin.delete(container)
        assert names() <= {"lo", "br0"}, killed


def test_a_gateway_whose_bridge_was_deleted_is_put_back(host: Host) -> None:
    one, two = host.container("one"), host.container("two")
    plugin = plug(host, **GATEWAY)
    plugin.add(one)
    host.shell("ip link del br0")
    result = plugin.add(two)
    assert two.reaches(host, str(result.ips[0].gateway))
    port = next(each["link"] for each in host.ip("link") if each["ifname"] == "br0.100")
    (shown,) = json.loads(host.run(["bridge", "-j", "vlan", "show", "dev", port]).stdout)
    assert [each["vlan"] for each in shown["vlans"]] == [100]
    host.shell("ip link del br0")
    plugin.delete(one)
    plugin.delete(two)
    assert links(host) == ["lo"]


def test_the_gateway_of_an_operator_is_used_and_stays(host: Host) -> None:
    container = host.container()
    host.shell(
        "ip link add br0 type bridge vlan_filtering 1; ip link set br0 up; bridge vlan add dev br0 vid 100 self; "
        "ip link add br0.100 link br0 type vlan id 100"
    )
    plugin = plug(host, **GATEWAY)
    result = plugin.add(container)
    plugin.check(container)
    assert container.reaches(host, str(result.ips[0].gateway))
    plugin.delete(container)
    plugin.gc()
    assert links(host) == ["lo", "br0", "br0.100"]
    host.shell("ip link del br0.100; ip link add br0.100 type dummy")
    with pytest.raises(CNIError, match=r"br0.100 already exists but does not lead into bridge br0"):
        plugin.add(container)
    assert links(host) == ["lo", "br0", "br0.100"]


def test_check_notices_a_vlan_that_is_gone(host: Host) -> None:
    container = host.container("one")
    plugin = plug(host, vlan=100)
    plugin.add(container)
    port = next(each["ifname"] for each in host.ip("link") if each.get("ifalias") == "cni:testnet/one/eth0")
    host.shell(f"bridge vlan del dev {port} vid 100")
    with pytest.raises(CNIError, match="does not carry VLAN 100"):
        plugin.check(container)
