"""A worker serves again, unless a request has left anything in its process."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cnisdk._cli.launchers import search_path
from cnisdk._thick import protocol, shim, worker
from cnisdk._thick.accept_queue import AcceptQueue
from cnisdk._thick.server import ask_status
from cnisdk.plugin._launch import code_of, interpreter_of, render
from cnisdk.testing import Host, Sandbox

from ..modes import Plugins
from .compiled import compiled_shim

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = b'{"cniVersion":"1.1.0","supportedVersions":["1.0.0"]}'

# Plugins that tell what they see of their process, and leave in it what CNI_ARGS says.
PLUGINS = """
import _thread, atexit, contextlib, ctypes, os, resource, signal, socket, sys, tempfile, time
from cnisdk import InvalidConfigError, NetConf, Plugin, PluginMain, Result
from cnisdk.invoke import _local

KEPT_STDOUT = sys.stdout
libc = ctypes.CDLL(None, use_errno=True)
KEPT = []

LEAKS = {
    "an environment variable": lambda: os.environ.update(LEFT="behind"),
    "a working directory": lambda: os.chdir("/usr"),
    "a umask": lambda: os.umask(0o707),
    "a descriptor": lambda: os.dup(2),
    "a closed descriptor": lambda: os.close(find("anon_inode:[eventpoll]")),
    "a signal handler": lambda: signal.signal(signal.SIGUSR1, print),
    "a handler of SIGTERM": lambda: signal.signal(signal.SIGTERM, print),
    "an ignored signal": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    "a blocked signal": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
    "a timer": lambda: signal.setitimer(signal.ITIMER_REAL, 1000),
    "a thread": lambda: _thread.start_new_thread(time.sleep, (1000,)),
    "a network namespace": lambda: libc.unshare(0x40000000),
    "a mount namespace": lambda: libc.unshare(0x20000),
    "a child": lambda: os.posix_spawn("/bin/sleep", ["sleep", "100"], {}, file_actions=[(1, 0), (1, 1), (1, 2)]),
    "a zombie": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "a root directory": lambda: os.chroot("/usr") or os.chdir("/"),
    "a capability": lambda: libc.prctl(24, 27, 0, 0, 0),
    "no_new_privs": lambda: libc.prctl(38, 1, 0, 0, 0),
    "a resource limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "a process group": lambda: os.setpgid(0, os.getpgid(os.getppid())),
    "an exit function": lambda: atexit.register(KEPT.append, 1),
    "another stdout": lambda: setattr(sys, "stdout", open(os.devnull, "w")),
    "a timeout of sockets": lambda: socket.setdefaulttimeout(5),
    "much memory": lambda: KEPT.append(bytearray(os.urandom(1)) * (64 << 20)),
}


class Tidy(Plugin[NetConf]):
    '''Promises to leave nothing.'''

    leaves_process_unchanged = True

    def add(self, request):
        what = request.args.get("DO", "").replace("+", " ")
        if what == "refuse":
            raise InvalidConfigError("no")
        if what == "bug":
            raise ZeroDivisionError
        if what == "exit":
            sys.exit(3)
        if what == "wait":
            os.write(2, b"READY\\n")
            while True:
                time.sleep(0.1)
        if what == "hold":
            os.write(2, b"READY\\n")
            open(os.environ["HELD"]).read()
        if what == "write":
            KEPT_STDOUT.write("kept ")
            sys.__stdout__.write("original")
        if what == "nice":
            os.nice(5)
        if what == "temporary":
            return Result(extra={"pid": os.getpid(), "directory": tempfile.gettempdir()})
        if what == "daemon":
            return Result(extra={"daemon": start_daemon()})
        seen = look()
        if what in LEAKS:
            LEAKS[what]()
        return Result(extra={"pid": os.getpid(), "seen": seen})

    def delete(self, request):
        pass


class Silent(Tidy):
    '''Inherits no promise.'''


