"""The plugin cnisdk-cluster, over a real etcd: two nodes on one network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from cnisdk.errors import (
    InvalidConfigError,
    InvalidEnvironmentError,
    LimitedConnectivityError,
    PluginNotAvailableError,
    TryAgainLaterError,
    UnknownContainerError,
)
from cnisdk.ipam.blocktable import BlockTable
from cnisdk.ipam.cluster import Cluster
from cnisdk.ipam.etcdclient import EtcdClient, EtcdConf
from cnisdk.testing import PluginUnderTest
from cnisdk_plugins.cluster import ClusterPlugin

from .conftest import Member


@frozen
class Place:
    """A container as the plugin sees it: an IPAM plugin does not look into its namespace."""

    id: str
    netns: str = "/run/netns/none"


WEB, DB = Place("web"), Place("db")


@pytest.fixture
def network(request: pytest.FixtureRequest) -> str:
    return str(request.node.name).replace("[", "-").replace("]", "")


def node(name: str, url: str, network: str, place: Path, **keys: Any) -> PluginUnderTest:
    ranges = [[{"subnet": "10.0.0.0/25"}], [{"subnet": "fd00::/120"}]]
    etcd = {"endpoints": [url], "timeout": keys.pop("timeout", 30)}
    ipam = {"type": "cnisdk-cluster", "node": name, "dataDir": str(place / name), "ranges": ranges, "etcd": etcd}
    return PluginUnderTest(None, ClusterPlugin, {"name": network, "ipam": {**ipam, **keys}})


@pytest.fixture
def nobody() -> str:
    """An endpoint where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_two_nodes_of_one_network(member: Member, network: str, tmp_path: Path) -> None:
    one, two = (node(name, member.url, network, tmp_path) for name in ("one", "two"))
    for each in (one, two):
        each.status()
    results = [one.add(WEB), one.add(DB), two.add(WEB), two.add(DB)]
    addresses = [ip.address for result in results for ip in result.ips]
    assert len({*addresses}) == 8
    assert {each.network.prefixlen for each in addresses} == {25, 120}
    assert {str(ip.gateway) for ip in results[0].ips} == {"10.0.0.1", "fd00::1"}
    # The leases of a node lie as host-local's do.
    assert {path.name for path in (tmp_path / "one" / network).iterdir()} >= {
        str(ip.address.ip) for ip in results[0].ips
    }
    one.check(WEB)
    one.gc(DB)
    with pytest.raises(UnknownContainerError):
        one.check(WEB)
    one.check(DB)
    two.check(WEB)
    for each in (one, two):
        for container in (WEB, DB):
            each.delete(container)
            each.delete(container)


def test_check_asks_whose_an_address_is(member: Member, network: str, tmp_path: Path) -> None:
    one = node("one", member.url, network, tmp_path)
    one.add(WEB)
    with EtcdClient(EtcdConf(endpoints=(member.url,))) as client:
        cluster = Cluster(BlockTable(client, network, "one"))
        cluster.give_back(blocks=[block.first for block in cluster.blocks()])
        with pytest.raises(
            UnknownContainerError, match=r"10\.0\.0\.\d+ is leased to container web, but belongs to no node"
        ):
            one.check(WEB)
    one.delete(WEB)


def test_while_etcd_is_away(member: Member, nobody: str, network: str, tmp_path: Path) -> None:
    """A node goes on with what it has, and a new one has nothing."""
    one = node("one", member.url, network, tmp_path)
    one.add(WEB)
    etcd = {"endpoints": [nobody], "timeout": 0.2}
    cut_off = PluginUnderTest(None, ClusterPlugin, {**one.conf, "ipam": {**one.conf["ipam"], "etcd": etcd}})
    result = cut_off.add(DB)
    assert len(result.ips) == 2
    cut_off.check(DB)
    with pytest.raises(LimitedConnectivityError, match="only the addresses that node one has can be leased"):
        cut_off.status()
    cut_off.gc(DB)
    cut_off.delete(DB)
    new = node("new", nobody, network, tmp_path, timeout=0.2)
    with pytest.raises(PluginNotAvailableError, match="etcd does not answer"):
        new.status()
    with pytest.raises(TryAgainLaterError, match=f"node new has no free address .* {nobody}: .*refused"):
        new.add(WEB)
    new.delete(WEB)
    one.delete(WEB)


