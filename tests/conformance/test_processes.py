"""The processes of requests that the suite makes."""

from __future__ import annotations

import os

import pytest

from cnisdk.conformance import _processes
from cnisdk.testing import Host

pytestmark = pytest.mark.kernel


def test_a_slow_plugin_gets_all_of_a_large_configuration(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was judged to hang: an emulated processor takes longer for it than the suite waits at first."""
    monkeypatch.setattr(_processes, "_PATIENCE", 0.01)
    monkeypatch.setattr(_processes.RequestProcesses.finish, "__defaults__", (None, 10.0))
    processes = _processes.RequestProcesses(host)
    process = processes.start(["sh", "-c", "dd bs=100 status=none | wc -c"], {"PATH": os.environ["PATH"]})
    response = processes.finish("ADD", process, b"x" * 1_000_000)
    assert (response.status, response.stdout.strip()) == (0, b"1000000")
