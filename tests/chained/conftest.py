"""Containers with an interface that a plugin before has made, and the result that tells of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cnisdk.testing import Container, Host

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


def in_version(result: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return a result in the shape of an older version."""
    shaped = {**result, "cniVersion": version}
    if version < "1.0.0":
        shaped["ips"] = [{**ip, "version": "6" if ":" in ip["address"] else "4"} for ip in result["ips"]]
    return shaped
