"""firewall: what the host forwards for containers though it drops what it forwards, judged by traffic."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cnisdk import AddRequest, Attachment, CNIError, runtime
from cnisdk.linux import firewall
from cnisdk.linux.netfilter import firewall_iptables, iptables, sets, xt_rules
from cnisdk.linux.netfilter.firewall import Forwarding, Ingress
from cnisdk.linux.netfilter.nft import NftTable
from cnisdk.plugin._repair import repair
from cnisdk.plugin.request import parse_request
from cnisdk.runtime import Survey, survey_host
from cnisdk.spec.versions import Verb
from cnisdk.testing import Container, Host, expect_error
from cnisdk_plugins.firewall import Firewall, FirewallConf

from ..programs import started_programs
from .conftest import (
    check_chains_that_came_later,
    check_old_programs_read,
    find_by_iptables,
    in_version,
    kill_adds,
    listing,
    read_iptables,
    received_bytes,
    renumber_iptables,
)

pytestmark = pytest.mark.kernel

BACKENDS = ("iptables", "nftables")
DROP = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"


def attached(host: Host, name: str, number: int, bridge: str = "br1") -> tuple[Container, dict[str, Any]]:
    """Make a container on a bridge that is its gateway, and the result of the plugin that could have made it."""
    container, subnet = host.container(name), bridge.removeprefix("br")
    if bridge not in host.links():
        host.shell(
            f"""
            ip link add {bridge} type bridge; ip link set {bridge} up
            ip address add 10.{subnet}.0.1/24 dev {bridge}; ip address add 2001:db8:{subnet}::1/64 dev {bridge} nodad
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            """
        )
    address, other = f"10.{subnet}.0.{number}", f"2001:db8:{subnet}::{number}"
    host.shell(f"ip link add v-{name} type veth peer name eth0 netns {name}; ip link set v-{name} master {bridge} up")
    container.shell(
        f"""
        ip address add {address}/24 dev eth0; ip address add {other}/64 dev eth0 nodad
        ip link set eth0 up; ip link set lo up
        ip route replace default via 10.{subnet}.0.1; ip -6 route replace default via 2001:db8:{subnet}::1
        """
    )
    mac = host.ip("link", "show", "eth0", netns=name)[0]["address"]
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": bridge},
            {"name": f"v-{name}"},
            {"name": "eth0", "mac": mac, "sandbox": container.netns},
        ],
        "ips": [{"interface": 2, "address": f"{address}/24"}, {"interface": 2, "address": f"{other}/64"}],
    }
    return container, result


def addresses(number: int, subnet: int = 1) -> tuple[str, str]:
    return f"10.{subnet}.0.{number}", f"2001:db8:{subnet}::{number}"


@pytest.fixture
def outside(host: Host) -> Iterator[Host]:
    """A neighbour of the host, which has the way to the containers."""
    with beyond(host) as neighbour:
        yield neighbour


@contextmanager
def beyond(host: Host) -> Iterator[Host]:
    """Make a neighbour of a host, on its link ``uplink``, which has the way to the containers."""
    with Host(beside=host) as neighbour:
        host.connect(neighbour, address="198.51.100.1/24", other_address="198.51.100.2/24")
        host.shell("ip address add 2001:db8:9::1/64 dev uplink nodad")
        neighbour.shell(
            """
            ip address add 2001:db8:9::2/64 dev uplink nodad; ip route del default || true
            ip route add 10.0.0.0/8 via 198.51.100.1; ip -6 route add 2001:db8::/32 via 2001:db8:9::1
            """
        )
        yield neighbour


def rules_of(host: Host, *words: str) -> list[str]:
    """Lines of all rules and elements that have one of the words."""
    return [line.strip() for line in host.shell("nft list ruleset").splitlines() if any(word in line for word in words)]


def own(host: Host, number: int = 5) -> list[str]:
    return rules_of(host, *addresses(number), "owner-", "id: c")


@pytest.mark.parametrize("backend", BACKENDS)
def test_containers_reach_the_world_though_the_host_drops(host: Host, outside: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    host.shell(DROP)
    plugin = host.plugin(Firewall, {"backend": backend, "prevResult": result})
    assert not container.reaches(outside, "198.51.100.2", timeout=0.3)
    assert plugin.run("ADD", container).document == result
    plugin.check(container)
    for protocol in ("tcp", "udp"):
        for there, back in zip(("198.51.100.2", "2001:db8:9::2"), addresses(5), strict=True):
            assert container.reaches(outside, there, protocol=protocol)
            assert not outside.reaches(container, back, protocol=protocol, timeout=0.3)
    plugin.delete(container)
    plugin.delete(container)
    assert not container.reaches(outside, "198.51.100.2", timeout=0.3)
    assert own(host) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_administrators_chain_comes_first(host: Host, outside: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    host.shell(f"{DROP}; iptables -N ADMINS; iptables -A ADMINS -d 198.51.100.2 -p tcp --dport 81 -j DROP")
    conf = {"backend": backend, "prevResult": result, "iptablesAdminChainName": "ADMINS"}
    plugin = host.plugin(Firewall, conf)
    plugin.add(container)
    plugin.check(container)
    assert container.reaches(outside, "198.51.100.2", port=80)
    assert not container.reaches(outside, "198.51.100.2", port=81, timeout=0.3)
    assert "-A ADMINS -d 198.51.100.2" in host.shell("iptables -S")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reused_address_is_not_cut_off_by_a_late_del(host: Host, outside: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    late = host.container("late")
    host.shell(DROP)
    plugin = host.plugin(Firewall, {"backend": backend, "prevResult": result})
    plugin.add(late)
    plugin.add(container)
    plugin.check(late)  # what the host forwards for its address is accepted, as ADD promised
    plugin.add(container)
    for _ in range(2):
        plugin.delete(late)
        plugin.check(container)
        assert container.reaches(outside, "198.51.100.2")
        assert container.reaches(outside, "2001:db8:9::2")
    plugin.run("DEL", container, prevResult=None).raise_for_error()
    assert own(host) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_del_and_gc_need_nothing_but_the_owner(host: Host, outside: Host, backend: str) -> None:
    containers = [attached(host, f"c{number}", 10 + number) for number in range(5)]
    host.shell(DROP)
    net, other = ({"name": name, "backend": backend} for name in ("net", "other"))
    for number, (container, result) in enumerate(containers):
        host.plugin(Firewall, other if number == 4 else net).add(container, prevResult=result)
    containers[1][0].destroy()
    changed = "iptables" if backend == "nftables" else "nftables"
    host.plugin(Firewall, {**net, "backend": changed}).run("DEL", containers[1][0]).raise_for_error()
    assert rules_of(host, *addresses(11)) == []
    host.plugin(Firewall, net).gc(containers[0][0], containers[3][0])
    assert rules_of(host, *addresses(12)) == []
    for number, conf in ((0, net), (3, net), (4, other)):
        container, result = containers[number]
        assert container.reaches(outside, "198.51.100.2")
        host.plugin(Firewall, conf).check(container, prevResult=result)


@pytest.mark.parametrize("backend", BACKENDS)
def test_check_compares_values_and_repair_puts_them_back(host: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    host.shell("iptables -P FORWARD DROP")
    plugin = host.plugin(Firewall, {"name": "net", "backend": backend, "prevResult": result})
    plugin.add(container)
    changes = {
        "iptables": (
            "iptables -D CNI-FORWARD -s 10.1.0.5 -j ACCEPT",
            "ip6tables -R CNI-FORWARD 2 -d 2001:db8:1::5 -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            "iptables -F FORWARD",
            "iptables -D CNI-FORWARD 1",
        ),
        "nftables": (
            "nft delete element inet cni_firewall addresses4 '{ 10.1.0.5 }'",
            "nft flush chain inet cni_firewall marking",
            "iptables -F CNI-FORWARD",
        ),
    }
    for change in (*changes[backend], "nft flush ruleset"):
        plugin.check(container)
        host.shell(change)
        before = host.shell("nft list ruleset")
        with expect_error(5):
            plugin.check(container)
        assert host.shell("nft list ruleset") == before, "CHECK creates nothing"
        assert host.call(put_back, plugin.conf, container.netns)
    plugin.check(container)
    plugin.delete(container)
    assert own(host) == []


def put_back(conf: dict[str, Any], netns: str, container_id: str = "c1") -> bool:
    environ = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": container_id, "CNI_IFNAME": "eth0", "CNI_NETNS": netns}
    return repair(Firewall, environ, json.dumps(conf).encode())


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_nftables_beside_iptables_that_drops(variant: str, request: pytest.FixtureRequest) -> None:
    """Of either variant."""
    host: Host = request.getfixturevalue("legacy" if variant == "legacy" else "host")
    outside: Host = request.getfixturevalue("outside")
    container, result = attached(host, "c1", 5)
    host.shell("; ".join(f"ip{each}tables-{variant} -P FORWARD DROP" for each in ("", "6")))
    plugin = host.plugin(Firewall, {"name": "net", "backend": "nftables", "prevResult": result})
    for _ in range(2):
        plugin.add(container)
        plugin.check(container)
        for there in ("198.51.100.2", "2001:db8:9::2"):
            assert container.reaches(outside, there)
        host.shell(f"iptables-{variant} -F FORWARD")
        with expect_error(5, "CNI-FORWARD"):
            plugin.check(container)


@pytest.mark.parametrize("used", ["nft", "legacy"])
def test_nftables_beside_both_variants_of_iptables_that_drop(
    used: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program of the host brings the variant that `iptables` is not."""
    host: Host = request.getfixturevalue("legacy")
    if used == "nft":
        monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    outside: Host = request.getfixturevalue("outside")
    container, result = attached(host, "c1", 5)
    both = [f"ip{each}tables-{variant}" for each in ("", "6") for variant in ("nft", "legacy")]
    host.shell("; ".join(f"{each} -P FORWARD DROP" for each in both))
    plugin = host.plugin(Firewall, {"name": "net", "backend": "nftables", "prevResult": result})
    plugin.add(container)
    for program in both:
        plugin.check(container)
        for there in ("198.51.100.2", "2001:db8:9::2"):
            assert container.reaches(outside, there)
        host.shell(f"{program} -F FORWARD")
        with expect_error(5, "CNI-FORWARD"):
            plugin.check(container)
        assert host.call(put_back, plugin.conf, container.netns)
    host.shell("; ".join(f"{each} -F FORWARD; {each} -P FORWARD ACCEPT" for each in both))
    plugin.check(container)


