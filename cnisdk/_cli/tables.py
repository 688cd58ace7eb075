"""Find the lease tables of networks, by asking the registered IPAM plugins (:meth:`cnisdk.Plugin.lease_tables`)."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ..errors import CNIError, InternalError, as_cni_error, name_and_text
from ..ipam.store import LOCK_TIMEOUT, Owner
from ..ipam.table import Examination, Finding, LeaseRecord, LeaseTable
from ..plugin._launch import load_main
from ..plugin._program import Program
from ..plugin.base import Plugin
from ..runtime.network import Network, NetworkPlugin
from ..spec._lenient import structure_leniently
from ..spec.codec import find_key, loads
from .launchers import RegisteredPlugin, registered_plugins

_T = TypeVar("_T")


class NamedTable(NamedTuple):
    """Table of leases, with the type of its IPAM plugin."""

    type: str
    table: LeaseTable


class TableSearch(NamedTuple):
    """Tables that were found.

    Attributes:
        tables: Tables, sorted by the names of their networks.
        problems: Tables that cannot be read.
        notes: Networks whose leases are not known, with the reason, and plugins that cannot be loaded.
        unknown: Names of the networks whose leases are not known.
    """

    tables: tuple[NamedTable, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unknown: frozenset[str]


def search_tables(networks: Iterable[Network], directory: str = "", only: str = "") -> TableSearch:
    """Ask the IPAM plugins for their tables.

    Args:
        networks: The configured networks.
        directory: Directory of leases for networks whose configuration names none; empty means the plugins' defaults.
        only: Name of the only network to search for; empty means all.

    Raises:
        CNIError: A plugin cannot find the leases of a configured network.
    """
    found: list[NamedTable] = []
    problems: list[str] = []
    notes: list[str] = []
    unknown: set[str] = set()
    registered = registered_plugins()
    plugins: dict[str, type[Plugin[Any]]] = {}
    for name, each in registered.items():
        try:
            plugins[name] = load_plugin(each)
        except CNIError as exc:
            notes.append(str(exc))
    for network in networks:
        if only in ("", network.name):
            for member in network.plugins:
                kind = _ipam_type(member)
                if not kind:
                    continue
                obstacle = _why_unknown(kind, registered, plugins)
                if obstacle:
                    notes.append(f'the leases of network "{network.name}" are not known: {obstacle}')
                    unknown.add(network.name)
                else:
                    conf = _structure(plugins[kind], network, member)
                    found += _ask(kind, plugins[kind], conf, directory)
    # Networks without configuration, and those whose configuration names another IPAM plugin now.
    known = {(each.type, each.table.network) for each in found}
    # One plugin may keep leases where another looks. It alone has been told how to judge them.
    places = {each.table.place for each in found}
    for kind, plugin in plugins.items():
        try:
            left = _ask(kind, plugin, None, directory)
        except CNIError as exc:
            problems.append(str(exc))
            continue
        found += (
            each
            for each in left
            if only in ("", each.table.network)
            and (kind, each.table.network) not in known
            and each.table.place not in places
        )
    found.sort(key=lambda each: (each.table.network, each.type, each.table.place))
    return TableSearch(tuple(found), tuple(problems), tuple(notes), frozenset(unknown))


def _why_unknown(kind: str, registered: Container[str], plugins: Mapping[str, type[Plugin[Any]]]) -> str:
    """Say why a type of IPAM plugin cannot be asked for its leases; empty if it can."""
    if kind not in registered:
        return f'no plugin "{kind}" is registered with this Python'
    if kind not in plugins:
        return f'plugin "{kind}" cannot be loaded'
    if plugins[kind].lease_tables.__func__ is Plugin.lease_tables.__func__:  # type: ignore[attr-defined]
        return f'plugin "{kind}" has no lease_tables'
    return ""


def _ipam_type(member: NetworkPlugin) -> str:
    ipam = find_key(member.document, "ipam")
    kind = find_key(ipam, "type") if isinstance(ipam, dict) else None
    return kind if isinstance(kind, str) else ""


def load_plugin(registered: RegisteredPlugin) -> type[Plugin[Any]]:
    """Import a registered plugin, and return its class.

    Raises:
        InternalError: (999) It cannot be imported.
    """

    def load() -> object:
        return load_main(registered.module, registered.attribute)

    main = guard(registered.type, load)
    if not isinstance(main, Program):
        raise InternalError(
            f"plugin {registered.type}: {registered.module}:{registered.attribute} is no cnisdk.PluginMain"
        )
    return main.plugin


def _structure(plugin: type[Plugin[Any]], network: Network, member: NetworkPlugin) -> Any:
    document = loads(network.request(member))
    return structure_leniently(document, plugin.conf_class(), converter=plugin.converter())[0]


def _ask(kind: str, plugin: type[Plugin[Any]], conf: Any, directory: str) -> list[NamedTable]:
    def ask() -> Sequence[LeaseTable]:
        return plugin.lease_tables(conf, directory)

    return [NamedTable(kind, _GuardedTable(kind, table)) for table in guard(kind, ask)]


class _GuardedTable(LeaseTable):
    """Table of a plugin, all of whose errors are CNI errors that name the plugin."""

    def __init__(self, kind: str, table: LeaseTable) -> None:
        super().__init__(table.network, table.place, table.pools)
        self._kind = kind
        self._table = table

    def examine(self, *, timeout: float = LOCK_TIMEOUT) -> Examination:
        return guard(self._kind, lambda: self._table.examine(timeout=timeout))

    def drop(self, leases: Iterable[LeaseRecord], *, timeout: float = LOCK_TIMEOUT) -> tuple[LeaseRecord, ...]:
        return guard(self._kind, lambda: self._table.drop(leases, timeout=timeout))

    def find(self, owner: Owner, *, timeout: float = LOCK_TIMEOUT) -> tuple[LeaseRecord, ...]:
        return guard(self._kind, lambda: self._table.find(owner, timeout=timeout))

    def repair(self, findings: Iterable[Finding], *, timeout: float = LOCK_TIMEOUT) -> tuple[Finding, ...]:
        return guard(self._kind, lambda: self._table.repair(findings, timeout=timeout))


def guard(kind: str, step: Callable[[], _T]) -> _T:
    """Run code of a plugin.

    Raises:
        CNIError: The plugin's own, an IOFailureError (5) for an error of the operating system, or an InternalError
            (999) for any other exception.
    """
    try:
        return step()
    except CNIError:
        raise
    except OSError as exc:
        error = as_cni_error(exc)
        error.msg = f"plugin {kind}: {error.msg}"
        raise error from exc
    except Exception as exc:
        raise InternalError(f"plugin {kind}: {name_and_text(exc)}") from exc
