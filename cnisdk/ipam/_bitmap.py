"""Set of used addresses that finds the lowest unused one in constant time, however full it is.

Theory of operation. The set is a tree of nodes of 2**15 bits. On level 0, each bit is an address. On each level above,
a bit is a node of the level below, and is set when that node is full. To find a free address, the search reads the
node of the first address. If that is full, it goes up a level instead of reading its neighbours, finds the next node
that has room, and goes down again: three reads find the last free address of a /16, nine that of a /64. A node without
a used address does not exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

NODE_BITS = 15
NODE_SIZE = 1 << NODE_BITS
NODE_BYTES = NODE_SIZE // 8
_MASK = NODE_SIZE - 1
_FULL = (1 << NODE_SIZE) - 1


class Bitmap(ABC):
    """The set. Subclasses keep the nodes."""

    @abstractmethod
    def load(self, level: int, node: int) -> bytes | bytearray:
        """Return the bits of a node, lowest first. Bytes missing at the end are 0."""

    @abstractmethod
    def store(self, level: int, node: int, offset: int, value: int) -> None:
        """Write one byte of a node."""

    def find_unused(self, first: int, last: int, level: int = 0) -> int | None:
        """Return the lowest number from `first` to `last` that is not in the set; None when all are."""
        while first <= last:
            node, at = first >> NODE_BITS, first & _MASK
            bits = int.from_bytes(self.load(level, node), "little") >> at
            unused = first + (~bits & (bits + 1)).bit_length() - 1
            if unused <= min(last, node << NODE_BITS | _MASK):
                return unused
            if node == last >> NODE_BITS:
                return None
            after = self.find_unused(node + 1, last >> NODE_BITS, level + 1)
            if after is None:
                return None
            first = after << NODE_BITS
        return None

    def add(self, number: int, level: int = 0) -> None:
        """Put a number into the set."""
        self._write(number, level, True)

    def discard(self, number: int, level: int = 0) -> None:
        """Take a number out of the set."""
        self._write(number, level, False)

    def _write(self, number: int, level: int, used: bool) -> None:
        node, at = number >> NODE_BITS, number & _MASK
        data = self.load(level, node)
        offset, bit = at >> 3, 1 << (at & 7)
        old = data[offset] if offset < len(data) else 0
        new = old | bit if used else old & ~bit
        if new == old:
            return
        full_before = not used and _is_full(data)
        self.store(level, node, offset, new)
        if used and new == 0xFF and _is_full(self.load(level, node)):
            self._write(node, level + 1, True)
        elif full_before:
            self._write(node, level + 1, False)


def _is_full(data: bytes | bytearray) -> bool:
    return len(data) == NODE_BYTES and int.from_bytes(data, "little") == _FULL


class MemoryBitmap(Bitmap):
    """Nodes in memory."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self.nodes: dict[tuple[int, int], bytearray] = {}
        self._fill(numbers)

    def _fill(self, numbers: Iterable[int], level: int = 0) -> None:
        """Put many numbers in at once, and look only afterwards which nodes are full."""
        nodes: dict[int, bytearray] = {}
        for number in numbers:
            node = nodes.get(number >> NODE_BITS)
            if node is None:
                node = nodes[number >> NODE_BITS] = bytearray(NODE_BYTES)
            at = number & _MASK
            node[at >> 3] |= 1 << (at & 7)
        self.nodes.update({(level, index): node for index, node in nodes.items()})
        full = [index for index, node in nodes.items() if _is_full(node)]
        if full:
            self._fill(full, level + 1)

    def load(self, level: int, node: int) -> bytes | bytearray:
        """Return the bits of a node."""
        return self.nodes.get((level, node), b"")

    def store(self, level: int, node: int, offset: int, value: int) -> None:
        """Write one byte of a node."""
        data = self.nodes.get((level, node))
        if data is None:
            data = self.nodes[level, node] = bytearray(NODE_BYTES)
        data[offset] = value

    def __iter__(self) -> Iterator[int]:
        for (level, index), node in self.nodes.items():
            if level == 0:
                bits = int.from_bytes(node, "little")
                while bits:
                    low = bits & -bits
                    yield index << NODE_BITS | low.bit_length() - 1
                    bits ^= low