def test_chains_of_iptables_that_came_later_are_no_damage_unless_they_can_drop(host: Host) -> None:
    """Another plugin of the list may make them, or Docker."""
    container, result = attached(host, "c1", 5)
    plugin = host.plugin(Firewall, {"name": "net", "backend": "nftables", "prevResult": result})
    plugin.add(container)
    again = partial(host.call, put_back, plugin.conf, container.netns)
    check_chains_that_came_later(host, plugin, container, "CNI-FORWARD", again)


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
@pytest.mark.parametrize("shown", ["0", "1"])
def test_who_reaches_a_container(host: Host, outside: Host, backend: str, policy: str, shown: str) -> None:
    """With and without the packets that stay on a bridge shown to iptables, by br_netfilter."""
    host.shell(f"sysctl -qw net.bridge.bridge-nf-call-iptables={shown} net.bridge.bridge-nf-call-ip6tables={shown}")
    (first, one), (neighbour, two) = attached(host, "c1", 5), attached(host, "c2", 6)
    (other, three), (free, _) = attached(host, "c3", 7, "br2"), attached(host, "c4", 8, "br3")
    plugin = host.plugin(Firewall, {"backend": backend, "ingressPolicy": policy})
    for container, result in ((first, one), (neighbour, two), (other, three)):
        plugin.add(container, prevResult=result)
        plugin.check(container, prevResult=result)
    for target, there, elsewhere in zip(addresses(5), ("198.51.100.2", "2001:db8:9::2"), addresses(8, 3), strict=True):
        for container, reaches in ((neighbour, policy != "isolated"), (other, policy == "open"), (free, True)):
            assert meets(container, first, target, reaches), (container.id, target)
        assert outside.reaches(first, target)
        assert host.reaches(first, target)
        assert first.reaches(outside, there)
        assert first.reaches(free, elsewhere)
    plugin.run("DEL", first, prevResult=None).raise_for_error()
    assert meets(neighbour, first, addresses(5)[0], policy != "isolated"), "it is the bridge's policy"
    plugin.gc(other)
    assert rules_of(host, '"br1"') == []
    assert meets(neighbour, first, addresses(5)[0])


