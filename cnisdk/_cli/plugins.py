"""``cnisdk plugins``: the plugins of a node, whose they are, how they run, and which networks need them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import CNIError, IOFailureError, cause_of
from ..invoke.find import split_path
from ..runtime.load import load_networks
from ..runtime.network import Network
from ..spec.codec import find_key
from .inventory import PluginFile, list_plugin_files, server_problems
from .launchers import registered_plugins, this_interpreter
from .options import USUAL_DIRECTORIES, add_conf_dir, find_usual_directories

_HEADINGS = ("type", "from", "versions", "verbs", "runs", "networks")
_ORIGINS = {"cnisdk": "cnisdk", "go": "Go set", "unknown": "unknown"}


DESCRIPTION = (
    "List the plugins in directories: who made each (this SDK, the Go set, or unknown), the versions of the "
    "specification it accepts, how it runs, and which networks use it; then what networks need and no directory has. "
    "Nothing is changed. Programs that are not known are asked for their VERSION only if they look like plugins. "
    "The exit status is 1 if a network needs a plugin that is missing or cannot run."
)

EPILOG = "examples:\n  cnisdk plugins\n  cnisdk plugins /opt/cni/bin\n  cnisdk plugins --json | jq '.missing'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "directories",
        nargs="*",
        metavar="DIR",
        help="directories with plugins, the first has priority; by default those of CNI_PATH, or else the usual ones: "
        + ", ".join(USUAL_DIRECTORIES),
    )
    add_conf_dir(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON document")


class PluginSet(NamedTuple):
    """Plugins of a node.

    Attributes:
        directories: Each directory with its plugins, in the order of priority.
        users: Names of the networks that name each type.
        missing: Types that networks name, and no directory has, with the names of the networks.
        available: Types that are registered with this Python, and no directory has.
        outdated: Paths of executables, with what to do: another version of their package is installed now.
    """

    directories: Mapping[str, Sequence[PluginFile]]
    users: Mapping[str, Sequence[str]]
    missing: Mapping[str, Sequence[str]]
    available: Sequence[str]
    outdated: Mapping[str, str]

    def files(self) -> Iterator[PluginFile]:
        """Yield the plugins, in the order of priority."""
        for each in self.directories.values():
            yield from each

    def find_first(self, type_: str) -> PluginFile | None:
        """Find the executable that runtimes run for a type; None if they find none."""
        return next((each for each in self.files() if each.type == type_ and each.executable), None)

    def name_hider(self, file: PluginFile) -> str:
        """Return the path of the executable that runtimes run in place of this one; empty if there is none."""
        first = self.find_first(file.type)
        return first.path if first and first != file else ""

    def fails(self) -> bool:
        """Return True if a network needs a plugin that is missing or cannot run."""
        return any(found is None or found.problem for found in map(self.find_first, self.users))


def run(args: argparse.Namespace) -> int:
    """Print the plugins, and return 1 if a network lacks one."""
    directories = args.directories or split_path(os.environ.get("CNI_PATH", "")) or _usual_directories()
    networks: Sequence[Network] = ()
    try:
        loaded = load_networks(args.conf_dir)
    except CNIError as exc:
        print(f"cnisdk: {exc}", file=sys.stderr)
    else:
        networks = loaded.networks
        for problem in loaded.problems:
            print(f"cnisdk: {problem}", file=sys.stderr)
    found = _survey([os.path.abspath(each) for each in directories], networks)
    for text in server_problems([*found.files()]):
        print(f"cnisdk: {text}", file=sys.stderr)
    if args.json:
        print(json.dumps(_as_json(found), indent=4))
    else:
        _print(found)
    return 1 if found.fails() else 0


def _usual_directories() -> list[str]:
    """Return the usual directories that exist.

    Raises:
        IOFailureError: (5) There is none.
    """
    existing = find_usual_directories()
    if not existing:
        raise IOFailureError(f"there is none of {', '.join(USUAL_DIRECTORIES)}", details="name the directory")
    return existing


def _survey(directories: Sequence[str], networks: Iterable[Network]) -> PluginSet:
    users: dict[str, list[str]] = {}
    for network in networks:
        for type_ in dict.fromkeys(each for member in network.plugins for each in _types(member.document)):
            users.setdefault(type_, []).append(network.name)
    files = {}
    for directory in directories:
        try:
            files[directory] = list_plugin_files(directory, users)
        except OSError as exc:
            raise IOFailureError(f"cannot read {directory}: {cause_of(exc)}") from exc
    present = {each.type for found in files.values() for each in found}
    registered = registered_plugins()
    outdated = {}
    for each in (each for found in files.values() for each in found if each.program == this_interpreter()):
        if each.type not in registered:
            outdated[each.path] = f"{each.package} is not installed any more: remove it with `cnisdk uninstall`"
        elif each.package != registered[each.type].distribution:
            outdated[each.path] = f"{registered[each.type].distribution} is installed now: run `cnisdk install` again"
    return PluginSet(
        files,
        dict(sorted(users.items())),
        {name: users[name] for name in sorted(users.keys() - present)},
        sorted(registered.keys() - present),
        outdated,
    )


def _types(document: object) -> Iterator[str]:
    """Yield the types that a plugin's configuration names: its own, its IPAM plugin's, and those it delegates to."""
    if isinstance(document, Mapping):
        kind = find_key(document, "type")
        if isinstance(kind, str) and kind:
            yield kind
        for key in ("ipam", "delegate", "delegates"):
            inner = find_key(document, key)
            for each in inner if isinstance(inner, list) else [inner]:
                yield from _types(each)


def _as_json(found: PluginSet) -> dict[str, Any]:
    return {
        "directories": [
            {
                "path": directory,
                "plugins": [
                    {
                        "type": each.type,
                        "path": each.path,
                        "origin": each.origin,
                        "package": each.package,
                        "version": each.version,
                        "supportedVersions": each.supported,
                        "verbs": each.verbs,
                        "mode": each.mode,
                        "server": each.server,
                        "program": each.program,
                        "networks": found.users.get(each.type, []),
                        "hiddenBy": found.name_hider(each),
                        "replaced": each.replaced,
                        "outdated": found.outdated.get(each.path, ""),
                        "problem": each.problem,
                    }
                    for each in files
                ],
            }
            for directory, files in found.directories.items()
        ],
        "missing": [{"type": name, "networks": networks} for name, networks in found.missing.items()],
        "available": found.available,
    }


# --- text -------------------------------------------------------------------------------------------------------------


def _print(found: PluginSet) -> None:
    for directory, files in found.directories.items():
        print(directory)
        _print_table([_row(found, each) for each in files])
        for each in files:
            for remark in _remarks(found, each):
                print(f"  {each.path}: {remark}")
    for name, networks in found.missing.items():
        print(f"missing: {name}, for {', '.join(networks)}")
    if found.available:
        print(f"not installed, but known to this Python: {', '.join(found.available)}")


def _row(found: PluginSet, file: PluginFile) -> tuple[str, ...]:
    origin = file.package or " ".join(filter(None, [_ORIGINS[file.origin], file.version]))
    versions = f"{file.supported[0]}-{file.supported[-1]}" if len(file.supported) > 1 else "".join(file.supported)
    networks = ",".join(found.users.get(file.type, ()))
    return file.type, origin, versions or "?", ",".join(file.verbs) or "?", file.mode or "?", networks or "-"


def _remarks(found: PluginSet, file: PluginFile) -> Iterator[str]:
    if file.problem:
        yield f"does not run: {file.problem}"
    if hiding := found.name_hider(file):
        yield f"runtimes find {hiding} first"
    if outdated := found.outdated.get(file.path):
        yield outdated
    if file.replaced:
        yield f"replaces {file.replaced}"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows with a heading on a terminal; without, one line a plugin, for grep and awk."""
    if sys.stdout.isatty():
        rows = [_HEADINGS, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
