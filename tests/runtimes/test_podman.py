"""Podman (CNI backend) on our plugins alone: each scenario ends with nothing left, and `inspect` tells the truth."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..firewalld_kit import BUS, NAME as FIREWALLD
from .conftest import Leaks
from .image import NAME
from .node import NODE, NODE6, OUTSIDE, Node

pytestmark = pytest.mark.runtimes
PROGRAMS = ("podman", "conmon", "crun", "buildah", "dnsmasq", "firewalld", "dbus-daemon", "gdbus")

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
LIST = "firewall-cmd --zone=trusted --list-sources"

_CONTAINERS_CONF = """
[containers]
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
infra_image = "localhost/busybox:latest"
infra_command = "/bin/sleep 1000000"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/usr/lib/cni"]
network_config_dir = "/etc/cni/net.d"
"""
_STORAGE_CONF = """
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""


class Podman:
    """Podman on a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        node.write("/etc/containers/containers.conf", _CONTAINERS_CONF)
        node.write("/etc/containers/storage.conf", _STORAGE_CONF)
        node.write("/etc/containers/policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}')
        self("load", "-q", "-i", "image.tar")

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run podman, and return what it printed."""
        return self.node.run("podman", *arguments, check=check).stdout.strip()

    def start(self, name: str, *options: str) -> int:
        """Start a container, see that `inspect` tells of it what the kernel has, and return its first process."""
        self("run", "-d", "--name", name, *options, NAME)
        return self.verify(name)

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what podman says of a container."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    def verify(self, name: str) -> int:
        """Compare what podman says of a container with the kernel; return its first process."""
        found = self.inspect(name)
        pid = int(found["State"]["Pid"])
        told = set()
        for network in found["NetworkSettings"]["Networks"].values():
            addresses = {
                f"{network[address]}/{network[prefix]}"
                for address, prefix in (("IPAddress", "IPPrefixLen"), ("GlobalIPv6Address", "GlobalIPv6PrefixLen"))
                if network[address]
            }
            told.add((network["MacAddress"], frozenset(addresses)))
        links = [each for each in self.node.ip("addr", "show", pid=pid) if each["ifname"] != "lo"]
        there = {
            (
                each["address"],
                frozenset(f"{a['local']}/{a['prefixlen']}" for a in each["addr_info"] if a["scope"] == "global"),
            )
            for each in links
        }
        assert told == there
        return pid

    def remove(self, *names: str) -> None:
        """Remove containers, by force."""
        self("rm", "-f", "-t", "0", *names)


@pytest.fixture(scope="module")
def podman(node: Node) -> Podman:
    """Podman, with each of its networks used once: what stays for later attachments is there."""
    podman = Podman(node)
    podman("network", "create", "--subnet", "10.91.0.0/24", "--gateway", "10.91.0.1", "blue")
    podman("network", "create", "--subnet", "10.92.0.0/24", "--ipv6", "--subnet", "fd92::/64", "dual")
    for number, name in ((4, "red"), (5, "green")):
        podman("network", "create", "-o", "isolate=true", "--subnet", f"10.9{number}.0.0/24", name)
    for network in ("podman", "blue", "dual", "red", "green"):
        podman("run", "--rm", "--network", network, "-p", "8080:80", "-p", "5353:53/udp", NAME, "/bin/true")
    return podman


@pytest.fixture(scope="module")
def unused(podman: Podman) -> Leaks:
    """Return what is on the node while no container is."""
    return Leaks(podman.node)


@pytest.fixture(autouse=True)
def leaks(podman: Podman, unused: Leaks) -> Iterator[Leaks]:
    """See that each scenario leaves nothing."""
    yield unused
    podman.remove("-a")
    unused.assert_none()


def test_the_check_finds_what_is_left(podman: Podman, leaks: Leaks) -> None:
    """One of each kind is planted, and found."""
    plants = {
        "link leak0": ("ip link add leak0 type veth peer name leak1", "ip link del leak0"),
        "address 203.0.113.9 on lo": ("ip addr add 203.0.113.9/32 dev lo", "ip addr del 203.0.113.9/32 dev lo"),
        "policy 99:\tfrom 10.88.0.9 lookup main": (
            "ip rule add pref 99 from 10.88.0.9 lookup main",
            "ip rule del pref 99",
        ),
        "file /var/lib/cni/networks/podman/10.88.0.9": (
            "echo id > /var/lib/cni/networks/podman/10.88.0.9",
            "rm /var/lib/cni/networks/podman/10.88.0.9",
        ),
        "file /var/lib/cni/results/podman-id-eth0": (
            "mkdir -p /var/lib/cni/results; touch /var/lib/cni/results/podman-id-eth0",
            "rm /var/lib/cni/results/podman-id-eth0",
        ),
        "mount /run/netns/leak": ("ip netns add leak", "ip netns del leak"),
        "process sleep 4242": ("sleep 4242 >/dev/null 2>&1 &", "pkill -xf 'sleep 4242'"),
        "nft table inet leak {: ip saddr 10.88.0.9 drop": (
            "nft 'add table inet leak; add chain inet leak c; add rule inet leak c ip saddr 10.88.0.9 drop'",
            "nft delete table inet leak",
        ),
    }
    for plant, _ in plants.values():
        podman.node.shell(plant)
    found = leaks.find()
    for _, pull in plants.values():
        podman.node.shell(pull)
    assert plants.keys() <= found


