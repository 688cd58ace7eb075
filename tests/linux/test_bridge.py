"""Bridges and their addresses and VLANs, compared with what iproute2 says and with the kernel's headers."""

import struct
from collections.abc import Iterable
from ipaddress import ip_interface

import pytest

from cnisdk.errors import IOFailureError
from cnisdk.linux import bridge, bridge_port, link, rtnetlink, vlan_gateway
from cnisdk.linux.links.bridge_port import VLANEntry, VLANs
from cnisdk.testing import Sandbox

kernel = pytest.mark.kernel


def addresses(host: Sandbox, name: str = "br0") -> list[str]:
    (said,) = host.ip("addr", "show", name)
    return [f"{each['local']}/{each['prefixlen']}" for each in said["addr_info"] if each["scope"] == "global"]


def give(*texts: str, force: bool = False) -> None:
    bridge.ensure_addresses(bridge.ensure("br0"), [ip_interface(each) for each in texts], force=force)


@kernel
def test_a_bridge_is_made_once(host: Sandbox) -> None:
    first = host.call(lambda: bridge.ensure("br0", mtu=1400, promisc=True))
    (said,) = host.ip("link", "show", "br0")
    assert (said["mtu"], said["linkinfo"]["info_kind"], said["address"]) == (1400, "bridge", first.mac)
    assert {"UP", "PROMISC"} <= set(said["flags"])
    assert host.run(["cat", "/proc/sys/net/ipv6/conf/br0/accept_ra"]).stdout == "0\n"
    again = host.call(lambda: bridge.ensure("br0", mtu=1300))
    assert (again.index, again.mac, again.mtu, again.promisc) == (first.index, first.mac, 1400, True)


@kernel
def test_an_existing_bridge_is_put_right(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "br0", "type", "bridge"])
    host.run(["sh", "-c", "echo 2 > /proc/sys/net/ipv6/conf/br0/accept_ra"])
    host.call(bridge.ensure, "br0")
    assert "UP" in host.ip("link", "show", "br0")[0]["flags"]
    assert host.run(["cat", "/proc/sys/net/ipv6/conf/br0/accept_ra"]).stdout == "0\n"


@kernel
def test_a_new_bridge_keeps_its_address(host: Sandbox) -> None:
    """Otherwise it takes the lowest of its ports', and loses it with the port."""
    mac = host.call(bridge.ensure, "br0").mac
    host.run(["ip", "link", "add", "v0", "address", "00:00:00:00:00:02", "type", "veth", "peer", "name", "v1"])
    host.run(["ip", "link", "set", "v0", "master", "br0"])
    assert host.ip("link", "show", "br0")[0]["address"] == mac
    host.run(["ip", "link", "del", "v0"])
    assert host.ip("link", "show", "br0")[0]["address"] == mac


@kernel
def test_another_kind_of_link_is_refused(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "br0", "type", "veth", "peer", "name", "br1"])
    with pytest.raises(IOFailureError, match="br0 already exists but is not a bridge; it is a link of kind veth"):
        host.call(bridge.ensure, "br0")


@kernel
def test_vlan_filtering_is_there_or_the_error_says_what_lacks(host: Sandbox) -> None:
    def ensure() -> bool | None:
        return bridge.ensure("br0", vlan_filtering=True).vlan_filtering

    supported = host.run(["ip", "link", "add", "x", "type", "bridge", "vlan_filtering", "1"], check=False)
    if supported.returncode == 0:
        assert host.call(ensure) is True
        return
    with pytest.raises(IOFailureError, match=r"cannot create bridge br0: .*CONFIG_BRIDGE_VLAN_FILTERING"):
        host.call(ensure)
    assert host.call(link.find, "br0") is None
    host.call(bridge.ensure, "br0")
    with pytest.raises(IOFailureError, match=r"cannot turn on VLAN filtering of bridge br0: .*CONFIG_BRIDGE_VLAN"):
        host.call(ensure)


