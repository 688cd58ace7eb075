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

from .conftest import DUAL_STACK, Bench, config

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROUNDS = int(os.environ.get("CNISDK_TEST_KILLS", "200"))


def add_for(bench: Bench, conf: object, seconds: float | None) -> float:
    """Start an ADD and kill it after some time, if it takes so long; return how long it took."""
    started = time.monotonic()
    process: subprocess.Popen[Any] = bench.host.popen(
        [bench.plugins / "bridge"],
        env=bench.environ("ADD"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=False,
    )
    assert process.stdin is not None
    with process:
        process.stdin.write(json.dumps(conf).encode())
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


@pytest.mark.parametrize("masquerade", [False, True])
def test_a_killed_add_leaves_nothing_after_del(bench: Bench, masquerade: bool) -> None:
    conf = config(isDefaultGateway=True, ipam=DUAL_STACK, ipMasq=masquerade)
    bench.host.add_netns("c1")
    whole = add_for(bench, conf, None)
    bench.run("DEL", conf).must_succeed()
    clean = bench.state()
    assert clean == {"links": ["br0", "lo"], "rules": [], "leases": {}}
    chance = random.Random(20)  # seeded, to be repeatable
    for round_ in range(ROUNDS // 2):
        add_for(bench, conf, chance.uniform(0.2, 1.1) * whole)
        bench.run("DEL", conf).must_succeed()
        assert bench.state() == clean, f"round {round_}"
    bench.run("ADD", conf).must_succeed()
    bench.run("DEL", conf).must_succeed()
