"""Leases as files, in the format of the reference's host-local, which may use the same directory at the same time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from .._signals import HeldBack
from ..errors import CNIError, InvalidConfigError, InvalidEnvironmentError, IOFailureError, PluginNotAvailableError
from ..spec.addresses import IPAddress
from ..spec.names import check_network_name
from . import lockfile
from .index import DIRECTORY, Index, IndexWrong, delete_index, read_cursor
from .memory import MemoryView
from .place import is_exclusive
from .records import (
    LAST_RESERVED,
    MODE,
    SIZE_MAX,
    Boot,
    content,
    current_boot,
    fill,
    is_proper,
    make_unnamed,
    parse_name,
    read_record,
)
from .store import NOBODY, Changes, Conflict, Lease, Store, View

DATA_DIR = "/var/lib/cni/networks"
"""Where the reference keeps leases, unless told otherwise."""

SPARE = ".cnisdk-new"
"""Where a lease is written before it gets its name, on file systems that have no unnamed files."""

# So many leases, those of a container with two families, are read faster than an index is made and deleted again.
_FEW = 2

_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_HINTS = {
    errno.ENOSPC: "no space or no inodes are left on the file system",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is mounted read-only; mount it read-write, or set dataDir to a writable directory",
    errno.EACCES: "check owner, mode and, with SELinux, the label of the directory",
    errno.EPERM: "check owner, mode and attributes of the directory",
    errno.ENOTDIR: "a part of the path is no directory; remove it, or set dataDir to another directory",
    errno.ELOOP: "a part of the path is a symbolic link that leads to itself",
    errno.ENAMETOOLONG: "file names have at most 255 bytes; give the network a shorter name",
    errno.EMFILE: "the process has too many files open",
}


class _Absent(MemoryView):
    """The view of a directory that does not exist."""


class _Scanned(MemoryView):
    """What a scan of a directory found, where there can be no index of it."""

    def __init__(self, leases: Iterable[Lease], directory: int, *, exclusive: bool, index: Index | None = None) -> None:
        super().__init__(leases)
        self.directory = directory
        self.exclusive = exclusive
        self.index = index  # to be made when there are more leases

    def find_cursor(self, index: int) -> IPAddress | None:
        return read_cursor(self.directory, index)


class _File(NamedTuple):
    """A file about to appear, or a cursor about to be overwritten.

    Attributes:
        name: Its name.
        data: Its content.
        boot: The boot to mark it with; None for no mark.
        fd: A descriptor of it; -1 where there are no unnamed files.
        exists: Whether it has its name already, so that it is only to be overwritten.
    """

    name: str
    data: bytes
    boot: Boot | None
    fd: int
    exists: bool


class FileStore(Store):
    """The leases of one network, in ``<data_dir>/<network>``.

    The directory is made by the first lease. Every operation takes its lock. A lease appears with its content or not
    at all. An index beside it (see :mod:`.index`) makes operations cost the same at any number of leases.

    Args:
        data_dir: Where the directories of networks are; empty means :data:`DATA_DIR`. A relative path is relative to
            the working directory, as in the reference.
        network: Name of the network.
        reclaim_earlier_boots: Take leases of earlier boots of this machine for free: their namespaces died with the
            power. Leases whose boot is not known are never touched, nor any in a directory that other machines may use.
        notice: Told, in a sentence, of each lease that is reclaimed.
        boot: The current boot; None means to ask the kernel.

    Raises:
        InvalidConfigError: (7) The network's name or the path cannot be those of a directory.
    """

    def __init__(
        self,
        data_dir: str,
        network: str,
        *,
        reclaim_earlier_boots: bool = True,
        notice: Callable[[str], object] | None = None,
        boot: Boot | None = None,
    ) -> None:
        check_network_name(network)
        if "\0" in data_dir:
            raise InvalidConfigError("invalid dataDir: it contains a NUL character", details="$.ipam.dataDir")
        self.data_dir = data_dir or DATA_DIR
        self.network = network
        self.path = os.path.join(self.data_dir, network)
        self.index_path = os.path.join(self.data_dir, DIRECTORY, network)
        self.reclaims = reclaim_earlier_boots
        self._notice = notice
        self._index_is_wrong = False
        self.boot = boot if boot is not None else current_boot()

    # --- the Store interface ------------------------------------------------------------------------------------------

    @contextmanager
    def view(self, deadline: float, *, write: bool) -> Iterator[View]:
        """See :class:`Store`."""
        with self.locked(deadline, write=write) as directory:
            if directory is None:
                if write and os.path.lexists(self.index_path):
                    delete_index(self.index_path)  # the network was removed by hand
                yield _Absent()
                return
            index = Index(directory, self.index_path, self.boot, reclaims=self.reclaims)
            try:
                try:
                    current = not self._index_is_wrong and index.is_current()
                    view = index if current else self._scan(directory, index, write=write)
                except OSError as exc:
                    self._fail("read", exc)
                yield view
            except IndexWrong:
                self._index_is_wrong = True
                raise
            finally:
                index.close()

    @contextmanager
    def locked(self, deadline: float, *, write: bool) -> Iterator[int | None]:
        """Open the directory and hold its lock, and signals back until both are given back.

        Args:
            deadline: When to give up waiting, as ``time.monotonic()`` counts.
            write: Whether anything will be changed. If not, and if there can be no lock, it goes without.

        Yields:
            A descriptor of the directory; None when it does not exist.

        Raises:
            TryAgainLaterError: (11) The deadline passed.
            IOFailureError: (5) The directory cannot be opened.
            Conflict: The directory was deleted or replaced meanwhile.
        """
        with HeldBack() as signals:
            try:
                directory = os.open(self.path, _OPEN_DIRECTORY)
            except FileNotFoundError as exc:
                if find_dangling(self.path) is not None:
                    self._fail("open", exc)
                yield None
                return
            except OSError as exc:
                self._fail("open", exc)
            lock: int | None = None
            try:
                try:
                    lock = self._lock(directory, deadline, write, signals)
                    if not _is_at(directory, self.path):
                        raise Conflict(f"{self.path} was replaced")
                except OSError as exc:
                    self._fail("lock", exc)
                yield directory
            finally:
                if lock is not None:
                    os.close(lock)
                os.close(directory)

    def commit(self, view: View, changes: Changes) -> None:
        """See :class:`Store`."""
        if not isinstance(view, Index | _Scanned):
            if changes.reserve:
                self._make_directory()
            raise Conflict(f"{self.path} did not exist")
        try:
            self._change(view.directory, changes, self.boot if view.exclusive else None)
        except Conflict as exc:
            if isinstance(view, Index):
                raise IndexWrong(str(exc)) from exc
            raise
        index = view if isinstance(view, Index) else view.index
        if index is None:
            return
        try:
            since = os.fstat(view.directory).st_mtime_ns
            if not isinstance(view, Index):
                view.apply(changes)
                leases = list(view.leases())
                if len(leases) > _FEW:
                    index.rebuild(leases, since)
                return
            index.apply(changes)
            if not changes.reserve and index.holds_none(changes.release) and not _has_lease(view.directory):
                index.delete()
                return
            index.trust(since)
        except (OSError, IndexWrong):
            index.distrust()  # no room, no permission: the leases are right, and the next one scans

    def check_usable(self) -> None:
        """Check that leases could be written, without making anything.

        Raises:
            PluginNotAvailableError: (50) They could not; the message has the path and the reason.
        """
        path = self.path
        while not os.path.lexists(path):
            path = os.path.dirname(path) or os.curdir
        dangling = find_dangling(path)
        if dangling is not None:
            raise PluginNotAvailableError(f"cannot write the address store {self.path}", details=dangling)
        problem = 0
        if not os.path.isdir(path):
            problem = errno.ENOTDIR
        elif not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            problem = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        else:
            space = os.statvfs(path)
            # File systems that make inodes as they need them report 0 of 0.
            if space.f_bavail == 0 or (space.f_files and space.f_favail == 0):
                problem = errno.ENOSPC
        if problem:
            raise PluginNotAvailableError(
                f"cannot write the address store {self.path}: {path}: {os.strerror(problem)} "
                f"({errno.errorcode[problem]})",
                details=_HINTS[problem],
            )

    # --- the directory ------------------------------------------------------------------------------------------------

    def _lock(self, directory: int, deadline: float, write: bool, signals: HeldBack) -> int | None:
        try:
            return lockfile.acquire(directory, self.path, deadline, signals, create=True)
        except FileNotFoundError as exc:
            if os.fstat(directory).st_nlink:
                raise  # not deleted: the file is a link that leads nowhere
            raise Conflict(f"{self.path} was deleted") from exc
        except OSError as exc:
            # Where nobody can make a lock file, nobody can make leases either: reading needs no lock.
            if not write and exc.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC):
                return lockfile.acquire(directory, self.path, deadline, signals, create=False)
            raise

    def _make_directory(self) -> None:
        """Make the directory and its lock, or neither."""
        made: list[str] = []
        try:
            for path in _missing(self.path):
                try:
                    # The reference makes them all with 0755; whose leases there are is nobody's business.
                    os.mkdir(path, 0o700 if path == self.path else 0o755)
                except FileExistsError:
                    continue
                made.append(path)
            os.close(
                os.open(f"{self.path}/{lockfile.NAME}", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, MODE),
            )
        except OSError as exc:
            for path in reversed(made):
                try:
                    os.rmdir(path)
                except OSError:
                    pass  # somebody uses it already
            if isinstance(exc, FileNotFoundError) and not _is_never_found(exc.filename):
                raise Conflict(f"{self.path} was deleted") from exc
            self._fail("make", exc)

    def _scan(self, directory: int, index: Index, *, write: bool) -> Index | _Scanned:
        """Read all leases, reclaim the dead ones, and make the index anew."""
        leases: list[Lease] = []
        dead, exclusive = 0, is_exclusive(directory)
        since = os.fstat(directory).st_mtime_ns
        for name in os.listdir(directory):
            address = parse_name(name)
            if address is None:
                if name == SPARE and write:
                    _unlink(directory, name)
                continue
            record = read_record(directory, name, with_boot=self.reclaims)
            if record is None:
                continue  # somebody deletes leases without the lock
            if record.torn:
                why = "it is empty: its writer was killed before anybody got the address"
            elif self.boot.judge(record.boot, exclusive=exclusive) == "earlier":
                why = f"{record.owner} had it in an earlier boot of this machine"
            else:
                leases.append(Lease(address, record.owner))
                continue
            dead += 1
            if write and not _unlink(directory, name):
                leases.append(Lease(address, NOBODY))
            elif write and self._notice is not None:
                self._notice(f"reclaimed {self.path}/{name}: {why}")
        if dead and not write:
            # The dead are gone for the next one that may write; until then, an index would be wrong.
            return _Scanned(leases, directory, exclusive=exclusive)
        if dead:
            since = os.fstat(directory).st_mtime_ns
        index.exclusive = exclusive
        if len(leases) <= _FEW:
            index.delete()
            return _Scanned(leases, directory, exclusive=exclusive, index=index)
        try:
            index.rebuild(leases, since)
        except OSError:
            index.distrust()
            return _Scanned(leases, directory, exclusive=exclusive)
        if self._index_is_wrong:  # it may be so again
            self._index_is_wrong = False
            return _Scanned(leases, directory, exclusive=exclusive)
        return index

    # --- changes ------------------------------------------------------------------------------------------------------

    def _change(self, directory: int, changes: Changes, boot: Boot | None) -> None:
        """Change the files. What can fail is done first; what fails nevertheless is undone."""
        for lease in changes.reserve:
            if not is_proper(lease.owner):
                raise ValueError(f"{lease.owner!r} cannot own a lease: its names are not those of an attachment")
            size = len(content(lease.owner))
            if size > SIZE_MAX:
                raise InvalidEnvironmentError(
                    f"a lease of this container would have {size} bytes, and may have {SIZE_MAX}",
                    details=f"CNI_CONTAINERID has {len(lease.owner.container_id)} characters",
                )
        files: list[_File] = []
        try:
            for lease in changes.release:
                self._verify(directory, lease)
            for lease in changes.reserve:
                files.append(_prepare(directory, str(lease.address), content(lease.owner), boot))
            for number, address in changes.cursors.items():
                cursor = _prepare_cursor(directory, f"{LAST_RESERVED}{number}", str(address).encode())
                if cursor is not None:
                    files.append(cursor)
            for file in files:
                if not file.exists:
                    _publish(directory, file)
            for file in files:
                if file.exists:
                    _overwrite(file.fd, file.data)
            for lease in changes.release:
                try:
                    os.unlink(str(lease.address), dir_fd=directory)
                except FileNotFoundError:
                    pass  # deleted by hand: this process has the lock
        except BaseException as exc:
            for file in files:
                if _is_published(directory, file):
                    _unlink(directory, file.name)
            # In a directory that was deleted, the kernel refuses with ENOENT or EPERM.
            gone = isinstance(exc, OSError) and not os.fstat(directory).st_nlink
            if gone or isinstance(exc, FileExistsError):
                raise Conflict(f"{self.path} is not as it was: {exc}") from exc
            if isinstance(exc, OSError):
                self._fail("change", exc)
            raise
        finally:
            for file in files:
                if file.fd >= 0:
                    os.close(file.fd)

    def _verify(self, directory: int, lease: Lease) -> None:
        record = read_record(directory, str(lease.address))
        if record is None or record.owner != lease.owner:
            raise Conflict(f"{lease.address} is not held by {lease.owner}")

    def _fail(self, action: str, exc: OSError) -> NoReturn:
        raise self._failure(action, exc) from exc

    def _failure(self, action: str, exc: OSError) -> CNIError:
        """Say which path the kernel refused, and why."""
        number = exc.errno or 0
        dangling = find_dangling(f"{self.path}/{lockfile.NAME}") if number == errno.ENOENT else None
        return IOFailureError(
            f"cannot {action} the address store {self.path}: {exc.strerror or exc} "
            f"({errno.errorcode.get(number, 'unknown error')})",
            details=dangling or _HINTS.get(number, ""),
        )


def find_dangling(path: str) -> str | None:
    """Find a symbolic link on a path that leads nowhere, and say so: a disk that is not mounted, perhaps.

    Returns:
        A sentence; None when there is no such link, so that what is missing may be made.
    """
    while path and path != os.path.dirname(path):
        if os.path.islink(path) and not os.path.exists(path):
            return f"{path} is a symbolic link to {os.readlink(path)}, which does not exist"
        path = os.path.dirname(path)
    return None


def _is_never_found(path: str) -> bool:
    """Can nothing be made at a path, although what is above it is there? Or has somebody deleted that meanwhile?"""
    if find_dangling(path) is not None:
        return True
    if os.path.basename(path) == lockfile.NAME or not os.path.isdir(os.path.dirname(path) or os.curdir):
        return False
    try:  # once more: in procfs, and in a working directory that was deleted, it will never do
        os.mkdir(path)
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _is_at(directory: int, path: str) -> bool:
    """Is a path still that of an open directory?"""
    try:
        return os.path.samestat(os.fstat(directory), os.stat(path))
    except FileNotFoundError:
        return False


def _missing(path: str) -> list[str]:
    """The directories of a path that do not exist, outermost first."""
    missing: list[str] = []
    while path and not os.path.isdir(path):
        missing.insert(0, path)
        path = os.path.dirname(path)
    return missing


def _has_lease(directory: int) -> bool:
    """Is there a lease? In a directory with many, one is among the first names."""
    with os.scandir(directory) as entries:
        return any(parse_name(entry.name) is not None for entry in entries)


def _unlink(directory: int, name: str) -> bool:
    """Delete a file, and say whether it is gone."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _prepare(directory: int, name: str, data: bytes, boot: Boot | None) -> _File:
    """Write a file that has no name yet, so that a full disk shows before anything is done."""
    try:
        return _File(name, data, boot, make_unnamed(directory, data, boot), False)
    except OSError as exc:
        if exc.errno not in _NO_UNNAMED_FILES:
            raise
    return _File(name, data, boot, -1, False)


