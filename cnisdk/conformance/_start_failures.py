"""Explanations of executables that cannot be started. The kernel gives only an errno."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..testing.sandbox import Sandbox

# Bytes that the kernel reads of the first line (BINPRM_BUF_SIZE of <linux/binfmts.h>).
_FIRST_LINE = 256

_REASONS = {
    errno.ENOEXEC: "it is neither a program of this machine nor a script with a #! line",
    errno.EACCES: "permission denied: check its mode, that of its #! interpreter, and noexec on its file system",
    errno.ETXTBSY: "a process has it open for writing: is it being installed?",
}


def find_obstacle(path: str) -> str | None:
    """Return why a file cannot be a plugin, as far as can be seen without starting it; None if nothing is seen."""
    if not os.path.lexists(path):
        return "it does not exist"
    if not os.path.exists(path):
        return f"it is a link to {os.readlink(path)}, which does not exist"
    if os.path.isdir(path):
        return "it is a directory"
    if not os.path.isfile(path):
        return "it is not a regular file"
    return None if os.access(path, os.X_OK) else _REASONS[errno.EACCES]


def explain(error: OSError, path: str, host: Sandbox) -> str:
    """Return why the kernel refused to start an executable on a host."""
    if error.errno != errno.ENOENT:
        return _REASONS.get(error.errno or 0, str(error.strerror))
    if not host.call(os.path.exists, path):
        return f"throw-away hosts have a {_top(path)} of their own, in which it is not: copy it to another directory"
    try:
        with Path(path).open("rb") as file:
            line = os.fsdecode(file.read(_FIRST_LINE).partition(b"\n")[0])
    except OSError:
        line = ""  # it may be executed, but not read
    if not line.startswith("#!"):
        return "the dynamic loader that it asks for does not exist: is it for another libc, or another machine?"
    words = line[2:].strip(" \t").split(" ")
    interpreter = words[0].partition("\t")[0]
    shown = interpreter if interpreter.isprintable() else repr(interpreter)
    if os.path.exists(interpreter):
        if host.call(os.path.exists, interpreter):
            return f"the interpreter of its interpreter {shown} does not exist"
        return f"throw-away hosts have a {_top(interpreter)} of their own, in which its interpreter {shown} is not"
    if interpreter.endswith("\r"):
        return f"its interpreter {shown} does not exist: its lines end with a carriage return"
    if any(os.path.exists(" ".join(words[:count])) for count in range(2, len(words) + 1)):
        return f"its interpreter {shown} does not exist: a #! line cannot name a path with a space"
    return f"its interpreter {shown} does not exist"


def _top(path: str) -> str:
    return "/" + "/".join(path.split("/")[1:3] if path.startswith("/var/") else path.split("/")[1:2])
