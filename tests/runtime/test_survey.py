"""Surveys of throw-away hosts, with the namespaces they really have."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnisdk.linux import netns, veth
from cnisdk.runtime import survey
from cnisdk.runtime.hostview import Survey
from cnisdk.runtime.survey import boot_time, find_obstacle, find_other_uses, look_at, parse_mounts, survey_host
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host

WHO = Attachment("net", "c1", "eth0")
ADDRESS = "10.111.222.7"
# In a namespace of its own kind, it says where it is, and waits for the end of its input.
WAIT = "echo $$; read end"


def look(host: Host, *paths: str) -> Survey:
    return host.call(lambda: survey_host(paths, inside=True))


@contextmanager
def process(host: Host, *command: str, **environ: str) -> Iterator[int]:
    """A process that waits on a host; its number."""
    argv = [*command, "sh", "-c", WAIT]
    pipe = subprocess.PIPE
    with host.popen(argv, stdin=pipe, stdout=pipe, env={**os.environ, **environ}) as running:
        assert running.stdout is not None
        yield int(running.stdout.readline())
        running.communicate()


@pytest.mark.kernel
def test_an_address_in_a_namespace_with_a_name(host: Host) -> None:
    host.add_netns("blue")
    host.run(["sh", "-euc", f"ip -n blue link add b0 type bridge && ip -n blue addr add {ADDRESS}/24 dev b0"])
    seen = look(host, "/run/netns/blue", "/run/netns/green", "/nowhere/green")
    assert seen.find_address(ip_address(ADDRESS)) == "b0 in /run/netns/blue"
    assert seen.find_address(ip_address("10.111.222.8")) is None
    assert seen.find_mac(host.ip("link", "show", "b0", netns="blue")[0]["address"]) == "b0 in /run/netns/blue"
    assert [seen.paths[each].found for each in seen.paths] == ["there", "absent", "hidden"]
    assert seen.paths["/nowhere/green"].parent_missing
    assert seen.paths["/run/netns/blue"].inode in seen.namespaces


@pytest.mark.kernel
def test_the_use_of_an_address_by_another_container(host: Host) -> None:
    """The container's own namespace is known by its identifier."""
    address = ip_address(ADDRESS)
    for name in ("blue", "green"):
        host.add_netns(name)
        host.run(["sh", "-euc", f"ip -n {name} link add b0 type bridge && ip -n {name} addr add {ADDRESS}/24 dev b0"])

    def find(name: str) -> str:
        with netns.open(f"/run/netns/{name}") as space:
            identity = space.identify()
        return find_other_uses({address: identity, ip_address("10.111.222.8"): identity}, inside=True)[address]

    assert host.call(find, "blue").startswith("b0 in /run/netns/green")
    assert host.call(find, "green").startswith("b0 in /run/netns/blue")
    host.run(["ip", "-n", "blue", "addr", "del", f"{ADDRESS}/24", "dev", "b0"])
    with pytest.raises(KeyError):
        host.call(find, "green")


@pytest.mark.kernel
def test_an_address_in_a_namespace_that_only_a_process_has(host: Host) -> None:
    with process(host, "unshare", "--net") as pid:
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net"]
        host.run([*inside, "ip", "link", "add", "b0", "type", "bridge"])
        host.run([*inside, "ip", "addr", "add", f"{ADDRESS}/24", "dev", "b0"])
        assert look(host).find_address(ip_address(ADDRESS)) == f"b0 in the namespace of process {pid}"
        assert look(host, f"/proc/{pid}/ns/net").paths[f"/proc/{pid}/ns/net"].found == "there"
    assert look(host).find_address(ip_address(ADDRESS)) is None
    assert look(host, f"/proc/{pid}/ns/net").paths[f"/proc/{pid}/ns/net"].found == "absent"


THREADS = """
import os, sys, threading
for _ in range(8):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


HOLDING = """
import os, sys
held = [os.open(path, os.O_RDONLY) for path in ("/run/netns/blue", "/proc/self/ns/mnt", "/proc/self/ns/net", "/")]
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.kernel
def test_an_address_in_a_namespace_that_a_process_has_open(host: Host) -> None:
    """A runtime that keeps a descriptor, while the container's processes and its path are gone or not there yet."""
    host.add_netns("blue")
    host.run(["sh", "-euc", f"ip -n blue link add b0 type bridge && ip -n blue addr add {ADDRESS}/24 dev b0"])
    with host.popen([sys.executable, "-c", HOLDING], stdin=-1, stdout=-1) as runtime:
        assert runtime.stdout is not None
        pid = int(runtime.stdout.readline())
        host.del_netns("blue")
        seen = look(host, "/run/netns/blue")
        assert seen.paths["/run/netns/blue"].found == "absent"
        assert seen.doubts == ()
        assert seen.find_address(ip_address(ADDRESS)) == f"b0 in a namespace that process {pid} has open"
        runtime.communicate()
    assert look(host).find_address(ip_address(ADDRESS)) is None


