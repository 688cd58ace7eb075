"""The policy of the worker pool, by tables: what happened at which time, and what the pool orders then."""

from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cnisdk._thick.pool import LONGEST_PAUSE, PAUSE, STALL, WINDOW, Decision, Pool

NOTHING = Decision(fork=False, watch=False, retire=0, again=None)


def make_pool(idle: int = 0, busy: int = 0, *, ready: int = 2, crowd: int = 4, limit: int = 8) -> Pool:
    """Make a pool at time 0 with idle workers 1, 2, ... and busy workers 101, 102, ..."""
    pool = Pool(ready, crowd, limit, 0)
    for pid in (*range(1, idle + 1), *range(101, 101 + busy)):
        pool.add(pid)
    for pid in range(101, 101 + busy):
        pool.note_busy(pid, 0)
    return pool


@pytest.mark.parametrize(
    ("idle", "busy", "fork", "watch"),
    [
        (0, 0, True, True),
        (1, 0, True, False),
        (2, 0, False, False),
        (1, 1, False, False),
        (0, 2, False, True),  # a third comes only for a connection
        (0, 3, False, True),
        (0, 4, False, False),  # a crowd
        (1, 3, False, False),
        (0, 9, False, False),
    ],
)
def test_workers_while_requests_are_short(idle: int, busy: int, fork: bool, watch: bool) -> None:
    decision = make_pool(idle, busy).decide(0)
    assert (decision.fork, decision.watch) == (fork, watch)


@pytest.mark.parametrize(
    ("busy", "watch"),
    [
        (4, True),  # no request was taken or answered meanwhile: up to eight
        (7, True),
        (8, False),  # the limit
    ],
)
def test_workers_while_no_request_is_answered(busy: int, watch: bool) -> None:
    assert make_pool(0, busy).decide(STALL).watch == watch
    assert make_pool(1, busy).decide(STALL).watch is False


def test_on_a_slow_machine_there_are_no_more_workers() -> None:
    """Requests take ten times as long as is called a stall, but one is answered now and then."""
    pool = make_pool(0, 4)
    for step in range(1, 60):
        now = step * STALL / 2
        assert not pool.decide(now).watch
        pid = 101 + step % 4
        pool.note_answered(pid, 0, now)
        pool.note_idle(pid)
        pool.note_busy(pid, now)


@pytest.mark.parametrize(("waited", "most"), [(0.4, 4), (0.6, 8), (1.5, 16), (2.0, 32), (5.0, 32)])
def test_workers_after_a_request_that_had_waited(waited: float, most: int) -> None:
    """On a machine that is so busy, the shims of the last requests would start processes of their own."""
    pool = make_pool(0, 4, limit=64)
    pool.note_answered(101, waited, 0)
    pool.note_idle(101)
    pool.note_busy(101, 0)
    count = 4
    while pool.decide(0).watch:
        count += 1
        pool.add(count)
        pool.note_busy(count, 0)
    assert count == most


def test_more_workers_are_there_until_some_are_idle() -> None:
    pool = make_pool(0, 4, limit=64)
    assert pool.decide(STALL).watch
    for pid in range(201, 205):
        pool.add(pid)
        pool.note_busy(pid, STALL)
    assert not pool.decide(STALL).watch
    pool.note_answered(101, 0, STALL)
    pool.note_idle(101)
    pool.decide(3 * WINDOW)
    pool.decide(4 * WINDOW)
    pool.note_busy(101, 4 * WINDOW)
    pool.remove(201)
    assert not pool.decide(4 * WINDOW).watch  # again, four make a crowd


def test_where_all_requests_wait_the_workers_multiply() -> None:
    """Sixty requests that wait for long all have a worker before their shims give up, after a second."""
    pool, now, pid, waiting = Pool(2, 4, 64, 0), 0.0, 0, 60
    while waiting:
        decision = pool.decide(now)
        if decision.fork or decision.watch:
            pid += 1
            pool.add(pid)
            pool.note_busy(pid, now)
            waiting -= 1
        else:
            assert decision.again is not None
            now += decision.again
    assert now < 0.8


@pytest.mark.parametrize(
    ("busy", "now", "again"),
    [(4, 0.0, STALL), (4, STALL / 4, STALL * 3 / 4), (4, STALL, None), (3, 0, None), (8, 0, None)],
)
def test_the_server_looks_again_when_a_stall_may_begin(busy: int, now: float, again: float | None) -> None:
    assert make_pool(0, busy).decide(now).again == again


