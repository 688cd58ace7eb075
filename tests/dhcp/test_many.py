"""Many leases in one daemon."""

import re
import signal
from pathlib import Path

import pytest

from cnisdk.dhcp import client
from cnisdk.spec.names import Attachment
from cnisdk.testing import Capture, Frame, Host

from .network import LAN, PATIENCE, REQUEST, SOCKET, Daemon, Dnsmasq

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

LEASES = 100
MOST_MEMORY = 60 << 10  # KiB


def owner(number: int) -> Attachment:
    return Attachment("n", f"c{number}", "eth0")


def add_all() -> list[str]:
    leases = (
        client.add_lease(SOCKET, owner(number), f"/run/netns/c{number}", provided={}, requested=[1, 58, 59])
        for number in range(LEASES)
    )
    return [str(each.interface) for each in leases]


def started() -> list[float]:
    return [client.get_lease(SOCKET, owner(number)).started for number in range(LEASES)]


def delete_all() -> None:
    for number in range(LEASES):
        client.delete_lease(SOCKET, owner(number))


def wait_until_all_ask(capture: Capture) -> None:
    """Wait until each client has asked for more time, from the address it has."""
    asked: set[bytes] = set()

    def all_have(frame: Frame) -> bool:
        if REQUEST in frame.data:
            asked.add(frame.data[26:30])  # the source, of an IP header behind that of Ethernet
        return len(asked) == LEASES

    capture.wait_for(all_have, PATIENCE)


def wait_until_renewed(host: Host, server: Dnsmasq, before: list[float]) -> None:
    """Wait until all leases have begun later than before."""
    seen = 0
    while not all(now > then for now, then in zip(host.call(started), before, strict=True)):
        server.wait_for("DHCPACK", since=seen)
        seen = server.drain()


def test_a_hundred_leases(host: Host) -> None:
    """All are renewed after the daemon was killed, and after the server was.

    It takes one process of one thread and little memory. In the end, each lease is released.
    """
    host.shell(LAN + "ip -n server addr add 10.3.0.1/16 dev eth0")
    # A renewal after 10 seconds. One that is not answered is repeated after 20.
    options, pool = ("--dhcp-option=58,10i", "--dhcp-option=59,20i"), "10.3.0.2,10.3.1.250"
    server = Dnsmasq(host, *options, pool=pool)
    host.shell(
        f"for n in $(seq 0 {LEASES - 1}); do ip netns add c$n; ip link add m$n link up0 type macvlan mode bridge; "
        "ip link set m$n netns c$n name eth0; done"
    )
    daemon = Daemon(host)
    addresses = host.call(add_all)
    assert len(set(addresses)) == LEASES
    # As the interface plugin does, which makes the interface.
    host.shell("".join(f"ip -n c{number} addr add {each} dev eth0;" for number, each in enumerate(addresses)))
    before = host.call(started)
    daemon.stop(signal.SIGKILL)
    server.drain()
    daemon = Daemon(host)
    wait_until_renewed(host, server, before)
    server.stop(signal.SIGKILL)
    before, told = host.call(started), daemon.drain()
    with host.capture("up0") as capture:
        wait_until_all_ask(capture)
    assert host.call(started) == before
    server = Dnsmasq(host, *options, pool=pool)
    wait_until_renewed(host, server, before)
    daemon.drain()
    assert daemon.lines[told:] == []  # no lease was lost, and none has changed
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    assert int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) < MOST_MEMORY
    assert re.findall(r"Threads:\s+(\d+)", text) == ["1"]
    host.call(delete_all)
    server.wait_for_leases()
    daemon.stop()
    server.stop()
