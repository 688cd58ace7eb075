"""Run cases, each on a host of its own."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any

from attrs import evolve, fields, frozen

from ..testing.hosts import Host
from ..testing.sandbox import fork_call, take_answer
from .bench import Bench, watched_for
from .case import Case
from .judgement import Broken, Level, NotApplicable
from .subject import Subject


class Verdict(str, Enum):
    """What came of a case."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "not applicable"
    ERROR = "error"

    def __str__(self) -> str:
        return self.value


@frozen(kw_only=True)
class Outcome:
    """What came of a case, and how.

    Attributes:
        case: The case.
        verdict: What came of it. An error is the suite's own, or the machine's.
        expected: What was expected, for a failure.
        seen: What was seen; for a case that is not applicable, why.
        left: What was left behind, without what tells one attachment from another.
        script: Shell commands that do what the case did, to be run as root in a throw-away network namespace.
        seconds: How long it took.
    """

    case: Case
    verdict: Verdict
    expected: str = ""
    seen: str = ""
    left: frozenset[str] = frozenset()
    script: tuple[str, ...] = ()
    seconds: float = 0.0


# It is judged first: what each DEL leaves is one fault, and not one of every case that looks for what is left.
_FIRST = "del-leaves-nothing"
# These take longest, so that they are not begun last.
_LONG = ("killed-in-add", "terminated-in-add", "parallel-attachments", "a-full-disk-while-attaching", "few-open-files")


def judge(subject: Subject, cases: Iterable[Case], *, jobs: int = 1) -> Iterator[Outcome]:
    """Run cases, and yield what comes of each as it ends.

    Args:
        subject: The plugin. If it has a :attr:`~.subject.Subject.problem`, there is nothing to be learned from it.
        cases: The cases.
        jobs: How many to run at the same time, each in a process of its own.

    Raises:
        SandboxUnavailable: This machine does not allow namespaces.
    """
    waiting = list(cases)
    for case in [each for each in waiting if each.id == _FIRST]:
        waiting.remove(case)
        outcome = run_case(subject, case)
        subject = evolve(subject, leaks=outcome.left)
        yield outcome
    if jobs <= 1:
        yield from (run_case(subject, case) for case in waiting)
        return
    waiting.sort(key=lambda each: each.id not in _LONG)
    yield from _side_by_side(subject, waiting, jobs)


def _side_by_side(subject: Subject, cases: Iterable[Case], jobs: int) -> Iterator[Outcome]:
    running: dict[int, tuple[int, Case]] = {}  # by the pipe of each: its process, and the case
    waiting = iter(cases)
    try:
        while True:
            for case in islice(waiting, jobs - len(running)):
                pipe, pid = fork_call(partial(_run_apart, subject, case))
                running[pipe] = pid, case
            if not running:
                return
            for pipe in select.select(list(running), [], [])[0]:
                pid, case = running.pop(pipe)
                yield Outcome(case=case, **take_answer(pipe, pid, f"the case {case.id}"))
    finally:
        for pipe, (pid, _) in running.items():
            os.kill(pid, signal.SIGKILL)
            os.close(pipe)
            os.waitpid(pid, 0)


def _run_apart(subject: Subject, case: Case) -> dict[str, Any]:
    """What comes of a case, without the case, which is code."""
    outcome = run_case(subject, case)
    return {each.name: getattr(outcome, each.name) for each in fields(Outcome) if each.name != "case"}


def run_case(subject: Subject, case: Case) -> Outcome:
    """Run one case on a fresh host."""
    started = time.monotonic()
    verdict, expected, seen = Verdict.PASSED, "", ""
    left: frozenset[str] = frozenset()
    with Host(watched=watched_for(subject.path)) as host:
        bench = Bench(host, subject)
        try:
            bench.prepare()
            case.check(bench)
        except Broken as broken:
            verdict, expected, seen, left = Verdict.FAILED, broken.expected, broken.seen, broken.left
        except NotApplicable as reason:
            verdict, seen = Verdict.SKIPPED, str(reason)
        except Exception as exc:
            verdict, seen = Verdict.ERROR, f"{type(exc).__name__}: {exc}"
    script = tuple(bench.script) if verdict in (Verdict.FAILED, Verdict.ERROR) else ()
    return Outcome(
        case=case,
        verdict=verdict,
        expected=expected,
        seen=seen,
        left=left,
        script=script,
        seconds=round(time.monotonic() - started, 3),
    )


UNJUDGED = 4
"""Exit status for a plugin that cannot be judged, since it cannot be configured."""


def exit_status(outcomes: Iterable[Outcome], fail_on: Level = Level.MUST) -> int:
    """0 when no case of this level, or a stricter one, failed; 1 when one did; 3 when the suite itself had an error."""
    strict = {Level.MUST: {Level.MUST}, Level.SHOULD: {Level.MUST, Level.SHOULD}, Level.OPINION: set(Level)}[fail_on]
    everything = list(outcomes)
    if any(each.verdict is Verdict.FAILED and each.case.level in strict for each in everything):
        return 1
    return 3 if any(each.verdict is Verdict.ERROR for each in everything) else 0
