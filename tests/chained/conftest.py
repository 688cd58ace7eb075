"""Containers with an interface that a plugin before has made, and the result that tells of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cnisdk.linux import _sockets, attributes
from cnisdk.linux.netfilter import nfnetlink
from cnisdk.testing import Container, Host, PluginUnderTest, expect_error, kill_after

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))


@pytest.fixture
def go() -> Path:
    """The directory of the reference plugins."""
    if not (GO / "portmap").exists():
        missing = f"{GO}/portmap is not installed (Debian: containernetworking-plugins)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return GO


def attached(host: Host, name: str = "c1", address: str = "10.1.0.2/24") -> tuple[Container, dict[str, Any]]:
    """Make a container with a veth to the host, and the result of the plugin that could have made it."""
    container = host.container(name)
    outside = f"v-{name}"
    host.shell(
        f"ip link add {outside} type veth peer name eth0 netns {name}; ip link set {outside} up; "
        f"ip -n {name} address add {address} dev eth0; ip -n {name} link set eth0 up"
    )
    mac = host.ip("link", "show", "eth0", netns=name)[0]["address"]
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": outside}, {"name": "eth0", "mac": mac, "sandbox": container.netns}],
        "ips": [{"interface": 1, "address": address}],
        "foreign": {"key": [1]},
    }
    return container, result


def received_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Return how much a call reads of the packet filter's rules."""
    received = 0

    class Counting(_sockets.SlowToClose):
        def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
            nonlocal received
            data = super().recv(bufsize, flags)
            received += len(data)
            return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sockets, "SlowToClose", Counting)
        function(*arguments)
    assert received, "no socket was counted"
    return received


def renumber_iptables() -> None:
    """Save and restore all rules of iptables, which gives them other handles."""
    for version in ("", "6"):
        saved = subprocess.run([f"ip{version}tables-save"], check=True, stdout=subprocess.PIPE)
        subprocess.run([f"ip{version}tables-restore"], check=True, input=saved.stdout)


def two_networks(host: Host) -> tuple[Container, dict[str, Any]]:
    """Make a container with interfaces in two networks, and the result of the second; the host routes both."""
    container = host.container("c1")
    for number, ifname in ((1, "eth0"), (2, "net1")):
        host.shell(
            f"""
            ip link add v{number} type veth peer name {ifname} netns c1; ip link set v{number} up
            ip address add 10.{number}.0.1/24 dev v{number}; ip address add 2001:db8:{number}::1/64 dev v{number} nodad
            ip -n c1 address add 10.{number}.0.2/24 dev {ifname}
            ip -n c1 address add 2001:db8:{number}::2/64 dev {ifname} nodad
            ip -n c1 link set {ifname} up
            """
        )
    container.shell("ip route add default via 10.1.0.1; ip -6 route add default via 2001:db8:1::1")
    container.shell("ip route add 192.0.2.0/24 via 10.2.0.1; ip route add 198.51.100.0/24 dev net1")
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "v2"}, {"name": "net1", "sandbox": container.netns}],
        "ips": [
            {"interface": 1, "address": "10.2.0.2/24", "gateway": "10.2.0.1"},
            {"interface": 1, "address": "2001:db8:2::2/64", "gateway": "2001:db8:2::1"},
        ],
    }
    return container, result


def routes(container: Container, table: str) -> set[str]:
    """Return the routes of a table, ``default via 10.1.0.1 dev eth0``, of both families."""
    found = set()
    for family in ("-4", "-6"):
        done = container.host.run(["ip", "-n", "c1", "-j", family, "route", "show", "table", table], check=False)
        for each in json.loads(done.stdout) if done.returncode == 0 else []:
            found.add(f"{each['dst']} via {each.get('gateway')} dev {each.get('dev')}")
    return found


def check_chains_that_came_later(
    host: Host, plugin: PluginUnderTest, container: Container, text: str, put_back: Callable[[], bool]
) -> None:
    """See that chains of iptables which are made after ADD fail CHECK only if they can drop, with this text."""
    host.shell("iptables -A FORWARD -s 192.0.2.1 -j ACCEPT; ip6tables -P FORWARD ACCEPT")
    plugin.check(container)
    for harm, mend in (
        ("iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT"),
        ("ip6tables -A FORWARD -j REJECT", "ip6tables -F FORWARD"),
        ("iptables -N OTHERS; iptables -A FORWARD -j OTHERS", "iptables -F FORWARD"),
    ):
        host.shell(harm)
        with expect_error(5, text):
            plugin.check(container)
        host.shell(mend)
        plugin.check(container)
    host.shell("iptables -P FORWARD DROP")
    assert put_back()
    plugin.check(container)


