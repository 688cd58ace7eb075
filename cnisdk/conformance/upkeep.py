"""GC and STATUS (spec §2): what runtimes ask of a network, rather than of an attachment."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .bench import Bench, listed
from .case import Chapter
from .judgement import INTERFACE, Broken, Kind, Level, NotApplicable
from .sentences import (
    GC_DROPS,
    GC_FORWARDS,
    GC_IS_FOR,
    STATUS_DELEGATES,
    STATUS_OF_THE_DELEGATE,
    STATUS_READY,
)

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

VALID, OLD_VALID = "cni.dev/valid-attachments", "cni.dev/attachments"
_BEFORE_1_1 = "came with 1.1.0: a plugin that does not claim 1.1.0 breaks no rule;"


def _valid(bench: Bench, *names: str, key: str = VALID) -> dict[str, Any]:
    return {key: [{"containerID": name, "ifname": bench.subject.ifname} for name in names]}


@case(
    SHOULD,
    GC_DROPS,
    means="Addresses and rules of containers that vanished without DEL (node crash) are lost for ever.",
)
def gc_drops_what_is_stale(bench: Bench) -> None:
    bench.need("1.1.0")
    kept, known = _one_that_is_gone(bench)
    with bench.leaving_nothing("of an attachment that is not in the list of GC", known):
        bench.request("GC", **_valid(bench, kept)).must_succeed()
    if bench.subject.kind is Kind.IPAM and bench.subject.checks:
        stdin = json.dumps({**bench.document(), "prevResult": bench.results["stale", bench.subject.ifname]}).encode()
        answer = bench.request("CHECK", None, environ=dict(bench.environ("CHECK", "stale")), stdin=stdin)
        answer.must_fail("an error from CHECK, since GC has dropped stale")


class Kept(NamedTuple):
    """What a GC has to leave alone.

    Attributes:
        case: The name of the case.
        note: What we have to say about it.
        means: What a failure means for an operator.
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

    def _keeps(bench: Bench, kept: Kept = _kept) -> None:
        bench.need("1.1.0")
        containers = [bench.container("kept1"), bench.container("kept2")]
        bench.add(containers[0])
        bench.add(containers[1], **({"name": kept.network} if kept.network else {}))
        valid = ["kept1", "unknown"] if kept.network else ["kept1", "kept2", "unknown"]
        if kept.network and bench.subject.delegates:
            bench.stub.answer("GC")  # the stub knows nothing of networks
        with bench.changing_nothing("by GC of what is valid, or another network's"):
            bench.request("GC", **_valid(bench, *valid, key=kept.key)).must_succeed()
        for container in containers if bench.subject.checks and not kept.network else ():
            bench.check(container).must_succeed("success for an attachment that GC was told to keep")

    chapter.add(_kept.case, OPINION, GC_IS_FOR, _keeps, note=_kept.note, means=_kept.means)


@case(
    MUST,
    GC_FORWARDS,
    means="Addresses of containers that vanished without DEL are lost for ever.",
    kinds=INTERFACE,
)
def gc_reaches_the_delegate(bench: Bench) -> None:
    bench.need("1.1.0")
    stub = bench.stub
    bench.request("GC", **_valid(bench))
    if "GC" not in stub.verbs:
        raise Broken("GC of the delegate", f"calls {listed(stub.verbs) or 'none'}")


@case(MUST, STATUS_READY, means="The node stays NotReady.")
def status_is_ready(bench: Bench) -> None:
    bench.need("1.1.0")
    bench.add(bench.container())
    bench.request("STATUS", prevResult=None).must_succeed("success, since ADD works")


@case(
    MUST,
    STATUS_DELEGATES,
    means="Pods are scheduled to a node on which none can start.",
    kinds=INTERFACE,
)
def status_asks_the_delegate(bench: Bench) -> None:
    bench.need("1.1.0")
    stub = bench.stub
    bench.request("STATUS")
    if "STATUS" not in stub.verbs:
        raise Broken("STATUS of the delegate", f"calls {listed(stub.verbs) or 'none'}")


@case(
    SHOULD,
    STATUS_OF_THE_DELEGATE,
    means="Pods are scheduled to a node on which none can start.",
    kinds=INTERFACE,
)
def the_delegates_status_is_returned(bench: Bench) -> None:
    bench.need("1.1.0")
    bench.stub.fail("STATUS", 50, "no address is left")
    bench.request("STATUS").must_fail("an error, since the delegate is not ready")


@case(
    OPINION,
    GC_DROPS,
    note=f"GC {_BEFORE_1_1} its leaks are there for good all the same.",
    means="After a crash of the node or the runtime, addresses and rules of containers that are gone stay for ever.",
)
def leaks_can_be_collected(bench: Bench) -> None:
    kept, known = _one_that_is_gone(bench)
    if not bench.remains(known):
        raise NotApplicable("nothing of an attachment outlives its container")
    answer = bench.request("GC", cniVersion="1.1.0", **_valid(bench, kept))
    left = bench.remains(known)
    if left:
        raise Broken("nothing left of a container that is gone, after GC", f"{listed(left)}, after {answer.show()}")


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
    STATUS_READY,
    note=f"STATUS {_BEFORE_1_1} no runtime can ask it all the same.",
    means="The node is reported as ready whatever state its network is in.",
)
def readiness_can_be_asked(bench: Bench) -> None:
    bench.request("STATUS", cniVersion="1.1.0", prevResult=None).must_succeed("success, since ADD would work")
