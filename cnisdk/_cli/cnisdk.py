"""The command ``cnisdk`` and its subcommands.

Each subcommand is a module beside this one, listed in :data:`COMMANDS`, and imported only when the subcommand is used.
:class:`Command` lists what such a module defines. A subcommand whose module is not installed is not listed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Any, Protocol, cast

from .. import __version__
from ..errors import CNIError, as_cni_error
from .parsers import Parser

_DESCRIPTION = "Tools for plugins of the Container Network Interface (CNI)."

COMMANDS = {
    "install": ("install", "write an executable for each registered plugin into a directory"),
    "uninstall": ("uninstall", "remove launchers, and put back what they replaced"),
    "plugins": ("plugins", "list the plugins of a node, whose they are, and what is missing"),
    "leases": ("leases", "show the addresses host-local has handed out"),
    "gc": ("gc", "release leases and cached attachments whose container is gone"),
    "fsck": ("fsck", "find broken state, and repair it"),
    "cluster": ("cluster", "show and repair the addresses of networks that span hosts"),
    "repair": ("repair", "put back the packet filter rules that attachments have lost"),
    "conform": ("conform", "test any plugin executable against the specification"),
    "completion": ("completion", "print the completion of a shell for cnisdk and cnitool"),
    "serve": ("serve", "run plugins in a resident process"),
    "dhcp": ("dhcp", "keep the leases of the plugin dhcp"),
}
"""Module and one line of help of each subcommand, by its name."""


class Command(Protocol):
    """Module of a subcommand. It may also define ``EPILOG``, a text that follows its help.

    Attributes:
        DESCRIPTION: A paragraph for its help.
    """

    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the subcommand."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the subcommand.

        Args:
            args: The parsed arguments; ``args.parser`` is the parser, for errors.

        Returns:
            The exit status: 0, or 1 if the command failed.

        Raises:
            CNIError: Printed to stderr with its code; the exit status is 1.
            OSError: Printed as an error with code 5.
        """


def available_commands() -> dict[str, str]:
    """Return name and one line of help of the subcommands that are installed."""
    return {name: text for name, (module, text) in COMMANDS.items() if find_spec(f".{module}", __package__) is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or with those of this process, and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    commands = available_commands()
    if name not in commands:
        parser = _overview(commands)
        if name in ("-h", "--help", "--version"):
            parser.parse_args([name])
        if not name:
            parser.print_help(sys.stderr)
            return 2
        parser.error(f"unknown command {name!r}, expected one of: {', '.join(commands)}")
    parser = Parser(prog="cnisdk")
    command = _add_command(parser.add_subparsers(required=True), name)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:  # by the command's own parser, whose usage helps
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of links and files may be any bytes
    try:
        return command.run(args)
    except CNIError as exc:
        print(f"cnisdk {name}: {exc.describe()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The program that reads the output, such as `head`, has ended. The flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as exc:  # of a file that no command has expected to fail, such as on a broken disk
        print(f"cnisdk {name}: {as_cni_error(exc).describe()}", file=sys.stderr)
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
    for name in available_commands():
        _add_command(subparsers, name)
    return parser


def _add_command(subparsers: Any, name: str) -> Command:
    """Import a subcommand, and add its parser."""
    module, text = COMMANDS[name]
    command = cast(Command, import_module(f".{module}", __package__))
    parser = subparsers.add_parser(
        name, help=text, description=command.DESCRIPTION, epilog=getattr(command, "EPILOG", None)
    )
    parser.set_defaults(parser=parser)
    command.add_arguments(parser)
    return command


if __name__ == "__main__":
    sys.exit(main())
