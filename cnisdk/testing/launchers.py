"""Executables for the plugins that installed packages register, for a ``CNI_PATH`` of tests."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path

GROUP = "cnisdk.plugins"
"""Entry point group in which distributions register plugins."""


def write_launchers(directory: Path) -> list[str]:
    """Write one executable a registered plugin, run by this interpreter; return the plugins' types.

    They are for tests: what ``cnisdk install`` writes starts faster and does not depend on ``PATH`` or a shell.
    """
    types = []
    for entry in entry_points(group=GROUP):
        code = f"from {entry.module} import {entry.attr}; {entry.attr}()"
        path = directory / entry.name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
        path.chmod(0o755)
        types.append(entry.name)
    return sorted(types)
