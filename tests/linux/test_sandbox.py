"""Hosts of their own: private, for root and others, and gone when their opener is."""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cnisdk.errors import InvalidNetNSError
from cnisdk.testing import Sandbox, SandboxUnavailable

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_private(host: Sandbox) -> None:
    (lo,) = host.ip("link", "show")
    assert (lo["ifname"], "UP" in lo["flags"]) == ("lo", True)
    assert host.run(["ls", "/run", "/run/netns"]).stdout.split() == ["/run:", "netns", "/run/netns:"]
    marker = Path("/run/cnisdk-sandbox-test")
    host.run(["touch", str(marker), "/var/lib/cnisdk-sandbox-test"])
    assert not marker.exists()
    assert not Path("/var/lib/cnisdk-sandbox-test").exists()
    assert host.call(os.getuid) == 0


def test_what_is_shared(host: Sandbox, tmp_path: Path) -> None:
    host.run(["touch", "made"], cwd=tmp_path)
    assert (tmp_path / "made").exists()
    assert host.run(["pwd"]).stdout.strip() == os.getcwd()
    assert host.call(os.getcwd) == os.getcwd()


def test_namespaces_have_names(host: Sandbox) -> None:
    assert host.add_netns("blue") == "/run/netns/blue"
    assert host.run(["ip", "netns", "list"]).stdout.split() == ["blue"]
    assert host.run(["stat", "-L", "-c", "%i", "/var/run/netns/blue"]).returncode == 0
    assert [each["ifname"] for each in host.ip("link", "show", netns="blue")] == ["lo"]
    host.del_netns("blue")
    assert host.run(["ls", "/run/netns"]).stdout == ""


def test_values_and_exceptions_come_out(host: Sandbox) -> None:
    assert host.call(divmod, 7, 2) == (3, 1)

    def fail() -> None:
        raise InvalidNetNSError("no", details="because", code=123)

    with pytest.raises(InvalidNetNSError) as caught:
        host.call(fail)
    assert (caught.value.code, caught.value.details) == (123, "because")
    with pytest.raises(RuntimeError, match="cannot hand over"):
        host.call(lambda: lambda: None)
    with pytest.raises(RuntimeError, match="ended its process, wait status 0x9"):
        host.call(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SystemExit):
        host.call(sys.exit, 3)


def test_programs(host: Sandbox) -> None:
    assert host.run(["cat"], input="hello").stdout == "hello"
    assert host.run(["env"], env={"A": "1"}).stdout == "A=1\n"
    assert host.run(["sh", "-c", "echo no >&2; exit 3"], check=False).returncode == 3
    with pytest.raises(AssertionError, match=r"sh -c .* exited with 3\nno"):
        host.run(["sh", "-c", "echo no >&2; exit 3"])
    with pytest.raises(subprocess.TimeoutExpired):
        host.run(["sleep", "60"], timeout=0.05)


def test_two_hosts_know_nothing_of_each_other(host: Sandbox) -> None:
    with Sandbox() as other:
        host.run(["ip", "link", "add", "b0", "type", "bridge"])
        assert [each["ifname"] for each in other.ip("link", "show")] == ["lo"]
    with pytest.raises(RuntimeError, match="not open"):
        other.run(["true"])


# Whoever started it is gone, as with a server that a shell command left running.
DAEMON = "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!"


@pytest.mark.parametrize(("end", "number"), [(os.kill, signal.SIGKILL), (os.killpg, signal.SIGTERM)])
def test_nothing_outlives_the_opener(end: Callable[[int, int], None], number: int) -> None:
    """SIGKILL gives it no chance to clean up; ^C and timeout(1) reach the whole group."""
    script = f"""
DAEMON = {DAEMON!r}
import signal, sys
from cnisdk.testing import Sandbox
host = Sandbox().__enter__()
child = host.popen(["sleep", "600"])
print(host.pid, child.pid, host.run(["sh", "-c", DAEMON]).stdout, flush=True)
signal.pause()
"""
    opener = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with opener:
        assert opener.stdout is not None
        pids = [int(each) for each in opener.stdout.readline().split()]
        assert all(running(pid) for pid in pids)
        assert len(pids) == 3
        fds = [os.pidfd_open(pid) for pid in pids]
        end(opener.pid, number)
    assert [bool(select.select([fd], [], [], 60)[0]) for fd in fds] == [True, True, True]
    for fd in fds:
        os.close(fd)


def test_daemons_end_with_their_host() -> None:
    with Sandbox() as host, Sandbox() as other:
        daemon, neighbour = (int(each.run(["sh", "-c", DAEMON]).stdout) for each in (host, other))
        fd = os.pidfd_open(daemon)
        host.close()
        assert select.select([fd], [], [], 60)[0]
        os.close(fd)
        assert running(neighbour)


def test_a_daemon_in_a_container_ends_with_its_host() -> None:
    """`ip netns exec` gives it a mount namespace of its own."""
    with Sandbox() as host, Sandbox(beside=host) as other:
        pids = []
        for each in (host, other):
            each.add_netns("c1")
            pids.append(int(each.run(["ip", "netns", "exec", "c1", "sh", "-c", DAEMON]).stdout))
        fd = os.pidfd_open(pids[0])
        host.close()
        assert select.select([fd], [], [], 60)[0]
        os.close(fd)
        assert running(pids[1])
        os.kill(pids[1], signal.SIGKILL)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


USE = """
from cnisdk.testing import Sandbox
with Sandbox() as host:
    path = host.add_netns("blue")
    host.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "eth0", "netns", "blue"])
    host.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward && touch /var/lib/x /run/x"])
    assert host.ip("link", "show", "v0")[0]["ifname"] == "v0"
    import os
    assert host.call(os.path.exists, path) and not os.path.exists(path)
    print("works for", os.getuid())
"""


def test_an_ordinary_user_has_hosts_too() -> None:
    user = os.getuid() or 65534
    become = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        # The interpreter and this checkout may be where only root can read.
        Path(directory).chmod(0o755)
        shutil.copytree(ROOT / "cnisdk", Path(directory) / "cnisdk")
        for python in (sys.executable, "/usr/bin/python3"):
            attempt = "import cnisdk.testing, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
            able = subprocess.run([*become, python, "-c", attempt], cwd=directory, capture_output=True, check=False)
            if able.returncode == 0:
                break
        done = subprocess.run([*become, python, "-c", USE], cwd=directory, capture_output=True, text=True, check=False)
    assert done.stdout == f"works for {user}\n", done.stderr


def test_a_machine_that_forbids_namespaces_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_holder.py").write_text("print('unshare user: not permitted')")
    (tmp_path / "switch").write_text("0\n")
    from cnisdk.testing import sandbox

    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    monkeypatch.setattr(sandbox, "_SWITCHES", {str(tmp_path / "switch"): ("0", "kernel.x=1")})
    with pytest.raises(SandboxUnavailable, match=r"unshare user: not permitted \(sysctl kernel.x=1 allows it\)"):
        Sandbox().__enter__()


def test_what_is_new_in_a_watched_directory_is_private(tmp_path: Path) -> None:
    """The directories in it stay shared; its files are hidden, and those made in it are nobody else's."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "hidden").touch()
    with Sandbox(watched=[str(tmp_path)]) as host:
        host.run(["touch", str(tmp_path / "new"), str(tmp_path / "shared" / "file")])
        assert sorted(host.call(os.listdir, tmp_path)) == ["new", "shared"]
    assert sorted(os.listdir(tmp_path)) == ["hidden", "shared"]
    assert os.listdir(tmp_path / "shared") == ["file"]
