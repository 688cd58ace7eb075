"""bandwidth: limits of what a container receives and sends, proved by traffic."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cnisdk.linux import link, traffic
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host, expect_error
from cnisdk_plugins.bandwidth import Bandwidth, ifb_names

from .conftest import attached, in_version, kill_adds

pytestmark = pytest.mark.kernel

LIMITS: dict[str, Any] = {
    "ingressRate": 40_000_000,
    "ingressBurst": 400_000,
    "egressRate": 80_000_000,
    "egressBurst": 400_000,
}
EVERYTHING = {**LIMITS, "name": "net"}


def discipline(host: Host, ifname: str) -> dict[str, Any]:
    """Return what tc tells of a link's root discipline."""
    (shown,) = json.loads(host.shell(f"tc -j qdisc show dev {ifname} root"))
    return {key: shown.get("options", {}).get(key) for key in ("rate", "lat")} | {"kind": shown["kind"]}


def ifbs(host: Host) -> list[str]:
    return [each["ifname"] for each in host.ip("link", "show", "type", "ifb")]


def test_limits_are_set_checked_and_taken_off(host: Host) -> None:
    container, result = attached(host)
    plugin = host.plugin(Bandwidth, {**EVERYTHING, "prevResult": result})
    answered = plugin.run("ADD", container).document
    (name,) = ifbs(host)
    assert answered["interfaces"][:2] == result["interfaces"]
    assert [each["name"] for each in answered["interfaces"][2:]] == [name]
    assert answered["foreign"] == result["foreign"]
    # tc tells bytes per second.
    assert discipline(host, "v-c1") == {"kind": "tbf", "rate": 5_000_000, "lat": 25_000}
    assert discipline(host, name) == {"kind": "tbf", "rate": 10_000_000, "lat": 25_000}
    plugin.check(container, prevResult=answered)
    plugin.add(container)
    plugin.check(container, prevResult=answered)
    assert ifbs(host) == [name], "a second ADD of the same makes no second link"
    plugin.delete(container)
    plugin.delete(container)
    assert ifbs(host) == []


def test_it_says_that_it_supports_no_version_whose_results_name_no_host_link(host: Host) -> None:
    container, result = attached(host)
    plugin = host.plugin(Bandwidth, {**EVERYTHING, "prevResult": result})
    (said,) = [plugin.run("VERSION").document["supportedVersions"]]
    assert said == ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    for version in said:
        before = in_version(result, version)
        answered = plugin.run("ADD", container, cniVersion=version, prevResult=before)
        assert answered.status == 0, answered
        plugin.delete(container, cniVersion=version, prevResult=answered.document if version >= "0.4.0" else None)
    old = {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24"}}
    with expect_error(1, "0.2.0"):
        plugin.add(container, cniVersion="0.2.0", prevResult=old)


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_traffic_keeps_the_limit_within_a_tenth(host: Host, direction: str) -> None:
    container, result = attached(host)
    host.shell("ip address add 10.1.0.1/24 dev v-c1")
    limit = {f"{direction}Rate": 40_000_000, f"{direction}Burst": 160_000}
    host.plugin(Bandwidth, {**limit, "prevResult": result}).add(container)
    inside = container.open_socket(socket.AF_INET, socket.SOCK_STREAM, bind=("10.1.0.2", 0))
    outside = host.open_socket(socket.AF_INET, socket.SOCK_STREAM, bind=("10.1.0.1", 0))
    receiver, sender = (inside, outside) if direction == "ingress" else (outside, inside)
    with receiver, sender:
        receiver.listen()
        sender.connect(receiver.getsockname())
        accepted, _ = receiver.accept()
        with accepted:
            rate = measure(sender, accepted)
    assert 0.9 * 5_000_000 < rate * 1.05 < 1.1 * 5_000_000, "of which a twentieth is headers"


def measure(sender: socket.socket, receiver: socket.socket) -> float:
    """Bytes per second that arrive, once the burst is through."""
    whole = 6_000_000

    def send() -> None:
        sender.sendall(bytes(whole))

    thread = threading.Thread(target=send)
    thread.start()
    received, started, first = 0, 0.0, 0
    while received < whole:
        received += len(receiver.recv(1 << 16))
        if not started and received > 1_000_000:
            started, first = time.monotonic(), received
    took = time.monotonic() - started
    thread.join()
    return (received - first) / took


def test_rates_beyond_32_bits(host: Host) -> None:
    container, result = attached(host)
    plugin = host.plugin(Bandwidth, {"ingressRate": 80_000_000_000, "ingressBurst": 800_000_000, "prevResult": result})
    plugin.add(container)
    assert discipline(host, "v-c1")["rate"] == 10_000_000_000
    plugin.check(container)


@pytest.mark.parametrize(
    ("conf", "texts"),
    [
        ({"ingressRate": 8000}, ["if rate is set, burst must also be set", "$.ingressBurst"]),
        ({"egressBurst": 8000}, ["if burst is set, rate must also be set", "$.egressRate"]),
        ({"runtimeConfig": {"bandwidth": {"egressRate": 8}}}, ["$.runtimeConfig.bandwidth.egressBurst"]),
        ({"ingressRate": 7, "ingressBurst": 80}, ["$.ingressRate is 7"]),
        ({"ingressRate": -8, "ingressBurst": 80}, ["$.ingressRate is -8"]),
        ({"ingressRate": 8, "ingressBurst": 8 * 2**32}, ["burst cannot be more than 4GB"]),
        ({"egressRate": 8 * 2**64, "egressBurst": 8000}, ["$.egressRate is 147573952589676412928"]),
        ({"ingressRate": 10**400, "ingressBurst": 8000}, [f"$.ingressRate is 1{'0' * 78}…, expected"]),
        ({"ingressRate": -(10**400), "ingressBurst": 8000}, [f"$.ingressRate is -1{'0' * 77}…, expected"]),
        ({"egressRate": 8000, "egressBurst": 10**400}, [f"$.egressBurst is 1{'0' * 78}… bits"]),
        ({**LIMITS, "shapedSubnets": ["10.0.0.0/8"]}, ["$.shapedSubnets is not supported"]),
    ],
)
def test_what_cannot_be_meant_is_refused(host: Host, conf: dict[str, Any], texts: list[str]) -> None:
    container, result = attached(host)
    plugin = host.plugin(Bandwidth, {**conf, "prevResult": result})
    for ask in (lambda: plugin.add(container), lambda: plugin.check(container)):
        with expect_error(7, *texts):
            ask()
    plugin.delete(container)


@pytest.mark.parametrize("wanted", [(2**64, 1000), (10**400, 1000), (0, 1000), (1000, 2**32), (1000, 0)])
def test_a_limit_that_no_link_can_have(host: Host, wanted: tuple[int, int]) -> None:
    """A plugin's author may hand on what a configuration says."""
    with expect_error(7, "bytes per second"):
        host.call(lambda: traffic.limit(link.get("lo"), traffic.Limit(*wanted)))


def test_the_capability_counts_where_no_key_is_set(host: Host) -> None:
    container, result = attached(host)
    capability = {"runtimeConfig": {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 80_000}}}
    plugin = host.plugin(Bandwidth, {**capability, "prevResult": result})
    plugin.add(container)
    assert discipline(host, "v-c1")["rate"] == 1_000_000
    plugin.add(container, **LIMITS)
    assert discipline(host, "v-c1")["rate"] == 5_000_000


