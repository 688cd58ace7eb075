"""Promises of all interface plugins, held against each of them: see tests/interface_kit.py."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import pytest

from cnisdk.errors import CNIError, InvalidConfigError, PluginNotAvailableError
from cnisdk.invoke import _local
from cnisdk.testing import Host, fail, kill_after
from cnisdk.testing.stub import read_leases

from ..interface_kit import (
    DUAL_STACK,
    GO,
    INTEROP_VERSIONS,
    LEASES,
    Bench,
    CountRoundTrips,
    run_host_local,
    subjects,
    without_chance,
)

pytestmark = pytest.mark.kernel

KILLS = int(os.environ.get("CNISDK_TEST_KILLS", "100"))


@pytest.fixture
def bench(host: Host, name: str) -> Bench:
    return Bench(host, name)


@pytest.mark.parametrize("name", subjects())
def test_del_in_every_form(bench: Bench) -> None:
    """DEL needs neither the namespace, nor a previous result, nor the configuration of before; twice is fine."""
    container, ours = bench.container, bench.ours
    ours.delete(container)
    bench.assert_nothing_is_left("never added")
    ours.add(container)
    ours.delete(container)
    bench.assert_nothing_is_left("as it was added")
    ours.delete(container)
    ours.add(container)
    nonsense: dict[str, Any] = {key: [] for key in bench.subject.conf}
    ours.run("DEL", container, **nonsense).raise_for_error()
    bench.assert_nothing_is_left("with a nonsensical configuration, and no previous result")
    ours.add(container)
    ours.run("DEL", container, environ={"CNI_NETNS": ""}).raise_for_error()
    assert bench.stub.leases == {}
    container.destroy()
    bench.run("DEL").raise_for_error()
    if not bench.subject.lends:
        assert bench.host.state(rules=False).without("files").of("") == bench.before.of("")
    assert bench.stub.leases == {}


@pytest.mark.parametrize("name", subjects(delegating=True))
def test_a_second_add_changes_nothing(bench: Bench) -> None:
    bench.ours.add(bench.container)
    added, leases = bench.state(), bench.stub.leases
    with pytest.raises(CNIError):
        bench.ours.add(bench.container)
    assert (bench.state(), bench.stub.leases) == (added, leases)
    bench.ours.check(bench.container)


@pytest.mark.parametrize("name", subjects(delegating=True))
def test_ipam_that_fails(bench: Bench) -> None:
    bench.stub.fail("ADD", 11, "no address is left")
    with pytest.raises(CNIError, match="no address is left"):
        bench.ours.add(bench.container)
    bench.assert_nothing_is_left()
    bench.stub.answer("ADD", {"cniVersion": "1.1.0", "routes": []})
    with pytest.raises(InvalidConfigError, match="returned no address"):
        bench.ours.add(bench.container)
    bench.assert_nothing_is_left()
    bench.stub.recover("ADD")
    bench.ours.add(bench.container)
    bench.stub.fail("DEL", 11, "not now")
    with pytest.raises(CNIError, match="not now"):
        bench.ours.delete(bench.container)
    assert bench.state() == bench.before
    bench.stub.recover("DEL")
    bench.ours.delete(bench.container)
    bench.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("name", subjects())
def test_a_fault_at_each_step_leaves_nothing(bench: Bench) -> None:
    """A step that ADD can do without may fail; then it succeeds."""
    assert bench.on_the_host(fail_at_each_step) > 5
    bench.run("DEL").raise_for_error()
    bench.assert_nothing_is_left()


def fail_at_each_step(bench: Bench) -> int:
    """Return how often ADD failed."""
    step, answer, failed = 1, bench.run("ADD", fail(1, errno.EIO)), 0
    while answer.struck:
        if answer.status:
            failed += 1
            assert bench.state_here() == bench.before, f"step {step}: {answer.stdout}"
            assert read_leases(bench.stub.directory) == {}, f"step {step}: {answer.stdout}"
        else:
            bench.run("DEL").raise_for_error()
        step += 1
        answer = bench.run("ADD", fail(step, errno.EIO))
    return failed


@pytest.mark.slow
@pytest.mark.parametrize("name", subjects())
def test_killed_anywhere_del_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_local, "runner", run_host_local)
    bench.ours = bench.plugin(bench.subject.plugin, ipam=DUAL_STACK)
    assert bench.on_the_host(kill_anywhere) > KILLS / 3


def kill_anywhere(bench: Bench) -> int:
    """Return how often ADD was killed before its end."""
    whole = 0.0
    for _ in range(2):  # the first time, all takes longer
        started = time.monotonic()
        bench.run("ADD").raise_for_error()
        whole = time.monotonic() - started
        bench.run("DEL").raise_for_error()
    before = bench.state_here()
    chance = random.Random(13)  # seeded, to be repeatable
    killed = 0
    for round_ in range(KILLS):
        died = bench.run("ADD", kill_after(chance.uniform(0, 1) * whole)).status == -signal.SIGALRM
        # How long it takes changes with what else the machine does. So some three of four rounds end before ADD does.
        whole *= 1.03 if died else 0.9
        killed += died
        bench.run("DEL").raise_for_error()
        assert bench.state_here() == before, f"round {round_}"
    return killed


@pytest.mark.parametrize("name", [each for each in subjects(delegating=True) if each.values[0] not in ("dummy", "tap")])
def test_router_advertisements_are_heard_when_asked_for(bench: Bench) -> None:
    """On a network with a router, IPAM may give the address, and the router the default route."""
    for asked, address, heard in (
        (None, "2001:db8::2/64", "0"),
        (True, "2001:db8::2/64", "1"),
        (None, "10.9.0.2/24", "1"),
        (False, "10.9.0.2/24", "0"),
    ):
        gateway = "2001:db8::1" if ":" in address else "10.9.0.1"
        bench.stub.answer("ADD", {"cniVersion": "1.1.0", "ips": [{"address": address, "gateway": gateway}]})
        keys = {} if asked is None else {"acceptRA": asked}
        plugin = bench.plugin(bench.subject.plugin, ipam=bench.stub.conf, **keys)
        plugin.add(bench.container)
        assert bench.container.sysctl("net/ipv6/conf/eth0/accept_ra") == heard, (asked, address)
        plugin.delete(bench.container)


@pytest.mark.parametrize("name", subjects())
def test_netlink_round_trips(bench: Bench) -> None:
    bench.run("ADD", CountRoundTrips(0)).raise_for_error()
    counted = bench.host.call(CountRoundTrips.counted.read_bytes)
    assert len(counted) == bench.subject.round_trips, counted


@pytest.mark.parametrize("name", subjects(delegating=True))
def test_verbs_are_forwarded(bench: Bench) -> None:
    bench.ours.status()
    bench.ours.add(bench.container)
    bench.ours.check(bench.container)
    bench.ours.gc(bench.container)
    assert bench.stub.verbs == ["STATUS", "ADD", "CHECK", "GC"]
    bench.ours.check(bench.container)
    bench.ours.gc()
    assert bench.stub.leases == {}
    bench.ours.delete(bench.container)
    bench.stub.fail("STATUS", 50, "the pool is full")
    with pytest.raises(PluginNotAvailableError, match="the pool is full"):
        bench.ours.status()


@pytest.mark.interop
@pytest.mark.parametrize(
    "versions",
    [INTEROP_VERSIONS[-1:], pytest.param(INTEROP_VERSIONS[:-1], marks=pytest.mark.slow)],
    ids=["last", "all"],
)
@pytest.mark.parametrize("name", subjects(reference=True))
def test_interop_with_the_reference(bench: Bench, go: None, versions: Sequence[str]) -> None:
    """Added by one, checked and deleted by the other; results equal but for chance."""
    for version in versions:
        ours, theirs = (
            bench.plugin(plugin, ipam=DUAL_STACK, cniVersion=version)
            for plugin in (bench.subject.plugin, GO / bench.type)
        )
        results = []
        for adding, other in ((ours, theirs), (theirs, ours)):
            answer = adding.run("ADD", bench.container)
            answer.raise_for_error()
            results.append(without_chance(answer.document))
            previous = {"prevResult": answer.document} if version >= "0.4" else {}
            if previous:
                other.run("CHECK", bench.container, **previous).raise_for_error()
            other.run("DEL", bench.container, **previous).raise_for_error()
            bench.host.shell(bench.subject.tidy or ":")
            bench.assert_nothing_is_left(version)
            # Both start at the same address again.
            bench.host.shell(f"rm -rf {LEASES}/*")
        if version >= bench.subject.equal_since:
            assert results[0] == results[1], version


@pytest.mark.interop
@pytest.mark.parametrize("adder", ["ours", "reference"])
@pytest.mark.parametrize("name", [each for each in subjects(reference=True) if each.values[0] != "loopback"])
def test_a_late_del_leaves_the_next_container_at_the_path_alone(bench: Bench, go: None, adder: str) -> None:
    """The path of a namespace, such as that of a process, leads to another container by now. Its links have no mark."""
    ours = bench.plugin(bench.subject.plugin, ipam=DUAL_STACK, cniVersion="1.0.0")
    alive = ours if adder == "ours" else bench.plugin(GO / bench.type, ipam=DUAL_STACK, cniVersion="1.0.0")
    result = alive.run("ADD", bench.container).document
    before = bench.state()
    other = json.loads(json.dumps(result).replace("10.1.0.", "10.1.9.").replace("2001:db8:1:", "2001:db8:9:"))
    for interface in other["interfaces"]:
        interface["mac"] = "02:00:00:00:99:99"
    gone = "nic7" if "device" in bench.subject.conf else None
    late = (
        ours if gone is None else bench.plugin(bench.subject.plugin, ipam=DUAL_STACK, cniVersion="1.0.0", device=gone)
    )
    late.run("DEL", bench.container, environ={"CNI_CONTAINERID": "late"}, prevResult=other).raise_for_error()
    assert bench.state() == before
    ours.run("DEL", bench.container, prevResult=result).raise_for_error()
    bench.host.shell(bench.subject.tidy or ":")
    bench.assert_nothing_is_left()


@pytest.mark.interop
@pytest.mark.parametrize("name", [each for each in subjects(reference=True) if each.values[0] != "loopback"])
def test_del_after_tuning_put_the_hardware_address_back(bench: Bench, go: None) -> None:
    """DEL goes from the last plugin to the first: the interface may have another hardware address than the result."""
    theirs = bench.plugin(GO / bench.type, ipam=DUAL_STACK, cniVersion="1.0.0")
    ours = bench.plugin(bench.subject.plugin, ipam=DUAL_STACK, cniVersion="1.0.0")
    result = theirs.run("ADD", bench.container).document
    for interface in result["interfaces"]:
        if interface.get("sandbox"):
            interface["mac"] = "02:00:00:00:99:99"
    ours.run("DEL", bench.container, prevResult=result).raise_for_error()
    bench.host.shell(bench.subject.tidy or ":")
    bench.assert_nothing_is_left()


@pytest.fixture
def go() -> None:
    """The reference plugins."""
    if not GO.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{GO} is not there (Debian: containernetworking-plugins)")
        pytest.skip(f"{GO} is not there (Debian: containernetworking-plugins)")


def test_what_they_say_of_themselves() -> None:
    """nerdctl reads the version of the reference release whose features a plugin has."""
    for each in entry_points(group="cnisdk.plugins"):
        first, second, *rest = each.load().about.splitlines()
        assert re.fullmatch(rf"CNI {each.name} plugin v\d+\.\d+\.\d+", first), first
        assert second.startswith("CNI protocol versions supported: "), second
        assert rest == []
