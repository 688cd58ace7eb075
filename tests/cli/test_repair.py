"""``cnisdk repair``: the rules of what lives are back after a flush, and nothing else is touched."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cnisdk._cli import cnisdk
from cnisdk.runtime import Network, Runtime
from cnisdk.spec.versions import V1_1_0
from cnisdk.testing import Container, Host

pytestmark = pytest.mark.kernel

OUTSIDE = "198.51.100.2"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory, types = tmp_path_factory.mktemp("bin"), ("bridge", "ptp", "portmap", "firewall", "flannel", "host-local")
    assert cnisdk.main(["install", "--no-server", "--dest", str(directory), *types]) == 0
    return str(directory)


class Node:
    """A host with an uplink to a neighbour that knows no way to the containers, and a runtime."""

    def __init__(self, host: Host, plugins: str) -> None:
        self.host, self.plugins = host, plugins

    def network(self, **keys: Any) -> Network:
        ipam = {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
        plugin = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": ipam} | keys
        # kubelet's lists are often of a version without CHECK.
        return Network.parse(json.dumps({"cniVersion": "0.3.1", "name": "net", "plugins": [plugin]}).encode())

    def run(self, verb: str, network: Network, container: Container) -> None:
        runtime = Runtime([self.plugins], environ={"PATH": os.environ["PATH"]})
        if verb == "check":
            network = network._replace(version=V1_1_0)
        self.host.call(getattr(runtime, verb), network, container_id=container.id, netns=container.netns)

    def repair(self, *more: str) -> str:
        argv = [sys.executable, "-m", "cnisdk", "repair", "--inside", "--pause", "0", "--cni-path", self.plugins, *more]
        done = self.host.run(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        return done.stdout + done.stderr

    def ruleset(self) -> str:
        return self.host.shell("nft --stateless --handle list ruleset")


@pytest.fixture
def node(host: Host, plugins: str) -> Node:
    host.shell("mkdir -p /var/lib/cni")
    return Node(host, plugins)


@pytest.mark.parametrize(("type", "backend"), [("bridge", "iptables"), ("ptp", "nftables")])
def test_what_a_flush_took_is_back_and_traffic_flows(node: Node, type: str, backend: str) -> None:
    network = node.network(type=type, ipMasqBackend=backend)
    with Host(beside=node.host) as outside:
        node.host.connect(outside, address="198.51.100.1/24", other_address=f"{OUTSIDE}/24")
        first, second = node.host.container("c1"), node.host.container("c2")
        for each in (first, second):
            node.run("add", network, each)
        assert first.reaches(outside, OUTSIDE)
        whole = node.ruleset()
        assert "2 known, 0 repaired, 0 left alone" in node.repair()
        assert node.ruleset() == whole, "not a handle has changed"
        node.host.shell("nft flush ruleset")
        assert not first.reaches(outside, OUTSIDE, timeout=0.5)
        assert "2 known, 2 repaired, 0 left alone" in node.repair("net")
        for each in (first, second):
            node.run("check", network, each)
            assert each.reaches(outside, OUTSIDE)
            node.run("delete", network, each)
    assert "10.5.0" not in node.ruleset()


def test_only_what_is_missing_is_put_back(node: Node) -> None:
    network = node.network(ipMasqBackend="nftables", macspoofchk=True)
    first, second = node.host.container("c1"), node.host.container("c2")
    for each in (first, second):
        node.run("add", network, each)
    whole = node.ruleset().splitlines()
    node.host.shell("nft flush chain bridge nat PREROUTING")
    assert "2 known, 2 repaired" in node.repair()
    lost = [line for line in whole if line not in node.ruleset().splitlines()]
    assert lost
    assert all("cni-macspoofchk" in line or "ether saddr" in line or "drop" in line for line in lost)
    for each in (first, second):
        node.run("check", network, each)


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_a_dry_run_says_what_a_repair_would_do_and_does_nothing(node: Node, backend: str) -> None:
    document = json.loads(node.network(ipMasqBackend=backend, macspoofchk=True).source)
    document["plugins"].append({"type": "portmap", "backend": backend, "capabilities": {"portMappings": True}})
    document["plugins"].append({"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"})
    network = Network.parse(json.dumps(document).encode())
    runtime = Runtime([node.plugins], environ={"PATH": os.environ["PATH"]})
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    netns = node.host.container("c1").netns
    node.host.call(runtime.add, network, container_id="c1", netns=netns, capability_args=ports)
    assert "1 known, 0 to be repaired, 0 left alone" in node.repair("-n")
    node.host.shell("nft flush ruleset")
    empty, files = node.ruleset(), node.host.shell("find /run /var/lib/cni | sort")
    out = node.repair("--dry-run")
    assert node.ruleset() == empty
    assert node.host.shell("find /run /var/lib/cni | sort") == files
    assert "1 known, 1 to be repaired, 0 left alone" in out
    would = [line.removeprefix("would repair ") for line in out.splitlines() if line.startswith("would repair ")]
    assert [line.rpartition(" ")[2] for line in would] == ["bridge", "portmap", "firewall"]
    # What is done then is what was said, though the repair of one plugin may be what another asks for.
    done = {line.removeprefix("repaired ") for line in node.repair().splitlines() if line.startswith("repaired ")}
    assert done == {*would}


def test_each_attachment_that_cannot_be_helped_has_a_line_with_the_reason(node: Node, tmp_path: Path) -> None:
    node.host.shell("ip link add up0 type veth peer name up1; mkdir -p /var/lib/cni/results")
    network = node.network(ipMasqBackend="nftables")
    for name in ("forgotten", "unknown", "without", "bare", "blank"):
        node.run("add", network, node.host.container(name))

    def change(name: str, *, to: str = "", drop: str = "") -> None:
        """Have the runtime remember another list, or less."""
        path = f"/var/lib/cni/results/net-{name}-eth0"
        entry = json.loads(node.host.shell(f"cat {path}"))
        if to:
            config = json.loads(base64.b64decode(entry["config"]))
            config["plugins"] = [{"type": each} for each in to.split()]
            entry["config"] = base64.b64encode(json.dumps(config).encode()).decode()
        entry.pop(drop, None)
        (tmp_path / name).write_text(json.dumps(entry))
        node.host.shell(f"cp {tmp_path / name} {path}")

    change("unknown", to="cilium-cni tuning")
    change("without", to="macvlan tuning")
    change("bare", drop="config")
    change("blank", drop="result")
    node.host.shell("rm /var/lib/cni/results/net-forgotten-eth0; nft flush ruleset")
    out = node.repair()
    reasons = {line.split('"')[1]: line.split(": ", 1)[1] for line in out.splitlines() if line.startswith("left alone")}
    results = "/var/lib/cni/results/net"
    assert reasons == {
        "forgotten": "no cached result of it was found; --cache-dir names further places",
        "unknown": "its list has no plugin that puts rules back: tuning; cilium-cni, not registered with this Python",
        "without": "its list has no plugin that puts rules back: macvlan, tuning",
        "bare": f"{results}-bare-eth0 has no configuration",
        "blank": f"{results}-blank-eth0 has no result",
    }
    assert "attachments: 5 known, 0 repaired, 5 left alone" in out


def test_a_result_of_the_first_versions_is_enough(node: Node) -> None:
    """Their results name no interfaces, and have one address of each IP version."""
    document = json.loads(node.network(ipMasqBackend="nftables").source)
    network = Network.parse(json.dumps({**document, "cniVersion": "0.2.0"}).encode())
    node.run("add", network, node.host.container("c1"))
    node.host.shell("nft flush ruleset")
    assert "1 known, 1 repaired" in node.repair()
    assert "10.5.0.2" in node.ruleset()


def test_what_is_gone_or_changed_gets_no_rules(node: Node) -> None:
    """The first lives; of the others the namespace, the interface, and the address are gone."""
    network = node.network(ipMasqBackend="nftables")
    containers = [node.host.container(f"c{number}") for number in range(1, 5)]
    for each in containers:
        node.run("add", network, each)
    node.host.shell("nft flush ruleset; ip -n c3 link del eth0; ip -n c4 address flush dev eth0")
    containers[1].destroy()
    out = node.repair()
    assert "4 known, 1 repaired, 3 left alone" in out
    assert "eth0 in /run/netns/c4 does not have the address 10.5.0.5/24" in out
    assert [address in node.ruleset() for address in ("10.5.0.2", "10.5.0.3", "10.5.0.4", "10.5.0.5")] == [
        True, False, False, False
    ]  # fmt: skip


def test_what_is_deleted_meanwhile_keeps_no_rules(node: Node, tmp_path: Path) -> None:
    """DEL has taken the rules when repair comes, and takes the rest before it looks again."""
    network = node.network(ipMasqBackend="nftables")
    name = f"deleted-{os.getpid()}"  # no other test has a plugin at work for it
    container, other = node.host.container(name), node.host.container("c2")
    for each in (container, other):
        node.run("add", network, each)
    node.host.shell("nft flush ruleset")
    deletes = tmp_path / "deletes.py"
    deletes.write_text(
        "import os, sys\nfrom cnisdk._cli import cnisdk, repair\n"
        "def pause(seconds):\n"
        f"    os.unlink('/var/lib/cni/results/net-{name}-eth0')\n"
        f"    os.system('ip -n {name} link del eth0')\n"
        "repair.run.__kwdefaults__['pause'] = pause\n"
        "sys.exit(cnisdk.main(sys.argv[1:]))\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, str(deletes), "repair", "--inside", "--cni-path", node.plugins]
    assert f'took back container "{name}"' in node.host.run(argv, env=environ).stdout
    assert "10.5.0.2" not in node.ruleset()
    node.run("check", network, other)


STARTS_AGAIN = """
import json, os, subprocess, sys
from cnisdk._cli import cnisdk, repair
from cnisdk.runtime import Network, Runtime

