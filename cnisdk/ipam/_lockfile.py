"""The lock of a directory: ``flock`` on its file ``lock``, which the reference's host-local takes too.

Theory of operation. :func:`acquire` first tries without waiting. If another process has the lock, a thread sleeps in
``flock`` while the caller waits for the thread, its deadline or a signal. Closing the descriptor gives the lock back,
so a process that is killed never keeps it. The lock file may be deleted while a process waits for it, and then a newer
file has its name; so a process that gets the lock checks that the path still leads to its file. If it does not, the
process starts again.
"""

from __future__ import annotations

import fcntl
import os
import time
from _thread import TIMEOUT_MAX
from collections.abc import Iterator
from contextlib import contextmanager

from .._files import make_private
from .._signals import HeldBack
from ..errors import IOFailureError, TryAgainLaterError, cause_of

NAME = "lock"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class _Wait:
    """A blocking ``flock`` in a thread of its own.

    Two designs were rejected. Polling starves: the kernel gives the lock to processes that sleep in ``flock``, as the
    reference does. A timer that interrupts ``flock`` by a signal changes process state and works in the main thread
    only. The caller may stop waiting. The thread then closes its descriptor as soon as it has the lock, and does not
    keep the process from ending.
    """

    def __init__(self, fd: int) -> None:
        import threading

        self._fd = fd
        self._thread = threading.Thread(target=self._run, name="cni-flock", daemon=True)
        self._guard = threading.Lock()
        self._done = threading.Event()
        self._failure: OSError | None = None
        self._abandoned = False

    def _run(self) -> None:
        failure = None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as exc:
            failure = exc
        with self._guard:
            self._failure = failure
            if self._abandoned:
                os.close(self._fd)
            self._done.set()

    def wait(self, timeout: float, signals: HeldBack) -> bool:
        """Wait, and return True if this process has the lock. If not, or if this raises, it closes the descriptor."""
        self._thread.start()  # it lets no signal in, either
        try:
            try:
                signals.let_through()
                self._done.wait(timeout)
            finally:
                signals.hold()
        except BaseException:  # a signal
            self._give_up(close=True)
            raise
        if self._give_up(close=False):
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def _give_up(self, *, close: bool) -> bool:
        """Leave the descriptor to the thread if that still waits; otherwise close it if asked to, or after an error.

        Returns:
            True if the thread still waits.
        """
        with self._guard:
            self._abandoned = not self._done.is_set()
            if not self._abandoned and (close or self._failure is not None):
                os.close(self._fd)
            return self._abandoned


@contextmanager
def locked(path: str, timeout: float) -> Iterator[None]:
    """Hold the lock of a directory. Make the directory if there is none. Signals end the block as they end any other.

    Args:
        path: The directory.
        timeout: Seconds to wait.

    Raises:
        TryAgainLaterError: (11) Another process had it all the time.
        IOFailureError: (5) The directory cannot be made or opened.
    """
    with HeldBack() as signals:
        try:
            make_private(path)
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                lock = acquire(directory, path, time.monotonic() + timeout, signals, create=True)
            finally:
                os.close(directory)
        except OSError as exc:
            raise IOFailureError(f"cannot lock {path}: {cause_of(exc)}") from exc
        assert lock is not None
        try:
            signals.let_through()
            yield
        finally:
            signals.hold()
            os.close(lock)


def acquire(directory: int, path: str, deadline: float, signals: HeldBack, *, create: bool) -> int | None:
    """Take the lock of a directory.

    Args:
        directory: A descriptor of it.
        path: Its path, for messages.
        deadline: Time of ``time.monotonic()`` at which to give up.
        signals: The signals that the caller holds back until it has closed the lock. They end a wait, and nothing else.
        create: If true, the lock file is made when there is none.

    Returns:
        A descriptor: closing it gives the lock back. None when there is no lock file and `create` is false.

    Raises:
        OSError: The lock file cannot be opened.
        TryAgainLaterError: (11) The deadline passed; the message names the holder.
    """
    while True:
        try:
            # The reference creates it with 0750; only its owner needs it.
            fd = os.open(NAME, _FLAGS | (os.O_CREAT if create else 0), 0o600, dir_fd=directory)
        except FileNotFoundError:
            if create:
                raise
            return None
        # A descriptor that is lost keeps the lock as long as this process lives, and against itself.
        try:
            held = None if _lock_at_once(fd) else os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        if held is not None and not _Wait(fd).wait(min(max(0.0, deadline - time.monotonic()), TIMEOUT_MAX), signals):
            raise TryAgainLaterError(
                f"the lock {path}/{NAME} was not free in time", details=_describe_holder(held) + "; try again"
            )
        try:
            current = _is_current(directory, fd)
        except BaseException:
            os.close(fd)
            raise
        if current:
            return fd
        os.close(fd)  # another process deleted the file while we waited: the next one locks a newer file


def _lock_at_once(fd: int) -> bool:
    """Take the lock, and return True, unless another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(directory: int, fd: int) -> bool:
    """Return True if the lock file of a directory is still the one that is open.

    Raises:
        OSError: It cannot be looked at, or the directory was deleted (``ENOENT``).
    """
    try:
        return os.path.samestat(os.stat(NAME, dir_fd=directory), os.fstat(fd))
    except FileNotFoundError:
        if not os.fstat(directory).st_nlink:
            raise
        return False


def _describe_holder(lock: os.stat_result) -> str:
    from .._lockholders import describe, find_holders  # no other request needs it

    found = describe(find_holders(lock.st_dev, lock.st_ino))
    return f"{found[0]} holds it" if found else "its holder is unknown"
