"""GC and STATUS (spec §2): what runtimes ask of a network, rather than of an attachment."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from . import _sentences as spec
from ._terms import INTERFACE, MUST, OPINION
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, Kind, NotApplicable, listed

chapter = Chapter()
interfaces = chapter.of(INTERFACE)

VALID, OLD_VALID = "cni.dev/valid-attachments", "cni.dev/attachments"
_BEFORE_1_1 = "came with 1.1.0: a plugin that does not claim 1.1.0 breaks no rule;"


def _valid(run: CaseRun, *names: str, key: str = VALID) -> dict[str, Any]:
    return {key: [{"containerID": name, "ifname": run.subject.ifname} for name in names]}


@chapter.should(
    spec.GC_DROPS, means="Addresses and rules of containers that vanished without DEL (node crash) are lost for ever."
)
def gc_drops_what_is_stale(run: CaseRun) -> None:
    run.need("1.1.0")
    kept, known = _one_that_is_gone(run)
    with run.leaving_nothing("of an attachment that is not in the list of GC", known):
        run.request("GC", **_valid(run, kept)).must_succeed()
    if run.subject.kind is Kind.IPAM and run.subject.checks:
        stdin = json.dumps({**run.document(), "prevResult": run.results["stale", run.subject.ifname]}).encode()
        response = run.request("CHECK", None, environ=dict(run.environ("CHECK", "stale")), stdin=stdin)
        response.must_fail("an error from CHECK, since GC has dropped stale")


class Kept(NamedTuple):
    """Attachments that a GC has to keep.

    Attributes:
        case: The name of the case.
        note: The suite's own note.
        means: Consequence of a failure for an operator.
        network: Another network that one of the containers is in; empty if there is one network only.
        key: The key of the valid attachments.
    """

    case: str
    note: str
    means: str
    network: str = ""
    key: str = VALID


for _kept in (
    Kept(
        "gc-keeps-what-is-valid",
        "What does exist in this set stays.",
        "Running containers lose their network.",
    ),
    Kept(
        "gc-leaves-other-networks-alone",
        "Of that network, and no other.",
        "GC of one network takes away the addresses and links of another's containers.",
        network="other",
    ),
    Kept(
        "gc-knows-the-old-key",
        "The first edition of 1.1.0 called the key cni.dev/attachments, and containerd and CRI-O send both.",
        "With a runtime of the first edition, every running container loses its address.",
        key=OLD_VALID,
    ),
):

    def _keeps(run: CaseRun, kept: Kept = _kept) -> None:
        run.need("1.1.0")
        containers = [run.container("kept1"), run.container("kept2")]
        run.add(containers[0])
        run.add(containers[1], **({"name": kept.network} if kept.network else {}))
        valid = ["kept1", "unknown"] if kept.network else ["kept1", "kept2", "unknown"]
        if kept.network and run.subject.delegates:
            run.stub.answer("GC")  # the stub knows nothing of networks
        with run.changing_nothing("by GC of what is valid, or another network's"):
            run.request("GC", **_valid(run, *valid, key=kept.key)).must_succeed()
        for container in containers if run.subject.checks and not kept.network else ():
            run.check(container).must_succeed("success for an attachment that GC was told to keep")

    chapter.add(_kept.case, OPINION, spec.GC_IS_FOR.with_note(_kept.note), _keeps, means=_kept.means)


for _verb, _name, _sentence, _means in (
    (
        "GC",
        "gc-reaches-the-delegate",
        spec.GC_FORWARDS,
        "Addresses of containers that vanished without DEL are lost for ever.",
    ),
    (
        "STATUS",
        "status-asks-the-delegate",
        spec.STATUS_DELEGATES,
        "Pods are scheduled to a node on which none can start.",
    ),
):

    def _forwards(run: CaseRun, verb: str = _verb) -> None:
        run.need("1.1.0")
        stub = run.stub
        run.request(verb, **(_valid(run) if verb == "GC" else {}))
        if verb not in stub.verbs:
            raise Broken(f"{verb} of the delegate", f"calls {listed(stub.verbs) or 'none'}")

    chapter.add(_name, MUST, _sentence, _forwards, means=_means, kinds=INTERFACE)


@chapter.must(spec.STATUS_READY, means="The node stays NotReady.")
def status_is_ready(run: CaseRun) -> None:
    run.need("1.1.0")
    container = run.container()
    run.add(container)
    run.delete(container)  # it may have had the only address
    run.request("STATUS", prevResult=None).must_succeed("success, since ADD works")


@interfaces.should(spec.STATUS_OF_THE_DELEGATE, means="Pods are scheduled to a node on which none can start.")
def the_delegates_status_is_returned(run: CaseRun) -> None:
    run.need("1.1.0")
    run.stub.fail("STATUS", 50, "no address is left")
    run.request("STATUS").must_fail("an error, since the delegate is not ready")


@chapter.opinion(
    spec.GC_DROPS.with_note(f"GC {_BEFORE_1_1} its leaks are there for good all the same."),
    means="After a crash of the node or the runtime, addresses and rules of containers that are gone stay for ever.",
)
def leaks_can_be_collected(run: CaseRun) -> None:
    kept, known = _one_that_is_gone(run)
    if not run.remains(known):
        raise NotApplicable("nothing of an attachment outlives its container")
    response = run.request("GC", cniVersion="1.1.0", **_valid(run, kept))
    left = run.remains(known)
    if left:
        raise Broken("nothing left of a container that is gone, after GC", f"{listed(left)}, after {response.show()}")


def _one_that_is_gone(run: CaseRun) -> tuple[str, frozenset[str]]:
    """Attach two containers, and delete the namespace of one without DEL.

    Returns:
        The ID of the other container, and the footprint with its attachment.
    """
    before = run.warm()
    kept = run.container("kept")
    first = run.add(kept)
    stale = run.container("stale")
    known = before | run.footprint()
    second = run.add(stale)
    if run.subject.kind is Kind.IPAM and first.ips == second.ips:
        raise NotApplicable("it keeps no account of its addresses")
    run.shell("ip netns del stale")
    return kept.id, known


@chapter.opinion(
    spec.STATUS_READY.with_note(f"STATUS {_BEFORE_1_1} no runtime can ask it all the same."),
    means="The node is reported as ready whatever state its network is in.",
)
def readiness_can_be_asked(run: CaseRun) -> None:
    run.request("STATUS", cniVersion="1.1.0", prevResult=None).must_succeed("success, since ADD would work")
