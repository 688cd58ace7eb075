"""Plugins that lease addresses from another plugin (spec §4), and the verbs GC and STATUS (§2)."""

from __future__ import annotations

import json
from typing import Any

from .bench import Bench, listed
from .case import INTERFACE, Broken, Chapter, Kind, Level, NotApplicable

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

VALID, OLD_VALID = "cni.dev/valid-attachments", "cni.dev/attachments"


@case(
    SHOULD,
    '§4 "Delegated plugin execution procedure"',
    "Execute that plugin with the same environment and configuration that it received.",
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
    '§4 "Delegated plugin execution procedure"',
    "If a plugin is executed with CNI_COMMAND=CHECK, DEL, or GC, it must also execute any delegated plugins.",
    means="Addresses are never freed, or their loss goes unnoticed.",
    kinds=INTERFACE,
)
def del_and_check_reach_the_delegate(bench: Bench) -> None:
    stub, container = bench.stub, bench.container()
    bench.add(container)
    if bench.subject.version >= "0.4.0":
        bench.check(container).must_succeed()
        if "CHECK" not in stub.verbs:
            raise Broken("CHECK of the delegate", f"calls {stub.verbs}")
    bench.delete(container)
    if "DEL" not in stub.verbs or stub.leases:
        raise Broken("DEL of the delegate", f"calls {stub.verbs}, leases {stub.leases}")


@case(
    MUST,
    '§4 "Delegated plugin execution procedure"',
    "If any of the delegated plugins return error, error should be returned by the upper plugin.",
    means="A container runs on with an address that may be given to another one.",
    kinds=INTERFACE,
)
def errors_of_the_delegate_are_returned(bench: Bench) -> None:
    stub, container = bench.stub, bench.container()
    bench.add(container)
    if bench.subject.version >= "0.4.0":
        stub.forget()
        bench.check(container).must_fail("an error, since the delegate has lost the lease")
    stub.fail("DEL", 11, "the pool is locked")
    bench.request("DEL", container).must_fail("an error, since the delegate's DEL failed")
    stub.recover("DEL")
    bench.request("DEL", container).must_succeed("success when the delegate has recovered")


@case(
    SHOULD,
    '§4 "Delegated plugin execution procedure"',
    "If any of the delegated plugins return error, error should be returned by the upper plugin.",
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
    '§4 "Delegated plugin execution procedure"',
    'If, on ADD, a delegated plugin fails, the "upper" plugin should execute again with DEL before returning failure.',
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
    '§2 "ADD"',
    "The specification leaves it to the runtime to DEL after a failed ADD; a runtime that only tries again finds what "
    "the first try left.",
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
    MUST,
    '§2 "DEL"',
    "undo any modifications applied in the plugin's ADD functionality",
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
    MUST,
    '§4 "Delegated plugin execution procedure"',
    "If any of the delegated plugins return error, error should be returned by the upper plugin.",
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
    MUST,
    '§4 "Delegated plugin execution procedure"',
    "Look up the plugin executable by searching the directories provided in the CNI_PATH environment variable.",
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
    '§4 "Delegated plugin execution procedure"',
    "Ensure that the delegated plugin's stderr is output to the calling plugin's stderr.",
    means="The reason for a failure is in no log.",
    kinds=INTERFACE,
)
def the_delegates_stderr_is_passed_on(bench: Bench) -> None:
    stub = bench.stub
    stub.answer(
        "ADD",
        {"cniVersion": bench.subject.version, "ips": [{"address": "10.9.0.9/24", "gateway": "10.9.0.1"}]}
        if bench.subject.version >= "1.0.0"
        else {"cniVersion": bench.subject.version, "ips": [{"version": "4", "address": "10.9.0.9/24"}]},
        stderr="a word from the delegate\n",
    )
    answer = bench.request("ADD", bench.container()).must_succeed()
    if b"a word from the delegate" not in answer.stderr:
        raise Broken("the delegate's stderr on stderr", f"stderr {answer.stderr.decode(errors='replace')!r}")


@case(
    OPINION,
    '§4 "Delegated plugin execution procedure"',
    "The specification sets no time; runtimes give up after minutes, and a delegate may take some seconds.",
    means="A slow DHCP server looks like a broken plugin.",
    kinds=INTERFACE,
)
def a_delegate_that_is_slow(bench: Bench) -> None:
    bench.stub.answer(
        "ADD",
        {
            "cniVersion": bench.subject.version,
            "ips": [{"version": "4", "address": "10.9.0.9/24", "gateway": "10.9.0.1"}],
        },
        delay=2,
    )
    bench.add(bench.container())


# -- GC ----------------------------------------------------------------------------------------------------------------


def _valid(bench: Bench, *names: str, key: str = VALID) -> dict[str, Any]:
    return {key: [{"containerID": name, "ifname": bench.subject.ifname} for name in names]}


