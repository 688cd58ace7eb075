"""Build hook of the wheel: adds the shims' program, for each processor that a compiler here can make it for.

``CNISDK_SHIMS=all`` makes a missing compiler an error, for releases; ``CNISDK_SHIMS=none`` adds no program. A wheel
without the program is complete: ``cnisdk install`` then uses the machine's own compiler. An editable install and the
source distribution have none.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_WISHES = ("all", "found", "none")


class ShimHook(BuildHookInterface[Any]):
    """Adds ``cnisdk/_thick/prebuilt/shim.MACHINE`` to the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the programs into a temporary directory, from which they go into the wheel."""
        wish = os.environ.get("CNISDK_SHIMS", "found")
        if wish not in _WISHES:
            raise ValueError(f"CNISDK_SHIMS must be one of {', '.join(_WISHES)}")
        if wish == "none" or version == "editable":
            return
        build = runpy.run_path(os.path.join(self.root, "cnisdk", "_thick", "shim_build.py"))
        self._directory = tempfile.TemporaryDirectory(prefix="cnisdk-shims-")
        for machine in build["MACHINES"]:
            name = build["file_name"](machine)
            output = os.path.join(self._directory.name, name)
            if any(_succeeds(build["compiler_command"](each, output)) for each in build["compilers_for"](machine)):
                build_data["force_include"][output] = f"cnisdk/_thick/prebuilt/{name}"
            elif wish == "all":
                raise RuntimeError(f"no compiler here can make the shim for {machine}")
            else:
                self.app.display_warning(f"no compiler here can make the shim for {machine}: the wheel has none")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary directory."""
        if hasattr(self, "_directory"):
            self._directory.cleanup()


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, env=_environ()).returncode == 0
    except OSError:
        return False


def _environ() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
