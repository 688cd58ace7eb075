"""``cnisdk gc`` and containers that live: wherever their runtime remembers them, or only the kernel does."""

from __future__ import annotations

import argparse
import binascii
import fcntl
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnisdk import _releasing
from cnisdk._cli import gc
from cnisdk._cli.attachments import HostState, JudgedAttachment, JudgedNetwork
from cnisdk.errors import CNIError, IOFailureError
from cnisdk.ipam import FileStore, Lease, Owner
from cnisdk.linux import netns, veth
from cnisdk.runtime import Cache, CachedAttachment, Network, Runtime
from cnisdk.runtime.caches import Memory
from cnisdk.runtime.hostview import Survey
from cnisdk.runtime.liveness import Liveness, LivenessState, Traces
from cnisdk.spec.addresses import parse_address
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host
from cnisdk.testing.launchers import write_launchers
from cnisdk.testing.stores import everything, reserve

from ..modes import Plugins

pytestmark = pytest.mark.kernel

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
SUBNET = "10.111.0.0/24"
HOUR = 3600.0
WAIT = "echo $$; read end"


class Cluster:
    """A host with a network, and runtimes that remember its attachments each in its own way."""

    def __init__(self, host: Host, root: Path) -> None:
        self.host, self.root = host, root
        self.elsewhere = root / "runtime"
        self.elsewhere.mkdir()
        ipam = {"type": "host-local", "ranges": [[{"subnet": SUBNET}]]}
        self.conf: dict[str, Any] = {
            "cniVersion": "1.0.0",
            "name": "net",
            "plugins": [{"type": "bridge", "bridge": "cni0", "ipam": ipam}],
        }
        (root / "conf").mkdir()
        (root / "conf" / "net.conflist").write_text(json.dumps(self.conf))
        (root / "bin").mkdir()
        self.plugin = root / "bin" / "bridge"
        self.plugin.write_text("#!/bin/sh\nexit 0\n")
        self.plugin.chmod(0o755)
        self.store = FileStore("", "net")
        self.warned = ""
        # What made the first look wrong: the default's directory exists, and knows nothing.
        host.call(os.makedirs, "/var/lib/cni/results")

    def lease(self, container: str, address: str, age: float = HOUR) -> None:
        def work() -> None:
            reserve(self.store, Lease(parse_address(address), Owner(container, "eth0")))
            os.utime(f"{self.store.path}/{address}", (time.time() - age,) * 2)

        self.host.call(work)

    def remember(
        self,
        container: str,
        address: str,
        cache_dir: str,
        path: str,
        *,
        netns_key: bool = True,
        age: float = HOUR,
        config: str = "",
    ) -> None:
        result: dict[str, Any] = {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": path}],
            "ips": [{"interface": 1, "address": f"{address}/24"}],
        }
        attachment = Attachment("net", container, "eth0")

        def work() -> None:
            cache = Cache(cache_dir)
            netns = path if netns_key else ""
            cache.store(CachedAttachment(attachment, netns=netns, result=result, config=config.encode()))
            os.utime(cache.path(attachment), (time.time() - age,) * 2)

        self.host.call(work)

    def gc(self, *more: str, pause: str = "0") -> str:
        options = ["--conf-dir", f"{self.root}/conf", "--cache-dir", str(self.elsewhere), "--pause", pause]
        argv = ["-m", "cnisdk", "gc", "net", "--inside", "--cni-path", f"{self.root}/bin", *options, *more]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = self.host.run([sys.executable, *argv], env=environ)
        self.warned = done.stderr
        return done.stdout

    def held(self) -> dict[str, str]:
        """Return the holder of each address."""
        return {str(address): owner.container_id for address, owner in self.host.call(everything, self.store).items()}


@pytest.fixture
def cluster(host: Host, tmp_path: Path) -> Cluster:
    return Cluster(host, tmp_path)


