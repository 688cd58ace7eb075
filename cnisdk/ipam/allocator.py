"""Allocators choose the addresses of an attachment: the interface, and the policy of the reference's host-local.

An allocator reads and changes a :mod:`.store` through transactions, so that two processes never give out one address.
Releasing needs no allocator: :func:`release` and :func:`retain` work without knowing any range.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from .._light import Literal
from ..errors import (
    CNIError,
    InvalidConfigError,
    InvalidEnvironmentError,
    PluginNotAvailableError,
    TryAgainLaterError,
)
from ..spec.addresses import IPAddress
from ..spec.result import IPConfig
from .ranges import Pool, Range, RangeSet, check_range_sets, pools
from .store import LOCK_TIMEOUT, Lease, Owner, Store, Transaction, View, in_order

OnDuplicate = Literal["error", "return"]
"""Answer to a second request of an attachment: an error, or the addresses it holds."""


class PoolExhaustedError(TryAgainLaterError):
    """A range set has no free address.

    Attributes:
        index: Number of the range set.
    """

    index = 0


class Allocator(ABC):
    """Policy by which attachments get addresses. Subclass it for one of your own."""

    @abstractmethod
    def allocate(self, owner: Owner, requested: Sequence[IPAddress] = ()) -> tuple[IPConfig, ...]:
        """Give an attachment its addresses: all of them, or none.

        Args:
            owner: The attachment.
            requested: Addresses it must get among others, in the order of preference.

        Returns:
            One address of each range set, in their order.

        Raises:
            InvalidEnvironmentError: (4) The attachment has addresses already.
            InvalidConfigError: (7) A requested address can never be handed out.
            TryAgainLaterError: (11) There is no free address, or a requested one is taken.
        """

    @abstractmethod
    def release(self, owner: Owner) -> tuple[Lease, ...]:
        """Delete the leases of an attachment, and return them. It is fine when there are none.

        Raises:
            TryAgainLaterError: (11) Other processes kept the store busy until the timeout.
            IOFailureError: (5) The store cannot be read or written.
        """

    @abstractmethod
    def find(self, owner: Owner) -> tuple[IPAddress, ...]:
        """Return the addresses of an attachment, in ascending order, IPv4 first.

        Raises:
            TryAgainLaterError: (11) Other processes kept the store busy until the timeout.
            IOFailureError: (5) The store cannot be read.
        """

    @abstractmethod
    def retain(self, owners: Collection[Owner]) -> tuple[Lease, ...]:
        """Delete the leases that none of these owners holds, and return them.

        Raises:
            TryAgainLaterError: (11) Other processes kept the store busy until the timeout.
            IOFailureError: (5) The store cannot be read or written.
        """

    @abstractmethod
    def check_capacity(self) -> None:
        """Check that a new attachment would get its addresses.

        Raises:
            PluginNotAvailableError: (50) A pool is used up; the message says which.
        """


class RoundRobin(Allocator):
    """Policy of the reference: from each range set, the next free address after the one handed out last.

    So a released address is not handed out again at once.

    Args:
        store: The store of the leases.
        range_sets: The addresses to hand out.
        on_duplicate: ``"error"`` refuses an ADD of an attachment that has addresses, as the reference does;
            ``"return"`` gives it the same addresses again.
        timeout: Seconds to wait for the store.

    Raises:
        InvalidConfigError: (7) There is no range set, or two overlap.
    """

    def __init__(
        self,
        store: Store,
        range_sets: Sequence[RangeSet],
        *,
        on_duplicate: OnDuplicate = "error",
        timeout: float = LOCK_TIMEOUT,
    ) -> None:
        check_range_sets(range_sets)
        self._store = store
        self._pools = pools(range_sets)
        self._on_duplicate = on_duplicate
        self._timeout = timeout

    def allocate(
        self, owner: Owner, requested: Sequence[IPAddress] = (), *, new: list[Lease] | None = None
    ) -> tuple[IPConfig, ...]:
        """See :class:`Allocator`. Of several requested addresses in one range set, only one can be had.

        Args:
            owner: The attachment.
            requested: Addresses it must get among others.
            new: A list that receives the leases this call makes, before it makes them. The caller registers
                :func:`release_exactly` with the same list for undo first; so a signal at any moment finds no lease that
                undo does not know of.
        """
        choice = self._assign(tuple(dict.fromkeys(requested)))
        noted: list[Lease] = [] if new is None else new

        def change(transaction: Transaction) -> tuple[IPConfig, ...]:
            noted.clear()  # it may run again
            held = find_held(transaction, owner)
            configs = tuple(
                self._reserve_one(transaction, owner, index, held, choice.get(index))
                for index in range(len(self._pools))
            )
            noted.extend(Lease(ip.address.ip, owner) for ip in configs if ip.address.ip not in held)
            return configs

        try:
            return self._store.update(change, timeout=self._timeout)
        except Exception:
            noted.clear()  # the store has made none, or has taken them back
            raise

    def _assign(self, requested: tuple[IPAddress, ...]) -> dict[int, IPAddress]:
        """Return the requested address for each range set, by the number of the set."""
        choice: dict[int, IPAddress] = {}
        left = list(requested)
        for index, pool in enumerate(self._pools):
            address = next((each for each in left if pool.range_set.holds(each)), None)
            if address is None:
                continue
            part = pool.range_set.find(address)
            if part is not None and not pool.allows(part, address):
                raise _reserved(pool, part, address, index)
            choice[index] = address
            left.remove(address)
        if left:
            raise InvalidConfigError(
                f"failed to allocate all requested IPs: {' '.join(map(str, left))}",
                details="each must lie in a range set of its own; there are "
                + "; ".join(str(pool.range_set) for pool in self._pools),
            )
        return choice

    def _reserve_one(
        self,
        transaction: Transaction,
        owner: Owner,
        index: int,
        held: Sequence[IPAddress],
        wanted: IPAddress | None,
    ) -> IPConfig:
        """Find the address of one range set, and ask for it."""
        pool = self._pools[index]
        prefix = f"failed to allocate for range {index}: "
        mine = next((address for address in held if pool.range_set.holds(address)), None)
        if mine is not None:
            if self._on_duplicate == "error" or wanted not in (None, mine):
                raise _duplicate(prefix, owner, mine, wanted, self._on_duplicate)
            return _config(pool, mine)
        if wanted is not None:
            holder = transaction.find_owner(wanted)
            if holder is not None:
                raise TryAgainLaterError(
                    f"{prefix}requested IP address {wanted} is not available in range set {pool.range_set}",
                    details=f"{wanted} is held by {holder}",
                )
            address = wanted
        else:
            free = _find_free(transaction, pool, index)
            if free is None:
                exhausted = PoolExhaustedError(
                    f"{prefix}no IP addresses available in range set: {pool.range_set}",
                    details=_exhausted(pool),
                )
                exhausted.index = index
                raise exhausted
            address = free
        transaction.reserve(address, owner)
        transaction.set_cursor(index, address)
        return _config(pool, address)

    def release(self, owner: Owner) -> tuple[Lease, ...]:
        """See :class:`Allocator`."""
        return release(self._store, owner, timeout=self._timeout)

    def find(self, owner: Owner) -> tuple[IPAddress, ...]:
        """See :class:`Allocator`."""
        return self._store.read(lambda view: find_held(view, owner), timeout=self._timeout)

    def retain(self, owners: Collection[Owner]) -> tuple[Lease, ...]:
        """See :class:`Allocator`."""
        return retain(self._store, owners, timeout=self._timeout)

    def check_capacity(self) -> None:
        """See :class:`Allocator`."""

        def full(view: View) -> Pool | None:
            return next((pool for at, pool in enumerate(self._pools) if _find_free(view, pool, at) is None), None)

        pool = self._store.read(full, timeout=self._timeout)
        if pool is not None:
            raise PluginNotAvailableError(
                f"no IP addresses available in range set: {pool.range_set}",
                details=_exhausted(pool),
            )


def _exhausted(pool: Pool) -> str:
    """Say what to do about a pool that has no free address."""
    size = pool.size()
    if size == 0:
        return f"{pool.range_set.path} has no address beside network, broadcast and gateway: enlarge it"
    held = "its only address is held" if size == 1 else f"all {size} are held"
    return f"{held}; delete attachments, run GC, or enlarge {pool.range_set.path}"


def find_held(view: View, owner: Owner) -> tuple[IPAddress, ...]:
    """Return the addresses of an owner, including those of old records that name only its container."""
    return in_order({*view.find_addresses(owner), *view.find_addresses(owner.without_ifname)})


def release(store: Store, owner: Owner, *, timeout: float = LOCK_TIMEOUT) -> tuple[Lease, ...]:
    """Delete the leases of an owner and return them. No range is needed: DEL works with any configuration.

    If the owner has none, delete old records that name only its container, as the reference does. They are not
    deleted otherwise: they may be those of the container's other interfaces.

    Args:
        store: The store.
        owner: Container and interface.
        timeout: Seconds to wait for other processes.

    Raises:
        TryAgainLaterError: (11) Other processes kept the store busy until the timeout.
        IOFailureError: (5) The store cannot be read or written.
    """

    def change(transaction: Transaction) -> tuple[Lease, ...]:
        for holder in (owner, owner.without_ifname):
            leases = tuple(Lease(address, holder) for address in transaction.find_addresses(holder))
            for lease in leases:
                transaction.release(lease)
            if leases:
                return leases
        return ()

    return store.update(change, timeout=timeout)


def release_exactly(store: Store, leases: Sequence[Lease], *, timeout: float = LOCK_TIMEOUT) -> None:
    """Delete those of these leases that still have their owner. It is the inverse of an allocation.

    Args:
        store: The store.
        leases: The leases; without any, nothing is done.
        timeout: Seconds to wait for other processes.

    Raises:
        TryAgainLaterError: (11) Other processes kept the store busy until the timeout.
        IOFailureError: (5) The store cannot be read or written.
    """
    if not leases:
        return

    def change(transaction: Transaction) -> None:
        for lease in leases:
            if transaction.find_owner(lease.address) == lease.owner:
                transaction.release(lease)

    store.update(change, timeout=timeout)


def retain(store: Store, owners: Collection[Owner], *, timeout: float = LOCK_TIMEOUT) -> tuple[Lease, ...]:
    """Delete the leases that none of these owners holds, and return them: see :meth:`View.find_stale`.

    Args:
        store: The store.
        owners: The owners that keep what they have.
        timeout: Seconds to wait for other processes.

    Raises:
        TryAgainLaterError: (11) Other processes kept the store busy until the timeout.
        IOFailureError: (5) The store cannot be read or written.
    """

    def change(transaction: Transaction) -> tuple[Lease, ...]:
        stale = tuple(transaction.find_stale(owners))
        for lease in stale:
            transaction.release(lease)
        return stale

    return store.update(change, timeout=timeout)


def _find_free(view: View, pool: Pool, index: int) -> IPAddress | None:
    make: Callable[[int], IPAddress] = IPv4Address if pool.range_set.version == 4 else IPv6Address
    for span in pool.from_cursor(view.find_cursor(index)):
        address = view.find_free(make(span.first), make(span.last))
        if address is not None:
            return address
    return None


def _config(pool: Pool, address: IPAddress) -> IPConfig:
    part = pool.range_set.find(address)
    assert part is not None  # the caller looked into this set
    length = part.subnet.prefixlen
    if isinstance(address, IPv4Address):
        return IPConfig(address=IPv4Interface((int(address), length)), gateway=part.gateway)
    return IPConfig(address=IPv6Interface((int(address), length)), gateway=part.gateway)


def _reserved(pool: Pool, part: Range, address: IPAddress, index: int) -> CNIError:
    prefix = f"failed to allocate for range {index}: "
    if address == part.gateway:
        return InvalidConfigError(f"{prefix}requested ip {address} is subnet's gateway", details=pool.range_set.path)
    if int(address) in pool.forbidden:
        return InvalidConfigError(
            f"{prefix}requested ip {address} is the gateway of another range", details=pool.range_set.path
        )
    return InvalidConfigError(
        f"{prefix}requested ip {address} is excluded", details=f"{pool.range_set.path} excludes it"
    )


def _duplicate(prefix: str, owner: Owner, mine: IPAddress, wanted: IPAddress | None, policy: OnDuplicate) -> CNIError:
    if policy == "error":
        return InvalidEnvironmentError(
            f"{prefix}{mine} has been allocated to {owner.container_id}, duplicate allocation is not allowed",
            details=f"CNI_CONTAINERID {owner.container_id} with CNI_IFNAME {owner.ifname} needs a DEL first",
        )
    return InvalidEnvironmentError(
        f"{prefix}{mine} has been allocated to {owner.container_id}, it cannot get {wanted} besides",
        details="delete the attachment first, or do not request another address",
    )
