"""What a launcher is, and the program it starts: a plugin, in a Python that gets going and ends quickly.

A launcher is a small shell script. It answers VERSION by itself, which is what runtimes ask most: Podman for every
plugin of every network in every command. For everything else it becomes the interpreter of its installation, isolated
(``-I``) from the environment and the directory it is run in. Where modules are was looked up when it was written, so
that Python need not look for it again (``-S``): 3 ms. When the interpreter, the SDK or the plugin's package is gone,
it answers an error of the specification that says so.

Programs read a launcher back by the line of JSON in it.
"""

from __future__ import annotations

import gc
import sys
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

MARK = "written by `cnisdk install`"
"""What tells a launcher from another file."""

# Between two full collections of what is no longer used. A request makes some thousand objects and ends.
_COLLECT_AFTER = 100_000


def code_of(module: str, attribute: str, paths: Sequence[str] | None) -> str:
    """The Python program that runs a plugin.

    Args:
        module: The module that has it.
        attribute: The callable in the module, possibly dotted.
        paths: Where modules are, beyond the standard library, for a Python started with ``-S``; None for one that
            finds out by itself.
    """
    more = "" if paths is None else f"import sys\nsys.path += {list(paths)!r}\n"
    return f"{more}{_IMPORT}{_call(module, attribute)}"


# Without the SDK, nothing but this text is there to say so.
_IMPORT = f"""try:
    from {__name__} import launch
except ImportError as error:
    import json, sys
    print(json.dumps({{"cniVersion": "1.1.0", "code": 5, "msg": f"the plugin cannot be started: {{error}}", "details":
        f"install the plugin's package again for {{sys.executable}}, or remove the plugin's executable"}}))
    sys.exit(1)
"""


def interpreter_of(interpreter: str, paths: Sequence[str] | None) -> list[str]:
    """The interpreter and its switches, before ``-c``."""
    return [interpreter, "-I"] if paths is None else [interpreter, "-I", "-S"]


def render(about: str, argv: Sequence[str], code: str, versions: str) -> bytes:
    """The text of a launcher.

    Args:
        about: What it runs, for people.
        argv: The interpreter and its switches; of any length, with any characters.
        code: The program, see :func:`code_of`.
        versions: The plugin's answer to VERSION, in one line.
    """
    import json

    contents = json.dumps({"about": about, "argv": list(argv), "code": code, "versions": versions})
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
    printf '%s\\n' {quote(json.dumps(gone))}
    exit 1
}}
exec {" ".join(quote(each) for each in argv[:1])} {" ".join(argv[1:])} -c {quote(code)} "$0" "$@"
"""
    return text.encode(errors="surrogateescape")


def quote(text: str) -> str:
    """Quote a word for the shell."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


class Launcher(NamedTuple):
    """What a launcher says.

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
        """Would both start the same interpreter, which finds the same modules?"""
        return (self.argv, self.head) == (other.argv, other.head)


def find_launcher(content: bytes) -> bytes | None:
    """The text of a launcher, whether it is a file or stands at the end of a program that contains one."""
    start = content.rfind(f"#!/bin/sh\n# CNI plugin, {MARK}:".encode())
    return None if start < 0 else content[start:].partition(b"\0")[0]  # in a program, what follows a text


def read_launcher(content: bytes) -> Launcher | None:
    """Read a launcher, whether it is a file or stands at the end of a program that contains one."""
    text = find_launcher(content)
    return None if text is None else parse_launcher(text)


def parse_launcher(content: bytes) -> Launcher | None:
    """Read the text of a launcher.

    Returns:
        What it says, provided that it is to the byte what :func:`render` would have written; else None.
    """
    import json

    try:
        told = json.loads(content.split(b"\n", 4)[3].removeprefix(b"# "))
        about, argv, code, versions = (told[key] for key in ("about", "argv", "code", "versions"))
        if render(about, argv, code, versions) != content:
            return None
    except (IndexError, KeyError, TypeError, ValueError):
        return None
    return _read_code(tuple(argv), code)


def this_launcher() -> Launcher | None:
    """What the launcher said that started this process; None if it was started in another way."""
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
    # Importing makes many objects and drops few: looking for those that are no longer used finds none.
    gc.disable()
    try:
        main = find_main(module, attribute)
    except Exception as exc:
        _refuse(module, attribute, exc)
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    gc.enable()
    try:
        status = main()
    except SystemExit as exc:
        status = exc.code
    end(status)


def _refuse(module: str, attribute: str, error: Exception) -> NoReturn:
    """Answer that the plugin cannot be imported. Uses nothing that may be what is missing."""
    import json

    gone = isinstance(error, ImportError)
    if gone:
        details = f"install the plugin's package again for {sys.executable}, or remove the plugin's executable"
    else:
        from traceback import print_exception

        print_exception(error)
        details = "this is a bug in the plugin; its traceback is on stderr"
    msg = f"the plugin {module}:{attribute} cannot be started: {type(error).__name__}: {error}"
    document = {"cniVersion": "1.1.0", "code": 5 if gone else 999, "msg": msg, "details": details}
    sys.stdout.write(f"{json.dumps(document)}\n")
    raise SystemExit(1)


def find_main(module: str, attribute: str) -> Callable[[], Any]:
    """Import the callable that serves the requests of a plugin."""
    from importlib import import_module

    found: Any = import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]


def end(status: object) -> NoReturn:
    """End this process, as ``sys.exit`` does, but leave it to the kernel to free its memory: 5 ms.

    What was registered with :mod:`atexit` runs, what was printed is written, and threads other than daemons are
    waited for.
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
