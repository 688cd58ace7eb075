"""The lock of a directory: ``flock`` on its file ``lock``, which the reference's host-local takes too."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time

from .._signals import HeldBack
from ..errors import TryAgainLaterError

NAME = "lock"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class _Wait:
    """A blocking ``flock`` in a thread of its own.

    Polling would starve: the kernel gives a lock to those who sleep for it, and the reference sleeps. A signal would
    change process state and reach only the main thread. A thread that is given up on closes its descriptor as soon as
    it gets the lock, and does not keep the process from ending.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
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
        """Return whether the lock was had in time. If not, or if this raises, the descriptor is taken care of."""
        threading.Thread(target=self._run, name="cni-flock", daemon=True).start()  # it lets no signal in, either
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
        """Leave the descriptor to the thread, if that is still waiting; otherwise close it here if nobody wants it."""
        with self._guard:
            self._abandoned = not self._done.is_set()
            if not self._abandoned and (close or self._failure is not None):
                os.close(self._fd)
            return self._abandoned


def acquire(directory: int, path: str, deadline: float, signals: HeldBack, *, create: bool) -> int | None:
    """Take the lock of a directory.

    Args:
        directory: A descriptor of it.
        path: Its path, for messages.
        deadline: When to give up, as ``time.monotonic()`` counts.
        signals: Those that the caller holds back until it has given the lock back. They end a wait, and nothing else.
        create: Whether the lock file may be made.

    Returns:
        A descriptor: closing it gives the lock back. None when there is no lock file and it may not be made.

    Raises:
        OSError: The lock file cannot be opened.
        TryAgainLaterError: (11) The deadline passed; the message names the holder.
    """
    while True:
        try:
            # The reference creates it with 0750; nobody but its owner needs it.
            fd = os.open(NAME, _FLAGS | (os.O_CREAT if create else 0), 0o600, dir_fd=directory)
        except FileNotFoundError:
            if create:
                raise
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(fd)
                raise
            inode = os.fstat(fd)
            if not _Wait(fd).wait(min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX), signals):
                raise TryAgainLaterError(
                    f"the lock {path}/{NAME} was not free in time",
                    details=describe_holder(inode.st_dev, inode.st_ino) + "; try again",
                ) from exc
        try:
            present = os.stat(NAME, dir_fd=directory)
            locked = os.fstat(fd)
            if (present.st_dev, present.st_ino) == (locked.st_dev, locked.st_ino):
                return fd
        except FileNotFoundError:
            if not os.fstat(directory).st_nlink:
                os.close(fd)
                raise
        os.close(fd)  # somebody deleted the file while we waited for it: whoever comes now, locks another


def describe_holder(device: int, inode: int) -> str:
    """Say who holds the lock of a file, as far as can be found out."""
    pid = find_holder(device, inode)
    if pid is None:
        return "its holder is unknown"
    try:
        with open(f"/proc/{pid}/comm") as file:
            return f"process {pid} ({file.read().strip()}) holds it"
    except OSError:
        return f"process {pid} holds it"


def find_holder(device: int, inode: int) -> int | None:
    """The process that holds the ``flock`` of a file, from ``/proc/locks``; processes of other pid namespaces hide."""
    try:
        with open("/proc/locks") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    # "2: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF"; those who wait have "->" before FLOCK.
    held = [(fields[5], fields[4]) for fields in lines if len(fields) >= 8 and fields[1] == "FLOCK"]
    exact = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    found = [pid for place, pid in held if place == exact]
    # Some file systems (btrfs, overlayfs) report another device here than stat() does.
    found = found or [pid for place, pid in held if place.rpartition(":")[2] == str(inode)]
    return int(found[0]) if found and found[0].isdigit() and found[0] != "0" else None
