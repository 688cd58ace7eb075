"""Reports of a run: text for people, JSON, JUnit XML, and a web page in one file."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple
from xml.etree import ElementTree

from .case import Case
from .catalogue import place_of
from .judgement import Level
from .runner import Outcome, Verdict
from .subject import Subject

_MARKS = {Verdict.PASSED: "✓", Verdict.FAILED: "✗", Verdict.SKIPPED: "–", Verdict.ERROR: "!"}


class Report(NamedTuple):
    """A plugin, and the outcome of each case.

    Attributes:
        subject: The plugin.
        outcomes: The outcomes.
        options: Options of ``cnisdk conform`` that describe the plugin, quoted for the shell.
        seconds: Wall-clock time of the run, in seconds; None if it was not measured.
        stopped: The signal that stopped the run; empty for none.
        unrun: The cases that had not ended when the signal came.
    """

    subject: Subject
    outcomes: Sequence[Outcome]
    options: str = ""
    seconds: float | None = None
    stopped: str = ""
    unrun: Sequence[Case] = ()

    @property
    def failures(self) -> list[Outcome]:
        """Failed cases, strictest level first."""
        order = list(Level)
        failed = [each for each in self.outcomes if each.verdict is Verdict.FAILED]
        return sorted(failed, key=lambda each: (order.index(each.case.level), place_of(each.case)))

    @property
    def causes(self) -> list[list[Outcome]]:
        """Failures, grouped by cause: cases that found the same leftovers have one cause."""
        found: dict[frozenset[str] | str, list[Outcome]] = {}
        for outcome in self.failures:
            found.setdefault(outcome.left or outcome.case.id, []).append(outcome)
        return list(found.values())

    @property
    def reasons(self) -> dict[str, list[Case]]:
        """Reasons for which cases do not apply, each with its cases."""
        found: dict[str, list[Case]] = {}
        for each in self.outcomes:
            if each.verdict is Verdict.SKIPPED:
                found.setdefault(each.seen, []).append(each.case)
        return found

    @property
    def errors(self) -> list[Outcome]:
        """Cases in which the suite itself had an error."""
        return [each for each in self.outcomes if each.verdict is Verdict.ERROR]

    def summary(self) -> str:
        """Return one line: ``bridge (interface, 0.1.0 to 1.1.0): 61 passed, 2 failed (1 MUST, 1 opinion), …``."""
        versions = self.subject.versions
        claimed = f"{versions[0]} to {versions[-1]}" if versions else "no version"
        if not self.subject.starts:
            return f"{self.subject.path}: not judged, since it cannot be started: {self.subject.problem}"
        if self.subject.problem:
            with_conf = json.dumps(self.subject.document(), ensure_ascii=False)
            return (
                f"{self.subject.name} ({claimed}): not judged, since its ADD does not work with {with_conf}: "
                f"{self.subject.problem}. Give its configuration with --conf, and prepare the host with --setup."
            )
        counts = Counter(each.verdict for each in self.outcomes)
        levels = Counter(each.case.level for each in self.failures)
        failed = ", ".join(f"{levels[level]} {level}" for level in Level if levels[level])
        parts = [
            f"{counts[Verdict.PASSED]} passed",
            f"{counts[Verdict.FAILED]} failed" + (f" ({failed})" if failed else ""),
        ]
        parts += [f"{counts[verdict]} {verdict}" for verdict in (Verdict.SKIPPED, Verdict.ERROR) if counts[verdict]]
        if self.seconds is not None:
            parts.append(f"in {self.seconds:.0f} s")
        remarks = [self.subject.remark] if self.subject.remark else []
        if self.stopped:
            cases = len(self.outcomes) + len(self.unrun)
            remarks.append(f"stopped by {self.stopped}: {len(self.unrun)} of {cases} cases did not run to their end")
        return "; ".join([f"{self.subject.name} ({self.subject.kind}, {claimed}): {', '.join(parts)}", *remarks])

    def again(self, case: Case) -> str:
        """Return the command line that runs one case again."""
        words = ["cnisdk conform", shlex.quote(self.subject.path), *filter(None, [self.options]), "--only", case.id]
        return " ".join(words)


def as_text(report: Report, *, reproduce: bool = True, reasons: bool = False) -> str:
    """Return each failure: the broken sentence, what was expected and seen, and the command that repeats it.

    Args:
        report: The report.
        reproduce: Show the command.
        reasons: Show why cases do not apply, too.
    """
    lines = [f"{report.subject.path}", ""] if report.failures or report.errors else []
    for outcome, *others in [*report.causes, *([each] for each in report.errors)]:
        case = outcome.case
        lines += [
            f"{_MARKS[outcome.verdict]} {case.id}  [{case.level}, spec {case.section}]",
            *(f"{_MARKS[each.verdict]} {each.case.id}  [{each.case.level}], of the same cause" for each in others),
            f"    the specification  {case.says}",
            *([f"    beside that        {case.note}"] if case.note else []),
            *([f"    expected           {outcome.expected}"] if outcome.expected else []),
            f"    seen               {outcome.seen}",
            f"    for operators      {case.means}",
        ]
        if reproduce:
            lines.append(f"    again              {report.again(case)}")
            if outcome.script:
                lines.append(f"    its last request   {_one_line(outcome.script)}")
        lines.append("")
    if reasons and report.reasons:
        for reason, cases in report.reasons.items():
            lines += [*(f"{_MARKS[Verdict.SKIPPED]} {case.id}" for case in cases), f"    not applicable     {reason}"]
        lines.append("")
    return "\n".join([*lines, report.summary()])


def _one_line(script: Sequence[str]) -> str:
    requests = [step for step in script if step.startswith("env -i ")]
    if not requests:
        return script[-1]
    command, _, rest = requests[-1].partition(" <<'END'\n")
    return f"{command} <<<{shlex.quote(rest.removesuffix(chr(10) + 'END'))}" if rest else command


def as_document(reports: Iterable[Report]) -> dict[str, Any]:
    """Return the reports as one object of JSON values."""
    return {
        "plugins": [
            {
                "path": report.subject.path,
                "kind": str(report.subject.kind),
                "problem": report.subject.problem,
                "remark": report.subject.remark,
                "versions": list(report.subject.versions),
                "seconds": report.seconds,
                "stopped": report.stopped,
                "unrun": [case.id for case in report.unrun],
                "cases": [
                    {
                        "id": each.case.id,
                        "level": str(each.case.level),
                        "section": each.case.section,
                        "says": each.case.says,
                        "note": each.case.note,
                        "means": each.case.means,
                        "verdict": str(each.verdict),
                        "expected": each.expected,
                        "seen": each.seen,
                        "reason": each.seen if each.verdict is Verdict.SKIPPED else "",
                        "again": report.again(each.case),
                        "script": list(each.script),
                        "seconds": each.seconds,
                    }
                    for each in report.outcomes
                ],
            }
            for report in reports
        ]
    }


def as_json(reports: Iterable[Report]) -> str:
    """Return the reports as JSON text."""
    return json.dumps(as_document(reports), indent=2, ensure_ascii=False) + "\n"


def as_junit(reports: Iterable[Report]) -> str:
    """Return JUnit's XML, which CI systems show: a test suite for each plugin."""
    root = ElementTree.Element("testsuites")
    for report in reports:
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"cni.{report.subject.name}",
            tests=str(len(report.outcomes)),
            failures=str(len(report.failures)),
            errors=str(len(report.errors) + bool(report.subject.problem) + bool(report.stopped)),
            skipped=str(sum(each.verdict is Verdict.SKIPPED for each in report.outcomes)),
            time=f"{report.seconds or sum(each.seconds for each in report.outcomes):.3f}",
        )
        if report.subject.problem or report.stopped:
            name = "the run" if report.stopped else "ADD"
            test = ElementTree.SubElement(suite, "testcase", classname=f"cni.{report.subject.name}", name=name)
            ElementTree.SubElement(test, "error", message=_printable(report.summary()))
        for each in report.outcomes:
            test = ElementTree.SubElement(
                suite, "testcase", classname=f"cni.{report.subject.name}", name=each.case.id, time=f"{each.seconds:.3f}"
            )
            if each.verdict is Verdict.SKIPPED:
                ElementTree.SubElement(test, "skipped", message=_printable(each.seen))
            elif each.verdict is not Verdict.PASSED:
                kind = "failure" if each.verdict is Verdict.FAILED else "error"
                message = f"expected {each.expected}, saw {each.seen}" if each.expected else each.seen
                node = ElementTree.SubElement(test, kind, message=_printable(message), type=str(each.case.level))
                about = [f"spec {each.case.section}: {each.case.sentence}", report.again(each.case), "", *each.script]
                node.text = _printable("\n".join(about))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Return the text without the control characters that XML cannot hold."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% } th, td { padding: .25em .6em; border-bottom: 1px solid #ddd }
