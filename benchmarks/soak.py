"""Run many requests on a resident server, and kill it many times.

The exit status is 1 if anything grows, fails or leaks.

Usage: python benchmarks/soak.py [--requests N] [--flight N] [--loops N] [--rounds N] [--kills N]

First, requests to all types of plugins that need no daemon of their own, in mixed order through one server, a few at a
time, while its memory, descriptors, processes and latency are looked at again and again. Every answer is compared with
that of a fresh process: before, launchers have run each sequence of requests once. Only hardware addresses may differ.
Then loops of bridge ADD and DEL side by side, during which the server is killed (SIGKILL) and started again. Everything
happens on a throw-away host (cnisdk.testing.Sandbox). The shims are those of `cnisdk install --thick`, started with
pipes, as container runtimes do, from a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
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
from cnisdk._thick.server import DEFAULT_READY, ask_status
from cnisdk.testing import Sandbox

CNISDK = [os.path.abspath(sys.executable), "-I", "-m", "cnisdk"]
START = [*CNISDK, "serve", "--background"]

# Samples that are compared, and how much more the late ones may have: pages may be touched for the first time late.
MAY_GROW = {"rss": 1024, "pss": 8192, "descriptors": 2, "workers": 2, "threads": 0, "zombies": 0, "files": 2}
PARTS = 20
MAY_SLOW_DOWN = 3.0  # times; the machine has other things to do, too


class Sample(NamedTuple):
    """The server at rest after so many requests.

    Attributes:
        requests: How many have ended.
        rss: Resident set size of the server, in KiB.
        pss: Proportional set size of the server and its workers, in KiB.
        descriptors: Open ones of the server and its workers, for each process. They would hold namespaces, too.
        workers: Those that wait.
        threads: Of the server and its workers, beyond one for each process.
        zombies: Processes that have ended, and for which the server has not waited.
        files: In its directory.
        p50: Median of a request, from before its shim is started until that has ended, in milliseconds.
        p95: 95th percentile.
        most: The longest.
        rate: Requests a second.
    """

    requests: int
    rss: int
    pss: int
    descriptors: float
    workers: int
    threads: int
    zombies: int
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


def state_of(pid: int) -> str:
    """Return the letter that the kernel shows for the state of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def look(pid: int, requests: int, times: list[float], seconds: float) -> Sample:
    """Look at a server when it has come to rest."""
    deadline, now = time.monotonic() + 10, weigh(pid)
    while len(now) - 1 > DEFAULT_READY and time.monotonic() < deadline:
        time.sleep(0.2)
        now = weigh(pid)
    alive = [each for each in now if state_of(each) != "Z"]
    return Sample(
        requests,
        memory(pid, "Rss"),
        sum(now.values()),
        statistics.mean(len(os.listdir(f"/proc/{each}/fd")) for each in alive),
        len(now) - 1,
        sum(len(os.listdir(f"/proc/{each}/task")) - 1 for each in alive),
        len(now) - len(alive),
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


# Chained plugins, and what they are configured with; they follow ptp.
CHAINED: dict[str, dict[str, Any]] = {
    "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000},
    "firewall": {},
    "portmap": {},
    "sbr": {},
    "tuning": {"sysctl": {"net.ipv4.conf.eth0.arp_notify": "1"}},
    "vrf": {"vrfname": "soak"},
}

# Other plugins. `{slot}` stands for the number of the container; `ipam` for an address of its own.
ALONE: dict[str, dict[str, Any]] = {
    "bridge": {"bridge": "soak-{slot}", "isGateway": True, "ipMasq": True, "ipam": {}},
    "dhcp": {"ipam": {"type": "dhcp", "daemonSocketPath": "/run/nowhere.sock"}},
    "dummy": {"ipam": {}},
    "flannel": {"subnetFile": "/run/nowhere.env"},
    "host-device": {"device": "device{slot}", "ipam": {}},
    "host-local": {"ipam": {}},
    "ipvlan": {"master": "wire", "ipam": {}},
    "loopback": {},
    "macvlan": {"master": "wire", "ipam": {}},
    "ptp": {"ipam": {}},
    "static": {"ipam": {"type": "static", "addresses": [{"address": "10.8.{slot}.2/24"}]}},
    "tap": {"ipam": {}},
    "vlan": {"master": "wire", "vlanId": "{slot}", "ipam": {}},
}

Answer = tuple[int, str]
"""Wait status and output of a request, without what may differ."""


class Step(NamedTuple):
    """A request of a sequence.

    Attributes:
        verb: The verb.
        conf: The network configuration.
        follows: The request is given the result of the last successful ADD.
    """

    verb: str
    conf: dict[str, Any]
    follows: bool = False


class Slot:
    """A container, to which the requests of one sequence after another are sent.

    Each sequence leaves nothing, so that it gets the same answers each time.
    """

    def __init__(self, number: int) -> None:
        self.number, self.container = number, f"s{number}"
        self.sequences = {type_: self._sequence(type_) for type_ in (*ALONE, *CHAINED)}
        self.expected: dict[str, list[Answer]] = {}

    def _sequence(self, type_: str) -> list[Step]:
        ipam = {"type": "host-local", "ranges": [[{"subnet": f"10.9.{self.number}.0/30"}]]}
        first = "ptp" if type_ in CHAINED else type_
        text = json.dumps({"cniVersion": "1.0.0", "name": f"{first}{self.number}", "type": first, **ALONE[first]})
        text = text.replace('"{slot}"', str(self.number + 1)).replace("{slot}", str(self.number))
        conf = json.loads(text.replace('"ipam": {}', f'"ipam": {json.dumps(ipam)}'))
        if type_ not in CHAINED:
            return [Step("ADD", conf), Step("CHECK", conf, follows=True), Step("DEL", conf, follows=True)]
        ports = [{"hostPort": 9000 + self.number, "containerPort": 80, "protocol": "tcp"}]
        chained = {**conf, "type": type_, **CHAINED[type_], "runtimeConfig": {"portMappings": ports}}
        both = [Step("ADD", conf), Step("ADD", chained, follows=True), Step("CHECK", chained, follows=True)]
        return [*both, Step("DEL", chained, follows=True), Step("DEL", conf, follows=True)]

    def start(self, plugins: Path, step: Step, result: dict[str, Any]) -> Child:
        """Send a request."""
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": step.verb,
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": f"/run/netns/{self.container}",
            "CNI_IFNAME": "lo" if step.conf["type"] == "loopback" else "eth0",
            "CNI_PATH": str(plugins),
        }
        conf = {**step.conf, "prevResult": result} if step.follows and result else step.conf
        return Child([str(plugins / step.conf["type"])], environ, json.dumps(conf).encode())


