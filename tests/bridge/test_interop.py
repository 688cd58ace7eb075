"""Our plugins and the reference's, mixed: in one data directory, on one bridge, added by one, deleted by the other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ..modes import IN_ONE_MODE
from .conftest import DUAL_STACK, NOTHING, Network, left

pytestmark = [pytest.mark.kernel, pytest.mark.interop]

# Every version that the packaged reference plugins (1.1.1) and ours support.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")

NETWORKS: dict[str, dict[str, Any]] = {
    "default gateway": {"isDefaultGateway": True},
    "dual stack": {"isGateway": True, "ipam": DUAL_STACK},
    "layer 2": {"ipam": None},
    "routes": {
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.0.0/25", "gateway": "10.1.0.126"}]],
            "routes": [{"dst": "10.3.0.0/16", "gw": "10.1.0.9"}],
        }
    },
    "route to the gateway": {
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "routes": [{"dst": "10.2.0.0/16"}]}
    },
    "name resolution": {"dns": {"nameservers": ["10.9.9.9"], "domain": "example.org", "search": ["a", "b"]}},
    "masquerade": {"isDefaultGateway": True, "ipMasq": True, "mtu": 1400},
}


# Its CHECK runs IPAM's where there is none, and misses the next hop of a route that has none of its own.
REFERENCE_CANNOT_CHECK = ("layer 2", "route to the gateway")


def without_chance(value: Any) -> Any:
    """The result without hardware addresses and the hash in names."""
    if isinstance(value, dict):
        return {key: without_chance(part) for key, part in value.items() if key != "mac"}
    if isinstance(value, list):
        return [without_chance(part) for part in value]
    return re.sub(r"^veth[0-9a-f]{8}$", "veth", value) if isinstance(value, str) else value


WHOSE = ("ours/ours", "ours/go", "go/ours", "go/go")


def mixed(net: Network, go: Path, whose: str) -> Network:
    """Return a network with a bridge plugin over an IPAM plugin."""
    ours = net.bridge
    bridge, ipam = (go if each == "go" else ours for each in whose.split("/"))
    return net.using(bridge, ipam)


def compare_results(net: Network, go: Path, version: str) -> None:
    """Run ADD of every network with every mix of plugins, and compare the results."""
    container = net.host.container()
    for name, keys in NETWORKS.items():
        if name == "layer 2" and version < "0.3":
            continue  # the reference cannot write a result without addresses there
        results = []
        for whose in WHOSE:
            plugin = mixed(net, go, whose).plugin(version, **keys)
            answer = plugin.run("ADD", container)
            answer.raise_for_error()
            results.append(without_chance(answer.document))
            plugin.delete(container)
            assert left(net.host).leases == {}
            # Both start at the same address again.
            net.host.shell("rm -rf /var/lib/cni/networks; ip link del br0")
        assert results[1:] == results[:-1], name


def test_results_are_equal(net: Network, go: Path) -> None:
    compare_results(net, go, VERSIONS[-1])


@pytest.mark.slow
@IN_ONE_MODE
@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_results_of_older_versions_are_equal(net: Network, go: Path, version: str) -> None:
    compare_results(net, go, version)


def hand_over(net: Network, go: Path, network: str, version: str, pairs: Iterable[Iterable[str]]) -> None:
    """Have the second of each pair check and delete what the first added."""
    container = net.host.container()
    for adding, deleting in pairs:
        first, second = (mixed(net, go, whose).plugin(version, **NETWORKS[network]) for whose in (adding, deleting))
        answer = first.run("ADD", container)
        answer.raise_for_error()
        second.check(container, prevResult=answer.document)
        second.delete(container, prevResult=answer.document)
        assert left(net.host) == NOTHING, f"{adding}, {deleting}"


@pytest.mark.parametrize(("network", "version"), [("masquerade", "0.4.0"), ("dual stack", "1.0.0")])
def test_added_by_one_and_deleted_by_the_other(net: Network, go: Path, network: str, version: str) -> None:
    """Both plugins are others'."""
    hand_over(net, go, network, version, zip(WHOSE, reversed(WHOSE), strict=True))


@pytest.mark.slow
@IN_ONE_MODE
@pytest.mark.parametrize("network", [name for name in NETWORKS if name not in REFERENCE_CANNOT_CHECK])
def test_added_by_any_and_deleted_by_any(net: Network, go: Path, network: str) -> None:
    hand_over(net, go, network, "0.4.0", itertools.product(WHOSE, repeat=2))


