"""Watch frames on a link: ARP, neighbour discovery and router advertisements, decoded as far as tests need.

A capture is a packet socket opened in the namespace of the link and read by the test itself: there is no process that
could outlive it, and what arrives between two looks is kept by the kernel.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

ETH_P_ALL = 0x0003
"""Every protocol, in ``socket(2)`` of AF_PACKET (linux/if_ether.h)."""

_ETH_P_ARP = 0x0806
_ETH_P_IPV6 = 0x86DD
_ICMPV6 = 58

_ARP = {1: "arp request", 2: "arp reply"}
_SOL_PACKET, _PACKET_AUXDATA, _TP_STATUS_VLAN_VALID = 263, 8, 0x10
_ND = {
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    137: "redirect",
}


class Frame(NamedTuple):
    """A frame as it was on the wire.

    Attributes:
        kind: ``arp request``, ``arp reply``, ``router solicitation``, ``router advertisement``, ``neighbour
            solicitation``, ``neighbour advertisement``, ``redirect``; for others the EtherType: ``0x0800``.
        source: Hardware address of the sender.
        destination: Hardware address it is for.
        sender: Address of the sender: of ARP, the protocol address; of neighbour discovery, the IPv6 source.
        target: What is asked for or told of; None where there is none.
        data: The frame, without the tag of a VLAN.
        vlan: The VLAN it was tagged with; 0 for none.
    """

    kind: str
    source: str
    destination: str
    sender: IPv4Address | IPv6Address | None
    target: IPv4Address | IPv6Address | None
    data: bytes
    vlan: int = 0

    @property
    def announces(self) -> bool:
        """True if it announces the sender's address: a gratuitous ARP, or an unsolicited neighbour advertisement."""
        if self.kind.startswith("arp"):
            return self.sender is not None and self.sender == self.target
        return self.kind == "neighbour advertisement" and self.destination.startswith("33:33")


def decode(data: bytes) -> Frame:
    """Decode an Ethernet frame.

    Raises:
        ValueError: It is shorter than its headers say.
    """
    try:
        destination, source, ethertype = struct.unpack_from("!6s6sH", data)
        payload = data[14:]
        kind = f"0x{ethertype:04x}"
        sender: IPv4Address | IPv6Address | None = None
        target: IPv4Address | IPv6Address | None = None
        if ethertype == _ETH_P_ARP:
            operation, sender_ip, target_ip = struct.unpack_from("!6xH6x4s6x4s", payload)
            kind = _ARP.get(operation, f"arp {operation}")
            sender, target = IPv4Address(sender_ip), IPv4Address(target_ip)
        elif ethertype == _ETH_P_IPV6:
            next_header, from_ip = struct.unpack_from("!6xBx16s", payload)
            sender = IPv6Address(from_ip)
            if next_header == _ICMPV6 and payload[40] in _ND:
                kind = _ND[payload[40]]
                if payload[40] >= 135:
                    target = IPv6Address(struct.unpack_from("!48x16s", payload)[0])
    except (struct.error, IndexError) as exc:
        raise ValueError(f"a truncated frame: {data.hex()}") from exc
    return Frame(kind, _mac(source), _mac(destination), sender, target, data)


def _mac(data: bytes) -> str:
    return data.hex(":")


def _tag(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    """Return the VLAN of a received frame (struct tpacket_auxdata, linux/if_packet.h); 0 for none."""
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, tci = struct.unpack_from("=I12xH", data)
            return tci & 0xFFF if status & _TP_STATUS_VLAN_VALID else 0
    return 0


class Capture:
    """Frames on one link, from the moment it was made. Close it, or use it as a context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)  # the kernel takes tags out of the frame
        self._frames: list[Frame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching. The frames so far stay in :attr:`frames`."""
        self._socket.close()

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Every frame so far, in order."""
        while self._socket.fileno() >= 0:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(65536, 256)
                self._frames.append(decode(data)._replace(vlan=_tag(ancillary)))
            except BlockingIOError:
                break
        return tuple(self._frames)

    def kinds(self) -> set[str]:
        """Return the kinds of frames seen so far."""
        return {frame.kind for frame in self.frames}

    def wait_for(self, wanted: str | Callable[[Frame], bool], timeout: float = 5.0) -> Frame:
        """Wait for a frame.

        Args:
            wanted: Its kind, or a test for it.
            timeout: Seconds.

        Raises:
            AssertionError: None came in time; the message lists what did.
        """
        deadline = time.monotonic() + timeout
        while True:
            for frame in self.frames:
                if frame.kind == wanted if isinstance(wanted, str) else wanted(frame):
                    return frame
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                seen = ", ".join(sorted(self.kinds())) or "nothing"
                raise AssertionError(f"no {wanted if isinstance(wanted, str) else 'such frame'} came, but {seen}")
