"""The command and its reports."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cnisdk.cli import cnisdk
from cnisdk.testing.conformance import CASES, Level, Verdict, select
from cnisdk.testing.conformance.case import Kind
from cnisdk.testing.conformance.report import Report, as_html, as_json, as_junit, as_text
from cnisdk.testing.conformance.runner import Outcome, exit_status

from .conftest import BRIDGE, Make
from .test_broken import method


def test_every_case_says_what_it_holds_plugins_to() -> None:
    assert len({case.id for case in CASES}) == len(CASES) >= 70
    for case in CASES:
        assert re.match('§[1-5] "', case.section), case.id
        assert case.says
        assert case.means.endswith(".")
        assert case.kinds


def test_selection() -> None:
    assert {case.id for case in select(Kind.IPAM, ["hostile-*", "add-creates*"])} == {
        "hostile-container-ids",
        "hostile-interface-names",
        "hostile-network-names",
    }


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cnisdk.main(["conform", "--list", "--kind", "chained"]) == 0
    printed = capsys.readouterr().out
    assert "prev-result-is-passed-through" in printed
    assert "add-creates-the-interface" not in printed


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "name the executable"),
        (["/bin/true", "--only", "no-such-case"], 2, "no case is named no-such-case"),
        (["/no/such/plugin"], 1, "/no/such/plugin is not an executable file (code 7)"),
        (["/bin/true", "--conf", "/no/such/file"], 1, "cannot read /no/such/file"),
    ],
)
def test_wrong_use(arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cnisdk.main(["conform", *arguments]) == status
    assert said in capsys.readouterr().err


@pytest.mark.kernel
def test_a_run(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = make(Kind.INTERFACE, ("    exit 1\n", "    exit 0\n"))
    reports = {name: tmp_path / f"report.{name}" for name in ("json", "junit", "html")}
    files = [word for name, path in reports.items() for word in (f"--{name}", str(path))]
    only = ["--only", "failure-has-a-non-zero-status", "--only", "success-prints*", "--only", "the-delegates-code*"]
    assert cnisdk.main(["conform", subject.path, *only, *files]) == 1
    printed = capsys.readouterr().out
    assert "✗ failure-has-a-non-zero-status  [MUST, spec §2" in printed
    assert f"cnisdk conform {subject.path} --only failure-has-a-non-zero-status" in printed
    assert "wire (interface, 1.0.0 to 1.1.0): 1 passed, 1 failed (1 MUST), 1 not applicable" in printed
    (plugin,) = json.loads(reports["json"].read_text())["plugins"]
    assert [case["verdict"] for case in plugin["cases"]] == ["passed", "failed", "not applicable"]
    assert any(step.startswith("env -i ") for step in plugin["cases"][1]["script"])
    suite = ElementTree.fromstring(reports["junit"].read_text())[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    page = reports["html"].read_text()
    assert "failure-has-a-non-zero-status" in page
    assert "http" not in page  # self-contained
    # Only what is asked for decides the status.
    assert cnisdk.main(["conform", subject.path, "--only", "success-prints*"]) == 0


@pytest.mark.kernel
def test_the_script_reproduces(make: Make) -> None:
    """What a report offers as commands shows the failure again."""
    from cnisdk.testing import Host
    from cnisdk.testing.conformance.runner import run_case

    subject = make(Kind.INTERFACE, ("    exit 1\n", "    exit 0\n"))
    (case,) = select(only=["failure-has-a-non-zero-status"])
    outcome = run_case(subject, case)
    with Host() as host:
        assert host.run(["sh", "-euc", "\n".join(outcome.script)]).stdout.count('"code": 6') == 1


@pytest.mark.kernel
def test_the_script_brings_what_is_delegated_to(make: Make) -> None:
    from cnisdk.testing import Host
    from cnisdk.testing.conformance.runner import run_case

    subject = make(Kind.INTERFACE, ("    pass", f"    {method('delete', 'pass')}"), text=BRIDGE, name="bridge")
    (case,) = select(only=["del-and-check-reach-the-delegate"])
    outcome = run_case(subject, case)
    with Host() as host:
        host.run(["sh", "-c", "\n".join(outcome.script)], check=False)
        assert host.run(["cat", "/run/cnisdk-testing/stub-ipam/leases/10.9.0.2/owner"]).stdout == "c1/eth0\n"


@pytest.mark.kernel
def test_the_command_line_of_a_failure_fails_again(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = make(Kind.IPAM, ("CHECK)\n", "CHECK)\n    exit 0\n"))
    (tmp_path / "my conf").write_text('{"ipam": {"type": "pool"}}')
    given = [subject.path, "--conf", str(tmp_path / "my conf"), "--kind", "ipam", "--fail-on", "should"]
    assert cnisdk.main(["conform", *given, "--only", "check-notices*"]) == 1
    (line,) = re.findall(r"^ +again +cnisdk (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert cnisdk.main([*shlex.split(line), "--fail-on", "should"]) == 1
    assert "1 failed (1 SHOULD)" in capsys.readouterr().out


def outcome(level: Level, verdict: Verdict) -> Outcome:
    case = CASES[0]._replace(level=level)
    return Outcome(case=case, verdict=verdict, expected="<a> & \0", seen="b")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([outcome(Level.MUST, Verdict.PASSED)], (0, 0, 0)),
        ([outcome(Level.MUST, Verdict.FAILED)], (1, 1, 1)),
        ([outcome(Level.SHOULD, Verdict.FAILED)], (0, 1, 1)),
        ([outcome(Level.OPINION, Verdict.FAILED)], (0, 0, 1)),
        ([outcome(Level.MUST, Verdict.SKIPPED)], (0, 0, 0)),
        ([outcome(Level.MUST, Verdict.ERROR)], (3, 3, 3)),
    ],
)
def test_exit_status(outcomes: list[Outcome], expected: tuple[int, ...]) -> None:
    assert tuple(exit_status(outcomes, level) for level in Level) == expected


@pytest.mark.kernel
def test_reports_survive_any_text(make: Make) -> None:
    report = Report(make(Kind.INTERFACE), [outcome(Level.MUST, Verdict.FAILED), outcome(Level.MUST, Verdict.ERROR)])
    ElementTree.fromstring(as_junit([report]))
    assert "&lt;a&gt;" in as_html([report])
    assert json.loads(as_json([report]))["plugins"][0]["cases"][0]["expected"] == "<a> & \0"
    assert "expected           <a>" in as_text(report)


@pytest.mark.kernel
def test_kinds_are_found_out(make: Make) -> None:
    """By asking, for names nobody knows."""
    from cnisdk.testing.conformance.subject import identify

    paths = {kind: make(kind).path for kind in (Kind.INTERFACE, Kind.CHAINED)}
    for kind, path in paths.items():
        assert identify(path).kind is kind
    assert identify(make(Kind.IPAM).path, conf={"ipam": {"type": "pool"}}).kind is Kind.IPAM
