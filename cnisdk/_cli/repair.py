"""``cnisdk repair``: put back the packet filter rules of attachments that are alive.

A reload of firewalld, or ``nft flush ruleset``, deletes the rules of all plugins, and no runtime puts them back before
its containers are restarted. This command reads what ADD has recorded, the cached results of all runtimes, and asks
each plugin of each attachment to put back what its CHECK would miss (:meth:`cnisdk.Plugin.repair`), in this process.

It may run beside ADD and DEL. A DEL that has deleted an attachment's rules, but not its interface yet, looks as if the
rules were lost. So the command looks again, after a pause, at what it repaired. If the runtime has forgotten the
attachment meanwhile, the plugins that put something back get a DEL.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import CNIError, InvalidConfigError, IOFailureError, error_for_code
from ..linux.links import veth
from ..plugin._repair import NotAsRecordedError, repair, repairs
from ..plugin.base import Plugin
from ..plugin.reply import respond
from ..runtime.caches import Remembered, find_places, known_directories, namespace_of, read_all
from ..runtime.network import Network
from ..spec.names import Attachment
from .launchers import registered_plugins
from .options import add_cache_dir, add_cni_path, add_inside, add_seconds, require_host
from .tables import guard, load_plugin

_PAUSE = 2.0

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
    memory = read_all(find_places(known_directories(args.cache_dir)), args.network)
    for each in memory.unreadable:
        _warn(f"{each.path} {each.text}")
    plugins = dict(_find_plugins())
    failures: list[CNIError] = []
    repaired: list[_Attached] = []
    alone = set()

    def failed(owner: Attachment, exc: CNIError) -> None:
        failures.append(error_for_code(exc.code, f"{owner}: {exc.msg}", exc.details))

    for found in _in_order(memory.entries):
        owner = found.entry.attachment
        try:
            for attached in _plugins_of(found, plugins, args.cni_path):
                try:
                    done = _repair(attached)
                except NotAsRecordedError:
                    raise
                except CNIError as exc:  # the other plugins' rules may be lost as well
                    failed(owner, exc)
                    continue
                if done:
                    repaired.append(attached)
                    print(f"repaired {owner}: rules of plugin {attached.kind}")
        except NotAsRecordedError as exc:
            alone.add(owner)
            print(f"left alone {owner}: {exc.msg}")
        except CNIError as exc:
            failed(owner, exc)
    if repaired:
        pause(args.pause)
        failures += _take_back_from_the_dead(repaired)
    print(
        f"attachments: {len({each.entry.attachment for each in memory.entries})} known, "
        f"{len({each.owner for each in repaired})} repaired, {len(alone)} left alone"
        + (f", {len(failures)} failed" if failures else "")
    )
    for failure in failures[1:]:
        _warn(str(failure))
    if failures:
        raise failures[0]
    return 0


def _in_order(entries: Iterable[Remembered]) -> list[Remembered]:
    """Sort cached results: the newest container first, since it decides about what several share, such as a policy.

    Those of one container are in the order of ADD, in which the first has a port that it asks for twice.
    """
    started: dict[str, float] = {}
    for each in entries:
        container = each.entry.attachment.container_id
        started[container] = max(each.written, started.get(container, 0.0))
    return sorted(entries, key=lambda each: (-started[each.entry.attachment.container_id], each.written))


def _find_plugins() -> Iterator[tuple[str, type[Plugin[Any]]]]:
    """Yield the registered plugins that can put something back, by type."""
    for name, registered in registered_plugins().items():
        try:
            plugin = load_plugin(registered)
        except CNIError as exc:
            _warn(str(exc))
        else:
            if repairs(plugin):
                yield name, plugin


def _plugins_of(found: Remembered, plugins: dict[str, type[Plugin[Any]]], cni_path: str) -> Iterator[_Attached]:
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
        if plugin is not None:
            # The network's own version may be one without CHECK.
            version = max(plugin.supported_versions)
            stdin = network._replace(version=version).request(
                member, capability_args=entry.capability_args, prev_result=entry.result_in(version)
            )
            yield _Attached(found, member.type, plugin, environ, stdin)


def _repair(attached: _Attached) -> bool:
    return guard(attached.kind, lambda: repair(attached.plugin, attached.environ, attached.stdin))


def _take_back_from_the_dead(repaired: list[_Attached]) -> list[CNIError]:
    """Run DEL of the plugins that repaired an attachment whose DEL has ended meanwhile. Return their errors."""
    failures: list[CNIError] = []
    for attached in reversed(repaired):
        if os.path.lexists(attached.found.path) or veth.find_host_end(attached.owner) is not None:
            continue
        print(f"took back {attached.owner}: it was deleted meanwhile")
        reply = respond(attached.plugin, {**attached.environ, "CNI_COMMAND": "DEL"}, attached.stdin)
        if reply.status:
            text = reply.stdout.decode(errors="replace")
            failures.append(IOFailureError(f"{attached.owner}: DEL of plugin {attached.kind} failed", details=text))
    return failures


def _warn(text: str) -> None:
    print(f"cnisdk: {text}", file=sys.stderr)
