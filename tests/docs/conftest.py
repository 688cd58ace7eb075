"""A shell on a host of its own, on which the installed commands are found."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cnisdk.testing import Sandbox

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a reader who has installed the package, in a place without spaces, and set nothing else."""
    installed = tmp_path_factory.mktemp("reader") / "venv"
    installed.symlink_to(sys.prefix)
    kept = {key: value for key, value in os.environ.items() if key in {"HOME", "LANG", "TMPDIR", "USER"}}
    return {**kept, "PATH": f"{installed}/bin:{SYSTEM_PATH}"}


@pytest.fixture
def shell(host: Sandbox, environment: dict[str, str], tmp_path: Path) -> Callable[[str], str]:
    """Run a script in the sandbox, in a directory of its own, and return what it printed."""

    def run(script: str) -> str:
        done = host.run(["sh", "-euc", script], env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
