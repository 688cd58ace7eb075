"""The blocks of a cluster's addresses, as keys in etcd, and transactions on them.

The addresses of a network are divided into blocks: aligned subnets, such as each /26. Keys, below
``<prefix><network>/``:

``block/4/0a000040``
    ``{"length": 26, "node": "n1", "local": 32, "lent": {"4/0a00007f": "n2"}, "kept": {"4/0a00007f": "ns/w-0/eth0"}}``.
    The node that made the key owns the block. It hands out the first ``local`` addresses without asking, but for those
    that are lent or kept. The rest is the cluster's: an address of it can be lent to any node. One that is kept for a
    pod is lent only to the node on which this pod is. A block without a node has only addresses that are lent or kept.
``node/n1``
    The machine that has the name of a node.
``pod/ns/w-0/eth0``
    The addresses that are kept for an interface of a pod (:mod:`.sticky`).

So an address belongs to one node at any moment. Each change is one transaction, which compares the revisions of all
blocks that it changes, and that of the node's own key. An operator who releases a node deletes that key
(``cnisdk cluster release-node``); whatever the node still sends after that changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from os import urandom

from .._light import Any, NamedTuple
from ..classes import field, frozen
from ..errors import InvalidConfigError, IOFailureError, TryAgainLaterError
from ..spec import _json
from ..spec.addresses import IPAddress
from ..spec.names import short_hash
from ._keys import address_of_key, key_of_address
from ._records import current_boot
from .etcdclient import Compare, Entry, EtcdClient, TransactionOutcome, broken_value, end_of
from .ranges import Span

BLOCK_LENGTHS: Mapping[int, int] = {4: 26, 6: 122}
"""Prefix length of a block, by IP version."""

ATTEMPTS = 12
"""Attempts at a change while other nodes change the same keys."""

# How many blocks to read at once.
_PAGE = 200

# Seconds: the longest pause before a change is tried again.
_PAUSE = 0.1


class NotMemberError(TryAgainLaterError):
    """This node was released from the cluster, or has joined again, perhaps on another machine with its name."""


@frozen(kw_only=True)
class Block:
    """A block of addresses.

    Attributes:
        first: Its first address.
        length: Its prefix length.
        node: Its owner; empty if it has none, and only addresses are lent or kept.
        local: How many addresses, from the first on, the owner hands out without asking.
        lent: Addresses that are lent, each with the node that has it.
        kept: Addresses that are kept for a pod, lent or not, each with the interface of the pod.
        revision: Revision of its key; 0 if there is none yet.
    """

    first: IPAddress
    length: int
    node: str = ""
    local: int = 0
    lent: Mapping[IPAddress, str] = field(factory=dict)
    kept: Mapping[IPAddress, str] = field(factory=dict)
    revision: int = 0

    @property
    def size(self) -> int:
        """Number of its addresses."""
        return 1 << (self.first.max_prefixlen - self.length)

    @property
    def span(self) -> Span:
        """All its addresses."""
        return Span(int(self.first), int(self.first) + self.size - 1)

    @property
    def spans(self) -> Iterator[Span]:
        """The addresses that its owner hands out without asking, in ascending order."""
        first, end = int(self.first), int(self.first) + self.local
        for hole in sorted({int(each) for each in (*self.lent, *self.kept) if int(each) < end}):
            if first < hole:
                yield Span(first, hole - 1)
            first = hole + 1
        if first < end:
            yield Span(first, end - 1)

    @property
    def is_empty(self) -> bool:
        """True if no node and no pod has any of its addresses, so that it needs no key."""
        return not (self.node or self.lent or self.kept)

    def holds(self, address: IPAddress) -> bool:
        """Return True if an address lies in it."""
        return address.version == self.first.version and 0 <= int(address) - int(self.first) < self.size

    def can_lend(self, address: IPAddress, pod: str = "") -> bool:
        """Return True if an address of it is neither its owner's, nor lent, nor kept for another pod.

        Args:
            address: An address of the block.
            pod: Interface of the pod that asks (``NAMESPACE/NAME/IFNAME``); empty for none.
        """
        if address in self.lent:
            return False
        if address in self.kept:
            return bool(pod) and self.kept[address] == pod
        return not self.node or int(address) - int(self.first) >= self.local

    def find_lendable(self, spans: Iterable[Span]) -> IPAddress | None:
        """Return the highest address of these spans that can be lent; None if there is none."""
        for span in spans:
            low, high = max(span.first, int(self.first)), min(span.last, self.span.last)
            for number in range(high, low - 1, -1):
                address = type(self.first)(number)
                if self.can_lend(address):
                    return address
        return None

    def has_more(self, spans: Iterable[Span]) -> bool:
        """Return True if it has addresses of these spans that its owner does not hand out yet."""
        return any(each.last >= int(self.first) + self.local and each.first <= self.span.last for each in spans)

    def list_local(self, spans: Iterable[Span]) -> Iterator[IPAddress]:
        """Yield the addresses of these spans that its owner hands out without asking."""
        for mine in self.spans:
            for span in spans:
                for number in range(max(span.first, mine.first), min(span.last, mine.last) + 1):
                    yield type(self.first)(number)

    def to_json(self) -> dict[str, Any]:
        """Return what is kept of it, in etcd and in a node's file."""
        value: dict[str, Any] = {"length": self.length, "node": self.node, "local": self.local}
        value["lent"] = {key_of_address(each): node for each, node in self.lent.items()}
        if self.kept:
            value["kept"] = {key_of_address(each): pod for each, pod in self.kept.items()}
        return value


