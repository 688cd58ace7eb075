"""cnisdk leases, gc and fsck, over one directory of leases and one of cached results, on a throw-away host."""

import argparse
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from binascii import crc32
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnisdk._cli import attachments, cnisdk, fsck, gc
from cnisdk._cli.attachments import HostState
from cnisdk._cli.leases import bar, share
from cnisdk.ipam import FileStore, Lease, Owner, RoundRobin, filestore
from cnisdk.ipam._records import Boot, current_boot
from cnisdk.ipam.filetable import FileTable
from cnisdk.runtime.cache import Cache, CachedAttachment
from cnisdk.spec.addresses import parse_address
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host, SandboxUnavailable
from cnisdk.testing.faults import kill
from cnisdk.testing.stores import everything, range_sets, reserve

SUBNETS = ("10.5.0.0/28", "fd00:5::/64")
RECORDER = """#!/bin/sh
[ "$CNI_COMMAND" != VERSION ] || exec echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}'
cat > "$0.stdin"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS" >> "$0.calls"
"""
HERE, GONE = "/run/netns/living", "/run/netns/gone"


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_on(host: Host, *arguments: str, terminal: bool = False) -> int:
    """Run ``cnisdk`` on a host, and print here what it prints there."""

    def work() -> tuple[int, str, str]:
        with redirect_stdout(Terminal() if terminal else io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = cnisdk.main(arguments)
        return status, out.getvalue(), err.getvalue()

    status, out, err = host.call(work)
    print(out, end="")
    print(err, end="", file=sys.stderr)
    return status


class Place:
    """A network "net" whose plugin "recorder" notes what it is sent."""

    def __init__(self, host: Host, root: Path, version: str = "1.0.0") -> None:
        self.host = host
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
            entry = CachedAttachment(Attachment("net", container, "eth0"), netns=netns, result=result)
            self.cache.store(entry)
            os.utime(self.cache.path(entry.attachment), (time.time() - age, time.time() - age))
        return [str(ip.address.ip) for ip in ips]

    def run(self, *arguments: str, terminal: bool = False) -> int:
        options = ["--conf-dir", f"{self.root}/conf", "--cache-dir", f"{self.root}/cache"]
        return run_on(self.host, *arguments, "--inside", *options, terminal=terminal)

    def gc(self, *arguments: str) -> int:
        return self.run("gc", "net", "--pause", "0", "--cni-path", f"{self.root}/bin", *arguments)

    def calls(self) -> list[str]:
        noted = Path(f"{self.recorder}.calls")
        return noted.read_text().splitlines() if noted.exists() else []

    def cache_file(self, name: str, content: bytes, age: float = 3600) -> Path:
        """Put a file among the cached results."""
        path = Path(self.cache.directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    def owners(self) -> set[str]:
        return {owner.container_id for owner in everything(self.store).values()}


@pytest.fixture(scope="module")
def machine() -> Iterator[Host]:
    """A host with one container, for all tests here: they change files only, each its own."""
    try:
        with Host() as host:
            host.add_netns("living")
            yield host
    except SandboxUnavailable as unavailable:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(unavailable))


@pytest.fixture
def place(machine: Host, tmp_path: Path) -> Place:
    return Place(machine, tmp_path)


def test_leases_as_json(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    alive = place.add("alive", HERE)
    place.add("dead", GONE)
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
        monkeypatch.setenv("TERM", "xterm")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    place.add("alive", HERE)
    assert place.run("leases", terminal=True) == 0
    out, err = capsys.readouterr()
    out = without_colours(out)
    assert "10.5.0.1-10.5.0.14  ██░░" in out
    assert "1 of 13" in out
    assert "1 of 2^64" in out
    assert "alive: its namespace /run/netns/living exists" in out
    assert ("cnisdk[cli]" in err) is not rich


def test_leases_that_two_ipam_plugins_keep_in_one_directory_are_listed_once(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """host-local lists what lies in its directory, and does not know what the network's own plugin is told of it."""
    if not current_boot().machine_id:
        pytest.skip("this machine has no id, so no boot of it is known to be earlier")
    path = place.root / "conf" / "10-net.conflist"
    conf = json.loads(path.read_text())
    conf["plugins"][0]["ipam"] |= {"type": "cnisdk-cluster", "reclaimEarlierBoots": False}
    conf["plugins"][0]["ipam"] |= {"endpoints": ["http://127.0.0.1:1"]}
    path.write_text(json.dumps(conf))
    place.add("alive", HERE)
    reboot(place, "kept")
    os.unlink(place.cache.path(Attachment("net", "kept", "eth0")))
    assert place.run("leases", "--data-dir", place.store.data_dir, "--json") == 0
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    assert network["ipam"] == "cnisdk-cluster"
    kept = [each for each in network["leases"] if each["containerID"] == "kept"]
    assert [each["state"] for each in kept] == ["unknown", "unknown"]


def test_leases_of_a_network_that_does_not_exist(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("leases", "other") == 1
    assert "neither configuration nor leases" in capsys.readouterr().err


@pytest.mark.parametrize(("used", "filled"), [(0, 0), (1, 1), (500, 15), (999, 29), (1000, 30)])
def test_bars(used: int, filled: int) -> None:
    assert bar(used, 1000) == "█" * filled + "░" * (30 - filled)


def test_shares() -> None:
    assert [share(3, size) for size in (13, 65533, 2**64 - 2)] == ["3 of 13", "3 of 65,533", "3 of 2^64"]


def test_nothing_heavy_is_imported(place: Place) -> None:
    script = "import sys; import cnisdk._cli.leases, cnisdk._cli.gc, cnisdk._cli.fsck; print('rich' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- gc ---------------------------------------------------------------------------------------------------------------

FORGOTTEN = "no runtime remembers it, and its address is on no link of any network namespace"


def test_gc_says_what_it_would_do(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("alive", HERE)
    place.add("dead", GONE)
    place.add("forgotten", None)
    place.add("starting", None, age=200)
    before, cached = everything(place.store), f"{place.cache.directory}/net-dead-eth0"
    assert place.gc("--dry-run") == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "keep 10.5.0.5 of container starting interface eth0: its lease is only 3 min old",
        "keep fd00:5::5 of container starting interface eth0: its lease is only 3 min old",
        f"would drop cached result {cached} of container dead interface eth0: its namespace /run/netns/gone is gone",
        "would drop 10.5.0.3 of container dead interface eth0: its namespace /run/netns/gone is gone",
        "would drop fd00:5::3 of container dead interface eth0: its namespace /run/netns/gone is gone",
        f"would drop 10.5.0.4 of container forgotten interface eth0: {FORGOTTEN}",
        f"would drop fd00:5::4 of container forgotten interface eth0: {FORGOTTEN}",
        "attachments: 1 alive, 2 dead, 1 kept since they cannot be judged",
    ]
    assert everything(place.store) == before
    assert not place.calls()


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_gc(machine: Host, tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With a plugin that does nothing when it is asked: what is dead gets its DEL, and nothing else happens."""
    place = Place(machine, tmp_path, version)
    place.add("alive", HERE)
    place.add("dead", GONE)
    place.add("forgotten", None)
    place.add("starting", None, age=200)
    assert place.gc() == 0
    assert place.owners() == {"alive", "starting"}
    assert [entry.attachment.container_id for entry in place.cache.entries("net")[0]] == ["alive"]
    assert place.calls() == ["DEL dead /proc/0/ns/net", "DEL forgotten "]
    capsys.readouterr()
    assert place.gc("--dry-run", "--grace", "1") == 0
    assert "would drop 10.5.0.5 of container starting" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_gc_asks_plugins_with_the_list_of_all_that_are_not_dead(machine: Host, tmp_path: Path, version: str) -> None:
    """Those of a list that is too old to know GC as well."""
    place = Place(machine, tmp_path, version)
    place.recorder.with_name("host-local").symlink_to(place.recorder)
    place.add("alive", HERE)
    place.add("dead", GONE)
    place.add("young", GONE, age=200)
    place.add("starting", None, age=200)
    place.add("hidden", "/nowhere/netns/x")
    Path(place.store.path, "10.5.0.12").write_bytes(b"old")  # as before 2018
    marked = Attachment("net", "unknown-to-all", "net1").tag
    machine.run(["sh", "-euc", f"ip link add marked0 type bridge && ip link set marked0 alias {marked}"])
    try:
        assert place.gc("--plugins") == 0
    finally:
        machine.run(["ip", "link", "del", "marked0"])
    sent: dict[str, Any] = json.loads(Path(f"{place.recorder}.stdin").read_bytes())
    assert sent["cniVersion"] == "1.1.0"
    kept = [(each["containerID"], each["ifname"]) for each in sent["cni.dev/valid-attachments"]]
    assert kept == [
        ("alive", "eth0"),
        ("hidden", "eth0"),
        ("old", "eth0"),
        ("starting", "eth0"),
        ("unknown-to-all", "net1"),
        ("young", "eth0"),
    ]
    assert [call.split()[0] for call in place.calls()] == ["DEL", "GC"]


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_gc_asks_no_plugin_while_a_link_has_a_mark_nobody_can_read(
    machine: Host, tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names too long for an alias are hashed in it: such an attachment cannot be put on the list."""
    place = Place(machine, tmp_path, version)
    place.add("alive", HERE)
    marked = Attachment("net", "x" * 250, "net1").tag
    machine.run(["sh", "-euc", f"ip link add marked0 type bridge && ip link set marked0 alias {marked}"])
    try:
        assert place.gc("--plugins") == 1
    finally:
        machine.run(["ip", "link", "del", "marked0"])
    assert marked in capsys.readouterr().err
    assert not place.calls()


@pytest.mark.parametrize("hides", ["torn", "empty", "a link in its place", "its directory", "all directories"])
def test_gc_asks_no_plugin_while_a_runtime_may_remember_more(
    machine: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str], hides: str
) -> None:
    """A container that lives, and that no lease names, would not be on the list."""
    place = Place(machine, tmp_path, "1.1.0")
    place.add("alive", HERE)
    path = place.cache_file("net-living-eth0", b"{torn" if hides == "torn" else b"")
    if hides == "a link in its place":
        path.unlink()
        path.symlink_to(path.name)
    elif hides == "its directory":
        path.parent.rename(tmp_path / "elsewhere")
        path.parent.write_bytes(b"")
    elif hides == "all directories":
        path.parent.rename(tmp_path / "elsewhere")
    assert place.gc("--plugins") == 1
    said = capsys.readouterr().err
    assert "the plugins' GC was not run" in said
    assert str(path.parent) in said or hides == "all directories"
    assert not place.calls()


def test_grace_keeps_what_is_young_remembered_or_not(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("remembered", GONE, age=200)
    place.add("forgotten", None, age=200)
    assert place.gc("--grace", "600") == 0
    assert place.owners() == {"remembered", "forgotten"}
    assert capsys.readouterr().out.count(" is only 3 min old") == 5
    assert place.gc("--grace", "0") == 0
    assert place.owners() == set()


def test_gc_is_not_blocked_by_a_torn_result_of_another_attachment(place: Place) -> None:
    place.add("forgotten", None)
    place.cache_file("net-x-eth0", b"{torn")
    assert place.gc() == 0
    assert place.owners() == set()


@pytest.mark.parametrize(("content", "problem"), [(b"", "is empty"), (b"{torn", "is torn"), (b"\0" * 40, "is empty")])
def test_gc_and_fsck_agree_on_a_result_that_was_cut_short(
    place: Place, capsys: pytest.CaptureFixture[str], content: bytes, problem: str
) -> None:
    place.add("cut", None)
    path = place.cache_file("net-cut-eth0", content)
    assert place.gc() == 0
    out = capsys.readouterr().out
    assert f"keep 10.5.0.2 of container cut interface eth0: its cached result {path} {problem}" in out
    assert "cnisdk fsck repairs it" in out
    assert place.run("fsck", "--dry-run") == 1
    assert place.run("fsck") == 0
    assert f"{path} {problem}" in capsys.readouterr().out
    assert not path.exists()
    assert place.gc() == 0
    assert place.owners() == set()


def test_a_result_that_may_be_being_written_stays(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("cut", None)
    path = place.cache_file("net-cut-eth0", b"", age=5)
    assert place.gc("--grace", "0") == 0
    assert place.run("fsck") == 1
    assert "look again in a minute" in capsys.readouterr().out
    assert path.exists()
    assert place.owners() == {"cut"}


def test_a_torn_result_of_a_living_container_stays(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (address, _) = place.add("cut", None)
    path = place.cache_file("net-cut-eth0", b"{torn")
    script = f"ip -n living link add cut0 type bridge && ip -n living addr add {address}/28 dev cut0"
    place.host.run(["sh", "-euc", script])
    try:
        assert place.run("fsck") == 1
        assert f"it stays: its address {address} is on cut0 in /run/netns/living" in capsys.readouterr().out
        assert place.gc() == 0
    finally:
        place.host.run(["ip", "-n", "living", "link", "del", "cut0"])
    assert path.exists()
    assert place.owners() == {"cut"}


def test_gc_and_fsck_agree_on_a_torn_result_beside_other_things(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as that of a Firecracker machine, whose address is on no link of the host."""
    place.add("living", None)
    Path(place.cache.directory).mkdir(parents=True)
    path = place.cache_file("../machine/net-living-eth0", b"{torn").resolve()
    place.cache_file("../machine/net-log-of-today", b"torn")
    assert place.gc() == 0
    assert f"its cached result {path} is torn" in capsys.readouterr().out
    assert place.owners() == {"living"}
    assert place.run("fsck", "-n") == 1
    out = capsys.readouterr().out
    assert str(path) in out
    assert "net-log" not in out


@pytest.mark.parametrize("command", [["leases"], ["leases", "--json"], ["gc", "net"], ["fsck"]])
def test_names_that_are_no_text_stop_no_command(place: Place, command: list[str]) -> None:
    """The kernel takes any bytes for the name of a link, and a file system for that of a file."""
    place.add("dead", GONE)
    Path(place.store.path, "10.5.0.9").write_bytes(b"odd\r\neth\xff")
    os.rename(f"{place.cache.directory}/net-dead-eth0", f"{place.cache.directory}/net-dead-\udcff")
    place.cache_file("net-odd-\udcfe", b"{torn")
    options = ["--inside", "--conf-dir", f"{place.root}/conf", "--cache-dir", f"{place.root}/cache"]
    if command[0] == "gc":
        options += ["--pause", "0", "--cni-path", f"{place.root}/bin"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8:strict"}
    done = place.host.run([sys.executable, "-m", "cnisdk", *command, *options], env=env)
    assert "odd" in done.stdout
    if command[0] == "gc":
        assert place.owners() == {"odd"}
        assert "keep 10.5.0.9 of container odd interface eth\\udcff: its lease is only" in done.stdout
        assert f"drop cached result {place.cache.directory}/net-dead-\\udcff of container dead" in done.stdout


def test_what_another_attachment_of_the_same_file_name_has_overwritten_stays(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """libcni joins the names with hyphens, and looks at no file before it writes its own."""
    place.add("a-b", None)
    other = CachedAttachment(Attachment("net-a", "b", "eth0"), netns=HERE)
    place.cache.store(other)
    path = place.cache.path(other.attachment)
    assert path.endswith("/net-a-b-eth0")
    for command in (["gc"], ["fsck"], ["leases"]):
        assert (place.gc() if command == ["gc"] else place.run(*command)) == (command == ["fsck"])
        out, err = capsys.readouterr()
        assert f'{path} is that of container "b" interface "eth0" on network "net-a"' in out + err
    assert place.owners() == {"a-b"}
    os.unlink(path)
    assert place.gc() == 0
    assert place.owners() == set()


def test_an_interface_of_a_container_that_lives_stays(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference's portmap has one chain for all interfaces of a container on a network: one DEL takes it."""
    place.add("two", HERE)
    Path(place.store.path, "10.5.0.9").write_bytes(b"two\r\neth1")
    os.utime(f"{place.store.path}/10.5.0.9", (0, 0))
    assert place.gc() == 0
    why = "its container lives: its interface eth0 does"
    assert f"keep 10.5.0.9 of container two interface eth1: {why}" in capsys.readouterr().out
    assert place.run("leases") == 0
    assert f"unknown: {why}" in capsys.readouterr().out
    assert not place.calls()


def test_what_was_written_in_the_future_stays_and_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that began with a wrong clock."""
    place.add("dead", GONE, age=-1e8)
    assert place.gc("--grace", "0") == 0
    assert capsys.readouterr().out.count("was made in the future: the clock has been set back since") == 3
    assert place.run("leases") == 0
    assert "  -1157 d  " in capsys.readouterr().out
    assert place.owners() == {"dead"}


def test_a_directory_of_results_that_is_not_there_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error, or a disk that is not mounted: gc sees less than the operator thinks."""
    place.add("alive", HERE)
    for command in (["gc", "net"], ["leases"], ["fsck"]):
        assert place.run(*command, "--cache-dir", "/srv/typo") == 0
        assert "there is no directory /srv/typo, so no cached results in it" in capsys.readouterr().err


def test_a_result_this_user_may_not_read_says_so(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory in the file's place stands for a mode that root would not be held up by."""
    place.add("hidden", None)
    path = Path(place.cache.directory, "net-hidden-eth0")
    path.parent.mkdir(parents=True)
    path.symlink_to(path.name)
    assert place.gc() == 0
    assert place.run("fsck") == 1
    out = capsys.readouterr().out
    assert f"{path} is no cached result" in out
    assert "repaired" not in out
    assert place.owners() == {"hidden"}


@pytest.mark.parametrize("command", ["gc", "fsck", "leases"])
def test_a_named_pipe_among_the_results_stops_nothing(place: Place, command: str) -> None:
    place.add("alive", HERE)
    os.mkfifo(Path(place.cache.directory, "net-pipe-eth0"))
    assert (place.gc() if command == "gc" else place.run(command)) == (1 if command == "fsck" else 0)
    assert place.owners() == {"alive"}


def test_nothing_is_dropped_where_namespaces_cannot_be_seen(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a pod that has nothing of the host but /var/lib/cni."""
    place.add("hidden", "/nowhere/netns/x")
    assert place.gc() == 0
    assert place.owners() == {"hidden"}
    assert (
        "keep 10.5.0.2 of container hidden interface eth0: its namespace /nowhere/netns/x cannot be looked at: "
        "there is no directory /nowhere/netns" in capsys.readouterr().out
    )


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_gc_refuses_where_the_view_is_not_the_hosts(
    place: Place, capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    place.add("dead", GONE)
    options = ["--conf-dir", f"{place.root}/conf", "--cache-dir", f"{place.root}/cache"]
    assert run_on(place.host, "gc", "net", *option, *options) == 1
    err = capsys.readouterr().err
    assert "nothing was done, since from here it cannot be known which attachments are dead" in err
    assert "--inside" in err
    assert place.owners() == {"dead"}
    assert run_on(place.host, "leases", "net", "--json", *options) == 0
    out, err = capsys.readouterr()
    assert {each["state"] for each in json.loads(out)["networks"][0]["leases"]} == {"unknown"}
    assert "no attachment can be judged dead" in err


def test_gc_of_a_network_that_sets_disable_gc_does_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.root / "conf" / "10-net.conflist"
    path.write_text(json.dumps({**json.loads(path.read_text()), "disableGC": True}))
    place.add("dead", GONE)
    assert place.gc() == 0
    assert place.owners() == {"dead"}
    assert "sets disableGC" in capsys.readouterr().out


def test_what_changed_between_the_two_looks_stays(place: Place) -> None:
    """The container came back under the same id while gc paused: the same lease, but in a new file."""
    place.add("back", GONE)
    place.add("dead", GONE)

    def come_back(_: float) -> None:
        lease = Path(place.store.path, "10.5.0.2")
        content = lease.read_bytes()
        lease.unlink()
        lease.write_bytes(content)
        os.utime(lease, (0, 0))

    def work() -> str:
        parser = argparse.ArgumentParser()
        gc.add_arguments(parser)
        options = ["--conf-dir", f"{place.root}/conf", "--cache-dir", f"{place.root}/cache"]
        args = parser.parse_args(["net", "--inside", "--cni-path", f"{place.root}/bin", *options])
        with redirect_stdout(io.StringIO()) as out:
            assert gc.run(args, pause=come_back) == 0
        return out.getvalue()

    assert "keep 10.5.0.2 of container back interface eth0: the first judgement was different" in place.host.call(work)
    assert place.owners() == {"back"}


def test_a_failing_plugin_keeps_what_it_should_have_deleted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("dead", GONE)
    place.recorder.write_text('#!/bin/sh\necho \'{"code": 11, "msg": "busy"}\'\nexit 1\n')
    assert place.gc() == 1
    assert "container dead interface eth0: " in capsys.readouterr().err
    assert place.owners() == {"dead"}
    assert [entry.attachment.container_id for entry in place.cache.entries("net")[0]] == ["dead"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["gc", "fsck"])
def test_one_that_is_killed_anywhere_is_run_again(machine: Host, tmp_path: Path, command: str) -> None:
    """What lives has all it had, at every moment."""
    options = ["--inside", "--conf-dir", f"{tmp_path}/0/conf", "--cache-dir", f"{tmp_path}/0/cache"]
    arguments = [
        command,
        *(["net", "--pause", "0", "--cni-path", f"{tmp_path}/0/bin"] if command == "gc" else []),
        *options,
    ]

    def was_killed(step: int) -> bool:
        """Run the command in a process that is killed at a step, if there are so many; 0 is never."""
        child = os.fork()
        if not child:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                kill(step).arm()
                os._exit(cnisdk.main(arguments))
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGKILL)
        return ended != 0

    step, killed = 1, True
    while killed:
        root = tmp_path / "0"
        root.mkdir()
        place = Place(machine, root)
        place.add("alive", HERE)
        place.add("dead", GONE)
        place.add("forgotten", None)
        place.cache_file("net-torn-eth0", b"{torn")
        Path(place.store.path, "10.5.0.13").touch()
        killed = machine.call(was_killed, step)
        for _ in range(2):
            assert "alive" in place.owners()
            assert place.cache.exists(Attachment("net", "alive", "eth0"))
            assert not machine.call(was_killed, 0)
        assert place.owners() == ({"alive"} if command == "gc" else {"alive", "dead", "forgotten"})
        assert not machine.call(os.path.exists, "/run/cni/releasing")
        root.rename(tmp_path / str(step))
        step += 53 if command == "gc" else 17
    assert step > 100


# --- after a reboot ---------------------------------------------------------------------------------------------------


def reboot(place: Place, container: str) -> None:
    """Have an attachment of an earlier boot, remembered and with leases."""
    boot = Boot("0" * 32, current_boot().machine_id)
    earlier = FileStore(place.store.data_dir, "net", boot=boot, reclaim_earlier_boots=False)
    for lease in (Lease(parse_address(each), Owner(container, "eth0")) for each in ("10.5.0.13", "fd00:5::13")):
        reserve(earlier, lease)
    result = {"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.13/28"}, {"address": "fd00:5::13/64"}]}
    entry = CachedAttachment(Attachment("net", container, "eth0"), netns="/run/netns.old/x", result=result)
    place.cache.store(entry)


def test_after_a_reboot_all_four_say_the_same(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    if not current_boot().machine_id:
        pytest.skip("this machine has no id, so no boot of it is known to be earlier")
    place.add("alive", HERE)
    reboot(place, "before")  # the last, since what allocates reclaims them
    why = "container before interface eth0: it is of an earlier boot"

    assert place.gc("--dry-run") == 0
    said = capsys.readouterr().out
    assert said.count(why) == 3
    assert said.count("would drop") == 3
    assert place.run("leases", "--json") == 0
    leases = json.loads(capsys.readouterr().out)["networks"][0]["leases"]
    states = {(each["state"], each["why"]) for each in leases if each["containerID"] == "before"}
    assert states == {("dead", "it is of an earlier boot")}
    assert place.run("fsck", "--dry-run") == 1
    assert capsys.readouterr().out.count(f"{why}: to be repaired") == 3

    assert place.gc() == 0
    assert capsys.readouterr().out == said.replace("would drop", "drop")
    assert place.owners() == {"alive"}
    assert [entry.attachment.container_id for entry in place.cache.entries("net")[0]] == ["alive"]
    assert place.run("fsck") == 0

    reboot(place, "before")
    assert place.run("fsck") == 0
    assert capsys.readouterr().out.count(f"{why}: repaired") == 3
    assert place.owners() == {"alive"}
    assert [entry.attachment.container_id for entry in place.cache.entries("net")[0]] == ["alive"]


def test_fsck_drops_nothing_of_a_container_that_comes_back_after_a_reboot(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its old lease, as under onDuplicate: return, after fsck has looked."""
    if not current_boot().machine_id:
        pytest.skip("this machine has no id, so no boot of it is known to be earlier")
    reboot(place, "before")
    judge = attachments.judge_host

    def judge_and_attach(args: argparse.Namespace, only: str) -> HostState:
        state = judge(args, only)
        place.cache.store(CachedAttachment(Attachment("net", "before", "eth0"), netns=HERE))
        return state

    monkeypatch.setattr(fsck, "judge_host", judge_and_attach)
    assert place.run("fsck") == 1
    assert "it is of an earlier boot; it stays: a runtime has attached it again" in capsys.readouterr().out
    assert Path(place.store.path, "10.5.0.13").exists()
    assert place.cache.exists(Attachment("net", "before", "eth0"))


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
    os.utime(directory / "10.5.0.8", (0, 0))
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
        "10.5.0.13 of container earlier interface eth0: it is of an earlier boot",
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


def test_fsck_takes_no_address_that_a_torn_result_may_name(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runtimes remember the attachment: what the one has written is cut short."""
    place.add("twice", HERE)
    Path(place.store.path, "10.5.0.8").write_bytes(b"twice\r\neth0")
    os.utime(f"{place.store.path}/10.5.0.8", (0, 0))
    place.cache_file("../multus/results/net-twice-eth0", b'{"kind"')
    assert place.run("fsck") == 1
    assert "but its cached result lacks 10.5.0.8; it stays: its cached result" in capsys.readouterr().out
    assert Path(place.store.path, "10.5.0.8").exists()


def test_fsck_takes_no_address_of_a_container_that_a_plugin_works_for(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ADD may have taken a lease over, and its result is not written yet."""
    place.add("twice", HERE)
    Path(place.store.path, "10.5.0.8").write_bytes(b"twice\r\neth0")
    os.utime(f"{place.store.path}/10.5.0.8", (0, 0))
    env = {**os.environ, "CNI_CONTAINERID": "twice"}
    with place.host.popen(["sh", "-c", "echo; read end"], stdin=-1, stdout=-1, env=env) as plugin:
        assert plugin.stdout is not None
        plugin.stdout.readline()
        assert place.run("fsck") == 1
        plugin.communicate()
    assert "is at work on it" in capsys.readouterr().out
    assert Path(place.store.path, "10.5.0.8").exists()
    assert place.run("fsck") == 0
    assert not Path(place.store.path, "10.5.0.8").exists()


@pytest.mark.parametrize("content", [b"for the printer", b"new\r\neth0"])
def test_fsck_deletes_no_lease_that_was_written_since_it_looked(place: Place, content: bytes) -> None:
    """Its file was empty then."""
    place.add("one", HERE)
    path = Path(place.store.path, "10.5.0.9")
    path.touch()
    table = FileTable(place.store)
    (finding,) = table.examine().findings
    path.write_bytes(content)
    assert table.repair([finding]) == ()
    assert path.read_bytes() == content


def test_fsck_says_what_it_cannot_repair(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that the kernel has made read-only after an error."""
    place.add("one", HERE)
    Path(place.store.path, "10.5.0.9").touch()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("cnisdk.ipam.filetable.os", SimpleNamespace(**{**vars(os), "unlink": refuse}))
    assert place.run("fsck") == 1
    assert f"cannot repair {place.store.path}/10.5.0.9: EROFS: Read-only file system" in capsys.readouterr().err


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an index also where there are few leases."""
    monkeypatch.setattr(filestore, "_FEW", 0)


@pytest.mark.usefixtures("indexed")
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


@pytest.mark.usefixtures("indexed")
def test_fsck_repairs_a_damaged_index(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("one", HERE)
    for path in Path(place.store.index_path, "owners").iterdir():
        path.write_bytes(b"damage")
    assert place.run("fsck") == 0
    assert "of the index is damaged: repaired" in capsys.readouterr().out
    assert place.run("fsck", "nope") == 1


@pytest.mark.usefixtures("indexed")
def test_fsck_deletes_the_index_of_a_network_that_is_gone(place: Place) -> None:
    place.add("one", HERE)
    assert Path(place.store.index_path).exists()
    os.rename(place.store.path, f"{place.root}/elsewhere")
    assert place.run("fsck") == 0
    assert not Path(place.store.index_path).exists()


LONG = "0123456789abcdef" * 4


def test_piped_a_lease_is_one_line_with_whole_values(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (address, _) = place.add(LONG, HERE)
    assert place.run("leases") == 0
    (line,) = (each for each in capsys.readouterr().out.splitlines() if address in each.split())
    assert line.split()[:3] == [address, LONG, "eth0"]
    assert "alive" in line


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_on_a_terminal_no_identifier_is_cut(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    place.add(LONG, HERE)
    assert place.run("leases", terminal=True) == 0
    out = without_colours(capsys.readouterr().out)
    assert LONG in out
    assert "…" not in out
