"""Simulate the addresses of a large cluster: blocks against one lease for all, and against a key an address.

Usage: python benchmarks/cluster_scale.py [--nodes N] [--pods N] [--write-ms F] [--read-ms F] [--latency-ms F]

A discrete simulation. The engine is a queue: it carries out one write after the other, and reads on a second queue;
each request takes the latency of the network and the disk besides. The three numbers are measured, unless given: on a
real etcd here, with eight clients at once. The designs:

- blocks: what cnisdk-cluster does. A new node joins (2 requests) and claims a block (2); its block is extended (2) when
  a half, three quarters and the rest of it are used up. Everything else is local.
- one lease: what whereabouts does. Each ADD and DEL takes the one lease of the cluster, reads the pool, writes it, and
  gives the lease back; those that find it taken look again after half a second.
- a key an address: what `EtcdStore` with `RoundRobin` does. Each ADD reads its owner, the cursor and counts of keys,
  and compares and swaps the address after the last one; of those that want the same address, one gets it, and the
  others begin again. "spread" is the same with a random address in place of the next one.

Scenarios: all nodes are new and start all their pods at once, ten a second each; then a rolling drain, in which each
node's pods move to others, one node after the other.
"""

import argparse
import heapq
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cluster import CountingClient, EtcdClient, EtcdConf, etcd  # noqa: E402 - beside this file

from cnisdk.ipam.etcdclient import Compare  # noqa: E402

BLOCK, PODS_A_SECOND, RETRY = 64, 10.0, 0.5
# Bytes of a key with its value, as etcd counts them: keys of blocks, nodes, leases with owners.
BLOCK_BYTES, NODE_BYTES, LEASE_BYTES, POOL_ENTRY_BYTES = 130, 90, 260, 150
HORIZON, PATIENCE = 3600.0, 60.0

Process = Generator[Any, Any, None]


class Costs(NamedTuple):
    """Seconds of a request in the engine, and on the way there and back."""

    write: float
    read: float
    latency: float


