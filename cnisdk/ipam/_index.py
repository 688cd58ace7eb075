"""Index beside a directory of leases. With it, each operation costs the same at any number of leases.

Theory of operation. The index lies in ``<dataDir>/.cnisdk/<network>/``. The reference never looks there, since names of
networks begin with a letter or a digit. The index is a hint: deleting it costs one scan of the leases. A network with
few leases has no index, and it is deleted with the last lease. So removing a network leaves no file of it.

``owners/<2 hex digits>``
    The leases of the containers with one hash: lines of ``<address> <container id> <interface>``.
``used/<family>-<level>-<node>``
    Nodes of the :mod:`._bitmap` of held addresses.
``stamp``
    The state of the directory that the index describes.

Each file but the stamp begins with a checksum of the rest. It shows a change by another program.

Foreign changes. The reference's host-local, or a person, changes the directory without changing the index. To notice
that, we set the directory's modification time after each change of ours to one nanosecond *before* the time the kernel
gave it, and note it in the stamp. The clock has passed that moment, so any later change, even within the same tick,
gives the directory another time. Where we may not set the time, we do as git does with its index: a stamp counts only
when the directory's time is older than the stamp's own.

Kills. We change the directory first: from then on the stamp does not fit. Then we change the index, and the stamp last.
If we are killed anywhere between, the next process finds that the stamp does not fit, and scans. So changes of the
index need not be atomic.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator

from ..spec.addresses import IPAddress
from ._bitmap import Bitmap, MemoryBitmap
from ._records import LAST_RESERVED, Boot, parse_name, read_record
from .store import Changes, Conflict, Lease, Owner, View, in_order

DIRECTORY = ".cnisdk"
_STAMP = "stamp"
_OWNERS = "owners"
_USED = "used"
_FORMAT = "cnisdk-index-3"
# A prime, since texts are divided by it. With more buckets each would be shorter, but reading takes little time
# (2 GB/s), and a scan, which makes them all at 0.1 ms or more each, would take longer.
_BUCKETS = 251
_STAMP_SIZE = 256
# O_NONBLOCK: opening a named pipe in the place of a file must not block this process while it holds the lock.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CHECKSUM = 4  # bytes before the content of each file
_PART = 1 << 16
_OPEN = 16  # files at a time


def read_cursor(directory: int, index: int) -> IPAddress | None:
    """Return the address range set number `index` handed out last; None when no file says so, or its text is wrong."""
    try:
        fd = os.open(f"{LAST_RESERVED}{index}", os.O_RDONLY | _FLAGS, dir_fd=directory)
    except OSError:
        return None
    try:
        return parse_name(os.read(fd, 64).decode("ascii", "replace"))
    except OSError:
        return None
    finally:
        os.close(fd)


class _FileBitmap(Bitmap):
    """Nodes in files. Each is read once."""

    def __init__(self, files: _Files, version: int) -> None:
        self._files = files
        self._version = version
        self._cache: dict[str, bytearray] = {}

    def _name(self, level: int, node: int) -> str:
        return f"{_USED}/{self._version}-{level}-{node:x}"

    def load(self, level: int, node: int) -> bytearray:
        """Return the bits of a node."""
        name = self._name(level, node)
        data = self._cache.get(name)
        if data is None:
            data = self._cache[name] = bytearray(self._files.read(name))
        return data

    def store(self, level: int, node: int, offset: int, value: int) -> None:
        """Write one byte of a node."""
        data = self.load(level, node)
        data.extend(bytes(max(0, offset + 1 - len(data))))
        data[offset] = value
        self._files.replace(self._name(level, node), bytes(data))


class _Files:
    """The files of an index. Most files that are read are written next, so each is opened once, for both.

    Args:
        path: Their directory.

    Attributes:
        directory: A descriptor of it; -1 while it is not open.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: dict[str, int] = {}
        self.directory = -1

    def enter(self) -> None:
        """Open the directory.

        Raises:
            OSError: There is none.
        """
        self.directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)

    def close(self) -> None:
        """Close the directory and all files."""
        for name in list(self._open):
            self.close_file(name)
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1

    def open(self, name: str) -> int:
        """Open a file that exists, for writing too if that is allowed. This object closes the descriptor.

        Raises:
            OSError: There is none, or it cannot be read.
        """
        fd = self._open.get(name)
        if fd is None:
            if len(self._open) >= _OPEN:
                self.close_file(next(iter(self._open)))
            try:
                fd = os.open(name, os.O_RDWR | _FLAGS, dir_fd=self.directory)
            except OSError as exc:
                if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                fd = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=self.directory)
            self._open[name] = fd
        return fd

    def make(self, name: str) -> int:
        """Open a file as :meth:`open` does; make it if there is none."""
        try:
            return self.open(name)
        except FileNotFoundError:
            fd = self._open[name] = os.open(name, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600, dir_fd=self.directory)
            return fd

    def close_file(self, name: str) -> None:
        """Close a file, if it is open."""
        fd = self._open.pop(name, None)
        if fd is not None:
            os.close(fd)

    def read(self, name: str) -> bytes:
        """Return the content of a file; empty when there is none.

        Raises:
            IndexWrong: Another program changed it.
        """
        try:
            fd = self.open(name)
        except FileNotFoundError:
            return b""
        data = part = os.pread(fd, _PART, 0)
        while len(part) == _PART:
            data += (part := os.pread(fd, _PART, len(data)))
        content = data[_CHECKSUM:]
        if data[:_CHECKSUM] != _checksum(content):
            raise IndexWrong(f"{name} of the index is damaged")
        return content

    def replace(self, name: str, content: bytes) -> None:
        """Write a file anew.

        Raises:
            IndexWrong: Another program has deleted it.
        """
        fd = self.make(name)
        data = _checksum(content) + content
        at = 0
        while at < len(data):
            at += os.pwrite(fd, data[at:], at)
        state = os.fstat(fd)
        if not state.st_nlink:
            raise IndexWrong(f"{name} of the index was deleted")
        if state.st_size > at:  # ext4 takes half a millisecond to truncate
            os.ftruncate(fd, at)


