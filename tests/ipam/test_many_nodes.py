"""Many nodes on three members of etcd, while members and nodes die: no address twice, none lost, none left."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import pytest

from cnisdk.errors import CNIError
from cnisdk.ipam import FileStore, Owner
from cnisdk.ipam.allocator import release
from cnisdk.ipam.blocks import BlockAllocator
from cnisdk.ipam.blocktable import BlockTable
from cnisdk.ipam.cluster import Cluster
from cnisdk.ipam.etcdclient import EtcdClient, EtcdConf
from cnisdk.ipam.holdings import Holdings
from cnisdk.ipam.sticky import StickyAddresses
from cnisdk.testing import Host
from cnisdk.testing.stores import everything, range_sets

from .histories import Event, Kind, Recorder, find_doubles, find_unsteady_pods, list_alive, read_history
from .members import Members, place

# CNISDK_STRESS=1 is for the full figure.
STRESS = bool(os.environ.get("CNISDK_STRESS"))
OPERATIONS = 3000 if STRESS else 1000
NODES = 32
POOL = range_sets("10.0.0.0/22")
LENGTHS = {4: 28, 6: 124}  # 64 blocks of 16 addresses: nodes run out of them, and borrow
ALIVE = 24  # containers of a node at most; all nodes together want fewer than there are
PODS = 8  # that move between nodes


# --- the check itself -------------------------------------------------------------------------------------------------


def history(text: str) -> list[Event]:
    """Make the history of one address: ``+x`` and ``x+`` are begin and end of x's ADD, ``-x`` and ``x-`` of its DEL."""
    kinds: dict[str, Kind] = {"+.": "add", ".+": "added", "-.": "delete", ".-": "deleted"}
    events = []
    for at, word in enumerate(text.split()):
        container = word.strip("+-")
        kind = kinds[word.replace(container, ".")]
        events.append(Event(at, container, kind, ("10.0.0.2",) if kind == "added" else ()))
    return events


@pytest.mark.parametrize(
    ("text", "doubles"),
    [
        ("+x x+ -x x- +y y+", 0),
        ("+x x+ -x +y y+ x-", 0),  # the DEL has begun, and may have taken effect when the other ADD ends
        ("+x x+ +y -x y+ x-", 0),
        ("+x +y y+ -y +z z+", 0),  # a killed ADD was told no address
        ("+x x+ +y y+ -x x-", 1),
        ("+x +y x+ y+", 1),
        ("+x x+ -x +y y+ +z z+ -y", 1),
        ("+x x+ -y y- +z z+", 1),  # the DEL of another container releases nothing
        ("+x x+ +y y+ +z z+", 2),
    ],
)
def test_histories_that_are_known(text: str, doubles: int) -> None:
    events = history(text)
    assert len(find_doubles(events)) == doubles
    random.Random(1).shuffle(events)
    assert len(find_doubles(events)) == doubles


# --- nodes ------------------------------------------------------------------------------------------------------------


class Node:
    """One node, as one process works on it: its files, and a connection."""

    def __init__(self, name: str, root: Path, urls: tuple[str, ...], timeout: float) -> None:
        self.name, self.root = name, root
        self.client = EtcdClient(EtcdConf(endpoints=urls, timeout=timeout))
        self.store = FileStore(str(root / name), "net")
        self.cluster = Cluster(BlockTable(self.client, "net", name, lengths=LENGTHS))
        self.holdings = Holdings(self.store, self.cluster, str(root / name / "share"), timeout=timeout)
        self.allocator = BlockAllocator(self.holdings, POOL)
        self.history = root / f"{name}.history"

    def work(self, operations: int, seed: int) -> None:
        """Attach and detach at random, after what a process of this node that was killed has left."""
        dice, recorder = random.Random(seed), Recorder(self.history)
        before = list_alive(read_history([self.history]))
        alive = [container for container, addresses in before.items() if addresses]
        for container in before.keys() - set(alive):  # what a killed ADD or DEL began, the runtime's DEL ends
            self.delete(recorder, container)
        for number in range(operations):
            pause(dice.random() * 0.02)
            if alive and (len(alive) >= ALIVE or dice.random() < 0.45):
                self.delete(recorder, alive.pop(dice.randrange(len(alive))))
                continue
            container = f"{self.name}-{os.getpid()}-{number}"
            pod = f"ns/web-{dice.randrange(PODS)}/eth0" if dice.random() < 0.05 else ""
            wanted = [IPv4Address("10.0.3.77")] if dice.random() < 0.02 else []
            recorder.note("add", container)
            try:
                given = self.allocator.allocate(Owner(container, "eth0"), wanted, pod=pod)
            except CNIError as exc:
                if exc.code not in (5, 11):
                    raise
                release(self.store, Owner(container, "eth0"))
                recorder.note("failed", container)
            else:
                recorder.note("added", container, [each.address.ip for each in given], "" if wanted else pod)
                alive.append(container)

    def delete(self, recorder: Recorder, container: str) -> None:
        recorder.note("delete", container)
        self.holdings.release(Owner(container, "eth0"))
        recorder.note("deleted", container)


