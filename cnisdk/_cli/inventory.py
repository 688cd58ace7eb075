"""The executables of plugin directories: whose each is, and what can be known of it without running a foreign program.

A file that `cnisdk install` wrote contains all there is to know (:mod:`..plugin._launch`). The reference plugins are
recognised by the package path that the Go linker leaves in each program. Only VERSION is asked, within seconds; of the
reference plugins also the line they print without any request. Another program is run only if its bytes contain
``CNI_COMMAND``, or if a network names it, so that runtimes run it too: a directory may hold any program.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from json import loads
from typing import Literal, NamedTuple

from .._thick.shim import ON_DEMAND, ShimRecord, read_record
from ..errors import CNIError
from ..invoke.process import execute
from ..invoke.version import plugin_versions
from ..plugin._launch import find_launcher
from .launchers import BACKUP_SUFFIX, discard, is_launcher, read_program

_TIMEOUT = 5.0
_GO_SET = b"\tgithub.com/containernetworking/plugins/plugins/"
_ABOUT = re.compile(r"^CNI .* plugin (?:version )?(\S+)$", re.MULTILINE)

Origin = Literal["cnisdk", "go", "unknown"]
"""Origin of an executable: `cnisdk install` wrote it, it is of the Go set (containernetworking/plugins), or neither."""


class PluginFile(NamedTuple):
    """Executable in a plugin directory.

    Attributes:
        type: Type of the plugin: the name of the file.
        path: Path of the file.
        origin: The project that it comes from.
        package: Package and version of a plugin of this SDK; empty for others.
        version: Version of a reference plugin, as it says itself; empty for others.
        supported: Versions of the specification it accepts; empty if it was not asked, or did not answer.
        program: Interpreter of a plugin of this SDK; empty for others.
        server: Directory of the server that a shim asks; empty for others.
        mode: How it runs: ``one-shot``, ``resident``, ``on demand``, or why a shim runs one-shot; empty if that is
            unknown.
        replaced: Path of the program that it replaced, which ``cnisdk uninstall`` puts back; empty if there is none.
        problem: Reason for which a runtime cannot run it; empty if there is none.
        executable: Runtimes find it: it is a regular file, or a link to one, that may be executed.
    """

    type: str
    path: str
    origin: Origin
    package: str = ""
    version: str = ""
    supported: tuple[str, ...] = ()
    program: str = ""
    server: str = ""
    mode: str = ""
    replaced: str = ""
    problem: str = ""
    executable: bool = False

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs that runtimes may ask of it, by the versions it accepts: CHECK came with 0.4.0, GC with 1.1.0."""
        if not self.supported:
            return ()
        check = {"0.4.0", "1.0.0", "1.1.0"}.intersection(self.supported)
        return ("ADD", "DEL", *(["CHECK"] if check else []), *(["GC", "STATUS"] if "1.1.0" in self.supported else []))


def list_plugin_files(directory: str, named: Collection[str]) -> list[PluginFile]:
    """List the plugins in a directory, sorted by type.

    Args:
        directory: The directory.
        named: Types that networks name. Such a file is listed, and asked, whatever it is.

    Raises:
        OSError: The directory cannot be read.
    """
    return [each for name in sorted(os.listdir(directory)) for each in _examine(directory, name, name in named)]


def _examine(directory: str, name: str, named: bool) -> Iterator[PluginFile]:
    path = os.path.join(directory, name)
    if name.startswith(".") or name.endswith(BACKUP_SUFFIX) or (os.path.isdir(path) and not named):
        return
    kept = f"{path}{BACKUP_SUFFIX}"
    found = PluginFile(name, path, "unknown", replaced=kept if os.path.lexists(kept) else "")
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        yield found._replace(problem=exc.strerror or "it cannot be read")
        return
    if not stat.S_ISREG(mode):
        if named:
            yield found._replace(problem="it is not a regular file")
        return
    if os.access(path, os.X_OK):
        yield _identify(found._replace(executable=True), named)
    elif named:  # another is no plugin: such as the LICENSE that comes with the Go set
        yield found._replace(problem=f"it is not executable (mode {stat.S_IMODE(mode):04o})")


