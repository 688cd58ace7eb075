"""Run many requests on a resident server, and kill it many times.

The exit status is 1 if anything grows, fails or leaks.

Usage: python benchmarks/soak.py [--requests N] [--flight N] [--loops N] [--rounds N] [--kills N]

First, host-local ADD and DEL through one server, a few at a time, while its memory, descriptors, processes and
latency are looked at again and again. Then loops of bridge ADD and DEL side by side, during which the server is killed
(SIGKILL) and started again. Everything happens on a throw-away host (cnisdk.testing.Sandbox). The shims are those of
`cnisdk install --thick`, started with pipes, as container runtimes do, from a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from _percentile import percentile
from _piped import Child, Children

from cnisdk._thick.protocol import DIRECTORY
from cnisdk._thick.server import ask_status
from cnisdk.testing import Sandbox

CNISDK = [os.path.abspath(sys.executable), "-I", "-m", "cnisdk"]
START = [*CNISDK, "serve", "--background"]

# Samples that are compared, and how much more the late ones may have: pages may be touched for the first time late.
MAY_GROW = {"rss": 1024, "pss": 8192, "descriptors": 2, "workers": 2, "files": 2}
PARTS = 20
MAY_SLOW_DOWN = 3.0  # times; the machine has other things to do, too


class Sample(NamedTuple):
    """The server at rest after so many requests.

    Attributes:
        requests: How many have ended.
        rss: Resident set size of the server, in KiB.
        pss: Proportional set size of the server and its workers, in KiB.
        descriptors: Open ones of the server.
        workers: Those that wait.
        files: In its directory.
        p50: Median of a request, from before its shim is started until that has ended, in milliseconds.
        p95: 95th percentile.
        most: The longest.
        rate: Requests a second.
    """

    requests: int
    rss: int
    pss: int
    descriptors: int
    workers: int
    files: int
    p50: float
    p95: float
    most: float
    rate: float


class Spawner:
    """Starter of shims, which waits for the one that ends first."""

    def __init__(self, plugin: Path, conf: dict[str, Any]) -> None:
        self.plugin, self.path = str(plugin), str(plugin.parent)
        self.conf = json.dumps(conf).encode()
        self.failures: list[str] = []
        self.alone = 0
        self.running = Children()

    def start(self, verb: str, container: str) -> None:
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self.path,
        }
        self.running.add(Child([self.plugin], environ, self.conf))

    def wait(self) -> tuple[str, str, float]:
        """Return verb, container and seconds of a shim that ended."""
        child = self.running.wait()
        verb, container = child.environ["CNI_COMMAND"], child.environ["CNI_CONTAINERID"]
        self.alone += b"in a process of its own instead" in child.said
        if child.status:
            told = " ".join((child.printed + child.said).decode(errors="replace").split())
            self.failures.append(f"{verb} {container}: wait status {child.status:#x} {told}")
        return verb, container, child.cost.seconds


def configuration(plugin: str) -> dict[str, Any]:
    ipam = {"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": [[{"subnet": "10.9.0.0/16"}]]}
    return {"cniVersion": "1.0.0", "name": "soak", "type": plugin, "bridge": "soak0", "isGateway": True, "ipam": ipam}


def leases() -> list[str]:
    """Return the files of leased addresses."""
    directory = Path("/var/lib/cni/networks/soak")
    return [name for name in os.listdir(directory) if name[0].isdigit()] if directory.exists() else []


def memory(pid: int, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # a worker that just ended
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def weigh(pid: int) -> dict[int, int]:
    """Proportional set size of the server and each worker, in KiB."""
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {each: memory(each, "Pss") for each in (pid, *map(int, workers))}


def look(pid: int, requests: int, times: list[float], seconds: float) -> Sample:
    """Look at a server when it has come to rest."""
    deadline, before, now = time.monotonic() + 5, {}, weigh(pid)
    # Sizes go on changing a little: what other processes share counts.
    while before.keys() != now.keys() and time.monotonic() < deadline:
        time.sleep(0.2)
        before, now = now, weigh(pid)
    return Sample(
        requests,
        memory(pid, "Rss"),
        sum(now.values()),
        len(os.listdir(f"/proc/{pid}/fd")),
        len(now) - 1,
        len(os.listdir(DIRECTORY)),
        percentile(times, 0.5) * 1000,
        percentile(times, 0.95) * 1000,
        max(times) * 1000,
        len(times) / seconds,
    )


@contextmanager
def server() -> Iterator[int]:
    subprocess.run(START, check=True, stderr=subprocess.DEVNULL)
    pid = ask_status(DIRECTORY)["pid"]
    try:
        yield pid
    finally:
        os.kill(ask_status(DIRECTORY)["pid"], signal.SIGTERM)


def many_requests(plugins: Path, requests: int, flight: int) -> list[str]:
    """Run the requests, print the samples, and return what is wrong."""
    spawner = Spawner(plugins / "host-local", configuration("host-local"))
    samples: list[Sample] = []
    print(
        "\n| requests | RSS KiB | all PSS KiB | descriptors | workers | files | p50 ms | p95 | longest | per second |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    ended = 0
    with server() as pid:
        for _ in range(PARTS):
            times, begun = [], time.perf_counter()
            pairs = requests // PARTS // 2
            for number in range(min(flight, pairs)):
                spawner.start("ADD", f"c{number}")
            pairs -= len(spawner.running)
            while spawner.running:
                verb, container, seconds = spawner.wait()
                times.append(seconds)
                if verb == "ADD":
                    spawner.start("DEL", container)
                elif pairs:
                    pairs -= 1
                    spawner.start("ADD", container)
            took = time.perf_counter() - begun
            ended += len(times)
            samples.append(look(pid, ended, times, took))
            cells = (f"{each:.1f}" if isinstance(each, float) else str(each) for each in samples[-1])
            print(f"| {' | '.join(cells)} |", flush=True)
        status = ask_status(DIRECTORY)
    counts = {key: status[key] for key in ("requests", "errors", "fallbacks", "declined", "died")}
    print(f"\n{ended} requests ended; the server counted {counts}")
    wrong = spawner.failures[:5]
    # A shim that waits in vain, on a machine that is busy with other things, kills the worker and does without.
    if status["requests"] + status["fallbacks"] != ended or status["died"] > status["fallbacks"]:
        wrong.append("the server's counts are not those of the requests")
    if status["fallbacks"] > ended // 100:
        wrong.append(f"{status['fallbacks']} requests did not reach the server in time")
    if left := leases():
        wrong.append(f"{len(left)} leases are left")
    return wrong + growth(samples)


def growth(samples: list[Sample]) -> list[str]:
    """Compare the last quarter with the second. In the first, the server still learns."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]

    def middle(part: list[Sample], name: str) -> float:
        return statistics.median(getattr(each, name) for each in part)

    wrong = [
        f"{name} grew from {middle(early, name):.0f} to {middle(late, name):.0f}"
        for name, most in MAY_GROW.items()
        if middle(late, name) - middle(early, name) > most
    ]
    if middle(late, "p50") > MAY_SLOW_DOWN * middle(early, "p50"):
        wrong.append("requests take longer and longer")
    return wrong


