"""The pytest plugin of ``cnisdk[testing]``: throw-away hosts as fixtures, and readable differences of their states.

It is registered under the entry point group ``pytest11``, so installing the package is all there is to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .hosts import Host


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker of tests that need a kernel."""
    config.addinivalue_line(
        "markers", "kernel: uses the real kernel inside throw-away namespaces (needs Linux, no root)"
    )


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Show how two states of a host differ, instead of both of them."""
    if op != "==":
        return None
    # Not imported for every failing comparison of every test suite that has this package installed.
    from .state import State, describe_difference

    if not (isinstance(left, State) and isinstance(right, State)):
        return None
    return ["the states differ (- left only, + right only):", *describe_difference(left, right)]


@contextmanager
def _making() -> Iterator[Callable[[], Host]]:
    from .hosts import Host
    from .sandbox import SandboxUnavailable

    with ExitStack() as stack:
        made: list[Host] = []

        def make() -> Host:
            try:
                host = stack.enter_context(Host(beside=made[0] if made else None))
            except SandboxUnavailable as unavailable:
                # A run that means to prove something must not pass because nothing ran.
                if os.environ.get("CI") == "true":
                    raise
                pytest.skip(str(unavailable))
            made.append(host)
            return host

        yield make


@pytest.fixture
def new_host() -> Iterator[Callable[[], Host]]:
    """Make hosts: each call gives one more, and links can lead from any to any. All vanish when the test ends."""
    with _making() as make:
        yield make


@pytest.fixture
def host(new_host: Callable[[], Host]) -> Host:
    """A throw-away host: see :class:`cnisdk.testing.Host`."""
    return new_host()


@pytest.fixture(scope="module")
def module_host() -> Iterator[Host]:
    """A throw-away host that the tests of a module share, for those that need much to be set up on it."""
    with _making() as make:
        yield make()


@pytest.fixture(scope="session")
def plugin_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an executable for each plugin registered by the installed packages, as ``CNI_PATH`` needs it."""
    from .launchers import write_launchers

    directory = tmp_path_factory.mktemp("plugins")
    write_launchers(directory)
    return directory
