"""Find and run plugins, and understand their answers: for a runtime, and to delegate (spec §4, "Plugin Delegation")."""

from typing import TYPE_CHECKING

from .._lazy import exports

if TYPE_CHECKING:
    from .call import interpret as interpret, run as run
    from .delegate import Delegate as Delegate
    from .find import find_plugin as find_plugin, split_path as split_path
    from .process import Finished as Finished, execute as execute
    from .version import (
        PluginVersions as PluginVersions,
        parse_versions as parse_versions,
        plugin_versions as plugin_versions,
    )

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".delegate": "Delegate",
        ".find": "find_plugin split_path",
        ".process": "Finished execute",
        ".call": "interpret run",
        ".version": "PluginVersions parse_versions plugin_versions",
    },
)
