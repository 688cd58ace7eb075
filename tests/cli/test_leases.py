"""cnisdk leases, gc and fsck, over one directory of leases and one of cached results."""

import json
import os
import subprocess
import sys
import time
from binascii import crc32
from pathlib import Path
from typing import Any

import pytest

from cnisdk.cli import cnisdk
from cnisdk.cli.leases import bar, share
from cnisdk.ipam import FileStore, Lease, Owner, RoundRobin
from cnisdk.ipam.records import Boot, current_boot
from cnisdk.runtime.cache import Cache, CachedAttachment
from cnisdk.spec.addresses import parse_address
from cnisdk.spec.names import Attachment
from cnisdk.testing.stores import everything, range_sets, reserve

SUBNETS = ("10.5.0.0/28", "fd00:5::/64")
RECORDER = """#!/bin/sh
cat > "$0.stdin"
"""


class Place:
    """A network "net" whose plugin "recorder" notes what it is sent."""

    def __init__(self, root: Path, version: str = "1.0.0") -> None:
        self.root = root
        self.store = FileStore(str(root / "data"), "net")
        self.allocator = RoundRobin(self.store, range_sets(*SUBNETS))
        self.cache = Cache(str(root / "cache"))
        ranges = [[{"subnet": subnet}] for subnet in SUBNETS]
        ipam = {"type": "host-local", "dataDir": str(root / "data"), "ranges": ranges}
        conf = {"cniVersion": version, "name": "net", "plugins": [{"type": "recorder", "ipam": ipam}]}
        (root / "conf").mkdir()
        (root / "conf" / "10-net.conflist").write_text(json.dumps(conf))
        (root / "bin").mkdir()
        self.recorder = root / "bin" / "recorder"
        self.recorder.write_text(RECORDER)
        self.recorder.chmod(0o755)

    def add(self, container: str, netns: str | None, age: float = 3600) -> list[str]:
        """Lease addresses; remember the attachment unless there is no namespace given."""
        ips = self.allocator.allocate(Owner(container, "eth0"))
        for ip in ips:
            os.utime(f"{self.store.path}/{ip.address.ip}", (time.time() - age, time.time() - age))
        if netns is not None:
            result = {"cniVersion": "1.0.0", "ips": [{"address": str(ip.address)} for ip in ips]}
            self.cache.store(CachedAttachment(Attachment("net", container, "eth0"), netns=netns, result=result))
        return [str(ip.address.ip) for ip in ips]

    def run(self, *arguments: str) -> int:
        options = ["--conf-dir", f"{self.root}/conf", "--cache-dir", f"{self.root}/cache"]
        return cnisdk.main([*arguments, *options])

    def gc(self, *arguments: str) -> int:
        return self.run("gc", "net", "--cni-path", f"{self.root}/bin", *arguments)

    def owners(self) -> set[str]:
        return {owner.container_id for owner in everything(self.store).values()}


