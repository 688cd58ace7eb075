"""CHECK (spec §2): it passes what is healthy, notices what is damaged, and changes neither."""

from __future__ import annotations

from collections.abc import Callable

from ...spec.result import Result
from ..hosts import Container
from .bench import Bench, listed
from .case import ATTACHING, INTERFACE, Chapter, Kind, Level, NotApplicable

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION


@case(
    MUST,
    '§2 "CHECK"',
    "The plugin must handle CHECK being called immediately after an ADD",
    means="A runtime that checks (CRI-O) takes healthy containers for broken ones.",
)
def check_after_add(bench: Bench) -> None:
    container = bench.container()
    bench.add(container)
    bench.check(container).must_succeed("success right after ADD")


@case(
    MUST,
    '§2 "CHECK"',
    "The plugin must handle CHECK being called immediately after an ADD",
    means="Networks without addresses (bridge with `ipam: {}`) cannot be used with a runtime that checks.",
    kinds=INTERFACE,
)
def check_without_ipam(bench: Bench) -> None:
    if not bench.subject.delegates:
        raise NotApplicable("its configuration has no ipam")
    container = bench.container()
    if bench.request("ADD", container, ipam=None).status != 0:
        raise NotApplicable("it does not work without ipam")
    bench.check(container, ipam=None).must_succeed("success right after an ADD without ipam")


@case(
    MUST,
    '§2 "CHECK"',
    "The plugin must handle CHECK being called immediately after an ADD. (A route without gw goes by the default "
    "gateway of its subnet: the result is right, and so is the kernel's route that has one.)",
    means="Networks with routes to other subnets cannot be used with a runtime that checks.",
    kinds=INTERFACE,
)
def check_of_a_route_without_gateway(bench: Bench) -> None:
    ip = {"address": "10.9.0.9/24", "gateway": "10.9.0.1"} | (
        {"version": "4"} if bench.subject.version < "1.0.0" else {}
    )
    leased = {"cniVersion": bench.subject.version, "ips": [ip], "routes": [{"dst": "10.98.0.0/16"}]}
    bench.stub.answer("ADD", leased)
    bench.stub.answer("CHECK")
    container = bench.container()
    bench.add(container)
    bench.check(container).must_succeed("success right after an ADD with a route without gw")


@case(
    SHOULD,
    '§2 "CHECK"',
    "CHECK is a way for a runtime to probe the status of an existing container.",
    means="CHECK hides what is wrong, or makes it worse.",
)
def check_changes_nothing(bench: Bench) -> None:
    bench.need_check()
    container, ifname = bench.container(), bench.subject.ifname
    bench.add(container)
    with bench.changing_nothing("by CHECK of a healthy attachment"):
        bench.check(container)
    known = bench.document(container).get("prevResult")
    if bench.subject.kind is Kind.IPAM:
        bench.delete(container)
        with bench.changing_nothing("by CHECK of an address that is not leased"):
            bench.check(container, prevResult=known)
        return
    damages = [f"ip link set {ifname} down", f"ip addr flush dev {ifname}"]
    damages += [f"ip link del {ifname}"] if ifname != "lo" else []
    for damage in damages:
        bench.shell(damage, container.name)
        with bench.changing_nothing(f"by CHECK after {damage}"):
            bench.check(container)
    bench.shell("nft flush ruleset")
    with bench.changing_nothing("by CHECK after nft flush ruleset"):
        bench.check(container)


def _damaged(bench: Bench, damage: Callable[[Container, Result], str]) -> None:
    container = bench.container()
    result = bench.add(container)
    if bench.check(container).status != 0:
        raise NotApplicable("CHECK fails before any damage, as another case says")
    what = damage(container, result)
    bench.check(container).must_fail(f"an error, since {what}")


_DAMAGE = (
    "The plugin should return an error if a resource included in the CNI Result type (interface, address or route) was "
    "created by the plugin, and is listed in prevResult, but is missing or in an invalid state."
)
_UNSEEN = "A container without network is reported as healthy."


@case(SHOULD, '§2 "CHECK"', _DAMAGE, means=_UNSEEN, kinds=INTERFACE)
def check_notices_a_missing_address(bench: Bench) -> None:
    def damage(container: Container, result: Result) -> str:
        if not result.ips:
            raise NotApplicable("its result has no addresses")
        address = str(result.ips[0].address)
        bench.shell(f"ip addr del {address} dev {bench.subject.ifname}", container.name)
        return f"the address {address} is gone"

    _damaged(bench, damage)


