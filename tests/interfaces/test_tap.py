"""tap on the real kernel: the device as it was asked for, and frames that a program writes and reads."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from pathlib import Path
from typing import Any

import pytest

from cnisdk.errors import CNIError, InvalidConfigError, InvalidEnvironmentError, IOFailureError
from cnisdk.linux import netns, tap
from cnisdk.testing import Host, PluginUnderTest
from cnisdk_plugins.tap import Tap

pytestmark = [pytest.mark.kernel, pytest.mark.kinds]

MAC, PEER = "02:00:00:00:00:07", "02:00:00:00:00:99"


def make(host: Host, **keys: Any) -> PluginUnderTest:
    ipam = {} if "ipam" in keys else {"ipam": host.stub().conf}
    return host.plugin(Tap, {**ipam, **keys})


def shown(host: Host) -> Any:
    return host.ip("link", "show", "eth0", netns="c1")[0]


def test_the_device_is_as_asked_for(host: Host) -> None:
    web = host.container()
    web.shell("ip link add br0 address 02:00:00:00:00:b0 type bridge; ip link add d0 type veth peer name d1")
    before = host.state(rules=False)
    keys = {"mtu": 1300, "owner": 0, "group": 0, "multiQueue": True, "bridge": "br0", "mac": PEER}
    plugin = make(host, dns={"nameservers": ["192.0.2.53"]}, **keys)
    plugin.status()
    result = plugin.add(web, args=f"MAC={MAC}")
    end = shown(host)
    assert (end["address"], end["mtu"], end["ifalias"], end["master"]) == (MAC, 1300, "cni:testnet/c1/eth0", "br0")
    assert {"type": "tap", "persist": True, "multi_queue": True, "user": "root", "group": "root"}.items() <= end[
        "linkinfo"
    ]["info_data"].items()
    (interface,) = result.interfaces
    assert (interface.name, interface.mac, interface.sandbox) == ("eth0", MAC, web.netns)
    assert ([ip.interface for ip in result.ips], result.dns.nameservers) == ([0], ("192.0.2.53",))
    assert web.addresses() == ["10.9.0.2/24"]
    plugin.check(web)
    for wrong, message in (
        ({"owner": 1}, "has owner 0, not 1"),
        ({"multiQueue": False}, "has multi_queue 1, not 0"),
        ({"bridge": "d0"}, r"\$.bridge is d0, a link of kind veth"),
    ):
        with pytest.raises((IOFailureError, InvalidConfigError), match=message):
            plugin.check(web, **wrong)
    plugin.delete(web, bridge="gone", mtu=-1)
    # As with the reference: neither owner nor group, but a random address that stays.
    bare = make(host, ipam=None)
    bare.add(web)
    assert "user" not in shown(host)["linkinfo"]["info_data"]
    bare.check(web)
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists in /run/netns/c1"):
        bare.add(web)
    bare.check(web)
    bare.delete(web)
    assert host.state(rules=False) == before
    # The foreign interface that the reference would have described.
    web.shell("ip link set d0 name eth0")
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists in /run/netns/c1"):
        bare.add(web)
    bare.delete(web)
    assert web.links() == ["br0", "d1", "eth0", "lo"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mtu": ({"mtu": 65522}, r"\$.mtu is 65522, expected 68 to 65521, or 0"),
    "small mtu": ({"mtu": -1}, r"\$.mtu is -1, expected"),
    "owner": ({"owner": -1}, r"\$.owner is -1, expected 0 to 4294967294"),
    "group": ({"group": 4294967295}, r"\$.group is 4294967295, expected"),
    "mac": ({"mac": "nonsense"}, r'\$.mac is "nonsense", expected'),
    "bridge": ({"bridge": "br9"}, "link br9 does not exist in network namespace /run/netns/c1"),
    "no bridge": ({"bridge": "lo"}, r"\$.bridge is lo, a link of kind unknown"),
    "context": ({"selinuxContext": "u:r:t:s0"}, 'cannot set the SELinux context "u:r:t:s0"'),
}


def test_what_is_refused(host: Host) -> None:
    web = host.container()
    before = host.state(rules=False)
    for case, (keys, message) in REFUSED.items():
        with pytest.raises(CNIError, match=message):
            make(host, ipam=None, **keys).add(web)
        assert host.state(rules=False) == before, case


def test_a_context_of_selinux(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that makes the device gets the context; this kernel has no SELinux to give it to."""
    web = host.container()
    (tmp_path / "exec").touch()
    monkeypatch.setattr(tap, "_EXEC_LABEL", str(tmp_path / "exec"))
    before = host.state(rules=False)
    plugin = make(host, ipam=None, selinuxContext="u:r:t:s0", mac=MAC, mtu=1300, owner=0, group=0, multiQueue=True)
    plugin.add(web)
    assert (tmp_path / "exec").read_text() == "u:r:t:s0"
    end = shown(host)
    assert (end["address"], end["mtu"], end["ifalias"]) == (MAC, 1300, "cni:testnet/c1/eth0")
    plugin.check(web)
    plugin.delete(web)

    # Something fails after the program has made it.
    def refuse(*args: object) -> None:
        raise IOFailureError("cannot set up tap eth0")

    monkeypatch.setattr(tap, "_finish", refuse)
    with pytest.raises(IOFailureError, match="cannot set up tap eth0"):
        plugin.add(web)
    assert host.state(rules=False) == before


def test_frames_that_a_program_writes_and_reads(host: Host) -> None:
    """A program opens the device as a virtual host would, asks for the container's address and is answered."""
    web = host.container()
    plugin = make(host, mac=MAC, owner=os.getuid() if os.getuid() == 0 else None)
    plugin.add(web)
    mine, theirs = bytes.fromhex(PEER.replace(":", "")), bytes.fromhex(MAC.replace(":", ""))
    own, asked = bytes([10, 9, 0, 77]), bytes([10, 9, 0, 2])
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    request = b"\xff" * 6 + mine + b"\x08\x06" + arp + mine + own + bytes(6) + asked

    def ask() -> bytes:
        with netns.open(web.netns) as space:
            file = space.call(os.open, "/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(file, 0x400454CA, struct.pack("=16sH22x", b"eth0", 0x1002))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
        for _ in range(200):
            # As hosts do, ask again: frames go out some time after the device has got its carrier.
            os.write(file, request.ljust(60, b"\0"))
            while select.select([file], [], [], 0.1)[0]:  # the kernel has announcements of its own to send
                frame = os.read(file, 2048)
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
                    return frame
        raise AssertionError("no answer")

    answer = host.call(ask)
    assert answer[:14] == mine + theirs + b"\x08\x06"
    assert answer[22:42] == theirs + asked + mine + own
    # Its end is not the device's, which lasts until DEL.
    plugin.check(web)
    plugin.delete(web)
    assert web.links() == ["lo"]