def answer_of(child: Child, plugins: Path) -> Answer:
    text = f"{child.printed.decode()}\0{child.said.decode(errors='replace')}".replace(str(plugins), "")
    return child.status, re.sub("([0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC", text)


def result_of(child: Child, step: Step, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result that later requests of a sequence are given."""
    return json.loads(child.printed) if step.verb == "ADD" and not child.status else result


class Mixture:
    """Sequences in mixed order, one in each slot at a time, whose answers are known."""

    def __init__(self, plugins: Path, alone: Path, slots: int) -> None:
        self.plugins, self.random = plugins, random.Random(16)
        self.slots = [Slot(number) for number in range(slots)]
        self.failures: list[str] = []
        for slot in self.slots:
            subprocess.run(["ip", "netns", "add", slot.container], check=True)
            add_veth(f"device{slot.number}", f"device-peer{slot.number}")
            for name, steps in slot.sequences.items():
                answers, result = [], {}
                for step in steps:
                    child = Children(slot.start(alone, step, result)).wait()
                    result = result_of(child, step, result)
                    answers.append(answer_of(child, alone))
                slot.expected[name] = answers
        first = {name: answers[0 if name in ALONE else 1] for name, answers in self.slots[0].expected.items()}
        failing = sorted(name for name, (status, _) in first.items() if status)
        print(f"{len(ALONE) + len(CHAINED)} types; ADD of these is an error here: {', '.join(failing) or 'none'}")

    def run(self, requests: int) -> list[float]:
        """Run at least so many requests, and return the time of each."""
        running, at = Children(), {}
        times: list[float] = []
        for slot in self.slots:
            self._begin(slot, running, at)
        while running:
            child = running.wait()
            times.append(child.cost.seconds)
            slot, name, number, result = at.pop(child.pid)
            step = slot.sequences[name][number]
            got, wanted = answer_of(child, self.plugins), slot.expected[name][number]
            if got != wanted and "in a process of its own instead" not in got[1]:
                self.failures.append(f"{name}, {step.verb} of {step.conf['type']}: {got}, not {wanted}")
            result = result_of(child, step, result)
            if number + 1 < len(slot.sequences[name]):
                child = slot.start(self.plugins, slot.sequences[name][number + 1], result)
                at[child.pid] = (slot, name, number + 1, result)
                running.add(child)
            elif len(times) + len(running) < requests:
                self._begin(slot, running, at)
        return times

    def _begin(self, slot: Slot, running: Children, at: dict[int, tuple[Slot, str, int, dict[str, Any]]]) -> None:
        name = self.random.choice(list(slot.sequences))
        child = slot.start(self.plugins, slot.sequences[name][0], {})
        at[child.pid] = (slot, name, 0, {})
        running.add(child)


def add_veth(name: str, peer: str) -> None:
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", peer], check=True)
    for each in (name, peer):
        subprocess.run(["ip", "link", "set", each, "up"], check=True)


def many_requests(plugins: Path, alone: Path, requests: int, flight: int) -> list[str]:
    """Run the requests, print the samples, and return what is wrong."""
    add_veth("wire", "wire-peer")
    mixture = Mixture(plugins, alone, flight)
    links = {name for _, name in socket.if_nameindex()}
    samples: list[Sample] = []
    units = {"rss": "RSS KiB", "pss": "all PSS KiB", "p50": "p50 ms", "most": "longest", "rate": "per second"}
    print(f"\n| {' | '.join(units.get(name, name) for name in Sample._fields)} |")
    print(f"|{'--:|' * len(Sample._fields)}")
    ended = 0
    with server() as pid:
        for _ in range(PARTS):
            begun = time.perf_counter()
            times = mixture.run(requests // PARTS)
            took = time.perf_counter() - begun
            ended += len(times)
            samples.append(look(pid, ended, times, took))
            cells = (f"{each:.1f}" if isinstance(each, float) else str(each) for each in samples[-1])
            print(f"| {' | '.join(cells)} |", flush=True)
        status = ask_status(DIRECTORY)
    counts = {key: status[key] for key in ("requests", "errors", "fallbacks", "declined", "died")}
    print(f"\n{ended} requests ended; the server counted {counts}")
    wrong = [f"{len(mixture.failures)} answers differ", *mixture.failures[:5]] if mixture.failures else []
    # A shim that waits in vain, on a machine that is busy with other things, kills the worker and does without.
    if status["requests"] + status["fallbacks"] != ended or status["died"] > status["fallbacks"]:
        wrong.append("the server's counts are not those of the requests")
    if status["fallbacks"] > ended // 100:
        wrong.append(f"{status['fallbacks']} requests did not reach the server in time")
    if left := [path for path in Path("/var/lib/cni/networks").glob("*/*") if path.name[0].isdigit()]:
        wrong.append(f"{len(left)} leases are left")
    if more := {name for _, name in socket.if_nameindex()} - links:
        wrong.append(f"{len(more)} links are left: {', '.join(sorted(more)[:5])}")
    for slot in mixture.slots:
        for name in (f"device{slot.number}", f"soak-{slot.number}"):
            subprocess.run(["ip", "link", "delete", name], check=True)
    subprocess.run(["ip", "link", "delete", "wire"], check=True)
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
            # On a busy machine a server starts slowly. Then there are more rounds, until it was killed so many times.
            if verb == "ADD" or left[container] > 0 or killed < kills:
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
    if found := leases():
        wrong.append(f"{len(found)} leases are left")
    if links := sorted({name for _, name in socket.if_nameindex()} - {"lo", "soak0"}):
        wrong.append(f"{len(links)} links are left: {', '.join(links[:5])}")
    return wrong


def work(plugins: Path, alone: Path, arguments: argparse.Namespace) -> list[str]:
    """Run the whole benchmark, on the throw-away host."""
    wrong = many_requests(plugins, alone, arguments.requests, arguments.flight)
    return wrong + many_deaths(plugins, arguments.loops, arguments.rounds, arguments.kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="of all types (default %(default)s)")
    parser.add_argument("--flight", type=int, default=4, help="of these at a time (default %(default)s)")
    parser.add_argument("--loops", type=int, default=32, help="of bridge ADD and DEL, side by side")
    parser.add_argument("--rounds", type=int, default=20, help="of each loop (default %(default)s)")
    parser.add_argument("--kills", type=int, default=5, help="of the server during these (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Sandbox() as host:
        plugins, alone = Path(directory, "resident"), Path(directory, "one-shot")
        for where, options in ((plugins, ["--thick"]), (alone, ["--no-server"])):
            install = [*CNISDK, "install", *ALONE, *CHAINED, *options, "--dest", str(where)]
            subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        wrong = host.call(work, plugins, alone, arguments)
    for problem in wrong:
        print(f"WRONG: {problem}")
    if wrong:
        sys.exit(1)
    print("nothing grew, nothing failed, nothing is left")


if __name__ == "__main__":
    main()
