"""The cached results of all runtimes of a host, wherever each keeps its own.

An attachment that any of them remembers may be alive. So the places known here are always read, and further ones can be
named; reading one more place can only keep something.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..errors import CNIError
from ..spec.codec import loads
from ..spec.names import Attachment
from .cache import DEFAULT_CACHE_DIR, CachedAttachment, parse_entry

RESULTS = "results"
VARIABLE = "CNISDK_CACHE_DIRS"
"""The environment variable with further cache directories, separated by colons."""

_NO_CACHES = frozenset({"networks", ".cnisdk"})  # what host-local keeps below /var/lib/cni

Problem = Literal["empty", "torn", "not readable", "foreign"]


class Place(NamedTuple):
    """A directory with cached results.

    Attributes:
        path: The directory.
        loose: Files of others may lie there too: what is no cached result is passed over.
    """

    path: str
    loose: bool = False


class Remembered(NamedTuple):
    """A cached result, and the file it is in.

    Attributes:
        entry: What it says.
        path: The file.
        age: How long ago it was written, in seconds.
        written: When it was written or changed last, in seconds since the epoch.
        stamp: What tells this very file from another of its name that comes later.
    """

    entry: CachedAttachment
    path: str
    age: float = 0.0
    written: float = 0.0
    stamp: tuple[int, int] = (0, 0)

    @property
    def cache_dir(self) -> str:
        """The directory whose ``results`` it is in: what :class:`~.cache.Cache` wants."""
        return os.path.dirname(os.path.dirname(self.path))


class Unreadable(NamedTuple):
    """A file that should be a cached result, and tells nothing.

    Attributes:
        path: The file.
        problem: ``empty`` and ``torn`` are left by a runtime that was killed while it wrote; ``not readable`` is for
            this user, and says nothing of the file; ``foreign`` is something else than a cached result.
        text: The problem in words.
        age: How long ago it was written, in seconds.
        stamp: As for :class:`Remembered`.
    """

    path: str
    problem: Problem
    text: str
    age: float = 0.0
    stamp: tuple[int, int] = (0, 0)

    def may_be_of(self, attachment: Attachment) -> bool:
        """Could it have been this attachment's? The name of the file is all there is to tell."""
        name = os.path.basename(self.path)
        if attachment.ifname:
            return name == "-".join(attachment)
        return name.startswith(f"{attachment.network}-{attachment.container_id}-")


class Memory(NamedTuple):
    """What the runtimes of this host remember.

    Attributes:
        places: The directories that were read.
        entries: The cached results.
        unreadable: Files that tell nothing.
        hidden: Directories that could not be read, each with the reason.
    """

    places: tuple[str, ...] = ()
    entries: tuple[Remembered, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    hidden: tuple[str, ...] = ()


def known_directories(more: Iterable[str] = ()) -> tuple[str, ...]:
    """The cache directories to look into: libcni's default, those of the environment, and more.

    The default is that of containerd, CRI-O, Podman, Nomad and cnitool. In the directories below it, others keep
    theirs: multus the delegates' (``multus``), kubelet's docker shim (``cache``), Firecracker's SDK for each machine.
    """
    named = [each for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    return tuple(dict.fromkeys(map(os.path.abspath, (DEFAULT_CACHE_DIR, *named, *more))))


def find_places(directories: Iterable[str]) -> tuple[Place, ...]:
    """Find where cached results are: in ``results`` of each directory, in each directory below, and in its ``results``.

    What cannot be read is a place too, so that somebody hears of it.
    """
    found: list[Place] = []
    for directory in directories:
        if os.path.lexists(os.path.join(directory, RESULTS)):
            found.append(Place(os.path.join(directory, RESULTS)))
        try:
            with os.scandir(directory) as listing:
                below = sorted(each.path for each in listing if each.name not in _NO_CACHES and each.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            found.append(Place(directory))
            continue
        for each in below:
            if os.path.basename(each) != RESULTS:
                found.append(Place(each, loose=True))
                if os.path.lexists(os.path.join(each, RESULTS)):
                    found.append(Place(os.path.join(each, RESULTS)))
    return tuple(dict.fromkeys(found))


def read_all(places: Iterable[Place], network: str = "") -> Memory:
    """Read the cached results in all places.

    Args:
        places: Where they are.
        network: Only those of this network, and only the problems with files that may be its.
    """
    read: list[str] = []
    entries: list[Remembered] = []
    unreadable: list[Unreadable] = []
    hidden: list[str] = []
    for place in places:
        try:
            names = sorted(os.listdir(place.path))
        except FileNotFoundError:
            continue
        except OSError as exc:
            if not place.loose or exc.errno != errno.ENOTDIR:
                hidden.append(f"{place.path} cannot be read: {exc.strerror}")
            continue
        if not place.loose:
            read.append(place.path)
        for name in names:
            # <network>-<container id>-<interface>; a temporary file begins with a dot.
            if name.startswith(".") or name.count("-") < 2:
                continue
            found = read_file(os.path.join(place.path, name))
            if isinstance(found, Remembered):
                if (not place.loose or name == "-".join(found.entry.attachment)) and (
                    not network or found.entry.attachment.network == network
                ):
                    entries.append(found)
            elif found is not None and not place.loose and (not network or name.startswith(f"{network}-")):
                unreadable.append(found)
    return Memory(tuple(read), tuple(entries), tuple(unreadable), tuple(hidden))


def read_file(path: str) -> Remembered | Unreadable | None:
    """Read one file; None if there is none."""
    try:
        # Without O_NONBLOCK, a named pipe of that name would stop everything.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            return Unreadable(path, "foreign", "is no cached result")
        return Unreadable(path, "not readable", f"cannot be read: {exc.strerror}")
    try:
        about = os.fstat(fd)
        age = max(0.0, time.time() - about.st_mtime)
        stamp = about.st_ino, about.st_ctime_ns
        if not stat.S_ISREG(about.st_mode):
            return Unreadable(path, "foreign", "is no file", age, stamp)
        with open(fd, "rb", closefd=False) as file:
            data = file.read()
    except OSError as exc:
        return Unreadable(path, "not readable", f"cannot be read: {exc.strerror}")
    finally:
        os.close(fd)
    if not data.strip(b"\0"):
        return Unreadable(path, "empty", "is empty: its writer was killed", age, stamp)
    try:
        loads(data, "cached result")
    except CNIError as exc:
        return Unreadable(path, "torn", f"is torn, its writer was killed: {exc.msg}", age, stamp)
    try:
        entry = parse_entry(data, path)
    except CNIError as exc:
        return Unreadable(path, "foreign", f"cannot be understood: {exc.msg}", age, stamp)
    return Remembered(entry, path, age, max(about.st_mtime, about.st_ctime), stamp)


def forget(found: Remembered | Unreadable) -> bool:
    """Remove a file, if it is still the very one that was read; say whether it was.

    Raises:
        OSError: It cannot be removed.
    """
    try:
        about = os.stat(found.path)
        if (about.st_ino, about.st_ctime_ns) != found.stamp:
            return False
        os.unlink(found.path)
    except FileNotFoundError:
        return False
    return True