def parse_block(first: IPAddress, value: Mapping[str, Any], revision: int = 0) -> Block:
    """Read what :meth:`Block.to_json` wrote.

    Raises:
        ValueError: It is no such value; also KeyError, TypeError, AttributeError.
    """
    return Block(
        first=first,
        length=int(value["length"]),
        node=str(value["node"]),
        local=int(value["local"]),
        lent={address_of_key(key): str(node) for key, node in value["lent"].items()},
        kept={address_of_key(key): str(pod) for key, pod in value.get("kept", {}).items()},
        revision=revision,
    )


class NodeKey(NamedTuple):
    """Key of a node that has joined.

    Attributes:
        holder: Mark of the machine and directory that have its name, see :func:`mark_of_holder`.
        revision: Revision of its key, which changes when the node joins again.
    """

    holder: str
    revision: int


class BlockTable:
    """The keys of one network.

    Args:
        client: The connection.
        network: Name of the network.
        node: Name of this node; empty for a command of an operator, which acts for no node.
        prefix: Beginning of all keys, with a slash at the end.
        lengths: Prefix length of a block, by IP version. All nodes need the same.

    Attributes:
        client: The connection.
        root: Beginning of the network's keys.
        node: Name of this node.
        lengths: Prefix length of a block, by IP version.
        member: Revision of this node's key when it joined, which all its changes compare; 0 not to compare it.
        deadline: Time of ``time.monotonic()`` at which to give up; None means after the client's timeout.
        before_change: Called with the first addresses of the blocks that a transaction is about to change.
    """

    def __init__(
        self,
        client: EtcdClient,
        network: str,
        node: str,
        *,
        prefix: str = "/cnisdk/",
        lengths: Mapping[int, int] = BLOCK_LENGTHS,
    ) -> None:
        self.client = client
        self.root = f"{prefix}{network}/"
        self.node = node
        self.lengths = lengths
        self.member = 0
        self.deadline: float | None = None
        self.before_change: Callable[[Collection[IPAddress]], object] | None = None
        self._agreed: Compare | None = None

    # --- reading ------------------------------------------------------------------------------------------------------

    def start_of(self, address: IPAddress) -> IPAddress:
        """Return the first address of the block that an address lies in."""
        bits = address.max_prefixlen - self.lengths[address.version]
        return type(address)(int(address) >> bits << bits)

    def key(self, address: IPAddress) -> str:
        """Return the key of the block that begins with an address."""
        return f"{self.root}block/{key_of_address(address)}"

    def get(self, first: IPAddress) -> Block:
        """Return the block that begins with an address; an empty one if it has no key.

        Raises:
            IOFailureError: (5) Etcd does not answer, or the value of the key is not valid.
        """
        entries = self.look(self.key(first))
        return self._parse(entries[0]) if entries else Block(first=first, length=self.lengths[first.version])

    def list_blocks(self, first: IPAddress | None = None, last: IPAddress | None = None) -> Iterator[Block]:
        """Yield the blocks from that of the first address to that of the last; without them, all.

        Args:
            first: Any address of the first block; None means from the beginning.
            last: First address of the last block; None means to the end.

        Raises:
            IOFailureError: (5) Etcd does not answer, or the value of a key is not valid.
        """
        start = f"{self.root}block/" if first is None else self.key(self.start_of(first))
        end = end_of(f"{self.root}block/") if last is None else self.key(last) + "\0"
        while True:
            entries = self.look(start, end, limit=_PAGE)
            yield from map(self._parse, entries)
            if len(entries) < _PAGE:
                return
            start = entries[-1].key + "\0"

    def list_nodes(self) -> dict[str, NodeKey]:
        """Return the keys of the nodes that have joined, by their names.

        Raises:
            IOFailureError: (5) Etcd does not answer, or the value of a key is not valid.
        """
        root = f"{self.root}node/"
        return {entry.key.removeprefix(root): _parse_node(entry) for entry in self.look(root, end_of(root))}

    def count_keys(self, first: IPAddress, last: IPAddress) -> int:
        """Count the blocks with a key, from one first address to another.

        Args:
            first: First address of the first block.
            last: First address of the last block.

        Raises:
            IOFailureError: (5) Etcd does not answer.
        """
        return self.client.look(self.key(first), self.key(last) + "\0", count_only=True, deadline=self.deadline).total

    def look(self, first: str, end: str = "", *, limit: int = 0) -> tuple[Entry, ...]:
        """Read a key, or all keys from `first` up to but without `end`.

        Args:
            first: The key.
            end: End of the range; empty for one key.
            limit: Keys to read at most; 0 means all.

        Raises:
            IOFailureError: (5) Etcd does not answer.
        """
        return self.client.look(first, end, limit=limit, deadline=self.deadline).entries

    def _parse(self, entry: Entry) -> Block:
        try:
            first = address_of_key(entry.key.removeprefix(f"{self.root}block/"))
            block = parse_block(first, _json.read(entry.value.decode()), entry.revision)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise broken_value(entry) from exc
        if block.length != self.lengths[first.version]:
            raise self._another_size(f"the block {first}/{block.length} in etcd", first.version)
        return block

    def _another_size(self, what: str, version: int) -> IOFailureError:
        return IOFailureError(
            f"{what} has another size than /{self.lengths[version]}",
            details="$.ipam.blockSize and blockSize6 must be the same on all nodes, and cannot be changed",
        )

    def _compare_lengths(self, entry: Entry) -> None:
        try:
            theirs = {version: _json.read(entry.value.decode())[str(version)] for version in self.lengths}
        except (ValueError, KeyError, TypeError) as exc:
            raise broken_value(entry) from exc
        for version, length in self.lengths.items():
            if theirs[version] != length:
                raise self._another_size(f"a block of IPv{version} in etcd", version)

    # --- changing -----------------------------------------------------------------------------------------------------

    def swap(
        self,
        changes: Iterable[tuple[Block, Block]],
        compares: Sequence[Compare] = (),
        puts: Mapping[str, bytes] | None = None,
        deletes: Sequence[str] = (),
    ) -> TransactionOutcome:
        """Replace blocks by other states of them in one transaction, if none has changed since it was read.

        Args:
            changes: Pairs: the block as it was read, and the block to write.
            compares: Further keys that must not have changed.
            puts: Further keys to write.
            deletes: Further keys to delete.

        Raises:
            NotMemberError: (11) This node is no member any more; nothing has changed.
            IOFailureError: (5) Etcd does not answer.
        """
        compares, puts, deletes, changes = [*compares], dict(puts or {}), [*deletes], [*changes]
        if self.before_change is not None:
            self.before_change([old.first for old, _ in changes])
        for old, new in changes:
            compares.append(Compare(self.key(old.first), old.revision))
            if new.is_empty:
                deletes.append(self.key(old.first))
            else:
                puts[self.key(old.first)] = _json.write(new.to_json()).encode()
        if any(old.revision == 0 for old, _ in changes):
            compares.append(self._agree_on_lengths())
        if self.member:
            compares.append(Compare(self._node_key(self.node), self.member))
        outcome = self.client.transact(compares, puts, deletes, deadline=self.deadline)
        if not outcome.done:
            self._agreed = None
            if self.member:
                self.check_member()
        return outcome

    def _agree_on_lengths(self) -> Compare:
        """Return the condition that all nodes use these block sizes: blocks of other sizes could overlap.

        Raises:
            IOFailureError: (5) The cluster has other sizes, or etcd does not answer.
        """
        if self._agreed is not None:
            return self._agreed
        key, mine = f"{self.root}lengths", {str(version): length for version, length in self.lengths.items()}
        for attempt in range(ATTEMPTS):
            if entries := self.look(key):
                self._compare_lengths(entries[0])
                revision = entries[0].revision
            else:
                value = _json.write(mine).encode()
                outcome = self.client.transact([Compare(key, 0)], {key: value}, deadline=self.deadline)
                if not outcome.done:
                    self.pause(attempt)
                    continue
                revision = outcome.revision
            self._agreed = Compare(key, revision)
            return self._agreed
        raise self.busy(f"the key {key}")

    def change(
        self, first: IPAddress, change: Callable[[Block], Block | None], *, unless_joined: str = ""
    ) -> Block | None:
        """Change a block by compare and swap.

        Args:
            first: Its first address.
            change: Returns the block to write, or None to leave it as it is. It runs again after other nodes changed
                the block, and after an answer was lost. A block that has the change already must be returned unchanged.
            unless_joined: Name of a node that must have no key, if any.

        Raises:
            TryAgainLaterError: (11) Other nodes changed it each time, or this node is no member any more.
            IOFailureError: (5) Etcd does not answer.
        """
        absent = [Compare(self._node_key(unless_joined), 0)] if unless_joined else []
        for attempt in range(ATTEMPTS):
            now = self.get(first)
            wanted = change(now)
            if wanted is None or wanted == now:
                return wanted
            if self.swap([(now, wanted)], absent).done:
                return wanted
            if unless_joined and self.look(self._node_key(unless_joined)):
                raise _has_joined(unless_joined)
            self.pause(attempt)
        raise self.busy(f"the block {first}/{self.lengths[first.version]}")

    def touch(self, first: IPAddress) -> Block:
        """Return a block, and write it anew, so that changes which were sent earlier and are still on their way fail.

        A block without a key is not written. A change that makes its key may still succeed.

        Raises:
            TryAgainLaterError: (11) Other nodes changed it each time, or this node is no member any more.
            IOFailureError: (5) Etcd does not answer.
        """
        for attempt in range(ATTEMPTS):
            now = self.get(first)
            if not now.revision or self.swap([(now, now)]).done:
                return now
            self.pause(attempt)
        raise self.busy(f"the block {first}/{self.lengths[first.version]}")

    def pause(self, attempt: int) -> None:
        """Wait a random time before another attempt, so that competing nodes do not collide again."""
        time.sleep(min(_PAUSE, 0.001 * 2**attempt) * urandom(1)[0] / 255)

    def busy(self, what: str) -> TryAgainLaterError:
        """Make the error for a change that failed each time, since other nodes had changed the same."""
        return TryAgainLaterError(f"other nodes keep changing {what}", details=f"tried {ATTEMPTS} times; try again")

    # --- membership ---------------------------------------------------------------------------------------------------

    def join(self, directory: str) -> bool:
        """Take the name of this node for this machine. Etcd refuses changes that were sent under the name before.

        Args:
            directory: Directory of this node's state. Another one would be another node's.

        Returns:
            True if the name was this machine's before, so that something may be its own.

        Raises:
            InvalidConfigError: (7) Another machine or another directory has the name.
            IOFailureError: (5) Etcd does not answer.
        """
        key, holder = self._node_key(self.node), mark_of_holder(directory)
        value = _json.write({"holder": holder}).encode()
        for attempt in range(ATTEMPTS):
            entries = self.look(key)
            if entries and _parse_node(entries[0]).holder != holder:
                raise InvalidConfigError(
                    f'another machine, or another dataDir, has joined the cluster as node "{self.node}"',
                    details="$.ipam.node must be of one machine and dataDir alone; if that one is gone for good, run "
                    f"`cnisdk cluster release-node {self.node}`",
                )
            compare = Compare(key, entries[0].revision if entries else 0)
            outcome = self.client.transact([compare], {key: value}, deadline=self.deadline)
            if outcome.done:
                self.member = outcome.revision
                return bool(entries)
            self.pause(attempt)
        raise self.busy(f"the key {key}")

    def check_member(self) -> None:
        """Check that this node is a member still, or has never been.

        Raises:
            NotMemberError: (11) It is not.
            IOFailureError: (5) Etcd does not answer.
        """
        entries = self.look(self._node_key(self.node))
        if self.member and [entry.revision for entry in entries] != [self.member]:
            raise NotMemberError(
                f"node {self.node} was released from the cluster, or has joined again elsewhere",
                details="the next ADD or GC joins again",
            )

    def delete_node(self, node: str, revision: int) -> None:
        """Delete the key of a node, so that none of its changes is carried out any more.

        Args:
            node: Name of the node.
            revision: Revision of its key, as it was last read.

        Raises:
            TryAgainLaterError: (11) It has not this revision any more.
            IOFailureError: (5) Etcd does not answer.
        """
        key = self._node_key(node)
        outcome = self.client.transact([Compare(key, revision)], {}, [key], deadline=self.deadline)
        if not outcome.done and self.look(key):
            raise _has_joined(node)

    def _node_key(self, node: str) -> str:
        return f"{self.root}node/{node}"


def _has_joined(node: str) -> TryAgainLaterError:
    return TryAgainLaterError(
        f"node {node} has joined again: it lives", details="what it still has stays its own; cnisdk cluster status"
    )


def _parse_node(entry: Entry) -> NodeKey:
    try:
        return NodeKey(str(_json.read(entry.value.decode())["holder"]), entry.revision)
    except (ValueError, KeyError, TypeError) as exc:
        raise broken_value(entry) from exc


def mark_of_holder(directory: str) -> str:
    """Return a mark of this machine and a directory. It hides the machine's id, a secret of machine-id(5)."""
    boot = current_boot()
    machine = boot.machine_id or f"boot {boot.boot_id}"
    return short_hash("cnisdk cluster", machine, os.path.realpath(directory), digits=32)
