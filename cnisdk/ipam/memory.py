"""Leases in memory: for tests and simulations, and for the leases that a scan of another store's records found."""

from __future__ import annotations

import time
from _thread import TIMEOUT_MAX, allocate_lock
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..errors import TryAgainLaterError
from ..spec.addresses import IPAddress
from ._bitmap import MemoryBitmap
from .store import Changes, Conflict, Lease, Owner, Store, View, in_order


class MemoryView(View):
    """A table of leases, with indexes by owner and by address."""

    def __init__(self, leases: Iterable[Lease] = ()) -> None:
        self._owners: dict[IPAddress, Owner] = dict(leases)
        self._cursors: dict[int, IPAddress] = {}
        self._held: dict[Owner, set[IPAddress]] = {}
        for address, owner in self._owners.items():
            self._held.setdefault(owner, set()).add(address)
        self._used: dict[int, MemoryBitmap] = {}

    def used(self, version: int) -> MemoryBitmap:
        """Return the held addresses of an address family."""
        bitmap = self._used.get(version)
        if bitmap is None:
            numbers = (int(address) for address in self._owners if address.version == version)
            bitmap = self._used[version] = MemoryBitmap(numbers)
        return bitmap

    def find_addresses(self, owner: Owner) -> tuple[IPAddress, ...]:
        """See :class:`View`."""
        return in_order(self._held.get(owner, ()))

    def find_owner(self, address: IPAddress) -> Owner | None:
        """See :class:`View`."""
        return self._owners.get(address)

    def find_free(self, first: IPAddress, last: IPAddress) -> IPAddress | None:
        """See :class:`View`."""
        number = self.used(first.version).find_unused(int(first), int(last))
        return None if number is None else type(first)(number)

    def find_cursor(self, index: int) -> IPAddress | None:
        """See :class:`View`."""
        return self._cursors.get(index)

    def leases(self) -> Iterator[Lease]:
        """See :class:`View`."""
        return (Lease(*item) for item in list(self._owners.items()))

    def apply(self, changes: Changes) -> None:
        """Make the changes.

        Raises:
            Conflict: One of them cannot be made; nothing has changed.
        """
        for lease in changes.reserve:
            if lease.address in self._owners:
                raise Conflict(f"{lease.address} is held by {self._owners[lease.address]}")
        for lease in changes.release:
            if self._owners.get(lease.address) != lease.owner:
                raise Conflict(f"{lease.address} is not held by {lease.owner}")
        for owner, addresses in changes.read.items():
            if self._held.get(owner, set()) != addresses:
                raise Conflict(f"{owner} holds other addresses by now")
        for address, owner in changes.release:
            del self._owners[address]
            self._held[owner].discard(address)
            if not self._held[owner]:
                del self._held[owner]
            self.used(address.version).discard(int(address))
        for address, owner in changes.reserve:
            used = self.used(address.version)
            self._owners[address] = owner
            self._held.setdefault(owner, set()).add(address)
            used.add(int(address))
        self._cursors.update(changes.cursors)


class MemoryStore(Store):
    """Leases that last as long as this object. Threads may share it."""

    def __init__(self, leases: Iterable[Lease] = ()) -> None:
        self._table = MemoryView(leases)
        self._lock = allocate_lock()

    @contextmanager
    def view(self, deadline: float, *, write: bool) -> Iterator[View]:
        """See :class:`Store`."""
        if not self._lock.acquire(timeout=min(max(0.0, deadline - time.monotonic()), TIMEOUT_MAX)):
            raise TryAgainLaterError("the address store in memory is busy", details="another thread holds its lock")
        try:
            yield self._table
        finally:
            self._lock.release()

    def commit(self, view: View, changes: Changes) -> None:
        """See :class:`Store`."""
        self._table.apply(changes)
