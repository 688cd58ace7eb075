"""firewall with the real firewalld: what it lets a host forward, judged by traffic."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnisdk.testing import Container, Host, PluginUnderTest, expect_error, fail
from cnisdk_plugins.firewall import Firewall

from ..firewalld_kit import Bus, Firewalld, skip_without_firewalld
from .conftest import in_version, kill_adds
from .test_firewall import addresses, attached, beyond, meets, outside as outside, rules_of

pytestmark = pytest.mark.kernel

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "repair-rules.md"
WORLD = ("198.51.100.2", "2001:db8:9::2")


@pytest.fixture
def bus(host: Host) -> Iterator[Bus]:
    skip_without_firewalld()
    bus = Bus(host)
    yield bus
    bus.stop()


@pytest.fixture
def firewalld(host: Host, bus: Bus) -> Iterator[Firewalld]:
    """firewalld that lets nothing out by the uplink but what a zone allows."""
    running = Firewalld(host)
    yield running
    running.stop()


def guard(firewalld: Firewalld) -> None:
    """Part the uplink from the bridges, which are in the default zone."""
    firewalld.cmd("--permanent", "--zone=external", "--add-interface=uplink")
    firewalld.cmd("--reload")


def plugin_for(host: Host, result: dict[str, Any], **keys: Any) -> PluginUnderTest:
    return host.plugin(Firewall, {"name": "net", "backend": "firewalld", "prevResult": result, **keys})


def sources(*numbers: int, subnet: int = 1) -> list[str]:
    found = [each for number in numbers for each in addresses(number, subnet)]
    return sorted(f"{each}/{32 if '.' in each else 128}" for each in found)


def records(host: Host) -> list[str]:
    return sorted(host.shell("ls -A /run/cni/firewalld 2>/dev/null || true").split())


def get_out(container: Container, outside: Host, timeout: float = 3) -> list[bool]:
    return [container.reaches(outside, each, timeout=timeout) for each in WORLD]


def test_containers_reach_the_world_through_a_zone(host: Host, outside: Host, firewalld: Firewalld) -> None:
    guard(firewalld)
    container, result = attached(host, "c1", 5)
    plugin = plugin_for(host, result)
    assert get_out(container, outside, 0.3) == [False, False]
    for _ in range(2):
        assert plugin.run("ADD", container).document == result
        plugin.check(container)
        assert firewalld.sources() == sources(5)
        assert get_out(container, outside) == [True, True]
    assert not outside.reaches(container, addresses(5)[0], timeout=0.3)
    for _ in range(2):
        plugin.delete(container)
        assert (firewalld.sources(), records(host)) == ([], [])
    assert get_out(container, outside, 0.3) == [False, False]


def test_by_default_firewalld_is_asked_where_it_runs(host: Host, firewalld: Firewalld) -> None:
    container, result = attached(host, "c1", 5)
    plugin = plugin_for(host, result, backend="", firewalldZone="work")
    plugin.status()
    plugin.add(container)
    assert firewalld.sources("work") == sources(5)
    assert "10.1.0.5" not in host.shell("iptables-save")
    plugin.check(container)
    firewalld.stop()
    with expect_error(5, "CNI-FORWARD"):
        plugin.check(container)
    plugin.add(container)
    assert "10.1.0.5" in host.shell("iptables-save")
    plugin.check(container)
    plugin.delete(container)
    assert "10.1.0.5" not in host.shell("iptables-save")
    assert records(host) == []


@pytest.mark.slow
def test_a_second_add_with_another_backend_leaves_no_source(host: Host, firewalld: Firewalld) -> None:
    container, result = attached(host, "c1", 5)
    other, theirs = attached(host, "c2", 6)
    plugin_for(host, theirs).add(other)
    first = plugin_for(host, result)

    def accepting() -> list[str]:
        listed = host.shell("iptables-save; nft list table inet cni_firewall 2>/dev/null || true")
        return [line for line in listed.splitlines() if "10.1.0.5" in line]

    for backend in ("iptables", "nftables"):
        second = plugin_for(host, result, backend=backend)
        first.add(container)
        second.add(container)
        assert firewalld.sources() == sources(6)
        second.check(container)
        first.add(container)
        assert accepting() == []
        assert sorted(firewalld.sources()) == sorted([*sources(5), *sources(6)])
        second.add(container)
        failed = 0
        for answer in first.at_each_step(fail, "ADD", container):
            failed += answer.status > 0
            if answer.status == 0:
                second.add(container)
            assert firewalld.sources() == sources(6), answer
            second.check(container)
        assert failed
        second.delete(container)
        assert accepting() == []
        plugin_for(host, theirs).check(other)


def test_a_reused_address_is_not_cut_off_by_a_late_del(host: Host, outside: Host, firewalld: Firewalld) -> None:
    guard(firewalld)
    container, result = attached(host, "c1", 5)
    late = host.container("late")
    plugin = plugin_for(host, result)
    plugin.add(late)
    plugin.add(container)
    for known in (result, None, result):
        plugin.run("DEL", late, prevResult=known).raise_for_error()
        plugin.check(container)
        assert get_out(container, outside) == [True, True]
    plugin.run("DEL", container, prevResult=None).raise_for_error()
    assert (firewalld.sources(), records(host)) == ([], [])


def test_a_source_of_the_administrators_stays(host: Host, firewalld: Firewalld) -> None:
    container, result = attached(host, "c1", 5)
    other = host.container("c2")
    plugin = plugin_for(host, result)
    mine = sources(5)[0]
    firewalld.cmd("--zone=trusted", f"--add-source={mine}")
    for _ in range(2):
        plugin.add(container)
    plugin.add(other)
    assert firewalld.sources() == sources(5)
    plugin.delete(container)
    assert firewalld.sources() == sources(5)
    plugin.delete(other)
    assert (firewalld.sources(), records(host)) == ([mine], [])
    plugin.add(container)
    host.plugin(Firewall, {"name": "net"}).gc()
    assert (firewalld.sources(), records(host)) == ([mine], [])
    # A DEL that is repeated finds no record, and takes what is there for the reference's, but not what is permanent.
    firewalld.cmd("--permanent", "--zone=trusted", f"--add-source={mine}")
    plugin.add(container)
    for _ in range(2):
        plugin.delete(container)
        assert (firewalld.sources(), records(host)) == ([mine], [])


@pytest.mark.parametrize("zone", [pytest.param("trusted", marks=pytest.mark.slow), "work"])
def test_a_second_add_that_fails_leaves_the_sources(host: Host, firewalld: Firewalld, zone: str) -> None:
    """The second one has another address, and perhaps another zone."""
    container, result = attached(host, "c1", 5)
    _, other = attached(host, "c2", 6)
    other["ips"][0] = result["ips"][0]
    first, second = plugin_for(host, result), plugin_for(host, other, firewalldZone=zone)
    first.add(container)
    before = [firewalld.sources(), firewalld.sources("work"), records(host)]
    failed = 0
    for answer in second.at_each_step(fail, "ADD", container):
        failed += answer.status > 0
        if answer.status == 0:
            second.delete(container)
            first.add(container)
        assert [firewalld.sources(), firewalld.sources("work"), records(host)] == before, answer

    assert failed
    first.check(container)


def test_a_source_in_the_place_of_the_administrators_goes(host: Host, firewalld: Firewalld) -> None:
    """A restart or reload of firewalld forgets the administrator's, and ADD adds one of its own."""
    container, result = attached(host, "c1", 5)
    other = host.container("c2")
    plugin = plugin_for(host, result)
    firewalld.cmd("--zone=trusted", f"--add-source={sources(5)[0]}")
    plugin.add(container)
    firewalld.cmd("--reload")
    assert firewalld.sources() == []
    plugin.add(other)
    plugin.add(container)
    assert firewalld.sources() == sources(5)
    for each in (other, container):
        plugin.delete(each)
    assert (firewalld.sources(), records(host)) == ([], [])


