"""Plugins that lease addresses from another plugin (spec §4)."""

from __future__ import annotations

import json
import signal
from typing import Any, NamedTuple

from ..testing.hosts import Container
from . import _sentences as spec
from ._processes import feed, wait_until
from ._response import Response
from ._terms import INTERFACE
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, NotApplicable

chapter = Chapter(kinds=INTERFACE)


@chapter.should(
    spec.DELEGATE_CONFIGURED, means="An IPAM plugin does not see keys, capabilities or arguments meant for it."
)
def the_delegate_gets_the_same_configuration(run: CaseRun) -> None:
    stub, container = run.stub, run.container()
    keys: dict[str, Any] = {"org.example/key": {"a": [1, None]}}
    run.add(container, **keys)
    got, sent = stub.configuration("ADD"), run.document(container, **keys)
    sent.pop("prevResult", None)
    if got.get("type") != sent["type"]:
        raise NotApplicable(f"between the two is another plugin, {got.get('type')}, with a configuration of its own")
    if got != sent:
        raise Broken(f"the delegate's configuration to be {sent}", str(got))
    if stub.calls[0][1:] != (container.id, run.subject.ifname):
        raise Broken("the delegate's environment to be the same", str(stub.calls[0]))


@chapter.must(spec.DELEGATE_EXECUTED, means="Addresses are never freed, or their loss goes unnoticed.")
def del_and_check_reach_the_delegate(run: CaseRun) -> None:
    stub, container = run.stub, run.container()
    run.add(container)
    if run.subject.checks:
        run.check(container).must_succeed()
        if "CHECK" not in stub.verbs:
            raise Broken("CHECK of the delegate", f"calls {stub.verbs}")
    run.delete(container)
    if "DEL" not in stub.verbs or stub.leases:
        raise Broken("DEL of the delegate", f"calls {stub.verbs}, leases {stub.leases}")


@chapter.should(spec.DELEGATE_FAILS, means="A container runs on with an address that may be given to another one.")
def errors_of_the_delegate_are_returned(run: CaseRun) -> None:
    stub, container = run.stub, run.container()
    run.add(container)
    if run.subject.checks:
        stub.forget()
        run.check(container).must_fail("an error, since the delegate has lost the lease")
    stub.fail("DEL", 11, "the pool is locked")
    run.request("DEL", container).must_fail("an error, since the delegate's DEL failed")
    stub.recover("DEL")
    run.request("DEL", container).must_succeed("success when the delegate has recovered")


class FailedAdd(NamedTuple):
    """An ADD whose delegate failed, and the DEL after it.

    Attributes:
        added: The response to ADD.
        verbs: The verbs that the delegate got meanwhile.
        left: Lines of the footprint that the ADD left behind.
        deleted: The response to DEL.
        remaining: Lines of the footprint that are left after the DEL.
    """

    added: Response
    verbs: list[str]
    left: frozenset[str]
    deleted: Response
    remaining: frozenset[str]


def _fail_to_add(run: CaseRun) -> FailedAdd:
    container, known = run.fresh_container()
    calls = len(run.stub.verbs)
    run.stub.fail("ADD", 11, "the pool is empty")
    added = run.request("ADD", container)
    verbs, left = run.stub.verbs[calls:], run.remains(known)
    deleted = run.request("DEL", container, prevResult=None)
    return FailedAdd(added, verbs, left, deleted, run.remains(known))


@chapter.should(
    spec.DELEGATE_FAILS.with_note("The error, not another one."),
    means='Runtimes act on code 11 ("try again later"); they cannot when it gets lost.',
    shares="failed delegate",
)
def the_delegates_code_is_kept(run: CaseRun) -> None:
    response = run.once(_fail_to_add).added.must_have_code(11, ", since the delegate's ADD failed with it")
    if "the pool is empty" not in response.told:
        raise Broken("the delegate's code 11 and message", response.show())


@chapter.should(spec.DELEGATE_FAILS_TO_ADD, means="An address leaks with each failed ADD.", shares="failed delegate")
def a_failed_delegate_is_told_to_del(run: CaseRun) -> None:
    failed = run.once(_fail_to_add)
    failed.added.must_fail()
    if "DEL" not in failed.verbs:
        raise Broken("DEL of the delegate after its ADD failed", f"calls {failed.verbs}")


@chapter.opinion(
    spec.DELETE_AFTER_FAILED_ADD.with_note("A runtime that only tries again finds what the first try left."),
    means="A second try fails because the interface exists, or links leak with each try.",
    shares="failed delegate",
)
def a_failed_add_leaves_nothing(run: CaseRun) -> None:
    failed = run.once(_fail_to_add)
    failed.added.must_fail()
    run.must_be_nothing(failed.left, "by an ADD that failed")


@chapter.should(
    spec.DEL_UNDOES,
    means="What a failed ADD left cannot be removed by any means the runtime has.",
    shares="failed delegate",
)
def del_after_a_failed_add_leaves_nothing(run: CaseRun) -> None:
    failed = run.once(_fail_to_add)
    failed.added.must_fail()
    failed.deleted.must_succeed("success after a failed ADD")
    run.must_be_nothing(failed.remaining, "after a failed ADD and DEL")


