"""The index is a hint: it may be missing, wrong, old, or of another boot, and nothing but time is lost."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cnisdk._lockholders import find_holders
from cnisdk.errors import CNIError, TryAgainLaterError
from cnisdk.ipam import FileStore, Lease, Owner, RoundRobin
from cnisdk.ipam._index import Index
from cnisdk.ipam._records import BOOT_ATTRIBUTE, Boot, current_boot, parse_name, parse_owner
from cnisdk.testing.stores import everything, range_sets, reserve

SETS = range_sets("10.0.0.0/24")
A, B = Owner("a", "eth0"), Owner("b", "eth0")
FREE = IPv4Address("10.0.0.3")


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were scanned."""
    scanned: list[str] = []
    real = FileStore._scan

    def scan(self: FileStore, *args: object, **kwargs: object) -> object:
        scanned.append(self.path)
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(FileStore, "_scan", scan)
    return scanned


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(str(tmp_path), "net")


def add(store: FileStore, owner: Owner) -> str:
    (ip,) = RoundRobin(store, SETS).allocate(owner)
    return str(ip.address.ip)


def test_our_own_changes_need_no_scan(store: FileStore, scans: list[str]) -> None:
    add(store, A)
    assert len(scans) == 1  # of the new, empty directory
    for number in range(50):
        add(FileStore(store.data_dir, "net"), Owner(f"c{number}", "eth0"))
    for number in range(50):
        RoundRobin(store, SETS).release(Owner(f"c{number}", "eth0"))
    RoundRobin(store, SETS).retain([A])
    assert RoundRobin(store, SETS).find(A) == (IPv4Address("10.0.0.2"),)
    RoundRobin(store, SETS).check_capacity()
    assert len(scans) == 1


def test_a_foreign_change_is_noticed_however_soon(store: FileStore, scans: list[str]) -> None:
    """Hundreds of times within a tick of the clock after our own change."""
    for number in range(200):
        mine = Owner(f"mine{number}", "eth0")
        address = add(store, mine)
        # As the reference does it: the lease of another in place of ours, under the same name.
        path = Path(store.path, address)
        path.unlink()
        path.write_bytes(b"theirs\r\neth0")
        assert RoundRobin(store, SETS).find(mine) == ()
        assert RoundRobin(store, SETS).release(Owner("theirs", "eth0")) == (
            Lease(IPv4Address(address), Owner("theirs", "eth0")),
        )
    assert len(scans) >= 200
    assert everything(store) == {}


