"""Measure dhcp with dnsmasq beside the Go plugin, each with its daemon, in turns in one run; and a daemon's memory.

Usage: python benchmarks/dhcp.py [--runs N] [--leases N] [--reference DIR]

Everything happens on a throw-away host (cnisdk.testing.Sandbox), with dnsmasq in a namespace at the other end of a
cable. The modes are those of processes.py: Go's plugin, ours as launchers, and ours as shims before a resident server.

- ADD and DEL of the IPAM plugin alone, whose interface is there; and of macvlan with it. Times are those that a runtime
  waits. Of an ADD of ours, 20 ms may be the wait for hosts that object to the address (RFC 5227), which the Go plugin
  does not have: `cnisdk dhcp --probe 0` is measured as well, by a daemon of its own.
- The memory of a daemon with many leases, each in a namespace of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from _piped import run

from cnisdk.testing import Sandbox

PYTHON = os.path.abspath(sys.executable)
NETWORK = """
ip netns add server
ip link add up0 type veth peer name eth0 netns server
ip link set up0 up
ip -n server addr add 10.3.0.1/16 dev eth0
ip -n server link set eth0 up
mkdir -p /run/cni
"""
DNSMASQ = (
    "ip netns exec server dnsmasq --no-daemon --conf-file=/dev/null --port=0 --interface=eth0 --bind-interfaces "
    "--no-ping --dhcp-authoritative --pid-file= --dhcp-leasefile=/run/leases --dhcp-range=10.3.0.2,10.3.15.250,1h "
    "--dhcp-lease-max=4000"
)
BUDGET = 1.2
GO, ONE_SHOT, RESIDENT, UNPROBED = "Go", "one-shot", "resident", "resident, no probe"


class Mode(NamedTuple):
    """A way to run the plugins.

    Attributes:
        name: Its name.
        directory: Directory of the plugins.
        socket: Socket of their daemon.
    """

    name: str
    directory: str
    socket: str

    @property
    def namespace(self) -> str:
        """Name of the namespace of its container."""
        return "bench-" + "".join(letter for letter in self.name if letter.isalpha())


def shell(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def running(*argv: str, until: str) -> Iterator[int]:
    """Run a daemon; yield its process id when a file is there."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
        try:
            deadline = time.monotonic() + 30
            while not os.path.exists(until):
                if time.monotonic() > deadline or one.poll() is not None:
                    raise SystemExit(f"{' '.join(argv)} does not come up")
                time.sleep(0.01)
            yield one.pid
        finally:
            one.send_signal(signal.SIGTERM)


def ask(mode: Mode, plugin: str, verb: str, container: str, namespace: str) -> float:
    """Run a plugin as a runtime does, and return the milliseconds until its answer."""
    ipam = {"type": "dhcp", "daemonSocketPath": mode.socket}
    conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "bench", "type": plugin, "ipam": ipam}
    if plugin == "macvlan":
        conf["master"] = "up0"
    environ = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": f"/run/netns/{namespace}",
        "CNI_IFNAME": "eth1" if plugin == "macvlan" else "eth0",
        "CNI_PATH": mode.directory,
    }
    child = run([f"{mode.directory}/{plugin}"], environ, json.dumps(conf).encode())
    if child.status:
        raise SystemExit(f"{mode.name} {plugin} {verb} failed\n{(child.printed + child.said).decode()}")
    return child.cost.seconds * 1000


def give_interface(namespace: str) -> None:
    """Make a namespace with an interface on the wire."""
    shell(
        f"ip netns add {namespace}; ip link add m0 link up0 type macvlan mode bridge"
        f"; ip link set m0 netns {namespace} name eth0; ip -n {namespace} link set eth0 up"
    )


