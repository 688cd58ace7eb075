"""Addresses for a cluster: a node allocates from blocks of its own, without asking any other node.

:mod:`.blocktable` has the format of the blocks in etcd, :mod:`.holdings` the node's own record of them. The leases are
in a store of the node. So an ADD in the usual case reads two files. Etcd is asked when a node needs more: it extends a
block of its own, or claims another, or borrows single addresses. A node that is cut off goes on with what it has.

Resting addresses (:mod:`._resting`) do not make a node claim a block: while some rest, it borrows single addresses, and
gives each back when its lease has gone and it has rested too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from time import monotonic

from ..errors import IOFailureError, PluginNotAvailableError, TryAgainLaterError
from ..spec.addresses import IPAddress
from ..spec.result import IPConfig
from ._share import Share
from .allocator import Allocator, OnDuplicate, PoolExhaustedError, RoundRobin, find_held, release_exactly
from .blocktable import ATTEMPTS
from .holdings import Holdings
from .ranges import Pool, Range, RangeSet, Span, check_range_sets, pools
from .store import Lease, Owner


class BlockAllocator(Allocator):
    """Addresses of a cluster, from the blocks of this node.

    Args:
        holdings: The addresses that this node has.
        range_sets: The addresses of the cluster.
        on_duplicate: See :class:`.RoundRobin`.
        borrow: If true, and no block can be claimed, single addresses of other nodes' blocks are borrowed.

    Attributes:
        holdings: The addresses that this node has.

    Raises:
        InvalidConfigError: (7) There is no range set, or two overlap.
    """

    def __init__(
        self,
        holdings: Holdings,
        range_sets: Sequence[RangeSet],
        *,
        on_duplicate: OnDuplicate = "error",
        borrow: bool = True,
    ) -> None:
        check_range_sets(range_sets)
        self.holdings = holdings
        self._cluster = holdings.cluster
        self._range_sets = range_sets
        self._on_duplicate = on_duplicate
        self._borrow = borrow

    # --- the allocator ------------------------------------------------------------------------------------------------

    def allocate(
        self,
        owner: Owner,
        requested: Sequence[IPAddress] = (),
        *,
        pod: str = "",
        new: list[Lease] | None = None,
    ) -> tuple[IPConfig, ...]:
        """See :class:`.Allocator`, and for `new` :meth:`.RoundRobin.allocate`.

        Args:
            owner: The attachment.
            requested: Addresses it must get among others.
            pod: The interface of a pod that gets the same addresses again, as ``namespace/name/interface``; empty for
                any addresses. In a range set with a requested address, that one is had, and none is kept.
            new: A list that receives the leases this call makes, before it makes them.

        Raises:
            TryAgainLaterError: (11) Also: this node has no free address, and etcd does not answer.
        """
        inside = [address for address in requested if any(each.holds(address) for each in self._range_sets)]
        made: list[Lease] = [] if new is None else new
        deadline = monotonic() + self.holdings.timeout
        while True:
            for address in inside:
                self.obtain(address)
            kept = self._obtain_kept(pod, inside) if pod else ()
            with self.holdings.look() as (share, is_current):
                parts = self._parts(share, pod, (*inside, *kept))
                lacking = next((index for index, part in enumerate(parts) if not part), None)
                if all(share.holds(address, pod) for address in (*inside, *kept)) and lacking is None:
                    try:
                        configs = self._local(parts).allocate(owner, (*requested, *kept), new=made)
                    except PoolExhaustedError as exc:
                        lacking = exc.index
                    else:
                        if is_current() or self._still_has(made, pod):
                            return configs
                        release_exactly(self.holdings.store, made, timeout=self.holdings.timeout)
                        made.clear()
            if lacking is not None:
                self._grow(share, lacking)
            if monotonic() > deadline:
                raise TryAgainLaterError("other processes of this node keep taking what it gets", details="try again")

    def release(self, owner: Owner) -> tuple[Lease, ...]:
        """See :class:`.Allocator`. It does not need etcd: what the cluster must hear is told when it answers again."""
        return self.holdings.release(owner)

    def find(self, owner: Owner) -> tuple[IPAddress, ...]:
        """See :class:`.Allocator`."""
        return self.holdings.store.read(lambda view: find_held(view, owner), timeout=self.holdings.timeout)

    def retain(self, owners: Collection[Owner]) -> tuple[Lease, ...]:
        """See :class:`.Allocator`. It looks at this node's leases alone."""
        return self.holdings.retain(owners)

    def check_capacity(self) -> None:
        """See :class:`.Allocator`: of what this node has by now.

        Raises:
            PluginNotAvailableError: (50) Nothing is free on this node, and it could not get more either.
        """
        deadline = monotonic() + self.holdings.timeout
        for index, range_set in enumerate(self._range_sets):
            # Growing may find that the share has changed meanwhile: look again if anything is free now.
            while not self._has_free(share := self.holdings.read(), index):
                try:
                    self._grow(share, index)
                except (TryAgainLaterError, IOFailureError) as exc:
                    raise PluginNotAvailableError(exc.msg, details=exc.details) from exc
                if monotonic() > deadline:
                    raise PluginNotAvailableError(
                        f"no IP addresses available in range set: {range_set}",
                        details="other processes of this node keep taking what it gets",
                    )

    def _has_free(self, share: Share, index: int) -> bool:
        parts = self._parts(share)[index]
        try:
            if parts:
                self._local([parts]).check_capacity()
        except PluginNotAvailableError:
            return False
        return bool(parts)

    def obtain(self, address: IPAddress) -> None:
        """Get an address for this node, if it has not got it.

        Raises:
            TryAgainLaterError: (11) It is another node's, or kept for a pod.
            IOFailureError: (5) Etcd does not answer.
        """
        if self.holdings.read().holds(address):
            return
        with self.holdings.synchronised() as share:
            if share.holds(address):
                return
            if self._cluster.borrow(address) is None:
                raise TryAgainLaterError(
                    f"requested IP address {address} is not available", details=self._describe(address)
                )
            self.holdings.change(lambda now: now.with_borrowed([address]))

    def _still_has(self, leases: Sequence[Lease], pod: str) -> bool:
        share = self.holdings.read()
        return all(share.holds(lease.address, pod) for lease in leases)

    def _parts(self, share: Share, pod: str = "", wanted: Collection[IPAddress] = ()) -> list[tuple[Range, ...]]:
        """Return what this node may hand out now, for each range set. Only what is wanted may be had unrested."""
        resting = sorted(int(each) for each in self.holdings.resting.find() if each not in wanted)
        parts = [share.within(each, pod) for each in self._range_sets]
        return [tuple(_without(part, resting) for part in each) for each in parts] if resting else parts

    def _local(self, parts: Sequence[tuple[Range, ...]]) -> RoundRobin:
        sets = [RangeSet(part, self._range_sets[index].path) for index, part in enumerate(parts)]
        holdings = self.holdings
        return RoundRobin(holdings.store, sets, on_duplicate=self._on_duplicate, timeout=holdings.timeout)

    # --- getting more -------------------------------------------------------------------------------------------------

    def _grow(self, seen: Share, index: int) -> None:
        """Get more addresses of a range set for this node.

        Raises:
            TryAgainLaterError: (11) There are none, or etcd does not answer.
        """
        range_set = self._range_sets[index]
        try:
            with self.holdings.synchronised() as share:
                if share.has_same(seen):  # else a process has got more
                    self._get_more(share, range_set)
        except IOFailureError as exc:
            raise TryAgainLaterError(
                f"node {self._cluster.node} has no free address in range set {range_set}, and cannot ask for more: "
                f"{exc.msg}",
                details=exc.details,
            ) from exc

    def _get_more(self, share: Share, range_set: RangeSet) -> None:
        spans = [*self._spans(range_set)]
        for block in share.blocks:
            if block.has_more(spans) and (extended := self._cluster.extend(block)) is not None:
                self.holdings.change(lambda now: now.with_block(extended))
                return
        resting = {each: left for each, left in self.holdings.resting.find().items() if range_set.holds(each)}
        if not resting and self._claim(share, range_set, spans) is not None:
            return
        if self._borrow:
            make = _maker(range_set)
            address = self._cluster.borrow_any(spans, make)
            if address is None and resting:
                address = self._cluster.borrow_unclaimed(spans, make)
            if address is not None:
                self.holdings.change(lambda now: now.with_borrowed([address]))
                return
        rest = f"{len(resting)} rest, the first for {min(resting.values()):.0f} s; " if resting else ""
        raise TryAgainLaterError(
            f"no IP addresses available in range set: {range_set}",
            details=f"{rest}no block and no address is left for node {self._cluster.node}; "
            f"delete attachments, run GC, or enlarge {range_set.path}",
        )

    def _claim(self, share: Share, range_set: RangeSet, spans: Iterable[Span]) -> Share | None:
        """Claim a block with addresses of a range set. Return what this node has then; None if there is none."""
        make, known = _maker(range_set), {each.first for each in share.blocks}
        for span in spans:
            claimed = self._cluster.claim(make(span.first), make(span.last), known)
            if claimed is not None:
                return self.holdings.change(partial(Share.with_block, block=claimed))
        return None

    def _spans(self, range_set: RangeSet) -> Iterator[Span]:
        """Yield the addresses of a range set that can be handed out."""
        pool = self._pool(range_set)
        for part in range_set.ranges:
            yield from pool.spans(part, int(part.first), int(part.last))

    def _pool(self, range_set: RangeSet) -> Pool:
        return next(each for each in pools(self._range_sets) if each.range_set is range_set)

    # --- single addresses ---------------------------------------------------------------------------------------------

    def _describe(self, address: IPAddress) -> str:
        block = self._cluster.find(address)
        if block is not None and address in block.kept:
            return f"it is kept for pod {block.kept[address]}"
        node = block and (block.lent.get(address) or block.node)
        return f"it belongs to node {node}" if node else "it has just been given back"

    def _obtain_kept(self, pod: str, requested: Sequence[IPAddress]) -> tuple[IPAddress, ...]:
        """Get the addresses that are kept for a pod, and keep some for it where there are none."""
        while True:
            mine = self._kept_in(self.holdings.read(), pod)
            if not self._lacking([*mine, *requested]):
                return tuple(each for each in mine if not self._is_requested(each, requested))
            with self.holdings.synchronised() as share:
                lacking = self._lacking([*self._kept_in(share, pod), *requested])
                lent = self._keep(share, pod, lacking)
                self.holdings.change(partial(Share.with_borrowed, addresses=lent, pod=pod))
                self.holdings.look_again(lent)

    def _kept_in(self, share: Share, pod: str) -> list[IPAddress]:
        return [address for address, each in share.borrowed.items() if each == pod]

    def _lacking(self, addresses: Sequence[IPAddress]) -> list[RangeSet]:
        return [each for each in self._range_sets if not any(map(each.holds, addresses))]

    def _is_requested(self, address: IPAddress, requested: Sequence[IPAddress]) -> bool:
        """Return True if one of the range set of an address is requested, or there is no such range set."""
        range_set = next((each for each in self._range_sets if each.holds(address)), None)
        return range_set is None or any(map(range_set.holds, requested))

    def _keep(self, share: Share, pod: str, lacking: Sequence[RangeSet]) -> list[IPAddress]:
        """Lend an address of each of these range sets to this node for a pod: all or none."""
        from .sticky import StickyAddresses  # few networks keep addresses

        sticky = StickyAddresses(self._cluster.table)
        for attempt in range(ATTEMPTS):
            seen = sticky.look_up(pod)
            wanted = [self._find_kept(seen.addresses, each) or self._choose(share, each, pod) for each in lacking]
            if sticky.lend(pod, wanted, seen):
                return wanted
            self._cluster.table.pause(attempt)
        raise self._cluster.table.busy(f"what could be kept for pod {pod}")

    def _find_kept(self, known: Iterable[IPAddress], range_set: RangeSet) -> IPAddress | None:
        """Return the one of the kept addresses that can be handed out of a range set; None if there is none."""
        pool = self._pool(range_set)
        for address in known:
            part = range_set.find(address)
            if part is not None and pool.allows(part, address):
                return address
        return None

    def _choose(self, share: Share, range_set: RangeSet, pod: str) -> IPAddress:
        """Choose an address to keep: of this node's blocks, of a new one, or of any.

        Raises:
            TryAgainLaterError: (11) There is none.
        """
        spans, make = [*self._spans(range_set)], _maker(range_set)
        address = self._choose_mine(share, spans, pod)
        if address is None and (grown := self._claim(share, range_set, spans)) is not None:
            address = self._choose_mine(grown, spans, pod)
        if address is not None:
            return address
        for span in spans if self._borrow else ():
            for block in self._cluster.scan(make(span.first), make(span.last)):
                if (address := block.find_lendable([span])) is not None:
                    return address
        raise TryAgainLaterError(
            f"no IP addresses available in range set: {range_set}",
            details=f"no address is left that could be kept for a pod; enlarge {range_set.path}",
        )

    def _choose_mine(self, share: Share, spans: Sequence[Span], pod: str) -> IPAddress | None:
        """Choose an address to keep in a block of this node; one that the cluster may lend is the better choice."""
        for block in share.blocks:
            if block.find_lendable(spans) is not None:
                address = self._cluster.table.get(block.first).find_lendable(spans)
                if address is not None:
                    return address
        return self.holdings.set_aside(spans, pod)


def _maker(range_set: RangeSet) -> Callable[[int], IPAddress]:
    return IPv4Address if range_set.version == 4 else IPv6Address


def _without(part: Range, numbers: Sequence[int]) -> Range:
    """Exclude addresses, given in ascending order, from a range."""
    inside = [Span(each, each) for each in numbers if int(part.first) <= each <= int(part.last)]
    return part._replace(exclude=tuple(sorted((*part.exclude, *inside)))) if inside else part
