"""Kernel settings below ``/proc/sys``, of the calling thread's network namespace where they belong to one.

Keys are written with slashes, ``net/ipv6/conf/eth0/accept_ra``: an interface's name may contain dots. For another
namespace, call these through :meth:`cnisdk.linux.netns.NetNS.call`.
"""

from __future__ import annotations

import errno
import os

from ..errors import IOFailureError

_ROOT = "/proc/sys/"


class SysctlError(IOFailureError):
    """Code 5: a setting could not be read or written, or did not keep its value."""


def find(key: str) -> str | None:
    """Read a setting; None when the kernel has no such setting (no IPv6, an older version, no such link).

    Raises:
        SysctlError: (5) It cannot be read.
    """
    try:
        # Not open(): its buffer and decoder take six times as long as the system calls.
        fd = os.open(_ROOT + key, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 4096).decode("ascii", "replace").strip()
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SysctlError(f"cannot read sysctl {key}: {errno.errorcode.get(error.errno or 0)}") from error


def get(key: str) -> str:
    """Read a setting.

    Raises:
        SysctlError: (5) The kernel has none of that name, or it cannot be read.
    """
    value = find(key)
    if value is None:
        raise SysctlError(f"sysctl {key} does not exist", details=f"no file {_ROOT}{key}")
    return value


def ensure(key: str, value: str) -> bool:
    """Give a setting a value, unless it has it, and verify by reading it back.

    Nothing is written when nothing needs to change: /proc/sys is often read-only inside containers, and writing
    ``forwarding`` resets other settings.

    Returns:
        Whether it was changed.

    Raises:
        SysctlError: (5) It does not exist, cannot be written, or did not keep the value.
    """
    before = get(key)
    if before == value:
        return False
    try:
        fd = os.open(_ROOT + key, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        raise SysctlError(
            f"cannot set sysctl {key} from {before} to {value}: {errno.errorcode.get(error.errno or 0)}",
            details=f"{_ROOT}{key} must be writable" if error.errno in (errno.EROFS, errno.EACCES) else "",
        ) from error
    after = get(key)
    if after != value:
        raise SysctlError(f"sysctl {key} is {after} after {value} was written to it")
    return True


def ensure_if_present(key: str, value: str) -> bool:
    """Like :func:`ensure`, doing nothing where the kernel has no such setting.

    Raises:
        SysctlError: (5) It cannot be written, or did not keep the value.
    """
    return find(key) is not None and ensure(key, value)


def enable_forwarding(*, ipv4: bool = False, ipv6: bool = False) -> None:
    """Let this host forward packets, as a gateway must.

    Raises:
        SysctlError: (5) The kernel refused, or has no such protocol.
    """
    if ipv4:
        ensure("net/ipv4/ip_forward", "1")
    if ipv6:
        ensure("net/ipv6/conf/all/forwarding", "1")
