"""Find and run plugins, and understand their answers: for a runtime, and to delegate (spec §4, "Plugin Delegation")."""

from .._lazy import exports
from .._light import TYPE_CHECKING

if TYPE_CHECKING:
    from .call import interpret as interpret, run as run
    from .delegate import Delegate as Delegate
    from .find import get_plugin_path as get_plugin_path, split_path as split_path
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
        ".find": "get_plugin_path split_path",
        ".process": "Finished execute",
        ".call": "interpret run",
        ".version": "PluginVersions parse_versions plugin_versions",
    },
)
