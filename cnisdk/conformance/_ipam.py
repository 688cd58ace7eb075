"""Plugins that lease addresses (spec §4, §5 "Delegated plugins (IPAM)")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_network
from typing import Any, NamedTuple

from ..spec.addresses import IPInterface
from . import _sentences as spec
from ._response import Response
from ._terms import IPAM
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, NotApplicable

chapter = Chapter(kinds=IPAM)

_MANY = 70
# Keys of well-known IPAM plugins.
_SUBNETS = ("subnet", "range", "cidr")


def _first(run: CaseRun, name: str) -> IPInterface:
    result = run.add(run.container(name))
    if not result.ips:
        raise Broken("at least one address", "none")
    return result.ips[0].address


def _keeps_account(run: CaseRun) -> tuple[IPInterface, IPInterface]:
    first, second = _first(run, "c1"), _first(run, "c2")
    if first == second:
        raise NotApplicable("it keeps no account of its addresses")
    return first, second


@chapter.should(spec.CHECK_BESIDE_THE_RESULT, means="Two containers get the same address, unnoticed.")
def check_notices_a_missing_lease(run: CaseRun) -> None:
    run.need_check()
    _keeps_account(run)
    container = run.container("c3")
    run.add(container)
    known = run.results[container.id, run.subject.ifname]
    run.check(container).must_succeed("success while the address is leased")
    run.delete(container)
    run.check(container, prevResult=known).must_fail("an error, since the address is not leased any more")


@chapter.should(
    spec.CHECK_CONSULTS,
    means="After state was lost and addresses were handed out anew, two containers share one, unnoticed.",
)
def check_compares_the_address(run: CaseRun) -> None:
    run.need_check()
    _, foreign = _keeps_account(run)
    container = run.container("c3")
    run.add(container)
    known = run.results[container.id, run.subject.ifname]
    other = {**known, "ips": [{**known["ips"][0], "address": str(foreign)}]}
    run.check(container, prevResult=other).must_fail("an error, since the address in prevResult is another's")


@chapter.should(
    spec.DEL_RELEASES.with_note("Those, and no others."),
    means="A DEL that comes late frees the address of another container, which is then given to a third.",
)
def a_second_del_frees_nothing_of_others(run: CaseRun) -> None:
    _keeps_account(run)
    first, last = run.container("c3"), run.container("c4")
    run.add(first)
    known = run.results[first.id, run.subject.ifname]
    run.delete(first)
    result = run.add(last)
    with run.changing_nothing("by a second DEL"):
        run.request("DEL", first, prevResult=known).must_succeed()
    run.request("DEL", first, "other0", prevResult=known).must_succeed()
    if run.subject.checks:
        run.check(last).must_succeed("success for another container after a second DEL")
    fresh = run.add(run.container("c5"))
    if fresh.ips[0].address == result.ips[0].address:
        raise Broken("addresses of living containers kept", f"{fresh.ips[0].address} leased twice")


class Exhaustion(NamedTuple):
    """A pool in which no address is left.

    Attributes:
        taken: How many addresses it had.
        status: The response to STATUS before the first one was taken.
    """

    taken: int
    status: Response


def _exhaust(run: CaseRun) -> Exhaustion:
    """Attach containers n0, n1 and so on, until no address is left."""
    pools = list(_list_pools(run.subject.conf))
    if pools and min(pools)[0] > _MANY:
        raise _too_large(f"{min(pools)[1]} has")
    status = run.request("STATUS")
    for number in range(_MANY):
        response = run.request("ADD", run.container(f"n{number}"))
        if response.status != 0:
            if response.code is None:
                raise Broken("an error object when no address is left", response.show())
            return Exhaustion(number, status)
        if number == 1:
            first, second = (run.results[f"n{each}", run.subject.ifname] for each in (0, 1))
            if first.get("ips") == second.get("ips"):
                raise NotApplicable("it keeps no account of its addresses")
    raise _too_large("it has")


def _too_large(what_has: str) -> NotApplicable:
    return NotApplicable(
        f"the pool is too large to be exhausted: {what_has} more than {_MANY} addresses; give a small subnet in --conf"
    )


def _list_pools(value: Any) -> Iterator[tuple[int, str]]:
    """Find the subnets of a configuration; yield each with its size, which the ends of a range can make smaller."""
    if isinstance(value, list):
        for each in value:
            yield from _list_pools(each)
    elif isinstance(value, Mapping):
        limited = any(word in key.lower() for key in value for word in ("start", "end", "exclude", "size"))
        for key, each in value.items():
            if key not in _SUBNETS or not isinstance(each, str):
                yield from _list_pools(each)
            else:
                with suppress(ValueError):
                    yield 0 if limited else ip_network(each, strict=False).num_addresses - 2, each


@chapter.should(
    spec.STATUS_EXHAUSTED, means="Pods are scheduled to a node on which none can start.", shares="exhausted pool"
)
def status_of_an_exhausted_pool(run: CaseRun) -> None:
    run.need("1.1.0")
    taken, before = run.once(_exhaust)
    before.must_succeed("success while there are addresses")
    run.request("STATUS").must_fail(f"an error, since all {taken} addresses are taken and ADD fails")


@chapter.opinion(
    spec.STATUS_EXHAUSTED.with_note(
        "STATUS came with 1.1.0: a plugin that does not claim 1.1.0 breaks no rule; runtimes take the node for ready "
        "all the same, whether or not an address is left."
    ),
    means="Pods are scheduled to a node on which none can start.",
    shares="exhausted pool",
)
def an_exhausted_pool_can_be_noticed(run: CaseRun) -> None:
    taken = run.once(_exhaust).taken
    response = run.request("STATUS", cniVersion="1.1.0")
    if response.code not in (50, 51):
        raise Broken(f"STATUS: code 50 or 51, since all {taken} addresses are taken and ADD fails", response.show())


@chapter.opinion(
    spec.error_code(11),
    means="The runtime gives up, instead of waiting for an address to be freed.",
    shares="exhausted pool",
)
def an_exhausted_pool_has_code_11(run: CaseRun) -> None:
    taken = run.once(_exhaust).taken
    run.request("ADD", run.container("last")).must_have_code(11, f", since all {taken} addresses are taken")


@chapter.should(
    spec.DEL_RELEASES,
    means="The pool shrinks with every container that comes and goes, until no container starts.",
    shares="exhausted pool",
)
def addresses_are_used_again(run: CaseRun) -> None:
    freed = [f"n{number}" for number in range(0, run.once(_exhaust).taken, 3)]
    for name in freed:
        run.request("DEL", None, environ=dict(run.environ("DEL", name))).must_succeed()
    for name in freed:
        run.request("ADD", None, environ=dict(run.environ("ADD", name))).must_succeed(
            "success, since an address was freed"
        )


@chapter.should(
    spec.PRIMARY_KEY,
    means="Removing one interface of a pod frees the address of the other, which is then given to a third.",
)
def two_interfaces_of_one_container(run: CaseRun) -> None:
    _keeps_account(run)
    container = run.container("c3")
    first, second = run.add(container).ips[0].address, run.add(container, "net1").ips[0].address
    if first == second:
        raise Broken("an address for each interface", f"{first} for both")
    run.delete(container)
    if run.subject.checks:
        run.check(container, "net1").must_succeed("success for net1 after DEL of the other interface")
    fresh = {run.add(run.container(f"c{number}")).ips[0].address for number in range(4, 7)}
    if second in fresh:
        raise Broken(f"{second} kept for net1", "it was leased again")
