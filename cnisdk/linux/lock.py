"""Locks that processes share. They leave no file behind.

:func:`shared` and :func:`exclusive` lock a network namespace, :func:`directory` locks a directory.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..errors import IOFailureError, cause_of
from .netns import NetNS


@contextmanager
def shared(patience: float) -> Iterator[bool]:
    """Hold the lock of the calling thread's network namespace together with other holders of :func:`shared`.

    Args:
        patience: Seconds to wait for it at most.

    Yields:
        True if the lock is held, False if another process holds it exclusively: see :func:`exclusive`.

    Raises:
        IOFailureError: (5) This process may open no more files.
    """
    with _locked(fcntl.LOCK_SH, patience) as held:
        yield held


@contextmanager
def exclusive(patience: float, netns: NetNS | None = None) -> Iterator[bool]:
    """Hold the lock of a network namespace alone, if it can be had in time.

    A namespace's file under /proc is one inode to all processes in it. Every user may open that file, and hold the lock
    for ever. So a caller must not depend on it: one that does not get the lock goes on without, or leaves its work to a
    later call.

    Args:
        patience: Seconds to wait for it at most.
        netns: The namespace; None means the calling thread's.

    Yields:
        True if the lock is held, False if another process kept it.

    Raises:
        IOFailureError: (5) This process may open no more files.
    """
    with _locked(fcntl.LOCK_EX, patience, netns) as held:
        yield held


@contextmanager
def directory(path: str, patience: float) -> Iterator[bool]:
    """Hold the lock of a directory alone, if it can be had in time.

    A process that may not read the directory cannot take its lock. Callers of a private directory may depend on that.

    Args:
        path: The directory.
        patience: Seconds to wait for it at most.

    Yields:
        True if the lock is held, False if another process kept it.

    Raises:
        OSError: The directory cannot be opened.
    """
    with _locked_path(path, fcntl.LOCK_EX, patience) as held:
        yield held


@contextmanager
def _locked(kind: int, patience: float, netns: NetNS | None = None) -> Iterator[bool]:
    path = "/proc/thread-self/ns/net" if netns is None else f"/proc/self/fd/{netns.fd}"
    with ExitStack() as stack:
        try:
            held = stack.enter_context(_locked_path(path, kind, patience))
        except OSError as exc:
            name = "its own network namespace" if netns is None else f"network namespace {netns.path}"
            raise IOFailureError(f"cannot lock {name}: {cause_of(exc)}") from exc
        yield held


@contextmanager
def _locked_path(path: str, kind: int, patience: float) -> Iterator[bool]:
    deadline = time.monotonic() + patience
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        held = False
        while not held:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.002)
        yield held
    finally:
        os.close(fd)