def test_default_network(podman: Podman) -> None:
    pid = podman.start("web")
    address = podman.inspect("web")["NetworkSettings"]["IPAddress"]
    assert podman.node.addresses(pid, "eth0") == [f"{address}/16"]
    assert podman.node.ip("route", "show", "default", pid=pid)[0]["gateway"] == "10.88.0.1"
    assert podman.node.ip("addr", "show", "dev", "cni-podman0")[0]["addr_info"][0]["local"] == "10.88.0.1"
    podman("stop", "-t", "5", "web")  # conmon's cleanup runs DEL


def test_published_ports(podman: Podman) -> None:
    pid = podman.start("web", "-p", "8080:80", "-p", "5353:53/udp")
    node = podman.node
    assert node.reaches(pid, NODE, 8080, server=80)
    assert node.reaches(pid, NODE, 5353, server=53, protocol="udp")
    podman.remove("web")
    other = podman.start("other")
    assert not node.reaches(other, NODE, 8080, server=80, patience=1)


def test_static_address_and_hardware_address(podman: Podman) -> None:
    pid = podman.start("web", "--ip", "10.88.7.7", "--mac-address", "02:00:00:00:00:07")
    assert podman.node.addresses(pid, "eth0") == ["10.88.7.7/16"]
    assert podman.node.ip("link", "show", "dev", "eth0", pid=pid)[0]["address"] == "02:00:00:00:00:07"
    # The address is taken: a second container with it does not start, and leaves nothing.
    assert podman.node.run("podman", "run", "--rm", "--ip", "10.88.7.7", NAME, "/bin/true", check=False).returncode


def test_dual_stack(podman: Podman) -> None:
    pid = podman.start("web", "--network", "dual:ip=10.92.0.77,ip=fd92::77", "-p", "8080:80")
    assert sorted(podman.node.addresses(pid, "eth0")) == ["10.92.0.77/24", "fd92::77/64"]
    assert podman.node.reaches(pid, NODE, 8080, server=80)
    assert podman.node.reaches(pid, NODE6, 8080, server=80)


def test_connect_disconnect_and_reload(podman: Podman) -> None:
    pid = podman.start("web", "--network", "blue,dual", "-p", "8080:80")
    podman("network", "disconnect", "dual", "web")
    assert podman.verify("web") == pid
    podman("network", "connect", "podman", "web")
    podman.verify("web")
    before = podman.inspect("web")["NetworkSettings"]["Networks"]
    podman("network", "reload", "web")  # DEL and ADD, with the addresses of before
    podman.verify("web")
    after = podman.inspect("web")["NetworkSettings"]["Networks"]
    assert {name: (each["IPAddress"], each["MacAddress"]) for name, each in after.items()} == {
        name: (each["IPAddress"], each["MacAddress"]) for name, each in before.items()
    }
    assert podman.node.reaches(pid, NODE, 8080, server=80)


@contextmanager
def plugins_of_the_reference(directory: Path) -> Iterator[None]:
    """Put the reference's plugins in the place of ours, while containers run; and ours back, as they were."""
    ours = [*directory.iterdir()]
    for plugin in ours:
        plugin.rename(plugin.with_suffix(".ours"))
        if (GO / plugin.name).exists():
            shutil.copy2(GO / plugin.name, plugin)
    try:
        yield
    finally:
        for plugin in ours:
            plugin.with_suffix(".ours").replace(plugin)


