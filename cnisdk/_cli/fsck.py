"""``cnisdk fsck``: find broken leases and cached results, and repair those that have one right repair."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from .._releasing import releasing
from ..errors import CNIError
from ..ipam.store import NOBODY, Owner
from ..ipam.table import LeaseRecord
from ..runtime.caches import Unreadable, addresses_of, forget
from ..runtime.liveness import EARLIER_BOOT, Liveness, Traces, assess
from ..spec.addresses import IPAddress
from ..spec.names import Attachment
from .attachments import HostState, JudgedAttachment, JudgedNetwork, JudgedTable, add_shared_arguments, judge_host
from .lastlook import BUSY, find_return

# Age in seconds from which an empty cached result counts as broken. libcni creates the file before it writes it.
_SETTLED = 60.0


DESCRIPTION = (
    "Look for torn and empty lease files, leases and cached results of earlier boots, entries of the "
    "index without lease, attachments with two addresses of one range set, and torn and empty cached results. "
    "Repair those that have one right repair: nothing that a container may need is deleted. The exit status is 0 "
    "when nothing broken is left."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("network", metavar="NETWORK", nargs="?", default="", help="only this network")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what is wrong")
    add_shared_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check and repair, and return 1 if anything broken is left."""
    host = judge_host(args, args.network)
    left = 0
    for note in host.notes:
        print(f"cnisdk: {note}", file=sys.stderr)
    for problem in (*host.problems, *host.memory.hidden):
        print(f"cnisdk: {problem}", file=sys.stderr)
        left += 1
    for each in host.memory.unreadable:
        left += _check_unreadable(args, host, each)
    for state in host.networks:
        checks = [partial(_check_boots, args, host, state)]
        for table in state.tables:
            checks += [partial(_check_table, args, table), partial(_check_duplicates, args, host, state, table)]
        left += sum(map(_attempt, checks))
    states = [each for each in host.networks if each.tables or each.network is not None]
    if args.network and not states:
        print(f"cnisdk: there is no network {args.network}, nor a directory of its leases", file=sys.stderr)
        return 1
    if not left:
        print(f"networks looked at: {len(states)}; nothing broken is left")
    return 1 if left else 0


def _attempt(check: Callable[[], int]) -> int:
    """Run a check. If a repair fails, such as on a disk that is read-only by now, go on with the others."""
    try:
        return check()
    except CNIError as exc:
        print(f"cnisdk: {exc}", file=sys.stderr)
        return 1


def _check_unreadable(args: argparse.Namespace, host: HostState, found: Unreadable) -> int:
    """Check a cached result that cannot be read. A torn one is removed, unless its attachment may need it."""
    problem = found.text
    if found.problem not in ("empty", "torn"):
        return _report(args, found.path, problem, False)
    if found.age < _SETTLED:
        return _report(args, found.path, f"{problem}, or is still being written: look again in a minute", False)
    if found.problem == "torn":  # its readable part may be of use while the container lives
        stays = next((why for why in _reasons_to_keep(host, found) if why), "")
        if stays:
            return _report(args, found.path, f"{problem}; it stays: {stays}", False)
    if not args.dry_run:
        try:
            if not forget(found):
                return _report(args, found.path, f"{problem}, and has changed since: look again", False)
        except OSError as exc:
            return _report(args, found.path, f"{problem}, and cannot be removed: {exc.strerror}", False)
    return _report(args, found.path, problem, True)


def _reasons_to_keep(host: HostState, found: Unreadable) -> list[str]:
    """Return reasons why an attachment that the file may belong to may be alive. The file itself is no reason."""
    reasons = list(host.seen.doubts)
    candidates = [
        each.traces for state in host.networks for each in state.attachments if found in each.traces.unreadable
    ]
    # Names may contain "-", so the name of the file can be split in several ways.
    parts = found.path.rpartition("/")[2].split("-")
    for first in range(1, len(parts) - 1):
        for second in range(first + 1, len(parts)):
            names = "-".join(parts[:first]), "-".join(parts[first:second]), "-".join(parts[second:])
            if not any(each.attachment == names for each in candidates):
                candidates.append(Traces(Attachment(*names)))
    for traces in candidates:
        verdict = assess(traces._replace(unreadable=()), host.seen, grace=_SETTLED)
        if verdict.state == "alive" or (verdict.kind == "doubt" and traces.entries):
            reasons.append(verdict.why)
    return reasons