th { position: sticky; top: 0; background: #fff; text-align: left } td.v { text-align: center; width: 6em }
.passed { color: #1a7f37 } .failed { color: #b42318; font-weight: bold } .not { color: #999 } .error { color: #9a6700 }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; white-space: pre-wrap } small { color: #666 }
@media (prefers-color-scheme: dark) {
  body, th { background: #181818; color: #ddd } pre { background: #252525 } th, td { border-color: #333 }
}
"""


def _expectation(outcome: Outcome) -> str:
    expected = f"Expected {escape(outcome.expected)}.<br>" if outcome.expected else ""
    return f"{expected}Seen {escape(outcome.seen)}."


def as_html(reports: Sequence[Report]) -> str:
    """Return a page with the matrix of cases and plugins, and below it every failure."""
    run = {each.case.id: each.case for report in reports for each in report.outcomes}
    cases: dict[str, Case] = {case.id: case for case in sorted(run.values(), key=place_of)}
    head = "".join(f"<th>{escape(report.subject.name)}</th>" for report in reports)
    rows = []
    found = [{each.case.id: each for each in report.outcomes} for report in reports]
    for case in cases.values():
        cells = []
        for number, outcomes in enumerate(found):
            outcome = outcomes.get(case.id)
            if outcome is None:
                cells.append("<td class=v></td>")
                continue
            css = str(outcome.verdict).split()[0]
            title = f"{outcome.verdict}: {outcome.seen}" if outcome.seen else str(outcome.verdict)
            mark = f"<span class={css} title='{escape(title)}'>{_MARKS[outcome.verdict]}</span>"
            if outcome.verdict in (Verdict.FAILED, Verdict.ERROR):
                mark = f"<a href='#{number}-{case.id}'>{mark}</a>"
            cells.append(f"<td class=v>{mark}</td>")
        rows.append(
            f"<tr><td>{escape(case.id)}<br><small>{escape(case.sentence)}</small></td>"
            f"<td>{case.level}</td><td>{escape(case.section)}</td>{''.join(cells)}</tr>"
        )
    details = []
    for number, report in enumerate(reports):
        details.append(f"<h2>{escape(report.summary())}</h2><p><small>{escape(report.subject.path)}</small></p>")
        for outcome in [*report.failures, *report.errors]:
            case = outcome.case
            steps = escape(chr(10).join(outcome.script))
            script = f"<details><summary>What it did, as shell commands</summary><pre>{steps}</pre></details>"
            details.append(
                f"<h3 id='{number}-{case.id}'>{escape(case.id)} <small>{case.level}, {escape(case.section)}</small>"
                "</h3>"
                f"<p>{escape(case.sentence)}</p><p>{_expectation(outcome)}</p>"
                f"<p>For operators: {escape(case.means)}</p>"
                f"<pre>{escape(report.again(case))}</pre>{script}"
            )
        if report.reasons:
            details.append("<h3>Not applicable</h3><dl>")
            for reason, skipped in report.reasons.items():
                details.append(f"<dt>{escape(', '.join(each.id for each in skipped))}<dd>{escape(reason)}")
            details.append("</dl>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>CNI conformance</title><style>{_STYLE}</style><h1>CNI conformance</h1>"
        f"<ul>{''.join(f'<li>{escape(report.summary())}' for report in reports)}</ul>"
        "<p>✓ passed · ✗ failed (a link to what was seen) · – does not apply (the reasons are below) · "
        "! could not be finished. An <i>opinion</i> is the suite's own: the specification leaves it open.</p>"
        f"<table><tr><th>case</th><th>level</th><th>section</th>{head}</tr>{''.join(rows)}</table>"
        f"{''.join(details)}</html>\n"
    )
