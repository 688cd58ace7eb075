"""Addresses that a cluster keeps for a pod, wherever it runs: an interface of it gets the same ones again.

A kept address is lent to the node on which the pod is, and to no other. When the pod goes, the loan ends and the
address stays kept. The key of the pod says which addresses these are; the keys of their blocks say that they are kept,
so that no node lends them to another pod. Both change in one transaction, all addresses of a pod in the same one.

No timer ends this: a pod that comes back after a year finds its addresses. :meth:`StickyAddresses.forget` does, when
an operator asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .._light import NamedTuple
from ..classes import evolve
from ..errors import TryAgainLaterError
from ..spec import _json
from ..spec.addresses import IPAddress
from ._keys import address_of_key, key_of_address
from .blocktable import ATTEMPTS, Block, BlockTable
from .etcdclient import Compare, Entry, broken_value, end_of
from .store import in_order


class KeptAddresses(NamedTuple):
    """Addresses that are kept for a pod.

    Attributes:
        addresses: The addresses, in ascending order, IPv4 first.
        revision: Revision of the pod's key; 0 if it has none.
    """

    addresses: tuple[IPAddress, ...] = ()
    revision: int = 0


class StickyAddresses:
    """The kept addresses of one network. A pod is named as ``namespace/name/interface``.

    Args:
        table: The keys in etcd.
    """

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._root = f"{table.root}pod/"

    def look_up(self, pod: str) -> KeptAddresses:
        """Return the addresses that are kept for a pod.

        Raises:
            IOFailureError: (5) Etcd does not answer.
        """
        entries = self._table.look(f"{self._root}{pod}")
        return KeptAddresses(_addresses_of(entries[0]), entries[0].revision) if entries else KeptAddresses()

    def list_pods(self) -> dict[str, tuple[IPAddress, ...]]:
        """Return the kept addresses of all pods."""
        entries = self._table.look(self._root, end_of(self._root))
        return {entry.key.removeprefix(self._root): _addresses_of(entry) for entry in entries}

    def lend(self, pod: str, addresses: Iterable[IPAddress], seen: KeptAddresses) -> bool:
        """Lend addresses to this node for a pod, all or none, and keep them for the pod.

        Those that this node hands out without asking must have been set aside before: :meth:`.Holdings.set_aside`.

        Args:
            pod: The pod.
            addresses: The addresses.
            seen: The addresses that were kept for the pod when these were chosen.

        Returns:
            False if one is another's by now, or others are kept for the pod by now: choose again.

        Raises:
            TryAgainLaterError: (11) One is lent to another node, on which the pod is or was.
            IOFailureError: (5) Etcd does not answer.
        """
        table, wanted = self._table, [*addresses]
        for attempt in range(ATTEMPTS):
            now = self.look_up(pod)
            before = {first: table.get(first) for first in {table.start_of(each): None for each in wanted}}
            after = dict(before)
            for address in wanted:
                first = table.start_of(address)
                block = after[first]
                if block.kept.get(address) == pod and block.lent.get(address) not in (None, table.node):
                    raise TryAgainLaterError(
                        f"{address}, which is kept for pod {pod}, is still in use on node {block.lent[address]}",
                        details="delete the pod there first; if that node is gone for good, run "
                        f"`cnisdk cluster release-node {block.lent[address]}`",
                    )
                if not (block.lent.get(address) == table.node and block.kept.get(address) == pod):
                    own = block.node == table.node and address not in block.lent and address not in block.kept
                    if not own and not block.can_lend(address, pod):
                        return False
                    lent, kept = {**block.lent, address: table.node}, {**block.kept, address: pod}
                    after[first] = evolve(block, lent=lent, kept=kept)
            changes = [(old, after[first]) for first, old in before.items() if old != after[first]]
            if not changes:
                return True  # an earlier attempt was carried out, and its answer got lost
            if now.revision != seen.revision:
                return False
            key = f"{self._root}{pod}"
            puts = {key: _dump({*now.addresses, *wanted})} if {*wanted} - {*now.addresses} else {}
            if table.swap(changes, [Compare(key, now.revision)], puts).done:
                return True
            table.pause(attempt)
        raise table.busy(f"the addresses of pod {pod}")

    def forget(self, pod: str) -> tuple[IPAddress, ...]:
        """Keep nothing for a pod any more, and return the addresses that were kept.

        Raises:
            TryAgainLaterError: (11) One is lent to a node, on which the pod is.
            IOFailureError: (5) Etcd does not answer.
        """
        table = self._table
        forgotten: tuple[IPAddress, ...] = ()
        for attempt in range(ATTEMPTS):
            known, revision = self.look_up(pod)
            if not revision:
                return forgotten
            forgotten = known  # also when the answer gets lost
            blocks = [table.get(first) for first in {table.start_of(each): None for each in known}]
            for block in blocks:
                for address in known:
                    if block.kept.get(address) == pod and address in block.lent:
                        raise TryAgainLaterError(
                            f"{address}, which is kept for pod {pod}, is in use on node {block.lent[address]}",
                            details="delete the pod first",
                        )
            changes = [(block, _without(block, pod)) for block in blocks]
            key = f"{self._root}{pod}"
            if table.swap(changes, [Compare(key, revision)], deletes=[key]).done:
                return forgotten
            table.pause(attempt)
        raise table.busy(f"the addresses of pod {pod}")

    def mend(self, pod: str) -> None:
        """Let the key of a pod name the addresses that blocks keep for it, and no others."""
        for attempt in range(ATTEMPTS):
            known, revision = self.look_up(pod)
            kept = in_order(each for block in self._table.list_blocks() for each, by in block.kept.items() if by == pod)
            if kept == known:
                return
            key = f"{self._root}{pod}"
            puts, deletes = ({key: _dump(kept)}, []) if kept else ({}, [key])
            if self._table.swap([], [Compare(key, revision)], puts, deletes).done:
                return
            self._table.pause(attempt)
        raise self._table.busy(f"the addresses of pod {pod}")


def _without(block: Block, pod: str) -> Block:
    return evolve(block, kept={address: each for address, each in block.kept.items() if each != pod})


def _addresses_of(entry: Entry) -> tuple[IPAddress, ...]:
    try:
        return in_order(map(address_of_key, _json.read(entry.value.decode())["addresses"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise broken_value(entry) from exc


def _dump(addresses: Iterable[IPAddress]) -> bytes:
    return _json.write({"addresses": [key_of_address(each) for each in in_order(addresses)]}).encode()
