"""End what takes too long, and say meanwhile that it lasts: code of plugins that runs in this process.

A timer's signal interrupts whatever waits: for a lock, a program, a socket. Its handler reports, and at the limit
raises an exception in the place where the work is, as the signal does that stops a command. A program that the work
has started is then killed; what it had done is as if this process had been killed.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FIRST, _NEXT = 3.0, 10.0
# Seconds after which the exception is raised once more. Code may have caught it, or go on to wait as it clears up; and
# :meth:`cnisdk.linux.netns.NetNS.call` holds it back until its thread has ended.
_AGAIN = 5.0


class OutOfTime(BaseException):
    """The work took longer than it may."""


@contextmanager
def limited(limit: float, report: Callable[[float], object]) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the work of ``with`` when it takes too long.

    In a thread other than the main one there is no limit: Python runs no handler there.

    Args:
        limit: Seconds it may take; 0 means no limit.
        report: Function that is called after three seconds and then every ten, with the seconds that have passed; after
            the limit every five, if the work goes on nevertheless.
    """
    began, runs, late = time.monotonic(), True, False

    def tick(_number: int, _frame: object) -> None:
        nonlocal late
        passed = time.monotonic() - began
        if runs and limit and passed >= limit:
            if late:
                report(passed)
            late = True
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            raise OutOfTime
        if runs:
            report(passed)
            signal.setitimer(signal.ITIMER_REAL, _until_next(_NEXT, limit, time.monotonic() - began))

    try:
        former = signal.signal(signal.SIGALRM, tick)
    except ValueError:  # not the main thread
        yield
        return
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, _until_next(_FIRST, limit, 0.0))
            yield
        finally:
            runs = False
    finally:  # also if the handler has raised right before
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _until_next(pause: float, limit: float, passed: float) -> float:
    return max(min(pause, limit - passed) if limit else pause, 0.001)
