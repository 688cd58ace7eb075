"""``cnisdk uninstall``: remove launchers, and put back the programs they replaced."""

from __future__ import annotations

import argparse
import os

from ..errors import InvalidConfigError, IOFailureError, cause_of
from .launchers import BACKUP_SUFFIX, is_launcher, read_program

DESCRIPTION = (
    "Remove the executables that `cnisdk install` wrote into a directory, by any Python "
    "environment. A program that was replaced gets its name back. Other files stay. "
    "Containers that are running are not disturbed, but nothing can detach them until a plugin of the same type "
    "is there again."
)

EPILOG = "examples:\n  cnisdk uninstall --dest /opt/cni/bin\n  cnisdk uninstall --dest /opt/cni/bin bridge"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "types", nargs="*", metavar="TYPE", help="plugin types to remove; without any, all that `cnisdk install` wrote"
    )
    parser.add_argument("--dest", metavar="DIR", required=True, help="the plugin directory, such as /opt/cni/bin")


def run(args: argparse.Namespace) -> int:
    """Remove launchers."""
    directory = os.path.abspath(args.dest)
    try:
        names = sorted(os.listdir(directory))
    except OSError as exc:
        raise IOFailureError(f"cannot read {directory}: {cause_of(exc)}") from exc
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
    return not os.path.islink(path) and os.path.isfile(path) and is_launcher(read_program(path) or b"")


def _remove(path: str) -> None:
    """Remove a launcher. If it replaced a program, rename that program over it, in one step."""
    kept = f"{path}{BACKUP_SUFFIX}"
    try:
        if os.path.lexists(kept):
            os.rename(kept, path)
            print(f"{path}: removed; the program it replaced is back")
        else:
            os.unlink(path)
            print(f"{path}: removed")
    except OSError as exc:
        raise IOFailureError(f"cannot remove {path}: {cause_of(exc)}") from exc