path, plugins = sys.argv[1:3]
network = Network.parse(open(path, "rb").read())
runtime = Runtime([plugins], environ={"PATH": os.environ["PATH"]})
begun = []

def add():
    runtime.add(network, container_id="c1", netns="/run/netns/c1", ifname="eth0")

def go_on():
    if begun == ["held"]:
        begun.append("ended")
        open(f"{path}.go", "w").close()
        _, status = os.waitpid(child, 0)
        assert status == 0

def pause(seconds):
    global child
    if begun:
        go_on()
        return
    runtime.delete(network, container_id="c1", netns="/run/netns/c1", ifname="eth0")
    os.mkfifo(f"{path}.held")
    os.mkfifo(f"{path}.go")
    child = os.fork()
    if child == 0:
        add()
        os._exit(0)
    begun.append(open(f"{path}.held").read().strip())

if sys.argv[3:] == ["add"]:
    add()
    sys.exit()
repair.run.__kwdefaults__["pause"] = pause
status = cnisdk.main(sys.argv[3:])
assert begun
go_on()
sys.exit(status)
"""


def test_a_container_that_starts_again_meanwhile_keeps_its_rules(node: Node, tmp_path: Path) -> None:
    """Podman uses the container's id again. Nothing of a macvlan shows on the host before its ADD has ended."""
    node.host.shell("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up")
    container = node.host.container("c1")
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for each in ("macvlan", "firewall", "host-local"):
        assert cnisdk.main(["install", "--no-server", "--dest", str(plugins), each]) == 0
    held = plugins / "held"
    held.write_text(
        "#!/bin/sh\n"
        f"if [ $CNI_COMMAND = ADD ] && [ -e {tmp_path}/net.held ]; then\n"
        f"echo held >{tmp_path}/net.held; read end <{tmp_path}/net.go\nfi\n"
        "python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin).get(\"prevResult\", {})))'\n"
    )
    held.chmod(0o755)
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.5.0.0/24"}]]}
    listed: list[dict[str, Any]] = [
        {"type": "macvlan", "master": "up0", "ipam": ipam},
        {"type": "firewall", "backend": "nftables"},
    ]
    network = {"cniVersion": "0.4.0", "name": "net", "plugins": [*listed, {"type": "held"}]}
    (tmp_path / "net").write_text(json.dumps(network))
    script = tmp_path / "starts_again.py"
    script.write_text(STARTS_AGAIN)
    argv = [sys.executable, str(script), str(tmp_path / "net"), str(plugins)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    node.host.run([*argv, "add"], env=environ)
    node.host.shell("nft flush ruleset")
    done = node.host.run([*argv, "repair", "--inside", "--cni-path", str(plugins)], env=environ)
    assert "1 known, 1 repaired" in done.stdout
    network["plugins"] = listed
    runtime = Runtime([str(plugins)], environ={"PATH": os.environ["PATH"]})
    node.host.call(runtime.check, Network.parse(json.dumps(network).encode()), container_id="c1", netns=container.netns)


def test_a_plugin_that_fails_keeps_no_other_from_its_rules(node: Node, tmp_path: Path) -> None:
    """The published port is back, though bridge could not masquerade."""
    network = node.network(ipMasqBackend="nftables")
    document = json.loads(network.source)
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    document["plugins"].append({"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": True}})
    container = node.host.container("c1")
    runtime = Runtime([node.plugins], environ={"PATH": os.environ["PATH"]})
    node.host.call(
        runtime.add,
        Network.parse(json.dumps(document).encode()),
        container_id="c1",
        netns=container.netns,
        capability_args=ports,
    )
    node.host.shell("nft flush ruleset")
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys\nfrom cnisdk import IOFailureError\nfrom cnisdk._cli import cnisdk\n"
        "from cnisdk_plugins.bridge import Bridge\n"
        "def repair(self, request, *, dry_run):\n"
        "    raise IOFailureError('the kernel is out of memory')\n"
        "Bridge.repair = repair\n"
        "sys.exit(cnisdk.main(sys.argv[1:]))\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, str(script), "repair", "--inside", "--pause", "0", "--cni-path", node.plugins]
    done = node.host.run(argv, env=environ, check=False)
    assert done.returncode == 1
    assert "the kernel is out of memory" in done.stderr
    assert "rules of plugin portmap" in done.stdout
    assert "1 known, 1 repaired, 0 left alone, 1 failed" in done.stdout
    assert "8080" in node.ruleset()


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_newest_container_decides_about_a_bridge_again(node: Node, order: tuple[str, str]) -> None:
    """Its policy holds after a flush, though an older container on the bridge asks for another."""
    for container, policy in zip(order, ("same-bridge", "isolated"), strict=True):
        document = json.loads(node.network().source)
        document["plugins"].append({"type": "firewall", "backend": "nftables", "ingressPolicy": policy})
        node.run("add", Network.parse(json.dumps(document).encode()), node.host.container(container))
    isolated, whole = '"br0" . "br0"', node.host.shell("nft list set inet cni_firewall isolated")
    assert isolated in whole
    node.host.shell("nft flush ruleset")
    assert "2 known, 2 repaired" in node.repair()
    assert "2 known, 0 repaired" in node.repair()
    assert node.host.shell("nft list set inet cni_firewall isolated") == whole
    assert isolated not in node.host.shell("nft list set inet cni_firewall same_bridge")


