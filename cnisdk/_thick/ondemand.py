"""Server on demand: started by a shim that finds none, and ended by itself when it is not needed.

Theory of operation. A shim that finds no server runs its request one-shot, at once, and before that starts a server in
the background (``start_server`` in ``shim.c``). Only the shim decides if it may: a decision here would come too late,
since this interpreter runs already. Shim and server share the file ``lock`` in the server's directory:

- A shim holds a lock on it (flock(2)) while it starts a server, and the server for its life. A process that does not
  get the lock starts nothing. So a burst of requests starts one server.
- Its time of modification is the earliest time of the next attempt. A shim puts it some seconds ahead, so that a server
  that fails at its start is not started again for each request. The server puts it further ahead when the next attempt
  would fail likewise: :func:`postpone`.

A shim whose request no worker takes does the same, since it may have found the remains of a server that was killed: its
workers hold the socket until they end. If the server lives, it has the lock.

Between the shim's lock and the server's, only this time keeps other shims from starting a server. If the machine takes
longer to start an interpreter, two servers may start. The second does not get the lock, and ends.

The server ends by itself when it is not needed (:mod:`.lifetime`). It stops as for SIGTERM: it finishes the requests
that run. It deletes its socket first, so shims that come meanwhile run their requests one-shot. The first shim after
its end starts another server.
"""

from __future__ import annotations

import fcntl
import os
import site
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from ..errors import IOFailureError, cause_of
from ..plugin._launch import find_launcher
from . import lifetime
from .lifetime import Lifetime

LOCK = "lock"
"""Name of the file of which shims and servers hold a lock."""

FORBIDDEN = "/etc/cnisdk/no-server"
"""Path of a file by which an administrator forbids servers on demand."""

PRESSURE_PAUSE = 60
"""Seconds without an attempt to start a server after memory was short."""

MISMATCH_PAUSE = 600
"""Seconds without an attempt after a server found that the shim which started it is not of its installation."""

# Seconds to wait for the lock of the shim that started this server.
_LOCK_TIMEOUT = 5.0

# Seconds between two checks of files and memory.
_CHECK_INTERVAL = 1.0


class FileState(NamedTuple):
    """Identity and state of a file. It differs after the file was written, and for another file at its path."""

    device: int
    inode: int
    size: int
    written: int


