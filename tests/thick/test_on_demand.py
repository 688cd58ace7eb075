"""Servers that shims start on demand: who starts one, what it has of its caller, and when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cnisdk._thick import ondemand, shim
from cnisdk._thick.lifetime import IDLE, Lifetime, is_memory_short
from cnisdk._thick.protocol import get_peer_ids
from cnisdk._thick.server import ask_status, is_served
from cnisdk.errors import IOFailureError

from ..environments import ROOT, Environment

PLUGIN = """
import os
from cnisdk import NetConf, Plugin, PluginMain, Result


class Noop(Plugin[NetConf]):
    '''noop: does nothing, or waits for the other end of a FIFO'''

    leaves_only_links = True
    leaves_process_unchanged = True

    def add(self, request):
        if fifo := request.args.get("FIFO"):
            open(fifo).read()
        return Result(extra={"parent": os.getppid()})

    def delete(self, request):
        pass


main = PluginMain(Noop)
"""

# Of a stand-in for systemd-run: it becomes the command.
RUN_THE_REST = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'

INIT = """
set -eu
mount --make-rprivate /
for directory in /run /usr/local/sbin; do mount -t tmpfs -o mode=0755 tmpfs $directory; done
cp "$1" /usr/local/sbin/systemd-run
mkdir -p /run/systemd/system
echo ready
exec env --ignore-signal=CHLD cat # the kernel reaps orphans
"""


class Machine:
    """A machine: namespaces with a first process, and an environment with one plugin behind a shim.

    Its ``systemd-run`` becomes the server; it counts these attempts.
    """

    def __init__(self, directory: Path, environment: Environment) -> None:
        self.directory, self.environment = directory, environment
        self.starts_file = directory / "starts"
        self.starts_file.touch()
        program = directory / "systemd-run"
        program.write_text(f'#!/bin/sh\necho "$*" >>{self.starts_file}\n{RUN_THE_REST}')
        program.chmod(0o755)
        (directory / "conf").write_text('{"cniVersion": "1.0.0", "name": "net", "type": "noop"}')
        self.bin = environment.directory / "shims"
        unshare = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self.first = subprocess.Popen(
            [*unshare, "sh", "-c", INIT, "init", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.first.stdout is not None
        assert self.first.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{self.first.pid}/task/{self.first.pid}/children").read_text()
        self.pid = int(children)
        self.root = Path(f"/proc/{self.pid}/root")
        self.run_directory = self.root / "run" / "cnisdk"
        self.lock = self.run_directory / "lock"

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.first.communicate()  # its end kills all processes of the machine

    def install(self, *options: str) -> None:
        done = self.environment.install("--dest", str(self.bin), *(options))
        assert (done.returncode, done.stderr) == (0, "")

    def inside(self, argv: Sequence[str | Path]) -> list[str | Path]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--uts", "--ipc", *argv]

    def shell(self, command: str) -> None:
        subprocess.run(self.inside(["sh", "-euc", command]), check=True)

    def start(
        self, *through: str | Path, word: str | None = "on", args: str = "", **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a request, which other programs may start in their way."""
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/nowhere",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/nowhere",
            "CNI_ARGS": args,
            "SECRET": "of the caller",
        }
        if word is not None:
            environ["CNISDK_SERVER"] = word
        with (self.directory / "conf").open() as conf:
            return subprocess.Popen(
                self.inside([*through, self.bin / "noop"]),
                env=environ,
                stdin=conf,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **more,
            )

    def add(self, *through: str | Path, **more: Any) -> int:
        """Make a request, and wait for the end of its pipes. Return the parent of the process that ran it."""
        return self.finish(self.start(*through, **more))

    def finish(self, process: subprocess.Popen[bytes]) -> int:
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stderr) == (0, b""), (stdout, stderr)
        return int(json.loads(stdout)["parent"])

    def starts(self) -> list[str]:
        """The attempts to start a server."""
        return self.starts_file.read_text().splitlines()

    def forget_attempt(self) -> None:
        """Let a shim start a server again now."""
        os.utime(self.lock, (0, 0))

    def has_server(self) -> bool:
        """Return True if a server serves, and is not about to end."""
        try:
            return not ask_status(str(self.run_directory))["stopping"]
        except IOFailureError:
            return False

    def wait_for_server(self) -> int:
        """Wait until a server serves; return its process id, as it is outside of the machine."""
        deadline = time.monotonic() + 120
        while not self.has_server():
            assert time.monotonic() < deadline, self.describe()
            time.sleep(0.02)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.run_directory / "control.sock"))
            return get_peer_ids(sock)[0]

    def log(self) -> str:
        path = self.run_directory / "server.log"
        return path.read_text() if path.exists() else ""

    def describe(self) -> str:
        """Describe what may tell why no server runs."""
        return f"{self.log()}{ondemand.explain_absence(str(self.run_directory))}\n{self.starts()}\n{self.processes()}"

    def processes(self) -> str:
        return subprocess.run(self.inside(["ps", "-ef"]), check=True, capture_output=True, text=True).stdout

    def serve(self) -> int:
        """Have a server started by a request, and wait until it serves."""
        self.add()
        return self.wait_for_server()

    def have_another_started(self, starts: int) -> None:
        """Make requests until one has started a server, after so many that were started before.

        A worker that is left may serve a request, or a new one have the lock for a moment: then none is started.
        """
        while len(self.starts()) == starts and not self.has_server():
            self.forget_attempt()
            request = self.start()  # to a worker that is still there, it may say that the server ended
            stdout, stderr = request.communicate(timeout=120)
            assert request.returncode == 0, (stdout, stderr)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(end, select.POLLIN)
    ended = poll.poll(120_000)
    os.close(end)
    assert ended


