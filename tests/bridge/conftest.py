"""Our bridge and the reference's, over either host-local, on hosts of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnisdk.testing import Host

from ..modes import Plugins

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
LEASES = Path("/var/lib/cni/networks")


class Answer(NamedTuple):
    """What a plugin answered."""

    status: int
    document: Any
    stderr: str

    def must_succeed(self) -> None:
        assert self.status == 0, (self.document, self.stderr)

    @property
    def result(self) -> Any:
        self.must_succeed()
        return self.document

    @property
    def error(self) -> Any:
        assert self.status == 1, (self.status, self.document, self.stderr)
        return self.document


class Bench:
    """A host, and the directories of the plugins to run there.

    Attributes:
        host: The host.
        plugins: Where the bridge plugin is.
        ipam: ``CNI_PATH``: where the IPAM plugin is.
    """

    def __init__(self, host: Host, plugins: Path, ipam: Path) -> None:
        self.host = host
        self.plugins = plugins
        self.ipam = ipam

    def using(self, plugins: Path | None = None, ipam: Path | None = None) -> Bench:
        """The same host with other plugins."""
        return Bench(self.host, plugins or self.plugins, ipam or self.ipam)

    def run(self, verb: str, conf: Any, container: str = "c1", **variables: str) -> Answer:
        """Run the bridge plugin."""
        text = conf if isinstance(conf, str) else json.dumps(conf)
        environ = self.environ(verb, container) | variables
        done = self.host.run([self.plugins / "bridge"], env=environ, input=text, check=False, timeout=120)
        return Answer(done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr)

    def environ(self, verb: str, container: str = "c1") -> dict[str, str]:
        """The environment of a request."""
        return {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.ipam),
        }

    def state(self) -> dict[str, object]:
        """What an attachment leaves outside its container, to be compared."""
        files = self.host.call(_files)
        return {
            "links": sorted(link["ifname"] for link in self.host.ip("link")),
            "rules": [
                line.strip()
                for line in self.host.run(["nft", "list", "ruleset"]).stdout.splitlines()
                if line.startswith("\t\t")
                and " hook " not in line
                and "goto masq_checks" not in line
                # The base rules of the masquerade table are there for every attachment.
                and "daddr 224.0.0.0/4 return" not in line
                and "daddr ff00::/8 return" not in line
            ],
            "leases": {
                name: text for name, text in files.items() if "last_reserved" not in name and "lock" not in name
            },
        }


def _files() -> dict[str, bytes]:
    if not LEASES.exists():
        return {}
    return {str(path.relative_to(LEASES)): path.read_bytes() for path in LEASES.glob("[!.]*/*") if path.is_file()}


@pytest.fixture
def bench(host: Host, plugins: Plugins) -> Iterator[Bench]:
    with plugins.on(host):
        yield Bench(host, plugins.directory, plugins.directory)


@pytest.fixture
def go() -> Path:
    """The directory of the reference plugins."""
    if not (GO / "bridge").exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{GO}/bridge is not installed (Debian: containernetworking-plugins)")
        pytest.skip(f"{GO}/bridge is not installed (Debian: containernetworking-plugins)")
    return GO


def config(version: Any = "1.0.0", **keys: Any) -> dict[str, Any]:
    """A bridge network; ``ipam=None`` takes IPAM out."""
    document = {
        "cniVersion": version,
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"},
    } | keys
    return {key: value for key, value in document.items() if value is not None}


DUAL_STACK = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "2001:db8:1::/64"}]],
}
