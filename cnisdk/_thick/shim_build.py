"""Build of the shims' program, by the build of the wheel and by ``cnisdk install``.

The wheel has the program for the processors that ``shim.c`` needs no C library for. It is the same to the byte wherever
the same compiler made it: the flags name no directory, time or identity of the build. The build of the wheel runs this
module's file by itself, so it imports nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from hashlib import sha256

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shim.c")

MACHINES = ("x86_64", "aarch64")
"""Processors for which the wheel has the program, as ``uname -m`` names them."""

PAYLOAD_SIZE = 32768
"""Bytes for the texts of a plugin in the program: PAYLOAD_SIZE of ``shim.c``."""

FLAGS = (
    *("-O2", "-Wall", "-s", "-DSHIM_ALONE", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"),
    *("-fno-pie", "-no-pie", "-fno-ident", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"),
    *("-Wl,-z,noseparate-code", "-Wl,--build-id=none"),
)
"""Compiler flags for a program without any library."""


def file_name(machine: str) -> str:
    """Return the name of the program for a processor, in the directory ``prebuilt``."""
    return f"shim.{machine}"


def source_digest() -> str:
    """Return the digest of ``shim.c``. It is in the program too."""
    with open(SOURCE, "rb") as file:
        return sha256(file.read()).hexdigest()[:32]


def compiler_command(compiler: Sequence[str], output: str, flags: Sequence[str] = FLAGS) -> list[str]:
    """Return the command that compiles the program.

    Args:
        compiler: Compiler, with the options that choose a processor.
        output: File to write.
        flags: Further flags.
    """
    return [*compiler, *flags, f'-DSHIM_SOURCE="{source_digest()}"', "-o", output, SOURCE]


def compilers_for(machine: str) -> list[list[str]]:
    """Return the commands that may compile for a processor, in the order to try them."""
    commands = [[f"{machine}-linux-gnu-gcc"], ["clang", f"--target={machine}-linux-gnu", "-fuse-ld=lld"]]
    native = sys.platform == "linux" and machine == os.uname().machine
    return [["cc"], ["gcc"], *commands] if native else commands
