"""The walk-through of the README, on real namespaces inside a private sandbox.

Attaches three network namespaces to a bridge network with ``cnitool`` and the ``bridge`` and ``host-local`` plugins,
shows what the plugins returned and what the kernel says, and takes everything down again. Needs no root and cannot
touch the host: it works in a user, network and mount namespace of its own. Exits with 0 only if all of it held.

Run it with ``python3 -m nox -s demo``.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from cnisdk.testing.sandbox import Sandbox

NETWORK = {
    "cniVersion": "0.4.0",
    "name": "mynet",
    "type": "bridge",
    "bridge": "mybridge",
    "isDefaultGateway": True,
    "ipam": {"type": "host-local", "subnet": "192.168.100.0/24"},
}
NAMES = ("testing1", "testing2", "testing3")
FIRST_ID = "cnitool-49346948b0d506e05f2d"
LEASES = Path("/var/lib/cni/networks/mynet")
RESULTS = Path("/var/lib/cni/results")


class Failed(Exception):
    """A step of the walk-through did not do what it should."""


def expect(what: str, seen: object, wanted: object) -> None:
    """Print one finding, and stop when it is not what it has to be."""
    if seen != wanted:
        raise Failed(f"{what}: {seen!r}, expected {wanted!r}")
    print(f"    ok: {what}: {seen}")


class Walkthrough:
    """The steps, one method each."""

    def __init__(self, host: Sandbox, scratch: Path) -> None:
        self.host = host
        self.bin = scratch / "bin"
        self.conf = scratch / "net.d"
        self.commands = Path(sysconfig.get_path("scripts"))

    def run(self, *command: str, status: int = 0, quiet: bool = False) -> str:
        """Run a command in the sandbox, show it, and insist on its exit status."""
        print(f"$ {' '.join(command)}")
        environ = {"CNI_PATH": str(self.bin), "NETCONFPATH": str(self.conf)}
        program, *rest = command
        if program in ("cnitool", "cnisdk"):
            program = str(self.commands / program)
        done = self.host.run([program, *rest], env=environ, check=False)
        if not quiet:
            print("".join(f"    {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="")
        if (done.returncode == 0) is not (status == 0):
            raise Failed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def cnitool(self, verb: str, name: str, status: int = 0) -> str:
        """Run cnitool for one of the namespaces."""
        return self.run("cnitool", verb, "mynet", f"/var/run/netns/{name}", status=status)

    def ip(self, *arguments: str, netns: str = "") -> Any:
        """Ask the kernel through ``ip -j``."""
        inside = ("-n", netns) if netns else ()
        return json.loads(self.run("ip", *inside, "-j", *arguments, quiet=True) or "[]")

    def files(self, directory: Path) -> dict[str, bytes]:
        """Return the files in a directory of the sandbox."""
        return self.host.call(_read_all, directory)

    def set_up(self) -> None:
        """Write the plugins' launchers and the network's configuration."""
        self.run("cnisdk", "install", "--dest", str(self.bin), "bridge", "host-local")
        self.conf.mkdir()
        (self.conf / "10-mynet.conf").write_text(json.dumps(NETWORK, indent=4))
        for name in NAMES:
            self.host.add_netns(name)

    def add(self) -> None:
        """Attach three namespaces, and look at what the plugins returned and what the kernel made of it."""
        for number, name in enumerate(NAMES, 2):
            result = json.loads(self.cnitool("add", name))
            sandboxes = [interface.get("sandbox", "") for interface in result["interfaces"]]
            expect("sandboxes", sandboxes, ["", "", f"/var/run/netns/{name}"])
            address = {
                "version": "4",
                "interface": 2,
                "address": f"192.168.100.{number}/24",
                "gateway": "192.168.100.1",
            }
            expect("address", result["ips"], [address])
            expect("route", result["routes"], [{"dst": "0.0.0.0/0", "gw": "192.168.100.1"}])
            expect("name resolution", result["dns"], {})
            bridge, host_end, container = (interface["name"] for interface in result["interfaces"])
            expect("interfaces", (bridge, container), ("mybridge", "eth0"))
            (link,) = self.ip("-d", "link", "show", host_end)
            expect(
                "the kernel's view of the host end", (link["linkinfo"]["info_kind"], link["master"]), ("veth", bridge)
            )
            expect("its owner", link["ifalias"].split("/")[0], "cni:mynet")

    def reach_each_other(self) -> None:
        """Let every namespace ping every other one, and the gateway."""
        ping = shutil.which("ping")
        addresses = {"the gateway": "192.168.100.1"} | {
            name: f"192.168.100.{number}" for number, name in enumerate(NAMES, 2)
        }
        for source in NAMES:
            for target, address in addresses.items():
                if source == target:
                    continue
                if ping is not None:
                    self.run("ip", "netns", "exec", source, ping, "-c", "1", "-W", "2", address, quiet=True)
                else:
                    self.host.call(_ping, f"/run/netns/{source}", address)
                print(f"    ok: {source} reaches {target}, {address}")

    def look_at_the_state(self) -> None:
        """Leases and cached results lie where the Go tools put them, byte for byte."""
        leases = self.files(LEASES)
        expect(
            "leases", sorted(leases), ["192.168.100.2", "192.168.100.3", "192.168.100.4", "last_reserved_ip.0", "lock"]
        )
        expect("first lease", leases["192.168.100.2"], f"{FIRST_ID}\r\neth0".encode())
        expect("last reserved address", leases["last_reserved_ip.0"], b"192.168.100.4")
        cached = json.loads(self.files(RESULTS)[f"mynet-{FIRST_ID}-eth0"])
        expect("cached result", (cached["kind"], cached["containerId"]), ("cniCacheV1", FIRST_ID))

    def check(self) -> None:
        """CHECK passes, and notices a missing address and a missing default route."""
        for name in NAMES:
            self.cnitool("check", name)
        self.run("ip", "-n", "testing1", "address", "del", "192.168.100.2/24", "dev", "eth0")
        self.cnitool("check", "testing1", status=1)
        self.run("ip", "-n", "testing2", "route", "del", "default")
        self.cnitool("check", "testing2", status=1)

    def delete(self) -> None:
        """DEL releases everything, twice over, also when the namespace is gone."""
        self.cnitool("del", "testing1")
        self.cnitool("del", "testing1")
        self.host.del_netns("testing3")
        for name in ("testing2", "testing3", "testing3"):
            self.cnitool("del", name)
        expect("leases left", [name for name in self.files(LEASES) if name[0].isdigit()], [])
        expect("cached results left", sorted(self.files(RESULTS)), [])
        expect("links left", [link["ifname"] for link in self.ip("link", "show", "type", "veth")], [])


def _read_all(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def _ping(netns_path: str, address: str) -> None:
    """Send an ICMP echo request and wait for its reply, where no ping program is installed (RFC 792)."""
    import socket
    import struct

    from cnisdk.linux import netns

    with netns.open(netns_path) as inside:
        sock = inside.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(2)
        words = (0x0800, 0, 1, 1)  # type 8 (echo), code 0; checksum; identifier; sequence number
        checksum = 0xFFFF - sum(words)
        sock.sendto(struct.pack("!4H", words[0], checksum, *words[2:]), (address, 0))
        while sock.recvfrom(256)[1][0] != address:
            pass


def main() -> int:
    """Walk through all of it."""
    if shutil.which("ip") is None:
        print("the program `ip` is missing; on Debian: apt-get install iproute2", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch, Sandbox() as host:
        walk = Walkthrough(host, Path(scratch))
        try:
            for step in (
                walk.set_up,
                walk.add,
                walk.reach_each_other,
                walk.look_at_the_state,
                walk.check,
                walk.delete,
            ):
                print(f"\n== {step.__doc__}")
                step()
        except Failed as exc:
            print(f"FAILED: {exc}", file=sys.stderr)
            return 1
    print("\nAll of it held.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
