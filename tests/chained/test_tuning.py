"""tuning: settings of the container's kernel and interface, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnisdk import IOFailureError
from cnisdk.linux.netns import NetNS
from cnisdk.testing import Host, expect_error
from cnisdk_plugins.tuning import Tuning

from .conftest import attached, in_version, kill_adds

pytestmark = pytest.mark.kernel

ARP_NOTIFY = "net/ipv4/conf/eth0/arp_notify"
FILES = "/run/cni/tuning"
EVERYTHING: dict[str, Any] = {
    "mac": "02:00:00:00:00:99",
    "mtu": 1400,
    "promisc": True,
    "allmulti": True,
    "txQLen": 0,
    "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1", "net.ipv4.tcp_rmem": "4096 87380 0x10000"},
}


def link_of(host: Host, name: str = "c1") -> dict[str, Any]:
    (shown,) = host.ip("-d", "link", "show", "eth0", netns=name)
    keys = ("address", "mtu", "txqlen", "promiscuity", "allmulti", "flags")
    return {key: shown.get(key, 0) for key in keys}


def files(host: Host) -> dict[str, Any]:
    """The state files, by name."""
    text = host.shell(
        f"mkdir -p {FILES}; cd {FILES}; for each in $(ls -A); do echo $each; base64 -w0 $each; echo; done"
    )
    import base64

    lines = text.splitlines()
    return {name: json.loads(base64.b64decode(data)) for name, data in zip(lines[::2], lines[1::2], strict=True)}


def test_everything_is_set_and_set_back(host: Host) -> None:
    container, result = attached(host)
    before, sysctls = link_of(host), [container.sysctl(ARP_NOTIFY), container.sysctl("net/ipv4/tcp_rmem")]
    tuning = host.plugin(Tuning, {**EVERYTHING, "prevResult": result})
    answered = tuning.run("ADD", container)
    assert answered.status == 0, answered
    expected = json.loads(json.dumps(result))
    expected["interfaces"][1] |= {"mac": "02:00:00:00:00:99", "mtu": 1400}
    assert answered.document == expected, "the rest of the result is handed on as it came"
    after = link_of(host)
    assert (after["address"], after["mtu"], after["txqlen"], after["promiscuity"]) == ("02:00:00:00:00:99", 1400, 0, 1)
    assert {"PROMISC", "ALLMULTI"} <= set(after["flags"])
    assert container.sysctl(ARP_NOTIFY) == "1"
    assert container.sysctl("net/ipv4/tcp_rmem").split() == ["4096", "87380", "65536"]
    tuning.check(container, prevResult=expected)
    tuning.delete(container)
    assert link_of(host) == before
    assert [container.sysctl(ARP_NOTIFY), container.sysctl("net/ipv4/tcp_rmem")] == sysctls
    assert files(host) == {}


def test_two_in_one_list_are_both_set_back(host: Host) -> None:
    """They have one file. So have ADDs of one attachment whose configuration was changed in between."""
    container, result = attached(host)
    before, ttl = link_of(host), container.sysctl("net/ipv4/ip_default_ttl")
    one = {"mtu": 1400, "promisc": True, "sysctl": {"net.ipv4.ip_default_ttl": "63", "net.ipv4.tcp_rmem": "4096  1 2"}}
    other = {"txQLen": 500, "mac": "02:00:00:00:00:99", "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}
    first, second = (host.plugin(Tuning, {**each, "prevResult": result}) for each in (one, other))
    rmem = container.sysctl("net/ipv4/tcp_rmem")
    first.add(container)
    first.check(container, prevResult=result)
    with expect_error(5, "cannot set"):
        second.add(container, mtu=100_000_000)
    first.check(container, prevResult=result)
    tuned = first.run("ADD", container).document
    second.add(container, prevResult=tuned)
    result["interfaces"][1]["mac"] = "02:00:00:00:00:99"
    first.check(container, prevResult=result)
    second.check(container, prevResult=result)
    second.delete(container)
    first.delete(container)
    assert link_of(host) == before
    assert [container.sysctl(f"net/ipv4/{each}") for each in ("ip_default_ttl", "tcp_rmem")] == [ttl, rmem]
    assert container.sysctl(ARP_NOTIFY) == "0"
    assert files(host) == {}


@pytest.mark.parametrize("first", ["eth0", "net1"])
def test_a_sysctl_of_the_namespace_stays_until_no_interface_wants_it(host: Host, first: str) -> None:
    """DEL of one interface must not take it from the other, whichever was added first."""
    container, result = attached(host)
    second = "net1" if first == "eth0" else "eth0"
    container.shell("ip link add net1 type veth peer name other")
    ttl, before = "net/ipv4/ip_default_ttl", host.state("net/ipv4/ip_default_ttl", ARP_NOTIFY)
    of = {
        "eth0": result,
        "net1": {"cniVersion": "1.0.0", "interfaces": [{"name": "net1", "sandbox": container.netns}]},
    }
    tuning = host.plugin(Tuning, {"cniVersion": "1.0.0", "sysctl": {"net.ipv4.ip_default_ttl": "63"}})
    tuning.add(container, "eth0", prevResult=of["eth0"])
    tuning.add(container, "net1", prevResult=of["net1"])
    with expect_error(5, "arp_notify"):  # a failed ADD of a third takes it from nobody either
        tuning.add(container, "lo", prevResult=result, sysctl={ttl: "63", ARP_NOTIFY: "x"})
    tuning.delete(container, first)
    assert container.sysctl(ttl) == "63"
    tuning.check(container, second)
    tuning.delete(container, first)
    assert container.sysctl(ttl) == "63"
    tuning.delete(container, second)
    assert host.state(ttl, ARP_NOTIFY) == before
    assert files(host) == {}


@pytest.mark.parametrize("first", ["eth0", "net1"])
def test_interfaces_that_ask_for_different_values_of_the_namespace(host: Host, first: str) -> None:
    """A failed ADD or a DEL leaves only settings that another interface asked for."""
    container, result = attached(host)
    second = "net1" if first == "eth0" else "eth0"
    container.shell("ip link add net1 type veth peer name other")
    result = {**result, "interfaces": [{"name": each, "sandbox": container.netns} for each in ("eth0", "net1")]}
    ttl, before = "net/ipv4/ip_default_ttl", host.state("net/ipv4/ip_default_ttl")
    tuning = host.plugin(Tuning, {"prevResult": result})
    tuning.add(container, first, sysctl={ttl: "0x3d"})
    with expect_error(5, "MTU"):
        tuning.add(container, second, sysctl={ttl: "62"}, mtu=9)
    assert container.sysctl(ttl) == "61"
    container.shell(f"sysctl -qw {ttl}=70")
    with expect_error(5, "MTU"):
        tuning.add(container, second, sysctl={ttl: "62"}, mtu=9)
    assert container.sysctl(ttl) == "70", "what was there, whoever has set it"
    tuning.add(container, second, sysctl={ttl: "62"})
    with expect_error(5, "MTU"):  # a retried one
        tuning.add(container, second, sysctl={ttl: "62"}, mtu=9)
    assert container.sysctl(ttl) == "61"
    for goes, left in ((first, "62"), (second, "61")):
        tuning.add(container, first, sysctl={ttl: "0x3d"})
        tuning.add(container, second, sysctl={ttl: "62"})
        tuning.delete(container, goes)
        assert container.sysctl(ttl) == left
    tuning.delete(container, first)
    assert host.state(ttl) == before
    assert files(host) == {}


def test_a_late_file_of_an_earlier_namespace_is_not_in_use(host: Host) -> None:
    """The container was made anew, with the same id; the DEL of its other interface has not come yet."""
    container, result = attached(host)
    ttl = "net/ipv4/ip_default_ttl"
    before = container.sysctl(ttl)
    tuning = host.plugin(Tuning, {"prevResult": result, "sysctl": {ttl: "63"}})
    tuning.add(container)
    (stale,) = files(host).values()
    stale["cni"]["ifname"] = "net1"
    stale |= {"netns": "0" * 16, "sysctl": {ttl: "1"}}
    host.run(["tee", f"{FILES}/c1_net1.json"], input=json.dumps(stale))
    tuning.add(container)
    tuning.delete(container)
    assert container.sysctl(ttl) == before


def test_a_file_of_an_earlier_namespace_is_not_taken_over(host: Host) -> None:
    """The container was made anew under its id, before the DEL of the one before."""
    container, result = attached(host)
    host.plugin(Tuning, {"prevResult": result, "mtu": 1400, "sysctl": {"net.ipv4.ip_default_ttl": "63"}}).add(container)
    host.shell("ip link del v-c1")
    container.destroy()
    again, result = attached(host)
    assert again.netns == container.netns
    tuning = host.plugin(Tuning, {"prevResult": result, "txQLen": 500})
    tuning.add(again)
    (kept,) = files(host).values()
    assert ("mtu" in kept, kept["sysctl"]) == (False, {})
    again.shell("ip link set eth0 mtu 1300")
    tuning.delete(again)
    assert (link_of(host)["mtu"], files(host)) == (1300, {})


def test_del_of_a_namespace_that_cannot_be_entered_leaves_no_file(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    container, result = attached(host)
    tuning = host.plugin(Tuning, {**EVERYTHING, "prevResult": result})
    tuning.add(container)

    def refuse(*_: object) -> None:
        raise IOFailureError("cannot enter the namespace: EPERM")

    monkeypatch.setattr(NetNS, "call", refuse)
    tuning.delete(container)
    assert files(host) == {}


def test_a_late_del_leaves_the_next_container_at_the_path_alone(host: Host) -> None:
    """The path of a namespace, such as that of a process, leads to another container by now."""
    container, result = attached(host)
    other, _ = attached(host, "c2", "10.1.0.3/24")
    tuning = host.plugin(Tuning, {**EVERYTHING, "prevResult": result})
    tuning.add(container)
    tuning.add(other)
    before, sysctl = link_of(host, "c2"), other.sysctl(ARP_NOTIFY)
    tuning.run("DEL", container, environ={"CNI_NETNS": other.netns}).raise_for_error()
    assert (link_of(host, "c2"), other.sysctl(ARP_NOTIFY)) == (before, sysctl)
    tuning.delete(other)
    assert files(host) == {}


def test_a_second_add_keeps_the_values_of_before(host: Host) -> None:
    container, result = attached(host)
    before, sysctls = link_of(host), [container.sysctl(ARP_NOTIFY), container.sysctl("net/ipv4/tcp_rmem")]
    tuning = host.plugin(Tuning, {**EVERYTHING, "prevResult": result})
    tuning.add(container)
    tuning.add(container)
    tuning.delete(container)
    assert link_of(host) == before
    assert [container.sysctl(ARP_NOTIFY), container.sysctl("net/ipv4/tcp_rmem")] == sysctls


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"mac": "02:00:00:00:00:01"}, "02:00:00:00:00:01"),
        ({"mac": "02:00:00:00:00:01", "args": "MAC=02-00-00-00-00-AA"}, "02:00:00:00:00:aa"),
        ({"args": "MAC=02:00:00:00:00:02", "runtimeConfig": {"mac": "02:00:00:00:00:03"}}, "02:00:00:00:00:03"),
        ({"runtimeConfig": {"mac": "02:00:00:00:00:03"}, "cni": {"mac": "02:00:00:00:00:04"}}, "02:00:00:00:00:04"),
    ],
)
def test_a_later_source_of_the_hardware_address_wins(host: Host, sources: dict[str, Any], expected: str) -> None:
    container, result = attached(host)
    variable = sources.pop("args", "")
    convention = {"args": {"cni": cni}} if (cni := sources.pop("cni", None)) else {}
    tuning = host.plugin(Tuning, {"prevResult": result, **sources, **convention})
    assert tuning.run("ADD", container, args=variable).document["interfaces"][1]["mac"] == expected
    assert link_of(host)["address"] == expected


def test_arguments_by_convention_win_and_need_no_key(host: Host) -> None:
    container, result = attached(host)
    cni = {"sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}, "mtu": 1300, "allmulti": True}
    tuning = host.plugin(Tuning, {"prevResult": result, "mtu": 1400, "args": {"cni": cni}})
    tuning.add(container)
    assert link_of(host)["mtu"] == 1300
    assert container.sysctl(ARP_NOTIFY) == "1"


@pytest.mark.parametrize(
    ("conf", "code", "texts"),
    [
        ({"mtu": -1}, 7, ["$.mtu is -1"]),
        ({"args": {"cni": {"txQLen": -2}}}, 7, ["$.args.cni.txQLen is -2"]),
        ({"mac": "zz"}, 7, ['$.mac is "zz"']),
        ({"sysctl": {"kernel.shmmax": "1"}}, 7, ['invalid net sysctl key: "kernel.shmmax"']),
        ({"sysctl": {"net/../kernel/shmmax": "1"}}, 7, ["invalid net sysctl key"]),
        ({"sysctl": {"net.ipv4.conf.all.forwarding": 1}}, 7, ["$.sysctl"]),
        ({"sysctl": {"net.ipv4.no_such": "1"}}, 5, ["net/ipv4/no_such does not exist"]),
        ({"mtu": 9, "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}, 5, ["MTU of link eth0 to 9"]),
        ({"mtu": 10**400}, 7, [f"$.mtu is 1{'0' * 78}…, expected"]),
        ({"txQLen": -(10**30)}, 7, [f"$.txQLen is -1{'0' * 30}, expected"]),
        ({"mtu": 1400, "dataDir": "/run/a\0b"}, 5, ["cannot write /run/a"]),
        ({"args": {"cni": {"txQLen": 2**32}}}, 7, ["$.args.cni.txQLen is 4294967296"]),
    ],
)
def test_what_cannot_be_set_is_refused_and_changes_nothing(
    host: Host, conf: dict[str, Any], code: int, texts: list[str]
) -> None:
    container, result = attached(host)
    before = link_of(host)
    with expect_error(code, *texts):
        host.plugin(Tuning, {"prevResult": result, "mac": "02:00:00:00:00:99", **conf}).add(container)
    assert link_of(host) == before
    assert container.sysctl(ARP_NOTIFY) == "0"
    assert files(host) == {}


def test_sysctls_need_no_interface(host: Host) -> None:
    """A program drives the device, with DPDK: the kernel has no link for it. Or the plugin before is loopback."""
    container = host.container()
    before = container.sysctl("net/ipv4/ip_default_ttl")
    result: dict[str, Any] = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}], "dns": {}}
    tuning = host.plugin(
        Tuning, {"cniVersion": "1.0.0", "prevResult": result, "sysctl": {"net.ipv4.ip_default_ttl": "63"}}
    )
    assert tuning.run("ADD", container).document == result
    assert container.sysctl("net/ipv4/ip_default_ttl") == "63"
    tuning.check(container, prevResult=result)
    tuning.delete(container)
    assert container.sysctl("net/ipv4/ip_default_ttl") == before
    assert files(host) == {}
    with expect_error(5, "link eth0 does not exist"):
        tuning.add(container, mtu=1400)


@pytest.mark.parametrize("listed", ["^net.ipv4.conf.IFNAME.", "^net/ipv4/conf/IFNAME/"])
@pytest.mark.parametrize(
    "key", ["net/ipv4/conf/IFNAME/../../../core/somaxconn", "net/ipv4/conf/IFNAME/../all/forwarding"]
)
def test_no_key_leads_away_from_what_the_allow_list_allows(host: Host, listed: str, key: str) -> None:
    container, result = attached(host)
    host.shell("mkdir -p /run/etc/cni/tuning && mount --bind /run/etc /etc")
    host.run(["tee", "/etc/cni/tuning/allowlist.conf"], input=listed)
    tuning = host.plugin(Tuning, {"prevResult": result, "sysctl": {key: "0"}})
    for ask in (lambda: tuning.add(container), tuning.status):
        with expect_error(7, f"Sysctl {key} is not allowed"):
            ask()


def test_an_empty_directory_is_the_default_one(host: Host) -> None:
    container, result = attached(host)
    before = link_of(host)
    tuning = host.plugin(Tuning, {"prevResult": result, "mtu": 1400, "dataDir": ""})
    tuning.add(container)
    assert list(files(host)) == ["c1_eth0.json"]
    tuning.delete(container)
    assert files(host) == {}
    assert link_of(host) == before


def test_del_and_gc_where_no_path_can_be_what_the_configuration_says(host: Host) -> None:
    container, result = attached(host)
    tuning = host.plugin(Tuning, {"prevResult": result, "mtu": 1400, "dataDir": "/run/a\0b"})
    tuning.delete(container)
    tuning.gc()


def test_a_sysctl_written_twice_is_refused(host: Host) -> None:
    container, result = attached(host)
    tuning = host.plugin(Tuning, {"prevResult": result, "sysctl": {"net.a": "1", "net.b": "1"}})
    text = json.dumps(tuning.conf).replace("net.b", "net.a")
    with expect_error(7, "duplicated sysctl keys are not allowed", "net.a"):
        tuning.run("ADD", container, stdin=text).raise_for_error()


@pytest.mark.parametrize(
    ("lines", "allowed"),
    [
        ("^net\\.ipv4\\.conf\\.IFNAME\\.arp_notify$\n", True),
        ("\n  arp_  \n", True),
        ("^net\\.core", False),
        ("", False),
        ("(", None),
    ],
)
def test_the_allow_list_is_searched_for_the_key_as_it_is_written(host: Host, lines: str, allowed: bool | None) -> None:
    container, result = attached(host)
    host.shell("mkdir -p /run/etc/cni/tuning && mount --bind /run/etc /etc")
    host.run(["tee", "/etc/cni/tuning/allowlist.conf"], input=lines)
    tuning = host.plugin(Tuning, {"prevResult": result, "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}})
    if allowed:
        tuning.add(container)
        tuning.status()
        return
    texts = ["is not allowed"] if allowed is False else ["cannot read the list", "allowlist.conf"]
    for ask in (lambda: tuning.add(container), tuning.status):
        with expect_error(7 if allowed is False else 5, *texts):
            ask()


def test_check_names_what_differs(host: Host) -> None:
    container, result = attached(host)
    tuning = host.plugin(Tuning, {**EVERYTHING, "mac": "02:00:00:00:00:AB", "prevResult": result})
    tuning.add(container)
    tuning.check(container)
    for spoil, text in (
        ("ip link set eth0 mtu 1300", "mtu of interface eth0 is 1300, not 1400"),
        ("ip link set eth0 mtu 1400 promisc off", "promisc of interface eth0 is False, not True"),
        ("ip link set eth0 promisc on; sysctl -qw net.ipv4.conf.eth0.arp_notify=0", f"sysctl {ARP_NOTIFY} is 0, not 1"),
    ):
        container.shell(spoil)
        with expect_error(5, text):
            tuning.check(container)


def test_check_accepts_what_the_kernel_makes_of_a_value(host: Host) -> None:
    container, result = attached(host)
    ports = {"net.ipv4.ip_local_reserved_ports": "9148,8080,1-3"}
    tuning = host.plugin(Tuning, {"prevResult": result, "sysctl": ports})
    tuning.add(container)
    assert container.sysctl("net/ipv4/ip_local_reserved_ports") == "1-3,8080,9148"
    tuning.check(container)
    tuning.delete(container)
    assert container.sysctl("net/ipv4/ip_local_reserved_ports") == ""


@pytest.mark.parametrize(
    "document",
    [
        {"sysctl": {"net/../../../run/other": "changed"}},
        {"sysctl": {"net.ipv4.ip_default_ttl\0": "5"}},
        {"sysctl": ["net/ipv4/ip_default_ttl"]},
        {"sysctl": {"net/ipv4/ip_default_ttl": 5}},
        {"sysctl": None, "mtu": None, "mac": None},
        {"mtu": 10**400, "mac": 5, "promisc": "yes", "txQLen": {}},
        {"sysctl": {"net/ipv4/ip_default_ttl": "5"}, "asked": 5, "became": [], "netns": 5},
    ],
)
def test_del_with_a_file_that_others_wrote_changes_nothing_else_and_keeps_no_container(
    host: Host, document: dict[str, Any]
) -> None:
    """The configuration says where the file is, and who wrote that may be able to write there."""
    container, result = attached(host)
    host.shell(f"mkdir -p {FILES}; echo as it was > /run/other")
    host.run(["tee", f"{FILES}/c1_eth0.json"], input=json.dumps(document))
    done = host.plugin(Tuning, {"prevResult": result, "mtu": 1400}).run("DEL", container)
    assert done.status == 0, done
    assert host.shell("cat /run/other") == "as it was\n"
    assert container.sysctl("net/ipv4/ip_default_ttl") == "64"
    assert files(host) == {}


@pytest.mark.parametrize("gone", ["namespace", "interface"])
def test_del_of_what_is_gone_leaves_no_file(host: Host, gone: str) -> None:
    container, result = attached(host)
    tuning = host.plugin(Tuning, {**EVERYTHING, "prevResult": result})
    tuning.add(container)
    if gone == "namespace":
        container.destroy()
    else:
        host.shell("ip link delete v-c1")
    tuning.delete(container, prevResult=None)
    tuning.delete(container, prevResult=None)
    assert files(host) == {}


def test_del_where_run_cni_is_read_only_and_nothing_is_kept(host: Host) -> None:
    """The kernel says that the file system is read-only before it looks whether there is a file to delete."""
    container, result = attached(host)
    host.shell(f"mkdir -p {FILES}; mount --bind {FILES} {FILES}; mount -o remount,bind,ro {FILES}")
    tuning = host.plugin(Tuning, {"prevResult": result})
    tuning.add(container)
    tuning.delete(container)
    assert files(host) == {}


def test_gc_takes_the_files_of_its_own_network_that_are_stale(host: Host) -> None:
    for name, address in (("c1", "10.1.0.2/24"), ("c2", "10.1.0.3/24"), ("c3", "10.1.0.4/24")):
        container, result = attached(host, name, address)
        network = {"name": "other"} if name == "c3" else {}
        host.plugin(Tuning, {"mtu": 1400, "prevResult": result, **network}).add(container)
    host.run(["tee", f"{FILES}/c9_eth0.json"], input='{\n "mtu": 1500\n}')  # as the reference writes it
    host.plugin(Tuning, {}).gc(("c1", "eth0"))
    assert sorted(files(host)) == ["c1_eth0.json", "c3_eth0.json", "c9_eth0.json"]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("adder", ["go", "ours"])
def test_the_reference_restores_what_ours_changed_and_the_other_way_round(
    host: Host, go: Path, version: str, adder: str
) -> None:
    container, result = attached(host)
    before = link_of(host)
    conf = {
        **{key: EVERYTHING[key] for key in ("mac", "mtu", "promisc", "allmulti")},
        "sysctl": {"net.ipv4.conf.eth0.arp_notify": "1"},
        "cniVersion": version,
        "prevResult": in_version(result, version),
    }
    one, other = host.plugin(go / "tuning", conf), host.plugin(Tuning, conf | {"type": "tuning"})
    if adder == "ours":
        one, other = other, one
    answered = one.run("ADD", container).document
    assert answered["interfaces"][1]["mac"] == "02:00:00:00:00:99"
    if version != "0.3.1":
        other.check(container, prevResult=answered)
    other.delete(container)
    assert link_of(host) == before
    assert files(host) == {}


def test_both_answer_the_same(host: Host, go: Path) -> None:
    container, result = attached(host)
    conf: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "mac": "02:00:00:00:00:99",
        "prevResult": in_version(result, "1.0.0"),
    }
    del conf["prevResult"]["foreign"]  # which the reference loses
    answers = []
    for plugin in (go / "tuning", Tuning):
        tuning = host.plugin(plugin, conf | {"type": "tuning"})
        answers.append({key: value for key, value in tuning.run("ADD", container).document.items() if key != "dns"})
        tuning.delete(container)
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_killed_add_leaves_nothing_after_del(host: Host) -> None:
    container, result = attached(host)

    def look() -> tuple[Any, ...]:
        sysctls = [container.sysctl(ARP_NOTIFY), container.sysctl("net/ipv4/tcp_rmem")]
        return link_of(host), sysctls, files(host)

    before = look()

    def check() -> None:
        assert look() == before

    plugin = host.plugin(Tuning, {**EVERYTHING, "prevResult": result})
    kill_adds(plugin, container, check=check, every_other_replaces=True)
