"""The stub IPAM plugin, called as a plugin calls it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cnisdk.testing import Host, StubPlugin

pytestmark = pytest.mark.kernel


def call(host: Host, stub: StubPlugin, verb: str, text: str, *through: str) -> str:
    environ = {"PATH": os.environ["PATH"], "CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    return host.run([*through, f"/run/cnisdk-testing/bin/{stub.name}"], env=environ, input=text).stdout


BIG: dict[str, Any] = {"cniVersion": "0.4.0", "args": {"org.example": "x" * 1_000_000}}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('{"cniVersion":"1.0.0","prevResult":{"cniVersion":"0.3.1"}}', "1.0.0"),
        ('{\n    "name": "net",\n    "cniVersion" : "0.4.0"\n}\n', "0.4.0"),
        (json.dumps(BIG), "0.4.0"),
        (json.dumps({"args": BIG["args"], "cniVersion": "0.4.0"}), "0.4.0"),
        ('{"name": "1.0.0"}', "0.1.0"),
        ('{"cniVersion": "no version"}', "0.1.0"),
        ("", "0.1.0"),
    ],
    ids=["compact", "pretty", "a megabyte", "after a megabyte", "none", "nonsense", "empty"],
)
def test_it_answers_in_the_version_it_is_asked_in(host: Host, text: str, version: str) -> None:
    stub = host.stub()
    answer = json.loads(call(host, stub, "ADD", text))
    assert answer["cniVersion"] == version
    assert stub.leases == {"10.9.0.2": "c1/eth0"}
    call(host, stub, "DEL", text)
    assert stub.leases == {}


def test_it_keeps_what_it_was_asked(host: Host) -> None:
    stub = host.stub()
    call(host, stub, "ADD", json.dumps(BIG))
    assert stub.configuration("ADD") == BIG


def test_descriptors_that_a_caller_leaks_are_told(host: Host) -> None:
    stub = host.stub()
    call(host, stub, "ADD", "{}")
    assert stub.descriptors("ADD") == []
    call(host, stub, "DEL", "{}", "sh", "-c", 'exec "$0" 7</dev/null')
    assert stub.descriptors("DEL") == ["7 -> /dev/null"]


@pytest.mark.skipif(shutil.which("strace") is None and os.environ.get("CI") != "true", reason="no strace")
def test_it_starts_few_programs(host: Host, tmp_path: Path) -> None:
    """A run of many tests calls it thousands of times."""
    stub = host.stub()
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=execve", "-e", "status=successful", "-e", "signal=none", "-o"]
    call(host, stub, "ADD", "{}", *strace, str(trace))
    assert len(trace.read_text().splitlines()) <= 3, trace.read_text()
