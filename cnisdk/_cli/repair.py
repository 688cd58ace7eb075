"""``cnisdk repair``: put back the packet filter rules of attachments that are alive.

A reload of firewalld, or ``nft flush ruleset``, deletes the rules of all plugins, and no runtime puts them back before
its containers are restarted. This command reads what ADD has recorded, the cached results of all runtimes, and asks
each plugin of each attachment to put back what its CHECK would miss (:meth:`cnisdk.Plugin.repair`), in this process.

Several runtimes may remember an attachment, and one of them wrongly. The newest result counts that the container's
interface agrees with. Each is read again when its turn comes, since that of many attachments takes a while.

It may run beside ADD and DEL. A DEL that has deleted an attachment's rules, but not its interface yet, looks as if the
rules were lost. So the command looks again, after a pause, at what it repaired:

1. While a plugin works for the container, or the interface is gone and the runtime still remembers the attachment, a
   DEL may not have ended: the command pauses, and looks again.
2. If no runtime remembers the attachment, the plugins that put something back get a DEL.
3. Otherwise the attachment lives.

An ADD of the same names waits while an attachment is repaired, or gets that DEL (:mod:`cnisdk._releasing`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from .._releasing import releasing
from ..errors import CNIError, InvalidConfigError, InvalidNetNSError, IOFailureError, cause_of, error_for_code
from ..linux import netns
from ..linux.links import link, veth
from ..plugin._repair import NoLongerAsRecordedError, NotAsRecordedError, delegates, find_delegate_conf, repair, repairs
from ..plugin.base import Plugin
from ..plugin.reply import respond
from ..runtime.caches import (
    Place,
    Remembered,
    find_places,
    known_directories,
    namespace_of,
    read_all,
    read_file,
    read_of,
)
from ..runtime.network import Network
from ..runtime.survey import find_working
from ..spec.codec import dumps, find_key
from ..spec.names import Attachment
from .launchers import registered_plugins
from .options import add_cache_dir, add_cni_path, add_inside, add_seconds, require_host
from .tables import guard, load_plugin

_PAUSE = 2.0
_LOOKS = 10
# The same for another process that is at work on an attachment: another repair needs milliseconds.
_POLL, _LOOKS_AT_OTHERS = 0.05, 100

DESCRIPTION = (
    "Put back the packet filter rules that attachments have lost, such as by a reload of firewalld or by "
    "`nft flush ruleset`, from the configurations and results that their runtimes have cached. What is whole is not "
    "touched. An attachment whose interface is gone, or is not as its result says, is left alone."
)


class _Attached(NamedTuple):
    """An attachment, as one of its plugins is told of it."""

    found: Remembered
    kind: str
    plugin: type[Plugin[Any]]
    environ: dict[str, str]
    stdin: bytes

    @property
    def owner(self) -> Attachment:
        return self.found.entry.attachment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "network", metavar="NETWORK", nargs="?", default="", help="only the attachments of this network"
    )
    add_cache_dir(parser)
    add_cni_path(parser, "plugins that others delegate to")
    add_seconds(parser, "--pause", _PAUSE, "time until it looks whether a repaired attachment was being deleted")
    add_inside(parser)


def run(args: argparse.Namespace, *, pause: Callable[[float], object] = time.sleep) -> int:
    """Repair the attachments, or those of one network.

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
        _warn(f"{each.path} {each.text}")
    work = _Work(dict(_find_plugins()), args.cni_path, places, _files(memory.entries))
    work.failures += [IOFailureError(f"what is remembered there is not repaired: {each}") for each in memory.hidden]
    if args.network and not work.files:
        _warn(f'no runtime remembers an attachment to network "{args.network}"')
    work.repair_all(pause)
    if work.repaired:
        # What is made for one may concern another: iptables' FORWARD, since it is there, must let through what nftables
        # accepts.
        work.repair_all(pause)
    waiting = {owner: list(each.values()) for owner, each in work.touched.items()}
    for _ in range(_LOOKS):
        if waiting:
            pause(args.pause)
            waiting = {owner: each for owner, each in waiting.items() if not work.settle(owner, each)}
    for owner in waiting:
        _warn(f"{owner}: a DEL has not ended; if it began before the repair, rules may be left that cnisdk gc deletes")
    work.say(
        f"attachments: {len(work.files)} known, {len(work.repaired)} repaired, {len(work.alone)} left alone"
        + (f", {len(work.failed) + len(memory.hidden)} failed" if work.failed or memory.hidden else "")
    )
    for failure in work.failures[1:]:
        _warn(str(failure))
    if work.failures:
        raise work.failures[0]
    return 0


