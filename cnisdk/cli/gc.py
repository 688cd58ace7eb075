"""``cnisdk gc``: release what attachments left that are provably dead."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import CNIError, InvalidEnvironmentError, IOFailureError
from ..invoke.find import split_path
from ..ipam.examine import drop
from ..linux import veth
from ..runtime.cache import DEFAULT_CACHE_DIR
from ..runtime.caches import Remembered, forget
from ..runtime.liveness import Verdict, namespace_of
from ..runtime.load import load_network
from ..runtime.network import Network
from ..runtime.runner import Runtime
from ..runtime.survey import find_obstacle, look_at
from ..spec.names import Attachment
from .attachments import Judgement, Situation, add_arguments, look

_PAUSE = 1.0
# No process has this number, so the path leads nowhere for ever.
_NO_NAMESPACE = "/proc/0/ns/net"


def register(subparsers: Any) -> None:
    """Add the parser."""
    parser = subparsers.add_parser(
        "gc",
        help="release what attachments left that are provably dead",
        description="Judge each attachment of a network that a lease or a runtime's cached result speaks of. Those "
        "that are provably dead, at two looks with a pause between them, get their DEL, and their leases and cached "
        "results are dropped. Everything else stays; what cannot be judged is listed with the reason. It may run "
        "beside ADD and DEL, but for --plugins.",
    )
    parser.add_argument("network", metavar="NETWORK", help="name of the network")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be dropped")
    parser.add_argument(
        "--plugins",
        action="store_true",
        help="also run the GC of the network's plugins, with a list of all attachments that are not dead. One that is "
        "being made meanwhile is not on the list, and would lose what it has: only while no container is being started "
        "(spec §3)",
    )
    parser.add_argument(
        "--pause", metavar="SECONDS", type=float, default=_PAUSE, help="time between the two looks (%(default)g)"
    )
    parser.add_argument(
        "--cni-path",
        metavar="DIR:DIR",
        default=os.environ.get("CNI_PATH") or "/opt/cni/bin",
        help="directories with plugins (CNI_PATH, %(default)s)",
    )
    add_arguments(parser)


def run(args: argparse.Namespace, *, pause: Callable[[float], object] = time.sleep) -> int:
    """Do it, or say what would be done.

    Args:
        args: The parsed arguments.
        pause: Waits, for so many seconds.
    """
    network = load_network(args.conf_dir, args.network, on_problem=lambda problem: _warn(str(problem)))
    obstacle = "" if args.inside else find_obstacle()
    if obstacle:
        raise InvalidEnvironmentError(
            f"nothing was done, since who is dead cannot be told from here: {obstacle}",
            details="run it as root on the host itself, such as with nsenter --target 1 --mount --net; "
            "--inside is for a node that is itself a container",
        )
    if network.disable_gc:
        print(f'network "{network.name}" sets disableGC: nothing was done')
        return 0
    situation = look(args, network.name)
    for found in situation.memory.unreadable:
        _warn(f"{found.path} {found.text}")
    attachments = _attachments(situation)
    dead = [each for each in attachments if each.verdict.state == "dead"]
    if dead and not args.dry_run:
        pause(args.pause)
        before = {each.owner: each.stamps for each in dead}
        situation = look(args, network.name)
        attachments = [_at_second_look(each, before) for each in _attachments(situation)]
        dead = [each for each in attachments if each.verdict.state == "dead"]
    for each in attachments:
        if each.verdict.state == "unknown":
            _say("keep", situation, each)
    failures: list[CNIError] = []
    for each in dead:
        _say("would drop" if args.dry_run else "drop", situation, each)
        if not args.dry_run:
            try:
                _drop(args, network, situation, each)
            except CNIError as exc:
                failures.append(type(exc)(f"{each.owner}: {exc.msg}", details=exc.details, code=exc.code))
    _sum_up(attachments)
    if args.plugins and not args.dry_run:
        try:
            _run_plugins(args, network)
        except CNIError as exc:
            failures.append(exc)
    for failure in failures[1:]:
        _warn(str(failure))
    if failures:
        raise failures[0]
    return 0


def _attachments(situation: Situation) -> list[Judgement]:
    return [each for state in situation.networks for each in state.attachments]


def _at_second_look(now: Judgement, before: dict[Any, frozenset[tuple[int, int]]]) -> Judgement:
    """What was not dead at the first look as well, or is another attachment by now, stays."""
    if now.verdict.state != "dead" or before.get(now.owner) == now.stamps:
        return now
    return now._replace(verdict=Verdict("unknown", "it was not so at the first look", "doubt"))


def _drop(args: argparse.Namespace, network: Network, situation: Situation, each: Judgement) -> None:
    """Have the plugins delete an attachment, and drop what then is still there of it."""
    attachment = each.traces.attachment
    if attachment.ifname:
        entries: list[Remembered | None] = [*each.traces.entries]
        for entry in entries or [None]:
            if _is_back(each):
                print(f"keep {each.owner}: it is there again")
                return
            directory = DEFAULT_CACHE_DIR if entry is None else entry.cache_dir
            runtime = Runtime(split_path(args.cni_path), cache_dir=directory, on_warning=_warn)
            path = "" if entry is None else namespace_of(entry)
            runtime.delete(
                network,
                container_id=attachment.container_id,
                # The number of a process may be another container's by now.
                netns=_NO_NAMESPACE if path.startswith("/proc/") else path,
                ifname=attachment.ifname,
            )
    for state in situation.networks:
        if state.store is not None and each.leases:
            drop(state.store, each.leases, timeout=args.timeout)
    for entry in each.traces.entries:
        if entry.entry.attachment != attachment:
            continue  # it is judged itself
        try:
            forget(entry)
        except OSError as exc:
            raise IOFailureError(f"cannot remove {entry.path}: {exc.strerror}") from exc


def _is_back(each: Judgement) -> bool:
    """Has it been made again since the second look? That took its time where many were dropped."""
    if veth.find_host_end(each.traces.attachment) is not None:
        return True
    paths = [path for path in map(namespace_of, each.traces.entries) if path and not path.startswith("/proc/")]
    return any(look_at(path).found == "there" for path in paths)


def _run_plugins(args: argparse.Namespace, network: Network) -> None:
    """Run the plugins' GC with the list of everything that is not dead."""
    situation = look(args, network.name)
    valid = {valid_name(each.traces.attachment) for each in _attachments(situation) if each.verdict.state != "dead"}
    runtime = Runtime(split_path(args.cni_path), on_warning=_warn)
    # None is to be deleted here: the dead were, and the others are alive, or could not be judged.
    valid |= {valid_name(entry.attachment) for entry in runtime.cache.entries(network.name)[0]}
    marked, hashed = situation.seen.find_marked(network.name)
    valid |= set(marked)
    unknown = set(hashed) - {Attachment(network.name, *each).tag for each in valid}
    if unknown:
        raise InvalidEnvironmentError(
            f"the plugins were not asked: the links of {len(unknown)} attachments exist, whose names are not known",
            details=f"links with the alias {', '.join(sorted(unknown))}",
        )
    for note in runtime.gc(network, sorted(valid)).notes:
        _warn(note)


def valid_name(attachment: Attachment) -> tuple[str, str]:
    """As the list of valid attachments has it; any interface keeps an old record, which names none."""
    return attachment.container_id, attachment.ifname or "eth0"


def _say(verb: str, situation: Situation, each: Judgement) -> None:
    """Print a line for each thing it has."""
    why = each.verdict.why
    for entry in each.traces.entries:
        if entry.entry.attachment == each.traces.attachment:
            print(f"{verb} cached result {entry.path} of {each.owner}: {why}")
    for lease in each.leases:
        print(f"{verb} {lease.address} of {each.owner}: {why}")


def _sum_up(attachments: Iterable[Judgement]) -> None:
    states = [each.verdict.state for each in attachments]
    kept = f", {states.count('unknown')} kept since they cannot be judged" if "unknown" in states else ""
    print(f"attachments: {states.count('alive')} alive, {states.count('dead')} dead{kept}")


def _warn(text: str) -> None:
    print(f"cnisdk: {text}", file=sys.stderr)
