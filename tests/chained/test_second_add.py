"""An ADD of an attachment that is attached already, and fails: what the first one made stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cnisdk import Plugin
from cnisdk.testing import Host, PluginUnderTest, fail
from cnisdk.testing.state import collect
from cnisdk_plugins.bandwidth import Bandwidth
from cnisdk_plugins.sbr import Sbr
from cnisdk_plugins.tuning import Tuning
from cnisdk_plugins.vrf import Vrf

from .conftest import attached

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

LIMITS = {"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000}
SUBJECTS: dict[str, tuple[type[Plugin[Any]], dict[str, Any]]] = {
    "bandwidth": (Bandwidth, LIMITS),
    "sbr": (Sbr, {}),
    "tuning": (Tuning, {"mtu": 1400, "promisc": True, "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}),
    "vrf": (Vrf, {"vrfname": "red"}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.kinds if each == "vrf" else ()) for each in SUBJECTS]
)
def test_a_second_add_that_fails_leaves_what_the_first_made(host: Host, name: str) -> None:
    container, result = attached(host)
    kind, conf = SUBJECTS[name]
    bench = host.plugin(kind, {**conf, "prevResult": result})
    bench.add(container)

    def fail_at_each_step() -> int:
        plugin, before, failed, step = PluginUnderTest(None, kind, bench.conf, bench.path), state(), 0, 0
        struck = True
        while struck:
            step += 1
            plugin.fault = fail(step, errno.EIO)
            answer = plugin.run("ADD", container)
            struck = answer.struck
            if answer.status:
                failed += 1
                assert state() == before, f"step {step}: {answer.stdout!r}"
            before = state()  # a step that ADD can do without may have failed
        return failed

    assert host.call(fail_at_each_step) > 0
    bench.run("CHECK", container).raise_for_error()


def state() -> tuple[object, ...]:
    files = sorted(Path("/run/cni/tuning").glob("*")) if os.path.isdir("/run/cni/tuning") else []
    return collect(rules=True).without("files"), [each.read_bytes() for each in files]
