"""Many processes at once, half of them the reference's, in one directory."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from .conftest import GO, Leased, Network, Program, environment

# The full numbers take a minute or two.
STRESS = bool(os.environ.get("CNISDK_STRESS"))
WORKERS, OPERATIONS = (64, 3000) if STRESS else (8, 160)

# A worker of ours answers one request a line, so that the operations are many and the imports few.
OURS = """
import json, sys
from cnisdk.plugin.reply import respond
from cnisdk_plugins.host_local import HostLocal
for line in sys.stdin:
    environ, conf = json.loads(line)
    reply = respond(HostLocal, environ, json.dumps(conf).encode())
    print(json.dumps([reply.status, reply.stdout.decode()]), flush=True)
"""


class Ours:
    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", OURS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def __call__(self, verb: str, conf: object, container: str) -> Leased:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([environment(verb, container), conf]), file=self.process.stdin, flush=True)
        status, text = json.loads(self.process.stdout.readline())
        return Leased(status, text, "")

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Worker(threading.Thread):
    """Adds and deletes attachments of its own, on one of the networks, through one of the two programs."""

    def __init__(self, number: int, program: Any, conf: dict[str, Any]) -> None:
        super().__init__()
        self.number, self.program, self.conf = number, program, conf
        self.held: dict[str, list[str]] = {}
        self.longest = 0.0
        self.problem: object = None

    def run(self) -> None:
        try:
            choice = random.Random(self.number)
            for operation in range(OPERATIONS // WORKERS):
                start = time.monotonic()
                if self.held and choice.random() < 0.45:
                    container = choice.choice(sorted(self.held))
                    answer = self.program("DEL", self.conf, container)
                    assert answer.status == 0, answer
                    del self.held[container]
                else:
                    container = f"w{self.number}-{operation}"
                    self.held[container] = self.program("ADD", self.conf, container).ips
                self.longest = max(self.longest, time.monotonic() - start)
        except BaseException as exc:
            self.problem = exc


@pytest.mark.interop
def test_mixed_crowd(tmp_path: Path, reference: Program) -> None:
    """On two networks, the name of one the beginning of the other's."""
    networks = [Network(tmp_path, "net"), Network(tmp_path, "net-2")]
    confs = [network.conf("10.9.0.0/16", "fd00:9::/64") for network in networks]
    ours = [Ours() for _ in range(min(WORKERS // 2, 64))]
    programs: list[Any] = [program for own in ours for program in (own, reference)]
    workers = [Worker(number, program, confs[number // 2 % 2]) for number, program in enumerate(programs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.problem for worker in workers if worker.problem] == []

    for network, conf in zip(networks, confs, strict=True):
        mine = [worker for worker in workers if worker.conf is conf]
        held = {ip: container for worker in mine for container, ips in worker.held.items() for ip in ips}
        assert len(held) == 2 * sum(len(worker.held) for worker in mine)  # no address twice
        assert network.leases() == {ip: f"{container}\r\neth0".encode() for ip, container in held.items()}
        for number, container in enumerate(sorted(set(held.values()))):
            programs[number % len(programs)]("DEL", conf, container)
        assert network.leases() == {}
    assert max(worker.longest for worker in workers) < 30
    close(ours)


def close(programs: Iterable[Ours]) -> None:
    for program in programs:
        program.close()


def test_whole_processes(network: Network) -> None:
    """Real launches, all at once."""
    conf = json.dumps(network.conf("10.9.0.0/24")).encode()
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "cnisdk_plugins.host_local"]
    running = []
    for number in range(4):
        for program in (command, [str(GO)]) if GO.exists() else (command,):
            variables = environment("ADD", f"c{number}-{len(program)}", **env)
            running.append(subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables))
            assert running[-1].stdin is not None
            running[-1].stdin.write(conf)
            running[-1].stdin.close()
    results = []
    for process in running:
        assert process.stdout is not None
        results.append(json.loads(process.stdout.read()))
        process.stdout.close()
        assert process.wait() == 0
    addresses = {result["ips"][0]["address"].partition("/")[0] for result in results}
    assert len(addresses) == len(running)
    assert set(network.leases()) == addresses