def start_daemon():
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        if os.fork() == 0:  # what the first fork has closed, this one has not got
            kept = [fd for fd in range(3, 64) if os.path.lexists(f"/proc/self/fd/{fd}")]
            os.write(writing, f"{os.getpid()} {[where(fd) for fd in kept]}".encode())
            # What a caller reads to its end; a one-shot plugin's daemon would have that, too.
            for fd in [0, 1, 2, writing, *(fd for fd in kept if where(fd).startswith("pipe:"))]:
                with contextlib.suppress(OSError):
                    os.close(fd)
            time.sleep(1000)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    found = os.read(reading, 1 << 16).decode()
    os.close(reading)
    return found


def find(target):
    (fd,) = [fd for fd in range(3, 64) if os.path.lexists(f"/proc/self/fd/{fd}") and target == where(fd)]
    return fd


def where(fd):
    return os.readlink(f"/proc/self/fd/{fd}")


def look():
    umask = os.umask(0)
    os.umask(umask)
    handlers = {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()}
    return {
        "environ": {key: value for key, value in os.environ.items() if key != "CNI_ARGS"}, "cwd": os.getcwd(),
        "umask": umask, "fds": len(os.listdir("/proc/self/fd")), "argv": sys.argv, "streams": sys.stdin.read(),
        "handlers": {each: text.partition(" object at")[0] for each, text in handlers.items()},
        "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "timer": signal.getitimer(signal.ITIMER_REAL),
        "threads": len(os.listdir("/proc/self/task")), "net": os.readlink("/proc/self/ns/net"),
        "mnt": os.readlink("/proc/self/ns/mnt"), "nice": os.getpriority(0, 0),
        "root": os.stat("/").st_ino, "core": resource.getrlimit(resource.RLIMIT_CORE), "kept": len(KEPT),
        "timeout": socket.getdefaulttimeout(), "own group": os.getpgid(0) == os.getpid(),
        "rights": [line for line in open("/proc/self/status") if line.startswith(("Cap", "NoNew"))],
    }


tidy, silent = PluginMain(Tidy), PluginMain(Silent)


def plain():
    print('{"pid": %d, "runner": "%s"}' % (os.getpid(), _local.runner))
