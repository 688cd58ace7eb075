"""Whole processes of host-local, killed at a system call by strace. (tests/ipam/test_killed.py does it at each.)"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cnisdk_plugins.host_local import HostLocal

from .conftest import Network, Program, environment

STEP = 1 if os.environ.get("CNISDK_STRESS") else 9
COMMAND = [sys.executable, "-m", "cnisdk_plugins.host_local"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("verb", ["ADD", "DEL", "GC"])
def test_killed_by_strace(network: Network, tmp_path: Path, verb: str) -> None:
    ours = Program(HostLocal)
    conf = network.conf("10.9.0.0/20", "fd00:9::/64", version="1.1.0")
    conf["cni.dev/valid-attachments"] = [{"containerID": "stays", "ifname": "eth0"}]
    stdin = json.dumps(conf).encode()
    env = environment(verb, "me", PYTHONPATH=os.pathsep.join(sys.path), PATH=os.environ["PATH"])
    assert ours("ADD", conf, "stays").status == 0
    kept = network.leases()
    log = tmp_path / "strace.txt"

    def prepare() -> None:
        if verb != "ADD":
            assert ours("ADD", conf, "me").status == 0

    # Once before, so that the run that is looked at compiles no modules, which those that are killed find compiled.
    prepare()
    subprocess.run(COMMAND, input=stdin, env=env, capture_output=True, check=True)
    ours("DEL", conf, "me")
    prepare()
    subprocess.run(["strace", "-f", "-qq", "-o", log, *COMMAND], input=stdin, env=env, capture_output=True, check=True)
    ours("DEL", conf, "me")
    # strace counts the invocations of each system call by itself.
    calls: Counter[str] = Counter()
    moments = []
    begun = False
    for line in log.read_text().splitlines():
        begun = begun or str(network.path) in line
        match = re.match(r"\d+ +(\w+)\(", line)
        if match:
            calls[match[1]] += 1
            if begun:
                moments.append((match[1], calls[match[1]]))
    assert len(moments) > 20
    survived = []
    chosen = moments[::STEP]
    for name, number in chosen:
        prepare()
        inject = f"inject={name}:signal=KILL:when={number}"
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", os.devnull, "-e", inject, *COMMAND],
            input=stdin,
            env=env,
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:  # not every run makes every call, such as those that ask for memory
            survived.append(name)
        assert ours("DEL", conf, "me").status == 0
        assert network.leases() == kept, (name, number)
        given = [ip for each in range(5) for ip in ours("ADD", conf, f"c{each}").ips]
        assert len({*given, *kept}) == 12
        assert ours("GC", conf).status == 0
        assert network.leases() == kept
    assert len(survived) < len(chosen) / 4, survived
