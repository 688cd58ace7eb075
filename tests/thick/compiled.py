"""Shims in C, compiled for tests."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from cnisdk._thick import shim
from cnisdk._thick.shim import ShimTexts


@cache
def _compile(flags: Sequence[str]) -> bytes:
    return shim.compile_program([flags])


def compiled_shim(texts: ShimTexts, flags: Sequence[str] = shim.COMPILER_FLAGS[0]) -> bytes:
    """The shim of a plugin, made by this machine's compiler."""
    return shim.make_shim(_compile(flags), texts)
