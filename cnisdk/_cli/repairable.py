"""Find what ``cnisdk repair`` can put back: attachments that runtimes remember, and their plugins that make rules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import CNIError
from ..linux.links import link
from ..plugin._repair import delegates, find_delegate_conf, repairs
from ..plugin.base import Plugin
from ..runtime.caches import Remembered, namespace_of
from ..runtime.network import Network
from ..runtime.survey import find_working
from ..spec.codec import dumps, find_key
from ..spec.names import Attachment
from .launchers import registered_plugins
from .tables import load_plugin

Plugins = Mapping[str, type[Plugin[Any]]]
"""Registered plugins, by type."""


class RepairRequest(NamedTuple):
    """An attachment, as one of its plugins is told of it.

    Attributes:
        found: The cached result.
        kind: Type of the plugin.
        plugin: The plugin.
        environ: Environment of a CHECK.
        stdin: Configuration of a CHECK.
    """

    found: Remembered
    kind: str
    plugin: type[Plugin[Any]]
    environ: dict[str, str]
    stdin: bytes

    @property
    def owner(self) -> Attachment:
        """The attachment."""
        return self.found.entry.attachment


FindDelegate = Callable[[RepairRequest], "Mapping[str, Any] | None"]
"""Function that asks a plugin what it has delegated to: :func:`cnisdk.plugin._repair.find_delegate_conf`, guarded."""


def load_plugins(on_problem: Callable[[str], object]) -> Plugins:
    """Load all registered plugins, and report those that cannot be loaded."""
    found: dict[str, type[Plugin[Any]]] = {}
    for name, registered in registered_plugins().items():
        try:
            found[name] = load_plugin(registered)
        except CNIError as exc:
            on_problem(str(exc))
    return found


def list_files(entries: Iterable[Remembered]) -> dict[Attachment, list[str]]:
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


def find_forgotten(known: Iterable[Attachment], network: str = "") -> list[Attachment]:
    """Find attachments whose mark a link of the host carries, and which no runtime remembers.

    One for which a plugin is at work is passed over: its runtime writes the result after ADD. So are names too long for
    a mark.

    Args:
        known: The attachments that runtimes remember.
        network: Only those of this network.
    """
    prefix = f"cni:{network}/" if network else "cni:"
    remembered, found = {*known}, list[Attachment]()
    for each in link.list_by_alias_prefix(prefix):
        names = each.alias.removeprefix("cni:").split("/")
        if len(names) == 3 and not names[0].startswith("#"):
            owner = Attachment(*names)
            if owner not in remembered and owner.tag == each.alias and find_working(owner.container_id) is None:
                found.append(owner)
    return found


def explain_hindrance(found: Remembered, plugins: Plugins) -> str:
    """Say why nothing can be put back for an attachment; empty if a plugin may be able to.

    Raises:
        CNIError: The cached configuration is of no use.
    """
    entry = found.entry
    for value, what in ((entry.config, "configuration"), (entry.result, "result")):
        if not value:
            return f"{found.path} has no {what}"
    kinds = dict.fromkeys(each.type for each in Network.parse(entry.config, path=f"in {found.path}").plugins)
    if any(kind in plugins and _may_repair(plugins[kind]) for kind in kinds):
        return ""
    unknown = [f"{kind}, not registered with this Python" for kind in kinds if kind not in plugins]
    known = ", ".join(kind for kind in kinds if kind in plugins)
    return "its list has no plugin that puts rules back: " + "; ".join(filter(None, [known, *unknown]))


def _may_repair(plugin: type[Plugin[Any]]) -> bool:
    return repairs(plugin) or delegates(plugin)


def list_requests(
    found: Remembered, plugins: Plugins, cni_path: str, find_delegate: FindDelegate
) -> Iterator[RepairRequest]:
    """Yield the request for each plugin of an attachment that can put something back, in the order of ADD.

    Args:
        found: The cached result.
        plugins: The registered plugins.
        cni_path: Directories with plugins that others delegate to.
        find_delegate: Function that asks a plugin for the configuration of the plugin it has delegated to.

    Raises:
        CNIError: The cached configuration or result is of no use.
    """
    entry = found.entry
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
        if plugin is None or not _may_repair(plugin):
            continue
        # The network's own version may be one without CHECK.
        version = max(plugin.supported_versions)
        stdin = network._replace(version=version).request(
            member, capability_args=entry.capability_args, prev_result=entry.result_in(version)
        )
        request = RepairRequest(found, member.type, plugin, environ, stdin)
        if repairs(plugin):
            yield request
        if delegates(plugin):
            yield from _list_delegated(request, plugins, find_delegate(request))


def _list_delegated(
    request: RepairRequest, plugins: Plugins, conf: Mapping[str, Any] | None
) -> Iterator[RepairRequest]:
    """Yield the request for the plugin that has got this configuration from another, if it can put something back."""
    if conf is None:
        return
    kind = str(find_key(conf, "type"))
    plugin = plugins.get(kind)
    if plugin is not None and repairs(plugin):
        version = max(plugin.supported_versions)
        asked = {**conf, "cniVersion": str(version), "prevResult": request.found.entry.result_in(version)}
        yield request._replace(kind=kind, plugin=plugin, stdin=dumps(asked))


def ask_delegate(request: RepairRequest) -> Mapping[str, Any] | None:
    """Ask a plugin for the configuration with which it has delegated the attachment; None if there is none.

    Raises:
        CNIError: As :func:`cnisdk.plugin._repair.find_delegate_conf` does.
    """
    return find_delegate_conf(request.plugin, request.environ, request.stdin)
