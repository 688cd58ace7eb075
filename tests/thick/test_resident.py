"""The resident mode: a plugin behind a shim does what it would in a process of its own, whatever the server does."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, cast

import pytest

from cnisdk._cli.launchers import search_path
from cnisdk._thick import protocol, shim
from cnisdk._thick.accept_queue import AcceptQueue
from cnisdk._thick.metrics import Metrics
from cnisdk._thick.pool import PAUSE
from cnisdk._thick.server import Server, ensure_directory
from cnisdk._thick.systemd import render_units
from cnisdk.errors import IOFailureError
from cnisdk.plugin._launch import code_of, interpreter_of, render
from cnisdk.testing import Sandbox

from .compiled import compiled_shim

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = '{"cniVersion":"1.1.0","supportedVersions":["1.0.0"]}'

# Without the C library, which takes a CPU it knows; with it.
KINDS = ["c", "libc"]

PLUGINS = """
import os, select, signal, sys, threading
from cnisdk import InvalidConfigError, NetConf, Plugin, PluginMain, Result


class Probe(Plugin[NetConf]):
    '''Tells what it sees.'''

    def add(self, request):
        mode = request.args.get("MODE", "")
        if mode == "state":
            umask = os.umask(0)
            os.umask(umask)
            return Result(extra={
                "environ": dict(os.environ), "cwd": os.getcwd(), "umask": umask, "argv": sys.argv,
                "netns": os.readlink("/proc/self/ns/net"), "stdin": sys.stdin.read(), "uid": os.getuid(),
                "fds": sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd < 3),
                "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
                "pipe": int(signal.getsignal(signal.SIGPIPE)), "child": int(signal.getsignal(signal.SIGCHLD)),
                "main": threading.current_thread() is threading.main_thread(),
            })
        if mode == "print":
            print("to people")
            os.write(1, b"raw\\n")
            os.system("echo child")
        if mode == "refuse":
            raise InvalidConfigError("no", details="never")
        if mode == "bug":
            raise ZeroDivisionError
        if mode == "orphan" and not (child := os.fork()):  # a daemon that is no other program
            for fd in (0, 1, 2):
                os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            signal.pause()
        if mode == "orphan":
            os.write(2, b"READY %d\\n" % child)
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "exec":
            os.execv("/bin/sh", ["sh", "-c", f"sleep 1; echo {request.container_id} >>{request.document['log']}"])
        if mode == "large":  # larger than a pipe: it is written in parts
            os.write(2, b"READY %d\\n" % os.getpid())
            return Result(extra={"fill": "x" * 1000000})
        if mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "leak":
            os.environ["LEAKED"] = "1"
            sys.modules["leaked"] = sys
            os.chdir("/")
        if mode == "keep":
            return Result(extra={"kept": [os.dup(fd) for fd in (0, 1, 2)], "pid": os.getpid()})
        if mode == "wait":
            request.undo(os.write, 2, b"UNDONE\\n")
            os.write(2, b"READY %d\\n" % os.getpid())
            while True:  # a signal just before a wait without end would be handled at its end: never
                select.select([], [], [], 0.1)
        return Result(extra={"leaked": "LEAKED" in os.environ or "leaked" in sys.modules})

    def delete(self, request):
        with open(request.document["log"], "a") as file:
            file.write(request.container_id + "\\n")


main = PluginMain(Probe)


def other():
    print("another program", os.environ["CNI_COMMAND"])
    raise SystemExit(7)
"""

SERVE = """
import errno, os, signal, sys, time
from pathlib import Path
from cnisdk._thick.load import load_plugins
from cnisdk._thick import accept_queue, server, worker
def fail(*_):  # in three workers; then as it was
    with open(sys.argv[5], "a") as file:
        print(time.monotonic(), file=file)
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
def fail_with(number):
    raise OSError(number, os.strerror(number))
def failing(function):
    return lambda *args: (function if len(Path(sys.argv[5]).read_text().split()) == 3 else fail)(*args)
