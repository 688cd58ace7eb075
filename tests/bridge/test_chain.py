"""Results of IPAM plugins, as our bridge and the reference's take them, and the reference's portmap after ours."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnisdk.testing import Host, PluginUnderTest
from cnisdk_plugins.bridge import Bridge
from cnisdk_plugins.portmap import Portmap

from ..plugin.test_ipam import SHAPES
from .conftest import left, sweep
from .test_interop import without_chance

pytestmark = [pytest.mark.kernel, pytest.mark.interop]

NULLS = "null entries"
"""On which the reference panics."""


def printed(shape: str, version: str) -> dict[str, Any]:
    """Return what the IPAM plugin prints, in a version of the specification."""
    document = {"cniVersion": version, **copy.deepcopy(SHAPES[shape])}
    if version < "1.0.0":
        for ip in filter(None, document["ips"]):
            ip["version"] = "6" if ":" in ip["address"] else "4"
    return document


@pytest.fixture(scope="module")
def outside(module_host: Host) -> Iterator[Host]:
    """A neighbour of the host, which has the containers' network behind it."""
    with Host(beside=module_host) as neighbour:
        yield neighbour


@pytest.fixture
def swept_host(module_host: Host) -> Iterator[Host]:
    yield module_host
    sweep(module_host)


def bridge(host: Host, plugin: type[Bridge] | Path, shape: str, version: str) -> PluginUnderTest:
    """Return a bridge plugin over an IPAM plugin that prints a shape."""
    ipam = host.stub()
    ipam.answer("ADD", printed(shape, version))
    for verb in ("DEL", "CHECK"):
        ipam.answer(verb)
    return host.plugin(
        plugin, {"cniVersion": version, "name": "net", "bridge": "br0", "isDefaultGateway": True, "ipam": ipam.conf}
    )


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_of_both_are_equal(swept_host: Host, go: Path, shape: str, version: str) -> None:
    container = swept_host.container()
    results = []
    for plugin, prints in ((Bridge, shape), (go / "bridge", "abbreviated" if shape == NULLS else shape)):
        under_test = bridge(swept_host, plugin, prints, version)
        answer = under_test.run("ADD", container)
        answer.raise_for_error()
        results.append(without_chance(answer.document))
        under_test.delete(container)
        swept_host.shell("ip link del br0")
    assert results[0] == results[1]


@pytest.mark.parametrize(("shape", "maker"), [*((shape, "reference") for shape in SHAPES), (NULLS, "ours")])
def test_a_published_port_is_reached_from_outside(
    swept_host: Host, outside: Host, go: Path, shape: str, maker: str
) -> None:
    """The reference's portmap maps ports to the addresses that belong to an interface with a sandbox."""
    container, ours = swept_host.container(), bridge(swept_host, Bridge, shape, "1.0.0")
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    conf = {"cniVersion": "1.0.0", "name": "net", "runtimeConfig": {"portMappings": ports}}
    portmap = swept_host.plugin(go / "portmap" if maker == "reference" else Portmap, conf)
    swept_host.connect(outside, address="198.51.100.1/24", other_address="198.51.100.2/24")
    result = ours.run("ADD", container).document
    assert portmap.run("ADD", container, prevResult=result).document == result
    assert outside.reaches(container, "198.51.100.1", port=80, published=8080)
    portmap.delete(container)
    ours.delete(container)
    assert "192.0.2.2" not in str(left(swept_host).rules)