def test_one_address_of_two_containers_after_a_reload(host: Host, firewalld: Firewalld) -> None:
    """The first ADD after it adds a source of its own. CHECK of the other tells, and its ADD makes it that of both."""
    container, result = attached(host, "c1", 5)
    other = host.container("c2")
    plugin = plugin_for(host, result)
    plugin.add(container)
    plugin.add(other)
    firewalld.cmd("--reload")
    assert plugin.repair(container)
    with expect_error(5, "goes with container", "c1"):
        plugin.check(other)
    plugin.add(other)
    plugin.check(container)
    plugin.delete(container)
    plugin.check(other)
    assert firewalld.sources() == sources(5)
    plugin.delete(other)
    assert (firewalld.sources(), records(host)) == ([], [])


def test_late_dels_beside_adds_of_the_same_addresses(host: Host, firewalld: Firewalld) -> None:
    gone = [host.container(f"late{number}") for number in range(4)]
    made = [attached(host, f"c{number}", 10 + number) for number in range(4)]
    plugins = [plugin_for(host, result) for _, result in made]
    for plugin, late in zip(plugins, gone, strict=True):
        plugin.add(late)
    adds = [(plugin.add, container) for plugin, (container, _) in zip(plugins, made, strict=True)]
    dels = [(plugin.delete, late) for plugin, late in zip(plugins, gone, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(*each) for pair in zip(adds, dels, strict=True) for each in pair]:
            future.result()
    assert firewalld.sources() == sources(10, 11, 12, 13)
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(plugin.delete, each) for plugin, (each, _) in zip(plugins, made, strict=True)]:
            future.result()
    assert (firewalld.sources(), records(host)) == ([], [])


