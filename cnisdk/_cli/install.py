"""``cnisdk install``: write an executable for each registered plugin, as ``/opt/cni/bin`` expects it.

An executable is a launcher (:mod:`..plugin._launch`), or a shim, which contains one (:mod:`.._thick.shim`). This module
finds what a launcher contains: the interpreter, the directories of its modules, and the plugin's answer to VERSION.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

from .._thick.ondemand import permit_start
from .._thick.protocol import DIRECTORY
from .._thick.shim import ShimTexts, render_start
from ..errors import CNIError, InternalError, InvalidConfigError, IOFailureError, cause_of
from ..invoke.call import interpret
from ..invoke.process import execute
from ..invoke.version import parse_versions
from ..plugin import Plugin, PluginMain, _launch
from ..plugin._launch import MARK, code_of, interpreter_of
from ..spec.codec import dumps_compact, loads
from ..spec.names import check_plugin_type

ENTRY_POINT_GROUP = "cnisdk.plugins"
"""Entry point group in which distributions register plugins: ``type = "module:attribute"``."""

BACKUP_SUFFIX = ".before-cnisdk"
"""Suffix of the name under which a replaced program is kept."""

# Importing a plugin for the first time may have to compile everything it needs.
_TIMEOUT = 60.0


class RegisteredPlugin(NamedTuple):
    """Plugin that an installed distribution registered.

    Attributes:
        type: Type of the plugin, and name of its launcher.
        module: Module that defines it.
        attribute: Callable in the module, possibly dotted.
        distribution: Name and version of the distribution, for messages.
    """

    type: str
    module: str
    attribute: str
    distribution: str


def registered_plugins(entries: Iterable[EntryPoint] | None = None) -> dict[str, RegisteredPlugin]:
    """Return all registered plugins by type, sorted.

    Args:
        entries: Entry points to read; None means those of the group in this environment.

    Raises:
        InvalidConfigError: (7) Two distributions register different plugins of one type, or a type is no file name.
    """
    found: dict[str, RegisteredPlugin] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP) if entries is None else entries:
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
        plugin = RegisteredPlugin(
            check_plugin_type(entry.name, f"{ENTRY_POINT_GROUP} of {distribution}"),
            entry.module,
            entry.attr or "main",
            distribution,
        )
        other = found.setdefault(plugin.type, plugin)
        if (other.module, other.attribute) != (plugin.module, plugin.attribute):
            raise InvalidConfigError(
                f'plugin type "{plugin.type}" is registered twice: by {other.distribution} as '
                f"{other.module}:{other.attribute}, and by {plugin.distribution} as {plugin.module}:{plugin.attribute}",
                details="uninstall one of the two",
            )
    return dict(sorted(found.items()))


def search_path(interpreter: str) -> tuple[str, ...] | None:
    """Return the directories in which an interpreter finds modules beyond the standard library.

    Launchers start Python without its site module, and pass these directories (see :mod:`..plugin._launch`).

    Returns:
        The directories; None if the site module does more than add directories, and must run each time.

    Raises:
        InternalError: (999) The interpreter does not run.
    """
    show = "import json, sys; print(json.dumps([sys.path, [repr(each) for each in sys.meta_path]]))"
    answers = []
    for switches in (["-I"], ["-I", "-S"]):
        finished = execute(
            [interpreter, *switches, "-c", show], environ=_environ(), stdin=b"", timeout=_TIMEOUT, on_stderr=discard
        )
        if finished.returncode:
            raise InternalError(f"{interpreter} does not run", details=finished.stderr.decode(errors="replace").strip())
        answers.append(loads(finished.stdout, f"what {interpreter} prints"))
    (full, finders), (bare, bare_finders) = answers
    # Editable installs add finders. The one of setuptools for distutils makes no difference.
    more = [each for each in finders if each not in bare_finders and "DistutilsMetaFinder" not in each]
    if more or full[: len(bare)] != bare or not all(map(os.path.isabs, full)):
        return None
    return tuple(full[len(bare) :])


def discard(_: bytes) -> None:
    """Ignore a program's stderr while it runs: the finished call has it as a whole."""


def _environ() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}


def ask_versions(plugin: RegisteredPlugin, interpreter: str, paths: Sequence[str] | None = None) -> bytes:
    """Run a plugin's VERSION as its launcher would. This also proves that the launcher will work.

    Args:
        plugin: The plugin.
        interpreter: Absolute path of the Python that has it installed.
        paths: Directories of its modules, see :func:`search_path`.

    Returns:
        The answer, in one line.

    Raises:
        InternalError: (999) The plugin cannot be imported, or does not answer.
    """
    argv = [*interpreter_of(interpreter, paths), "-c", code_of(plugin.module, plugin.attribute, paths)]
    finished = execute(
        argv, environ={**_environ(), "CNI_COMMAND": "VERSION"}, stdin=b"", timeout=_TIMEOUT, on_stderr=discard
    )
    path = f"{plugin.module}:{plugin.attribute}"
    try:
        answer = parse_versions(interpret(finished, path, {"CNI_COMMAND": "VERSION"}, b""), path)
    except CNIError as exc:
        message = str(exc)
        if "ModuleNotFoundError" in exc.msg:
            message = f"{exc.msg}; {interpreter} -I does not see PYTHONPATH: install the package that has it"
        raise InternalError(f'plugin "{plugin.type}" ({path}) does not run', details=message) from exc
    return dumps_compact({"cniVersion": answer.cni_version, "supportedVersions": answer.supported})


def render_launcher(
    plugin: RegisteredPlugin, interpreter: str, versions: bytes, paths: Sequence[str] | None = None
) -> bytes:
    """Render a plugin's launcher.

    Args:
        plugin: The plugin.
        interpreter: Absolute path of the Python that has it installed; any length, any characters.
        versions: The plugin's answer to VERSION, in one line.
        paths: Directories of its modules, see :func:`search_path`.
    """
    about = f"{plugin.type}: {plugin.module}:{plugin.attribute} of {plugin.distribution}"
    code = code_of(plugin.module, plugin.attribute, paths)
    return _launch.render(about, interpreter_of(interpreter, paths), code, versions.decode())


def this_interpreter() -> str:
    """Return the path of the running interpreter; in a virtual environment, the path inside the environment.

    Raises:
        InternalError: (999) Python does not know its own path.
    """
    if not sys.executable:
        raise InternalError("Python does not know the path of its own executable (sys.executable is empty)")
    return os.path.abspath(sys.executable)


def write_executable(path: str, content: bytes, mode: int = 0o755) -> None:
    """Replace a file atomically. The program it replaces may be running.

    Args:
        path: Path of the file.
        content: New content.
        mode: Permission bits.

    Raises:
        IOFailureError: (5) The file cannot be written.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(fd, mode)
                # An installation must survive a power cut, unlike the state of containers.
                os.fsync(fd)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        raise IOFailureError(f"cannot write {path}: {cause_of(exc)}") from exc


def read_program(path: str) -> bytes | None:
    """Read a file of the plugin directory; None when it is missing.

    Raises:
        IOFailureError: (5) The file cannot be read.
    """
    try:
        # O_NONBLOCK: a FIFO in the program's place reads as empty, instead of blocking.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(1 << 22)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise IOFailureError(f"cannot read {path}: {cause_of(exc)}") from exc


def is_launcher(content: bytes) -> bool:
    """Return True if ``cnisdk install`` wrote the file: a launcher, or a shim, which contains a launcher."""
    return MARK.encode() in (content if content.startswith(b"\x7fELF") else content[:512])


# --- the command ------------------------------------------------------------------------------------------------------


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
