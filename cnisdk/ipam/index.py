"""The index beside a directory of leases: what makes every operation cost the same, however many leases there are.

It lies in ``<dataDir>/.cnisdk/<network>/``, where the reference never looks: names of networks begin with a letter or a
digit. It is only ever a hint; deleting it costs one scan. A network with few leases has none, and it goes with the last
lease, so that a network which is removed leaves nothing of it.

``owners/<2 hex digits>``
    The addresses of the containers of one hash: lines of ``<address> <container id> <interface>``.
``used/<family>-<level>-<node>``
    Nodes of the :mod:`.bitmap` of held addresses.
``stamp``
    Which state of the directory the index describes.

Each file but the stamp begins with a checksum of the rest: one that somebody changed is not believed.

How the index notices foreign changes. After each change of ours the directory's modification time is set one nanosecond
*before* the one the kernel gave it, and noted in the stamp. The clock has passed that moment, so any later change, even
within the same tick, gives the directory another time. Where the time cannot be set, the rule of git's index holds: a
stamp is not trusted when the directory's time is not older than the stamp's own.

How it survives a kill. The directory changes first, so from then on the stamp does not fit; the index follows; the
stamp is last. Killed anywhere between, the next one scans. So edits of the index need not be atomic.
"""

from __future__ import annotations

import errno
import os
import stat
from binascii import crc32
from collections.abc import Collection, Iterable, Iterator

from ..errors import IOFailureError
from ..spec.addresses import IPAddress
from .bitmap import Bitmap, MemoryBitmap
from .records import LAST_RESERVED, Boot, parse_name, read_record
from .store import Changes, Conflict, Lease, Owner, View, in_order

DIRECTORY = ".cnisdk"
_STAMP = "stamp"
_OWNERS = "owners"
_USED = "used"
_FORMAT = "cnisdk-index-3"
# A prime, since what is divided by it is text. More would make buckets shorter, which are read at 2 GB/s, and the scan
# longer, which may have to make them all, at 0.1 ms or more each.
_BUCKETS = 251
_STAMP_SIZE = 256
# O_NONBLOCK: a named pipe that somebody put there must not hold up everybody under the lock.
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CHECKSUM = 4  # bytes before the content of each file
_PART = 1 << 16
_OPEN = 16  # files at a time