def meets(neighbour: Container, container: Container, address: str, expected: bool = True) -> bool:
    """Return whether it is as expected if a container reaches another, for which it may have looked in vain before."""
    neighbour.shell("ip neigh flush dev eth0")
    return neighbour.reaches(container, address, timeout=3 if expected else 0.3) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_policy_replaces_the_old(host: Host, backend: str) -> None:
    (first, one), (neighbour, two) = attached(host, "c1", 5), attached(host, "c2", 6)
    plugin = host.plugin(Firewall, {"backend": backend})
    for policy in ("isolated", "same-bridge", "isolated", "same-bridge"):
        plugin.add(first, prevResult=one, ingressPolicy=policy)
        plugin.check(first, prevResult=one, ingressPolicy=policy)
        other = "same-bridge" if policy == "isolated" else "isolated"
        with expect_error(5):
            plugin.check(first, prevResult=one, ingressPolicy=other)
        for target in addresses(5):
            assert meets(neighbour, first, target, policy != "isolated")
    plugin.add(neighbour, prevResult=two, ingressPolicy="isolated")
    plugin.add(first, prevResult=one)
    assert not neighbour.reaches(first, addresses(5)[0], timeout=0.3), "another attachment still asks for it"
    plugin.add(neighbour, prevResult=two)
    assert rules_of(host, '"br1"') == []
    assert meets(neighbour, first, addresses(5)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_repair_leaves_a_bridge_the_policy_that_the_newest_add_has_decided(host: Host, backend: str) -> None:
    """An old container's policy is not put in its place each time, but what it has lost is put back."""
    (first, one), (second, two) = attached(host, "c1", 5), attached(host, "c2", 6)
    conf = {"name": "net", "backend": backend}
    plugin = host.plugin(Firewall, conf)
    older = {**plugin.conf, "prevResult": one, "ingressPolicy": "isolated"}
    newer = {**plugin.conf, "prevResult": two, "ingressPolicy": "same-bridge"}
    isolating = "@isolated drop" if backend == "nftables" else "-i br1 -o br1"

    def rules() -> str:
        return host.shell("nft --stateless list ruleset; iptables -S; ip6tables -S")

    def repaired() -> list[bool]:
        return [
            host.call(put_back, newer, second.netns, "c2"),
            host.call(put_back, older, first.netns, "c1"),
        ]

    for container, keys in ((first, older), (second, newer)):
        host.plugin(Firewall, keys).add(container)
    whole = rules()
    assert repaired() == [False, False]
    assert rules() == whole
    lost = {
        "iptables": ("iptables -D CNI-FORWARD -s 10.1.0.5 -j ACCEPT", "iptables -F CNI-ISOLATION-STAGE-1"),
        "nftables": (
            "nft delete element inet cni_firewall addresses4 '{ 10.1.0.5 }'",
            "nft flush set inet cni_firewall same_bridge",
        ),
    }[backend]
    expectations = ([False, True], [True, False], [True, True])  # of the newer, of the older
    for change, expected in zip((*lost, "nft flush ruleset"), expectations, strict=True):
        host.shell(change)
        assert repaired() == expected, change
        assert repaired() == [False, False]
        assert sorted(rules().split("\n")) == sorted(whole.split("\n"))
    host.plugin(Firewall, newer).delete(second)
    assert host.call(put_back, older, first.netns, "c1"), "nobody else asks for another policy now"
    host.plugin(Firewall, older).check(first)
    assert isolating in rules()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("left", [0, 1])
def test_an_add_with_addresses_of_one_version_replaces_that_with_both(host: Host, backend: str, left: int) -> None:
    container, result = attached(host, "c1", 5)
    plugin = host.plugin(Firewall, {"backend": backend, "ingressPolicy": "same-bridge", "prevResult": result})
    plugin.add(container)
    less = {**result, "ips": [result["ips"][left]]}
    plugin.add(container, prevResult=less)
    plugin.check(container, prevResult=less)
    assert rules_of(host, addresses(5)[1 - left]) == []
    assert rules_of(host, addresses(5)[left])
    plugin.delete(container)
    assert rules_of(host, *addresses(5), '"br1"', "owner-", "id: c") == []


@pytest.mark.parametrize("variant", [*BACKENDS, "legacy"])
def test_a_failed_add_beside_a_zone_gives_the_policy_back(variant: str, request: pytest.FixtureRequest) -> None:
    """firewalld accepts then, and no rule does. The second ADD has another policy, or none, or accepts by itself."""
    host: Host = request.getfixturevalue("legacy" if variant == "legacy" else "host")
    backend = "nftables" if variant == "nftables" else "iptables"
    owner, both = Attachment("net", "c1", "eth0"), [ip_address("10.1.0.5"), ip_address("2001:db8::5")]
    earlier = Forwarding(backend, owner, both, ingress=Ingress("isolated", "br0", ("v-c1",)), accepts=False)
    others = (None, Ingress("same-bridge", "br0"))
    own = ("br0", "v-c1", "id: c1", "10.1.0.5")

    def shown() -> list[str]:
        commands = (
            ("iptables-legacy-save", "ip6tables-legacy-save") if variant == "legacy" else ("nft -s list ruleset",)
        )
        lines = subprocess.run("; ".join(commands), shell=True, check=True, capture_output=True, text=True).stdout
        return sorted(line.strip() for line in lines.splitlines() if any(each in line for each in own))

    def add_twice() -> None:
        for second, accepts in ((each, accepts) for each in others for accepts in (False, True)):
            firewall.admit(earlier)
            firewall.check(earlier)
            before = shown()
            assert [line for line in before if "10.1.0.5" in line] == []
            with ExitStack() as inverses:
                later = earlier._replace(ingress=second, accepts=accepts)
                firewall.admit(later, inverses.callback)
                firewall.check(later)
            firewall.check(earlier)
            assert shown() == before
            firewall.withdraw(owner)
            assert shown() == []

    host.call(add_twice)


# --- beside the reference, Docker, and others -------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize("adder", ["go", "ours"])
@pytest.mark.parametrize("policy", ["open", "same-bridge"])
@pytest.mark.interop
def test_go_and_ours_check_and_delete_what_the_other_added(
    host: Host, outside: Host, go: Path, version: str, adder: str, policy: str
) -> None:
    container, result = attached(host, "c1", 5)
    other, theirs = attached(host, "c2", 6, "br2")
    host.shell(DROP)
    conf = {
        "name": "net",
        "cniVersion": version,
        "backend": "iptables",
        "ingressPolicy": policy,
        "prevResult": in_version(result, version),
    }
    one, two = host.plugin(go / "firewall", conf), host.plugin(Firewall, conf)
    if adder == "ours":
        one, two = two, one
    answered = one.run("ADD", container).document
    for plugin in (one, two):
        plugin.run("CHECK", container, prevResult=answered).raise_for_error()
    two.run("ADD", other, prevResult=in_version(theirs, version)).raise_for_error()
    for each in (container, other):
        assert each.reaches(outside, "198.51.100.2")
        assert each.reaches(outside, "2001:db8:9::2")
    assert meets(other, container, addresses(5)[0], policy == "open")
    two.run("DEL", container, prevResult=answered).raise_for_error()
    assert not container.reaches(outside, "198.51.100.2", timeout=0.3)
    left = rules_of(host, *addresses(5))
    assert [line for line in left if "accept" in line] == []
    assert bool(left) == (adder == "ours"), "records of ours, which no packet gets to"
    again, following = host.plugin(Firewall, conf), host.container("next")
    again.add(following)
    assert len(rules_of(host, *addresses(5))) == 6 + len(left)
    again.run("DEL", following, prevResult={**in_version(result, version), "ips": []}).raise_for_error()
    assert rules_of(host, *addresses(5)) == left, "a record without rules keeps none of the next container"
    again.run("DEL", container, prevResult=None).raise_for_error()
    assert rules_of(host, *addresses(5)) == [], "a record without rules goes with the DEL of its attachment"
    one.run("DEL", other, prevResult=in_version(theirs, version)).raise_for_error()
    assert [line for line in rules_of(host, *addresses(6, 2)) if "accept" in line] == []
    host.plugin(Firewall, {"name": "net"}).gc()
    assert rules_of(host, *addresses(6, 2)) == []


@pytest.mark.interop
def test_rules_of_the_reference_that_another_attachment_needs_stay(host: Host, outside: Host, go: Path) -> None:
    """The reference's container is gone, ours has its address, and the DEL of the first comes late, twice."""
    container, result = attached(host, "c1", 5)
    late = host.container("late")
    host.shell(DROP)
    conf = {"name": "net", "cniVersion": "1.0.0", "backend": "iptables", "prevResult": in_version(result, "1.0.0")}
    host.plugin(go / "firewall", conf).add(late)
    ours = host.plugin(Firewall, conf)
    ours.add(container)
    for _ in range(2):
        ours.delete(late)
        ours.check(container)
        assert container.reaches(outside, "198.51.100.2")
    ours.delete(container)
    assert own(host) == []


@pytest.mark.interop
@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_a_record_without_rules_takes_none_of_the_references_next_container(host: Host, go: Path, verb: str) -> None:
    """The reference has deleted the rules of one that ours made. Then DEL of that comes again, or GC."""
    container, result = attached(host, "c1", 5)
    late = host.container("late")
    conf = {"name": "net", "cniVersion": "1.0.0", "backend": "iptables", "prevResult": in_version(result, "1.0.0")}
    ours, theirs = host.plugin(Firewall, conf), host.plugin(go / "firewall", conf)
    ours.run("ADD", late).raise_for_error()
    theirs.run("DEL", late).raise_for_error()
    theirs.run("ADD", container).raise_for_error()
    late.destroy()
    if verb == "GC":
        host.plugin(Firewall, {"name": "net"}).gc(container)
    else:
        ours.run("DEL", late).raise_for_error()
    assert rules_of(host, "id: late") == []
    for plugin in (ours, theirs):
        plugin.run("CHECK", container).raise_for_error()
    ours.run("DEL", container).raise_for_error()
    assert own(host) == []


@pytest.mark.interop
@pytest.mark.parametrize("gone", [False, True])
def test_what_the_reference_put_in_the_place_of_ours_goes_with_the_container(host: Host, go: Path, gone: bool) -> None:
    """As `podman network reload` does it while the reference's plugins are installed, and ours delete afterwards."""
    container, result = attached(host, "c1", 5)
    conf = {"name": "net", "cniVersion": "1.0.0", "backend": "iptables", "prevResult": in_version(result, "1.0.0")}
    ours, theirs = host.plugin(Firewall, conf), host.plugin(go / "firewall", conf)
    for plugin, verb in ((ours, "ADD"), (theirs, "DEL"), (theirs, "ADD"), (ours, "CHECK")):
        plugin.run(verb, container).raise_for_error()
    if gone:
        container.destroy()
    ours.run("DEL", container).raise_for_error()
    assert own(host) == []


@pytest.mark.interop
@pytest.mark.parametrize("seen", ["all", "not all of the host", "not all namespaces"])
def test_a_late_del_keeps_the_references_rules_of_the_next_container(
    host: Host, outside: Host, go: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], seen: str
) -> None:
    """The reference made both, and its rules name neither. A namespace that cannot be looked into may be one, too."""

    def survey() -> Survey:
        found = survey_host(inside=True)
        found.doubts = () if seen == "all" else ("something is hidden",)
        found.unseen = ("a namespace cannot be looked into",) if seen == "not all namespaces" else ()
        return found

    monkeypatch.setattr(runtime, "survey_host", survey)
    container, result = attached(host, "c1", 5)
    late = host.container("late")
    host.shell(DROP)
    previous = in_version(result, "1.0.0")
    conf = {"name": "net", "cniVersion": "1.0.0", "backend": "iptables", "prevResult": previous}
    theirs, ours = host.plugin(go / "firewall", conf), host.plugin(Firewall, conf)
    theirs.add(late)
    theirs.add(container)
    ours.delete(late)  # its namespace is there, and does not have the address
    late.destroy()
    ours.delete(late)
    assert container.reaches(outside, "198.51.100.2")
    # The path of its namespace may lead to the next container, whose interface has another hardware address.
    interfaces = [{**each, "mac": "02:00:00:00:00:99"} for each in previous["interfaces"]]
    ours.run("DEL", container, prevResult={**previous, "interfaces": interfaces}).raise_for_error()
    assert container.reaches(outside, "198.51.100.2")
    # DEL of tuning, which comes first, has put back the hardware address of before; the other end tells.
    interfaces = [*previous["interfaces"][:-1], {**interfaces[-1]}]
    ours.run("DEL", container, prevResult={**previous, "interfaces": interfaces}).raise_for_error()
    assert not container.reaches(outside, "198.51.100.2", timeout=0.3)
    # No link has the address any more, and no namespace is there that could tell.
    theirs.add(container)
    container.destroy()
    answer = ours.run("DEL", container)
    answer.raise_for_error()
    told = answer.stderr + capfd.readouterr().err
    stays = seen == "not all namespaces"
    assert bool(own(host)) == stays
    assert ("stays for 10.1.0.5: another container may have it (a namespace cannot" in told) == stays


