"""Plugins that lease addresses from another plugin (spec §4)."""

from __future__ import annotations

import json
import signal
from typing import Any

from ..testing.hosts import Container
from .bench import Answer, Bench, until
from .case import Chapter
from .judgement import INTERFACE, Broken, Level, NotApplicable
from .sentences import (
    DEL_UNDOES,
    DELEGATE_CONFIGURED,
    DELEGATE_EXECUTED,
    DELEGATE_FAILS,
    DELEGATE_FAILS_TO_ADD,
    DELEGATE_LOOKED_UP,
    DELEGATE_STDERR,
    DELETE_AFTER_FAILED_ADD,
    SUCCESS_OF_A_DELEGATE,
)

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION


@case(
    SHOULD,
    DELEGATE_CONFIGURED,
    means="An IPAM plugin does not see keys, capabilities or arguments meant for it.",
    kinds=INTERFACE,
)
def the_delegate_gets_the_same_configuration(bench: Bench) -> None:
    stub, container = bench.stub, bench.container()
    keys: dict[str, Any] = {"org.example/key": {"a": [1, None]}}
    bench.add(container, **keys)
    got, sent = stub.configuration("ADD"), bench.document(container, **keys)
    sent.pop("prevResult", None)
    if got != sent:
        raise Broken(f"the delegate's configuration to be {sent}", str(got))
    if stub.calls[0][1:] != (container.id, bench.subject.ifname):
        raise Broken("the delegate's environment to be the same", str(stub.calls[0]))


@case(
    MUST,
    DELEGATE_EXECUTED,
    means="Addresses are never freed, or their loss goes unnoticed.",
    kinds=INTERFACE,
)
def del_and_check_reach_the_delegate(bench: Bench) -> None:
    stub, container = bench.stub, bench.container()
    bench.add(container)
    if bench.subject.checks:
        bench.check(container).must_succeed()
        if "CHECK" not in stub.verbs:
            raise Broken("CHECK of the delegate", f"calls {stub.verbs}")
    bench.delete(container)
    if "DEL" not in stub.verbs or stub.leases:
        raise Broken("DEL of the delegate", f"calls {stub.verbs}, leases {stub.leases}")


@case(
    SHOULD,
    DELEGATE_FAILS,
    means="A container runs on with an address that may be given to another one.",
    kinds=INTERFACE,
)
def errors_of_the_delegate_are_returned(bench: Bench) -> None:
    stub, container = bench.stub, bench.container()
    bench.add(container)
    if bench.subject.checks:
        stub.forget()
        bench.check(container).must_fail("an error, since the delegate has lost the lease")
    stub.fail("DEL", 11, "the pool is locked")
    bench.request("DEL", container).must_fail("an error, since the delegate's DEL failed")
    stub.recover("DEL")
    bench.request("DEL", container).must_succeed("success when the delegate has recovered")


@case(
    SHOULD,
    DELEGATE_FAILS,
    note="The error, not another one.",
    means='Runtimes act on code 11 ("try again later"); they cannot when it gets lost.',
    kinds=INTERFACE,
)
def the_delegates_code_is_kept(bench: Bench) -> None:
    bench.stub.fail("ADD", 11, "the pool is empty")
    answer = bench.request("ADD", bench.container()).must_fail("an error, since the delegate's ADD failed")
    if answer.code != 11 or "the pool is empty" not in answer.told:
        raise Broken("the delegate's code 11 and message", answer.show())


@case(
    SHOULD,
    DELEGATE_FAILS_TO_ADD,
    means="An address leaks with each failed ADD.",
    kinds=INTERFACE,
)
def a_failed_delegate_is_told_to_del(bench: Bench) -> None:
    bench.stub.fail("ADD", 11)
    bench.request("ADD", bench.container()).must_fail()
    verbs = bench.stub.verbs
    if "DEL" not in verbs[verbs.index("ADD") :]:
        raise Broken("DEL of the delegate after its ADD failed", f"calls {verbs}")


