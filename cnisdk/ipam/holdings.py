"""The addresses of a cluster that a node has, and how they go back.

Theory of operation. A file of this node, ``share.json``, notes what it has.

A process that leases needs no lock: it reads the file, leases in the store, and reads the file again. If what it leased
is not there any more, it takes the lease back and begins again. A process that takes addresses out of the file writes
the file first, and then looks whether they have been leased; if so, it puts them back. Whichever of the two looks last
sees what the other did. So etcd is never told that an address is free while a process still uses it.

There are two locks. A process that sends requests to etcd holds the lock of the synchronisation, perhaps for seconds:
one process at a time gets more addresses, or gives some back. The lock of the file is held for one change of it, and
never during a request to etcd.

The order of the steps ensures that no two nodes have the same address, wherever a process is killed. A node that gets
addresses changes etcd first, then the file. A node that gives back changes the file first, then etcd. Addresses that
have left the file while etcd does not know it yet are in the file as *returning*: the next synchronisation gives them
back. Blocks of which this node has asked for addresses are in the file as *asked* until the answer is noted: if the
process is killed or the answer is lost, the next synchronisation reads these blocks. While the file has either,
the next DEL synchronises. A file that was lost is made again from etcd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from time import CLOCK_BOOTTIME, clock_gettime, monotonic

from ..classes import evolve
from ..errors import CNIError, IOFailureError
from ..spec.addresses import IPAddress
from . import _lockfile
from ._resting import RestingAddresses
from ._share import Share, ShareFile
from .allocator import find_held, release, retain
from .blocktable import Block, NotMemberError
from .cluster import Cluster
from .ranges import Span
from .store import LOCK_TIMEOUT, Lease, Owner, Store

# Seconds a DEL waits for etcd, or for a process that talks to it: what it has to tell can wait.
_PATIENCE = 1.0

# Seconds during which DELs do not ask an etcd that has not answered.
_SILENCE = 10.0


class Holdings:
    """The addresses of a network that this node has.

    Args:
        store: The leases of this node.
        cluster: The blocks in etcd.
        directory: Directory for the files that note what this node has; made when it is needed.
        cool_down: Seconds an address rests after its release, before it is used again.
        timeout: Seconds to wait for other processes of this node, and for etcd.

    Attributes:
        store: The leases of this node.
        cluster: The blocks in etcd.
        resting: The addresses that rest.
        directory: Directory of the files.
        timeout: Seconds to wait for other processes of this node, and for etcd.
    """

    def __init__(
        self, store: Store, cluster: Cluster, directory: str, *, cool_down: float = 0.0, timeout: float = LOCK_TIMEOUT
    ) -> None:
        self.store = store
        self.cluster = cluster
        self.timeout = timeout
        self.resting = RestingAddresses(f"{directory}/resting", cool_down, timeout=timeout)
        self.directory = directory
        self._sync_lock = f"{directory}/etcd"
        self._file = ShareFile(directory)
        self._aside: set[IPAddress] = set()

    # --- the locks ----------------------------------------------------------------------------------------------------

    @contextmanager
    def synchronised(self, timeout: float | None = None) -> Iterator[Share]:
        """Let this process alone send requests to etcd, first the outstanding ones. Yield what this node has.

        If this node is found to be no member any more, it joins again, and the block ends without an error: call
        :meth:`read` afterwards.

        Args:
            timeout: Seconds to wait for other processes, and again for etcd; None means as constructed.

        Raises:
            TryAgainLaterError: (11) Another process held the lock for all that time, or other nodes changed the same
                keys first at each attempt.
            IOFailureError: (5) Etcd does not answer.
            InvalidConfigError: (7) Another machine has this node's name.
        """
        timeout = self.timeout if timeout is None else timeout
        table = self.cluster.table
        with _lockfile.locked(self._sync_lock, timeout):
            table.deadline, asked = monotonic() + timeout, set[IPAddress]()
            try:
                share = self._settle(self._file.read())
                table.before_change = partial(self._note, asked)
                try:
                    yield share
                except NotMemberError:
                    self._join()
                else:
                    if asked:
                        self.change(lambda now: now._replace(asked=frozenset()))
            finally:
                table.deadline = table.before_change = None

    def _note(self, asked: set[IPAddress], firsts: Collection[IPAddress]) -> None:
        """Note the blocks of which this node is about to ask for addresses."""
        if not asked.issuperset(firsts):
            asked.update(firsts)
            self.change(lambda now: now._replace(asked=now.asked | asked))

    def read(self) -> Share:
        """Return what this node has."""
        return self._file.read()

    def look(self) -> AbstractContextManager[tuple[Share, Callable[[], bool]]]:
        """Yield what this node has, and a function that returns True as long as the file is unchanged.

        A process that leases calls the function afterwards. If the file has changed and no longer has the address, the
        process takes the lease back.
        """
        return self._file.look()

    def change(self, change: Callable[[Share], Share]) -> Share:
        """Change the file, and return what is in it then.

        Raises:
            TryAgainLaterError: (11) Other processes kept the file locked.
            IOFailureError: (5) The file cannot be read or written.
        """
        with self._locked():
            before = self._file.read()
            after = change(before)
            if after != before:
                self._file.write(after)
            return after

    def _locked(self) -> AbstractContextManager[None]:
        return _lockfile.locked(self.directory, self.timeout)

    def set_aside(self, spans: Sequence[Span], pod: str) -> IPAddress | None:
        """Take a free address out of the blocks of this node, to keep it for a pod; None if there is none.

        Call :meth:`look_again` when it is known which ones are kept.
        """
        tried: set[IPAddress] = set()
        while (chosen := self._set_aside(spans, pod, tried)) is not None:
            if chosen not in self._list_leased():
                self._aside.add(chosen)
                return chosen
            tried.add(chosen)  # a process has leased it between the look and the change
            self._put_back_kept(chosen)
        return None

    def _set_aside(self, spans: Sequence[Span], pod: str, tried: Collection[IPAddress]) -> IPAddress | None:
        found: list[IPAddress] = []

        def change(share: Share) -> Share:
            used = self._list_used()
            for block in share.blocks:
                for address in block.list_local(spans):
                    if address not in used and address not in tried:
                        found.append(address)
                        kept = {**block.kept, address: pod}
                        return share.with_block(evolve(block, kept=kept))._replace(asked=share.asked | {block.first})
            return share

        self.change(change)
        return found[0] if found else None

    def look_again(self, kept: Collection[IPAddress]) -> None:
        """Ask etcd for the blocks of addresses that were set aside and are not kept after all: they are free again.

        Call it within :meth:`synchronised`. If that ends with an error, the next one reads the blocks again.
        """
        if self._aside - {*kept}:
            self._resolve(self._file.read())
        self._aside.clear()

    def _put_back_kept(self, address: IPAddress) -> None:
        def change(share: Share) -> Share:
            for block in share.blocks:
                if address in block.kept:
                    kept = {each: pod for each, pod in block.kept.items() if each != address}
                    share = share.with_block(evolve(block, kept=kept))
            return share

        self.change(change)

    def _list_leased(self) -> Set[IPAddress]:
        return self.store.read(lambda view: {lease.address for lease in view.leases()}, timeout=self.timeout)

    def _list_used(self) -> Set[IPAddress]:
        """Return the addresses that are leased or rest."""
        return self._list_leased() | self.resting.find().keys()

    # --- giving back --------------------------------------------------------------------------------------------------

    def release(self, owner: Owner) -> tuple[Lease, ...]:
        """Delete the leases of an attachment, and return them. It does not need etcd: see :meth:`give_back`."""
        if self.resting.is_used:
            held = self.store.read(lambda view: find_held(view, owner), timeout=self.timeout)
            self._rest(held)
        leases = release(self.store, owner, timeout=self.timeout)
        self.give_back()
        return leases

    def retain(self, owners: Collection[Owner]) -> tuple[Lease, ...]:
        """Delete the leases of this node that none of these owners holds, and return them."""
        if self.resting.is_used:
            stale = self.store.read(lambda view: [*view.find_stale(owners)], timeout=self.timeout)
            self._rest([lease.address for lease in stale])
        leases = retain(self.store, owners, timeout=self.timeout)
        self.give_back()
        return leases

    def give_back(self) -> None:
        """Give back borrowed addresses that no lease has, and a block that is empty while another is half empty.

        If etcd does not answer now, the next process that sends it a request gives them back.
        """
        share = self._file.read()
        if share.may_shrink:
            share = self.change(self._shrink)
        if not share.is_unsettled or clock_gettime(CLOCK_BOOTTIME) < share.silence:
            return
        try:
            with self.synchronised(_PATIENCE):
                pass
        except IOFailureError:
            self.change(lambda now: now._replace(silence=clock_gettime(CLOCK_BOOTTIME) + _SILENCE))
        except CNIError:
            pass  # another process synchronises, or other nodes were ahead: the next process does it

    def refresh(self) -> None:
        """Make the file say what etcd says: add addresses that the file lacks, remove those that are not this node's.

        Raises:
            TryAgainLaterError: (11) Other processes kept the files locked, or other nodes were ahead each time.
            IOFailureError: (5) Etcd does not answer; nothing has changed.
            InvalidConfigError: (7) Another machine has this node's name.
        """
        with self.synchronised() as share:
            seen = self._ask(share.member)
            self.change(lambda _: seen)
            self._settle(self.change(self._shrink))

    def compare(self) -> list[str]:
        """Compare the file with what etcd says is this node's, and return each difference as a sentence.

        :meth:`refresh` removes the differences.
        """
        with _lockfile.locked(self._sync_lock, self.timeout):
            mine, seen = self._file.read(), self._ask(0)
        found = []
        noted, known = ({each.first: each for each in share.blocks} for share in (mine, seen))
        for first in known.keys() - noted.keys() - {each.first for each in mine.leaving}:
            found.append(f"block {first}/{known[first].length} is of this node, which has no note of it")
        for first in noted.keys() - known.keys():
            found.append(f"block {first}/{noted[first].length} is not of this node, which hands out its addresses")
        for address in seen.borrowed.keys() - mine.borrowed.keys() - mine.returning.keys():
            found.append(f"{address} is lent to this node, which has no note of it")
        for address in mine.borrowed.keys() - seen.borrowed.keys():
            found.append(f"{address} is not lent to this node, which hands it out")
        return sorted(found)

    def _rest(self, addresses: Collection[IPAddress]) -> None:
        """Let addresses rest, except those that are kept for a pod: no other pod gets them anyway."""
        borrowed = self._file.read().borrowed
        self.resting.note([address for address in addresses if not borrowed.get(address)])

    def _shrink(self, share: Share) -> Share:
        """Move what this node does not need to *returning* and *leaving*. The caller holds the lock of the file."""
        used = self._list_used()
        idle = {address: pod for address, pod in share.borrowed.items() if address not in used}
        spare = _find_spare(share.blocks, used)
        return share._replace(
            blocks=tuple(each for each in share.blocks if each is not spare),
            borrowed={address: pod for address, pod in share.borrowed.items() if address in used},
            returning={**share.returning, **idle},
            leaving=(*share.leaving, spare) if spare else share.leaving,
        )

    def _settle(self, share: Share) -> Share:
        """Join the cluster if this node has not; else finish what earlier processes began. Within a synchronisation."""
        if not share.member:
            return self._join()
        self.cluster.table.member = share.member
        try:
            return self._tell(self._resolve(share))
        except NotMemberError:
            return self._join()

    def _resolve(self, share: Share) -> Share:
        """Read the blocks that are noted as *asked*, and note what of them this node has.

        Requests that are still on their way are refused from now on.
        """
        if not share.asked:
            return share
        node, blocks = self.cluster.node, [self.cluster.table.touch(first) for first in share.asked]

        def change(now: Share) -> Share:
            leaving = {each.first for each in now.leaving}
            for block in blocks:
                if block.node == node and block.first not in leaving:
                    now = now.with_block(block)
                lent = {address: block.kept.get(address, "") for address, each in block.lent.items() if each == node}
                new = {address: pod for address, pod in lent.items() if address not in now.borrowed}
                now = now._replace(returning={**now.returning, **new})
            return now._replace(asked=now.asked - share.asked)

        return self.change(change)

    def _tell(self, share: Share) -> Share:
        """Give back in etcd what is *returning* and *leaving*, except addresses that have been leased meanwhile."""
        if not share.returning and not share.leaving:
            return share
        leased = self._list_leased()
        returning = share.returning.keys() - leased
        leaving = {each.first for each in share.leaving if not any(map(each.holds, leased))}
        self.cluster.give_back(returning, leaving)
        # What was leased stays, if it is this node's still: a process may have told it before, and been killed.
        table, node = self.cluster.table, self.cluster.node
        blocks = [table.touch(each.first) for each in share.leaving if each.first not in leaving]
        stays = {
            address: pod
            for address, pod in share.returning.items()
            if address not in returning and table.touch(table.start_of(address)).lent.get(address) == node
        }

        def change(now: Share) -> Share:
            """Remove from the file what was given back, and restore what was leased."""
            for block in blocks:
                if block.node == node:
                    now = now.with_block(block)
            return now._replace(
                borrowed={**now.borrowed, **stays},
                returning={each: pod for each, pod in now.returning.items() if each not in share.returning},
                leaving=tuple(each for each in now.leaving if each not in share.leaving),
                silence=0.0,
            )

        return self.change(change)

    def _join(self) -> Share:
        """Join the cluster, and note what etcd says is this node's, which may have lost its file or been released."""
        table = self.cluster.table
        # A new node need not read the blocks of all others.
        share = self._ask(table.member) if table.join(self.directory) else Share()
        return self.change(lambda _: share._replace(member=table.member))

    def _ask(self, member: int) -> Share:
        node, blocks = self.cluster.node, []
        borrowed: dict[IPAddress, str] = {}
        for block in self.cluster.blocks():
            if block.node == node:
                blocks.append(block)
            borrowed |= {address: block.kept.get(address, "") for address, each in block.lent.items() if each == node}
        return Share(member, tuple(blocks), borrowed)


def _find_spare(blocks: Collection[Block], used: Collection[IPAddress]) -> Block | None:
    """Return a block that is empty while another one of its IP version is half empty."""
    count = Counter(each.first for address in used for each in blocks if each.holds(address))
    for block in blocks:
        others = [each for each in blocks if each is not block and each.first.version == block.first.version]
        if not count[block.first] and any(count[each.first] <= each.size // 2 for each in others):
            return block
    return None
