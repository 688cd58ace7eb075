"""The daemon and a server that means harm: what it says is refused, or read as a safe value; nothing else suffers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cnisdk.dhcp import client
from cnisdk.errors import TryAgainLaterError
from cnisdk.spec.names import Attachment
from cnisdk.testing import Container, Host, PluginUnderTest
from cnisdk_plugins.bridge import Bridge
from cnisdk_plugins.macvlan import Macvlan

from .network import LAN, SOCKET, Daemon, ipam, wait_for_address
from .rogue import ACK, NAK, OFFER, Rogue, answer, lease

pytestmark = [pytest.mark.kernel]

# T1 after a second, and T2 long after the test.
SOON: Mapping[int, str | None] = {58: "00000001", 59: "00000e00"}


@pytest.fixture(scope="module")
def lan(module_host: Host) -> Host:
    module_host.shell(LAN)
    return module_host


@pytest.fixture(scope="module")
def daemon(lan: Host) -> Iterator[Daemon]:
    daemon = Daemon(lan, "--resendmax", "0.5")
    yield daemon
    assert daemon.process.poll() is None
    daemon.stop()


@pytest.fixture(scope="module")
def rogue(lan: Host) -> Iterator[Rogue]:
    rogue = Rogue(lan)
    yield rogue
    rogue.stop()


@pytest.fixture
def plugin(lan: Host, daemon: Daemon, plugin_directory: Path) -> PluginUnderTest:
    conf = {"type": "macvlan", "master": "up0", "ipam": ipam(request=[{"option": "interface-mtu"}])}
    return lan.plugin(Macvlan, conf, path=[plugin_directory])


@pytest.fixture
def container(lan: Host, plugin: PluginUnderTest) -> Iterator[Container]:
    container = lan.container("c")
    yield container
    plugin.delete(container)
    assert status(lan) == {}
    container.destroy()


def status(host: Host) -> dict[str, Any]:
    """Return the daemon's status of each container: it answers, whatever the server does."""
    printed = host.run([sys.executable, "-m", "cnisdk", "dhcp", "--status"]).stdout
    return {each["containerID"]: each for each in json.loads(printed)["leases"]}


def routes(container: Container) -> list[tuple[str, str | None]]:
    """Destination and next hop of each route, as the kernel has them."""
    found = container.host.ip("-4", "route", "show", netns=container.name) or []
    return sorted((each["dst"], each.get("gateway")) for each in found)


LOOPS = bytes([119, 2, 0xC0, 0])
HOSTILE = {
    "no address": answer(OFFER, "0.0.0.0"),
    "network zero": answer(OFFER, "0.1.2.3"),
    "loopback": answer(OFFER, "127.0.0.1"),
    "multicast": answer(OFFER, "224.0.0.1"),
    "reserved": answer(OFFER, "240.0.0.1"),
    "limited broadcast": answer(OFFER, "255.255.255.255"),
    "broadcast of the subnet": answer(OFFER, "10.1.0.255"),
    "address of the subnet": answer(OFFER, "10.1.0.0"),
    "mask of nothing": answer(OFFER, options={1: "00000000"}),
    "mask with a hole": answer(OFFER, options={1: "ff00ff00"}),
    "mask of three bytes": answer(OFFER, options={1: "ffffff"}),
    "no mask": answer(OFFER, options={1: None}),
    "no server": answer(OFFER, options={54: None}),
    "server on loopback": answer(OFFER, options={54: "7f000001"}),
    "server of all": answer(OFFER, options={54: "ffffffff"}),
    "transaction of another": answer(OFFER, "10.1.0.66", xid=1),
    "hardware address of another": answer(OFFER, "10.1.0.66", mac="020000000099"),
    "a client's message": answer(OFFER, "10.1.0.66", op=1),
    "a kind that is none": answer(99, "10.1.0.66"),
    "an acknowledgement first": answer(ACK, "10.1.0.66"),
    "cut in the header": answer(OFFER, "10.1.0.66", head=200),
    "cut in an option": answer(OFFER, "10.1.0.66", raw="35010201ff"),
    "no option": answer(OFFER, "10.1.0.66", raw=""),
    "options that are fields that are options": answer(
        OFFER, "10.1.0.66", raw="340103", file="340103" * 40, sname="340103" * 20
    ),
    "larger than a frame": answer(OFFER, "10.1.0.66", options={224: "00" * 3000}),
    "thousands for others": answer(OFFER, "10.1.0.66", xid=1, times=3000),
}


