"""Ports published for SCTP: associations through them carry bytes. Small kernels have no SCTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnisdk.testing import Host
from cnisdk_plugins.bridge import Bridge
from cnisdk_plugins.firewall import Firewall
from cnisdk_plugins.portmap import Portmap

from ..interface_kit import DUAL_STACK

pytestmark = [pytest.mark.kernel, pytest.mark.kinds]

PUBLISHED = {"hostPort": 8081, "containerPort": 81, "protocol": "sctp"}


@pytest.mark.interop
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_a_published_port_carries_an_association(host: Host, go: Path, backend: str) -> None:
    container, neighbour = host.container("c1"), host.container("c2")
    host.shell("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    common: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net"}
    bridge = host.plugin(
        Bridge, {**common, "isDefaultGateway": True, "hairpinMode": True, "ipam": DUAL_STACK}, path=[go]
    )
    previous = bridge.run("ADD", container).document
    bridge.add(neighbour)
    common |= {"backend": backend, "prevResult": previous}
    firewall = host.plugin(Firewall, common)
    portmap = host.plugin(Portmap, {**common, "runtimeConfig": {"portMappings": [PUBLISHED]}})
    to: dict[str, Any] = {"protocol": "sctp", "port": PUBLISHED["containerPort"], "published": PUBLISHED["hostPort"]}
    with Host(beside=host) as outside:
        host.connect(outside, address="198.51.100.1/24", other_address="198.51.100.2/24")
        host.shell("ip address add 2001:db8:9::1/64 dev uplink nodad")
        outside.shell("ip address add 2001:db8:9::2/64 dev uplink nodad")
        assert not outside.reaches(container, "198.51.100.1", timeout=0.3, **to)
        for plugin in (firewall, portmap):
            plugin.add(container)
            plugin.check(container)
        for client in (outside, host, neighbour, container):
            for address in ("198.51.100.1", "2001:db8:9::1"):
                assert client.reaches(container, address, **to), (client, address)
        assert host.reaches(container, "127.0.0.1", **to)
        assert not outside.reaches(container, "198.51.100.1", timeout=0.3, **{**to, "protocol": "tcp"})
        for plugin in (portmap, firewall):
            plugin.delete(container)
        assert not outside.reaches(container, "198.51.100.1", timeout=0.3, **to)
    assert "sctp" not in host.shell("nft list ruleset")
