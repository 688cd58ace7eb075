"""Full disks: plugins cannot write the state that their DEL needs."""

from __future__ import annotations

from . import _sentences as spec
from ._footprint import TEMPORARY
from ._terms import ATTACHING, IPAM
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, NotApplicable, listed

chapter = Chapter()


@chapter.opinion(
    spec.error_code(5).with_note("A full disk is one, not a success."),
    means="After a disk was full, addresses are lost for ever, or two containers have the same.",
    kinds=IPAM,
)
def a_full_disk(run: CaseRun) -> None:
    first = run.add(run.container("c1"))
    state = run.state()
    if not state.leases and not any(each.path.startswith("/var/lib/cni/") for each in state.files):
        raise NotApplicable("it keeps nothing on the disk that the case fills")
    run.shell(
        "cp -a /var/lib/cni /run/kept && mount -t tmpfs -o size=64k tmpfs /var/lib/cni && "
        "cp -a /run/kept/. /var/lib/cni && rm -r /run/kept && (cat /dev/zero >/var/lib/cni/filler 2>/dev/null || true)"
    )
    for number in range(3):
        run.request("ADD", run.container(f"full{number}"))
    run.shell("rm /var/lib/cni/filler")
    for number in range(3):
        run.request("DEL", None, environ=dict(run.environ("DEL", f"full{number}"))).must_succeed(
            "success after the disk was full"
        )
    fresh = [run.add(run.container(f"after{number}")) for number in range(3)]
    if first.ips[0].address in {each.ips[0].address for each in fresh}:
        raise Broken("the address of a living container kept", f"{first.ips[0].address} leased again")
    rubbish = [each.path for each in run.state().files if each.size == 0]
    if rubbish:
        raise Broken("no empty files left by a full disk", listed(rubbish))


# Directories in which interface and chained plugins keep what DEL needs, and TMPDIR of the requests.
_STATE = ("/var/lib/cni", "/run/cni", TEMPORARY)


@chapter.should(
    spec.DEL_UNDOES.with_note("As much after an ADD while the disk was full."),
    means="After a disk was full, links and rules of dead containers stay for ever, or containers cannot be removed.",
    kinds=ATTACHING,
)
def a_full_disk_while_attaching(run: CaseRun) -> None:
    run.warm()
    container = run.container()
    known = run.footprint()
    for place in _STATE:
        run.shell(
            f"mkdir -p {place} /run/kept && cp -a {place}/. /run/kept && "
            f"mount -t tmpfs -o size=64k tmpfs {place} && cp -a /run/kept/. {place} && rm -r /run/kept"
        )
    for full_at_del in (True, False):
        run.shell(_fill())
        attached = run.request("ADD", container)
        if attached.status != 0 and attached.code is None:
            raise Broken("a result or an error object with a full disk", attached.show())
        if not full_at_del:
            run.shell(_clear())
        with run.leaving_nothing("after an ADD with a full disk and DEL", known | _fillers()):
            run.request("DEL", container, prevResult=run.prev_result(container)).must_succeed(
                "success, with the disk full or after that" if full_at_del else "success after the disk was full"
            )
        if full_at_del:
            run.shell(_clear())


def _fill() -> str:
    return "; ".join(f"cat /dev/zero >{place}/filler 2>/dev/null || true" for place in _STATE)


def _clear() -> str:
    return f"rm -f {' '.join(f'{place}/filler' for place in _STATE)}"


def _fillers() -> frozenset[str]:
    return frozenset({f"temporary file {TEMPORARY}/filler"})
