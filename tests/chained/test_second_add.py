"""An ADD of an attachment that is attached already: if it fails, what the first one made stays, otherwise nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cnisdk import Plugin
from cnisdk.linux import program
from cnisdk.linux.netfilter import firewall_iptables, nfnetlink, rules
from cnisdk.testing import Container, Host, PluginUnderTest, fail
from cnisdk.testing.state import collect
from cnisdk_plugins.bandwidth import Bandwidth
from cnisdk_plugins.firewall import Firewall
from cnisdk_plugins.portmap import Portmap
from cnisdk_plugins.sbr import Sbr
from cnisdk_plugins.tuning import Tuning
from cnisdk_plugins.vrf import Vrf

from .conftest import attached

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

T = TypeVar("T")

LIMITS = {"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000}
INGRESS = ("ingressRate", "ingressBurst")
TUNED = {"mtu": 1400, "promisc": True, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}
OTHER_SYSCTLS = {"sysctl": {"net.ipv4.conf.eth0.arp_filter": "0", "net.ipv4.conf.eth0.arp_ignore": "1"}}
PORTS = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]}}
OTHER_PORTS = {
    "runtimeConfig": {
        "portMappings": [
            {"hostPort": 8081, "containerPort": 80, "protocol": "udp"},
            {"hostPort": 8080, "containerPort": 81, "protocol": "udp"},
        ]
    }
}
CONDITIONS = ["!", "-s", "198.51.100.0/24"]
OTHER_BACKEND = {"iptables": "nftables", "nftables": "iptables"}
SUBJECTS: dict[str, tuple[type[Plugin[Any]], dict[str, Any], dict[str, Any]]] = {
    "bandwidth": (Bandwidth, LIMITS, {}),
    "bandwidth, other limits": (Bandwidth, LIMITS, {key: value * 2 for key, value in LIMITS.items()}),
    "bandwidth, one direction more": (Bandwidth, {key: LIMITS[key] for key in INGRESS}, LIMITS),
    "bandwidth, one direction less": (Bandwidth, LIMITS, {"egressRate": 0, "egressBurst": 0}),
    "sbr": (Sbr, {"gateways": ["10.1.0.1"]}, {}),
    "sbr, another gateway": (Sbr, {"gateways": ["10.1.0.1"]}, {"gateways": ["10.1.0.9"]}),
    "sbr, source hints": (Sbr, {}, {"addSourceHints": True}),
    "sbr, another table": (Sbr, {}, {"table": 500}),
    "tuning": (Tuning, TUNED, {}),
    "tuning, other values": (Tuning, TUNED, {"mtu": 1300, "promisc": False, "allmulti": True, **OTHER_SYSCTLS}),
    "vrf": (Vrf, {"vrfname": "red"}, {}),
    **{
        f"portmap, {backend}, {what}": (Portmap, {"backend": backend, **PORTS}, keys)
        for backend in ("iptables", "nftables")
        for what, keys in (
            ("the same", {}),
            ("other ports", OTHER_PORTS),
            ("no ports", {"runtimeConfig": None}),
            ("the other backend", {"backend": OTHER_BACKEND[backend]}),
        )
    },
    **{
        f"firewall, {backend}, {what}": (Firewall, {"backend": backend, "ingressPolicy": "isolated"}, keys)
        for backend in ("iptables", "nftables")
        for what, keys in (
            ("the same", {}),
            ("another policy", {"ingressPolicy": "same-bridge"}),
            ("no policy", {"ingressPolicy": "open"}),
            ("the other backend", {"backend": OTHER_BACKEND[backend]}),
        )
    },
}


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.kinds if each == "vrf" else ()) for each in SUBJECTS]
)
def test_a_second_add_that_fails_leaves_what_the_first_made(host: Host, name: str) -> None:
    kind, conf, changed = SUBJECTS[name]
    container, result = on_two_families(host) if kind in (Portmap, Firewall) else attached(host)
    conf = {**conf, "prevResult": result}
    first = host.plugin(kind, conf)
    first.add(container)
    assert host.call(fail_at_each_step, kind, conf, conf | changed, container) > 0
    first.run("CHECK", container).raise_for_error()


@pytest.mark.parametrize("backend", ["iptables", "nftables", "legacy"])
@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        *((Portmap, each) for each in ("other ports", "no ports", "one version", "backend", "backend, one version")),
        *((Firewall, each) for each in ("policy", "no policy", "one version", "backend", "backend, one version")),
    ],
)
def test_a_second_add_leaves_nothing_of_the_first(
    kind: type[Plugin[Any]], backend: str, changed: str, request: pytest.FixtureRequest
) -> None:
    host: Host = request.getfixturevalue("legacy" if backend == "legacy" else "host")
    container, result = on_two_families(host)
    used = "nftables" if backend == "nftables" else "iptables"
    conf = {"backend": used, "prevResult": result, **PORTS, "ingressPolicy": "isolated"}
    kinds: dict[str, dict[str, Any]] = {
        "other ports": OTHER_PORTS,
        "no ports": {"runtimeConfig": None},
        "policy": {"ingressPolicy": "same-bridge"},
        "no policy": {"ingressPolicy": "open"},
    }
    keys = kinds.get(changed, {})
    if "backend" in changed:
        keys["backend"] = OTHER_BACKEND[used]
    if "one version" in changed:
        keys["prevResult"] = {**result, "ips": result["ips"][:1]}
    first, second = host.plugin(kind, conf), host.plugin(kind, {**conf, **keys})
    for plugin in (first, second, first):  # what attachments share is there now
        plugin.add(container)
        plugin.delete(container)
    none = host.call(state)
    second.add(container)
    wanted = host.call(state)
    second.delete(container)
    first.add(container)
    second.add(container)
    assert host.call(state) == wanted
    second.check(container)
    second.run("DEL", container, prevResult=None).raise_for_error()
    assert host.call(state) == none


@pytest.mark.parametrize(
    ("name", "conditions", "variant"),
    [
        *(("portmap, iptables", each, variant) for each in ([], CONDITIONS) for variant in ("nft", "legacy")),
        *(("firewall, iptables", [], variant) for variant in ("nft", "legacy")),
        ("portmap, nftables", [], "nft"),
        ("firewall, nftables", [], "nft"),
    ],
)
def test_there_is_no_moment_of_a_second_add_without_the_rules(
    name: str, conditions: list[str], variant: str, request: pytest.FixtureRequest
) -> None:
    """An ADD that is killed takes nothing back: so whenever that happens, the container keeps what it had."""
    kind, conf, _ = SUBJECTS[f"{name}, the same"]
    host: Host = request.getfixturevalue("legacy" if variant == "legacy" else "host")
    container, result = on_two_families(host)
    conf = {**conf, "prevResult": result, **({"conditionsV4": conditions} if conditions else {})}
    first = PluginUnderTest(None, kind, conf)

    def add_again() -> list[str]:
        def look_after(act: Callable[..., T]) -> Callable[..., T]:
            def wrapped(*arguments: Any, **keys: Any) -> T:
                done = act(*arguments, **keys)
                if act is transact or "-S" not in arguments[0]:  # which only reads
                    found.append(first.run("CHECK", container).stdout)
                return done

            return wrapped

        for verb in ("ADD", "DEL", "ADD"):  # what attachments share is there then
            first.run(verb, container).raise_for_error()
        found: list[str] = []
        before, transact = state(), nfnetlink.transact
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "run", look_after(program.run))
            patch.setattr(nfnetlink, "transact", look_after(transact))
            first.run("ADD", container).raise_for_error()
        assert state() == before
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rules, "delete_earlier", lambda *_: None)  # as if killed before
            patch.setattr(firewall_iptables, "_delete_found", lambda *_: None)
            first.run("ADD", container).raise_for_error()
        first.run("CHECK", container).raise_for_error()
        first.run("ADD", container).raise_for_error()
        assert state() == before
        return found

    found = host.call(add_again)
    assert found
    assert set(found) == {""}


@pytest.mark.interop
@pytest.mark.parametrize("name", ["portmap", "firewall"])
@pytest.mark.parametrize("keys", [{}, OTHER_PORTS])
def test_a_second_add_that_fails_leaves_what_the_references_made(
    host: Host, go: Path, name: str, keys: dict[str, Any]
) -> None:
    kind, conf, _ = SUBJECTS[f"{name}, iptables, the same"]
    container, result = on_two_families(host)
    result = {key: result[key] for key in ("interfaces", "ips")} | {"cniVersion": "1.0.0"}
    conf = {**conf, "prevResult": result, "conditionsV4": CONDITIONS, "cniVersion": "1.0.0"}
    if name == "firewall":
        conf["ingressPolicy"] = "same-bridge"
    ours, other = host.plugin(kind, {**conf, **keys}), host.container("c2")
    ours.run("ADD", other).raise_for_error()  # what attachments share is there now
    ours.run("DEL", other).raise_for_error()
    host.plugin(go / name, conf).run("ADD", container).raise_for_error()
    assert host.call(fail_at_each_step, kind, conf, conf | keys, container, go / name) > 0
    host.plugin(kind, conf).run("CHECK", container).raise_for_error()


@pytest.mark.parametrize("name", ["portmap", "firewall"])
@pytest.mark.parametrize("changed", [False, True])
def test_a_second_add_that_fails_leaves_what_the_first_made_by_the_legacy_variant(
    legacy: Host, name: str, changed: bool
) -> None:
    kind, conf, _ = SUBJECTS[f"{name}, iptables, the same"]
    container, result = on_two_families(legacy)
    conf = {**conf, "prevResult": result}
    other = conf | (OTHER_PORTS if name == "portmap" else {"ingressPolicy": "same-bridge"}) if changed else conf
    legacy.plugin(kind, conf).add(container)
    assert legacy.call(fail_at_each_step, kind, conf, other, container) > 0
    legacy.plugin(kind, conf).run("CHECK", container).raise_for_error()


def on_two_families(host: Host) -> tuple[Container, dict[str, Any]]:
    """Return a container on a bridge, with an address of each version, and the result that says so."""
    container, result = attached(host)
    host.shell("ip link add br0 type bridge; ip link set br0 up; ip link set v-c1 master br0")
    host.shell("ip -n c1 address add fd01::2/64 dev eth0 nodad")
    result["interfaces"].insert(0, {"name": "br0"})
    result["ips"] = [{"interface": 2, "address": each} for each in ("10.1.0.2/24", "fd01::2/64")]
    return container, result


def fail_at_each_step(
    kind: type[Plugin[Any]], conf: dict[str, Any], changed: dict[str, Any], container: Container, go: Path | None = None
) -> int:
    """Let a second ADD fail at each of its steps; return how often it did. The first is the reference's, if given."""
    first, second = PluginUnderTest(None, go or kind, conf), PluginUnderTest(None, kind, changed)
    if changed != conf and not go:
        second.run("ADD", container).raise_for_error()  # what attachments share is there now
        begin_again(first, second, container)
    before, failed, step = state(), 0, 0
    struck = True
    while struck:
        step += 1
        second.fault = fail(step, errno.EIO)
        answer = second.run("ADD", container)
        struck, second.fault = answer.struck, None
        if answer.status:
            failed += 1
            assert state() == before, f"step {step}: {answer.stdout!r}"
            continue
        if changed != conf or go:  # a step that ADD can do without may have failed
            begin_again(first, second, container)
        before = state()
    return failed


