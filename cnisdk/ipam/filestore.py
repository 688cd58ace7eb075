"""Leases as files, in the format of the reference's host-local, which may use the same directory at the same time.

Theory of operation. ``<data_dir>/<network>/`` holds a file ``lock``, one file for each lease, named by the address, and
a cursor ``last_reserved_ip.<n>`` for each range set, with the address it handed out last (:mod:`._records`).

- One process at a time works in a directory. It holds ``flock`` on ``lock``, as the reference does (:mod:`._lockfile`),
  and meanwhile signals are held back.
- A lease appears whole: its file is written without a name, then linked under the address. The link fails when the name
  is taken, so it is at once the allocation and the guard against allocating twice.
- A commit does first what can fail: it verifies the leases to release and writes the new files. It then links these,
  overwrites cursors and unlinks. On an error, it unlinks what it has linked.
- Killed between two links, a process leaves the leases it has linked so far. They name their owner, so DEL finds them.
- An index beside the directory (:mod:`._index`) lets each operation cost the same at any number of leases. It is a
  hint: if it does not fit the directory, all files are read (a scan), and the index is made anew.
- A scan also reclaims: it deletes empty files, whose writer was killed, and leases of earlier boots of this machine.
- A process without the lock may delete the directory or replace it, as ``podman network rm`` does. A process that
  notices this raises :class:`Conflict`, and the operation starts again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from .._files import find_dangling
from .._light import NamedTuple, NoReturn
from .._signals import HeldBack
from ..errors import (
    CNIError,
    InvalidConfigError,
    InvalidEnvironmentError,
    IOFailureError,
    PluginNotAvailableError,
    cause_of,
    describe_errno,
)
from ..spec.addresses import IPAddress
from ..spec.names import check_network_name
from . import _lockfile
from ._exclusive import is_exclusive
from ._index import DIRECTORY, Index, IndexWrong, delete_index, read_cursor
from ._records import (
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
from .memory import MemoryView
from .store import NOBODY, Changes, Conflict, Lease, Store, View

DATA_DIR = "/var/lib/cni/networks"
"""The directory in which the reference keeps leases by default."""

SPARE = ".cnisdk-new"
"""Name of the file in which a lease is written first, on file systems that have no unnamed files."""

# Up to this many leases, those of one container with two families, reading all is faster than making an index.
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
    """The leases a scan found in a directory that has no index."""

    def __init__(self, leases: Iterable[Lease], directory: int, *, exclusive: bool, index: Index | None = None) -> None:
        super().__init__(leases)
        self.directory = directory
        self.exclusive = exclusive
        self.index = index  # made as soon as there are more leases

    def find_cursor(self, index: int) -> IPAddress | None:
        return read_cursor(self.directory, index)


class _File(NamedTuple):
    """A lease about to get its name, or a cursor about to be overwritten.

    Attributes:
        name: Its name.
        data: Its content.
        boot: The boot to mark it with; None for no mark.
        fd: A descriptor of it; -1 where the file system has no unnamed files.
        exists: If true, the file is there already and is only overwritten.
    """

    name: str
    data: bytes
    boot: Boot | None
    fd: int
    exists: bool


class FileStore(Store):
    """The leases of one network, in ``<data_dir>/<network>``.

    The first lease makes the directory.

    Args:
        data_dir: Directory of the networks' directories; empty means :data:`DATA_DIR`. A relative path is relative to
            the working directory, as in the reference.
        network: Name of the network.
        reclaim_earlier_boots: If true, leases of earlier boots of this machine count as free: their namespaces ended
            with the boot. Leases whose boot is not known are never touched, nor any in a directory that other machines
            may use.
        notice: Called with a sentence for each lease that is reclaimed.
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
                    delete_index(self.index_path)  # a person removed the network's directory
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
        """Open the directory and take its lock. Signals are held back until both are closed.

        Args:
            deadline: Time of ``time.monotonic()`` at which to give up waiting.
            write: If true, the caller may change files. Otherwise a directory in which this process cannot make a lock
                file is read without one.

        Yields:
            A descriptor of the directory; None when it does not exist.

        Raises:
            TryAgainLaterError: (11) The deadline passed.
            IOFailureError: (5) The directory cannot be opened; or the caller has let an error of the operating system
                pass, which is one of a file in there.
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
                try:
                    yield directory
                except OSError as exc:
                    self._fail("use", exc)
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
            index.distrust()  # no room, no permission: the leases are right, and the next process scans

    def check_usable(self) -> None:
        """Check that leases can be written, without writing.

        Raises:
            PluginNotAvailableError: (50) They cannot; the message has the path and the reason.
        """
        path = self.path
        while not os.path.lexists(path) and path not in ("/", os.curdir):
            path = os.path.dirname(path) or os.curdir
        dangling = find_dangling(path)
        if dangling is not None:
            raise PluginNotAvailableError(f"cannot write the address store {self.path}", details=dangling)
        try:
            problem = _problem_of(path)
        except OSError as exc:  # such as of a disk that is broken, or a server of files that has gone
            problem = exc.errno or errno.EIO
        if problem:
            raise PluginNotAvailableError(
                f"cannot write the address store {self.path}: {path}: {describe_errno(problem)}",
                details=_HINTS.get(problem, ""),
            )

    # --- the directory ------------------------------------------------------------------------------------------------

    def _lock(self, directory: int, deadline: float, write: bool, signals: HeldBack) -> int | None:
        try:
            return _lockfile.acquire(directory, self.path, deadline, signals, create=True)
        except FileNotFoundError as exc:
            if os.fstat(directory).st_nlink:
                raise  # the directory is there: its lock file is a link that leads nowhere
            raise Conflict(f"{self.path} was deleted") from exc
        except OSError as exc:
            # Where no process can make a lock file, none can make leases either: reading needs no lock.
            if not write and exc.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC):
                return _lockfile.acquire(directory, self.path, deadline, signals, create=False)
            raise

    def _make_directory(self) -> None:
        """Make the directory and its lock, or neither."""
        made: list[str] = []
        try:
            for path in _missing(self.path):
                try:
                    # The reference makes them all with 0755. Container ids and addresses are for their owner alone.
                    os.mkdir(path, 0o700 if path == self.path else 0o755)
                except FileExistsError:
                    continue
                made.append(path)
            os.close(
                os.open(f"{self.path}/{_lockfile.NAME}", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, MODE),
            )
        except OSError as exc:
            for path in reversed(made):
                try:
                    os.rmdir(path)
                except OSError:
                    pass  # another process uses it already
            if isinstance(exc, FileNotFoundError) and not _is_never_found(exc.filename):
                raise Conflict(f"{self.path} was deleted") from exc
            self._fail("make", exc)

    def _scan(self, directory: int, index: Index, *, write: bool) -> Index | _Scanned:
        """Read all leases, reclaim the dead ones, and make the index anew.

        Returns:
            The index; the leases themselves when they are few, or when there can be no index.
        """
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
                continue  # another process deletes leases without the lock
            if record.torn:
                why = "it is empty: its writer was killed before the address was used"
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
            # The next process that may write deletes the dead leases. Until then an index would be wrong.
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
        """Change the files. Steps that can fail come first. After an error, new leases are deleted again."""
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
            gone = isinstance(exc, OSError) and _is_deleted(directory)
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
        dangling = find_dangling(f"{self.path}/{_lockfile.NAME}") if number == errno.ENOENT else None
        # Files in the directory are opened by their names alone; of two names, the second one is the new one.
        name = exc.filename2 or exc.filename
        file = f"{name}: " if isinstance(name, str) and name.strip(".") and "/" not in name else ""
        return IOFailureError(
            f"cannot {action} the address store {self.path}: {file}{cause_of(exc)}",
            details=dangling or _HINTS.get(number, ""),
        )


def _problem_of(path: str) -> int:
    """Return the errno with which a process could write no lease in a directory; 0 if it could.

    Raises:
        OSError: The kernel cannot tell.
    """
    if not stat.S_ISDIR(os.stat(path).st_mode):
        return errno.ENOTDIR
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        return errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
    space = os.statvfs(path)
    # File systems that make inodes as they need them report 0 of 0.
    return errno.ENOSPC if space.f_bavail == 0 or (space.f_files and space.f_favail == 0) else 0


def _is_deleted(directory: int) -> bool:
    try:
        return not os.fstat(directory).st_nlink
    except OSError:  # the disk is broken: the error that is being handled tells more
        return False


def _is_never_found(path: str) -> bool:
    """Return True if making a directory at this path fails each time.

    Otherwise it failed because another process had just deleted the directory above.
    """
    if find_dangling(path) is not None:
        return True
    if os.path.basename(path) == _lockfile.NAME or not os.path.isdir(os.path.dirname(path) or os.curdir):
        return False
    try:  # once more: in procfs, and in a working directory that was deleted, it fails each time
        os.mkdir(path)
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _is_at(directory: int, path: str) -> bool:
    """Return True if a path still leads to an open directory."""
    try:
        return os.path.samestat(os.fstat(directory), os.stat(path))
    except FileNotFoundError:
        return False


def _missing(path: str) -> list[str]:
    """Return the directories of a path that do not exist, outermost first."""
    missing: list[str] = []
    while path and not os.path.isdir(path):
        missing.insert(0, path)
        path = os.path.dirname(path)
    return missing


def _has_lease(directory: int) -> bool:
    """Return True if there is a lease. In a directory with many, one is among the first names."""
    with os.scandir(directory) as entries:
        return any(parse_name(entry.name) is not None for entry in entries)


def _unlink(directory: int, name: str) -> bool:
    """Delete a file, and return True if it is gone."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _prepare(directory: int, name: str, data: bytes, boot: Boot | None) -> _File:
    """Write a file that has no name yet, so that a full disk shows before any file has changed."""
    try:
        return _File(name, data, boot, make_unnamed(directory, data, boot), False)
    except OSError as exc:
        if exc.errno not in _NO_UNNAMED_FILES:
            raise
    return _File(name, data, boot, -1, False)


def _prepare_cursor(directory: int, name: str, data: bytes) -> _File | None:
    """Open or make the file of a cursor; return None when a directory or a link has its name: only order is lost."""
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
    """Give a file its name, which must be free. From now on the lease exists."""
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
    """Return True if the name leads to this very file, and not to one of another process, nor to one unknown."""
    if file.exists:
        return False
    try:
        if file.fd >= 0:
            return os.fstat(file.fd).st_nlink > 0
        fd = os.open(file.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(fd, len(file.data) + 1) == file.data
    except OSError:
        return False
    finally:
        os.close(fd)


def _overwrite(fd: int, data: bytes) -> None:
    """Replace a short text in place.

    Renaming a new file over the old one would replace it in one step, but makes ext4 flush data to the disk at once. A
    torn cursor costs nothing but the order.
    """
    os.pwrite(fd, data, 0)
    if os.fstat(fd).st_size > len(data):
        os.ftruncate(fd, len(data))
