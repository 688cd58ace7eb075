"""Make the shims: the programs in the place of launchers that hand their request to the resident server.

A shim exists in C (``shim.c``) and, for machines without a compiler, in Python (:data:`_PYTHON`). Both do the same:

1. VERSION is answered at once, from a text in the shim. A shim without CNI_COMMAND, with arguments, or with a closed
   standard stream becomes the launcher.
2. It writes the request into a socket pair, connects to the server and offers the other end (:mod:`.protocol`).
3. It waits for the worker's answer, passes SIGTERM, SIGINT and SIGHUP on to the worker, and exits with its status.
4. If no server listens, the server declines, or no worker takes the request in time, it takes the request back and
   becomes the launcher. It says so on stderr, and appends the reason to the fallbacks file (:mod:`.metrics`).
5. If the worker dies after it took the request, the shim prints an error (code 999). It never runs the request again.

A shim contains the text of its launcher, and an identity made of it. The server runs only requests of shims whose
launcher is the one it has loaded. So after an upgrade, shims and server fall back until both are of one version.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import IOFailureError
from ..invoke.process import execute
from . import protocol

_TIMEOUT = 120.0
_COMPILERS = ("cc", "gcc", "clang")
_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.c")

COMPILER_FLAGS = (
    (
        *("-DSHIM_ALONE", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"),
        *("-Wl,-z,noseparate-code", "-Wl,--build-id=none"),
    ),
    ("-static",),
    (),
)
"""Compiler flags, best first: without any library on CPUs that ``shim.c`` knows; static; dynamic. A program without the
dynamic loader starts in a fraction of the time, and runs in any container."""


def launcher_id(launcher: bytes) -> str:
    """Return the identity of a launcher. It changes with the interpreter and the versions of the packages."""
    from hashlib import sha256

    return sha256(f"{protocol.PROTOCOL}\0".encode() + launcher).hexdigest()[:32]


def shim_stamp(launcher: bytes, directory: str) -> bytes:
    """Return the bytes by which ``cnisdk install --check`` recognises an up-to-date shim of this launcher."""
    from hashlib import sha256

    return b"cnisdk-shim " + sha256(b"\0".join((_source(), launcher, os.fsencode(directory)))).hexdigest()[:32].encode()


def find_compiler() -> str | None:
    """Find a C compiler: ``$CC``, or one of the usual names. None if there is none."""
    from shutil import which

    return next(filter(None, map(which, filter(None, (os.environ.get("CC"), *_COMPILERS)))), None)


def compile_shim(
    compiler: str,
    type_: str,
    launcher: bytes,
    versions: bytes,
    directory: str,
    choices: Sequence[Sequence[str]] = COMPILER_FLAGS,
) -> bytes:
    """Compile the shim of one plugin.

    Args:
        compiler: Path of a C compiler.
        type_: Type of the plugin.
        launcher: Text of its launcher.
        versions: Its answer to VERSION, in one line.
        directory: Directory of the server.
        choices: Sets of compiler flags. The first set that works is used.

    Raises:
        IOFailureError: (5) The compiler fails with each set of flags.
    """
    from tempfile import TemporaryDirectory

    strings = {
        "SHIM_TYPE": type_.encode(),
        "SHIM_ID": launcher_id(launcher).encode(),
        "SHIM_SOCKET": os.fsencode(os.path.join(directory, os.path.basename(protocol.SOCKET))),
        "SHIM_FALLBACKS": os.fsencode(os.path.join(directory, os.path.basename(protocol.FALLBACKS))),
        "SHIM_VERSIONS": versions,
        "SHIM_LAUNCHER": launcher,
    }
    header = "".join(f"#define {name} {_literal(value)}\n" for name, value in strings.items())
    header += f"#define SHIM_TIMEOUT_MS {int(protocol.SHIM_TIMEOUT * 1000)}\n"
    header += f"__attribute__((used)) static const char shim_stamp[] = {_literal(shim_stamp(launcher, directory))};\n"
    with TemporaryDirectory() as work:
        path, output = os.path.join(work, "shim.h"), os.path.join(work, "shim")
        with open(path, "w", encoding="ascii") as file:
            file.write(header)
        failure = ""
        for flags in choices:
            argv = [compiler, "-O2", "-Wall", "-s", *flags, f'-DSHIM_HEADER="{path}"', "-o", output, _SOURCE]
            finished = execute(argv, environ=_environ(work), stdin=b"", timeout=_TIMEOUT, on_stderr=lambda _: None)
            if finished.returncode == 0:
                with open(output, "rb") as program:
                    return program.read()
            failure = finished.stderr.decode(errors="replace").strip()
    raise IOFailureError(f"{compiler} cannot compile the shim", details=failure)


def _environ(work: str) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TMPDIR": work}


def _source() -> bytes:
    with open(_SOURCE, "rb") as file:
        return file.read()


def _literal(data: bytes) -> str:
    """Write bytes as a C string literal. Bytes that are not plain are written with three octal digits."""
    plain = frozenset(b" !#$%&()*+,-./0123456789:;<=>@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_`abcdefghijklmnopqrstuvwxyz{|}~")
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data) + '"'


def render_python_shim(argv: Sequence[str], type_: str, launcher: bytes, versions: bytes, directory: str) -> bytes:
    """Render the shim of one plugin in Python, for machines without a compiler. It imports ``socket`` and ``signal``.

    Args:
        argv: Interpreter and switches, in front of ``-c``.
        type_: Type of the plugin.
        launcher: Text of its launcher.
        versions: Its answer to VERSION, in one line.
        directory: Directory of the server.
    """
    from ..plugin._launch import MARK, quote

    program = _PYTHON.format(
        type=type_,
        id=launcher_id(launcher),
        socket=os.path.join(directory, os.path.basename(protocol.SOCKET)),
        fallbacks=os.path.join(directory, os.path.basename(protocol.FALLBACKS)),
        timeout=protocol.SHIM_TIMEOUT,
    )
    text = f"""#!/bin/sh
