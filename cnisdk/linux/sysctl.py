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
    fd = _open(key)
    if fd is None:
        return None
    try:
        return _read(fd, key)
    finally:
        os.close(fd)


def get(key: str) -> str:
    """Read a setting.

    Raises:
        SysctlError: (5) The kernel has none of that name, or it cannot be read.
    """
    value = find(key)
    if value is None:
        raise _absent(key)
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
    changed = _ensure(key, value)
    if changed is None:
        raise _absent(key)
    return changed


def ensure_if_present(key: str, value: str) -> bool:
    """Like :func:`ensure`, doing nothing where the kernel has no such setting.

    Raises:
        SysctlError: (5) It cannot be written, or did not keep the value.
    """
    return bool(_ensure(key, value))


def _ensure(key: str, value: str) -> bool | None:
    """Give a setting a value; None when there is no such setting."""
    reading = _open(key)
    if reading is None:
        return None
    try:
        before = _read(reading, key)
        if before == value:
            return False
        try:
            writing = os.open(_ROOT + key, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(writing, value.encode("ascii"))
            finally:
                os.close(writing)
        except OSError as error:
            raise SysctlError(
                f"cannot set sysctl {key} from {before} to {value}: {errno.errorcode.get(error.errno or 0)}",
                details=(
                    f"{_ROOT}{key} must be writable, or have the value {value} beforehand"
                    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
                    else ""
                ),
            ) from error
        after = _read(reading, key)
    finally:
        os.close(reading)
    if after != value:
        raise SysctlError(f"sysctl {key} is {after} after {value} was written to it")
    return True


def _open(key: str) -> int | None:
    try:
        # Not open(): its buffer and decoder take six times as long as the system calls.
        return os.open(_ROOT + key, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(key, error) from error


def _read(fd: int, key: str) -> str:
    try:
        return os.pread(fd, 4096, 0).decode("ascii", "replace").strip()
    except OSError as error:
        raise _unreadable(key, error) from error


def _unreadable(key: str, error: OSError) -> SysctlError:
    return SysctlError(f"cannot read sysctl {key}: {errno.errorcode.get(error.errno or 0)}")


def _absent(key: str) -> SysctlError:
    return SysctlError(f"sysctl {key} does not exist", details=f"no file {_ROOT}{key}")


def enable_forwarding(*, ipv4: bool = False, ipv6: bool = False) -> None:
    """Let this host forward packets, as a gateway must.

    Raises:
        SysctlError: (5) The kernel refused, or has no such protocol.
    """
    if ipv4:
        ensure("net/ipv4/ip_forward", "1")
    if ipv6:
        ensure("net/ipv6/conf/all/forwarding", "1")


def refuse_advertisements(ifname: str, *, redirects: bool = True) -> None:
    """Let a link ignore router advertisements, verified: any neighbour could otherwise give it addresses and routes.

    Nothing need be set where the kernel has no IPv6. A link whose IPv6 is disabled hears none, so there a setting that
    cannot be written is no failure.

    Args:
        ifname: The link, in the calling thread's namespace.
        redirects: Ignore redirects too.

    Raises:
        SysctlError: (5) It cannot be set, or did not stay.
    """
    keys = ("accept_ra", "accept_redirects") if redirects else ("accept_ra",)
    try:
        for key in keys:
            ensure_if_present(f"net/ipv6/conf/{ifname}/{key}", "0")
    except SysctlError as error:
        if find(f"net/ipv6/conf/{ifname}/disable_ipv6") == "1":
            return
        beforehand = " and ".join(f"net.ipv6.conf.default.{key}=0" for key in keys)
        raise SysctlError(
            error.msg,
            details=f"{_ROOT}net must be writable; where it cannot be, set {beforehand} in the link's network "
            "namespace beforehand: new links take that over",
        ) from error