if sys.argv[4:5] == ["stillborn"]:
    worker.prepare_worker = failing(worker.prepare_worker)
if sys.argv[4:5] == ["deaf"]:
    accept_queue.AcceptQueue.accept = failing(accept_queue.AcceptQueue.accept)
if sys.argv[4:] == ["linger"]:  # each worker stops, where nothing more is to do than to end
    report = worker._report_line
    worker._report_line = lambda to, line: (report(to, line), "done" in line and os.kill(os.getpid(), signal.SIGSTOP))
if sys.argv[4:] == ["hopeless"]:
    worker.prepare_worker = lambda: fail_with(errno.EMFILE)
if sys.argv[4:] == ["childless"]:
    os.fork = lambda: fail_with(errno.EAGAIN)
plugins = load_plugins({name: Path(sys.argv[1], name).read_bytes() for name in ("probe", "other")})
# Of those that fail, one at a time: on a busy machine one that gets no processor would have another forked beside it.
limit = 1 if sys.argv[4:5] in (["stillborn"], ["deaf"]) else 16
server.Server(plugins, sys.argv[2], ready=int(sys.argv[3]), limit=limit).run()
"""


class Installation:
    """Launchers and shims of two plugins."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = str(directory / "run")
        (directory / "probing.py").write_text(PLUGINS)
        found = search_path(sys.executable)
        self.paths = [str(directory), str(ROOT), *(found or [path for path in sys.path if path])]
        for kind in ("launchers", *KINDS):
            (directory / kind).mkdir()
            for name, attribute in (("probe", "main"), ("other", "other")):
                self.write(kind, name, attribute, name)

    def write(self, kind: str, name: str, attribute: str, file: str) -> None:
        """Write a launcher or a shim into a file."""
        launcher = self.launcher(name, attribute)
        text = launcher
        texts = shim.ShimTexts(name, launcher, VERSIONS.encode(), self.runtime)
        if kind != "launchers":
            if shim.find_compiler() is None:
                return  # whoever wants one is skipped
            text = compiled_shim(texts, shim.COMPILER_FLAGS[0 if kind == "c" else -1])
            assert shim.read_record(text) == (shim.THICK, self.runtime)
        (self.directory / kind / file).write_bytes(text)
        (self.directory / kind / file).chmod(0o755)

    def launcher(self, name: str, attribute: str, about: str = "a test") -> bytes:
        code = code_of("probing", attribute, self.paths)
        argv = interpreter_of(sys.executable, self.paths)
        return render(f"{name}: probing:{attribute} of {about}", argv, code, VERSIONS)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "SHIM_TIMEOUT", 30.0)  # a busy machine is no failure
        return Installation(tmp_path_factory.mktemp("thick"))


