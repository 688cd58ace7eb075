"""Lease files: what one says, whether it is whole, and which boot it is from.

The format is the reference's, byte for byte: the file is named after the address and holds ``<container id>``, CR, LF,
``<interface>``. The boot a lease of ours is from stands in an extended attribute: it belongs to this very file, so a
lease another program wrote under the same name has none.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import cache
from ipaddress import IPv4Address
from typing import Literal, NamedTuple

from ..spec.addresses import IPAddress, parse_address
from .store import NOBODY, Owner

LAST_RESERVED = "last_reserved_ip."
BOOT_ATTRIBUTE = "user.cnisdk.boot"
MODE = 0o600
_SIZE = 512
SIZE_MAX = 64 * 1024
"""How long a lease may be, in bytes. Container ids have 64."""

# What /etc/machine-id holds, of 32 digits, before a machine has an id of its own (machine-id(5)).
_NO_MACHINE = ("", "uninitialized")

BootOf = Literal["this", "earlier", "unknown"]

# As spec/names.py has it, but of bytes, and without the price of compiling expressions on the way to a lease.
_IN_NAMES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
_NOT_IN_IFNAMES = b"/:\x7f" + bytes(range(33))
_IFNAME_MAX = 15


class Boot(NamedTuple):
    """A boot of a machine.

    Attributes:
        boot_id: The kernel's random id of the boot; empty when it cannot be read.
        machine_id: The machine's own; empty when it has none. Another machine's leases are not of an earlier boot, and
            a machine that cannot be told from others knows of no earlier boot.
    """

    boot_id: str
    machine_id: str

    @property
    def mark(self) -> bytes:
        """What leases of this boot carry. Fits, with its name, into an inode of ext4, so it costs no block."""
        machine_id = "" if self.machine_id in _NO_MACHINE else self.machine_id[:12]
        return f"{self.boot_id.replace('-', '')}.{machine_id}".encode() if self.boot_id else b""

    def is_later_than(self, mark: bytes) -> bool:
        """Is a mark certainly of an earlier boot of this machine?"""
        boot_id, _, machine_id = mark.partition(b".")
        our_boot, _, our_machine = self.mark.partition(b".")
        return (
            our_machine != b"" and machine_id == our_machine and boot_id != our_boot and len(boot_id) == len(our_boot)
        )

    def judge(self, mark: bytes, *, exclusive: bool) -> BootOf:
        """Say which boot a mark is of.

        Args:
            mark: What the lease carries; empty for no mark.
            exclusive: Whether the lease lies where no other machine can write: see :mod:`.place`. Machines made of one
                image may have one machine id, so elsewhere no boot is certain to be an earlier one.
        """
        if mark and mark == self.mark:
            return "this"
        return "earlier" if exclusive and self.is_later_than(mark) else "unknown"


@cache
def current_boot(proc: str = "/proc", etc: str = "/etc") -> Boot:
    """The boot of this machine; with empty parts where they cannot be read."""
    machine_id = _read_line(f"{etc}/machine-id")
    if len(machine_id) != 32 or machine_id.strip("0123456789abcdef") or not machine_id.strip("0"):
        machine_id = ""
    return Boot(_read_line(f"{proc}/sys/kernel/random/boot_id"), machine_id)


def _read_line(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 128).decode("ascii", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


class Record(NamedTuple):
    """One lease file.

    Attributes:
        owner: Whom it names; :data:`NOBODY` when it names none.
        torn: Nothing was written, or only NUL bytes: its writer was killed, or the power went. Whoever writes leases
            holds the directory's lock, so to one who has the lock such a file is dead: nobody ever got the address.
        boot: The mark of the boot it was made in; empty when it is not known.
    """

    owner: Owner
    torn: bool
    boot: bytes


def parse_name(name: str) -> IPAddress | None:
    """The address a file of this name stands for; None when it is no lease: only the canonical text counts."""
    if not name or name[0] not in "0123456789abcdef:":
        return None
    try:
        if ":" not in name:
            return IPv4Address(name)  # which takes no text but the canonical one
        address = parse_address(name)
    except ValueError:
        return None
    return address if str(address) == name else None


def content(owner: Owner) -> bytes:
    """What the file of a lease holds."""
    text = f"{owner.container_id}\r\n{owner.ifname}" if owner.ifname else owner.container_id
    return text.encode(errors="surrogateescape")


def is_proper(owner: Owner) -> bool:
    """Can the owner be written into a lease, and be found there?"""
    ifname = owner.ifname.encode(errors="surrogateescape")
    return _is_name(owner.container_id.encode(errors="surrogateescape")) and _is_ifname(ifname)


def _is_name(data: bytes) -> bool:
    return data[:1].isalnum() and not data.translate(None, _IN_NAMES)


def _is_ifname(data: bytes) -> bool:
    """None is fine, too."""
    return len(data) <= _IFNAME_MAX and data == data.translate(None, _NOT_IN_IFNAMES)


def parse_owner(data: bytes) -> Owner:
    """Whom the content of a lease names. As the reference, white space around it does not count."""
    container_id, _, ifname = data.strip().partition(b"\r\n")
    if not _is_name(container_id) or not _is_ifname(ifname):
        return NOBODY
    return Owner(container_id.decode(), ifname.decode(errors="surrogateescape"))


def read_record(directory: int, name: str, *, with_boot: bool = False) -> Record | None:
    """Read a lease; None when there is no file.

    Raises:
        OSError: It cannot be read.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket: not a lease of anybody
            return Record(NOBODY, False, b"")
        raise
    try:
        try:
            data = os.read(fd, _SIZE)
            if len(data) == _SIZE:
                data += os.read(fd, SIZE_MAX)
        except IsADirectoryError:
            return Record(NOBODY, False, b"")
        if len(data) > SIZE_MAX:  # what is cut off might be the name of another
            return Record(NOBODY, False, b"")
        if not data.strip(b"\0"):
            return Record(NOBODY, stat.S_ISREG(os.fstat(fd).st_mode), b"")
        return Record(parse_owner(data), False, read_boot(fd) if with_boot else b"")
    finally:
        os.close(fd)


def read_boot(fd: int) -> bytes:
    """The mark of the boot a file was made in; empty when it has none."""
    try:
        return os.getxattr(fd, BOOT_ATTRIBUTE)
    except OSError:
        return b""


def make_unnamed(directory: int, data: bytes, boot: Boot | None) -> int:
    """Make a file that has its content but no name yet: killed now, nothing of it is left.

    Raises:
        OSError: It cannot be written. ``EOPNOTSUPP`` or ``EISDIR``: the file system or the kernel has no such files.
    """
    fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, MODE, dir_fd=directory)
    try:
        fill(fd, data, boot)
    except BaseException:
        os.close(fd)
        raise
    return fd


def fill(fd: int, data: bytes, boot: Boot | None) -> None:
    """Write a new file's content and mark.

    Raises:
        OSError: It cannot be written.
    """
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if boot is not None and boot.mark:
        try:
            os.setxattr(fd, BOOT_ATTRIBUTE, boot.mark)
        except OSError:
            # No such attributes here (tmpfs before 6.6, NFS before 4.2), or no room: a lease of an unknown boot.
            pass