def _files(entries: Iterable[Remembered]) -> dict[Attachment, list[str]]:
    """Return the files of each attachment's cached results, the newest first.

    The newest container is the first, since it decides about what several share, such as a policy. Attachments of one
    container are in the order of ADD, in which the first has a port that it asks for twice.
    """
    newest_first = sorted(entries, key=lambda each: each.written, reverse=True)
    files: dict[Attachment, list[str]] = {}
    added: dict[Attachment, float] = {}
    started: dict[str, float] = {}
    for each in newest_first:
        owner = each.entry.attachment
        files.setdefault(owner, []).append(each.path)
        added.setdefault(owner, each.written)
        started.setdefault(owner.container_id, each.written)
    return {owner: files[owner] for owner in sorted(added, key=lambda each: (-started[each.container_id], added[each]))}


class _Work:
    """The repair of all attachments.

    Attributes:
        files: Each attachment's cached results, the newest first.
        repaired: Attachments of which a plugin has put something back.
        touched: The plugins that have put something back, or may have before they failed, by attachment and type.
        alone: Attachments that were left alone.
        failed: Attachments of which a plugin has failed.
        failures: Errors.
    """

    def __init__(
        self,
        plugins: Mapping[str, type[Plugin[Any]]],
        cni_path: str,
        places: Sequence[Place],
        files: Mapping[Attachment, Sequence[str]],
    ) -> None:
        self._plugins, self._cni_path, self._places = plugins, cni_path, places
        self.files = files
        self.repaired: set[Attachment] = set()
        self.touched: dict[Attachment, dict[str, _Attached]] = {}
        self.alone: set[Attachment] = set()
        self.failed: set[Attachment] = set()
        self.failures: list[CNIError] = []

    def say(self, text: str) -> None:
        """Print a line. If that fails, such as on a full disk, the work goes on."""
        try:
            print(text, flush=True)
        except OSError as exc:
            self.failures.append(IOFailureError(f"cannot print what was done: {cause_of(exc)}"))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def repair_all(self, pause: Callable[[float], object]) -> None:
        """Repair all attachments but those that are left alone, and those that a plugin has failed to repair."""
        waiting = [owner for owner in self.files if owner not in self.alone and owner not in self.failed]
        for _ in range(_LOOKS_AT_OTHERS):
            waiting = [owner for owner in waiting if not self.repair(owner)]
            if not waiting:
                return
            pause(_POLL)
        for owner in waiting:
            self._leave_alone(owner, "another process attaches, releases or repairs it")

    def _leave_alone(self, owner: Attachment, why: str) -> None:
        self.alone.add(owner)
        self.say(f"left alone {owner}: {why}")

    def repair(self, owner: Attachment) -> bool:
        """Repair an attachment by the newest of its results that the kernel agrees with.

        Returns:
            False if another process is at work on it.
        """
        with ExitStack() as until_then:
            alone = True
            with suppress(IOFailureError):  # its file cannot be made on a disk that cannot be written to
                alone = until_then.enter_context(releasing(owner))
            if not alone:
                return False
            refusal = self._repair_alone(owner)
        if refusal:
            self._leave_alone(owner, refusal)
        return True

    def _repair_alone(self, owner: Attachment) -> str:
        """Repair an attachment. Return a reason why that was not done; empty if there is none."""
        refusal = ""
        for path in self.files[owner]:
            found = read_file(path)
            if not isinstance(found, Remembered) or found.entry.attachment != owner:
                continue  # it was deleted meanwhile
            try:
                for attached in _plugins_of(found, self._plugins, self._cni_path):
                    self._repair_by(attached)
            except NotAsRecordedError as exc:
                refusal = refusal or exc.msg
            except CNIError as exc:
                self._fail(owner, exc)
            else:
                return ""
        return refusal

    def _repair_by(self, attached: _Attached) -> None:
        done = True
        try:
            done = guard(attached.kind, lambda: repair(attached.plugin, attached.environ, attached.stdin))
        except NotAsRecordedError as exc:
            done = isinstance(exc, NoLongerAsRecordedError)
            raise
        except CNIError as exc:  # the other plugins' rules may be lost as well
            self._fail(attached.owner, exc, f"plugin {attached.kind}: ")
            return
        finally:
            if done:
                self.touched.setdefault(attached.owner, {})[attached.kind] = attached
        if done:
            self.repaired.add(attached.owner)
            self.say(f"repaired {attached.owner}: rules of plugin {attached.kind}")

    def _fail(self, owner: Attachment, exc: CNIError, where: str = "") -> None:
        self.failed.add(owner)
        self.failures.append(error_for_code(exc.code, f"{owner}: {where}{exc.msg}", exc.details))

    def settle(self, owner: Attachment, repaired: list[_Attached]) -> bool:
        """Look again at an attachment, and take back what was put back if it was deleted meanwhile.

        Returns:
            False if a DEL of it may not have ended.
        """
        try:
            if find_working(owner.container_id):
                return False
            if any(map(os.path.lexists, self.files[owner])):
                return _has_interface(owner, self.files[owner])
            with releasing(owner) as alone:
                if not alone or find_working(owner.container_id):
                    return False
                # What was added again is not touched: ADD has replaced what was put back.
                if not read_of(owner, self._places) and veth.find_host_end(owner) is None:
                    self._take_back(owner, repaired)
        except CNIError as exc:
            self._fail(owner, exc)
        return True

    def _take_back(self, owner: Attachment, repaired: Iterable[_Attached]) -> None:
        self.say(f"took back {owner}: it was deleted meanwhile")
        for attached in reversed([*repaired]):
            reply = respond(attached.plugin, {**attached.environ, "CNI_COMMAND": "DEL"}, attached.stdin)
            if reply.status:
                text = reply.stdout.decode(errors="replace")
                self._fail(owner, IOFailureError(f"DEL of plugin {attached.kind} failed", details=text))