def _check_boots(args: argparse.Namespace, host: HostState, state: JudgedNetwork) -> int:
    """Drop leases and cached results of attachments that ended with an earlier boot."""
    left = 0
    for each in state.attachments:
        if not _ended(each.verdict):
            continue
        if args.dry_run:
            left += _drop(args, each)
            continue
        with releasing(each.traces.attachment) as alone:  # an ADD of its names waits
            back = find_return(args, host, each, begun=True) if alone else BUSY
            if not back:
                left += _drop(args, each)
                continue
        paths = [held.path for held in each.held] + [entry.path for entry in each.traces.entries]
        left += _report(args, paths[0], f"of {each.owner}: {EARLIER_BOOT}; it stays: {back}", False)
    return left


def _drop(args: argparse.Namespace, each: JudgedAttachment) -> int:
    """Drop the cached results and leases of an attachment, and return how many are left."""
    left = 0
    problem = f"of {each.owner}: {EARLIER_BOOT}"
    for entry in each.traces.entries:
        if entry.entry.attachment != each.traces.attachment:
            continue  # judged on its own
        try:
            if args.dry_run or forget(entry):  # or else a runtime has written another one, or removed it
                left += _report(args, entry.path, problem, True)
        except OSError as exc:
            left += _report(args, entry.path, f"{problem}, but cannot be removed: {exc.strerror}", False)
    for held in each.held if args.dry_run else each.drop_leases(timeout=args.timeout):
        left += _report(args, held.path, problem, True)
    return left


def _ended(verdict: Liveness) -> bool:
    return verdict.kind in ("ended", "earlier")


def _check_table(args: argparse.Namespace, state: JudgedTable) -> int:
    """Report and repair the other findings in a table of leases."""
    left = 0
    # Findings with an owner are leases of earlier boots. _check_boots judges these with their attachment.
    findings = [each for each in state.examination.findings if each.owner == NOBODY]
    done = set() if args.dry_run else set(state.table.repair(findings, timeout=args.timeout))
    for finding in findings:
        broken = _report(args, finding.path, finding.problem, bool(finding.repair) if args.dry_run else finding in done)
        left += 0 if finding.harmless else broken
    return left


def _report(args: argparse.Namespace, path: str, problem: str, repairable: bool) -> int:
    """Print a line about a problem, and return 1 if the problem remains."""
    if not repairable:
        print(f"{path} {problem}")
        return 1
    print(f"{path} {problem}: " + ("to be repaired" if args.dry_run else "repaired"))
    return 1 if args.dry_run else 0


def _check_duplicates(args: argparse.Namespace, host: HostState, state: JudgedNetwork, found: JudgedTable) -> int:
    """Find attachments with two addresses of a range set. Addresses that are not in the cached result are surplus."""
    left = 0
    judged = {each.owner: each for each in state.attachments}
    table = found.table
    for pool in table.pools:
        by_owner: dict[Owner, list[LeaseRecord]] = {}
        for each in found.examination.leases:
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
                left += _report(args, table.place, f"{text}, and no cached result says which it uses", False)
            elif surplus:
                which = " and ".join(str(each.address) for each in surplus)
                text = f"{text}, but its cached result lacks {which}"
                stays = next(_reasons_to_keep_surplus(host, judged[owner], found, surplus), "")
                if not stays and min(each.age for each in surplus) < args.grace:
                    stays = "it is too young"
                if stays:
                    left += _report(args, table.place, f"{text}; it stays: {stays}", False)
                    continue
                done = args.dry_run or len(table.drop(surplus, timeout=args.timeout)) == len(surplus)
                left += _report(args, table.place, text, done)
    return left


def _reasons_to_keep_surplus(
    host: HostState, judgement: JudgedAttachment, found: JudgedTable, surplus: Iterable[LeaseRecord]
) -> Iterator[str]:
    """Yield reasons why leases that no cached result of their attachment names may be in use."""
    yield from host.seen.doubts
    yield from (f"its cached result {each.path} {each.text}" for each in judgement.traces.unreadable)
    if not found.examination.exclusive:
        yield "other machines may write to the place of its leases"
    process = host.seen.working.get(judgement.owner.container_id)
    if process:
        yield f"{process} is at work on it"
    for each in surplus:
        place = host.seen.find_address(each.address)
        if place:
            yield f"its address {each.address} is on {place}"


def _addresses(judgement: JudgedAttachment) -> frozenset[IPAddress]:
    """Return the addresses in the cached results of an attachment; empty if they cannot be read."""
    return frozenset(address for entry in judgement.traces.entries for address in addresses_of(entry))