def test_without_limits_the_result_is_handed_on(host: Host) -> None:
    container, result = attached(host)
    plugin = host.plugin(Bandwidth, {"prevResult": result})
    assert plugin.run("ADD", container).document == result
    plugin.check(container)
    with expect_error(7, "required prevResult missing"):
        plugin.add(container, prevResult=None)


def test_check_names_what_differs(host: Host) -> None:
    container, result = attached(host)
    plugin = host.plugin(Bandwidth, {**EVERYTHING, "prevResult": result})
    answered = plugin.run("ADD", container).document
    (name,) = ifbs(host)
    for spoil, text in (
        ("tc filter delete dev v-c1 parent ffff: pref 1", f"v-c1 are not redirected to link {name}"),
        (
            f"tc qdisc change dev {name} root tbf rate 1mbit burst 50kb latency 25ms",
            "125000 bytes per second at most",
        ),
        (f"ip link delete {name}", "is gone"),
        ("tc qdisc delete dev v-c1 root", "v-c1 has no limit"),
    ):
        host.shell(spoil)
        with expect_error(5, text):
            plugin.check(container, prevResult=answered)


def test_a_failed_add_leaves_the_disciplines_of_other_programs(host: Host) -> None:
    """Those of eBPF have their programs in clsact, which is where the kernel has ingress: both cannot be there."""
    container, result = attached(host)
    host.shell("tc qdisc add dev v-c1 clsact")
    before = host.shell("tc qdisc show dev v-c1")
    plugin = host.plugin(Bandwidth, {**EVERYTHING, "prevResult": result})
    with expect_error(5, "cannot redirect what comes in on link v-c1"):
        plugin.add(container)
    assert host.shell("tc qdisc show dev v-c1") == before
    assert ifbs(host) == []
    plugin.delete(container)
    assert host.shell("tc qdisc show dev v-c1") == before


def test_a_filter_of_another_program_is_not_replaced(host: Host) -> None:
    container, result = attached(host)
    host.shell(
        "tc qdisc add dev v-c1 ingress; tc filter add dev v-c1 ingress prio 1 u32 match ip dport 80 0xffff flowid 1:1"
    )
    before = host.shell("tc filter show dev v-c1 ingress")
    plugin = host.plugin(Bandwidth, {**EVERYTHING, "prevResult": result})
    with expect_error(5, "link v-c1 has a filter of another program (u32)"):
        plugin.add(container)
    assert host.shell("tc filter show dev v-c1 ingress") == before
    assert ifbs(host) == []
    host.shell("tc filter del dev v-c1 ingress")
    plugin.add(container)
    plugin.add(container)
    plugin.check(container)
    plugin.delete(container)


