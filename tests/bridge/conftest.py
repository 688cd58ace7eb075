"""Our bridge and the reference's, over either host-local, on a host that the tests of a module share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnisdk.linux import link, rtnetlink
from cnisdk.testing import Host, PluginUnderTest

from ..modes import Plugins

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))

DUAL_STACK = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "2001:db8:1::/64"}]],
}

# Every attachment that masquerades has these, which therefore stay.
BASE_RULES = (" hook ", "goto masq_checks", "daddr 224.0.0.0/4 return", "daddr ff00::/8 return")


class Network:
    """A host, and where the plugins are that run there.

    Attributes:
        host: The host.
        bridge: The directory of the bridge plugin.
        ipam: The directory of the IPAM plugin, the ``CNI_PATH``.
    """

    def __init__(self, host: Host, bridge: Path, ipam: Path) -> None:
        self.host, self.bridge, self.ipam = host, bridge, ipam

    def plugin(self, version: str = "1.0.0", **keys: Any) -> PluginUnderTest:
        """Make the plugin of a bridge network; ``ipam=None`` takes IPAM out."""
        conf = {
            "cniVersion": version,
            "name": "net",
            "bridge": "br0",
            "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"},
        } | keys
        wanted = {key: value for key, value in conf.items() if value is not None}
        return self.host.plugin(self.bridge / "bridge", wanted, path=[self.ipam])

    def using(self, bridge: Path, ipam: Path) -> Network:
        """Return the same network with plugins of other directories."""
        return Network(self.host, bridge, ipam)


class Left(NamedTuple):
    """Leftovers of attachments on the host, to be compared."""

    links: list[str]
    rules: list[str]
    leases: dict[str, str]


NOTHING = Left(["br0", "lo"], [], {})
"""A bridge stays when its last port goes."""


def left(host: Host) -> Left:
    """Look up what attachments have on a host."""
    state = host.state()
    own = state.of("")
    return Left(
        sorted(each.name for each in own.links),
        [
            each.line
            for each in own.nft
            if " chain " in each.chain and not any(part in each.line for part in BASE_RULES)
        ],
        {f"{each.network}/{each.address}": f"{each.container_id}/{each.ifname}" for each in state.leases},
    )


def sweep(host: Host) -> None:
    """Leave no trace of a test on a host: it is as a new one, but for the server that may run there."""
    host.call(_delete_links)
    host.shell(
        "ip -all netns delete; nft flush ruleset; rm -rf /var/lib/cni /run/cnisdk-testing;"
        " for each in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 0 >/proc/sys/net/$each; done"
    )


def _delete_links() -> None:
    # Before the containers go: the kernel takes its time to remove what is in a namespace.
    with rtnetlink.Socket() as sock:
        link.delete_all(sock, [each for each in link.list_all() if each.name != "lo"])


@pytest.fixture(scope="module")
def ready_host(module_host: Host, plugins: Plugins) -> Iterator[Host]:
    """The host of a module's tests, with a server where the plugins are resident."""
    with plugins.on(module_host):
        yield module_host
        sweep(module_host)  # those of the next mode find a clean host


@pytest.fixture
def net(ready_host: Host, plugins: Plugins) -> Iterator[Network]:
    """A network on the module's host, where the last test has left nothing."""
    yield Network(ready_host, plugins.directory, plugins.directory)
    plugins.assert_served()
    sweep(ready_host)


@pytest.fixture
def go() -> Path:
    """The directory of the reference plugins."""
    if not (GO / "bridge").exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{GO}/bridge is not installed (Debian: containernetworking-plugins)")
        pytest.skip(f"{GO}/bridge is not installed (Debian: containernetworking-plugins)")
    return GO


def host_end(result: Mapping[str, Any]) -> str:
    """Return the name of the host's end of the pair, by a result's JSON."""
    names = [each["name"] for each in result["interfaces"] if not each.get("sandbox") and each["name"] != "br0"]
    assert isinstance(names[0], str)
    return names[0]