def read_cursor(directory: int, index: int) -> IPAddress | None:
    """Read where a range set goes on; None when there is no such file, or nothing sensible in it."""
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
    """Nodes in files; what was read once is not read again."""

    def __init__(self, files: _Files, version: int) -> None:
        self._files = files
        self._version = version
        self._cache: dict[str, bytearray] = {}

    def _name(self, level: int, node: int) -> str:
        return f"{_USED}/{self._version}-{level}-{node:x}"

    def load(self, level: int, node: int) -> bytearray:
        """The bits of a node."""
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
    """The files of an index. What is read is likely to be written next: it is opened once, for both.

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
        """Close it, and all files."""
        for name in list(self._open):
            self.close_file(name)
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1

    def open(self, name: str) -> int:
        """Open a file that exists, for writing too if that is allowed. The descriptor stays this object's.

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
        """As :meth:`open`; makes the file if there is none."""
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
        """The content of a file; nothing when there is none.

        Raises:
            IndexWrong: Somebody changed it.
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
            IndexWrong: Somebody has deleted it.
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
    return crc32(content).to_bytes(_CHECKSUM, "little")


def _bucket(owner: Owner) -> str:
    # Of the container alone: with each interface, an old record is looked for that names none.
    text = owner.container_id.encode(errors="surrogateescape")
    return f"{_OWNERS}/{int.from_bytes(text, 'little') % _BUCKETS:02x}"


def _line(lease: Lease) -> bytes:
    return f"{lease.address} {lease.owner.container_id} {lease.owner.ifname}\n".encode(errors="surrogateescape")


class IndexWrong(Conflict):
    """The index cannot be read, or says what is not so: the leases themselves must be looked at."""


class _Reading:
    """Inside, what cannot be read of an index means that it is wrong."""

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
        reclaims: Whether leases of earlier boots were looked for when it was made.

    Attributes:
        exclusive: Whether no other machine can write to the directory. Set it before :meth:`rebuild`; the stamp keeps
            it, as finding out takes a look at all mounts.
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
        """Forget the index."""
        self._files.close()

    # --- trust --------------------------------------------------------------------------------------------------------

    def is_current(self) -> bool:
        """Does the index exist, and describe the directory as it is?"""
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
            since: Its modification time when what went into the index was read or done. If it has changed, somebody
                works on the directory without the lock, and the index is not to be trusted.

        Raises:
            OSError: It cannot be written.
        """
        state = os.fstat(self.directory)
        if state.st_mtime_ns != since:
            self.distrust()
            return
        try:
            os.utime(self.directory, ns=(state.st_atime_ns, state.st_mtime_ns - 1))
            state = os.fstat(self.directory)
        except OSError:
            pass  # not ours: is_current() will want the stamp to be younger
        os.pwrite(self._files.make(_STAMP), self._stamp(state), 0)

    def find_wrong(self, leases: Collection[Lease]) -> list[str]:
        """Compare with what there is: what the index says that is not so, and what it does not know, in sentences."""
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
        """After these were released: can there be none left? No bucket of theirs has an entry then."""
        with self._reading:
            return not any(self._bucket(_bucket(lease.owner)) for lease in leases)

    def delete(self) -> None:
        """Delete all of it, and the directory of indexes with the last one. What cannot be deleted stays."""
        self.close()
        self._buckets.clear()
        self._used.clear()
        delete_index(self._path)

    def distrust(self) -> None:
        """Have the next one scan."""
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
        """A bucket of owners; what was read once is not read again, as the directory is locked."""
        lines = self._buckets.get(name)
        if lines is None:
            lines = self._buckets[name] = self._files.read(name)
        return lines

    def _set_bucket(self, name: str, lines: bytes) -> None:
        self._files.replace(name, lines)
        self._buckets[name] = lines

    def find_addresses(self, owner: Owner) -> tuple[IPAddress, ...]:
        """See :class:`View`. Each is verified by its lease.

        Raises:
            IndexWrong: One is not so.
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
        """See :class:`View`. Asks the lease, not the index."""
        try:
            record = read_record(self.directory, str(address))
        except OSError as exc:
            raise IOFailureError(f"cannot read the lease of {address}: {exc.strerror}") from exc
        return None if record is None else record.owner

    def find_free(self, first: IPAddress, last: IPAddress) -> IPAddress | None:
        """See :class:`View`. Whether it is, shows when the lease is made."""
        with self._reading:
            number = self._bitmap(first.version).find_unused(int(first), int(last))
        return None if number is None else type(first)(number)

    def find_cursor(self, index: int) -> IPAddress | None:
        """See :class:`View`."""
        return read_cursor(self.directory, index)

    def leases(self) -> Iterator[Lease]:
        """See :class:`View`. From the index alone: committing a release verifies what it releases."""
        return (lease for line in self._lines() if (lease := _parse_line(line)) is not None)

    def find_stale(self, owners: Collection[Owner]) -> Iterator[Lease]:
        """See :class:`View`. Lines are not taken apart to find that there is nothing to do."""
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
        """Follow what has been done in the directory.

        Raises:
            OSError: It cannot be written.
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
        """Make the index anew, of everything there is.

        Args:
            leases: Everything there is.
            since: See :meth:`trust`.

        Raises:
            OSError: It cannot be written.
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
                # Through a link, what is deleted and written here would be somebody else's.
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    _remove(path)
                    os.mkdir(path, 0o700)
        self._files.enter()


def delete_index(path: str) -> None:
    """Delete an index, and the directory of indexes with the last one. What cannot be deleted stays."""
    try:
        for folder in (f"{path}/{_OWNERS}", f"{path}/{_USED}", path):
            if os.path.isdir(folder) and not os.path.islink(folder):
                for name in os.listdir(folder):
                    _remove(f"{folder}/{name}")
                os.rmdir(folder)
        if os.path.lexists(path):
            _remove(path)
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass  # another network's index is there, or somebody makes this one anew


def _end(owner: Owner) -> bytes:
    """How the lines of an owner end."""
    return f" {owner.container_id} {owner.ifname}\n".encode(errors="surrogateescape")


def _parse_line(line: bytes) -> Lease | None:
    address, _, rest = line.decode(errors="surrogateescape").partition(" ")
    container_id, _, ifname = rest.partition(" ")
    parsed = parse_name(address)
    return None if parsed is None else Lease(parsed, Owner(container_id, ifname))


def _lines_of(bucket: bytes, owner: Owner) -> list[bytes]:
    """The lines of one owner. Most lines are of others: not each is taken apart."""
    end = _end(owner)
    found = []
    at = bucket.find(end)
    while at >= 0:
        found.append(bucket[bucket.rfind(b"\n", 0, at) + 1 : at + len(end)])
        at = bucket.find(end, at + len(end))
    return found


def _remove(path: str) -> None:
    """Remove whatever is at a path in the index; nothing is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        import shutil

        shutil.rmtree(path)
