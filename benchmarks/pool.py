"""Compare resident servers in turns, in one run: several settings of the worker pool, or several installations.

Usage: python benchmarks/pool.py [--rounds N] [--burst N] NAME=COMMAND ...

COMMAND is an interpreter that has cnisdk and the plugins installed, behind settings of the environment, and in front of
options of `cnisdk serve`, such as `4="LC_ALL=C python --ready 4"`. Each server is started anew in each round, on one
throw-away host (cnisdk.testing.Sandbox), and does:

start      seconds of CPU until it is ready
isolated   bridge ADD and DEL in turn, with pauses: the first ten ADDs, and the median of thirty later ones
loop       the same without pauses: the median ADD; CPU of each ADD or DEL
burst      so many bridge ADDs at once: until the last is answered; CPU in all; the largest size during another one.
           When the machine is busy with other things, shims run some of the requests, at ten times the cost
rest       the size of server and workers five seconds later

Sizes are proportional (PSS), in MiB. Times are in milliseconds; CPU includes the shim's. A table gives medians over the
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from _piped import Child, Children
from processes import check, process_tree_cpu, process_tree_memory

from cnisdk.testing import Sandbox


class Variant(NamedTuple):
    """A server to compare."""

    name: str
    environ: dict[str, str]
    python: str
    options: list[str]
    directory: Path

    @classmethod
    def parse(cls, text: str, directory: Path) -> Variant:
        name, _, command = text.partition("=")
        words = shlex.split(command)
        number = next(at for at, word in enumerate(words) if "=" not in word)
        environ = dict(word.split("=", 1) for word in words[:number])
        return cls(name, environ, words[number], words[number + 1 :], directory / name)

    @property
    def command(self) -> list[str]:
        return [self.python, "-I", "-m", "cnisdk"]

    def install(self) -> None:
        where = ["--dest", str(self.directory / "bin"), "--thick", "--directory", str(self.directory / "run")]
        argv = [*self.command, "install", "bridge", "host-local", *where]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    def start(self) -> subprocess.Popen[bytes]:
        argv = [*self.command, "serve", "--directory", str(self.directory / "run"), *self.options]
        server = subprocess.Popen(argv, env={**os.environ, **self.environ}, stderr=subprocess.DEVNULL)
        asking = [*self.command, "serve", "--directory", str(self.directory / "run"), "--status"]
        while subprocess.run(asking, capture_output=True, check=False).returncode:
            time.sleep(0.05)
        return server


class Bench:
    """Requests to the plugins of a variant."""

    def __init__(self, variant: Variant) -> None:
        self.variant, self.alone = variant, 0
        subnet = {"type": "host-local", "dataDir": f"{variant.directory}/leases", "subnet": "10.9.0.0/16"}
        conf = {"cniVersion": "1.0.0", "name": "pool", "type": "bridge", "bridge": "pool0", "ipam": subnet}
        self.stdin = json.dumps(conf).encode()

    def child(self, verb: str, number: int) -> Child:
        directory = str(self.variant.directory / "bin")
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"c{number}",
            "CNI_NETNS": f"/run/netns/c{number}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": directory,
        }
        return Child([f"{directory}/bridge"], environ, self.stdin)

    def one(self, verb: str, number: int = 0) -> tuple[float, float]:
        """Return wall time and CPU of a request."""
        child = Children(self.child(verb, number)).wait()
        if child.status:
            raise SystemExit(f"{self.variant.name}: {verb} failed: {child.printed!r} {child.said!r}")
        if b"instead" in child.said:
            raise SystemExit(f"{self.variant.name}: {verb} did not reach the server: {child.said!r}")
        return child.cost.seconds * 1000, child.cost.cpu * 1000

    def many(self, verb: str, count: int) -> float:
        """Start so many at once; return the CPU of their own processes."""
        children = Children()
        for number in range(count):
            children.add(self.child(verb, number))
        ended = []
        while children:
            ended.append(children.wait())
        self.alone += sum(b"instead" in child.said for child in ended)
        return sum(check(child).cpu for child in ended) * 1000


def round_of(variant: Variant, burst: int) -> dict[str, float]:
    """Start a server, and measure it."""
    bench, found = Bench(variant), {}
    server = variant.start()
    try:
        found["start, CPU"] = process_tree_cpu(server.pid) * 1000
        time.sleep(1)
        adds, works = [], []
        for _ in range(40):
            time.sleep(0.06)
            before = process_tree_cpu(server.pid)
            seconds, cpu = bench.one("ADD")
            time.sleep(0.06)
            adds.append(seconds)
            works.append(cpu + (process_tree_cpu(server.pid) - before) * 1000)
            bench.one("DEL")
        found["isolated"], found["isolated, CPU"] = statistics.median(adds[10:]), statistics.median(works[10:])
        found["first ten, slowest"], found["first ten, most CPU"] = max(adds[:10]), max(works[:10])
        found["first ten, median CPU"] = statistics.median(works[:10])
        before, adds = process_tree_cpu(server.pid), []
        cpu = 0.0
        for _ in range(60):
            seconds, own = bench.one("ADD")
            adds.append(seconds)
            cpu += own + bench.one("DEL")[1]
        found["loop"] = statistics.median(adds)
        found["loop, CPU"] = (cpu + (process_tree_cpu(server.pid) - before) * 1000) / 120
        for name in ("burst, first", "burst"):
            before, start = process_tree_cpu(server.pid), time.perf_counter()
            cpu = bench.many("ADD", burst)
            found[name] = (time.perf_counter() - start) * 1000
            found[f"{name}, CPU"] = cpu + (process_tree_cpu(server.pid) - before) * 1000
            bench.many("DEL", burst)
            time.sleep(1.5)
        found["bursts, run by shims"] = bench.alone
        sizes, over = [0], threading.Event()

        def watch() -> None:
            while not over.is_set():
                sizes.append(process_tree_memory(server.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        bench.many("ADD", burst)
        bench.many("DEL", burst)
        over.set()
        watcher.join()
        found["burst, MiB"] = max(sizes) / 1024
        time.sleep(5)
        found["rest, MiB"] = process_tree_memory(server.pid) / 1024
        found["rest, workers"] = len(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())
    finally:
        server.terminate()
        server.wait()
    return found


def work(variants: list[Variant], rounds: int, burst: int) -> dict[str, list[dict[str, float]]]:
    """Run it all; called on the throw-away host."""
    for number in range(burst):
        subprocess.run(["ip", "netns", "add", f"c{number}"], check=True)
    found: dict[str, list[dict[str, float]]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else variants[::-1]:
            found[variant.name].append(round_of(variant, burst))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="servers of each kind (default %(default)s)")
    parser.add_argument("--burst", type=int, default=50, help="requests at once (default %(default)s)")
    parser.add_argument("variants", nargs="+", metavar="NAME=COMMAND")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Sandbox() as host:
        variants = [Variant.parse(text, Path(directory)) for text in arguments.variants]
        for variant in variants:
            variant.install()
        found = host.call(work, variants, arguments.rounds, arguments.burst)
    print(f"| | {' | '.join(found)} |\n|---|{'--:|' * len(found)}")
    for what in next(iter(found.values()))[0]:
        cells = [f"{statistics.median(each[what] for each in rounds):.1f}" for rounds in found.values()]
        print(f"| {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