def test_del_and_gc_need_nothing_but_the_owner(host: Host, firewalld: Firewalld) -> None:
    made = [attached(host, f"c{number}", 10 + number) for number in range(4)]
    for number, (container, result) in enumerate(made):
        plugin_for(host, result, name="other" if number == 3 else "net").add(container)
    firewalld.cmd("--zone=trusted", "--add-source=192.0.2.0/24")
    container, _ = made[0]
    container.destroy()
    changed = host.plugin(Firewall, {"name": "net", "backend": "iptables", "firewalldZone": "work"})
    changed.run("DEL", container).raise_for_error()
    assert firewalld.sources() == [*sources(11, 12, 13)[:3], "192.0.2.0/24", *sources(11, 12, 13)[3:]]
    changed.gc(made[2][0])
    assert firewalld.sources() == sorted([*sources(12, 13), "192.0.2.0/24"])
    changed.gc()
    host.plugin(Firewall, {"name": "other"}).gc()
    assert (firewalld.sources(), records(host)) == (["192.0.2.0/24"], [])


def test_an_add_with_another_zone_and_other_addresses(host: Host, firewalld: Firewalld) -> None:
    container, result = attached(host, "c1", 5)
    plugin_for(host, result).add(container)
    less = {**result, "ips": result["ips"][:1]}
    plugin_for(host, less, firewalldZone="work").add(container)
    assert (firewalld.sources(), firewalld.sources("work")) == ([], ["10.1.0.5/32"])
    plugin_for(host, less).delete(container)
    assert (firewalld.sources("work"), records(host)) == ([], [])


def test_check_asks_for_the_zone_and_repair_puts_it_right(host: Host, firewalld: Firewalld) -> None:
    container, result = attached(host, "c1", 5)
    plugin = plugin_for(host, result)
    plugin.add(container)
    assert not plugin.repair(container)
    for source in sources(5):
        firewalld.cmd("--zone=trusted", f"--remove-source={source}")
        with expect_error(5, f"{source} is no source of firewalld's zone trusted: it is in no zone"):
            plugin.check(container)
        assert plugin.repair(container)
        plugin.check(container)
    firewalld.cmd("--zone=work", "--change-source=10.1.0.5/32")
    with expect_error(5, "it is in zone work"):
        plugin.check(container)
    plugin.delete(container)
    assert firewalld.sources("work") == ["10.1.0.5/32"], "the operator has put it there"
    assert (firewalld.sources(), records(host)) == ([], [])