@case(
    SHOULD,
    '§2 "GC"',
    "A plugin SHOULD remove as many stale resources as possible. For example, a plugin should remove any IPAM "
    "reservations associated with attachments not in the provided list.",
    means="Addresses and rules of containers that vanished without DEL (node crash) are lost for ever.",
)
def gc_drops_what_is_stale(bench: Bench) -> None:
    bench.need("1.1.0")
    before = bench.warm()
    kept = bench.container("kept")
    bench.add(kept)
    stale, other = bench.container("stale"), bench.container("other")
    known = before | bench.footprint()
    result = bench.add(stale)
    if bench.subject.kind is Kind.IPAM:
        if result.ips and result.ips[0].address == bench.add(other).ips[0].address:
            raise NotApplicable("it keeps no account of its addresses")
        bench.delete(other)
    bench.shell("ip netns del stale")
    with bench.leaving_nothing("of an attachment that is not in the list of GC", known):
        bench.request("GC", **_valid(bench, "kept")).must_succeed()
    if bench.subject.kind is Kind.IPAM:
        _expect_free(bench, "stale")


def _expect_free(bench: Bench, name: str) -> None:
    answer = bench.request("CHECK", None, environ=dict(bench.environ("CHECK", name)), stdin=_stdin(bench, name))
    answer.must_fail(f"an error from CHECK, since GC has dropped {name}")


def _stdin(bench: Bench, name: str) -> bytes:
    return json.dumps({**bench.document(), "prevResult": bench.results[name, bench.subject.ifname]}).encode()


@case(
    MUST,
    '§2 "GC"',
    "The GC command provides a way for runtimes to specify the expected set of attachments to a network.",
    means="Running containers lose their network.",
)
def gc_keeps_what_is_valid(bench: Bench) -> None:
    bench.need("1.1.0")
    kept = [bench.container("kept1"), bench.container("kept2")]
    for container in kept:
        bench.add(container)
    with bench.changing_nothing("by GC of a network of which all attachments are valid"):
        bench.request("GC", **_valid(bench, "kept1", "kept2", "unknown")).must_succeed()
    for container in kept:
        bench.check(container).must_succeed("success for an attachment that GC was told to keep")


@case(
    OPINION,
    '§2 "GC"',
    "The first edition of 1.1.0 called the key cni.dev/attachments, and containerd and CRI-O send both.",
    means="With a runtime of the first edition, every running container loses its address.",
)
def gc_knows_the_old_key(bench: Bench) -> None:
    bench.need("1.1.0")
    container = bench.container()
    bench.add(container)
    with bench.changing_nothing("by GC with the valid attachments under the old key"):
        bench.request("GC", **_valid(bench, "c1", key=OLD_VALID)).must_succeed()


@case(
    MUST,
    '§2 "GC"',
    "Plugins MUST, additionally, forward any GC calls to delegated plugins they are configured to use.",
    means="Addresses of containers that vanished without DEL are lost for ever.",
    kinds=INTERFACE,
)
def gc_reaches_the_delegate(bench: Bench) -> None:
    bench.need("1.1.0")
    stub = bench.stub
    bench.request("GC", **_valid(bench)).must_succeed()
    if "GC" not in stub.verbs:
        raise Broken("GC of the delegate", f"calls {listed(stub.verbs) or 'none'}")


# -- STATUS ------------------------------------------------------------------------------------------------------------


@case(
    MUST,
    '§2 "STATUS"',
    "A plugin must exit with a zero (success) return code if the plugin is ready to service ADD requests.",
    means="The node stays NotReady.",
)
def status_is_ready(bench: Bench) -> None:
    bench.need("1.1.0")
    container = bench.container()
    bench.add(container)
    bench.request("STATUS", prevResult=None).must_succeed("success, since ADD works")


@case(
    MUST,
    '§2 "STATUS"',
    "If a plugin relies on a delegated plugin (e.g. IPAM) to service ADD requests, it must also execute a STATUS "
    "request to that plugin [...]. If the delegated plugin return an error result, the executing plugin should return "
    "an error result.",
    means="Pods are scheduled to a node on which none can start.",
    kinds=INTERFACE,
)
def status_asks_the_delegate(bench: Bench) -> None:
    bench.need("1.1.0")
    bench.stub.fail("STATUS", 50, "no address is left")
    answer = bench.request("STATUS").must_fail("an error, since the delegate is not ready")
    if answer.code != 50:
        raise Broken("STATUS: the delegate's code 50", answer.show())


@case(
    OPINION,
    '§2 "GC"',
    "GC came with 1.1.0. A plugin that does not claim 1.1.0 breaks no rule; its leaks are there for good all the same.",
    means="After a crash of the node or the runtime, addresses and rules of containers that are gone stay for ever.",
)
def leaks_can_be_collected(bench: Bench) -> None:
    answer = bench.request("GC", cniVersion="1.1.0", **_valid(bench))
    answer.must_succeed("success, to collect what a crash has left")


@case(
    OPINION,
    '§2 "STATUS"',
    "STATUS came with 1.1.0. A plugin that does not claim 1.1.0 breaks no rule; nobody can ask it all the same.",
    means="The node is reported as ready whatever state its network is in.",
)
def readiness_can_be_asked(bench: Bench) -> None:
    bench.request("STATUS", cniVersion="1.1.0", prevResult=None).must_succeed("success, since ADD would work")
