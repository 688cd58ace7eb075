"""Signals are held back while a step runs that must not be interrupted, whichever thread the kernel gives them to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import pytest

from cnisdk._signals import HeldBack


class Came(BaseException):
    """Raised by a handler."""


def come(number: int, frame: FrameType | None) -> None:
    raise Came(number)


@contextmanager
def other_thread() -> Iterator[int]:
    """Run a thread that blocks no signal; yield its identifier."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    assert thread.ident is not None
    try:
        yield thread.ident
    finally:
        over.set()
        thread.join()


@pytest.fixture
def handled() -> Iterator[int]:
    """Have SIGTERM and SIGHUP raise; yield a descriptor with a byte for each signal that came to this process."""
    before = {each: signal.signal(each, come) for each in (signal.SIGTERM, signal.SIGHUP)}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    yield reading
    signal.set_wakeup_fd(-1)
    for each, handler in before.items():
        signal.signal(each, handler)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_signal_to_another_thread_waits_for_the_end_of_the_step(handled: int, depth: int) -> None:
    done: list[int] = []

    def step(other: int) -> None:
        with ExitStack() as steps:
            for _ in range(depth):
                steps.enter_context(HeldBack())
            signal.pthread_kill(other, signal.SIGTERM)
            os.read(handled, 1)  # it has come: Python runs its handler as soon as it can
            done.extend(range(1000))

    with other_thread() as other:
        with pytest.raises(Came) as raised:
            step(other)
        assert len(done) == 1000
        assert raised.value.args == (signal.SIGTERM,)
        assert signal.getsignal(signal.SIGTERM) is come
        with pytest.raises(Came):  # as always, afterwards
            os.kill(os.getpid(), signal.SIGHUP)


def test_waiting_lets_signals_through_and_holds_them_again(handled: int) -> None:
    with other_thread() as other, HeldBack() as signals:
        signal.pthread_kill(other, signal.SIGHUP)
        os.read(handled, 1)
        with pytest.raises(Came):
            signals.let_through()
        signals.hold()
        signal.pthread_kill(other, signal.SIGHUP)
        os.read(handled, 1)
        with pytest.raises(Came):
            signals.let_through()
    assert signal.getsignal(signal.SIGHUP) is come


def test_a_step_in_another_thread_changes_no_handler() -> None:
    seen = []

    def step() -> None:
        with HeldBack():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert seen == [before]