def _has_interface(owner: Attachment, paths: Iterable[str]) -> bool:
    """Return True if an attachment has its interface, as far as that can be known."""
    if veth.find_host_end(owner) is not None:
        return True
    for path in paths:
        found = read_file(path)
        if isinstance(found, Remembered):
            with suppress(InvalidNetNSError), netns.open(namespace_of(found)) as space:
                if link.find(owner.ifname, space) is not None:
                    return True
    return False


def _find_plugins() -> Iterator[tuple[str, type[Plugin[Any]]]]:
    """Yield the registered plugins that can put something back, by type."""
    for name, registered in registered_plugins().items():
        try:
            plugin = load_plugin(registered)
        except CNIError as exc:
            _warn(str(exc))
        else:
            if repairs(plugin) or delegates(plugin):
                yield name, plugin


def _plugins_of(found: Remembered, plugins: Mapping[str, type[Plugin[Any]]], cni_path: str) -> Iterator[_Attached]:
    """Yield the plugins of an attachment that can put something back, in the order of ADD.

    Raises:
        CNIError: The cached configuration or result is of no use.
    """
    entry = found.entry
    if not entry.config:
        raise InvalidConfigError(f"{found.path} has no configuration")
    network = Network.parse(entry.config, path=f"in {found.path}")
    environ = {
        **os.environ,
        "CNI_COMMAND": "CHECK",
        "CNI_CONTAINERID": entry.attachment.container_id,
        "CNI_NETNS": namespace_of(found),
        "CNI_IFNAME": entry.attachment.ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in entry.cni_args),
        "CNI_PATH": cni_path,
    }
    for member in network.plugins:
        plugin = plugins.get(member.type)
        if plugin is None:
            continue
        # The network's own version may be one without CHECK.
        version = max(plugin.supported_versions)
        stdin = network._replace(version=version).request(
            member, capability_args=entry.capability_args, prev_result=entry.result_in(version)
        )
        if repairs(plugin):
            yield _Attached(found, member.type, plugin, environ, stdin)
        if delegates(plugin):
            yield from _delegate_of(_Attached(found, member.type, plugin, environ, stdin), plugins)


def _delegate_of(attached: _Attached, plugins: Mapping[str, type[Plugin[Any]]]) -> Iterator[_Attached]:
    """Yield the plugin that a plugin has delegated an attachment to, if it can put something back."""
    conf = guard(attached.kind, lambda: find_delegate_conf(attached.plugin, attached.environ, attached.stdin))
    if conf is None:
        return
    kind = str(find_key(conf, "type"))
    plugin = plugins.get(kind)
    if plugin is not None and repairs(plugin):
        version = max(plugin.supported_versions)
        asked = {**conf, "cniVersion": str(version), "prevResult": attached.found.entry.result_in(version)}
        yield attached._replace(kind=kind, plugin=plugin, stdin=dumps(asked))


def _warn(text: str) -> None:
    with suppress(OSError):
        print(f"cnisdk: {text}", file=sys.stderr)