def test_a_pod_that_moves_keeps_its_addresses(member: Member, network: str, tmp_path: Path) -> None:
    """A StatefulSet's pod does, in another container on another node; a Deployment's does not."""
    one, two = (node(name, member.url, network, tmp_path, stickyBy="statefulset") for name in ("one", "two"))
    web = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID="
    first = one.add(WEB, args=f"{web}1")
    with pytest.raises(TryAgainLaterError, match="is kept for pod default/web-0/eth0, is still in use on node one"):
        two.add(DB, args=f"{web}2")
    one.check(WEB, args=f"{web}1")
    one.delete(WEB, args=f"{web}1")
    assert two.add(DB, args=f"{web}2").ips == first.ips
    two.check(DB)
    other = two.add(WEB, args=f"{web}2".replace("web-0", "web-6bf9d44f6-x2k7q"))
    with EtcdClient(EtcdConf(endpoints=(member.url,))) as client:
        kept = {address for block in Cluster(BlockTable(client, network, "")).blocks() for address in block.kept}
    assert kept == {each.address.ip for each in first.ips}
    assert not kept & {each.address.ip for each in other.ips}
    for bad in ("K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c-0", "K8S_POD_NAMESPACE=default"):
        with pytest.raises(InvalidEnvironmentError, match="invalid K8S_POD_NAME"):
            one.add(WEB, args=bad)
    for container in (WEB, DB):
        two.delete(container)


def test_released_addresses_rest(member: Member, network: str, tmp_path: Path) -> None:
    one = node("one", member.url, network, tmp_path, coolDown=3600, ranges=[[{"subnet": "10.0.0.0/29"}]])
    first = one.add(WEB)
    one.delete(WEB)
    second = one.add(WEB)
    one.gc()  # whose addresses rest as well
    given = {str(ip.address) for result in (first, second, *(one.add(each) for each in (WEB, DB))) for ip in result.ips}
    assert len(given) == 4
    one.status()
    one.add(Place("last"))
    with pytest.raises(PluginNotAvailableError, match="no IP addresses available") as caught:
        one.status()
    assert "2 rest, the first for 3" in caught.value.details


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"node": "a/b"}, r'invalid node "a/b"; \$.ipam.node'),
        ({"coolDown": -1}, r"invalid coolDown -1; \$.ipam.coolDown"),
        ({"stickyBy": "name"}, r'invalid stickyBy "name"; \$.ipam.stickyBy: expected one of pod, statefulset, vm'),
        ({"etcd": {}}, r"no endpoint of etcd; \$.ipam.etcd.endpoints is missing"),
        ({"blockSize": 31}, r"invalid blockSize 31; \$.ipam.blockSize: expected a prefix length from 8 to 30"),
        ({"blockSize6": 0}, r"invalid blockSize6 0; \$.ipam.blockSize6"),
        ({"onDuplicate": "x"}, 'invalid onDuplicate "x"'),
        ({"etcd": {"endpoints": ["localhost"]}}, r'"localhost" is no endpoint of etcd; \$.ipam.etcd.endpoints\[0\]'),
    ],
)
def test_a_configuration_that_is_refused(nobody: str, tmp_path: Path, keys: dict[str, Any], text: str) -> None:
    plugin = node("one", nobody, "net", tmp_path, **keys)
    with pytest.raises(InvalidConfigError, match=text):
        plugin.add(WEB)
    plugin.delete(WEB)


def test_blocks_of_another_size(member: Member, network: str, tmp_path: Path) -> None:
    node("one", member.url, network, tmp_path).add(WEB)
    with pytest.raises(TryAgainLaterError, match=r"has another size than /27; \$\.ipam\.blockSize"):
        node("two", member.url, network, tmp_path, blockSize=27, blockSize6=123, borrow=True).add(WEB)