def test_workers_that_end_are_replaced_up_to_a_bound() -> None:
    pool = make_pool(0, 4)
    for pid in range(101, 105):
        pool.note_answered(pid, 0, 0)
    assert pool.decide(0).fork
    assert pool.ending == {101, 102, 103, 104}
    for pid in range(200, 204):
        pool.add(pid)
        pool.note_busy(pid, 0)
        pool.note_answered(pid, 0, 0)
    assert pool.decide(0) == NOTHING  # as many end as there may be workers
    pool.remove(101)
    assert pool.decide(0).fork


def test_a_kernel_that_refuses_a_fork_is_left_alone_for_a_while() -> None:
    pool = make_pool()
    pool.note_refusal(0)
    assert pool.decide(0) == Decision(fork=False, watch=False, retire=0, again=PAUSE)
    assert pool.decide(PAUSE).fork


def test_repeated_refusals_make_longer_pauses() -> None:
    """Else the reason would be written to the log, and a process forked for nothing, ten times a second."""
    pool, now, pauses = make_pool(), 0.0, []
    for _ in range(6):
        pool.note_refusal(now)
        again = pool.decide(now).again
        assert again is not None
        pauses.append(again)
        now += again
        assert pool.decide(now).fork
    assert pauses == pytest.approx([PAUSE, 2 * PAUSE, 4 * PAUSE, 8 * PAUSE, LONGEST_PAUSE, LONGEST_PAUSE])
    pool.add(1)
    pool.note_busy(1, now)
    pool.note_refusal(now)
    assert pool.decide(now).again == pytest.approx(PAUSE)


@pytest.mark.parametrize(
    ("idle", "busy", "waiting", "fork", "watch"),
    [
        # While a connection waits, and at the time since then: at once, just before it is too long, and after it.
        (2, 0, {0: True}, False, False),
        (2, 0, {0: True, 0.9 * STALL: True}, False, False),
        (2, 0, {0: True, STALL: True}, True, True),
        (2, 0, {0: True, 0.5 * STALL: False, STALL: True}, False, False),  # one took it, if not its own report tells
        (1, 1, {0: True, STALL: True}, True, True),
        (1, 3, {0: True, STALL: True}, False, True),  # no progress: twice as many
        (8, 0, {0: True, STALL: True}, False, False),  # the limit
    ],
)
def test_idle_workers_that_do_not_run(
    idle: int, busy: int, waiting: dict[float, bool], fork: bool, watch: bool
) -> None:
    """They are stopped, frozen or debugged: a connection waits, and none takes it."""
    pool = make_pool(idle, busy)
    for now, waits in waiting.items():
        pool.note_waiting(waits, now)
    decision = pool.decide(max(waiting))
    assert (decision.fork, decision.watch) == (fork, watch)


def test_the_server_looks_again_when_idle_workers_may_be_stuck() -> None:
    pool = make_pool(2)
    pool.note_waiting(True, 0)
    assert pool.decide(STALL / 4).again == STALL * 3 / 4


def test_a_worker_that_takes_connections_is_not_stuck() -> None:
    """Connections wait all the time, and so does one worker; the others take them."""
    pool, now = make_pool(3), 0.0
    for step in range(20):
        now = step * STALL / 4
        pool.note_waiting(True, now)
        for pid in (2, 3):
            pool.note_busy(pid, now)
            pool.note_answered(pid, 0, now)
            pool.note_idle(pid)
    assert not pool.decide(now).watch  # two are idle
    pool.note_busy(2, now)
    pool.note_busy(3, now)
    assert pool.decide(now).watch  # the third is no help


def test_stuck_workers_are_replaced_and_come_back() -> None:
    pool = make_pool(2)
    pool.note_waiting(True, 0)
    pool.note_waiting(True, STALL)
    for pid in (11, 12):
        assert pool.decide(STALL).fork
        pool.add(pid)
    pool.note_waiting(False, STALL)
    assert not pool.decide(STALL).fork
    assert [pool.decide(STALL + count * WINDOW).retire for count in (1, 2, 3)] == [0, 0, 0]  # the new ones stay
    for pid in (1, 2):
        pool.note_busy(pid, 4 * WINDOW)
        pool.note_answered(pid, 0, 4 * WINDOW)
        pool.note_idle(pid)
    assert sum(pool.decide(count * WINDOW).retire for count in (5, 6, 7)) == 2


