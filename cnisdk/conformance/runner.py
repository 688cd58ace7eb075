"""Run cases, each on a fresh host, or on one that it shares with other cases (:mod:`.case`).

The case ``del-leaves-nothing`` runs first. What it finds is one fault of the plugin, which later cases do not report
again (:attr:`.subject.Subject.leaks`). The others run in their order, or in parallel in forked processes, each of
which sends its outcomes back through a pipe. A case ends in one of four ways: it returns (passed), raises
:class:`~.judgement.Broken` (failed) or :class:`~.judgement.NotApplicable`, or raises anything else, which is an error
of the suite or of the machine. A host and all processes on it end with its cases.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from attrs import evolve, fields, frozen

from .._light import TextEnum
from ..errors import name_and_text
from ..testing.hosts import Host
from ..testing.sandbox import fork_call, take_answer
from ._footprint import watched_for
from .case import Case
from .case_run import CaseRun
from .judgement import Broken, Level, NotApplicable
from .subject import Subject


class Verdict(TextEnum):
    """Result of a case."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "not applicable"
    ERROR = "error"


@frozen(kw_only=True)
class Outcome:
    """Result of a case, with what led to it.

    Attributes:
        case: The case.
        verdict: The result. An error is the suite's own, or the machine's.
        expected: For a failure, what the case expected.
        seen: For a failure, what it saw instead; for a case that does not apply, the reason.
        left: Lines of the footprint that were left behind, generalized.
        script: Shell commands that do what the case did, to be run as root in a throw-away network namespace.
        seconds: Wall-clock time of the case, in seconds.
    """

    case: Case
    verdict: Verdict
    expected: str = ""
    seen: str = ""
    left: frozenset[str] = frozenset()
    script: tuple[str, ...] = ()
    seconds: float = 0.0


# It runs first: what every DEL leaves is one fault, which later cases do not report again.
_FIRST = "del-leaves-nothing"
# The slowest cases start first, so that none of them runs alone at the end.
_LONG = ("killed-in-add", "terminated-in-add", "parallel-attachments", "a-full-disk-while-attaching", "few-open-files")


def judge(subject: Subject, cases: Iterable[Case], *, jobs: int = 1) -> Generator[Outcome, None, None]:
    """Run cases, and yield the outcome of each as it ends. Closing the generator kills running cases and their hosts.

    Args:
        subject: The plugin. Do not judge one that has a :attr:`~.subject.Subject.problem`: its requests fail.
        cases: The cases.
        jobs: Number of cases to run at the same time, each in a process of its own; 1 runs them in this process.

    Raises:
        SandboxUnavailable: This machine does not allow namespaces.
    """
    waiting = list(cases)
    for case in [each for each in waiting if each.id == _FIRST]:
        waiting.remove(case)
        outcome = run_case(subject, case)
        subject = evolve(subject, leaks=outcome.left)
        yield outcome
    groups = _group(waiting)
    if jobs <= 1:
        for group in groups:
            yield from run_cases(subject, group)
        return
    groups.sort(key=lambda group: not any(each.id in _LONG or each.shares for each in group))
    yield from _run_in_parallel(subject, groups, jobs)


def _group(cases: Iterable[Case]) -> list[list[Case]]:
    """Put the cases together that share a host."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.shares or case.id, []).append(case)
    return list(groups.values())


def _run_in_parallel(subject: Subject, groups: Iterable[list[Case]], jobs: int) -> Iterator[Outcome]:
    running: dict[int, tuple[int, list[Case]]] = {}  # read end of the pipe: process id and cases
    waiting = iter(groups)
    try:
        while True:
            for group in islice(waiting, jobs - len(running)):
                pipe, pid = fork_call(partial(_run_in_child, subject, group))
                running[pipe] = pid, group
            if not running:
                return
            for pipe in select.select(list(running), [], [])[0]:
                pid, group = running.pop(pipe)
                found = take_answer(pipe, pid, f"the case {group[0].id}")
                for case, outcome in zip(group, found, strict=True):
                    yield Outcome(case=case, **outcome)
    finally:
        for pipe, (pid, _) in running.items():
            os.kill(pid, signal.SIGKILL)
            os.close(pipe)
            os.waitpid(pid, 0)


def _run_in_child(subject: Subject, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Run cases in a forked process. Return the fields of the outcomes without the cases, which cannot be pickled."""
    names = [each.name for each in fields(Outcome) if each.name != "case"]
    return [{name: getattr(outcome, name) for name in names} for outcome in run_cases(subject, cases)]


def run_case(subject: Subject, case: Case) -> Outcome:
    """Run one case on a fresh host."""
    (outcome,) = run_cases(subject, [case])
    return outcome


def run_cases(subject: Subject, cases: Sequence[Case]) -> Iterator[Outcome]:
    """Run cases that share a host, one after another, and yield their outcomes."""
    started = time.monotonic()
    with Host(watched=watched_for(subject.path)) as host:
        run = CaseRun(host, subject)
        prepared = False
        for case in cases:
            verdict, expected, seen = Verdict.PASSED, "", ""
            left: frozenset[str] = frozenset()
            try:
                if not prepared:
                    run.prepare()
                    prepared = True
                case.check(run)
            except Broken as broken:
                verdict, expected, seen, left = Verdict.FAILED, broken.expected, broken.seen, broken.left
            except NotApplicable as reason:
                verdict, seen = Verdict.SKIPPED, str(reason)
            except Exception as exc:
                verdict, seen = Verdict.ERROR, name_and_text(exc)
            ended = time.monotonic()
            yield Outcome(
                case=case,
                verdict=verdict,
                expected=expected,
                seen=seen,
                left=left,
                script=tuple(run.script) if verdict in (Verdict.FAILED, Verdict.ERROR) else (),
                seconds=round(ended - started, 3),
            )
            started = ended


UNJUDGED = 4
"""Exit status for a plugin that cannot be judged, since it cannot be started or configured."""

UNFINISHED = 3
"""Exit status when the suite itself had an error, or was stopped."""


def exit_status(outcomes: Iterable[Outcome], fail_on: Level = Level.MUST) -> int:
    """Return 0 if no case of this level or a stricter one failed, 1 if one did, 3 if the suite itself had an error."""
    strict = {Level.MUST: {Level.MUST}, Level.SHOULD: {Level.MUST, Level.SHOULD}, Level.OPINION: set(Level)}[fail_on]
    everything = list(outcomes)
    if any(each.verdict is Verdict.FAILED and each.case.level in strict for each in everything):
        return 1
    return UNFINISHED if any(each.verdict is Verdict.ERROR for each in everything) else 0