LAYOUTS: dict[str, Callable[[Cluster, str], str]] = {
    "libcni": lambda cluster, container: "/var/lib/cni",
    "multus": lambda cluster, container: "/var/lib/cni/multus",
    "firecracker": lambda cluster, container: f"/var/lib/cni/{container}",
    "named by an option": lambda cluster, container: str(cluster.elsewhere),
    "libcni before 1.2": lambda cluster, container: "/var/lib/cni",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gc_keeps_what_a_runtime_remembers(cluster: Cluster, layout: str) -> None:
    """The kernel shows nothing of these but the namespace's path: no link, no address, no process."""
    cluster.host.add_netns("alive")
    for number, container in enumerate(("alive", "dead"), start=2):
        cluster.lease(container, f"10.111.0.{number}")
        place = LAYOUTS[layout](cluster, container)
        path = f"/run/netns/{container}"
        cluster.remember(container, f"10.111.0.{number}", place, path, netns_key="before" not in layout)
    out = cluster.gc()
    assert cluster.held() == {"10.111.0.2": "alive"}
    assert out.count("container dead") == out.count("its namespace /run/netns/dead is gone") == 2
    assert "container alive" not in out
    cluster.host.del_netns("alive")
    cluster.gc()
    assert cluster.held() == {}


def test_gc_of_a_network_without_a_file_takes_its_configuration_from_the_cache(cluster: Cluster) -> None:
    """Podman's default network has none."""
    cluster.lease("gone", "10.111.0.2")
    cluster.remember("gone", "10.111.0.2", "/var/lib/cni", "/run/netns/gone")
    (cluster.root / "conf" / "net.conflist").unlink()
    with pytest.raises(AssertionError, match="no net configurations found"):  # no configuration in the cache
        cluster.gc()
    cluster.remember("gone", "10.111.0.2", "/var/lib/cni", "/run/netns/gone", config=json.dumps(cluster.conf))
    assert "drop" in cluster.gc()
    assert cluster.held() == {}


def test_gc_keeps_what_lives_at_the_path_of_a_process(cluster: Cluster) -> None:
    """The number of a process that ended belongs to another one now, which is in a namespace too."""
    pipe = subprocess.PIPE
    argv = ["unshare", "--net", "sh", "-c", f"ip link add eth0 type bridge; {WAIT}"]
    with (
        cluster.host.popen(argv, stdin=pipe, stdout=pipe) as mine,
        cluster.host.popen(["unshare", "--net", "sh", "-c", WAIT], stdin=pipe, stdout=pipe) as other,
    ):
        for number, (container, running) in enumerate({"alive": mine, "dead": other}.items(), start=2):
            assert running.stdout is not None
            path = f"/proc/{int(running.stdout.readline())}/ns/net"
            cluster.lease(container, f"10.111.0.{number}")
            cluster.remember(container, f"10.111.0.{number}", "/var/lib/cni", path)
        out = cluster.gc()
        assert cluster.held() == {"10.111.0.2": "alive"}
        assert out.count("is another one now") == 2
        for running in (mine, other):
            running.communicate()


@pytest.mark.parametrize("shows", ["by its result", "by its plugin", "by its lease"])
def test_what_is_attached_again_while_gc_works_stays(cluster: Cluster, shows: str) -> None:
    """Dropping many takes a while, in which a runtime adds one of them again, under the same names."""
    for number, container in enumerate(("gc1", "gc2"), start=2):
        cluster.lease(container, f"10.111.0.{number}")
        cluster.remember(container, f"10.111.0.{number}", "/var/lib/cni", f"/run/netns/{container}")
    results, deleted = "/var/lib/cni/results", cluster.root / "deleted"
    again = {
        "by its result": f"cp {results}/net-gc2-eth0 {results}/.new; mv {results}/.new {results}/net-gc2-eth0",
        "by its plugin": f"CNI_CONTAINERID=gc2 tail -f /dev/null > /dev/null 2>&1 & echo $! > {cluster.root}/pid",
        "by its lease": f"rm {cluster.store.path}/10.111.0.3; printf 'gc2\\r\\neth0' > {cluster.store.path}/10.111.0.3",
    }
    cluster.plugin.write_text(f"#!/bin/sh\necho $CNI_CONTAINERID >> {deleted}\n{again[shows]}\n")
    out = cluster.gc("--grace", "0", pause="1")
    if shows == "by its plugin":
        os.kill(int((cluster.root / "pid").read_text()), signal.SIGKILL)
    assert deleted.read_text() == "gc1\n"
    assert "gc2" in cluster.held().values()
    assert out.count("keep ") >= 1


ADD_IN_THE_BACKGROUND = """
[ "$CNI_COMMAND" = DEL ] || exit 0
for fd in $(ls /proc/$$/fd); do # 255 is this script
    [ $fd -lt 3 ] || [ $fd = 255 ] || eval "exec $fd>&-"
done
CNI_COMMAND=ADD CNI_NETNS=/run/netns/gc1 {host_local} < {conf} > {answer} 2>&1 &
# Until it waits, or has ended: then it would have won the race, and the DEL below would release its lease.
while kill -0 $! 2>/dev/null && ! ls -l /proc/$!/fd 2>/dev/null | grep -q /run/cni/releasing/; do :; done
{host_local} < {conf}
"""


def test_an_add_that_begins_while_gc_deletes_keeps_its_address(cluster: Cluster) -> None:
    """It begins after gc has looked for the last time, and before the plugins' DEL has ended."""
    (cluster.root / "real").mkdir()
    write_launchers(cluster.root / "real")
    conf = {**cluster.conf["plugins"][0], "cniVersion": "1.0.0", "name": "net"}
    (cluster.root / "net.conf").write_text(json.dumps(conf))
    places = {"conf": cluster.root / "net.conf", "answer": cluster.root / "answer"}
    script = ADD_IN_THE_BACKGROUND.format(host_local=cluster.root / "real" / "host-local", **places)
    cluster.plugin.write_text(f"#!/bin/bash\n{script}")
    cluster.lease("gc1", "10.111.0.2")
    out = cluster.gc("--grace", "0")
    assert "drop 10.111.0.2" in out
    cluster.host.shell(f"while [ ! -s {places['answer']} ]; do :; done")
    (given,) = json.loads(places["answer"].read_text())["ips"]
    assert cluster.held() == {given["address"].partition("/")[0]: "gc1"}
    assert not cluster.host.call(os.path.exists, "/run/cni/releasing")


def test_gc_keeps_what_another_gc_releases(cluster: Cluster) -> None:
    cluster.lease("gc1", "10.111.0.2")
    script = f"exec 3<>{_releasing.DIRECTORY}/$0; flock -x 3; echo; read end"
    cluster.host.call(os.makedirs, _releasing.DIRECTORY)
    with cluster.host.popen(["sh", "-c", script, _name("gc1")], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert "another process is about to attach or release it" in cluster.gc("--grace", "0")
        assert cluster.held() == {"10.111.0.2": "gc1"}
        other.communicate()
    cluster.gc("--grace", "0")
    assert cluster.held() == {}


def test_a_gc_that_was_killed_stops_no_add(cluster: Cluster) -> None:
    def leave_a_file() -> None:
        child = os.fork()
        if not child:
            with _releasing.releasing(("net", "gc1", "eth0")):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert os.listdir(_releasing.DIRECTORY) == [_name("gc1")]
        _releasing.wait(("net", "gc1", "eth0"))
        with _releasing.releasing(("net", "gc1", "eth0")) as held:
            assert held
        assert not os.path.exists(_releasing.DIRECTORY)

    cluster.host.call(leave_a_file)


def test_gc_sweeps_what_one_that_was_killed_has_left(cluster: Cluster) -> None:
    cluster.host.call(os.makedirs, _releasing.DIRECTORY)
    cluster.host.shell(f"cd {_releasing.DIRECTORY}; touch {_name('left')} {_name('held')}")
    with cluster.host.popen(
        ["flock", f"{_releasing.DIRECTORY}/{_name('held')}", "sh", "-c", "echo; read end"], stdin=-1, stdout=-1
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        cluster.gc("-n")
        assert len(cluster.host.call(os.listdir, _releasing.DIRECTORY)) == 2
        cluster.gc()
        assert cluster.host.call(os.listdir, _releasing.DIRECTORY) == [_name("held")]
        other.communicate()
    cluster.gc()
    assert not cluster.host.call(os.path.exists, _releasing.DIRECTORY)


def test_the_del_of_a_gc_that_was_killed_stops_an_add(cluster: Cluster) -> None:
    def kill_a_gc() -> None:
        attachment = ("net", "gc1", "eth0")
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            with _releasing.releasing(attachment):
                os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)])
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        with open(f"{_releasing.DIRECTORY}/{_name('gc1')}", "rb") as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.close(writing)  # cat, which stands for the DEL, ends
            _releasing.wait(attachment)

    cluster.host.call(kill_a_gc)