def test_surplus_workers_retire_after_a_window() -> None:
    pool = make_pool(6)
    assert pool.decide(WINDOW).retire == 0  # the first window began without them
    assert pool.decide(WINDOW).again == WINDOW
    assert pool.decide(2 * WINDOW) == Decision(fork=False, watch=False, retire=4, again=None)
    assert pool.decide(3 * WINDOW) == NOTHING  # they have been told
    for pid in range(1, 5):
        pool.remove(pid)
    assert pool.decide(4 * WINDOW) == NOTHING


def test_surplus_workers_retire_under_load_too() -> None:
    """Two of six are busy all the time, and never more than three."""
    pool, retired = make_pool(6), 0
    pool.decide(WINDOW)
    for step in range(10):
        for pid in (1, 2, 3)[: 3 if step == 5 else 2]:
            pool.note_busy(pid, WINDOW)
        for pid in (1, 2, 3):
            pool.note_answered(pid, 0, 0)
            pool.note_idle(pid)
        retired += pool.decide(WINDOW * (1 + (step + 1) / 10)).retire
    assert retired == 1  # three and ``ready`` stay


def test_workers_that_were_needed_within_the_window_stay() -> None:
    pool = make_pool(6)
    pool.decide(WINDOW)
    for pid in range(1, 6):
        pool.note_busy(pid, WINDOW)
    for pid in range(1, 6):
        pool.note_answered(pid, 0, 0)
        pool.note_idle(pid)
    assert pool.decide(2 * WINDOW).retire == 0
    assert pool.decide(3 * WINDOW).retire == 4


def test_a_declined_request_and_the_death_of_a_worker() -> None:
    pool = make_pool(1, 1)
    pool.note_answered(101, 0, 0)
    pool.remove(101)
    pool.remove(1)
    pool.note_answered(1, 0, 0)  # its last words, read late
    assert (pool.idle, pool.busy, pool.ending) == (set(), set(), set())


class Pools(RuleBasedStateMachine):
    """Any order of events keeps the bounds, and the pool always comes to rest with ``ready`` workers."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.now, self.pid, self.told = Pool(2, 4, 8, 0), 0.0, 0, 0

    def carry_out(self, *, waiting: bool) -> None:
        self.pool.note_waiting(waiting, self.now)
        decision = self.pool.decide(self.now)
        self.told += decision.retire
        if decision.fork or (decision.watch and waiting):
            self.pid += 1
            self.pool.add(self.pid)

    def retire(self) -> None:
        while self.told and self.pool.idle:
            self.told -= 1
            self.pool.remove(max(self.pool.idle))

    @rule(waiting=st.booleans(), seconds=st.sampled_from([0.0, 0.01, STALL, WINDOW]))
    def time_passes(self, waiting: bool, seconds: float) -> None:
        self.now += seconds
        self.carry_out(waiting=waiting)

    @precondition(lambda self: self.pool.idle)
    @rule()
    def a_request_comes(self) -> None:
        self.pool.note_busy(max(self.pool.idle), self.now)

    @precondition(lambda self: self.pool.busy)
    @rule(again=st.booleans(), waited=st.sampled_from([0.0, 0.6, 5.0]))
    def a_request_ends(self, again: bool, waited: float) -> None:
        pid = next(iter(self.pool.busy))
        self.pool.note_answered(pid, waited, self.now)
        if again:
            self.pool.note_idle(pid)

    @precondition(lambda self: self.pool.ending)
    @rule()
    def a_worker_ends(self) -> None:
        self.pool.remove(next(iter(self.pool.ending)))

    @rule()
    def surplus_workers_end(self) -> None:
        self.retire()

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.pool.idle) + len(self.pool.busy) <= 8
        assert self.told <= len(self.pool.idle) + len(self.pool.busy) + len(self.pool.ending)

    def teardown(self) -> None:
        for pid in list(self.pool.busy):
            self.pool.note_answered(pid, 0, 0)
        for pid in list(self.pool.ending):
            self.pool.remove(pid)
        for pid in list(self.pool.idle):
            self.pool.note_busy(pid, self.now)  # also one that was stuck
            self.pool.note_answered(pid, 0, self.now)
            self.pool.note_idle(pid)
        for _ in range(12):
            self.retire()
            self.now += WINDOW
            self.carry_out(waiting=False)
        self.retire()
        assert len(self.pool.idle) == 2


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
