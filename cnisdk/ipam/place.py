"""Tell whether a directory can belong to this machine alone.

A lease of an earlier boot is dead only if that boot was one of this machine. ``/etc/machine-id`` does not prove that:
machines made of one image have the same, until somebody notices. The kind of file system does: one kernel at a time can
have a disk's file system mounted, while a network file system, or a folder handed to virtual machines, may be in use by
others.

So both sides hold to one rule. On a file system that is not listed here, leases carry no mark of a boot, and none is
taken back for its mark. The machine that exports the directory, which sees a disk, then finds no marks of its clients.
"""

from __future__ import annotations

import os

EXCLUSIVE = frozenset(
    b"bcachefs btrfs ext2 ext3 ext4 f2fs jffs2 jfs nilfs2 overlay ramfs reiserfs rootfs tmpfs ubifs xfs zfs".split()
)
"""File systems that one kernel at a time has mounted. Those of clusters (gfs2, ocfs2), networks (nfs4, cifs, ceph),
virtual machines (9p, virtiofs) and programs (fuse) are missing on purpose."""

_PART = 1 << 16


def is_exclusive(directory: int, proc: str = "/proc/self") -> bool:
    """Return whether no other machine can have this directory mounted. What cannot be found out counts as shared.

    Args:
        directory: A descriptor of it.
        proc: Where the kernel describes this process.
    """
    try:
        # By the mount's number: the device number of a btrfs subvolume is not the one its mount is listed with.
        described = _read(f"{proc}/fdinfo/{directory}").split()
        mount = described[described.index(b"mnt_id:") + 1]
        mounts = b"\n" + _read(f"{proc}/mountinfo")
    except (OSError, ValueError, IndexError):
        return False
    line = mounts.partition(b"\n" + mount + b" ")[2].partition(b"\n")[0]
    # "29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw": a space inside a path is written as \040.
    return line.partition(b" - ")[2].partition(b" ")[0] in EXCLUSIVE


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while part := os.read(fd, _PART):
            data += part
        return data
    finally:
        os.close(fd)
