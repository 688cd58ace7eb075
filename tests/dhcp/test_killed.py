"""SIGKILL of the daemon at any line of its code, in a hundred ADDs and DELs."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Interface
from types import FrameType
from typing import Any

import pytest

from cnisdk import dhcp
from cnisdk._cli import cnisdk, dhcp as command
from cnisdk.dhcp import client
from cnisdk.errors import CNIError
from cnisdk.linux import netns
from cnisdk.linux.ip import address
from cnisdk.linux.links import link
from cnisdk.spec.names import Attachment
from cnisdk.testing import Host

from .network import LAN, SOCKET, Daemon, Kea

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ROUNDS = int(os.environ.get("CNISDK_TEST_KILLS", "100"))
KEPT = 5
# Each daemon renews, but no lease ends while they are killed.
TIMES: dict[str, Any] = {"valid-lifetime": 3600, "renew-timer": 1, "rebind-timer": 3000}
CODE = (os.path.dirname(str(dhcp.__file__)), str(command.__file__))


class ForkedDaemon:
    """The daemon, in a fork of this process: an interpreter that starts takes longer than a round.

    Args:
        last: Number of the line before which it is killed, of those in the package ``dhcp``; 0 for none.
    """

    def __init__(self, last: int = 0) -> None:
        reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reading)
            sys.stderr = open(writing, "w", buffering=1)  # noqa: SIM115  # for its whole life
            self._run(last)
        os.close(writing)
        self._log = open(reading, errors="replace")  # noqa: SIM115  # until end()
        self.said = ""
        self.ready = any(self._note(line) for line in iter(self._log.readline, ""))

    def _note(self, line: str) -> bool:
        self.said += line
        return "cnisdk dhcp: ready" in line

    @staticmethod
    def _run(last: int) -> None:
        try:
            lines = 0

            def in_line(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
                nonlocal lines
                lines += event == "line"
                if lines == last:
                    sys.stderr.write(f"killed: line {frame.f_lineno} of {frame.f_code.co_filename}\n")
                    os.kill(os.getpid(), signal.SIGKILL)
                return in_line

            def in_function(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
                return in_line if frame.f_code.co_filename.startswith(CODE) else None

            threading.settrace(in_function)
            sys.settrace(in_function)
            cnisdk.main(["dhcp"])
            sys.stderr.write(f"lines: {lines}\n")
        finally:
            os._exit(0)

    def end(self, number: int = signal.SIGKILL) -> str:
        """Kill it, if it is not yet dead, and return what it said."""
        os.kill(self._pid, number)
        os.waitpid(self._pid, 0)
        with self._log:
            self.said += self._log.read()
        return self.said


def owner(name: str) -> Attachment:
    return Attachment("n", name, "eth0")


def add(name: str, namespace: str) -> None:
    """ADD, as the plugin does it; then the interface plugin gives the interface its address."""
    lease = client.add_lease(SOCKET, owner(name), namespace, provided={61: name.encode()}, requested=[1, 58, 59])
    with netns.open(namespace) as space:
        address.add(link.get("eth0", space), lease.interface)


def addresses(namespace: str) -> list[IPv4Interface]:
    with netns.open(namespace) as space:
        found = [each.interface for each in address.list_on(link.get("eth0", space))]
    return [each for each in found if isinstance(each, IPv4Interface)]


def play(server: Kea) -> tuple[str, Counter[str]]:
    """Return what all daemons said, and how many of them died of their fault, by what they did."""
    daemon = ForkedDaemon()
    for number in range(KEPT):
        add(f"kept{number}", f"/run/netns/kept{number}")
    said = daemon.end()
    daemon = ForkedDaemon()
    add("whole", "/run/netns/c")
    client.delete_lease(SOCKET, owner("whole"))
    said += daemon.end(signal.SIGTERM)
    (whole,) = map(int, re.findall(r"lines: (\d+)", said))
    chance = random.Random(15)  # seeded, to be repeatable
    died: Counter[str] = Counter()
    for number in range(ROUNDS):
        server.drain()  # with a full pipe it would answer nothing more
        name, when = f"c{number}", "later"
        # On a slow machine there are more lines in an ADD, since what is kept is renewed each second.
        daemon = ForkedDaemon(chance.randint(1, whole * (1 + number % 2 * 2)))
        try:
            add(name, "/run/netns/c")
        except CNIError:
            when = "in ADD" if daemon.ready else "before it was ready"
            if chance.random() < 0.5:  # else DEL does without
                said += daemon.end()
                daemon = ForkedDaemon()
        client.delete_lease(SOCKET, owner(name))
        assert addresses("/run/netns/c") == [], f"round {number}:\n{daemon.said}"
        said += daemon.end()
        died[when] += 1
    return said, died


def test_a_daemon_that_is_killed(host: Host) -> None:
    """After DEL no lease is left on the server. What a container uses meanwhile is renewed, and stays."""
    host.shell(LAN)
    for name in ("c", *(f"kept{number}" for number in range(KEPT))):
        move = f"ip link set m0 netns {name} name eth0"
        host.shell(f"ip netns add {name}; ip link add m0 link up0 type macvlan mode bridge; {move}")
    server = Kea(host, **TIMES)
    said, died = host.call(play, server)
    assert died.keys() == {"before it was ready", "in ADD", "later"}
    assert "lost" not in said
    seen = server.drain()
    daemon = Daemon(host)
    kept = [each["address"] for each in host.call(client.get_status, SOCKET)["leases"]]
    for number, each in enumerate(sorted(kept)):
        address = each.partition("/")[0]
        assert f" {each} " in host.shell(f"ip -n kept{number} -o -4 addr show eth0")
        server.wait_for(f"received buffer from {address}:68 to 10.1.0.1:67", seen)
        server.wait_for(f"lease {address} has been allocated", seen)
    assert server.leases() == sorted(each.partition("/")[0] for each in kept)
    assert len(kept) == KEPT
    assert len(host.shell("ls /run/cni/dhcp").split()) == KEPT
    daemon.stop()
    server.stop()