# CNI plugin, {MARK} --thick: change nothing here, it will be overwritten.
# {shim_stamp(launcher, directory).decode()}
if [ "$CNI_COMMAND" = VERSION ]; then
    printf '%s\\n' {quote(versions.decode())}
    exit
fi
run=''
if [ -n "$CNI_COMMAND" ]; then
    run={quote(program)}
fi
launcher={quote(launcher.decode(errors="surrogateescape"))}
[ -n "$run" ] || exec /bin/sh -c "$launcher" "$0" "$@"
exec {quote(argv[0])} {" ".join(argv[1:])} -c "$run" "$0" "$launcher"
"""
    return text.encode(errors="surrogateescape")


_PYTHON = '''\
import os, socket, sys, time
name, launcher = sys.argv[1:]
handled = []
def fall_back(reason, why):
    try:
        fd = os.open({fallbacks!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if os.fstat(fd).st_size < 1 << 20:
            os.write(fd, f"{type} {{reason}}\\n".encode())
        os.close(fd)
    except OSError:
        pass
    os.write(2, f"cnisdk: running the plugin in a process of its own instead: {{why}}\\n".encode(errors="replace"))
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
    os.execv("/bin/sh", ["sh", "-c", launcher, name])
for fd in (0, 1, 2):
    try:
        os.fstat(fd)
    except OSError:
        os.execv("/bin/sh", ["sh", "-c", launcher, name])
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.settimeout({timeout!r})
def receive():
    try:
        return connection.recv(512)
    except ConnectionResetError:
        return connection.recv(512)
def take_back():
    try:
        return bool(end is None or end.recv(8, socket.MSG_DONTWAIT))
    except OSError:
        return False
end = None
try:
    connection.connect({socket!r})
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if int.from_bytes(peer[4:8], sys.byteorder) != os.geteuid():
        fall_back("stranger", "the server is another user's")
except TimeoutError:
    fall_back("busy", "the server has too many requests waiting")
except OSError as error:
    fall_back("absent", f"no server takes the request: {{error}}")
import signal
worker = None
def handle(number, _):
    global worker
    if worker is None and take_back():
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    end.close()
    if worker is None:
        files = socket.recv_fds(here, 64, 1)[1]
        worker = files[0] if files else None
    if worker is not None:
        signal.pidfd_send_signal(worker, number)
handled = [each for each in (1, 2, 15) if signal.getsignal(each) is not signal.SIG_IGN]
try:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    entries = [os.fsencode(name), *(key + b"=" + value for key, value in os.environb.items())]
    request = b"".join(entry + b"\\0" for entry in entries)
    files = [0, 1, 2, os.open(".", os.O_PATH)]
    socket.send_fds(here, [request], files)
    mask = os.umask(0)
    os.umask(mask)
    kind = int(open("/proc/self/personality").read(), 16)
except OSError as error:
    fall_back("large", f"the request cannot be handed over: {{error}}")
try:
    offer = f"cnisdk4 {type} {id} {{kind:x}} {{mask:o}} {{len(request)}} {{time.monotonic_ns() // 1000}}"
    end = there
    for number in handled:
        signal.signal(number, handle)
    try:
        socket.send_fds(connection, [offer.encode()], [there.fileno()])
    except (BrokenPipeError, ConnectionResetError):
        pass
    text = receive()
except TimeoutError:
    if take_back():
        fall_back("late", "the server does not answer in time")
    end.close()
    connection.settimeout(None)
    try:
        text = receive()
    except OSError:
        text = b""
except OSError:
    text = b""
if not text.startswith(b"exit ") and take_back():
    if text:
        fall_back("declined", "the server declines: " + text.decode(errors="replace").strip())
    fall_back("lost", "the server ended before it took the request")
try:
    status = int(text.split()[1])
except (IndexError, ValueError):
    os.write(2, b"cnisdk: the worker died while it ran the request; it is not run again\\n")
    os.write(1, b"""{{
    "cniVersion": "1.0.0",
    "code": 999,
    "msg": "the resident server's worker died while it ran this request",
    "details": "it is not known how far it came: DEL takes back what it did"
}}""")
    status = 1
os._exit(status)
'''
