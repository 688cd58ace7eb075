"""Keep an ADD apart from ``cnisdk gc``, which runs DEL for an attachment of the same names that it found dead.

``cnisdk repair`` does the same for an attachment that it repairs.

Theory of operation. While gc releases what an attachment left, it holds the lock of a file, whose name is derived from
the attachment. An ADD waits for that lock.

======  ==============================================  ================================================
step    gc                                              ADD
======  ==============================================  ================================================
1       make the file, and lock it                      its process is there, with the container's id in
                                                        its environment
2       look for processes at work for the container,   look for the file; if there is one, wait for its
        and for what one may have made by now           lock
3       if there is nothing: DEL                        the work
4       remove the file, and give up the lock
======  ==============================================  ================================================

So gc sees the process in its second step, or the ADD sees the file in its own. The plugins of DEL inherit the lock. So
it outlives a gc that is killed, until the DEL it began has ended. Then the file is left, without a lock, until the
next gc (:func:`sweep`).

A plugin of another project does not look for the file: what it makes while DEL runs may be deleted. Our runtime does it
before it starts the first plugin of a list, so that little time is left for that.

Where no gc is at work, the file costs an ADD one system call. Two attachments whose names have one checksum wait for
each other, which does no harm.
"""

from __future__ import annotations

import fcntl
import os
import time
from binascii import crc32
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ._files import make_private
from .errors import IOFailureError, TryAgainLaterError, cause_of

DIRECTORY = "/run/cni/releasing"
"""Directory of the files. Only root can make files in there, and lock them."""

_PATIENCE = 60.0
_PAUSE = 0.005


def wait(attachment: Sequence[str]) -> None:
    """Wait until no gc releases what an attachment of these names left.

    Args:
        attachment: Network, container id and interface.

    Raises:
        TryAgainLaterError: (11) A gc did for a minute.
        IOFailureError: (5) The kernel does not lock the file.
    """
    try:
        fd = os.open(path_of(attachment), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _lock_for_add(fd, path_of(attachment)):
            if time.monotonic() > deadline:
                raise TryAgainLaterError(
                    f"cnisdk gc or cnisdk repair is at work on an earlier attachment of container {attachment[1]}",
                    details=f"it has held {path_of(attachment)} for {_PATIENCE:g} seconds; fuser(1) shows its process",
                )
            time.sleep(_PAUSE)
    finally:
        os.close(fd)


@contextmanager
def releasing(attachment: Sequence[str]) -> Iterator[bool]:
    """Let each ADD of an attachment wait until the end of ``with``.

    Args:
        attachment: Network, container id and interface.

    Yields:
        False if another process has the lock: a gc, or an ADD that was waiting for one.

    Raises:
        IOFailureError: (5) The file cannot be made or locked.
    """
    path = path_of(attachment)
    try:
        fd = _make(path)
    except OSError as exc:
        raise IOFailureError(f"cannot make {path}: {cause_of(exc)}") from exc
    try:
        held = _lock_for_gc(fd, path)
        try:
            yield held
        finally:
            if held:
                with suppress(OSError):  # without a lock it does no harm, and the next gc sweeps it away
                    os.unlink(path)
                with suppress(OSError):
                    os.rmdir(DIRECTORY)  # another gc may have files in there
                fcntl.flock(fd, fcntl.LOCK_UN)  # a process that DEL has left behind may have it, too
    finally:
        os.close(fd)


def sweep() -> None:
    """Remove the files that a gc which was killed has left: those that no process has locked. They do no harm."""
    with suppress(OSError):
        for name in os.listdir(DIRECTORY):
            path = f"{DIRECTORY}/{name}"
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _lock(fd, fcntl.LOCK_EX) and _is_at(fd, path):
                    os.unlink(path)
            finally:
                os.close(fd)
        os.rmdir(DIRECTORY)


def path_of(attachment: Sequence[str]) -> str:
    return f"{DIRECTORY}/{crc32(chr(0).join(attachment).encode(errors='surrogateescape')):08x}"


def _make(path: str) -> int:
    for _ in range(10):
        make_private(DIRECTORY)
        with suppress(FileNotFoundError):  # another gc has removed the directory this moment
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    raise FileNotFoundError(2, "it is removed each time it is made", DIRECTORY)


def _lock_for_add(fd: int, path: str) -> bool:
    try:
        return _lock(fd, fcntl.LOCK_SH)
    except OSError as exc:
        raise IOFailureError(f"cannot lock {path}: {cause_of(exc)}") from exc


def _lock_for_gc(fd: int, path: str) -> bool:
    try:
        held = _lock(fd, fcntl.LOCK_EX) and _is_at(fd, path)
        os.set_inheritable(fd, held)
    except OSError as exc:
        raise IOFailureError(f"cannot lock {path}: {cause_of(exc)}") from exc
    return held


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: str) -> bool:
    """Return whether a file still has its name: another gc may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
