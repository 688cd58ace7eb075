"""What all tests of stores have in common."""

import pytest

from cnisdk.ipam import filestore


@pytest.fixture(autouse=True)
def from_the_first_lease_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an index also where there are few leases."""
    monkeypatch.setattr(filestore, "_FEW", 0)
