"""Two host-locals over one directory: ours, in this process, and the reference's."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnisdk.plugin.main import respond
from cnisdk_plugins.host_local import HostLocal

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


def ours(verb: str, conf: object, container: str = "one", ifname: str = "eth0", **extra: str) -> Answer:
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    reply = respond(HostLocal, environment(verb, container, ifname, extra), stdin)
    return Answer(reply.status, json.loads(reply.stdout) if reply.stdout else None)


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
