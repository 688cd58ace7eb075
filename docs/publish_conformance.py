"""Judge the reference plugins and this project's, and write docs/conformance.md."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from cnisdk.conformance import Level, Outcome, Verdict, judge, select
from cnisdk.conformance.identify import identify
from cnisdk.conformance.report import Report
from cnisdk.conformance.runner import exit_status

PAGE = Path(__file__).with_name("conformance.md")
GO = Path("/usr/lib/cni")
REFERENCE = (
    *("bridge", "ptp", "macvlan", "host-device", "loopback"),
    *("portmap", "tuning", "bandwidth", "firewall", "sbr", "host-local", "static"),
)
OURS = tuple(sorted(entry.name for entry in entry_points(group="cnisdk.plugins")))
EXAMPLES: dict[str, dict[str, Any] | None] = {"patch": {"bridge": "up1", "ipam": {"type": "stub-ipam"}}, "cable": None}
TUTORIAL = PAGE.parents[1] / "examples" / "tutorial"
MARKS = {Verdict.PASSED: "yes", Verdict.FAILED: "**no**", Verdict.SKIPPED: "", Verdict.ERROR: "?"}

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

On the reference plugins as Debian packages them (`containernetworking-plugins` {version}), on ours, and on the tutorials' (`patch` with `disableCheck`).
Empty: the case does not apply.

"""


def main(names: Sequence[str]) -> None:
    """Judge, and write the page."""
    wanted = [name for name in REFERENCE if not names or name in names]
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, "-m", "cnisdk", "install", "--dest", directory], check=True)
        for name in EXAMPLES:
            program = Path(directory) / name
            program.write_text(f"#!{sys.executable}\n{(TUTORIAL / name).with_suffix('.py').read_text()}")
            program.chmod(0o755)
        paths = [GO / name for name in wanted] + [Path(directory) / name for name in (*OURS, *EXAMPLES)]
        titles = [*wanted, *(f"our {name}" for name in (*OURS, *EXAMPLES))]
        reports: dict[str, Report] = {}
        unsupported = []
        for title, path in zip(titles, paths, strict=True):
            subject = identify(str(path), conf=EXAMPLES.get(path.name))
            if "not supported" in subject.problem:
                unsupported.append(title)  # by this kernel
            elif subject.problem:
                sys.exit(Report(subject, ()).summary())
            else:
                jobs = 2 * len(os.sched_getaffinity(0))  # they wait for the kernel half of the time
                started = time.monotonic()
                outcomes = list(judge(subject, select(subject.kind), jobs=jobs))
                reports[title] = Report(subject, outcomes, seconds=time.monotonic() - started)
                sys.stderr.write(f"{reports[title].summary()}\n")
    PAGE.write_text(page(reports, unsupported), encoding="utf-8")
    if any(report.errors for report in reports.values()):
        sys.exit("a case could not be finished")
    if any(exit_status(report.outcomes) for title, report in reports.items() if title.startswith("our ")):
        sys.exit("one of our own plugins fails")


def page(reports: dict[str, Report], unsupported: Sequence[str]) -> str:
    """Return the page.

    Args:
        reports: The reports, by the titles of their columns.
        unsupported: Titles of plugins that this kernel does not support.
    """
    version = subprocess.run(
        ["dpkg-query", "-W", "-f", "${source:Upstream-Version}", "containernetworking-plugins"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.partition("+")[0]
    cases = select()
    lines = [HEAD.format(cases=len(cases), version=version or "1.1.1")]
    if unsupported:
        lines[0] += f"Not judged, since the kernel of this run lacks their kind of link: {', '.join(unsupported)}.\n\n"
    titles = list(reports)
    lines += ["| case | level | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(titles)]
    found = [{each.case.id: each for each in report.outcomes} for report in reports.values()]
    for case in cases:
        cells = [MARKS[outcomes[case.id].verdict] if case.id in outcomes else "" for outcomes in found]
        lines.append(f"| {case.id} | {case.level} | " + " | ".join(cells) + " |")
    totals = []
    for report in reports.values():
        passed = sum(each.verdict is Verdict.PASSED for each in report.outcomes)
        totals.append(f"{passed} of {passed + len(report.failures)}")
    lines += [f"| **passed, of those that apply** | | {' | '.join(totals)} |", "", "## What the failures mean", ""]
    for level in Level:
        for case in cases:
            failed = [
                (title, outcomes[case.id])
                for title, outcomes in zip(titles, found, strict=True)
                if case.id in outcomes and outcomes[case.id].verdict is Verdict.FAILED
            ]
            if case.level is level and failed:
                lines += [
                    f"### {case.id}",
                    "",
                    f"{level}, {case.section}: {case.sentence}",
                    "",
                    f"For operators: {case.means}",
                    "",
                    *(f"- {title}: {shown(outcome)}" for title, outcome in failed),
                    "",
                ]
    return "\n".join(lines).rstrip() + "\n"


def shown(outcome: Outcome) -> str:
    """Return what was expected and seen, as text that Markdown leaves alone."""
    seen = outcome.seen if len(outcome.seen) <= 200 else f"{outcome.seen[:199]}…"
    expected = outcome.expected.replace("`", "'")
    return f"expected `{expected}`; saw `{seen.replace('`', chr(39))}`"


if __name__ == "__main__":
    main(sys.argv[1:])
