"""``cnisdk cluster import``: take over leases of host-local or whereabouts, on the node whose containers have them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_interface
from typing import Any, NamedTuple

from ..errors import CNIError, InvalidConfigError, IOFailureError, cause_of, name_and_text
from ..ipam.allocator import release_exactly
from ..ipam.blocks import BlockAllocator
from ..ipam.filestore import FileStore
from ..ipam.filetable import FileTable
from ..ipam.store import Lease, Owner, Transaction
from ..runtime.caches import find_places, known_directories, read_all
from ..spec.addresses import IPAddress
from .clusternetworks import only_network
from .options import add_cache_dir


class Found(NamedTuple):
    """A lease to take over, or the reason not to."""

    address: IPAddress
    owner: Owner
    obstacle: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    parser.add_argument("kind", choices=("host-local", "whereabouts"), help="whose leases these are")
    parser.add_argument(
        "path",
        metavar="PATH",
        help="host-local: the directory of a network's leases; whereabouts: a file with the IPPools as JSON, - for the "
        "standard input (`kubectl get ippools.whereabouts.cni.cncf.io -A -o json`)",
    )
    parser.add_argument(
        "--pool",
        metavar="NAME",
        default="",
        help="whereabouts: the one IPPool to read; by default all, also of other networks with the same addresses",
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be taken over")
    parser.add_argument(
        "--ifname", metavar="NAME", default="", help="interface of leases that name none, as old ones of whereabouts"
    )
    add_cache_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Take leases over, and return 1 if one could not be."""
    network = only_network(args)
    found = [*(_of_host_local(args) if args.kind == "host-local" else _of_whereabouts(args))]
    failed = taken = 0
    with network.open_holdings() as holdings:
        allocator = BlockAllocator(holdings, [pool.range_set for pool in network.pools])
        for address, owner, obstacle in found:
            if not obstacle and not any(pool.range_set.holds(address) for pool in network.pools):
                obstacle = f"it is in no range of network {network.name}"
            if obstacle:
                print(f"{address}  {owner}: left out, {obstacle}")
                continue
            try:
                if not args.dry_run:
                    _take(allocator, Lease(address, owner))
            except CNIError as exc:
                failed += 1
                print(f"cnisdk: {address}  {owner}: {exc}", file=sys.stderr)
                continue
            taken += 1
            print(f"{address}  {owner}: " + ("to be taken over" if args.dry_run else "taken over"))
    print(f"leases taken over: {taken} of {len(found)}")
    return 1 if failed else 0


def _take(allocator: BlockAllocator, lease: Lease) -> None:
    """Get the address for this node, and lease it to its owner."""
    allocator.obtain(lease.address)
    holdings = allocator.holdings

    def change(transaction: Transaction) -> Owner | None:
        owner = transaction.find_owner(lease.address)
        if owner is None:
            transaction.reserve(lease.address, lease.owner)
        return owner

    owner = holdings.store.update(change, timeout=holdings.timeout)
    if owner is None and not holdings.read().holds(lease.address):
        release_exactly(holdings.store, [lease], timeout=holdings.timeout)
        raise IOFailureError(f"{lease.address} has just been given back", details="run the command again")
    if owner not in (None, lease.owner):
        raise IOFailureError(f"{lease.address} is leased to {owner} by now")


def _of_host_local(args: argparse.Namespace) -> Iterator[Found]:
    path = os.path.abspath(args.path)
    if not os.path.isdir(path):
        raise IOFailureError(f"there is no directory {path}")
    for lease in FileTable(FileStore(os.path.dirname(path), os.path.basename(path))).examine().leases:
        owner = lease.owner._replace(ifname=lease.owner.ifname or args.ifname)
        yield Found(lease.address, owner, _obstacle(owner))


def _obstacle(owner: Owner) -> str:
    if not owner.container_id:
        return "it names no container"
    return "" if owner.ifname else "it names no interface: say --ifname"


def _of_whereabouts(args: argparse.Namespace) -> Iterator[Found]:
    """Read pools, as its API has them (api/whereabouts.cni.cncf.io/v1alpha1/ippool_types.go): one, or a list."""
    here = _list_containers(args)
    document = _read_json(args.path)
    items = document.get("items") if isinstance(document, dict) else None
    pools = items if isinstance(items, list) else [document]
    names = [_name_of(each) for each in pools]
    if args.pool and args.pool not in names:
        raise InvalidConfigError(
            f"{args.path} has no IPPool {args.pool}", details=f"there are {', '.join(filter(None, names)) or 'none'}"
        )
    for name, pool in zip(names, pools, strict=True):
        if args.pool in ("", name):
            try:
                yield from _of_pool(pool, here, args.ifname)
            except (KeyError, TypeError, ValueError, AttributeError) as exc:
                raise InvalidConfigError(
                    f"{args.path} has no IPPools of whereabouts: {name_and_text(exc)}",
                    details="expected the output of `kubectl get ippools.whereabouts.cni.cncf.io -A -o json`",
                ) from exc


def _name_of(pool: Any) -> str:
    """Return a pool's name: its range, after the names of the network and of the node where it has these."""
    metadata = pool.get("metadata") if isinstance(pool, dict) else None
    return str(metadata.get("name") or "") if isinstance(metadata, dict) else ""


def _of_pool(pool: Mapping[str, Any], here: Collection[str], ifname: str) -> Iterator[Found]:
    """Read a pool: its allocations are numbered from the address of its range on, as that is written.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It is none.
    """
    if pool.get("kind") != "IPPool":
        raise ValueError(f"kind is {pool.get('kind')}")
    spec = pool["spec"]
    first = ip_interface(str(spec["range"])).ip
    # Whereabouts passes over a number that is none.
    allocations = {int(offset): value for offset, value in (spec["allocations"] or {}).items() if offset.isdecimal()}
    for offset, value in sorted(allocations.items()):
        owner = Owner(str(value["id"]), str(value.get("ifname") or ifname))
        elsewhere = "" if owner.container_id in here else f"no runtime here knows its container{_pod_of(value)}"
        yield Found(first + offset, owner, _obstacle(owner) or elsewhere)


def _pod_of(value: Mapping[str, Any]) -> str:
    return f", of pod {value['podref']}" if value.get("podref") else ""


def _list_containers(args: argparse.Namespace) -> frozenset[str]:
    """Return the containers whose results the runtimes of this node have cached."""
    memory = read_all(find_places(known_directories(args.cache_dir)), "")
    return frozenset(each.entry.attachment.container_id for each in memory.entries)


def _read_json(path: str) -> Any:
    try:
        if path == "-":
            return json.load(sys.stdin)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as exc:
        raise IOFailureError(f"cannot read {path}: {cause_of(exc)}") from exc