HERE = "/proc/self/ns/net"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_leases_as_json(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    alive = place.add("alive", HERE)
    place.add("dead", "/nonexistent/netns")
    place.add("unknown", None)
    Path(place.store.path, "10.5.0.9").write_bytes(b"theirs\r\neth0")
    Path(place.store.path, "10.5.0.10").write_bytes(b"")
    assert place.run("leases", "net", "--json") == 0
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    assert network["name"] == "net"
    assert network["ranges"][0] == {"range": "10.5.0.1-10.5.0.14", "size": 13, "used": 4}
    assert network["ranges"][1]["used"] == 3
    leases = {lease["address"]: lease for lease in network["leases"]}
    assert leases[alive[0]]["state"] == "alive"
    assert leases[alive[0]]["boot"] == "this"
    assert 3600 <= leases[alive[0]]["ageSeconds"] < 3700
    assert leases["10.5.0.3"]["state"] == "dead"
    assert leases["10.5.0.9"] == {
        **leases["10.5.0.9"],
        "containerID": "theirs",
        "ifname": "eth0",
        "boot": "unknown",
        "state": "unknown",
    }
    assert [finding["path"] for finding in network["findings"]] == [f"{place.store.path}/10.5.0.10"]


@pytest.mark.parametrize("rich", [True, False])
def test_leases_as_a_table(
    place: Place, capsys: pytest.CaptureFixture[str], rich: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rich:
        pytest.importorskip("rich")
        monkeypatch.setenv("COLUMNS", "200")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    place.add("alive", HERE)
    assert place.run("leases") == 0
    out, err = capsys.readouterr()
    assert "10.5.0.1-10.5.0.14  ██░░" in out
    assert "1 of 13" in out
    assert "1 of 2^64" in out
    assert "alive: its namespace /proc/self/ns/net exists" in out
    assert ("cnisdk[cli]" in err) is not rich


def test_leases_of_a_network_that_does_not_exist(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("leases", "other") == 1
    assert "neither configuration nor leases" in capsys.readouterr().err


@pytest.mark.parametrize(("used", "filled"), [(0, 0), (1, 1), (500, 15), (999, 29), (1000, 30)])
def test_bars(used: int, filled: int) -> None:
    assert bar(used, 1000) == "█" * filled + "░" * (30 - filled)


def test_shares() -> None:
    assert [share(3, size) for size in (13, 65533, 2**64 - 2)] == ["3 of 13", "3 of 65,533", "3 of 2^64"]


def test_nothing_heavy_is_imported(place: Place) -> None:
    script = "import sys; import cnisdk.cli.leases, cnisdk.cli.gc, cnisdk.cli.fsck; print('rich' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- gc ---------------------------------------------------------------------------------------------------------------


def test_gc_says_what_it_would_do(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("alive", HERE)
    place.add("dead", "/nonexistent/netns")
    place.add("forgotten", None)
    place.add("starting", None, age=5)
    before = everything(place.store)
    assert place.gc("--dry-run") == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "would drop cached attachment dead eth0: its namespace /nonexistent/netns is gone",
        "would drop 10.5.0.3 of container dead interface eth0: its namespace /nonexistent/netns is gone",
        "would drop 10.5.0.4 of container forgotten interface eth0: the runtime remembers no such attachment",
        "keep 10.5.0.5 of container starting interface eth0: it is only 5 s old",
        "would drop fd00:5::3 of container dead interface eth0: its namespace /nonexistent/netns is gone",
        "would drop fd00:5::4 of container forgotten interface eth0: the runtime remembers no such attachment",
    ]
    assert everything(place.store) == before
    assert not Path(f"{place.recorder}.stdin").exists()


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_gc(tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With a plugin that does nothing when it is asked, and in versions that do not ask it."""
    place = Place(tmp_path, version)
    place.add("alive", HERE)
    place.add("dead", "/nonexistent/netns")
    place.add("forgotten", None)
    place.add("starting", None, age=5)
    assert place.gc() == 0
    assert place.owners() == {"alive", "starting"}
    assert [entry.attachment.container_id for entry in place.cache.entries("net")[0]] == ["alive"]
    sent: dict[str, Any] = json.loads(Path(f"{place.recorder}.stdin").read_bytes())
    if version == "1.1.0":
        kept = [each["containerID"] for each in sent["cni.dev/valid-attachments"]]
        assert kept == ["alive", "starting"]
    capsys.readouterr()
    assert place.gc("--dry-run", "--grace", "1") == 0
    assert "starting" in capsys.readouterr().out


def test_gc_does_nothing_while_it_cannot_know(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("forgotten", None)
    Path(place.root, "cache", "results").mkdir(parents=True)
    Path(place.root, "cache", "results", "net-x-eth0").write_text("{torn")
    assert place.gc() == 1
    assert "cannot be read" in capsys.readouterr().err
    assert place.owners() == {"forgotten"}


# --- fsck -------------------------------------------------------------------------------------------------------------


def test_fsck_of_what_is_in_order(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("alive", HERE)
    before = {each: each.stat().st_mtime_ns for each in Path(place.root, "data").rglob("*")}
    assert place.run("fsck") == 0
    assert "nothing broken" in capsys.readouterr().out
    assert {each: each.stat().st_mtime_ns for each in Path(place.root, "data").rglob("*")} == before


def broken(place: Place) -> None:
    """One of each."""
    directory = Path(place.store.path)
    place.add("twice", HERE)
    place.add("torn", HERE)
    boot = Boot("0" * 32, current_boot().machine_id)
    earlier = FileStore(place.store.data_dir, "net", boot=boot, reclaim_earlier_boots=False)
    reserve(earlier, Lease(parse_address("10.5.0.13"), Owner("earlier", "eth0")))
    (directory / "10.5.0.8").write_bytes(b"twice\r\neth0")
    (directory / "10.5.0.9").write_bytes(b"")
    (directory / ".cnisdk-new").write_bytes(b"x")
    (directory / "10.5.0.10").write_bytes(b"for the printer")
    torn = Path(place.cache.directory, "net-torn-eth0")
    torn.write_bytes(b"")
    os.utime(torn, (0, 0))  # not one that is being written


def test_fsck_finds_and_repairs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    broken(place)
    directory = Path(place.store.path)
    assert place.run("fsck", "--dry-run") == 1
    out = capsys.readouterr().out
    for part in (
        "10.5.0.9 is empty",
        "10.5.0.13 is of an earlier boot",
        ".cnisdk-new",
        "twice",
        "net-torn-eth0 is empty",
    ):
        assert part in out
    assert (directory / "10.5.0.9").exists()

    assert place.run("fsck") == 1  # the lease of nobody keeps an address: only a person can know what it is for
    out = capsys.readouterr().out
    assert out.count("repaired") == 5
    assert "10.5.0.10 names no owner" in out
    assert sorted(each.name for each in directory.glob("10.*")) == ["10.5.0.10", "10.5.0.2", "10.5.0.3"]
    (directory / "10.5.0.10").unlink()
    assert place.run("fsck") == 0


def test_fsck_repairs_an_index_that_lies(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("one", HERE)
    for path in Path(place.store.index_path, "owners").iterdir():
        lie = path.read_bytes()[4:].replace(b" one ", b" two ")
        path.write_bytes(crc32(lie).to_bytes(4, "little") + lie)
    assert place.run("fsck") == 0
    out = capsys.readouterr().out
    assert "10.5.0.2 is listed for container two interface eth0, but container one interface eth0 holds it" in out
    assert "10.5.0.2 of container one interface eth0 is not listed" in out
    assert len(place.allocator.release(Owner("one", "eth0"))) == 2


def test_fsck_repairs_a_damaged_index(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("one", HERE)
    for path in Path(place.store.index_path, "owners").iterdir():
        path.write_bytes(b"damage")
    assert place.run("fsck") == 0
    assert "of the index is damaged: repaired" in capsys.readouterr().out
    assert place.run("fsck", "nope") == 1


def test_fsck_deletes_the_index_of_a_network_that_is_gone(place: Place) -> None:
    place.add("one", HERE)
    os.rename(place.store.path, f"{place.root}/elsewhere")
    assert place.run("fsck") == 0
    assert not Path(place.store.index_path).exists()
