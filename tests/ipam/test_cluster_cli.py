"""cnisdk cluster: what an operator sees of a cluster's addresses, and takes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from cnisdk._cli import cluster as command, cnisdk
from cnisdk.classes import evolve, frozen
from cnisdk.errors import TryAgainLaterError
from cnisdk.ipam import FileStore, Lease, Owner
from cnisdk.ipam.blocktable import Block, BlockTable
from cnisdk.ipam.cluster import Cluster
from cnisdk.ipam.etcdclient import EtcdClient
from cnisdk.runtime import Cache, CachedAttachment
from cnisdk.spec.names import Attachment
from cnisdk.testing import PluginUnderTest
from cnisdk.testing.stores import everything, reserve
from cnisdk_plugins.cluster import ClusterPlugin

from .conftest import Member


@frozen
class Place:
    id: str
    netns: str = "/run/netns/none"


WEB, DB = Place("web"), Place("db")
POD = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"


class Site:
    """Nodes of one network, each with a directory of configuration."""

    def __init__(self, member: Member, name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.member, self.name, self.root, self.capsys = member, name, root, capsys
        self.client = EtcdClient(member.conf)
        self.cluster = Cluster(BlockTable(self.client, name, ""))

    def node(self, name: str, **keys: Any) -> PluginUnderTest:
        ipam: dict[str, Any] = {"type": "cnisdk-cluster", "node": name, "dataDir": str(self.root / name / "leases")}
        ipam |= {"ranges": [[{"subnet": "10.0.0.0/24"}]], "etcd": {"endpoints": [self.member.url], "timeout": 30}}
        plugin = PluginUnderTest(None, ClusterPlugin, {"name": self.name, "ipam": {**ipam, **keys}})
        conf = {"cniVersion": "1.0.0", "name": self.name, "plugins": [{"type": "bridge", "ipam": plugin.conf["ipam"]}]}
        (self.root / name / "conf").mkdir(parents=True, exist_ok=True)
        (self.root / name / "conf" / "net.conflist").write_text(json.dumps(conf))
        return plugin

    def run(self, node: str, action: str, *arguments: str, status: int = 0) -> str:
        """Run an action on a node, and return what it prints."""
        argv = ["cluster", action, "--conf-dir", str(self.root / node / "conf"), *arguments]
        self.capsys.readouterr()
        assert cnisdk.main(argv) == status
        out, err = self.capsys.readouterr()
        return (out + err).strip()

    def change(self, block: Block, **fields: Any) -> None:
        """Change a block by hand, as no operator should."""
        self.cluster.table.swap([(block, evolve(block, **fields))])

    def store(self, node: str) -> FileStore:
        return FileStore(str(self.root / node / "leases"), self.name)


@pytest.fixture
def site(
    member: Member, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Site]:
    made = Site(member, request.node.name, tmp_path, capsys)
    with made.client:
        yield made


def test_status_and_show(site: Site) -> None:
    one, two = site.node("one", stickyBy="pod", coolDown=60), site.node("two")
    for number in range(3):
        one.add(Place(f"c{number}"))
    one.delete(Place("c0"))
    (kept,) = (ip.address.ip for ip in one.add(WEB, args=POD).ips)
    two.add(DB)
    (block,) = (each for each in site.cluster.blocks() if each.node == "two")
    wanted = block.first + 60
    one.add(Place("static"), args=f"IP={wanted}")

    text = site.run("one", "status")
    assert text.splitlines()[:2] == [
        f"{site.name}  {site.member.url}",
        "  10.0.0.1-10.0.0.254  2 of 4 blocks claimed",
    ]
    assert "  one  ███████████████░░░░░░░░░░░░░░░  32 of 64 in 1 block, 4 leased here, 1 rest, 2 borrowed" in text
    assert "32 of 64 in 1 block, 1 lent to others" in text
    assert "1 addresses are kept for 1 interfaces of pods" in text
    document = json.loads(site.run("two", "status", "--json"))["networks"][0]
    assert [(each["name"], each["borrowed"]) for each in document["nodes"]] == [("one", 2), ("two", 0)]
    assert document["pods"] == {"default/web-0/eth0": [str(kept)]}
    assert {each["node"] for each in document["blocks"]} == {"one", "two"}

    shown = site.run("one", "show", str(kept))
    assert shown.endswith(
        "of node one, kept for pod default/web-0/eth0, lent to node one, leased here to container web interface eth0"
    )
    assert site.run("two", "show", str(wanted)).endswith("of node two, lent to node one")
    free = next(
        each for each in (IPv4Address("10.0.0.1") + 64 * n for n in range(4)) if site.cluster.find(each) is None
    )
    assert site.run("two", "show", str(free)).endswith("no node and no pod has an address of its block")
    assert "is in no range" in site.run("two", "show", "10.9.9.9", status=1)


def test_nodes_that_are_released(site: Site) -> None:
    one, two = site.node("one"), site.node("two")
    one.add(WEB)
    two.add(DB)
    wanted = next(each for each in site.cluster.blocks() if each.node == "one").first + 60
    two.add(Place("static"), args=f"IP={wanted}")
    assert "no network has a node three" in site.run("one", "release-node", "three", "--yes", "--wait=0", status=1)
    assert "node one is this one: it lives" in site.run("one", "release-node", "one", "--yes", "--wait=0", status=1)
    before = [*site.cluster.blocks()]
    assert "nothing was released" in site.run("one", "release-node", "two", status=1)
    assert [*site.cluster.blocks()] == before
    text = site.run("one", "release-node", "two", "--yes", "--wait=0")
    assert text.count(": released") == 2
    assert f"loan of {wanted}: released" in text
    assert {each.node for each in site.cluster.blocks()} == {"one"}
    assert not any(each.lent for each in site.cluster.blocks())
    assert site.run("one", "fsck").endswith("nothing broken is left")


def test_a_node_that_changes_something_lives(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = site.node("one"), site.node("two")
    one.add(WEB)
    two.add(DB)
    wanted = next(each for each in site.cluster.blocks() if each.node == "one").first + 60
    monkeypatch.setattr(command, "sleep", lambda _: two.add(WEB, args=f"IP={wanted}"))
    assert "it lives, and nothing was released" in site.run("one", "release-node", "two", "--yes", status=1)
    assert {each.node for each in site.cluster.blocks()} == {"one", "two"}


def test_forgetting_a_pod(site: Site) -> None:
    one = site.node("one", stickyBy="statefulset")
    (kept,) = (ip.address.ip for ip in one.add(WEB, args=POD).ips)
    assert f"{kept}, which is kept for pod default/web-0/eth0, is in use" in site.run(
        "one", "forget", "default/web-0", "--yes", status=1
    )
    one.delete(WEB)
    assert "nothing is kept for default/web" in site.run("one", "forget", "default/web", status=1)
    shown = site.run("one", "forget", "default/web-0", status=1)
    assert f"default/web-0/eth0  {kept}: to be forgotten" in shown
    assert "nothing was forgotten" in shown
    for each in ("default", "default/", "/", ""):
        assert "nothing is kept for" in site.run("one", "forget", each, "--yes", status=1)
    assert any(each.kept for each in site.cluster.blocks())
    assert site.run("one", "forget", "default/web-0", "--yes") == f"default/web-0/eth0  {kept}: forgotten"
    assert not any(each.kept for each in site.cluster.blocks())


def test_fsck(site: Site) -> None:
    one, two = site.node("one", stickyBy="pod"), site.node("two")
    one.add(WEB, args=POD)
    two.add(DB)
    assert site.run("one", "fsck").endswith("nothing broken is left")
    nodes = site.root / "nodes"
    nodes.write_text("node/one\n")
    assert "node two has 1 blocks and 0 loans, and is not among the nodes" in site.run(
        "one", "fsck", "--nodes", str(nodes), status=1
    )
    # By hand: a block of one goes to two, an address is kept without the pod's key, and one is lent to an unknown node.
    mine = next(each for each in site.cluster.blocks() if each.node == "one")
    other = next(each for each in site.cluster.blocks() if each.node == "two")
    site.change(mine, node="two")
    site.change(other, lent={other.first + 63: "three"}, kept={other.first + 62: "default/x/eth0"})
    found = site.run("one", "fsck", status=1)
    assert f"block {mine.first}/26 is not of this node, which hands out its addresses: --repair repairs it" in found
    assert "node three was released, and still has 0 blocks and 1 loans: --repair repairs it" in found
    assert f"the key of pod default/x/eth0 and the blocks disagree about {other.first + 62}: --repair" in found
    repaired = site.run("one", "fsck", "--repair")
    assert repaired.count(": repaired") == 3
    assert site.run("one", "fsck").endswith("nothing broken is left")
    assert site.run("one", "forget", "default/x", "--yes") == f"default/x/eth0  {other.first + 62}: forgotten"


def test_a_repair_that_fails_keeps_no_other_from_being_done(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other nodes change the one place all the time; the pod's key is put right nevertheless."""
    site.node("one").add(WEB)
    mine = next(iter(site.cluster.blocks()))
    site.change(mine, lent={mine.first + 63: "three"}, kept={mine.first + 62: "default/x/eth0"})

    def release_node(self: Cluster, node: str, revision: int = 0) -> None:
        raise TryAgainLaterError("other nodes keep changing it")

    with monkeypatch.context() as patch:
        patch.setattr(Cluster, "release_node", release_node)
        found = site.run("one", "fsck", "--repair", status=1)
    assert "node three was released, and still has 0 blocks and 1 loans: not repaired: other nodes keep" in found
    assert f"the key of pod default/x/eth0 and the blocks disagree about {mine.first + 62}: repaired" in found


