"""A network: its plugins, and the request each of them is sent (spec §1; §3, "Deriving request configuration").

No function here reads a file. A plugin's configuration stays the document it is, since the plugin alone knows its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .._light import Any, NamedTuple
from ..classes import field, frozen
from ..errors import CNIError, IncompatibleVersionError
from ..spec._mismatch import Mismatch, show_path
from ..spec.codec import Rules, dumps_compact, find_key, loads, structure
from ..spec.config import NetConfList
from ..spec.names import check_network_name, check_plugin_type
from ..spec.versions import ALL, SpecVersion


@frozen(kw_only=True)
class _PluginDocument:
    """The keys of a plugin's configuration that the runtime reads. Only the plugin reads the others."""

    type: str
    capabilities: Mapping[str, bool] = field(factory=dict)


class NetworkPlugin(NamedTuple):
    """One plugin of a network.

    Attributes:
        type: Its type.
        document: Its configuration, as written.
        capabilities: The capability arguments it declares to understand.
    """

    type: str
    document: Mapping[str, Any]
    capabilities: frozenset[str]

    def __str__(self) -> str:
        name = self.document.get("name")
        # As the reference names it in errors, which people search for.
        return f'plugin type="{self.type}"' + (f' name="{name}"' if name else "")


class Network(NamedTuple):
    """A network as it lies in a file, with the version it is used with.

    Attributes:
        name: Its name.
        version: The version all its plugins are called with, see :func:`select_version`.
        plugins: Its plugins, in the order of ADD.
        source: The configuration as one list, for the cache.
        path: The file; empty if it does not come from one.
        disable_check: CHECK does nothing.
        disable_gc: GC does nothing.
        load_only_inlined_plugins: There is no folder with further plugins.
    """

    name: str
    version: SpecVersion
    plugins: tuple[NetworkPlugin, ...]
    source: bytes
    path: str = ""
    disable_check: bool = False
    disable_gc: bool = False
    load_only_inlined_plugins: bool = False

    @classmethod
    def parse(cls, data: bytes, *, path: str = "", single: bool | None = None) -> Network:
        """Read a network from the text of a ``.conflist`` file, or of the configuration of a single plugin.

        Args:
            data: The text.
            path: Where it comes from, for messages.
            single: If true, a document with both ``type`` and ``plugins`` is a single plugin's, and the error about one
                with neither says that ``type`` is missing. Otherwise both count as lists.

        Raises:
            DecodingError: (6) Not JSON.
            InvalidConfigError: (7) Not a network; the message has file and JSON path.
            IncompatibleVersionError: (1) A version that does not exist.
        """
        document = _object(loads(data, _what(path)), path)
        if "plugins" not in document or single:
            if "type" in document:
                return _from_single(document, path)
            if single and "plugins" not in document:
                parse_plugin(document, path)  # which says that there is no type
        return _from_list(document, data, path)

    def with_plugins(self, further: Sequence[NetworkPlugin]) -> Network:
        """Return the network with the plugins of its folder at its end (spec 1.1.0, ``loadOnlyInlinedPlugins``)."""
        if not further:
            return self
        together = self.plugins + tuple(further)
        # The cached configuration must be complete by itself: when it is needed, the folder may be gone.
        document = loads(self.source)
        document["plugins"] = [plugin.document for plugin in together]
        document["loadOnlyInlinedPlugins"] = True
        return self._replace(plugins=together, source=dumps_compact(document))

    def request(
        self,
        plugin: NetworkPlugin,
        *,
        capability_args: Mapping[str, object] | None = None,
        prev_result: Mapping[str, Any] | None = None,
        valid: Iterable[tuple[str, str]] | None = None,
    ) -> bytes:
        """Return the configuration to send to a plugin, as the reference writes it: compact, sorted.

        Args:
            plugin: One of this network's plugins.
            capability_args: Those of them that it declares go into ``runtimeConfig``.
            prev_result: A result in the network's version.
            valid: Container ids and interface names of the attachments to keep, for GC; None means that GC is not told.
        """
        document = dict(plugin.document)
        # "This key is not to be set in the request" (capabilities); an administrator has no result to give.
        for key in ("capabilities", "prevResult"):
            document.pop(key, None)
        document["name"] = self.name
        document["cniVersion"] = str(self.version)
        understood = {
            key: value
            for key, value in (capability_args or {}).items()
            if key in plugin.capabilities and value is not None
        }
        if understood:
            document["runtimeConfig"] = understood
        if prev_result is not None:
            document["prevResult"] = prev_result
        if valid is not None:
            listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in sorted(set(valid))]
            # The specification had the second name at first, libcni never: plugins may look for either.
            document["cni.dev/valid-attachments"] = document["cni.dev/attachments"] = listed
        return dumps_compact(document, sort_keys=True)


