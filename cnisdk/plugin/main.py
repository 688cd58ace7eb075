"""The program around a plugin."""

from __future__ import annotations

from .._light import NoReturn
from ._program import Program


class PluginMain(Program):
    """The program around a plugin: call it, and it serves the request of this process and exits.

    It alone reads the environment and standard input, prints, and sets the exit status. The output of a handler goes to
    standard error. After SIGTERM, SIGINT or SIGHUP, or when the runtime reads no answer, an ADD is undone.

    Args:
        plugin: The class of the plugin.
        about: The text to print when ``CNI_COMMAND`` is not set; by default the first line of the class's docstring.
    """

    def __call__(self) -> NoReturn:
        """Serve the request of this process, and exit."""
        import sys

        from ._process import serve

        sys.exit(serve(self))