@pytest.mark.kernel
def test_an_address_in_a_pod_one_of_whose_containers_ends(host: Host) -> None:
    """It has many threads, and ends after the processes were listed, before their namespace is looked into."""
    argv = ["unshare", "--net", sys.executable, "-c", THREADS]
    with host.popen(argv, stdin=-1, stdout=-1) as first:
        assert first.stdout is not None
        pid = int(first.stdout.readline())
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net"]
        host.run([*inside, "ip", "link", "add", "b0", "type", "bridge"])
        host.run([*inside, "ip", "addr", "add", f"{ADDRESS}/24", "dev", "b0"])
        with process(host, *inside) as second:
            read = survey._Processes.read

            def read_and_end_one(self: Any) -> None:
                read(self)
                os.kill(pid, signal.SIGKILL)
                while os.path.exists(f"/proc/{pid}/ns/net") and os.listdir(f"/proc/{pid}/task") != [str(pid)]:
                    pass

            def work() -> Survey:
                survey._Processes.read = read_and_end_one  # type: ignore[method-assign]
                return survey_host(inside=True)

            place = host.call(work).find_address(ip_address(ADDRESS))
            assert place in [f"b0 in the namespace of process {each}" for each in (pid, second)]
        first.communicate()


@pytest.mark.kernel
def test_an_address_in_a_namespace_that_another_mount_namespace_has(host: Host) -> None:
    """A runtime in a mount namespace of its own, as systemd makes for many services."""
    host.run(["mkdir", "-p", "/run/netns"])
    make = (
        "ip netns add blue; ip -n blue link add b0 type bridge; "
        f"ip -n blue addr add {ADDRESS}/24 dev b0; exec sh -c '{WAIT}'"
    )
    pipe = subprocess.PIPE
    argv = ["unshare", "--mount", "sh", "-euc", make]
    with host.popen(argv, stdin=pipe, stdout=pipe) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        seen = look(host, "/run/netns/blue")
        assert seen.paths["/run/netns/blue"].found == "absent", "what is there is an ordinary file"
        assert "/run/netns/blue" in seen.mounted
        assert seen.find_address(ip_address(ADDRESS)) == f"b0 in /run/netns/blue of process {pid}"
        running.communicate()