def test_where_times_cannot_be_set_git_has_the_rule(
    store: FileStore, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    set_times = os.utime
    monkeypatch.setattr(os, "utime", refuse)
    for number in range(100):
        address = add(store, A)
        path = Path(store.path, address)
        path.unlink()
        path.write_bytes(b"theirs\r\neth0")
        assert RoundRobin(store, SETS).find(A) == (), number
        RoundRobin(store, SETS).release(Owner("theirs", "eth0"))
    # A stamp that is younger than the directory is trusted all the same.
    add(store, A)
    now = os.stat(store.path)
    set_times(store.path, ns=(now.st_atime_ns, now.st_mtime_ns - 1_000_000_000))
    everything(store)
    before = len(scans)
    everything(store)
    assert len(scans) == before


@pytest.mark.parametrize("part", ["", "stamp", "owners", "used", "owners/*", "used/*"])
def test_deleting_any_of_it_costs_one_scan(store: FileStore, scans: list[str], part: str) -> None:
    first = add(store, A)
    count = len(scans)
    index = Path(store.index_path)
    for path in index.glob(part) if part else [index.parent]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    assert add(store, B) == "10.0.0.3"
    assert len(scans) == count + 1
    assert RoundRobin(store, SETS).release(A) == (Lease(IPv4Address(first), A),)
    assert everything(store) == {IPv4Address("10.0.0.3"): B}
    assert len(scans) == count + 1


def test_an_index_that_lies(store: FileStore) -> None:
    """An editor changes it in place: nothing is handed out twice, nothing of another is deleted."""
    add(store, A)
    add(store, B)
    for path in Path(store.index_path, "used").iterdir():
        path.write_bytes(b"")
    for path in Path(store.index_path, "owners").iterdir():
        path.write_bytes(path.read_bytes().replace(b" a ", b" x ").replace(b" b ", b" a "))
    assert add(store, Owner("c", "eth0")) == "10.0.0.4"
    RoundRobin(store, SETS).retain([A, B])
    leases = {each.name: each.read_bytes() for each in Path(store.path).glob("10.*")}
    assert leases == {"10.0.0.2": b"a\r\neth0", "10.0.0.3": b"b\r\neth0"}


def test_an_index_that_cannot_be_written(store: FileStore, scans: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes without."""

    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Index, "rebuild", refuse)
    for number in range(5):
        assert add(store, Owner(f"c{number}", "eth0")) == f"10.0.0.{number + 2}"
    RoundRobin(store, SETS).release(Owner("c2", "eth0"))
    assert len(everything(store)) == 4
    assert len(scans) == 7


def make_link(path: Path, elsewhere: Path) -> None:
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "precious").write_text("precious")
    path.symlink_to(elsewhere)


MAKERS: dict[str, Callable[[Path, Path], object]] = {
    "file": lambda path, _: path.write_text("in the way"),
    "directory": lambda path, _: path.mkdir(),
    "pipe": lambda path, _: os.mkfifo(path),
    "link": make_link,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("part", ["", "..", "owners", "used", "stamp", "owners/*", "used/*"])
def test_anything_may_stand_where_the_index_is(store: FileStore, tmp_path: Path, part: str, kind: str) -> None:
    """It is made anew. Nothing waits for a pipe, and nothing is deleted or written through a link."""
    add(store, A)
    home = Path(store.index_path)
    for path in [home.parent] if part == ".." else [home / part] if "*" not in part else list(home.glob(part)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        MAKERS[kind](path, tmp_path / "elsewhere")
    add(store, B)
    RoundRobin(store, SETS).release(A)
    assert list(everything(store).values()) == [B]
    assert (home / "stamp").is_file()
    if kind == "link":
        assert [each.name for each in (tmp_path / "elsewhere").iterdir()] == ["precious"]


def test_damage_inside_the_index_is_noticed(store: FileStore) -> None:
    add(store, A)
    add(store, B)
    home = Path(store.index_path)
    for content in (b"", b"\0" * 100, b"\xff" * 4096):
        for path in [*home.glob("owners/*"), *home.glob("used/*")]:
            path.write_bytes(content)
        assert RoundRobin(store, SETS).find(A)
        with pytest.raises(CNIError, match="duplicate"):
            add(store, A)
        add(store, Owner("c3", "eth0"))
        assert len(RoundRobin(store, SETS).release(Owner("c3", "eth0"))) == 1


def test_switching_reclaiming_on_looks_at_all_leases_again(store: FileStore, scans: list[str]) -> None:
    keeping = FileStore(store.data_dir, store.network, reclaim_earlier_boots=False)
    add(keeping, A)
    before = len(scans)
    add(store, B)
    assert len(scans) == before + 1


@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_a_cursor_that_is_no_file_holds_up_nobody(store: FileStore, tmp_path: Path, kind: str) -> None:
    add(store, A)
    cursor = Path(store.path, "last_reserved_ip.0")
    cursor.unlink()
    MAKERS[kind](cursor, tmp_path / "elsewhere")
    assert add(store, B) == "10.0.0.3"


@pytest.mark.parametrize("when", ["_scan", "_change"])
def test_a_change_without_the_lock(store: FileStore, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator deletes a lease by hand, while an operation of ours is under way."""
    add(store, A)
    add(store, B)
    real = getattr(Index, "rebuild" if when == "_scan" else "apply")

    def meanwhile(self: Index, *args: object) -> None:
        Path(store.path, "10.0.0.3").unlink(missing_ok=True)
        real(self, *args)

    monkeypatch.setattr(Index, real.__name__, meanwhile)
    if when == "_scan":
        shutil.rmtree(store.index_path)
        everything(store)
    else:
        add(store, Owner("c", "eth0"))
    monkeypatch.undo()
    assert IPv4Address("10.0.0.3") not in everything(FileStore(store.data_dir, "net"))
    assert FileStore(store.data_dir, "net").read(lambda view: view.find_free(FREE, FREE)) == FREE


@pytest.mark.parametrize("part", ["owners/*", "used/*", "stamp"])
def test_a_part_that_is_deleted_while_it_is_open(
    store: FileStore, scans: list[str], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, A)
    real = Index.apply

    def meanwhile(self: Index, *args: object) -> None:
        for path in Path(store.index_path).glob(part):
            path.unlink()
        real(self, *args)  # type: ignore[arg-type]

    count = len(scans)
    with monkeypatch.context() as patched:
        patched.setattr(Index, "apply", meanwhile)
        add(store, A._replace(ifname="eth1"))  # of the same bucket
    assert len(scans) == count
    held = FileStore(store.data_dir, "net")
    assert RoundRobin(held, SETS).find(A) == (IPv4Address("10.0.0.2"),)
    assert RoundRobin(held, SETS).find(A._replace(ifname="eth1")) == (IPv4Address("10.0.0.3"),)
    assert RoundRobin(held, SETS).find(B) == ()
    assert len(scans) == count + 1


def test_another_directory_of_the_same_name(store: FileStore, scans: list[str]) -> None:
    add(store, A)
    os.rename(store.path, store.path + "-old")
    assert everything(store) == {}
    assert add(store, B) == "10.0.0.2"
    shutil.rmtree(store.path)
    os.rename(store.path + "-old", store.path)
    assert everything(store) == {IPv4Address("10.0.0.2"): A}


def test_the_index_of_an_earlier_boot_is_not_trusted(tmp_path: Path, scans: list[str]) -> None:
    earlier = Boot("1" * 32, "m" * 32)
    add(FileStore(str(tmp_path), "net", boot=earlier), A)
    now = FileStore(str(tmp_path), "net", boot=Boot("2" * 32, "m" * 32))
    for _ in range(2):
        assert everything(now) == {}
    assert add(now, B) == "10.0.0.3"
    assert everything(now) == {IPv4Address("10.0.0.3"): B}
    assert len(scans) == 4  # the questions before the first change cannot reclaim, and so cannot trust


def test_no_boot_id_no_marks_and_no_trust(tmp_path: Path, scans: list[str]) -> None:
    store = FileStore(str(tmp_path), "net", boot=Boot("", ""))
    add(store, A)
    add(store, B)
    assert len(scans) == 2
    assert os.listxattr(f"{store.path}/10.0.0.2") == []


def test_the_mark_of_the_boot_belongs_to_the_file(store: FileStore) -> None:
    address = add(store, A)
    mark = os.getxattr(f"{store.path}/{address}", BOOT_ATTRIBUTE)
    assert mark == current_boot().mark
    assert mark.partition(b".")[0].decode() == Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace(
        "-", ""
    )
    # A lease that is written anew is written without.
    path = Path(store.path, address)
    path.unlink()
    path.write_bytes(b"a\r\neth0")
    assert os.listxattr(path) == []


@pytest.mark.parametrize(
    ("mark", "earlier"),
    [
        (b"", False),
        (b"1" * 32 + b".mmmmmmmmmmmm", True),
        (b"2" * 32 + b".mmmmmmmmmmmm", False),
        (b"1" * 32 + b".nnnnnnnnnnnn", False),
        (b"1" * 32 + b".", False),
        (b"1" * 7 + b".mmmmmmmmmmmm", False),
        (b"nonsense", False),
    ],
)
def test_which_marks_are_of_an_earlier_boot(mark: bytes, earlier: bool) -> None:
    assert Boot("2" * 32, "m" * 32).is_later_than(mark) is earlier
    assert Boot("", "m" * 32).is_later_than(mark) is False


@pytest.mark.parametrize(
    "name", ["lock", "last_reserved_ip.0", "10.0.0.02", "FD00::1", "fd00:0::1", ".hidden", "", "10.0.0.2~"]
)
def test_names_that_are_no_leases(name: str) -> None:
    assert parse_name(name) is None


@pytest.mark.parametrize(
    ("data", "owner"),
    [
        (b"a\r\neth0", A),
        (b"  a\r\neth0\n", A),
        (b"a", Owner("a")),
        (b"a\neth0", Owner("")),
        (b"a b", Owner("")),
        (b"a\r\neth0\r\nmore", Owner("")),
        (b"\xff\xfe", Owner("")),
        ("a\r\nçé0".encode(), Owner("a", "çé0")),
    ],
)
def test_what_leases_say(data: bytes, owner: Owner) -> None:
    assert parse_owner(data) == owner


def test_an_owner_that_cannot_be_written(store: FileStore) -> None:
    for owner in (
        Owner("a b", "eth0"),
        Owner("", "eth0"),
        Owner("../a", "eth0"),
        Owner("a", "eth 0"),
        Owner("a\n", ""),
    ):
        with pytest.raises(ValueError, match="cannot own a lease"):
            reserve(store, Lease(IPv4Address("10.0.0.2"), owner))


def test_things_that_are_no_leases_are_left_alone(store: FileStore) -> None:
    add(store, A)
    directory = Path(store.path)
    (directory / "10.0.0.3").mkdir()
    (directory / "10.0.0.4").symlink_to("/dev/zero")
    os.mkfifo(directory / "10.0.0.5")
    (directory / "README").write_text("hello")
    assert add(store, B) == "10.0.0.6"
    RoundRobin(store, SETS).retain([])
    assert sorted(each.name for each in directory.iterdir()) == [
        "10.0.0.3",
        "10.0.0.4",
        "10.0.0.5",
        "README",
        "last_reserved_ip.0",
        "lock",
    ]


def test_waiting_for_the_lock(store: FileStore) -> None:
    """A process that waits gets the lock as soon as it is free; one that gives up does not get in the way."""
    add(store, A)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with FileStore(store.data_dir, "net").view(time.monotonic() + 5, write=True):
            entered.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    lock = os.stat(f"{store.path}/lock")
    assert find_holders(lock.st_dev, lock.st_ino) == {os.getpid()}
    with pytest.raises(TryAgainLaterError) as caught:
        RoundRobin(store, SETS, timeout=0.05).allocate(B)
    assert f"process {os.getpid()}" in caught.value.details
    got: list[str] = []
    waiting = threading.Thread(target=lambda: got.append(add(store, B)))
    waiting.start()
    leave.set()
    holder.join()
    waiting.join()
    assert got == ["10.0.0.3"]
    assert add(store, Owner("c", "eth0")) == "10.0.0.4"


def test_a_lock_that_is_deleted_while_one_waits(store: FileStore) -> None:
    add(store, A)
    with FileStore(store.data_dir, "net").view(time.monotonic() + 5, write=True):
        waiting = threading.Thread(target=lambda: add(store, B))
        waiting.start()
        os.unlink(f"{store.path}/lock")
    waiting.join()
    assert len(everything(store)) == 2


def files_of_index(store: FileStore) -> list[Path]:
    return list(Path(store.data_dir, ".cnisdk").rglob("*"))


@pytest.mark.parametrize("last", ["release", "retain", "release twice"])
def test_nothing_of_a_network_is_left_but_what_the_reference_leaves(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    monkeypatch.undo()
    owners = [Owner(f"c{number}", "eth0") for number in range(20)]
    for owner in owners:
        add(store, owner)
    assert files_of_index(store)
    other = FileStore(store.data_dir, "other")
    for owner in owners:
        add(other, owner)
    for each in (store, other):
        allocator = RoundRobin(each, SETS)
        if last == "retain":
            allocator.retain([])
        else:
            for owner in owners * (2 if last == "release twice" else 1):
                allocator.release(owner)
        everything(each)
        allocator.check_capacity()
        if each is store:
            assert files_of_index(other)
    assert sorted(path.relative_to(store.data_dir).as_posix() for path in Path(store.data_dir).rglob("*")) == [
        *("net", "net/last_reserved_ip.0", "net/lock"),
        *("other", "other/last_reserved_ip.0", "other/lock"),
    ]
    assert add(store, A) == "10.0.0.22"


def test_a_lease_of_nobody_keeps_the_index(store: FileStore) -> None:
    """It is no last lease that goes while another file keeps an address."""
    add(store, A)
    Path(store.path, "10.0.0.9").write_bytes(b"for the printer")
    add(store, B)
    RoundRobin(store, SETS).retain([])
    assert files_of_index(store)
    assert set(everything(store)) <= {IPv4Address("10.0.0.9")}


def test_a_network_that_was_removed_by_hand_leaves_no_index(store: FileStore) -> None:
    for owner in (A, B, Owner("c", "eth0")):
        add(store, owner)
    shutil.rmtree(store.path)
    RoundRobin(store, SETS).release(A)
    assert list(Path(store.data_dir).iterdir()) == []


def test_a_network_of_one_container_needs_no_index(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    dual = range_sets("10.0.0.0/24", "fd00::/64")
    for _ in range(3):
        assert len(RoundRobin(store, dual).allocate(A)) == 2
        assert files_of_index(store) == []
        assert len(RoundRobin(store, dual).release(A)) == 2