@kernel
def test_gateway_addresses(host: Sandbox) -> None:
    host.call(give, "10.1.0.1/24", "2001:db8::1/64")
    assert addresses(host) == ["10.1.0.1/24", "2001:db8::1/64"]
    (said,) = host.ip("addr", "show", "br0")
    flags = {each["local"]: each for each in said["addr_info"]}
    assert flags["10.1.0.1"]["broadcast"] == "10.1.0.255"
    assert flags["2001:db8::1"]["nodad"] is True
    host.call(give, "10.1.0.1/24", "2001:db8::1/64")
    host.call(give, "2001:db8:1::1/64")  # overlaps with nothing
    assert sorted(addresses(host)) == ["10.1.0.1/24", "2001:db8:1::1/64", "2001:db8::1/64"]


@kernel
@pytest.mark.parametrize(
    ("other", "wanted"),
    [("10.1.0.1/24", "10.7.0.9/24"), ("10.7.0.9/16", "10.7.0.9/24"), ("2001:db8::1/48", "2001:db8::2/64")],
)
def test_an_address_that_stands_against(host: Sandbox, other: str, wanted: str) -> None:
    host.call(give, other)
    # The reference's words, seen from its binary.
    with pytest.raises(IOFailureError, match=rf'"br0" already has an IP address different from {wanted}; it has'):
        host.call(give, wanted)
    assert addresses(host) == [other]
    host.call(lambda: give(wanted, force=True))
    assert addresses(host) == [wanted]


@kernel
def test_gateways_of_one_configuration_go_together(host: Sandbox) -> None:
    """The reference refuses the second range set's, or, forced, evicts the first's."""
    both = ("10.1.0.1/24", "10.2.0.1/24")
    host.call(give, *both)
    host.call(give, *both)
    host.call(lambda: give(*both, force=True))
    assert addresses(host) == list(both)


@kernel
def test_a_link_local_address_is_no_obstacle(host: Sandbox) -> None:
    host.call(give, "fe80::1/64")
    (said,) = host.ip("addr", "show", "br0")
    assert "fe80::1" in [each["local"] for each in said["addr_info"]]


@kernel
def test_the_address_of_an_existing_bridge_is_pinned_with_the_gateway(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "br0", "type", "bridge"])
    host.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
    host.run(["ip", "link", "set", "v0", "master", "br0"])
    host.call(give, "10.1.0.1/24")
    mac = host.ip("link", "show", "br0")[0]["address"]
    host.run(["ip", "link", "del", "v0"])
    assert host.ip("link", "show", "br0")[0]["address"] == mac


@kernel
def test_an_unused_bridge_can_go(host: Sandbox) -> None:
    host.call(bridge.ensure, "br0")
    host.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
    host.run(["ip", "link", "set", "v0", "master", "br0"])
    host.call(bridge.delete_unused, "br0")
    assert host.call(link.find, "br0") is not None
    host.run(["ip", "link", "del", "v0"])
    host.call(bridge.delete_unused, "br0")
    host.call(bridge.delete_unused, "br0")
    assert host.call(link.find, "br0") is None


# -- VLANs: encoded by hand from linux/if_bridge.h and linux/rtnetlink.h -----------------------------------------------

MASTER, PVID, UNTAGGED, BEGIN, END = 1, 2, 4, 8, 16
IFLA_AF_SPEC, IFLA_BRIDGE_VLAN_INFO, PF_BRIDGE = 26, 2, 7


def by_hand(kind: int, flags: int, index: int, entries: Iterable[tuple[int, int]]) -> bytes:
    spec = b"".join(struct.pack("=HHHH", 8, IFLA_BRIDGE_VLAN_INFO, *entry) for entry in entries)
    body = struct.pack("=BxHiII", PF_BRIDGE, 0, index, 0, 0) + struct.pack("=HH", 4 + len(spec), IFLA_AF_SPEC) + spec
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


CLEAR = (rtnetlink.DELLINK, [(BEGIN, 1), (END, 4094)])


