"""Routes are read as pyroute2 reads them, for every kind the kernel has."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cnisdk.linux import route, rtnetlink
from cnisdk.linux.ip.route import KernelRoute
from cnisdk.testing import Sandbox

ROUTES = """
ip link add v0 type veth peer name v1
ip address add 10.0.0.2/24 dev v0; ip address add 2001:db8::2/64 dev v0 nodad
ip link set v0 up; ip link set v1 up
ip route add default via 10.0.0.1
ip route add default via 10.0.0.9 metric 50
ip route add 10.1.0.0/16 via 10.0.0.1 mtu 1300 advmss 1200
ip route add 10.2.0.0/16 dev v0 scope link table 1000
ip route add 10.3.0.0/16 via 10.0.0.1 table 70000
ip route add 10.4.0.0/16 nexthop via 10.0.0.3 weight 2 nexthop via 10.0.0.4 nexthop dev v0
ip route add 10.5.0.0/16 via inet6 2001:db8::1
ip route add 10.6.0.0/16 nexthop via inet6 2001:db8::1 nexthop via 10.0.0.1
ip route add blackhole 10.7.0.0/16
ip route add unreachable 10.8.0.0/16 metric 7
ip route add prohibit 10.9.0.0/16
ip route add throw 10.10.0.0/16 table 5
ip route add 10.11.0.1/32 dev v0 src 10.0.0.2
ip route add 10.12.0.0/16 via 10.0.0.1 tos 0x10 rto_min 5ms
ip -6 route add default via 2001:db8::1
ip -6 route add 2001:db8:1::/48 via 2001:db8::1 metric 77 mtu lock 1280
ip -6 route add 2001:db8:2::/48 nexthop via 2001:db8::3 nexthop via 2001:db8::4
ip -6 route add unreachable 2001:db8:3::/48
ip -6 route add 2001:db8:4::/48 dev v0 table 99
ip -6 route add 2001:db8:5::1/128 from 2001:db8:6::/48 via 2001:db8::1
"""


def by_pyroute2(data: bytes) -> list[KernelRoute]:
    """The same, by pyroute2's decoder."""
    message: Any = rtmsg(data)
    message.decode()
    family = message["family"]
    if family not in (2, 10) or message["flags"] & 0x200:
        return []
    metrics = message.get_attr("RTA_METRICS")
    source = message.get_attr("RTA_PREFSRC")
    common = KernelRoute(
        dst=ip_network(f"{message.get_attr('RTA_DST') or ('0.0.0.0' if family == 2 else '::')}/{message['dst_len']}"),
        table=message.get_attr("RTA_TABLE") or message["table"],
        priority=message.get_attr("RTA_PRIORITY") or 0,
        scope=message["scope"],
        mtu=(metrics.get_attr("RTAX_MTU") or 0) if metrics is not None else 0,
        advmss=(metrics.get_attr("RTAX_ADVMSS") or 0) if metrics is not None else 0,
        unicast=message["type"] == 1,
        src=ip_address(source) if source else None,
        protocol=message["proto"],
    )
    hops = message.get_attr("RTA_MULTIPATH") or [message]
    return [
        common._replace(
            gw=next_hop(hop), link_index=(hop.get_attr("RTA_OIF") or 0) if hop is message else int(hop["oif"])
        )
        for hop in hops
    ]


def next_hop(message: Any) -> Any:
    if gateway := message.get_attr("RTA_GATEWAY"):
        return ip_address(gateway)
    via = message.get_attr("RTA_VIA")
    return ip_address(via["addr"]) if via else None


@pytest.mark.kernel
def test_every_kind_of_route_is_read_as_pyroute2_reads_it(host: Sandbox) -> None:
    host.run(["sh", "-euc", ROUTES])

    def messages() -> list[bytes]:
        with rtnetlink.connect() as sock:
            return list(sock.dump(rtnetlink.Message(rtnetlink.GETROUTE, bytes(12), "cannot list routes")))

    seen = host.call(messages)
    assert len(seen) > 22
    for data in seen:
        assert [each._replace(message=b"") for each in route.parse(data)] == by_pyroute2(data)
    flat = [each for data in seen for each in route.parse(data)]
    assert [str(each.gw) for each in flat if str(each.dst) == "10.6.0.0/16"] == ["2001:db8::1", "10.0.0.1"]
    assert {each.table for each in flat} >= {5, 99, 254, 255, 1000, 70000}


@given(st.binary(max_size=200), st.sampled_from([2, 10]), st.integers(0, 32))
def test_attributes_the_kernel_would_not_send_do_not_hang_it(data: bytes, family: int, prefix: int) -> None:
    header = struct.pack("=IHHII", 28 + len(data), rtnetlink.NEWROUTE, 0, 1, 0)
    try:
        route.parse(header + struct.pack("=8BI", family, prefix, 0, 0, 254, 3, 0, 1, 0) + data)
    except (ValueError, KeyError):  # addresses of a length that is none
        pass