def test_fsck_names_leases_that_are_another_nodes(site: Site) -> None:
    one, two = site.node("one"), site.node("two")
    (address,) = (ip.address.ip for ip in one.add(WEB).ips)
    site.run("one", "status")
    two.add(DB)
    site.run("two", "release-node", "one", "--yes", "--wait=0")
    assert f"{address} is leased here to container web interface eth0, but of no node" in site.run(
        "one", "fsck", "--repair", status=1
    )
    one.delete(WEB)
    assert site.run("one", "fsck").endswith("nothing broken is left")


def test_import_from_host_local(site: Site) -> None:
    """The leases keep their containers, which their DEL releases; no other node gets the addresses."""
    one, two = site.node("one"), site.node("two")
    old = FileStore(str(site.root / "old"), "pods")
    addresses = [IPv4Address(f"10.0.0.{number}") for number in (7, 70, 200)]
    reserve(old, *(Lease(address, Owner(f"c{address}", "eth0")) for address in addresses))
    reserve(old, Lease(IPv4Address("10.7.0.1"), Owner("elsewhere", "eth0")))
    path = str(site.root / "old" / "pods")
    assert site.run("one", "import", "host-local", path, "--dry-run").count("to be taken over") == 3
    text = site.run("one", "import", "host-local", path)
    assert text.count("taken over\n") == 3
    assert "10.7.0.1  container elsewhere interface eth0: left out, it is in no range" in text
    assert text.endswith("leases taken over: 3 of 4")
    assert everything(site.store("one")) == {each: Owner(f"c{each}", "eth0") for each in addresses}
    assert site.run("one", "import", "host-local", path).endswith("leases taken over: 3 of 4")
    assert site.run("one", "fsck").endswith("nothing broken is left")
    assert "is lent to node one" not in site.run("two", "import", "host-local", path, status=1)
    with pytest.raises(TryAgainLaterError, match="is not available"):
        two.add(DB, args="IP=10.0.0.7")
    one.delete(Place("c10.0.0.7"))
    two.add(DB, args="IP=10.0.0.7")


