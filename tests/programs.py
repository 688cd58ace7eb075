"""Programs in Python that tests write: they start wherever the interpreter lies, also below a path with spaces."""

import shlex
import sys


def python_program(source: str, *switches: str) -> str:
    """Make an executable text of Python source.

    The first line of a script cannot hold a path with a space, nor a long one. A shell can, and Python takes the two
    lines meant for the shell for a string.
    """
    return f"#!/bin/sh\n'''exec' {shlex.join([sys.executable, *switches])} \"$0\" \"$@\"\n' '''\n{source}"
