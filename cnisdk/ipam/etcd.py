"""Leases of one network in etcd, for all nodes of a cluster: compare and swap, without a lock that a process holds.

A view shows one revision: its first read takes the newest, the others read the same one. A commit is one
transaction. etcd carries it out only if none of the keys it depends on has changed since that revision. So a process
that is killed at any moment leaves all of a commit or nothing, and no process has to be elected.

Keys, below ``<prefix><network>/``:

``lease/4/0a000005``
    The owner of an address, by IP version and hexadecimal number, so that keys sort as addresses do.
``owner/<container id>/<interface>``
    The addresses of an owner. Two ADDs of one owner change this key, so that one of them fails.
``cursor/<number>``
    The address that a range set handed out last. Nothing depends on it.

A free address is found by counting: where ``n`` addresses have fewer than ``n`` keys, one is free. Doubling the step,
and then halving it, finds it in a few requests however many are held.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import urandom

from .._light import Any, NamedTuple
from ..errors import IOFailureError, TryAgainLaterError
from ..spec.addresses import IPAddress
from ._keys import address_of_key, key_of_address
from .etcdclient import CompactedError, Compare, Entry, EtcdClient, KeyRange, broken_value, end_of
from .store import Changes, Conflict, Lease, Owner, Store, View, in_order

# How many keys to read at once.
_PAGE = 1000

# A transaction of etcd has at most 128 operations (--max-txn-ops). Each lease takes two.
_OPERATIONS = 120


class _Record(NamedTuple):
    """Addresses of an owner, and the revision of their last change."""

    addresses: tuple[IPAddress, ...]
    revision: int


class EtcdView(View):
    """The leases at one revision, read as they are asked for.

    Attributes:
        revision: The revision; 0 before the first read.
    """

    def __init__(self, client: EtcdClient, root: str, deadline: float) -> None:
        self.client = client
        self.root = root
        self.deadline = deadline
        self.revision = 0
        self._records: dict[Owner, _Record] = {}

    def find_addresses(self, owner: Owner) -> tuple[IPAddress, ...]:
        """See :class:`View`."""
        return self.record(owner).addresses

    def find_owner(self, address: IPAddress) -> Owner | None:
        """See :class:`View`."""
        entries = self._look(self.lease_key(address))
        return _owner_of(entries[0]) if entries else None

    def find_free(self, first: IPAddress, last: IPAddress) -> IPAddress | None:
        """See :class:`View`."""
        start, size, step = int(first), int(last) - int(first) + 1, 1
        make = type(first)
        while self._held(make(start), min(step, size)) == min(step, size):
            start, size = start + min(step, size), size - min(step, size)
            if size <= 0:
                return None
            step *= 2
        step = min(step, size)
        while step > 1:  # one of `step` addresses from `start` on is free
            half = step // 2
            if self._held(make(start), half) == half:
                start, step = start + half, step - half
            else:
                step = half
        return make(start)

    def find_cursor(self, index: int) -> IPAddress | None:
        """See :class:`View`."""
        entries = self._look(self.cursor_key(index))
        return address_of_key(entries[0].value.decode()) if entries else None

    def leases(self) -> Iterator[Lease]:
        """See :class:`View`."""
        first, end = f"{self.root}lease/", end_of(f"{self.root}lease/")
        while True:
            entries = self._look(first, end, limit=_PAGE)
            for entry in entries:
                yield Lease(address_of_key(entry.key.removeprefix(f"{self.root}lease/")), _owner_of(entry))
            if len(entries) < _PAGE:
                return
            first = entries[-1].key + "\0"

    def record(self, owner: Owner) -> _Record:
        """Return what an owner holds."""
        if owner not in self._records:
            entries = self._look(self.owner_key(owner))
            addresses = [address_of_key(text) for entry in entries for text in _load(entry)["addresses"]]
            self._records[owner] = _Record(in_order(addresses), entries[0].revision if entries else 0)
        return self._records[owner]

    def lease_key(self, address: IPAddress) -> str:
        """Return the key of an address."""
        return f"{self.root}lease/{key_of_address(address)}"

    def owner_key(self, owner: Owner) -> str:
        """Return the key of an owner. The grammar of names has no slash."""
        return f"{self.root}owner/{owner.container_id}/{owner.ifname}"

    def cursor_key(self, index: int) -> str:
        """Return the key of a cursor."""
        return f"{self.root}cursor/{index}"

    def _held(self, first: IPAddress, number: int) -> int:
        """Count the addresses that are held, of `number` from the first on."""
        last = type(first)(int(first) + number - 1)
        return self._ask(self.lease_key(first), self.lease_key(last) + "\0", count_only=True).total

    def _look(self, first: str, end: str = "", *, limit: int = 0) -> tuple[Entry, ...]:
        return self._ask(first, end, limit=limit).entries

    def _ask(self, first: str, end: str = "", **options: Any) -> KeyRange:
        look = self.client.look(first, end, revision=self.revision, deadline=self.deadline, **options)
        self.revision = look.revision
        return look


class EtcdStore(Store):
    """Leases of one network in etcd. Each thread needs a store of its own.

    Args:
        client: The connection; other stores of the same thread may share it.
        network: Name of the network.
        prefix: Beginning of all keys, with a slash at the end.
    """

    def __init__(self, client: EtcdClient, network: str, prefix: str = "/cnisdk/") -> None:
        self._client = client
        self._root = f"{prefix}{network}/"

    @contextmanager
    def view(self, deadline: float, *, write: bool) -> Iterator[View]:
        """See :class:`Store`."""
        try:
            yield EtcdView(self._client, self._root, deadline)
        except CompactedError as exc:
            raise Conflict(str(exc)) from exc
        except IOFailureError as exc:
            if time.monotonic() < deadline:
                raise
            raise TryAgainLaterError(exc.msg, details=exc.details) from exc

    def commit(self, view: View, changes: Changes) -> None:
        """See :class:`Store`. More than 60 leases at once, which only GC releases, go in several transactions."""
        assert isinstance(view, EtcdView)
        for owner, addresses in changes.read.items():
            if frozenset(view.record(owner).addresses) != addresses:
                raise Conflict(f"{owner} holds other addresses by now")
        pending: dict[Owner, tuple[list[IPAddress], list[IPAddress]]] = {}
        for lease in changes.reserve:
            pending.setdefault(lease.owner, ([], []))[0].append(lease.address)
        for lease in changes.release:
            if lease.address not in view.record(lease.owner).addresses:
                raise Conflict(f"{lease.address} is not held by {lease.owner}")
            pending.setdefault(lease.owner, ([], []))[1].append(lease.address)
        batch = _Batch(view, changes)
        for owner, (reserved, released) in pending.items():
            if not changes.reserve and batch.size + len(released) + 1 > _OPERATIONS:
                batch.send()
                batch = _Batch(view, changes)
            batch.add(owner, reserved, released)
        batch.send()


class _Batch:
    """One transaction in the making."""

    def __init__(self, view: EtcdView, changes: Changes) -> None:
        self._view = view
        self._token = urandom(8).hex()
        self._compares = (
            {key: Compare(key, view.record(owner).revision) for owner in changes.read if (key := view.owner_key(owner))}
            if changes.reserve
            else {}
        )
        self._puts = {
            view.cursor_key(index): key_of_address(address).encode() for index, address in changes.cursors.items()
        }
        self._deletes: list[str] = []
        self._proof: tuple[str, bytes] | None = None

    @property
    def size(self) -> int:
        """Number of operations."""
        return len(self._puts) + len(self._deletes)

    def add(self, owner: Owner, reserved: list[IPAddress], released: list[IPAddress]) -> None:
        """Change the addresses of an owner."""
        view, key = self._view, self._view.owner_key(owner)
        record = view.record(owner)
        self._compares[key] = Compare(key, record.revision)
        for address in reserved:
            lease = view.lease_key(address)
            self._compares[lease] = Compare(lease, 0)
            self._puts[lease] = self._dump(containerID=owner.container_id, ifname=owner.ifname)
        self._deletes += map(view.lease_key, released)
        left = in_order([*(each for each in record.addresses if each not in released), *reserved])
        if left:
            self._puts[key] = self._dump(addresses=[key_of_address(each) for each in left])
            self._proof = key, self._puts[key]
        else:
            self._deletes.append(key)

    def send(self) -> None:
        """Carry it out.

        Raises:
            Conflict: Something has changed since the view's revision; nothing was done.
            IOFailureError: (5) Etcd does not answer.
        """
        view = self._view
        outcome = view.client.transact([*self._compares.values()], self._puts, self._deletes, deadline=view.deadline)
        if outcome.done:
            return
        if outcome.doubtful and self._proof is not None:
            key, value = self._proof  # no other process writes the token in it
            if any(entry.value == value for entry in view.client.look(key, deadline=view.deadline).entries):
                return
        raise Conflict("another node has changed what was read")

    def _dump(self, **values: Any) -> bytes:
        return json.dumps({**values, "by": self._token}, separators=(",", ":")).encode()


def _load(entry: Entry) -> Any:
    try:
        return json.loads(entry.value)
    except ValueError as exc:
        raise broken_value(entry) from exc


def _owner_of(entry: Entry) -> Owner:
    value = _load(entry)
    return Owner(str(value["containerID"]), str(value["ifname"]))