def test_to_the_reference_and_back_while_containers_run(podman: Podman) -> None:
    """Either set goes on with what the other attached: ports answer, addresses stay, and nothing is left."""
    if not (GO / "portmap").exists():
        missing = f"{GO}/portmap is not installed (Debian: containernetworking-plugins)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    node, ports = podman.node, {"one": 8081, "two": 8082, "three": 8083, "four": 8084}

    def start(*names: str) -> None:
        for name in names:
            podman.start(name, "--network", "dual", "-p", f"{ports[name]}:80")

    def verify(*names: str) -> list[str]:
        for name in names:
            assert node.reaches(podman.verify(name), NODE, ports[name], server=80), name
        return [podman.inspect(name)["NetworkSettings"]["Networks"]["dual"]["IPAddress"] for name in names]

    start("one", "two")
    with plugins_of_the_reference(node.plugins.directory):
        before = verify("one", "two")
        podman("network", "reload", "one")
        assert verify("one", "two") == before
        start("three", "four")
        deleted = podman.inspect("two")["NetworkSettings"]["Networks"]["dual"]
        podman.remove("two")
    before = verify("one", "three", "four")
    podman("network", "reload", "three")
    assert verify("one", "three", "four") == before
    podman("restart", "-t", "0", "four")
    verify("four")
    again = f"dual:ip={deleted['IPAddress']},ip={deleted['GlobalIPv6Address']}"
    podman.start("two", "--network", again, "-p", f"{ports['two']}:80")
    verify("one", "two", "three")
    # The reference's firewall leaves our records of the container that it detached. Podman asks no plugin for GC.
    gc = [sys.executable, "-I", "-m", "cnisdk", "gc", "dual", "--plugins", "--inside", "--cni-path", "/usr/lib/cni"]
    node.run(*gc)
    verify("one", "two", "three", "four")


def test_restart(podman: Podman) -> None:
    podman.start("web", "-p", "8080:80")
    podman("restart", "-t", "0", "web")
    assert podman.node.reaches(podman.verify("web"), NODE, 8080, server=80)


def test_pod(podman: Podman) -> None:
    podman("pod", "create", "--name", "duo", "-p", "8080:80")
    podman("run", "-d", "--pod", "duo", "--name", "one", NAME)
    podman("run", "-d", "--pod", "duo", "--name", "two", NAME)
    one, two = (int(podman.inspect(name)["State"]["Pid"]) for name in ("one", "two"))
    assert podman.node.ip("addr", "show", "dev", "eth0", pid=one) == podman.node.ip(
        "addr", "show", "dev", "eth0", pid=two
    )
    assert podman.node.reaches(two, NODE, 8080, server=80)
    podman("pod", "rm", "-f", "-t", "0", "duo")


def test_internal_and_isolated_networks(podman: Podman) -> None:
    """An internal network has no way out; two isolated ones do not reach each other, others do."""
    podman("network", "create", "--internal", "--subnet", "10.93.0.0/24", "inner")
    inner, peer = podman.start("web", "--network", "inner"), podman.start("peer", "--network", "inner")
    assert podman.node.ip("route", "show", "default", pid=inner) == []
    address = podman.inspect("web")["NetworkSettings"]["Networks"]["inner"]["IPAddress"]
    assert podman.node.reaches(inner, address, 80, source=peer)
    red, green, blue = (podman.start(name, "--network", name) for name in ("red", "green", "blue"))
    address = podman.inspect("green")["NetworkSettings"]["Networks"]["green"]["IPAddress"]
    assert not podman.node.reaches(green, address, 80, source=red, patience=1)
    other = podman.inspect("blue")["NetworkSettings"]["Networks"]["blue"]["IPAddress"]
    assert podman.node.reaches(blue, other, 80, source=red)
    podman("network", "rm", "-f", "-t", "0", "inner")  # with the containers in it


def test_macvlan(podman: Podman) -> None:
    podman("network", "create", "-d", "macvlan", "-o", "parent=out0", "--subnet", "192.0.2.0/24", "wire")
    pid = podman.start("web", "--network", "wire", "--ip", "192.0.2.77")
    assert podman.node.reaches(pid, "192.0.2.77", 80)
    podman("network", "rm", "-f", "-t", "0", "wire")


def test_addresses_by_dhcp(podman: Podman) -> None:
    """The address is that of a server on the wire, and the server has it back when the container is removed."""
    node, leases = podman.node, "/run/dnsmasq.leases"
    served = f"--dhcp-range=192.0.2.100,192.0.2.109,1h --dhcp-leasefile={leases} --pid-file=/run/dnsmasq.pid"
    node.shell(f"ip netns exec {OUTSIDE} dnsmasq -C /dev/null -p 0 -i eth0 -z -u root --no-ping {served}")
    argv = [sys.executable, "-I", "-m", "cnisdk", "dhcp", "--pidfile", "/run/dhcp.pid"]
    daemon = node.popen(*argv, stderr=subprocess.PIPE)
    try:
        assert daemon.stderr is not None
        assert daemon.stderr.readline().startswith(b"cnisdk dhcp: ready")
        podman("network", "create", "-d", "macvlan", "-o", "parent=out0", "--ipam-driver", "dhcp", "leased")
        pid = podman.start("web", "--network", "leased")
        (address,) = node.addresses(pid, "eth0")
        assert address.partition("/")[0] in node.shell(f"cat {leases}")
        podman.remove("web")
        # DEL has sent the RELEASE: the server reads it when it gets to run.
        node.shell(f"timeout 60 sh -c 'while [ -s {leases} ]; do sleep 0.1; done'")
    finally:
        podman("network", "rm", "-f", "-t", "0", "leased")
        node.shell("kill $(cat /run/dhcp.pid)")
        node.shell("pid=$(cat /run/dnsmasq.pid); kill $pid; timeout 60 tail --pid $pid -f /dev/null")
        daemon.communicate()