class Machine:
    """A host, with a server or without."""

    def __init__(self, host: Sandbox, installation: Installation) -> None:
        self.host, self.installation = host, installation
        self.servers: list[subprocess.Popen[str]] = []
        self.log = installation.directory / "log"

    @property
    def socket(self) -> Path:
        return Path(self.installation.runtime, "server.sock")

    def serve(self, ready: int = 2, *more: str, stderr: IO[str] | None = None) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.installation.directory)])}
        before = self.socket.stat().st_ino if self.socket.exists() else 0
        argv: list[str | Path] = [
            sys.executable,
            "-c",
            SERVE,
            self.installation.directory / "launchers",
            self.installation.runtime,
            str(ready),
            *more,
        ]
        server = self.host.popen(argv, env=env, stderr=stderr)
        self.servers.append(server)
        deadline = time.monotonic() + 60
        while not self.socket.exists() or self.socket.stat().st_ino == before:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return server

    def start(self, kind: str, verb: str, args: str = "", name: str = "probe", **more: str) -> subprocess.Popen[str]:
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/nowhere",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/nowhere",
            "CNI_ARGS": args,
            "ODD": "a\udc80b",
            **more,
        }
        if kind in ("c", "libc") and shim.find_compiler() is None:
            pytest.skip("no C compiler")
        process = self.host.popen(
            [self.installation.directory / kind / name],
            env=environ,
            cwd=self.installation.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # VERSION reads nothing
            process.stdin.write(f'{{"cniVersion": "1.0.0", "name": "net", "type": "probe", "log": "{self.log}"}}')
            process.stdin.close()
        process.stdin = None
        return process

    def run(self, kind: str, verb: str, args: str = "", name: str = "probe", **more: str) -> tuple[int, str, str]:
        process = self.start(kind, verb, args, name, **more)
        stdout, stderr = process.communicate(timeout=60)
        own = f"{self.installation.directory / kind}/"
        return process.returncode, stdout.replace(own, "/DIR/"), stderr.replace(own, "/DIR/")


@pytest.fixture
def machine(host: Sandbox, installation: Installation) -> Iterator[Machine]:
    machine = Machine(host, installation)
    yield machine
    for server in machine.servers:
        server.kill()
        server.communicate()
    for path in Path(installation.runtime).glob("*"):
        path.unlink()


INSTEAD = "cnisdk: running the plugin in a process of its own instead: "


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_can_tell(machine: Machine, kind: str) -> None:
    machine.serve()
    for verb, args in (
        ("ADD", "MODE=print"),
        ("ADD", "MODE=refuse"),
        ("ADD", "MODE=bug"),
        ("ADD", "malformed"),
        ("ADD", "MODE=leak"),
        ("DEL", ""),
        ("NOPE", ""),
        ("VERSION", ""),
    ):
        served, alone = machine.run(kind, verb, args), machine.run("launchers", verb, args)
        assert served == alone, (verb, args, served, alone)
    assert machine.run(kind, "ADD", name="other") == machine.run("launchers", "ADD", name="other")
    assert machine.run(kind, "ADD")[1:] == (
        '{\n    "cniVersion": "1.0.0",\n    "dns": {},\n    "leaked": false\n}',
        "",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_process_is_the_same(machine: Machine, kind: str) -> None:
    machine.serve()
    seen = []
    for each in (kind, "launchers"):
        status, stdout, stderr = machine.run(each, "ADD", "MODE=state")
        assert (status, stderr) == (0, "")
        state = json.loads(stdout)
        state["environ"].pop("PWD", None)  # shells set it
        state["environ"].pop("LC_CTYPE", None)  # and Python itself, where no locale is set
        assert state["environ"]["ODD"] == "a\ufffdb"
        seen.append(state)
    for key in seen[1].keys() | seen[0].keys():
        assert seen[0].get(key) == seen[1].get(key), key


def test_the_callers_network_namespace(machine: Machine) -> None:
    if shim.find_compiler() is None:
        pytest.skip("no C compiler")
    machine.serve()
    machine.host.add_netns("blue")
    seen = []
    for kind in ("c", "launchers"):
        argv: list[str | Path] = ["ip", "netns", "exec", "blue", machine.installation.directory / kind / "probe"]
        environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_IFNAME": "e", "CNI_NETNS": "/x"}
        done = machine.host.run(
            argv,
            env={**environ, "CNI_ARGS": "MODE=state", "PATH": os.environ["PATH"]},
            input='{"cniVersion": "1.0.0", "name": "net"}',
        )
        seen.append(json.loads(done.stdout)["netns"])
    # `ip netns exec` also makes a mount namespace, in which paths mean something else: the server leaves that alone.
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_server(machine: Machine, kind: str) -> None:
    status, stdout, stderr = machine.run(kind, "ADD")
    assert (status, json.loads(stdout)["leaked"]) == (0, False)
    assert stderr.startswith(INSTEAD)


def test_no_request_waits_for_a_reader_of_what_its_shim_notes(machine: Machine) -> None:
    """A pipe in the place of the file in which shims count, which opens when another process reads it: never."""
    os.makedirs(machine.installation.runtime, mode=0o700, exist_ok=True)
    os.mkfifo(Path(machine.installation.runtime, "fallbacks"))
    assert machine.run("c", "ADD")[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_hangs(machine: Machine, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SHIM_TIMEOUT", 0.5)
    machine.installation.write(kind, "probe", "main", "hanging")
    os.makedirs(machine.installation.runtime, mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(machine.socket))
        listener.listen()
        status, _, stderr = machine.run(kind, "ADD", name="hanging")
    assert status == 0
    assert stderr == f"{INSTEAD}the server does not answer in time\n"


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_that_is_too_large_for_a_message(machine: Machine, kind: str) -> None:
    machine.serve()
    large = {f"LARGE{number}": "x" * 100_000 for number in range(8)}
    status, stdout, stderr = machine.run(kind, "ADD", "MODE=state", **large)
    assert status == 0
    assert stderr.startswith(f"{INSTEAD}the request cannot be handed over")
    assert json.loads(stdout)["environ"]["LARGE7"] == large["LARGE7"]
    assert machine.run(kind, "ADD", "MODE=state", LARGE="x" * 50_000)[2] == ""


def test_where_many_requests_wait_there_are_many_workers_until_they_end(machine: Machine) -> None:
    machine.serve(ready=2)
    assert idle(machine, lambda count: count == 2) == 2
    running = [machine.start("c", "ADD", "MODE=wait") for _ in range(12)]
    for process in running:
        wait_until_ready(process)
    for process in running:
        process.terminate()
        assert process.communicate(timeout=60)[1] == "UNDONE\n"
    assert idle(machine, lambda count: count == 2) == 2


def test_after_a_storm_the_server_answers_and_ends(machine: Machine) -> None:
    """Requests by the dozen, a third of them killed by their runtime. The server once ignored SIGTERM afterwards."""
    server = machine.serve()
    for _ in range(2):
        storm = [machine.start("c", "ADD") for _ in range(45)]
        for process in storm[::3]:
            process.kill()
        assert status_of(machine)["pid"] == server.pid  # it answers meanwhile
        for number, process in enumerate(storm):
            stdout, stderr = process.communicate(timeout=60)
            assert number % 3 == 0 or process.returncode == 0, (stdout, stderr)
    assert idle(machine, lambda count: count >= 2) >= 2
    last = [machine.start("c", "ADD") for _ in range(15)]
    server.terminate()
    for process in last:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert server.wait(timeout=60) == 0


def idle(machine: Machine, wanted: Callable[[int], bool], seconds: float = 60) -> int:
    """How many workers wait, once it is as it should be; or in the end."""
    deadline = time.monotonic() + seconds
    while not wanted(count := status_of(machine)["idle"]) and time.monotonic() < deadline:
        pass
    return count


def workers_of(server: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def test_workers_that_are_stopped_are_replaced(machine: Machine) -> None:
    """As a debugger or the freezer stops them. No request waits until its shim gives up."""
    server = machine.serve()
    assert idle(machine, lambda count: count == 2) == 2
    stopped = workers_of(server)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert machine.run("c", "ADD")[::2] == (0, "")
        deadline = time.monotonic() + 60  # the last request's worker ends; another comes in its place
        while not set(stopped) < set(workers_of(server)):
            assert time.monotonic() < deadline
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_workers_that_are_stopped_do_not_keep_a_server_that_ends(machine: Machine) -> None:
    server = machine.serve()
    assert idle(machine, lambda count: count == 2) == 2
    stopped = workers_of(server)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    server.terminate()
    assert server.wait(timeout=60) == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in stopped)


def test_a_server_of_another_version(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SHIM_TIMEOUT", 30.0)
    machine.serve()
    installation = machine.installation
    if shim.find_compiler() is None:
        pytest.skip("no C compiler")
    launcher = installation.launcher("probe", "main", "a newer test")
    other = installation.directory / "c" / "newer"
    other.write_bytes(compiled_shim(shim.ShimTexts("probe", launcher, VERSIONS.encode(), installation.runtime)))
    other.chmod(0o755)
    status, _, stderr = machine.run("c", "ADD", name="newer")
    assert status == 0
    assert stderr.startswith(f"{INSTEAD}the server declines: it is of another version")


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_dies_is_an_error(machine: Machine, kind: str) -> None:
    machine.serve()
    status, stdout, stderr = machine.run(kind, "ADD", "MODE=die")
    assert status == 1
    assert json.loads(stdout)["code"] == 999
    assert "it is not run again" in stderr
    assert machine.run(kind, "ADD")[::2] == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_dies_while_it_answers_leaves_one_document(machine: Machine, kind: str) -> None:
    machine.serve()
    process = machine.start(kind, "ADD", "MODE=large")
    worker = wait_until_ready(process)
    assert process.stdout is not None
    select.select([process.stdout], [], [])  # the answer has begun, and cannot end: the pipe is full
    os.kill(worker, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout.startswith('{\n    "cniVersion": "1.0.0",\n    "dns": {},\n    "fill": "xxx')
    assert stdout.endswith("xxx"), "there is no second document"
    assert stderr == "cnisdk: the worker died while it answered the request; it is not run again\n"
    assert machine.run(kind, "ADD")[::2] == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_is_an_error_while_its_process_runs(machine: Machine, kind: str) -> None:
    """A plugin that becomes another program can give no answer. The DEL after the error must find its work done."""
    machine.log.write_text("")
    machine.serve()
    process = machine.start(kind, "ADD", "MODE=exec")
    assert process.wait(60) == 1
    assert machine.log.read_text() == "c1\n"
    stdout, stderr = process.communicate(timeout=60)
    assert json.loads(stdout)["code"] == 999
    assert "it is not run again" in stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_dies_is_an_error_also_when_a_process_of_it_lives_on(machine: Machine, kind: str) -> None:
    machine.serve()
    process = machine.start(kind, "ADD", "MODE=orphan")
    daemon = wait_until_ready(process)
    try:
        assert process.wait(60) == 1
    finally:
        os.kill(daemon, signal.SIGKILL)  # it holds the pipes
    stdout, stderr = process.communicate(timeout=60)
    assert json.loads(stdout)["code"] == 999
    assert stderr == "cnisdk: the worker died while it ran the request; it is not run again\n"


def wait_until_ready(process: subprocess.Popen[str]) -> int:
    """Read byte by byte: what comes after the line is left for `communicate`, which looks into no buffer."""
    assert process.stderr is not None
    line = b""
    while byte := os.read(process.stderr.fileno(), 1):
        line += byte
        if byte == b"\n":
            if line.startswith(b"READY"):
                return int(line.split()[1])
            line = b""
    raise AssertionError("the plugin ended early")


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_reaches_the_plugin(machine: Machine, kind: str) -> None:
    machine.serve()
    process = machine.start(kind, "ADD", "MODE=wait")
    wait_until_ready(process)
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads(stdout)["msg"] == "ended by signal 15"
    assert stderr == "UNDONE\n"


def test_a_signal_to_a_worker_that_waits_is_not_the_requests(machine: Machine) -> None:
    server = machine.serve()
    assert idle(machine, lambda count: count == 2) == 2
    for pid in workers_of(server):
        os.kill(pid, signal.SIGTERM)
    for _ in range(2):
        assert machine.run("c", "ADD")[::2] == (0, "")


def test_a_killed_shim_takes_the_worker_with_it(machine: Machine) -> None:
    machine.serve()
    process = machine.start("c", "ADD", "MODE=wait")
    fd = os.pidfd_open(wait_until_ready(process))
    process.kill()
    process.communicate()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(60_000)
    os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_the_answer_does_not_wait_for_the_end_of_the_worker(machine: Machine, kind: str) -> None:
    """A runtime reads stdout and stderr, pipes, to their end; the plugin itself keeps copies of them."""
    machine.serve(2, "linger")
    status, stdout, stderr = machine.run(kind, "ADD", "MODE=keep")
    assert (status, stderr) == (0, "")
    pid = json.loads(stdout)["pid"]
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"  # it is there still
    os.kill(pid, signal.SIGKILL)


def test_a_worker_that_does_not_end_keeps_nothing_waiting(machine: Machine) -> None:
    """On a busy machine the end of a process takes any time; here it never comes."""
    server = machine.serve(2, "linger")
    workers = [json.loads(machine.run("c", "ADD", "MODE=keep")[1])["pid"] for _ in range(3)]
    deadline = time.monotonic() + 60
    while (status := status_of(machine))["requests"] < 3 or status["busy"]:
        assert time.monotonic() < deadline, status  # the shim knows sooner than the server that a request is answered
    assert status["requests"] == 3
    assert all(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX" for pid in workers)
    server.terminate()
    assert server.wait(60) == 0  # the kernel ends them then: a stopped process that nobody can continue


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_server_that_may_not_fork_goes_on(tmp_path: Path, number: int) -> None:
    server = Server({}, str(tmp_path), ready=4, limit=16)

    def refuse() -> int:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        assert not server._fork(cast(AcceptQueue, None), {}, rehearse=True)
    decision = server._pool.decide(time.monotonic())
    assert not decision.fork  # it does not try again without a pause
    assert decision.again


@pytest.mark.parametrize("how", ["childless", "hopeless"])
def test_no_request_waits_for_a_server_that_can_have_no_workers(machine: Machine, how: str) -> None:
    """As where the most processes are reached, or each worker fails before it can serve."""
    machine.serve(1, how)
    for _ in range(2):
        status, _, stderr = machine.run("c", "ADD")
        assert (status, stderr) == (0, f"{INSTEAD}the server ended before it took the request\n")


@pytest.mark.parametrize("how", ["stillborn", "deaf"])
def test_workers_that_fail_before_a_request(machine: Machine, tmp_path: Path, how: str) -> None:
    """As when a limit of open files is reached. There is a pause before each next one, and the reason is told."""
    times, errors = tmp_path / "times", tmp_path / "errors"
    times.touch()
    with errors.open("w") as stderr:
        machine.serve(1, how, str(times), stderr=stderr)
    assert machine.run("c", "ADD")[::2] == (0, "")
    failed = [float(each) for each in times.read_text().split()]
    assert [later - sooner >= PAUSE for sooner, later in pairwise(failed)] == [True, True]
    text = "cnisdk: a worker ends, since it cannot take requests: EMFILE: Too many open files\n"
    assert errors.read_text() == 3 * text


def status_of(machine: Machine) -> dict[str, int]:
    argv = [sys.executable, "-m", "cnisdk", "serve", "--status", "--directory", machine.installation.runtime]
    done = machine.host.run(argv, env={**os.environ, "PYTHONPATH": str(ROOT)})
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def test_status_and_metrics(machine: Machine) -> None:
    os.makedirs(machine.installation.runtime, mode=0o700, exist_ok=True)
    machine.run("c", "ADD")
    machine.serve()
    for args in ("", "", "MODE=refuse", "MODE=die"):
        machine.run("c", "ADD", args)
    expected = {"requests": 3, "errors": 1, "fallbacks": 1, "died": 1, "busy": 0}
    deadline = time.monotonic() + 60
    # The shim knows sooner than the server that a request is answered, and that a worker died.
    while (status := {key: value for key, value in status_of(machine).items() if key in expected}) != expected:
        assert time.monotonic() < deadline, status
    machine.servers[0].terminate()
    machine.servers[0].communicate(timeout=60)
    text = Path(machine.installation.runtime, "metrics.prom").read_text()
    assert 'cnisdk_requests_total{plugin="probe",verb="ADD"} 3\n' in text
    assert 'cnisdk_errors_total{plugin="probe",verb="ADD"} 1\n' in text
    assert 'cnisdk_fallbacks_total{plugin="probe",reason="absent"} 1\n' in text
    assert 'cnisdk_request_seconds_bucket{plugin="probe",verb="ADD",le="+Inf"} 3\n' in text
    assert not machine.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_servers_change_under_load(machine: Machine, number: signal.Signals) -> None:
    """Every request is run once, by one server or the other or by the shim, and none fails."""
    machine.log.write_text("")
    server = machine.serve()
    sent = []
    running: list[subprocess.Popen[str]] = []
    for count in range(60):
        sent.append(f"c{count}")
        running.append(machine.start("c", "DEL", CNI_CONTAINERID=sent[-1]))
        if count in (20, 40):
            if number == signal.SIGTERM:
                machine.serve()
                server.terminate()
                server = machine.servers[-1]
            else:
                server.send_signal(number)
                server = machine.serve()
    for process in running:
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (0, ""), stderr
    assert sorted(machine.log.read_text().split()) == sorted(sent)


def test_the_metrics_are_those_of_the_server_that_serves(machine: Machine) -> None:
    """A server whose place another has taken may end later, and must not have the last word."""
    first, metrics = machine.serve(), Path(machine.installation.runtime, "metrics.prom")
    assert machine.run("c", "ADD")[::2] == (0, "")
    machine.serve()
    assert idle(machine, lambda count: count == 2) == 2
    idle_workers, requests = 'cnisdk_workers{state="idle"} 2', "cnisdk_requests_total{"
    deadline = time.monotonic() + 60
    while idle_workers not in (text := metrics.read_text()) or requests in text:
        assert time.monotonic() < deadline
    first.terminate()
    first.communicate(timeout=60)
    text = metrics.read_text()
    assert idle_workers in text
    assert requests not in text


def test_a_server_whose_socket_is_gone_ends_and_can_be_started_again(machine: Machine) -> None:
    """No request reaches it any more. Who supervises it starts another, which makes the directory again."""
    server = machine.serve()
    running = machine.start("c", "ADD", "MODE=wait")
    wait_until_ready(running)
    shutil.rmtree(machine.installation.runtime)
    assert machine.run("c", "ADD")[0] == 0
    running.terminate()
    assert json.loads(running.communicate(timeout=60)[0])["code"] == 11
    assert server.wait(timeout=60) == 0
    assert not Path(machine.installation.runtime).exists()
    machine.serve()
    assert machine.run("c", "ADD")[::2] == (0, "")


def test_a_server_waits_for_its_requests(machine: Machine) -> None:
    server = machine.serve()
    process = machine.start("c", "ADD", "MODE=wait")
    wait_until_ready(process)
    server.terminate()
    assert machine.run("c", "ADD")[0] == 0
    assert server.poll() is None
    process.terminate()
    assert json.loads(process.communicate(timeout=60)[0])["code"] == 11
    assert server.wait(60) == 0


def test_memory_stays(machine: Machine) -> None:
    server = machine.serve()

    def size() -> int:
        for line in Path(f"/proc/{server.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1])
        raise AssertionError

    for _ in range(20):
        machine.run("c", "DEL")
    before = size()
    for _ in range(100):
        assert machine.run("c", "DEL")[::2] == (0, "")
    assert size() - before < 512  # KiB


def test_the_directory_is_the_users_alone(tmp_path: Path) -> None:
    ensure_directory(str(tmp_path / "new"))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    ensure_directory(str(tmp_path / "new"))
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(IOFailureError, match="not a directory of this user alone"):
        ensure_directory(str(tmp_path / "open"))
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(IOFailureError):
        ensure_directory(str(tmp_path / "link"))


def test_fallbacks_are_taken_over_once(tmp_path: Path) -> None:
    (tmp_path / "fallbacks").write_text("bridge absent\nbridge absent\nhost-local late\n%$ x\nhalf")
    metrics = Metrics(str(tmp_path / "metrics.prom"), str(tmp_path / "fallbacks"))
    assert metrics.summary()["fallbacks"] == 3
    assert metrics.summary()["fallbacks"] == 3
    assert os.listdir(tmp_path) == []


def test_units() -> None:
    units = render_units("/opt/a b/python", "/run/cnisdk")
    assert b'ExecStart="/opt/a b/python" -I -m cnisdk serve' in units["cnisdk.service"]
    assert b"ListenSequentialPacket=/run/cnisdk/server.sock" in units["cnisdk.socket"]