def test_policies_hold_beside_a_zone(host: Host, firewalld: Firewalld) -> None:
    (one, first), (two, second) = attached(host, "c1", 5, "br1"), attached(host, "c2", 6, "br2")
    made = [(each, plugin_for(host, has, ingressPolicy="same-bridge")) for each, has in ((one, first), (two, second))]
    for container, plugin in made:
        plugin.add(container, ingressPolicy="open")
    assert one.reaches(two)
    for container, plugin in made:
        plugin.add(container)
    assert not one.reaches(two, timeout=0.3)
    firewalld.cmd("--reload")
    for container, plugin in made:
        with expect_error(5):
            plugin.check(container)
        assert plugin.repair(container)
        plugin.check(container)
    assert not one.reaches(two, timeout=0.3)
    for container, plugin in made:  # once more, without it
        plugin.add(container, ingressPolicy="open")
        plugin.check(container, ingressPolicy="open")
    assert one.reaches(two)
    for container, plugin in made:
        plugin.add(container)
    made[1][1].delete(two)
    made[0][1].delete(one)
    assert (firewalld.sources(), records(host)) == ([], [])
    assert rules_of(host, "10.2.0.6", '"br1"', '"br2"') == []


def test_isolated_containers_beside_a_zone(host: Host, outside: Host, firewalld: Firewalld) -> None:
    """On one bridge and on two, also after firewalld has forgotten its sources, and until the last goes."""
    guard(firewalld)
    made = []
    for name, number, bridge in (("c1", 5, "br1"), ("c2", 6, "br1"), ("c3", 7, "br2")):
        container, result = attached(host, name, number, bridge)
        made.append((container, plugin_for(host, result, ingressPolicy="isolated")))
    (one, first), (two, second), (three, third) = made
    for container, plugin in made:
        plugin.add(container, ingressPolicy="open")
    for other in (two, three):
        assert all(meets(other, one, target) for target in addresses(5))
    for container, plugin in made:
        plugin.add(container)
        plugin.check(container)
    firewalld.cmd("--reload")
    for container, plugin in made:
        with expect_error(5):
            plugin.check(container)
        assert plugin.repair(container)
        plugin.check(container)
    for target in addresses(5):
        assert all(meets(other, one, target, expected=False) for other in (two, three))
        assert host.reaches(one, target)
    assert all(get_out(one, outside))
    second.delete(two)
    assert meets(two, one, addresses(5)[0], expected=False)
    first.delete(one)
    third.delete(three)
    assert (firewalld.sources(), records(host)) == ([], [])
    assert rules_of(host, *addresses(5), *addresses(6), '"v-c', "id: c") == []


def test_a_failed_add_leaves_nothing(host: Host, bus: Bus) -> None:
    container, result = attached(host, "c1", 5)
    plugin = plugin_for(host, result)
    for fails in (plugin.status, lambda: plugin.add(container), lambda: plugin.check(container)):
        with expect_error(50, "firewalld does not run"):
            fails()
    running = Firewalld(host)
    try:
        running.cmd("--zone=work", f"--add-source={sources(5)[1]}")
        with expect_error(5, "in zone work, not in trusted"):
            plugin.add(container)
        assert running.sources() == []
        nowhere = plugin_for(host, result, firewalldZone="nowhere")
        with expect_error(7, "firewalld has no zone 'nowhere'", "$.firewalldZone"):
            nowhere.add(container)
        with expect_error(50, "firewalld has no zone 'nowhere'"):
            nowhere.status()
        nowhere.run("DEL", container).raise_for_error()
        assert records(host) == []
    finally:
        running.stop()


