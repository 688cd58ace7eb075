"""containerd on our plugins alone: pods as a kubelet starts them, through CRI, and ``ctr run --cni``."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import pytest

from .conftest import Leaks
from .cri import Client, Pod, Port
from .image import NAME
from .node import NODE, Node

pytestmark = pytest.mark.runtimes
PROGRAMS = ("containerd", "ctr", "crun")

_CONFIG = """
version = 2
disabled_plugins = [
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs",
]
[grpc]
address = "{work}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/busybox:latest"
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{work}/crun"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
"""

# As containerd's own script for CRI writes it (script/setup/install-cni), with what clusters add.
_NETWORK = {
    "cniVersion": "1.0.0",
    "name": "containerd-net",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "promiscMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:4860:4860::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
}


class Containerd:
    """containerd on a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.socket = node.work / "containerd.sock"
        (node.work / "config.toml").write_text(_CONFIG.format(work=node.work))
        node.write("/etc/cni/net.d/10-containerd-net.conflist", json.dumps(_NETWORK))
        self._log = (node.work / "containerd.log").open("w")
        self._process: subprocess.Popen[bytes] | None = None
        self.cri = Client(str(self.socket))
        self.start()
        for namespace in ("default", "k8s.io"):
            self.ctr("-n", namespace, "image", "import", "--snapshotter", "native", "image.tar")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = self.node.enter("containerd", "-c", str(self.node.work / "config.toml"))
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        while True:
            assert self._process.poll() is None, (self.node.work / "containerd.log").read_text()[-2000:]
            with contextlib.suppress(self.cri.Error):
                self.cri.conditions()
                return
            time.sleep(0.1)  # it tells nobody that it is ready

    def kill(self) -> None:
        """Kill it, and nothing else."""
        assert self._process is not None
        self.node.shell("pkill -KILL -x containerd")
        self._process.wait()

    def close(self) -> None:
        """End it."""
        self.cri.close()
        self.kill()
        self._log.close()

    def ctr(self, *arguments: str) -> str:
        """Run ctr, and return what it printed."""
        return self.node.run("ctr", "-a", str(self.socket), *arguments).stdout

    def verify(self, identity: str) -> int:
        """See that the addresses that the runtime reports are those of the kernel; return the pod's first process."""
        listed = self.ctr("-n", "k8s.io", "task", "ls").splitlines()
        (pid,) = (int(each.split()[1]) for each in listed if each.startswith(identity))
        assert sorted(self.cri.addresses(identity)) == sorted(
            each.partition("/")[0] for each in self.node.addresses(pid, "eth0")
        )
        assert "UP" in self.node.ip("link", "show", "dev", "lo", pid=pid)[0]["flags"]
        return pid

    def release_the_dead(self) -> None:
        """End the pods, and let `cnisdk gc` release what a containerd that was killed never gave DEL for.

        The shims and namespaces of pods that it forgot are its own to clean up; a boot does.
        """
        for identity in self.cri.list():
            self.end(identity)
        self.node.shell("pkill -KILL containerd-shim || true")
        self.node.shell("for each in /run/netns/cni-*; do [ ! -e $each ] || { umount $each; rm $each; }; done")
        gc = [sys.executable, "-I", "-m", "cnisdk", "gc", "--inside", "--grace", "0", "--pause", "0.1"]
        self.node.run(*gc, "--cni-path", "/usr/lib/cni", str(_NETWORK["name"]))

    def end(self, identity: str) -> None:
        """Stop a pod, twice, and remove it, as kubelets do: three DEL."""
        self.cri.stop(identity)
        self.cri.stop(identity)
        self.cri.remove(identity)


@pytest.fixture(scope="module")
def containerd(node: Node) -> Iterator[Containerd]:
    """Run containerd, whose network was used once: what stays for later attachments is there."""
    pytest.importorskip("grpc")
    made = Containerd(node)
    made.end(made.cri.run(Pod("first", [Port(8080, 80), Port(5353, 53, "udp")])))
    yield made
    made.close()


@pytest.fixture(scope="module")
def unused(containerd: Containerd) -> Leaks:
    """Return what is on the node while no container is."""
    return Leaks(containerd.node)