def make_environment(directory: Path) -> Environment:
    """Make an environment with a copy of this checkout, which a test may change, and shims in its directory ``bin``."""
    if os.geteuid() != 0 or os.readlink("/proc/self/ns/user") != "user:[4026531837]":
        pytest.skip("needs root, outside of any user namespace")
    if shim.find_prebuilt() is None and shim.find_compiler() is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no C compiler")
    made = Environment(directory / "venv")
    (made.site / "cnisdk").unlink()
    shutil.copytree(ROOT / "cnisdk", made.site / "cnisdk")
    (made.site / "demo_plugins.py").write_text(PLUGIN)
    made.register({"noop": "demo_plugins:main"})
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def machine(tmp_path: Path, shared: Environment) -> Iterator[Machine]:
    """A machine with an environment of several tests."""
    with Machine(tmp_path, shared) as made:
        made.install()
        yield made


@pytest.fixture
def own_machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with an environment of its own, which the test may change."""
    with Machine(tmp_path, make_environment(tmp_path)) as made:
        made.install()
        yield made


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "busy", "changed", "short", "reason"),
    [
        (99.0 + IDLE, False, None, False, None),
        (100.0 + IDLE, False, None, False, "no request came for 600 seconds"),
        (100.0 + IDLE, True, None, False, None),
        (100.0, False, "/a", False, "/a was changed or removed"),
        (100.0, True, "/a", True, "/a was changed or removed"),
        (100.0, True, None, True, "memory is short"),
    ],
)
def test_when_it_ends(now: float, busy: bool, changed: str | None, short: bool, reason: str | None) -> None:
    lifetime = Lifetime(0.0)
    lifetime.note_request(100.0)
    lifetime.note_request(50.0)
    assert lifetime.find_reason(now, busy=busy, changed=changed, short=short) == reason


def test_a_server_without_any_request_ends_too() -> None:
    assert Lifetime(7.0).find_reason(7.0 + IDLE, busy=False, changed=None, short=False) is not None


PRESSURE = "some avg10={} avg60=0.00 avg300=0.00 total=0\nfull avg10=90.00 avg60=0.00 avg300=0.00 total=0\n"
MEMINFO = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: {} kB\n"


@pytest.mark.parametrize(
    ("pressure", "meminfo", "short"),
    [
        (PRESSURE.format("0.00"), MEMINFO.format(0), False),
        (PRESSURE.format("20.00"), "", False),
        (PRESSURE.format("20.01"), "", True),
        (PRESSURE.format("20.01"), MEMINFO.format(249), True),
        (PRESSURE.format("90.00"), MEMINFO.format(250), False),  # one container waits, which has reached its own limit
        (PRESSURE.format("90.00"), MEMINFO.format(970), False),
        ("", MEMINFO.format(50), False),
        ("", MEMINFO.format(49), True),
        ("", "MemTotal: 1000 kB\n", False),
        ("", "", False),
    ],
)
def test_when_memory_is_short(pressure: str, meminfo: str, short: bool) -> None:
    assert is_memory_short(pressure, meminfo) is short


def test_what_changes_an_installation(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_text("x")
    installation = ondemand.Installation([str(first)])
    installation.add([str(first), str(second)])
    assert installation.find_change() is None
    os.utime(second, (1, 1))
    assert installation.find_change() == str(second)
    installation = ondemand.Installation([str(first), str(second)])
    (tmp_path / "new").write_text("x")
    shutil.copystat(first, tmp_path / "new")
    os.rename(tmp_path / "new", first)
    assert installation.find_change() == str(first)
    first.unlink()
    assert installation.find_change() == str(first)
    assert ondemand.Installation(["/nowhere"]).find_change() == "/nowhere"


# --- a start ----------------------------------------------------------------------------------------------------------


def test_the_first_request_is_one_shot_and_later_ones_are_served(machine: Machine) -> None:
    """The pipes of the first request end with it, while the server lives on."""
    first = machine.add()
    pid = machine.wait_for_server()
    status = ask_status(str(machine.run_directory))
    assert status["onDemand"] is True
    assert first != machine.add() == status["pid"]
    assert len(machine.starts()) == 1
    os.kill(pid, signal.SIGTERM)
    wait_for_end(pid)


def test_a_second_server_leaves_the_place_to_the_first(machine: Machine) -> None:
    """As when a machine takes so long to start the first that a shim starts another."""
    pid = machine.serve()
    command: list[str | Path] = [
        machine.environment.python,
        "-I",
        "-m",
        "cnisdk",
        "serve",
        "--on-demand",
        machine.bin / "noop",
    ]
    done = subprocess.run(machine.inside(command), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.wait_for_server() == pid


def test_a_module_that_is_no_file_does_not_end_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("in_an_archive")
    module.__file__ = str(tmp_path / "archive.zip" / "in_an_archive.py")
    monkeypatch.setitem(sys.modules, "in_an_archive", module)
    program = tmp_path / "shim"
    program.touch()
    found = ondemand.OnDemand(str(program), -1, 0)
    assert found._installation.find_change() is None
    program.unlink()
    assert found._installation.find_change() == str(program)


def test_a_burst_starts_one(machine: Machine) -> None:
    for process in [machine.start() for _ in range(50)]:
        machine.finish(process)
    machine.wait_for_server()
    assert len(machine.starts()) == 1


ODD_CALLER = """
import ctypes, os, resource, signal, sys
os.umask(0o077)
os.nice(5)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("500")
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, 40})
for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, 41):
    signal.signal(number, signal.SIG_IGN)
