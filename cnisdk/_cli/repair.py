"""``cnisdk repair``: put back the packet filter rules of attachments that are alive.

A reload of firewalld, or ``nft flush ruleset``, deletes the rules of all plugins, and no runtime puts them back before
its containers are restarted. This command reads what ADD has recorded, the cached results of all runtimes, and asks
each plugin of each attachment to put back what its CHECK would miss (:meth:`cnisdk.Plugin.repair`), in this process.

Several runtimes may remember an attachment, and one of them wrongly. The newest result counts that the container's
interface agrees with. Each is read again when its turn comes, since that of many attachments takes a while.

Each call of a plugin has a time limit. While one lasts, the command says what it may wait for (:mod:`.plugincalls`).

It may run beside ADD and DEL. A DEL that has deleted an attachment's rules, but not its interface yet, looks as if the
rules were lost. So the command looks again, after a pause, at what it repaired (:mod:`.takeback`):

1. While a plugin works for the container, or the interface is gone and the runtime still remembers the attachment, a
   DEL may not have ended: the command pauses, and looks again.
2. If no runtime remembers the attachment, the plugins that put something back get a DEL.
3. Otherwise the attachment lives.

An ADD of the same names waits while an attachment is repaired, or gets that DEL (:mod:`cnisdk._releasing`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from .._lockholders import describe, find_file_holders
from .._releasing import path_of, releasing
from ..errors import CNIError, IOFailureError
from ..plugin._repair import NoLongerAsRecordedError, NotAsRecordedError, repair
from ..runtime.caches import Remembered, find_places, known_directories, read_all, read_file
from ..spec.names import Attachment
from .options import add_cache_dir, add_cni_path, add_inside, add_seconds, require_host
from .plugincalls import call
from .repairable import (
    Plugins,
    RepairRequest,
    ask_delegate,
    explain_hindrance,
    find_forgotten,
    list_files,
    list_requests,
    load_plugins,
)
from .repairlog import RepairLog, warn
from .takeback import BUSY, TakeBack

_PAUSE = 2.0
# Looks at an attachment that another process is at work on: another repair needs milliseconds.
_POLL, _LOOKS_AT_OTHERS = 0.05, 100
# More than a plugin takes that waits in vain for all locks, 5 seconds for each, and then goes on without.
_TIMEOUT = 60.0

DESCRIPTION = (
    "Put back the packet filter rules that attachments have lost, such as by a reload of firewalld or by "
    "`nft flush ruleset`, from the configurations and results that their runtimes have cached. What is whole is not "
    "touched. An attachment whose interface is gone, or is not as its result says, is left alone."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "network", metavar="NETWORK", nargs="?", default="", help="only the attachments of this network"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only print what would be put back")
    add_cache_dir(parser)
    add_cni_path(parser, "plugins that others delegate to")
    add_seconds(parser, "--pause", _PAUSE, "time until it looks whether a repaired attachment was being deleted")
    add_seconds(parser, "--timeout", _TIMEOUT, "longest time for one call of a plugin; 0 means no limit")
    add_inside(parser)


def run(args: argparse.Namespace, *, pause: Callable[[float], object] = time.sleep) -> int:
    """Repair the attachments, or those of one network, or print what would be repaired.

    Args:
        args: The parsed arguments.
        pause: Waits for a number of seconds.

    Raises:
        InvalidEnvironmentError: (4) This is not the host.
        CNIError: The first of the errors of plugins. The others are printed.
    """
    require_host(args, "rules made from here may not be the host's")
    places = find_places(known_directories(args.cache_dir))
    memory = read_all(places, args.network)
    for each in memory.unreadable:
        warn(f"{each.path} {each.text}")
    files, log = list_files(memory.entries), RepairLog()
    log.failures += [IOFailureError(f"what is remembered there is not repaired: {each}") for each in memory.hidden]
    if args.network and not files:
        warn(f'no runtime remembers an attachment to network "{args.network}"')
    work = _Work(args, load_plugins(warn), files, log)
    work.repair_all(pause)
    if log.repaired and not args.dry_run:
        # What is made for one may concern another: iptables' FORWARD, since it is there, must let through what nftables
        # accepts.
        work.repair_all(pause)
    forgotten = find_forgotten(files, args.network)
    for owner in forgotten:
        log.leave_alone(owner, "no cached result of it was found; --cache-dir names further places")
    TakeBack(log, files, places, args.timeout).settle_all(lambda: pause(args.pause))
    repaired = "to be repaired" if args.dry_run else "repaired"
    log.say(
        f"attachments: {len(files) + len(forgotten)} known, {len(log.repaired)} {repaired}, {len(log.alone)} left alone"
        + (f", {len(log.failed) + len(memory.hidden)} failed" if log.failed or memory.hidden else "")
    )
    for failure in log.failures[1:]:
        warn(str(failure))
    if log.failures:
        raise log.failures[0]
    return 0


class _Work:
    """The repair of all attachments.

    Args:
        args: The arguments of the command.
        plugins: The registered plugins.
        files: Each attachment's cached results, the newest first.
        log: The outcome.
    """

    def __init__(
        self, args: argparse.Namespace, plugins: Plugins, files: Mapping[Attachment, Sequence[str]], log: RepairLog
    ) -> None:
        self._args, self._plugins, self._files, self._log = args, plugins, files, log

    def repair_all(self, pause: Callable[[float], object]) -> None:
        """Repair all attachments but those that are left alone, and those that a plugin has failed to repair."""
        waiting = [owner for owner in self._files if owner not in self._log.alone | self._log.failed]
        for _ in range(_LOOKS_AT_OTHERS):
            waiting = [owner for owner in waiting if not self._repair(owner)]
            if not waiting:
                return
            pause(_POLL)
        for owner in waiting:
            holders = describe(find_file_holders(path_of(owner)))
            self._log.leave_alone(owner, ": ".join([BUSY, *holders]))

    def _repair(self, owner: Attachment) -> bool:
        """Repair an attachment by the newest of its results that the kernel agrees with.

        Returns:
            False if another process is at work on it.
        """
        with ExitStack() as until_then:
            alone = True
            if not self._args.dry_run:
                with suppress(IOFailureError):  # its file cannot be made on a disk that cannot be written to
                    alone = until_then.enter_context(releasing(owner))
            if not alone:
                return False
            refusal = self._repair_alone(owner)
        if refusal:
            self._log.leave_alone(owner, refusal)
        return True

    def _repair_alone(self, owner: Attachment) -> str:
        """Repair an attachment. Return a reason why that was not done; empty if there is none."""
        refusal = ""
        for path in self._files[owner]:
            found = read_file(path)
            if not isinstance(found, Remembered) or found.entry.attachment != owner:
                continue  # it was deleted meanwhile
            try:
                hindrance = explain_hindrance(found, self._plugins)
                if not hindrance:
                    for request in self._list_requests(found):
                        self._repair_by(request)
                    return ""
                refusal = refusal or hindrance
            except NotAsRecordedError as exc:
                refusal = refusal or exc.msg
            except CNIError as exc:
                self._log.fail(owner, exc)
        return refusal

    def _list_requests(self, found: Remembered) -> Iterator[RepairRequest]:
        def find_delegate(request: RepairRequest) -> Mapping[str, Any] | None:
            return call(self._args.timeout, request.owner, request.kind, partial(ask_delegate, request))

        return list_requests(found, self._plugins, self._args.cni_path, find_delegate)

    def _repair_by(self, request: RepairRequest) -> None:
        owner, kind, dry_run = request.owner, request.kind, self._args.dry_run
        step = partial(repair, request.plugin, request.environ, request.stdin, dry_run=dry_run)
        done = True
        try:
            done = call(self._args.timeout, owner, kind, step)
        except NotAsRecordedError as exc:
            done = isinstance(exc, NoLongerAsRecordedError)
            raise
        except CNIError as exc:  # the other plugins' rules may be lost as well
            self._log.fail(owner, exc, f"plugin {kind}: ")
            return
        finally:
            if done and not dry_run:
                self._log.touched.setdefault(owner, {})[kind] = request
        if done:
            self._log.repaired.add(owner)
            self._log.say(f"{'would repair' if dry_run else 'repaired'} {owner}: rules of plugin {kind}")
