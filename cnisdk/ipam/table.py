"""The leases of an IPAM plugin, as ``cnisdk leases``, ``cnisdk gc`` and ``cnisdk fsck`` see them.

An IPAM plugin hands out a :class:`LeaseTable` for each network (:meth:`cnisdk.Plugin.lease_tables`), wherever it keeps
its leases: files, a database, a service. The commands judge which owners are alive (:mod:`cnisdk.runtime.liveness`),
the table only reads and deletes. Between a look and a deletion, an attachment may end and another one may get its
address; so a table deletes a lease only while it is the very one that was read, which :attr:`LeaseRecord.stamp` tells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence

from .._light import NamedTuple
from ..spec.addresses import IPAddress
from ._records import BootOf
from .ranges import Pool
from .store import LOCK_TIMEOUT, NOBODY, Owner


class LeaseRecord(NamedTuple):
    """A lease, and what is noted beside it.

    Attributes:
        address: The address.
        owner: The container and interface that hold it; :data:`NOBODY` when the record names none.
        age: Seconds since the lease was made. 0 when that is not known: gc then keeps it, as too young to be judged.
            Below 0 if the clock has been set back since.
        stamp: Tells this lease from a later one of the same address and owner, such as the time it was made at or the
            number of its row.
        boot: The boot of this machine in which it was made. Leave it ``"unknown"`` unless the record proves it.
        written: When the record was written or changed last, in seconds since the epoch; 0 when that is not known.
    """

    address: IPAddress
    owner: Owner
    age: float
    stamp: Hashable
    boot: BootOf = "unknown"
    written: float = 0.0


class Finding(NamedTuple):
    """A fault in a table of leases.

    Attributes:
        path: The file, directory or record.
        problem: A phrase that goes on after `path`: ``"is empty"``.
        repair: The table's own name for the repair; empty when no repair is certain to be right.
        owner: The owner of a lease that is dead on its own evidence. :data:`NOBODY` for all other findings.
        harmless: If true, it is worth a line, but nothing is broken.
    """

    path: str
    problem: str
    repair: str = ""
    owner: Owner = NOBODY
    harmless: bool = False


class Examination(NamedTuple):
    """The contents of a table at one moment.

    Attributes:
        leases: The leases, in ascending order, IPv4 first.
        findings: The faults in the table.
        exclusive: If true, no other machine can write into this table. Otherwise a lease may be another machine's, and
            gc drops none: this machine does not see whether its container lives.
        reclaims: If true, a lease from an earlier boot counts as dead.
    """

    leases: tuple[LeaseRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
    exclusive: bool = False
    reclaims: bool = False


class LeaseTable(ABC):
    """The leases of one network.

    Args:
        network: Name of the network.
        place: Path or address of the table, for people.
        pools: The addresses there are to hand out, see :func:`cnisdk.ipam.ranges.pools`; empty when that is not known.
    """

    def __init__(self, network: str, place: str, pools: Sequence[Pool] = ()) -> None:
        self.network = network
        self.place = place
        self.pools = tuple(pools)

    @abstractmethod
    def examine(self, *, timeout: float = LOCK_TIMEOUT) -> Examination:
        """Read all leases, and change nothing.

        Args:
            timeout: How long to wait for other processes, in seconds.

        Raises:
            TryAgainLaterError: (11) Other processes kept the table busy until the timeout.
            IOFailureError: (5) It cannot be read.
        """

    @abstractmethod
    def drop(self, leases: Iterable[LeaseRecord], *, timeout: float = LOCK_TIMEOUT) -> tuple[LeaseRecord, ...]:
        """Delete leases whose owner and stamp are still those that were read; delete nothing else.

        Args:
            leases: The leases, as they were read.
            timeout: Seconds to wait for other processes.

        Returns:
            The leases that were deleted.

        Raises:
            TryAgainLaterError: (11) Other processes kept the table busy until the timeout.
            IOFailureError: (5) A lease cannot be deleted.
        """

    def find(self, owner: Owner, *, timeout: float = LOCK_TIMEOUT) -> tuple[LeaseRecord, ...]:
        """Read the leases of one owner. Override it where that takes less than to read all.

        Args:
            owner: Container and interface.
            timeout: Seconds to wait for other processes.

        Raises:
            TryAgainLaterError: (11) Other processes kept the table busy until the timeout.
            IOFailureError: (5) It cannot be read.
        """
        return tuple(each for each in self.examine(timeout=timeout).leases if each.owner == owner)

    def repair(self, findings: Iterable[Finding], *, timeout: float = LOCK_TIMEOUT) -> tuple[Finding, ...]:
        """Carry out the repairs of findings, as far as things still are as they were found.

        Unless overridden, nothing is repaired.

        Args:
            findings: The findings, from :meth:`examine`.
            timeout: Seconds to wait for other processes.

        Returns:
            The findings that were repaired.

        Raises:
            TryAgainLaterError: (11) Other processes kept the table busy until the timeout.
            IOFailureError: (5) A repair failed.
        """
        return ()
