"""The tutorial's tests pass as they are, for root and for a user without any rights, and its plugin conforms."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnisdk.conformance import Verdict, judge, select
from cnisdk.conformance.identify import identify
from cnisdk.conformance.known import STUB

TUTORIAL = Path(__file__).resolve().parents[2] / "examples" / "tutorial"

pytestmark = pytest.mark.kernel

# What an ordinary user has: no capabilities, and a number that is not 0.
WITHOUT_RIGHTS = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("cable.py", "test_cable.py"):
        shutil.copy(TUTORIAL / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["cable.py", "test_cable.py"])
def test_the_page_shows_every_line(name: str) -> None:
    """Who types what the page shows has the files that are tested here."""
    page = (TUTORIAL.parents[1] / "docs" / "tutorial" / "first-plugin-tested.md").read_text()
    lines, shown = (TUTORIAL / name).read_text().splitlines(), set()
    for options in re.findall(rf"literalinclude}} ../../examples/tutorial/{name}\n(.*?)```", page, re.DOTALL):
        first, last = (re.search(rf":{key}: (.*)", options) for key in ("start-at", "end-before"))
        start = find(lines, first[1]) if first else 0
        shown |= set(range(start, find(lines, last[1], start + 1) if last else len(lines)))
    assert shown == set(range(len(lines)))


def find(lines: list[str], quoted: str, start: int = 0) -> int:
    text = quoted.strip().removeprefix('"').removesuffix('"').replace('\\"', '"')
    return next(number for number, line in enumerate(lines) if number >= start and text in line)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [[], WITHOUT_RIGHTS], ids=["as I am", "without rights"])
def test_the_tests_pass(copied: Path, prefix: list[str]) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [*prefix, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_cable.py"]
    done = subprocess.run(command, cwd=copied, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 passed" in done.stdout


@pytest.mark.slow
def test_the_plugin_conforms(copied: Path) -> None:
    program = copied / "cable"
    program.write_text(f"#!{sys.executable}\n{(copied / 'cable.py').read_text()}")
    program.chmod(0o755)
    subject = identify(str(program), conf={"bridge": "up1", "ipam": {"type": STUB}})
    outcomes = list(judge(subject, select(subject.kind)))
    assert [each for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)] == []
