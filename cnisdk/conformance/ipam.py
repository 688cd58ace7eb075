"""Plugins that lease addresses (spec §4, §5 "Delegated plugins (IPAM)")."""

from __future__ import annotations

from ..spec.addresses import IPInterface
from .bench import Bench
from .case import Chapter
from .judgement import IPAM, Broken, Level, NotApplicable
from .sentences import CHECK_BESIDE_THE_RESULT, CHECK_CONSULTS, DEL_RELEASES, PRIMARY_KEY, STATUS_EXHAUSTED, error_code

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

_MANY = 70


def _first(bench: Bench, name: str) -> IPInterface:
    result = bench.add(bench.container(name))
    if not result.ips:
        raise Broken("at least one address", "none")
    return result.ips[0].address


def _keeps_account(bench: Bench) -> tuple[IPInterface, IPInterface]:
    first, second = _first(bench, "c1"), _first(bench, "c2")
    if first == second:
        raise NotApplicable("it keeps no account of its addresses")
    return first, second


@case(
    SHOULD,
    CHECK_BESIDE_THE_RESULT,
    means="Two containers get the same address, unnoticed.",
    kinds=IPAM,
)
def check_notices_a_missing_lease(bench: Bench) -> None:
    bench.need_check()
    _keeps_account(bench)
    container = bench.container("c3")
    bench.add(container)
    known = bench.results[container.id, bench.subject.ifname]
    bench.check(container).must_succeed("success while the address is leased")
    bench.delete(container)
    bench.check(container, prevResult=known).must_fail("an error, since the address is not leased any more")


@case(
    SHOULD,
    CHECK_CONSULTS,
    means="After state was lost and addresses were handed out anew, two containers share one, unnoticed.",
    kinds=IPAM,
)
def check_compares_the_address(bench: Bench) -> None:
    bench.need_check()
    _, foreign = _keeps_account(bench)
    container = bench.container("c3")
    bench.add(container)
    known = bench.results[container.id, bench.subject.ifname]
    other = {**known, "ips": [{**known["ips"][0], "address": str(foreign)}]}
    bench.check(container, prevResult=other).must_fail("an error, since the address in prevResult is another's")


@case(
    SHOULD,
    DEL_RELEASES,
    note="Those, and no others.",
    means="A DEL that comes late frees the address of another container, which is then given to a third.",
    kinds=IPAM,
)
def a_second_del_frees_nothing_of_others(bench: Bench) -> None:
    _keeps_account(bench)
    first, last = bench.container("c3"), bench.container("c4")
    bench.add(first)
    known = bench.results[first.id, bench.subject.ifname]
    bench.delete(first)
    result = bench.add(last)
    with bench.changing_nothing("by a second DEL"):
        bench.request("DEL", first, prevResult=known).must_succeed()
    bench.request("DEL", first, "other0", prevResult=known).must_succeed()
    if bench.subject.checks:
        bench.check(last).must_succeed("success for another container after a second DEL")
    fresh = bench.add(bench.container("c5"))
    if fresh.ips[0].address == result.ips[0].address:
        raise Broken("addresses of living containers kept", f"{fresh.ips[0].address} leased twice")


def _exhaust(bench: Bench) -> int:
    for number in range(_MANY):
        answer = bench.request("ADD", bench.container(f"n{number}"))
        if answer.status != 0:
            if answer.code is None:
                raise Broken("an error object when no address is left", answer.show())
            return number
        if number == 1:
            first, second = (bench.results[f"n{each}", bench.subject.ifname] for each in (0, 1))
            if first.get("ips") == second.get("ips"):
                raise NotApplicable("it keeps no account of its addresses")
    raise NotApplicable(f"it has more than {_MANY} addresses; configure a smaller pool")


@case(
    SHOULD,
    STATUS_EXHAUSTED,
    means="Pods are scheduled to a node on which none can start.",
    kinds=IPAM,
)
def status_of_an_exhausted_pool(bench: Bench) -> None:
    bench.need("1.1.0")
    bench.request("STATUS").must_succeed("success while there are addresses")
    taken = _exhaust(bench)
    bench.request("STATUS").must_fail(f"an error, since all {taken} addresses are taken and ADD fails")


@case(
    OPINION,
    STATUS_EXHAUSTED,
    note="STATUS came with 1.1.0: a plugin that does not claim 1.1.0 breaks no rule; runtimes take the node for ready "
    "all the same, whether or not an address is left.",
    means="Pods are scheduled to a node on which none can start.",
    kinds=IPAM,
)
def an_exhausted_pool_can_be_noticed(bench: Bench) -> None:
    taken = _exhaust(bench)
    answer = bench.request("STATUS", cniVersion="1.1.0")
    if answer.code not in (50, 51):
        raise Broken(f"STATUS: code 50 or 51, since all {taken} addresses are taken and ADD fails", answer.show())


@case(
    OPINION,
    error_code(11),
    means="The runtime gives up, instead of waiting for an address to be freed.",
    kinds=IPAM,
)
def an_exhausted_pool_has_code_11(bench: Bench) -> None:
    taken = _exhaust(bench)
    answer = bench.request("ADD", bench.container("last"))
    if answer.code != 11:
        raise Broken(f"code 11, since all {taken} addresses are taken", answer.show())


@case(
    SHOULD,
    DEL_RELEASES,
    means="The pool shrinks with every container that comes and goes, until no container starts.",
    kinds=IPAM,
)
def addresses_are_used_again(bench: Bench) -> None:
    taken = _exhaust(bench)
    for number in range(0, taken, 3):
        bench.request("DEL", None, environ=dict(bench.environ("DEL", f"n{number}"))).must_succeed()
    for number in range(0, taken, 3):
        bench.request("ADD", None, environ=dict(bench.environ("ADD", f"n{number}"))).must_succeed(
            "success, since an address was freed"
        )


@case(
    SHOULD,
    PRIMARY_KEY,
    means="Removing one interface of a pod frees the address of the other, which is then given to a third.",
    kinds=IPAM,
)
def two_interfaces_of_one_container(bench: Bench) -> None:
    _keeps_account(bench)
    container = bench.container("c3")
    first, second = bench.add(container).ips[0].address, bench.add(container, "net1").ips[0].address
    if first == second:
        raise Broken("an address for each interface", f"{first} for both")
    bench.delete(container)
    if bench.subject.checks:
        bench.check(container, "net1").must_succeed("success for net1 after DEL of the other interface")
    fresh = {bench.add(bench.container(f"c{number}")).ips[0].address for number in range(4, 7)}
    if second in fresh:
        raise Broken(f"{second} kept for net1", "it was leased again")
