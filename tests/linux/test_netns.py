"""Namespaces are opened by path, verified, never created; and the caller never ends up in another one."""

import contextlib
import errno
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from cnisdk.errors import InvalidNetNSError, IOFailureError
from cnisdk.linux import _sockets, link, lock, netns, rtnetlink
from cnisdk.testing import Host, Sandbox, expect_error

pytestmark = pytest.mark.kernel


def where() -> str:
    return os.readlink("/proc/thread-self/ns/net")


@contextlib.contextmanager
def staying() -> Iterator[None]:
    before = where(), threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield
    assert (where(), threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def test_open_gives_the_namespace_at_a_path(host: Sandbox) -> None:
    path = host.add_netns("blue")

    def look() -> tuple[str, int, list[str], bool, bool]:
        with staying(), netns.open(path) as blue, netns.open("/var/run/netns/blue") as again, netns.current() as here:
            return blue.path, blue.inode, [each.name for each in link.list_all(blue)], blue == again, blue == here

    opened, inode, links, same, current = host.call(look)
    assert opened == path
    assert inode == int(host.run(["stat", "-c", "%i", path]).stdout)
    assert links == ["lo"]
    assert same
    assert not current


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (["true"], "does not exist"),
        (["touch", "/run/x"], "ordinary file"),
        (["mkdir", "/run/x"], "directory"),
        (["mkfifo", "/run/x"], "named pipe"),
        (["ln", "-s", "/run/nowhere", "/run/x"], "does not exist"),
        (["ln", "-s", "/dev/null", "/run/x"], "device"),
        (["ln", "-s", "/proc/self/ns/mnt", "/run/x"], "another kind"),
    ],
)
def test_what_is_no_namespace_is_refused(host: Sandbox, prepare: list[str], words: str) -> None:
    host.run(prepare)
    before = host.run(["ls", "-lan", "/run"]).stdout
    with pytest.raises(InvalidNetNSError, match=words) as caught:
        host.call(netns.open, "/run/x")
    assert caught.value.code == 8
    assert "/run/x" in str(caught.value)
    assert isinstance(caught.value, netns.NetNSNotFoundError) == (words == "does not exist")
    assert host.call(netns.find, "/run/x") is None
    # Nothing was created, unlike what the reference's helpers for tests do.
    assert host.run(["ls", "-lan", "/run"]).stdout == before


def test_an_unmounted_name_is_no_namespace(host: Sandbox) -> None:
    path = host.add_netns("blue")
    host.run(["umount", path])
    with pytest.raises(InvalidNetNSError, match="ordinary file"):
        host.call(netns.open, path)
    assert host.call(netns.find, path) is None


def test_find_accepts_an_empty_path() -> None:
    assert netns.find("") is None
    with pytest.raises(InvalidNetNSError, match="empty"):
        netns.open("")


def test_a_path_below_a_file_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(netns.NetNSNotFoundError):
        netns.open(str(tmp_path / "file" / "x"))


def test_a_closed_namespace_says_so(host: Sandbox) -> None:
    path = host.add_netns("blue")

    def use() -> None:
        blue = netns.open(path)
        blue.close()
        blue.close()
        with pytest.raises(ValueError, match="was closed"):
            blue.call(where)

    host.call(use)


def in_blue(host: Sandbox, work: Callable[[netns.NetNS], object]) -> None:
    """Do something with a namespace, and see that this thread is where it was, with no thread or descriptor left."""
    path = host.add_netns("blue")

    def inside() -> None:
        netns.open("/proc/self/ns/net").close()  # whatever is opened once and kept
        with staying(), netns.open(path) as blue:
            work(blue)

    host.call(inside)


def test_call_runs_inside_and_stays_outside(host: Sandbox) -> None:
    def work(blue: netns.NetNS) -> None:
        assert blue.call(where) == f"net:[{blue.inode}]"
        assert where() != f"net:[{blue.inode}]"

    in_blue(host, work)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_exceptions_come_out(host: Sandbox, error: BaseException) -> None:
    def fail() -> None:
        raise error

    def work(blue: netns.NetNS) -> None:
        with pytest.raises(type(error)) as caught:
            blue.call(fail)
        assert caught.value is error
        del caught

    in_blue(host, work)


