"""Many leases in one daemon."""

import re
import signal
from pathlib import Path

import pytest

from cnisdk.dhcp import client
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host

from .network import LAN, SOCKET, Daemon, Dnsmasq

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


def test_a_hundred_leases(host: Host) -> None:
    """The next daemon renews all of them, in one process of one thread and little memory; each is released."""
    host.shell(LAN + "ip -n server addr add 10.3.0.1/16 dev eth0")
    server = Dnsmasq(host, "--dhcp-option=58,10i", pool="10.3.0.2,10.3.1.250")
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
    status = Path(f"/proc/{daemon.process.pid}/status")
    renewed = 0
    while renewed < LEASES:
        seen = server.drain()
        server.wait_for("DHCPACK", since=seen)
        renewed = sum(now > then for now, then in zip(host.call(started), before, strict=True))
    text = status.read_text()
    assert int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) < MOST_MEMORY
    assert re.findall(r"Threads:\s+(\d+)", text) == ["1"]
    host.call(delete_all)
    assert server.leases() == []
    daemon.stop()
    server.stop()
