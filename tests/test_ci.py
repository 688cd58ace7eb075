"""Exit status of `.ci/run`, which tells how its checks ended."""

import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / ".ci/run"


@pytest.mark.parametrize(("check", "status"), [("true", 0), ("false", 1)])
def test_the_status_tells_whether_every_check_passed(check: str, status: int) -> None:
    ended = subprocess.run([RUN, check], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert ("every check passed" in ended.stdout) == (status == 0)
