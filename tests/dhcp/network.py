"""A network with a DHCP server, and a host on it with our daemon: real ones, in throw-away namespaces."""

from __future__ import annotations

import csv
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from cnisdk.testing import Container, Host

SOCKET = "/run/cni/dhcp.sock"
LEASES = "/var/lib/cni/dnsmasq.leases"
PATIENCE = 60.0
"""Seconds that a test waits for what should take milliseconds: the machine may be busy."""
REQUEST = bytes([99, 130, 83, 99, 53, 1, 3])
"""The magic cookie and the type of the message REQUEST, which the client puts first."""

LAN = """
ip netns add server
ip link add up0 type veth peer name eth0 netns server
ip link set up0 up
ip -n server addr add 10.1.0.1/24 dev eth0
ip -n server addr add 10.2.0.1/16 dev eth0
ip -n server link set eth0 up
ip -n server link set lo up
mkdir -p /var/lib/cni
"""


class Logged:
    """A program on a host whose standard error is followed line by line."""

    def __init__(self, host: Host, argv: Sequence[str], **options: Any) -> None:
        self.lines: list[str] = []
        self._rest = b""
        self.process = host.popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=False, **options
        )

    def wait_for(self, pattern: str, since: int = 0) -> str:
        """Return the first line from `since` on that has a pattern; wait for it."""
        __tracebackhide__ = True
        deadline = time.monotonic() + PATIENCE
        looked = since
        while True:
            for line in self.lines[looked:]:
                if re.search(pattern, line):
                    return line
            looked = max(looked, len(self.lines))
            if not self._read(deadline - time.monotonic()):
                said = "\n".join(self.lines[since:])
                raise AssertionError(f"no line with {pattern!r} of {self.process.args!r} in:\n{said}")

    def drain(self) -> int:
        """Read what is there, and return the number of lines so far, for ``since``."""
        while self._read(0):
            pass
        return len(self.lines)

    def _read(self, timeout: float) -> bool:
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        if timeout < 0 or not select.select([fd], [], [], timeout)[0]:
            return False
        data = os.read(fd, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode(errors="replace") for line in lines]
        return bool(data)

    def stop(self, number: int = signal.SIGTERM) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        self.process.wait(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Dnsmasq(Logged):
    """dnsmasq, in the namespace ``server``. Its log tells each message it gets and sends."""

    def __init__(
        self,
        host: Host,
        *options: str,
        pool: str = "10.1.0.50,10.1.0.99",
        lifetime: str = "2m",
        interface: str = "eth0",
    ) -> None:
        self.host = host
        argv = ["ip", "netns", "exec", "server", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0"]
        argv += [f"--interface={interface}", "--bind-interfaces", "--no-ping", "--dhcp-authoritative", "--pid-file="]
        argv += [f"--dhcp-leasefile={LEASES}", f"--dhcp-range={pool},{lifetime}", *options]
        super().__init__(host, argv)
        self.wait_for("sockets bound exclusively|DHCP, sockets")

    def leases(self) -> list[str]:
        """The addresses in the file of the leases."""
        return sorted(line.split()[2] for line in self.host.shell(f"cat {LEASES}").splitlines() if line)

    def wait_for_leases(self, *expected: str) -> None:
        """Wait until these addresses are leased, and no others: dnsmasq logs a release before it writes the file."""
        __tracebackhide__ = True
        deadline = time.monotonic() + PATIENCE
        while (found := self.leases()) != sorted(expected) and time.monotonic() < deadline:
            self.drain()  # with a full pipe it would do nothing more
        assert found == sorted(expected)


class Kea(Logged):
    """Kea, in a namespace. Its log tells where each message came from, and which it sent.

    Args:
        host: The host.
        netns: Name of the namespace. Servers of several namespaces have leases of their own.
        address: Its address on ``eth0`` there.
        keys: Keys of its configuration, beside those that all of the tests have.
    """

    def __init__(self, host: Host, netns: str = "server", address: str = "10.1.0.1", **keys: Any) -> None:
        self.host, self._netns, self._address = host, netns, address
        self._configure(keys)
        directories = ["KEA_PIDFILE_DIR=/run/kea-" + netns, "KEA_LOCKFILE_DIR=/run/kea-" + netns]
        argv = ["ip", "netns", "exec", netns, "env", *directories, "kea-dhcp4", "-c", self._path("json")]
        wait_for_carrier(host, netns)  # without, it does not listen, and later it would answer nothing
        super().__init__(host, argv)
        self.wait_for("DHCP4_STARTED")

    def change(self, **keys: Any) -> None:
        """Change its configuration. It keeps its leases."""
        since = self.drain()
        self._configure(keys)
        self.process.send_signal(signal.SIGHUP)
        self.wait_for("DHCP4_DYNAMIC_RECONFIGURATION_SUCCESS", since)

    def leases(self) -> list[str]:
        """The addresses that are leased, from the journal that it keeps of them."""
        text = self.host.shell(f"cat {self._path('csv')}")
        last = {row["address"]: row for row in csv.DictReader(text.splitlines())}
        now = time.time()
        return sorted(address for address, row in last.items() if int(row["expire"]) > now and row["state"] == "0")

    def _path(self, suffix: str) -> str:
        return f"/var/lib/cni/kea-{self._netns}.{suffix}"

    def _configure(self, keys: dict[str, Any]) -> None:
        """Write the configuration. A lease lasts four seconds unless it says otherwise."""
        keys = {
            "subnet": "10.1.0.0/24",
            "pool": "10.1.0.50-10.1.0.99",
            "options": {},
            "reservations": [],
            **keys,
        }
        options = {"routers": "10.1.0.1", **keys.pop("options")}
        subnet = {
            "id": 1,
            "subnet": keys.pop("subnet"),
            "pools": [{"pool": keys.pop("pool")}],
            "option-data": [{"name": name, "data": data} for name, data in options.items()],
            "reservations": keys.pop("reservations"),
        }
        logger = {"output_options": [{"output": "stderr", "pattern": "%m\n"}]}
        document = {
            "interfaces-config": {"interfaces": [f"eth0/{self._address}"]},
            "lease-database": {"type": "memfile", "name": self._path("csv"), "lfc-interval": 0},
            "valid-lifetime": 4,
            "renew-timer": 1,
            "rebind-timer": 2,
            "authoritative": True,
            "subnet4": [subnet],
            "loggers": [
                {"name": "kea-dhcp4", "severity": "INFO", **logger},
                {"name": "kea-dhcp4.packets", "severity": "DEBUG", "debuglevel": 40, **logger},
            ],
            **keys,
        }
        self.host.shell(f"mkdir -p /run/kea-{self._netns}")
        self.host.run(["tee", self._path("json")], input=json.dumps({"Dhcp4": document}))


class Daemon(Logged):
    """Our daemon, on the host."""

    def __init__(self, host: Host, *options: str) -> None:
        self.host = host
        super().__init__(host, [sys.executable, "-I", "-m", "cnisdk", "dhcp", *options])
        self.wait_for("cnisdk dhcp: ready")


def ipam(**keys: Any) -> dict[str, Any]:
    return {"type": "dhcp", "timeout": 30, **keys}


def address_of(container: Container, ifname: str = "eth0") -> str:
    """The address of a container, without its prefix length; empty without one."""
    return "".join(container.addresses(ifname)[:1]).partition("/")[0]


def wait_for_address(container: Container, expected: str, ifname: str = "eth0") -> None:
    """Wait until the container has this address, with its prefix length, and no other IPv4 one; empty for none."""
    wanted = [expected] if expected else []
    _wait_until(container.host, container.name, "address", lambda: container.addresses(ifname), wanted)


def wait_for_carrier(host: Host, netns: str, ifname: str = "eth0") -> None:
    """Wait until the kernel says that a link can be used."""
    _wait_until(host, netns, "link", lambda: host.ip("link", "show", ifname, netns=netns)[0]["operstate"], "UP")


def _wait_until(host: Host, netns: str, objects: str, look: Callable[[], object], expected: object) -> None:
    deadline = time.monotonic() + PATIENCE
    monitor = host.popen(["ip", "-n", netns, "-o", "monitor", objects], stdout=subprocess.PIPE, text=False)
    try:
        assert monitor.stdout is not None
        while (seen := look()) != expected:
            left = deadline - time.monotonic()
            assert left > 0, f"{seen}, not {expected}"
            # The monitor may have begun too late to tell: look again each second.
            if select.select([monitor.stdout], [], [], min(1.0, left))[0]:
                os.read(monitor.stdout.fileno(), 1 << 16)
    finally:
        monitor.kill()
        monitor.communicate()
