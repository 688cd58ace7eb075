"""Leases of an earlier boot are dead; those of another machine, or of one that cannot be told apart, are not."""

import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cnisdk.ipam import FileStore, Owner, RoundRobin, _exclusive, filestore
from cnisdk.ipam._exclusive import is_exclusive
from cnisdk.ipam._records import BOOT_ATTRIBUTE, Boot, current_boot
from cnisdk.ipam.filetable import FileTable
from cnisdk.testing.stores import everything, range_sets

SETS = range_sets("10.0.0.0/24")
OTHER, OURS = Owner("running-elsewhere", "eth0"), Owner("ours", "eth0")
FIRST, SECOND = IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")
ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"


def machine(root: Path, name: str, machine_id: str | None) -> Boot:
    """A machine that is up, as its files describe it."""
    etc, proc = root / name / "etc", root / name / "proc/sys/kernel/random"
    etc.mkdir(parents=True)
    proc.mkdir(parents=True)
    if machine_id is not None:
        (etc / "machine-id").write_text(machine_id)
    digit = f"{len(list(root.iterdir())):x}"
    (proc / "boot_id").write_text(f"{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}\n")
    return current_boot(str(root / name / "proc"), str(etc))


def add(data_dir: Path, boot: Boot, owner: Owner) -> IPv4Address:
    (ip,) = RoundRobin(FileStore(str(data_dir), "net", boot=boot), SETS).allocate(owner)
    address = ip.address.ip
    assert isinstance(address, IPv4Address)
    return address


@pytest.mark.parametrize(
    "machine_id", [None, "", "uninitialized\n", "0" * 32 + "\n", "3d1219c7", "not hexadecimal, but 32 letters!"]
)
def test_machines_without_an_id_of_their_own_share_a_directory(tmp_path: Path, machine_id: str | None) -> None:
    data_dir = tmp_path / "shared"
    assert add(data_dir, machine(tmp_path, "one", machine_id), OTHER) == FIRST
    here = machine(tmp_path, "two", machine_id)
    assert add(data_dir, here, OURS) == SECOND
    assert everything(FileStore(str(data_dir), "net", boot=here)) == {FIRST: OTHER, SECOND: OURS}


def test_a_machine_that_has_got_its_id_since(tmp_path: Path) -> None:
    for number, (before, now) in enumerate([("", ID), ("uninitialized", ID), (ID, ""), (ID, "uninitialized")]):
        data_dir = tmp_path / f"data{number}"
        assert add(data_dir, machine(tmp_path, f"a{number}", before), OTHER) == FIRST
        assert add(data_dir, machine(tmp_path, f"b{number}", now), OURS) == SECOND


@pytest.mark.parametrize("exporting", ["neither", "the first", "the second"])
def test_machines_of_one_image_share_a_directory(
    tmp_path: Path, exporting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the network; one of them may have it on a disk of its own."""
    one, two = machine(tmp_path, "one", ID), machine(tmp_path, "two", ID)

    disks = _exclusive.EXCLUSIVE
    monkeypatch.setattr(_exclusive, "EXCLUSIVE", disks if exporting == "the first" else frozenset())
    assert add(tmp_path / "shared", one, OTHER) == FIRST
    monkeypatch.setattr(_exclusive, "EXCLUSIVE", disks if exporting == "the second" else frozenset())
    assert add(tmp_path / "shared", two, OURS) == SECOND
    store = FileStore(str(tmp_path / "shared"), "net", boot=two)
    assert everything(store) == {FIRST: OTHER, SECOND: OURS}
    if exporting != "the first":
        assert os.listxattr(f"{store.path}/{FIRST}") == []
    found = FileTable(store).examine()
    assert next((lease.owner, lease.boot) for lease in found.leases) == (OTHER, "unknown")
    assert not [each for each in found.findings if each.repair]


def test_a_machine_that_was_switched_off(tmp_path: Path) -> None:
    before, now = machine(tmp_path, "before", ID), machine(tmp_path, "now", ID)
    assert add(tmp_path / "data", before, OTHER) == FIRST
    store = FileStore(str(tmp_path / "data"), "net", boot=now)
    assert [(lease.owner, lease.boot) for lease in FileTable(store).examine().leases] == [(OTHER, "earlier")]
    assert add(tmp_path / "data", now, OURS) == SECOND
    assert everything(store) == {SECOND: OURS}
    assert [lease.boot for lease in FileTable(store).examine().leases] == ["this"]


def test_which_file_system_it_is_costs_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look(directory: int) -> bool:
        looks.append(directory)
        return is_exclusive(directory)

    monkeypatch.setattr(filestore, "is_exclusive", look)
    here = machine(tmp_path, "here", ID)
    for number in range(10):
        address = add(tmp_path / "data", here, Owner(f"c{number}", "eth0"))
        assert os.getxattr(tmp_path / "data/net" / str(address), BOOT_ATTRIBUTE) == here.mark
    assert len(looks) <= 3


# As kernels print them; the mounts are numbered 40 to 49.
MOUNTS = r"""
40 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
41 40 0:24 / /run rw,nosuid,nodev - tmpfs tmpfs rw,size=1603104k,mode=755
42 40 0:33 /@/var/lib /var/lib rw,noatime shared:7 master:1 - btrfs /dev/nvme0n1p2 rw,ssd,subvol=/@/var/lib
43 40 0:52 / /srv/a\040-\040ext4 rw shared:9 - nfs4 10.0.0.1:/export rw,vers=4.2,addr=10.0.0.1
44 40 0:53 / /mnt/host rw - 9p host rw,trans=virtio,version=9p2000.L
45 40 0:54 / /mnt/folder rw - virtiofs folder rw
46 40 0:55 / /mnt/remote rw - fuse.sshfs machine:/ rw,user_id=0,group_id=0
47 40 253:3 / /mnt/cluster rw - ocfs2 /dev/dm-3 rw,heartbeat=none
48 40 0:56 / /mnt/windows rw - cifs //10.0.0.1/export rw,vers=3.1.1
49 40 0:57 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
""".lstrip()


@pytest.mark.parametrize(
    ("mount", "exclusive"),
    [(40, True), (41, True), (42, True), (49, True), *((number, False) for number in (*range(43, 49), 4, 50))],
)
def test_which_file_systems_are_of_one_machine(tmp_path: Path, mount: int, exclusive: bool) -> None:
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo/3").write_text(f"pos:\t0\nflags:\t0300000\nmnt_id:\t{mount}\nino:\t2\n")
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert is_exclusive(3, str(tmp_path)) is exclusive


def test_a_file_system_that_cannot_be_found_out_counts_as_shared(tmp_path: Path) -> None:
    assert is_exclusive(3, str(tmp_path)) is False
    (tmp_path / "fdinfo").mkdir()
    (tmp_path / "fdinfo/3").write_text("pos:\t0\n")
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert is_exclusive(3, str(tmp_path)) is False
