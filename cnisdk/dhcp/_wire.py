"""Sockets of a DHCP client, in the namespace of its container.

Packet sockets hear and say what an interface without address cannot otherwise. They are open only while a client waits
for an answer. A filter in the kernel keeps the container's own traffic away from the daemon.

A renewal goes through a UDP socket instead: the kernel knows the way to the server, and answers no ICMP error while
the port is open. Its answer is heard by the packet socket, like all others.

A RELEASE is a frame to the hop that the server's last message came from. A UDP socket would do, if the interface
stayed: while the kernel still asks for the hardware address of the server, the interface is deleted.
"""

from __future__ import annotations

import socket
import struct
from array import array
from ipaddress import IPv4Address

from ..errors import IOFailureError, cause_of
from ..linux.links.link import Link
from . import _packet as packet
from ._packet import Message

_ETH_P_IP, _ETH_P_ARP = 0x0800, 0x0806
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata (linux/if_packet.h)
_CHECKSUM_NOT_READY = 1 << 3
_SO_ATTACH_FILTER = 26
_TO_ALL = bytes([0xFF] * 6)
_FRAME = 2048
# Frames that are read in a row: a container that floods its own link must not keep the daemon from the others.
_AT_ONCE = 32

# struct sock_filter (linux/filter.h): code, jump if true, jump if false, constant. A cooked packet begins at its IP
# header. Pass UDP that is no later fragment to the client's port.
_INSTRUCTION = struct.Struct("=HBBI")
_FILTER = b"".join(
    _INSTRUCTION.pack(*each)
    for each in (
        (0x30, 0, 0, 9),  # load the byte of the protocol
        (0x15, 0, 6, 17),  # UDP?
        (0x28, 0, 0, 6),  # load flags and offset of the fragment
        (0x45, 4, 0, 0x1FFF),  # a later one?
        (0xB1, 0, 0, 0),  # length of the header
        (0x48, 0, 0, 2),  # load the destination port
        (0x15, 0, 1, packet.CLIENT_PORT),
        (0x06, 0, 0, 0xFFFF),  # take it
        (0x06, 0, 0, 0),
    )
)


class Wire:
    """Sockets of one client, made by the thread that is in the namespace. Any thread may use them.

    Raises:
        OSError: The kernel refused.
    """

    def __init__(self, end: Link) -> None:
        self._end = end
        self._arp: socket.socket | None = None
        self._udp: socket.socket | None = None
        self._udp_address = packet.ANY
        self._ip = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        try:
            code = array("B", _FILTER)
            address, _ = code.buffer_info()
            program = struct.pack("@HP", len(_FILTER) // _INSTRUCTION.size, address)
            self._ip.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
            self._ip.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._ip.bind((end.name, _ETH_P_IP))  # hears only from here on: the filter is in its place
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all sockets. Closing twice is fine."""
        for each in (self._ip, self._arp, self._udp):
            if each is not None:
                each.close()

    def filenos(self) -> list[int]:
        """List the descriptors to wait on."""
        return [each.fileno() for each in (self._ip, self._arp) if each is not None]

    def open_arp(self) -> None:
        """Open the socket for probes, in the namespace."""
        if self._arp is None:
            self._arp = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
            self._arp.bind((self._end.name, _ETH_P_ARP))

    def open_udp(self, address: IPv4Address) -> None:
        """Open the socket for messages to a server from the client's own address, in the namespace."""
        if self._udp is not None and self._udp_address == address:
            return
        if self._udp is not None:
            self._udp.close()
        self._udp_address = address
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._end.name.encode())
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # nothing reads it
        self._udp.bind((str(address), packet.CLIENT_PORT))

    def send_udp(self, message: Message, server: IPv4Address) -> None:
        """Send a message from the client's own address; :meth:`open_udp` was called.

        Raises:
            OSError: The kernel refused.
        """
        assert self._udp is not None
        self._udp.sendto(packet.encode(message), (str(server), packet.SERVER_PORT))

    def send_frame(self, message: Message, server: IPv4Address | None = None, mac: str = "") -> None:
        """Send a message in a frame, from ``ciaddr``.

        Args:
            message: The message.
            server: Where to; None means to all.
            mac: Hardware address of the next hop; empty means to all.

        Raises:
            OSError: The kernel refused.
        """
        data = packet.encode_datagram(packet.encode(message), message.ciaddr, server or packet.BROADCAST)
        hop = packet.pack_mac(mac) if mac else _TO_ALL
        self._ip.sendto(data, (self._end.name, _ETH_P_IP, 0, 0, hop))

    def probe(self, address: IPv4Address) -> None:
        """Ask who has an address; :meth:`open_arp` was called.

        Raises:
            OSError: The kernel refused.
        """
        assert self._arp is not None
        data = packet.encode_arp_probe(self._end.mac, address)
        self._arp.sendto(data, (self._end.name, _ETH_P_ARP, 0, 0, _TO_ALL))

    def receive_message(self) -> tuple[Message, str] | None:
        """Return the next message and the hardware address it came from.

        None means that there is none left, or that many frames were none: the descriptor is still readable then.

        Raises:
            OSError: The interface is gone, or down.
        """
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _, sender = self._ip.recvmsg(_FRAME, socket.CMSG_SPACE(_AUXDATA.size))
            except BlockingIOError:
                return None
            checked = any(
                (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA)
                and int.from_bytes(value[:4], "little" if _LITTLE else "big") & _CHECKSUM_NOT_READY
                for level, kind, value in ancillary
            )
            payload = packet.decode_datagram(data, checked=bool(checked))
            message = None if payload is None else packet.decode(payload)
            if message is not None:
                return message, packet.format_mac(sender[4])
        return None

    def receive_conflict(self, address: IPv4Address) -> str | None:
        """Return the hardware address of another host that was heard to have an address; None if none was.

        Raises:
            OSError: The interface is gone, or down.
        """
        for _ in range(_AT_ONCE):
            if self._arp is None:
                break
            try:
                data = self._arp.recv(_FRAME)
            except BlockingIOError:
                break
            other = packet.find_conflict(data, self._end.mac, address)
            if other is not None:
                return other
        return None


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def open_wire(end: Link) -> Wire:
    """Open the sockets of a client on a link.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    try:
        return Wire(end) if end.netns is None else end.netns.call(Wire, end)
    except OSError as exc:
        raise IOFailureError(f"cannot open a packet socket on {end.name}: {cause_of(exc)}") from exc
