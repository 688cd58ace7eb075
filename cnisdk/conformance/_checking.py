"""CHECK (spec §2): it passes what is healthy, notices what is damaged, and changes neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..spec.result import Result
from ..testing.hosts import Container
from . import _sentences as spec
from ._terms import ATTACHING, CHAINED, INTERFACE, SHOULD
from .case import Chapter
from .case_run import CaseRun
from .judgement import Kind, NotApplicable, Sentence, listed

chapter = Chapter()
interfaces = chapter.of(INTERFACE)


@chapter.must(spec.CHECK_AFTER_ADD, means="A runtime that checks (CRI-O) takes healthy containers for broken ones.")
def check_after_add(run: CaseRun) -> None:
    container = run.container()
    run.add(container)
    run.check(container).must_succeed("success right after ADD")


@interfaces.must(
    spec.CHECK_AFTER_ADD,
    means="Networks without addresses (bridge with `ipam: {}`) cannot be used with a runtime that checks.",
)
def check_without_ipam(run: CaseRun) -> None:
    if not run.subject.delegates:
        raise NotApplicable("its configuration has no ipam")
    container = run.container()
    if run.request("ADD", container, ipam=None).status != 0:
        raise NotApplicable("it does not work without ipam")
    run.check(container, ipam=None).must_succeed("success right after an ADD without ipam")


@interfaces.must(
    spec.CHECK_AFTER_ADD.with_note("Without gw, a route goes by the default gateway of its subnet."),
    means="Networks with routes to other subnets cannot be used with a runtime that checks.",
)
def check_of_a_route_without_gateway(run: CaseRun) -> None:
    run.stub.answer("ADD", run.leased(routes=[{"dst": "10.98.0.0/16"}]))
    run.stub.answer("CHECK")
    container = run.container()
    run.add(container)
    run.check(container).must_succeed("success right after an ADD with a route without gw")


@chapter.opinion(
    spec.CHECK_PROBES.with_note("It does not change it."), means="CHECK hides what is wrong, or makes it worse."
)
def check_changes_nothing(run: CaseRun) -> None:
    run.need_check()
    container, ifname = run.container(), run.subject.ifname
    run.add(container)
    with run.changing_nothing("by CHECK of a healthy attachment"):
        run.check(container)
    known = run.document(container).get("prevResult")
    if run.subject.kind is Kind.IPAM:
        run.delete(container)
        with run.changing_nothing("by CHECK of an address that is not leased"):
            run.check(container, prevResult=known)
        return
    damages = [f"ip link set {ifname} down", f"ip addr flush dev {ifname}"]
    damages += [f"ip link del {ifname}"] if ifname != "lo" else []
    for damage in damages:
        run.shell(damage, container.name)
        with run.changing_nothing(f"by CHECK after {damage}"):
            run.check(container)
    run.shell("nft flush ruleset")
    with run.changing_nothing("by CHECK after nft flush ruleset"):
        run.check(container)


# -- what CHECK is to notice ----------------------------------------------------------------------------------------

Inflict = Callable[[CaseRun, Container, Result], str]


class Damage(NamedTuple):
    """Damage to an attachment, which CHECK must notice.

    Attributes:
        case: The name of the case.
        inflict: Removes a part of the attachment, and returns what is wrong then, for a message. Raises NotApplicable
            if the attachment has no such part.
        sentence: The sentence that the plugin is held to.
        means: Consequence of a failure for an operator.
        kinds: The kinds of plugins it applies to.
    """

    case: str
    inflict: Inflict
    sentence: Sentence = spec.CHECK_OF_THE_RESULT
    means: str = "A container without network is reported as healthy."
    kinds: frozenset[Kind] = INTERFACE


def _inside(find: Callable[[CaseRun, Result], str], command: str, wrong: str) -> Inflict:
    """Return a function that runs a shell command in the container.

    ``@`` in the command stands for the name that ``find`` returns, and ``%`` for the interface.
    """

    def inflict(run: CaseRun, container: Container, result: Result) -> str:
        found = find(run, result)
        run.shell(command.replace("@", found).replace("%", run.subject.ifname), container.name)
        return wrong.replace("@", found)

    return inflict


def _outside(find: Callable[[CaseRun, Result], list[str]], command: str, wrong: str, otherwise: str) -> Inflict:
    """Return a function that runs a shell command on the host for each name that ``find`` returns.

    ``@`` in the command stands for the name. ``otherwise`` is the reason to skip the case if there is none.
    """

    def inflict(run: CaseRun, container: Container, result: Result) -> str:
        found = find(run, result)
        if not found:
            raise NotApplicable(otherwise)
        for each in found:
            run.shell(command.replace("@", each))
        return wrong.replace("@", listed(found))

    return inflict


def _ifname(run: CaseRun, result: Result) -> str:
    return run.subject.ifname


def _removable(run: CaseRun, result: Result) -> str:
    if run.subject.ifname == "lo":
        raise NotApplicable("lo cannot be removed")
    return run.subject.ifname


def _address(run: CaseRun, result: Result) -> str:
    if not result.ips:
        raise NotApplicable("its result has no addresses")
    return str(result.ips[0].address)


def _route(run: CaseRun, result: Result) -> str:
    if not result.routes:
        raise NotApplicable("its result has no routes")
    return str(result.routes[0].dst)


def _ports(run: CaseRun, result: Result) -> list[str]:
    return [link.name for link in run.state().of("").links if link.master][:1]


def _bridges(run: CaseRun, result: Result) -> list[str]:
    return sorted({link.master for link in run.state().of("").links if link.master})


def _host_ends(run: CaseRun, result: Result) -> list[str]:
    told = [each.name for each in result.interfaces if not each.sandbox]
    return [link.name for link in run.state().of("").links if link.kind == "veth" and link.name in told][:1]


def _rules(run: CaseRun, result: Result) -> list[str]:
    return ["the firewall rules"] if run.state().nft else []


def _shaped(run: CaseRun, result: Result) -> list[str]:
    return [name for name in _host_ends(run, result) if "qdisc tbf" in run.shell(f"tc qdisc show dev {name}")]


_NO_BRIDGE = "it plugs nothing into a bridge"

for _damage in (
    Damage("check-notices-a-missing-address", _inside(_address, "ip addr del @ dev %", "the address @ is gone")),
    Damage("check-notices-a-missing-route", _inside(_route, "ip route del @", "the route to @ is gone")),
    Damage("check-notices-a-link-that-is-down", _inside(_ifname, "ip link set @ down", "@ is down")),
    Damage("check-notices-a-missing-link", _inside(_removable, "ip link del @", "@ is gone")),
    Damage(
        "check-notices-a-port-without-bridge",
        _outside(_ports, "ip link set @ nomaster", "@ is in no bridge any more", _NO_BRIDGE),
        spec.CHECK_UNREACHABLE,
    ),
    Damage(
        "check-notices-a-missing-bridge",
        _outside(_bridges, "ip link del @", "@ is gone", _NO_BRIDGE),
        spec.CHECK_UNREACHABLE,
    ),
    Damage(
        "check-notices-a-host-end-that-is-down",
        _outside(_host_ends, "ip link set @ down", "the host end @ is down", "its result has no host end of a veth"),
        spec.CHECK_UNREACHABLE,
    ),
    Damage(
        "check-notices-missing-rules",
        _outside(_rules, "nft flush ruleset", "@ are gone", "it makes no firewall rules"),
        spec.CHECK_BESIDE_THE_RESULT,
        means="After `nft flush ruleset` or a firewall reload, published ports and masquerading are gone, unnoticed.",
        kinds=ATTACHING,
    ),
    Damage(
        "check-notices-missing-shaping",
        _outside(_shaped, "tc qdisc del dev @ root", "the shaping of @ is gone", "it shapes no traffic"),
        spec.CHECK_BESIDE_THE_RESULT,
        means="A container takes all of the node's bandwidth, unnoticed.",
        kinds=CHAINED,
    ),
):

    def _notices(run: CaseRun, inflict: Inflict = _damage.inflict) -> None:
        container = run.container()
        result = run.add(container)
        if run.check(container).status != 0:
            raise NotApplicable("CHECK fails before any damage, as another case says")
        wrong = inflict(run, container, result)
        run.check(container).must_fail(f"an error, since {wrong}")

    chapter.add(_damage.case, SHOULD, _damage.sentence, _notices, means=_damage.means, kinds=_damage.kinds)
