"""GC and STATUS (spec §2): what runtimes ask of a network, rather than of an attachment."""

from __future__ import annotations

import json
from typing import Any

from .bench import SETTLING, Bench, listed, until
from .case import INTERFACE, Broken, Chapter, Kind, Level, NotApplicable

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

VALID, OLD_VALID = "cni.dev/valid-attachments", "cni.dev/attachments"


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
    kept, known = _one_that_is_gone(bench)
    with bench.leaving_nothing("of an attachment that is not in the list of GC", known):
        bench.request("GC", **_valid(bench, kept)).must_succeed()
    if bench.subject.kind is Kind.IPAM and bench.subject.checks:
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
    for container in kept if bench.subject.checks else ():
        bench.check(container).must_succeed("success for an attachment that GC was told to keep")


@case(
    MUST,
    '§2 "GC"',
    "The GC command provides a way for runtimes to specify the expected set of attachments to a network.",
    means="GC of one network takes away the addresses and links of another's containers.",
)
def gc_leaves_other_networks_alone(bench: Bench) -> None:
    bench.need("1.1.0")
    if bench.subject.delegates:
        bench.stub.answer("GC")  # the stub knows nothing of networks
    bench.add(bench.container("ours"))
    bench.add(bench.container("theirs"), name="other")
    with bench.changing_nothing("by GC of another network"):
        bench.request("GC", **_valid(bench, "ours")).must_succeed()


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
    kept, known = _one_that_is_gone(bench)
    if bench.footprint() <= known:
        raise NotApplicable("nothing of an attachment outlives its container")
    answer = bench.request("GC", cniVersion="1.1.0", **_valid(bench, kept))
    if not until(lambda: bench.footprint() <= known, SETTLING):
        left = listed(bench.footprint() - known)
        raise Broken("nothing left of a container that is gone, after GC", f"{left}, after {answer.show()}")


def _one_that_is_gone(bench: Bench) -> tuple[str, frozenset[str]]:
    """Attach two containers, let one vanish without DEL, and tell which is still there and what belongs to it."""
    before = bench.warm()
    kept = bench.container("kept")
    first = bench.add(kept)
    stale = bench.container("stale")
    known = before | bench.footprint()
    second = bench.add(stale)
    if bench.subject.kind is Kind.IPAM and first.ips == second.ips:
        raise NotApplicable("it keeps no account of its addresses")
    bench.shell("ip netns del stale")
    return kept.id, known


@case(
    OPINION,
    '§2 "STATUS"',
    "STATUS came with 1.1.0. A plugin that does not claim 1.1.0 breaks no rule; nobody can ask it all the same.",
    means="The node is reported as ready whatever state its network is in.",
)
def readiness_can_be_asked(bench: Bench) -> None:
    bench.request("STATUS", cniVersion="1.1.0", prevResult=None).must_succeed("success, since ADD would work")