"""

SERVE = """
import sys
from pathlib import Path
from cnisdk._thick import worker
from cnisdk._thick.load import load_plugins
from cnisdk._thick.server import Server
worker._MOST_REQUESTS = int(sys.argv[3])
sampled = Path(sys.argv[1], "sampled")
worker._write_sample = lambda *_: sampled.open("a").write(f"{worker.os.getpid()}\\n")
names = ("tidy", "silent", "plain")
plugins = load_plugins({name: Path(sys.argv[1], name + ".launcher").read_bytes() for name in names})
Server(plugins, sys.argv[2], ready=1, limit=1).run()
"""


class Stage:
    """A host with a server of three plugins that has one worker."""

    def __init__(self, host: Sandbox, directory: Path, most: int = 256) -> None:
        self.host, self.directory, self.runtime = host, directory, str(directory / "run")
        (directory / "reusing.py").write_text(PLUGINS)
        paths = [str(directory), str(ROOT), *(search_path(sys.executable) or [path for path in sys.path if path])]
        for name in ("tidy", "silent", "plain"):
            argv, code = interpreter_of(sys.executable, paths), code_of("reusing", name, paths)
            launcher = render(f"{name}: reusing:{name} of a test", argv, code, VERSIONS.decode())
            (directory / f"{name}.launcher").write_bytes(launcher)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(protocol, "SHIM_TIMEOUT", 30.0)  # a busy machine is no failure
                path = directory / name
                path.write_bytes(compiled_shim(shim.ShimTexts(name, launcher, VERSIONS, self.runtime)))
                path.chmod(0o755)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(directory / "told"))
            told.settimeout(60)
            self.server = host.popen(
                [sys.executable, "-c", SERVE, directory, self.runtime, str(most)],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(paths),
                    "PYTHONUNBUFFERED": "",
                    "NOTIFY_SOCKET": str(directory / "told"),
                },
            )
            assert told.recv(100) == b"READY=1"

    def environ(self, do: str = "") -> dict[str, str]:
        named = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/x", "CNI_IFNAME": "e", "CNI_PATH": "/x"}
        return {**named, "PATH": os.environ["PATH"], "CNI_ARGS": f"DO={do.replace(' ', '+')}"}

    def start(self, do: str = "", *prefix: str, **environ: str) -> subprocess.Popen[str]:
        """Start a request to tidy."""
        process = self.host.popen(
            [*prefix, self.directory / "tidy"],
            env={**self.environ(do), **environ},
            stdin=-1,
            stdout=-1,
            stderr=-1,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write('{"cniVersion": "1.0.0", "name": "net", "type": "tidy"}')
        process.stdin.close()
        process.stdin = None
        return process

    def ask(self, do: str = "", name: str = "tidy", *prefix: str, status: int = 0) -> dict[str, Any]:
        """Send a request, and return the answer."""
        done = self.host.run(
            [*prefix, self.directory / name],
            env=self.environ(do),
            input='{"cniVersion": "1.0.0", "name": "net", "type": "tidy"}',
            check=False,
        )
        assert done.returncode == status, done
        assert "instead" not in done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture
def make_stage(host: Sandbox, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    if shim.find_compiler() is None:
        pytest.skip("no C compiler")
    made: list[Stage] = []

    def make(most: int = 256) -> Stage:
        made.append(Stage(host, tmp_path, most))
        return made[-1]

    yield make
    for stage in made:
        stage.server.kill()
        stage.server.communicate()


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage()


def test_a_worker_serves_again_and_each_request_finds_the_same(stage: Stage) -> None:
    answers = [stage.ask() for _ in range(5)]
    assert all(answer == answers[0] for answer in answers)
    assert stage.ask("refuse", status=1)["code"] == 7  # an error that the plugin foresees
    assert stage.ask() == answers[0]
    pid = answers[0]["pid"]
    # At rest it holds nothing of its last caller.
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {os.devnull}
    assert Path(f"/proc/{pid}/cwd").readlink() == Path(f"/proc/{stage.server.pid}/cwd").readlink()


def test_temporary_files_are_where_each_caller_wants_them(stage: Stage) -> None:
    """Python looks for the place once in a process."""
    answers = []
    for name in ("one", "other"):
        (stage.directory / name).mkdir()
        process = stage.start("temporary", TMPDIR=str(stage.directory / name))
        answers.append(json.loads(process.communicate(timeout=60)[0]))
    assert answers[0]["pid"] == answers[1]["pid"]
    assert [each["directory"] for each in answers] == [str(stage.directory / name) for name in ("one", "other")]


def test_a_daemon_that_a_plugin_leaves_does_not_keep_the_servers_socket(stage: Stage) -> None:
    """Else shims would connect for ever to a server that is gone, and wait in vain."""
    pid, _, kept = stage.ask("daemon")["daemon"].partition(" ")
    try:
        assert "eventpoll" not in kept
        stage.server.kill()
        stage.server.wait()
        connected = 0
        while connected == 0:  # until the workers have ended, too
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                connected = client.connect_ex(f"{stage.runtime}/server.sock")
        assert connected == errno.ECONNREFUSED
    finally:
        os.kill(int(pid), signal.SIGKILL)


LEAKS = [line.partition('"')[2].partition('"')[0] for line in PLUGINS.splitlines() if line.startswith('    "')]


def test_a_worker_in_which_something_is_left_ends(stage: Stage) -> None:
    assert len(LEAKS) == 24
    usual = stage.ask()
    for leak in LEAKS:
        before = stage.ask(leak)
        after = stage.ask()
        assert (leak, before["seen"]) == (leak, usual["seen"])
        assert (leak, after["seen"]) == (leak, usual["seen"])
        assert before["pid"] != after["pid"], leak


@pytest.mark.parametrize("do", ["bug", "exit"])
def test_a_worker_in_which_a_plugin_fails_unforeseen_ends(stage: Stage, do: str) -> None:
    first = stage.ask()
    assert stage.ask(do, status=1)["code"] == 999
    second = stage.ask()
    assert second["pid"] != first["pid"]
    assert second["seen"] == first["seen"]


def test_a_worker_whose_request_a_signal_ended_ends(stage: Stage) -> None:
    first = stage.ask()
    process = stage.start("wait")
    assert process.stderr is not None
    assert process.stderr.readline() == "READY\n"
    process.terminate()
    assert json.loads(process.communicate(timeout=60)[0])["msg"] == "ended by signal 15"
    assert stage.ask()["pid"] != first["pid"]


def test_a_plugin_that_promises_nothing_is_the_last_of_its_process(stage: Stage) -> None:
    pids = [stage.ask(name=name)["pid"] for name in ("tidy", "silent", "silent", "tidy", "tidy")]
    assert len(set(pids)) == 3
    assert pids[0] == pids[1]  # a process that has served tidy alone is as a new one
    assert pids[3] == pids[4]


def test_a_program_that_is_no_plugin_finds_no_runner_of_delegates(stage: Stage) -> None:
    pid = stage.ask()["pid"]
    assert stage.ask(name="plain") == {"pid": pid, "runner": "None"}


def test_text_reaches_the_caller_of_the_request_that_wrote_it(stage: Stage) -> None:
    """Also text in stream objects that a plugin kept when the server loaded it."""
    first = stage.ask()
    written, again = (stage.start(do) for do in ("write", ""))
    assert sorted(written.communicate(timeout=60)[1].split()) == ["kept", "original"]
    assert written.returncode == 0
    assert again.communicate(timeout=60)[1] == ""
    assert stage.ask() == first  # the same process


def test_a_worker_whose_text_cannot_be_written_ends(stage: Stage) -> None:
    first = stage.ask()
    process = stage.start("write", "sh", "-c", 'exec "$0" 2>/dev/full')
    assert json.loads(process.communicate(timeout=60)[0])["pid"] == first["pid"]
    assert process.returncode == 120  # as Python's, when it cannot write its output
    assert stage.ask()["pid"] != first["pid"]


def test_a_worker_takes_no_further_request_from_a_server_that_stops(stage: Stage) -> None:
    first = stage.ask()
    pipe = stage.directory / "pipe"
    os.mkfifo(pipe)
    held = stage.start("hold", HELD=str(pipe))
    assert held.stderr is not None
    assert held.stderr.readline() == "READY\n"
    waiting = stage.start()
    while Path(f"/proc/{waiting.pid}/stat").read_text().rpartition(") ")[2][0] != "S":
        pass  # then it is connected, and waits for a worker
    stage.server.terminate()
    while not stage.host.call(ask_status, stage.runtime)["stopping"]:
        pass
    stage.host.call(ask_status, stage.runtime)  # answered in a later round: the workers have been told
    pipe.write_text("")
    assert json.loads(held.communicate(timeout=60)[0])["pid"] == first["pid"]
    stdout, stderr = waiting.communicate(timeout=60)
    assert "instead" in stderr
    assert json.loads(stdout)["pid"] != first["pid"]
    assert stage.server.wait(60) == 0


def test_a_worker_that_has_served_accepts_nothing_after_the_stop(tmp_path: Path) -> None:
    stop, stopper = os.pipe()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client,
    ):
        listener.bind(str(tmp_path / "queue"))
        listener.listen(1)
        listener.setblocking(False)
        retire, retirer = os.pipe()
        queue = AcceptQueue(listener, stop, retire)
        client.connect(str(tmp_path / "queue"))
        assert not queue.is_stopped()
        os.close(stopper)
        assert queue.is_stopped()
        assert worker._accept(queue, served=True) is None
        accepted = worker._accept(queue, served=False)  # a new worker: it is the last to take one
        assert accepted is not None
        accepted.close()
        queue.close()
        os.close(retirer)


def test_a_worker_ends_after_so_many_requests(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(most=3)
    pids = [stage.ask()["pid"] for _ in range(7)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]


CALLER = """
import ctypes, os, sys
os.chdir("/usr"); os.umask(0o123); os.environ["MARK"] = "x"
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
assert ctypes.CDLL(None).unshare(0x40000000) == 0
os.execv(sys.argv[1], sys.argv[1:2])
"""


def test_the_next_caller_sees_nothing_of_the_last(stage: Stage) -> None:
    usual = stage.ask()
    other = stage.ask("", "tidy", sys.executable, "-I", "-S", "-c", CALLER)
    seen = other["seen"]
    assert (seen["cwd"], seen["umask"], seen["environ"]["MARK"]) == ("/usr", 0o123, "x")
    assert seen["net"] != usual["seen"]["net"]
    again = stage.ask()
    assert again == usual  # also the same process
    pid = again["pid"]
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(stage.server.pid)
    # A nice value can be put back by a process with CAP_SYS_NICE; another one ends.
    assert stage.ask("nice") == {**usual, "seen": {**usual["seen"], "nice": usual["seen"]["nice"] + 5}}
    assert stage.ask()["seen"] == usual["seen"]


def test_a_shim_that_lives_on_may_still_send_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_END_TIMEOUT", 10)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        assert not worker._wait_for_end(here)
        there.send(b"?")
        assert not worker._wait_for_end(here)
        there.close()
        assert worker._wait_for_end(here)


# --- the plugins of this project --------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A request to one of the reference plugins, which make nothing but leases in a directory here."""

    type: str
    verb: str
    container: str
    keys: dict[str, Any]
    environ: dict[str, str]


