"""``cnisdk cluster fsck``: find what contradicts itself in the addresses of a cluster, and repair it on request."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import NamedTuple

from ..errors import CNIError, IOFailureError, cause_of
from ..ipam.cluster import Cluster
from ..ipam.sticky import StickyAddresses
from .attachments import HostState, add_shared_arguments, judge_host
from .clusternetworks import ClusterNetwork, load_cluster_networks
from .clusterstate import ClusterState, read_state

_REPAIRED = "repaired"


class Contradiction(NamedTuple):
    """Contradiction between two places, or within one.

    Attributes:
        text: A sentence.
        repair: Repairs it; None if only a person can.
    """

    text: str
    repair: Callable[[], object] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    parser.add_argument("--repair", action="store_true", help="repair what has one right repair")
    parser.add_argument(
        "--nodes",
        metavar="FILE",
        help="names of the nodes there are, one a line (`kubectl get nodes -o name`), - for the standard input: say "
        "which nodes have addresses and are not among them",
    )
    add_shared_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check, and return 1 if anything is left."""
    nodes = _read_nodes(args.nodes) if args.nodes else None
    host = judge_host(args, args.network)
    left = 0
    networks = load_cluster_networks(args)
    for network in networks:
        with network.open() as cluster:
            for each in _check(network, cluster, host, nodes):
                hint = _repair(each) if args.repair else "--repair repairs it" if each.repair else ""
                print(f"{network.name}  {each.text}" + (f": {hint}" if hint else ""))
                left += hint != _REPAIRED
    if not left:
        print(f"networks looked at: {len(networks)}; nothing broken is left")
    return 1 if left else 0


def _repair(each: Contradiction) -> str:
    """Repair a contradiction if that can be done; return what came of it."""
    if each.repair is None:
        return ""
    try:
        each.repair()
    except CNIError as exc:  # the others may still be repaired
        return f"not repaired: {exc}"
    return _REPAIRED


def _check(
    network: ClusterNetwork, cluster: Cluster, host: HostState, nodes: Collection[str] | None
) -> Iterator[Contradiction]:
    state = read_state(network)
    yield from _check_nodes(state, cluster, nodes)
    yield from _check_pods(state, StickyAddresses(cluster.table))
    yield from _check_this_node(network)
    yield from _check_leases(state)
    dead = sum(
        len(each.held) for found in host.networks if found.name == network.name for each in found.attachments
        if each.verdict.state == "dead"
    )  # fmt: skip
    if dead:
        yield Contradiction(f"{dead} leases of this node are of containers that are gone: run cnisdk gc {network.name}")


def _check_nodes(state: ClusterState, cluster: Cluster, nodes: Collection[str] | None) -> Iterator[Contradiction]:
    for node in state.nodes:
        if not node.joined:
            # A node joins before it gets anything, and only release-node deletes its key: first, and then the rest.
            yield Contradiction(
                f"node {node.name} was released, and still has {node.blocks} blocks and {node.borrowed} loans",
                partial(cluster.release_node, node.name),
            )
        elif nodes is not None and node.name not in nodes:
            yield Contradiction(
                f"node {node.name} has {node.blocks} blocks and {node.borrowed} loans, and is not among the nodes: if "
                f"it is gone for good, run cnisdk cluster release-node {node.name}"
            )


def _check_pods(state: ClusterState, sticky: StickyAddresses) -> Iterator[Contradiction]:
    kept = {address: pod for block in state.blocks for address, pod in block.kept.items()}
    named = {address: pod for pod, addresses in state.pods.items() for address in addresses}
    for pod in sorted({*kept.values(), *named.values()}):
        blocks, key = ({each for each, by in found.items() if by == pod} for found in (kept, named))
        if blocks != key:
            addresses = ", ".join(sorted(map(str, blocks ^ key)))
            yield Contradiction(
                f"the key of pod {pod} and the blocks disagree about {addresses}", partial(sticky.mend, pod)
            )


def _check_this_node(network: ClusterNetwork) -> Iterator[Contradiction]:
    with network.open_holdings() as holdings:
        found = holdings.compare()
    for number, text in enumerate(found):
        yield Contradiction(text, partial(_refresh, network) if number == 0 else _nothing)


def _refresh(network: ClusterNetwork) -> None:
    with network.open_holdings() as holdings:
        holdings.refresh()


def _nothing() -> None:
    """Repair what the first repair has repaired as well."""


def _check_leases(state: ClusterState) -> Iterator[Contradiction]:
    """Find leases of this node whose addresses are another node's: that node may lease them too."""
    network = state.network
    for lease in network.table.examine(timeout=network.conf.lock_timeout).leases:
        if not any(pool.range_set.holds(lease.address) for pool in network.pools):
            continue
        block = next((each for each in state.blocks if each.holds(lease.address)), None)
        node = "" if block is None else block.lent.get(lease.address) or block.node
        if node != network.node:
            whose = f"of node {node}" if node else "of no node"
            yield Contradiction(
                f"{lease.address} is leased here to {lease.owner}, but {whose}: another container may have it too. "
                "Replace the container"
            )


def _read_nodes(path: str) -> frozenset[str]:
    try:
        if path == "-":
            lines = sys.stdin.read().splitlines()
        else:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
    except (OSError, ValueError) as exc:
        raise IOFailureError(f"cannot read {path}: {cause_of(exc)}") from exc
    return frozenset(line.strip().removeprefix("node/") for line in lines if line.strip())
