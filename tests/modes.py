"""The two ways to run installed plugins, one-shot and resident, for tests that run them as executables."""

from __future__ import annotations

import atexit
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from cnisdk._cli import cnisdk
from cnisdk._thick import protocol
from cnisdk._thick.protocol import FALLBACKS, SOCKET
from cnisdk.testing import Sandbox

from . import server_template

SERVE = [sys.executable, "-I", "-m", "cnisdk", "serve", "--background"]
"""Command that starts a server; the server is up when the command ends."""


@cache
def _start_template() -> str:
    """Start a template of servers, for the life of this process; return a shell command that starts a server."""
    path = os.path.join(tempfile.mkdtemp(prefix="cnisdk-servers-"), "socket")
    options = [word for word in SERVE[SERVE.index("serve") + 1 :] if word != "--background"]
    argv = [sys.executable, "-I", str(server_template.__file__), path, *options]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    atexit.register(process.communicate)
    return shlex.join([sys.executable, "-I", "-S", "-c", server_template.CLIENT, path])


# For tables of cases that would take long in both modes. A run as root and one as an ordinary user, which the project's
# checks are, have each case in each mode.
IN_ONE_MODE = pytest.mark.parametrize(
    "plugins", [pytest.param("resident" if os.geteuid() == 0 else "one-shot", id="one mode")], indirect=True
)


class Plugins:
    """A directory with the plugins of the installed packages, or some of them.

    Attributes:
        directory: Where they are: what belongs in ``CNI_PATH``.
        resident: They are shims, and need a server on the host.

    Args:
        fork: Fork servers from a template where that can be done: not on a host that has processes of its own
            (a pid namespace), whose server has to be one of them.
    """

    def __init__(self, directory: Path, *types: str, resident: bool = False, fork: bool = True) -> None:
        self.directory, self.resident = directory / "bin", resident
        # The shims' directory is not the server's, which therefore never takes away what they note: each request that
        # a shim ran by itself.
        self._shims = directory / "run"
        options = ["--thick", "--directory", str(self._shims)] if resident else ["--no-server"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol, "SHIM_TIMEOUT", 30.0)  # a machine that is busy with other tests is no failure
            assert cnisdk.main(["install", "--dest", str(self.directory), *options, *types]) == 0
        self._start_server = shlex.join(SERVE)
        if resident:
            if fork and os.geteuid() == 0:
                self._start_server = _start_template()
            self._shims.mkdir()
            (self._shims / Path(SOCKET).name).symlink_to(SOCKET)

    @property
    def setup(self) -> str:
        """Shell commands that make a host ready for them; empty for none."""
        return f"{self._start_server} </dev/null >/dev/null 2>&1" if self.resident else ""

    def take_fallbacks(self) -> list[str]:
        """The requests that shims ran by themselves since this was asked last: type and reason."""
        noted = self._shims / Path(FALLBACKS).name
        if not noted.exists():
            return []
        lines = noted.read_text().splitlines()
        noted.unlink()
        return lines

    def assert_served(self) -> None:
        """See that the server took every request: a shim, which can do without, would hide it."""
        fallbacks = self.take_fallbacks()
        assert not fallbacks, f"not served, but run by the shims: {', '.join(fallbacks)}"

    @contextmanager
    def on(self, host: Sandbox) -> Iterator[None]:
        """Make a host ready, and see at the end that the server took every request."""
        if self.resident:
            host.run(["sh", "-euc", self.setup])
        yield
        self.assert_served()
