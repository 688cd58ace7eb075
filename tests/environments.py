"""Virtual environments with this checkout and plugins of their own, for tests of what is installed."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PLUGIN = '''
from cnisdk import NetConf, Plugin, PluginMain, Result


class Noop(Plugin[NetConf]):
    """noop: does nothing"""

    leaves_only_links = True

    def add(self, request):
        return Result()

    def delete(self, request):
        pass


class Box:
    main = PluginMain(Noop)


main = Box.main
'''


class Environment:
    """A virtual environment with this checkout and a distribution with plugins, and no other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        venv.create(directory, with_pip=False, symlinks=True)
        self.python = str(directory / "bin" / "python")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = directory / "lib" / version / "site-packages"
        (self.site / "cnisdk").symlink_to(ROOT / "cnisdk")
        # Not the whole directory they are in, which may have plugins registered.
        for name in ("attr", "attrs", "cattrs", "typing_extensions", "exceptiongroup"):
            spec = find_spec(name)
            if spec is not None and spec.origin is not None:
                origin = Path(spec.origin)
                source = origin.parent if origin.name == "__init__.py" else origin
                (self.site / source.name).symlink_to(source)
        (self.site / "demo_plugins.py").write_text(PLUGIN)
        self.register({"noop": "demo_plugins:main", "dotted": "demo_plugins:Box.main"})

    def register(self, plugins: dict[str, str], distribution: str = "demo-plugins") -> None:
        info = self.site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {target}\n" for name, target in plugins.items())
        (info / "entry_points.txt").write_text(f"[cnisdk.plugins]\n{lines}")

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, "-m", "cnisdk", "install", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
        )
