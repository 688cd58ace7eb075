"""The daemon with Kea, whose leases last seconds: all that becomes of a lease, and what a container has after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cnisdk.dhcp import client
from cnisdk.errors import IOFailureError, TryAgainLaterError
from cnisdk.testing import Container, Host, PluginUnderTest
from cnisdk_plugins.macvlan import Macvlan

from .network import LAN, PATIENCE, REQUEST, SOCKET, Daemon, Kea, ipam, wait_for_address

pytestmark = [pytest.mark.kernel]

# Another server on the same network.
SECOND = """
ip netns add second
ip link add s0 link up0 type macvlan mode bridge
ip link set s0 netns second name eth0
ip -n second addr add 10.1.0.2/24 dev eth0
ip -n second link set eth0 up
"""
# It renews, but never asks other servers, and does not end.
ALWAYS = {"valid-lifetime": 3600, "renew-timer": 1, "rebind-timer": 3000}


@pytest.fixture(scope="module")
def lan(module_host: Host) -> Host:
    module_host.shell(LAN + SECOND)
    return module_host


@pytest.fixture(scope="module")
def daemon(lan: Host) -> Iterator[Daemon]:
    daemon = Daemon(lan, "--resendmax", "0.5")
    yield daemon
    daemon.stop()


@pytest.fixture
def start(lan: Host) -> Iterator[Callable[..., Kea]]:
    """Start Kea, with the leases of the one before if `keep` is set."""
    running: list[Kea] = []

    def start_one(*, keep: bool = False, **more: Any) -> Kea:
        if not keep:
            lan.shell("rm -f /var/lib/cni/kea-*.csv")
        running.append(Kea(lan, **more))
        return running[-1]

    yield start_one
    for each in running:
        each.stop()


@pytest.fixture
def plugin(lan: Host, daemon: Daemon, plugin_directory: Path) -> PluginUnderTest:
    conf = {"type": "macvlan", "master": "up0", "ipam": ipam(request=[{"option": "interface-mtu"}])}
    return lan.plugin(Macvlan, conf, path=[plugin_directory])


@pytest.fixture
def container(lan: Host, plugin: PluginUnderTest) -> Iterator[Container]:
    """A container; without a lease in the end, so that no test sees another's."""
    container = lan.container("c")
    yield container
    plugin.delete(container)
    container.destroy()


def wait_for_use(daemon: Daemon, container: Container, pattern: str, since: int) -> None:
    """Wait until the daemon has used what it tells of. It answers a question only after what it is at."""
    daemon.wait_for(f"{container.id}.*{pattern}", since)
    container.host.call(client.get_status, SOCKET)


def test_renewal_and_release(
    start: Callable[..., Kea], daemon: Daemon, plugin: PluginUnderTest, container: Container
) -> None:
    """The server itself is asked, from the leased address; nothing changes on the interface."""
    server = start()
    address = str(plugin.add(container).ips[0].address)
    told = daemon.drain()
    for _ in range(2):
        since = server.drain()
        server.wait_for(r"received buffer from 10\.1\.0\.50:68 to 10\.1\.0\.1:67", since)
        server.wait_for("lease 10.1.0.50 has been allocated for 4 seconds", since)
    plugin.check(container)
    assert container.addresses("eth0") == [address] == ["10.1.0.50/24"]
    assert server.leases() == ["10.1.0.50"]
    daemon.drain()
    assert daemon.lines[told:] == []
    plugin.delete(container)
    server.wait_for("10.1.0.50 was released properly")
    assert server.leases() == []


def test_what_a_renewal_changes_reaches_the_interface(
    start: Callable[..., Kea], daemon: Daemon, plugin: PluginUnderTest, container: Container
) -> None:
    """Another router, mask and MTU; then the operator gives the container another address: NAK, and a new lease."""
    server = start(**ALWAYS)
    plugin.add(container)
    # What another program has added stays.
    container.shell("ip route add 192.0.2.0/24 via 10.1.0.1; ip addr add 198.51.100.1/32 dev eth0")
    since = daemon.drain()
    server.change(subnet="10.1.0.0/21", options={"routers": "10.1.7.9", "interface-mtu": "1300"}, **ALWAYS)
    wait_for_use(daemon, container, "leased 10.1.0.50/21", since)
    assert container.addresses("eth0") == ["10.1.0.50/21", "198.51.100.1/32"]
    assert "default via 10.1.7.9 dev eth0" in container.shell("ip route show default")
    assert container.shell("ip route show default").count("default") == 1
    assert "mtu 1300" in container.shell("ip link show eth0")
    with pytest.raises(IOFailureError):
        plugin.check(container)  # it is not what ADD had told the runtime
    since, asked = daemon.drain(), server.drain()
    server.change(reservations=[{"client-id": client_id(container), "ip-address": "10.1.0.77"}], **ALWAYS)
    server.wait_for(r"DHCPNAK \(type 6\)", asked)
    wait_for_use(daemon, container, "leased 10.1.0.77/24", since)
    assert "refused 10.1.0.50" in daemon.wait_for("lost", since)
    assert container.addresses("eth0") == ["10.1.0.77/24", "198.51.100.1/32"]
    assert "default via 10.1.0.1 dev eth0" in container.shell("ip route show default")
    container.shell("ping -c1 -W5 10.1.0.1")
    assert server.leases() == ["10.1.0.77"]


