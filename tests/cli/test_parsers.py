"""Help, mistakes, completion and manual pages: the same for every command."""

import argparse
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cnisdk._cli import cnisdk, cnitool
from cnisdk._cli.options import add_seconds

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [("cnisdk", name) for name in cnisdk.available_commands()] + [("cnisdk",), ("cnitool",)]
MAINS = {"cnisdk": cnisdk.main, "cnitool": cnitool.main}


def status_of(program: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        MAINS[program](arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_terminal(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert status_of(*command, "--help") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_mistake_in_the_arguments_ends_with_2(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*command, "--no-such-option") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"usage: {' '.join(command)} "), "what it says is how this command is used"


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon"])
@pytest.mark.parametrize(
    "command",
    [
        ("cluster", "release-node", "worker", "--wait"),
        ("dhcp", "--probe"),
        ("gc", "net", "--grace"),
        ("gc", "net", "--pause"),
        ("leases", "net", "--timeout"),
        ("repair", "--pause"),
    ],
    ids=" ".join,
)
def test_a_time_is_a_number_of_seconds(
    command: tuple[str, ...], seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("cnisdk", *command, seconds) == 2
    assert f"argument {command[-1]}: expected a number of seconds, not {seconds!r}" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["cnisdk", "cnitool"])
def test_version(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(program, "--version") == 0
    assert capsys.readouterr().out.split()[-1] == "0.1.0"


@pytest.mark.parametrize(("line", "completed"), [("cnitool --cache", "--cache-dir"), ("cnisdk fs", "fsck")])
def test_bash_completes(line: str, completed: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, word = line.split()
    assert cnisdk.main(["completion", "bash", program]) == 0
    script = capsys.readouterr().out
    ask = f'COMP_WORDS=({program} {word}); COMP_CWORD=1; _shtab_{program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    answer = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [completed]


def test_conform_without_the_extra_testing_says_what_is_missing(tmp_path: Path) -> None:
    """The packages of the README alone have no pyroute2."""
    (tmp_path / "pyroute2.py").write_text("raise ModuleNotFoundError(name='pyroute2')")
    done = subprocess.run(
        [sys.executable, "-m", "cnisdk", "conform", "/bin/true"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    said = "the package pyroute2 is missing (code 5); install the extra cnisdk[testing], which has it"
    assert (done.returncode, done.stderr) == (1, f"cnisdk conform: {said}\n")


@pytest.mark.parametrize("program", ["cnisdk", "cnitool"])
def test_the_manual_page_is_made_of_the_parser(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python docs/publish_man.py` writes it. Other releases of Python break lines elsewhere."""
    monkeypatch.setenv("COLUMNS", "80")
    rendered = runpy.run_path(str(ROOT / "docs" / "publish_man.py"))["render"](program)
    assert rendered.split() == (ROOT / "docs" / "man" / f"{program}.1").read_text().split()


@pytest.mark.parametrize(("text", "seconds"), [("62s", 62), ("1m2.5s", 62.5), ("500ms", 0.5), ("2h", 7200), ("3", 3)])
def test_durations_of_go_programs(text: str, seconds: float) -> None:
    parser = argparse.ArgumentParser()
    add_seconds(parser, "--wait", 1.0, "time")
    assert parser.parse_args(["--wait", text]).wait == seconds