def _checksum(content: bytes) -> bytes:
    from binascii import crc32

    return crc32(content).to_bytes(_CHECKSUM, "little")


def _bucket(owner: Owner) -> str:
    # Only the container counts: a look for an interface also looks for an old record, which names none.
    text = owner.container_id.encode(errors="surrogateescape")
    return f"{_OWNERS}/{int.from_bytes(text, 'little') % _BUCKETS:02x}"


def _line(lease: Lease) -> bytes:
    return f"{lease.address} {lease.owner.container_id} {lease.owner.ifname}\n".encode(errors="surrogateescape")


class IndexWrong(Conflict):
    """Raised when the index cannot be read or disagrees with a lease: the leases must be scanned."""


class _Reading:
    """Turn errors of reading the index, inside ``with``, into :class:`IndexWrong`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: object, trace: object) -> None:
        if isinstance(exc, OSError):
            raise IndexWrong(f"cannot read the index {self._path}: {exc.strerror}") from exc


class Index(View):
    """The index of one network.

    Args:
        directory: A descriptor of the directory with the leases, whose lock the caller holds.
        path: Where the index lies.
        boot: The current boot.
        reclaims: If true, the scan that makes the index reclaims leases of earlier boots.

    Attributes:
        exclusive: If true, no other machine can write to the directory. Set it before :meth:`rebuild`. The stamp keeps
            it, since finding out means reading all mounts.
    """

    def __init__(self, directory: int, path: str, boot: Boot, *, reclaims: bool = True) -> None:
        self.directory = directory
        self._boot = boot
        self._reclaims = reclaims
        self._path = path
        self.exclusive = False
        self._files = _Files(path)
        self._reading = _Reading(path)
        self._used: dict[int, _FileBitmap] = {}
        self._buckets: dict[str, bytes] = {}

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    # --- trust --------------------------------------------------------------------------------------------------------

    def is_current(self) -> bool:
        """Return True if the index exists and describes the directory as it is."""
        try:
            self._files.enter()
            fd = self._files.open(_STAMP)
            written = os.fstat(fd).st_mtime_ns
            noted = os.pread(fd, _STAMP_SIZE, 0)
            now = os.fstat(self.directory)
            self.exclusive = b" exclusive=True " in noted
            return noted == self._stamp(now) and now.st_mtime_ns < written and bool(self._boot.boot_id)
        except OSError:
            return False

    def _stamp(self, state: os.stat_result) -> bytes:
        # The times of the index's own directories: part of it may have been deleted.
        home = self._files.directory
        owners = os.stat(_OWNERS, dir_fd=home, follow_symlinks=False).st_mtime_ns
        used = os.stat(_USED, dir_fd=home, follow_symlinks=False).st_mtime_ns
        text = (
            f"{_FORMAT} boot={self._boot.boot_id} device={state.st_dev} inode={state.st_ino} "
            f"mtime={state.st_mtime_ns} ctime={state.st_ctime_ns} owners={owners} used={used} "
            f"reclaims={self._reclaims} exclusive={self.exclusive} \n"
        )
        return text.encode().ljust(_STAMP_SIZE)

    def trust(self, since: int) -> None:
        """Note that the index describes the directory as it is now.

        Args:
            since: The directory's modification time when the leases in the index were read or changed. If it is another
                by now, another process works on the directory without the lock, and the stamp is removed instead.

        Raises:
            OSError: The stamp cannot be written.
        """
        state = os.fstat(self.directory)
        if state.st_mtime_ns != since:
            self.distrust()
            return
        try:
            os.utime(self.directory, ns=(state.st_atime_ns, state.st_mtime_ns - 1))
            state = os.fstat(self.directory)
        except OSError:
            pass  # another user's directory: is_current() accepts the stamp only if it is younger
        os.pwrite(self._files.make(_STAMP), self._stamp(state), 0)

    def find_wrong(self, leases: Collection[Lease]) -> list[str]:
        """Compare the index with the leases there are, and return each difference as a sentence."""
        real = dict(leases)
        listed = dict.fromkeys(self.leases())
        wrong = [
            f"{lease.address} is listed for {lease.owner}, "
            + ("but has no lease" if lease.address not in real else f"but {real[lease.address]} holds it")
            for lease in listed
            if real.get(lease.address) != lease.owner
        ]
        for address, owner in real.items():
            if owner.container_id and Lease(address, owner) not in listed:
                wrong.append(f"{address} of {owner} is not listed")
            if self.find_free(address, address) is not None:
                wrong.append(f"{address} counts as free")
        return wrong

    def holds_none(self, leases: Iterable[Lease]) -> bool:
        """Return false if leases are left besides these, which were released. True is a guess from their buckets."""
        with self._reading:
            return not any(self._bucket(_bucket(lease.owner)) for lease in leases)

    def delete(self) -> None:
        """Delete the index, and with the last one the directory of indexes. A file that cannot be deleted stays."""
        self.close()
        self._buckets.clear()
        self._used.clear()
        delete_index(self._path)

    def distrust(self) -> None:
        """Remove the stamp, so that the next process scans."""
        self._files.close_file(_STAMP)
        try:
            _remove(f"{self._path}/{_STAMP}")
        except OSError:
            pass

    # --- reading ------------------------------------------------------------------------------------------------------

    def _bitmap(self, version: int) -> _FileBitmap:
        bitmap = self._used.get(version)
        if bitmap is None:
            bitmap = self._used[version] = _FileBitmap(self._files, version)
        return bitmap

    def _bucket(self, name: str) -> bytes:
        """Return a bucket of owners. Each is read once: this process holds the lock."""
        lines = self._buckets.get(name)
        if lines is None:
            lines = self._buckets[name] = self._files.read(name)
        return lines

    def _set_bucket(self, name: str, lines: bytes) -> None:
        self._files.replace(name, lines)
        self._buckets[name] = lines

    def find_addresses(self, owner: Owner) -> tuple[IPAddress, ...]:
        """See :class:`View`. The lease of each address is read as well.

        Raises:
            IndexWrong: A lease has another owner than the index says.
        """
        found = []
        with self._reading:
            bucket = self._bucket(_bucket(owner))
        for line in _lines_of(bucket, owner):
            address = parse_name(line.partition(b" ")[0].decode("ascii", "replace"))
            if address is None:
                continue
            if self.find_owner(address) != owner:
                raise IndexWrong(f"{address} is not held by {owner}")
            found.append(address)
        return in_order(set(found))

    def find_owner(self, address: IPAddress) -> Owner | None:
        """See :class:`View`. Reads the lease, not the index.

        Raises:
            OSError: It cannot be read. :meth:`.FileStore.locked` tells of which store it is.
        """
        record = read_record(self.directory, str(address))
        return None if record is None else record.owner

    def find_free(self, first: IPAddress, last: IPAddress) -> IPAddress | None:
        """See :class:`View`. Making the lease proves that the address is free; the index only says so."""
        with self._reading:
            number = self._bitmap(first.version).find_unused(int(first), int(last))
        return None if number is None else type(first)(number)

    def find_cursor(self, index: int) -> IPAddress | None:
        """See :class:`View`."""
        return read_cursor(self.directory, index)

    def leases(self) -> Iterator[Lease]:
        """See :class:`View`. Reads the index alone: the commit of a release verifies each lease."""
        return (lease for line in self._lines() if (lease := _parse_line(line)) is not None)

    def find_stale(self, owners: Collection[Owner]) -> Iterator[Lease]:
        """See :class:`View`. Parses only the lines of stale leases: mostly there are none."""
        ends = {_end(owner)[1:-1] for owner in owners}
        ends |= {_end(owner.without_ifname)[1:-1] for owner in owners}
        for line in self._lines():
            if line.partition(b" ")[2] not in ends:
                lease = _parse_line(line)
                if lease is not None:
                    yield lease

    def _lines(self) -> Iterator[bytes]:
        with self._reading:
            names = os.listdir(f"{self._path}/{_OWNERS}")
            buckets = [self._files.read(f"{_OWNERS}/{name}") for name in names]
        for bucket in buckets:
            yield from bucket.split(b"\n")

    # --- writing: only after the directory has changed, or without a stamp -------------------------------------------

    def apply(self, changes: Changes) -> None:
        """Make the changes that were made in the directory in the index too.

        Raises:
            OSError: The index cannot be written.
        """
        for lease in changes.release:
            self._bitmap(lease.address.version).discard(int(lease.address))
            self._forget(lease)
        for lease in changes.reserve:
            self._bitmap(lease.address.version).add(int(lease.address))
            name = _bucket(lease.owner)
            self._set_bucket(name, self._bucket(name) + _line(lease))

    def _forget(self, lease: Lease) -> None:
        if not lease.owner.container_id:
            return
        name = _bucket(lease.owner)
        lines = b"\n" + self._bucket(name)
        self._set_bucket(name, lines.replace(b"\n" + _line(lease), b"\n", 1)[1:])

    def rebuild(self, leases: Collection[Lease], since: int) -> None:
        """Make the index anew.

        Args:
            leases: All leases of the network.
            since: See :meth:`trust`.

        Raises:
            OSError: The index cannot be written.
        """
        self._make_directories()
        self.distrust()
        self._used.clear()
        self._buckets.clear()
        buckets: dict[str, list[bytes]] = {}
        for lease in leases:
            if lease.owner.container_id:
                buckets.setdefault(_bucket(lease.owner), []).append(_line(lease))
        files: dict[str, bytes] = {name: b"".join(lines) for name, lines in buckets.items()}
        for version in (4, 6):
            numbers = (int(lease.address) for lease in leases if lease.address.version == version)
            for (level, node), data in MemoryBitmap(numbers).nodes.items():
                files[f"{_USED}/{version}-{level}-{node:x}"] = bytes(data).rstrip(b"\0")
        for folder in (_OWNERS, _USED):
            for entry in list(os.scandir(f"{self._path}/{folder}")):
                if f"{folder}/{entry.name}" not in files or not entry.is_file(follow_symlinks=False):
                    _remove(entry.path)
        for name, text in files.items():
            self._files.replace(name, text)
        self.trust(since)

    def _make_directories(self) -> None:
        self.close()
        for path in (os.path.dirname(self._path), self._path, f"{self._path}/{_OWNERS}", f"{self._path}/{_USED}"):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                # Through a symbolic link, this would delete and write files of another program.
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    _remove(path)
                    os.mkdir(path, 0o700)
        self._files.enter()


def delete_index(path: str) -> None:
    """Delete an index, and with the last one the directory of indexes. A file that cannot be deleted stays."""
    try:
        if os.path.lexists(path):
            for folder in (f"{path}/{_OWNERS}", f"{path}/{_USED}", path):
                if os.path.isdir(folder) and not os.path.islink(folder):
                    for name in os.listdir(folder):
                        _remove(f"{folder}/{name}")
                    os.rmdir(folder)
            if os.path.lexists(path):
                _remove(path)
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass  # another network's index is there, or another process makes this one anew


def _end(owner: Owner) -> bytes:
    """Return the end of an owner's lines."""
    return f" {owner.container_id} {owner.ifname}\n".encode(errors="surrogateescape")


def _parse_line(line: bytes) -> Lease | None:
    address, _, rest = line.decode(errors="surrogateescape").partition(" ")
    container_id, _, ifname = rest.partition(" ")
    parsed = parse_name(address)
    return None if parsed is None else Lease(parsed, Owner(container_id, ifname))


def _lines_of(bucket: bytes, owner: Owner) -> list[bytes]:
    """Find the lines of one owner without parsing those of others."""
    end = _end(owner)
    found = []
    at = bucket.find(end)
    while at >= 0:
        found.append(bucket[bucket.rfind(b"\n", 0, at) + 1 : at + len(end)])
        at = bucket.find(end, at + len(end))
    return found


def _remove(path: str) -> None:
    """Remove the file or directory at a path of the index; accept that there is none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        import shutil

        shutil.rmtree(path)