def test_the_spoof_check_of_the_reference(net: Network, go: Path) -> None:
    """Ours checks it, deletes it, and leaves it alone while its port lives: its names do not tell the network."""
    ours, container = net.plugin("0.4.0", macspoofchk=True), net.host.container()
    result = net.using(go, go).plugin("0.4.0", macspoofchk=True).run("ADD", container).document
    before = left(net.host).rules
    assert before
    ours.check(container, prevResult=result)
    ours.run("DEL", container, name="other", environ={"CNI_NETNS": ""}).raise_for_error()
    assert left(net.host).rules == before
    ours.delete(container, prevResult=result)
    assert left(net.host) == NOTHING


def test_the_reference_deletes_all_but_our_spoof_check(net: Network, go: Path) -> None:
    """The reference would look for a name that another attachment may have. GC removes what its DEL leaves."""
    ours, container = net.plugin("0.4.0", macspoofchk=True), net.host.container()
    theirs = net.using(go, go).plugin("0.4.0", macspoofchk=True)
    result = ours.run("ADD", container).document
    theirs.check(container, prevResult=result)
    theirs.delete(container, prevResult=result)
    now = left(net.host)
    assert (now._replace(rules=[]), len(now.rules)) == (NOTHING, 3)
    ours.gc(cniVersion="1.1.0")
    assert left(net.host) == NOTHING


def test_one_chain_of_the_reference_for_two_interfaces(net: Network, go: Path) -> None:
    """Without a previous result, ours asks the container for the addresses whose rules go."""
    ours, container = net.plugin("0.4.0", isGateway=True, ipMasq=True), net.host.container()
    theirs = net.using(go, go).plugin("0.4.0", isGateway=True, ipMasq=True)
    theirs.add(container)
    second = theirs.run("ADD", container, "eth1").document
    ours.delete(container)
    assert "10.1.0.2" not in str(left(net.host).rules)
    ours.check(container, "eth1", prevResult=second)
    ours.delete(container, "eth1")
    assert left(net.host) == NOTHING


def test_the_reference_added_and_the_namespace_is_gone(net: Network, go: Path) -> None:
    """Ours releases the lease and the rules then; the reference would leave the rules for ever."""
    container = net.host.container()
    net.using(go, go).plugin(isGateway=True, ipMasq=True).add(container)
    container.destroy()
    net.plugin(isGateway=True, ipMasq=True).run("DEL", container, environ={"CNI_NETNS": ""}).raise_for_error()
    # The kernel takes its time to remove the link of a namespace that is gone.
    assert left(net.host)._replace(links=NOTHING.links) == NOTHING


@pytest.mark.parametrize("whose", WHOSE)
def test_neighbours_on_one_bridge_reach_each_other(net: Network, go: Path, whose: str) -> None:
    c1, c2 = net.host.container("c1"), net.host.container("c2")
    mixed(net, go, whose).plugin(isGateway=True).add(c1)
    net.using(go, go).plugin(isGateway=True).add(c2)
    assert (c1.reaches(c2), c2.reaches(c1)) == (True, True)


def test_routes_of_two_networks_come_in_the_same_order(net: Network, go: Path) -> None:
    """Of two equal routes, of one result or of two networks, the kernel uses the one that the reference puts first."""
    shown = []
    for number, whose in enumerate((net, net.using(go, net.ipam))):
        container = net.host.container(f"c{number}")
        for ifname, third in (("eth0", 1), ("eth1", 2)):
            routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            routes += [{"dst": "10.9.0.0/16", "gw": f"10.{third}.0.{hop}"} for hop in (8, 9)]
            ranges = [[{"subnet": f"10.{third}.0.0/24"}], [{"subnet": f"2001:db8:{third}::/64"}]]
            ipam = {"type": "host-local", "ranges": ranges, "routes": routes}
            whose.plugin(name=f"net{third}", bridge=f"br{third}", ipam=ipam).add(container, ifname)
        shown.append(
            [
                (
                    each["dst"],
                    each.get("gateway"),
                    each.get("dev"),
                    [hop["gateway"] for hop in each.get("nexthops", [])],
                )
                for family in ("-4", "-6")
                for each in net.host.ip(family, "route", netns=container.name)
                if each["protocol"] == "boot"
            ]
        )
    assert shown[0] == shown[1]
    assert shown[1][0] == ("default", "10.2.0.1", "eth1", [])