os.chdir(sys.argv[1])
os.dup2(1, 9)
os.dup2(1, 200)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_what_it_has_of_its_caller(machine: Machine, tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb"), os.fdopen(write, "wb"):
        odd = machine.start("python3", "-I", "-c", ODD_CALLER, tmp_path, pass_fds=[write], start_new_session=True)
        machine.finish(odd)
    pid = machine.wait_for_server()
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    assert status["PPid"] == str(machine.pid)
    assert status["Umask"] == "0022"
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) == 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1  # Python's own
    assert os.readlink(proc / "cwd") == "/"
    assert os.getsid(pid) not in (os.getsid(0), odd.pid)
    variables = dict(each.split("=", 1) for each in (proc / "environ").read_text().rstrip("\0").split("\0"))
    assert {"PATH"} <= variables.keys() <= {"PATH", "PWD", "LC_CTYPE"}
    assert "SECRET" not in variables
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(machine.pid)
    assert (proc / "oom_score_adj").read_text() == "0\n"
    kept = "it keeps its resource limits" in machine.log()  # that takes CAP_SYS_RESOURCE, which a test may lack
    assert kept or resource.prlimit(pid, resource.RLIMIT_CORE) == resource.prlimit(machine.pid, resource.RLIMIT_CORE)
    files = {int(each.name): os.readlink(each) for each in (proc / "fd").iterdir()}
    assert files[0] == "/dev/null"
    assert files[1] == files[2] == "/run/cnisdk/server.log"
    lock = [number for number, name in files.items() if name == "/run/cnisdk/lock"]
    assert len(lock) == 1
    # All others are the server's own sockets and pipes: both ends of each pipe are in it.
    others = [name for number, name in files.items() if number > 2 and number not in lock]
    assert all(name.startswith(("socket:", "pipe:", "anon_inode:", "/dev/null")) for name in others), others
    assert os.stat(machine.run_directory).st_mode & 0o777 == 0o700
    assert {os.stat(machine.run_directory / each).st_mode & 0o777 for each in ("lock", "server.log")} == {0o600}


