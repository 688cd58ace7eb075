"""A DHCP server that says whatever a test tells it: a program, and what starts it.

Each line of its standard input is a JSON object of the messages that it answers: the kind of a client's message, and
the answers to it. It tells each message that it gets in a line of its standard error.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnisdk.testing import Host

KINDS = {1: "DISCOVER", 3: "REQUEST", 4: "DECLINE", 7: "RELEASE"}
OFFER, ACK, NAK = 2, 5, 6
SERVER = "10.1.0.1"
GOOD: Mapping[int, str] = {1: "ffffff00", 54: "0a010001", 51: "00000e10", 58: "00000384", 59: "00000708"}
"""Options of a lease that lasts an hour, in hex."""


def answer(kind: int, address: str = "10.1.0.50", options: Mapping[int, str | None] = {}, **more: Any) -> Any:
    """Describe an answer.

    Args:
        kind: Kind of the message.
        address: The address in it.
        options: What differs from :data:`GOOD`; None leaves an option out.
        **more: ``mac`` and ``xid`` of another client, ``raw``, ``file`` and ``sname`` in place of the options and of
            these fields (hex), ``head`` that many bytes alone, ``times`` to send it, ``op``, ``only`` to messages with
            these bytes (hex).
    """
    found = {str(number): value for number, value in {**GOOD, **options}.items() if value is not None}
    return {"kind": kind, "address": address, "options": found, **more}


def lease(address: str = "10.1.0.50", options: Mapping[int, str | None] = {}) -> dict[str, Any]:
    """Describe a server that leases an address."""
    return {"DISCOVER": [answer(OFFER, address, options)], "REQUEST": [answer(ACK, address, options)]}


class Rogue:
    """The program, in the namespace ``server`` of a host."""

    def __init__(self, host: Host) -> None:
        self._heard: list[str] = []
        self._changed = threading.Condition()
        argv = ["ip", "netns", "exec", "server", sys.executable, "-I", __file__]
        self._process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self._heard.append(line.strip())
                self._changed.notify_all()

    def say(self, answers: Mapping[str, Sequence[Any]]) -> int:
        """Change what it answers; return the number of messages that it has got so far."""
        assert self._process.stdin is not None
        before = len(self._heard)
        self._process.stdin.write(json.dumps(answers) + "\n")
        self._process.stdin.flush()
        self.wait_for("changed", before)
        return len(self._heard)

    def wait_for(self, kind: str, since: int, times: int = 1) -> None:
        """Wait until it has got messages of a kind."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(kind, since) >= times, 60), self._heard[since:]

    def count(self, kind: str, since: int) -> int:
        """Return how many messages of a kind it has got."""
        return self._heard[since:].count(kind)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stderr):
            assert stream is not None
            stream.close()


def encode(asked: bytes, told: Mapping[str, Any]) -> bytes:
    """Write an answer to a message."""
    xid = struct.pack("!I", told["xid"]) if "xid" in told else asked[4:8]
    mac = bytes.fromhex(told["mac"]) if "mac" in told else asked[28:34]
    head = bytes([told.get("op", 2), 1, 6, 0]) + xid + bytes(4) + asked[12:16]
    head += socket.inet_aton(told["address"]) + bytes(8) + mac.ljust(16, b"\0")
    head += bytes.fromhex(told.get("sname", "")).ljust(64, b"\0") + bytes.fromhex(told.get("file", "")).ljust(
        128, b"\0"
    )
    body = bytes([53, 1, told["kind"]])
    for number, text in told["options"].items():
        value = bytes.fromhex(text)
        for start in range(0, len(value) or 1, 255):  # RFC 3396
            part = value[start : start + 255]
            body += bytes([int(number), len(part)]) + part
    if "raw" in told:
        body = bytes.fromhex(told["raw"])
    whole = head + bytes([99, 130, 83, 99]) + body + b"\xff"
    return whole[: told["head"]] if "head" in told else whole


def main() -> None:
    answers: dict[str, Any] = {}

    def listen() -> None:
        for line in sys.stdin:
            answers.clear()
            answers.update(json.loads(line))
            print("changed", file=sys.stderr, flush=True)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        sock.bind(("", 67))
        while True:
            asked = sock.recv(4096)
            kind = KINDS.get(asked[242], "other")
            print(kind, file=sys.stderr, flush=True)
            for told in answers.get(kind, []):
                if bytes.fromhex(told.get("only", "")) not in asked:
                    continue
                data = encode(asked, told)
                for _ in range(told.get("times", 1)):
                    sock.sendto(data, ("255.255.255.255", 68))


if __name__ == "__main__":
    main()
