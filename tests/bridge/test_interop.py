"""Our plugins and the reference's, mixed: in one data directory, on one bridge, added by one, deleted by the other."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ..modes import Plugins
from .conftest import DUAL_STACK, Bench, config

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


@pytest.fixture(params=["ours/ours", "ours/go", "go/ours", "go/go"])
def mixed(request: pytest.FixtureRequest, bench: Bench, plugins: Plugins, go: Path) -> Bench:
    """A bridge plugin over an IPAM plugin."""
    where = {"ours": plugins.directory, "go": go}
    plugin, ipam = request.param.split("/")
    return bench.using(where[plugin], where[ipam])


@pytest.mark.parametrize(
    "version", [*(pytest.param(each, marks=pytest.mark.slow) for each in VERSIONS[:-1]), VERSIONS[-1]]
)
def test_results_are_equal(bench: Bench, go: Path, plugins: Plugins, version: str) -> None:
    bench.host.add_netns("c1")
    for name, keys in NETWORKS.items():
        if name == "layer 2" and version < "0.3":
            continue  # the reference cannot write a result without addresses there
        conf = config(version, **keys)
        results = []
        for plugin, ipam in itertools.product((plugins.directory, go), repeat=2):
            mixed = bench.using(plugin, ipam)
            results.append(without_chance(mixed.run("ADD", conf).result))
            mixed.run("DEL", conf).must_succeed()
            assert mixed.state()["leases"] == {}
            # Both start at the same address again.
            bench.host.run(["sh", "-c", "rm -rf /var/lib/cni/networks; ip link del br0"])
        assert results[1:] == results[:-1], name


@pytest.mark.parametrize(
    ("network", "version"),
    [
        *(
            pytest.param(name, "0.4.0", marks=[] if name == "masquerade" else pytest.mark.slow)
            for name in NETWORKS
            if name not in REFERENCE_CANNOT_CHECK
        ),
        ("dual stack", "1.0.0"),
    ],
)
def test_added_by_one_and_deleted_by_the_other(
    bench: Bench, go: Path, plugins: Plugins, network: str, version: str
) -> None:
    bench.host.add_netns("c1")
    conf = config(version, **NETWORKS[network])
    everyone = [bench.using(plugin, ipam) for plugin, ipam in itertools.product((plugins.directory, go), repeat=2)]
    for adding, deleting in itertools.product(everyone, repeat=2):
        result = adding.run("ADD", conf).result
        deleting.run("CHECK", conf | {"prevResult": result}).must_succeed()
        deleting.run("DEL", conf | {"prevResult": result}).must_succeed()
        assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_the_spoof_check_of_the_reference(bench: Bench, go: Path) -> None:
    """Ours checks it, deletes it, and leaves it alone while its port lives: its names do not tell the network."""
    bench.host.add_netns("c1")
    conf = config("0.4.0", macspoofchk=True)
    result = bench.using(go, go).run("ADD", conf).result
    before = bench.state()["rules"]
    bench.run("CHECK", conf | {"prevResult": result}).must_succeed()
    bench.run("DEL", conf | {"name": "other"}, CNI_NETNS="").must_succeed()
    assert bench.state()["rules"] == before
    bench.run("DEL", conf | {"prevResult": result}).must_succeed()
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_the_reference_deletes_all_but_our_spoof_check(bench: Bench, go: Path) -> None:
    """The reference would look for a name that another attachment may have. GC removes what its DEL leaves."""
    bench.host.add_netns("c1")
    conf = config("0.4.0", macspoofchk=True)
    result = bench.run("ADD", conf).result
    assert bench.using(go, go).run("CHECK", conf | {"prevResult": result}).status == 0
    bench.using(go, go).run("DEL", conf | {"prevResult": result}).must_succeed()
    left = bench.state()
    assert (left["links"], left["leases"]) == (["br0", "lo"], {})
    assert len(left["rules"]) == 3  # type: ignore[arg-type]
    bench.run("GC", conf | {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}).must_succeed()
    assert bench.state()["rules"] == []


def test_one_chain_of_the_reference_for_two_interfaces(bench: Bench, go: Path) -> None:
    """Without a previous result, ours asks the container for the addresses whose rules go."""
    bench.host.add_netns("c1")
    conf = config("0.4.0", isGateway=True, ipMasq=True)
    bench.using(go, go).run("ADD", conf).must_succeed()
    second = bench.using(go, go).run("ADD", conf, CNI_IFNAME="eth1").result
    bench.run("DEL", conf).must_succeed()
    assert "10.1.0.2" not in str(bench.state()["rules"])
    bench.run("CHECK", conf | {"prevResult": second}, CNI_IFNAME="eth1").must_succeed()
    bench.run("DEL", conf, CNI_IFNAME="eth1").must_succeed()
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_the_reference_added_and_the_namespace_is_gone(bench: Bench, go: Path) -> None:
    """Ours releases the lease and the rules then; the reference would leave the rules for ever."""
    bench.host.add_netns("c1")
    conf = config(isGateway=True, ipMasq=True)
    bench.using(go, go).run("ADD", conf).must_succeed()
    bench.host.del_netns("c1")
    bench.run("DEL", conf, CNI_NETNS="").must_succeed()
    deadline = time.monotonic() + 20
    while bench.state()["links"] != ["br0", "lo"] and time.monotonic() < deadline:
        pass  # the kernel takes its time to remove what was in a namespace
    assert bench.state() == {"links": ["br0", "lo"], "rules": [], "leases": {}}


def test_neighbours_on_one_bridge_reach_each_other(mixed: Bench, bench: Bench, go: Path) -> None:
    conf = config(isGateway=True)
    for name in ("c1", "c2"):
        bench.host.add_netns(name)
    mixed.run("ADD", conf, "c1").must_succeed()
    bench.using(go, go).run("ADD", conf, "c2").must_succeed()
    bench.host.run(["ip", "netns", "exec", "c1", "ping", "-n", "-c", "1", "-W", "3", "10.1.0.3"])
    bench.host.run(["ip", "netns", "exec", "c2", "ping", "-n", "-c", "1", "-W", "3", "10.1.0.2"])


def test_routes_of_two_networks_come_in_the_same_order(bench: Bench, go: Path) -> None:
    """Of two equal routes, of one result or of two networks, the kernel uses the one that the reference puts first."""
    shown = []
    for number, plugin in enumerate((bench.plugins, go)):
        bench.host.add_netns(container := f"c{number}")
        for ifname, net in (("eth0", 1), ("eth1", 2)):
            routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            routes += [{"dst": "10.9.0.0/16", "gw": f"10.{net}.0.{hop}"} for hop in (8, 9)]
            ranges = [[{"subnet": f"10.{net}.0.0/24"}], [{"subnet": f"2001:db8:{net}::/64"}]]
            ipam = {"type": "host-local", "ranges": ranges, "routes": routes}
            conf = config(name=f"net{net}", bridge=f"br{net}", ipam=ipam)
            bench.using(plugin).run("ADD", conf, container, CNI_IFNAME=ifname).must_succeed()
        shown.append(
            [
                (
                    each["dst"],
                    each.get("gateway"),
                    each.get("dev"),
                    [hop["gateway"] for hop in each.get("nexthops", [])],
                )
                for family in ("-4", "-6")
                for each in bench.host.ip(family, "route", netns=container)
                if each["protocol"] == "boot"
            ]
        )
    assert shown[0] == shown[1]
    assert shown[1][0] == ("default", "10.2.0.1", "eth1", [])
