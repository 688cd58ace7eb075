"""Find and run plugins, and understand their answers: for a runtime, and to delegate (spec §4, "Plugin Delegation")."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .delegate import Delegate
    from .find import find_plugin, split_path
    from .process import Finished, execute
    from .run import run
    from .version import PluginVersions, parse_versions, plugin_versions

__all__ = [
    "Delegate",
    "Finished",
    "PluginVersions",
    "execute",
    "find_plugin",
    "parse_versions",
    "plugin_versions",
    "run",
    "split_path",
]

_WHERE = {
    "Delegate": "delegate",
    "Finished": "process",
    "PluginVersions": "version",
    "execute": "process",
    "find_plugin": "find",
    "parse_versions": "version",
    "plugin_versions": "version",
    "run": "run",
    "split_path": "find",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f".{_WHERE[name]}", __package__), name)
    globals()[name] = value
    return value
