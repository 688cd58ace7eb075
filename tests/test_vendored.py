"""A copy of the package under another name works, with no cnisdk installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Refuses the original name, so that nothing in the copy can lean on it.
NO_CNISDK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"cnisdk", "cnisdk_plugins"}:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Refuse())
"""

PLUGIN = """
from attrs import frozen
from acme._vendor.net import AddRequest, DelRequest, NetConf, Plugin, Result
from acme._vendor.net.plugin import respond


@frozen(kw_only=True)
class EchoConf(NetConf):
    greeting: str = "hello"


class Echo(Plugin[EchoConf]):
    def add(self, request: AddRequest[EchoConf]) -> Result:
        assert request.conf.greeting == "hi"
        return Result()

    def delete(self, request: DelRequest[EchoConf]) -> None:
        pass


environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/absent", "CNI_IFNAME": "eth0",
           "CNI_PATH": "/nowhere"}
reply = respond(Echo, environ, b'{"cniVersion": "1.0.0", "name": "n", "type": "echo", "greeting": "hi"}')
sys.stdout.buffer.write(reply.stdout)
sys.exit(reply.status)
"""


@pytest.fixture
def vendored(tmp_path: Path) -> Path:
    """A folder that holds the package as ``acme._vendor.net``."""
    target = tmp_path / "acme" / "_vendor" / "net"
    shutil.copytree(ROOT / "cnisdk", target, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "acme" / "__init__.py").touch()
    (tmp_path / "acme" / "_vendor" / "__init__.py").touch()
    return tmp_path


def run(folder: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", NO_CNISDK + script],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_every_module_imports(vendored: Path) -> None:
    names = sorted(
        ".".join(path.relative_to(vendored).with_suffix("").parts).removesuffix(".__init__")
        for path in vendored.rglob("*.py")
        if path.name != "__main__.py"
    )
    assert "acme._vendor.net.plugin.reply" in names
    run(vendored, f"import importlib\nfor name in {names!r}: importlib.import_module(name)\n")


def test_lazy_names_resolve(vendored: Path) -> None:
    run(vendored, "from acme._vendor.net import NetConf, Plugin, PluginMain, Result\n")


def test_a_plugin_answers(vendored: Path) -> None:
    assert json.loads(run(vendored, PLUGIN)) == {"cniVersion": "1.0.0", "dns": {}}
