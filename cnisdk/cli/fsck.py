"""``cnisdk fsck``: find what is broken among leases and cached results, and repair what has one right repair."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

from ..errors import CNIError
from ..ipam.allocator import release_exactly
from ..ipam.examine import repair
from ..runtime.cache import Cache, CachedAttachment
from ..spec.addresses import IPAddress
from ..spec.codec import structure
from ..spec.convert import structure_result, upgrade
from .attachments import Judged, NetworkState, add_arguments, as_lease, load_states


def register(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "fsck",
        help="find broken state, and repair it",
        description="Look for torn and empty lease files, leases of earlier boots, entries of the index without lease, "
        "attachments with two addresses of one range set, and empty cached results. Repair what has one right "
        "repair: nothing that anybody may still need is deleted. The status is 0 when nothing broken is left.",
    )
    parser.add_argument("network", metavar="NETWORK", nargs="?", default="", help="only this network")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what is wrong")
    add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check, and repair."""
    states, problems = load_states(args, args.network)
    left = 0
    cache = Cache(args.cache_dir)
    for path in _empty_results(cache, args.network):
        left += _report(args, path, "is empty: the runtime was killed when it wrote the result", True)
        if not args.dry_run:
            os.unlink(path)
    for problem in problems:
        if "is empty" not in problem:
            print(f"cnisdk: {problem}", file=sys.stderr)
            left += 1
    for state in states:
        findings = state.examination.findings
        done = set() if args.dry_run else set(repair(state.store, findings, timeout=args.timeout))
        for finding in findings:
            # A foreign file that disturbs nobody is worth a line, but is nothing broken.
            broken = _report(args, finding.path, finding.problem, finding in done or bool(finding.repair))
            left += broken if finding.repair or "keeps" in finding.problem else 0
        left += _check_duplicates(args, state, cache)
    if args.network and not states:
        print(f"cnisdk: there is no network {args.network}, nor a directory of its leases", file=sys.stderr)
        return 1
    if not left:
        print(f"networks looked at: {len(states)}; nothing broken is left")
    return 1 if left else 0


def _report(args: argparse.Namespace, path: str, problem: str, repairable: bool) -> int:
    """Print a line, and return 1 if the problem stays."""
    if not repairable:
        print(f"{path} {problem}")
        return 1
    print(f"{path} {problem}: " + ("to be repaired" if args.dry_run else "repaired"))
    return 1 if args.dry_run else 0


_SETTLED = 60.0  # seconds


def _empty_results(cache: Cache, network: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(cache.directory))
    except OSError:
        return
    for name in names:
        path = os.path.join(cache.directory, name)
        if not name.startswith(".") and name.startswith(f"{network}-" if network else ""):
            try:
                about = os.stat(path)
                # A runtime written in Go makes the file first, and fills it then.
                if stat.S_ISREG(about.st_mode) and about.st_size == 0 and time.time() - about.st_mtime > _SETTLED:
                    yield path
            except OSError:
                continue


def _check_duplicates(args: argparse.Namespace, state: NetworkState, cache: Cache) -> int:
    """Attachments with more than one address of a range set: those not in the cached result are left over."""
    left = 0
    entries = {
        (entry.attachment.container_id, entry.attachment.ifname): entry for entry in cache.entries(state.name)[0]
    }
    for pool in state.pools:
        by_owner: dict[tuple[str, str], list[Judged]] = {}
        for each in state.leases:
            if each.lease.owner.ifname and pool.range_set.holds(each.lease.address):
                by_owner.setdefault(each.lease.owner, []).append(each)
        for owner, leases in by_owner.items():
            if len(leases) < 2:
                continue
            addresses = " and ".join(str(each.lease.address) for each in leases)
            entry = entries.get(owner)
            used = _addresses(entry) if entry is not None else frozenset()
            surplus = [each for each in leases if each.lease.address not in used]
            text = f"container {owner[0]} interface {owner[1]} holds {addresses} of {pool.range_set}"
            if len(surplus) == len(leases):
                left += _report(args, state.store.path, f"{text}, and no cached result says which it uses", False)
            elif surplus:
                which = " and ".join(str(each.lease.address) for each in surplus)
                left += _report(args, state.store.path, f"{text}, of which its result has not {which}", True)
                if not args.dry_run:
                    release_exactly(state.store, [as_lease(each) for each in surplus], timeout=args.timeout)
    return left


def _addresses(entry: CachedAttachment) -> frozenset[IPAddress]:
    """The addresses of a cached result; none when it cannot be understood."""
    try:
        if entry.result is None:
            return frozenset()
        version = structure(entry.result.get("cniVersion", ""), str)
        return frozenset(ip.address.ip for ip in upgrade(structure_result(entry.result, version)).ips)
    except CNIError:
        return frozenset()
