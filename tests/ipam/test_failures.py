"""The kernel says no: at any call, with any error. The error is clear, and nothing has changed."""

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from cnisdk.errors import CNIError, IOFailureError, PluginNotAvailableError
from cnisdk.ipam import FileStore, Owner, RoundRobin
from cnisdk.ipam.allocator import retain
from cnisdk.ipam.filetable import FileTable
from cnisdk.ipam.table import Finding
from cnisdk.testing import Sandbox
from cnisdk.testing.stores import everything, range_sets

SETS = range_sets("10.0.0.0/24", "fd00::/64")
ME, STAYS = Owner("me", "eth0"), Owner("stays", "eth0")

OPERATIONS: dict[str, Callable[[FileStore], object]] = {
    "ADD": lambda store: RoundRobin(store, SETS).allocate(ME),
    "DEL": lambda store: RoundRobin(store, SETS).release(STAYS),
    "GC": lambda store: retain(store, []),
}


def files(directory: Path) -> dict[str, bytes]:
    """Return the files there are, apart from cursors, which are hints, and the lock."""
    if not directory.exists():
        return {}
    ignored = ("last_reserved_ip.", "lock")
    return {each.name: each.read_bytes() for each in directory.iterdir() if not each.name.startswith(ignored)}


@contextmanager
def failing(number: int, call: int) -> Iterator[list[str]]:
    """Let the n-th call that changes something, and all that follow, fail. Yields the calls that were made."""
    calls: list[str] = []
    real = {name: getattr(os, name) for name in ("open", "write", "pwrite", "link", "mkdir", "utime", "ftruncate")}

    def wrap(name: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            changes = name != "open" or args[1] & (
                os.O_CREAT | os.O_WRONLY | os.O_RDWR | (os.O_TMPFILE & ~os.O_DIRECTORY)
            )
            if changes:
                calls.append(name)
                if len(calls) >= call:
                    raise OSError(number, os.strerror(number), str(args[0]))
            return real[name](*args, **kwargs)

        return wrapper

    try:
        for name in real:
            setattr(os, name, wrap(name))
        yield calls
    finally:
        for name, function in real.items():
            setattr(os, name, function)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("state", ["new", "indexed", "scanned"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_call_that_can_fail(tmp_path: Path, operation: str, state: str, number: int) -> None:
    call = 0
    while True:
        call += 1
        data_dir = tmp_path / str(call)
        store = FileStore(str(data_dir), "net")
        if state != "new":
            RoundRobin(store, SETS).allocate(STAYS)
        if state == "scanned":
            shutil.rmtree(data_dir / ".cnisdk")
        before = files(data_dir / "net")
        failure = None
        with failing(number, call) as calls:
            try:
                OPERATIONS[operation](store)
            except CNIError as exc:
                failure = exc
        if failure is not None:
            assert isinstance(failure, IOFailureError)
            assert errno.errorcode[number] in failure.msg
            assert str(data_dir / "net") in failure.msg
            assert files(data_dir / "net") == before, (call, calls)
            if state == "new":
                assert not data_dir.exists() or not (data_dir / "net").exists() or before == {}
        # Whether it failed or not: the next ones find everything in order.
        allocator = RoundRobin(store, SETS)
        if operation == "ADD" and failure is None:
            assert len(allocator.find(ME)) == 2
        allocator.release(ME)
        given = [ip.address.ip for each in range(4) for ip in allocator.allocate(Owner(f"c{each}", "eth0"))]
        assert len(set(given)) == 8
        assert len(everything(store)) == 8 + len(allocator.find(STAYS))
        if len(calls) < call:
            break
    assert call > 1 or state == "new"


def fill(file: BinaryIO) -> None:
    while True:
        file.write(bytes(4096))


def on_a_full_tmpfs(free_pages: int) -> list[str]:
    """Work in a tmpfs that has room for a number of pages only; return what went wrong."""
    mount = Path("/run/full")
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(mount)], check=True)
    try:
        store = FileStore(str(mount), "net")
        allocator = RoundRobin(store, SETS)
        allocator.allocate(STAYS)
        before = files(mount / "net")
        with open(mount / "ballast", "wb", buffering=0) as ballast:
            with pytest.raises(OSError):
                fill(ballast)
            ballast.truncate(max(0, ballast.tell() - 4096 * free_pages))
        problems: list[str] = []
        try:
            allocator.allocate(ME)
        except IOFailureError as exc:
            problems.append(exc.msg)
            assert files(mount / "net") == before
            assert allocator.find(ME) == ()
        allocator.release(ME)  # deleting needs no room
        allocator.release(STAYS)
        assert files(mount / "net") == {}
        (mount / "ballast").unlink()
        assert len({ip.address for each in range(9) for ip in allocator.allocate(Owner(f"c{each}", "eth0"))}) == 18
        return problems
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        mount.rmdir()


@pytest.mark.kernel
def test_full_file_system(host: Sandbox) -> None:
    outcomes = [host.call(on_a_full_tmpfs, pages) for pages in range(12)]
    assert outcomes[0]
    assert "ENOSPC: No space left on device" in outcomes[0][0]
    assert not outcomes[-1]


def on_a_read_only_file_system() -> list[str]:
    mount = Path("/run/readonly")
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mount)], check=True)
    try:
        store = FileStore(str(mount), "net")
        allocator = RoundRobin(store, SETS)
        kept = [ip.address.ip for ip in allocator.allocate(STAYS)]
        shutil.rmtree(mount / ".cnisdk", ignore_errors=True)  # few leases have no index
        subprocess.run(["mount", "-o", "remount,bind,ro", str(mount)], check=True)
        messages = []
        for operation in OPERATIONS.values():
            with pytest.raises(CNIError) as caught:
                operation(store)
            messages.append(caught.value.msg)
        with pytest.raises(CNIError) as caught:
            store.check_usable()
        messages.append(caught.value.msg)
        assert list(allocator.find(STAYS)) == kept  # CHECK needs no writing
        with pytest.raises(CNIError) as caught:
            RoundRobin(FileStore(str(mount), "other"), SETS).allocate(ME)
        messages.append(caught.value.msg)
        return messages
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        mount.rmdir()


