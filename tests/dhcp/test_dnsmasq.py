"""The plugin and the daemon with dnsmasq: leases on its own books, and traffic."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from cnisdk.dhcp.lease import DHCPLease
from cnisdk.errors import CNIError, IOFailureError, PluginNotAvailableError, TryAgainLaterError, UnknownContainerError
from cnisdk.plugin import Plugin
from cnisdk.testing import Container, Host, PluginUnderTest, expect_error
from cnisdk_plugins.bridge import Bridge
from cnisdk_plugins.dhcp import DHCP
from cnisdk_plugins.host_device import HostDevice
from cnisdk_plugins.ipvlan import Ipvlan
from cnisdk_plugins.macvlan import Macvlan
from cnisdk_plugins.vlan import Vlan

from ..interface_kit import GO
from ..modes import Plugins
from .network import LAN, LEASES, PATIENCE, SOCKET, Daemon, Dnsmasq, Logged, address_of, ipam, wait_for_address

pytestmark = [pytest.mark.kernel]


@pytest.fixture(scope="module")
def lan(module_host: Host) -> Host:
    module_host.shell(LAN)
    return module_host


@pytest.fixture(scope="module")
def daemon(lan: Host) -> Iterator[Daemon]:
    daemon = Daemon(lan)
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def anywhere(lan: Host) -> Container:
    return lan.container("anywhere")


@pytest.fixture
def start(lan: Host) -> Iterator[Callable[..., Dnsmasq]]:
    """Start dnsmasq, in place of the one that runs, with its leases if `keep` is set."""
    running: list[Dnsmasq] = []

    def stop() -> None:
        while running:
            running.pop().stop()

    def start_one(*options: str, keep: bool = False, **more: str) -> Dnsmasq:
        stop()
        if not keep:
            lan.shell(f"rm -f {LEASES}")
        running.append(Dnsmasq(lan, *options, **more))
        return running[-1]

    yield start_one
    stop()


@pytest.fixture
def server(start: Callable[..., Dnsmasq]) -> Dnsmasq:
    return start()


def macvlan(host: Host, directory: Path, **keys: Any) -> PluginUnderTest:
    conf = {"type": "macvlan", "master": "up0", "ipam": ipam(**keys)}
    return host.plugin(Macvlan, conf, path=[directory])


def test_a_life(lan: Host, server: Dnsmasq, daemon: Daemon, plugin_directory: Path) -> None:
    plugin = macvlan(lan, plugin_directory)
    container = lan.container("life")
    result = plugin.add(container)
    assert container.addresses("eth0") == [str(result.ips[0].address)]
    assert str(result.ips[0].gateway) == "10.1.0.1"
    container.shell("ping -c1 -W5 10.1.0.1")
    assert address_of(container) in server.leases()
    plugin.check(container)
    plugin.delete(container)
    server.wait_for(f"DHCPRELEASE.*{result.ips[0].address.ip}")
    server.wait_for_leases()
    plugin.delete(container)


# --- behind each kind of interface ------------------------------------------------------------------------------------


# The server's side of a VLAN, and one of the host's.
VLAN = """
ip -n server link add vlan5 link eth0 type vlan id 5
ip -n server addr add 10.5.0.1/24 dev vlan5
ip -n server link set vlan5 up
"""
BRIDGE = "ip link add br0 type bridge; ip link set up0 master br0; ip link set br0 up"
NO_BRIDGE = "ip link set up0 nomaster; ip link del br0"
CABLE = "ip link add nic1 type veth peer name nic1x; ip link set nic1x master br0 up"


class Behind(NamedTuple):
    """An interface plugin, and what its test needs.

    Attributes:
        plugin: Its class.
        conf: Its configuration.
        setup: Shell commands before.
        tidy: Shell commands after.
        serve: Arguments of :class:`Dnsmasq`.
        router: Address of the server.
    """

    plugin: type[Plugin[Any]]
    conf: dict[str, Any]
    setup: str = ":"
    tidy: str = ":"
    serve: Mapping[str, str] = MappingProxyType({})
    router: str = "10.1.0.1"


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(Behind(Bridge, {"bridge": "br0"}, BRIDGE, NO_BRIDGE), id="bridge"),
        pytest.param(
            Behind(HostDevice, {"device": "nic1"}, f"{BRIDGE}; {CABLE}", f"ip link del nic1; {NO_BRIDGE}"),
            id="host-device",
        ),
        pytest.param(
            Behind(
                Vlan,
                {"master": "up0", "vlanId": 5},
                VLAN,
                "ip -n server link del vlan5",
                {"interface": "vlan5", "pool": "10.5.0.50,10.5.0.99"},
                "10.5.0.1",
            ),
            id="vlan",
            marks=pytest.mark.kinds,
        ),
        pytest.param(Behind(Ipvlan, {"master": "up0"}), id="ipvlan", marks=pytest.mark.kinds),
    ],
)
def test_behind(
    lan: Host, daemon: Daemon, start: Callable[..., Dnsmasq], plugin_directory: Path, behind: Behind
) -> None:
    """DEL tells the server over the interface before that goes."""
    lan.shell(behind.setup)
    try:
        server = start(**behind.serve)
        plugin = lan.plugin(behind.plugin, {**behind.conf, "ipam": ipam()}, path=[plugin_directory])
        container = lan.container("behind")
        result = plugin.add(container)
        container.shell(f"ping -c1 -W5 {behind.router}")
        assert str(result.ips[0].gateway) == behind.router
        plugin.check(container)
        assert server.leases() == [str(result.ips[0].address.ip)]
        plugin.delete(container)
        server.wait_for(f"DHCPRELEASE.*{result.ips[0].address.ip}")
        server.wait_for_leases()
        container.destroy()
    finally:
        lan.shell(behind.tidy)


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_reach_result_interface_and_server(
    lan: Host, daemon: Daemon, start: Callable[..., Dnsmasq], plugin_directory: Path
) -> None:
    options = [
        "--dhcp-option=option:router,10.1.0.2,10.1.0.1",
        "--dhcp-option=option:dns-server,10.1.0.3,10.1.0.4",
        "--dhcp-option=option:domain-name,example.org",
        "--dhcp-option=option:domain-search,a.example.org,b.example.org",
        "--dhcp-option=option:mtu,1380",
        "--dhcp-option=option:static-route,192.168.7.0,10.1.0.7",
    ]
    start(*options)
    container = lan.container("options")
    plugin = macvlan(
        lan,
        plugin_directory,
        request=[{"option": "interface-mtu"}],
        provide=[{"option": "host-name", "value": "no"}, {"option": "12", "fromArg": "K8S_POD_NAME"}],
        priority=77,
    )
    result = plugin.add(container, args="IgnoreUnknown=1;K8S_POD_NAME=web")
    assert [(str(each.dst), str(each.gw), each.priority) for each in result.routes] == [
        ("192.168.7.0/24", "10.1.0.7", 77),
        ("0.0.0.0/0", "10.1.0.2", 77),
    ]
    assert "mtu 1380" in container.shell("ip link show eth0")
    assert "default via 10.1.0.2 dev eth0 metric 77" in container.shell("ip route")
    assert "web" in lan.shell(f"cat {LEASES}")
    dns = result.dns
    assert (dns.nameservers, dns.domain) == (("10.1.0.3", "10.1.0.4"), "example.org")
    assert dns.search == ("a.example.org", "b.example.org")
    plugin.delete(container)
    # Classless routes replace the others.
    other = start(*options, "--dhcp-option=option:classless-static-route,10.9.0.0/16,10.1.0.9")
    assert [(str(each.dst), str(each.gw)) for each in plugin.add(container).routes] == [("10.9.0.0/16", "10.1.0.9")]
    plugin.delete(container)
    only = macvlan(lan, plugin_directory, request=[{"option": "subnet-mask", "skipDefault": True}])
    result = only.add(container)
    assert (result.routes, result.ips[0].gateway) == ((), None)
    only.delete(container)
    other.wait_for_leases()


# --- the life of a lease ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_renewal_through_restarts_of_the_daemon(
    lan: Host, start: Callable[..., Dnsmasq], plugin_directory: Path
) -> None:
    """A renewal with another router or MTU reaches the interface; a refusal takes the address, and a new one comes."""
    own = "/run/cni/own.sock"
    server, daemon = start("--dhcp-option=58,3i"), Daemon(lan, "--socket", own)
    container, other = lan.container("renewed"), lan.container("ended")
    plugin = macvlan(lan, plugin_directory, request=[{"option": "26"}], daemonSocketPath=own)
    try:
        address = plugin.add(container).ips[0].address
        plugin.add(other)
        seen = server.drain()
        server.wait_for(f"DHCPACK.*{address.ip}", since=seen)
        # Killed, with a container that then ends: the next daemon goes on with both.
        daemon.stop(signal.SIGKILL)
        plugin.delete(other)  # without a daemon
        server.wait_for(f"DHCPRELEASE.*{address_of(other)}")
        server = start("--dhcp-option=58,3i", "--dhcp-option=3,10.1.0.9", "--dhcp-option=26,1300", keep=True)
        server.wait_for_leases(str(address.ip))
        daemon = Daemon(lan, "--socket", own)
        server.wait_for(f"DHCPACK.*{address.ip}")
        daemon.wait_for("leased")
        client_status(lan, own)  # what came before is done
        assert "default via 10.1.0.9" in container.shell("ip route")
        assert "mtu 1300" in container.shell("ip link show eth0")
        container.shell("ping -c1 -W5 10.1.0.1")
        with pytest.raises(IOFailureError, match=r"route 0\.0\.0\.0/0"):
            plugin.check(container)  # it is not what ADD had told the runtime
        # The operator takes the address away.
        server = start("--dhcp-option=58,3i", pool="10.1.0.77,10.1.0.77")
        wait_for_address(container, "10.1.0.77/24")
        container.shell("ping -c1 -W5 10.1.0.1")
        with pytest.raises(IOFailureError, match=r"leased 10\.1\.0\.77/24 meanwhile"):
            lan.plugin(DHCP, {"type": "dhcp", "ipam": ipam(daemonSocketPath=own)}).check(
                container, prevResult=plugin_result(address)
            )
        plugin.delete(container)
        server.wait_for("DHCPRELEASE.*10.1.0.77")
        server.wait_for_leases()
        assert lan.shell("ls /run/cni/own") == ""
    finally:
        daemon.stop()


def test_a_deletion_without_a_daemon_that_has_its_files_elsewhere(
    lan: Host, server: Dnsmasq, plugin_directory: Path
) -> None:
    """DEL finds the files; where it cannot, the next daemon gives the lease back."""
    own, state = "/run/cni/far.sock", "/run/far"
    daemon = Daemon(lan, "--socket", own, "--state", state)
    near, far = lan.container("near"), lan.container("far")
    plugin = macvlan(lan, plugin_directory, daemonSocketPath=own)
    alone = lan.plugin(DHCP, {"type": "dhcp", "ipam": ipam(daemonSocketPath=own)})
    here, there = (plugin.add(each).ips[0].address.ip for each in (near, far))
    daemon.stop(signal.SIGKILL)
    plugin.delete(near)
    server.wait_for(f"DHCPRELEASE.*{here}")
    lan.shell(f"mv {state} /run/hidden")
    alone.delete(far)
    lan.shell(f"mv /run/hidden {state}")
    server.wait_for_leases(str(there))
    daemon = Daemon(lan, "--socket", own, "--state", state)
    try:
        server.wait_for(f"DHCPRELEASE.*{there}")
        server.wait_for_leases()
        assert (far.addresses("eth0"), lan.shell(f"ls {state}")) == ([], "")
        plugin.delete(far)
    finally:
        daemon.stop()


def plugin_result(address: object) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "ips": [{"address": str(address)}]}


def test_an_exhausted_pool_and_a_server_that_comes_back(
    lan: Host, start: Callable[..., Dnsmasq], daemon: Daemon, plugin_directory: Path
) -> None:
    server = start(pool="10.1.0.50,10.1.0.50")
    first, second = lan.container("first"), lan.container("second")
    plugin = macvlan(lan, plugin_directory)
    plugin.add(first)
    hasty = macvlan(lan, plugin_directory, timeout=1)
    with pytest.raises(TryAgainLaterError, match="no lease for eth0"):
        hasty.add(second)
    assert second.links() == ["lo"]
    plugin.delete(first)
    server.wait_for("DHCPRELEASE")
    assert str(plugin.add(second).ips[0].address) == "10.1.0.50/24"
    plugin.delete(second)


def test_an_address_that_another_host_has_is_declined(
    lan: Host, start: Callable[..., Dnsmasq], daemon: Daemon, plugin_directory: Path
) -> None:
    server = start(pool="10.1.0.50,10.1.0.50")
    squatter, container = lan.container("squatter"), lan.container("declined")
    lan.shell("ip link add s0 link up0 type macvlan mode bridge; ip link set s0 netns squatter name eth0")
    squatter.shell("ip addr add 10.1.0.50/24 dev eth0; ip link set eth0 up")
    with pytest.raises(TryAgainLaterError, match=r"10\.1\.0\.50, which the host [0-9a-f:]+ has already"):
        macvlan(lan, plugin_directory, timeout=1).add(container)
    server.wait_for("DHCPDECLINE.*10.1.0.50")
    squatter.destroy()


@pytest.mark.parametrize("end", ["it fails late", "no server answers", "it is killed", "the daemon is killed"])
def test_a_second_add_that_fails_leaves_the_lease(
    host: Host, plugin_directory: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    host.shell(LAN)
    server, daemon, container = Dnsmasq(host), Daemon(host), host.container("twice")
    plugin, alone = macvlan(host, plugin_directory), host.plugin(DHCP, {"type": "dhcp", "ipam": ipam(timeout=2)})
    try:
        result = plugin.add(container)
        before, since = server.leases(), daemon.drain()
        if end == "it fails late":
            with monkeypatch.context() as broken, expect_error(5, "no result"):
                broken.setattr(DHCPLease, "to_result", refuse)
                alone.add(container)
        else:
            server.stop()
        if end == "no server answers":
            with expect_error(11, "no lease for eth0"):
                alone.add(container)
        elif end == "it is killed":
            owner = {"network": "testnet", "containerID": "twice", "ifname": "eth0", "netns": container.netns}
            request = {"verb": "add", **owner, "provided": {}, "requested": [1], "timeout": 60, "priority": 0}
            host.call(exchange, json.dumps(request).encode() + b"\n", wait=False)
            daemon.wait_for("the plugin has ended", since)
        elif end == "the daemon is killed":
            with ThreadPoolExecutor() as threads:
                waiting = threads.submit(alone.run, "ADD", container)
                while states(host) == ["bound"]:
                    pass
                daemon.stop(signal.SIGKILL)
                assert waiting.result().status == 1
            daemon = Daemon(host)
        if end != "it fails late":
            server = Dnsmasq(host)
        assert server.leases() == before
        assert container.addresses("eth0") == [str(result.ips[0].address)]
        plugin.check(container)
        assert states(host) == ["bound"]
        plugin.delete(container)
        server.wait_for(f"DHCPRELEASE.*{result.ips[0].address.ip}")
        server.wait_for_leases()
        assert states(host) == []
    finally:
        server.stop()
        daemon.stop()


def refuse(*_: object) -> None:
    raise IOFailureError("no result")


def states(host: Host) -> list[str]:
    return [each["state"] for each in client_status(host)["leases"]]


def test_gc_check_and_status(lan: Host, server: Dnsmasq, daemon: Daemon, plugin_directory: Path) -> None:
    plugin, alone = macvlan(lan, plugin_directory), lan.plugin(DHCP, {"type": "dhcp", "ipam": ipam()})
    kept, stale = lan.container("kept"), lan.container("stale")
    left = plugin.add(kept).ips[0].address.ip
    plugin.add(stale)
    plugin.status()
    messages = server.drain()
    with pytest.raises(UnknownContainerError, match="no lease of"):
        alone.check(kept, "eth7", prevResult=plugin_result("10.1.0.50/24"))
    plugin.gc(kept)
    assert "DHCPRELEASE" in server.wait_for("DHCP", since=messages)  # CHECK and STATUS sent nothing
    server.wait_for_leases(str(left))
    plugin.gc(kept)
    assert server.leases() == [str(left)]
    described = client_status(lan)["leases"]
    assert [(each["containerID"], each["state"], each["secondsLeft"] > 60) for each in described] == [
        ("kept", "bound", True)
    ]
    # Its namespace is gone with the container: nothing is left to tell the server, and DEL succeeds.
    kept.destroy()
    plugin.delete(kept)
    assert client_status(lan)["leases"] == []


def client_status(host: Host, path: str = SOCKET) -> Any:
    return json.loads(host.run([sys.executable, "-m", "cnisdk", "dhcp", "--status", "--socket", path]).stdout)


# --- the other side of the socket -------------------------------------------------------------------------------------


def test_without_a_daemon(host: Host) -> None:
    container = host.container()
    plugin = host.plugin(DHCP, {"type": "dhcp", "ipam": ipam()})
    with pytest.raises(PluginNotAvailableError, match=r"error dialing DHCP daemon: /run/cni/dhcp\.sock"):
        plugin.status()
    with pytest.raises(IOFailureError, match="error dialing"):
        plugin.add(container)
    plugin.delete(container)
    plugin.gc()


def test_requests_that_are_none(lan: Host, daemon: Daemon) -> None:
    """Neither nonsense nor a plugin that goes away harms the daemon; the reference's plugin is told what to do."""
    for sent, expected in (
        (b"CONNECT /_goRPC_ HTTP/1.0\n\n", b"install the plugin dhcp of cnisdk"),
        (b"{}\n", b"does not understand"),
        (b'{"verb": "add"}\n', b"does not understand"),
        (b"\xff\n", b"does not understand"),
    ):
        assert expected in lan.call(exchange, sent)
    lan.call(exchange, b"", wait=False)
    assert client_status(lan)["pid"] == daemon.process.pid


