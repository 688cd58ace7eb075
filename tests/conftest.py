"""Fixtures for the whole suite: ``host`` and its relatives come from the pytest plugin of ``cnisdk.testing``."""

import ctypes
import gc
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from cnisdk.invoke import process
from cnisdk.testing import Host

from .clocks import Clock
from .modes import Plugins

_MADV_COLLAPSE = 25  # Linux 6.1; an older kernel refuses it, and nothing changes
_HUGE_PAGE = 2 << 20


def pytest_configure(config: pytest.Config) -> None:
    """Let no test fail since Hypothesis finds this machine slow. With ``CI=true`` it does not measure anyway."""
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import HealthCheck, settings

        if settings.get_current_profile_name() == "default":
            settings.register_profile("unmeasured", deadline=None, suppress_health_check=[HealthCheck.too_slow])
            settings.load_profile("unmeasured")


def pytest_collection_finish() -> None:
    """Put the memory of this process, which now holds all tests, into huge pages, and keep it as it is.

    Tests fork this process thousands of times, to call functions and to start programs on a host. A fork copies the
    tables of pages, which have 30,000 entries without huge pages: that takes longer than what most forks are for.
    """
    gc.collect()
    gc.freeze()  # looking for garbage writes to all objects, which copies each page that a fork shares
    libc = ctypes.CDLL(None)
    with open("/proc/self/maps") as file:
        mappings = [line.split() for line in file]
    for extent, access, *rest in mappings:
        if access == "rw-p" and rest[3:] in ([], ["[heap]"]):
            start, end = (int(address, 16) // _HUGE_PAGE for address in extent.split("-"))
            for page in range(start + 1, end):
                libc.madvise(ctypes.c_void_p(page * _HUGE_PAGE), ctypes.c_size_t(_HUGE_PAGE), _MADV_COLLAPSE)


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
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which programs that are run miss their deadlines."""
    clock = Clock()
    monkeypatch.setattr(process, "time", clock)
    return clock


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
