"""What an allocator needs of a place that remembers leases, for whoever brings their own.

A store belongs to one network. All access goes through functions that look at a :class:`View` and either return or ask
for changes: :meth:`Store.update` runs such a function and commits what it asked for, all or nothing. A store with a
lock holds it from the view to the commit. A store without one (etcd, a cluster's API server) takes a consistent view,
and compares and swaps in :meth:`Store.commit`; when something that was read has changed, it raises :class:`Conflict`
and the function runs again on a new view. So functions given to a store must do nothing but look and ask.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from typing import NamedTuple, TypeVar

from ..errors import TryAgainLaterError
from ..spec.addresses import IPAddress

T = TypeVar("T")

DEFAULT_TIMEOUT = 30.0
"""How long to wait for a store, in seconds: less than the 60 seconds and more runtimes give an ADD."""

_PAUSE_MAX = 0.05
_FREE_TRIES = 3


class Owner(NamedTuple):
    """Who holds an address: one interface of a container.

    Without ``ifname`` it is a record of a version of host-local before 2018, which did not note the interface; without
    either, something that says of nobody that it is theirs.
    """

    container_id: str
    ifname: str = ""

    @property
    def without_ifname(self) -> Owner:
        """The owner in old records."""
        return Owner(self.container_id)

    def __str__(self) -> str:
        if not self.container_id:
            return "an unknown owner"
        return f"container {self.container_id}" + (f" interface {self.ifname}" if self.ifname else "")


NOBODY = Owner("")


class Lease(NamedTuple):
    """An address and who holds it."""

    address: IPAddress
    owner: Owner


class Changes(NamedTuple):
    """What a function asks a store to do, all or nothing.

    Attributes:
        reserve: Must be held by nobody.
        release: Must be held by the owner that is named.
        cursors: Where each range set goes on next time. A hint: losing one costs only the order.
        read: What the function knew of owners, each with the addresses it held. For stores without a lock: the commit
            must fail when one holds others by now, or an attachment might get two addresses at once.
    """

    reserve: tuple[Lease, ...]
    release: tuple[Lease, ...]
    cursors: Mapping[int, IPAddress]
    read: Mapping[Owner, frozenset[IPAddress]]

    def __bool__(self) -> bool:
        return bool(self.reserve or self.release)


class Conflict(Exception):
    """What was read has changed in the meantime, and nothing was done: look again."""


class View(ABC):
    """What a store holds, at one moment."""

    @abstractmethod
    def find_addresses(self, owner: Owner) -> tuple[IPAddress, ...]:
        """What exactly this owner holds, in ascending order, IPv4 first. Must not cost more in a full store."""

    @abstractmethod
    def find_owner(self, address: IPAddress) -> Owner | None:
        """Who holds an address; None when it is free."""

    @abstractmethod
    def find_free(self, first: IPAddress, last: IPAddress) -> IPAddress | None:
        """The lowest address from ``first`` to ``last`` nobody holds. Must not cost more in a /8 or a full store."""

    @abstractmethod
    def find_cursor(self, index: int) -> IPAddress | None:
        """Where a range set went on last time: the address it handed out."""

    @abstractmethod
    def leases(self) -> Iterator[Lease]:
        """Everything, in any order."""

    def find_stale(self, owners: Collection[Owner]) -> Iterator[Lease]:
        """What everybody else holds.

        An old record without interface counts as held by each interface of its container; what names no owner at all is
        nobody's attachment, and never stale.
        """
        containers = {owner.container_id for owner in owners}
        for lease in self.leases():
            owner = lease.owner
            if owner.container_id and owner not in owners and (owner.ifname or owner.container_id not in containers):
                yield lease


class Transaction(View):
    """A view that shows the changes asked for, and keeps them for the commit."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._reserved: dict[IPAddress, Owner] = {}
        self._released: dict[IPAddress, Owner] = {}
        self._cursors: dict[int, IPAddress] = {}
        self._read: dict[Owner, frozenset[IPAddress]] = {}

    def find_addresses(self, owner: Owner) -> tuple[IPAddress, ...]:
        """See :class:`View`."""
        held = self._view.find_addresses(owner)
        self._read.setdefault(owner, frozenset(held))
        asked = [address for address, new in self._reserved.items() if new == owner]
        return in_order([*(address for address in held if address not in self._released), *asked])

    def find_owner(self, address: IPAddress) -> Owner | None:
        """See :class:`View`."""
        if address in self._reserved:
            return self._reserved[address]
        return None if address in self._released else self._view.find_owner(address)

    def find_free(self, first: IPAddress, last: IPAddress) -> IPAddress | None:
        """See :class:`View`. What this transaction releases stays out of use until it is committed."""
        while int(first) <= int(last):
            address = self._view.find_free(first, last)
            if address is None or address not in self._reserved:
                return address
            if address == last:
                return None
            first = address + 1
        return None

    def find_cursor(self, index: int) -> IPAddress | None:
        """See :class:`View`."""
        return self._cursors.get(index) or self._view.find_cursor(index)

    def leases(self) -> Iterator[Lease]:
        """See :class:`View`."""
        for lease in self._view.leases():
            if lease.address not in self._released:
                yield lease
        for address, owner in self._reserved.items():
            yield Lease(address, owner)

    def find_stale(self, owners: Collection[Owner]) -> Iterator[Lease]:
        """See :class:`View`. What this transaction asks for is not stale."""
        return (lease for lease in self._view.find_stale(owners) if lease.address not in self._released)

    def reserve(self, address: IPAddress, owner: Owner) -> None:
        """Ask for an address that was found to be free."""
        self._reserved[address] = owner

    def release(self, lease: Lease) -> None:
        """Ask to free an address its owner was found to hold."""
        self._released[lease.address] = lease.owner

    def set_cursor(self, index: int, address: IPAddress) -> None:
        """Ask to note where a range set goes on next time."""
        self._cursors[index] = address

    @property
    def changes(self) -> Changes:
        """What was asked for."""
        return Changes(
            tuple(Lease(*item) for item in self._reserved.items()),
            tuple(Lease(*item) for item in self._released.items()),
            dict(self._cursors),
            dict(self._read),
        )


