"""Other users get nothing from the server, and nothing that a client sends keeps it from serving."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cnisdk._cli import cnisdk
from cnisdk._thick import protocol
from cnisdk._thick.server import ask_status
from cnisdk.testing import Host

from ..modes import SERVE, Plugins

NOBODY = 65534
ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/dev/null", "CNI_IFNAME": "eth0", "CNI_PATH": "."}


@pytest.fixture(scope="module")
def shims(install: Callable[[str], Plugins]) -> Plugins:
    return install("resident")


# --- another user -----------------------------------------------------------------------------------------------------


@pytest.fixture
def root() -> None:
    """Only root can become another user; an ordinary user has one id, in whatever namespace."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")


class Place:
    """A server's directory, shims for it, and a network that leaves its leases there; all where anybody can look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.chmod(0o755)
        self.bin, self.run_directory, self.leases = path / "bin", path / "run", path / "leases"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol, "SHIM_TIMEOUT", 30.0)  # a busy machine is no failure
            options = ["--thick", "--directory", str(self.run_directory), "host-local"]
            assert cnisdk.main(["install", "--dest", str(self.bin), *options]) == 0

    @property
    def socket(self) -> str:
        return str(self.run_directory / "server.sock")

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run a server, in the namespaces of this test: nothing but users is to tell a stranger from others."""
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with told:
            told.bind(str(self.path / "told"))
            told.settimeout(60)
            argv = ["setpriv", "--pdeathsig", "KILL", *SERVE[:-1], "--directory", str(self.run_directory)]
            server = subprocess.Popen(argv, env={**os.environ, "NOTIFY_SOCKET": str(self.path / "told")})
            try:
                assert told.recv(100) == b"READY=1"
                yield
            finally:
                server.terminate()
                server.wait(60)

    def open_up(self) -> None:
        """Take away what keeps others out."""
        self.run_directory.chmod(0o755)
        for path in self.run_directory.glob("*.sock"):
            path.chmod(0o666)

    def add(self, wrapper: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Ask a shim for an address."""
        ipam = {"type": "host-local", "dataDir": str(self.leases), "ranges": [[{"subnet": "10.1.0.0/24"}]]}
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "host-local", "ipam": ipam}
        return subprocess.run(
            [*wrapper, str(self.bin / "host-local")],
            env={**ADD, "PATH": os.environ["PATH"]},
            input=json.dumps(conf),
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def requests(self, expected: int) -> int:
        """Return how many requests the server has counted, once it is the expected number or a minute is over.

        The shim learns before the server that its request has ended.
        """
        deadline = time.monotonic() + 60
        while (count := int(ask_status(str(self.run_directory))["requests"])) != expected:
            if time.monotonic() > deadline:
                break
        return count

    def untouched(self) -> bool:
        """No request was served, and none left anything."""
        status = ask_status(str(self.run_directory))
        return (status["requests"], status["errors"], self.leases.exists()) == (0, 0, False)


@pytest.fixture
def make_place(root: None) -> Iterator[Callable[..., Place]]:
    with ExitStack() as stack:
        yield lambda: Place(Path(stack.enter_context(tempfile.TemporaryDirectory())))


@pytest.fixture
def place(make_place: Callable[..., Place]) -> Place:
    return make_place()


AS_NOBODY = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}


def as_nobody(function: Callable[[], Any]) -> Any:
    """Call a function in a process of that user; its value, or its exception."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = function()
        except BaseException as exc:
            answer = exc
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pickle.load(pipe)
    os.waitpid(child, 0)
    return answer


def reach(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(60)
    connection.connect(path)
    return connection


def listen_to(connection: socket.socket) -> tuple[int, int]:
    """The messages and the descriptors that come until the other side hangs up."""
    messages = descriptors = 0
    while True:
        try:
            data, files, _, _ = socket.recv_fds(connection, 1 << 16, 250)
        except ConnectionResetError:  # it did not read all we sent
            return messages, descriptors
        for fd in files:
            os.close(fd)
        descriptors += len(files)
        if not data:
            return messages, descriptors
        messages += 1


def test_permissions_keep_others_out(place: Place) -> None:
    with place.serving():
        assert place.run_directory.stat().st_mode & 0o777 == 0o700
        for name in ("server.sock", "control.sock"):
            path = place.run_directory / name
            assert path.stat().st_mode & 0o777 == 0o600
            assert isinstance(as_nobody(partial(reach, str(path))), PermissionError)
        place.run_directory.chmod(0o755)
        assert isinstance(as_nobody(partial(reach, place.socket)), PermissionError)
        assert place.untouched()


def test_a_stranger_who_gets_through_is_refused(place: Place) -> None:
    """By the server, should permissions be wrong: who connects is what counts."""

    def try_it() -> list[tuple[int, int]]:
        heard = []
        for message, count in ((b"", 0), (b"cnisdk", 3), (b"x" * 200, 6)):
            with reach(place.socket) as connection:
                try:
                    if message:
                        socket.send_fds(connection, [message], [0] * count)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it has hung up already
                heard.append(listen_to(connection))
        return heard

    with place.serving():
        place.open_up()
        for messages, descriptors in as_nobody(try_it):
            assert messages <= 1  # the refusal
            assert descriptors == 0
        assert place.untouched()


def test_a_stranger_with_a_forged_shim_is_refused(place: Place) -> None:
    """One that speaks the protocol, and does not mind that the server is another user's."""
    assert shutil.which("strace"), "needs strace"
    forged = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "inject=geteuid:retval=0"]
    with place.serving():
        place.open_up()
        done = place.add(forged, **AS_NOBODY)
        assert "running the plugin in a process of its own instead" in done.stderr
        assert place.untouched()
        assert place.add(forged[:5]).returncode == 0  # root's own, traced as well
        assert place.requests(1) == 1


def test_a_stranger_is_not_told_how_the_server_is(place: Place) -> None:
    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(60)
            connection.connect(str(place.run_directory / "control.sock"))
            return connection.recv(1 << 16)

    with place.serving():
        place.open_up()
        assert as_nobody(ask) == b""
        assert json.loads(ask())["requests"] == 0


def test_a_stranger_cannot_crowd_others_out(place: Place) -> None:
    """Not with more connections than there are workers, and places in the queue, which they keep open."""

    def crowd() -> None:
        made = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(300)]
        for connection in made:
            connection.connect(place.socket)
        for connection in made:
            listen_to(connection)  # it is refused; it need not go away for that
        os.write(begun, b"!")
        os.read(go_home, 1)

    waiting, begun = os.pipe()
    go_home, end = os.pipe()
    with place.serving():
        place.open_up()
        child = os.fork()
        if child == 0:
            os.close(end)
            os._exit(0 if as_nobody(crowd) is None else 1)
        assert os.read(waiting, 1) == b"!"
        done = place.add([])
        assert (done.returncode, done.stderr) == (0, "")
        assert place.requests(1) == 1
        os.close(end)
        assert os.waitpid(child, 0)[1] == 0
    for fd in (waiting, begun, go_home):
        os.close(fd)


