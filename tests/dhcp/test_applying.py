"""An interface that does not take what a lease says: tried again, later and later, with nothing of it forgotten."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cnisdk.classes import evolve
from cnisdk.dhcp import _client, _interface
from cnisdk.dhcp._client import Client, Surroundings
from cnisdk.dhcp._machine import Drop, Identity, Remember, Timing, Use
from cnisdk.dhcp._store import LeaseFiles, Record, boot_id
from cnisdk.dhcp._wire import Wire
from cnisdk.dhcp.lease import DHCPLease
from cnisdk.errors import IOFailureError
from cnisdk.spec.names import Attachment

OWNER = Attachment("n", "c", "eth0")
OPTIONS = {1: bytes([255, 255, 255, 0]), 54: bytes([10, 1, 0, 1])}
OLD, NEW, NEWEST = (
    DHCPLease(address=IPv4Address(f"10.1.0.{last}"), options=OPTIONS, started=0.0) for last in (50, 51, 52)
)


class Interface:
    """The kernel's side: the addresses it has, and how often it refuses to change them."""

    def __init__(self) -> None:
        self.addresses = {OLD.interface}
        self.refusals = 0
        self.refused_routes = 0
        self.netns = None
        self.mac = "02:42:ac:11:00:02"

    def _change(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise IOFailureError("the link is down")

    def configure(self, _: object, lease: DHCPLease, stale: list[DHCPLease], __: int) -> None:
        self.addresses.add(lease.interface)  # as far as it gets
        self._change()
        self.addresses -= {each.interface for each in stale if each.interface != lease.interface}

    def add_routes(self, _: object, lease: DHCPLease, __: int) -> None:
        assert lease.interface in self.addresses
        if self.refused_routes:
            self.refused_routes -= 1
            raise IOFailureError("cannot add route")

    def unconfigure(self, _: object, leases: list[DHCPLease], __: int) -> None:
        self._change()
        self.addresses -= {each.interface for each in leases}


@pytest.fixture
def interface(monkeypatch: pytest.MonkeyPatch) -> Interface:
    interface = Interface()
    monkeypatch.setattr(_interface, "find_place", lambda *_: interface)
    monkeypatch.setattr(_interface, "configure", interface.configure)
    monkeypatch.setattr(_interface, "add_routes", interface.add_routes)
    monkeypatch.setattr(_interface, "unconfigure", interface.unconfigure)
    return interface


class Site:
    """A client with a lease, and its file."""

    def __init__(self, directory: Path) -> None:
        self.files, self.log = LeaseFiles(str(directory)), list[str]()
        self._around = Surroundings(
            files=self.files, random=lambda: 0.5, timing=Timing(), log=self.log.append, close_later=Wire.close
        )
        record = Record(
            owner=OWNER,
            netns="/run/netns/c",
            cookie="1",
            index=2,
            identity=Identity(mac="02:42:ac:11:00:02", provided={}),
            priority=0,
            lease=OLD,
            bound=True,
            attached=True,
            boot=boot_id(),
        )
        self.files.save(record)
        self.start()

    def start(self) -> Client:
        """Begin, as after a daemon that was killed."""
        (record,) = self.files.load()
        self.client = Client(record, self._around)
        with suppress(OSError):
            self.client.resume(1.0)
        return self.client

    def use(self, lease: DHCPLease | None, now: float = 100.0) -> None:
        """Do what the state machine does with a lease that is another, or None."""
        before, self.client.machine.lease = self.client.machine.lease, lease
        action: Any = Drop(before) if lease is None and before else Use(lease, before) if lease else None
        self.client._follow([Remember(lease, bound=lease is not None), action], now)

    @property
    def record(self) -> Record:
        (record,) = self.files.load()
        return record


@pytest.fixture
def site(tmp_path: Path, interface: Interface) -> Site:
    return Site(tmp_path)


def test_a_lease_is_applied_later_and_later(site: Site, interface: Interface) -> None:
    interface.refusals = 9
    site.use(NEW)
    times = [100.0]
    while site.client._apply_at < 1e6:
        times.append(site.client._apply_at)
        site.client._apply(times[-1])
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert interface.addresses == {NEW.interface}
    assert site.client.trouble == ""
    # One line each, however often: leased; not taken; taken.
    assert len(site.log) == 3
    assert site.record.stale == ()


def test_a_deadline_of_its_own(site: Site, interface: Interface) -> None:
    """It does not wait for the renewal, and leaves the sockets of one alone."""
    interface.refusals = 1
    site.use(NEW)
    assert site.client.trouble == "the link is down"
    assert site.client.deadline == 101.0
    site.client.wake(100.5)
    assert interface.addresses == {OLD.interface, NEW.interface}
    site.client.wake(101.0)
    assert interface.addresses == {NEW.interface}
    assert site.client.deadline > 1000


@pytest.mark.parametrize("last", [NEWEST, OLD, None], ids=["another", "the first again", "none"])
def test_what_was_half_applied_goes_too(site: Site, interface: Interface, last: DHCPLease | None) -> None:
    interface.refusals = 2
    site.use(NEW)
    site.use(last)
    site.client._apply(200.0)
    assert interface.addresses == ({last.interface} if last is not None else set())


def test_an_interface_that_takes_no_renewal(site: Site, interface: Interface) -> None:
    """Each earlier lease is noted once, however often the server changes its mind."""
    interface.refusals = 1000
    for number in range(12):
        lease = (NEW, NEWEST, OLD)[number % 3]
        site.use(evolve(lease, started=100.0 + number, options={**OPTIONS, 51: bytes([0, 0, 1, number])}))
    assert sorted(str(each.address) for each in site.record.stale) == ["10.1.0.50", "10.1.0.51", "10.1.0.52"]
    interface.refusals = 0
    site.client._apply(200.0)
    assert interface.addresses == {OLD.interface}
    assert site.record.stale == ()


def test_an_interface_that_takes_no_route(site: Site, interface: Interface) -> None:
    """An address that has left the interface is not noted any more, though the lease is tried again."""
    interface.refused_routes = 1000
    for last in range(100, 140):
        site.use(evolve(NEW, address=IPv4Address(f"10.1.0.{last}")))
        assert [str(each.interface.ip) for each in site.record.stale] == [
            str(OLD.address) if last == 100 else f"10.1.0.{last - 1}"
        ]
    assert site.client.trouble == "cannot add route"
    assert site.client._apply_at < 1e6
    interface.refused_routes = 0
    site.client._apply(200.0)
    assert interface.addresses == {IPv4Interface("10.1.0.139/24")}
    assert site.record.stale == ()


def test_the_next_daemon_goes_on(site: Site, interface: Interface) -> None:
    interface.refusals = 1
    site.use(NEW)
    assert (site.record.lease, site.record.stale) == (NEW, (OLD,))
    client = site.start()
    assert client.deadline == 1.0
    client.wake(1.0)
    assert interface.addresses == {NEW.interface}
    assert site.record.stale == ()


def test_del_takes_all_of_it(site: Site, interface: Interface, monkeypatch: pytest.MonkeyPatch) -> None:
    class Space:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(_client, "_send_release", lambda *_: None)
    interface.refusals = 1
    site.use(NEW)
    monkeypatch.setattr(interface, "netns", Space())
    _client.release(site.record, site.files, lambda: 0.5)
    assert interface.addresses == set()
    assert site.files.load() == []


def test_an_mtu_that_the_link_refuses(site: Site, interface: Interface, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the lease is used all the same, and it is not tried again."""

    def refuse(mtu: int) -> None:
        raise IOFailureError(f"cannot set the MTU to {mtu}")

    monkeypatch.setattr(interface, "set_mtu", refuse, raising=False)
    site.client._record = evolve(site.record, identity=evolve(site.record.identity, requested=(26,)))
    site.use(evolve(NEW, options={**OPTIONS, 26: b"\x23\x28"}))
    assert interface.addresses == {NEW.interface}
    assert site.client._apply_at > 1e6
    assert any("cannot set the MTU to 9000, as the server wants" in line for line in site.log)
