"""Attributes of netlink messages (``linux/netlink.h``): a length, a number, and a payload, padded to four bytes.

All messages that plugins send and read are made of these few functions and the numbers in the kernel's headers.
pyroute2's codecs make an object of each attribute and look up its type by name: in a bridge ADD, that took longer than
all of the kernel's work, and importing them took 190 ms. The tests compare each message with pyroute2's.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

from ..errors import InvalidConfigError
from ..spec.names import shorten

_HEADER = struct.Struct("=HH")
_UINT32 = struct.Struct("=HHI")
_UINT8 = struct.Struct("=HHBxxx")
_NUMBER = 0x3FFF  # without the flags for nested and network byte order
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def attribute(number: int, *payload: bytes) -> bytes:
    """Make an attribute with any payload, such as other attributes."""
    data = b"".join(payload)
    return _HEADER.pack(4 + len(data), number) + data + _PADDING[len(data) & 3]


def uint8(number: int, value: int) -> bytes:
    """Make an attribute of one byte.

    Raises:
        InvalidConfigError: (7) The value does not fit.
    """
    try:
        return _UINT8.pack(5, number, value)
    except struct.error:
        raise _out_of_range(value, 0xFF) from None


def uint32(number: int, value: int) -> bytes:
    """Make an attribute of four bytes, in the host's byte order.

    Raises:
        InvalidConfigError: (7) The value does not fit.
    """
    try:
        return _UINT32.pack(8, number, value)
    except struct.error:
        raise _out_of_range(value, 0xFFFFFFFF) from None


def _out_of_range(value: int, largest: int) -> InvalidConfigError:
    # What does not fit comes from a configuration: the kernel's own numbers fit.
    return InvalidConfigError(f"{shorten(value)} is out of range, expected 0 to {largest}")


def text(number: int, value: str) -> bytes:
    """Make an attribute of a text, without a NUL at its end: an alias has room for 255 bytes in all."""
    return attribute(number, value.encode(errors="surrogateescape"))


def iterate(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield number and payload of each attribute, in order, up to the first bytes that are no attribute.

    Args:
        data: Bytes of a message, with attributes from `start` on.
        start: Offset of the first attribute, in bytes.
    """
    end = len(data)
    while start + 4 <= end:
        length, number = _HEADER.unpack_from(data, start)
        if length < 4:
            return
        yield number & _NUMBER, data[start + 4 : start + length]
        start += (length + 3) & ~3


def read(data: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the payloads by number. If several attributes have one number, the last one counts.

    Args:
        data: Bytes of a message, with attributes from `start` on.
        start: Offset of the first attribute, in bytes.
    """
    return dict(iterate(data, start))


def find(data: bytes, number: int) -> bytes | None:
    """Return the payload of the first attribute with a number; None if there is none.

    It stops there: a bridge has a hundred attributes.

    Args:
        data: Attributes, without anything before them.
        number: The number, without flags.
    """
    return next((payload for each, payload in iterate(data) if each == number), None)


def read_uint(payload: bytes) -> int:
    """Read a number of any size, in the host's byte order; no bytes are 0."""
    return int.from_bytes(payload, sys.byteorder)


def read_text(payload: bytes) -> str:
    """Read a text, with or without a NUL at its end."""
    return payload.rstrip(b"\0").decode(errors="surrogateescape")
