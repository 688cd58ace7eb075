"""Launchers: the executables of plugins, and the program they start.

Theory of operation. A launcher is a small shell script. It answers VERSION by itself, the verb that runtimes ask most:
Podman asks every plugin of every network in every command. For any other verb it becomes the interpreter of its
installation, isolated (``-I``) from the environment and from its working directory. ``cnisdk install`` has written the
places of modules into the launcher, so that Python need not search for them (``-S``), which saves 3 ms. When the
interpreter, the SDK or the plugin's package is gone, the launcher answers with an error of the specification.

Other programs read a launcher by the line of JSON in it.
"""

from __future__ import annotations

import gc
import sys

from .._lazy import load
from .._light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

MARK = "written by `cnisdk install`"
"""Text that every launcher contains, and no other file."""

COLLECT_AFTER = 100_000
"""Objects between two garbage collections. A request makes some thousand and ends."""


def code_of(module: str, attribute: str, paths: Sequence[str] | None) -> str:
    """Return the Python program that runs a plugin.

    Args:
        module: The module that has it.
        attribute: The callable in the module, possibly dotted.
        paths: Directories of modules beyond the standard library, for a Python started with ``-S``; None for a Python
            that finds them itself.
    """
    more = "" if paths is None else f"import sys\nsys.path += {list(paths)!r}\n"
    return f"{more}{_IMPORT}{_call(module, attribute)}"


# Without the SDK, this text alone can say that it is missing.
_IMPORT = f"""try:
    from {__name__} import launch
except ImportError as error:
    import json, sys
    print(json.dumps({{"cniVersion": "1.1.0", "code": 5, "msg": f"the plugin cannot be started: {{error}}", "details":
        f"install the plugin's package again for {{sys.executable}}, or remove the plugin's executable"}}))
    sys.exit(1)
"""


def interpreter_of(interpreter: str, paths: Sequence[str] | None) -> list[str]:
    """Return the interpreter and its switches, before ``-c``."""
    return [interpreter, "-I"] if paths is None else [interpreter, "-I", "-S"]


def render(about: str, argv: Sequence[str], code: str, versions: str) -> bytes:
    """Return the text of a launcher.

    Args:
        about: A comment for people: the plugin it runs.
        argv: The interpreter and its switches; of any length, with any characters.
        code: The program, see :func:`code_of`.
        versions: The plugin's answer to VERSION, in one line.
    """
    contents = _show({"about": about, "argv": list(argv), "code": code, "versions": versions})
    gone = {
        "cniVersion": "1.1.0",
        "code": 5,
        "msg": f"the plugin cannot be started: there is no program {argv[0]}",
        "details": "install its Python environment again, then run `cnisdk install`; or remove this file",
    }
    text = f"""#!/bin/sh
# CNI plugin, {MARK}: change nothing here, it will be overwritten.
# {" ".join(about.split())}
# {contents}
if [ "$CNI_COMMAND" = VERSION ]; then
    printf '%s\\n' {quote(versions)}
    exit
fi
[ -x {quote(argv[0])} ] || {{
    printf '%s\\n' {quote(_show(gone))}
    exit 1
}}
exec {" ".join(quote(each) for each in argv[:1])} {" ".join(argv[1:])} -c {quote(code)} "$0" "$@"
"""
    return text.encode(errors="surrogateescape")


def _show(document: Mapping[str, object]) -> str:
    """Write a flat object as :func:`json.dumps` does, in ASCII: a launcher may have any bytes in its paths."""
    from ..spec._json import write_ascii

    def show(value: object) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(show, value))}]"
        return write_ascii(value) if isinstance(value, str) else str(value)

    return f"{{{', '.join(f'{write_ascii(key)}: {show(value)}' for key, value in document.items())}}}"