@pytest.mark.parametrize("backend", BACKENDS)
def test_beside_dockers_chains(host: Host, outside: Host, backend: str) -> None:
    """Docker has its chains before ours when it starts later, and drops what it does not know."""
    container, result = attached(host, "c1", 5)
    docker = """
        iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -N DOCKER-FORWARD; iptables -N DOCKER-BRIDGE
        iptables -I FORWARD -j DOCKER-FORWARD; iptables -I FORWARD -j DOCKER-USER
        iptables -A DOCKER-FORWARD -j DOCKER-BRIDGE; iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
        iptables -A DOCKER-BRIDGE -o docker0 -j DROP
    """
    plugin = host.plugin(Firewall, {"name": "net", "backend": backend, "prevResult": result})
    host.shell(docker)
    before = [line for line in host.shell("iptables -S").splitlines() if "DOCKER" in line]
    plugin.add(container)
    assert container.reaches(outside, "198.51.100.2")
    host.shell("iptables -D FORWARD -j DOCKER-USER; iptables -I FORWARD -j DOCKER-USER")
    plugin.check(container)
    assert container.reaches(outside, "198.51.100.2")
    plugin.delete(container)
    assert [line for line in host.shell("iptables -S").splitlines() if "DOCKER" in line] == before


def test_a_table_of_the_administrators_accepts_the_mark(host: Host, outside: Host) -> None:
    """No plugin can save packets that another table drops, but its rules may accept the mark, as the page tells."""
    container, result = attached(host, "c1", 5)
    host.shell(
        "nft add table inet filter; nft 'add chain inet filter forward"
        " { type filter hook forward priority 0 ; policy drop ; }'"
    )
    plugin = host.plugin(Firewall, {"backend": "nftables", "prevResult": result})
    plugin.add(container)
    assert not container.reaches(outside, "198.51.100.2", timeout=0.3)
    page = Path(__file__).parents[2] / "docs" / "reference" / "firewall.md"
    command, _ = [line for line in page.read_text().splitlines() if line.startswith("nft insert rule")]
    host.shell(command)
    assert container.reaches(outside, "198.51.100.2")
    assert container.reaches(outside, "2001:db8:9::2")
    assert not outside.reaches(container, "10.1.0.5", timeout=0.3)
    assert "ip filter" not in host.shell("nft list tables"), "no table of iptables is made"


