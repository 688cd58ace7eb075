"""Kernel settings below ``/proc/sys``, of the calling thread's network namespace where they belong to one.

Keys are written with slashes, ``net/ipv6/conf/eth0/accept_ra``, or with dots, ``net.ipv4.ip_forward``. As in sysctl(8)
the first separator decides: after a slash, dots belong to names, such as the interface's in
``net/ipv4/conf/eth0.1/arp_notify``. For another namespace, call these through :meth:`cnisdk.linux.netns.NetNS.call`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping

from .._files import read_file
from ..errors import InvalidConfigError, IOFailureError, cause_of

_ROOT = "/proc/sys/"
_OCTAL = frozenset("01234567")


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

    Args:
        key: The setting, such as ``net.ipv4.ip_forward``.
        value: The value, as the kernel reads it.

    Returns:
        True if it was changed.

    Raises:
        SysctlError: (5) It does not exist, cannot be written, or did not keep the value.
    """
    changed = _ensure(key, value)
    if changed is None:
        raise _absent(key)
    return changed


def ensure_if_present(key: str, value: str) -> bool:
    """Give a setting a value as :func:`ensure` does. Do nothing if the kernel has no such setting.

    Args:
        key: The setting, such as ``net.ipv6.conf.all.forwarding``.
        value: The value, as the kernel reads it.

    Returns:
        True if it was changed.

    Raises:
        SysctlError: (5) It cannot be written, or did not keep the value.
    """
    return bool(_ensure(key, value))


def path_of(key: str) -> str:
    """Return the normalized path of a key below ``/proc/sys``: ``net/ipv4/ip_forward`` for ``net.ipv4.ip_forward``.

    Use it to find out if a key from a configuration may be set: ``path_of("net/../kernel/hostname")`` is
    ``kernel/hostname``.
    """
    import posixpath

    return posixpath.normpath(_relative(key))


def _relative(key: str) -> str:
    slash, dot = key.find("/"), key.find(".")
    return key if 0 <= slash < dot or dot < 0 else key.replace(".", "/")


def same(there: str, value: str) -> bool:
    """Compare two values of a setting as the kernel does: it shows tabs between numbers, and no leading zeros or 0x."""
    return there == value or [_number(each) for each in there.split()] == [_number(each) for each in value.split()]


def _number(word: str) -> int | str:
    try:
        return int(word, 0)
    except ValueError:
        return int(word, 8) if _OCTAL.issuperset(word) else word


def write(key: str, value: str) -> str:
    """Write a setting, unless it has the value, and return what the kernel then shows, which may be spelt differently.

    Args:
        key: The setting, such as ``net.ipv4.ip_forward``.
        value: The value, as the kernel reads it.

    Raises:
        SysctlError: (5) It does not exist, or cannot be written.
    """
    written = _exchange(key, value)
    if written is None:
        raise _absent(key)
    return written[1]


def get_all(keys: Iterable[str]) -> dict[str, str]:
    """Read several settings in one call, as for :meth:`.NetNS.call`.

    Raises:
        SysctlError: (5) As for :func:`get`.
    """
    return {key: get(key) for key in keys}


def write_all(values: Mapping[str, str]) -> dict[str, str]:
    """Write several settings, in this order, and return what the kernel then shows.

    Raises:
        SysctlError: (5) As for :func:`write`; those before it stay written.
    """
    return {key: write(key, value) for key, value in values.items()}


def _ensure(key: str, value: str) -> bool | None:
    """Give a setting a value; None when there is no such setting."""
    written = _exchange(key, value)
    if written is None:
        return None
    before, after = written
    if not same(after, value):
        raise SysctlError(f"sysctl {key} is {after} after {value} was written to it")
    return not same(before, value)


def _exchange(key: str, value: str) -> tuple[str, str] | None:
    """Write a setting, unless it has the value; return what it was and what it is. None when there is no such one."""
    reading = _open(key)
    if reading is None:
        return None
    try:
        before = _read(reading, key)
        if same(before, value):
            return before, before
        _write(key, before, value)
        return before, _read(reading, key)
    finally:
        os.close(reading)


def _write(key: str, before: str, value: str) -> None:
    try:
        writing = os.open(_ROOT + _relative(key), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(writing, f"{value}\n".encode())  # an empty write would do nothing
        finally:
            os.close(writing)
    except OSError as error:
        raise SysctlError(
            f"cannot set sysctl {key} from {before} to {value}: {cause_of(error)}",
            details=(
                f"{_ROOT}{_relative(key)} must be writable, or have the value {value} beforehand"
                if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
                else ""
            ),
        ) from error


def _open(key: str) -> int | None:
    try:
        # Not open(): its buffer and decoder take six times as long as the system calls.
        return os.open(_ROOT + _relative(key), os.O_RDONLY | os.O_CLOEXEC)
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
    return SysctlError(f"cannot read sysctl {key}: {cause_of(error)}")


def _absent(key: str) -> SysctlError:
    return SysctlError(f"sysctl {key} does not exist", details=f"no file {_ROOT}{_relative(key)}")


_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def check_allowed(path: str, keys: Iterable[str]) -> None:
    """Refuse sysctls that the node's administrator does not allow.

    Args:
        path: Path of the list. Each line is a regular expression that allows the keys it occurs in, as they are written
            in the configuration. Without a list all are allowed; one that cannot be read allows none. No list allows a
            key with ``..`` in it, which can lead away from what an expression is about.
        keys: The sysctls.

    Raises:
        InvalidConfigError: (7) A sysctl is not allowed.
        IOFailureError: (5) The list cannot be read.
    """
    try:
        allowed = [line.strip() for line in read_file(path).decode().split("\n") if line.strip()]
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise IOFailureError(f"cannot read the list of allowed sysctls {path}: {cause_of(error)}") from error
    import re

    try:
        patterns = [re.compile(line) for line in allowed]
    except re.error as error:
        raise IOFailureError(f"cannot read the list of allowed sysctls {path}: {error}") from error
    listed = ", ".join(allowed)
    for key in keys:
        if ".." in key.split("/") or not any(pattern.search(key) for pattern in patterns):
            raise InvalidConfigError(f"Sysctl {key} is not allowed. Only the following sysctls are allowed: {listed}")


def enable_forwarding(*versions: int) -> None:
    """Let this host forward packets, as a gateway must.

    Args:
        *versions: Versions of IP, 4 or 6; each may be there several times.

    Raises:
        SysctlError: (5) The kernel refused, or has no such protocol.
    """
    for version in sorted(set(versions)):
        ensure(_FORWARDING[version], "1")


def check_forwarding(*versions: int) -> None:
    """Verify that this host forwards packets. A kernel without this version of IP passes.

    Args:
        *versions: Versions of IP, 4 or 6.

    Raises:
        SysctlError: (5) Forwarding is off, or the setting cannot be read.
    """
    for version in sorted(set(versions)):
        if find(_FORWARDING[version]) == "0":
            raise SysctlError(f"the host does not forward IPv{version}: sysctl {_FORWARDING[version]} is 0")


def refuse_advertisements(ifname: str, *, redirects: bool = True) -> None:
    """Make a link ignore router advertisements (RFC 4861), and verify it.

    Otherwise any neighbour could give it addresses and routes. A kernel without IPv6 needs no setting. A link with IPv6
    disabled receives no advertisements: there it is no failure that the setting cannot be written.

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
