"""``cnisdk uninstall``: remove launchers, and put back what they took the place of."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..errors import InvalidConfigError, IOFailureError
from .install import KEPT, is_launcher, read


def register(subparsers: Any) -> None:
    """Add the parser of ``cnisdk uninstall``."""
    parser = subparsers.add_parser(
        "uninstall",
        help="remove launchers from a directory, and put back what they replaced",
        description="Remove the executables that `cnisdk install` wrote into a directory, of whichever Python "
        "environment. A program that one of them took the place of gets its name back. Other files are left alone. "
        "Containers that are running are not disturbed, but nothing can detach them until a plugin of the same type "
        "is there again.",
        epilog="examples:\n  cnisdk uninstall --dest /opt/cni/bin\n  cnisdk uninstall --dest /opt/cni/bin bridge",
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="plugin types to remove; all that are ours if none")
    parser.add_argument("--dest", metavar="DIR", required=True, help="the plugin directory, such as /opt/cni/bin")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say."""
    directory = os.path.abspath(args.dest)
    try:
        names = sorted(os.listdir(directory))
    except OSError as exc:
        raise IOFailureError(f"cannot read {directory}: {exc.strerror}") from exc
    ours = [name for name in names if _is_ours(os.path.join(directory, name))]
    if foreign := sorted({*args.types} - {*ours}):
        missing = [name for name in foreign if name not in names]
        raise InvalidConfigError(
            f"no launcher in {directory} is named {', '.join(map(repr, foreign))}, nothing was removed",
            details="there is no such file" if missing == foreign else "`cnisdk install` did not write it",
        )
    for name in args.types or ours:
        _remove(os.path.join(directory, name))
    if not ours:
        print(f"{directory}: no launchers")
    return 0


def _is_ours(path: str) -> bool:
    return not os.path.islink(path) and os.path.isfile(path) and is_launcher(read(path) or b"")


def _remove(path: str) -> None:
    """Remove one; what it replaced takes its name in one step."""
    kept = f"{path}{KEPT}"
    try:
        if os.path.lexists(kept):
            os.rename(kept, path)
            print(f"{path}: removed; the program it replaced is back")
        else:
            os.unlink(path)
            print(f"{path}: removed")
    except OSError as exc:
        raise IOFailureError(f"cannot remove {path}: {exc.strerror}") from exc
