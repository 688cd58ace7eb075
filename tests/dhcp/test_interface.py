"""A lease on a real interface, in place of another, with the kernel's own rules about addresses and routes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address
from typing import TypeVar

import pytest

from cnisdk.dhcp import _interface
from cnisdk.dhcp.lease import DHCPLease
from cnisdk.linux import netns
from cnisdk.linux.ip import address, route
from cnisdk.linux.links import link
from cnisdk.testing import Container, Host

pytestmark = [pytest.mark.kernel]

Routes = list[tuple[str, "str | None"]]
T = TypeVar("T")


def lease(text: str, **more: str) -> DHCPLease:
    """Make a lease of an address, with more options in hex, by ``o`` and number."""
    ip, length = text.split("/")
    mask = ((1 << 32) - (1 << 32 - int(length))).to_bytes(4, "big")
    options = {int(number[1:]): bytes.fromhex(value) for number, value in more.items()}
    return DHCPLease(address=IPv4Address(ip), options={1: mask, 54: bytes([10, 0, 0, 1]), **options}, started=0.0)


def inside(function: Callable[[link.Link], T]) -> T:
    """Call a function with the interface of the container."""
    with netns.open("/run/netns/c1") as space:
        return function(link.get("eth0", space))


def look() -> tuple[list[str], Routes]:
    """Return the addresses of the interface, and the destinations of its IPv4 routes with their next hops."""
    addresses = [str(each.interface) for each in inside(address.list_on) if each.interface.version == 4]
    with netns.open("/run/netns/c1") as space:
        found = [each for each in route.list_all(space) if each.dst.version == 4]
    return addresses, sorted((str(each.dst), str(each.gw) if each.gw else None) for each in found)


def change(*leases: DHCPLease) -> tuple[list[str], Routes]:
    """Give the interface the leases in turn, each in place of those before."""
    for count, each in enumerate(leases):
        inside(partial(_interface.configure, lease=each, stale=leases[:count], priority=0))
        inside(partial(_interface.add_routes, lease=each, priority=0))
    return look()


def unconfigure(lease: DHCPLease) -> tuple[list[str], Routes]:
    inside(partial(_interface.unconfigure, leases=[lease], priority=0))
    return look()


@pytest.fixture
def promote(host: Host, request: pytest.FixtureRequest) -> None:
    """Make the interface, where the kernel promotes secondary addresses or, as by default, deletes them."""
    container = host.container("c1")
    container.shell("ip link add eth0 type veth peer name peer; ip link set eth0 up; ip link set peer up")
    for which in ("all", "eth0"):
        container.shell(f"echo {request.param} > /proc/sys/net/ipv4/conf/{which}/promote_secondaries")


both = pytest.mark.parametrize("promote", [0, 1], indirect=True, ids=["deletes", "promotes"])


@both
@pytest.mark.parametrize("router", ["", "0a000001"], ids=["no router", "router"])
def test_another_address_of_the_same_network(host: Host, promote: None, router: str) -> None:
    """The new address is a secondary one, which the kernel by default deletes together with the first."""
    more = {"o3": router} if router else {}
    expected: Routes = [("0.0.0.0/0", "10.0.0.1")] if router else []
    expected.append(("10.0.0.0/24", None))
    assert host.call(change, lease("10.0.0.5/24", **more), lease("10.0.0.7/24", **more)) == (["10.0.0.7/24"], expected)


@both
def test_a_network_that_was_a_route_of_the_lease_before(host: Host, promote: None) -> None:
    """The route to it is the kernel's now, and stays: nobody else would bring it back."""
    old = lease("10.0.0.5/24", o121="100a0100000000")
    assert host.call(change, old) == (["10.0.0.5/24"], [("10.0.0.0/24", None), ("10.1.0.0/16", None)])
    assert host.call(change, old, lease("10.1.2.3/16")) == (["10.1.2.3/16"], [("10.1.0.0/16", None)])


@both
def test_the_network_of_another_programs_address(host: Host, promote: None) -> None:
    """The kernel's route to it is not the lease's, which names the same destination."""
    old = lease("10.0.0.5/24", o121="100a0100000000")
    host.call(change, old)
    host.shell("ip -n c1 addr add 10.1.9.9/16 dev eth0")
    assert host.call(unconfigure, old) == (["10.1.9.9/16"], [("10.1.0.0/16", None)])


@pytest.mark.parametrize("promote", [0], indirect=True)
def test_a_container_does_not_decide_what_the_end_of_a_lease_costs(
    host: Host, promote: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many routes it has, only those are decoded that can be the lease's."""
    given = lease("10.0.0.5/24", o3="0a000001")
    host.call(change, given)
    more = "".join(f"route add 10.8.{number >> 8}.{number & 255}/32 dev eth0\n" for number in range(2000))
    more += "".join(f"route add default via 10.0.0.9 metric {number}\n" for number in range(1, 300))
    host.run(["ip", "-n", "c1", "-batch", "-"], input=more)
    decoded: list[bytes] = []
    original = route.parse

    def parse(data: bytes) -> list[route.KernelRoute]:
        decoded.append(data)
        return original(data)

    def work() -> int:
        monkeypatch.setattr(route, "parse", parse)
        inside(partial(_interface.unconfigure, leases=[given], priority=0))
        return len(decoded)

    assert host.call(work) <= 310
    assert ("0.0.0.0/0", "10.0.0.1") not in host.call(look)[1]


@pytest.mark.parametrize("promote", [0], indirect=True)
def test_neighbours_are_told_of_another_address(host: Host, promote: None) -> None:
    """It may have been another container's: who remembers that one's hardware address would be deaf for a minute."""
    container = Container(host, "c1")
    container.shell("echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify")  # as the plugin before has set it
    before, after = lease("10.0.0.5/24"), lease("10.0.0.7/24")
    host.call(change, before)
    with container.capture("peer") as seen:
        host.call(change, before)
        host.call(change, before, after)
        seen.wait_for(lambda frame: frame.announces and str(frame.target) == "10.0.0.7")
        told = [str(frame.target) for frame in seen.frames if frame.announces and frame.kind.startswith("arp")]
    assert told == ["10.0.0.7"]
