"""Blocks of a cluster's addresses as a node changes them: claim, extend, borrow single addresses, give back.

:mod:`.blocktable` has the format of blocks in etcd. So that nodes which start together do not want the same block, each
begins its search at a place derived from its name. In the usual case a claim is one request, and an extension two.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from os import urandom

from ..classes import evolve
from ..errors import TryAgainLaterError
from ..spec.addresses import IPAddress
from ..spec.names import short_hash
from .blocktable import Block, BlockTable
from .ranges import Span


class Cluster:
    """The blocks of one network, as one node changes them.

    Args:
        table: The keys in etcd, of the network and the node.
    """

    def __init__(self, table: BlockTable) -> None:
        self.table = table

    @property
    def node(self) -> str:
        """Name of this node."""
        return self.table.node

    def find(self, address: IPAddress) -> Block | None:
        """Return the block that an address lies in; None if it has no key."""
        block = self.table.get(self.table.start_of(address))
        return block if block.revision else None

    def blocks(self, first: IPAddress | None = None, last: IPAddress | None = None) -> Iterator[Block]:
        """Yield the blocks from that of the first address to that of the last; without them, all."""
        return self.table.list_blocks(first, last)

    # --- getting ------------------------------------------------------------------------------------------------------

    def claim(self, first: IPAddress, last: IPAddress, known: Container[IPAddress] = ()) -> Block | None:
        """Claim a block without a key between two addresses; None if there is none.

        Args:
            first: The first address.
            last: The last address.
            known: First addresses of the blocks that this node knows to be its own. Another one of its own, which a
                killed process claimed, is returned like one that is claimed now.
        """
        nth, total = self._number(first, last)
        middle = int(short_hash(self.node, self.table.root, digits=16), 16) % total
        for start, end in ((middle, total), (0, middle)):
            at: int | None = start
            while at is not None and at < end:
                block = self._try_to_claim(nth(at), known)
                if block is not None:
                    return block
                at = self._find_unused(nth, at + 1, end)
        return None

    def extend(self, block: Block) -> Block | None:
        """Get more addresses of a block of this node; None if it has no more to give."""

        def change(now: Block) -> Block | None:
            if now.node != self.node or now.local >= now.size:
                return None
            return evolve(now, local=min(now.size, now.local + max(1, now.size // 4)))

        return self.table.change(block.first, change)

    def borrow(self, address: IPAddress) -> Block | None:
        """Borrow one address for this node, and return its block; None if another node or a pod has it."""

        def change(now: Block) -> Block | None:
            if now.lent.get(address) == self.node and address not in now.kept:
                return now
            return _lend(now, address, self.node) if now.can_lend(address) else None

        return self.table.change(self.table.start_of(address), change)

    def borrow_any(self, spans: Sequence[Span], make: Callable[[int], IPAddress]) -> IPAddress | None:
        """Borrow any address of these spans, out of blocks that other nodes use; None if there is none.

        Args:
            spans: Addresses as numbers, in the order in which they are tried.
            make: Function that makes an address of a number.
        """
        for span in spans:
            for block in self.scan(make(span.first), make(span.last)):
                if block.find_lendable([span]) is None:
                    continue
                with suppress(TryAgainLaterError):  # all want this block: there are others
                    address = self._borrow_of(block.first, span)
                    if address is not None:
                        return address
        return None

    def borrow_unclaimed(self, spans: Sequence[Span], make: Callable[[int], IPAddress]) -> IPAddress | None:
        """Borrow an address of a block without a key, and do not claim the block; None if there is none.

        Args:
            spans: Addresses as numbers, in the order in which they are tried.
            make: Function that makes an address of a number.
        """
        for span in spans:
            nth, total = self._number(make(span.first), make(span.last))
            at = self._find_unused(nth, 0, total)
            address = None if at is None else self._borrow_of(nth(at), span)
            if address is not None:
                return address
        return None

    def scan(self, first: IPAddress, last: IPAddress) -> Iterator[Block]:
        """Yield the blocks between two addresses, from a random one on, so that nodes do not all want the same.

        Args:
            first: Any address of the first block.
            last: Any address of the last block.
        """
        middle = type(first)(int(first) + int.from_bytes(urandom(16), "big") % (int(last) - int(first) + 1))
        start = self.table.start_of(middle)
        yield from self.blocks(start, last)
        if int(first) < int(start):
            yield from self.blocks(first, start - 1)

    def _borrow_of(self, first: IPAddress, span: Span) -> IPAddress | None:
        """Borrow any address of a block that is free at the time of the transaction."""
        chosen: IPAddress | None = None

        def change(now: Block) -> Block | None:
            nonlocal chosen
            if chosen is not None and now.lent.get(chosen) == self.node:
                return now  # the answer to the last attempt got lost
            chosen = now.find_lendable([span])
            return None if chosen is None else _lend(now, chosen, self.node)

        return chosen if self.table.change(first, change) is not None else None

    def _try_to_claim(self, first: IPAddress, known: Container[IPAddress]) -> Block | None:
        length = self.table.lengths[first.version]
        half = max(1, 1 << (first.max_prefixlen - length - 1))
        made = Block(first=first, length=length, node=self.node, local=half)
        outcome = self.table.swap([(Block(first=first, length=length), made)])
        if outcome.done:
            return evolve(made, revision=outcome.revision)
        block = self.table.get(first)
        return block if block.node == self.node and first not in known else None

    def _number(self, first: IPAddress, last: IPAddress) -> tuple[Callable[[int], IPAddress], int]:
        """Number the blocks between two addresses. Return a function from number to first address, and their count."""
        start = self.table.start_of(first)
        step = 1 << (first.max_prefixlen - self.table.lengths[first.version])
        return lambda number: start + number * step, (int(last) - int(start)) // step + 1

    def _find_unused(self, nth: Callable[[int], IPAddress], at: int, end: int) -> int | None:
        """Return the number of a block without a key, from number `at` up to but without `end`.

        Few requests, whatever is claimed: double the step until a span has fewer keys than blocks, then halve it.
        """
        step = 1
        while at < end and self._is_used(nth, at, min(step, end - at)):
            at, step = at + min(step, end - at), step * 2
        if at >= end:
            return None
        step = min(step, end - at)
        while step > 1:  # one of `step` blocks is unused
            half = step // 2
            if self._is_used(nth, at, half):
                at, step = at + half, step - half
            else:
                step = half
        return at

    def _is_used(self, nth: Callable[[int], IPAddress], at: int, number: int) -> bool:
        return self.table.count_keys(nth(at), nth(at + number - 1)) == number

    # --- giving back --------------------------------------------------------------------------------------------------

    def give_back(self, addresses: Iterable[IPAddress] = (), blocks: Iterable[IPAddress] = ()) -> None:
        """Give back addresses that were lent to this node, and blocks of this node, named by their first address.

        Args:
            addresses: Addresses that were lent to this node. One that is not any more is fine.
            blocks: First addresses of blocks of this node.

        Raises:
            TryAgainLaterError: (11) Other nodes changed one each time, or this node is no member any more.
            IOFailureError: (5) Etcd does not answer.
        """
        for address in addresses:
            self.table.change(self.table.start_of(address), partial(self._without_loan, address))
        for first in blocks:
            self.table.change(first, self._unclaimed)

    def release_node(self, node: str, revision: int = 0) -> tuple[Block, ...]:
        """Delete the key of a node that is gone for good, and take its addresses back. Return the blocks they were in.

        The key is deleted first: from then on, no request of the node changes anything. But a node that is only cut off
        goes on to hand out addresses. Only its operator can know that it is gone.

        Args:
            node: Name of the node.
            revision: Revision of its key when it was looked at; 0 if it had none: a release that was killed goes on.

        Raises:
            TryAgainLaterError: (11) It has joined again since: it lives, and keeps what it still has.
        """
        self.table.delete_node(node, revision)
        blocks = self.list_blocks_of(node)
        for block in blocks:
            self.table.change(block.first, partial(_without_node, node), unless_joined=node)
        return blocks

    def list_blocks_of(self, node: str) -> tuple[Block, ...]:
        """Return the blocks that a node has, or has an address of."""
        return tuple(block for block in self.blocks() if node in (block.node, *block.lent.values()))

    def _without_loan(self, address: IPAddress, block: Block) -> Block | None:
        if block.lent.get(address) != self.node:
            return None
        return evolve(block, lent={each: node for each, node in block.lent.items() if each != address})

    def _unclaimed(self, block: Block) -> Block | None:
        return evolve(block, node="", local=0) if block.node == self.node else None


def _lend(block: Block, address: IPAddress, node: str) -> Block:
    return evolve(block, lent={**block.lent, address: node})


def _without_node(node: str, block: Block) -> Block:
    lent = {address: each for address, each in block.lent.items() if each != node}
    return evolve(block, node="", local=0, lent=lent) if block.node == node else evolve(block, lent=lent)
