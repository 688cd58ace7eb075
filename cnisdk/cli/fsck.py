"""``cnisdk fsck``: find what is broken among leases and cached results, and repair what has one right repair."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..ipam.examine import Finding, LeaseFile, drop, repair
from ..ipam.store import Owner
from ..runtime.caches import Unreadable, forget
from ..runtime.liveness import EARLIER_BOOT, Traces, Verdict, addresses_of, assess
from ..spec.addresses import IPAddress
from ..spec.names import Attachment
from .attachments import Judgement, NetworkState, Situation, add_arguments, look

# Seconds. A runtime written in Go makes a cached result first, and fills it then.
_SETTLED = 60.0


def register(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "fsck",
        help="find broken state, and repair it",
        description="Look for torn and empty lease files, leases and cached results of earlier boots, entries of the "
        "index without lease, attachments with two addresses of one range set, and torn and empty cached results. "
        "Repair what has one right repair: nothing that anybody may still need is deleted. The status is 0 when "
        "nothing broken is left.",
    )
    parser.add_argument("network", metavar="NETWORK", nargs="?", default="", help="only this network")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what is wrong")
    add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check, and repair."""
    situation = look(args, args.network)
    left = 0
    for problem in (*situation.problems, *situation.memory.hidden):
        print(f"cnisdk: {problem}", file=sys.stderr)
        left += 1
    for each in situation.memory.unreadable:
        left += _check_unreadable(args, situation, each)
    for state in situation.networks:
        left += _check_boots(args, state)
        left += _check_store(args, state)
        left += _check_duplicates(args, situation, state)
    states = [each for each in situation.networks if each.store is not None or each.network is not None]
    if args.network and not states:
        print(f"cnisdk: there is no network {args.network}, nor a directory of its leases", file=sys.stderr)
        return 1
    if not left:
        print(f"networks looked at: {len(states)}; nothing broken is left")
    return 1 if left else 0


def _check_unreadable(args: argparse.Namespace, situation: Situation, found: Unreadable) -> int:
    """A cached result that tells nothing. One that was cut short is removed, unless its attachment may need it."""
    problem = found.text
    if found.problem not in ("empty", "torn"):
        return _report(args, found.path, problem, False)
    if found.age < _SETTLED:
        return _report(args, found.path, f"{problem}, or is still at it: look again in a minute", False)
    if found.problem == "torn":  # what there is of it may be of use while the container lives
        stays = next((why for why in _reasons_to_keep(situation, found) if why), "")
        if stays:
            return _report(args, found.path, f"{problem}; it stays: {stays}", False)
    if not args.dry_run:
        try:
            forget(found)
        except OSError as exc:
            return _report(args, found.path, f"{problem}, and cannot be removed: {exc.strerror}", False)
    return _report(args, found.path, problem, True)


def _reasons_to_keep(situation: Situation, found: Unreadable) -> list[str]:
    """Why an attachment that a file may have been of may be alive, without what the file itself says; or empty."""
    reasons = list(situation.seen.doubts)
    candidates = [
        each.traces for state in situation.networks for each in state.attachments if found in each.traces.unreadable
    ]
    # Where "-" is part of a name, the name of the file can be taken apart in several ways.
    parts = found.path.rpartition("/")[2].split("-")
    for first in range(1, len(parts) - 1):
        for second in range(first + 1, len(parts)):
            names = "-".join(parts[:first]), "-".join(parts[first:second]), "-".join(parts[second:])
            if not any(each.attachment == names for each in candidates):
                candidates.append(Traces(Attachment(*names)))
    for traces in candidates:
        verdict = assess(traces._replace(unreadable=()), situation.seen, grace=_SETTLED)
        if verdict.state == "alive" or (verdict.kind == "doubt" and traces.entries):
            reasons.append(verdict.why)
    return reasons


