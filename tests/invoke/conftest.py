"""Small plugins, written as scripts."""

from collections.abc import Callable
from pathlib import Path

import pytest

Script = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write an executable shell script, return its path."""

    def write(body: str, *, name: str = "plugin", interpreter: str = "/bin/sh", mode: int = 0o755) -> str:
        path = tmp_path / name
        path.write_text(f"#!{interpreter}\n{body}\n")
        path.chmod(mode)
        return str(path)

    return write