def test_it_leaves_the_callers_control_group(machine: Machine) -> None:
    machine.shell("rmdir /run/systemd/system; mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    group = machine.root / "sys" / "fs" / "cgroup" / f"cnisdk-test-{os.getpid()}"
    group.mkdir()
    try:
        machine.add("sh", "-euc", f'echo 0 >/sys/fs/cgroup/{group.name}/cgroup.procs; exec "$@"', "sh")
        pid = machine.wait_for_server()
        assert "0::/\n" in Path(f"/proc/{pid}/cgroup").read_text()
    finally:
        group.rmdir()


def test_systemd_starts_it_where_it_is(machine: Machine) -> None:
    """The unit's command serves, once it is run as a unit is."""
    machine.shell(
        f'printf \'#!/bin/sh\\nprintf "%%s\\\\0" "$@" >{machine.starts_file}\\n\' >/usr/local/sbin/systemd-run'
    )
    machine.add()
    argv = wait_for_text(machine.starts_file).rstrip("\0").split("\0")
    assert argv[:3] == ["--quiet", "--no-block", "--collect"]
    # A unit whose processes have not all ended keeps its name.
    assert re.fullmatch(r"--unit=cnisdk-on-demand-\d+", argv[3])
    command = argv[argv.index("--") + 1 :]
    assert command[-4:] == ["--on-demand", str(machine.bin / "noop"), "--directory", "/run/cnisdk"]
    unit = machine.inside(["env", "-i", "INVOCATION_ID=1", "PATH=/usr/bin:/bin", *command])
    with subprocess.Popen(unit, stderr=subprocess.PIPE) as server:
        pid = machine.wait_for_server()
        assert machine.add() == ask_status(str(machine.run_directory))["pid"]
        os.kill(pid, signal.SIGTERM)
        stderr = server.communicate(timeout=120)[1]
    assert stderr.startswith(b"cnisdk serve: noop, in /run/cnisdk\n")  # the journal's


def wait_for_text(path: Path) -> str:
    deadline = time.monotonic() + 120
    while not (text := path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return text


# --- never ------------------------------------------------------------------------------------------------------------

SECCOMP = """
import ctypes, os, struct, sys
allow = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(allow)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
program = Program(1, ctypes.addressof(buffer))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    "through",
    [
        [],
        *(["unshare", f"--{kind}"] for kind in ("mount", "net", "uts", "ipc", "cgroup")),
        ["unshare", "--time", "--fork"],
        ["unshare", "--user", "--map-root-user"],
        ["unshare", "--pid", "--fork"],
        ["chroot", "/mnt"],
        ["setpriv", "--no-new-privs"],
        ["setpriv", "--regid", "65534", "--keep-groups"],
        ["setpriv", "--bounding-set", "-net_raw"],
        ["setpriv", "--inh-caps", "-net_raw", "--bounding-set", "-net_raw"],
        ["python3", "-I", "-c", SECCOMP],
    ],
    ids=lambda words: " ".join(words)[:40] or "none",
)
def test_a_process_that_is_not_all_of_root_starts_none(machine: Machine, through: list[str]) -> None:
    if "chroot" in through:
        machine.shell("mount --rbind / /mnt")
    machine.add(*through)
    assert machine.lock.exists() is (not through)


def test_another_user_starts_none(machine: Machine) -> None:
    machine.shell("chmod 1777 /run")
    for path in (machine.bin, *machine.bin.parents):
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(0o755)
    process = machine.start("setpriv", "--reuid", "65534", "--clear-groups")
    stdout, _ = process.communicate(timeout=120)
    assert stdout.startswith(b"{")  # the plugin's, or the launcher's, since this user may not see the interpreter
    assert not machine.run_directory.exists()


@pytest.mark.parametrize("word", ["off", None, ""])
def test_a_pid_namespace_or_the_word_off(machine: Machine, word: str | None) -> None:
    """Without a word, none is started in a PID namespace. All other tests say ``on``, which permits it there."""
    machine.add(word=word)
    assert not machine.run_directory.exists()


@pytest.mark.parametrize(
    "setup",
    [
        "mount -o remount,ro /run",
        "mkdir -m 0755 /run/cnisdk",
        "mkdir -m 0700 /run/other; ln -s other /run/cnisdk",
        "mkdir -m 0700 /run/cnisdk; chown 65534 /run/cnisdk",
        "mkdir -m 0700 /run/cnisdk; touch /run/file; ln -s ../file /run/cnisdk/lock",
        "mkdir -m 0700 /run/cnisdk; mkfifo -m 0600 /run/cnisdk/lock",
        "mkdir -m 0700 /run/cnisdk; mkdir -m 0700 /run/cnisdk/lock",
        "mkdir -m 0700 /run/cnisdk; touch /run/cnisdk/lock; chmod 0666 /run/cnisdk/lock",
        "mkdir -m 0700 /run/cnisdk; touch /run/cnisdk/lock; chmod 0600 /run/cnisdk/lock; chown 65534 /run/cnisdk/lock",
        "mount -t tmpfs tmpfs /mnt; cp -a /etc/. /mnt; mkdir /mnt/cnisdk; >/mnt/cnisdk/no-server; mount -B /mnt /etc",
    ],
)
def test_a_place_that_is_not_roots_alone(machine: Machine, setup: str) -> None:
    machine.shell(setup)
    machine.add()
    assert machine.starts() == []
    assert not (machine.root / "run" / "file").exists() or (machine.root / "run" / "file").read_bytes() == b""


def test_other_shims_start_none(own_machine: Machine) -> None:
    own_machine.install("--thick")
    process = own_machine.start()
    assert b"no server listens at /run/cnisdk/server.sock" in process.communicate(timeout=120)[1]
    own_machine.install("--no-server")
    own_machine.add()
    assert not own_machine.run_directory.exists()


def test_a_start_that_fails_is_not_repeated_at_once(own_machine: Machine) -> None:
    (own_machine.environment.site / "cnisdk" / "_thick" / "lifetime.py").write_text("1 / 0\n")
    for _ in range(5):
        own_machine.add()
    assert len(own_machine.starts()) == 1
    ahead = own_machine.lock.stat().st_mtime - time.time()
    assert 0 < ahead <= 10
    own_machine.forget_attempt()
    own_machine.add()
    assert len(own_machine.starts()) == 2
    os.utime(own_machine.lock, (0, time.time() + 10**6))  # the clock was put back: it is not waited for
    own_machine.add()
    assert len(own_machine.starts()) == 3


def test_a_server_of_another_installation_is_not_tried_again_soon(own_machine: Machine) -> None:
    """As after an upgrade, before `cnisdk install` is run again."""
    own_machine.environment.register({"noop": "demo_plugins:main", "more": "demo_plugins:main"})
    info = own_machine.environment.site / "demo_plugins-1.0.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("Version: 1.0", "Version: 1.1"))
    own_machine.add()
    deadline = time.monotonic() + 120
    while "run `cnisdk install` again" not in own_machine.log():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert own_machine.lock.stat().st_mtime > time.time() + ondemand.MISMATCH_PAUSE - 120
    own_machine.add()
    assert len(own_machine.starts()) == 1


# --- an end -----------------------------------------------------------------------------------------------------------


def shorten(machine: Machine, old: str, new: str) -> None:
    path = machine.environment.site / "cnisdk" / "_thick" / "lifetime.py"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_it_ends_when_no_request_comes(own_machine: Machine) -> None:
    shorten(own_machine, "IDLE = 600.0", "IDLE = 2.0")
    pid = own_machine.serve()
    own_machine.add()
    wait_for_end(pid)
    assert "it ends, since no request came for 2 seconds" in own_machine.log()
    left = {each.name for each in own_machine.run_directory.iterdir()}
    assert left <= {"control.sock", "fallbacks", "lock", "metrics.prom", "server.log"}
    own_machine.forget_attempt()
    assert own_machine.serve() != pid
    assert len(own_machine.starts()) == 2


def touch_module(machine: Machine) -> None:
    os.utime(machine.environment.site / "demo_plugins.py", (1, 1))


def remove_package(machine: Machine) -> None:
    shutil.rmtree(machine.environment.site / "cnisdk" / "plugin")


def replace_interpreter(machine: Machine) -> None:
    python = Path(machine.environment.python)
    target = python.resolve()
    python.unlink()
    shutil.copy2(target, python)


def uninstall(machine: Machine) -> None:
    argv = [machine.environment.python, "-m", "cnisdk", "uninstall", "--dest", str(machine.bin)]
    subprocess.run(argv, check=True, capture_output=True)


def install_launchers(machine: Machine) -> None:
    machine.install("--no-server")


@pytest.mark.parametrize("change", [touch_module, remove_package, replace_interpreter, uninstall, install_launchers])
def test_it_ends_when_its_installation_is_replaced(own_machine: Machine, change: Callable[[Machine], None]) -> None:
    pid = own_machine.serve()
    change(own_machine)
    wait_for_end(pid)
    assert "was changed or removed" in own_machine.log()


def test_it_ends_when_memory_is_short_and_is_not_started_again(machine: Machine) -> None:
    pid = machine.serve()
    (machine.directory / "pressure").write_text(PRESSURE.format("50.00"))
    (machine.directory / "meminfo").write_text(MEMINFO.format(1))
    for name in ("pressure/memory", "meminfo"):
        if Path("/proc", name).exists():
            machine.shell(f"mount --bind {machine.directory}/{name.partition('/')[0]} /proc/{name}")
    wait_for_end(pid)
    assert "it ends, since memory is short" in machine.log()
    assert machine.lock.stat().st_mtime > time.time()
    machine.add()
    assert len(machine.starts()) == 1
    machine.forget_attempt()
    machine.add()
    deadline = time.monotonic() + 120
    while len(machine.starts()) < 2 or "it ends" not in machine.log():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_running_requests_are_finished_and_others_do_not_wait(own_machine: Machine) -> None:
    pid = own_machine.serve()
    fifo = own_machine.directory / "fifo"
    os.mkfifo(fifo)
    running = own_machine.start(args=f"IgnoreUnknown=1;FIFO={fifo}")
    write = os.open(fifo, os.O_WRONLY)  # when the plugin has opened it
    touch_module(own_machine)
    deadline = time.monotonic() + 120
    while (own_machine.run_directory / "server.sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ask_status(str(own_machine.run_directory))["stopping"] is True
    own_machine.forget_attempt()
    own_machine.add()
    assert len(own_machine.starts()) == 1  # the first one has the lock
    os.close(write)
    own_machine.finish(running)
    wait_for_end(pid)
    own_machine.add()
    assert own_machine.wait_for_server() != pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_request_fails_when_servers_come_and_go(machine: Machine, number: signal.Signals) -> None:
    machine.serve()
    for _ in range(4):
        requests = [machine.start() for _ in range(6)]
        pid = machine.wait_for_server()
        starts = len(machine.starts())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        requests += [machine.start() for _ in range(6)]
        for process in requests:
            stdout, stderr = process.communicate(timeout=120)
            assert process.returncode == 0, (stdout, stderr)
        machine.have_another_started(starts)
    machine.wait_for_server()


# --- beside other servers ---------------------------------------------------------------------------------------------


def start_server(machine: Machine, *options: str | Path) -> subprocess.Popen[bytes]:
    argv = [machine.environment.python, "-I", "-m", "cnisdk", "serve", *options]
    return subprocess.Popen(machine.inside(argv), stderr=subprocess.PIPE)


def test_it_leaves_the_place_to_a_server_that_is_there(machine: Machine) -> None:
    with start_server(machine) as other:
        machine.wait_for_server()
        pid = ask_status(str(machine.run_directory))["pid"]
        with start_server(machine, "--on-demand", machine.bin / "noop") as on_demand:
            assert on_demand.wait(timeout=120) == 0
        assert ask_status(str(machine.run_directory))["pid"] == pid
        other.terminate()


def test_it_ends_when_another_server_takes_its_place(machine: Machine) -> None:
    pid = machine.serve()
    with start_server(machine) as other:
        wait_for_end(pid)
        assert not ask_status(str(machine.run_directory))["onDemand"]
        other.terminate()


def test_a_server_that_was_killed_during_a_request_is_replaced(machine: Machine) -> None:
    """Its worker keeps the socket open, so that shims still connect."""
    pid = machine.serve()
    fifo = machine.directory / "fifo"
    os.mkfifo(fifo)
    waiting = machine.start(args=f"IgnoreUnknown=1;FIFO={fifo}")
    with fifo.open("w"):  # the worker reads it
        os.kill(pid, signal.SIGKILL)
        machine.forget_attempt()
        stderr = b""
        while not stderr:  # an idle worker may serve until it sees the server's end
            stderr = machine.start().communicate(timeout=120)[1]
        assert b"does not answer in time" in stderr
        assert machine.wait_for_server() != pid
    waiting.communicate(timeout=120)
    assert waiting.returncode == 0


@pytest.mark.parametrize("how", ["lost", "busy"])
def test_a_request_that_the_remains_of_a_server_do_not_take_has_another_started(machine: Machine, how: str) -> None:
    """Workers outlive a server that was killed, and hold its socket. They may end before they take a connection."""
    machine.run_directory.mkdir(mode=0o700)
    path = str(machine.run_directory / "server.sock")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(path)
        listener.listen(0)
        if how == "busy":
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)).connect(path)
        request = machine.start()
        if how == "lost":
            connection, _ = listener.accept()
            listener.close()  # the server that is started is not to find it
            connection.close()
        stdout, stderr = request.communicate(timeout=120)
    assert request.returncode == 0, (stdout, stderr)
    assert b"running the plugin in a process of its own instead" in stderr
    if how == "lost":
        machine.wait_for_server()
    deadline = time.monotonic() + 120
    while not machine.starts():
        assert time.monotonic() < deadline
        time.sleep(0.02)


DAEMON = """
import signal, sys
if "serve" in sys.orig_argv and not os.fork():
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    signal.pause()
"""


def test_a_daemon_that_a_plugin_leaves_in_a_server_does_not_keep_the_next_one_away(own_machine: Machine) -> None:
    module = own_machine.environment.site / "demo_plugins.py"
    module.write_text(f"{module.read_text()}{DAEMON}")
    pid = own_machine.serve()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    own_machine.have_another_started(1)
    assert own_machine.wait_for_server() != pid


def test_a_server_that_has_ended_and_was_not_reaped_is_no_server(tmp_path: Path) -> None:
    """As in a container whose first process reaps nothing. A worker of that server still holds its socket."""
    done, end = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "server.sock"))
        server = os.fork()
        if server == 0:
            listener.listen()
            os.close(end)
            os.read(done, 1)
            os._exit(0)
        deadline = time.monotonic() + 120
        while not is_served(str(tmp_path)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.close(end)
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
        assert not is_served(str(tmp_path))
    os.close(done)
    os.waitpid(server, 0)


@pytest.mark.parametrize("modified", [1, 2**32])
def test_a_file_that_was_written_while_it_was_loaded_counts_as_changed(tmp_path: Path, modified: int) -> None:
    """Whatever its time of modification: package managers set an old one, and another machine may set one ahead."""
    path = tmp_path / "module.py"
    path.touch()
    os.utime(path, (modified, modified))
    written = path.stat().st_ctime_ns
    before, after = ondemand.Installation([]), ondemand.Installation([])
    before.add([str(path)], since=written)
    assert before.find_change() is None
    after.add([str(path)], since=written - 1)
    assert after.find_change() == str(path)


def test_a_clock_that_was_put_back_does_not_make_all_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that was installed before it asked for the time. Else no server would serve until then."""
    path = tmp_path / "module.py"
    path.touch()
    written = path.stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: written - 1)
    installation = ondemand.Installation([])
    installation.add([str(path)], since=written - 2)
    assert installation.find_change() is None


def test_it_ends_when_a_package_is_installed(machine: Machine) -> None:
    """Whose plugins it would decline to run."""
    pid = machine.serve()
    new = machine.environment.site / "new_plugins.py"
    new.touch()
    try:
        wait_for_end(pid)
    finally:
        new.unlink()


def test_a_plugin_that_cannot_be_loaded_is_not_tried_for_each_request(machine: Machine) -> None:
    broken = "broken-plugins"
    machine.environment.register({"broken": "demo_missing:main"}, broken)
    try:
        deadline = time.monotonic() + 120
        while not machine.lock.exists() or machine.lock.stat().st_mtime < time.time() + 100:
            machine.add()  # on a busy machine a server may give up before it has loaded the plugins
            assert time.monotonic() < deadline, machine.log()
        assert "demo_missing" in machine.log()
        again: list[str | Path] = [machine.environment.python, "-m", "cnisdk", "install", "--dest", machine.bin, "noop"]
        subprocess.run(machine.inside(again), check=True, stdout=subprocess.DEVNULL)
        assert machine.lock.stat().st_mtime <= time.time()
    finally:
        shutil.rmtree(machine.environment.site / "broken_plugins-1.0.dist-info")


# --- for people -------------------------------------------------------------------------------------------------------


def test_the_status_says_why_no_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden, lock = tmp_path / "no-server", tmp_path / "lock"
    monkeypatch.setattr(ondemand, "FORBIDDEN", str(forbidden))
    directory = str(tmp_path)
    assert ondemand.explain_absence(directory).startswith("no shim has tried to start one yet")
    held = ondemand.take_lock(directory)
    assert held is not None
    assert "it has the lock" in ondemand.explain_absence(directory)
    ondemand.postpone(held, 600)
    os.close(held)
    assert re.match(r"shims start one in (600|599) seconds at the earliest", ondemand.explain_absence(directory))
    ondemand.permit_start(directory)
    with pytest.raises(IOFailureError, match="no server answers") as caught:
        ask_status(directory)
    assert caught.value.details.startswith("the next request starts one")
    lock.unlink()
    lock.symlink_to("elsewhere")
    assert "cannot be opened: ELOOP" in ondemand.explain_absence(directory)
    forbidden.touch()
    assert ondemand.explain_absence(directory) == f"shims start none, since there is {forbidden}"
