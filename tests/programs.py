"""Programs in Python that tests write, and the programs that a call starts."""

import shlex
import sys
from pathlib import Path
from typing import Any


def python_program(source: str, *switches: str) -> str:
    """Make an executable text of Python source. It starts wherever the interpreter lies, also below a path with spaces.

    The first line of a script cannot hold a path with a space, nor a long one. A shell can, and Python takes the two
    lines meant for the shell for a string.
    """
    return f"#!/bin/sh\n'''exec' {shlex.join([sys.executable, *switches])} \"$0\" \"$@\"\n' '''\n{source}"


def started_programs(function: Any, *arguments: Any) -> list[str]:
    """Names of the programs that a call starts. To be called in a process of its own: a hook stays."""
    started: list[str] = []

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            started.append(Path(details[1][0]).name)

    sys.addaudithook(hook)
    function(*arguments)
    return started
