"""SIGKILL for shims, workers and servers at any moment: what is deleted goes, and what lives stays."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cnisdk._thick.server import ask_status
from cnisdk.errors import IOFailureError
from cnisdk.testing import Container, Host, PluginUnderTest
from cnisdk.testing.running import SYSTEM_PATH

from ..bridge.conftest import DUAL_STACK, NOTHING, left
from ..modes import Plugins

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROUNDS = int(os.environ.get("CNISDK_TEST_KILLS", "100")) // 5


@pytest.fixture(scope="module")
def shims(install: Callable[[str], Plugins]) -> Plugins:
    return install("resident")


def start(container: Container, plugin: PluginUnderTest, verb: str) -> subprocess.Popen[str]:
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container.id, "CNI_NETNS": container.netns}
    with open(os.memfd_create("conf"), "w+") as conf:
        json.dump(plugin.conf, conf)
        conf.seek(0)
        return container.host.popen(
            [str(plugin.plugin)],
            env=environ | {"CNI_IFNAME": "eth0", "CNI_PATH": ":".join(plugin.path), "PATH": SYSTEM_PATH},
            stdin=conf,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def find_server(host: Host) -> int | None:
    def ask() -> int | None:
        try:
            status: dict[str, Any] = ask_status("/run/cnisdk")
        except IOFailureError:
            return None
        return None if status["stopping"] else int(status["pid"])

    return host.call(ask)


def hurt(chance: random.Random, server: int | None, shims: list[subprocess.Popen[str]]) -> list[int]:
    """Kill something, or stop a worker. Return the workers that were stopped."""
    what = chance.choice(["shim", "shim", "worker", "worker", "stopped worker", "server"])
    if what == "shim":
        chance.choice(shims).send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
    elif server is None:
        pass
    elif what == "server":
        os.kill(server, chance.choice([signal.SIGKILL, signal.SIGTERM]))
    elif workers := Path(f"/proc/{server}/task/{server}/children").read_text().split():
        worker = int(chance.choice(workers))
        os.kill(worker, signal.SIGKILL if what == "worker" else signal.SIGSTOP)
        return [worker]
    return []


def test_what_lives_stays_and_what_is_deleted_goes_whatever_is_killed(host: Host, shims: Plugins) -> None:
    conf = {"cniVersion": "1.0.0", "name": "net", "bridge": "br0", "ipam": DUAL_STACK}
    more = {"isDefaultGateway": True, "ipMasq": True, "macspoofchk": True}
    plugin = host.plugin(shims.directory / "bridge", conf | more, path=[shims.directory])
    host.run(["sh", "-euc", shims.setup])
    living = [host.container(f"living{number}") for number in range(2)]
    others = [host.container(f"other{number}") for number in range(4)]
    for container in living:
        plugin.add(container)
    before = left(host)
    chance = random.Random(9)  # seeded, to be repeatable as far as kills are
    for round_ in range(ROUNDS):
        server = find_server(host)
        adds = [start(container, plugin, "ADD") for container in others]
        stopped = []
        for _ in range(chance.randrange(1, 4)):
            select.select([], [], [], chance.uniform(0, 0.03))  # at any moment
            with suppress(OSError):  # it has ended
                stopped += hurt(chance, server, adds)
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for process in adds:
            stdout, _ = process.communicate(timeout=60)
            assert process.returncode or len(json.loads(stdout)["ips"]) == 2
        if find_server(host) is None:
            host.run(["sh", "-euc", shims.setup])
        for process in [start(container, plugin, "DEL") for container in others]:
            stdout, stderr = process.communicate(timeout=60)
            assert process.returncode == 0, (round_, stdout, stderr)
        assert left(host) == before, f"round {round_}"
    for container in living:
        plugin.delete(container)
    assert left(host) == NOTHING
    shims.take_fallbacks()
