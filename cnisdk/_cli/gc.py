"""``cnisdk gc``: release leases, cached results and links of attachments that are provably dead.

1. Judge every attachment of the network (:func:`.attachments.judge_host`).
2. Pause, and judge again. An attachment counts as dead only if both judgements say so, about the same leases and cached
   results: their stamps are compared.
3. For each dead attachment, check that it has not come back, run DEL of the network's plugins, then drop the leases and
   cached results that are left. An ADD of our plugins that begins meanwhile waits (:mod:`cnisdk._releasing`).
4. With ``--plugins``, run the plugins' GC with the list of all attachments that are not dead. A network of a version
   that does not know GC has it in 1.1.0, of the plugins that offer that version.

The command may run beside ADD and DEL. An attachment that is being added is younger than ``--grace``, and is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress

from .._releasing import releasing, sweep
from ..errors import CNIError, InvalidEnvironmentError, IOFailureError, cause_of
from ..invoke.find import split_path
from ..ipam.store import Owner
from ..runtime.cache import DEFAULT_CACHE_DIR
from ..runtime.caches import (
    Remembered,
    find_places,
    forget,
    known_directories,
    namespace_of,
    read_all,
)
from ..runtime.liveness import Liveness
from ..runtime.load import NetworkNotFoundError, load_network
from ..runtime.network import Network
from ..runtime.runner import NO_NAMESPACE, Runtime
from ..spec.names import Attachment
from ..spec.versions import PREV_RESULT_SINCE, Verb
from .attachments import HostState, JudgedAttachment, add_shared_arguments, judge_host
from .lastlook import BUSY, find_return
from .options import add_cni_path, add_seconds, require_host

_PAUSE = 1.0


DESCRIPTION = (
    "Judge each attachment of a network that a lease or a runtime's cached result names. For those "
    "that are provably dead, twice with a pause in between, run DEL, and drop their leases and cached results. "
    "Everything else stays; attachments that cannot be judged are listed with the reason. Without --plugins, the "
    "command may run beside ADD and DEL."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("network", metavar="NETWORK", help="name of the network")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only print what would be dropped")
    parser.add_argument(
        "--plugins",
        action="store_true",
        help="also run the GC of the network's plugins, with a list of all attachments that are not dead. One that is "
        "being added meanwhile is not on the list, and would lose what it has. Use it only while no container is being "
        "started (spec §3). If the network's version is too old to know GC, but not older than 0.4.0, the plugins that "
        "offer 1.1.0 are asked in that version",
    )
    add_seconds(parser, "--pause", _PAUSE, "time between the two judgements")
    add_cni_path(parser, "plugins")
    add_shared_arguments(parser)


def run(args: argparse.Namespace, *, pause: Callable[[float], object] = time.sleep) -> int:
    """Release what dead attachments left, or print what would be released.

    Args:
        args: The parsed arguments.
        pause: Waits for a number of seconds.

    Raises:
        InvalidEnvironmentError: (4) From here it cannot be known what is dead.
        CNIError: The first of the errors of plugins and tables. The others are printed.
    """
    network = _get_network(args)
    require_host(args, "from here it cannot be known which attachments are dead")
    if network.disable_gc:
        print(f'network "{network.name}" sets disableGC: nothing was done')
        return 0
    host = judge_host(args, network.name)
    for note in host.notes:
        _warn(note)
    for found in host.memory.unreadable:
        _warn(f"{found.path} {found.text}")
    attachments = _attachments(host)
    dead = [each for each in attachments if each.verdict.state == "dead"]
    if dead and not args.dry_run:
        pause(args.pause)
        before = {each.owner: each.stamps for each in dead}
        host = judge_host(args, network.name)
        attachments = [_at_second_look(each, before) for each in _attachments(host)]
        dead = [each for each in attachments if each.verdict.state == "dead"]
    for each in attachments:
        if each.verdict.state == "unknown":
            _say("keep", each)
    failures: list[CNIError] = []
    left = _drop_all(args, host, network, dead, failures)
    if not args.dry_run:
        sweep()
    judged = {each.owner: each for each in dead}
    attachments = [judged.get(each.owner, each) for each in attachments]
    _sum_up(attachments, left)
    if args.plugins and not args.dry_run:
        try:
            kept = [each for each in attachments if each.verdict.state != "dead"]
            _run_plugins(args, network, kept)
        except CNIError as exc:
            failures.append(exc)
    for failure in failures[1:]:
        _warn(str(failure))
    if failures:
        raise failures[0]
    return 0


def _drop_all(
    args: argparse.Namespace,
    host: HostState,
    network: Network,
    dead: list[JudgedAttachment],
    failures: list[CNIError],
) -> int:
    """Drop all dead attachments, or print what would be dropped.

    Dropping many takes a while, in which runtimes go on: so those that are left are judged again now and then.

    Args:
        args: The arguments of the command.
        host: The last judgement.
        network: The network.
        dead: The attachments. One that is to be kept after all is replaced by the judgement that says why.
        failures: List for the errors.

    Returns:
        How many could not be released.
    """
    left = 0
    looked = time.monotonic()
    for number in range(len(dead)):
        late = time.monotonic() > looked + min(args.pause, _PAUSE)
        if late and not args.dry_run and dead[number].verdict.state == "dead":
            try:
                dead[number:] = _look_again(args, network, dead[number:])
            except CNIError as exc:
                failures.append(exc)
                dead[number:] = [_keep(each, "it cannot be judged again") for each in dead[number:]]
            looked = time.monotonic()
        each = dead[number]
        if each.verdict.state != "dead":
            _say("keep", each)
            continue
        _say("would drop" if args.dry_run else "drop", each)
        if args.dry_run:
            continue
        try:
            back = _drop_alone(args, host, network, each)
        except CNIError as exc:
            exc.msg = f"{each.owner}: {exc.msg}"
            failures.append(exc)
            print(f"keep {each.owner}: it could not be released")
            left += 1
            continue
        if back:
            print(f"keep {each.owner}: {back}")
            dead[number] = _keep(each, back)
    return left


def _get_network(args: argparse.Namespace) -> Network:
    """Load the network, from its file or else from the newest cached result that has its configuration.

    Raises:
        NetworkNotFoundError: (7) Neither is there.
        CNIError: The file is broken.
    """
    try:
        return load_network(args.conf_dir, args.network, on_problem=lambda problem: _warn(str(problem)))
    except NetworkNotFoundError as exc:
        # Podman's default network has no file, and one that was removed may have left attachments.
        memory = read_all(find_places(known_directories(args.cache_dir)), args.network)
        for each in sorted(memory.entries, key=lambda each: each.written, reverse=True):
            with suppress(CNIError):
                network = Network.parse(each.entry.config, path=f"in {each.path}")
                _warn(f"{exc.msg}: it is taken from {each.path}")
                return network
        raise


def _attachments(host: HostState) -> list[JudgedAttachment]:
    return [each for state in host.networks for each in state.attachments]


def _at_second_look(now: JudgedAttachment, before: dict[Owner, frozenset[Hashable]]) -> JudgedAttachment:
    """Keep an attachment that was not dead in the first judgement, or has been replaced by another since."""
    if now.verdict.state != "dead" or before.get(now.owner) == now.stamps:
        return now
    return _keep(now, "the first judgement was different")


def _look_again(args: argparse.Namespace, network: Network, left: list[JudgedAttachment]) -> list[JudgedAttachment]:
    """Judge again. What an earlier look has kept stays kept: dead is what all looks call dead.

    Raises:
        CNIError: The leases cannot be read.
    """
    now = {found.owner: found for found in _attachments(judge_host(args, network.name))}
    before = {each.owner: each.stamps for each in left}
    return [
        each if each.verdict.state != "dead" else _at_second_look(now.get(each.owner, each), before) for each in left
    ]


def _keep(each: JudgedAttachment, why: str) -> JudgedAttachment:
    return each._replace(verdict=Liveness("unknown", why, "doubt")) if each.verdict.state == "dead" else each


def _drop_alone(args: argparse.Namespace, host: HostState, network: Network, each: JudgedAttachment) -> str | None:
    """Drop an attachment, as :func:`_drop` does, while an ADD of its names waits."""
    with releasing(each.traces.attachment) as alone:
        return _drop(args, host, network, each) if alone else BUSY


def _drop(args: argparse.Namespace, host: HostState, network: Network, each: JudgedAttachment) -> str | None:
    """Run DEL for an attachment, then drop the leases and cached results that are left.

    Returns:
        A reason to keep the attachment: it has come back. None when it was dropped.
    """
    attachment = each.traces.attachment
    if attachment.ifname:
        entries: list[Remembered | None] = [*each.traces.entries]
        for number, entry in enumerate(entries or [None]):
            back = find_return(args, host, each, begun=number > 0)
            if back:
                return back
            directory = DEFAULT_CACHE_DIR if entry is None else entry.cache_dir
            runtime = Runtime(split_path(args.cni_path), cache_dir=directory, on_warning=_warn)
            path = "" if entry is None else namespace_of(entry)
            runtime.delete(
                network,
                container_id=attachment.container_id,
                # Its namespace is gone. Another container may get its path, or the process id in it, at any time.
                netns=NO_NAMESPACE if path else "",
                ifname=attachment.ifname,
            )
    each.drop_leases(timeout=args.timeout)
    for entry in each.traces.entries:
        if entry.entry.attachment != attachment:
            continue  # judged on its own
        try:
            forget(entry)
        except OSError as exc:
            raise IOFailureError(f"cannot remove {entry.path}: {cause_of(exc)}") from exc
    return None


def _run_plugins(args: argparse.Namespace, network: Network, kept: Iterable[JudgedAttachment]) -> None:
    """Run the plugins' GC with the list of all attachments that are not dead, and of those that were kept.

    Raises:
        InvalidEnvironmentError: (4) The list cannot be known to be complete.
        CNIError: The first error of the plugins.
    """
    host = judge_host(args, network.name)
    hidden = [*host.memory.hidden, *(f"{each.path} {each.text}" for each in host.memory.unreadable)]
    if hidden or not host.memory.places:
        raise InvalidEnvironmentError(
            "the plugins' GC was not run: not all attachments that live may be known",
            details="; ".join(hidden) or "no directory of a runtime was found; --cache-dir names one",
        )
    valid = {valid_name(each.traces.attachment) for each in _attachments(host) if each.verdict.state != "dead"}
    valid |= {valid_name(each.traces.attachment) for each in kept}
    runtime = Runtime(split_path(args.cni_path), on_warning=_warn)
    # Keep every cached result: the dead ones have been dropped, and the others are alive or could not be judged.
    valid |= {valid_name(entry.attachment) for entry in runtime.cache.entries(network.name)[0]}
    marked, hashed = host.seen.find_marked(network.name)
    valid |= set(marked)
    unknown = set(hashed) - {Attachment(network.name, *each).tag for each in valid}
    if unknown:
        raise InvalidEnvironmentError(
            f"the plugins' GC was not run: {len(unknown)} attachments have links, but their names are not known",
            details=f"links with the alias {', '.join(sorted(unknown))}; without --plugins, nothing of them is touched",
        )
    # From 0.4.0 on, a runtime hands DEL the result of ADD, so what lives is remembered, and is on the list.
    remembered = network.version >= PREV_RESULT_SINCE[Verb.DEL]
    for note in runtime.gc(network, sorted(valid), raise_version=remembered).notes:
        _warn(note)


def valid_name(attachment: Attachment) -> tuple[str, str]:
    """Return the entry for the list of valid attachments. An old record names no interface: any name keeps it."""
    return attachment.container_id, attachment.ifname or "eth0"


def _say(verb: str, each: JudgedAttachment) -> None:
    """Print a line for each cached result and lease of an attachment."""
    why = each.verdict.why
    for entry in each.traces.entries:
        if entry.entry.attachment == each.traces.attachment:
            print(f"{verb} cached result {entry.path} of {each.owner}: {why}")
    for held in each.held:
        print(f"{verb} {held.lease.address} of {each.owner}: {why}")


def _sum_up(attachments: Iterable[JudgedAttachment], left: int) -> None:
    """Print how many attachments there are of each state, and how many of the dead could not be released."""
    states = [each.verdict.state for each in attachments]
    kept = f", {states.count('unknown')} kept since they cannot be judged" if "unknown" in states else ""
    failed = f", of which {left} could not be released" if left else ""
    print(f"attachments: {states.count('alive')} alive, {states.count('dead')} dead{failed}{kept}")


def _warn(text: str) -> None:
    print(f"cnisdk: {text}", file=sys.stderr)
