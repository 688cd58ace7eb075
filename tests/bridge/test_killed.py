"""SIGKILL at any moment of an ADD, then DEL: nothing is left."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import time
from typing import Any

import pytest

from cnisdk.testing import Container, PluginUnderTest
from cnisdk.testing.running import SYSTEM_PATH

from .conftest import DUAL_STACK, NOTHING, Network, left

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROUNDS = int(os.environ.get("CNISDK_TEST_KILLS", "100"))


def add_for(container: Container, plugin: PluginUnderTest, seconds: float | None) -> float:
    """Start an ADD and kill it after some time, if it takes so long; return how long it took."""
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container.id, "CNI_NETNS": container.netns}
    started = time.monotonic()
    process: subprocess.Popen[Any] = container.host.popen(
        [str(plugin.plugin)],
        env=environ | {"CNI_IFNAME": "eth0", "CNI_PATH": ":".join(plugin.path), "PATH": SYSTEM_PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=False,
    )
    assert process.stdin is not None
    with process:
        process.stdin.write(json.dumps(plugin.conf).encode())
        process.stdin.close()
        if seconds is not None:
            pidfd = os.pidfd_open(process.pid)
            try:
                select.select([pidfd], [], [], seconds)
            finally:
                os.close(pidfd)
            process.send_signal(signal.SIGKILL)
        process.wait()
    return time.monotonic() - started


def test_a_killed_add_leaves_nothing_after_del(net: Network) -> None:
    """Of an attachment with all there is: two families, a gateway, rules, a spoof check."""
    plugin = net.plugin(isDefaultGateway=True, ipam=DUAL_STACK, ipMasq=True, macspoofchk=True)
    container = net.host.container()
    whole = add_for(container, plugin, None)
    plugin.delete(container)
    assert left(net.host) == NOTHING
    chance = random.Random(20)  # seeded, to be repeatable
    for round_ in range(ROUNDS):
        add_for(container, plugin, chance.uniform(0.2, 1.1) * whole)
        plugin.delete(container)
        assert left(net.host) == NOTHING, f"round {round_}"
    plugin.add(container)
    plugin.delete(container)
