"""Launchers of registered plugins: what they contain, and the files of the plugin directory.

A launcher (:mod:`..plugin._launch`) contains the interpreter, the directories of its modules, and the plugin's answer
to VERSION. This module finds them. A shim (:mod:`.._thick.shim`) contains a launcher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

from ..errors import CNIError, InternalError, InvalidConfigError, IOFailureError, cause_of
from ..invoke.call import interpret
from ..invoke.process import execute
from ..invoke.version import parse_versions
from ..plugin import _launch
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
