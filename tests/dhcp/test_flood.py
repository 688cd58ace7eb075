"""A link that never falls silent: each read ends."""

from typing import Any, cast

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP

from cnisdk.dhcp import _packet as packet
from cnisdk.dhcp._client import Client
from cnisdk.dhcp._wire import Wire

MAC = "02:42:ac:11:00:02"
ANSWER = bytes(
    IP(src="10.1.0.1", dst="10.1.0.50")
    / UDP(sport=67, dport=68)
    / BOOTP(op=2, chaddr=packet.pack_mac(MAC))
    / DHCP(options=[("message-type", "ack")])
)


class Flooded:
    """A socket that always has one more frame."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.reads = 0

    def recvmsg(self, *_: int) -> tuple[bytes, list[Any], int, tuple[Any, ...]]:
        return self.recv(0), [], 0, ("eth0", 0x0800, 0, 1, b"\2" * 6)

    def recv(self, _: int) -> bytes:
        self.reads += 1
        assert self.reads < 1000, "it does not end"
        return self.frame


@pytest.mark.parametrize("frame", [ANSWER, b"\0" * 60], ids=["messages", "others"])
def test_a_read_ends(frame: bytes) -> None:
    class Idle:
        probed = packet.ANY

        @staticmethod
        def receive(*_: object) -> list[Any]:
            return []

    wire: Any = Wire.__new__(Wire)
    wire._ip, wire._arp = Flooded(frame), Flooded(b"\0" * 28)
    wire._end = type("End", (), {"mac": MAC})
    client: Any = Client.__new__(Client)
    client.machine, client._wire, client.attached = Idle(), wire, False
    cast(Client, client).read(0.0)
    assert wire._ip.reads > 0
    assert wire._arp.reads > 0
