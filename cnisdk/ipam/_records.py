"""Lease files: their content, and the boot each was made in.

The format is the reference's, byte for byte: the file is named after the address and holds ``<container id>``, CR, LF,
``<interface>``. An extended attribute of the file notes the boot. It belongs to this very file, so a lease that another
program wrote under the same name has none.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import cache
from ipaddress import IPv4Address

from .._light import Literal, NamedTuple
from ..spec.addresses import IPAddress, parse_address
from .store import NOBODY, Owner

LAST_RESERVED = "last_reserved_ip."
BOOT_ATTRIBUTE = "user.cnisdk.boot"
MODE = 0o600
_SIZE = 512
SIZE_MAX = 64 * 1024
"""Longest lease, in bytes. Container ids have 64."""

# Contents of /etc/machine-id before the machine has an id of its own (machine-id(5)).
_NO_MACHINE = ("", "uninitialized")

BootOf = Literal["this", "earlier", "unknown"]

# The grammar of spec/names.py for bytes, without regular expressions: compiling them costs time in each ADD.
_IN_NAMES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
_NOT_IN_IFNAMES = b"/:\x7f" + bytes(range(33))
_IFNAME_MAX = 15


class Boot(NamedTuple):
    """A boot of a machine.

    Attributes:
        boot_id: The kernel's random id of the boot; empty when it cannot be read.
        machine_id: The machine's own; empty when it has none. Without it, leases of other machines cannot be told from
            those of earlier boots, so no boot counts as an earlier one.
    """

    boot_id: str
    machine_id: str

    @property
    def mark(self) -> bytes:
        """Mark of the leases of this boot. It fits, with its name, into an inode of ext4, so it costs no block."""
        machine_id = "" if self.machine_id in _NO_MACHINE else self.machine_id[:12]
        return f"{self.boot_id.replace('-', '')}.{machine_id}".encode() if self.boot_id else b""

    def is_later_than(self, mark: bytes) -> bool:
        """Return True if a mark is certainly of an earlier boot of this machine."""
        boot_id, _, machine_id = mark.partition(b".")
        our_boot, _, our_machine = self.mark.partition(b".")
        return (
            our_machine != b"" and machine_id == our_machine and boot_id != our_boot and len(boot_id) == len(our_boot)
        )

    def judge(self, mark: bytes, *, exclusive: bool) -> BootOf:
        """Return the boot a mark is of.

        Args:
            mark: The mark of the lease; empty when it has none.
            exclusive: If true, no other machine can write to the directory of the lease (:mod:`._exclusive`). Otherwise
                the lease may be of a machine with the same id, made of the same image, and no boot counts as earlier.
        """
        if mark and mark == self.mark:
            return "this"
        return "earlier" if exclusive and self.is_later_than(mark) else "unknown"


@cache
def current_boot(proc: str = "/proc", etc: str = "/etc") -> Boot:
    """Return the boot of this machine. A part that cannot be read is empty."""
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
        owner: The owner; :data:`NOBODY` when the file names none.
        torn: If true, the file is empty or holds only NUL bytes: its writer was killed, or the power went. A process
            that writes a lease has the directory's lock. So to a reader with the lock, such a file is dead: no ADD ever
            returned the address.
        boot: The mark of the boot it was made in; empty when it is not known.
    """

    owner: Owner
    torn: bool
    boot: bytes


def parse_name(name: str) -> IPAddress | None:
    """Return the address a file name stands for; None when the file is no lease. Only canonical texts are addresses."""
    if not name or name[0] not in "0123456789abcdef:":
        return None
    try:
        if ":" not in name:
            return IPv4Address(name)  # it accepts canonical texts only
        address = parse_address(name)
    except ValueError:
        return None
    return address if str(address) == name else None


def content(owner: Owner) -> bytes:
    """Return the content of an owner's lease."""
    text = f"{owner.container_id}\r\n{owner.ifname}" if owner.ifname else owner.container_id
    return text.encode(errors="surrogateescape")


def is_proper(owner: Owner) -> bool:
    """Return True if a lease that names this owner is read back as this owner's."""
    ifname = owner.ifname.encode(errors="surrogateescape")
    return _is_name(owner.container_id.encode(errors="surrogateescape")) and _is_ifname(ifname)


def _is_name(data: bytes) -> bool:
    return data[:1].isalnum() and not data.translate(None, _IN_NAMES)


def _is_ifname(data: bytes) -> bool:
    """Return True if the bytes are an interface name; no bytes, for no interface, are fine too."""
    return len(data) <= _IFNAME_MAX and data == data.translate(None, _NOT_IN_IFNAMES)


def parse_owner(data: bytes) -> Owner:
    """Return the owner that the content of a lease names. White space around it is ignored, as by the reference."""
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
        if exc.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link or a socket is no attachment's lease
            return Record(NOBODY, False, b"")
        raise
    try:
        try:
            data = os.read(fd, _SIZE)
            if len(data) == _SIZE:
                data += os.read(fd, SIZE_MAX)
        except IsADirectoryError:
            return Record(NOBODY, False, b"")
        if len(data) > SIZE_MAX:  # cut, it might name another owner
            return Record(NOBODY, False, b"")
        if not data.strip(b"\0"):
            return Record(NOBODY, stat.S_ISREG(os.fstat(fd).st_mode), b"")
        return Record(parse_owner(data), False, read_boot(fd) if with_boot else b"")
    finally:
        os.close(fd)


def read_boot(fd: int) -> bytes:
    """Return the mark of the boot a file was made in; empty when it has none."""
    try:
        return os.getxattr(fd, BOOT_ATTRIBUTE)
    except OSError:
        return b""


def make_unnamed(directory: int, data: bytes, boot: Boot | None) -> int:
    """Make a file with content but without a name. If this process is killed, the kernel removes it.

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
    """Write the content and the mark of a new file.

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
