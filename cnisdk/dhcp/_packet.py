"""DHCP messages (RFC 2131, section 2), the UDP and IPv4 headers around them, and ARP: bytes to objects and back.

Pure: no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address

from .._light import NamedTuple
from . import options

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE = range(1, 8)
"""Types of messages (RFC 2132, section 9.6)."""

KINDS = dict(enumerate(("DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE"), 1))
"""Names of the types of messages."""

SERVER_PORT, CLIENT_PORT = 67, 68
ANY, BROADCAST = IPv4Address("0.0.0.0"), IPv4Address("255.255.255.255")

MAX_SIZE = 1472
"""Largest message a client accepts, in bytes: a frame of 1500 bytes, less the headers."""

_BOOTREQUEST, _BOOTREPLY = 1, 2
_ETHERNET = 1
_MAGIC = bytes((99, 130, 83, 99))
_FLAG_BROADCAST = 0x8000
# op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, magic cookie
_FIXED = struct.Struct("!4BIHH4s4s4s4s16s64s128s4s")
# BOOTP relays drop shorter messages (RFC 1542, section 2.1).
_LEAST = 300
_PAD, _END = 0, 255

_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!4H")
_PROTOCOL_UDP = 17
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ETH_P_IP = 0x0800


class Message(NamedTuple):
    """A DHCP message.

    Attributes:
        kind: :data:`DISCOVER` and so on.
        xid: Transaction.
        mac: Hardware address of the client, ``02:42:ac:11:00:02``.
        options: All options but the message type, by number.
        secs: Seconds since the client began.
        broadcast: The server is to broadcast its answers.
        ciaddr: Address that the client has.
        yiaddr: Address that the server offers.
    """

    kind: int
    xid: int
    mac: str
    options: Mapping[int, bytes]
    secs: int = 0
    broadcast: bool = False
    ciaddr: IPv4Address = ANY
    yiaddr: IPv4Address = ANY


def encode(message: Message) -> bytes:
    """Write a client's message."""
    head = _FIXED.pack(
        _BOOTREQUEST,
        _ETHERNET,
        6,
        0,
        message.xid,
        min(message.secs, 0xFFFF),
        _FLAG_BROADCAST if message.broadcast else 0,
        message.ciaddr.packed,
        message.yiaddr.packed,
        ANY.packed,
        ANY.packed,
        pack_mac(message.mac),
        b"",
        b"",
        _MAGIC,
    )
    body = bytearray((options.MESSAGE_TYPE, 1, message.kind))
    for number, value in message.options.items():
        body += bytes((number, len(value))) + value
    body.append(_END)
    return (head + bytes(body)).ljust(_LEAST, b"\0")


def decode(data: bytes) -> Message | None:
    """Read a server's message; None if it is none."""
    if len(data) < _FIXED.size:
        return None
    op, htype, hlen, _, xid, secs, flags, ciaddr, yiaddr, _, _, chaddr, sname, file, magic = _FIXED.unpack_from(data)
    if (op, htype, hlen, magic) != (_BOOTREPLY, _ETHERNET, 6, _MAGIC):
        return None
    found: dict[int, bytes] = {}
    _collect(found, data[_FIXED.size :])
    overload = found.pop(options.OVERLOAD, b"\0")
    # RFC 2132, section 9.3: the fields have further options, `file` before `sname` (RFC 2131, section 4.1).
    for bit, field in ((1, file), (2, sname)):
        if overload[:1] and overload[0] & bit:
            _collect(found, field)
    kind = found.pop(options.MESSAGE_TYPE, b"")
    if len(kind) != 1 or kind[0] not in KINDS:
        return None
    return Message(
        kind[0],
        xid,
        format_mac(chaddr[:6]),
        found,
        secs,
        bool(flags & _FLAG_BROADCAST),
        IPv4Address(ciaddr),
        IPv4Address(yiaddr),
    )


def _collect(found: dict[int, bytes], data: bytes) -> None:
    """Add the options of a field. An option that comes in several parts is one (RFC 3396)."""
    for number, value in _iterate(data):
        found[number] = found.get(number, b"") + value


def _iterate(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            return  # cut off
        yield data[at], data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]


# --- around it --------------------------------------------------------------------------------------------------------


def encode_datagram(payload: bytes, source: IPv4Address, destination: IPv4Address) -> bytes:
    """Put a client's message into UDP and IPv4, both with checksum."""
    length = _UDP.size + len(payload)
    pseudo = source.packed + destination.packed + struct.pack("!BBH", 0, _PROTOCOL_UDP, length)
    head = _UDP.pack(CLIENT_PORT, SERVER_PORT, length, 0)
    check = _checksum(pseudo + head + payload) or 0xFFFF  # zero means: none (RFC 768)
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, length, check) + payload
    # Type of service 0x10, low delay, as other clients send.
    fields = (0x45, 0x10, _IP.size + len(udp), 0, 0, 64, _PROTOCOL_UDP)
    return (
        _IP.pack(
            *fields,
            _checksum(_IP.pack(*fields, 0, source.packed, destination.packed)),
            source.packed,
            destination.packed,
        )
        + udp
    )


def decode_datagram(data: bytes, *, checked: bool = False) -> bytes | None:
    """Return the payload of an IPv4 packet with UDP for a DHCP client; None for any other, or a damaged one.

    Args:
        data: The packet.
        checked: Its UDP checksum need not be looked at: the kernel leaves it open in packets of this machine.
    """
    if len(data) < _IP.size:
        return None
    version, _, total, _, fragment, _, protocol, _, source, destination = _IP.unpack_from(data)
    start = (version & 0xF) * 4
    if version >> 4 != 4 or start < _IP.size or protocol != _PROTOCOL_UDP or fragment & 0x3FFF:
        return None
    if not start + _UDP.size <= total <= len(data) or _checksum(data[:start]):
        return None
    _, port, length, check = _UDP.unpack_from(data, start)
    if port != CLIENT_PORT or not _UDP.size <= length <= total - start:
        return None
    udp = data[start : start + length]
    pseudo = source + destination + struct.pack("!BBH", 0, _PROTOCOL_UDP, length)
    if check and not checked and _checksum(pseudo + udp):
        return None
    return udp[_UDP.size :]


def encode_arp_probe(mac: str, address: IPv4Address) -> bytes:
    """Ask who has an address, without saying that this host has one (RFC 5227, section 2.1.1)."""
    return _ARP.pack(_ETHERNET, _ETH_P_IP, 6, 4, 1, pack_mac(mac), ANY.packed, bytes(6), address.packed)


def find_conflict(data: bytes, mac: str, address: IPv4Address) -> str | None:
    """Return the hardware address of another host that an ARP packet shows to have, or to probe, an address.

    RFC 5227, section 2.1.1: its sender has the address, or it is a probe for it by another host.
    """
    if len(data) < _ARP.size:
        return None
    _, protocol, _, _, operation, sender, sender_ip, _, target_ip = _ARP.unpack_from(data)
    if protocol != _ETH_P_IP or format_mac(sender) == mac:
        return None
    probes = operation == 1 and sender_ip == ANY.packed and target_ip == address.packed
    return format_mac(sender) if probes or sender_ip == address.packed else None


def pack_mac(mac: str) -> bytes:
    """Return the bytes of a hardware address."""
    return bytes.fromhex(mac.replace(":", ""))


def format_mac(packed: bytes) -> str:
    """Return the text of a hardware address."""
    return packed.hex(":")


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