@case(
    OPINION,
    DELETE_AFTER_FAILED_ADD,
    note="A runtime that only tries again finds what the first try left.",
    means="A second try fails because the interface exists, or links leak with each try.",
    kinds=INTERFACE,
)
def a_failed_add_leaves_nothing(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    bench.stub.fail("ADD", 11)
    with bench.leaving_nothing("by an ADD that failed", known):
        bench.request("ADD", container).must_fail()


@case(
    SHOULD,
    DEL_UNDOES,
    means="What a failed ADD left cannot be removed by any means the runtime has.",
    kinds=INTERFACE,
)
def del_after_a_failed_add_leaves_nothing(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    bench.stub.fail("ADD", 11)
    with bench.leaving_nothing("after a failed ADD and DEL", known):
        bench.request("ADD", container).must_fail()
        bench.request("DEL", container, prevResult=None).must_succeed("success after a failed ADD")


@case(
    OPINION,
    DELETE_AFTER_FAILED_ADD,
    note="A runtime that only tries again finds what the first try left.",
    means="A route that the kernel refuses leaks an address and a link with each try.",
    kinds=INTERFACE,
)
def an_add_that_fails_late_leaves_nothing(bench: Bench) -> None:
    """The delegate's answer is all right, but the kernel refuses its route when link and address are there."""
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    bench.stub.answer("ADD", bench.leased(routes=[{"dst": "10.98.0.0/16", "gw": "203.0.113.1"}]))
    calls = len(bench.stub.verbs)
    with bench.leaving_nothing("by an ADD that failed late", known):
        if bench.request("ADD", container).status == 0:
            raise NotApplicable("it makes no route that leads nowhere, or the kernel takes it")
    if "DEL" not in bench.stub.verbs[calls:]:
        raise Broken("DEL of the delegate after an ADD that failed late", f"calls {bench.stub.verbs[calls:]}")


@case(
    SHOULD,
    SUCCESS_OF_A_DELEGATE,
    means="A container starts without an address, though its configuration asks for one.",
    kinds=INTERFACE,
)
def a_delegate_that_prints_garbage(bench: Bench) -> None:
    container = bench.container()
    for text in (
        "",
        "log line\n{}",
        "[]",
        '{"cniVersion": "1.0.0"',
        '{"cniVersion": "1.0.0", "ips": [{"address": "x"}]}',
    ):
        bench.stub.answer("ADD", text)
        answer = bench.request("ADD", container).must_fail(f"an error, since the delegate printed {text!r}")
        if answer.code is None:
            raise Broken("an error object on stdout", answer.show())
        bench.request("DEL", container)


@case(
    SHOULD,
    DELEGATE_LOOKED_UP,
    means="A plugin that is missing on a node is noticed late, or never.",
    kinds=INTERFACE,
)
def a_delegate_that_is_missing(bench: Bench) -> None:
    if not bench.subject.delegates:
        raise NotApplicable("it leases no addresses from the suite's IPAM plugin")
    for name in ("no-such-plugin", "../cnisdk-testing/bin/stub-ipam", "/run/cnisdk-testing/bin/stub-ipam"):
        answer = bench.request("ADD", bench.container(f"c{len(bench.script)}"), ipam={"type": name})
        answer.must_fail(f"an error for the IPAM plugin {name}")
    if bench.stub.calls:
        raise Broken("no plugin outside CNI_PATH executed", str(bench.stub.calls))


@case(
    SHOULD,
    DELEGATE_STDERR,
    means="The reason for a failure is in no log.",
    kinds=INTERFACE,
)
def the_delegates_stderr_is_passed_on(bench: Bench) -> None:
    bench.stub.answer("ADD", bench.leased(), stderr="a word from the delegate\n")
    answer = bench.request("ADD", bench.container()).must_succeed()
    if b"a word from the delegate" not in answer.stderr:
        raise Broken("the delegate's stderr on stderr", f"stderr {answer.stderr.decode(errors='replace')!r}")


@case(
    OPINION,
    DELEGATE_CONFIGURED,
    note="The specification sets no time; runtimes give up after minutes, and a delegate may take some seconds.",
    means="A slow DHCP server looks like a broken plugin.",
    kinds=INTERFACE,
)
def a_delegate_that_is_slow(bench: Bench) -> None:
    bench.stub.answer("ADD", bench.leased(), delay=2)
    bench.request("ADD", bench.container()).must_succeed("success, if late")


def _hang(bench: Bench, number: signal.Signals) -> tuple[Container, frozenset[str], Answer]:
    """End an ADD whose delegate does not answer, as a runtime does that has no more patience."""
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    calls = len(bench.stub.calls)
    bench.stub.hang("ADD")
    data = json.dumps(bench.document(container)).encode()
    process = bench.start("ADD", container, data=data)
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.close()
    process.stdin = None
    if not until(lambda: len(bench.stub.calls) > calls, 30):
        bench.end(process.pid)
        raise Broken("an ADD of the delegate", "none within 30 seconds")
    process.send_signal(number)
    bench.script.append(f"# the delegate of the ADD above did not answer, and it was ended with {number.name}")
    answer = bench.finish("ADD", process, timeout=10)
    bench.stub.recover("ADD")
    return container, known, answer


@case(
    OPINION,
    DELEGATE_CONFIGURED,
    note="The specification sets no time; runtimes give up after minutes, and end the plugin. What it was waiting for "
    "is its own process, and its pipes are the runtime's: they end with it.",
    means="Each time-out leaves a process on the node, or the runtime waits for ever.",
    kinds=INTERFACE,
)
def a_delegate_that_hangs(bench: Bench) -> None:
    container, known, answer = _hang(bench, signal.SIGTERM)
    if answer.timed_out:
        raise Broken("an end within 10 seconds of SIGTERM", "it went on to wait for its delegate")
    if answer.left:
        raise Broken("the delegate ended with the plugin", f"{len(answer.left)} processes that live on")
    with bench.leaving_nothing("after an ADD whose delegate hung, and DEL", known):
        bench.request("DEL", container, prevResult=None).must_succeed("success after an ADD whose delegate hung")


@case(
    SHOULD,
    DEL_UNDOES,
    means="Each time-out of the runtime, which ends plugins with SIGKILL, leaks a link, a rule or an address.",
    kinds=INTERFACE,
)
def killed_while_the_delegate_hangs(bench: Bench) -> None:
    container, known, _ = _hang(bench, signal.SIGKILL)
    with bench.leaving_nothing("after an ADD that was killed while its delegate hung, and DEL", known):
        bench.request("DEL", container, prevResult=None).must_succeed("success after an ADD that was killed")