def _name(container: str) -> str:
    return f"{binascii.crc32(f'net{chr(0)}{container}{chr(0)}eth0'.encode()):08x}"


def test_a_cached_result_of_a_later_add_survives_the_del_of_the_dead(cluster: Cluster) -> None:
    """libcni knows no lock: it attaches while the plugins' DEL is running."""
    cluster.remember("gc1", "10.111.0.2", "/var/lib/cni", "/run/netns/gc1")
    path = "/var/lib/cni/results/net-gc1-eth0"
    cluster.plugin.write_text(f"#!/bin/sh\ncp {path} {path}.new; mv {path}.new {path}\n")
    cluster.gc("--grace", "0")
    assert cluster.host.call(os.path.exists, path)


def test_del_of_the_dead_does_not_get_the_namespace_of_another_process(cluster: Cluster) -> None:
    cluster.plugin.write_text('#!/bin/sh\necho "$CNI_NETNS" >> "$0.netns"\n')
    with cluster.host.popen(["unshare", "--net", "sh", "-c", WAIT], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        path = f"/proc/{int(other.stdout.readline())}/ns/net"
        cluster.remember("dead", "10.111.0.2", "/var/lib/cni", path)
        cluster.gc()
        other.communicate()
    assert Path(f"{cluster.plugin}.netns").read_text() == "/proc/0/ns/net\n"


def test_del_of_the_dead_reaches_no_container_that_has_its_path_now(cluster: Cluster) -> None:
    """Paths such as /run/netns/blue are used again. The reference's plugins delete the interface they find there."""
    cluster.plugin.write_text(
        "#!/bin/sh\n"
        "ip netns add blue; ip -n blue link add eth0 type bridge\n"  # another container begins, after gc's last look
        'nsenter --net="$CNI_NETNS" ip link del eth0 || :\n'  # as the reference does
    )
    cluster.remember("dead", "10.111.0.2", "/var/lib/cni", "/run/netns/blue")
    assert "drop cached result" in cluster.gc()
    assert cluster.host.run(["ip", "-n", "blue", "-br", "link", "show", "eth0"]).stdout.startswith("eth0")


SAME_LEASE = """#!/bin/sh
echo $CNI_CONTAINERID >> {deleted}
[ $CNI_CONTAINERID = gc1 ] || exit 0
ip netns list | grep -q . || ip netns add again
mkdir -p {place}
cp {results}/net-gc0-eth0 {place}/.new
sed -i s/gc0/gc2/ {place}/.new
mv {place}/.new {place}/net-gc2-eth0
"""


@pytest.mark.parametrize("place", ["/var/lib/cni/results", "/var/lib/cni/multus/results"])
def test_a_container_that_comes_back_with_its_old_lease_stays(cluster: Cluster, place: str) -> None:
    """With onDuplicate: return, or a DHCP lease. No runtime remembered it before."""
    cluster.host.add_netns("living")
    cluster.remember("gc0", "10.111.0.9", "/var/lib/cni", "/run/netns/living")
    for number, container in enumerate(("gc1", "gc2"), start=2):
        cluster.lease(container, f"10.111.0.{number}")
    deleted = cluster.root / "deleted"
    cluster.plugin.write_text(SAME_LEASE.format(deleted=deleted, place=place, results="/var/lib/cni/results"))
    out = cluster.gc("--grace", "0", pause="1")
    assert deleted.read_text() == "gc1\n"
    assert cluster.held() == {"10.111.0.3": "gc2"}
    assert "keep container gc2 interface eth0: a runtime has attached it again" in out


@pytest.mark.parametrize("when", ["before gc", "while gc works"])
def test_the_next_container_with_an_address_of_the_dead_keeps_its_rules(cluster: Cluster, when: str) -> None:
    """The reference's firewall finds them by the address in the result that DEL gets."""
    cluster.remember("gc2", "10.111.0.3", "/var/lib/cni", "/run/netns/gc2")  # its lease was released already
    deleted, next_one = cluster.root / "deleted", f"{cluster.store.path}/10.111.0.3"
    if when == "before gc":
        cluster.remember("next", "10.111.0.3", "/var/lib/cni", cluster.host.add_netns("next"))
        cluster.lease("next", "10.111.0.3")
    else:
        cluster.lease("gc1", "10.111.0.2")
    script = f"[ $CNI_CONTAINERID = gc2 ] || printf 'next\\r\\neth0' > {next_one}"
    cluster.plugin.write_text(f"#!/bin/sh\necho $CNI_CONTAINERID >> {deleted}\n{script}\n")
    out = cluster.gc(pause="1")
    assert "its address 10.111.0.3 is leased to container next interface eth0 now" in out
    assert not deleted.exists() if when == "before gc" else deleted.read_text() == "gc1\n"


def test_what_its_runtime_has_released_meanwhile_gets_no_second_del(cluster: Cluster) -> None:
    """A runtime that restarts a container runs DEL, and then ADD: between them gc's DEL would meet the ADD."""
    for number, container in enumerate(("gc1", "gc2"), start=2):
        cluster.lease(container, f"10.111.0.{number}")
        cluster.remember(container, f"10.111.0.{number}", "/var/lib/cni", f"/run/netns/{container}")
    deleted = cluster.root / "deleted"
    release = f"rm -f {cluster.store.path}/10.111.0.3 /var/lib/cni/results/net-gc2-eth0"
    cluster.plugin.write_text(f"#!/bin/sh\necho $CNI_CONTAINERID >> {deleted}\n{release}\n")
    out = cluster.gc("--grace", "0", pause="1")
    assert deleted.read_text() == "gc1\n"
    assert "keep container gc2 interface eth0: it has been released meanwhile" in out
    deleted.unlink()
    assert cluster.held() == {}
    for number, container in enumerate(("gc1", "gc2"), start=2):
        cluster.lease(container, f"10.111.0.{number}")
    cluster.gc("--grace", "0", pause="0")  # which looks at all anew before each
    assert deleted.read_text() == "gc1\n"


def by_its_link(host: Host) -> Iterator[None]:
    path = host.add_netns("a-namespace")

    def make() -> None:
        with netns.open(path) as space:
            veth.create(space, "eth0", owner=Attachment("net", "forgotten", "eth0"))

    host.call(make)
    yield


def by_its_address(host: Host) -> Iterator[None]:
    host.add_netns("b-namespace")
    script = "ip -n b-namespace link add net1 type bridge; ip -n b-namespace addr add 10.111.0.2/24 dev net1"
    host.run(["sh", "-euc", script])
    yield


def by_its_address_in_a_process(host: Host) -> Iterator[None]:
    script = f"ip link add net1 type bridge; ip addr add 10.111.0.2/24 dev net1; {WAIT}"
    with host.popen(["unshare", "--net", "sh", "-euc", script], stdin=-1, stdout=-1) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield
        running.communicate()


def by_a_plugin_at_work(host: Host) -> Iterator[None]:
    environ = {**os.environ, "CNI_CONTAINERID": "forgotten"}
    with host.popen(["sh", "-c", WAIT], stdin=-1, stdout=-1, env=environ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield
        running.communicate()


@pytest.mark.parametrize("how", [by_its_link, by_its_address, by_its_address_in_a_process, by_a_plugin_at_work])
def test_gc_keeps_what_the_kernel_has_and_all_others_forgot(
    cluster: Cluster, how: Callable[[Host], Iterator[None]]
) -> None:
    for container, address in (("forgotten", "10.111.0.2"), ("dead", "10.111.0.3")):
        cluster.lease(container, address)
    for _ in how(cluster.host):
        out = cluster.gc("--grace", "0")
        assert cluster.held() == {"10.111.0.2": "forgotten"}, out
        assert "attachments: 1 alive, 1 dead" in out


# --- the plugins' own GC ----------------------------------------------------------------------------------------------


class Node:
    """A host with real plugins and a list, where a container lives, and what another left is remembered nowhere."""

    def __init__(self, cluster: Cluster, directory: Path, version: str, reference: str = "") -> None:
        self.cluster, self.bin = cluster, cluster.root / "bin"
        cluster.plugin.unlink()
        for each in directory.iterdir():
            (self.bin / each.name).symlink_to(GO / each.name if each.name == reference else each)
        (bridge,) = cluster.conf["plugins"]
        plugins = [{**bridge, "isGateway": True, "ipMasq": True}, {"type": "firewall", "backend": "iptables"}]
        conf = json.dumps({**cluster.conf, "cniVersion": version, "plugins": plugins})
        (cluster.root / "conf" / "net.conflist").write_text(conf)
        self.network = Network.parse(conf.encode())
        self.add("alive")
        self.before = self.rules()
        self.result = self.add("gone")
        cluster.host.shell("ip -n gone link del eth0; rm /var/lib/cni/results/net-gone-eth0")
        cluster.host.del_netns("gone")
        assert cluster.held() == {"10.111.0.2": "alive", "10.111.0.3": "gone"}
        cluster.host.shell("rm /var/lib/cni/networks/net/10.111.0.3")

    def add(self, container: str) -> dict[str, Any]:
        path = self.cluster.host.add_netns(container)

        def work() -> bytes:
            runtime = Runtime([str(self.bin)])
            runtime.add(self.network, container_id=container, netns=path)
            return Path(runtime.cache.path(Attachment("net", container, "eth0"))).read_bytes()

        result: dict[str, Any] = json.loads(self.cluster.host.call(work))["result"]
        return result

    def rules(self) -> dict[str, str]:
        return {table: self.cluster.host.shell(f"iptables -t {table} -S") for table in ("filter", "nat")}

    def verify_alive(self) -> None:
        """Run CHECK of all plugins, and look for the lease."""
        runtime, path = Runtime([str(self.bin)]), "/run/netns/alive"
        self.cluster.host.call(lambda: runtime.check(self.network, container_id="alive", netns=path))
        assert self.cluster.held() == {"10.111.0.2": "alive"}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_gc_by_plugins_clears_rules_that_nothing_remembers(cluster: Cluster, plugins: Plugins, version: str) -> None:
    """Lists of Podman and nerdctl, and most others, have a version that does not know GC."""
    with plugins.on(cluster.host):
        node = Node(cluster, plugins.directory, version)
        assert node.rules() != node.before
        cluster.gc("--grace", "0")
        assert node.rules() != node.before
        assert cluster.gc("--plugins", "--grace", "0") == "attachments: 1 alive, 0 dead\n"
        assert cluster.warned == ""
        assert node.rules() == node.before
        node.verify_alive()


def test_gc_asks_no_plugin_of_a_list_whose_runtime_need_not_remember(cluster: Cluster, plugins: Plugins) -> None:
    """Before 0.4.0, libcni had no cached results: what lives may be on no list."""
    with plugins.on(cluster.host):
        node = Node(cluster, plugins.directory, "0.3.1")
        left = node.rules()
        cluster.gc("--plugins", "--grace", "0")
        assert "has version 0.3.1, which does not know GC: no plugin was asked" in cluster.warned
        assert node.rules() == left


@pytest.mark.interop
@pytest.mark.parametrize("reference", ["bridge", "host-local"])
def test_gc_beside_a_plugin_that_does_not_know_it(cluster: Cluster, plugins: Plugins, reference: str) -> None:
    """The reference's firewall has deleted rules of ours, and left their record."""
    if not (GO / "bridge").exists():
        missing = f"{GO}/bridge is not installed (Debian: containernetworking-plugins)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with plugins.on(cluster.host):
        node = Node(cluster, plugins.directory, "1.0.0", reference)
        conf = {"type": "firewall", "backend": "iptables", "cniVersion": "1.0.0", "name": "net"}
        theirs = cluster.host.plugin(GO / "firewall", conf)
        gone = SimpleNamespace(id="gone", netns="")
        theirs.run("DEL", gone, prevResult=node.result).raise_for_error()
        left = node.rules()
        assert left["filter"].count("id: gone") == 1
        cluster.gc("--plugins", "--grace", "0")
        assert f"plugin {reference} was not asked to look for leftovers: GC needs 1.1.0, it offers 0." in cluster.warned
        assert cluster.warned.count("\n") == 1
        # The reference's bridge leaves what it made; ours does its part, whatever its IPAM plugin knows.
        assert node.rules() == {**node.before, **({"nat": left["nat"]} if reference == "bridge" else {})}
        node.verify_alive()


# --- beside ADD and DEL -----------------------------------------------------------------------------------------------


class Life:
    """Containers of all runtimes that come, go and crash, and what is known of each."""

    def __init__(self, cluster: Cluster, directory: Path, seed: int) -> None:
        self.cluster, self.random = cluster, random.Random(seed)
        self.network = Network.parse(json.dumps(cluster.conf).encode())
        self.directory = directory
        self.living: dict[str, tuple[str, str]] = {}
        self.crashed: set[str] = set()
        self.count = 0

    def step(self) -> None:
        choice = self.random.random()
        if not self.living or choice < 0.5:
            self.add()
        elif choice < 0.9:
            self.delete()
        else:
            self.crash()

    def runtime(self, place: str) -> Runtime:
        return Runtime([str(self.directory)], cache_dir=place)

    def add(self) -> None:
        self.count += 1
        container = f"c{self.count}"
        layout = self.random.choice(list(LAYOUTS))
        place = LAYOUTS[layout](self.cluster, container)
        path = self.cluster.host.add_netns(container)

        def work() -> str:
            runtime = self.runtime(place)
            result = runtime.add(self.network, container_id=container, netns=path)
            if "before" in layout:
                entry = runtime.cache.find(Attachment("net", container, "eth0"))
                assert entry is not None
                runtime.cache.store(entry._replace(netns=""))
            return str(result.ips[0].address.ip)

        address = self.cluster.host.call(work)
        assert address not in {each for each, _ in self.living.values()}, f"{address} is another living container's"
        self.living[container] = address, place

    def delete(self) -> None:
        container = self.random.choice(sorted(self.living))
        _, place = self.living.pop(container)
        runtime, network, path = self.runtime(place), self.network, f"/run/netns/{container}"
        self.cluster.host.call(lambda: runtime.delete(network, container_id=container, netns=path))
        self.cluster.host.del_netns(container)

    def crash(self) -> None:
        container = self.random.choice(sorted(self.living))
        self.living.pop(container)
        self.crashed.add(container)
        self.cluster.host.del_netns(container)

    def check(self) -> None:
        held = self.cluster.held()
        for container, (address, _) in self.living.items():
            assert held.get(address) == container, f"{address} of the living {container}: {held.get(address)}"


def run_beside_gc(cluster: Cluster, directory: Path, rounds: int, seed: int) -> None:
    """Change containers while gc runs, with no grace: each round, one gc is under way during one change."""
    (cluster.root / "bin" / "bridge").unlink()
    (cluster.root / "bin").rmdir()
    (cluster.root / "bin").symlink_to(directory)
    life = Life(cluster, directory, seed)
    log = cluster.root / "gc.log"
    gc = (
        f"{shlex.quote(sys.executable)} -m cnisdk gc net --inside --grace 0 --pause 0 "
        f"--conf-dir {cluster.root}/conf --cache-dir {cluster.elsewhere} --cni-path {directory}"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = f"while :; do {gc} >> {log} 2>&1 || echo FAILED >> {log}; read -t 0 end && exit 0; done"
    with cluster.host.popen(["bash", "-c", script], stdin=-1, env=environ) as loop:
        for _ in range(rounds):
            life.step()
            life.check()
        loop.communicate("end\n")
    said = log.read_text()
    assert "FAILED" not in said, said
    cluster.gc("--grace", "0")
    life.check()
    assert set(cluster.held().values()) == set(life.living), "what crashed is gone, and nothing else"
    assert said.count("attachments: ") > rounds / 20, "gc ran all the time"


@pytest.mark.slow
@pytest.mark.interop
def test_gc_beside_add_and_del_of_the_reference_plugins(cluster: Cluster) -> None:
    """Their links carry no mark, so all depends on addresses, and on plugins that are at work."""
    if not (GO / "bridge").exists():
        pytest.skip(f"needs the Go plugins in {GO}")
    run_beside_gc(cluster, GO, rounds=200, seed=11)


@pytest.mark.slow
def test_gc_beside_add_and_del(cluster: Cluster, plugins: Plugins) -> None:
    with plugins.on(cluster.host):
        run_beside_gc(cluster, plugins.directory, rounds=40, seed=12)


class Script:
    """Judgements in turn, and the time: each look takes a minute. One that is an error raises it."""

    def __init__(self, *looks: dict[str, LivenessState] | CNIError) -> None:
        self.looks, self.now = list(looks), 0.0
        self.dropped: list[str] = []

    def judge(self, *_: object) -> HostState:
        self.now += 60
        look = self.looks.pop(0)
        if isinstance(look, CNIError):
            raise look
        judged = tuple(
            JudgedAttachment(Traces(Attachment("net", name, "eth0")), (), Liveness(state, f"it is {state}"))
            for name, state in look.items()
        )
        return HostState((JudgedNetwork("net", None, (), judged),), (), (), frozenset(), Memory(), Survey())

    def drop(self, _: object, __: object, ___: object, each: JudgedAttachment) -> str | None:
        self.dropped.append(each.owner.container_id)
        self.now += 60
        return "it exists again" if each.owner.container_id == "back" else None


@pytest.fixture
def gc_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], int]:
    def run(script: Script) -> int:
        parser = argparse.ArgumentParser()
        gc.add_arguments(parser)
        monkeypatch.setattr(gc, "judge_host", script.judge)
        monkeypatch.setattr(gc, "_drop_alone", script.drop)
        monkeypatch.setattr(gc, "load_network", lambda *_, **__: SimpleNamespace(name="net", disable_gc=False))
        monkeypatch.setattr("cnisdk._cli.gc.time", SimpleNamespace(monotonic=lambda: script.now))
        return gc.run(parser.parse_args(["net", "--inside"]), pause=bool)

    return run


DEAD: LivenessState = "dead"


def test_what_a_repeated_look_keeps_stays_kept(
    gc_with: Callable[[Script], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A namespace that is hidden for a moment, or a process that has just begun: one look doubts, the next does not."""
    all_dead: dict[str, LivenessState] = {"a": DEAD, "b": DEAD, "c": DEAD, "d": DEAD}
    script = Script(all_dead, all_dead, {**all_dead, "c": "unknown", "d": "alive"}, *[all_dead] * 9)
    assert gc_with(script) == 0
    assert script.dropped == ["a", "b"]
    assert "attachments: 1 alive, 2 dead, 1 kept since they cannot be judged" in capsys.readouterr().out


def test_what_came_back_does_not_count_as_dead(
    gc_with: Callable[[Script], int], capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script(*[{"a": DEAD, "back": DEAD}] * 9)
    assert gc_with(script) == 0
    assert "attachments: 0 alive, 1 dead, 1 kept since they cannot be judged" in capsys.readouterr().out


def test_gc_drops_no_more_when_it_cannot_look_again(
    gc_with: Callable[[Script], int], capsys: pytest.CaptureFixture[str]
) -> None:
    all_dead: dict[str, LivenessState] = {"a": DEAD, "b": DEAD, "c": DEAD}
    script = Script(all_dead, all_dead, IOFailureError("the table cannot be read"), *[all_dead] * 9)
    with pytest.raises(IOFailureError, match="the table cannot be read"):
        gc_with(script)
    assert script.dropped == ["a"]
    assert "attachments: 0 alive, 1 dead, 2 kept since they cannot be judged" in capsys.readouterr().out


def test_what_cannot_be_released_does_not_look_as_if_it_was(
    gc_with: Callable[[Script], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Script(*[{"a": DEAD, "b": DEAD}] * 9)
    drop = script.drop

    def fail(args: argparse.Namespace, host: HostState, network: Network, each: JudgedAttachment) -> str | None:
        if each.owner.container_id == "b":
            raise IOFailureError("the plugin is broken")
        return drop(args, host, network, each)

    monkeypatch.setattr(script, "drop", fail)
    with pytest.raises(IOFailureError, match="the plugin is broken"):
        gc_with(script)
    told = capsys.readouterr().out
    assert "keep container b interface eth0: it could not be released" in told
    assert told.endswith("attachments: 0 alive, 2 dead, of which 1 could not be released\n")