class Outcome(NamedTuple):
    """Figures of a run.

    Attributes:
        counts: How often each event was.
        faults: How often each fault was made.
        doubles: Pairs of containers that had one address at one moment.
        unsteady: Pods that were given other addresses.
        left: Leases, and blocks in etcd, after all was deleted.
    """

    counts: dict[Kind, int]
    faults: dict[str, int]
    doubles: list[object]
    unsteady: list[str]
    left: list[str]


def run(directory: Path, operations: int, faults: int, kills: int) -> Outcome:
    """Let all nodes work, make faults meanwhile, and look at what is left."""
    root = directory / "nodes"
    with Members(directory / "members") as members:
        root.mkdir()
        urls = tuple(members.urls)
        share = operations // NODES
        children: dict[int, tuple[str, int]] = {}
        made: Counter[str] = Counter()
        dice = random.Random(7)
        for number in range(NODES):
            order = urls[number % 3 :] + urls[: number % 3]
            children[start(f"n{number}", root, order, share, number)] = f"n{number}", number
        broken: dict[str, str] = {}
        while children:
            reap(children)
            if not children:
                break
            pause(0.3)
            if broken and (dice.random() < 0.7 or len(broken) == 2):
                name = dice.choice(sorted(broken))
                getattr(members, broken.pop(name))(name)
            elif sum(made[fault] for fault, _ in members.faults()) < faults:
                name = dice.choice([each for each in members.names if each not in broken])
                fault, end = dice.choice([*members.faults()])
                getattr(members, fault)(name)
                made[fault] += 1
                broken[name] = end
            if made["node"] < kills and children:
                child = dice.choice(sorted(children))
                name, number = children.pop(child)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                made["node"] += 1
                children[start(name, root, urls, max(1, share // 2), 1000 + made["node"])] = name, number
        for name, end in broken.items():
            getattr(members, end)(name)
        return look_back(root, urls, made)


def look_back(root: Path, urls: tuple[str, ...], made: Counter[str]) -> Outcome:
    """Delete everything, and return what was found on the way."""
    events = read_history(root.glob("*.history"))
    left: list[str] = []
    operator = Cluster(BlockTable(EtcdClient(EtcdConf(endpoints=urls, timeout=60)), "net", "", lengths=LENGTHS))
    for number in range(NODES):
        node = Node(f"n{number}", root, urls, 60)
        with node.client:
            held = everything(node.store)
            recorded = {address: name for name, found in list_alive(events).items() for address in found}
            left += [f"lost: {address}" for address, name in recorded.items() if name.startswith(f"{node.name}-")
                     and IPv4Address(address) not in held]  # fmt: skip
            for owner in {*held.values()}:
                node.holdings.release(owner)
            node.holdings.refresh()
            node.cluster.give_back(blocks=[block.first for block in node.holdings.read().blocks])
            left += [f"{node.name}: {each}" for each in everything(node.store)]
    sticky = StickyAddresses(operator.table)
    for pod in sticky.list_pods():
        sticky.forget(pod)
    left += map(str, operator.blocks())
    operator.table.client.close()
    counts = Counter(event.kind for event in events)
    return Outcome(
        dict(counts), dict(made), [*find_doubles(events)], [*map(str, find_unsteady_pods(events).items())], left
    )


def start(name: str, root: Path, urls: tuple[str, ...], operations: int, seed: int) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Node(name, root, urls, 3).work(operations, seed)
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    return child


def reap(children: dict[int, tuple[str, int]]) -> None:
    for child in list(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            name, _ = children.pop(child)
            assert status == 0, f"node {name} failed: {status}"


def pause(seconds: float) -> None:
    """Let the others work for a moment."""
    signal.sigtimedwait([], seconds)


@pytest.fixture
def directory() -> Path:
    if shutil.which("etcd") is None:
        missing = "etcd is not installed (Debian: etcd-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return place("nodes")


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.parametrize(("faults", "kills"), [(0, 0), (24, 24) if STRESS else (8, 8)], ids=["in peace", "with faults"])
def test_no_address_twice_none_lost_none_left(host: Host, directory: Path, faults: int, kills: int) -> None:
    try:
        outcome = host.call(run, directory, OPERATIONS, faults, kills)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(outcome)
    assert outcome.doubles == []
    assert outcome.unsteady == []
    assert outcome.left == []
    assert outcome.counts["added"] > OPERATIONS // 3
    assert sum(outcome.faults.values()) >= kills
