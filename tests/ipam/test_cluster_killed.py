"""A node of a cluster, killed at every single system call of ADD and DEL: the DEL that follows leaves nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cnisdk.ipam import FileStore, Owner, RangeSet
from cnisdk.ipam.blocks import BlockAllocator
from cnisdk.ipam.blocktable import BlockTable
from cnisdk.ipam.cluster import Cluster
from cnisdk.ipam.etcdclient import EtcdClient
from cnisdk.ipam.holdings import Holdings
from cnisdk.testing.stores import everything, range_sets

from .conftest import Member
from .tracing import run_until

ME, STAYS = Owner("me", "eth0"), Owner("stays", "eth0")
POD = "ns/web-0/eth0"
LENGTHS = {4: 28, 6: 124}
ONE_BLOCK = range_sets("10.0.0.0/28", "fd00::/124")  # which is the other node's
TWO_BLOCKS = range_sets("10.0.0.0/27", "fd00::/123")

# All of them take some minutes. Without CNISDK_STRESS it is every so many, each operation from another one on.
STRIDE = 1 if os.environ.get("CNISDK_STRESS") else 8


class Node:
    """A node; a connection is opened when it is needed."""

    def __init__(self, member: Member, network: str, name: str, root: Path, pool: tuple[RangeSet, ...]) -> None:
        self.client = EtcdClient(member.conf)
        self.cluster = Cluster(BlockTable(self.client, network, name, lengths=LENGTHS))
        self.store = FileStore(str(root / name), "net")
        self.holdings = Holdings(self.store, self.cluster, str(root / name / "share"))
        self.allocator = BlockAllocator(self.holdings, pool)

    def add(self, owner: Owner, pod: str = "") -> list[str]:
        return [str(each.address.ip) for each in self.allocator.allocate(owner, pod=pod)]

    def delete(self, owner: Owner) -> None:
        self.holdings.release(owner)


class Operation(NamedTuple):
    """An operation to be killed in.

    Attributes:
        pool: The addresses there are.
        before: What the node does before.
        work: The operation.
    """

    pool: tuple[RangeSet, ...]
    before: Callable[[Node], object]
    work: Callable[[Node], object]


def nothing(_: Node) -> None:
    pass


def use_block(node: Node) -> None:
    node.add(STAYS)


OPERATIONS = {
    "first ADD": Operation(TWO_BLOCKS, nothing, lambda node: node.add(ME)),
    "ADD in a block": Operation(TWO_BLOCKS, use_block, lambda node: node.add(ME)),
    "ADD that borrows": Operation(ONE_BLOCK, nothing, lambda node: node.add(ME)),
    "ADD of a pod": Operation(TWO_BLOCKS, use_block, lambda node: node.add(ME, POD)),
    "DEL in a block": Operation(TWO_BLOCKS, lambda node: (node.add(STAYS), node.add(ME)), lambda node: node.delete(ME)),
    "DEL of what was borrowed": Operation(ONE_BLOCK, lambda node: node.add(ME), lambda node: node.delete(ME)),
    "DEL of a pod": Operation(
        TWO_BLOCKS, lambda node: (node.add(STAYS), node.add(ME, POD)), lambda node: node.delete(ME)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_every_system_call(member: Member, tmp_path: Path, name: str) -> None:
    operation = OPERATIONS[name]
    number, killed = [*OPERATIONS].index(name) % STRIDE, True
    while killed:
        network, root = f"{name.replace(' ', '-')}-{number}", tmp_path / str(number)
        node, other = (Node(member, network, each, root, operation.pool) for each in ("a", "b"))
        with node.client, other.client:
            kept = {*other.add(STAYS)}
            operation.before(node)
            node.client.close()  # the child has a connection of its own
            staying = {address: owner for address, owner in everything(node.store).items() if owner == STAYS}
            killed = run_until(lambda node=node: operation.work(node), 2 * number + 1)  # type: ignore[misc]

            node.delete(ME)  # as the runtime does
            assert everything(node.store) == staying, number
            assert node.holdings.compare() == [], number
            blocks = [*node.cluster.blocks()]
            assert [each.lent for each in blocks if each.lent] == [], number
            assert {each.node for each in blocks} <= {"a", "b"}, number
            assert not node.holdings.read().is_unsettled, number
            given = [
                address for each in (node, other) for at in range(2) for address in each.add(Owner(f"c{at}", "eth0"))
            ]
            assert len({*given}) == 8, number
            assert not {*given} & (kept | {*map(str, staying)}), number
        shutil.rmtree(root)
        number += STRIDE
    assert number > 30  # it did trace
