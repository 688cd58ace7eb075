"""Two host-locals over one directory: ours, in this process or behind a shim, and the reference's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnisdk.plugin import Plugin
from cnisdk.testing import Answer, Host, PluginUnderTest
from cnisdk_plugins.host_local import HostLocal

from ..modes import Plugins

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni")) / "host-local"


class Leased(Answer):
    """An answer of an IPAM plugin."""

    __slots__ = ()

    @property
    def ips(self) -> list[str]:
        """The addresses, without their prefix lengths."""
        self.raise_for_error()
        return [ip["address"].partition("/")[0] for ip in self.document["ips"]]


class Attached(NamedTuple):
    """Container that has the addresses: IPAM plugins do not look into its namespace."""

    id: str
    netns: str = "/dev/null"


class Program:
    """A host-local, to be asked with one configuration after another."""

    def __init__(self, plugin: type[Plugin[Any]] | Path, host: Host | None = None) -> None:
        self._plugin = PluginUnderTest(host, plugin, {})

    def __call__(self, verb: str, conf: object, container: str = "one", ifname: str = "eth0", **environ: str) -> Leased:
        stdin = conf.decode() if isinstance(conf, bytes) else json.dumps(conf)
        return Leased(*self._plugin.run(verb, Attached(container), ifname, environ=environ, stdin=stdin))


@pytest.fixture(scope="module", params=["in process", pytest.param("resident", marks=pytest.mark.resident)])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Our host-local: in this process, and again through a shim and a server."""
    if request.param == "in process":
        yield Program(HostLocal)
        return
    plugins, host = Plugins(tmp_path_factory.mktemp("resident"), resident=True), request.getfixturevalue("module_host")
    with plugins.on(host):
        yield Program(plugins.directory / "host-local", host)


@pytest.fixture
def reference() -> Program:
    """The reference's host-local."""
    if not GO.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{GO} is not installed (Debian: containernetworking-plugins)")
        pytest.skip(f"{GO} is not installed (Debian: containernetworking-plugins)")
    return Program(GO)


def environment(verb: str, container: str = "one", ifname: str = "eth0", **more: str) -> dict[str, str]:
    """Return the environment of a request, for tests that start processes themselves."""
    attachment = {"CNI_CONTAINERID": container, "CNI_NETNS": "/dev/null", "CNI_IFNAME": ifname}
    return {"CNI_COMMAND": verb, "CNI_PATH": ".", **attachment, **more}


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