PREVIOUS = {"interfaces": [{"name": "lo", "sandbox": "/run/netns/blue"}], "ips": [{"address": "127.0.0.1/8"}]}
KEYS: dict[str, list[dict[str, Any]]] = {
    "host-local": [
        {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/30"}]]}},
        {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/99"}]]}},
        {"ipam": {"type": "host-local", "ranges": [[{"subnet": "fd00::/64"}]], "routes": [{"dst": "::/0"}]}},
    ],
    "static": [
        {"ipam": {"type": "static", "addresses": [{"address": "10.2.0.5/24"}]}},
        {"ipam": {"type": "static", "addresses": [{"adress": "10.2.0.5/24"}]}},
    ],
    "loopback": [{}, {"prevResult": PREVIOUS}, {"prevResult": {"ips": 1}}],
    "tuning": [{"sysctl": {"net.ipv4.conf.lo.arp_notify": "1"}, "prevResult": PREVIOUS}, {"sysctl": 1}, {"mtu": "x"}],
}


def asked_requests() -> st.SearchStrategy[Asked]:
    def of(type_: str) -> st.SearchStrategy[Asked]:
        return st.builds(
            Asked,
            st.just(type_),
            st.sampled_from(["ADD", "ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION", "add", ""]),
            st.sampled_from(["one", "two", "three", "../four", ""]),
            st.sampled_from(KEYS[type_]).flatmap(
                lambda keys: st.sampled_from(["1.1.0", "1.0.0", "0.4.0", "0.2.0", "9", 1]).map(
                    lambda version: {**keys, "cniVersion": version}
                )
            ),
            st.sampled_from([{}, {"CNI_ARGS": "IP=10.1.0.2"}, {"CNI_NETNS": ""}, {"CNI_IFNAME": "a/b"}, {"LANG": "C"}]),
        )

    return st.sampled_from(sorted(KEYS)).flatmap(of)


@pytest.mark.slow
def test_requests_in_any_order_get_the_answers_of_fresh_processes(
    new_host: Callable[[], Host], install: Callable[[str], Plugins]
) -> None:
    """Each sequence runs once through the server, and once by launchers on a host like it."""
    served, alone = new_host(), new_host()
    for host in (served, alone):
        host.run(["ip", "netns", "add", "blue"])
    served.run(["sh", "-euc", install("resident").setup])

    def answer(host: Host, mode: str, asked: Asked) -> list[str]:
        directory = install(mode).directory
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": asked.verb,
            "CNI_CONTAINERID": asked.container,
            "CNI_NETNS": "/run/netns/blue",
            "CNI_IFNAME": "lo",
            "CNI_PATH": str(directory),
            **asked.environ,
        }
        text = json.dumps({"name": "net", "type": asked.type, **asked.keys})
        done = host.run([directory / asked.type], env=environ, input=text, check=False)
        return [str(each).replace(str(directory), "/bin") for each in (done.returncode, done.stdout, done.stderr)]

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(asked_requests(), min_size=3, max_size=8))
    def check(sequence: list[Asked]) -> None:
        for host in (served, alone):
            host.run(["rm", "-rf", "/var/lib/cni"])
        for asked in sequence:
            assert answer(served, "resident", asked) == answer(alone, "one-shot", asked)

    check()
    install("resident").assert_served()