def parse_plugin(document: object, path: str = "", place: tuple[str | int, ...] = ()) -> NetworkPlugin:
    """Read the configuration of one plugin.

    Args:
        document: The parsed JSON.
        path: The file, for messages.
        place: Where in the file it stands, for messages.

    Raises:
        InvalidConfigError: (7) It names no plugin, or its ``capabilities`` are not an object of booleans.
    """
    root = show_path(place)
    head = structure(document, _PluginDocument, what=_what(path), path=root)
    check_plugin_type(head.type, _at(path, (*place, "type")))
    return NetworkPlugin(
        head.type, _object(document, path), frozenset(key for key, value in head.capabilities.items() if value)
    )


def select_version(written: str, offered: Sequence[str]) -> SpecVersion:
    """Choose the version to use a network with (spec 1.1.0, ``cniVersions``): the newest one offered that exists.

    Args:
        written: ``cniVersion``; empty means 0.1.0.
        offered: ``cniVersions``.

    Raises:
        DecodingError: (6) One of them is not a version.
        IncompatibleVersionError: (1) None of them exists.
    """
    candidates = [SpecVersion.parse(text) for text in (*offered, written) if text or not offered]
    known = [version for version in candidates if version in ALL]
    if not known:
        raise IncompatibleVersionError(
            f"no version of the specification that is known: {', '.join(map(str, candidates))}",
            details=f"known are {', '.join(map(str, ALL))}",
        )
    return max(known)


# --- reading ----------------------------------------------------------------------------------------------------------


def _from_single(document: Mapping[str, Any], path: str) -> Network:
    """Make a list of a single plugin's configuration, as the reference does, with what belongs to the list moved up."""
    parse_plugin(document, path)
    outer: dict[str, Any] = {
        key: document[key] for key in ("cniVersions", "disableCheck", "disableGC", "name") if key in document
    }
    outer["cniVersion"] = find_key(document, "cniVersion") or ""
    outer["plugins"] = [document]
    return _from_list(outer, dumps_compact(outer, sort_keys=True), path, ("plugins", 0))


def _from_list(
    document: Mapping[str, Any], source: bytes, path: str, single_at: tuple[str | int, ...] | None = None
) -> Network:
    conf = structure(document, NetConfList, what=_what(path), converter=_LIST_RULES)
    try:
        version = select_version(conf.cni_version, conf.cni_versions)
    except CNIError as exc:
        place = show_path(("cniVersions",) if conf.cni_versions else ("cniVersion",))
        raise type(exc)(f"invalid {_what(path)}: {place}: {exc.msg}", details=exc.details) from exc
    return Network(
        name=check_network_name(conf.name, _at(path, ("name",))),
        version=version,
        plugins=tuple(
            parse_plugin(plugin, path, () if single_at else ("plugins", index))
            for index, plugin in enumerate(conf.plugins)
        ),
        source=source,
        path=path,
        disable_check=conf.disable_check,
        disable_gc=conf.disable_gc,
        load_only_inlined_plugins=conf.load_only_inlined_plugins,
    )


def _structure_flag(value: object, _: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise Mismatch(value, "true or false")
    return value


# Booleans of lists may be strings, since spec 0.4.0 had ``disableCheck`` so.
_LIST_RULES = Rules({bool: _structure_flag})


def _object(document: object, path: str) -> Mapping[str, Any]:
    return structure(document, dict[str, Any], what=_what(path))


def _what(path: str) -> str:
    return f"network configuration {path}" if path else "network configuration"


def _at(path: str, place: tuple[str | int, ...]) -> str:
    return f"{path}: {show_path(place)}" if path else show_path(place)