def exchange(sent: bytes, *, wait: bool = True) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(SOCKET)
        sock.sendall(sent)
        return sock.recv(4096) if wait else b""


def test_a_plugin_that_ends_gives_up_its_lease(lan: Host, daemon: Daemon) -> None:
    """No server answers; the process that asks goes away."""
    container = lan.container("abandoned")
    lan.shell("ip link add a0 link up0 type macvlan mode bridge; ip link set a0 netns abandoned name eth0")
    request: dict[str, Any] = {
        "verb": "add",
        "network": "n",
        "containerID": "abandoned",
        "ifname": "eth0",
        "netns": container.netns,
    }
    request |= {"provided": {}, "requested": [1], "priority": 0, "timeout": 60}
    since = daemon.drain()
    lan.call(exchange, json.dumps(request).encode() + b"\n", wait=False)
    daemon.wait_for("the plugin has ended", since)
    assert client_status(lan)["leases"] == []


def test_the_executable_is_the_daemon_too(host: Host, plugins: Plugins) -> None:
    """With the words of the reference's units and manifests: one dash, durations, and where the host's files are."""
    words = ["-hostprefix", "/run/host", "-socketpath=/run/cni/other.sock", "-pidfile", "/run/pid"]
    words += ["-timeout", "10s", "-resendmax", "1m2s"]
    daemon = Logged(host, [str(plugins.directory / "dhcp"), "daemon", *words])
    try:
        daemon.wait_for("cnisdk dhcp: ready, with 0 leases in /run/host/run/cni/other")
        plugin = host.plugin(DHCP, {"type": "dhcp", "ipam": ipam(daemonSocketPath="/run/host/run/cni/other.sock")})
        plugin.status()
        assert host.shell("cat /run/pid") == f"{daemon.process.pid}\n"
    finally:
        daemon.stop()


