"""``cnisdk install``: write one executable launcher per registered plugin, as ``/opt/cni/bin`` expects.

What a launcher is, :mod:`..plugin.launch` says. What it needs to know is looked up here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from ..errors import CNIError, InternalError, InvalidConfigError, IOFailureError
from ..invoke.call import interpret
from ..invoke.process import execute
from ..invoke.version import parse_versions
from ..plugin import Plugin, PluginMain, launch
from ..plugin.launch import MARK, code_of, interpreter_of
from ..spec.codec import dumps_compact, loads
from ..spec.names import check_plugin_type
from ..thick.protocol import DIRECTORY

GROUP = "cnisdk.plugins"
"""The entry point group in which distributions register plugins: ``type = "module:attribute"``."""

KEPT = ".before-cnisdk"
"""What follows the name of a program that a launcher took the place of."""

# Importing a plugin for the first time may have to compile everything it needs.
_TIMEOUT = 60.0


class Registered(NamedTuple):
    """A plugin that an installed distribution registered.

    Attributes:
        type: Its type, which becomes the launcher's name.
        module: The module that has it.
        attribute: The callable in the module, possibly dotted.
        distribution: Name and version of the distribution, for people.
    """

    type: str
    module: str
    attribute: str
    distribution: str


def find_registered(entries: Iterable[EntryPoint] | None = None) -> dict[str, Registered]:
    """All registered plugins by type, sorted.

    Args:
        entries: Entry points to look at; None means those of the group in this environment.

    Raises:
        InvalidConfigError: (7) Two distributions register different plugins of one type, or a type is no file name.
    """
    found: dict[str, Registered] = {}
    for entry in entry_points(group=GROUP) if entries is None else entries:
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
        plugin = Registered(
            check_plugin_type(entry.name, f"{GROUP} of {distribution}"),
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
    """Where a Python finds modules beyond the standard library, for launchers to tell it (see :mod:`..plugin.launch`).

    Returns:
        Directories; None if it must find out by itself each time, because its site customization does more than that.

    Raises:
        InternalError: (999) It does not run.
    """
    show = "import json, sys; print(json.dumps([sys.path, [repr(each) for each in sys.meta_path]]))"
    answers = []
    for switches in (["-I"], ["-I", "-S"]):
        finished = execute(
            [interpreter, *switches, "-c", show], environ=_environ(), stdin=b"", timeout=_TIMEOUT, on_stderr=ignore
        )
        if finished.returncode:
            raise InternalError(f"{interpreter} does not run", details=finished.stderr.decode(errors="replace").strip())
        answers.append(loads(finished.stdout, f"what {interpreter} prints"))
    (full, finders), (bare, bare_finders) = answers
    # A finder of distributions that are installed in place. That of setuptools only concerns distutils.
    more = [each for each in finders if each not in bare_finders and "DistutilsMetaFinder" not in each]
    if more or full[: len(bare)] != bare or not all(map(os.path.isabs, full)):
        return None
    return tuple(full[len(bare) :])


def ignore(_: bytes) -> None:
    """Drop what a program writes to stderr: it is kept with the rest of what became of it."""


def _environ() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}


def ask_versions(plugin: Registered, interpreter: str, paths: Sequence[str] | None = None) -> bytes:
    """Run a plugin's VERSION as its launcher would: this also proves that the launcher will work.

    Args:
        plugin: The plugin.
        interpreter: Absolute path of the Python that has it installed.
        paths: Where that finds modules, see :func:`search_path`.

    Returns:
        The answer, in one line.

    Raises:
        InternalError: (999) It cannot be imported, or does not answer.
    """
    argv = [*interpreter_of(interpreter, paths), "-c", code_of(plugin.module, plugin.attribute, paths)]
    finished = execute(
        argv, environ={**_environ(), "CNI_COMMAND": "VERSION"}, stdin=b"", timeout=_TIMEOUT, on_stderr=ignore
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


def render(plugin: Registered, interpreter: str, versions: bytes, paths: Sequence[str] | None = None) -> bytes:
    """The text of a plugin's launcher.

    Args:
        plugin: The plugin.
        interpreter: Absolute path of the Python that has it installed; of any length, with any characters.
        versions: Its answer to VERSION, in one line.
        paths: Where that Python finds modules, see :func:`search_path`.
    """
    about = f"{plugin.type}: {plugin.module}:{plugin.attribute} of {plugin.distribution}"
    code = code_of(plugin.module, plugin.attribute, paths)
    return launch.render(about, interpreter_of(interpreter, paths), code, versions.decode())


def this_interpreter() -> str:
    """The interpreter that runs this; in a virtual environment the environment's, not the one it links to.

    Raises:
        InternalError: (999) Python does not know.
    """
    if not sys.executable:
        raise InternalError("Python does not know the path of its own executable (sys.executable is empty)")
    return os.path.abspath(sys.executable)


def write_executable(path: str, content: bytes, mode: int = 0o755) -> None:
    """Put an executable file, or one of another mode, into place, whole. The file it replaces may be running.

    Raises:
        IOFailureError: (5) It cannot be written.
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
                # An installation is to be there after a power cut, unlike the state of containers.
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
        raise IOFailureError(f"cannot write {path}: {exc.strerror}") from exc


