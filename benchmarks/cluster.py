"""Measure cnisdk-cluster on a real etcd: beside host-local, and what it asks of etcd.

Usage: python benchmarks/cluster.py [--runs N] [--nodes N] [--pods N] [--starts N]

It starts an etcd of one member, with its data in memory, on a free port. Ratios within one run are what counts: paths
take turns, so that they see the same machine.

- ADD and DEL inside a block against host-local's: in one process, as a resident server runs them, and as processes.
- Requests to etcd of each step a node takes, and their time against a bare compare-and-swap of the same client.
- Transactions for a number of pods on a number of nodes, each node with its own files.
- A mass start: all nodes claim their first block at the same moment, in processes of their own. How many attempts did
  each claim take?
"""

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from cnisdk.ipam import FileStore, Owner  # noqa: E402 - the checkout comes first
from cnisdk.ipam.blocks import BlockAllocator  # noqa: E402
from cnisdk.ipam.blocktable import BlockTable  # noqa: E402
from cnisdk.ipam.cluster import Cluster  # noqa: E402
from cnisdk.ipam.etcdclient import Compare, EtcdClient, EtcdConf  # noqa: E402
from cnisdk.ipam.holdings import Holdings  # noqa: E402
from cnisdk.ipam.ranges import make_range_set, parse_range  # noqa: E402
from cnisdk.plugin._launch import code_of, interpreter_of  # noqa: E402
from cnisdk.plugin.reply import respond  # noqa: E402
from cnisdk_plugins.cluster import ClusterPlugin  # noqa: E402
from cnisdk_plugins.host_local import HostLocal  # noqa: E402

SUBNET = "10.64.0.0/12"
POOL = (make_range_set([parse_range(SUBNET)], 0, "$"),)


class CountingClient(EtcdClient):
    """A client that counts what it sends."""

    requests = transactions = 0

    def _send(self, path: str, *args: Any) -> Any:
        self.requests += 1
        self.transactions += path == "kv/txn"
        return super()._send(path, *args)


class Node:
    """A node of a network."""

    def __init__(self, url: str, network: str, name: str, root: Path) -> None:
        self.client = CountingClient(EtcdConf(endpoints=(url,), timeout=60))
        self.cluster = Cluster(BlockTable(self.client, network, name))
        self.store = FileStore(str(root / network / name), "net")
        self.holdings = Holdings(self.store, self.cluster, str(root / network / name / "share"))
        self.allocator = BlockAllocator(self.holdings, POOL)

    def add(self, container: str) -> None:
        self.allocator.allocate(Owner(container, "eth0"))

    def delete(self, container: str) -> None:
        self.holdings.release(Owner(container, "eth0"))


@contextmanager
def etcd(directory: Path) -> Iterator[str]:
    """Run a member."""
    with socket.socket() as one, socket.socket() as other:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
        url, peers = (f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in (one, other))
    argv = ["etcd", "--data-dir", str(directory), "--log-level", "error", "--logger", "zap", "--name", "m"]
    argv += ["--listen-client-urls", url, "--advertise-client-urls", url, "--initial-cluster", f"m={peers}"]
    argv += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with EtcdClient(EtcdConf(endpoints=(url,), timeout=60)) as client:
            client.look("ready")
        yield url
    finally:
        process.kill()
        process.wait()


def milliseconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return (clock() - start) * 1000


# --- beside host-local ------------------------------------------------------------------------------------------------


def request(plugin: type[Any], verb: str, ipam: dict[str, Any], container: str) -> Callable[[], None]:
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "bench", "ipam": ipam}
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": "/dev/null", "CNI_IFNAME": "eth0"}
    stdin = json.dumps(conf).encode()

    def run() -> None:
        reply = respond(plugin, {**environ, "CNI_PATH": "."}, stdin)
        if reply.status:
            raise SystemExit(f"{verb} failed: {reply.stdout.decode()}")

    return run


