"""Sources in firewalld's zones: with the real firewalld, on a bus of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cnisdk.linux import firewalld
from cnisdk.linux.netfilter import _dbus
from cnisdk.testing import Host, expect_error

from ..firewalld_kit import Bus, Firewalld, skip_without_firewalld

A4, A6 = ip_address("10.1.0.2"), ip_address("2001:db8::2")


# --- messages ---------------------------------------------------------------------------------------------------------


def written_by_the_library(
    kind: str, fields: Mapping[str, str | int], body: tuple[str, ...], order: str = "little"
) -> bytes:
    """A message of D-Bus."""
    low: Any = pytest.importorskip("jeepney.low_level")
    named = {low.HeaderFields[key]: value for key, value in fields.items()}
    flags = low.MessageFlag.no_auto_start
    header = low.Header(low.Endianness[order], low.MessageType[kind], flags, 1, -1, 7, named)
    return bytes(low.Message(header, body).serialise())


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_messages_are_those_of_the_library(arguments: list[str]) -> None:
    method = _dbus.Method("org.example.Program", "/org/example", "org.example.zone", "addSource")
    fields = {
        "path": method.path,
        "interface": method.interface,
        "member": method.member,
        "destination": method.destination,
    }
    if arguments:
        fields["signature"] = "s" * len(arguments)
    expected = written_by_the_library("method_call", fields, tuple(arguments))
    assert _dbus.encode(method, arguments, 7) == expected


@contextmanager
def bus_that_says(path: Path, *answers: bytes) -> Iterator[None]:
    """A bus at this path that answers the first connection: each time that something comes, with the next answer.

    After the last it says nothing more. An empty answer ends the connection.
    """

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            for answer in answers:
                connection.recv(4096)
                if not answer:
                    return
                connection.sendall(answer)
            while connection.recv(4096):
                pass

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the bus of the test is."""
    monkeypatch.setattr(_dbus, "SOCKET", str(tmp_path / "bus"))
    return tmp_path / "bus"


ACCEPTED = b"OK 0123456789abcdef\r\n"


@pytest.mark.parametrize("answers", [[], [ACCEPTED]], ids=["neither the bus", "nor firewalld"])
def test_no_answer(path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[bytes]) -> None:
    monkeypatch.setattr(firewalld, "_TIMEOUT", 0.05)
    with bus_that_says(path, *answers), expect_error(11, "did not answer within 0.05 seconds"):
        firewalld.is_running()


def test_a_bus_that_is_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many wait for it as the kernel allows: that is a reason to wait, too."""
    monkeypatch.setattr(firewalld, "_TIMEOUT", 0.05)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(str(path))
        server.listen(0)
        other.connect(str(path))
        with expect_error(11, "did not answer within 0.05 seconds"):
            firewalld.is_running()


def test_a_bus_that_refuses_this_user(path: Path) -> None:
    with bus_that_says(path, b"REJECTED KERBEROS\r\n"), expect_error(5, "refused this user: REJECTED KERBEROS"):
        firewalld.is_running()


def test_a_bus_that_ends(path: Path) -> None:
    with bus_that_says(path, ACCEPTED, b""), expect_error(5, "cannot ask firewalld over the system bus"):
        firewalld.is_running()


@pytest.mark.parametrize("order", ["little", "big"])
def test_an_answer_among_other_messages(path: Path, order: str) -> None:
    """The bus hands messages on as their sender wrote them."""
    hello = written_by_the_library("method_return", {"reply_serial": 1, "signature": "s"}, (":1.7",))
    signal = {"path": "/a", "interface": "a.b", "member": "Acquired", "signature": "ss"}
    other = written_by_the_library("signal", signal, ("a", "text"), order)
    answer = written_by_the_library("method_return", {"signature": "s", "reply_serial": 2}, ("work",), order)
    with bus_that_says(path, ACCEPTED, hello + other + answer):
        assert firewalld.find_zone(A4) == "work"


def test_without_a_bus(path: Path) -> None:
    assert not firewalld.is_running()
    with expect_error(50, "firewalld does not run"):
        firewalld.add_source("trusted", A4)
    firewalld.remove_source("trusted", A4)


# --- firewalld --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bus(module_host: Host) -> Iterator[Host]:
    """A host with a system bus."""
    skip_without_firewalld()
    bus = Bus(module_host)
    yield module_host
    bus.stop()


@pytest.fixture(scope="module")
def running(bus: Host) -> Iterator[Firewalld]:
    running = Firewalld(bus)
    yield running
    running.stop()


@pytest.mark.kernel
def test_firewalld_that_does_not_run(bus: Host) -> None:
    """Before `running` starts it."""
    assert bus.call(firewalld.is_running) is False
    bus.call(firewalld.remove_source, "trusted", A4)
    with expect_error(50, "firewalld does not run"):
        bus.call(firewalld.status, "trusted")
    with expect_error(50, "firewalld does not run"):
        bus.call(firewalld.add_source, "trusted", A4)


@pytest.mark.kernel
def test_the_life_of_a_source(running: Firewalld) -> None:
    call = running.host.call
    assert call(firewalld.is_running) is True
    call(firewalld.status, "trusted")
    for _ in range(2):
        for address in (A4, A6):
            call(firewalld.add_source, "trusted", address)
    assert running.sources() == ["10.1.0.2/32", "2001:db8::2/128"]
    assert "10.1.0.2" in running.host.shell("nft list table inet firewalld")
    assert call(firewalld.find_zone, A4) == call(firewalld.find_zone, A6) == "trusted"
    for _ in range(2):
        for address in (A4, A6):
            call(firewalld.remove_source, "trusted", address)
    assert running.sources() == []
    assert call(firewalld.find_zone, A4) is None


@pytest.mark.kernel
def test_a_source_of_another_zone_stays_there(running: Firewalld) -> None:
    running.cmd("--zone=work", "--add-source=10.1.0.2/32")
    with expect_error(5, "has 10.1.0.2/32 in zone work, not in trusted", "--remove-source=10.1.0.2/32"):
        running.host.call(firewalld.add_source, "trusted", A4)
    running.host.call(firewalld.remove_source, "trusted", A4)
    assert running.sources("work") == ["10.1.0.2/32"]
    running.cmd("--zone=work", "--remove-source=10.1.0.2/32")


@pytest.mark.kernel
@pytest.mark.parametrize("zone", ["nowhere", "", "\0", "\ud800", "trusted\n"])
def test_no_such_zone(running: Firewalld, zone: str) -> None:
    with expect_error(50, "firewalld has no zone", "$.firewalldZone"):
        running.host.call(firewalld.status, zone)
    with expect_error(7, "firewalld has no zone", "$.firewalldZone"):
        running.host.call(firewalld.add_source, zone, A4)
    running.host.call(firewalld.remove_source, zone, A4)


@pytest.mark.kernel
def test_panic(running: Firewalld) -> None:
    """The operator has cut the machine off: firewalld changes nothing."""
    running.cmd("--panic-on")
    try:
        with expect_error(5, "did not add 10.1.0.2/32 to zone trusted", "PANIC_MODE"):
            running.host.call(firewalld.add_source, "trusted", A4)
        with expect_error(5, "did not remove 10.1.0.2/32 from zone trusted", "PANIC_MODE"):
            running.host.call(firewalld.remove_source, "trusted", A4)
    finally:
        running.cmd("--panic-off")
