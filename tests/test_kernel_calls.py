"""How often the kernel is asked, and how many processes are started, for one request: so that neither creeps up."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cnisdk._cli.launchers import RegisteredPlugin, ask_versions, render_launcher, search_path
from cnisdk.testing import Sandbox

# Netlink sends (each may hold several requests), programs executed, processes and threads started; the first two
# programs are the launcher's shell and the interpreter. Threads are how a process works inside the container's
# namespace. A second address family costs nothing more, but that CHECK asks for its routes by themselves.
BUDGETS = {
    "bridge": {"ADD": (10, 2, 0, 1), "CHECK": (5, 2, 0, 1), "DEL": (7, 2, 0, 0)},
    "ptp": {"ADD": (7, 2, 0, 1), "CHECK": (9, 2, 0, 1), "DEL": (6, 2, 0, 0)},
    "macvlan": {"ADD": (4, 2, 0, 2), "CHECK": (3, 2, 0, 1), "DEL": (2, 2, 0, 1)},
    "host-device": {"ADD": (5, 2, 0, 2), "CHECK": (5, 2, 0, 1), "DEL": (8, 2, 0, 1)},
    "loopback": {"ADD": (3, 2, 0, 1), "CHECK": (4, 2, 0, 1), "DEL": (3, 2, 0, 1)},
    "portmap": {"ADD": (15, 2, 0, 0), "CHECK": (6, 2, 0, 0), "DEL": (18, 2, 0, 0)},
}
KEYS: dict[str, dict[str, Any]] = {
    "bridge": {"bridge": "cni0", "isGateway": True},
    "ptp": {},
    "macvlan": {"master": "up0"},
    "host-device": {"device": "dev0"},
    "loopback": {},
    "portmap": {
        "backend": "nftables",
        "runtimeConfig": {
            "portMappings": [
                {"hostPort": port, "containerPort": port, "protocol": "tcp"} for port in (8080, 8081, 8082)
            ]
        },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/counted"}],
            "ips": [{"address": each, "interface": 0} for each in ("10.1.0.5/16", "fd01::5/64")],
        },
    },
}
SUBNETS = {"IPv4": ["10.1.0.0/16"], "dual stack": ["10.1.0.0/16", "fd01::/64"]}


def install(directory: Path, *types: str) -> None:
    paths = search_path(sys.executable)
    if paths is None:
        paths = tuple(path for path in sys.path if path)
    for type_ in types:
        plugin = RegisteredPlugin(type_, f"cnisdk_plugins.{type_.replace('-', '_')}", "main", "a test")
        text = render_launcher(plugin, sys.executable, ask_versions(plugin, sys.executable, paths), paths)
        (directory / type_).write_bytes(text)
        (directory / type_).chmod(0o755)


def count(trace: str) -> tuple[int, int, int, int]:
    """Netlink sends, programs, processes and threads."""
    calls: Counter[str] = Counter()
    for line in trace.splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)", line)
        if match is None:
            continue
        name, rest = match[1], match[2]
        if name in ("clone", "clone3"):
            name = "thread" if "CLONE_THREAD" in rest else "process"
        elif name in ("fork", "vfork"):
            name = "process"
        elif name == "execve" and "= -1" in rest:
            continue
        calls[name] += 1
    return calls["sendto"] + calls["sendmsg"], calls["execve"], calls["process"], calls["thread"]


@pytest.mark.skipif(shutil.which("strace") is None and os.environ.get("CI") != "true", reason="no strace")
@pytest.mark.parametrize(
    ("plugin", "subnets"),
    [
        *((plugin, subnets) for plugin in ("bridge", "ptp") for subnets in SUBNETS),
        *((plugin, "dual stack") for plugin in ("macvlan", "host-device", "loopback", "portmap")),
    ],
)
def test_calls_of_a_request(host: Sandbox, tmp_path: Path, plugin: str, subnets: str) -> None:
    install(tmp_path, plugin, "host-local")
    netns = host.add_netns("counted")
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in SUBNETS[subnets]]}
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", "type": plugin, **KEYS[plugin]}
    if plugin not in ("loopback", "portmap"):
        conf["ipam"] = ipam
    for link in ("up0", "dev0"):
        host.run(["ip", "link", "add", link, "up", "type", "veth", "peer", "name", f"{link}x"])
    environ = {
        "PATH": os.environ["PATH"],
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": netns,
        "CNI_IFNAME": "lo" if plugin == "loopback" else "eth0",
        "CNI_PATH": str(tmp_path),
    }
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-o", str(trace), "-e", "trace=sendto,sendmsg,execve,clone,clone3,fork,vfork"]

    def run(verb: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return host.run([*argv, str(tmp_path / plugin)], env=environ | {"CNI_COMMAND": verb}, input=json.dumps(conf))

    # The first makes the bridge; the second is what every later one is like.
    run("ADD")
    run("DEL")
    for verb in ("ADD", "CHECK", "DEL"):
        done = run(verb, *strace)
        if verb == "ADD":
            conf["prevResult"] = json.loads(done.stdout)
        counted = count(trace.read_text())
        budget = BUDGETS[plugin][verb]
        over = [(here, most) for here, most in zip(counted, budget, strict=True) if here > most]
        assert not over, f"{verb}: netlink sends, programs, processes, threads are {counted}, expected {budget}"
