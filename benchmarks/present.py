"""What the rules of other attachments cost: portmap and firewall with ten attachments present, and with a thousand.

Usage: python benchmarks/present.py [--runs N] [--many N] [--only WORD ...]

On throw-away hosts, an attachment with two addresses is added, checked and deleted, by processes behind a resident
server; portmap maps three ports. Then as many others are added, and it is measured again.

Beside it, for iptables: `iptables-restore --noflush` and `ip6tables-restore --noflush` alone, with the lines that the
plugin would give them. That is what the kernel and the program take, without any plugin. Times are the least of all
runs, in milliseconds: what else the machine does only adds to them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _piped import run
from processes import PYTHON, check, machine, start_server

from cnisdk.linux import program
from cnisdk.linux.netfilter import xt_rules
from cnisdk.plugin.reply import respond
from cnisdk.testing import Sandbox

PLUGINS = ("portmap", "firewall")
BACKENDS = ("iptables", "nftables")
VERBS = ("ADD", "CHECK", "DEL")


def configuration(plugin: str, backend: str, number: int) -> bytes:
    high, low = divmod(number, 250)
    addresses = f"10.8.{high}.{low + 2}/16", f"fd08::{high:x}:{low + 2:x}/64"
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/bench"}],
        "ips": [{"interface": 0, "address": each} for each in addresses],
    }
    ports = [{"hostPort": 8080 + 3 * number + each, "containerPort": 80 + each, "protocol": "tcp"} for each in range(3)]
    mapped = {"runtimeConfig": {"portMappings": ports}} if plugin == "portmap" else {}
    named = {"cniVersion": "1.0.0", "name": "bench", "type": plugin, "backend": backend}
    return json.dumps({**named, **mapped, "prevResult": result}).encode()


def environment(verb: str, number: int) -> dict[str, str]:
    own = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": f"{number:064x}",
        "CNI_NETNS": "/run/netns/bench",
        "CNI_IFNAME": "eth0",
    }
    return {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "CNI_PATH": "/opt/cni/bin", **own}


def answer(plugin: str, backend: str, verb: str, number: int) -> None:
    """Have a request answered in this process."""
    reply = respond(
        import_module(f"cnisdk_plugins.{plugin}").main.plugin,
        environment(verb, number),
        configuration(plugin, backend, number),
    )
    if reply.status:
        raise SystemExit(reply.stdout.decode())


def capture(plugin: str) -> list[tuple[list[str], str]]:
    """Return the programs that an ADD with iptables would start if there were no netlink, with their input."""
    seen: list[tuple[list[str], str]] = []
    started: Callable[..., str] = program.run

    def note(argv: list[str], stdin: str = "", inherited: Any = ()) -> str:
        seen.append((argv, stdin))
        return started(argv, stdin, inherited)

    with patch.object(xt_rules, "add", lambda *_: False), patch.object(program, "run", note):
        answer(plugin, "iptables", "ADD", 0)
    answer(plugin, "iptables", "DEL", 0)
    return seen


def measure(directory: Path, plugin: str, backend: str, runs: int) -> dict[str, float]:
    costs: dict[str, list[float]] = {}
    scripts = capture(plugin) if backend == "iptables" else []
    for _ in range(runs):
        for verb in VERBS:
            child = run([str(directory / plugin)], environment(verb, 0), configuration(plugin, backend, 0))
            costs.setdefault(verb, []).append(check(child).seconds)
        if scripts:
            before = time.perf_counter()
            for argv, stdin in scripts:
                subprocess.run(argv, input=stdin, text=True, check=True)
            costs.setdefault("the programs alone", []).append(time.perf_counter() - before)
            answer(plugin, backend, "DEL", 0)
    return {name: min(each) * 1000 for name, each in costs.items()}


def work(directory: Path, plugin: str, backend: str, runs: int, many: int) -> list[str]:
    """Measure one plugin with one backend; called on a throw-away host."""
    subprocess.run(["ip", "netns", "add", "bench"], check=True)
    server = start_server()
    try:
        figures = []
        for first, last in ((1, 10), (11, many)):
            for number in range(first, last + 1):
                answer(plugin, backend, "ADD", number)
            measure(directory, plugin, backend, 2)
            figures.append(measure(directory, plugin, backend, runs))
    finally:
        os.kill(server, signal.SIGTERM)
        os.waitpid(server, 0)
    few, more = figures
    path = f"{plugin} with {backend}"
    return [f"| {path}, {name} | {few[name]:.1f} | {more[name]:.1f} | {more[name] / few[name]:.2f} |" for name in few]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="measurements (default %(default)s)")
    parser.add_argument("--many", type=int, default=1000, help="attachments (default %(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="only plugins and backends with one of these"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        install = [PYTHON, "-I", "-m", "cnisdk", "install", *PLUGINS, "--dest", directory, "--thick"]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        lines = [f"| path | with 10 | with {arguments.many:,} | ratio |", "|---|--:|--:|--:|"]
        for plugin in PLUGINS:
            for backend in BACKENDS:
                if not arguments.only or any(word in f"{plugin} {backend}" for word in arguments.only):
                    with Sandbox() as host:
                        lines += host.call(work, Path(directory), plugin, backend, arguments.runs, arguments.many)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} at the end; {arguments.runs} runs\n", *lines, sep="\n")


if __name__ == "__main__":
    main()