def begin_again(first: PluginUnderTest, second: PluginUnderTest, container: Container) -> None:
    second.run("DEL", container).raise_for_error()
    for kept in ("root", "ingress"):  # which would go with the link
        run("tc", "qdisc", "del", "dev", "v-c1", kept)
    first.run("ADD", container).raise_for_error()


def state() -> tuple[object, ...]:
    files = sorted(Path("/run/cni/tuning").glob("*")) if os.path.isdir("/run/cni/tuning") else []
    sysctls = [f"net/ipv4/conf/eth0/{each}" for each in ("arp_filter", "arp_ignore")]
    shown = run("tc", "qdisc", "show"), run("tc", "filter", "show", "dev", "v-c1", "parent", "ffff:")
    taken = collect(sysctls=sysctls, rules=True).without("files")
    return taken, [each.read_bytes() for each in files], shown, legacy_rules()


def run(*argv: str) -> str:
    """Run a program that may fail, and return what it printed, without numbers that the kernel counts up."""
    printed = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    return re.sub(r"\bindex \d+", "", printed)


def legacy_rules() -> list[str]:
    """Return all rules of the legacy variant, where the test uses it; rules of one chain in any order."""
    if not os.path.realpath(shutil.which("iptables") or "").endswith("legacy-multi"):
        return []
    listed = [f"{program} -t {table} -S" for program in ("iptables", "ip6tables") for table in ("nat", "filter")]
    done = subprocess.run(["sh", "-ec", "; ".join(listed)], check=True, capture_output=True, text=True)
    return sorted(done.stdout.splitlines())
