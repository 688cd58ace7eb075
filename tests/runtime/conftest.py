"""A runtime over recording plugins, which answer what a test tells them."""

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnisdk.runtime import Network, Runtime

# One script under several names. Each call leaves its environment and input in a numbered directory.
PLUGIN = """#!/bin/sh
type=${0##*/}
here=${0%/*}
n=$(($(ls "$here/calls" | wc -l) + 1000))
call="$here/calls/$n.$type.$CNI_COMMAND"
mkdir "$call"
env > "$call/env"
cat > "$call/stdin"
if [ -e "$here/$type.$CNI_COMMAND" ]; then . "$here/$type.$CNI_COMMAND"; fi
"""


class Call(NamedTuple):
    type: str
    verb: str
    environ: dict[str, str]
    stdin: bytes

    @property
    def config(self) -> Any:
        return json.loads(self.stdin)

    @property
    def variables(self) -> dict[str, str]:
        return {key: value for key, value in self.environ.items() if key.startswith("CNI_")}


class Bench:
    """Plugins, a runtime that runs them, and what they were asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls_dir = directory / "calls"
        self.calls_dir.mkdir(parents=True)
        self.cache_dir = directory / "cache"
        self.warnings: list[str] = []
        self.runtime = Runtime(
            [str(directory)],
            cache_dir=str(self.cache_dir),
            timeout=20,
            environ={"PATH": "/usr/bin:/bin"},
            on_stderr=lambda _: None,
            on_warning=self.warnings.append,
        )

    def plugin(self, name: str, **answers: str) -> None:
        """Make a plugin; `answers` are shell commands by verb."""
        path = self.directory / name
        path.write_text(PLUGIN)
        path.chmod(0o755)
        for verb, body in answers.items():
            (self.directory / f"{name}.{verb}").write_text(body)

    def results(self, name: str, result: object) -> None:
        """Make a plugin that answers ADD with this."""
        self.plugin(name, ADD=f"printf %s {shlex.quote(json.dumps(result))}")

    def network(self, *plugins: object, version: str = "1.0.0", name: str = "net", **more: object) -> Network:
        document = {"cniVersion": version, "name": name, "plugins": list(plugins), **more}
        return Network.parse(json.dumps(document).encode())

    @property
    def calls(self) -> list[Call]:
        found = []
        for path in sorted(self.calls_dir.iterdir()):
            _, kind, verb = path.name.split(".")
            environ = dict(line.split("=", 1) for line in (path / "env").read_text().splitlines())
            found.append(Call(kind, verb, environ, (path / "stdin").read_bytes()))
        return found

    @property
    def sequence(self) -> list[str]:
        return [f"{call.verb} {call.type}" for call in self.calls]

    def forget(self) -> None:
        for path in self.calls_dir.iterdir():
            (path / "env").unlink()
            (path / "stdin").unlink()
            path.rmdir()

    @property
    def cached(self) -> list[str]:
        results = self.cache_dir / "results"
        return sorted(path.name for path in results.iterdir()) if results.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")
