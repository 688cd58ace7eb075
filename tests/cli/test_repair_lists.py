"""``cnisdk repair`` on whole lists as runtimes write them: traffic, and the rules as they were before the flush."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from cnisdk.runtime import Network, Runtime
from cnisdk.testing import Container, Host

from ..modes import Plugins

pytestmark = [pytest.mark.kernel, pytest.mark.resident]

OUTSIDE = "198.51.100.2"
FLUSH_NFT = "nft flush ruleset"
FLUSH_IPTABLES = "for each in iptables ip6tables; do $each -F; $each -t nat -F; done"
# What a script of the administrator sets after the flush.
DROP = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"

# By a program or by netlink: a rule of iptables is listed with its protocol twice, or once.
LISTED_TWICE = re.compile(r"meta l4proto (tcp|udp) (?=.*\1 dport)")


def podman(backend: str, **keys: Any) -> dict[str, Any]:
    """Return a network as `podman network create -o isolate=true` writes it, with our plugins' choice of backend."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    masquerades = {"isGateway": True, "ipMasq": True, "hairpinMode": True, "ipMasqBackend": backend}
    return {
        "cniVersion": "0.4.0",
        "name": "podman1",
        "plugins": [
            {"type": "bridge", "bridge": "cni-podman1", **masquerades, "ipam": ipam, "capabilities": {"ips": True}},
            {"type": "portmap", "capabilities": {"portMappings": True}, "backend": backend},
            {"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"},
            {"type": "tuning"},
        ],
        **keys,
    }


