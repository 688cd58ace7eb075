"""Two host-locals over one directory: ours, in this process or behind a shim, and the reference's."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnisdk.plugin.reply import respond
from cnisdk.testing import Sandbox
from cnisdk_plugins.host_local import HostLocal

from ..modes import Plugins

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni")) / "host-local"


class Answer(NamedTuple):
    status: int
    document: Any

    @property
    def ips(self) -> list[str]:
        assert self.status == 0, self.document
        return [ip["address"].partition("/")[0] for ip in self.document["ips"]]


Run = Callable[..., Answer]


def environment(verb: str, container: str, ifname: str, extra: Mapping[str, str]) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": "/dev/null",
        "CNI_IFNAME": ifname,
        "CNI_PATH": ".",
        **extra,
    }


def in_process(environ: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
    reply = respond(HostLocal, environ, stdin)
    return reply.status, reply.stdout


class Ways:
    """How `ours` is run."""

    run: Callable[[Mapping[str, str], bytes], tuple[int, bytes]] = staticmethod(in_process)


def ours(verb: str, conf: object, container: str = "one", ifname: str = "eth0", **extra: str) -> Answer:
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    status, stdout = Ways.run(environment(verb, container, ifname, extra), stdin)
    return Answer(status, json.loads(stdout) if stdout else None)


@pytest.fixture(scope="module", params=["in process", "resident"])
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run `ours` in this process, and again through a shim and a server: for modules that use it."""
    if request.param == "in process":
        yield
        return
    plugins = Plugins(tmp_path_factory.mktemp("resident"), resident=True)

    def run(environ: Mapping[str, str], stdin: bytes) -> tuple[int, bytes]:
        process: subprocess.Popen[Any] = host.popen(
            [plugins.directory / "host-local"],
            env=dict(environ),
            text=False,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            stdout, stderr = process.communicate(stdin)
        sys.stderr.write(stderr.decode())  # where a plugin in this process writes
        return process.returncode, stdout

    with Sandbox() as host, plugins.on(host), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ways, "run", staticmethod(run))
        yield


def theirs(verb: str, conf: object, container: str = "one", ifname: str = "eth0", **extra: str) -> Answer:
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    done = subprocess.run(
        [GO], input=stdin, env=environment(verb, container, ifname, extra), capture_output=True, check=False
    )
    return Answer(done.returncode, json.loads(done.stdout) if done.stdout else None)


@pytest.fixture
def reference() -> Run:
    """The reference's host-local."""
    if not GO.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{GO} is not installed (Debian: containernetworking-plugins)")
        pytest.skip(f"{GO} is not installed (Debian: containernetworking-plugins)")
    return theirs


class Network(NamedTuple):
    """A network's configuration with a directory of its own."""

    data_dir: Path
    name: str = "net"

    @property
    def path(self) -> Path:
        return self.data_dir / self.name

    def conf(self, *sets: object, version: str = "1.0.0", **ipam: object) -> dict[str, Any]:
        """Each set is a subnet, or a list of ranges."""
        ranges = [[{"subnet": each}] if isinstance(each, str) else each for each in sets]
        return {
            "cniVersion": version,
            "name": self.name,
            "type": "test",
            "ipam": {"type": "host-local", "dataDir": str(self.data_dir), "ranges": ranges, **ipam},
        }

    def leases(self) -> dict[str, bytes]:
        """Address to content."""
        if not self.path.exists():
            return {}
        return {
            file.name: file.read_bytes()
            for file in self.path.iterdir()
            if file.name != "lock" and not file.name.startswith("last_reserved_ip.")
        }

    def everything(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.path.iterdir()} if self.path.exists() else {}


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(tmp_path / "networks")