class Installation:
    """Files and directories by which a server sees that its installation has changed.

    Args:
        paths: Their paths. Links are followed.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._files: dict[str, FileState | None] = {}
        self.add(paths)

    def add(self, paths: Iterable[str], *, since: int | None = None) -> None:
        """Record files as they are now. A path that was added before keeps its record.

        Args:
            paths: Their paths.
            since: Earliest time at which they were loaded, in nanoseconds since the epoch. A file that was written
                later counts as changed, since it is not known which version was loaded.
        """
        for path in paths:
            if path not in self._files:
                state = _examine(path)
                changed = since is not None and _is_changed_since(path, since)
                self._files[path] = None if changed else state

    def find_change(self) -> str | None:
        """Find a file that is not as it was; None if all are."""
        for path, state in self._files.items():
            if state is None or _examine(path) != state:
                return path
        return None


def _examine(path: str) -> FileState | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _is_changed_since(path: str, since: int) -> bool:
    """Compare the time that only the kernel sets (ctime): package managers set old times of modification.

    A time that is still to come is of a file that was written before the clock was put back.
    """
    try:
        return since < os.stat(path).st_ctime_ns <= time.time_ns()
    except OSError:
        return True


def is_memory_short() -> bool:
    """Return True if the memory of this machine is short (:mod:`.lifetime`)."""
    return lifetime.is_memory_short(_read_proc("pressure/memory"), _read_proc("meminfo"))


def _read_proc(name: str) -> str:
    """Read a file in ``/proc``; empty if this kernel has none."""
    try:
        with open(f"/proc/{name}", encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


class OnDemand:
    """Life of a server on demand. It passes the clock, the files and the memory of the machine to the policy.

    Args:
        shim: Path of the shim that started this server.
        lock: Descriptor of the lock, which this process holds.
        since: Time before plugins were loaded, in nanoseconds since the epoch.
    """

    def __init__(self, shim: str, lock: int, since: int) -> None:
        self.lock = lock
        self._since = since
        self._installation = Installation([shim, sys.executable])

    def note_start(self, socket: str) -> None:
        """Note that the server begins to serve: all modules are loaded, and no request has come.

        Args:
            socket: Path of its socket. Another in its place is of another server.
        """
        modules = {getattr(each, "__file__", None) for each in list(sys.modules.values())}
        # A module of an archive has a path that is no file.
        self._installation.add((path for path in modules if path and os.path.exists(path)), since=self._since)
        # A package that comes or goes changes the time of its directory. Its plugins are to be served as well.
        self._installation.add(path for path in site.getsitepackages() if os.path.isdir(path))
        self._installation.add([socket])
        now = time.monotonic()
        self._lifetime, self._looked = Lifetime(now), now

    def note_request(self) -> None:
        """Note that a worker has answered a request."""
        self._lifetime.note_request(time.monotonic())

    def find_reason(self, *, busy: bool) -> str | None:
        """Find a reason to end; None if the server goes on. It looks once a second at most.

        Args:
            busy: A worker runs a request.
        """
        now = time.monotonic()
        if now < self._looked + _CHECK_INTERVAL:
            return None
        self._looked = now
        short = is_memory_short()
        if short:
            postpone(self.lock, PRESSURE_PAUSE)
        return self._lifetime.find_reason(now, busy=busy, changed=self._installation.find_change(), short=short)


def take_lock(directory: str) -> int | None:
    """Take the lock that a server holds for its life.

    Args:
        directory: Directory of the server, which exists and is this user's alone.

    Returns:
        Descriptor of the lock; None if another server holds it.

    Raises:
        IOFailureError: (5) The file cannot be opened, or is no file of this user alone.
    """
    path = os.path.join(directory, LOCK)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        lock = os.open(path, flags, 0o600)
        status = os.fstat(lock)
        if status.st_uid != os.geteuid() or status.st_mode & 0o170077 != 0o100000:
            raise IOFailureError(f"{path} is not a file of this user alone", details="remove it")
    except OSError as exc:
        raise IOFailureError(f"cannot open {path}: {cause_of(exc)}") from exc
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while not _try_lock(lock):
        if time.monotonic() > deadline:
            os.close(lock)
            return None
        time.sleep(0.05)  # flock(2) has no timeout, and an alarm would need a handler
    return lock


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def keep_to_this_process(lock: int) -> None:
    """Have processes that this one forks close the lock: workers, and daemons that a plugin leaves while it is loaded.

    One that lived on would keep all later servers away. A process forked from such a one finds the list empty, and
    closes nothing: its descriptors may be others by then.
    """
    locks = [lock]

    def let_go() -> None:
        while locks:
            os.close(locks.pop())

    os.register_at_fork(after_in_child=let_go)


def postpone(lock: int, seconds: int) -> None:
    """Let shims start no server for some seconds."""
    now = time.time()
    os.utime(lock, (now, now + seconds))


def explain_absence(directory: str) -> str:
    """Explain, in a sentence for people, why no server on demand runs, as far as its directory and this host tell."""
    path = os.path.join(directory, LOCK)
    if os.path.lexists(FORBIDDEN):
        return f"shims start none, since there is {FORBIDDEN}"
    try:
        lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "no shim has tried to start one yet; see docs/modes.md for when it may"
    except OSError as exc:
        return f"shims start none, since {path} cannot be opened: {cause_of(exc)}"
    try:
        if not _try_lock(lock):
            return f"one is starting or ending, or does not answer: it has the lock of {path}"
        wait = os.fstat(lock).st_mtime - time.time()
    finally:
        os.close(lock)
    if wait > 0:
        return f"shims start one in {wait:.0f} seconds at the earliest; {directory}/server.log or the journal says why"
    return "the next request starts one, if its shim may: see docs/modes.md"


def permit_start(directory: str) -> None:
    """Let shims start a server at once, whatever the last attempt has found: the installation is another now."""
    with suppress(OSError):  # no attempt was made yet; or another user installs
        os.utime(os.path.join(directory, LOCK), follow_symlinks=False)


def find_mismatch(shim: str, launchers: Mapping[str, bytes]) -> str | None:
    """Look for a reason why a server would decline the requests of a shim, and so would be of no use to it.

    Args:
        shim: Path of the shim.
        launchers: Launchers of the installation, by type.
    """
    try:
        with open(shim, "rb") as file:
            content = file.read(1 << 20)
    except OSError as exc:
        return f"cannot read the shim {shim}: {cause_of(exc)}"
    theirs = find_launcher(content)
    if theirs is None or theirs not in launchers.values():
        return f"the shim {shim} is of another version: run `cnisdk install` again"
    return None