def read(path: str) -> bytes | None:
    """Read a file; None when it is missing.

    Raises:
        IOFailureError: (5) It cannot be read.
    """
    try:
        # A FIFO in the program's place reads as empty, and is waited for by nobody.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(1 << 22)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise IOFailureError(f"cannot read {path}: {exc.strerror}") from exc


def is_launcher(content: bytes) -> bool:
    """Is this file one of ours: a launcher, or a shim, which contains one?"""
    return MARK.encode() in (content if content.startswith(b"\x7fELF") else content[:512])


# --- the command ------------------------------------------------------------------------------------------------------


def register(subparsers: Any) -> None:
    """Add the parser of ``cnisdk install``."""
    parser = subparsers.add_parser(
        "install",
        help="write a launcher for each registered plugin into a directory",
        description="Write an executable launcher for each plugin that an installed Python package registers under the "
        f"entry point group {GROUP}, under the name container runtimes look for. An older launcher of that name is "
        "replaced, also while it runs; another program is not, unless --force says so. Run it again after upgrading or "
        "moving the Python installation; --check tells when it is due.",
        epilog="examples:\n"
        "  cnisdk install --list\n"
        "  cnisdk install --dest /opt/cni/bin\n"
        "  cnisdk install --dest /opt/cni/bin bridge host-local\n"
        "  cnisdk install --dest /opt/cni/bin --check",
    )
    parser.add_argument(
        "types", nargs="*", metavar="TYPE", help="plugin types to install; all that are registered if none"
    )
    parser.add_argument("--dest", metavar="DIR", help="where to, such as /opt/cni/bin; made if it does not exist")
    parser.add_argument(
        "--thick",
        action="store_true",
        help="write shims for the resident server (`cnisdk serve`); without it, they run the plugin as a launcher does",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        default=DIRECTORY,
        help="the server's directory, with --thick (default %(default)s)",
    )
    parser.add_argument(
        "--units", metavar="DIR", help="write systemd units for the server there, such as /etc/systemd/system"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help=f"replace other programs, too; each is kept beside as NAME{KEPT}, from where `cnisdk uninstall` takes it",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a launcher is missing or out of date"
    )
    action.add_argument("--list", action="store_true", help="write nothing; list the registered plugins")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say."""
    registered = find_registered()
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
            f"no plugin is registered under {GROUP}", details="install a package that has some, such as cnisdk-plugins"
        )
    destination = os.path.abspath(args.dest)
    if not args.check:
        try:
            os.makedirs(destination, mode=0o755, exist_ok=True)
        except OSError as exc:
            raise IOFailureError(f"cannot make {destination}: {exc.strerror}") from exc
    interpreter = this_interpreter()
    paths = search_path(interpreter)
    status = 0
    for plugin in plugins:
        try:
            versions = ask_versions(plugin, interpreter, paths)
            wanted = File(render(plugin, interpreter, versions, paths))
            if args.thick:
                wanted = _shim(plugin, interpreter_of(interpreter, paths), wanted.content, versions, args.directory)
            path = os.path.join(destination, plugin.type)
            if not (_check(path, wanted) if args.check else _install(path, wanted, force=args.force)):
                status = 1
            _warn_of_default_gc(plugin)
        except CNIError as exc:
            print(f"cnisdk install: {exc} (code {exc.code})", file=sys.stderr)
            status = 1
    if args.units and not args.check:
        _write_units(os.path.abspath(args.units), interpreter, args.directory)
    if args.check and not args.types and _report_orphans(destination, registered):
        status = 1
    return status


def _choose(registered: dict[str, Registered], types: Sequence[str]) -> list[Registered]:
    unknown = [name for name in types if name not in registered]
    if unknown:
        raise InvalidConfigError(
            f"no plugin is registered as {', '.join(map(repr, unknown))}",
            details=f"known types: {', '.join(registered) or 'none'}",
        )
    return [registered[name] for name in dict.fromkeys(types)] or list(registered.values())


class File(NamedTuple):
    """A file to install.

    Attributes:
        content: What to write; empty if it is made when it is needed.
        stamp: What a file contains that is up to date; None means that it must be the content, to the byte.
        make: Makes the content.
    """

    content: bytes
    stamp: bytes | None = None
    make: Callable[[], bytes] | None = None

    def is_in(self, present: bytes) -> bool:
        """Is this what is there?"""
        return present == self.content if self.stamp is None else self.stamp in present


def _shim(plugin: Registered, argv: Sequence[str], launcher: bytes, versions: bytes, directory: str) -> File:
    """The shim of a plugin, made when it is needed: compiling takes a while, and another compiler makes other bytes."""
    from ..thick import shim

    def make() -> bytes:
        compiler = shim.find_compiler()
        if compiler is None:
            print("cnisdk install: no C compiler (cc): writing a shim in Python, which is slower", file=sys.stderr)
            return shim.render_python_shim(argv, plugin.type, launcher, versions, directory)
        return shim.compile_shim(compiler, plugin.type, launcher, versions, directory)

    return File(b"", shim.stamp(launcher, directory), make)


def _write_units(directory: str, interpreter: str, runtime: str) -> None:
    from ..thick.units import render_units

    for name, text in render_units(interpreter, runtime).items():
        path = os.path.join(directory, name)
        present = read(path)
        if present == text:
            print(f"{path}: up to date")
        else:
            write_executable(path, text, mode=0o644)
            print(f"{path}: {'installed' if present is None else 'updated'}")


def _warn_of_default_gc(plugin: Registered) -> None:
    """Say of a plugin with the default GC, which removes links only, that nobody declared that to be enough."""
    try:
        main = launch.find_main(plugin.module, plugin.attribute)
    except Exception:
        return  # VERSION, which was asked just now, said what is wrong
    if isinstance(main, PluginMain) and main.plugin.gc is Plugin.gc and not main.plugin.leaves_only_links:
        print(
            f"cnisdk install: note: {plugin.type} has no GC of its own: links that carry their owner are collected, "
            "and its IPAM plugin is asked. If it leaves nothing else, let its class say leaves_only_links = True",
            file=sys.stderr,
        )


def _install(path: str, wanted: File, *, force: bool) -> bool:
    present = read(path)
    ours = present is not None and not os.path.islink(path) and is_launcher(present)
    if present is not None and ours and wanted.is_in(present) and os.access(path, os.X_OK):
        print(f"{path}: up to date")
        return True
    foreign = os.path.lexists(path) and not ours
    if foreign and not force:
        raise InvalidConfigError(
            f"{path} is {_describe(path)}, nothing was changed",
            details=f"--force replaces it and keeps it as {path}{KEPT}",
        )
    content = wanted.make() if wanted.make else wanted.content
    if foreign:
        _keep(path)
    write_executable(path, content)
    if foreign:
        print(f"{path}: installed; the other program is kept as {path}{KEPT}")
    else:
        print(f"{path}: {'updated' if ours else 'installed'}")
    return True


def _describe(path: str) -> str:
    return f"a symbolic link to {os.readlink(path)}" if os.path.islink(path) else "another program"


def _keep(path: str) -> None:
    """Give a foreign program a second name. The first one stays until the launcher takes its place."""
    try:
        os.link(path, f"{path}{KEPT}", follow_symlinks=False)
    except FileExistsError as exc:
        raise InvalidConfigError(
            f"{path} is {_describe(path)}, and {path}{KEPT} exists already", details="remove one of the two"
        ) from exc
    except OSError as exc:
        raise IOFailureError(f"cannot keep {path} as {path}{KEPT}: {exc.strerror}") from exc


def _check(path: str, wanted: File) -> bool:
    present = read(path)
    if present is None:
        print(f"{path}: missing")
    elif os.path.islink(path) or not is_launcher(present):
        print(f"{path}: is {_describe(path)}")
    elif not wanted.is_in(present):
        print(f"{path}: out of date")
    elif not os.access(path, os.X_OK):
        print(f"{path}: is not executable")
    else:
        print(f"{path}: up to date")
        return True
    return False


def _report_orphans(destination: str, registered: dict[str, Registered]) -> bool:
    """Name launchers of plugins that are not registered any more."""
    found = False
    for name in sorted(os.listdir(destination)) if os.path.isdir(destination) else ():
        path = os.path.join(destination, name)
        if name not in registered and os.path.isfile(path) and is_launcher(read(path) or b""):
            print(f"{path}: its plugin is not installed any more; remove the file")
            found = True
    return found
