"""The command ``cnisdk`` and its subcommands.

Each subcommand is a module beside this one, listed in :data:`COMMANDS` and imported only when asked for. It offers

``register(subparsers)``
    Add its parser: ``parser = subparsers.add_parser("leases", help="…", description="…")``, then its arguments. Nothing
    else happens here.

``run(args) -> int``
    Do it, and return the exit status: 0, or 1 if what was asked for did not work out. ``args`` is the parsed namespace.
    A :class:`~.errors.CNIError` it raises is printed to stderr with its code, and the status is 1.

A subcommand whose module is not installed is not listed, and does not disturb the others.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

from .. import __version__
from ..errors import CNIError
from .parsers import Parser

_DESCRIPTION = "Tools for plugins of the Container Network Interface (CNI)."

COMMANDS = {
    "install": ("install", "write a launcher for each registered plugin into a directory"),
    "uninstall": ("uninstall", "remove launchers, and put back what they replaced"),
    "leases": ("leases", "show the addresses host-local has handed out"),
    "gc": ("gc", "release leases and cached attachments whose container is gone"),
    "fsck": ("fsck", "find broken state, and repair it"),
    "conform": ("conform", "test any plugin executable against the specification"),
    "completion": ("completion", "print the completion of a shell for cnisdk and cnitool"),
    "serve": ("serve", "run plugins in a resident process"),
}
"""Name of a subcommand: its module, and one line for the help."""


class Command(Protocol):
    """What a subcommand's module offers."""

    def register(self, subparsers: Any) -> None:
        """Add the parser."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; return the exit status."""


def available() -> dict[str, str]:
    """The subcommands that are installed: name and one line of help."""
    return {name: text for name, (module, text) in COMMANDS.items() if find_spec(f".{module}", __package__) is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None means those of this process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    commands = available()
    if name not in commands:
        parser = _overview(commands)
        if name in ("-h", "--help", "--version"):
            parser.parse_args([name])
        if not name:
            parser.print_help(sys.stderr)
            return 2
        parser.error(f"unknown command {name!r}, expected one of: {', '.join(commands)}")
    command = cast(Command, import_module(f".{COMMANDS[name][0]}", __package__))
    parser = Parser(prog="cnisdk")
    command.register(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    try:
        return command.run(args)
    except CNIError as exc:
        print(f"cnisdk {name}: {exc} (code {exc.code})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output, `head` for instance, has seen enough. Flushing at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _overview(commands: dict[str, str]) -> argparse.ArgumentParser:
    width = max(map(len, commands), default=0)
    parser = Parser(
        prog="cnisdk",
        usage="cnisdk COMMAND [ARGUMENTS]",
        description=_DESCRIPTION,
        epilog="commands:\n"
        + "".join(f"  {name:{width}}  {text}\n" for name, text in commands.items())
        + "\n`cnisdk COMMAND --help` tells more about each. To attach namespaces to networks, see `cnitool --help`.",
    )
    parser.add_argument("--version", action="version", version=f"cnisdk {__version__}")
    return parser


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the program with all its commands, as completion and the manual page need it."""
    parser = Parser(prog="cnisdk", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"cnisdk {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in available():
        cast(Command, import_module(f".{COMMANDS[name][0]}", __package__)).register(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
