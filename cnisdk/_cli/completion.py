"""``cnisdk completion``: completion scripts for shells, made from the parsers."""

from __future__ import annotations

import argparse

from ..errors import IOFailureError

DESCRIPTION = "Print a script that lets a shell complete the arguments of cnisdk or cnitool."

EPILOG = (
    "examples:\n"
    "  cnisdk completion bash cnisdk > /etc/bash_completion.d/cnisdk\n"
    "  cnisdk completion bash cnitool > /etc/bash_completion.d/cnitool\n"
    "  cnisdk completion zsh cnitool > /usr/share/zsh/site-functions/_cnitool"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the shell")
    parser.add_argument("program", choices=["cnisdk", "cnitool"], help="the program")


def run(args: argparse.Namespace) -> int:
    """Print the completion script."""
    try:
        import shtab
    except ImportError as exc:
        raise IOFailureError("the package shtab is missing", details="python3 -m pip install shtab") from exc
    from . import cnisdk, cnitool

    parser = (cnisdk if args.program == "cnisdk" else cnitool).make_parser()
    print(shtab.complete(parser, shell=args.shell))
    return 0
