"""Whole plugin processes beside the reference's, in turns in one run: medians, 95th percentiles and ratios.

Usage: python benchmarks/processes.py [--runs N] [--burst N] [--only WORD ...] [--json FILE] [--plot FILE]
                                      [--reference DIR]

Everything happens on a throw-away host (cnisdk.testing.Sandbox). Each round runs every path once in every mode, so that
a machine that is busy for a while is busy for all of them. The modes:

  go         the reference plugins, which Debian packages as containernetworking-plugins
  one-shot   launchers written by `cnisdk install`: one Python process a request
  resident   shims written by `cnisdk install --thick`, in front of a running `cnisdk serve`
  python     what Python itself costs: nothing done without its site module, as launchers start it, and with it

Each is started as container runtimes do, with pipes. Times are from before the process is started until stdout and
stderr have ended and it is reaped, in milliseconds. The kernel counts the size of the
process that starts another as that one's too, so no peak is below this program's own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _percentile import percentile
from _piped import Child, Children, Cost, run

from cnisdk.testing import Sandbox

PYTHON = os.path.abspath(sys.executable)
# Nothing done, without the site module and with it.
BARE, PASS = "python -I -S -c pass", "python -I -c pass"

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "IPv4": {"isGateway": True, "subnets": ["10.9.0.0/16"]},
    "dual stack": {"isGateway": True, "subnets": ["10.9.0.0/16", "fd09::/64"]},
    "ipMasq": {"isGateway": True, "ipMasq": True, "subnets": ["10.9.0.0/16"]},
}

# Path, mode and the mode or path it is compared with, and how many times that it may take (median).
BUDGETS = [
    ("VERSION", "resident", ("VERSION", "go"), 0.8),
    ("host-local ADD", "resident", ("host-local ADD", "go"), 0.6),
    ("bridge ADD, IPv4", "resident", ("bridge ADD, IPv4", "go"), 0.6),
    ("burst, total", "resident", ("burst, total", "go"), 0.7),
    ("ptp ADD", "resident", ("ptp ADD", "go"), 0.6),
    ("macvlan ADD", "resident", ("macvlan ADD", "go"), 0.6),
    ("loopback ADD", "resident", ("loopback ADD", "go"), 0.6),
    ("host-device ADD", "resident", ("host-device ADD", "go"), 0.6),
    ("portmap ADD, iptables", "resident", ("portmap ADD, iptables", "go"), 0.15),
    ("portmap ADD, nftables", "resident", ("portmap ADD, iptables", "go"), 0.08),
    ("firewall ADD, iptables", "resident", ("firewall ADD, iptables", "go"), 0.3),
    ("firewall ADD, nftables", "resident", ("firewall ADD, iptables", "go"), 0.3),
    ("chain ADD, iptables", "resident", ("chain ADD, iptables", "go"), 0.4),
    ("chain ADD, nftables", "resident", ("chain ADD, iptables", "go"), 0.4),
    ("host-local ADD, loop", "resident", ("host-local ADD, isolated", "resident"), 1.15),
    ("host-local ADD, slowest of a server's first ten", "resident", ("host-local ADD, later", "resident"), 1.5),
    ("VERSION", "one-shot", ("VERSION", "go"), 1.0),
    ("VERSION, python -m", "one-shot", (PASS, "python"), 1.6),
    ("host-local ADD", "one-shot", (BARE, "python"), 4.0),
    ("bridge ADD, IPv4", "one-shot", (BARE, "python"), 5.5),
    ("ptp ADD", "one-shot", (BARE, "python"), 5.5),
    ("macvlan ADD", "one-shot", (BARE, "python"), 5.5),
    ("loopback ADD", "one-shot", (BARE, "python"), 5.5),
    ("host-device ADD", "one-shot", (BARE, "python"), 5.5),
]

# Proportional set size of server and workers, in MiB.
MEMORY_BUDGETS = {"at rest": 40, "during a burst": 128}

PAUSE = 0.06  # seconds between requests that are isolated
SERVERS = 5  # of which the first requests are measured

MASTER = "bench-master"  # what macvlan's links lie on
DEVICE = "bench-device"  # what host-device lends

# Three ports of a container with two addresses. The reference's release of Debian knows iptables alone.
BACKENDS = ("iptables", "nftables")
PORTS = [{"hostPort": 8080 + number, "containerPort": 80 + number, "protocol": "tcp"} for number in range(3)]
ATTACHED = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/bench"}],
    "ips": [{"interface": 0, "address": "10.8.0.2/24"}, {"interface": 0, "address": "fd08::2/64"}],
}

CHAINED: dict[str, dict[str, Any]] = {"portmap": {"runtimeConfig": {"portMappings": PORTS}}, "firewall": {}}
TUNING = {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}}

CNITOOL = "from cnisdk._cli.start import cnitool; cnitool()"  # as the script that pip writes

Key = tuple[str, str]


class Mode(NamedTuple):
    name: str
    directory: Path


def check(child: Child) -> Cost:
    """Cost of a process that did what it should."""
    verb = child.environ.get("CNI_COMMAND", "")
    printed = (child.printed + child.said).decode(errors="replace")
    if child.status:
        raise SystemExit(f"{verb} {' '.join(child.argv)} failed with wait status {child.status:#x}\n{printed}")
    if "resident" in str(child.argv[0]) and "instead" in printed:
        raise SystemExit(f"{verb} {child.argv[0]} did not reach the server\n{printed}")
    return child.cost


def measure(argv: list[str], environ: dict[str, str], stdin: bytes = b"") -> Cost:
    return check(run(argv, environ, stdin))


def environment(mode: Mode, verb: str, number: int, netns: str) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": f"{number:064x}",
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(mode.directory),
    }


def configuration(mode: Mode, name: str, plugin: str = "bridge") -> dict[str, Any]:
    """A network of the mode's own: its bridge, its subnets and its leases."""
    if plugin in CHAINED:
        own = {"backend": name, "prevResult": ATTACHED, **CHAINED[plugin]}
        return {"cniVersion": "1.0.0", "name": f"bench-{mode.name[0]}-{plugin}", "type": plugin, **own}
    chosen = dict(CONFIGURATIONS[name])
    number = list(CONFIGURATIONS).index(name)
    letter = mode.name[0] + str(number)
    octet = 10 * (1 + number) + {"go": 1, "one-shot": 2, "resident": 3}[mode.name]
    subnets = [text.replace("10.9.", f"10.{octet}.").replace("fd09:", f"fd{octet}:") for text in chosen.pop("subnets")]
    ipam = {
        "type": "host-local",
        "dataDir": "/var/lib/cni/networks",
        "ranges": [[{"subnet": subnet}] for subnet in subnets],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    network = f"bench-{letter}-{plugin}"
    own = {
        "bridge": {"bridge": f"cb-{letter}", **chosen},
        "macvlan": {"master": MASTER},
        "host-device": {"device": DEVICE},
    }.get(plugin, {})
    addresses = {} if plugin == "loopback" else {"ipam": ipam}
    return {"cniVersion": "1.0.0", "name": network, "type": plugin, **own, **addresses}


class Comparison:
    """All paths of all modes on the host this process is on."""

    def __init__(self, modes: list[Mode], burst: int, only: list[str]) -> None:
        self.modes, self.burst, self.only = modes, burst, only
        self.costs: dict[Key, list[Cost]] = {}
        self.namespaces: dict[str, list[str]] = {}
        self.memory: dict[str, int] = {}

    def wanted(self, path: str) -> bool:
        return not self.only or any(word in path for word in self.only)

    def note(self, path: str, mode: str, cost: Cost) -> None:
        self.costs.setdefault((path, mode), []).append(cost)

    def prepare(self) -> None:
        subprocess.run(["ip", "link", "add", MASTER, "type", "veth", "peer", "name", "bench-wire"], check=True)
        subprocess.run(["ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "device-wire"], check=True)
        for link in (MASTER, "bench-wire", "device-wire"):
            subprocess.run(["ip", "link", "set", link, "up"], check=True)
        os.environ["NETCONFPATH"] = "/run/net.d"
        os.mkdir("/run/net.d")
        for mode in self.modes:
            names = [f"{mode.name}-{number}" for number in range(max(1, self.burst))]
            for name in names:
                subprocess.run(["ip", "netns", "add", name], check=True)
            self.namespaces[mode.name] = [f"/run/netns/{name}" for name in names]
            conf = configuration(mode, "IPv4")
            conf["name"] = f"list-{mode.name}"
            listed = {key: conf.pop(key) for key in ("cniVersion", "name")} | {"plugins": [conf]}
            Path(f"/run/net.d/{mode.name}.conflist").write_text(json.dumps(listed))

    def round(self) -> None:
        for path in (BARE, PASS):
            self.note(path, "python", measure([PYTHON, *path.split()[1:]], {"PATH": "/usr/bin"}))
        for path in (
            "VERSION",
            "VERSION, python -m",
            "host-local",
            *(f"bridge, {n}" for n in CONFIGURATIONS),
            "ptp",
            "macvlan",
            "host-device",
            "loopback",
            *(f"{plugin}, {backend}" for plugin in (*CHAINED, "chain") for backend in BACKENDS),
            "cnitool",
        ):
            if not self.wanted(path):
                continue
            for mode in self.modes:
                for what, cost in self._measure(path, mode):
                    self.note(what, mode.name, cost)

    def _measure(self, path: str, mode: Mode) -> Iterator[tuple[str, Cost]]:
        netns = self.namespaces[mode.name][0]
        kind, _, name = path.partition(", ")
        if path == "VERSION":
            asked = b'{"cniVersion":"1.0.0"}'
            yield path, measure([str(mode.directory / "bridge")], environment(mode, "VERSION", 1, "dummy"), asked)
        elif path == "VERSION, python -m":
            if mode.name == "one-shot":
                argv = [PYTHON, "-I", "-m", "cnisdk_plugins.bridge"]
                yield path, measure(argv, environment(mode, "VERSION", 1, "dummy"))
        elif kind == "cnitool":
            for verb in ("add", "del"):
                environ = {**environment(mode, "", 1, netns), "NETCONFPATH": "/run/net.d"}
                argv = [PYTHON, "-I", "-c", CNITOOL, verb, f"list-{mode.name}", netns]
                yield f"cnitool {verb}", measure(argv, environ)
        elif kind == "chain":
            for verb, cost in self._attach_and_detach(mode, name, netns):
                yield f"chain {verb}, {name}", cost
        else:
            conf = configuration(mode, name or "IPv4", kind)
            stdin = json.dumps(conf).encode()
            argv = [str(mode.directory / kind)]
            # The reference's CHECK of portmap fails for two IP versions.
            for verb in ("ADD", "DEL") if kind in ("host-local", *CHAINED) else ("ADD", "CHECK", "DEL"):
                child = run(argv, environment(mode, verb, 1, netns), stdin)
                yield f"{kind} {verb}{name and ', '}{name}", check(child)
                if verb == "ADD":
                    stdin = json.dumps(conf | {"prevResult": json.loads(child.printed)}).encode()

    def _attach_and_detach(self, mode: Mode, backend: str, netns: str) -> Iterator[tuple[str, Cost]]:
        """The lists that runtimes write: bridge, portmap, firewall and tuning, one after the other."""
        first = {**configuration(mode, "ipMasq"), "ipMasqBackend": backend}
        shared = {"cniVersion": "1.0.0", "name": first["name"]}
        chained = [{"type": plugin, "backend": backend, **own} for plugin, own in CHAINED.items()]
        plugins = [first, *({**each, **shared} for each in (*chained, TUNING))]
        result: dict[str, Any] = {}
        for verb, order in (("ADD", plugins), ("DEL", plugins[::-1])):
            costs = []
            for conf in order:
                stdin = json.dumps({**conf, "prevResult": result} if result else conf).encode()
                argv = [str(mode.directory / str(conf["type"]))]
                child = run(argv, environment(mode, verb, 2, netns), stdin)
                costs.append(check(child))
                result = json.loads(child.printed) if verb == "ADD" else result
            seconds, cpu, peaks = zip(*costs, strict=True)
            yield verb, Cost(sum(seconds), sum(cpu), max(peaks))

    def sequence(self, mode: Mode, count: int, pause: float) -> list[Cost]:
        """Run host-local ADD and DEL in turn, and return the cost of each ADD."""
        costs = []
        for _ in range(count):
            for verb, cost in self._measure("host-local", mode):
                time.sleep(pause)
                if verb.endswith("ADD"):
                    costs.append(cost)
        return costs

    def loops(self) -> None:
        """Compare requests one directly after the other with isolated ones."""
        for mode in self.modes:
            for path, pause in (("isolated", PAUSE), ("loop", 0)):
                for cost in self.sequence(mode, 10, pause):
                    self.note(f"host-local ADD, {path}", mode.name, cost)

    def beginning(self, mode: Mode) -> None:
        """Compare the first requests of a server that has just started with later ones."""
        first, later = self.sequence(mode, 10, PAUSE), self.sequence(mode, 20, PAUSE)
        self.note("host-local ADD, slowest of a server's first ten", mode.name, max(first))
        for cost in later:
            self.note("host-local ADD, later", mode.name, cost)

    def watch_memory(self) -> None:
        """Look at the size of server and workers during a burst, and some seconds after it."""
        (mode,) = [mode for mode in self.modes if mode.name == "resident"]
        sizes, over = [0], threading.Event()

        def watch() -> None:
            while not over.is_set():
                sizes.append(sum(map(process_tree_memory, SERVER)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        self.bursts([mode], note=False)
        over.set()
        watcher.join()
        time.sleep(5)
        self.memory = {"at rest": sum(map(process_tree_memory, SERVER)), "during a burst": max(sizes)}

    def bursts(self, modes: list[Mode] | None = None, *, note: bool = True) -> None:
        for mode in self.modes if modes is None else modes:
            stdin = json.dumps(configuration(mode, "IPv4")).encode()
            argv = [str(mode.directory / "bridge")]
            for verb in ("ADD", "DEL"):
                before, start = server_cpu(), time.perf_counter()
                children = Children()
                for number, netns in enumerate(self.namespaces[mode.name]):
                    children.add(Child(argv, environment(mode, verb, number + 100, netns), stdin))
                ended = []
                while children:
                    ended.append(children.wait())
                each = [check(child) for child in ended]
                total = time.perf_counter() - start
                if verb == "ADD" and note:
                    cpu = sum(cost.cpu for cost in each) + server_cpu() - before
                    # The first finds workers that have served little: it is told of by itself.
                    first = ("burst, first", mode.name) not in self.costs
                    what = "burst, first" if first else "burst, total"
                    self.note(what, mode.name, Cost(total, cpu, max(cost.peak for cost in each)))
                    for cost in () if first else each:
                        self.note("burst, each", mode.name, cost)


def server_cpu() -> float:
    """Seconds of CPU the resident server and its workers have used; 0 without one."""
    return sum(map(process_tree_cpu, SERVER))


SERVER: list[int] = []


def process_tree(pid: int) -> list[int]:
    """Return a process and its children."""
    try:
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except OSError:
        return []


def process_tree_cpu(pid: int) -> float:
    """Seconds of CPU that a process and its children have used, with those that have ended."""
    seconds = 0.0
    for each in process_tree(pid):
        try:
            seconds += int(Path(f"/proc/{each}/schedstat").read_text().split()[0]) / 1e9
            ended = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[13:15]
        except OSError:
            continue
        seconds += sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")
    return seconds


def process_tree_memory(pid: int) -> int:
    """Proportional set size of a process and its children, in KiB."""
    total = 0
    for each in process_tree(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:  # a worker that just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def work(modes: list[Mode], runs: int, burst: int, only: list[str]) -> tuple[dict[Key, list[Cost]], dict[str, int]]:
    """Run it all; called on the throw-away host."""
    comparison = Comparison(modes, burst, only)
    comparison.prepare()
    resident = [mode for mode in modes if mode.name == "resident"]
    if resident:
        start_server()
    try:
        comparison.round()  # compiles, makes bridges, fills caches
        comparison.costs.clear()
        for number in range(runs):
            comparison.round()
            if burst and comparison.wanted("burst") and number % 5 == 0:
                comparison.bursts()
            if comparison.wanted("loop") and number % 5 == 0:
                comparison.loops()
        if resident and burst and comparison.wanted("burst"):
            comparison.watch_memory()
        for _ in range(SERVERS if resident and comparison.wanted("first ten") else 0):
            stop_server()
            start_server()
            comparison.beginning(resident[0])
    finally:
        if resident:
            stop_server()
    return comparison.costs, comparison.memory


def stop_server() -> None:
    server = SERVER.pop()
    os.kill(server, signal.SIGTERM)
    os.waitpid(server, 0)


def start_server() -> None:
    argv = [PYTHON, "-I", "-m", "cnisdk", "serve"]
    pid = os.posix_spawn(argv[0], argv, dict(os.environ))
    SERVER.append(pid)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if subprocess.run([*argv, "--status"], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise SystemExit("the server does not come up")


def report(costs: dict[Key, list[Cost]], memory: dict[str, int]) -> str:
    medians = {key: statistics.median(cost.seconds for cost in each) * 1000 for key, each in costs.items()}
    lines = [
        "| path | mode | runs | median ms | p95 ms | CPU ms | peak MiB | × go |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (path, mode), each in sorted(
        costs.items(), key=lambda item: list(dict.fromkeys(k[0] for k in costs)).index(item[0][0])
    ):
        p95 = percentile([cost.seconds * 1000 for cost in each], 0.95)
        cpu = statistics.median(cost.cpu for cost in each) * 1000
        peak = max(cost.peak for cost in each) / 1024
        go = medians.get((path, "go"))
        ratio = f"{medians[path, mode] / go:.2f}" if go and mode != "go" else ""
        median = medians[path, mode]
        lines.append(f"| {path} | {mode} | {len(each)} | {median:.2f} | {p95:.2f} | {cpu:.2f} | {peak:.1f} | {ratio} |")
    lines += ["", "| path | mode | against | budget | measured |", "|---|---|---|--:|--:|"]
    for path, mode, against, budget in BUDGETS:
        if (path, mode) in medians and against in medians:
            measured = medians[path, mode] / medians[against]
            name = "go" if against[1] == "go" else f"`{against[0]}`"
            lines.append(
                f"| {path} | {mode} | {name} | {budget} | {measured:.2f}{' (over)' if measured > budget else ''} |"
            )
    if memory:
        lines += ["", "| memory of the server and its workers | budget MiB | measured |", "|---|--:|--:|"]
    for what, size in memory.items():
        over = " (over)" if size > MEMORY_BUDGETS[what] << 10 else ""
        lines.append(f"| {what} | {MEMORY_BUDGETS[what]} | {size / 1024:.1f}{over} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="rounds (default %(default)s)")
    parser.add_argument("--burst", type=int, default=50, help="parallel ADDs, every fifth round; 0 means none")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="only paths with one of these in the name"
    )
    parser.add_argument("--json", metavar="FILE", help="write every measurement there")
    parser.add_argument("--plot", metavar="FILE", help="draw them there (SVG, PNG); needs matplotlib")
    parser.add_argument("--reference", default=os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        modes = []
        if os.path.exists(os.path.join(arguments.reference, "bridge")):
            modes.append(Mode("go", Path(arguments.reference)))
        types = ["bridge", "firewall", "host-device", "host-local", "loopback", "macvlan", "portmap", "ptp", "tuning"]
        install = [PYTHON, "-I", "-m", "cnisdk", "install", *types, "--dest"]
        modes.append(Mode("one-shot", Path(directory, "one-shot")))
        subprocess.run([*install, str(modes[-1].directory), "--no-server"], check=True, stdout=subprocess.DEVNULL)
        if importlib.util.find_spec("cnisdk._cli.serve") is not None:
            modes.append(Mode("resident", Path(directory, "resident")))
            subprocess.run([*install, str(modes[-1].directory), "--thick"], check=True, stdout=subprocess.DEVNULL)
        with Sandbox() as host:
            costs, memory = host.call(work, modes, arguments.runs, arguments.burst, arguments.only)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f} at the end; {arguments.runs} rounds\n")
    print(report(costs, memory))
    flat = [{"path": key[0], "mode": key[1], **cost._asdict()} for key, each in costs.items() for cost in each]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(flat))
    if arguments.plot:
        from plot import draw

        draw(flat, arguments.plot, f"{machine()}; {arguments.runs} rounds")


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cc = "with a C compiler" if shutil.which("cc") else "without a C compiler"
    return f"{os.cpu_count()} × {model}, Linux {platform.release()}, CPython {platform.python_version()}, {cc}"


if __name__ == "__main__":
    main()
