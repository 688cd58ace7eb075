"""The interface between allocators and stores of leases: implement it to keep leases in a place of your own.

Theory of operation. A store holds the leases of one network. An allocator never writes: it gives the store a function,
and :meth:`Store.update` runs it in these steps:

1. The store opens a :class:`View`, a consistent look at all leases. A store with a lock takes it here.
2. The function reads the view and asks for changes. A :class:`Transaction` collects them and shows them to the function
   as if they were made.
3. :meth:`Store.commit` makes all of the changes or none. A store with a lock gives it back afterwards.

A store without a lock (etcd, a cluster's API server) compares and swaps in step 3. When an address or an owner that the
function read has changed since step 1, the commit raises :class:`Conflict` and all steps run again, until the deadline.
So the function may run several times, and must do nothing but read the view and ask for changes.

A process that is killed in step 1 or 2 has changed nothing. Killed in step 3, it leaves all or nothing if the place has
transactions; the file store says what it leaves.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count

from .._light import NamedTuple, TypeVar
from ..errors import TryAgainLaterError
from ..spec.addresses import IPAddress

_T = TypeVar("_T")

LOCK_TIMEOUT = 30.0
"""Seconds to wait for a store: less than the 60 seconds or more that runtimes give an ADD."""

_PAUSE_MAX = 0.05
_FREE_TRIES = 3


class Owner(NamedTuple):
    """Owner of an address: one interface of a container.

    Attributes:
        container_id: The container; empty in a record that names no owner.
        ifname: Its interface; empty in records of versions of host-local before 2018, which did not note it.
    """

    container_id: str
    ifname: str = ""

    @property
    def without_ifname(self) -> Owner:
        """The owner as old records name it."""
        return Owner(self.container_id)

    def __str__(self) -> str:
        if not self.container_id:
            return "an unknown owner"
        return f"container {self.container_id}" + (f" interface {self.ifname}" if self.ifname else "")


NOBODY = Owner("")
"""The owner in a record that names none."""


class Lease(NamedTuple):
    """An address and its owner."""

    address: IPAddress
    owner: Owner


class Changes(NamedTuple):
    """Changes that a store makes all together or not at all.

    Attributes:
        reserve: Leases to make. Their addresses must be free.
        release: Leases to delete. Each must still have the owner named here.
        cursors: For each range set, the address it handed out last. A hint: losing one costs only the order.
        read: The owners the function read, each with the addresses it held then. Stores without a lock must refuse the
            commit when one of them holds other addresses by now, or two ADDs could give an attachment two addresses.
    """

    reserve: tuple[Lease, ...]
    release: tuple[Lease, ...]
    cursors: Mapping[int, IPAddress]
    read: Mapping[Owner, frozenset[IPAddress]]

    def __bool__(self) -> bool:
        return bool(self.reserve or self.release)


class Conflict(Exception):
    """The commit changed nothing, because another process has changed a lease since it was read: look again."""


class View(ABC):
    """The leases of a store at one moment."""

    @abstractmethod
    def find_addresses(self, owner: Owner) -> tuple[IPAddress, ...]:
        """Return the addresses of exactly this owner, in ascending order, IPv4 first.

        It must not take longer in a full store than in an empty one.
        """

    @abstractmethod
    def find_owner(self, address: IPAddress) -> Owner | None:
        """Return the owner of an address; None when it is free."""

    @abstractmethod
    def find_free(self, first: IPAddress, last: IPAddress) -> IPAddress | None:
        """Return the lowest free address from `first` to `last`, both included; None when all are held.

        It must not take longer in a /8 or in a full store.
        """

    @abstractmethod
    def find_cursor(self, index: int) -> IPAddress | None:
        """Return the address that range set number `index` handed out last; None when it is not known."""

    @abstractmethod
    def leases(self) -> Iterator[Lease]:
        """Yield all leases, in any order."""

    def find_stale(self, owners: Collection[Owner]) -> Iterator[Lease]:
        """Yield the leases that none of these owners holds.

        An old record without interface counts as held by each interface of its container. A record that names no owner
        belongs to no attachment and is never stale.
        """
        containers = {owner.container_id for owner in owners}
        for lease in self.leases():
            owner = lease.owner
            if owner.container_id and owner not in owners and (owner.ifname or owner.container_id not in containers):
                yield lease


class Transaction(View):
    """A view that collects the changes a function asks for, and shows the leases as if they were made."""

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
        """See :class:`View`. An address that this transaction releases is free only after the commit."""
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
        """See :class:`View`. The leases this transaction asks for are not stale."""
        return (lease for lease in self._view.find_stale(owners) if lease.address not in self._released)

    def reserve(self, address: IPAddress, owner: Owner) -> None:
        """Ask for an address that was found to be free."""
        self._reserved[address] = owner

    def release(self, lease: Lease) -> None:
        """Ask to delete a lease that was found."""
        self._released[lease.address] = lease.owner

    def set_cursor(self, index: int, address: IPAddress) -> None:
        """Ask to note the address that range set number `index` handed out last."""
        self._cursors[index] = address

    @property
    def changes(self) -> Changes:
        """The changes asked for so far."""
        return Changes(
            tuple(Lease(*item) for item in self._reserved.items()),
            tuple(Lease(*item) for item in self._released.items()),
            dict(self._cursors),
            dict(self._read),
        )


class Store(ABC):
    """Store of the leases of one network.

    Implement :meth:`view` and :meth:`commit`, and test the result with ``cnisdk.testing.stores``.
    """

    @abstractmethod
    def view(self, deadline: float, *, write: bool) -> AbstractContextManager[View]:
        """Open a view of the leases. A store with a lock holds it until the context ends.

        Args:
            deadline: Time of ``time.monotonic()`` at which to give up waiting.
            write: If true, :meth:`commit` may follow. Otherwise the store must stay as it is.

        Raises:
            TryAgainLaterError: (11) The deadline passed.
            IOFailureError: (5) The store cannot be reached.
        """

    @abstractmethod
    def commit(self, view: View, changes: Changes) -> None:
        """Make all of the changes, or none. Called inside the context of the view.

        Args:
            view: The view that the changes are made on.
            changes: The changes.

        Raises:
            Conflict: An address to reserve is held, one to release is not held by that owner, or an owner in
                ``changes.read`` holds other addresses by now.
            IOFailureError: (5) The store cannot be written; nothing has changed.
        """

    def update(self, change: Callable[[Transaction], _T], *, timeout: float = LOCK_TIMEOUT) -> _T:
        """Run a function on the store and commit the changes it asks for. It may run several times.

        Args:
            change: Reads the transaction and asks it for changes. If it raises, nothing is changed.
            timeout: How long to wait for other processes, in seconds.

        Raises:
            TryAgainLaterError: (11) Other processes kept the store busy until the timeout.
            IOFailureError: (5) The store cannot be read or written.
        """

        def attempt(deadline: float) -> _T:
            with self.view(deadline, write=True) as view:
                transaction = Transaction(view)
                result = change(transaction)
                changes = transaction.changes
                if changes:
                    self.commit(view, changes)
                return result

        return insist(attempt, timeout)

    def read(self, look: Callable[[View], _T], *, timeout: float = LOCK_TIMEOUT) -> _T:
        """Run a function on a view of the store, which stays as it is. It may run several times.

        Args:
            look: Reads the view, and returns what it found.
            timeout: Seconds to wait for other processes.

        Raises:
            TryAgainLaterError: (11) Other processes kept the store busy until the timeout.
            IOFailureError: (5) The store cannot be read.
        """

        def attempt(deadline: float) -> _T:
            with self.view(deadline, write=False) as view:
                return look(view)

        return insist(attempt, timeout)


def insist(attempt: Callable[[float], _T], timeout: float) -> _T:
    """Run `attempt` until it raises no :class:`Conflict`, with growing pauses that let competing processes drift apart.

    Args:
        attempt: Gets the deadline, a time of ``time.monotonic()``.
        timeout: Seconds until then.

    Raises:
        TryAgainLaterError: (11) There was a conflict each time.
    """
    deadline = time.monotonic() + timeout
    pause = 0.0005
    for number in count(1):
        try:
            return attempt(deadline)
        except Conflict as exc:
            # A store may need a second try after making its directory, and a third after finding its index wrong. No
            # other process is in the way then, so these tries do not count against the timeout.
            if number > _FREE_TRIES and time.monotonic() + pause > deadline:
                raise TryAgainLaterError(
                    f"the address store changed too often for {timeout:g} s", details=str(exc) or "try again"
                ) from exc
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE_MAX)
    raise AssertionError("count() ends")


def in_order(addresses: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Sort addresses in ascending order, IPv4 first."""
    return tuple(sorted(addresses, key=lambda address: (address.version, int(address))))
