"""Fixtures for the whole suite: ``host`` and its relatives come from the pytest plugin of ``cnisdk.testing``."""

from collections.abc import Callable
from functools import cache

import pytest

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
