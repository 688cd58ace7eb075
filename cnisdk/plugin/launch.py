"""What a launcher is, and the program it starts: a plugin, in a Python that gets going and ends quickly.

A launcher is a small shell script. It answers VERSION by itself, which is what runtimes ask most: Podman for every
plugin of every network in every command. For everything else it becomes the interpreter of its installation, isolated
(``-I``) from the environment and the directory it is run in. Where modules are was looked up when it was written, so
that Python need not look for it again (``-S``): 3 ms.
"""

from __future__ import annotations

import gc
import sys

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
    return f"{more}from {__name__} import launch\nlaunch({module!r}, {attribute!r})\n"


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