def in_version(result: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return a result in the shape of an older version."""
    shaped = {**result, "cniVersion": version}
    if version < "1.0.0":
        shaped["ips"] = [{**ip, "version": "6" if ":" in ip["address"] else "4"} for ip in result["ips"]]
    return shaped


def kill_adds(
    plugin: PluginUnderTest,
    container: Container,
    ifname: str = "eth0",
    *,
    check: Callable[[], None],
    every_other_replaces: bool = False,
    attempts: int = int(os.environ.get("CNISDK_TEST_KILLS", "100")),
    **config: Any,
) -> None:
    """Kill ADD at moments spread over its whole length. Each time, DEL must succeed and leave nothing.

    Args:
        plugin: The plugin.
        container: The container.
        ifname: CNI_IFNAME.
        check: Called after each DEL: asserts that nothing is left.
        every_other_replaces: If true, every other ADD replaces what an ADD before it has made.
        attempts: Number of kills.
        **config: Keys of the configuration that DEL gets.
    """
    plugin.add(container, ifname)
    plugin.delete(container, ifname)
    started = time.monotonic()
    plugin.add(container, ifname)
    whole = time.monotonic() - started
    plugin.delete(container, ifname)
    chance = random.Random(5)  # seeded, to be repeatable
    killed = 0
    for number in range(attempts):
        if every_other_replaces and number % 2:
            plugin.add(container, ifname)
        plugin.fault = kill_after(chance.uniform(0.001, whole))
        killed += plugin.run("ADD", container, ifname).status != 0
        plugin.fault = None
        plugin.run("DEL", container, ifname, prevResult=None, **config).raise_for_error()
        check()
    assert killed


def listing() -> list[str]:
    """The rules and elements of the calling process's network namespace."""
    done = subprocess.run(["nft", "-s", "list", "ruleset"], check=True, capture_output=True, text=True)
    return sorted(line.strip() for line in done.stdout.splitlines())


def read_iptables(*chains: str) -> dict[str, list[str]]:
    """Return by program what iptables-save prints of chains of this host, without counters."""
    starts = ("*", *(f"-A {chain} " for chain in chains))
    saved = {
        program: subprocess.run([f"{program}-save"], check=True, capture_output=True, text=True).stdout.splitlines()
        for program in ("iptables", "ip6tables")
    }
    return {program: [line for line in lines if line.startswith(starts)] for program, lines in saved.items()}


def find_by_iptables(saved: Mapping[str, list[str]]) -> None:
    """Verify that ``iptables -C`` finds each rule of :func:`read_iptables`; it fails by the first that it does not."""
    for program, lines in saved.items():
        body = "".join(f"{line}\n".replace("-A ", "-C ", 1) for line in lines)
        script = body.replace("\n*", "\nCOMMIT\n*") + "COMMIT\n"
        subprocess.run([f"{program}-restore", "--noflush"], input=script, check=True, text=True)


def listed_expressions(*needles: bytes) -> list[tuple[str, dict[int, bytes]]]:
    """Return names and attributes of the expressions of all rules that contain one of these, as the kernel has them."""
    rules = [each for family in (2, 10) for each in nfnetlink.dump(10 << 8 | 7, family, b"")]
    parts = [
        attributes.read(element)
        for rule in rules
        if any(needle in rule for needle in needles)
        for _, element in attributes.iterate(attributes.read(rule).get(4, b""))
    ]
    return [(attributes.read_text(each[1]), attributes.read(each.get(2, b""))) for each in parts]


def check_old_programs_read(*needles: bytes) -> None:
    """Verify that rules which contain one of these are written as all versions of iptables read them.

    Before 1.8.6, it loaded whole addresses only; before 1.8.8, it knew of ports by matches alone.
    """
    found = listed_expressions(*needles)
    assert found
    number = partial(int.from_bytes, byteorder="big")
    fields = {(number(each[2]), number(each[3]), number(each[4])) for name, each in found if name == "payload"}
    assert fields <= {(1, 12, 4), (1, 16, 4), (1, 8, 16), (1, 24, 16)}, "base, offset, and length of addresses"
