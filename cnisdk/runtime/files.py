"""Read files that something else may have put in place of what belongs there."""

from __future__ import annotations

import errno
import os
import stat

# No configuration and no cached result is near this.
_LIMIT = 64 << 20

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: str, *, follow: bool = True) -> bytes:
    """Read a regular file. Nothing else is waited for: opening a FIFO would never end.

    Args:
        path: The file.
        follow: Read what a symbolic link leads to; otherwise a link is refused.

    Raises:
        OSError: It cannot be read; ``strerror`` says when it is no regular file, or larger than any of these can be.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except OSError as exc:
        if exc.errno == errno.ELOOP and os.path.islink(path) and not follow:
            raise OSError(errno.ELOOP, "it is a symbolic link, not a regular file", path) from exc
        if exc.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is a socket or a device, not a regular file", path) from exc
        raise
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a regular file", path)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(_LIMIT + 1)
    finally:
        os.close(fd)
    if len(data) > _LIMIT:
        raise OSError(errno.EFBIG, f"it is larger than {_LIMIT >> 20} MiB", path)
    return data
