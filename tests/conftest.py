"""Fixtures for the whole suite: ``host`` and its relatives come from the pytest plugin of ``cnisdk.testing``."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from cnisdk.testing import Host

from .modes import Plugins


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plugins]:
    """The plugins of the installed packages in a mode, installed once: to ask each for its versions takes seconds."""
    return cache(lambda mode: Plugins(tmp_path_factory.mktemp(mode), resident=mode == "resident"))


@pytest.fixture(scope="session", params=["one-shot", pytest.param("resident", marks=pytest.mark.resident)])
def plugins(request: pytest.FixtureRequest, install: Callable[[str], Plugins]) -> Plugins:
    """The plugins of the installed packages, in each mode; `on` makes a host ready for them.

    pytest makes it again for each change of the mode between tests.
    """
    return install(request.param)


@pytest.fixture
def legacy(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose iptables is the legacy variant."""
    for name in ("iptables", "ip6tables"):
        program = Path(f"/usr/sbin/{name}-legacy")
        if not program.exists():
            if os.environ.get("CI") == "true":
                pytest.fail(f"{program} is not installed (Debian: iptables)")
            pytest.skip(f"{program} is not installed (Debian: iptables)")
        if host.run([program, "-t", "nat", "-S"], check=False).returncode:
            pytest.skip(f"this kernel lacks the legacy variant of iptables: {program} is refused")
        for ending in ("", "-restore"):
            (tmp_path / f"{name}{ending}").symlink_to(f"{program}{ending}")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    return host
