"""Fixtures for the whole suite: ``host`` and its relatives come from the pytest plugin of ``cnisdk.testing``."""

import pytest

from .modes import Plugins


@pytest.fixture(scope="session", params=["one-shot", pytest.param("resident", marks=pytest.mark.resident)])
def plugins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    """The plugins of the installed packages, in each mode; `on` makes a host ready for them."""
    return Plugins(tmp_path_factory.mktemp(request.param), resident=request.param == "resident")