def test_a_strangers_server_gets_nothing(make_place: Callable[..., Place]) -> None:
    place = make_place()
    place.run_directory.mkdir()
    place.run_directory.chmod(0o777)
    ours, theirs = os.pipe()

    def serve() -> tuple[int, int]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(place.socket)
            listener.listen()
            listener.settimeout(60)
            os.write(theirs, b"!")
            connection, _ = listener.accept()
            with connection:
                return listen_to(connection)

    child = os.fork()
    if child == 0:
        os._exit(0 if as_nobody(serve) == (0, 0) else 1)
    assert os.read(ours, 1) == b"!"
    done = place.add([])
    assert "another user's" in done.stderr
    assert json.loads(done.stdout)["ips"][0]["address"] == "10.1.0.2/24"
    assert os.waitpid(child, 0)[1] == 0
    for fd in (ours, theirs):
        os.close(fd)


def test_a_shim_that_is_another_users_takes_no_answer(host: Host, shims: Plugins) -> None:
    """For ordinary users, who have no second id: the shim is told that it has one."""
    if shutil.which("strace") is None and os.environ.get("CI") != "true":
        pytest.skip("needs strace")
    traced = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "inject=geteuid:retval=12345"]
    stdin = '{"cniVersion": "1.0.0", "name": "net", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}}'
    host.run(["sh", "-euc", shims.setup])
    for wrapper, fallbacks in ((traced[:5], []), (traced, ["host-local stranger"])):
        host.run([*wrapper, shims.directory / "host-local"], env={**ADD, "PATH": os.environ["PATH"]}, input=stdin)
        assert shims.take_fallbacks() == fallbacks
        host.run(["rm", "-r", "/var/lib/cni"])


