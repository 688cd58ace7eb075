"""Fixtures for the whole suite."""

import os
from collections.abc import Iterator

import pytest

from cnisdk.testing import Sandbox, SandboxUnavailable


@pytest.fixture
def host() -> Iterator[Sandbox]:
    """A host of its own: see cnisdk.testing.Sandbox."""
    try:
        sandbox = Sandbox().__enter__()
    except SandboxUnavailable as unavailable:
        # A run that means to prove something must not pass because nothing ran.
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(unavailable))
    try:
        yield sandbox
    finally:
        sandbox.close()
