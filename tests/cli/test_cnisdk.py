"""The command cnisdk: subcommands are found by name, and loaded only when asked for."""

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnisdk._cli import cnisdk
from cnisdk.errors import TryAgainLaterError

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_what_is_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cnisdk.COMMANDS, "absent", ("no_such_module", "is not there"))
    with pytest.raises(SystemExit):
        cnisdk.main(["--help"])
    out = capsys.readouterr().out
    assert "install  " in out
    assert "absent" not in out


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cnisdk.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: cnisdk COMMAND" in err


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cnisdk.main(["frobnicate"])
    assert caught.value.code == 2
    assert "unknown command 'frobnicate', expected one of: " in capsys.readouterr().err


def fake(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int, default=0)

    monkeypatch.setitem(cnisdk.COMMANDS, "fake", ("install", "for a test"))
    monkeypatch.setattr(
        cnisdk, "import_module", lambda *_: SimpleNamespace(DESCRIPTION="", add_arguments=add_arguments, run=run)
    )


def test_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, lambda args: args.number)
    assert cnisdk.main(["fake", "--number", "7"]) == 7


def test_errors_are_printed_with_their_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> int:
        raise TryAgainLaterError("full", details="10.0.0.0/30")

    fake(monkeypatch, run)
    assert cnisdk.main(["fake"]) == 1
    assert capsys.readouterr() == ("", "cnisdk fake: full (code 11); 10.0.0.0/30\n")


def test_only_the_command_asked_for_is_imported() -> None:
    code = (
        "import sys; from cnisdk._cli import cnisdk; cnisdk.main(['--help']);"
        "sys.exit(any(f'cnisdk._cli.{m}' in sys.modules for m, _ in cnisdk.COMMANDS.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early() -> None:
    code = (
        "import sys, types; from cnisdk._cli import cnisdk\n"
        "def run(args):\n"
        "    for _ in range(100000): print('x' * 100)\n"
        "    return 0\n"
        "cnisdk.COMMANDS['fake'] = ('install', '')\n"
        "cnisdk.import_module = lambda *_: types.SimpleNamespace(\n"
        "    DESCRIPTION='', add_arguments=lambda parser: None, run=run)\n"
        "sys.exit(cnisdk.main(['fake']))"
    )
    argv = ["sh", "-c", '"$0" -c "$1" | head -n 1', sys.executable, code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, check=False)
    assert done.stdout == b"x" * 100 + b"\n"
    assert done.stderr == b""
