"""Run cases, each on a host of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from enum import Enum

from attrs import frozen

from ..hosts import Host
from .bench import WATCHED, Bench
from .case import Broken, Case, Level, NotApplicable
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
        script: Shell commands that do what the case did, to be run as root in a throw-away network namespace.
        seconds: How long it took.
    """

    case: Case
    verdict: Verdict
    expected: str = ""
    seen: str = ""
    script: tuple[str, ...] = ()
    seconds: float = 0.0


def judge(subject: Subject, cases: Iterable[Case]) -> Iterator[Outcome]:
    """Run the cases one after another.

    Raises:
        SandboxUnavailable: This machine does not allow namespaces.
    """
    for case in cases:
        yield run_case(subject, case)


def run_case(subject: Subject, case: Case) -> Outcome:
    """Run one case on a fresh host."""
    started = time.monotonic()
    verdict, expected, seen = Verdict.PASSED, "", ""
    with Host(watched=[place for place in WATCHED if place != os.path.dirname(subject.path)]) as host:
        bench = Bench(host, subject)
        bench.prepare()
        try:
            case.check(bench)
        except Broken as broken:
            verdict, expected, seen = Verdict.FAILED, broken.expected, broken.seen
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
        script=script,
        seconds=round(time.monotonic() - started, 3),
    )


def exit_status(outcomes: Iterable[Outcome], fail_on: Level = Level.MUST) -> int:
    """0 when no case of this level, or a stricter one, failed; 1 when one did; 3 when the suite itself had an error."""
    strict = {Level.MUST: {Level.MUST}, Level.SHOULD: {Level.MUST, Level.SHOULD}, Level.OPINION: set(Level)}[fail_on]
    everything = list(outcomes)
    if any(each.verdict is Verdict.FAILED and each.case.level in strict for each in everything):
        return 1
    return 3 if any(each.verdict is Verdict.ERROR for each in everything) else 0
