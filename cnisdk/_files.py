"""State files: read them without trusting what lies at the path, and replace them atomically."""

from __future__ import annotations

import errno
import os
import stat
import time

# Largest file that is read, in bytes. No configuration or cached result comes near it.
_LIMIT = 64 << 20

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


TEMPORARY = ".tmp"
"""Suffix of temporary files, which a killed process may leave. Their names begin with a dot."""


def make_private(directory: str) -> None:
    """Make a directory and its parents, readable by their owner alone: state may be confidential.

    Raises:
        OSError: The directory cannot be made. ``strerror`` says so if something else is in its place.
    """
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    if parent != directory:
        make_private(parent)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError as exc:
        if os.path.isdir(directory):
            return
        if dangling := find_dangling(directory):
            raise OSError(errno.ENOENT, dangling, directory) from exc
        if os.path.islink(directory):
            raise  # one that leads to itself, or to what may not be looked at
        kind = _KINDS.get(stat.S_IFMT(os.lstat(directory).st_mode), "a file")
        raise OSError(errno.ENOTDIR, f"{directory} is {kind}, not a directory", directory) from exc


def find_dangling(path: str) -> str | None:
    """Find a symbolic link on a path that leads nowhere, and say so: a disk that is not mounted, perhaps.

    Returns:
        A sentence, or None if there is no such link: what is missing may then be made.
    """
    while path and path != os.path.dirname(path):
        if leads_nowhere(path):
            return f"{path} is a symbolic link to {os.readlink(path)}, which does not exist"
        path = os.path.dirname(path)
    return None


def leads_nowhere(path: str) -> bool:
    """Return True if a path is a symbolic link to something that does not exist."""
    return os.path.islink(path) and not os.path.exists(path)


def check_owner(fd: int, path: str) -> None:
    """Refuse a directory into which others than this user and root can put files, or take them away.

    Args:
        fd: Descriptor of the directory.
        path: Its path, for the error.

    Raises:
        OSError: Others can. ``strerror`` says so.
    """
    about = os.fstat(fd)
    if about.st_uid not in (0, os.geteuid()):
        raise OSError(errno.EPERM, f"it belongs to user {about.st_uid}, and others are not to be trusted", path)
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(errno.EPERM, f"others may write it (mode {stat.S_IMODE(about.st_mode):04o})", path)


def replace_file(path: str, data: bytes, temporary: str = "") -> None:
    """Replace a file atomically. Only its owner may read it.

    There is no fsync: after a power cut, nothing that a state file describes exists any more.

    Args:
        path: Path of the file.
        data: New content.
        temporary: Path in the same directory to write to first; by default one that no other process uses.

    Raises:
        OSError: The file cannot be written; nothing has changed.
    """
    check_path(path)
    directory = os.path.dirname(path)
    make_private(directory)
    # Short, since the names themselves may already be as long as a file's name can be.
    exclusive = 0 if temporary else os.O_EXCL
    temporary = temporary or os.path.join(directory, f".{os.getpid()}.{time.monotonic_ns()}{TEMPORARY}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | exclusive | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_file(path: str, *, follow: bool = True) -> bytes:
    """Read a regular file. Opening anything else does not block, and is refused: a FIFO would block for ever.

    Args:
        path: Path of the file.
        follow: Follow a symbolic link. If false, a link is refused.

    Raises:
        OSError: The file cannot be read. ``strerror`` says so if it is no regular file, or too large for a state file.
    """
    fd = open_file(path, follow=follow)
    try:
        return read_open_file(fd, path)
    finally:
        os.close(fd)


def open_file(path: str, *, follow: bool = True) -> int:
    """Open a file for :func:`read_open_file`, and return its descriptor.

    Raises:
        OSError: As :func:`read_file`.
    """
    check_path(path)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        return os.open(path, flags)
    except OSError as exc:
        if exc.errno == errno.ELOOP and os.path.islink(path) and not follow:
            raise OSError(errno.ELOOP, "it is a symbolic link, not a regular file", path) from exc
        if exc.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is a socket or a device, not a regular file", path) from exc
        raise


def read_open_file(fd: int, path: str) -> bytes:
    """Read a file from where its descriptor is, and see that it is a regular one.

    Raises:
        OSError: As :func:`read_file`.
    """
    about = os.fstat(fd)
    kind = stat.S_IFMT(about.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a regular file", path)
    # Without a file object, which costs more than all the rest.
    data, size = b"", min(about.st_size, _LIMIT) + 1
    while len(data) <= _LIMIT:
        read = os.read(fd, size)
        data += read
        if len(read) < size:
            break  # a regular file has no more
        size = 1 << 16
    if len(data) > _LIMIT:
        raise OSError(errno.EFBIG, f"it is larger than {_LIMIT >> 20} MiB", path)
    return data


def check_path(path: str) -> None:
    """Refuse what can be no path, such as one from a configuration: Python's error for it is no OSError."""
    if "\0" in path:
        raise OSError(errno.ENOENT, "no path has a NUL character", path)