@pytest.mark.parametrize(
    ("vlans", "expected"),
    [
        (VLANs(access=100), [CLEAR, (rtnetlink.SETLINK, [(PVID | UNTAGGED, 100)])]),
        (VLANs(access=100, keep_default=True), [(rtnetlink.SETLINK, [(PVID | UNTAGGED, 100)])]),
        (VLANs(), [CLEAR]),
        (VLANs(keep_default=True), []),
        (VLANs(trunk=((1, 4094),)), [CLEAR, (rtnetlink.SETLINK, [(BEGIN, 1), (END, 4094)])]),
        (
            VLANs(access=7, trunk=((20, 30), (7, 7), (5, 5), (25, 40), (41, 41))),
            [CLEAR, (rtnetlink.SETLINK, [(0, 5), (0, 7), (BEGIN, 20), (END, 41), (PVID | UNTAGGED, 7)])],
        ),
    ],
)
def test_vlans_are_a_few_entries(vlans: VLANs, expected: list[tuple[int, list[tuple[int, int]]]]) -> None:
    encoded = [rtnetlink._encode(request, 1) for request in bridge_port.vlan_requests(42, "veth0", vlans)]
    assert encoded == [by_hand(kind, 5, 42, entries) for kind, entries in expected]


@pytest.mark.parametrize(
    ("vlan", "others"),
    [
        (1, [(BEGIN, 2), (END, 4094)]),
        (2, [(0, 1), (BEGIN, 3), (END, 4094)]),
        (100, [(BEGIN, 1), (END, 99), (BEGIN, 101), (END, 4094)]),
        (4094, [(BEGIN, 1), (END, 4093)]),
    ],
)
def test_one_vlan_is_set_before_the_others_go(vlan: int, others: list[tuple[int, int]]) -> None:
    encoded = [rtnetlink._encode(request, 1) for request in bridge_port.access_requests(42, "veth0", vlan)]
    first = by_hand(rtnetlink.SETLINK, 5, 42, [(PVID | UNTAGGED, vlan)])
    assert encoded == [first, by_hand(rtnetlink.DELLINK, 5, 42, others)]


def test_vlans_are_read_back() -> None:
    answer = by_hand(rtnetlink.NEWLINK, 2, 42, [(PVID | UNTAGGED, 1), (BEGIN, 10), (END, 12), (0, 20)])
    assert bridge_port.parse_vlans(answer) == (
        42,
        [VLANEntry(1, True, True), VLANEntry(10), VLANEntry(11), VLANEntry(12), VLANEntry(20)],
    )


@kernel
def test_vlans_of_a_port(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "br0", "type", "bridge"])
    host.run(["ip", "link", "add", "v0", "master", "br0", "type", "veth", "peer", "name", "v1"])
    supported = host.run(["bridge", "vlan", "add", "dev", "v0", "vid", "9"], check=False).returncode == 0

    def work() -> list[VLANEntry]:
        port = link.get("v0")
        bridge_port.set_vlans(port, VLANs(access=100, trunk=((200, 201),)))
        return bridge_port.list_vlans(port)

    if supported:
        assert host.call(work) == [VLANEntry(100, True, True), VLANEntry(200), VLANEntry(201)]
    else:
        with pytest.raises(IOFailureError, match=r"VLANs of bridge port v0: .*CONFIG_BRIDGE_VLAN_FILTERING"):
            host.call(work)
        assert host.call(lambda: bridge_port.list_vlans(link.get("v0"))) == []


@pytest.mark.parametrize("name", ["br0", "a-long-bridge", "fifteen-letters"])
def test_the_name_of_a_vlans_gateway_fits(name: str) -> None:
    given = vlan_gateway.name_of(name, 4094)
    assert len(given) <= 15
    assert given.endswith(".4094")
    assert (given == f"{name}.4094") == (len(name) <= 10)


def test_made_up_addresses_are_for_one_host_and_local() -> None:
    for _ in range(50):
        first = int(link.random_mac()[:2], 16)
        assert (first & 1, first & 2) == (0, 2)


@pytest.mark.parametrize("vlan", [-1, 0, 4095, 10**30])
def test_no_gateway_of_a_vlan_that_is_none(vlan: int) -> None:
    """DEL deletes what a configuration with a wrong number could not have made: nothing."""
    assert not vlan_gateway.delete_unused("br0", vlan)
