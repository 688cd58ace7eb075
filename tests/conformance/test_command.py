"""The command and its reports."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import evolve

from cnisdk._cli import cnisdk
from cnisdk.conformance import CASES, Level, Verdict, judge, select
from cnisdk.conformance._ipam import _list_pools
from cnisdk.conformance._known import KNOWN
from cnisdk.conformance._processes import wait_until
from cnisdk.conformance.judgement import Kind
from cnisdk.conformance.report import Report, as_html, as_json, as_junit, as_text
from cnisdk.conformance.runner import Outcome, exit_status

from ..programs import python_program
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
        (["/bin/true", "--conf", "/no/such/file"], 2, "cannot read /no/such/file"),
        (["/bin/true", "--json", "/no/such/file"], 2, "cannot write a report to /no/such/file"),
    ],
)
def test_wrong_use(arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cnisdk.main(["conform", *arguments]) == status
    assert said in capsys.readouterr().err


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("#!/no/such/python3 -I\n", 0o755, "its interpreter /no/such/python3 does not exist"),
        ("#!@PLACE@/a space/sh -e\n", 0o755, "does not exist: a #! line cannot name a path with a space"),
        ("#!/bin/sh\r\n", 0o755, "its interpreter '/bin/sh\\r' does not exist: its lines end with a carriage return"),
        ("#!@PLACE@/nested\n", 0o755, "the interpreter of its interpreter @PLACE@/nested does not exist"),
        ("echo hello\n", 0o755, "it is neither a program of this machine nor a script with a #! line"),
        ("", 0o755, "it is neither a program of this machine nor a script with a #! line"),
        ("#!/bin/sh\n", 0o644, "permission denied: check its mode"),
        ("#!/etc/passwd\n", 0o755, "permission denied: check its mode"),
        ("busy", 0o755, "a process has it open for writing"),
        (None, 0, "it does not exist"),
        ("directory", 0, "it is a directory"),
        (
            "#!/bin/sh\nprintf '%300s' >&2\necho No module named cnisdk >&2; exit 1\n",
            0o755,
            "ADD: exit status 1, stdout empty, stderr No module named cnisdk (it is run with PATH=/usr/local/sbin:",
        ),
        (
            "#!/bin/sh\necho Traceback $(seq 100) >&2; echo No module named cnisdk >&2; exit 1\n",
            0o755,
            "98 99 100 No module named cnisdk (it is run",
        ),
    ],
)
def test_what_cannot_be_started_is_not_judged(
    content: str | None, mode: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "mylo"
    for place, text in (("a space/sh", "#!/bin/sh\n"), ("nested", "#!/no/such/perl\n")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)
        (tmp_path / place).chmod(0o755)
    with ExitStack() as stack:
        if content == "directory":
            program.mkdir()
        elif content == "busy":
            shutil.copy("/bin/true", program)
            stack.enter_context(program.open("ab"))
        elif content is not None:
            program.write_text(content.replace("@PLACE@", str(tmp_path)), newline="")
            program.chmod(mode)
        assert cnisdk.main(["conform", str(program), "--json", str(tmp_path / "json")]) == 4
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{program}: not judged, since it cannot be started: ")
    assert reason.replace("@PLACE@", str(tmp_path)) in line
    (plugin,) = json.loads((tmp_path / "json").read_text())["plugins"]
    assert plugin["problem"] in line


@pytest.mark.kernel
@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_stopped_it_reports_what_has_ended(make: Make, tmp_path: Path, number: signal.Signals, jobs: int) -> None:
    """It leaves no host, and its status says that it could not finish."""
    subject = make(Kind.INTERFACE, ("CHECK)\n", "CHECK)\n    exec sleep 1000\n"))
    words = [subject.path, "-v", "-j", str(jobs), "--only", "version-needs*", "--only", "check-after-add"]
    command = [sys.executable, "-m", "cnisdk", "conform", *words, "--json", str(tmp_path / "json")]
    mark = f"CNISDK_TEST={tmp_path}"
    environ = {**os.environ, **dict([mark.split("=", 1)])}
    # A shell's background job ignores SIGINT, and hands that on.
    heed = functools.partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        preexec_fn=heed,  # noqa: PLW1509  # no threads
    ) as process:
        assert process.stderr is not None
        while "passed" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(number)
        printed, told = process.communicate(timeout=240)
    assert process.returncode == 3, told
    (line,) = printed.splitlines()
    assert re.search(
        rf": 1 passed, 0 failed, in \d+ s; stopped by {number.name}: 1 of 2 cases did not run to their end$", line
    )
    (plugin,) = json.loads((tmp_path / "json").read_text())["plugins"]
    assert (plugin["stopped"], plugin["unrun"]) == (number.name, ["check-after-add"])
    assert wait_until(lambda: not _processes_with(mark), 30)


def _processes_with(variable: str) -> list[str]:
    """List the processes that have a variable in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in entry.read_bytes().split(b"\0"):
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.kernel
def test_what_does_not_apply_says_why(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pool that is too large is not tried: its ADD may take a second."""
    subject = make(Kind.IPAM, ("ADD)\n", f"ADD)\n    echo >>{shlex.quote(str(tmp_path / 'adds'))}\n"))
    (tmp_path / "conf").write_text('{"ipam": {"type": "pool", "ranges": [[{"subnet": "10.22.0.0/24"}]]}}')
    given = [subject.path, "--conf", str(tmp_path / "conf"), "--only", "addresses-are*", "--only", "*exhausted-pool*"]
    reports = [word for name in ("json", "html") for word in (f"--{name}", str(tmp_path / name))]
    (tmp_path / "adds").write_text("")
    assert cnisdk.main(["conform", *given, *reports, "-v"]) == 0
    assert (tmp_path / "adds").read_text() == "\n"  # that which tries it
    reason = "the pool is too large to be exhausted: 10.22.0.0/24 has more than 70 addresses"
    printed = capsys.readouterr().out
    assert re.search(rf"^– addresses-are-used-again\n    not applicable +{reason}", printed, re.MULTILINE)
    assert printed.count(reason) == 1
    (plugin,) = json.loads((tmp_path / "json").read_text())["plugins"]
    assert [case["reason"][: len(reason)] for case in plugin["cases"]] == [reason] * 4
    assert f"<dd>{reason}" in (tmp_path / "html").read_text()


@pytest.mark.parametrize(
    ("conf", "sizes"),
    [
        ({"ipam": {"type": "x"}, "routes": [{"dst": "0.0.0.0/0"}]}, []),
        ({"ipam": {"subnet": "10.0.0.0/26"}}, [62]),
        ({"ipam": {"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.9"}}, [0]),
        ({"ipam": {"ranges": [[{"subnet": "10.0.0.0/27"}], [{"subnet": "fd00::/120"}]]}}, [30, 254]),
        ({"ipam": {"range": "10.0.0.7/28"}}, [14]),
        ({"ipam": {"subnet": "usePodCidr"}}, []),
    ],
)
def test_pools_of_a_configuration(conf: dict[str, object], sizes: list[int]) -> None:
    assert [size for size, _ in _list_pools(conf)] == sizes


@pytest.mark.kernel
def test_the_seconds_are_those_of_the_clock(make: Make) -> None:
    cases = [outcome(Level.MUST, Verdict.PASSED)] * 3
    report = Report(make(Kind.INTERFACE), [evolve(each, seconds=60.0) for each in cases], seconds=90.2)
    assert report.summary().endswith("3 passed, 0 failed, in 90 s")
    assert ElementTree.fromstring(as_junit([report]))[0].get("time") == "90.200"


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
def test_a_plugin_that_cannot_be_configured_is_not_judged(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what it said, and what to give."""
    subject = make(Kind.INTERFACE, ("ADD)\n", "ADD)\n    [ -e /run/fabric ] || fail 7 'no fabric is configured'\n"))
    given = [subject.path, "--junit", str(tmp_path / "junit.xml"), "--json", str(tmp_path / "json")]
    assert cnisdk.main(["conform", *given]) == 4
    (line,) = capsys.readouterr().out.splitlines()
    assert "not judged" in line
    assert "no fabric is configured" in line
    assert "--conf" in line
    assert "--setup" in line
    (plugin,) = json.loads((tmp_path / "json").read_text())["plugins"]
    assert "no fabric is configured" in plugin["problem"]
    assert plugin["cases"] == []
    assert ElementTree.fromstring((tmp_path / "junit.xml").read_text())[0].get("errors") == "1"
    # Prepared as it wants, it is judged.
    assert cnisdk.main(["conform", subject.path, "--setup", "touch /run/fabric", "--only", "success-prints*"]) == 0


@pytest.mark.kernel
def test_a_plugin_that_dies_at_its_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "mylo"
    program.write_text("#!/usr/bin/env no-such-python\n")
    program.chmod(0o755)
    assert cnisdk.main(["conform", str(program)]) == 4
    assert "no-such-python" in capsys.readouterr().out


@pytest.mark.kernel
def test_a_host_that_cannot_be_prepared_says_so(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert cnisdk.main(["conform", make(Kind.INTERFACE).path, "--setup", "echo no such fabric >&2; false"]) == 4
    assert "no such fabric" in capsys.readouterr().out
    prepare = "echo no such port of {container} >&2; false"
    assert cnisdk.main(["conform", make(Kind.INTERFACE).path, "--container-setup", prepare]) == 4
    assert "no such port of try1" in capsys.readouterr().out


@pytest.mark.kernel
def test_a_chained_plugin_that_does_nothing_is_pointed_out(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert cnisdk.main(["conform", make(Kind.CHAINED).path, "--only", "success-prints*"]) == 0
    assert "changes nothing that the suite can see" in capsys.readouterr().out


@pytest.mark.kernel
def test_a_plugin_says_itself_how_to_try_it(tmp_path: Path) -> None:
    from cnisdk.conformance.identify import identify

    program = tmp_path / "whatever"
    program.write_text(python_program("from cnisdk_plugins.host_local import main\nmain()\n"))
    program.chmod(0o755)
    subject = identify(str(program), conf=None)
    assert (subject.kind, subject.conf["ipam"]["type"]) == (Kind.IPAM, "host-local")


@pytest.mark.kernel
@pytest.mark.interop
@pytest.mark.parametrize("name", sorted(KNOWN.keys() - {"dummy", "tap"}))  # which are of a later version
def test_the_table_fits_the_reference_plugins(go: Path, name: str) -> None:
    from cnisdk.conformance.identify import identify

    subject = identify(str(go / name))
    assert subject.remark == ""
    unsupported = "operation not supported" in subject.problem  # by this kernel
    assert not subject.problem or unsupported or (name == "dhcp" and "dialing DHCP daemon" in subject.problem)


@pytest.mark.kernel
def test_each_case_is_told_as_it_ends_and_all_in_order(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    only = [word for each in ("version-*", "del-twice") for word in ("--only", each)]
    assert cnisdk.main(["conform", make(Kind.INTERFACE).path, *only, "-v", "-j", "2"]) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert re.fullmatch(r"  1/3 passed +[a-z-]+ \[MUST\], \d+\.\d s", lines[1])
    assert len(lines) == 4


@pytest.mark.kernel
@pytest.mark.slow
def test_an_add_ends_at_the_same_point_each_time(make: Make) -> None:
    noted = '    : >"/run/wire.$CNI_CONTAINERID"\n    rm "/run/wire.$CNI_CONTAINERID"\n'
    subject = make(Kind.INTERFACE, ('    ip link add "$end"', f'{noted}    ip link add "$end"'))
    # One stops before the call, the other is told of the signal when it returns.
    for name, number in (("killed-in-add", 2), ("terminated-in-add", 1)):
        first, second = (judge(subject, select(only=[name])) for _ in range(2))
        (one,), (other,) = first, second
        assert one.verdict is Verdict.FAILED
        assert (one.expected, one.seen) == (other.expected, other.seen)
        assert f"at change {number} of" in one.expected


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_cases_that_judge_the_same_requests_send_them_once(make: Make, jobs: int) -> None:
    subject = make(Kind.IPAM, ("DEL)\n", "DEL)\n    exit 0\n"))
    cases = select(Kind.IPAM, ["*exhausted-pool*", "addresses-are-used-again"])
    assert {case.shares for case in cases} == {"exhausted pool"}
    outcomes = list(judge(subject, cases, jobs=jobs))
    assert [each.case for each in outcomes] == cases
    *others, last = outcomes
    assert {each.verdict for each in others} == {Verdict.PASSED}
    assert last.verdict is Verdict.FAILED
    assert sum("CNI_COMMAND=ADD" in step and "CNI_CONTAINERID=n1 " in step for step in last.script) == 1


@pytest.mark.kernel
def test_what_every_del_leaves_is_reported_once(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    noted = '    : >"/run/wire.$CNI_CONTAINERID"\n'
    subject = make(Kind.INTERFACE, ('    ip link add "$end"', f'{noted}    ip link add "$end"'))
    only = ["--only", "del-leaves-nothing", "--only", "del-without-prev-result", "--only", "gc-drops-*"]
    assert cnisdk.main(["conform", subject.path, *only, "-j", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("✗ ") == 1
    assert "✗ del-leaves-nothing  [SHOULD" in printed
    assert "/run/wire.c1" in printed


@pytest.mark.kernel
def test_the_script_reproduces(make: Make) -> None:
    """The commands that a report offers show the failure again."""
    from cnisdk.conformance.runner import run_case
    from cnisdk.testing import Host

    subject = make(Kind.INTERFACE, ("    exit 1\n", "    exit 0\n"))
    (case,) = select(only=["failure-has-a-non-zero-status"])
    outcome = run_case(subject, case)
    with Host() as host:
        assert host.run(["sh", "-euc", "\n".join(outcome.script)]).stdout.count('"code": 6') == 1


@pytest.mark.kernel
def test_the_script_brings_what_is_delegated_to(make: Make) -> None:
    from cnisdk.conformance.runner import run_case
    from cnisdk.testing import Host

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
    """By trying, for unknown names."""
    from cnisdk.conformance.identify import identify

    paths = {kind: make(kind).path for kind in (Kind.INTERFACE, Kind.CHAINED)}
    for kind, path in paths.items():
        assert identify(path).kind is kind
    assert identify(make(Kind.IPAM).path, conf={"ipam": {"type": "pool"}}).kind is Kind.IPAM