def nerdctl(backend: str) -> dict[str, Any]:
    """Return a network as nerdctl writes it, with our plugins' choice of backend."""
    ipam = {
        "type": "host-local",
        "ranges": [
            [{"subnet": "10.4.0.0/24", "gateway": "10.4.0.1"}],
            [{"subnet": "fd00:4::/64", "gateway": "fd00:4::1"}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    masquerades = {"isGateway": True, "ipMasq": True, "hairpinMode": True, "ipMasqBackend": backend}
    return {
        "cniVersion": "1.0.0",
        "name": "bridge",
        "nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121",
        "nerdctlLabels": {"nerdctl/default-network": "true"},
        "plugins": [
            {"type": "bridge", "bridge": "nerdctl0", **masquerades, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}, "backend": backend},
            {"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"},
            {"type": "tuning"},
        ],
    }


class Node:
    """A host whose runtimes have a resident server, with an uplink to a neighbour that knows no way to containers."""

    def __init__(self, host: Host, outside: Host, plugins: Plugins) -> None:
        self.host, self.outside, self.directory = host, outside, str(plugins.directory)
        self.environ = {"PATH": os.environ["PATH"]}
        host.shell("mkdir -p /var/lib/cni")
        host.connect(outside, address="198.51.100.1/24", other_address=f"{OUTSIDE}/24")

    def add(self, conf: dict[str, Any], name: str, port: int = 0, cache_dir: str = "/var/lib/cni") -> Container:
        container = self.host.container(name)
        self.run("add", conf, container, port, cache_dir)
        return container

    def run(
        self, verb: str, conf: dict[str, Any], container: Container, port: int = 0, cache_dir: str = "/var/lib/cni"
    ) -> None:
        network = Network.parse(json.dumps(conf).encode())
        ports = [{"hostPort": port, "containerPort": 80, "protocol": protocol} for protocol in ("tcp", "udp")]
        self.host.call(
            getattr(Runtime([self.directory], cache_dir=cache_dir, environ=self.environ), verb),
            network,
            container_id=container.id,
            netns=container.netns,
            **({"capability_args": {"portMappings": ports}} if port else {}),
        )

    @property
    def repairs_with(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def options(self, *more: str) -> list[str]:
        return ["repair", "--inside", "--cni-path", self.directory, *(more or ("--pause", "0"))]

    def repair(self, *more: str) -> str:
        """Repair alone; fail where the command would wait for a lock that it has itself."""
        done = self.host.run([sys.executable, "-c", NEVER_WAITS, *self.options(*more)], env=self.repairs_with)
        return done.stdout + done.stderr

    def repair_with(self, source: str, *arguments: str, more: Sequence[str] = (), status: int = 0) -> str:
        """Repair in a program that begins with this source, and return what it printed."""
        program = f"import sys\nfrom cnisdk._cli import cnisdk, repair\narguments = sys.argv[1:{len(arguments) + 1}]\n"
        program += f"{source}\nsys.exit(cnisdk.main(sys.argv[{len(arguments) + 1}:]))"
        argv = [sys.executable, "-c", program, *arguments, *self.options(), *more]
        done = self.host.run(argv, env=self.repairs_with, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def start_repair(self, *more: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "cnisdk", *self.options(*more)]
        return self.host.popen(argv, env=self.repairs_with, stdout=subprocess.PIPE)

    def rules(self) -> Counter[str]:
        """Return chains, rules and elements, each with its place, however they are ordered."""
        found: Counter[str] = Counter()
        table = block = ""
        # Each table by itself: of those after the first of iptables, nft does not show all targets.
        each_table = "nft list tables | while read -r _ family name; do nft --stateless list table $family $name; done"
        for line in self.host.shell(each_table).splitlines():
            text = LISTED_TWICE.sub("", line.strip())
            if line.startswith("table"):
                table = text
            elif text.endswith("{"):
                block = text
                found[f"{table} {block}"] += 1
            elif text not in ("", "}"):
                for each in re.split(
                    r",\s*(?=\S+ (?:\. |comment )|\")", text.removeprefix("elements = {").rstrip("},")
                ):
                    found[f"{table} {block} {each.strip()}"] += 1
        return found


NEVER_WAITS = """
import sys
from types import SimpleNamespace
from cnisdk._cli import cnisdk
from cnisdk.linux import lock

def wait(seconds):
    raise AssertionError("it waits for a lock that no other process can have")

lock.time = SimpleNamespace(monotonic=lock.time.monotonic, sleep=wait)
sys.exit(cnisdk.main(sys.argv[1:]))
"""


@pytest.fixture
def node(new_host: Any, install: Any) -> Any:
    plugins: Plugins = install("resident")
    host, outside = new_host(), new_host()
    with plugins.on(host):
        yield Node(host, outside, plugins)


@pytest.mark.parametrize(
    ("backend", "flush"),
    [("iptables", FLUSH_NFT), ("nftables", FLUSH_NFT), ("iptables", FLUSH_IPTABLES)],
    ids=["iptables", "nftables", "iptables, flushed by iptables"],
)
def test_lists_of_podman_and_nerdctl_are_whole_again(node: Node, backend: str, flush: str) -> None:
    node.host.shell(DROP)
    first, second = (node.add(podman(backend), f"podman-{number}", 8080 + number) for number in (1, 2))
    third, fourth = (node.add(nerdctl(backend), f"nerdctl-{number}", 8090 + number) for number in (1, 2))

    def flows() -> dict[str, bool]:
        quickly = 0.3
        return {
            "out": first.reaches(node.outside, OUTSIDE, timeout=quickly),
            "out, of the other runtime": fourth.reaches(node.outside, OUTSIDE, protocol="udp", timeout=quickly),
            "in": node.outside.reaches(second, "198.51.100.1", port=80, published=8082, timeout=quickly),
            "in, of the other runtime": node.outside.reaches(
                third, "198.51.100.1", port=80, published=8091, protocol="udp", timeout=quickly
            ),
            "beside": first.reaches(second, timeout=quickly),
            "to another network": first.reaches(third, timeout=quickly),
        }

    before, whole = node.rules(), flows()
    assert whole == dict.fromkeys(whole, True) | {"to another network": False}
    node.host.shell(f"{flush}; {DROP}")
    assert not first.reaches(node.outside, OUTSIDE, timeout=0.3)
    assert not node.outside.reaches(second, "198.51.100.1", port=80, published=8082, timeout=0.3)
    assert "4 known, 4 repaired, 0 left alone" in node.repair()
    assert node.rules() == before
    assert flows() == whole
    assert "4 known, 0 repaired, 0 left alone" in node.repair()
    for conf, containers in ((podman(backend), (first, second)), (nerdctl(backend), (third, fourth))):
        for each in containers:
            node.run("check", conf, each)
            node.run("delete", conf, each)
    left = [each for each in node.rules() if re.search(r"10\.(89|4)\.|fd00:4::|chain CNI-(DN-)?[0-9a-f]{16}", each)]
    assert not left


@pytest.mark.parametrize(("backend", "version"), [("iptables", 4), ("nftables", 6)])
def test_a_client_that_went_on_sending_is_masqueraded_again(node: Node, backend: str, version: int) -> None:
    """The kernel decides about NAT at the first packet of a flow, and a flow lasts as long as its client sends."""
    container = node.add(nerdctl(backend), "sender")
    flush, family, there, before, after = {
        4: ("iptables -t nat -F", socket.AF_INET, OUTSIDE, "10.4.0.2", "198.51.100.1"),
        6: (
            "nft flush chain inet cni_plugins_masquerade masq_checks",
            *(socket.AF_INET6, "2001:db8:9::2", "fd00:4::2", "2001:db8:9::1"),
        ),
    }[version]
    for each, address in ((node.host, "2001:db8:9::1"), (node.outside, "2001:db8:9::2")):
        each.shell(f"ip address add {address}/64 dev uplink nodad")
    # A firewall that follows connections.
    node.host.shell("nft 'add table inet other; add chain inet other c { type filter hook forward priority 0; }'")
    node.host.shell("nft add rule inet other c ct state invalid drop")
    with (
        node.outside.open_socket(family, socket.SOCK_DGRAM, bind=(there, 0)) as server,
        container.open_socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.settimeout(3)
        client.connect(server.getsockname())

        def source() -> str:
            client.send(b"?")
            return str(server.recvfrom(1)[1][0])

        node.host.shell(flush)
        assert source() == before
        assert "1 repaired" in node.repair()
        assert source() == after


# --- beside others ----------------------------------------------------------------------------------------------------


def test_two_repairs_at_the_same_moment_make_each_rule_once(node: Node) -> None:
    """Also where one container's rules let through what the backend of another accepts, and are made after them."""
    for number, backend in enumerate(("iptables", "nftables")):
        node.add(podman(backend, name=backend), f"podman-{backend}", 8080 + number)
    before = node.rules()
    node.host.shell(FLUSH_NFT)
    assert "2 repaired" in node.repair()
    assert node.rules() == before
    for _ in range(2):
        node.host.shell(FLUSH_NFT)
        for each in [node.start_repair(), node.start_repair()]:
            assert "2 known" in each.communicate(timeout=60)[0]
            assert each.returncode == 0
        assert node.rules() == before


CHURN = """
import json, sys
from cnisdk.errors import CNIError
from cnisdk.runtime import Network, Runtime

directory, conf, prefix, netns, port, number = sys.argv[1:]
network = Network.parse(conf.encode())
runtime = Runtime([directory], environ={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
for each in range(int(number)):
    about = {"container_id": f"{prefix}{each}", "netns": netns}
    ports = [{"hostPort": int(port) + each, "containerPort": 80, "protocol": "tcp"}]
    try:
        runtime.add(network, **about, capability_args={"portMappings": ports})
    except CNIError as exc:
        print("ADD:", exc, flush=True)  # a flush may come in the middle of it
    runtime.delete(network, **about)
"""


@pytest.mark.parametrize("backend", [pytest.param("iptables", marks=pytest.mark.slow), "nftables"])
def test_beside_live_adds_and_dels(node: Node, backend: str) -> None:
    """Nothing of a deleted attachment comes back, and nothing of a live one is lost."""
    live = [node.add(conf(backend), conf.__name__, port) for port, conf in ((8080, podman), (8090, nerdctl))]
    before = node.rules()
    script = [sys.executable, "-c", CHURN, node.directory]
    churns = []
    for conf, port in ((podman, "9000"), (nerdctl, "9100")):
        netns = node.host.add_netns(f"churn-{conf.__name__}")
        argv = [*script, json.dumps(conf(backend)), f"churn-{conf.__name__}-", netns, port, "8"]
        churns.append(node.host.popen(argv, env=node.repairs_with, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    while any(each.poll() is None for each in churns):
        node.host.shell(FLUSH_NFT)
        print(node.start_repair("--pause", "0.1").communicate(timeout=60)[0])
    for each in churns:
        print(each.communicate(timeout=60)[0])
        assert each.returncode == 0
    assert "churn" not in node.host.shell("nft list ruleset")
    print(node.repair())
    assert node.rules() == before
    for conf, container in zip((podman, nerdctl), live, strict=True):
        node.run("check", conf(backend), container)


HOLDS = """
import fcntl, os, signal, socket
sock = socket.socket(socket.AF_UNIX)
sock.bind(b"\\0odd \\xff\\xfe")
open("/proc/self/comm", "wb").write(b"odd\\xff) (x")
fd = os.open("/proc/self/ns/net", os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
print(flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""

LASTS_FOR_EVER = """
import signal
from cnisdk._cli import timelimit
from cnisdk_plugins.portmap import Portmap
timelimit._FIRST = 0.01
def wait(self, request, *, dry_run):
    while True:
        try:
            signal.pause()
        except Exception:  # as plugins may have it
            pass
Portmap.repair = wait
"""


def test_a_plugin_that_never_ends_is_told_and_stopped_and_keeps_no_other_from_its_rules(node: Node) -> None:
    node.add(podman("nftables"), "first", 8080)
    node.add(podman("nftables"), "second", 8081)
    node.host.shell(FLUSH_NFT)
    printed = node.repair_with(LASTS_FOR_EVER, more=("--timeout", "1"), status=1)
    for name in ("first", "second"):
        about = f'container "{name}" interface "eth0" on network "podman1"'
        assert f"cnisdk: {about}: plugin portmap has been at work for 0 seconds" in printed
        assert f"{about}: plugin portmap: it was stopped after 1 seconds" in printed
        assert f"repaired {about}: rules of plugin firewall" in printed
    assert "2 known, 2 repaired, 0 left alone, 2 failed" in printed


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_a_stopped_process_that_has_a_lock_is_named(node: Node, backend: str) -> None:
    node.add(podman(backend), "live", 8080)
    before = node.rules()
    node.host.shell(FLUSH_NFT)
    with node.host.popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            printed = node.repair_with("from cnisdk._cli import timelimit\ntimelimit._FIRST = 1.0")
        finally:
            holder.kill()
    assert re.search(rf"has been at work for \d seconds.*; it may wait for a lock of process {holder.pid} \(", printed)
    assert ", stopped)" in printed
    assert "1 known, 1 repaired" in printed
    assert node.rules() == before


RESULT = "/var/lib/cni/results/podman1-"

LASTS = """
import os, signal
looks = []
def pause(seconds):
    looks.append(seconds)
    if len(looks) == 2:  # the last plugins have run
        os.system(f"ip -n {arguments[0]} link del eth0")
        os.kill(int(arguments[1]), signal.SIGKILL)
        os.system(f"while grep -q . /proc/{arguments[1]}/environ 2>/dev/null; do :; done")  # a zombie has none
    if len(looks) == 3:
        os.unlink(arguments[2])
repair.run.__kwdefaults__["pause"] = pause
"""


def test_a_del_that_lasts_is_waited_for(node: Node) -> None:
    """At the first look, a plugin is at work; at the second, the runtime has not forgotten the attachment yet."""
    name = f"lasting-{os.getpid()}"  # of no other test that runs now
    node.add(podman("nftables"), name, 8080)
    node.host.shell(FLUSH_NFT)
    environ = {**os.environ, "CNI_CONTAINERID": name}
    plugin = node.host.popen(["sleep", "infinity"], env=environ)
    try:
        printed = node.repair_with(LASTS, name, str(plugin.pid), f"{RESULT}{name}-eth0")
    finally:
        plugin.kill()
        plugin.wait()
    assert f'took back container "{name}"' in printed
    assert name not in node.host.shell("nft list ruleset")


DELETES_EARLY = """
import os
from cnisdk_plugins.bridge import Bridge
put_back = Bridge.repair
def come_late(self, request, **how):
    os.unlink(arguments[1])
    os.system(f"ip -n {arguments[0]} link del eth0")
    return put_back(self, request, **how)
Bridge.repair = come_late
"""


def test_an_interface_that_goes_while_its_rules_are_put_back_is_no_failure(node: Node) -> None:
    node.add(podman("nftables"), "early")
    node.host.shell(FLUSH_NFT)
    printed = node.repair_with(DELETES_EARLY, "early", f"{RESULT}early-eth0")
    assert "1 known, 0 repaired, 1 left alone" in printed
    assert "early" not in node.host.shell("nft list ruleset")


def test_the_dead_are_not_waited_for(node: Node) -> None:
    node.add(podman("nftables"), "dead").destroy()
    node.host.shell(FLUSH_NFT)
    assert "1 known, 0 repaired, 1 left alone" in node.repair_with('repair.run.__kwdefaults__["pause"] = None')


ADDS_AGAIN = """
import os, subprocess
from cnisdk.linux import veth
directory, conf, name, path = arguments
source = (
    "import sys; from cnisdk.runtime import Network, Runtime; directory, conf, name = sys.argv[1:];"
    "Runtime([directory]).add(Network.parse(conf.encode()), container_id=name, netns=f'/run/netns/{name}')"
)
def pause(seconds):
    if os.path.exists(path):
        os.unlink(path)
        os.system(f"ip -n {name} link del eth0")
repair.run.__kwdefaults__["pause"] = pause
from cnisdk._cli import takeback
respond = takeback.respond
started = []
def is_waiting(pid):
    directory = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{directory}/{fd}").startswith("/run/cni/releasing/") for fd in os.listdir(directory))
    except FileNotFoundError:
        return False
def respond_late(*request):
    if not started:
        started.append(subprocess.Popen([sys.executable, "-c", source, directory, conf, name]))
        while started[0].poll() is None and not is_waiting(started[0].pid):
            pass
    return respond(*request)
takeback.respond = respond_late
main = cnisdk.main
cnisdk.main = lambda argv: main(argv) or started[0].wait()
"""


def test_what_is_added_again_meanwhile_keeps_its_interface(node: Node) -> None:
    """A DEL ends and an ADD of the same container begins, when the command is about to take back what it repaired."""
    name, conf = f"again-{os.getpid()}", podman("nftables")
    container = node.add(conf, name)
    node.host.shell(FLUSH_NFT)
    assert "took back" in node.repair_with(ADDS_AGAIN, node.directory, json.dumps(conf), name, f"{RESULT}{name}-eth0")
    node.run("check", conf, container)


# --- what runtimes remember -------------------------------------------------------------------------------------------


def test_results_in_the_places_of_several_runtimes(node: Node) -> None:
    """One of them is of no use any more, and newer than the runtime's own."""
    node.add(podman("iptables", name="other"), "elsewhere", 8081, cache_dir="/run/runtime")
    node.add(podman("nftables"), "in-the-default", 8080)
    node.add(nerdctl("nftables"), "of-multus", 8090, cache_dir="/var/lib/cni/multus")
    before = node.rules()
    path = f"{RESULT}in-the-default-eth0"
    stale = json.loads(node.host.shell(f"cat {path}"))
    stale["result"]["ips"][0]["address"] = "10.89.0.99/24"
    stale["capabilityArgs"]["portMappings"][0]["hostPort"] = 1234
    node.host.shell(
        "mkdir -p /var/lib/cni/old/results /var/lib/cni/copy/results; cp -p $0 /var/lib/cni/copy/results;"
        f"echo '{json.dumps(stale)}' >/var/lib/cni/old/results/podman1-in-the-default-eth0".replace("$0", path)
    )
    node.host.shell(FLUSH_NFT)
    printed = node.repair("--pause", "0", "--cache-dir", "/run/runtime")
    assert "3 known, 3 repaired, 0 left alone" in printed
    assert node.rules() == before
    node.host.shell(f"{FLUSH_NFT}; rm {path}")  # the copy remembers it
    assert "took back" not in node.repair("--pause", "0", "--cache-dir", "/run/runtime")
    assert node.rules() == before


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_the_dead_get_nothing_though_the_living_have_their_address(node: Node, backend: str) -> None:
    """Of one container the namespace is gone, of another a process of the host has the number by now."""
    conf = podman(backend)
    dead, reused = node.add(conf, "dead", 8081), node.add(conf, "reused", 8082)
    node.host.shell("rm -r /var/lib/cni/networks/podman1")
    dead.destroy()
    path = f"{RESULT}reused-eth0"
    node.host.shell(f"sed -i 's,/run/netns/reused,/proc/{node.host.pid}/ns/net,g' {path}")
    reused.shell("ip link del eth0")
    heir = node.add(conf, "heir", 8083)
    assert heir.addresses() == ["10.89.0.2/24"]
    node.host.shell(FLUSH_NFT)
    printed = node.repair()
    assert "3 known, 1 repaired, 2 left alone" in printed
    ruleset = node.host.shell("nft list ruleset")
    assert [each in ruleset for each in ("8081", "8082", "8083", "10.89.0.3")] == [False, False, True, False]
    node.run("check", conf, heir)
    assert node.outside.reaches(heir, "198.51.100.1", port=80, published=8083)
    assert not node.outside.reaches(heir, "198.51.100.1", port=80, published=8081, timeout=0.3)


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_a_disk_that_cannot_be_written_to_keeps_nothing_from_its_rules(node: Node, backend: str) -> None:
    for number in (1, 2):
        node.add(podman(backend), f"podman-{number}", 8080 + number)
    before = node.rules()
    node.host.shell(FLUSH_NFT)
    node.host.shell("for each in /var/lib /run; do mount -o remount,ro $each; done")
    argv = ["sh", "-c", 'exec "$@" >/dev/full', "sh", sys.executable, "-m", "cnisdk", *node.options()]
    done = node.host.run(argv, env=node.repairs_with, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "cnisdk repair: cannot print what was done: ENOSPC: No space left on device (code 5)\n",
    )
    assert node.rules() == before