def test_policies_come_before_what_is_accepted(host: Host) -> None:
    """Whatever was made first, and after the jump to the accepted was lost."""
    (first, one), (other, two) = attached(host, "c1", 5), attached(host, "c2", 6, "br2")
    plugin = host.plugin(Firewall, {"name": "net", "backend": "iptables"})
    plugin.add(first, prevResult=one)
    for container, result in ((first, one), (other, two)):
        plugin.add(container, prevResult=result, ingressPolicy="same-bridge")
    assert meets(other, first, addresses(5)[0], expected=False)
    host.shell("iptables -D FORWARD -m comment --comment 'CNI firewall plugin rules' -j CNI-FORWARD")
    plugin.add(other, prevResult=two)
    plugin.add(other, prevResult=two, ingressPolicy="same-bridge")
    assert meets(other, first, addresses(5)[0], expected=False)
    host.shell("iptables -D FORWARD 1; iptables -A FORWARD -j CNI-ISOLATION-STAGE-1")
    with expect_error(5, "CNI-ISOLATION-STAGE-1"):
        plugin.check(first, prevResult=one, ingressPolicy="same-bridge")


# --- programs, refusals, many at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "first", "later"),
    [
        ("iptables", ["ip6tables-restore", "iptables-restore"], []),
        ("nftables", ["nft"], []),
    ],
)
def test_programs_started(host: Host, backend: str, first: list[str], later: list[str]) -> None:
    """At most one for each IP version, and none once there is what all attachments share."""
    owner, ingress = Attachment("net", "c1", "eth0"), Ingress("same-bridge", "br0")
    both = [ip_address("10.1.0.5"), ip_address("2001:db8::5")]
    wanted = Forwarding(backend, owner, both, ingress=ingress)
    assert sorted(host.call(started_programs, firewall.admit, wanted)) == first
    assert host.call(started_programs, firewall.admit, wanted) == later
    assert host.call(started_programs, firewall.check, wanted) == []
    assert host.call(started_programs, firewall.withdraw, owner) == []
    assert host.call(started_programs, firewall.gc, "net", frozenset()) == []
    host.shell("nft flush ruleset")
    only = host.call(started_programs, firewall.admit, wanted._replace(addresses=both[:1]))
    assert only == [each for each in first if each != "ip6tables-restore"]


