"""The environment of this process, replaced for a request."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def replace_environment(environ: Mapping[str, str]) -> None:
    """Replace the environment of this process."""
    present = os.environ.copy()
    for name in present.keys() - environ.keys():
        del os.environ[name]
    for name, value in environ.items():
        if present.get(name) != value:
            os.environ[name] = value


@contextmanager
def environment(environ: Mapping[str, str]) -> Iterator[None]:
    """Replace the environment inside ``with``."""
    before = os.environ.copy()
    replace_environment(environ)
    try:
        yield
    finally:
        replace_environment(before)
