"""The tutorial's tests pass as they are, for root and for a user without any rights, and its plugins conform."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnisdk.conformance import Verdict, judge, select
from cnisdk.conformance.identify import identify

from ..programs import python_program

TUTORIAL = Path(__file__).resolve().parents[2] / "examples" / "tutorial"

pytestmark = pytest.mark.kernel

# What an ordinary user has: no capabilities, and a number that is not 0.
WITHOUT_RIGHTS = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in ("cable.py", "test_cable.py"):
        shutil.copy(TUTORIAL / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [[], WITHOUT_RIGHTS], ids=["as I am", "without rights"])
def test_the_tests_pass(copied: Path, prefix: list[str]) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [*prefix, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_cable.py"]
    done = subprocess.run(command, cwd=copied, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout


@pytest.mark.slow
def test_the_chained_plugin_conforms(tmp_path: Path) -> None:
    """The other two are judged by all cases: tests/conformance/test_judgements.py."""
    program = tmp_path / "promisc"
    program.write_text(python_program((TUTORIAL / "promisc.py").read_text()))
    program.chmod(0o755)
    only = ("every-version-it-claims", "del-twice", "check-after-add", "gc-*", "status-*", "*prev*")
    subject = identify(str(program))
    outcomes = list(judge(subject, select(subject.kind, only)))
    assert [each for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)] == []
    assert sum(each.verdict is Verdict.PASSED for each in outcomes) > 5
