"""cnisdk leases, gc and fsck, where leases are kept by an IPAM plugin of another distribution."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnisdk._cli import gc
from cnisdk.ipam import FileStore, Lease, Owner
from cnisdk.runtime import Cache, CachedAttachment
from cnisdk.spec.addresses import parse_address
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host
from cnisdk.testing.stores import everything, reserve

from . import sqlite_ipam
from .test_leases import machine as machine, run_on

pytestmark = pytest.mark.kernel

OLD = 3600.0
HERE, GONE = "/run/netns/living", "/run/netns/gone"


def install(site: Path, name: str, entry_points: str) -> None:
    """Make a directory of modules look as if a distribution had been installed there."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[cnisdk.plugins]\n{entry_points}\n")


class Site:
    """A host whose network "net" has its leases in a database."""

    def __init__(self, host: Host, root: Path, ipam: dict[str, Any]) -> None:
        self.host, self.root, self.database = host, root, str(root / "leases.db")
        self.cache = Cache(str(root / "cache"))
        (root / "cache/results").mkdir(parents=True)
        (root / "conf").mkdir()
        (root / "bin").mkdir()
        (root / "bin/noop").write_text("#!/bin/sh\ncat > /dev/null\n")
        (root / "bin/noop").chmod(0o755)
        ipam = {"type": "sqlite-ipam", "file": self.database, "subnet": "10.6.0.0/28", **ipam}
        conf = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "noop", "ipam": ipam}]}
        (root / "conf/net.conflist").write_text(json.dumps(conf))

    def lease(self, container: str, number: int, age: float = OLD, made: float = 1.0) -> None:
        values = (f"10.6.0.{number}", "net", container, "eth0", made, age)
        sqlite_ipam.run(self.database, "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?)", *values)

    def remember(self, container: str, netns: str) -> None:
        result = {"cniVersion": "1.0.0", "ips": []}
        attachment = Attachment("net", container, "eth0")
        self.cache.store(CachedAttachment(attachment, netns=netns, result=result))
        os.utime(self.cache.path(attachment), (time.time() - OLD,) * 2)

    def run(self, *arguments: str) -> int:
        options = ["--inside", "--conf-dir", f"{self.root}/conf", "--cache-dir", f"{self.root}/cache"]
        return run_on(self.host, *arguments, *options)

    def gc(self, *arguments: str) -> int:
        return self.run("gc", "net", "--pause", "0", "--grace", "60", "--cni-path", f"{self.root}/bin", *arguments)

    def owners(self) -> set[str]:
        return {row[0] for row in sqlite_ipam.run(self.database, "SELECT container FROM leases")}