@chapter.opinion(
    spec.DELETE_AFTER_FAILED_ADD.with_note("A runtime that only tries again finds what the first try left."),
    means="A route that the kernel refuses leaks an address and a link with each try.",
)
def an_add_that_fails_late_leaves_nothing(run: CaseRun) -> None:
    """The result of the delegate is right, but the kernel refuses its route when link and address are there."""
    container, known = run.fresh_container()
    run.stub.answer("ADD", run.leased(routes=[{"dst": "10.98.0.0/16", "gw": "203.0.113.1"}]))
    calls = len(run.stub.verbs)
    with run.leaving_nothing("by an ADD that failed late", known):
        if run.request("ADD", container).status == 0:
            raise NotApplicable("it makes no route that leads nowhere, or the kernel takes it")
    if "DEL" not in run.stub.verbs[calls:]:
        raise Broken("DEL of the delegate after an ADD that failed late", f"calls {run.stub.verbs[calls:]}")


@chapter.should(
    spec.SUCCESS_OF_A_DELEGATE, means="A container starts without an address, though its configuration asks for one."
)
def a_delegate_that_prints_garbage(run: CaseRun) -> None:
    container = run.container()
    for text in (
        "",
        "log line\n{}",
        "[]",
        '{"cniVersion": "1.0.0"',
        '{"cniVersion": "1.0.0", "ips": [{"address": "x"}]}',
    ):
        run.stub.answer("ADD", text)
        response = run.request("ADD", container).must_fail(f"an error, since the delegate printed {text!r}")
        if response.code is None:
            raise Broken("an error object on stdout", response.show())
        run.request("DEL", container)


@chapter.should(spec.DELEGATE_LOOKED_UP, means="A plugin that is missing on a node is noticed late, or never.")
def a_delegate_that_is_missing(run: CaseRun) -> None:
    if not run.subject.delegates:
        raise NotApplicable("it leases no addresses from the suite's IPAM plugin")
    for name in ("no-such-plugin", "../cnisdk-testing/bin/stub-ipam", "/run/cnisdk-testing/bin/stub-ipam"):
        response = run.request("ADD", run.container(f"c{len(run.script)}"), ipam={"type": name})
        response.must_fail(f"an error for the IPAM plugin {name}")
    if run.stub.calls:
        raise Broken("no plugin outside CNI_PATH executed", str(run.stub.calls))


@chapter.should(spec.DELEGATE_STDERR, means="The reason for a failure is in no log.")
def the_delegates_stderr_is_passed_on(run: CaseRun) -> None:
    run.stub.answer("ADD", run.leased(), stderr="a word from the delegate\n")
    response = run.request("ADD", run.container()).must_succeed()
    if b"a word from the delegate" not in response.stderr:
        raise Broken("the delegate's stderr on stderr", f"stderr {response.stderr.decode(errors='replace')!r}")


@chapter.opinion(
    spec.DELEGATE_CONFIGURED.with_note(
        "The specification sets no time; runtimes give up after minutes, and a delegate may take some seconds."
    ),
    means="A slow DHCP server looks like a broken plugin.",
)
def a_delegate_that_is_slow(run: CaseRun) -> None:
    run.stub.answer("ADD", run.leased(), delay=2)
    run.request("ADD", run.container()).must_succeed("success, if late")


def _hang(run: CaseRun, number: signal.Signals) -> tuple[Container, frozenset[str], Response]:
    """End an ADD whose delegate does not answer, as a runtime does that has no more patience."""
    container, known = run.fresh_container()
    calls = len(run.stub.calls)
    run.stub.hang("ADD")
    data = json.dumps(run.document(container)).encode()
    process = run.start("ADD", container, data=data)
    feed(process, data)
    if not wait_until(lambda: len(run.stub.calls) > calls, 30):
        run.processes.end(process.pid)
        raise Broken("an ADD of the delegate", "none within 30 seconds")
    process.send_signal(number)
    run.script.append(f"# the delegate of the ADD above did not answer, and it was ended with {number.name}")
    response = run.processes.finish("ADD", process, timeout=10)
    run.stub.recover("ADD")
    return container, known, response


@chapter.opinion(
    spec.DELEGATE_CONFIGURED.with_note("A runtime ends a plugin that takes too long. The plugin ends its delegate."),
    means="Each time-out leaves a process on the node, or the runtime waits for ever.",
)
def a_delegate_that_hangs(run: CaseRun) -> None:
    container, known, response = _hang(run, signal.SIGTERM)
    if response.timed_out:
        raise Broken("an end within 10 seconds of SIGTERM", "it went on to wait for its delegate")
    if response.left:
        raise Broken("the delegate ended with the plugin", f"{len(response.left)} processes that live on")
    run.undo(container, known, "an ADD whose delegate hung")


@chapter.should(
    spec.DEL_UNDOES,
    means="Each time-out of the runtime, which ends plugins with SIGKILL, leaks a link, a rule or an address.",
)
def killed_while_the_delegate_hangs(run: CaseRun) -> None:
    container, known, _ = _hang(run, signal.SIGKILL)
    run.undo(container, known, "an ADD that was killed while its delegate hung")
