"""Leftovers of a request: processes, descriptors, temporary files, mounts."""

from __future__ import annotations

from . import _sentences as spec
from ._terms import INTERFACE
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, Sentence, listed

chapter = Chapter()
interfaces = chapter.of(INTERFACE)


@chapter.opinion(
    Sentence(
        '§2 "Overview"', "The CNI protocol is based on execution of binaries invoked by the container runtime."
    ).with_note("A binary ends; what goes on belongs to the system, not to a request."),
    means="Processes pile up on the node, or hold files of containers that are gone.",
)
def no_processes_are_left(run: CaseRun) -> None:
    container = run.container()
    for verb in ("ADD", *(["CHECK"] if run.subject.checks else []), "DEL"):
        response = run.request(verb, container)
        if response.left:
            raise Broken(f"no process left by {verb}", f"{len(response.left)} that live on")


@chapter.opinion(
    spec.STDOUT.with_note("Runtimes read to its end, and so until no process that inherited it is left."),
    means="The runtime waits for ever for a plugin that ended long ago.",
)
def no_descriptors_are_left_open(run: CaseRun) -> None:
    container = run.container()
    for verb in ("ADD", "DEL"):
        response = run.request(verb, container).must_succeed()
        if response.held:
            raise Broken(
                f"{verb}: the end of stdout and stderr when the plugin has ended",
                f"{len(response.left)} processes that hold them open",
            )


@interfaces.opinion(
    spec.DELEGATE_CONFIGURED.with_note("And nothing else: other open files are the plugin's own, such as its locks."),
    means="A delegate that lives on (a DHCP client) keeps the namespaces of dead containers, and locks, for ever.",
)
def the_delegate_inherits_no_descriptors(run: CaseRun) -> None:
    stub, container = run.stub, run.container()
    run.add(container)
    run.delete(container)
    for verb in ("ADD", "DEL"):
        inherited = stub.descriptors(verb)
        if inherited:
            raise Broken(f"{verb}: nothing open in the delegate beside its standard streams", listed(inherited))


@chapter.opinion(
    spec.DEL_UNDOES.with_note(
        "The specification is silent on temporary files; a node has thousands of containers in its life."
    ),
    means="/tmp fills up, with a directory for every container that ever ran.",
)
def no_temporary_files_and_mounts(run: CaseRun) -> None:
    run.warm()
    container = run.container()
    mounts = _mounts(run)
    with run.leaving_nothing("after ADD and DEL"):
        run.add(container)
        run.delete(container)
    if _mounts(run) != mounts:
        raise Broken(f"{mounts} mounts after ADD and DEL, as before", str(_mounts(run)))


def _mounts(run: CaseRun) -> int:
    return len(run.host.run(["cat", "/proc/self/mountinfo"]).stdout.splitlines())
