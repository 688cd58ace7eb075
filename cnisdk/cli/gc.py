"""``cnisdk gc``: release leases and cached attachments whose container is gone."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ..errors import CNIError, InvalidConfigError, InvalidEnvironmentError
from ..invoke.find import split_path
from ..ipam.allocator import release_exactly
from ..runtime.cache import Cache
from ..runtime.load import load_network
from ..runtime.runner import Runtime
from ..spec.names import Attachment
from .attachments import Judged, NetworkState, add_arguments, as_lease, describe_age, judge_entry, load_states

_GRACE = 600.0


def register(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "gc",
        help="release leases and cached attachments whose container is gone",
        description="Work out which attachments of a network are valid, say what would be dropped and why, and run the "
        "network's GC. An attachment is valid when the runtime remembers it and its network namespace exists, or "
        "cannot be looked at. A lease the runtime does not remember is dropped when it is older than the grace "
        "period: a runtime that keeps its cache elsewhere needs --cache-dir. Do not run it while containers are being "
        "started (spec §3).",
    )
    parser.add_argument("network", metavar="NETWORK", help="name of the network")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be dropped")
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=float,
        default=_GRACE,
        help="keep leases that are younger, remembered or not: their ADD may still be running (%(default)g)",
    )
    parser.add_argument(
        "--cni-path",
        metavar="DIR:DIR",
        default=os.environ.get("CNI_PATH") or "/opt/cni/bin",
        help="directories with plugins (CNI_PATH, %(default)s)",
    )
    add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do it, or say what would be done."""
    network = load_network(args.conf_dir, args.network, on_problem=lambda problem: _warn(str(problem)))
    cache = Cache(args.cache_dir)
    entries, unreadable = cache.entries(network.name)
    if unreadable:
        raise InvalidConfigError(
            f"{len(unreadable)} cached results cannot be read, so nobody knows what is valid",
            details="; ".join(map(str, unreadable)) + "; delete what they describe by hand, or run cnisdk fsck",
        )
    states, _ = load_states(args, network.name)
    state = states[0] if states else None
    if state is not None and state.leases and not os.path.isdir(Cache(args.cache_dir).directory):
        raise InvalidEnvironmentError(
            f"there are leases, but no remembered attachments in {Cache(args.cache_dir).directory}: nothing was done",
            details="--cache-dir is the directory of the runtime that made them",
        )

    valid: set[tuple[str, str]] = set()
    for entry in entries:
        condition, why, _ = judge_entry(entry)
        if condition == "dead":
            _say(args, f"cached attachment {_show(entry.attachment)}: {why}")
        else:
            valid.add((entry.attachment.container_id, entry.attachment.ifname))
    stale = _stale_leases(args, state, valid) if state is not None else []
    if args.dry_run:
        if not stale and len(valid) == len(entries):
            print("nothing to drop")
        return 0
    runtime = Runtime(split_path(args.cni_path), cache_dir=args.cache_dir, on_warning=_warn)
    failure: CNIError | None = None
    try:
        for note in runtime.gc(network, sorted(valid)).notes:
            _warn(note)
    except CNIError as exc:
        failure = exc
    if state is not None and not network.disable_gc:
        # Versions before 1.1.0 know no GC, and the reference's host-local does nothing when it is asked.
        release_exactly(state.store, [as_lease(each) for each in stale], timeout=args.timeout)
    if failure is not None:
        raise failure
    return 0


def _stale_leases(args: argparse.Namespace, state: NetworkState, valid: set[tuple[str, str]]) -> list[Judged]:
    """What nobody needs; what is kept only for its age becomes valid."""
    containers = {container_id for container_id, _ in valid}
    stale = []
    for each in state.leases:
        owner = each.lease.owner
        if not owner.container_id or owner in valid or (not owner.ifname and owner.container_id in containers):
            continue
        if each.state == "unknown" and each.lease.age < args.grace:
            if owner.ifname:
                valid.add((owner.container_id, owner.ifname))
            print(f"keep {each.lease.address} of {owner}: it is only {describe_age(each.lease.age)} old")
            continue
        stale.append(each)
        _say(args, f"{each.lease.address} of {owner}: {each.why}")
    return stale


def _say(args: argparse.Namespace, text: str) -> None:
    print(f"{'would drop' if args.dry_run else 'drop'} {text}")


def _show(attachment: Attachment) -> str:
    return f"{attachment.container_id} {attachment.ifname}"


def _warn(text: str) -> None:
    print(f"cnisdk: {text}", file=sys.stderr)