def compare(modes: list[Mode], runs: int) -> str:
    """Measure ADD and DEL of all modes in turns."""
    times: dict[tuple[str, str], list[float]] = {}
    for mode in modes:
        give_interface(mode.namespace)
    for number in range(runs + 1):  # the first one compiles
        for plugin in ("dhcp", "macvlan"):
            for mode in modes:
                for verb in ("ADD", "DEL"):
                    took = ask(mode, plugin, verb, f"{mode.namespace}-{number}", mode.namespace)
                    if number:
                        times.setdefault((f"{plugin} {verb}", mode.name), []).append(took)
    paths = list(dict.fromkeys(path for path, _ in times))
    lines = [f"| path | {' | '.join(mode.name for mode in modes)} |", f"|---|{'--:|' * len(modes)}"]
    for path in paths:
        medians = [statistics.median(times[path, mode.name]) for mode in modes]
        cells = [f"{each:.1f} ({each / medians[0]:.2f} x)" for each in medians]
        lines.append(f"| {path} | {' | '.join(cells)} |")
    if modes[0].name == GO:
        for path in ("dhcp ADD", "macvlan ADD"):
            medians = [statistics.median(times[path, name]) for name in (GO, RESIDENT)]
            ratio = medians[1] / medians[0]
            lines.append(f"\n{path}, resident: {ratio:.2f} x Go's; budget {BUDGET}{' (over)' * (ratio > BUDGET)}")
    return "\n".join(lines)


def fill(mode: Mode, leases: int, pid: int) -> str:
    """Let a daemon keep many leases, and say what it holds then."""
    names = [f"{mode.namespace}-{number}" for number in range(leases)]
    before = status(pid, "VmRSS")
    for name in names:
        give_interface(name)
        ask(mode, "dhcp", "ADD", name, name)
    after, threads = status(pid, "VmRSS"), status(pid, "Threads")
    for name in names:
        ask(mode, "dhcp", "DEL", name, name)
        shell(f"ip netns del {name}")
    held = f"{after / 1024:.1f} MiB resident, {before / 1024:.1f} before; {threads} threads"
    return f"{mode.name}, daemon with {leases} leases: {held}"


def status(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


def work(modes: list[Mode], runs: int, leases: int) -> str:
    """Run it all; called on the throw-away host."""
    shell(NETWORK)
    pids: dict[str, int] = {}
    ours = [PYTHON, "-I", "-m", "cnisdk"]
    with (
        running(*DNSMASQ.split(), until="/run/leases"),
        running(*ours, "serve", until="/run/cnisdk/server.sock"),
    ):
        daemons = []
        try:
            for mode in modes:
                if mode.name == ONE_SHOT:
                    continue  # the daemon of the resident mode
                argv = [*ours, "dhcp", "--socket", mode.socket]
                if mode.name == GO:
                    argv = [f"{mode.directory}/dhcp", "daemon", "-socketpath", mode.socket]
                daemon = running(*argv, *(["--probe", "0"] if mode.name == UNPROBED else []), until=mode.socket)
                pids[mode.name] = daemon.__enter__()
                daemons.append(daemon)
            report = compare(modes, runs)
            for mode in modes:
                if leases and mode.name in (GO, RESIDENT):
                    report += f"\n\n{fill(mode, leases, pids[mode.name])}"
        finally:
            for daemon in daemons:
                daemon.__exit__(None, None, None)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="rounds (default %(default)s)")
    parser.add_argument("--leases", type=int, default=100, help="leases of a daemon (default %(default)s)")
    parser.add_argument("--reference", default=os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        install = [PYTHON, "-I", "-m", "cnisdk", "install", "dhcp", "macvlan", "--dest"]
        shot, thick = f"{directory}/one-shot", f"{directory}/resident"
        subprocess.run([*install, shot, "--no-server"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*install, thick, "--thick"], check=True, stdout=subprocess.DEVNULL)
        modes = [
            Mode(ONE_SHOT, shot, "/run/cni/dhcp.sock"),
            Mode(RESIDENT, thick, "/run/cni/dhcp.sock"),
            Mode(UNPROBED, thick, "/run/cni/unprobed.sock"),
        ]
        if os.path.exists(f"{arguments.reference}/dhcp"):
            modes.insert(0, Mode(GO, arguments.reference, "/run/cni/go.sock"))
        with Sandbox() as host:
            print(host.call(work, modes, arguments.runs, arguments.leases))
    print(f"\nload {os.getloadavg()[0]:.1f} at the end; {arguments.runs} rounds")


if __name__ == "__main__":
    main()
