"""Find out if a directory can belong to this machine alone.

A lease of an earlier boot is dead only if that boot was one of this machine. ``/etc/machine-id`` does not prove that:
machines made of one image may have the same one. The kind of file system does: only one kernel at a time can have a
disk's file system mounted, while other machines may use a network file system, or a folder handed to virtual machines.

So a machine that writes leases and a machine that reclaims them follow one rule. On a file system that is not listed
here, leases carry no mark of a boot, and none is reclaimed for its mark. A machine that exports its disk to others sees
a disk's file system; it finds no marks in the leases of its clients, whose view is the network file system.
"""

from __future__ import annotations

import os

EXCLUSIVE = frozenset(
    b"bcachefs btrfs ext2 ext3 ext4 f2fs jffs2 jfs nilfs2 overlay ramfs reiserfs rootfs tmpfs ubifs xfs zfs".split()
)
"""File systems that only one kernel at a time can have mounted. Those of clusters (gfs2, ocfs2), networks (nfs4, cifs,
ceph), virtual machines (9p, virtiofs) and programs (fuse) are missing on purpose."""

_PART = 1 << 16


def is_exclusive(directory: int, proc: str = "/proc/self") -> bool:
    """Return True if no other machine can have this directory mounted; False also if that cannot be found out.

    Args:
        directory: A descriptor of it.
        proc: The kernel's directory about this process.
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