def whereabouts_pool(name: str, subnet: str, allocations: dict[str, dict[str, str]]) -> dict[str, Any]:
    """A pool as `kubectl` prints it, with a status as newer versions of whereabouts have it."""
    metadata = {
        "creationTimestamp": "2025-11-24T18:37:28Z",
        "generation": 3,
        "name": name,
        "namespace": "kube-system",
        "resourceVersion": "1196655",
        "uid": "5ee16934-4292-44fe-a824-fa343611e61f",
    }
    return {
        "apiVersion": "whereabouts.cni.cncf.io/v1alpha1",
        "kind": "IPPool",
        "metadata": metadata,
        "spec": {"allocations": allocations, "range": subnet},
        "status": {"usedIPs": len(allocations)},
    }


def test_import_from_whereabouts(site: Site) -> None:
    """Only what containers of this node have: each node takes over its own."""
    site.node("one")
    result = {"cniVersion": "1.0.0", "ips": []}
    cache = Cache(str(site.root / "cache"))
    cache.store(CachedAttachment(Attachment("old", "here", "net1"), netns="/run/netns/x", result=result))
    allocations = {
        "300": {"id": "here", "podref": "default/web-2"},
        "5": {"id": "here", "ifname": "net1", "podref": "default/web-0"},
        "6": {"id": "there", "ifname": "net1", "podref": "default/web-1"},
        "x": {"id": "here", "ifname": "net1", "podref": "default/web-3"},
    }
    # Numbered from the address as it is written.
    slice_of_node = {"2": {"id": "here", "ifname": "net2", "podref": "default/web-0"}}
    pools = [
        whereabouts_pool("10.0.0.0-16", "10.0.0.0/16", allocations),
        whereabouts_pool("one-10.0.0.16-28", "10.0.0.16/28", slice_of_node),
        whereabouts_pool("fd00---64", "fd00::/64", {"1": {"id": "here", "ifname": "net1", "podref": "default/web-0"}}),
        whereabouts_pool("10.9.0.0-16", "10.9.0.0/16", {}),
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": pools, "metadata": {"resourceVersion": ""}}
    (site.root / "pools.json").write_text(json.dumps(listed))
    arguments = ["whereabouts", str(site.root / "pools.json"), "--cache-dir", str(site.root / "cache")]
    text = site.run("one", "import", *arguments)
    assert text.splitlines() == [
        "10.0.0.5  container here interface net1: taken over",
        "10.0.0.6  container there interface net1: left out, no runtime here knows its container, of pod default/web-1",
        "10.0.1.44  container here: left out, it names no interface: say --ifname",
        "10.0.0.18  container here interface net2: taken over",
        "fd00::1  container here interface net1: left out, it is in no range of network test_import_from_whereabouts",
        "leases taken over: 2 of 5",
    ]
    assert everything(site.store("one")) == {
        IPv4Address("10.0.0.5"): Owner("here", "net1"),
        IPv4Address("10.0.0.18"): Owner("here", "net2"),
    }


def test_import_of_one_pool_of_whereabouts(site: Site) -> None:
    """Networks with names of their own (`network_name`) have pools of their own for the same addresses."""
    site.node("one")
    cache = Cache(str(site.root / "cache"))
    for container in ("red", "blue"):
        attachment = Attachment("old", container, "net1")
        cache.store(CachedAttachment(attachment, netns="/run/netns/x", result={"cniVersion": "1.0.0", "ips": []}))
    pools = [
        whereabouts_pool(f"{each}-10.0.0.0-16", "10.0.0.0/16", {"5": {"id": each, "podref": f"default/{each}"}})
        for each in ("blue", "red")
    ]
    (site.root / "pools.json").write_text(json.dumps({"items": pools}))
    arguments = ["whereabouts", str(site.root / "pools.json"), "--cache-dir", str(site.root / "cache")]
    arguments += ["--ifname", "net1", "--pool"]
    assert "taken over: 1 of 1" in site.run("one", "import", *arguments, "red-10.0.0.0-16")
    assert everything(site.store("one")) == {IPv4Address("10.0.0.5"): Owner("red", "net1")}
    text = site.run("one", "import", *arguments, "green", status=1)
    assert "has no IPPool green" in text
    assert text.endswith("there are blue-10.0.0.0-16, red-10.0.0.0-16")


NO_POOLS: tuple[Any, ...] = (
    [],
    {},
    {"items": [{"kind": "OverlappingRangeIPReservation", "spec": {"containerid": "x", "podref": "a/b"}}]},
    {"kind": "IPPool", "spec": {"range": "10.0.0.0"}},
    {"kind": "IPPool", "spec": {"range": "nonsense", "allocations": {}}},
    {"kind": "IPPool", "spec": {"range": "10.0.0.0/16", "allocations": {"5": {"podref": "a/b"}}}},
    {"kind": "IPPool", "spec": {"range": "255.255.255.0/24", "allocations": {"500": {"id": "x"}}}},
)


def test_what_is_no_pool_of_whereabouts(site: Site) -> None:
    site.node("one")
    for document in NO_POOLS:
        (site.root / "pools.json").write_text(json.dumps(document))
        text = site.run("one", "import", "whereabouts", str(site.root / "pools.json"), status=1)
        assert "has no IPPools of whereabouts" in text, document


def test_no_such_network(site: Site) -> None:
    (site.root / "conf").mkdir()
    assert "no network whose ipam.type is cnisdk-cluster" in site.run(".", "status", status=1)
