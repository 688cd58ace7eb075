"""Client of the system's D-Bus, for calls that take texts and return one text or truth value.

A library of D-Bus is not used for three reasons. The firewall plugin asks on each request if firewalld runs, and so on
every host with systemd, where the library would cost a process 7 ms. It must know that without an optional package. And
the few messages are fixed. The tests compare them with a library's, and send them to the real daemons.

The format is that of the D-Bus specification 0.41, "Message Protocol"; the authentication that of "Authentication
Protocol" with the mechanism EXTERNAL, in which the kernel tells the bus the user of this process.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Sequence

from ..._light import NamedTuple
from .. import _sockets

SOCKET = "/run/dbus/system_bus_socket"

# Bytes of a message, at most. The answers that are read here are much smaller.
_LARGEST = 1 << 20

_METHOD_CALL, _METHOD_RETURN, _ERROR = 1, 2, 3
_NO_AUTO_START = 2
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8


class Method(NamedTuple):
    """A method of an object on the bus.

    Attributes:
        destination: Name of the program that has it.
        path: Path of the object.
        interface: Name of the interface.
        member: Name of the method.
    """

    destination: str
    path: str
    interface: str
    member: str


class Refusal(Exception):
    """A method answered with an error.

    Attributes:
        name: Name of the error, such as ``org.freedesktop.DBus.Error.AccessDenied``.
        text: Its message; may be empty.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


def bus_method(member: str) -> Method:
    """Return a method of the bus itself."""
    return Method("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", member)


def call(method: Method, arguments: Sequence[str], timeout: float) -> str | bool | None:
    """Call a method. A program that does not run is not started for it.

    Args:
        method: The method.
        arguments: Its arguments.
        timeout: Seconds that all of this may take.

    Returns:
        The first value of the answer; None if there is none.

    Raises:
        Refusal: It answered with an error; or the bus did, since it has no program of that name.
        TimeoutError: There was no answer in time.
        OSError: The bus cannot be reached, or speaks another language. FileNotFoundError or ConnectionRefusedError
            mean that it does not run.
    """
    deadline = time.monotonic() + timeout
    with _sockets.Socket(_sockets.AF_UNIX, _sockets.SOCK_STREAM | _sockets.SOCK_CLOEXEC) as sock:
        _sockets.connect_unix(sock, SOCKET, timeout)
        stream = _Stream(sock, deadline)
        stream.send(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        answer = stream.read_line()
        if not answer.startswith(b"OK "):
            raise PermissionError(f"the system bus refused this user: {answer.decode(errors='replace')}")
        stream.send(b"BEGIN\r\n" + encode(bus_method("Hello"), (), 1) + encode(method, arguments, 2))
        while True:
            kind, fields, body, order = stream.read_message()
            if fields.get(_REPLY_SERIAL) != 2 and kind != _ERROR:
                continue  # the answer to Hello, or a signal
            value = _first_value(str(fields.get(_SIGNATURE, "")), body, order)
            if kind == _ERROR:
                raise Refusal(str(fields.get(_ERROR_NAME, "")), value if isinstance(value, str) else "")
            return value


def encode(method: Method, arguments: Sequence[str], serial: int) -> bytes:
    """Write the message that calls a method with texts."""
    body = b""
    for each in arguments:
        body = _aligned(body, 4) + _text(each)
    fields = b""
    for code, kind, text in (
        (_PATH, b"o", method.path),
        (_INTERFACE, b"s", method.interface),
        (_MEMBER, b"s", method.member),
        (_DESTINATION, b"s", method.destination),
    ):
        fields = _aligned(fields, 8) + bytes([code, 1]) + kind + b"\0" + _text(text)
    if arguments:
        signature = b"s" * len(arguments)
        fields = _aligned(fields, 8) + bytes([_SIGNATURE, 1]) + b"g\0" + bytes([len(signature)]) + signature + b"\0"
    head = struct.pack("<cBBBIII", b"l", _METHOD_CALL, _NO_AUTO_START, 1, len(body), serial, len(fields))
    return _aligned(head + fields, 8) + body


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _aligned(data: bytes, boundary: int) -> bytes:
    return data + bytes(-len(data) % boundary)


class _Stream:
    """Cut what the bus sends into lines and messages."""

    def __init__(self, sock: _sockets.Socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        self._data = b""

    def send(self, data: bytes) -> None:
        self._limit()
        self._sock.sendall(data)

    def read_line(self) -> bytes:
        while b"\r\n" not in self._data:
            self._receive()
        line, _, self._data = self._data.partition(b"\r\n")
        return line

    def read_message(self) -> tuple[int, dict[int, str | int], bytes, str]:
        """Return kind, header fields, body, and byte order."""
        head = self._peek(16)
        order = "<" if head[:1] == b"l" else ">"
        kind, body_size, fields_size = struct.unpack(f"{order}xBxxIxxxxI", head)
        start = 16 + fields_size + -fields_size % 8
        if start + body_size > _LARGEST:
            raise OSError(f"a message of {start + body_size} bytes on the system bus")
        whole = self._peek(start + body_size)
        self._data = self._data[len(whole) :]
        return kind, dict(_fields(whole[16 : 16 + fields_size], order)), whole[start:], order

    def _peek(self, size: int) -> bytes:
        while len(self._data) < size:
            self._receive()
        return self._data[:size]

    def _receive(self) -> None:
        self._limit()
        data = self._sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the system bus closed the connection")
        self._data += data

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)


def _fields(data: bytes, order: str) -> Iterator[tuple[int, str | int]]:
    """Read the header fields: each a number and a variant, at a multiple of 8."""
    at = 0
    while at < len(data):
        code, kind = data[at], data[at + 2 : at + 3]  # between them the length of the variant's signature, which is 1
        at += 4
        if kind == b"g":
            size, start = data[at], at + 1
        else:
            (size,), start = struct.unpack_from(f"{order}I", data, at), at + 4
        if kind == b"u":
            yield code, size
            at = start
        else:
            yield code, data[start : start + size].decode()
            at = start + size + 1
        at += -at % 8


def _first_value(signature: str, body: bytes, order: str) -> str | bool | None:
    if signature[:1] not in ("s", "b"):
        return None
    (number,) = struct.unpack_from(f"{order}I", body)
    return body[4 : 4 + number].decode(errors="replace") if signature[0] == "s" else bool(number)
