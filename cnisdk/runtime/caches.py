"""The cached results of all runtimes of a host, wherever each keeps its own.

An attachment may be alive if any runtime has a cached result of it. So the places known here are always read, and the
operator can name further ones. Reading one more place can only keep an attachment, and never make one dead.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_interface

from .._files import leads_nowhere
from .._light import Any, Literal, NamedTuple
from ..errors import CNIError
from ..spec.addresses import IPAddress
from ..spec.codec import loads
from ..spec.names import Attachment
from .cache import DEFAULT_CACHE_DIR, CachedAttachment, parse_entry

RESULTS = "results"
"""Name of the directory with results inside a cache directory."""

VARIABLE = "CNISDK_CACHE_DIRS"
"""The environment variable with further cache directories, separated by colons."""

_NO_CACHES = frozenset({"networks", ".cnisdk"})  # host-local's directories below /var/lib/cni

Problem = Literal["empty", "torn", "not readable", "foreign"]
"""Reason why a cached result cannot be used."""


class Place(NamedTuple):
    """A directory with cached results.

    Attributes:
        path: The directory.
        loose: If true, other files may lie there too: a file that is no cached result is passed over.
    """

    path: str
    loose: bool = False


class Remembered(NamedTuple):
    """A cached result, and the file it is in.

    Attributes:
        entry: Its content.
        path: The file.
        age: Seconds since it was written; below 0 if the clock has been set back since.
        written: Time of its last change, in seconds since the epoch.
        stamp: Inode and time of change, which tell this very file from a later one of its name.
    """

    entry: CachedAttachment
    path: str
    age: float = 0.0
    written: float = 0.0
    stamp: tuple[int, int] = (0, 0)

    @property
    def cache_dir(self) -> str:
        """The directory whose ``results`` it is in, for :class:`~.cache.Cache`."""
        return os.path.dirname(os.path.dirname(self.path))


class Unreadable(NamedTuple):
    """A file in the place of a cached result that names no attachment.

    Attributes:
        path: The file.
        problem: ``empty`` and ``torn``: its runtime was killed while it wrote. ``not readable``: this user may not read
            it. ``foreign``: it is no cached result.
        text: The problem in words.
        age: Seconds since it was written; below 0 if the clock has been set back since.
        stamp: As for :class:`Remembered`.
    """

    path: str
    problem: Problem
    text: str
    age: float = 0.0
    stamp: tuple[int, int] = (0, 0)

    def may_be_of(self, attachment: Attachment) -> bool:
        """Return True if the name of the file could be that of this attachment's cached result."""
        name = os.path.basename(self.path)
        if attachment.ifname:
            return name == "-".join(attachment)
        return name.startswith(f"{attachment.network}-{attachment.container_id}-")