def client_id(container: Container, network: str = "testnet") -> str:
    return (b"\0" + f"{container.id}/{network}/eth0".encode()).hex()


def test_an_exhausted_pool(lan: Host, start: Callable[..., Kea], plugin: PluginUnderTest, container: Container) -> None:
    """An ADD that is patient enough has the address as soon as it is free."""
    server = start(pool="10.1.0.50-10.1.0.50", **ALWAYS)
    plugin.add(container)
    hasty = lan.plugin(Macvlan, {**plugin.conf, "ipam": ipam(timeout=0.5)}, path=plugin.path)
    other = lan.container("other")
    with pytest.raises(TryAgainLaterError, match=r"no lease for eth0.*pool not exhausted"):
        hasty.add(other)
    assert other.links() == ["lo"]
    asked = server.drain()
    with ThreadPoolExecutor() as threads:
        added = threads.submit(plugin.add, other)
        server.wait_for(r"received buffer from 0\.0\.0\.0", asked)
        plugin.delete(container)
        assert str(added.result().ips[0].address) == "10.1.0.50/24"
    since = server.drain()
    plugin.delete(other)
    server.wait_for("10.1.0.50 was released properly", since)
    assert server.leases() == []


@pytest.mark.slow
def test_rebinding(
    lan: Host, start: Callable[..., Kea], daemon: Daemon, plugin: PluginUnderTest, container: Container
) -> None:
    """The server is gone, and another that shares its leases answers: the container keeps its address."""
    server = start()
    plugin.add(container)
    told = daemon.drain()
    server.stop()
    lan.shell("cp /var/lib/cni/kea-server.csv /var/lib/cni/kea-second.csv")
    second = start(keep=True, netns="second", address="10.1.0.2")
    second.wait_for(r"received buffer from 10\.1\.0\.50:68 to 255\.255\.255\.255:67")
    second.wait_for("lease 10.1.0.50 has been allocated")
    # From now on, that is its server.
    second.wait_for(r"received buffer from 10\.1\.0\.50:68 to 10\.1\.0\.2:67")
    plugin.check(container)
    daemon.drain()
    assert not [line for line in daemon.lines[told:] if "lost" in line]
    plugin.delete(container)
    second.wait_for("10.1.0.50 was released properly")


@pytest.mark.slow
def test_a_server_that_is_gone_for_long(
    start: Callable[..., Kea], daemon: Daemon, plugin: PluginUnderTest, container: Container
) -> None:
    """The address is taken from the interface with the end of the lease, and comes again with the server."""
    server = start()
    plugin.add(container)
    since = daemon.drain()
    server.stop()
    daemon.wait_for("lost 10.1.0.50: the lease of 10.1.0.50 ran out, and no server answered", since)
    wait_for_address(container, "")
    assert container.shell("ip route") == ""
    with pytest.raises(IOFailureError):
        plugin.check(container)
    server = start(keep=True)
    wait_for_use(daemon, container, "leased 10.1.0.50/24", since)
    plugin.check(container)
    container.shell("ping -c1 -W5 10.1.0.1")
    plugin.delete(container)
    server.wait_for("10.1.0.50 was released properly")


@pytest.mark.slow
def test_a_server_that_is_gone_for_a_while(
    start: Callable[..., Kea], daemon: Daemon, plugin: PluginUnderTest, container: Container
) -> None:
    """A renewal without an answer is repeated: the container does not notice."""
    times = {"valid-lifetime": 10, "renew-timer": 1, "rebind-timer": 8}
    server = start(**times)
    plugin.add(container)
    told = daemon.drain()
    server.stop()
    with container.capture("eth0") as capture:
        capture.wait_for(lambda frame: REQUEST in frame.data, PATIENCE)
    server = start(keep=True, **times)
    server.wait_for("lease 10.1.0.50 has been allocated")
    plugin.check(container)
    daemon.drain()
    assert daemon.lines[told:] == []