class Guarded(NamedTuple):
    """A host that tests share: firewalld lets nothing out but what a zone allows, and two bridges have a container.

    Attributes:
        host: The host.
        outside: Its neighbour.
        firewalld: Its firewalld.
        one: A container, and the result that tells of it.
        two: A container on the other bridge, with its result.
    """

    host: Host
    outside: Host
    firewalld: Firewalld
    one: tuple[Container, dict[str, Any]]
    two: tuple[Container, dict[str, Any]]

    def clear(self) -> None:
        """Delete all that plugins have left, also the rules that the reference never deletes."""
        self.host.plugin(Firewall, {"name": "net"}).gc()
        for source in self.firewalld.sources():  # of a test that has failed
            self.firewalld.cmd("--zone=trusted", f"--remove-source={source}")
        for table in ("ip filter", "ip6 filter"):
            self.host.run(["nft", "delete", "table", *table.split()], check=False)


@pytest.fixture(scope="module")
def shared_guarded(module_host: Host) -> Iterator[Guarded]:
    skip_without_firewalld()
    with ExitStack() as stack:
        outside = stack.enter_context(beyond(module_host))
        bus = Bus(module_host)
        stack.callback(bus.stop)
        firewalld = Firewalld(module_host)
        stack.callback(firewalld.stop)
        guard(firewalld)
        containers = attached(module_host, "c1", 5), attached(module_host, "c2", 6, "br2")
        yield Guarded(module_host, outside, firewalld, *containers)


@pytest.fixture
def guarded(shared_guarded: Guarded) -> Iterator[Guarded]:
    yield shared_guarded
    shared_guarded.clear()


@pytest.mark.interop
@pytest.mark.parametrize("adder", ["go", "ours"])
@pytest.mark.parametrize(
    ("version", "backend", "policy"),
    [
        ("0.4.0", "firewalld", "open"),
        ("1.0.0", "firewalld", "same-bridge"),
        ("0.4.0", "", "same-bridge"),
        ("1.0.0", "", "open"),
    ],
)
def test_go_and_ours_check_and_delete_what_the_other_added(
    guarded: Guarded, go: Path, version: str, backend: str, policy: str, adder: str
) -> None:
    """The packaged one knows no 1.1.0. Without a backend, both choose firewalld, as they find it running."""
    host, outside, firewalld, (one, first), (two, second) = guarded
    conf = {"name": "net", "cniVersion": version, "backend": backend, "ingressPolicy": policy}
    ours, theirs = host.plugin(Firewall, conf), host.plugin(go / "firewall", conf)
    by, other = (theirs, ours) if adder == "go" else (ours, theirs)
    known: dict[str, Any] = {"prevResult": in_version(first, version)}
    others: dict[str, Any] = {"prevResult": in_version(second, version)}
    by.run("ADD", one, **known).raise_for_error()
    for plugin in (by, other):
        plugin.run("CHECK", one, **known).raise_for_error()
    assert firewalld.sources() == sources(5)
    other.run("ADD", two, **others).raise_for_error()
    assert firewalld.sources() == sorted([*sources(5), *sources(6, subnet=2)])
    assert "-j CNI-FORWARD" not in host.shell("iptables-save; ip6tables-save"), "a zone accepts, and no rule"
    assert [get_out(each, outside) for each in (one, two)] == [[True, True], [True, True]]
    assert all(meets(two, one, target, policy == "open") for target in addresses(5))
    other.run("DEL", one, **known).raise_for_error()
    assert get_out(one, outside, 0.3) == [False, False]
    by.run("DEL", two, **others).raise_for_error()
    assert firewalld.sources() == []
    # What the reference's DEL leaves of ours goes with the next DEL of the attachment, or with GC.
    ours.run("DEL", one if adder == "ours" else two, prevResult=None).raise_for_error()
    assert records(host) == []
    assert rules_of(host, "CNI firewall: ", "id: c") == []


@pytest.mark.interop
def test_a_late_del_beside_the_references_sources(guarded: Guarded, go: Path) -> None:
    host, _, firewalld, (container, result), (other, another) = guarded
    late = Container(host, "gone")
    conf = {"name": "net", "cniVersion": "1.0.0", "prevResult": in_version(result, "1.0.0")}
    ours, theirs = host.plugin(Firewall, conf), host.plugin(go / "firewall", conf)
    theirs.run("ADD", container).raise_for_error()
    ours.run("ADD", other, prevResult=in_version(another, "1.0.0")).raise_for_error()
    ours.run("DEL", other, prevResult=None).raise_for_error()
    assert firewalld.sources() == sources(5)
    # The reference's container is the next one with the address: a late DEL of one that it made before.
    ours.run("DEL", late).raise_for_error()
    assert firewalld.sources() == sources(5)
    ours.run("DEL", container).raise_for_error()
    assert firewalld.sources() == []


