"""``cnisdk completion``: completion scripts for shells, made from the parsers."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import IOFailureError


def register(subparsers: Any) -> None:
    """Add the parser of ``cnisdk completion``."""
    parser = subparsers.add_parser(
        "completion",
        help="print the completion of a shell for cnisdk and cnitool",
        description="Print a script that lets a shell complete the arguments of cnisdk or cnitool.",
        epilog="examples:\n"
        "  cnisdk completion bash cnisdk > /etc/bash_completion.d/cnisdk\n"
        "  cnisdk completion bash cnitool > /etc/bash_completion.d/cnitool\n"
        "  cnisdk completion zsh cnitool > /usr/share/zsh/site-functions/_cnitool",
    )
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the shell")
    parser.add_argument("program", choices=["cnisdk", "cnitool"], help="the program")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    try:
        import shtab
    except ImportError as exc:
        raise IOFailureError("the package shtab is missing", details="pip install 'cnisdk[cli]'") from exc
    from . import cnisdk, cnitool

    parser = (cnisdk if args.program == "cnisdk" else cnitool).make_parser()
    print(shtab.complete(parser, shell=args.shell))
    return 0