SLOW_TO_CLOSE = """
import os, sys, time
from cnisdk._cli import cnisdk
from cnisdk.dhcp import _daemon
from cnisdk.dhcp._wire import Wire
close = Wire.close
def close_late(self):
    while not os.path.exists("/run/answered"):
        time.sleep(0.01)
    close(self)
    print("closed", file=sys.stderr, flush=True)
Wire.close = close_late
_daemon._LINGER = float(sys.argv[1])
cnisdk.main(["dhcp", "--socket", "/run/cni/slow.sock"])
"""


@pytest.fixture
def start_slow(lan: Host) -> Iterator[Callable[[float], Logged]]:
    """Start a daemon that closes sockets that many seconds after use, and not before ``/run/answered`` is there."""
    daemons: list[Logged] = []

    def start(linger: float) -> Logged:
        lan.shell("rm -f /run/answered")
        daemon = Logged(lan, [sys.executable, "-I", "-c", SLOW_TO_CLOSE, str(linger)])
        daemons.append(daemon)
        daemon.wait_for("cnisdk dhcp: ready")
        return daemon

    yield start
    lan.shell("touch /run/answered")
    for each in daemons:
        each.stop()


def test_no_plugin_waits_until_sockets_are_closed(
    lan: Host, server: Dnsmasq, plugin_directory: Path, start_slow: Callable[[float], Logged]
) -> None:
    """The kernel takes up to some ten milliseconds for each packet socket."""
    daemon = start_slow(0)
    plugin = macvlan(lan, plugin_directory, daemonSocketPath="/run/cni/slow.sock")
    container = lan.container("swift")
    address = plugin.add(container).ips[0].address.ip
    lan.shell("touch /run/answered")
    daemon.wait_for("closed")
    lan.shell("rm /run/answered")
    since = daemon.drain()
    plugin.delete(container)
    server.wait_for(f"DHCPRELEASE.* {address} ")
    lan.shell("touch /run/answered")
    daemon.wait_for("closed", since)
    container.destroy()