def quote(text: str) -> str:
    """Quote a word for the shell."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


class Launcher(NamedTuple):
    """The contents of a launcher.

    Attributes:
        argv: The interpreter and its switches, before ``-c``.
        head: The program, up to the last line, which names the plugin.
        module: The module that has it.
        attribute: The callable in the module, possibly dotted.
    """

    argv: tuple[str, ...]
    head: str
    module: str
    attribute: str

    def same_installation(self, other: Launcher) -> bool:
        """Return whether both start the same interpreter, with the same places of modules."""
        return (self.argv, self.head) == (other.argv, other.head)


def find_launcher(content: bytes) -> bytes | None:
    """Find the text of a launcher: the whole file, or the end of a program that contains one."""
    start = content.rfind(f"#!/bin/sh\n# CNI plugin, {MARK}:".encode())
    return None if start < 0 else content[start:].partition(b"\0")[0]  # in a program, NUL bytes follow the text


def read_launcher(content: bytes) -> Launcher | None:
    """Read a launcher: the whole file, or the end of a program that contains one."""
    text = find_launcher(content)
    return None if text is None else parse_launcher(text)


def parse_launcher(content: bytes) -> Launcher | None:
    """Read the text of a launcher.

    Returns:
        Its contents; None unless the text is to the byte what :func:`render` writes for these contents.
    """
    from ..spec._json import read

    try:
        told = read(content.split(b"\n", 4)[3].removeprefix(b"# ").decode())
        about, argv, code, versions = (told[key] for key in ("about", "argv", "code", "versions"))
        if render(about, argv, code, versions) != content:
            return None
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return _read_code(tuple(argv), code)


def this_launcher() -> Launcher | None:
    """Return the contents of the launcher that started this process; None if it was started in another way."""
    try:
        at = sys.orig_argv.index("-c")
    except ValueError:
        return None
    return _read_code(tuple(sys.orig_argv[:at]), sys.orig_argv[at + 1]) if sys.flags.isolated else None


def _read_code(argv: tuple[str, ...], code: str) -> Launcher | None:
    """Read the program of a launcher, see :func:`code_of`."""
    head, call, arguments = code.rpartition("launch(")
    if not call or not head.endswith(_IMPORT):
        return None
    module, attribute = (each[1:-1] for each in arguments.removesuffix(")\n").split(", "))
    return Launcher(argv, head, module, attribute)


def _call(module: str, attribute: str) -> str:
    return f"launch({module!r}, {attribute!r})\n"


def launch(module: str, attribute: str) -> NoReturn:
    """Import a plugin, let it serve the request of this process, and end the process.

    Args:
        module: The module that has it.
        attribute: The callable in the module, possibly dotted.
    """
    # Importing makes many objects and drops few: a garbage collection would find nothing.
    gc.disable()
    try:
        main = load_main(module, attribute)
    except Exception as exc:
        _refuse(module, attribute, exc)
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    gc.enable()
    try:
        status = main()
    except SystemExit as exc:
        status = exc.code
    end(status)


def _refuse(module: str, attribute: str, error: Exception) -> NoReturn:
    """Answer that the plugin cannot be imported, without any module that may be the missing one."""
    import json

    gone = isinstance(error, ImportError)
    if gone:
        details = f"install the plugin's package again for {sys.executable}, or remove the plugin's executable"
    else:
        from traceback import print_exception

        print_exception(error)
        details = "this is a bug in the plugin; its traceback is on stderr"
    cause = ": ".join(filter(None, (type(error).__name__, str(error))))
    msg = f"the plugin {module}:{attribute} cannot be started: {cause}"
    document = {"cniVersion": "1.1.0", "code": 5 if gone else 999, "msg": msg, "details": details}
    sys.stdout.write(f"{json.dumps(document)}\n")
    raise SystemExit(1)


def load_main(module: str, attribute: str) -> Callable[[], Any]:
    """Import the callable that serves the requests of a plugin."""
    found: Any = load(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]


def end(status: object) -> NoReturn:
    """End this process as ``sys.exit`` does, but let the kernel free its memory, which saves 5 ms.

    Functions registered with :mod:`atexit` run, buffered output is written, and threads other than daemons may end.
    """
    threading = sys.modules.get("threading")
    if (threading is not None and threading.active_count() > 1) or not (status is None or isinstance(status, int)):
        raise SystemExit(status)
    import atexit
    import os

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            status = status or 120  # as Python exits when its output cannot be written
    os._exit((status or 0) & 0xFF)
