"""Stop a command by a signal: the first one raises an exception, so that the command clears up and says so.

Further signals do nothing: timeout(1) sends its signal twice, and clearing up must not be interrupted. They do nothing
after the block either, since a command that was stopped only has to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._signals import signal


class Stopped(BaseException):
    """A signal stopped the command.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable(*numbers: int) -> Iterator[None]:
    """Raise :class:`Stopped` at the first of these signals. One that is ignored (nohup) stays so.

    In a thread other than the main one nothing is changed: Python runs no handler there.
    """
    received = False
    former = {}

    def stop(number: int, _: object) -> None:
        nonlocal received
        if not received:
            received = True
            raise Stopped(number)

    try:
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                former[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        if not received:
            for number, handler in former.items():
                signal.signal(number, handler)