def test_a_deletion_does_not_wait_until_the_sockets_of_add_are_closed(
    lan: Host, server: Dnsmasq, plugin_directory: Path, start_slow: Callable[[float], Logged]
) -> None:
    """They linger when the ADD is done."""
    start_slow(3600)
    plugin = macvlan(lan, plugin_directory, daemonSocketPath="/run/cni/slow.sock")
    container = lan.container("swift")
    for _ in range(3):
        address = plugin.add(container).ips[0].address.ip
        since = server.drain()
        plugin.delete(container)
        server.wait_for(f"DHCPRELEASE.* {address} ", since)
    container.destroy()


@pytest.mark.interop
def test_the_daemon_of_the_reference_is_told_apart(host: Host) -> None:
    go = host.popen([GO / "dhcp", "daemon"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    plugin = host.plugin(DHCP, {"type": "dhcp", "ipam": ipam()})
    try:
        deadline = time.monotonic() + PATIENCE
        while not host.call(os.path.exists, SOCKET):
            assert time.monotonic() < deadline
        with pytest.raises(PluginNotAvailableError, match="is the reference's, which speaks another protocol"):
            plugin.status()
    finally:
        go.kill()
        go.wait()


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({"ipv6": True}, 2, "dhcp leases IPv4 addresses only"),
        ({"priority": -1}, 7, "priority is -1"),
        ({"timeout": 0}, 7, "timeout is 0"),
        ({"provide": [{"option": "nonsense", "value": "x"}]}, 7, r"Can not parse option 'nonsense'"),
        ({"provide": [{"option": "60", "value": "x" * 256}]}, 7, "longer than 255 bytes"),
        ({"request": [{"option": "256"}]}, 7, r"\$\.ipam\.request\[0\]"),
        ({"request": [{"option": "255"}]}, 7, r"option 255 cannot be requested.*\$\.ipam\.request\[0\]\.option"),
    ],
)
def test_configurations_that_make_no_sense(
    lan: Host, anywhere: Container, keys: dict[str, Any], code: int, message: str
) -> None:
    with pytest.raises(CNIError, match=message) as raised:
        lan.plugin(DHCP, {"type": "dhcp", "ipam": ipam(**keys)}).add(anywhere)
    assert raised.value.code == code


def test_options_that_do_not_fit_into_a_frame(lan: Host, daemon: Daemon, plugin_directory: Path) -> None:
    """No server is to blame: the error has the kernel's reason."""
    container = lan.container("large")
    options = [{"option": str(number), "value": "x" * 255} for number in range(230, 240)]
    with pytest.raises(TryAgainLaterError, match=r"cannot send on eth0: .*Message too long"):
        macvlan(lan, plugin_directory, provide=options, timeout=0.5).add(container)
    assert container.links() == ["lo"]