@pytest.mark.parametrize(
    ("conf", "texts"),
    [
        ({"backend": "nftable"}, ["unrecognized backend", "nftable", "$.backend"]),
        ({"ingressPolicy": "closed"}, ["unknown ingress policy", "closed", "$.ingressPolicy"]),
        ({"iptablesAdminChainName": 'X" -j ACCEPT'}, ["$.iptablesAdminChainName"]),
        ({"iptablesAdminChainName": "X" * 29}, ["$.iptablesAdminChainName"]),
        ({"ingressPolicy": "isolated", "prevResult": {"cniVersion": "1.1.0", "ips": []}}, ["needs a bridge"]),
        (
            {"ingressPolicy": "isolated", "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "x" * 16}]}},
            ["expected the name of a link"],
        ),
        ({"prevResult": None}, ["required prevResult missing"]),
    ],
)
def test_what_cannot_be_meant_is_refused(module_host: Host, conf: dict[str, Any], texts: list[str]) -> None:
    module_host.shell("ip netns list | grep -q refused || ip netns add refused")
    container = Container(module_host, "refused")
    result = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/24"}]}
    plugin = module_host.plugin(Firewall, {"prevResult": result, "backend": "iptables", **conf})
    before = module_host.shell("nft list ruleset")
    with expect_error(7, *texts):
        plugin.add(container)
    assert module_host.shell("nft list ruleset") == before
    plugin.delete(container)


def test_status_says_what_is_missing(module_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in BACKENDS:
        module_host.plugin(Firewall, {"backend": backend, "ingressPolicy": "isolated"}).status()
    with expect_error(7, "nftable"):
        module_host.plugin(Firewall, {"backend": "nftable"}).status()
    gone = set[str]()
    monkeypatch.setattr("cnisdk.linux.program.find", lambda name: None if name in gone else f"/usr/sbin/{name}")
    gone = {"iptables"}
    with expect_error(50, "iptables"):
        module_host.plugin(Firewall, {"backend": "iptables"}).status()
    gone = {"nft"}
    with expect_error(50, "nft"):
        module_host.plugin(Firewall, {"backend": "nftables"}).status()
    module_host.shell("sysctl -qw net.bridge.bridge-nf-call-iptables=0")
    isolated = module_host.plugin(Firewall, {"backend": "iptables", "ingressPolicy": "isolated"})
    with expect_error(50, "nft", "br_netfilter"):
        isolated.status()
    module_host.shell("sysctl -qw net.bridge.bridge-nf-call-iptables=1")
    isolated.status()


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_at_once(host: Host, backend: str) -> None:
    """A bridge keeps its policy as long as an attachment asks for it, though others leave in the same moment."""
    attachments = [attached(host, f"n{number}", 10 + number) for number in range(8)]
    conf = {"name": "net", "backend": backend, "ingressPolicy": "isolated"}

    def attach_and_detach(number: int) -> None:
        container, result = attachments[number]
        plugin = host.plugin(Firewall, conf)
        for _ in range(3):
            plugin.add(container, prevResult=result)
            plugin.check(container, prevResult=result)
            if number:
                plugin.run("DEL", container, prevResult=None).raise_for_error()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attach_and_detach, range(8)))
    plugin = host.plugin(Firewall, conf)
    plugin.check(attachments[0][0], prevResult=attachments[0][1])
    assert len([line for line in rules_of(host, "net: net") if "id: n0" not in line]) == 0
    plugin.run("DEL", attachments[0][0], prevResult=None).raise_for_error()
    assert rules_of(host, "10.1.0.1", '"br1"', "net: net") == []