def _prepare_cursor(directory: int, name: str, data: bytes) -> _File | None:
    """Open the file that says where to go on; None where something else has that name: it is only about order."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        return _File(name, data, None, fd, True)
    except FileNotFoundError:
        return _prepare(directory, name, data, None)
    except OSError as exc:
        if exc.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            return None
        raise


def _publish(directory: int, file: _File) -> None:
    """Give a file its name, which must be free: from now on it is there, whole."""
    if file.fd >= 0:
        try:
            os.link(f"/proc/self/fd/{file.fd}", file.name, dst_dir_fd=directory, follow_symlinks=True)
        except FileNotFoundError:
            if not os.fstat(directory).st_nlink:
                raise  # the directory was deleted; otherwise there is no /proc
        else:
            return
    try:
        os.unlink(SPARE, dir_fd=directory)
    except FileNotFoundError:
        pass
    fd = os.open(SPARE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE, dir_fd=directory)
    try:
        fill(fd, file.data, file.boot)
        os.link(SPARE, file.name, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(fd)
        _unlink(directory, SPARE)


def _is_published(directory: int, file: _File) -> bool:
    """Has this very file got its name? Another's of that name must not be taken for it."""
    if file.exists:
        return False
    if file.fd >= 0:
        return os.fstat(file.fd).st_nlink > 0
    try:
        fd = os.open(file.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(fd, len(file.data) + 1) == file.data
    finally:
        os.close(fd)


def _overwrite(fd: int, data: bytes) -> None:
    """Replace a short text in place.

    Renaming a new file over the old one would be whole at any moment, but makes ext4 flush data to the disk at once; of
    a cursor, a wrong text costs nothing but the order.
    """
    os.pwrite(fd, data, 0)
    if os.fstat(fd).st_size > len(data):
        os.ftruncate(fd, len(data))
