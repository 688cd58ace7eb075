"""Allocate addresses: ranges, allocators, and stores of leases."""

from .._lazy import exports
from .._light import TYPE_CHECKING

if TYPE_CHECKING:
    from .allocator import Allocator as Allocator, RoundRobin as RoundRobin
    from .filestore import FileStore as FileStore
    from .memory import MemoryStore as MemoryStore
    from .ranges import Range as Range, RangeSet as RangeSet
    from .store import (
        Changes as Changes,
        Conflict as Conflict,
        Lease as Lease,
        Owner as Owner,
        Store as Store,
        Transaction as Transaction,
        View as View,
    )
    from .table import (
        Examination as Examination,
        Finding as Finding,
        LeaseRecord as LeaseRecord,
        LeaseTable as LeaseTable,
    )

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".allocator": "Allocator RoundRobin",
        ".filestore": "FileStore",
        ".memory": "MemoryStore",
        ".ranges": "Range RangeSet",
        ".store": "Changes Conflict Lease Owner Store Transaction View",
        ".table": "Examination Finding LeaseRecord LeaseTable",
    },
)