def test_a_del_deletes_only_what_it_has_seen(host: Host) -> None:
    """The next container gets the address after DEL has looked whose it is, and before DEL deletes it."""
    gone, new = (Attachment("net", name, "eth0") for name in ("c1", "c2"))
    address = [ip_address("10.1.0.5")]
    carry_out = sets.carry_out

    def late(*arguments: Any) -> bool:
        patch.undo()
        firewall.admit(Forwarding("nftables", new, address))
        return carry_out(*arguments)

    def add_and_delete() -> None:
        firewall.admit(Forwarding("nftables", gone, address))
        patch.setattr(sets, "carry_out", late)
        firewall.withdraw(gone)
        firewall.check(Forwarding("nftables", new, address))
        firewall.withdraw(new)

    with pytest.MonkeyPatch.context() as patch:
        host.call(add_and_delete)
    assert own(host) == []


@pytest.mark.parametrize("order", list(permutations(("c1", "c2", "c3"))), ids="".join)
def test_an_address_of_several_goes_with_the_last(host: Host, order: tuple[str, ...]) -> None:
    """An address was given out again by mistake: no DEL cuts off those that are still there."""
    address = ip_address("10.1.0.5")
    for name in ("c1", "c2", "c3"):
        host.call(firewall.admit, Forwarding("nftables", Attachment("net", name, "eth0"), [address]))
    for name in order:
        assert str(address) in host.shell("nft list set inet cni_firewall addresses4")
        host.call(firewall.withdraw, Attachment("net", name, "eth0"))
    assert own(host) == []


@pytest.mark.parametrize("reader", ["_list_accepts", "_find_beside"])
def test_two_dels_of_one_address_leave_no_rule(host: Host, reader: str) -> None:
    """The other one finishes after this one has read whose rules there are, and before it reads the rules."""
    one, other = (Attachment("net", name, "eth0") for name in ("c1", "c2"))
    address = [ip_address("10.1.0.5")]
    read = getattr(firewall_iptables, reader)

    def late(*arguments: Any) -> Any:
        patch.undo()
        firewall.withdraw(other)
        return read(*arguments)

    def add_and_delete() -> None:
        for owner in (one, other):
            firewall.admit(Forwarding("iptables", owner, address))
        if reader == "_list_accepts":
            renumber_iptables()  # or that would not be called
        patch.setattr(firewall_iptables, reader, late)
        firewall.withdraw(one)

    with pytest.MonkeyPatch.context() as patch:
        host.call(add_and_delete)
    assert own(host) == []


def test_check_and_del_read_few_rules_of_others(host: Host) -> None:
    """One chain has the rules of all attachments. Those of one are found without reading it, but for records."""
    owner, both = Attachment("net", "c0", "eth0"), [ip_address("10.1.0.5"), ip_address("2001:db8::5")]

    def read() -> tuple[int, int]:
        firewall.admit(Forwarding("iptables", owner, both))
        checked = received_bytes(firewall.check, Forwarding("iptables", owner, both))
        return checked, received_bytes(firewall.withdraw, owner, both)

    def add_others(first: int, last: int) -> tuple[int, int]:
        for number in range(first, last):
            others = [ip_address(f"10.2.0.{number}"), ip_address(f"2001:db8:2::{number}")]
            firewall.admit(Forwarding("iptables", Attachment("net", f"c{number}", "eth0"), others))
        return read()

    def all_bytes() -> int:
        return sum(received_bytes(NftTable(family, "filter").list_rules, "CNI-FORWARD") for family in ("ip", "ip6"))

    few, many = (host.call(add_others, *each) for each in ((1, 4), (4, 65)))
    assert many[0] - few[0] < host.call(all_bytes) / 8, "some records are read"
    assert many[1] - few[1] < host.call(all_bytes) / 8


