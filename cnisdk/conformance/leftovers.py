"""What a request leaves open or lying about: processes, descriptors, temporary files, mounts."""

from __future__ import annotations

from .bench import Bench, listed
from .case import Chapter
from .judgement import INTERFACE, Broken, Level, Sentence
from .sentences import DEL_UNDOES, DELEGATE_CONFIGURED, STDOUT

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION


@case(
    OPINION,
    Sentence('§2 "Overview"', "The CNI protocol is based on execution of binaries invoked by the container runtime."),
    note="A binary ends; what goes on belongs to the system, not to a request.",
    means="Processes pile up on the node, or hold files of containers that are gone.",
)
def no_processes_are_left(bench: Bench) -> None:
    container = bench.container()
    for verb in ("ADD", *(["CHECK"] if bench.subject.checks else []), "DEL"):
        answer = bench.request(verb, container)
        if answer.left:
            raise Broken(f"no process left by {verb}", f"{len(answer.left)} that live on")


@case(
    OPINION,
    STDOUT,
    note="It is complete when no process can write to it any more: runtimes read to its end, and so to the end of "
    "every process that has inherited it.",
    means="The runtime waits for ever for a plugin that ended long ago.",
)
def no_descriptors_are_left_open(bench: Bench) -> None:
    container = bench.container()
    for verb in ("ADD", "DEL"):
        answer = bench.request(verb, container).must_succeed()
        if answer.held:
            raise Broken(
                f"{verb}: the end of stdout and stderr when the plugin has ended",
                f"{len(answer.left)} processes that hold them open",
            )


@case(
    OPINION,
    DELEGATE_CONFIGURED,
    note="And with nothing else: what is open beside the standard streams is a lock, a namespace or a socket of the "
    "plugin that delegates.",
    means="A delegate that lives on (a DHCP client) keeps the namespaces of dead containers, and locks, for ever.",
    kinds=INTERFACE,
)
def the_delegate_inherits_no_descriptors(bench: Bench) -> None:
    stub, container = bench.stub, bench.container()
    bench.add(container)
    bench.delete(container)
    for verb in ("ADD", "DEL"):
        inherited = stub.descriptors(verb)
        if inherited:
            raise Broken(f"{verb}: nothing open in the delegate beside its standard streams", listed(inherited))


@case(
    OPINION,
    DEL_UNDOES,
    note="The specification is silent on temporary files; a node has thousands of containers in its life.",
    means="/tmp fills up, with a directory for every container that ever ran.",
)
def no_temporary_files_and_mounts(bench: Bench) -> None:
    bench.warm()
    container = bench.container()
    mounts = _mounts(bench)
    with bench.leaving_nothing("after ADD and DEL"):
        bench.add(container)
        bench.delete(container)
    if _mounts(bench) != mounts:
        raise Broken(f"{mounts} mounts after ADD and DEL, as before", str(_mounts(bench)))


def _mounts(bench: Bench) -> int:
    return len(bench.host.run(["cat", "/proc/self/mountinfo"]).stdout.splitlines())