@pytest.mark.kernel
def test_read_only_file_system(host: Sandbox) -> None:
    messages = host.call(on_a_read_only_file_system)
    assert all("/run/readonly/" in message and "EROFS" in message for message in messages), messages


def test_a_directory_that_others_delete_meanwhile(tmp_path: Path) -> None:
    """At every call: an ADD starts over in a new directory, a DEL has nothing left to do."""
    for operation, work in OPERATIONS.items():
        call = 0
        while True:
            call += 1
            data_dir = tmp_path / operation / str(call)
            store = FileStore(str(data_dir), "net")
            RoundRobin(store, SETS).allocate(STAYS)
            with deleting(data_dir, call) as calls:
                work(store)
            allocator = RoundRobin(store, SETS)
            if operation == "ADD":
                # Deleted after the leases were made, they are gone, as any others.
                assert len(allocator.find(ME)) in (0, 2)
                allocator.release(ME)
            assert len({ip.address for each in range(4) for ip in allocator.allocate(Owner(f"c{each}", "eth0"))}) == 8
            if len(calls) < call:
                break


@contextmanager
def deleting(data_dir: Path, call: int) -> Iterator[list[str]]:
    """Delete everything before the n-th call."""
    calls: list[str] = []
    real = {
        name: getattr(os, name) for name in ("open", "fstat", "stat", "write", "pwrite", "link", "utime", "listdir")
    }

    def wrap(name: str) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == call:
                subprocess.run(["rm", "-rf", str(data_dir)], check=True)
            return real[name](*args, **kwargs)

        return wrapper

    try:
        for name in real:
            setattr(os, name, wrap(name))
        yield calls
    finally:
        for name, function in real.items():
            setattr(os, name, function)


_CALLS = [
    "open",
    "read",
    "write",
    "pwrite",
    "pread",
    "stat",
    "fstat",
    "lstat",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "listdir",
    "scandir",
    "utime",
    "ftruncate",
    "getxattr",
    "setxattr",
    "statvfs",
    "access",
]


@contextmanager
def failing_once(number: int, call: int) -> Iterator[list[str]]:
    """Let the n-th call fail, whatever it does. Yields the calls that were made."""
    calls: list[str] = []
    flock = fcntl.flock

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == call:
                raise OSError(number, os.strerror(number), *[each for each in args[:1] if isinstance(each, str)])
            return real(*args, **kwargs)

        return wrapper

    real = {name: getattr(os, name) for name in _CALLS}
    try:
        fcntl.flock = wrap("flock", flock)
        for name, function in real.items():
            setattr(os, name, wrap(name, function))
        yield calls
    finally:
        fcntl.flock = flock
        for name, function in real.items():
            setattr(os, name, function)


def read_all_leases(store: FileStore) -> None:
    RoundRobin(store, SETS, timeout=0.0).find(STAYS)


def find_in_table(store: FileStore) -> None:
    FileTable(store).find(STAYS, timeout=0.0)


def examine(store: FileStore) -> None:
    FileTable(store).examine(timeout=0.0)


def drop(store: FileStore) -> None:
    table = FileTable(store)
    table.drop([each for each in table.examine(timeout=0.0).leases if each.owner == STAYS], timeout=0.0)


def repair(store: FileStore) -> None:
    table = FileTable(store)
    findings = [*table.examine(timeout=0.0).findings, Finding(store.index_path, "is wrong", "forget index")]
    assert len(table.repair(findings, timeout=0.0)) == 2


USES: dict[str, Callable[[FileStore], object]] = {
    "ADD": lambda store: RoundRobin(store, SETS, timeout=0.0).allocate(ME),
    "DEL": lambda store: RoundRobin(store, SETS, timeout=0.0).release(STAYS),
    "GC": lambda store: retain(store, [], timeout=0.0),
    "CHECK": read_all_leases,
    "STATUS": FileStore.check_usable,
    "find": find_in_table,
    "examine": examine,
    "drop": drop,
    "repair": repair,
}


@pytest.mark.parametrize(("use", "number"), [*((use, errno.EIO) for use in USES), ("CHECK", errno.EACCES)])
def test_an_error_of_any_call_is_told_and_the_lock_given_back(tmp_path: Path, use: str, number: int) -> None:
    call, calls = 0, [""]
    while len(calls) >= call:
        call += 1
        store = FileStore(str(tmp_path / str(call)), "net")
        for owner in (STAYS, Owner("other", "eth0")):
            RoundRobin(store, SETS).allocate(owner)
        if use == "repair":
            Path(store.path, ".cnisdk-new").touch()
        failure = None
        with failing_once(number, call) as calls:
            try:
                USES[use](store)
            except (IOFailureError, PluginNotAvailableError) as exc:
                failure = exc
        if failure is not None:
            assert errno.errorcode[number] in failure.msg, calls
            assert str(tmp_path / str(call)) in failure.msg, calls
        # No descriptor was lost that has the lock.
        allocator = RoundRobin(store, SETS, timeout=0.0)
        assert use == "GC" or len(allocator.find(Owner("other", "eth0"))) == 2, calls
        allocator.release(ME)
        allocator.release(STAYS)
        assert STAYS not in everything(store).values()
    assert call > 5
