"""CHECK (spec §2): it passes what is healthy, notices what is damaged, and changes neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..spec.result import Result
from ..testing.hosts import Container
from .bench import Bench, listed
from .case import Chapter
from .judgement import ATTACHING, CHAINED, INTERFACE, Kind, Level, NotApplicable, Sentence
from .sentences import (
    CHECK_AFTER_ADD,
    CHECK_BESIDE_THE_RESULT,
    CHECK_OF_THE_RESULT,
    CHECK_PROBES,
    CHECK_UNREACHABLE,
)

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION


@case(MUST, CHECK_AFTER_ADD, means="A runtime that checks (CRI-O) takes healthy containers for broken ones.")
def check_after_add(bench: Bench) -> None:
    container = bench.container()
    bench.add(container)
    bench.check(container).must_succeed("success right after ADD")


@case(
    MUST,
    CHECK_AFTER_ADD,
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
    CHECK_AFTER_ADD,
    note="A route without gw goes by the default gateway of its subnet: the result is right, and so is the kernel's "
    "route that has one.",
    means="Networks with routes to other subnets cannot be used with a runtime that checks.",
    kinds=INTERFACE,
)
def check_of_a_route_without_gateway(bench: Bench) -> None:
    bench.stub.answer("ADD", bench.leased(routes=[{"dst": "10.98.0.0/16"}]))
    bench.stub.answer("CHECK")
    container = bench.container()
    bench.add(container)
    bench.check(container).must_succeed("success right after an ADD with a route without gw")


@case(OPINION, CHECK_PROBES, note="It does not change it.", means="CHECK hides what is wrong, or makes it worse.")
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


# -- what CHECK is to notice ----------------------------------------------------------------------------------------

Hurt = Callable[[Bench, Container, Result], str]


class Damage(NamedTuple):
    """Something of an attachment that is taken away.

    Attributes:
        case: The name of the case.
        sentence: What the plugin is held to.
        hurt: Does it, and says what is wrong then; raises NotApplicable where there is nothing of the kind.
        means: What a failure means for an operator.
        kinds: The kinds of plugins it applies to.
    """

    case: str
    sentence: Sentence
    hurt: Hurt
    means: str = "A container without network is reported as healthy."
    kinds: frozenset[Kind] = INTERFACE


def _inside(find: Callable[[Bench, Result], str], command: str, wrong: str) -> Hurt:
    """Run a command in the container, ``@`` for what was found and ``%`` for the interface."""

    def hurt(bench: Bench, container: Container, result: Result) -> str:
        found = find(bench, result)
        bench.shell(command.replace("@", found).replace("%", bench.subject.ifname), container.name)
        return wrong.replace("@", found)

    return hurt


def _outside(find: Callable[[Bench, Result], list[str]], command: str, wrong: str, otherwise: str) -> Hurt:
    """Run a command on the host for each thing found, ``@`` for its name."""

    def hurt(bench: Bench, container: Container, result: Result) -> str:
        found = find(bench, result)
        if not found:
            raise NotApplicable(otherwise)
        for each in found:
            bench.shell(command.replace("@", each))
        return wrong.replace("@", listed(found))

    return hurt


def _ifname(bench: Bench, result: Result) -> str:
    return bench.subject.ifname


def _removable(bench: Bench, result: Result) -> str:
    if bench.subject.ifname == "lo":
        raise NotApplicable("lo cannot be removed")
    return bench.subject.ifname


def _address(bench: Bench, result: Result) -> str:
    if not result.ips:
        raise NotApplicable("its result has no addresses")
    return str(result.ips[0].address)


def _route(bench: Bench, result: Result) -> str:
    if not result.routes:
        raise NotApplicable("its result has no routes")
    return str(result.routes[0].dst)


def _ports(bench: Bench, result: Result) -> list[str]:
    return [link.name for link in bench.state().of("").links if link.master][:1]


def _bridges(bench: Bench, result: Result) -> list[str]:
    return sorted({link.master for link in bench.state().of("").links if link.master})


def _host_ends(bench: Bench, result: Result) -> list[str]:
    told = [each.name for each in result.interfaces if not each.sandbox]
    return [link.name for link in bench.state().of("").links if link.kind == "veth" and link.name in told][:1]


def _rules(bench: Bench, result: Result) -> list[str]:
    return ["the firewall rules"] if bench.state().nft else []


def _shaped(bench: Bench, result: Result) -> list[str]:
    return [name for name in _host_ends(bench, result) if "qdisc tbf" in bench.shell(f"tc qdisc show dev {name}")]


_NO_BRIDGE = "it plugs nothing into a bridge"

for _damage in (
    Damage(
        "check-notices-a-missing-address",
        CHECK_OF_THE_RESULT,
        _inside(_address, "ip addr del @ dev %", "the address @ is gone"),
    ),
    Damage(
        "check-notices-a-missing-route",
        CHECK_OF_THE_RESULT,
        _inside(_route, "ip route del @", "the route to @ is gone"),
    ),
    Damage(
        "check-notices-a-link-that-is-down",
        CHECK_OF_THE_RESULT,
        _inside(_ifname, "ip link set @ down", "@ is down"),
    ),
    Damage(
        "check-notices-a-missing-link",
        CHECK_OF_THE_RESULT,
        _inside(_removable, "ip link del @", "@ is gone"),
    ),
    Damage(
        "check-notices-a-port-without-bridge",
        CHECK_UNREACHABLE,
        _outside(_ports, "ip link set @ nomaster", "@ is in no bridge any more", _NO_BRIDGE),
    ),
    Damage(
        "check-notices-a-missing-bridge",
        CHECK_UNREACHABLE,
        _outside(_bridges, "ip link del @", "@ is gone", _NO_BRIDGE),
    ),
    Damage(
        "check-notices-a-host-end-that-is-down",
        CHECK_UNREACHABLE,
        _outside(_host_ends, "ip link set @ down", "the host end @ is down", "its result has no host end of a veth"),
    ),
    Damage(
        "check-notices-missing-rules",
        CHECK_BESIDE_THE_RESULT,
        _outside(_rules, "nft flush ruleset", "@ are gone", "it makes no firewall rules"),
        means="After `nft flush ruleset` or a firewall reload, published ports and masquerading are gone, unnoticed.",
        kinds=ATTACHING,
    ),
    Damage(
        "check-notices-missing-shaping",
        CHECK_BESIDE_THE_RESULT,
        _outside(_shaped, "tc qdisc del dev @ root", "the shaping of @ is gone", "it shapes no traffic"),
        means="A container takes all of the node's bandwidth, unnoticed.",
        kinds=CHAINED,
    ),
):

    def _notices(bench: Bench, hurt: Hurt = _damage.hurt) -> None:
        container = bench.container()
        result = bench.add(container)
        if bench.check(container).status != 0:
            raise NotApplicable("CHECK fails before any damage, as another case says")
        wrong = hurt(bench, container, result)
        bench.check(container).must_fail(f"an error, since {wrong}")

    chapter.add(_damage.case, SHOULD, _damage.sentence, _notices, means=_damage.means, kinds=_damage.kinds)