def process(module: str, verb: str, ipam: dict[str, Any], container: str) -> Callable[[], None]:
    """Return a function that runs a plugin as `cnisdk install` lets runtimes run it."""
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "bench", "ipam": ipam}
    paths = [str(ROOT), str(ROOT / "examples"), *(path for path in sys.path if path.endswith("-packages"))]
    command = [*interpreter_of(sys.executable, paths), "-c", code_of(module, "main", paths)]
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": "/dev/null", "CNI_IFNAME": "eth0"}
    stdin = json.dumps(conf).encode()

    def run() -> None:
        done = subprocess.run(command, input=stdin, env={**environ, "CNI_PATH": "."}, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{module} {verb} failed: {done.stdout.decode()}{done.stderr.decode()}")

    return run


def beside_host_local(url: str, root: Path, runs: int) -> None:
    ranges = [[{"subnet": SUBNET}]]
    plain: dict[str, Any] = {"type": "host-local", "dataDir": str(root / "plain"), "ranges": ranges}
    cluster = {**plain, "type": "cnisdk-cluster", "dataDir": str(root / "cluster"), "etcd": {"endpoints": [url]}}
    plugins: list[tuple[type[Any], str, dict[str, Any]]] = [
        (HostLocal, "cnisdk_plugins.host_local", plain),
        (ClusterPlugin, "cnisdk_plugins.cluster", cluster),
    ]
    for number in range(10):
        for plugin, _, ipam in plugins:
            request(plugin, "ADD", ipam, f"c{number}")()
    verbs = ("ADD", "DEL")
    within = [request(plugin, verb, ipam, "x") for verb in verbs for plugin, _, ipam in plugins]
    # Processor time: other programs disturb it less.
    compare("in one process", [[milliseconds(step, time.process_time) for step in within] for _ in range(runs)])
    launched = [process(module, verb, ipam, "x") for verb in verbs for _, module, ipam in plugins]
    compare(
        "as processes", [[milliseconds(step, children_time) for step in launched] for _ in range(max(9, runs // 5))]
    )


def children_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare(how: str, times: list[list[float]]) -> None:
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    for verb, plain, cluster in (("ADD", *medians[:2]), ("DEL", *medians[2:])):
        ratio = cluster / plain
        print(f"{verb} inside a block, {how}: {cluster:.2f} ms, host-local's {plain:.2f} ms: {ratio:.2f} x")


# --- steps that ask etcd ----------------------------------------------------------------------------------------------


def steps(url: str, root: Path, runs: int) -> None:
    bare = CountingClient(EtcdConf(endpoints=(url,)))
    node, other = (Node(url, "steps", name, root) for name in ("a", "b"))
    other.add("x")
    theirs = next(iter(other.cluster.blocks()))
    measured: dict[str, list[float]] = {
        "compare-and-swap": [],
        "claim": [],
        "extend": [],
        "borrow": [],
        "give back": [],
    }
    requests: dict[str, int] = {}
    revision = 0

    def swap() -> None:
        nonlocal revision
        revision = bare.transact([Compare("bench", revision)], {"bench": b"x" * 60}).revision

    def talk(name: str, work: Callable[[], object]) -> None:
        with node.holdings.synchronised():
            before = node.client.requests
            measured[name].append(milliseconds(work))
            requests[name] = node.client.requests - before

    for number in range(runs):
        measured["compare-and-swap"].append(milliseconds(swap))
        first = IPv4Address("10.72.0.0") + 64 * number
        with node.holdings.synchronised():
            pass
        talk("claim", lambda first=first: node.cluster.claim(first, first + 63))
        block = node.cluster.find(first)
        assert block is not None
        talk("extend", lambda block=block: node.cluster.extend(block))
        talk("borrow", lambda: node.cluster.borrow(theirs.first + 60))
        talk("give back", lambda: node.cluster.give_back([theirs.first + 60]))
    base = statistics.median(measured["compare-and-swap"])
    for name, times in measured.items():
        median = statistics.median(times)
        print(f"{name:17} {median:6.2f} ms, {median / base:5.2f} x bare, {requests.get(name, 1)} requests")
    for each in (bare, node.client, other.client):
        each.close()


# --- many nodes -------------------------------------------------------------------------------------------------------


def many_pods(url: str, root: Path, count: int, pods: int) -> None:
    """Add pods to nodes at random, and half as many again while others go."""
    nodes = [Node(url, "pods", f"n{number}", root) for number in range(count)]
    for number in range(pods):
        nodes[number % count].add(f"c{number}")
    transactions, requests = (
        sum(each.client.transactions for each in nodes),
        sum(each.client.requests for each in nodes),
    )
    share = transactions / pods
    print(f"{pods} pods on {count} nodes: {transactions} transactions, {share:.3f} a pod; {requests} requests")
    for number in range(0, pods, 2):
        nodes[number % count].delete(f"c{number}")
        nodes[number % count].add(f"d{number}")
    later = sum(each.client.transactions for each in nodes) - transactions
    print(f"{pods // 2} of them replaced: {later} transactions more")
    for each in nodes:
        each.client.close()


def mass_start(url: str, root: Path, count: int, starts: int) -> None:
    attempts: list[int] = []
    for start in range(starts):
        read, write = os.pipe()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        children = []
        for number in range(count):
            child = os.fork()
            if child == 0:
                os.close(read)
                node = Node(url, f"start{start}", f"n{number}", root)
                with node.holdings.synchronised():  # it has joined
                    pass
                os.write(write, b"r")
                signal.sigwait({signal.SIGUSR1})
                before = node.client.transactions
                node.add("x")
                os.write(write, bytes([node.client.transactions - before]))
                os._exit(0)
            children.append(child)
        ready = b""
        while len(ready) < count:
            ready += os.read(read, count - len(ready))
        for child in children:
            os.kill(child, signal.SIGUSR1)
        done = b""
        while len(done) < count:
            done += os.read(read, count - len(done))
        attempts += done
        for child in children:
            os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    attempts.sort()
    p99 = attempts[min(len(attempts) - 1, len(attempts) * 99 // 100)]
    mean = statistics.mean(attempts)
    print(f"{starts} mass starts of {count} nodes: {mean:.2f} attempts a claim, {p99} at p99, {attempts[-1]} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="runs of each step (default %(default)s)")
    parser.add_argument("--nodes", type=int, default=32, help="nodes (default %(default)s)")
    parser.add_argument("--pods", type=int, default=1000, help="pods (default %(default)s)")
    parser.add_argument("--starts", type=int, default=10, help="mass starts (default %(default)s)")
    arguments = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="cnisdk-bench-", dir=memory))
    try:
        with etcd(directory / "etcd") as url:
            beside_host_local(url, directory, arguments.runs)
            steps(url, directory, arguments.runs)
            many_pods(url, directory, arguments.nodes, arguments.pods)
            mass_start(url, directory, arguments.nodes, arguments.starts)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
