"""The program around a plugin."""

from __future__ import annotations

from typing import NoReturn

from .program import Program


class PluginMain(Program):
    """The program around a plugin: call it, and it serves the request of this process and exits.

    It alone reads the environment and standard input, prints, and sets the exit status. What a handler prints goes to
    standard error. SIGTERM, SIGINT and SIGHUP, and a runtime that no longer listens, take back what was done.

    Args:
        plugin: The class of the plugin.
        about: What to print when ``CNI_COMMAND`` is not set; by default the first line of the class's docstring.
    """

    def __call__(self) -> NoReturn:
        """Serve the request of this process, and exit."""
        import sys

        from .process import serve

        sys.exit(serve(self))