@pytest.mark.kernel
def test_an_address_in_a_namespace_of_a_runtime_whose_child_ends(host: Host) -> None:
    """The runtime has a mount namespace of its own, and the first of its processes that was read is a short one."""
    host.run(["mkdir", "-p", "/run/netns"])
    make = f"ip netns add blue; ip -n blue link add b0 type bridge; ip -n blue addr add {ADDRESS}/24 dev b0; {WAIT}"
    with host.popen(["unshare", "--mount", "sh", "-euc", make], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        with process(host, "nsenter", f"--mount=/proc/{pid}/ns/mnt") as runtime:
            read = survey._Processes.read

            def read_and_end_one(self: Any) -> None:
                self._read_one(str(pid))
                read(self)
                os.kill(pid, signal.SIGKILL)
                while os.path.exists(f"/proc/{pid}/ns/net"):
                    pass

            def work() -> Survey:
                survey._Processes.read = read_and_end_one  # type: ignore[method-assign]
                return survey_host(inside=True)

            found = host.call(work).find_address(ip_address(ADDRESS))
            assert found == f"b0 in /run/netns/blue of process {runtime}"
        child.communicate()


CHROOTED = """
import os, sys
os.chroot(sys.argv[1])
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.kernel
def test_an_address_in_a_namespace_that_a_chrooted_process_cannot_reach(host: Host, tmp_path: Path) -> None:
    """The kernel tells it of the mounts below its root alone. Others in its mount namespace have more."""
    host.add_netns("blue")
    host.run(["sh", "-euc", f"ip -n blue link add b0 type bridge && ip -n blue addr add {ADDRESS}/24 dev b0"])
    with host.popen([sys.executable, "-c", CHROOTED, str(tmp_path)], stdin=-1, stdout=-1) as daemon:
        assert daemon.stdout is not None
        pid = daemon.stdout.readline().strip()
        read = survey._Processes.read

        def read_it_first(self: Any) -> None:
            self._read_one(pid)
            read(self)

        def work() -> Survey:
            survey._Processes.read = read_it_first  # type: ignore[method-assign]
            return survey_host(inside=True)

        assert str(host.call(work).find_address(ip_address(ADDRESS))).startswith("b0 in /run/netns/blue")
        daemon.communicate()


@pytest.mark.kernel
def test_a_namespace_below_another_mount_is_a_doubt(host: Host) -> None:
    """It is mounted still, and may be a container's; no path leads there."""
    host.add_netns("blue")
    host.shell("ip netns add green; mount --bind /run/netns/green /run/netns/blue")
    (doubt,) = look(host).doubts
    assert doubt == "a network namespace is mounted at /run/netns/blue, where something else lies over it"
    host.shell("umount /run/netns/blue")
    assert look(host).doubts == ()


@pytest.mark.kernel
def test_the_links_of_the_host_and_their_marks(host: Host) -> None:
    path = host.add_netns("blue")

    def make() -> str:
        with netns.open(path) as space:
            return veth.create(space, "eth0", owner=WHO).host.name

    name = host.call(make)
    seen = look(host)
    assert seen.find_link(WHO) == name
    assert seen.find_link(WHO._replace(ifname="eth1")) is None
    assert seen.find_link(WHO._replace(ifname="")) == name
    assert seen.find_marked("net") == ((("c1", "eth0"),), ())
    host.run(["ip", "link", "delete", name])
    assert look(host).find_link(WHO) is None


@pytest.mark.kernel
def test_a_plugin_at_work_and_what_processes_are_called(host: Host) -> None:
    with process(host, CNI_CONTAINERID="c1") as pid:
        assert look(host).working["c1"] == f"process {pid} (sh)"
    named = "5f1a94c0b6de4c0f8f0f"
    pipe = subprocess.PIPE
    with host.popen(["sh", "-c", WAIT, named], stdin=pipe, stdout=pipe) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert named in look(host).names
        running.communicate()


@pytest.mark.kernel
def test_another_sandbox_is_not_inside(host: Host) -> None:
    """With namespaces of its own, a host sees only those in it: that is what ``inside`` means."""
    if host.call(os.readlink, "/proc/self/ns/user") == os.readlink("/proc/self/ns/user"):
        pytest.skip("the host shares this user's namespace")
    with Host() as other:
        other.add_netns("blue")
        other.run(["sh", "-euc", f"ip -n blue link add b0 type bridge && ip -n blue addr add {ADDRESS}/24 dev b0"])
        assert look(host).find_address(ip_address(ADDRESS)) is None
        assert look(host).doubts == ()


@pytest.mark.kernel
def test_on_a_host_in_the_host_there_is_an_obstacle(host: Host) -> None:
    assert host.call(find_obstacle)
    assert host.call(lambda: survey_host().doubts)


@pytest.mark.kernel
@pytest.mark.parametrize("all_is_seen", [True, False])
@pytest.mark.parametrize("owns_all", [True, False])
def test_a_namespace_that_cannot_be_looked_into_may_be_a_containers(
    host: Host, monkeypatch: pytest.MonkeyPatch, owns_all: bool, all_is_seen: bool
) -> None:
    """In a user namespace of its own, a process cannot look into those above: they are of another host."""
    blue = host.add_netns("blue")
    number = host.call(partial(os.stat, "/proc/self/ns/user")).st_ino if owns_all else 0
    monkeypatch.setattr(survey, "_FIRST_USER_NAMESPACE", number)
    monkeypatch.setattr(survey, "find_obstacle", lambda: None if all_is_seen else "in a pid namespace of its own")
    monkeypatch.setattr(survey, "_look_into", lambda inode, ways: (None, "it is closed"))
    refused = survey._Processes._read_one

    def read_one(self: Any, pid: str) -> None:
        if pid == "1":
            raise PermissionError(errno.EACCES, "Permission denied")
        refused(self, pid)

    monkeypatch.setattr(survey._Processes, "_read_one", read_one)
    monkeypatch.setattr(survey, "in_first_namespaces", lambda: False)
    seen, inside = (host.call(partial(survey_host, [blue], inside=inside)) for inside in (False, True))
    assert ("process 1 cannot be looked at: Permission denied" in seen.unseen) == all_is_seen
    assert ("it is closed" in seen.unseen) == (owns_all or all_is_seen)
    assert seen.doubts
    assert inside.unseen == ()
    address = ip_address(ADDRESS)
    assert seen.find_use(address) == (seen.unseen[0] if seen.unseen else None)
    assert seen.find_use(address, but=1) is None


@pytest.mark.kernel
@pytest.mark.parametrize("own", [True, False])
def test_a_process_of_a_node_that_cannot_be_looked_at_is_a_doubt(
    host: Host, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """As where a node is a container whose root may not trace processes: it has its own pid namespace."""
    read_one = survey._Processes._read_one
    with process(host) as pid:

        def refuse(self: Any, each: str) -> None:
            if each == str(pid):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            read_one(self, each)

        monkeypatch.setattr(survey._Processes, "_read_one", refuse)
        monkeypatch.setattr(survey, "owns_processes", lambda: own)
        doubts = look(host).doubts
    assert ("cannot be looked at: Permission denied" in " ".join(doubts)) == own


def test_whose_the_processes_are(host: Host) -> None:
    """A sandbox in a user namespace of its own lists the processes of all."""
    if host.call(os.readlink, "/proc/self/ns/user") == os.readlink("/proc/self/ns/user"):
        pytest.skip("the host shares this user's namespace")
    assert not host.call(survey.owns_processes)
    inside = "import cnisdk.runtime.survey as survey; print(survey.owns_processes())"
    argv = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable, "-c", inside]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert host.run(argv, env=env).stdout == "True\n"


def test_in_a_chroot_there_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of namespaces and directories of runtimes would be looked for below its root."""
    stat = os.stat
    numbers = {"mnt": 1, "net": 2, "pid": 0xEFFFFFFC}
    roots = {"/": 3, "/proc/1/root": 3}

    def seen(path: str, *args: Any, **kwargs: Any) -> Any:
        if path in roots:
            return SimpleNamespace(st_dev=7, st_ino=roots[path])
        if path.startswith(("/proc/1/ns/", "/proc/self/ns/")):
            return SimpleNamespace(st_dev=4, st_ino=numbers[path.rpartition("/")[2]])
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", seen)
    assert find_obstacle() is None
    roots["/"] = 5
    assert "chroot" in (find_obstacle() or "")


def test_a_process_1_that_hides_does_not_make_a_host_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root with one capability less than process 1 cannot compare; the kernel numbers the first namespaces."""
    stat = os.stat
    numbers = {"mnt": 0xEFFFFFF8, "net": 0xEFFFFFF9, "pid": 0xEFFFFFFC}

    def hiding(path: str, *args: Any, **kwargs: Any) -> Any:
        if path.startswith("/proc/1/ns/"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if path.startswith("/proc/self/ns/"):
            return SimpleNamespace(st_ino=numbers[path.rpartition("/")[2]])
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", hiding)
    assert find_obstacle() is None
    numbers["net"] = 4026532000
    assert "Permission denied" in (find_obstacle() or "")


def test_in_a_pid_namespace_of_its_own_there_is_an_obstacle() -> None:
    """A pod is its own process 1: to compare with that one is not enough."""
    script = "from cnisdk.runtime.survey import find_obstacle; print(find_obstacle())"
    argv = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        if os.environ.get("CI") == "true":
            raise AssertionError(done.stderr)
        pytest.skip(done.stderr.strip())
    assert "pid namespace of its own" in done.stdout


def test_what_is_no_namespace_is_absent(tmp_path: Path) -> None:
    """An ordinary file is what an unmounted namespace leaves."""
    (tmp_path / "blue").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("blue", "pipe", "nothing"):
        assert look_at(str(tmp_path / name)).found == "absent"
    assert look_at(str(tmp_path / "no" / "blue")).found == "hidden"


def test_a_clock_that_was_set_forward_makes_nothing_of_an_earlier_boot(tmp_path: Path) -> None:
    """As after a snapshot of a virtual machine was resumed, or where a machine has no clock of its own."""
    now, running = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    (tmp_path / "made-by-the-kernel").touch()
    assert boot_time(str(tmp_path)) == pytest.approx(now - running, abs=60)
    os.utime(tmp_path / "made-by-the-kernel", (0, now - running - 1e6))
    (tmp_path / "link").symlink_to("nowhere")
    assert boot_time(str(tmp_path)) == pytest.approx(now - running - 1e6)
    assert boot_time(str(tmp_path / "no")) == pytest.approx(now - running, abs=60)


# From a Debian 12 machine with Podman, shortened.
MOUNTS = r"""21 27 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
24 27 0:5 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=400k
27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
300 24 0:4 net:[4026532288] /run/netns/netns-3c7b rw shared:180 - nsfs nsfs rw
301 24 0:4 net:[4026532290] /run/netns/with\040space rw shared:181 - nsfs nsfs rw
302 24 0:4 mnt:[4026532291] /run/snapd/ns/lxd.mnt rw - nsfs nsfs rw
303 27 0:77 / /srv rw - fuse.sshfs far:/ rw
304 303 0:4 net:[4026532299] /srv/netns/far rw - nsfs nsfs rw
broken
"""


def test_namespaces_among_the_mounts() -> None:
    assert [each[:4] for each in parse_mounts(MOUNTS)] == [
        (4026532288, "", "/run/netns/netns-3c7b", True),
        (4026532290, "", "/run/netns/with space", True),
        (4026532299, "", "/srv/netns/far", False),
    ]
