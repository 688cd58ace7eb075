"""What a launcher is, and the program it starts: a plugin, in a Python that gets going and ends quickly.

A launcher is a small shell script. It answers VERSION by itself, which is what runtimes ask most: Podman for every
plugin of every network in every command. For everything else it becomes the interpreter of its installation, isolated
(``-I``) from the environment and the directory it is run in. Where modules are was looked up when it was written, so
that Python need not look for it again (``-S``): 3 ms.
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
    return f"{more}from {__name__} import launch\n{_call(module, attribute)}"


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
    text = f"""#!/bin/sh
# CNI plugin, {MARK}: change nothing here, it will be overwritten.
# {" ".join(about.split())}
if [ "$CNI_COMMAND" = VERSION ]; then
    printf '%s\\n' {quote(versions)}
    exit
fi
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
    try:
        lines = content.decode(errors="surrogateescape").split("\n", 8)
        about = lines[2].removeprefix("# ")
        module, _, attribute = about.partition(": ")[2].partition(" of ")[0].partition(":")
        versions = _unquote(lines[4].removeprefix("    printf '%s\\n' "))
        command = "\n".join(lines[7:]).removeprefix("exec ").removesuffix(' "$0" "$@"\n')
        switched, _, code = command.partition(" -c '")
        interpreter, _, switches = switched.rpartition("' ")
        argv = (_unquote(f"{interpreter}'"), *switches.split(" "))
        code = _unquote(f"'{code}")
    except IndexError:
        return None
    head = code.removesuffix(_call(module, attribute))
    if head == code or render(about, argv, code, versions) != content:
        return None
    return Launcher(argv, head, module, attribute)


def this_launcher() -> Launcher | None:
    """What the launcher said that started this process; None if it was started in another way."""
    try:
        at = sys.orig_argv.index("-c")
    except ValueError:
        return None
    head, call, arguments = sys.orig_argv[at + 1].rpartition("launch(")
    if not sys.flags.isolated or not call or not head.endswith(f"from {__name__} import launch\n"):
        return None
    module, attribute = (each[1:-1] for each in arguments.removesuffix(")\n").split(", "))
    return Launcher(tuple(sys.orig_argv[:at]), head, module, attribute)


def _unquote(word: str) -> str:
    return word[1:-1].replace("'\"'\"'", "'")


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
    main = find_main(module, attribute)
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    gc.enable()
    try:
        status = main()
    except SystemExit as exc:
        status = exc.code
    end(status)


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