def _check_boots(args: argparse.Namespace, state: NetworkState) -> int:
    """Leases and cached results of attachments that ended with an earlier boot."""
    left = 0
    for each in state.attachments:
        if not _ended(each.verdict):
            continue
        own = [entry for entry in each.traces.entries if entry.entry.attachment == each.traces.attachment]
        for entry in own:
            if not args.dry_run:
                try:
                    forget(entry)
                except OSError as exc:
                    problem = f"of {each.owner}: {EARLIER_BOOT}, but cannot be removed: {exc.strerror}"
                    left += _report(args, entry.path, problem, False)
                    continue
            left += _report(args, entry.path, f"of {each.owner}: {EARLIER_BOOT}", True)
        if state.store is not None:
            done = each.leases if args.dry_run else drop(state.store, each.leases, timeout=args.timeout)
            for lease in done:
                left += _report(args, f"{state.store.path}/{lease.address}", f"of {each.owner}: {EARLIER_BOOT}", True)
    return left


def _ended(verdict: Verdict) -> bool:
    return verdict.kind in ("ended", "earlier")


def _check_store(args: argparse.Namespace, state: NetworkState) -> int:
    """What else is wrong with the directory of leases, and its index."""
    if state.store is None:
        return 0
    left = 0
    # Whether a lease is of an earlier boot is judged with everything else that is known of its attachment.
    findings = [each for each in state.examination.findings if not _is_of_boot(each)]
    done = set() if args.dry_run else set(repair(state.store, findings, timeout=args.timeout))
    for finding in findings:
        # A foreign file that disturbs nobody is worth a line, but is nothing broken.
        broken = _report(args, finding.path, finding.problem, finding in done or bool(finding.repair))
        left += broken if finding.repair or "keeps" in finding.problem else 0
    return left


def _is_of_boot(finding: Finding) -> bool:
    return finding.repair == "delete" and finding.expected != Owner("")


def _report(args: argparse.Namespace, path: str, problem: str, repairable: bool) -> int:
    """Print a line, and return 1 if the problem stays."""
    if not repairable:
        print(f"{path} {problem}")
        return 1
    print(f"{path} {problem}: " + ("to be repaired" if args.dry_run else "repaired"))
    return 1 if args.dry_run else 0


def _check_duplicates(args: argparse.Namespace, situation: Situation, state: NetworkState) -> int:
    """Attachments with more than one address of a range set: those not in the cached result are left over."""
    left = 0
    judged = {each.owner: each for each in state.attachments}
    if state.store is None:
        return 0
    for pool in state.pools:
        by_owner: dict[Owner, list[LeaseFile]] = {}
        for each in state.examination.leases:
            if each.owner.ifname and pool.range_set.holds(each.address):
                by_owner.setdefault(each.owner, []).append(each)
        for owner, leases in by_owner.items():
            if len(leases) < 2:
                continue
            addresses = " and ".join(str(each.address) for each in leases)
            if _ended(judged[owner].verdict):
                continue
            used = _addresses(judged[owner])
            surplus = [each for each in leases if each.address not in used]
            text = f"{owner} holds {addresses} of {pool.range_set}"
            if len(surplus) == len(leases):
                left += _report(args, state.store.path, f"{text}, and no cached result says which it uses", False)
            elif surplus:
                which = " and ".join(str(each.address) for each in surplus)
                text = f"{text}, of which its result has not {which}"
                seen = (situation.seen.find_address(each.address) for each in surplus)
                stays = next(filter(None, (*situation.seen.doubts, *seen)), "")
                if stays or min(each.age for each in surplus) < args.grace:
                    left += _report(args, state.store.path, f"{text}; it stays: {stays or 'it is too young'}", False)
                    continue
                left += _report(args, state.store.path, text, True)
                if not args.dry_run:
                    drop(state.store, surplus, timeout=args.timeout)
    return left


def _addresses(judgement: Judgement) -> frozenset[IPAddress]:
    """The addresses of the cached results; none when they cannot be understood."""
    return frozenset(address for entry in judgement.traces.entries for address in addresses_of(entry))