@case(SHOULD, '§2 "CHECK"', _DAMAGE, means=_UNSEEN, kinds=INTERFACE)
def check_notices_a_missing_route(bench: Bench) -> None:
    def damage(container: Container, result: Result) -> str:
        if not result.routes:
            raise NotApplicable("its result has no routes")
        dst = result.routes[0].dst
        bench.shell(f"ip route del {dst}", container.name)
        return f"the route to {dst} is gone"

    _damaged(bench, damage)


@case(SHOULD, '§2 "CHECK"', _DAMAGE, means=_UNSEEN, kinds=INTERFACE)
def check_notices_a_link_that_is_down(bench: Bench) -> None:
    def damage(container: Container, result: Result) -> str:
        bench.shell(f"ip link set {bench.subject.ifname} down", container.name)
        return f"{bench.subject.ifname} is down"

    _damaged(bench, damage)


@case(SHOULD, '§2 "CHECK"', _DAMAGE, means=_UNSEEN, kinds=INTERFACE)
def check_notices_a_missing_link(bench: Bench) -> None:
    def damage(container: Container, result: Result) -> str:
        if bench.subject.ifname == "lo":
            raise NotApplicable("lo cannot be removed")
        bench.shell(f"ip link del {bench.subject.ifname}", container.name)
        return f"{bench.subject.ifname} is gone"

    _damaged(bench, damage)


@case(
    SHOULD,
    '§2 "CHECK"',
    "The plugin should return an error if it is aware of a condition where the container is generally unreachable.",
    means=_UNSEEN,
    kinds=INTERFACE,
)
def check_notices_a_port_without_bridge(bench: Bench) -> None:
    def damage(container: Container, result: Result) -> str:
        ports = [link for link in bench.state().of("").links if link.master]
        if not ports:
            raise NotApplicable("it plugs nothing into a bridge")
        bench.shell(f"ip link set {ports[0].name} nomaster")
        return f"{ports[0].name} is in no bridge any more"

    _damaged(bench, damage)


@case(
    SHOULD,
    '§2 "CHECK"',
    "The plugin should return an error if it is aware of a condition where the container is generally unreachable.",
    means=_UNSEEN,
    kinds=INTERFACE,
)
def check_notices_a_missing_bridge(bench: Bench) -> None:
    def damage(container: Container, result: Result) -> str:
        masters = {link.master for link in bench.state().of("").links if link.master}
        if not masters:
            raise NotApplicable("it plugs nothing into a bridge")
        for master in sorted(masters):
            bench.shell(f"ip link del {master}")
        return f"{listed(masters)} is gone"

    _damaged(bench, damage)


@case(
    SHOULD,
    '§2 "CHECK"',
    "The plugin should return an error if it is aware of a condition where the container is generally unreachable.",
    means=_UNSEEN,
    kinds=INTERFACE,
)
def check_notices_a_host_end_that_is_down(bench: Bench) -> None:
    def damage(container: Container, result: Result) -> str:
        ends = [each.name for each in result.interfaces if not each.sandbox]
        veths = [link.name for link in bench.state().of("").links if link.kind == "veth" and link.name in ends]
        if not veths:
            raise NotApplicable("its result has no host end of a veth")
        bench.shell(f"ip link set {veths[0]} down")
        return f"the host end {veths[0]} is down"

    _damaged(bench, damage)


@case(
    SHOULD,
    '§2 "CHECK"',
    "The plugin should return an error if other resources not tracked in the Result type [...] are missing or are in "
    "an invalid state: Firewall rules, Traffic shaping controls, IP reservations, [...]",
    means="After `nft flush ruleset` or a firewall reload, published ports and masquerading are gone, unnoticed.",
    kinds=ATTACHING,
)
def check_notices_missing_rules(bench: Bench) -> None:
    def damage(container: Container, result: Result) -> str:
        if not bench.state().nft:
            raise NotApplicable("it makes no firewall rules")
        bench.shell("nft flush ruleset")
        return "the firewall rules are gone"

    _damaged(bench, damage)