# --- the same user, who means no good ---------------------------------------------------------------------------------


SOCKET = "/run/cnisdk/server.sock"

GARBAGE: dict[str, tuple[bytes, int]] = {
    "one byte": (b"\0", 0),
    "text without descriptors": (b"cnisdk1 host-local 0 22\n", 0),
    "text with too few": (b"cnisdk1 host-local 0 22\n", 2),
    "text with too many": (b"cnisdk1 host-local 0 22\n", 7),
    "as many as the kernel takes": (b"x", 253),
    "no text": (b"\xff\xfe" * 100, 6),
    "a large message": (b"A" * 100_000, 6),
}


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_refused_and_forgotten(host: Host, shims: Plugins, garbage: str) -> None:
    message, count = GARBAGE[garbage]

    def send() -> tuple[int, int, bool]:
        before = ask_status("/run/cnisdk")
        held = descriptors(before["pid"])
        for _ in range(10):
            with reach(SOCKET) as connection:
                socket.send_fds(connection, [message], [0] * count)
                listen_to(connection)
        after = ask_status("/run/cnisdk")
        # It opens a file now and then; one kept for each connection would be ten.
        return after["requests"], after["died"], descriptors(after["pid"]) - held < 5

    with shims.on(host):
        assert host.call(send) == (0, 0, True)
        add_and_delete(host, shims)


def test_a_request_whose_directory_cannot_be_entered_is_an_error_in_words(host: Host, shims: Plugins) -> None:
    """As on a network file system that has gone away. A program of its own would start in it."""
    request = b"host-local\0CNI_COMMAND=ADD\0"

    def send() -> tuple[bytes, bytes]:
        about = protocol.offer_prefix("host-local", ask_status("/run/cnisdk")["plugins"]["host-local"])
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        with here, there, reach(SOCKET) as connection:
            socket.send_fds(here, [request], [null, writing, null, null])
            os.close(writing)
            socket.send_fds(connection, [about + b" 22 %d 0" % len(request)], [there.fileno()])
            answer = connection.recv(100)
        with open(reading, "rb") as stdout:
            return answer, stdout.read()

    with shims.on(host):
        answer, printed = host.call(send)
        assert answer == b"exit 001\n"
        error = json.loads(printed)
        assert error["code"] == 999
        assert "Not a directory" in error["msg"]
        add_and_delete(host, shims)


def test_connections_that_end_at_once(host: Host, shims: Plugins) -> None:
    def come_and_go() -> None:
        for _ in range(100):
            reach(SOCKET).close()

    with shims.on(host):
        host.call(come_and_go)
        add_and_delete(host, shims)


