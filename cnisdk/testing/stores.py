"""Test suite that every store of leases must pass: subclass it.

Write a test module with::

    class TestMyStore(StoreSuite):
        def open(self, place: Path) -> Store:
            return MyStore(place / "leases.db")

and run pytest. ``open`` is called many times with one ``place``, in several threads and processes: each call must give
access to the same leases.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import count
from pathlib import Path
from typing import ClassVar, cast

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ..errors import InvalidEnvironmentError, TryAgainLaterError
from ..ipam.allocator import RoundRobin, release_exactly, retain
from ..ipam.ranges import RangeSet, make_range_set, parse_range
from ..ipam.store import Changes, Conflict, Lease, Owner, Store, Transaction, View, in_order
from ..spec.addresses import IPAddress


def range_sets(*subnets: str) -> tuple[RangeSet, ...]:
    """Return one range set for each subnet."""
    return tuple(make_range_set([parse_range(subnet)], index, "$") for index, subnet in enumerate(subnets))


def reserve(store: Store, *leases: Lease, timeout: float = 10.0) -> None:
    """Put leases into a store."""

    def change(transaction: Transaction) -> None:
        for lease in leases:
            transaction.reserve(*lease)

    store.update(change, timeout=timeout)


def everything(store: Store) -> dict[IPAddress, Owner]:
    """Return all leases of a store."""

    def look(view: View) -> dict[IPAddress, Owner]:
        leases = list(view.leases())
        assert len({lease.address for lease in leases}) == len(leases), "an address is listed twice"
        return dict(leases)

    return store.read(look)


_A, _B = Owner("a", "eth0"), Owner("b", "eth0")
_TWO, _THREE = IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")
_SIX = IPv6Address("fd00::2")
_UNUSUAL = [IPv4Address(0), IPv4Address(2**32 - 1), IPv6Address(1), IPv6Address(2**128 - 1), _TWO]


class StoreSuite(ABC):
    """The tests. Each gets an empty directory of its own as ``place``.

    Attributes:
        shared_by_processes: Whether other processes can open the store: if so, it must survive their being killed.
        examples: How many random sequences the stateful test tries.
        rounds: How many processes are killed.
    """

    shared_by_processes: ClassVar[bool] = True
    examples: ClassVar[int] = 25
    rounds: ClassVar[int] = 15

    @abstractmethod
    def open(self, place: Path) -> Store:
        """Open the store of a place: an empty one at first, and the same one each further time."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        """An empty directory."""
        return tmp_path

    # --- one at a time ------------------------------------------------------------------------------------------------

    def test_empty(self, place: Path) -> None:
        """No address is held, and looking is allowed."""

        def look(view: View) -> None:
            assert view.find_addresses(_A) == ()
            assert view.find_owner(_TWO) is None
            assert view.find_free(_TWO, _THREE) == _TWO
            assert view.find_cursor(0) is None
            assert list(view.leases()) == []

        self.open(place).read(look)

    def test_what_one_reserves_another_sees(self, place: Path) -> None:
        """Leases and cursors are there when the store is opened again."""

        def change(transaction: Transaction) -> None:
            transaction.reserve(_SIX, _A)
            transaction.reserve(_TWO, _A)
            transaction.set_cursor(0, _TWO)
            transaction.set_cursor(1, _SIX)

        self.open(place).update(change)

        def look(view: View) -> None:
            assert view.find_addresses(_A) == (_TWO, _SIX)
            assert view.find_addresses(_A.without_ifname) == ()
            assert view.find_addresses(Owner("a", "eth1")) == ()
            assert view.find_owner(_SIX) == _A
            assert view.find_free(_TWO, _THREE) == _THREE
            assert view.find_free(_TWO, _TWO) is None
            assert (view.find_cursor(0), view.find_cursor(1), view.find_cursor(2)) == (_TWO, _SIX, None)

        self.open(place).read(look)

    @pytest.mark.parametrize("address", _UNUSUAL, ids=str)
    def test_any_address(self, place: Path, address: IPAddress) -> None:
        """The first and the last address of both families are addresses too."""
        store = self.open(place)
        reserve(store, Lease(address, _A))
        assert store.read(lambda view: view.find_addresses(_A)) == (address,)
        assert store.read(lambda view: view.find_free(address, address)) is None

    def test_large_ranges(self, place: Path) -> None:
        """A free address is found among 2**64 as among four."""
        reserve(self.open(place), Lease(IPv6Address("fd00::"), _A), Lease(IPv6Address("fd00::1"), _B))
        last = IPv6Address("fd00::ffff:ffff:ffff:ffff")
        free = self.open(place).read(lambda view: view.find_free(IPv6Address("fd00::"), last))
        assert free == IPv6Address("fd00::2")

    def test_old_records(self, place: Path) -> None:
        """An owner may be a container without interface."""
        store = self.open(place)
        reserve(store, Lease(_TWO, _A.without_ifname), Lease(_THREE, _A))
        assert store.read(lambda view: view.find_addresses(_A.without_ifname)) == (_TWO,)
        assert store.read(lambda view: view.find_addresses(_A)) == (_THREE,)

    def test_a_function_that_fails_changes_nothing(self, place: Path) -> None:
        """Its exception comes through."""

        def change(transaction: Transaction) -> None:
            transaction.reserve(_TWO, _A)
            raise KeyError("mine")

        with pytest.raises(KeyError):
            self.open(place).update(change)
        assert everything(self.open(place)) == {}

    def test_release(self, place: Path) -> None:
        """A released address can be leased again."""
        store = self.open(place)
        reserve(store, Lease(_TWO, _A), Lease(_SIX, _A), Lease(_THREE, _B))
        release_exactly(store, [Lease(_TWO, _A), Lease(_THREE, _A)])  # the second is another's
        assert everything(self.open(place)) == {_SIX: _A, _THREE: _B}
        reserve(store, Lease(_TWO, _B))
        assert store.read(lambda view: view.find_addresses(_B)) == (_TWO, _THREE)

    @pytest.mark.parametrize("taken", [_TWO, _SIX], ids=str)
    def test_all_or_nothing(self, place: Path, taken: IPAddress) -> None:
        """One address that is taken keeps the others of the same commit from being reserved."""
        store = self.open(place)
        reserve(store, Lease(taken, _B))
        changes = Changes((Lease(_TWO, _A), Lease(_SIX, _A)), (), {0: _TWO}, {})
        with store.view(time.monotonic() + 5, write=True) as view, pytest.raises(Conflict):
            store.commit(view, changes)
        assert everything(self.open(place)) == {taken: _B}
        assert self.open(place).read(lambda view: view.find_addresses(_A)) == ()

    def test_what_another_holds_is_not_released(self, place: Path) -> None:
        """Nor is anything else of that commit done."""
        store = self.open(place)
        reserve(store, Lease(_TWO, _A), Lease(_THREE, _B))
        changes = Changes((), (Lease(_TWO, _A), Lease(_THREE, _A)), {}, {})
        with store.view(time.monotonic() + 5, write=True) as view, pytest.raises(Conflict):
            store.commit(view, changes)
        assert everything(self.open(place)) == {_TWO: _A, _THREE: _B}

    def test_two_at_once_do_not_both_serve_one_owner(self, place: Path) -> None:
        """A lock keeps the second away; a store without one notices that what was read has changed."""
        first, second = self.open(place), self.open(place)
        with first.view(time.monotonic() + 5, write=True) as view:
            transaction = Transaction(view)
            assert transaction.find_addresses(_A) == ()
            transaction.reserve(_TWO, _A)
            try:
                reserve(second, Lease(_THREE, _A), timeout=0.1)
            except TryAgainLaterError:
                first.commit(view, transaction.changes)
            else:
                with pytest.raises(Conflict):
                    first.commit(view, transaction.changes)
        assert len(everything(self.open(place))) == 1

    # --- any sequence -------------------------------------------------------------------------------------------------

    def test_any_sequence(self, place: Path) -> None:
        """Whatever is allocated, released and collected: the store agrees with a dictionary."""
        fresh = _places(place)
        run_state_machine_as_test(
            # Any callable that makes a machine will do; the annotation knows only of classes.
            cast("type[RuleBasedStateMachine]", lambda: make_machine(self.open(next(fresh)))),
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    # --- many at once -------------------------------------------------------------------------------------------------

    def test_threads(self, place: Path) -> None:
        """No address is held twice, and none is left over."""
        self._crowd(place, _in_threads)

    def test_processes(self, place: Path) -> None:
        """No address is held twice, and none is left over."""
        if not self.shared_by_processes:
            pytest.skip("this store is of one process")
        self._crowd(place, _in_processes)

    def _crowd(self, place: Path, run: Callable[[Sequence[Callable[[], None]]], None]) -> None:
        sets = range_sets("10.0.0.0/26", "fd00::/64")
        owners = [Owner(f"c{number}", "eth0") for number in range(4)]
        kept = self.open(place)
        RoundRobin(kept, sets).allocate(Owner("stays", "eth0"))
        before = everything(kept)

        def work(owner: Owner) -> None:
            allocator = RoundRobin(self.open(place), sets)
            for _ in range(12):
                addresses = in_order(ip.address.ip for ip in allocator.allocate(owner))
                assert len(addresses) == 2
                assert allocator.find(owner) == addresses
                allocator.release(owner)
                assert allocator.find(owner) == ()

        run([partial(work, owner) for owner in owners])
        assert everything(self.open(place)) == before

    def test_one_owner_many_times_at_once(self, place: Path) -> None:
        """Exactly one of them gets the addresses."""
        sets = range_sets("10.0.0.0/26", "fd00::/64")
        served: list[object] = []

        def work() -> None:
            try:
                served.append(RoundRobin(self.open(place), sets).allocate(_A))
            except InvalidEnvironmentError:
                pass

        _in_threads([work] * 6)
        assert len(served) == 1
        assert set(everything(self.open(place)).values()) == {_A}
        assert len(everything(self.open(place))) == 2

    def test_the_last_address_is_given_once(self, place: Path) -> None:
        """Of many threads that want it, one gets it, and the others learn that it is gone."""
        sets = range_sets("10.0.0.0/30")
        served: list[Owner] = []

        def work(owner: Owner) -> None:
            try:
                RoundRobin(self.open(place), sets).allocate(owner)
                served.append(owner)
            except TryAgainLaterError:
                pass

        _in_threads([partial(work, Owner(f"c{number}", "eth0")) for number in range(6)])
        assert list(everything(self.open(place)).values()) == served
        assert len(served) == 1

    # --- killed -------------------------------------------------------------------------------------------------------

    def test_killed_at_any_moment(self, place: Path) -> None:
        """A process that dies in the middle leaves what the next one can clean up and go on from."""
        if not self.shared_by_processes:
            pytest.skip("this store is of one process")
        sets = range_sets("10.0.0.0/27", "fd00::/64")
        kept = RoundRobin(self.open(place), sets)
        kept.allocate(Owner("stays", "eth0"))
        before = everything(self.open(place))

        def work() -> None:
            allocator = RoundRobin(self.open(place), sets)
            while True:
                allocator.allocate(_A)
                allocator.release(_A)

        moments = random.Random(0)
        for _ in range(self.rounds):
            child = _fork(work)
            time.sleep(0.003 + moments.random() * 0.02)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            allocator = RoundRobin(self.open(place), sets)
            allocator.release(_A)
            assert everything(self.open(place)) == before
            owners = [Owner(f"c{number}", "eth0") for number in range(28)]
            given = [str(ip.address) for owner in owners for ip in allocator.allocate(owner)]
            assert len(set(given)) == 56
            assert len(retain(self.open(place), [Owner("stays", "eth0")])) == 56


def make_machine(store: Store) -> RuleBasedStateMachine:
    """Make a state machine that drives an empty store and a dictionary through the same random sequence."""
    return _Machine(store)


_OWNERS = st.builds(Owner, st.sampled_from("abcd"), st.sampled_from(["eth0", "eth1", ""]))
_SUBNETS = ("10.0.0.0/29", "fd00::/125")
_ADDRESSES = st.one_of(
    st.integers(1, 7).map(lambda host: IPv4Address("10.0.0.0") + host),
    st.integers(1, 7).map(lambda host: IPv6Address("fd00::") + host),
    st.sampled_from(_UNUSUAL),
)


class _Machine(RuleBasedStateMachine):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.allocator = RoundRobin(store, range_sets(*_SUBNETS))
        self.model: dict[IPAddress, Owner] = {}
        self.cursors: list[IPAddress] = [IPv4Address("10.0.0.1"), IPv6Address("fd00::1")]

    def held(self, owner: Owner) -> list[IPAddress]:
        """Return the addresses of an owner, and those of its container's old records."""
        return [each for each, holder in self.model.items() if holder in (owner, owner.without_ifname)]

    def expected(self, index: int) -> IPAddress | None:
        """Return the address that round robin must give next: hosts 2 to 6 of the one subnet, 2 to 7 of the other."""
        cursor = self.cursors[index]
        first, size = (IPv4Address("10.0.0.2"), 5) if index == 0 else (IPv6Address("fd00::2"), 6)
        for step in range(1, size + 1):
            address = first + (int(cursor) - int(first) + step) % size
            if address not in self.model:
                return address
        return None

    @rule(owner=_OWNERS.filter(lambda owner: bool(owner.ifname)))
    def allocate(self, owner: Owner) -> None:
        expected = [self.expected(0), self.expected(1)]
        ranges = range_sets(*_SUBNETS)
        inside = [each for each in self.held(owner) if any(each_set.holds(each) for each_set in ranges)]
        try:
            given: list[IPAddress] = [ip.address.ip for ip in self.allocator.allocate(owner)]
        except InvalidEnvironmentError:
            assert inside
        except TryAgainLaterError:
            assert None in expected
        else:
            assert not inside
            assert given == expected
            self.cursors = given
            self.model.update(dict.fromkeys(given, owner))

    @rule(owner=_OWNERS)
    def release(self, owner: Owner) -> None:
        released = {lease.address for lease in self.allocator.release(owner)}
        exact = {each for each, holder in self.model.items() if holder == owner}
        assert released == (exact or set(self.held(owner)))
        for address in released:
            del self.model[address]

    @rule(valid=st.sets(_OWNERS, max_size=4))
    def collect(self, valid: set[Owner]) -> None:
        containers = {owner.container_id for owner in valid}
        stale = {
            address
            for address, owner in self.model.items()
            if (owner not in valid if owner.ifname else owner.container_id not in containers)
        }
        assert {lease.address for lease in self.allocator.retain(valid)} == stale
        for address in stale:
            del self.model[address]

    @rule(address=_ADDRESSES, owner=_OWNERS)
    def put(self, address: IPAddress, owner: Owner) -> None:
        """Reserve an address, whether or not it is free."""
        try:
            with self.store.view(time.monotonic() + 5, write=True) as view:
                self.store.commit(view, Changes((Lease(address, owner),), (), {}, {}))
        except Conflict:
            if address in self.model:
                return
            reserve(self.store, Lease(address, owner))  # a store may ask for another look
        else:
            assert address not in self.model
        self.model[address] = owner

    @rule(address=_ADDRESSES, owner=_OWNERS)
    def take(self, address: IPAddress, owner: Owner) -> None:
        """Release an address, whether or not this owner has it."""
        release_exactly(self.store, [Lease(address, owner)])
        if self.model.get(address) == owner:
            del self.model[address]

    @rule(address=_ADDRESSES, owner=_OWNERS)
    def look(self, address: IPAddress, owner: Owner) -> None:
        exact = in_order(each for each, holder in self.model.items() if holder == owner)
        assert self.store.read(lambda view: view.find_addresses(owner)) == exact
        assert self.store.read(lambda view: view.find_owner(address)) == self.model.get(address)
        free = None if address in self.model else address
        assert self.store.read(lambda view: view.find_free(address, address)) == free

    @invariant()
    def agrees(self) -> None:
        assert everything(self.store) == self.model


def _places(root: Path) -> Iterator[Path]:
    for number in count(1):
        path = root / str(number)
        path.mkdir()
        yield path


def _in_threads(jobs: Sequence[Callable[[], None]]) -> None:
    """Run all at once; raise what the first that failed raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], None]) -> None:
        try:
            start.wait()
            job()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _in_processes(jobs: Sequence[Callable[[], None]]) -> None:
    """Run each in a process of its own, all at once."""
    children = [_fork(job) for job in jobs]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), "see the output of the processes"


def _fork(job: Callable[[], None]) -> int:
    with warnings.catch_warnings():
        # Python warns of threads that may hold locks; the child touches nothing of the test runner's.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        job()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
