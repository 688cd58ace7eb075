"""Messages are, byte for byte, those that pyroute2's codecs make of the same values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cnisdk.linux import address, bridge, bridge_port, link, rtnetlink, veth
from cnisdk.linux.attributes import attribute, find, iterate, read, text, uint8, uint32
from cnisdk.linux.ip.route import add_request
from cnisdk.linux.links import messages
from cnisdk.linux.netns import NetNS
from cnisdk.spec.addresses import IPAddress, IPInterface, IPNetwork
from cnisdk.testing import expect_error, strategies


def decoded(kind: Any, request: rtnetlink.Message) -> Any:
    message = kind(rtnetlink._encode(request, 7))
    message.decode()
    assert message["header"]["length"] == len(rtnetlink._encode(request, 7))
    assert (message["header"]["type"], message["header"]["sequence_number"]) == (request.kind, 7)
    return message


def encoded(kind: Any, request: rtnetlink.Message, attributes: list[tuple[str, Any]], **fields: Any) -> bytes:
    message = kind()
    message.update(fields)
    message["attrs"] = attributes
    message["header"] = {"type": request.kind, "flags": 1 | request.flags, "sequence_number": 7, "pid": 0}
    message.encode()
    return bytes(message.data)


@given(strategies.interfaces_with_prefix(), st.booleans())
def test_addresses(interface: IPInterface, nodad: bool) -> None:
    request = address.add_request(3, "eth0", interface, nodad=nodad)
    attributes = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    if interface.version == 4 and interface.network.prefixlen < 31:
        attributes.append(("IFA_BROADCAST", str(interface.network.broadcast_address)))
    assert rtnetlink._encode(request, 7) == encoded(
        ifaddrmsg,
        request,
        attributes,
        family=2 if interface.version == 4 else 10,
        prefixlen=interface.network.prefixlen,
        flags=2 if nodad and interface.version == 6 else 0,
        scope=253 if interface.version == 6 and interface.ip.is_link_local else 0,
        index=3,
    )
    parsed = address.parse(rtnetlink._encode(request, 7))
    assert parsed is not None
    assert (parsed.interface, parsed.index) == (interface, 3)


@given(
    strategies.networks(),
    st.none() | strategies.addresses(),
    st.none() | st.integers(1, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1300]),
    st.sampled_from([0, 1200]),
)
def test_routes(dst: IPNetwork, gw: IPAddress | None, table: int | None, priority: int, mtu: int, advmss: int) -> None:
    if gw is not None and (gw.version, dst.version) == (4, 6):
        return  # no such thing
    request = add_request(3, "eth0", dst=dst, gw=gw, table=table, priority=priority, mtu=mtu, advmss=advmss)
    message = decoded(rtmsg, request)
    assert message["family"] == (2 if dst.version == 4 else 10)
    assert message["dst_len"] == dst.prefixlen
    assert message.get_attr("RTA_TABLE") == (table or 254)
    assert message["table"] == ((table or 254) if (table or 254) < 256 else 252)
    assert message.get_attr("RTA_OIF") == 3
    assert message.get_attr("RTA_DST") == (str(dst.network_address) if dst.prefixlen else None)
    via = message.get_attr("RTA_VIA")
    assert (via["addr"] if via else message.get_attr("RTA_GATEWAY")) == (None if gw is None else str(gw))
    assert message.get_attr("RTA_PRIORITY") == (priority or None)
    metrics = message.get_attr("RTA_METRICS")
    assert [metrics and metrics.get_attr(name) for name in ("RTAX_MTU", "RTAX_ADVMSS")] == [
        (mtu or None) if metrics else None,
        (advmss or None) if metrics else None,
    ]
    assert bool(metrics) == bool(mtu or advmss)


def test_a_veth_is_one_message() -> None:
    class Open(NetNS):
        def __init__(self) -> None:
            self.path, self._fd = "/run/netns/blue", 9

    port = bridge_port.Port(link.Link(5, "br0"))
    request = veth._create_request(Open(), "eth0", "veth0", mtu=1400, mac="02:00:00:00:00:01", port=port)
    message = decoded(ifinfmsg, request)
    assert message.get_attr("IFLA_IFNAME") == "veth0"
    assert message.get_attr("IFLA_MTU") == 1400
    assert message.get_attr("IFLA_MASTER") == 5
    assert int(message.get_attr("IFLA_ADDRESS")[:2], 16) & 3 == 2
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert dict(peer["attrs"]) == {
        "IFLA_IFNAME": "eth0",
        "IFLA_ADDRESS": "02:00:00:00:00:01",
        "IFLA_NET_NS_FD": 9,
        "IFLA_MTU": 1400,
    }


@pytest.mark.parametrize(
    ("request_", "attributes"),
    [
        (
            messages.set_request("", index=4, alias="cni:net/é", mtu=9000),
            {"IFLA_IFALIAS": "cni:net/é", "IFLA_MTU": 9000},
        ),
        (messages.set_request("", name="eth0", mac="02:00:00:00:00:01"), {"IFLA_ADDRESS": "02:00:00:00:00:01"}),
        (messages.get_request(name="eth0", what=""), {"IFLA_IFNAME": "eth0", "IFLA_EXT_MASK": 8}),
        (bridge._create_request("br0", mtu=1500, vlan_filtering=True), {"IFLA_IFNAME": "br0", "IFLA_MTU": 1500}),
    ],
)
def test_links(request_: rtnetlink.Message, attributes: dict[str, object]) -> None:
    message = decoded(ifinfmsg, request_)
    found = {name: message.get_attr(name) for name in attributes}
    if "IFLA_IFALIAS" in attributes and isinstance(found["IFLA_IFALIAS"], bytes):
        found["IFLA_IFALIAS"] = found["IFLA_IFALIAS"].decode()
    assert found == attributes


def test_a_bridge_port_is_read() -> None:
    data = attribute(
        messages.IFLA_INFO_SLAVE_DATA, uint8(messages.IFLA_BRPORT_MODE, 1), uint8(messages.IFLA_BRPORT_ISOLATED, 0)
    )
    body = messages.message(
        text(messages.IFLA_IFNAME, "veth0"),
        uint32(messages.IFLA_MASTER, 5),
        attribute(messages.IFLA_LINKINFO, attribute(messages.IFLA_INFO_SLAVE_KIND, b"bridge\0"), data),
        index=7,
        flags=1,
    )
    parsed = link.parse(struct.pack("=IHHII", 16 + len(body), 16, 0, 1, 0) + body)
    assert parsed == link.Link(7, "veth0", up=True, master=5, hairpin=True, isolated=False)


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_are_found_again(entries: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(number, payload) for number, payload in entries)
    assert len(data) % 4 == 0
    assert list(iterate(data)) == entries
    assert read(data) == dict(entries)
    for number, _ in entries:
        assert find(data, number) == next(payload for each, payload in entries if each == number)
    assert find(data, 0) is None


@given(st.binary(max_size=200))
def test_any_bytes_end_somewhere(data: bytes) -> None:
    assert all(len(payload) <= len(data) for _, payload in iterate(data))


def test_numbers_are_padded() -> None:
    assert uint8(1, 2) == struct.pack("=HHBxxx", 5, 1, 2)
    assert uint32(1, 2) == struct.pack("=HHI", 8, 1, 2)


@pytest.mark.parametrize("make", [uint8, uint32])
@pytest.mark.parametrize("value", [-1, 2**32, 10**400])
def test_a_number_that_no_field_holds_is_a_mistake_in_the_configuration(
    make: Callable[[int, int], bytes], value: int
) -> None:
    with expect_error(7, f"{value}"[:9], "expected 0 to"):
        make(1, value)


def test_networks_have_no_host_bits() -> None:
    request = add_request(1, "lo", dst=ip_network("10.1.0.0/16"))
    assert decoded(rtmsg, request).get_attr("RTA_DST") == "10.1.0.0"
    assert address.parse(rtnetlink._encode(address.add_request(1, "lo", ip_interface("10.1.2.3/16")), 1)) is not None
