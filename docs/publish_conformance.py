"""Judge the reference plugins and this project's, and write docs/conformance.md."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from cnisdk.conformance import Case, Level, Outcome, Verdict, judge, select
from cnisdk.conformance.identify import identify
from cnisdk.conformance.report import Report
from cnisdk.conformance.runner import exit_status

PAGE = Path(__file__).with_name("conformance.md")
GO = Path("/usr/lib/cni")
OURS = tuple(sorted(entry.name for entry in entry_points(group="cnisdk.plugins")))
EXAMPLES: dict[str, dict[str, Any] | None] = {"patch": {"bridge": "up1", "ipam": {"type": "stub-ipam"}}, "cable": None}
TUTORIAL = PAGE.parents[1] / "examples" / "tutorial"
UNFINISHED = {Verdict.ERROR: " (not finished)"}
Reports = Mapping[str, Mapping[str, Report]]

HEAD = """<!-- Made by `nox -s conformance`; edit docs/publish_conformance.py instead. -->

# Conformance

`cnisdk conform` judges a CNI plugin in any language, as a black box: {cases} cases, each keyed to a sentence of the
[specification](https://www.cni.dev/docs/spec/), each on a fresh throw-away host (cases that judge the same requests share one). It needs no root and touches nothing of the machine's network.

```console
$ cnisdk conform /opt/cni/bin/bridge
$ cnisdk conform ./myplugin --conf net.json --ipam /opt/cni/bin --html report.html
$ cnisdk conform --list
```

| option | |
|---|---|
| `--conf FILE` | the network configuration of the plugin; by default what it declares (`Plugin.conformance`), or what is known of its name: every plugin of the reference has one. With `"ipam": {{"type": "stub-ipam"}}` the suite's own IPAM plugin leases the addresses, and the cases about delegation apply. `{{number}}` in a text becomes the number of the attachment |
| `--ipam DIR` | a directory with the plugins it delegates to |
| `--kind` | `interface`, `chained` or `ipam`; found out by asking when not given |
| `--ifname NAME`, `--setup COMMANDS` | `CNI_IFNAME`; shell commands that prepare each host, where `up0` is a link and `up1` a bridge already |
| `--container-setup COMMANDS` | shell commands, run on the host, that prepare each new container; `{{container}}` in them becomes the name of its namespace. A plugin that is named `dhcp` needs none of this: its hosts have dnsmasq and its own daemon (`dhcp daemon`), and its containers interfaces |
| `--only PATTERN`, `--list` | some cases; what there is |
| `-j N`, `-v` | how many cases run at the same time, by default as many as there are processors; a line on standard error for each case as it ends, and in the report why cases do not apply |
| `--json`, `--junit`, `--html FILE` | reports for programs, CI systems and people. Each failure has the command line that shows it again, and as shell commands what the case did; a `prevResult` in them is that of the run, and may name other hardware addresses than the next |
| `--fail-on LEVEL` | `must` (the default), `should` or `opinion`: what makes the exit status 1. It is 2 for wrong use, 3 when the suite could not finish or was stopped (SIGTERM, Ctrl-C: the cases that ended are reported), and 4 when a plugin was not judged |

A plugin is tried before it is judged. If it cannot be started, one line says why. If its ADD does not work with the configuration, no case could tell anything of it: one line says what it said, and asks for `--conf` and
`--setup`. A chained plugin whose ADD changes nothing that the suite can see is judged, and the last line says so.

A case quotes the specification word for word (`tests/conformance/quoted.md` has the sentences as they stand in 1.1.0 and 0.4.0), and its *level* is the word in the sentence: MUST only where it says "must" or "required". What the sentence does not carry is not held
against a plugin: what a case needs but is not about makes it "not applicable". An *opinion* is ours: the specification is silent, or leaves it open, and operators are the ones who
find out. A plugin that does not claim a version is not judged by it: GC and STATUS came with 1.1.0. What that means for a node is an opinion:
`leaks-can-be-collected`, `readiness-can-be-asked` and `an-exhausted-pool-can-be-noticed` ask all the same. With `"disableCheck": true` in the configuration,
nothing is sent CHECK, as runtimes do.

Cases that end an ADD do it at a system call that changes something, under ptrace(2): at each of them, or at twelve spread over all of them if there are more. The same plugin ends in the same
places each time. What every DEL of a plugin leaves is one fault, which `del-leaves-nothing` tells of; other cases look for what is left beyond that.

A leak is what is left of one attachment: links, addresses, routes, rules, leases, and files that tell of its container. Caches and indexes for all of
them are not.

The shell commands of a report run as root of a throw-away host, too:

```text
$ unshare --user --map-root-user --net --mount sh -c 'mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib; ip link set lo up; sh script'
```

In pytest, `select` and `run_case` of `cnisdk.conformance` make the same a test for each case:

```python
import pytest

from cnisdk.conformance import select
from cnisdk.conformance.runner import Verdict, run_case
from cnisdk.conformance.identify import identify


@pytest.mark.parametrize("case", select(), ids=lambda case: case.id)
def test_conformance(case):
    subject = identify("/opt/cni/bin/myplugin")
    if subject.kind not in case.kinds:
        pytest.skip(f"not for {{subject.kind}} plugins")
    outcome = run_case(subject, case)
    assert outcome.verdict is not Verdict.FAILED, outcome
```

## The verdict

On the reference plugins as Debian packages them (`containernetworking-plugins` {version}), on ours, and on the tutorials' (`patch` and `cable`): how many of the cases that apply to a plugin it passes.

"""


def main(names: Sequence[str]) -> None:
    """Judge the plugins of these names, or all, and write the page."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "cnisdk", "install", "--no-server", "--dest", directory], check=True)
        for name in EXAMPLES:
            program = Path(directory) / name
            program.write_text(f"#!{sys.executable}\n{(TUTORIAL / name).with_suffix('.py').read_text()}")
            program.chmod(0o755)
        paths = {"Go's": sorted(GO.iterdir()), "our": [Path(directory) / name for name in (*OURS, *EXAMPLES)]}
        reports: dict[str, dict[str, Report]] = {maker: {} for maker in paths}
        not_judged: dict[tuple[str, str], str] = {}
        for maker, path in ((maker, path) for maker, found in paths.items() for path in found):
            name = path.name
            if names and name not in names:
                continue
            subject = identify(str(path), conf=EXAMPLES.get(name))
            if "not supported" in subject.problem:
                not_judged[maker, name] = "the kernel of this run lacks its kind of link"
            elif subject.problem:
                sys.exit(Report(subject, ()).summary())
            else:
                jobs = 2 * len(os.sched_getaffinity(0))  # they wait for the kernel half of the time
                started = time.monotonic()
                outcomes = list(judge(subject, select(subject.kind), jobs=jobs))
                report = Report(subject, outcomes, seconds=time.monotonic() - started)
                reports[maker][name] = report
                sys.stderr.write(f"{maker} {report.summary()}\n")
    PAGE.write_text(page(reports, not_judged), encoding="utf-8")
    if any(report.errors for found in reports.values() for report in found.values()):
        sys.exit("a case could not be finished")
    if any(exit_status(report.outcomes) for report in reports["our"].values()):
        sys.exit("one of our own plugins fails")


def page(reports: Reports, not_judged: Mapping[tuple[str, str], str]) -> str:
    """Return the page.

    Args:
        reports: The reports, by who made the plugins ("Go's", "our"), and by their names.
        not_judged: The reason why a plugin was not judged, by who made it and its name.
    """
    version = subprocess.run(
        ["dpkg-query", "-W", "-f", "${source:Upstream-Version}", "containernetworking-plugins"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.partition("+")[0]
    cases = select()
    parts = [HEAD.format(cases=len(cases), version=version or "1.1.1"), *plugin_table(reports, not_judged)]
    if not_judged:
        reasons = ", ".join(f"{maker} {name} ({reason})" for (maker, name), reason in not_judged.items())
        parts += [f"Not judged: {reasons}.", ""]
    parts += case_table(cases, reports)
    parts += ["## What the failures mean", ""]
    for level in Level:
        for case in cases:
            failed = [
                (f"{maker} {name}", outcome)
                for maker, found in reports.items()
                for name, outcome in outcomes_of(case, found).items()
                if outcome.verdict is Verdict.FAILED
            ]
            if case.level is level and failed:
                parts += [
                    f"### {case.id}",
                    "",
                    f"{level}, {case.section}: {case.sentence}",
                    "",
                    f"For operators: {case.means}",
                    "",
                    *(f"- {title}: {shown(outcome)}" for title, outcome in failed),
                    "",
                ]
    return "\n".join(parts).rstrip() + "\n"


def plugin_table(reports: Reports, not_judged: Mapping[tuple[str, str], str]) -> list[str]:
    """Return a table with a row for each plugin."""
    lines = ["| plugin | kind | Go's | ours |", "|---|---|---|---|"]
    known = {name for found in reports.values() for name in found} | {name for _, name in not_judged}
    for name in [*sorted(known.difference(EXAMPLES)), *(name for name in EXAMPLES if name in known)]:
        judged = [found[name] for found in reports.values() if name in found]
        totals = []
        for maker, found in reports.items():
            if name in found:
                passed = sum(each.verdict is Verdict.PASSED for each in found[name].outcomes)
                totals.append(f"{passed} of {passed + len(found[name].failures)}")
            else:
                totals.append("not judged" if (maker, name) in not_judged else "")
        lines.append(f"| {name} | {judged[0].subject.kind if judged else ''} | {' | '.join(totals)} |")
    return [*lines, ""]


def case_table(cases: Iterable[Case], reports: Reports) -> list[str]:
    """Return a table with a row for each case that applies to a plugin."""
    lines = [
        "By case: how many of the plugins that it applies to pass it, and which fail.",
        "",
        "| case | level | Go's pass | Go's fail | ours pass | ours fail |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        cells = []
        for found in reports.values():
            verdicts = {
                name: outcome.verdict
                for name, outcome in outcomes_of(case, found).items()
                if outcome.verdict is not Verdict.SKIPPED
            }
            passed = sum(verdict is Verdict.PASSED for verdict in verdicts.values())
            others = [
                name + UNFINISHED.get(verdict, "")
                for name, verdict in verdicts.items()
                if verdict is not Verdict.PASSED
            ]
            cells += [f"{passed} of {len(verdicts)}" if verdicts else "", ", ".join(others)]
        if any(cells):
            lines.append(f"| {case.id} | {case.level} | {' | '.join(cells)} |")
    return [*lines, ""]


def outcomes_of(case: Case, reports: Mapping[str, Report]) -> dict[str, Outcome]:
    """Return the outcomes of a case, by the names of the plugins."""
    return {name: each for name, report in reports.items() for each in report.outcomes if each.case.id == case.id}


def shown(outcome: Outcome) -> str:
    """Return what was expected and seen, as text that Markdown leaves alone."""
    seen = outcome.seen if len(outcome.seen) <= 200 else f"{outcome.seen[:199]}…"
    expected = outcome.expected.replace("`", "'")
    return f"expected `{expected}`; saw `{seen.replace('`', chr(39))}`"


if __name__ == "__main__":
    main(sys.argv[1:])