def _identify(found: PluginFile, named: bool) -> PluginFile:
    try:
        content = read_program(found.path) or b""
        if is_launcher(content):
            return _read_launcher(found, content)
        with open(found.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            go, speaks = whole.find(_GO_SET) >= 0, whole.find(b"CNI_COMMAND") >= 0
    except (CNIError, OSError, ValueError) as exc:  # ValueError: an empty file has no map
        return found._replace(problem=str(exc))
    if go:
        return _ask_versions(found._replace(origin="go", mode="one-shot", version=_ask_about(found.path)))
    return _ask_versions(found) if speaks or named else found


def _read_launcher(found: PluginFile, content: bytes) -> PluginFile:
    """Read what a launcher, or the launcher in a shim, tells of itself (:func:`..plugin._launch.render`)."""
    found = found._replace(origin="cnisdk", mode="one-shot")
    if record := read_record(content):
        found = found._replace(server=record.directory, mode=_describe_mode(found.type, record, content))
    text = find_launcher(content) or b""
    try:
        told = loads(text.split(b"\n", 4)[3].removeprefix(b"# "))
        about, argv, versions = told["about"], told["argv"], loads(told["versions"])
        program, supported = str(argv[0]), tuple(map(str, versions["supportedVersions"]))
    except (IndexError, KeyError, TypeError, ValueError):
        return found._replace(problem="its text was changed since `cnisdk install` wrote it")
    found = found._replace(package=about.rpartition(" of ")[2], program=program, supported=supported)
    return found if os.access(program, os.X_OK) else found._replace(problem=f"there is no program {program}")


def _ask_versions(found: PluginFile) -> PluginFile:
    try:
        answer = plugin_versions(found.path, environ=_environ(), timeout=_TIMEOUT, on_stderr=discard)
    except CNIError as exc:
        return found._replace(problem=f"its VERSION fails: {exc.msg}")
    return found._replace(supported=answer.supported)


def _ask_about(path: str) -> str:
    """Ask a reference plugin for its version, which it prints when it is run without a request."""
    try:
        finished = execute([path], environ=_environ(), stdin=b"", timeout=_TIMEOUT, on_stderr=discard)
    except CNIError:
        return ""
    told = _ABOUT.search((finished.stdout + finished.stderr).decode(errors="replace"))
    return told[1] if told and told[1] != "unknown" else ""  # Debian's builds do not know it


def _environ() -> dict[str, str]:
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


# --- the resident server ----------------------------------------------------------------------------------------------


@cache
def _ask_server(directory: str) -> dict[str, str] | CNIError:
    """Return the identities of the launchers that a server has loaded, by type; or why it cannot be asked."""
    from .._thick.server import ask_status

    try:
        return dict(ask_status(directory)["plugins"])
    except CNIError as exc:
        return exc


def _describe_mode(type_: str, record: ShimRecord, content: bytes) -> str:
    """Say how a shim runs now: a server takes only requests of shims that contain the identity it has loaded."""
    plugins = _ask_server(record.directory)
    if isinstance(plugins, CNIError):
        return "on demand: no server runs" if record.server == ON_DEMAND else "one-shot: no server answers"
    if type_ not in plugins or plugins[type_].encode() not in content:
        return "one-shot: the server has another version"
    return "resident"


def server_problems(files: Sequence[PluginFile]) -> list[str]:
    """Return why the servers of shims that start none do not answer, one text for each."""
    directories = dict.fromkeys(each.server for each in files if each.server and not each.mode.startswith("on demand"))
    return [str(answer) for each in directories if isinstance(answer := _ask_server(each), CNIError)]
