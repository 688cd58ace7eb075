"""``cnisdk cluster``: the addresses of networks that span hosts, as etcd and this node have them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from time import sleep
from typing import Any, NamedTuple

from ..errors import InvalidEnvironmentError
from ..ipam.blocktable import Block, NodeKey, mark_of_holder
from ..ipam.cluster import Cluster
from ..ipam.sticky import StickyAddresses
from ..spec.addresses import IPAddress, parse_address
from . import clusterfsck, clusterimport
from .clusternetworks import (
    ClusterNetwork,
    add_network_argument,
    load_cluster_networks,
    only_network,
)
from .clusterstate import ClusterState, NodeState, read_state
from .leases import bar
from .options import add_conf_dir, add_seconds

_WAIT = 10.0

DESCRIPTION = (
    "Show and repair the addresses of the networks in this node's configuration whose ipam.type is cnisdk-cluster."
)

EPILOG = (
    "examples:\n  cnisdk cluster status\n  cnisdk cluster show 10.64.0.17\n"
    "  cnisdk cluster release-node worker-7 --yes\n  cnisdk cluster fsck --repair"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    status = _add_action(actions, "status", _show_status, "show the nodes, and how many addresses each has")
    status.add_argument("--json", action="store_true", help="print a JSON document, with each block")
    show = _add_action(actions, "show", _show_address, "say whose an address is")
    show.add_argument("address", metavar="ADDRESS", type=parse_address)
    release = _add_action(
        actions, "release-node", _release_node, "give the addresses of a node that is gone for good to the others"
    )
    release.add_argument("node", metavar="NODE")
    release.add_argument("--yes", action="store_true", help="do it; without, only say what would be released")
    add_seconds(
        release,
        "--wait",
        _WAIT,
        "look twice, with this time in between: a node that changes anything meanwhile lives",
    )
    forget = _add_action(actions, "forget", _forget, "keep no addresses for a pod any more")
    forget.add_argument("pod", metavar="NAMESPACE/NAME[/IFNAME]")
    forget.add_argument("--yes", action="store_true", help="do it; without, only say what would be forgotten")
    clusterfsck.add_arguments(
        _add_action(
            actions,
            "fsck",
            clusterfsck.run,
            "find contradictions in etcd and on this node",
            shared=True,
        )
    )
    clusterimport.add_arguments(
        _add_action(actions, "import", clusterimport.run, "take over the leases of host-local or whereabouts")
    )


def run(args: argparse.Namespace) -> int:
    """Run an action."""
    return int(args.action(args))


def _add_action(
    actions: Any, name: str, action: Callable[[argparse.Namespace], int], text: str, *, shared: bool = False
) -> Any:
    """Add the parser of an action. One that shares the options of ``gc`` has that for the configuration among them."""
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(action=action)
    add_network_argument(parser)
    if not shared:
        add_conf_dir(parser)
    return parser


# --- status -----------------------------------------------------------------------------------------------------------


def _show_status(args: argparse.Namespace) -> int:
    states = [read_state(network) for network in load_cluster_networks(args)]
    if args.json:
        print(json.dumps({"networks": [_as_json(each) for each in states]}, indent=4))
        return 0
    for state in states:
        _print_state(state)
    return 0


def _print_state(state: ClusterState) -> None:
    network = state.network
    print(f"{network.name}  {network.endpoints}")
    for pool in network.pools:
        print(f"  {pool.range_set}  {state.count_blocks(pool)} of {state.count_all_blocks(pool):,} blocks claimed")
    width = max((len(each.name) for each in state.nodes), default=0)
    for node in state.nodes:
        print(f"  {node.name:{width}}  {bar(node.used, node.size)}  {', '.join(_describe(state, node))}")
    kept = sum(map(len, state.pods.values()))
    if kept:
        print(f"  {kept} addresses are kept for {len(state.pods)} interfaces of pods")


def _describe(state: ClusterState, node: NodeState) -> list[str]:
    """Say what a node has, in phrases."""
    phrases = [f"{node.local} of {node.size} in {node.blocks} block{'s' if node.blocks != 1 else ''}"]
    if node.name == state.network.node:
        phrases += [f"{state.leased} leased here"]
        if state.resting:
            phrases += [f"{state.resting} rest"]
    if node.lent:
        phrases.append(f"{node.lent} lent to others")
    if node.borrowed:
        phrases.append(f"{node.borrowed} borrowed")
    if not node.joined:
        phrases.append("has not joined: see cnisdk cluster fsck")
    return phrases


def _as_json(state: ClusterState) -> dict[str, Any]:
    return {
        "name": state.network.name,
        "node": state.network.node,
        "endpoints": list(state.network.conf.etcd.endpoints),
        "ranges": [
            {
                "range": str(pool.range_set),
                "blocks": state.count_blocks(pool),
                "allBlocks": state.count_all_blocks(pool),
            }
            for pool in state.network.pools
        ],
        "leasedHere": state.leased,
        "restingHere": state.resting,
        "nodes": [
            {
                "name": node.name,
                "joined": node.joined,
                "blocks": node.blocks,
                "size": node.size,
                "local": node.local,
                "lent": node.lent,
                "borrowed": node.borrowed,
            }
            for node in state.nodes
        ],
        "blocks": [_block_as_json(block) for block in state.blocks],
        "pods": {pod: [str(each) for each in addresses] for pod, addresses in state.pods.items()},
    }


def _block_as_json(block: Block) -> dict[str, Any]:
    return {
        "block": f"{block.first}/{block.length}",
        "node": block.node,
        "local": block.local,
        "lent": {str(address): node for address, node in block.lent.items()},
        "kept": {str(address): pod for address, pod in block.kept.items()},
    }


# --- one address ------------------------------------------------------------------------------------------------------


def _show_address(args: argparse.Namespace) -> int:
    address: IPAddress = args.address
    networks = [
        each
        for each in load_cluster_networks(args)
        if any(pool.range_set.holds(address) for pool in each.pools) or args.network
    ]
    if not networks:
        print(f"cnisdk: {address} is in no range of a network here", file=sys.stderr)
        return 1
    for network in networks:
        with network.open() as cluster:
            print(f"{address}  network {network.name}  {describe_address(network, cluster, address)}")
    return 0


def describe_address(network: ClusterNetwork, cluster: Cluster, address: IPAddress) -> str:
    """Say whose an address is, in etcd and on this node."""
    block = cluster.find(address)
    phrases = []
    if block is None:
        phrases.append("free: no node and no pod has an address of its block")
    else:
        phrases.append(f"block {block.first}/{block.length} of {f'node {block.node}' if block.node else 'no node'}")
        if address in block.kept:
            phrases.append(f"kept for pod {block.kept[address]}")
        if address in block.lent:
            phrases.append(f"lent to node {block.lent[address]}")
        elif block.can_lend(address):
            phrases.append("free: it can be lent to any node")
        elif address not in block.kept:
            phrases.append(f"handed out by node {block.node} alone")
    lease = next((each for each in network.table.examine().leases if each.address == address), None)
    if lease is not None:
        phrases.append(f"leased here to {lease.owner}")
    with network.open_holdings() as holdings:
        left = holdings.resting.find().get(address)
        if left is not None:
            phrases.append(f"rests here for {left:.0f} s")
    return ", ".join(phrases)


# --- what an operator takes away --------------------------------------------------------------------------------------


def _release_node(args: argparse.Namespace) -> int:
    networks = load_cluster_networks(args)
    looks = {each.name: _look_at(each, args.node) for each in networks}
    found = [each for each in networks if looks[each.name] != _NOTHING]
    if not found:
        print(f"cnisdk: no network has a node {args.node}", file=sys.stderr)
        return 1
    for network in found:
        _check_other(network, args.node, looks[network.name])
    if args.yes:
        sleep(max(0.0, args.wait))
        if any(_look_at(each, args.node) != looks[each.name] for each in found):
            text = f"node {args.node} has changed what it has: it lives, and nothing was released"
            print(f"cnisdk: {text}", file=sys.stderr)
            return 1
    for network in found:
        look = looks[network.name]
        if args.yes:
            with network.open() as cluster:
                cluster.release_node(args.node, look.key.revision if look.key else 0)
        for text in _name_all(args.node, look.blocks):
            print(f"{network.name}  {text}: " + ("released" if args.yes else "to be released"))
    if not args.yes:
        print(
            f"cnisdk: nothing was released. If node {args.node} is gone for good, and its pods with it, run this again "
            "with --yes. A node that is only cut off goes on to hand out these addresses",
            file=sys.stderr,
        )
    return 0 if args.yes else 1


class _Look(NamedTuple):
    """Belongings of a node in a network, at one moment."""

    key: NodeKey | None
    blocks: tuple[Block, ...]


_NOTHING = _Look(None, ())


def _look_at(network: ClusterNetwork, node: str) -> _Look:
    with network.open() as cluster:
        return _Look(cluster.table.list_nodes().get(node), cluster.list_blocks_of(node))


def _name_all(node: str, blocks: Sequence[Block]) -> Iterator[str]:
    """Name what a node has."""
    for block in blocks:
        if block.node == node:
            yield f"block {block.first}/{block.length}"
        for address, borrower in block.lent.items():
            if borrower == node:
                yield f"loan of {address}"
    if not blocks:
        yield f"the name {node}, which has no address"


def _check_other(network: ClusterNetwork, node: str, look: _Look) -> None:
    """Check that a node is not this very one.

    Raises:
        InvalidEnvironmentError: (4) It is.
    """
    with network.open_holdings() as holdings:
        mark = mark_of_holder(holdings.directory)
    if node == network.node or (look.key is not None and look.key.holder == mark):
        raise InvalidEnvironmentError(
            f"node {node} is this one: it lives, and is not released", details="run the command on another node"
        )


def _forget(args: argparse.Namespace) -> int:
    network = only_network(args)
    with network.open() as cluster:
        sticky = StickyAddresses(cluster.table)
        kept = sticky.list_pods()
        pods = [pod for pod in kept if _is_of(pod, args.pod)]
        if not pods:
            print(f"cnisdk: nothing is kept for {args.pod}", file=sys.stderr)
            return 1
        for pod in pods:
            addresses = sticky.forget(pod) if args.yes else kept[pod]
            print(f"{pod}  {', '.join(map(str, addresses))}: " + ("forgotten" if args.yes else "to be forgotten"))
    if not args.yes:
        text = "any pod may get these addresses then. Run this again with --yes if that is meant"
        print(f"cnisdk: nothing was forgotten: {text}", file=sys.stderr)
    return 0 if args.yes else 1


def _is_of(interface: str, pod: str) -> bool:
    """Return whether an interface, ``namespace/name/interface``, is one of a pod, or the one that is named.

    A namespace alone names no pod, so that one word less does not forget all pods of it.
    """
    given, parts = pod.rstrip("/").split("/"), interface.split("/")
    return len(given) >= 2 and parts[: len(given)] == given
