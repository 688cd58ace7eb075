"""The two ways to run installed plugins, one-shot and resident, for tests that run them as executables."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cnisdk.cli import cnisdk
from cnisdk.testing import Sandbox
from cnisdk.thick import protocol
from cnisdk.thick.protocol import FALLBACKS, SOCKET

SERVE = [sys.executable, "-I", "-m", "cnisdk.cli.cnisdk", "serve", "--memory", "32", "--background"]
"""What starts a server; it is up when this ends. Each test that wants one does, so it is a small one."""


class Plugins:
    """A directory with the plugins of the installed packages.

    Attributes:
        directory: Where they are: what belongs in ``CNI_PATH``.
        resident: They are shims, and need a server on the host.
    """

    def __init__(self, directory: Path, *, resident: bool) -> None:
        self.directory, self.resident = directory / "bin", resident
        # The shims' directory is not the server's, which therefore never takes away what they note: each request that
        # a shim ran by itself.
        self._shims = directory / "run"
        options = ["--thick", "--directory", str(self._shims)] if resident else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol, "PATIENCE", 30.0)  # a machine that is busy with other tests is no failure
            assert cnisdk.main(["install", "--dest", str(self.directory), *options]) == 0
        if resident:
            self._shims.mkdir()
            (self._shims / Path(SOCKET).name).symlink_to(SOCKET)

    @property
    def setup(self) -> str:
        """Shell commands that make a host ready for them; empty for none."""
        return f"{shlex.join(SERVE)} </dev/null >/dev/null 2>&1" if self.resident else ""

    def take_fallbacks(self) -> list[str]:
        """The requests that shims ran by themselves since this was asked last: type and reason."""
        noted = self._shims / Path(FALLBACKS).name
        if not noted.exists():
            return []
        lines = noted.read_text().splitlines()
        noted.unlink()
        return lines

    @contextmanager
    def on(self, host: Sandbox) -> Iterator[None]:
        """Make a host ready, and see at the end that the server took every request: a shim would hide it."""
        if not self.resident:
            yield
            return
        host.run(["sh", "-euc", self.setup])
        yield
        fallbacks = self.take_fallbacks()
        assert not fallbacks, f"not served, but run by the shims: {', '.join(fallbacks)}"