def test_where_firewalld_runs(podman: Podman) -> None:
    """Podman leaves the backend open. After a reload, `cnisdk repair` or `network reload` put the sources back."""
    node = podman.node
    node.write("/run/bus.conf", BUS)
    node.shell("mkdir -p /run/dbus /run/firewalld-conf; dbus-daemon --config-file /run/bus.conf --fork")
    node.shell("firewalld --system-config /run/firewalld-conf; gdbus wait --system --timeout 60 " + FIREWALLD)
    node.shell("firewall-cmd --state")  # answers when it has started
    try:
        pid = podman.start("web", "-p", "8080:80")
        source = f"{podman.inspect('web')['NetworkSettings']['IPAddress']}/32\n"
        repair = f"{shlex.quote(sys.executable)} -I -m cnisdk repair --inside --pause 0 --cni-path /usr/lib/cni"
        for put_back in ("true", repair, "podman network reload web"):
            node.shell(put_back)
            assert node.shell(LIST) == source
            assert node.reaches(pid, NODE, 8080, server=80)
            node.shell("firewall-cmd --reload")
            assert node.shell(LIST) == "\n"
        podman.remove("web")
        assert node.shell(LIST) == "\n"
    finally:
        for daemon in ("$(cat /run/firewalld.pid)", "$(pgrep -x dbus-daemon)"):  # the first says goodbye to the second
            node.shell(f"pid={daemon}; kill $pid; timeout 60 tail --pid $pid -f /dev/null")


def test_after_a_flush_of_all_rules(podman: Podman) -> None:
    """`cnisdk repair` puts back what containers of several networks have lost, one of which is in two of them."""
    node = podman.node
    web = podman.start("web", "--network", "dual,blue", "-p", "8080:80")
    first, second = (podman.start(name, "--network", name) for name in ("red", "green"))
    address = podman.inspect("red")["NetworkSettings"]["Networks"]["red"]["IPAddress"]

    def flows() -> dict[str, bool]:
        return {
            "in": node.reaches(web, NODE, 8080, server=80, patience=2),
            "in by IPv6": node.reaches(web, NODE6, 8080, server=80, patience=2),
            "between isolated networks": node.reaches(first, address, 80, source=second, patience=1),
        }

    whole = flows()
    assert whole == {"in": True, "in by IPv6": True, "between isolated networks": False}
    node.shell("nft flush ruleset")
    assert not node.reaches(web, NODE, 8080, server=80, patience=1)
    node.shell(f"{shlex.quote(sys.executable)} -I -m cnisdk repair --inside --pause 0 --cni-path /usr/lib/cni")
    assert flows() == whole


def test_ten_at_once(podman: Podman) -> None:
    names = [f"web{number}" for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        for name, _ in zip(names, pool.map(podman.start, names), strict=True):
            podman.verify(name)
        [*pool.map(podman.remove, names)]


def test_a_killed_conmon(podman: Podman) -> None:
    """Without conmon no cleanup runs when the container ends: removing it does."""
    pid = podman.start("web", "-p", "8080:80")
    conmon = podman.inspect("web")["State"]["ConmonPid"]
    podman.node.shell(f"kill -9 {conmon}; kill -9 {pid}")
    podman("rm", "-f", "-t", "0", "web", check=False)  # may learn only now that it has ended, and fail


def test_an_unclean_reboot(podman: Podman) -> None:
    """Leases and cached results are there, links, rules and namespaces are not; the same address is given again."""
    podman.start("web", "--ip", "10.88.7.7", "-p", "8080:80")
    podman.node.crash()
    podman("start", "web")
    pid = podman.verify("web")
    assert podman.node.addresses(pid, "eth0") == ["10.88.7.7/16"]
    assert podman.node.reaches(pid, NODE, 8080, server=80)


def test_buildah(podman: Podman) -> None:
    """Each RUN of a build has a network of its own, and takes its address from the same pool."""
    name = podman.node.shell(f"buildah from {NAME}").strip()
    show = f"buildah run --runtime {podman.node.oci_runtime} {name} /bin/ip -o addr show dev eth0"
    printed = podman.node.shell(f"{show}; buildah rm {name} >/dev/null")
    assert "inet 10.88." in printed