def test_gc_of_many_compares_each_rule_with_few_addresses(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all containers of a network, such as after their runtime has forgotten them; and rules of others are there."""
    compared: list[object] = []
    match_address = iptables.match_address

    def counted(*arguments: Any) -> Any:
        compared.append(arguments)
        return match_address(*arguments)

    def collect(number: int) -> int:
        for each in range(number):
            address = [ip_address(f"10.1.0.{each}")]
            firewall.admit(Forwarding("iptables", Attachment("net", f"c{each}", "eth0"), address))
        compared.clear()
        firewall.gc("net", frozenset())
        return len(compared)

    host.shell("iptables -N CNI-FORWARD; iptables -A CNI-FORWARD -s 10.1.0.0/16 -p tcp -j ACCEPT")
    host.shell("iptables -A CNI-FORWARD -p udp -j ACCEPT; iptables -A CNI-FORWARD ! -s 10.1.0.7 -j ACCEPT")
    monkeypatch.setattr(iptables, "match_address", counted)
    few, many = (host.call(collect, number) for number in (30, 60))
    assert few
    assert many <= 3 * few
    assert len(rules_of(host, "10.1.0.")) == 2


def test_rules_with_other_numbers_are_found(host: Host) -> None:
    """An administrator has saved and restored all rules: those of an attachment no longer come next to its record."""
    attachments = [
        (Attachment("net", f"c{number}", "eth0"), [ip_address(f"10.1.0.{number}"), ip_address(f"2001:db8::{number}")])
        for number in (5, 6, 7)
    ]

    def admit_and_withdraw() -> None:
        for owner, both in attachments:
            firewall.admit(Forwarding("iptables", owner, both))
        renumber_iptables()
        owner, both = attachments[1]
        firewall.check(Forwarding("iptables", owner, both))
        firewall.withdraw(owner)
        with expect_error(5, "missing"):
            firewall.check(Forwarding("iptables", owner, both))
        for owner, both in (attachments[0], attachments[2]):
            firewall.check(Forwarding("iptables", owner, both))

    host.call(admit_and_withdraw)
    assert own(host, 6) == [line for line in own(host, 6) if "id: c6" not in line]


def test_busy_hosts_refuse_nothing(host: Host) -> None:
    """Deletions look again when the ruleset has changed, and come to an end though others change it all the time."""

    def add_and_delete(number: int) -> None:
        owner = Attachment("net", f"c{number}", "eth0")
        for _ in range(20):
            firewall.admit(Forwarding("nftables", owner, [ip_address(f"10.1.0.{10 + number}")]))
            firewall.withdraw(owner)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: host.call(add_and_delete, number), range(6)))
    assert rules_of(host, "10.1.0.1", "id: c") == []


# --- hostile inputs, kills --------------------------------------------------------------------------------------------

HOSTILE = "\"'`$;#{}\\ \n\t-,:|&<>*+!@é☃\0ax"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("examples", [10, pytest.param(150, marks=pytest.mark.slow)])
def test_odd_names_and_values_reach_no_rule_unquoted(module_host: Host, backend: str, examples: int) -> None:
    """Rules that were made say what was asked for, and nothing else; what cannot be asked for is refused."""
    words = st.text(HOSTILE, min_size=1, max_size=12)
    links = st.text("".join(set(HOSTILE) - set(" \n\t:\0")), min_size=1, max_size=5)
    ids = st.text("ab.-_", max_size=250).map(lambda text: f"c{text}")
    policies = st.sampled_from(["open", "same-bridge", "isolated"])
    conf = st.fixed_dictionaries(
        {"ingressPolicy": policies | words}, optional={"iptablesAdminChainName": words, "backend": words}
    )

    def attempt(values: tuple[dict[str, Any], str, str, str]) -> None:
        more, ifname, bridge, container_id = values
        result = {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": bridge}, {"name": ifname, "sandbox": "/run/netns/c1"}],
            "ips": [{"interface": 1, "address": "10.1.0.5/24"}],
        }
        document = {"cniVersion": "1.1.0", "name": "net", "type": "firewall", "backend": backend, **more}
        environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container_id, "CNI_IFNAME": ifname, "CNI_NETNS": "/n"}
        text = json.dumps({**document, "prevResult": result}).encode()
        before = listing()
        refused: CNIError | None = None
        try:
            request = parse_request(Verb.ADD, environ, text, FirewallConf, Firewall.supported_versions)
            assert isinstance(request, AddRequest)
            Firewall().add(request)
        except CNIError as exc:
            refused = exc
        made = [line for line in listing() if line not in before]
        if refused is not None:
            assert refused.code in (4, 6, 7), refused
        else:
            assert any("10.1.0.5" in line for line in made)
            accepting = [line for line in made if "accept" in line and "10.1.0.5" not in line]
            assert accepting == []
            dropping = [line for line in made if "drop" in line]
            assert all(f'"{bridge}"' in line for line in dropping)
            assert not dropping or document["ingressPolicy"] != "open"
        firewall.withdraw(Attachment("net", container_id, ifname), [ip_address("10.1.0.5")])
        stays = (f"counter jump {more.get('iptablesAdminChainName')}", "}")
        left = [line for line in listing() if line not in before and not line.startswith("chain ")]
        assert all(line in stays for line in left), left

    def attempts() -> None:
        owner, base = Attachment("net", "base", "eth0"), [ip_address("10.1.0.5")]
        for each in BACKENDS:  # the tables and the rules that stay
            firewall.admit(Forwarding(each, owner, base, ingress=Ingress("isolated", "br0", ("port",))))
            firewall.withdraw(owner)
        given(st.tuples(conf, links, links, ids))(
            settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
                attempt
            )
        )()

    module_host.call(attempts)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_add_leaves_nothing_after_del(host: Host, backend: str) -> None:
    container, result = attached(host, "c1", 5)
    plugin = host.plugin(Firewall, {"backend": backend, "ingressPolicy": "isolated", "prevResult": result})

    def check() -> None:
        assert rules_of(host, *addresses(5), '"br1"', "id: c1", "owner-") == []

    kill_adds(plugin, container, check=check, every_other_replaces=True)


def test_rules_are_those_of_the_program(host: Host) -> None:
    """Rules added by netlink and by iptables-restore look the same to the program, and old programs read them, too."""
    owner = Attachment("net", "c1" * 60, "eth0")
    both = [ip_address("10.1.0.5"), ip_address("2001:db8::5")]

    chains = ("CNI-FORWARD", *firewall_iptables._OWNERS)

    def shown() -> list[str]:
        lines = [line for lines in read_iptables(*chains).values() for line in lines]
        return [line for line in lines if any(str(address) in line for address in both)]

    def add_twice(ingress: Ingress | None) -> None:
        asked = Forwarding("iptables", owner, both, ingress=ingress)
        firewall.admit(asked)
        firewall.admit(asked._replace(owner=owner._replace(ifname="eth1"), addresses=[ip_address("10.1.0.6")]))
        firewall.withdraw(owner)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xt_rules, "add", lambda *_: False)
            assert sorted(started_programs(firewall.admit, asked)) == ["ip6tables-restore", "iptables-restore"]
        by_program = read_iptables(*chains)
        firewall.withdraw(owner)
        assert shown() == []
        firewall.admit(asked)
        assert read_iptables(*chains) == by_program
        assert len(shown()) == 6
        find_by_iptables(by_program)
        check_old_programs_read(*(each.packed for each in both))

    for ingress in (None, Ingress("same-bridge", "br0")):
        host.call(add_twice, ingress)