def test_what_a_plugin_has_delegated_is_put_back(node: Node) -> None:
    """Flannel's daemon need not run by then."""
    lines = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false"
    node.host.shell(f"mkdir -p /run/flannel; echo '{lines}' >/run/flannel/subnet.env")
    source = {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "plugins": [{"type": "flannel", "delegate": {"ipMasqBackend": "nftables"}}],
    }
    network = Network.parse(json.dumps(source).encode())
    dead, alive = node.host.container("dead"), node.host.container("alive")
    for each in (dead, alive):
        node.run("add", network, each)
    assert "10.5.0.3" in node.ruleset()
    node.host.shell("nft flush ruleset; rm -r /run/flannel; ip netns del dead")
    out = node.repair()
    assert 'repaired container "alive" interface "eth0" on network "cbr0": rules of plugin bridge' in out
    assert "2 known, 1 repaired, 1 left alone" in out
    assert [each in node.ruleset() for each in ("10.5.0.2", "10.5.0.3")] == [False, True]
    node.run("check", network, alive)


def test_results_that_cannot_be_read_are_told(node: Node) -> None:
    """The others are repaired."""
    node.run("add", node.network(ipMasqBackend="nftables"), node.host.container("c1"))
    node.host.shell("nft flush ruleset; mkdir /var/lib/cni/broken; touch /var/lib/cni/broken/results")
    argv = [sys.executable, "-m", "cnisdk", "repair", "--inside", "--pause", "0", "--cni-path", node.plugins]
    done = node.host.run(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == 1
    assert "not repaired: /var/lib/cni/broken/results cannot be read: Not a directory" in done.stderr
    assert "1 known, 1 repaired, 0 left alone, 1 failed" in done.stdout


def test_the_unit_of_the_guide_starts_though_an_attachment_cannot_be_repaired() -> None:
    """Systemd ignores the exit status of a command after a `-`; else the unit would never wait for a reload."""
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "repair-rules.md"
    assert "\nExecStartPre=-/usr/local/bin/cnisdk repair\n" in guide.read_text()


def test_it_is_for_the_host(node: Node) -> None:
    argv = [sys.executable, "-m", "cnisdk", "repair"]
    done = node.host.run(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == 1
    assert "nothing was done" in done.stderr