def test_an_interface_without_host_link_has_no_limits(host: Host) -> None:
    container = host.container("c1")
    host.shell("ip link add up0 type veth peer name up1; ip link add eth0 link up0 netns c1 type macvlan")
    result = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": container.netns}]}
    with expect_error(5, "container interface eth0 has no veth peer", "macvlan"):
        host.plugin(Bandwidth, {**LIMITS, "prevResult": result}).add(container)


def test_two_interfaces_of_a_container_have_a_link_each(host: Host) -> None:
    container, result = attached(host)
    host.shell("ip link add v-2 type veth peer name eth1 netns c1; ip link set v-2 up")
    second = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "v-2"}, {"name": "eth1", "sandbox": container.netns}],
    }
    plugin = host.plugin(Bandwidth, EVERYTHING)
    plugin.add(container, prevResult=result)
    plugin.add(container, "eth1", prevResult=second)
    assert len(ifbs(host)) == 2
    plugin.delete(container)
    plugin.check(container, "eth1")
    plugin.delete(container, "eth1")
    assert ifbs(host) == []


def test_del_and_gc_take_only_their_own(host: Host) -> None:
    plugin = host.plugin(Bandwidth, EVERYTHING)
    container = host.container("none")
    for name in ("c0", "c1", "c2"):
        container, result = attached(host, name, f"10.1.0.1{name[1]}/24")
        plugin.add(container, prevResult=result)
    other, result = attached(host, "other", "10.1.0.9/24")
    host.plugin(Bandwidth, {**EVERYTHING, "name": "other"}).add(other, prevResult=result)
    host.shell("ip link add foreign type ifb")
    container.destroy()  # c2's
    plugin.run("DEL", container, prevResult=None).raise_for_error()
    plugin.gc(("c0", "eth0"))
    kept = {ifb_names(Attachment(net, name, "eth0"))[0] for net, name in (("net", "c0"), ("other", "other"))}
    assert set(ifbs(host)) == kept | {"foreign"}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("adder", ["go", "ours"])
def test_go_and_ours_check_and_delete_what_the_other_added(host: Host, go: Path, version: str, adder: str) -> None:
    container, result = attached(host)
    del result["foreign"]  # which the reference loses
    conf = {**EVERYTHING, "cniVersion": version, "prevResult": in_version(result, version)}
    one, other = host.plugin(go / "bandwidth", conf), host.plugin(Bandwidth, conf)
    if adder == "ours":
        one, other = other, one
    answered = one.run("ADD", container).document
    if version != "0.3.1":
        other.check(container, prevResult=answered)
    other.run("DEL", container, prevResult=answered).raise_for_error()
    assert ifbs(host) == []
    again = other.run("ADD", container).document if adder == "go" else None
    if again is not None:
        other.run("DEL", container, prevResult=again).raise_for_error()
        for each in (*answered["interfaces"], *again["interfaces"]):
            each.pop("mac", None)
        assert again.pop("dns", {}) == answered.pop("dns", {})
        assert again == answered


@pytest.mark.interop
@pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
def test_a_del_without_result_keeps_the_limit_of_another_interface(host: Host, go: Path, version: str) -> None:
    """The reference's name for the link leaves the interface out, and joins the names of network and container."""
    container, result = attached(host)
    del result["foreign"]
    conf = {**EVERYTHING, "cniVersion": version, "prevResult": in_version(result, version)}
    host.plugin(go / "bandwidth", conf).run("ADD", container).raise_for_error()
    ours = host.plugin(Bandwidth, {**conf, "prevResult": None})
    before = host.state()
    second = {"CNI_IFNAME": "eth1"}
    joined = {"CNI_CONTAINERID": f"t{container.id}", "CNI_NETNS": ""}
    for environ, name in ((second, "net"), ({**second, "CNI_NETNS": ""}, "net"), (joined, "ne")):
        ours.run("DEL", container, environ=environ, name=name).raise_for_error()
        assert host.state() == before
    ours.run("DEL", container).raise_for_error()
    assert ifbs(host) == [], "the interface's own DEL needs no result"


@pytest.mark.interop
def test_a_del_without_result_after_the_namespace_is_gone(host: Host, go: Path) -> None:
    """No link uses the reference's any more: it goes."""
    container, result = attached(host)
    del result["foreign"]
    conf = {**EVERYTHING, "cniVersion": "1.0.0", "prevResult": in_version(result, "1.0.0")}
    host.plugin(go / "bandwidth", conf).run("ADD", container).raise_for_error()
    host.shell("ip link delete v-c1")
    container.destroy()
    assert len(ifbs(host)) == 1
    host.plugin(Bandwidth, {**conf, "prevResult": None}).run("DEL", container).raise_for_error()
    assert ifbs(host) == []


@pytest.mark.slow
def test_a_killed_add_leaves_no_link_after_del(host: Host) -> None:
    """The shaping of the host's link of the container goes with that link, as with the reference."""
    container, result = attached(host)
    plugin = host.plugin(Bandwidth, {**EVERYTHING, "prevResult": result})

    def check() -> None:
        assert ifbs(host) == []

    kill_adds(plugin, container, check=check, every_other_replaces=True)
    host.shell("ip link delete v-c1")
    assert host.shell("tc qdisc show").count("tbf") == 0