@pytest.mark.parametrize("told", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_offer_of_no_use(rogue: Rogue, plugin: PluginUnderTest, container: Container, told: Any) -> None:
    """The client waits on, and takes the good one that comes after it."""
    good = lease("10.1.0.50")
    rogue.say({**good, "DISCOVER": [told, *good["DISCOVER"]]})
    assert str(plugin.add(container).ips[0].address) == "10.1.0.50/24"
    assert container.addresses("eth0") == ["10.1.0.50/24"]


def test_an_acknowledgement_of_another_address(rogue: Rogue, plugin: PluginUnderTest, container: Container) -> None:
    """It was not asked for, nor probed for."""
    good = lease("10.1.0.50")
    rogue.say({**good, "REQUEST": [answer(ACK, "10.1.0.66"), answer(ACK, "0.0.0.0"), *good["REQUEST"]]})
    assert str(plugin.add(container).ips[0].address) == "10.1.0.50/24"


DIRECT = ("10.1.0.0/24", None)
VALUES: dict[str, tuple[dict[int, str | None], list[tuple[str, str | None]]]] = {
    # The router is on the link all the same: without its own route, the kernel would refuse the default one.
    "router outside": ({3: "0a090909"}, [("10.9.9.9", None), ("default", "10.9.9.9")]),
    "routers that are none": ({3: "7f000001 e0000001 ffffffff 00000000 0a010032"}, []),
    "one router of many": ({3: "7f000001 0a010009"}, [("default", "10.1.0.9")]),
    "no time": ({51: "00000000", 58: None, 59: None}, []),
    "all times": ({51: "ffffffff"}, []),
    "times in no order": ({51: "0000000a", 58: "000000ff", 59: "00000064"}, []),
    "times of one byte": ({51: "01", 58: "01", 59: "01"}, []),
    "routes with nonsense": (
        # To loopback; to multicast; over itself; to its own subnet; one destination twice; one route of use; cut off.
        {
            121: "08 7f 0a010009  04 e0 0a010009  08 0b 0a010032  18 0a0100 0a010009  08 14 0a010009 "
            "08 14 0a010008  18 16ffff 0a010007  20"
        },
        [("20.0.0.0/8", "10.1.0.9"), ("22.255.255.0/24", "10.1.0.7")],
    ),
    "routes of 33 bits": ({121: "210a0000000a010009", 3: "0a010009"}, [("default", "10.1.0.9")]),
    "text with control characters": (
        {12: "0a0d1b5b324a", 15: "65780a6e616d657365727665722039", 119: "01610003610a6200", 56: "1b5b"},
        [],
    ),
    "names without end": ({119: "3f" + "61" * 63 + "c000" + "c000" * 100}, []),
    "a name that is too long": ({119: ("3f" + "61" * 63) * 5 + "00" + "c000" * 100}, []),
    "name servers that are none": ({6: "00000000 e0000001 ffffffff 0a010003"}, []),
    "an MTU beyond its parent's": ({26: "ffff"}, []),
    "an MTU of four bytes": ({26: "ffffffff"}, []),
    "an MTU of nothing": ({26: "0000"}, []),
}


@pytest.mark.parametrize(("told", "expected"), VALUES.values(), ids=VALUES.keys())
def test_a_value_of_no_use(
    lan: Host,
    rogue: Rogue,
    plugin: PluginUnderTest,
    container: Container,
    told: dict[int, str | None],
    expected: list[tuple[str, str | None]],
) -> None:
    """The container has its address, and what of the rest makes sense."""
    rogue.say(lease("10.1.0.50", told))
    result = plugin.add(container)
    assert container.addresses("eth0") == ["10.1.0.50/24"]
    assert routes(container) == sorted([DIRECT, *expected])
    assert lan.ip("link", "show", "eth0", netns="c")[0]["mtu"] == 1500
    plugin.check(container)
    dns = result.dns
    assert (dns.domain, dns.nameservers) == ("", ("10.1.0.3",) if 6 in told else ())
    assert all(each.isprintable() and len(each) < 254 for each in dns.search)
    left = status(lan)["c"]["secondsLeft"]
    assert left is None if told.get(51) == "ffffffff" else 0 < left <= 3600


def test_refusals_without_end(lan: Host, rogue: Rogue, plugin: PluginUnderTest, container: Container) -> None:
    """ADD ends in time with the reason. Another container's lease is renewed meanwhile."""
    rogue.say(lease("10.1.0.50", SOON))
    plugin.add(container)
    hasty = lan.plugin(Macvlan, {**plugin.conf, "ipam": ipam(timeout=3)}, path=plugin.path)
    other = lan.container("other")
    one, two = b"\0c/".hex(), b"\0other/".hex()  # in their client identifiers
    answers = [answer(NAK, times=3, only=two), answer(ACK, "10.1.0.50", SOON, only=one)]
    since = rogue.say({"DISCOVER": [answer(OFFER, "10.1.0.51")], "REQUEST": answers})
    with pytest.raises(TryAgainLaterError, match=r"server 10\.1\.0\.1 refused 10\.1\.0\.51"):
        hasty.add(other)
    assert rogue.count("DISCOVER", since) < 20
    assert other.links() == ["lo"]
    assert lan.call(client.get_lease, SOCKET, Attachment("testnet", "c", "eth0")).lifetime == 3600
    other.destroy()


def test_a_lease_that_is_refused_again_and_again(
    rogue: Rogue, daemon: Daemon, plugin: PluginUnderTest, container: Container
) -> None:
    """A lease that each renewal takes away is looked for less and less often."""
    rogue.say(lease("10.1.0.50", SOON))
    plugin.add(container)
    told = daemon.drain()
    # A NAK to each renewal; the request for the offer that follows is acknowledged first, and the NAK too late.
    since = rogue.say({**lease("10.1.0.50", SOON), "REQUEST": [answer(ACK, "0.0.0.0"), answer(NAK)]})
    daemon.wait_for("c.*lost 10.1.0.50: server 10.1.0.1 refused", told)
    wait_for_address(container, "")
    rogue.wait_for("REQUEST", since, 3)
    assert rogue.count("DISCOVER", since) <= rogue.count("REQUEST", since) + 2
    rogue.say(lease("10.1.0.51"))
    wait_for_address(container, "10.1.0.51/24")


BRIDGE = "ip link add br0 type bridge; ip link set up0 master br0; ip link set br0 up"
NO_BRIDGE = "ip link set up0 nomaster; ip link del br0"


@pytest.fixture
def bridged(lan: Host, daemon: Daemon, plugin_directory: Path) -> Iterator[PluginUnderTest]:
    """The plugin bridge; the server is on one of its ports."""
    lan.shell(BRIDGE)
    yield lan.plugin(Bridge, {"type": "bridge", "bridge": "br0", "ipam": ipam()}, path=[plugin_directory])
    lan.shell(NO_BRIDGE)


@pytest.mark.parametrize("behind", ["plugin", "bridged"], ids=["macvlan", "bridge"])
def test_a_renewal_with_another_address(
    lan: Host, rogue: Rogue, daemon: Daemon, container: Container, request: pytest.FixtureRequest, behind: str
) -> None:
    """Without a NAK: the address, its mask, router and routes take the place of the old ones."""
    plugin: PluginUnderTest = request.getfixturevalue(behind)
    rogue.say(lease("10.1.0.50", {58: "00000001", 59: "00000003", 3: "0a010001"}))
    plugin.add(container)
    assert routes(container) == [DIRECT, ("default", "10.1.0.1")]
    # First answers of no use: the lease is kept, and asked for again at T2.
    bad = [answer(ACK, "0.0.0.0"), answer(ACK, "10.1.0.66", {1: "00000000"}), answer(NAK, xid=1)]
    told, since = daemon.drain(), rogue.say({"REQUEST": bad})
    rogue.wait_for("REQUEST", since)
    assert container.addresses("eth0") == ["10.1.0.50/24"]
    # 11.0.0.0/8 over 10.1.0.9; default over 10.1.0.8.
    classless = {121: "080b0a010009" + "000a010008"}
    rogue.say({"REQUEST": [answer(ACK, "10.1.4.77", {**SOON, 1: "fffff000", **classless})]})
    daemon.wait_for("c.*leased 10.1.4.77/20", told)
    wait_for_address(container, "10.1.4.77/20")
    lan.call(client.get_status, SOCKET)  # what came before is done
    assert routes(container) == [("10.1.0.0/20", None), ("11.0.0.0/8", "10.1.0.9"), ("default", "10.1.0.8")]
    plugin.delete(container)
    assert container.links() == ["lo"]


def test_an_interface_that_does_not_take_a_renewal(
    lan: Host, rogue: Rogue, daemon: Daemon, plugin: PluginUnderTest, container: Container
) -> None:
    """It is tried again until it does, and meanwhile the daemon's status has the kernel's reason."""
    rogue.say(lease("10.1.0.50", {**SOON, 3: "0a010001"}))
    plugin.add(container)
    # The kernel refuses a route over a router that is a broadcast address. This one must not go with the old address.
    container.shell("echo 1 > /proc/sys/net/ipv4/conf/eth0/promote_secondaries")
    container.shell("ip route add broadcast 10.1.0.9 dev eth0")
    told = daemon.drain()
    rogue.say({"REQUEST": [answer(ACK, "10.1.0.51", {3: "0a010009"})]})
    daemon.wait_for(r"c.*the interface does not have what the lease says: cannot add route", told)
    assert ("default", "10.1.0.9") not in routes(container)
    assert "cannot add route" in status(lan)["c"]["trouble"]
    container.shell("ip route del broadcast 10.1.0.9")
    daemon.wait_for("c.*the interface has what the lease says", told)
    assert status(lan)["c"]["trouble"] == ""
    assert container.addresses("eth0") == ["10.1.0.51/24"]
    assert routes(container) == [DIRECT, ("default", "10.1.0.9")]