def test_a_confined_process_that_comes_again_and_again_costs_no_processes(host: Host, shims: Plugins) -> None:
    """It may be kept from using the processor itself; the server is not.

    The server may have the two workers that it keeps, and no others: on a busy machine it would fork more while these
    two get no processor, and would retire as many later.
    """
    assert int(Path("/proc/1/status").read_text().partition("NoNewPrivs:")[2].split()[0]) == 0

    def come() -> tuple[set[int], set[int], int]:
        before = ask_status("/run/cnisdk")
        children = Path(f"/proc/{before['pid']}/task/{before['pid']}/children")
        while before["idle"] < 2:
            before = ask_status("/run/cnisdk")
        workers = set(map(int, children.read_text().split()))
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        for _ in range(50):
            with reach(SOCKET) as connection:
                assert connection.recv(100) == b"the caller is confined by no_new_privs\n"
                assert connection.recv(100) == b""
        while (after := ask_status("/run/cnisdk"))["declined"] < 50:
            pass
        return workers, set(map(int, children.read_text().split())), after["declined"]

    host.run(["sh", "-euc", f"{shlex.join(SERVE)} --limit 2 </dev/null >/dev/null 2>&1"])
    before, after, declined = host.call(come)
    assert declined == 50
    assert after == before
    add_and_delete(host, shims)
    shims.assert_served()


def drop_capabilities() -> None:
    header, data = struct.pack("Ii", 0x20080522, 0), bytes(24)  # _LINUX_CAPABILITY_VERSION_3, this process; none
    assert ctypes.CDLL(None).capset(header, data) == 0


CHANGES: dict[str, Callable[[], object]] = {
    "the caller has another root directory": lambda: os.chroot("/usr"),
    "the caller is in another mnt namespace": lambda: ctypes.CDLL(None).unshare(0x20000),  # CLONE_NEWNS
    "the caller is in another uts namespace": lambda: ctypes.CDLL(None).unshare(0x4000000),  # CLONE_NEWUTS
    "the caller is in another ipc namespace": lambda: ctypes.CDLL(None).unshare(0x8000000),  # CLONE_NEWIPC
    "the caller is confined by no_new_privs": lambda: ctypes.CDLL(None).prctl(38, 1, 0, 0, 0),
    "the caller has fewer capabilities": drop_capabilities,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_caller_that_gives_up_rights_after_it_has_connected_is_judged_without_them(
    host: Host, shims: Plugins, reason: str
) -> None:
    def change() -> tuple[bytes, int]:
        server = ask_status("/run/cnisdk")["pid"]
        workers = [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        os.kill(server, signal.SIGSTOP)  # which would fork others
        with reach(SOCKET) as connection:
            go_on, waiting = os.pipe()
            if os.fork() == 0:  # with rights to continue them
                os.close(waiting)
                os.read(go_on, 1)
                for pid in [server, *workers]:
                    os.kill(pid, signal.SIGCONT)
                os._exit(0)
            CHANGES[reason]()
            os.close(waiting)
            return connection.recv(100), ask_status("/run/cnisdk")["requests"] if "root" not in reason else 0

    with shims.on(host):
        assert host.call(change) == (f"{reason}\n".encode(), 0)
        add_and_delete(host, shims)


@pytest.mark.parametrize("count", [5, 12])
def test_connections_that_say_nothing_hold_up_nobody(host: Host, shims: Plugins, count: int) -> None:
    """With fewer silent connections than workers (eight), and with more, which must time out first."""
    host.run(["sh", "-euc", f"{shlex.join(SERVE)} --limit 8 </dev/null >/dev/null 2>&1"])
    silent = host.popen(
        [sys.executable, "-c", SILENT, SOCKET, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with silent:
        assert silent.stdout is not None
        assert silent.stdout.readline() == "connected\n"
        add_and_delete(host, shims)
        assert shims.take_fallbacks() == []
        silent.send_signal(signal.SIGKILL)


SILENT = """
import socket, sys
made = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(int(sys.argv[2]))]
for each in made:
    each.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""


def add_and_delete(host: Host, shims: Plugins) -> None:
    """Attach and detach a container, as runtimes do."""
    web = host.container("web")
    pool = host.plugin(shims.directory / "host-local", {"ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}})
    assert [str(each.address) for each in pool.add(web).ips] == ["10.1.0.2/24"]
    pool.delete(web)
