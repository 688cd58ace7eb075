"""Killed at every single system call of every operation: the next one finds everything in order."""

import os
import shutil
from collections.abc import Callable, Collection
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from cnisdk.ipam import FileStore, Owner, RoundRobin
from cnisdk.ipam.allocator import retain
from cnisdk.ipam.filestore import SPARE
from cnisdk.testing.stores import everything, range_sets

from .tracing import run_until

# How many attachments are added after each kill. The full number takes minutes.
FOLLOWING = 1000 if os.environ.get("CNISDK_STRESS") else 2
_ME = Owner("me", "eth0")
_DUAL = range_sets("10.0.0.0/20", "fd00::/64")


def operations() -> dict[str, Callable[[FileStore], object]]:
    return {
        "ADD": lambda store: RoundRobin(store, _DUAL[:1]).allocate(_ME),
        "dual-stack ADD": lambda store: RoundRobin(store, _DUAL).allocate(_ME),
        "DEL": lambda store: RoundRobin(store, _DUAL).release(_ME),
        "GC": lambda store: retain(store, [Owner("stays", "eth0")]),
        "CHECK": lambda store: RoundRobin(store, _DUAL).find(_ME),
    }


def work_in(data_dir: Path, operation: str) -> None:
    operations()[operation](FileStore(str(data_dir), "net"))


def files(directory: Path) -> dict[str, bytes]:
    return {
        each.name: each.read_bytes() for each in directory.iterdir() if not each.name.startswith("last_reserved_ip.")
    }


def prepare(data_dir: Path, operation: str) -> None:
    store = FileStore(str(data_dir), "net")
    RoundRobin(store, _DUAL).allocate(Owner("stays", "eth0"))
    if operation in ("DEL", "GC", "CHECK"):
        RoundRobin(store, _DUAL).allocate(_ME)


def owners(store: FileStore) -> Collection[Owner]:
    return everything(store).values()


@pytest.mark.slow
@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed files", "named files"])
@pytest.mark.parametrize("indexed", [True, False], ids=["index", "scan"])
@pytest.mark.parametrize("operation", operations())
def test_killed_at_every_system_call(
    tmp_path: Path, operation: str, indexed: bool, unnamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not unnamed:
        if operation not in ("ADD", "dual-stack ADD"):
            pytest.skip("writes no lease")
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what a file system without them makes of it
    # Entries of system calls only: nothing happens between the exit of one and the entry of the next.
    stop, killed = -1, True
    while killed:
        stop += 2
        data_dir = tmp_path / str(stop)
        directory = data_dir / "net"
        data_dir.mkdir()
        prepare(data_dir, operation)
        if not indexed:
            shutil.rmtree(data_dir / ".cnisdk")
        before = files(directory)
        killed = run_until(partial(work_in, data_dir, operation), stop)

        # Whatever has a name and is an address is whole.
        for name, data in files(directory).items():
            if name not in ("lock", SPARE):
                ip_address(name)
                assert data in (b"me\r\neth0", b"stays\r\neth0"), (stop, name)
        store = FileStore(str(data_dir), "net")
        allocator = RoundRobin(store, _DUAL)
        allocator.release(_ME)
        left = {name: data for name, data in before.items() if data != b"me\r\neth0"}
        assert files(directory) == left, stop
        given = [ip.address.ip for number in range(FOLLOWING) for ip in allocator.allocate(Owner(f"c{number}", "eth0"))]
        assert len(set(given)) == 2 * FOLLOWING
        assert not {str(address) for address in given} & set(left)
        assert len(owners(store)) == 2 * FOLLOWING + 2
        shutil.rmtree(data_dir)
    assert stop > 20  # it did trace
