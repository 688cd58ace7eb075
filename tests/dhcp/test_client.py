"""Functions that plugins call, with daemons that go wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import redirect_stderr, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from cnisdk._files import replace_file
from cnisdk.classes import evolve
from cnisdk.dhcp import _daemon, _store, client
from cnisdk.dhcp._client import Client
from cnisdk.dhcp._daemon import Daemon, Settings
from cnisdk.dhcp._machine import Identity, Remember
from cnisdk.dhcp._store import LeaseFiles, Record, boot_id
from cnisdk.dhcp.lease import DHCPLease
from cnisdk.errors import IOFailureError
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host

OWNER = Attachment("n", "c1", "eth0")
ENDLESS = {1: bytes([255, 255, 255, 0]), 51: b"\xff" * 4, 54: bytes([10, 1, 0, 1])}

Serve = Callable[[Callable[[socket.socket], bool]], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve connections by a function of the test, until it returns False: then nothing listens any more."""
    running: list[tuple[threading.Thread, socket.socket]] = []

    def start(answer: Callable[[socket.socket], bool]) -> str:
        path = str(tmp_path / "dhcp.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def run() -> None:
            go_on = True
            while go_on:
                try:
                    connection, _ = listener.accept()
                except OSError:  # the test is over
                    break
                with connection:
                    connection.recv(1 << 16)
                    go_on = answer(connection)
                    if not go_on:
                        listener.close()

        running.append((threading.Thread(target=run), listener))
        running[-1][0].start()
        return path

    yield start
    for thread, listener in running:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_a_daemon_that_is_killed_meanwhile(serve: Serve, verb: str) -> None:
    """The first request meets a daemon's end. The second finds none, and does without."""
    left = [True, False]
    path = serve(lambda _: left.pop(0))
    if verb == "DEL":
        client.delete_lease(path, OWNER)
    else:
        client.delete_stale_leases(path, "n", [])


def test_a_daemon_that_always_ends(serve: Serve) -> None:
    """A request that kills each daemon is not repeated for ever."""
    asked = []

    def answer(connection: socket.socket) -> bool:
        asked.append(connection)
        return len(asked) < 3

    with pytest.raises(IOFailureError, match="ended before it answered"):
        client.delete_lease(serve(answer), OWNER)
    assert len(asked) == 3


def test_no_daemon_is_at_what_can_be_no_path() -> None:
    client.delete_lease("/run/a\0b", OWNER)


def test_a_daemon_that_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many wait for it as the kernel allows: it runs, and is waited for."""
    path = str(tmp_path / "dhcp.sock")
    monkeypatch.setattr(client, "_SOON", 0.05)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(path)
        listener.listen(0)
        other.connect(path)
        with pytest.raises(IOFailureError, match="did not answer within"):
            client.get_lease(path, OWNER)


def test_add_is_not_repeated(serve: Serve) -> None:
    """The runtime decides that, which may give up waiting."""
    with pytest.raises(IOFailureError, match="ended before it answered"):
        client.add_lease(serve(lambda _: False), OWNER, "/run/netns/c1", provided={}, requested=[])


def test_del_while_a_daemon_begins(serve: Serve, tmp_path: Path) -> None:
    """It has the leases already, but does not listen yet: the plugin keeps its hands off them, and asks it."""
    (tmp_path / "dhcp").mkdir()
    lock = LeaseFiles(str(tmp_path / "dhcp")).lock(alone=True, patience=0)
    assert lock is not None
    with ThreadPoolExecutor() as threads:
        deleted = threads.submit(client.delete_lease, str(tmp_path / "dhcp.sock"), OWNER)
        with pytest.raises(TimeoutError):
            deleted.result(0.05)

        def answer(connection: socket.socket) -> bool:
            connection.sendall(b"{}\n")
            return False

        serve(answer)
        deleted.result()
    os.close(lock)


def test_a_daemon_begins_when_plugins_have_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = LeaseFiles(str(tmp_path)).lock(alone=False, patience=0)
    assert lock is not None
    daemon = Daemon(Settings(directory=str(tmp_path)))
    with ThreadPoolExecutor() as threads:
        locked = threads.submit(daemon.lock)
        with pytest.raises(TimeoutError):
            locked.result(0.05)
        os.close(lock)
        locked.result()
    monkeypatch.setattr(_daemon, "_LOCK_TIME", 0)
    with pytest.raises(IOFailureError, match="another daemon keeps the leases"):
        Daemon(Settings(directory=str(tmp_path))).lock()


@pytest.mark.parametrize("verb", ["delete", "gc"])
def test_a_file_that_cannot_be_deleted_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The next daemon would go on with the lease of a container that is gone. DEL and GC fail, and may be repeated."""
    record = Record(
        owner=OWNER,
        netns=str(tmp_path / "gone"),
        cookie="",
        index=1,
        identity=Identity(mac="02:00:00:00:00:01", provided={}, requested=()),
        priority=0,
        lease=None,
        bound=False,
        attached=True,
        boot=boot_id(),
    )
    files = LeaseFiles(str(tmp_path))
    files.save(record)
    daemon = Daemon(Settings(directory=str(tmp_path)))
    daemon.load()

    def ask() -> dict[str, Any]:
        names = {"network": OWNER.network, "containerID": OWNER.container_id, "ifname": OWNER.ifname, "valid": []}
        ours, theirs = socket.socketpair()
        connection = _daemon._Connection(theirs, 0)
        connection.data = json.dumps({"verb": verb, **names}).encode() + b"\n"
        with ours:
            daemon._serve(connection)
            answer: dict[str, Any] = json.loads(ours.recv(1 << 16))
        return answer

    def refuse(self: LeaseFiles, owner: Attachment) -> None:
        raise IOFailureError("cannot delete the file: Read-only file system")

    with monkeypatch.context() as broken:
        broken.setattr(LeaseFiles, "delete", refuse)
        assert "Read-only file system" in ask()["error"]["msg"]
        assert "Read-only file system" in ask()["error"]["msg"]
    assert ask() == {}
    assert files.find(OWNER) is None


@pytest.mark.parametrize("index", [2, 3], ids=["same interface", "another"])
def test_add_again_while_the_interface_has_something_of_earlier_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    """The next client of the interface still has it to remove; another interface never had it."""
    files = keep_lease(tmp_path)
    (record,) = files.load()
    assert record.lease is not None
    earlier = evolve(record.lease, address=IPv4Address("10.1.0.49"))
    files.save(evolve(record, stale=(earlier,), lease=evolve(record.lease, options=ENDLESS)))
    daemon = Daemon(Settings(directory=str(tmp_path)))
    daemon.load()
    new = evolve(record, index=index, lease=None, bound=False, attached=False)
    monkeypatch.setattr(_daemon, "make_record", lambda *_, **__: new)
    monkeypatch.setattr(Client, "begin", lambda *_: None)
    names = {"network": OWNER.network, "containerID": OWNER.container_id, "ifname": OWNER.ifname}
    asked = {"netns": "", "provided": {}, "requested": [], "priority": 0, "timeout": 30}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = _daemon._Connection(theirs, 0)
        connection.data = json.dumps({"verb": "add", **names, **asked}).encode() + b"\n"
        daemon._serve(connection)
    client = daemon._clients[OWNER]
    assert not client.attached
    offer = evolve(record.lease, address=IPv4Address("10.1.0.51"))
    client._follow([Remember(offer)], 0.0)
    assert files.load()[0].stale == ((earlier,) if index == 2 else ())
    # The server refuses what it offered, and the daemon is killed: the file still says what is to go.
    client._follow([Remember(None)], 0.0)
    assert [each.stale for each in files.load()] == ([(earlier,)] if index == 2 else [])


def test_a_daemon_looks_at_the_interfaces_before_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for its status at once, it tells which of them do not take the lease of the daemon before."""
    done = list[str]()
    daemon = Daemon(Settings(directory=str(tmp_path)))

    def tick(_: float) -> None:
        done.append("tick")
        daemon._stopping = len(done) > 1

    def accept(listener: socket.socket) -> None:
        done.append("accept")
        listener.accept()[0].close()

    monkeypatch.setattr(daemon, "_tick", tick)
    monkeypatch.setattr(daemon, "_accept", accept)
    for name in ("signal", "set_wakeup_fd"):
        monkeypatch.setattr(signal, name, lambda *_, **__: None)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as plugin:
        listener.bind(str(tmp_path / "dhcp.sock"))
        listener.listen()
        plugin.connect(str(tmp_path / "dhcp.sock"))
        daemon.run(listener)
    assert done == ["tick", "accept", "tick"]


# --- leases that are elsewhere ----------------------------------------------------------------------------------------


def keep_lease(directory: Path) -> LeaseFiles:
    """Leave what a daemon leaves that was killed: the file of a lease, whose namespace is gone."""
    files = LeaseFiles(str(directory))
    lease = DHCPLease(address=IPv4Address("10.1.0.50"), options={}, started=0.0)
    files.save(
        Record(
            owner=OWNER,
            netns="/nowhere",
            cookie="1",
            index=2,
            identity=Identity(mac="02:42:ac:11:00:02", provided={}),
            priority=0,
            lease=lease,
            bound=True,
            attached=True,
            boot=boot_id(),
        )
    )
    return files


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Settings, str]:
    """A daemon's directory that is not beside its socket; and the socket."""
    settings = Settings(directory=str(tmp_path / "elsewhere"), beside=str(tmp_path / "dhcp"))
    run_briefly(settings)
    return settings, str(tmp_path / "dhcp.sock")


def run_briefly(settings: Settings) -> Daemon:
    """Begin a daemon, which ends before it serves."""
    daemon = Daemon(settings)
    daemon.lock()
    daemon.load()
    for lock in daemon._locks:
        os.close(lock)
    return daemon


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_without_a_daemon_whose_leases_are_elsewhere(elsewhere: tuple[Settings, str], verb: str) -> None:
    """The plugin follows the pointer that the daemon left beside the socket."""
    settings, path = elsewhere
    files = keep_lease(Path(settings.directory))
    if verb == "DEL":
        client.delete_lease(path, OWNER)
    else:
        client.delete_stale_leases(path, "n", [])
    assert files.load() == []
    assert os.listdir(settings.beside) == ["elsewhere"]


@pytest.mark.parametrize("how", ["gone", "another"])
def test_without_a_daemon_that_has_other_mounts(
    elsewhere: tuple[Settings, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """DEL succeeds, and leaves a note; the next daemon does not go on with that lease."""
    settings, path = elsewhere
    files = keep_lease(Path(settings.directory))
    os.rename(settings.directory, tmp_path / "hidden")
    if how == "another":
        os.mkdir(settings.directory)
    client.delete_lease(path, OWNER)
    client.delete_stale_leases(path, "n", [])
    assert "the next one releases" in capsys.readouterr().err
    if how == "another":
        os.rmdir(settings.directory)
    os.rename(tmp_path / "hidden", settings.directory)
    assert [each.owner for each in files.load()] == [OWNER]
    daemon = run_briefly(settings)
    assert (files.load(), daemon._clients) == ([], {})
    assert os.listdir(settings.beside) == ["elsewhere"]


def test_a_note_of_an_earlier_boot(elsewhere: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of another container: the daemon deletes it, and keeps the lease."""
    settings, _ = elsewhere
    files, beside = keep_lease(Path(settings.directory)), LeaseFiles(settings.beside)
    with monkeypatch.context() as patch:
        patch.setattr(_store, "boot_id", lambda: "before")
        beside.note_deleted(OWNER)
    (Path(settings.beside) / "nonsense.deleted").write_text("nonsense")
    assert list(run_briefly(settings)._clients) == [OWNER]
    assert [each.owner for each in files.load()] == [OWNER]
    assert os.listdir(settings.beside) == ["elsewhere"]


def test_a_daemon_with_another_directory_says_so(
    elsewhere: tuple[Settings, str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, path = elsewhere
    files = keep_lease(Path(settings.directory))
    run_briefly(Settings(directory=settings.beside, beside=settings.beside))
    assert f"had its leases in {settings.directory}: this one does not know them" in capsys.readouterr().err
    assert os.listdir(settings.beside) == []
    client.delete_lease(path, OWNER)  # of that daemon's, which has none of it
    assert [each.owner for each in files.load()] == [OWNER]


def test_two_daemons_at_one_socket(elsewhere: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _ = elsewhere
    monkeypatch.setattr(_daemon, "_LOCK_TIME", 0)
    daemon = Daemon(settings)
    daemon.lock()
    with pytest.raises(IOFailureError, match="another daemon keeps the leases"):
        Daemon(Settings(directory=settings.beside)).lock()
    for lock in daemon._locks:
        os.close(lock)


@pytest.mark.kernel
def test_one_directory_under_two_paths(host: Host, tmp_path: Path) -> None:
    """A daemon does not lock itself out, and takes what the pointer names for the same."""
    near, far = tmp_path / "dhcp", tmp_path / "far"
    near.mkdir(mode=0o700)
    far.mkdir(mode=0o700)
    host.shell(f"mount --bind {near} {far}")
    assert host.call(begin_twice, str(near), str(far)) == ""


def begin_twice(near: str, far: str) -> str:
    """Begin a daemon, and one with the other path of the same directory; return what they say."""
    said = io.StringIO()
    with redirect_stderr(said):
        replace_file(f"{near}/elsewhere", json.dumps({"directory": far, "id": "1:1"}).encode())
        run_briefly(Settings(directory=far, beside=near))
        run_briefly(Settings(directory=near, beside=near))
    return said.getvalue()


# --- what lies there --------------------------------------------------------------------------------------------------


def path_of(files: LeaseFiles) -> Path:
    (name,) = os.listdir(files.directory)
    return Path(files.directory, name)


def test_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    """It lacks keys that came later."""
    files = keep_lease(tmp_path)
    (whole,) = files.load()
    path = path_of(files)
    document = json.loads(path.read_text())
    for key in ("stale", "priority", "provided", "requested", "broadcast"):
        del document[key]
    del document["lease"]["serverMAC"]
    path.write_text(json.dumps(document))
    assert whole.lease is not None
    lease, identity = evolve(whole.lease, server_mac=""), evolve(whole.identity, requested=())
    assert files.load() == [evolve(whole, lease=lease, identity=identity)]


@pytest.mark.parametrize("text", ["{", "[]", '{"cni": 1}'])
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon says so, once, and leaves it alone."""
    path = path_of(keep_lease(tmp_path))
    path.write_text(text)
    daemon = run_briefly(Settings(directory=str(tmp_path)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cnisdk dhcp: cannot read {path}: ")
    assert "its lease is neither renewed nor released" in line
    assert (daemon._clients, path.read_text()) == ({}, text)


@pytest.mark.parametrize(
    ("which", "how"),
    [("dhcp", "another user's"), ("dhcp", "writable by others"), ("elsewhere", "writable by others")],
)
def test_a_directory_of_another_user(
    elsewhere: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch, which: str, how: str
) -> None:
    """Neither a daemon nor a DEL believes what lies there: it would act on the interfaces of containers."""
    settings, path = elsewhere
    files = keep_lease(Path(settings.directory))
    directory, owner, daemon = Path(path).with_name(which), os.geteuid(), Daemon(settings)
    with monkeypatch.context() as patch:
        if how == "writable by others":
            directory.chmod(0o777)
        elif owner == 0:
            os.chown(directory, 65534, -1)
        else:
            patch.setattr(os, "geteuid", lambda: owner + 1)
        with pytest.raises(IOFailureError, match=f"cannot use the directory {directory}: .*others"):
            daemon.lock()
        for lock in daemon._locks:
            os.close(lock)
        with pytest.raises(IOFailureError, match=f"cannot use the directory {directory}: .*others"):
            client.delete_lease(path, OWNER)
    assert len(os.listdir(settings.directory)) == 1
    directory.chmod(0o700)
    os.chown(directory, owner, -1)
    client.delete_lease(path, OWNER)
    assert files.load() == []


@pytest.mark.parametrize("text", ["{", "[]", '{"directory": "/nowhere", "id": ""}'])
def test_a_pointer_that_cannot_be_read(
    elsewhere: tuple[Settings, str], capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """The leases are somewhere: DEL leaves a note."""
    settings, path = elsewhere
    files = keep_lease(Path(settings.directory))
    Path(settings.beside, "elsewhere").write_text(text)
    client.delete_lease(path, OWNER)
    assert "the next one releases" in capsys.readouterr().err
    assert len(files.load()) == 1
    assert run_briefly(settings)._clients == {}
    assert files.load() == []
    assert os.listdir(settings.beside) == ["elsewhere"]


def test_a_note_that_cannot_be_read(elsewhere: tuple[Settings, str]) -> None:
    """It keeps the daemon neither from the others nor from its start."""
    settings, _ = elsewhere
    files, beside = keep_lease(Path(settings.directory)), LeaseFiles(settings.beside)
    beside.note_deleted(OWNER)
    Path(settings.beside, "0.deleted").mkdir()
    run_briefly(settings)
    assert files.load() == []