class Engine:
    """The engine, and the clock of the simulation."""

    def __init__(self, costs: Costs) -> None:
        self.now, self.costs = 0.0, costs
        self.free = {"write": 0.0, "read": 0.0}
        self.counts = {"write": 0, "read": 0}
        self.seconds: dict[int, int] = {}
        self._queue: list[tuple[float, int, Process]] = []
        self._number = 0

    def at(self, when: float, process: Process) -> None:
        self._number += 1
        heapq.heappush(self._queue, (when, self._number, process))

    def ask(self, kind: str, cost: float = 1.0) -> float:
        """Return when the answer to a request that is sent now is there."""
        start = max(self.now + self.costs.latency / 2, self.free[kind])
        self.free[kind] = start + cost * getattr(self.costs, kind)
        self.counts[kind] += 1
        second = int(self.now)
        self.seconds[second] = self.seconds.get(second, 0) + 1
        return self.free[kind] + self.costs.latency / 2

    def run(self, until: float) -> None:
        """Run the processes. Each yields the time at which it goes on."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, process = heapq.heappop(self._queue)
            when = next(process, None)
            if when is not None:
                self.at(when, process)


class Design:
    """A way to keep addresses. ADD and DEL are processes that end when the answer is there."""

    def __init__(self, engine: Engine, nodes: int) -> None:
        self.engine = engine
        self.attempts = 0

    def add(self, node: int) -> Process:
        raise NotImplementedError

    def delete(self, node: int) -> Process:
        raise NotImplementedError

    def size(self, pods: int) -> int:
        """Return the bytes that etcd holds."""
        raise NotImplementedError


class Blocks(Design):
    def __init__(self, engine: Engine, nodes: int) -> None:
        super().__init__(engine, nodes)
        self.used, self.had, self.joined = [0] * nodes, [0] * nodes, [False] * nodes
        self.busy: dict[int, float] = {}
        self.blocks = [0] * nodes

    def add(self, node: int) -> Process:
        while self.used[node] >= self.had[node]:
            if self.busy.get(node, 0.0) > self.engine.now:  # another process of the node asks
                yield self.busy[node]
                continue
            requests = [] if self.joined[node] else ["read", "write"]
            self.joined[node] = True
            if self.had[node] < self.blocks[node] * BLOCK:
                requests += ["read", "write"]
                more = BLOCK // 4
            else:
                requests += ["read", "write"]
                self.blocks[node] += 1
                more = BLOCK // 2
            for kind in requests:
                self.attempts += kind == "write"
                when = self.engine.ask(kind)
                self.busy[node] = when
                yield when
            self.had[node] += more
            self.busy[node] = 0.0
        self.used[node] += 1

    def delete(self, node: int) -> Process:
        self.used[node] -= 1
        if self.blocks[node] > 1 and self.used[node] <= (self.blocks[node] - 1) * BLOCK // 2:
            for kind in ("read", "write"):
                yield self.engine.ask(kind)
            self.blocks[node] -= 1
            self.had[node] = min(self.had[node], self.blocks[node] * BLOCK)

    def size(self, pods: int) -> int:
        return sum(self.blocks) * BLOCK_BYTES + sum(self.joined) * NODE_BYTES


class OneLease(Design):
    """The holder of the lease reads and writes the pool, whose size grows with the addresses in it."""

    def __init__(self, engine: Engine, nodes: int) -> None:
        super().__init__(engine, nodes)
        self.held_until, self.waiting, self.entries = 0.0, 0, 0

    def _change(self, step: int) -> Process:
        engine = self.engine
        self.waiting += 1
        while True:
            self.attempts += 1
            yield engine.ask("read")
            if self.held_until <= engine.now:
                self.held_until = float("inf")
                break
            # With thousands that wait, each looks seldom here; those that do stand for the others.
            yield engine.now + RETRY * (0.8 + 0.4 * random.random()) * max(1.0, self.waiting / 200)
        self.waiting -= 1
        heavy = 1 + self.entries * POOL_ENTRY_BYTES / 100_000  # a request of 100 KB costs about twice a small one
        for kind, cost in (("write", 1.0), ("read", heavy), ("write", heavy), ("write", 1.0)):
            yield engine.ask(kind, cost)
        self.entries += step
        self.held_until = engine.now

    def add(self, node: int) -> Process:
        return self._change(1)

    def delete(self, node: int) -> Process:
        return self._change(-1)

    def size(self, pods: int) -> int:
        return self.entries * POOL_ENTRY_BYTES


class KeyAnAddress(Design):
    spread = False

    def __init__(self, engine: Engine, nodes: int) -> None:
        super().__init__(engine, nodes)
        self.cursor, self.taken = 0, set[int]()

    def add(self, node: int) -> Process:
        engine, pause = self.engine, 0.0005
        while True:
            self.attempts += 1
            for _ in range(3):  # its owner, under both names, and the cursor
                yield engine.ask("read")
            wanted = random.randrange(1 << 20) if self.spread else self.cursor
            yield engine.ask("read")  # the count that shows that it is free
            when = engine.ask("write")
            if wanted not in self.taken and (self.spread or wanted == self.cursor):
                self.taken.add(wanted)  # the engine serves writes in the order in which they come
                self.cursor = wanted + 1
                yield when
                return
            yield when
            yield engine.now + pause
            pause = min(2 * pause, 0.05)

    def delete(self, node: int) -> Process:
        for kind in ("read", "read", "write"):
            yield self.engine.ask(kind)

    def size(self, pods: int) -> int:
        return len(self.taken) * LEASE_BYTES


class KeyAnAddressSpread(KeyAnAddress):
    spread = True


DESIGNS: dict[str, type[Design]] = {
    "blocks": Blocks,
    "one lease": OneLease,
    "a key an address": KeyAnAddress,
    "the same, spread": KeyAnAddressSpread,
}


class Figures(NamedTuple):
    """Figures of a scenario.

    Attributes:
        done: Share of the operations that ended within an hour.
        in_time: Share of those that ended within a minute, as runtimes want it.
        seconds: When the last one ended.
        requests: Requests to the engine.
        peak: Requests in the busiest second.
        p50: Seconds that an operation waited for the engine; the median.
        p99: The same, of the slowest hundredth.
        size: Bytes in the engine.
    """

    done: float
    in_time: float
    seconds: float
    requests: int
    peak: int
    p50: float
    p99: float
    size: int


def measured(engine: Engine, work: Process, times: list[float]) -> Process:
    start = engine.now
    yield from work
    times.append(engine.now - start)


def start_all(design: type[Design], costs: Costs, nodes: int, pods: int) -> Figures:
    """All nodes are new, and start their pods at ten a second."""
    engine, times = Engine(costs), list[float]()
    made = design(engine, nodes)
    for number in range(pods):
        node, place = number % nodes, number // nodes
        engine.at(random.random() + place / PODS_A_SECOND, measured(engine, made.add(node), times))
    engine.run(HORIZON)
    return sum_up(engine, times, pods, made.size(pods))


def drain(design: type[Design], costs: Costs, nodes: int, pods: int) -> Figures:
    """A twentieth of the nodes are drained, one every two seconds: their pods go, and come on other nodes."""
    engine, times = Engine(costs), list[float]()
    made = design(engine, nodes)
    fill(engine, made, nodes, pods)
    drained, each = max(1, nodes // 20), pods // nodes
    for number in range(drained):
        for pod in range(each):
            when = engine.now + 2.0 * number + pod / PODS_A_SECOND / 4
            engine.at(when, measured(engine, made.delete(number), times))
            engine.at(when, measured(engine, made.add(random.randrange(drained, nodes)), times))
    engine.run(engine.now + HORIZON)
    return sum_up(engine, times, 2 * drained * each, made.size(pods))


def fill(engine: Engine, design: Design, nodes: int, pods: int) -> None:
    """Have all pods there already, without asking."""
    for number in range(pods):
        if isinstance(design, Blocks):
            node = number % nodes
            design.joined[node] = True
            design.used[node] += 1
            while design.had[node] < design.used[node]:
                if design.had[node] == design.blocks[node] * BLOCK:
                    design.blocks[node] += 1
                    design.had[node] += BLOCK // 2
                else:
                    design.had[node] += BLOCK // 4
        elif isinstance(design, OneLease):
            design.entries += 1
        elif isinstance(design, KeyAnAddress):
            design.taken.add(design.cursor)
            design.cursor += 1


def sum_up(engine: Engine, times: list[float], wanted: int, size: int) -> Figures:
    times.sort()
    last = len(times) - 1
    p50, p99 = (times[int(last * each)] if times else float("nan") for each in (0.5, 0.99))
    requests = sum(engine.counts.values())
    done, in_time = len(times) / wanted, sum(each <= PATIENCE for each in times) / wanted
    return Figures(done, in_time, engine.now, requests, max(engine.seconds.values(), default=0), p50, p99, size)


# --- the engine's costs -----------------------------------------------------------------------------------------------


def measure(seconds: float = 2.0, clients: int = 8) -> Costs:
    """Measure a real etcd: requests a second with several clients at once, and the time of one alone."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="cnisdk-scale-", dir=memory))
    try:
        with etcd(directory / "etcd") as url:
            alone = statistics.median(time_one(url) for _ in range(3))
            write, read = (1 / count(url, kind, seconds, clients) for kind in ("write", "read"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return Costs(write, read, max(0.0, alone - write))


def request(client: EtcdClient, kind: str, number: int, revision: int) -> int:
    if kind == "read":
        return client.look(f"{number}").revision
    return client.transact([Compare(f"{number}", revision)], {f"{number}": b"x" * 100}).revision


def time_one(url: str) -> float:
    with CountingClient(EtcdConf(endpoints=(url,))) as client:
        key = f"alone-{time.monotonic_ns()}"
        revision, start = 0, time.perf_counter()
        for _ in range(200):
            revision = client.transact([Compare(key, revision)], {key: b"x" * 100}).revision
        return (time.perf_counter() - start) / 200


def count(url: str, kind: str, seconds: float, clients: int) -> float:
    """Return how many requests a second several clients together have answered."""
    read, write = os.pipe()
    for number in range(clients):
        if os.fork() == 0:
            done, revision = 0, 0
            with EtcdClient(EtcdConf(endpoints=(url,))) as client:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    revision = request(client, kind, number, revision)
                    done += 1
            os.write(write, done.to_bytes(8, "big"))
            os._exit(0)
    counts = [int.from_bytes(os.read(read, 8), "big") for _ in range(clients)]
    for _ in range(clients):
        os.wait()
    os.close(read)
    os.close(write)
    return sum(counts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5000, help="nodes (default %(default)s)")
    parser.add_argument("--pods", type=int, default=200_000, help="pods (default %(default)s)")
    parser.add_argument("--write-ms", type=float, help="time a write takes of the engine (measured)")
    parser.add_argument("--read-ms", type=float, help="time a read takes of the engine (measured)")
    parser.add_argument("--latency-ms", type=float, help="time a request is on its way, and on the disk (measured)")
    arguments = parser.parse_args()
    given = (arguments.write_ms, arguments.read_ms, arguments.latency_ms)
    costs = measure() if None in given else Costs(0, 0, 0)
    costs = Costs(*(each / 1000 if each is not None else own for each, own in zip(given, costs, strict=True)))
    write, read, latency = (each * 1000 for each in costs)
    print(f"engine: a write takes {write:.2f} ms, a read {read:.2f} ms, each is on its way for {latency:.2f} ms")
    scenarios: dict[str, Callable[..., Figures]] = {"mass start": start_all, "rolling drain": drain}
    for name, scenario in scenarios.items():
        print(f"\n{name}: {arguments.nodes} nodes, {arguments.pods} pods")
        shares = f"{'done':>8}{'in 60 s':>9}{'seconds':>9}{'requests':>10}{'peak/s':>8}"
        print(f"{'':18}{shares}{'p50':>12}{'p99':>12}{'size':>10}")
        for label, design in DESIGNS.items():
            random.seed(1)
            found = scenario(design, costs, arguments.nodes, arguments.pods)
            shares = f"{found.done:8.1%}{found.in_time:9.1%}{found.seconds:9.0f}{found.requests:10}{found.peak:8}"
            print(f"{label:18}{shares}{found.p50:10.3f} s{found.p99:10.3f} s{found.size / 1e6:7.1f} MB", flush=True)


if __name__ == "__main__":
    main()
