"""Cost of the rules of other attachments: portmap and firewall with ten attachments present, and with a thousand.

Usage: python benchmarks/present.py [--runs N] [--many N] [--only WORD ...] [--reference DIR]

On throw-away hosts, an attachment with two addresses is added, checked and deleted in this process; portmap maps three
ports. Then as many others are added, and it is measured again. Of each request, what the kernel takes for transactions,
which change rules, and for listings of rules. Beside it, for iptables, programs alone, without any plugin:
`iptables-restore --noflush` and `ip6tables-restore --noflush` with the lines that the plugin would give them, and
`iptables -S` and `ip6tables -S` of the one chain that all attachments share.

The Go plugins, which have no backend but iptables here, take turns with ours on the same hosts: the rules of others
are the same for both, made by ours in the Go plugins' layout. They are whole processes, and ours are none: with few
attachments, the start of a process counts.

Figures are the least processor time of all runs, in milliseconds, with the kernel's and that of programs started: it
hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from processes import machine

from cnisdk.linux import program
from cnisdk.linux.netfilter import nfnetlink, xt_rules
from cnisdk.plugin.reply import respond
from cnisdk.testing import Sandbox

PLUGINS = ("portmap", "firewall")
BACKENDS = ("iptables", "nftables")
SHARED = {"portmap": ("nat", "CNI-HOSTPORT-DNAT"), "firewall": ("filter", "CNI-FORWARD")}
VERBS = ("ADD", "CHECK", "DEL")
KERNEL = {"transact": "its transactions", "select": "its listings"}


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


def run_reference(program: Path, verb: str) -> bool:
    """Have a request of the first attachment answered by a Go plugin; return whether it could."""
    stdin = configuration(program.name, "iptables", 0)
    done = subprocess.run([program], check=False, env=environment(verb, 0), input=stdin, stdout=subprocess.PIPE)
    if done.returncode and verb != "CHECK":  # that of portmap 1.1.1 fails where there are addresses of both versions
        raise SystemExit(f"{program} {verb}: {done.stdout.decode()}")
    return done.returncode == 0


def processor_time() -> float:
    """Return the seconds of this process and of all programs that it waited for, and those waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


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


@contextmanager
def timed(name: str, spent: dict[str, float]) -> Iterator[None]:
    """Add the processor time that a function of :mod:`.nfnetlink` takes to what is spent."""
    function: Callable[..., Any] = getattr(nfnetlink, name)

    def call(*arguments: Any, **more: Any) -> Any:
        before = time.process_time()
        try:
            return function(*arguments, **more)
        finally:
            spent[name] += time.process_time() - before

    with patch.object(nfnetlink, name, call):
        yield


def measure(plugin: str, backend: str, runs: int, reference: Path) -> dict[str, float]:
    costs: dict[str, list[float]] = {}
    alone: dict[str, list[tuple[list[str], str]]] = {}
    if backend == "iptables":
        table, chain = SHARED[plugin]
        listing = [[program, "-t", table, "-S", chain] for program in ("iptables", "ip6tables")]
        alone = {"iptables-restore alone": capture(plugin), "iptables -S alone": [(argv, "") for argv in listing]}
    for _ in range(runs):
        for verb in VERBS:
            spent = dict.fromkeys(KERNEL, 0.0)
            with timed("transact", spent), timed("select", spent):
                before = processor_time()
                answer(plugin, backend, verb, 0)
                costs.setdefault(verb, []).append(processor_time() - before)
            for name, what in KERNEL.items():
                costs.setdefault(f"{verb}: {what}", []).append(spent[name])
        for name, programs in alone.items():
            before = processor_time()
            for argv, stdin in programs:
                subprocess.run(argv, input=stdin, text=True, check=True, stdout=subprocess.DEVNULL)
            costs.setdefault(name, []).append(processor_time() - before)
        if alone:
            answer(plugin, backend, "DEL", 0)
        for verb in VERBS if alone and (reference / plugin).exists() else ():
            before = processor_time()
            if run_reference(reference / plugin, verb):
                costs.setdefault(f"{verb}: Go", []).append(processor_time() - before)
    return {name: min(each) * 1000 for name, each in costs.items()}


def work(plugin: str, backend: str, runs: int, many: int, reference: Path) -> list[str]:
    """Measure one plugin with one backend; called on a throw-away host."""
    subprocess.run(["ip", "netns", "add", "bench"], check=True)
    figures = []
    for first, last in ((1, 10), (11, many)):
        for number in range(first, last + 1):
            answer(plugin, backend, "ADD", number)
        figures.append(measure(plugin, backend, runs, reference))
    few, more = figures
    path = f"{plugin} with {backend}"
    return [
        f"| {path}, {name} | {few[name]:.2f} | {more[name]:.2f} | {more[name] / few[name]:.1f} |"
        for name in few
        if few[name]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="measurements (default %(default)s)")
    parser.add_argument("--many", type=int, default=1000, help="attachments (default %(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="only plugins and backends with one of these"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        default=os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"),
        metavar="DIR",
        help="the Go plugins (default %(default)s)",
    )
    arguments = parser.parse_args()
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}; {arguments.runs} runs\n")
    print(f"| path | with 10 | with {arguments.many:,} | ratio |", "|---|--:|--:|--:|", sep="\n", flush=True)
    for plugin in PLUGINS:
        for backend in BACKENDS:
            if not arguments.only or any(word in f"{plugin} {backend}" for word in arguments.only):
                with Sandbox() as host:
                    lines = host.call(work, plugin, backend, arguments.runs, arguments.many, arguments.reference)
                print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
