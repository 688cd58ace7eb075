"""State of a network's addresses, as etcd and this node know it, at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..ipam.blocktable import Block
from ..ipam.ranges import Pool, Range
from ..ipam.sticky import StickyAddresses
from ..spec.addresses import IPAddress
from .clusternetworks import ClusterNetwork


class NodeState(NamedTuple):
    """Addresses of one node.

    Attributes:
        name: Its name.
        joined: If false, the name has no key in etcd: the node was released, and something was left.
        blocks: How many blocks it has.
        size: Number of addresses in them.
        local: How many of these it hands out without asking.
        lent: How many of these are lent to other nodes.
        borrowed: Number of addresses that are lent to it.
    """

    name: str
    joined: bool
    blocks: int
    size: int
    local: int
    lent: int
    borrowed: int

    @property
    def used(self) -> int:
        """Number of addresses in its blocks that cannot be lent."""
        return self.local + self.lent


class ClusterState(NamedTuple):
    """A network's addresses.

    Attributes:
        network: The network.
        blocks: All blocks that have a key.
        nodes: The nodes, by name.
        pods: The addresses that are kept, by interface of a pod.
        leased: Number of leases on this node.
        resting: Number of addresses that rest on this node.
    """

    network: ClusterNetwork
    blocks: Sequence[Block]
    nodes: Sequence[NodeState]
    pods: Mapping[str, Sequence[IPAddress]]
    leased: int
    resting: int

    def count_blocks(self, pool: Pool) -> int:
        """Count the blocks with a key that have addresses of a pool."""
        parts = pool.range_set.ranges
        return sum(
            any(part.version == each.first.version and _meet(part, each) for part in parts) for each in self.blocks
        )

    def count_all_blocks(self, pool: Pool) -> int:
        """Count the blocks there can be."""
        conf = self.network.conf
        total = 0
        for part in pool.range_set.ranges:
            bits = part.first.max_prefixlen - (conf.block_size if part.version == 4 else conf.block_size6)
            total += (int(part.last) >> bits) - (int(part.first) >> bits) + 1
        return total


def _meet(part: Range, block: Block) -> bool:
    first, last = int(part.first), int(part.last)
    return first <= block.span.last and block.span.first <= last


def read_state(network: ClusterNetwork) -> ClusterState:
    """Read a network's state.

    Raises:
        IOFailureError: (5) Etcd does not answer, or a file of this node cannot be read.
    """
    with network.open() as cluster, network.open_holdings() as holdings:
        blocks = tuple(cluster.blocks())
        joined = cluster.table.list_nodes()
        pods = StickyAddresses(cluster.table).list_pods()
        resting = len(holdings.resting.find())
    leased = len(network.table.examine(timeout=network.conf.lock_timeout).leases)
    names = {*joined, *(each.node for each in blocks), *(node for each in blocks for node in each.lent.values())} - {""}
    nodes = [_sum_up(name, name in joined, blocks) for name in sorted(names)]
    return ClusterState(network, blocks, nodes, pods, leased, resting)


def _sum_up(name: str, joined: bool, blocks: Sequence[Block]) -> NodeState:
    own = [each for each in blocks if each.node == name]
    return NodeState(
        name,
        joined,
        blocks=len(own),
        size=sum(each.size for each in own),
        local=sum(span.last - span.first + 1 for each in own for span in each.spans),
        lent=sum(node != name for each in own for node in each.lent.values()),
        borrowed=sum(node == name for each in blocks for node in each.lent.values()),
    )
