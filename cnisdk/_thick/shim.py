"""Make shims. A shim is the executable of a plugin, in place of its launcher, and hands requests to the server.

What a shim (``shim.c``) does:

1. VERSION is answered at once, from a text in the shim. A shim without CNI_COMMAND, with arguments, or with a closed
   standard stream becomes the launcher.
2. It writes the request into a socket pair, connects to the server and offers the other end (:mod:`.protocol`).
3. It waits for the worker's answer, passes SIGTERM, SIGINT and SIGHUP on to the worker, and exits with its status.
4. If no server listens, the server declines, or no worker takes the request in time, it takes the request back and
   becomes the launcher. It says so on stderr, and appends the reason to the fallbacks file (:mod:`.metrics`).
5. If the worker dies after it took the request, the shim prints an error (code 999). It never runs the request again.
   A worker that has closed the connection and lives, such as one that has become another program (exec), can give no
   answer. Then the error comes at its end.

A shim contains the text of its launcher, and an identity made of it. The server runs only requests of shims whose
launcher is the one it has loaded. So after an upgrade, shims and server fall back until both are of one version.

The program is the same for all plugins. ``cnisdk install`` writes the texts of a plugin into it. The program comes
from the wheel, which has it for the usual processors (:mod:`.shim_build`); else the machine's compiler makes it.

A shim may start a server on demand (:mod:`.ondemand`). Then it says nothing when none listens: that is no mistake.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import InvalidConfigError, IOFailureError
from ..invoke.process import execute
from . import protocol, shim_build

_TIMEOUT = 120.0
_COMPILERS = ("cc", "gcc", "clang")
_PREBUILT = os.path.join(os.path.dirname(shim_build.SOURCE), "prebuilt")

COMPILER_FLAGS = (shim_build.FLAGS, ("-O2", "-Wall", "-s", "-static"), ("-O2", "-Wall", "-s"))
"""Compiler flags, best first: without any library on CPUs that ``shim.c`` knows; static; dynamic. A program without the
dynamic loader starts in a fraction of the time, and runs in any container."""

THICK, ON_DEMAND = "thick", "on-demand"
"""Values of :attr:`ShimRecord.server`."""

_RECORD_NAME = "cnisdk-shim "

# Bytes of a record, at most: its directory is shorter than a socket's path.
_MOST_RECORD = 4096

# Bytes of a path in sockaddr_un, without the NUL.
_MOST_SOCKET_BYTES = 107


class ShimRecord(NamedTuple):
    """Record of the options with which a shim was installed.

    Attributes:
        server: :data:`THICK` if it uses a server that is there; :data:`ON_DEMAND` if it starts one, too.
        directory: Directory of the server.
    """

    server: str
    directory: str


class ShimTexts(NamedTuple):
    """Texts that ``cnisdk install`` writes into a shim.

    Attributes:
        type: Type of the plugin.
        launcher: Text of its launcher.
        versions: Its answer to VERSION, in one line.
        directory: Directory of the server.
        start: Shell script that starts a server on demand; empty if the shim starts none.
    """

    type: str
    launcher: bytes
    versions: bytes
    directory: str
    start: bytes = b""

    @property
    def record(self) -> bytes:
        """Line of JSON that tells other programs how the shim was installed."""
        import json

        record = {"server": ON_DEMAND if self.start else THICK, "directory": self.directory}
        return f"{_RECORD_NAME}{json.dumps(record)}".encode("ascii")


def read_record(content: bytes) -> ShimRecord | None:
    """Read how a shim was installed; None if the file is no shim."""
    import json

    start = content.find(f"{_RECORD_NAME}{{".encode())
    if start < 0:
        return None
    try:
        text = content[start + len(_RECORD_NAME) : start + _MOST_RECORD].decode("ascii", "replace")
        record, _ = json.JSONDecoder().raw_decode(text)
        return ShimRecord(str(record["server"]), str(record["directory"]))
    except (KeyError, ValueError):
        return None


def launcher_id(launcher: bytes) -> str:
    """Return the identity of a launcher. It changes with the interpreter and the versions of the packages."""
    from hashlib import sha256

    return sha256(f"{protocol.PROTOCOL}\0".encode() + launcher).hexdigest()[:32]


def find_compiler() -> str | None:
    """Find a C compiler: ``$CC``, or one of the usual names. None if there is none."""
    from shutil import which

    return next(filter(None, map(which, filter(None, (os.environ.get("CC"), *_COMPILERS)))), None)


def find_prebuilt() -> bytes | None:
    """Find the program that came with this package for this machine's processor; None if there is none.

    One that was made from another source, as in a checkout that was edited since, does not count.
    """
    try:
        with open(os.path.join(_PREBUILT, shim_build.file_name(os.uname().machine)), "rb") as file:
            program = file.read()
    except OSError:
        return None
    return program if program.count(_payload_mark()) == 1 else None


def compile_program(choices: Sequence[Sequence[str]] = COMPILER_FLAGS) -> bytes:
    """Compile the program of all shims.

    Args:
        choices: Sets of compiler flags. The first set that works is used.

    Raises:
        IOFailureError: (5) There is no compiler, or it fails with each set of flags.
    """
    from tempfile import TemporaryDirectory

    compiler = find_compiler()
    if compiler is None:
        raise IOFailureError(
            "there is no C compiler (cc), and no ready-made shim for this processor",
            details="install a compiler, or use --no-server",
        )
    with TemporaryDirectory() as work:
        output = os.path.join(work, "shim")
        environ = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TMPDIR": work}
        failure = ""
        for flags in choices:
            argv = shim_build.compiler_command([compiler], output, flags)
            finished = execute(argv, environ=environ, stdin=b"", timeout=_TIMEOUT, on_stderr=lambda _: None)
            if finished.returncode == 0:
                with open(output, "rb") as program:
                    return program.read()
            failure = finished.stderr.decode(errors="replace").strip()
    raise IOFailureError(f"{compiler} cannot compile the shim", details=failure)


def make_shim(program: bytes, texts: ShimTexts) -> bytes:
    """Write the texts of a plugin into the program of all shims.

    Raises:
        InvalidConfigError: (7) A text is too long for its place.
    """
    socket = os.fsencode(os.path.join(texts.directory, os.path.basename(protocol.SOCKET)))
    if len(socket) > _MOST_SOCKET_BYTES:
        raise InvalidConfigError(f"the path of the server's socket is too long: {os.fsdecode(socket)}")
    fields = (
        texts.type.encode(),
        launcher_id(texts.launcher).encode(),
        socket,
        os.fsencode(os.path.join(texts.directory, os.path.basename(protocol.FALLBACKS))),
        str(int(protocol.SHIM_TIMEOUT * 1000)).encode(),
        texts.versions + b"\n",
        os.fsencode(texts.directory),
        texts.start,
        texts.record,
        texts.launcher,
    )
    payload = b"\0".join(fields)
    if len(payload) >= shim_build.PAYLOAD_SIZE:
        raise InvalidConfigError(
            f"the launcher of plugin {texts.type} is too long for a shim ({len(payload)} bytes)",
            details="install the Python environment at a shorter path, or use --no-server",
        )
    head, _, tail = program.partition(_payload_mark())
    rest = shim_build.PAYLOAD_SIZE - len(_payload_mark())
    return head + payload.ljust(shim_build.PAYLOAD_SIZE, b"\0") + tail[rest:]


def _payload_mark() -> bytes:
    return b"cnisdk-shim-payload " + shim_build.source_digest().encode()


def render_start(interpreter: str, directory: str) -> bytes:
    """Render the shell script by which a shim starts a server on demand. The script's ``$0`` is the shim.

    A service manager starts the server where there is one: then it is in a control group of its own, and inherits
    nothing of the shim's caller. Elsewhere the script becomes the server (:mod:`.ondemand`).

    Args:
        interpreter: Absolute path of the Python that has the plugins installed.
        directory: Directory of the server.
    """
    from ..plugin._launch import quote

    package = (__package__ or "").rpartition(".")[0]
    properties = ("KillMode=process", "TimeoutStopSec=160")
    service = " ".join(f"--property={each}" for each in properties)
    return f"""set -- {quote(interpreter)} -I -m {package} serve --on-demand "$0" --directory {quote(directory)}
[ -d /run/systemd/system ] && exec systemd-run --quiet --no-block --collect --unit=cnisdk-on-demand-$$ \\
    --description='Resident CNI plugins, started on demand' {service} -- "$@"
exec "$@"
""".encode(errors="surrogateescape")