class Store(ABC):
    """A place that remembers the leases of one network.

    Implement :meth:`view` and :meth:`commit`; run ``cnisdk.testing.stores`` against the result.
    """

    @abstractmethod
    def view(self, deadline: float, *, write: bool) -> AbstractContextManager[View]:
        """Look at the store. Stores with a lock hold it until the context is left.

        Args:
            deadline: When to give up waiting, as ``time.monotonic()`` counts.
            write: Whether :meth:`commit` may follow. If not, the store must stay as it is.

        Raises:
            TryAgainLaterError: (11) The deadline passed.
            IOFailureError: (5) The store cannot be reached.
        """

    @abstractmethod
    def commit(self, view: View, changes: Changes) -> None:
        """Do all of it, or nothing. Called inside the context of the view.

        Raises:
            Conflict: An address to reserve is held, one to release is not held by that owner, or an owner in
                ``changes.read`` holds something else by now.
            IOFailureError: (5) It cannot be done; nothing was.
        """

    def update(self, change: Callable[[Transaction], T], *, timeout: float = DEFAULT_TIMEOUT) -> T:
        """Run a function on the store and commit what it asks for. It may run several times.

        Args:
            change: Looks and asks; what it raises, is raised, and nothing is changed.
            timeout: How long to wait for others, in seconds.

        Raises:
            TryAgainLaterError: (11) Others kept the store busy all the time.
            IOFailureError: (5) The store cannot be read or written.
        """

        def attempt(deadline: float) -> T:
            with self.view(deadline, write=True) as view:
                transaction = Transaction(view)
                result = change(transaction)
                changes = transaction.changes
                if changes:
                    self.commit(view, changes)
                return result

        return insist(attempt, timeout)

    def read(self, look: Callable[[View], T], *, timeout: float = DEFAULT_TIMEOUT) -> T:
        """Run a function on the store, without changing it. It may run several times.

        Raises:
            TryAgainLaterError: (11) Others kept the store busy all the time.
            IOFailureError: (5) The store cannot be read.
        """

        def attempt(deadline: float) -> T:
            with self.view(deadline, write=False) as view:
                return look(view)

        return insist(attempt, timeout)


def insist(attempt: Callable[[float], T], timeout: float) -> T:
    """Try until there is no conflict, each time a little later, so that processes in conflict drift apart."""
    deadline = time.monotonic() + timeout
    pause = 0.0005
    for number in count(1):
        try:
            return attempt(deadline)
        except Conflict as exc:
            # A store may need a second look to make its directory, and a third to find its index wrong: without waiting
            # for anybody.
            if number > _FREE_TRIES and time.monotonic() + pause > deadline:
                raise TryAgainLaterError(
                    f"the address store changed too often for {timeout:g} s", details=str(exc) or "try again"
                ) from exc
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE_MAX)
    raise AssertionError("count() ends")


def in_order(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """In ascending order, IPv4 first."""
    return tuple(sorted(addresses, key=lambda address: (address.version, int(address))))
