"""The parts of a plugin's program: the class that serves, and the text for a person who runs it by hand."""

from __future__ import annotations

from .._light import Any
from .base import Plugin


class Program:
    """A plugin, and the text to print when no request comes. :class:`~.main.PluginMain` makes it a program to run.

    Args:
        plugin: The class of the plugin.
        about: The text to print when ``CNI_COMMAND`` is not set; by default the first line of the class's docstring.
    """

    def __init__(self, plugin: type[Plugin[Any]], about: str = "") -> None:
        self.plugin = plugin
        self._about = about

    @property
    def about(self) -> str:
        """The text for a person who runs the plugin by hand."""
        first = self._about or (self.plugin.__doc__ or self.plugin.__name__).strip().splitlines()[0]
        versions = ", ".join(str(version) for version in sorted(self.plugin.supported_versions))
        return f"{first}\nCNI protocol versions supported: {versions}\n"