def test_entering_that_is_refused(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, kind: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    def work(blue: netns.NetNS) -> None:
        ran: list[str] = []
        with pytest.raises(IOFailureError, match=r"cannot enter .*/run/netns/blue: EPERM") as caught:
            blue.call(ran.append, "in the wrong namespace")
        assert not ran
        del caught

    monkeypatch.setattr(netns, "_system_call", refuse)
    in_blue(host, work)


def lock_it() -> None:
    with lock.exclusive(0.0):
        pass


def connect() -> None:
    with rtnetlink.connect():
        pass


@pytest.mark.parametrize("step", ["enter", "connect", "lock"])
def test_a_process_with_too_many_files_says_what_it_could_not_do(host: Sandbox, step: str) -> None:
    def work(blue: netns.NetNS) -> None:
        steps = {"enter": lambda: blue.call(where), "connect": connect, "lock": lock_it}
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (blue.fd + 9, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    opened.append(os.dup(blue.fd))
            with pytest.raises(IOFailureError, match=r"cannot .*(namespace|socket).*: EMFILE") as caught:
                steps[step]()
            del caught
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in opened:
                os.close(fd)

    in_blue(host, work)


def test_entering_without_the_right_to_is_refused(host: Sandbox) -> None:
    path = host.add_netns("blue")

    def work() -> None:
        with netns.open(path) as blue:
            # A user namespace below has no rights over the namespaces of this one.
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    import ctypes

                    assert ctypes.CDLL(None).unshare(0x10000000) == 0
                    blue.call(where)
                except IOFailureError as error:
                    status = 0 if "EPERM" in str(error) else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    host.call(work)


def test_a_signal_waits_for_the_work_to_end(host: Sandbox) -> None:
    """An undo must not run beside what it undoes."""

    class Terminated(BaseException):
        pass

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    def work(blue: netns.NetNS) -> None:
        signal.signal(signal.SIGTERM, terminate)
        go_on = threading.Event()
        done: list[str] = []

        def slowly() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            go_on.wait(0.2)  # long enough for the other thread to see the signal
            done.append(where())

        with pytest.raises(Terminated) as caught:
            blue.call(slowly)
        assert done == [f"net:[{blue.inode}]"]
        del caught

    in_blue(host, work)


def test_other_threads_stay_too(host: Sandbox) -> None:
    def work(blue: netns.NetNS) -> None:
        before = {os.readlink(f"/proc/self/task/{task}/ns/net") for task in os.listdir("/proc/self/task")}
        seen = blue.call(
            lambda: {task: os.readlink(f"/proc/self/task/{task}/ns/net") for task in os.listdir("/proc/self/task")}
        )
        assert sorted(seen.values()).count(f"net:[{blue.inode}]") == 1
        assert set(seen.values()) == before | {f"net:[{blue.inode}]"}

    in_blue(host, work)


def test_a_bare_name_is_answered_with_the_path(host: Sandbox) -> None:
    host.add_netns("blue")
    with pytest.raises(netns.NetNSNotFoundError) as caught:
        host.call(netns.open, "blue")
    assert caught.value.details == "expected a path; a namespace of that name is at /var/run/netns/blue"


def test_a_namespace_has_one_identifier(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel knows no cookies, it is device and inode; a failure is none of these."""
    container = host.container()

    def identify(error: int) -> str:
        def refuse(*_: object) -> NoReturn:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(_sockets.Socket, "getsockopt", refuse)
        with netns.open(container.netns) as opened:
            return opened.identify()

    assert ":" in host.call(identify, errno.ENOPROTOOPT)
    with expect_error(5, "cannot identify /run/netns/c1: EIO"):
        host.call(identify, errno.EIO)
