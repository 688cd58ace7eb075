"""Work in this process that takes too long is told of, and ended wherever it waits."""

from __future__ import annotations

import signal

import pytest

from cnisdk._cli import timelimit
from cnisdk._cli.timelimit import OutOfTime, limited
from tests.clocks import Clock


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Ticks come soon, and the limit is over when the test says so."""
    for name in ("_FIRST", "_NEXT", "_AGAIN"):
        monkeypatch.setattr(timelimit, name, 0.01)
    clock = Clock()
    monkeypatch.setattr(timelimit, "time", clock)
    return clock


def wait_for_ever() -> None:
    while True:
        signal.pause()


def test_work_that_waits_is_told_of_and_ended(clock: Clock) -> None:
    told: list[float] = []

    def work() -> None:
        while not told:
            signal.pause()
        clock.put_forward()
        wait_for_ever()

    with pytest.raises(OutOfTime), limited(60, told.append):
        work()
    assert told == sorted(told)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_without_a_limit_it_is_told_of_alone() -> None:
    told: list[float] = []
    with limited(0, told.append):
        while len(told) < 3:
            signal.pause()


def test_work_that_catches_everything_is_ended_the_next_time(clock: Clock) -> None:
    told: list[float] = []

    def work() -> None:
        try:
            clock.put_forward()
            wait_for_ever()
        except OutOfTime:
            wait_for_ever()

    with pytest.raises(OutOfTime), limited(60, told.append):
        work()
    assert any(passed > 60 for passed in told), "it went on after the limit"


def test_the_handler_from_before_is_back() -> None:
    def handle(number: int, frame: object) -> None:
        raise AssertionError

    former = signal.signal(signal.SIGALRM, handle)
    try:
        with limited(60, print):
            pass
        assert signal.getsignal(signal.SIGALRM) is handle
    finally:
        signal.signal(signal.SIGALRM, former)