def many_deaths(plugins: Path, loops: int, rounds: int, kills: int) -> list[str]:
    """Run ADD and DEL in loops while the server is killed; return what is wrong."""
    spawner = Spawner(plugins / "bridge", configuration("bridge"))
    for number in range(loops):
        subprocess.run(["ip", "netns", "add", f"c{number}"], check=True)
    left = dict.fromkeys((f"c{number}" for number in range(loops)), 2 * rounds)
    total = 2 * rounds * loops
    ended, killed, starting = 0, 0, 0
    with server() as pid:
        for container in left:
            spawner.start("ADD", container)
        while spawner.running:
            verb, container, _ = spawner.wait()
            if starting and os.waitpid(starting, os.WNOHANG)[0]:
                starting, pid = 0, ask_status(DIRECTORY)["pid"]
            ended += 1
            left[container] -= 1
            if left[container]:
                spawner.start("DEL" if verb == "ADD" else "ADD", container)
            if killed < kills and not starting and ended > total * (killed + 1) // (kills + 1):
                os.kill(pid, signal.SIGKILL)
                killed += 1
                starting = os.posix_spawn(START[0], START, dict(os.environ))
        if starting:
            os.waitpid(starting, 0)
    print(
        f"\n{loops} loops, {ended} requests, {killed} times SIGKILL; {spawner.alone} requests were run by their shims"
    )
    wrong = spawner.failures[:5]
    if killed < kills:
        wrong.append(f"the server was killed {killed} times, not {kills}: more rounds, please")
    if found := leases():
        wrong.append(f"{len(found)} leases are left")
    if links := sorted({name for _, name in socket.if_nameindex()} - {"lo", "soak0"}):
        wrong.append(f"{len(links)} links are left: {', '.join(links[:5])}")
    return wrong


def work(plugins: Path, arguments: argparse.Namespace) -> list[str]:
    """Run the whole benchmark, on the throw-away host."""
    wrong = many_requests(plugins, arguments.requests, arguments.flight)
    return wrong + many_deaths(plugins, arguments.loops, arguments.rounds, arguments.kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="of host-local (default %(default)s)")
    parser.add_argument("--flight", type=int, default=4, help="of these at a time (default %(default)s)")
    parser.add_argument("--loops", type=int, default=32, help="of bridge ADD and DEL, side by side")
    parser.add_argument("--rounds", type=int, default=20, help="of each loop (default %(default)s)")
    parser.add_argument("--kills", type=int, default=5, help="of the server during these (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Sandbox() as host:
        plugins = Path(directory, "bin")
        install = [*CNISDK, "install", "bridge", "host-local", "--thick", "--dest", str(plugins)]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        wrong = host.call(work, plugins, arguments)
    for problem in wrong:
        print(f"WRONG: {problem}")
    if wrong:
        sys.exit(1)
    print("nothing grew, nothing failed, nothing is left")


if __name__ == "__main__":
    main()