@pytest.fixture(autouse=True)
def leaks(containerd: Containerd, unused: Leaks) -> Iterator[Leaks]:
    """See that each scenario leaves nothing."""
    yield unused
    for identity in containerd.cri.list():
        containerd.end(identity)
    unused.assert_none()


def test_a_pod_with_ports(containerd: Containerd) -> None:
    ready, message = containerd.cri.conditions()["NetworkReady"]
    assert ready, message
    identity = containerd.cri.run(Pod("web", [Port(8080, 80), Port(5353, 53, "udp")]))
    pid = containerd.verify(identity)
    assert containerd.node.reaches(pid, NODE, 8080, server=80)
    assert containerd.node.reaches(pid, NODE, 5353, server=53, protocol="udp")
    containerd.end(identity)


def test_bandwidth_annotations(containerd: Containerd) -> None:
    limits = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "20M"}
    pid = containerd.verify(containerd.cri.run(Pod("web", annotations=limits)))
    parent = containerd.node.ip("link", "show", "dev", "eth0", pid=pid)[0]["link_index"]
    (host,) = (each["ifname"] for each in containerd.node.ip("link", "show") if each["ifindex"] == parent)
    shaped = json.loads(containerd.node.shell(f"tc -j qdisc show dev {host}"))
    assert [each["options"]["rate"] for each in shaped if each["kind"] == "tbf"] == [10_000_000 // 8]


def test_thirty_pods_at_once(containerd: Containerd) -> None:
    pods = [Pod(f"pod{number}", [Port(9000 + number, 80)]) for number in range(30)]
    with ThreadPoolExecutor(30) as pool:
        identities = [*pool.map(containerd.cri.run, pods)]
        addresses = [containerd.cri.addresses(each) for each in identities]
        assert len({each for both in addresses for each in both}) == 60
        pid = containerd.verify(identities[17])
        assert containerd.node.reaches(pid, NODE, 9017, server=80)
        [*pool.map(containerd.end, identities)]


def test_containerd_is_killed_in_the_middle(containerd: Containerd) -> None:
    """Pods run on; those that were being started are known to the next containerd, which ends them, or are gone."""
    kept = containerd.cri.run(Pod("kept", [Port(8080, 80)]))
    with ThreadPoolExecutor(8) as pool:
        starting = [pool.submit(containerd.cri.run, Pod(f"pod{number}")) for number in range(8)]
        wait(starting, return_when=FIRST_COMPLETED)
        containerd.kill()
        assert any(each.exception() for each in starting)
    containerd.start()
    assert containerd.node.reaches(containerd.verify(kept), NODE, 8080, server=80)
    containerd.release_the_dead()


def test_a_namespace_that_is_gone(containerd: Containerd) -> None:
    identity = containerd.cri.run(Pod("web", [Port(8080, 80)]))
    pid = containerd.verify(identity)
    containerd.node.shell(f"kill -9 {pid}; umount /run/netns/cni-* && rm /run/netns/cni-*")
    containerd.end(identity)


def test_an_unclean_reboot(containerd: Containerd) -> None:
    """`fsck` releases the leases of the boot before; what containerd still knows it ends, and ports are free again."""
    node = containerd.node
    before = [containerd.cri.run(Pod(f"pod{number}", [Port(9000 + number, 80)])) for number in range(3)]
    containerd.kill()
    node.crash()
    fsck = [sys.executable, "-I", "-m", "cnisdk", "fsck", "--inside", str(_NETWORK["name"])]
    printed = node.run(*fsck).stdout
    assert printed.count("it is of an earlier boot: repaired") == 3 * 3, printed  # a result and two leases each
    assert node.run(*fsck).stdout.count("repaired") == 0
    containerd.start()
    identity = containerd.cri.run(Pod("web", [Port(9000, 80)]))
    for each in before:
        containerd.end(each)
    assert node.reaches(containerd.verify(identity), NODE, 9000, server=80)


def test_ctr_run(containerd: Containerd) -> None:
    """``ctr run --cni`` gives DEL no namespace: the container has ended."""
    run = ["run", "--rm", "--cni", "--runc-binary", str(containerd.node.oci_runtime), "--snapshotter", "native"]
    printed = containerd.ctr(*run, NAME, "one", "/bin/ip", "-o", "addr", "show", "dev", "eth0")
    assert "inet 10.88." in printed