@pytest.mark.interop
def test_a_record_that_the_reference_has_left_keeps_no_source(guarded: Guarded, go: Path) -> None:
    """The reference deletes the source of ours, not the record. The address is another container's afterwards."""
    host, _, firewalld, (container, result), (before, _) = guarded
    conf = {"name": "net", "cniVersion": "1.0.0", "prevResult": in_version(result, "1.0.0")}
    ours, theirs = host.plugin(Firewall, conf), host.plugin(go / "firewall", conf)
    for late_first in (False, True):
        ours.run("ADD", before).raise_for_error()
        theirs.run("DEL", before).raise_for_error()
        assert (firewalld.sources(), len(records(host))) == ([], 2)
        ours.run("ADD", container).raise_for_error()
        if late_first:
            ours.run("DEL", before).raise_for_error()
            ours.run("CHECK", container).raise_for_error()
        ours.run("DEL", container).raise_for_error()
        assert firewalld.sources() == []
        ours.run("DEL", before).raise_for_error()
        assert records(host) == []


@pytest.mark.interop
def test_gc_takes_no_source_of_the_references_next_container(guarded: Guarded, go: Path) -> None:
    """The reference has deleted the source of the one before, which ours made, and left the record."""
    host, _, firewalld, (before, _), _ = guarded
    container, result = attached(host, "c3", 7)
    conf = {"name": "net", "cniVersion": "1.0.0", "prevResult": in_version(result, "1.0.0")}
    ours, theirs = host.plugin(Firewall, conf), host.plugin(go / "firewall", conf)
    collector = host.plugin(Firewall, {"name": "net"})
    # One that is not valid may live: its own use of the address keeps nothing.
    ours.run("ADD", container).raise_for_error()
    collector.gc()
    assert (firewalld.sources(), records(host)) == ([], [])
    ours.run("ADD", before).raise_for_error()
    theirs.run("DEL", before).raise_for_error()
    theirs.run("ADD", container).raise_for_error()
    collector.gc(container)
    assert firewalld.sources() == sources(7)
    container.destroy()
    theirs.run("DEL", container).raise_for_error()
    collector.gc()
    assert (firewalld.sources(), records(host)) == ([], [])


def test_a_killed_add_leaves_nothing_after_del(host: Host, firewalld: Firewalld) -> None:
    container, result = attached(host, "c1", 5)

    def check() -> None:
        assert (firewalld.sources(), records(host)) == ([], [])

    kill_adds(plugin_for(host, result), container, check=check, attempts=25)


def test_the_unit_of_the_guide_repairs_after_a_reload(host: Host, firewalld: Firewalld) -> None:
    """Its command, with the repair of one attachment in the place of the program that looks for all."""
    container, result = attached(host, "c1", 5)
    plugin = plugin_for(host, result)
    plugin.add(container)
    found = re.search(r"^ExecStart=/bin/sh -c '(.*)'$", GUIDE.read_text(), re.MULTILINE)
    assert found
    command = found[1].replace("/usr/local/bin/cnisdk repair", "echo reloaded")
    watcher = host.popen(["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True)
    assert watcher.stdout is not None
    try:
        for _ in range(60):  # nothing tells when the monitor has begun to listen
            firewalld.cmd("--reload")
            if select.select([watcher.stdout], [], [], 1.0)[0]:
                break
        assert watcher.stdout.readline() == "reloaded\n"
        assert firewalld.sources() == []
        assert plugin.repair(container)
        assert firewalld.sources() == sources(5)
    finally:
        os.killpg(watcher.pid, signal.SIGKILL)
        watcher.communicate()
