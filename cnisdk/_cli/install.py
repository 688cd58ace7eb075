"""``cnisdk install``: write an executable for each registered plugin, as ``/opt/cni/bin`` expects it.

An executable is a launcher (:mod:`.launchers`), or a shim, which contains one (:mod:`.._thick.shim`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .._thick.ondemand import permit_start
from .._thick.protocol import DIRECTORY
from .._thick.shim import ShimTexts, render_start
from ..errors import CNIError, InvalidConfigError, IOFailureError, cause_of
from ..plugin import Plugin, PluginMain, _launch
from .launchers import (
    BACKUP_SUFFIX,
    ENTRY_POINT_GROUP,
    RegisteredPlugin,
    ask_versions,
    is_launcher,
    read_program,
    registered_plugins,
    render_launcher,
    search_path,
    this_interpreter,
    write_executable,
)

DESCRIPTION = (
    "Write an executable for each plugin that an installed Python package registers under the "
    f"entry point group {ENTRY_POINT_GROUP}, under the name that runtimes look for. An older launcher of that name "
    "is replaced, even while it runs; another program only with --force. Run it again after upgrading or "
    "moving the Python installation; --check tells when that is necessary."
)

EPILOG = (
    "examples:\n"
    "  cnisdk install --list\n"
    "  cnisdk install --dest /opt/cni/bin\n"
    "  cnisdk install --dest /opt/cni/bin bridge host-local\n"
    "  cnisdk install --dest /opt/cni/bin --check"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "types", nargs="*", metavar="TYPE", help="plugin types to install; without any, all that are registered"
    )
    parser.add_argument(
        "--dest", metavar="DIR", help="directory to write to, such as /opt/cni/bin; made if it does not exist"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--no-server",
        action="store_true",
        help="write launchers, which run each request in a process of its own; without this option, shims that use a "
        "resident server, and start one on demand where they may",
    )
    kind.add_argument(
        "--thick",
        action="store_true",
        help="write shims that use a resident server which is there (`cnisdk serve`), and start none",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        default=DIRECTORY,
        help="directory of the server (default %(default)s)",
    )
    parser.add_argument(
        "--units",
        metavar="DIR",
        help="write systemd units of the server and of `cnisdk dhcp` into this directory, such as /etc/systemd/system",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help=f"also replace other programs; each is kept as NAME{BACKUP_SUFFIX}, and `cnisdk uninstall` puts it back",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a launcher is missing or out of date"
    )
    action.add_argument("--list", action="store_true", help="write nothing; list the registered plugins")


def run(args: argparse.Namespace) -> int:
    """Install, check or list plugins, and return 1 if one failed."""
    registered = registered_plugins()
    plugins = _choose(registered, args.types)
    if args.list:
        width = max((len(plugin.type) for plugin in plugins), default=0)
        for plugin in plugins:
            print(f"{plugin.type:{width}}  {plugin.module}:{plugin.attribute}  ({plugin.distribution})")
        return 0
    if not args.dest:
        args.parser.error("the following arguments are required: --dest")
    if not plugins:
        raise InvalidConfigError(
            f"no plugin is registered under {ENTRY_POINT_GROUP}",
            details="install a package that has some, such as cnisdk-plugins",
        )
    destination = os.path.abspath(args.dest)
    if not args.check:
        try:
            os.makedirs(destination, mode=0o755, exist_ok=True)
        except OSError as exc:
            raise IOFailureError(f"cannot make {destination}: {cause_of(exc)}") from exc
    interpreter = this_interpreter()
    paths = search_path(interpreter)
    program = None if args.no_server else _find_program(args.thick)
    server = os.path.abspath(args.directory)
    start = b"" if args.thick else render_start(interpreter, server)
    status = 0
    for plugin in plugins:
        try:
            versions = ask_versions(plugin, interpreter, paths)
            launcher = render_launcher(plugin, interpreter, versions, paths)
            wanted = launcher
            if program is not None:
                wanted = _make_executable(program, ShimTexts(plugin.type, launcher, versions, server, start))
            path = os.path.join(destination, plugin.type)
            if not (_check(path, wanted) if args.check else _install(path, wanted, force=args.force)):
                status = 1
            _warn_of_default_gc(plugin)
        except CNIError as exc:
            print(f"cnisdk install: {exc.describe()}", file=sys.stderr)
            status = 1
    if start and not args.check:
        permit_start(server)
    if args.units and not args.check:
        _write_units(os.path.abspath(args.units), interpreter, args.directory)
    if args.check and not args.types and _report_orphans(destination, registered):
        status = 1
    return status


def _choose(registered: dict[str, RegisteredPlugin], types: Sequence[str]) -> list[RegisteredPlugin]:
    unknown = [name for name in types if name not in registered]
    if unknown:
        raise InvalidConfigError(
            f"no plugin is registered as {', '.join(map(repr, unknown))}",
            details=f"known types: {', '.join(registered) or 'none'}",
        )
    return [registered[name] for name in dict.fromkeys(types)] or list(registered.values())


def _find_program(thick: bool) -> bytes | None:
    """Find the program of all shims, or compile it.

    Args:
        thick: Shims are wanted in any case.

    Returns:
        The program; None if launchers are to do the work.

    Raises:
        IOFailureError: (5) Shims are wanted in any case, and there is no program for them.
    """
    from .._thick import shim

    try:
        return shim.find_prebuilt() or shim.compile_program()
    except OSError as exc:  # a copy of this package without shim.c
        problem = IOFailureError(f"cannot make shims: {cause_of(exc)}")
    except IOFailureError as exc:
        problem = exc
    if thick:
        raise problem
    print(f"cnisdk install: writing launchers, as with --no-server: {problem.describe()}", file=sys.stderr)
    return None


def _make_executable(program: bytes, texts: ShimTexts) -> bytes:
    """Make a shim; or return the launcher, if the texts do not fit into a shim that would start servers on demand."""
    from .._thick import shim

    try:
        return shim.make_shim(program, texts)
    except InvalidConfigError as exc:
        if not texts.start:
            raise
        print(f"cnisdk install: writing a launcher, as with --no-server: {exc.describe()}", file=sys.stderr)
        return texts.launcher


def _write_units(directory: str, interpreter: str, runtime: str) -> None:
    from .._thick.systemd import render_dhcp_units, render_units
    from ..dhcp.client import SOCKET_PATH

    units = {**render_units(interpreter, runtime), **render_dhcp_units(interpreter, SOCKET_PATH)}
    for name, text in units.items():
        path = os.path.join(directory, name)
        present = read_program(path)
        if present == text:
            print(f"{path}: up to date")
        else:
            write_executable(path, text, mode=0o644)
            print(f"{path}: {'installed' if present is None else 'updated'}")


def _warn_of_default_gc(plugin: RegisteredPlugin) -> None:
    """Print a note if a plugin has the default GC, which removes links only, and does not declare this to be enough."""
    try:
        main = _launch.load_main(plugin.module, plugin.attribute)
    except Exception:
        return  # VERSION has reported the error just before
    if isinstance(main, PluginMain) and main.plugin.gc is Plugin.gc and not main.plugin.leaves_only_links:
        print(
            f"cnisdk install: note: {plugin.type} has no GC of its own: links that carry their owner are collected, "
            "and its IPAM plugin is asked. If it leaves nothing else, let its class say leaves_only_links = True",
            file=sys.stderr,
        )


def _install(path: str, wanted: bytes, *, force: bool) -> bool:
    present = read_program(path)
    ours = present is not None and not os.path.islink(path) and is_launcher(present)
    if present is not None and ours and present == wanted and os.access(path, os.X_OK):
        print(f"{path}: up to date")
        return True
    foreign = os.path.lexists(path) and not ours
    if foreign and not force:
        raise InvalidConfigError(
            f"{path} is {_describe(path)}, nothing was changed",
            details=f"--force replaces it and keeps it as {path}{BACKUP_SUFFIX}",
        )
    if foreign:
        _keep_backup(path)
    write_executable(path, wanted)
    if foreign:
        print(f"{path}: installed; the other program is kept as {path}{BACKUP_SUFFIX}")
    else:
        print(f"{path}: {'updated' if ours else 'installed'}")
    return True


def _describe(path: str) -> str:
    return f"a symbolic link to {os.readlink(path)}" if os.path.islink(path) else "another program"


def _keep_backup(path: str) -> None:
    """Link a foreign program to a second name. The launcher then replaces the first name."""
    try:
        os.link(path, f"{path}{BACKUP_SUFFIX}", follow_symlinks=False)
    except FileExistsError as exc:
        raise InvalidConfigError(
            f"{path} is {_describe(path)}, and {path}{BACKUP_SUFFIX} exists already", details="remove one of the two"
        ) from exc
    except OSError as exc:
        raise IOFailureError(f"cannot keep {path} as {path}{BACKUP_SUFFIX}: {cause_of(exc)}") from exc


def _check(path: str, wanted: bytes) -> bool:
    present = read_program(path)
    if present is None:
        print(f"{path}: missing")
    elif os.path.islink(path) or not is_launcher(present):
        print(f"{path}: is {_describe(path)}")
    elif present != wanted:
        print(f"{path}: out of date")
    elif not os.access(path, os.X_OK):
        print(f"{path}: is not executable")
    else:
        print(f"{path}: up to date")
        return True
    return False


def _report_orphans(destination: str, registered: dict[str, RegisteredPlugin]) -> bool:
    """Report launchers whose plugins are no longer registered."""
    found = False
    for name in sorted(os.listdir(destination)) if os.path.isdir(destination) else ():
        path = os.path.join(destination, name)
        if name not in registered and os.path.isfile(path) and is_launcher(read_program(path) or b""):
            print(f"{path}: its plugin is not installed any more; remove the file")
            found = True
    return found