@pytest.fixture
def site(machine: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Site:
    install(tmp_path / "site", "sqlite_ipam", f"sqlite-ipam = {sqlite_ipam.__name__}:main")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return Site(machine, tmp_path, getattr(request, "param", {}))


def test_leases_shows_them(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.lease("alive", 3)
    site.lease("dead", 4)
    site.remember("alive", HERE)
    assert site.run("leases", "--json") == 0
    out, err = capsys.readouterr()
    (network,) = json.loads(out)["networks"]
    assert (network["name"], network["ipam"], network["directory"]) == ("net", "sqlite-ipam", site.database)
    assert network["ranges"] == [{"range": "10.6.0.1-10.6.0.14", "size": 13, "used": 2}]
    states = {each["address"]: (each["containerID"], each["state"]) for each in network["leases"]}
    assert states == {"10.6.0.3": ("alive", "alive"), "10.6.0.4": ("dead", "dead")}
    assert err == ""
    assert site.run("fsck") == 0


def of_a_namespace(site: Site) -> None:
    site.remember("lives", HERE)


def of_an_address(site: Site) -> None:
    site.host.run(["ip", "address", "replace", "10.6.0.3/32", "dev", "lo"])


def of_a_young_lease(site: Site) -> None:
    site.lease("lives", 3, age=10)


@pytest.mark.parametrize("sign", [of_a_namespace, of_an_address, of_a_young_lease])
def test_gc_keeps_what_shows_a_sign_of_life(site: Site, sign: Callable[[Site], None]) -> None:
    site.lease("lives", 3)
    site.lease("dead", 4)
    site.remember("dead", GONE)
    site.lease("forgotten", 5)
    sign(site)
    assert site.gc("-n") == 0
    assert site.owners() == {"lives", "dead", "forgotten"}
    assert site.gc() == 0
    site.host.run(["ip", "address", "flush", "dev", "lo"])
    assert site.owners() == {"lives"}


@pytest.mark.parametrize("site", [{"shared": True}], indirect=True)
def test_gc_drops_nothing_that_may_be_another_machines(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.lease("elsewhere", 3)
    assert site.gc() == 0
    assert "its lease lies where other machines may write" in capsys.readouterr().out
    assert site.owners() == {"elsewhere"}


def test_gc_keeps_an_address_that_was_leased_again_between_the_looks(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.lease("again", 3)

    def lease_again(_: float) -> None:
        site.lease("again", 3, made=2.0)

    monkeypatch.setattr(gc.run, "__kwdefaults__", {"pause": lease_again})
    assert site.gc() == 0
    assert site.owners() == {"again"}
    assert "the first judgement was different" in capsys.readouterr().out


def test_leases_of_the_ipam_plugin_before_are_not_forgotten(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """The network had host-local until its configuration changed."""
    store = FileStore(str(site.root / "before"), "net")
    reserve(store, Lease(parse_address("10.9.0.2"), Owner("dead", "eth0")))
    os.utime(f"{store.path}/10.9.0.2", (time.time() - OLD,) * 2)
    (site.root / "before" / "no network").mkdir()
    site.lease("dead", 3)
    site.remember("dead", GONE)
    options = ("--data-dir", str(site.root / "before"))
    assert site.run("leases", "--json", *options) == 0
    found = json.loads(capsys.readouterr().out)["networks"]
    assert [(each["name"], each["ipam"], len(each["leases"])) for each in found] == [
        ("net", "host-local", 1),
        ("net", "sqlite-ipam", 1),
    ]
    assert site.gc(*options) == 0
    assert site.owners() == set()
    assert everything(store) == {}


def test_a_broken_distribution_hides_no_others(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site.root / "broken", "broken", "broken = no_such_module:main")
    monkeypatch.syspath_prepend(str(site.root / "broken"))
    site.lease("web", 3)
    assert site.run("leases") == 0
    out, err = capsys.readouterr()
    assert "10.6.0.3" in out
    assert "plugin broken: ModuleNotFoundError: No module named 'no_such_module'" in err


def not_registered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(site.root / "site")


def cannot_be_loaded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sqlite_ipam, "main")


def tells_of_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sqlite_ipam.SqliteIpam, "lease_tables")


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (not_registered, 'no plugin "sqlite-ipam" is registered with this Python'),
        (cannot_be_loaded, 'plugin "sqlite-ipam" cannot be loaded'),
        (tells_of_none, 'plugin "sqlite-ipam" has no lease_tables'),
    ],
)
def test_leases_says_whose_leases_it_does_not_know(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: Callable[[Site, pytest.MonkeyPatch], None],
    why: str,
) -> None:
    state(site, monkeypatch)
    for command, status in (("leases", 0), ("leases net", 1), ("fsck net", 0)):
        assert site.run(*command.split()) == status
        err = capsys.readouterr().err
        assert f'cnisdk: the leases of network "net" are not known: {why}\n' in err
        assert "neither" not in err


@pytest.mark.parametrize("site", [{"type": ""}, {"type": "static"}], indirect=True)
def test_leases_of_a_network_that_keeps_none(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.run("leases", "net", "--json") == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"networks": []}, 'cnisdk: network "net" keeps no leases\n')
    assert site.run("leases", "unheard") == 1
    assert 'network "unheard" has neither configuration nor leases' in capsys.readouterr().err


def test_an_unreadable_database_ends_the_command_with_a_message(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.remember("dead", GONE)
    Path(site.database).write_text("this is no database, but it is longer than the header of one" * 9)
    for command in ("leases", "fsck", "gc"):
        assert (site.gc() if command == "gc" else site.run(command)) == 1
        assert "plugin sqlite-ipam: DatabaseError: file is not a database" in capsys.readouterr().err
    assert Path(site.cache.path(Attachment("net", "dead", "eth0"))).exists()