class Memory(NamedTuple):
    """The cached results of all runtimes of this host.

    Attributes:
        places: The directories that were read.
        entries: The cached results.
        unreadable: Files that name no attachment.
        hidden: Directories that could not be read, each with the reason.
        loose: Files that tell something only to an attachment whose cached result would have their name. They name no
            attachment, and lie where other files lie too; or they are another attachment's, which may have overwritten
            that cached result.
    """

    places: tuple[str, ...] = ()
    entries: tuple[Remembered, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    hidden: tuple[str, ...] = ()
    loose: tuple[Unreadable, ...] = ()


def known_directories(more: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the cache directories to look into: libcni's default, those of the environment, and more.

    containerd, CRI-O, Podman, Nomad and cnitool use the default. Other runtimes use directories below it: multus for
    its delegates (``multus``), kubelet's docker shim (``cache``), Firecracker's SDK one for each machine.
    """
    named = [each for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    return tuple(dict.fromkeys(map(os.path.abspath, (DEFAULT_CACHE_DIR, *named, *more))))


def find_places(directories: Iterable[str]) -> tuple[Place, ...]:
    """Find the places of cached results: ``results`` of each directory, each directory below it, and its ``results``.

    A directory that cannot be read is a place too, so that :func:`read_all` reports it; so is a symbolic link that
    leads nowhere, such as to a disk that is not mounted.
    """
    found: list[Place] = []
    for directory in directories:
        if _may_exist(os.path.join(directory, RESULTS)):
            found.append(Place(os.path.join(directory, RESULTS)))
        try:
            with os.scandir(directory) as listing:
                below = sorted(
                    each.path
                    for each in listing
                    if each.name not in _NO_CACHES and (each.is_dir() or leads_nowhere(each.path))
                )
        except OSError as exc:
            if not isinstance(exc, FileNotFoundError) or leads_nowhere(directory):
                found.append(Place(directory))
            continue
        for each in below:
            if os.path.basename(each) != RESULTS:
                found.append(Place(each, loose=True))
                if _may_exist(os.path.join(each, RESULTS)):
                    found.append(Place(os.path.join(each, RESULTS)))
    return tuple(dict.fromkeys(found))


def _may_exist(path: str) -> bool:
    """Return False only if there certainly is no file: one that cannot be looked at may have all that lives."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def read_all(places: Iterable[Place], network: str = "") -> Memory:
    """Read the cached results in all places.

    Args:
        places: The directories.
        network: Only those of this network, and only the problems with files that may be its.
    """
    read: list[str] = []
    entries: list[Remembered] = []
    unreadable: list[Unreadable] = []
    hidden: list[str] = []
    loose: list[Unreadable] = []
    for place in places:
        try:
            names = sorted(os.listdir(place.path))
        except FileNotFoundError:
            if leads_nowhere(place.path):
                hidden.append(f"{place.path} is a symbolic link that leads nowhere")
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
            ours = not network or name.startswith(f"{network}-")
            if isinstance(found, Remembered):
                attachment = found.entry.attachment
                proper = name == "-".join(attachment)
                if (not place.loose or proper) and network in ("", attachment.network):
                    entries.append(found)
                if proper and ours and name.count("-") > 2:  # names may contain "-", so others have this file name
                    loose.append(Unreadable(found.path, "foreign", f"is that of {attachment}", found.age, found.stamp))
            elif found is not None and ours:
                (loose if place.loose else unreadable).append(found)
    return Memory(tuple(read), tuple(entries), tuple(unreadable), tuple(hidden), tuple(loose))


def read_file(path: str) -> Remembered | Unreadable | None:
    """Read one file; return None if there is none, or cannot be one of that name."""
    try:
        # Without O_NONBLOCK, opening a named pipe of that name would never return.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return (
            Unreadable(path, "not readable", "is a symbolic link that leads nowhere") if leads_nowhere(path) else None
        )
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            return None
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            return Unreadable(path, "foreign", "is no cached result")
        return Unreadable(path, "not readable", f"cannot be read: {exc.strerror}")
    try:
        about = os.fstat(fd)
        age = time.time() - about.st_mtime
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
    if not data.lstrip().startswith(b"{"):
        return Unreadable(path, "foreign", "is no cached result", age, stamp)
    try:
        loads(data, "cached result")
    except CNIError as exc:
        return Unreadable(path, "torn", f"is torn, its writer was killed: {exc.msg}", age, stamp)
    try:
        entry = parse_entry(data, path)
    except CNIError as exc:
        return Unreadable(path, "foreign", f"cannot be understood: {exc.msg}", age, stamp)
    return Remembered(entry, path, age, max(about.st_mtime, about.st_ctime), stamp)


def read_of(
    attachment: Attachment, places: Iterable[Place], paths: Iterable[str] = ()
) -> tuple[Remembered | Unreadable, ...]:
    """Read the files that are an attachment's cached results, or may be.

    Args:
        attachment: The attachment.
        places: The directories to look into.
        paths: Further files, such as those that an earlier look has found.
    """
    name = "-".join(attachment)
    wanted = dict.fromkeys([*(os.path.join(place.path, name) for place in places), *paths])
    found = [each for each in map(read_file, wanted) if each is not None]
    return tuple(each for each in found if isinstance(each, Unreadable) or each.entry.attachment == attachment)


def forget(found: Remembered | Unreadable) -> bool:
    """Remove a file if it is still the very one that was read, and return True if it was.

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


# --- what a cached result says ----------------------------------------------------------------------------------------


def namespace_of(entry: Remembered) -> str:
    """Return the path of the namespace. Libcni before 1.2 has it only in the result, as ``sandbox`` of an interface."""
    if entry.entry.netns:
        return entry.entry.netns
    return next((each["sandbox"] for each in _interfaces(entry) if each["sandbox"].startswith("/")), "")


def addresses_of(entry: Remembered) -> tuple[IPAddress, ...]:
    """Return the addresses in a result of any version, without loopback addresses and texts that are no address."""
    result = entry.entry.result or {}
    texts = [each.get("address") for each in _objects(result.get("ips"))]
    texts += [each.get("ip") for each in _objects([result.get("ip4"), result.get("ip6")])]
    found = []
    for text in texts:
        try:
            address = ip_interface(str(text)).ip
        except ValueError:
            continue
        if not address.is_loopback:
            found.append(address)
    return tuple(found)


def macs_of(entry: Remembered) -> tuple[str, ...]:
    """Return the hardware addresses of the links in the container, without that of lo, which is all zeros."""
    return tuple(each["mac"].lower() for each in _interfaces(entry) if each["sandbox"] and each["mac"].strip("0:"))


def host_ends_of(entry: Remembered) -> tuple[tuple[str, str], ...]:
    """Return the names and hardware addresses of the links on the host."""
    return tuple(
        (each["name"], each["mac"].lower())
        for each in _interfaces(entry)
        if not each["sandbox"] and each["name"] and each["mac"]
    )


def _interfaces(entry: Remembered) -> list[dict[str, str]]:
    listed = _objects((entry.entry.result or {}).get("interfaces"))
    keys = ("name", "mac", "sandbox")
    return [{key: value if isinstance(value := each.get(key), str) else "" for key in keys} for each in listed]


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
