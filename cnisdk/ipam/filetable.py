"""The leases of a :class:`~.filestore.FileStore`, as the commands see them.

All files are touched inside :meth:`.FileStore.locked`, which turns errors of the operating system into those of CNI.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from ..errors import IOFailureError, cause_of
from ..spec.names import is_network_name
from . import _lockfile
from ._exclusive import is_exclusive
from ._index import DIRECTORY, Index, IndexWrong
from ._records import LAST_RESERVED, Record, parse_name, read_record
from .filestore import SPARE, FileStore
from .ranges import Pool
from .store import LOCK_TIMEOUT, NOBODY, Lease, Owner, insist
from .table import Examination, Finding, LeaseRecord, LeaseTable

_DELETE = "delete"
_FORGET_INDEX = "forget index"  # the next operation scans, and makes it anew


class FileTable(LeaseTable):
    """The table of a :class:`FileStore`. Each method works under the lock of the store's directory.

    Args:
        store: The store.
        pools: The addresses there are to hand out; empty when that is not known.
    """

    def __init__(self, store: FileStore, pools: Sequence[Pool] = ()) -> None:
        super().__init__(store.network, store.path, pools)
        self._store = store

    def examine(self, *, timeout: float = LOCK_TIMEOUT) -> Examination:
        """See :class:`LeaseTable`."""
        store = self._store

        def attempt(deadline: float) -> Examination:
            with store.locked(deadline, write=False) as directory:
                if directory is not None:
                    return self._examine(directory)
                if os.path.isdir(store.index_path):
                    return Examination(
                        findings=(Finding(store.index_path, "is the index of a network that is gone", _FORGET_INDEX),)
                    )
                return Examination()

        return insist(attempt, timeout)

    def find(self, owner: Owner, *, timeout: float = LOCK_TIMEOUT) -> tuple[LeaseRecord, ...]:
        """See :class:`LeaseTable`. One of an earlier boot that counts as free is not found."""
        store = self._store
        addresses = store.read(lambda view: view.find_addresses(owner), timeout=timeout)

        def attempt(deadline: float) -> tuple[LeaseRecord, ...]:
            with store.locked(deadline, write=False) as directory:
                if directory is None:
                    return ()
                exclusive = is_exclusive(directory)
                records = [(str(each), read_record(directory, str(each), with_boot=True)) for each in addresses]
                found = []
                for name, record in records:
                    if record is not None and record.owner == owner:
                        with suppress(FileNotFoundError):  # a person deletes without the lock
                            found.append(_read_lease(store, directory, name, record, exclusive=exclusive))
                return tuple(found)

        return insist(attempt, timeout) if addresses else ()

    def drop(self, leases: Iterable[LeaseRecord], *, timeout: float = LOCK_TIMEOUT) -> tuple[LeaseRecord, ...]:
        """See :class:`LeaseTable`. A store reclaims leases of earlier boots when it writes; this does not."""
        wanted = list(leases)

        def attempt(deadline: float) -> tuple[LeaseRecord, ...]:
            with self._store.locked(deadline, write=True) as directory:
                return tuple(each for each in wanted if directory is not None and self._drop(directory, each))

        return insist(attempt, timeout)

    def repair(self, findings: Iterable[Finding], *, timeout: float = LOCK_TIMEOUT) -> tuple[Finding, ...]:
        """See :class:`LeaseTable`."""
        wanted = [finding for finding in findings if finding.repair]

        def attempt(deadline: float) -> tuple[Finding, ...]:
            done = []
            with self._store.locked(deadline, write=True) as directory:
                for finding in wanted:
                    if finding.repair == _FORGET_INDEX:
                        _forget_index(self._store)
                    elif directory is None or not _delete(directory, finding):
                        continue
                    done.append(finding)
            return tuple(done)

        return insist(attempt, timeout)

    def _drop(self, directory: int, lease: LeaseRecord) -> bool:
        name = str(lease.address)
        try:
            about = os.stat(name, dir_fd=directory, follow_symlinks=False)
            record = read_record(directory, name)
            if _stamp(about) != lease.stamp or record is None or record.owner != lease.owner:
                return False
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise IOFailureError(f"cannot delete the lease {self._store.path}/{name}: {cause_of(exc)}") from exc
        return True

    def _examine(self, directory: int) -> Examination:
        store = self._store
        leases: list[LeaseRecord] = []
        findings: list[Finding] = []
        exclusive = is_exclusive(directory)
        for name in os.listdir(directory):
            path = f"{store.path}/{name}"
            if parse_name(name) is None:
                findings += _examine_other(path, name)
                continue
            record = read_record(directory, name, with_boot=True)
            if record is None:
                continue
            if record.torn:
                problem = "is empty: its writer was killed before the address was used"
                findings.append(Finding(path, problem, _DELETE))
                continue
            try:
                lease = _read_lease(store, directory, name, record, exclusive=exclusive)
            except FileNotFoundError:
                continue  # a person deletes leases without the lock
            if record.owner == NOBODY:
                findings.append(Finding(path, "names no owner, and keeps the address from being handed out"))
            elif lease.boot == "earlier" and store.reclaims:
                problem = f"is of an earlier boot, with which {record.owner} ended"
                findings.append(Finding(path, problem, _DELETE, record.owner))
            leases.append(lease)
        leases.sort(key=lambda lease: (lease.address.version, int(lease.address)))
        findings += _examine_index(store, directory, leases)
        return Examination(tuple(leases), tuple(sorted(findings)), exclusive, store.reclaims)


def _examine_other(path: str, name: str) -> Iterator[Finding]:
    """Look at a file that is no lease."""
    if name == SPARE:
        yield Finding(path, "is what a killed process left behind", _DELETE)
    elif name.startswith(LAST_RESERVED):
        if not os.path.isfile(path):
            yield Finding(path, "is no regular file, so addresses are not handed out in turn", harmless=True)
    elif name != _lockfile.NAME:
        yield Finding(path, "is no lease, and does no harm", harmless=True)


def _read_lease(store: FileStore, directory: int, name: str, record: Record, *, exclusive: bool) -> LeaseRecord:
    """Describe a lease that was read.

    Raises:
        FileNotFoundError: A process without the lock has deleted it.
        OSError: It cannot be looked at.
    """
    about = os.stat(name, dir_fd=directory, follow_symlinks=False)
    address = parse_name(name)
    assert address is not None
    return LeaseRecord(
        address,
        record.owner,
        age=time.time() - about.st_mtime,
        stamp=_stamp(about),
        boot=store.boot.judge(record.boot, exclusive=exclusive),
        written=max(about.st_mtime, about.st_ctime),
    )


def _examine_index(store: FileStore, directory: int, leases: Iterable[LeaseRecord]) -> Iterator[Finding]:
    index = Index(directory, store.index_path, store.boot, reclaims=store.reclaims)
    try:
        if index.is_current():
            for text in index.find_wrong([Lease(lease.address, lease.owner) for lease in leases]):
                yield Finding(store.index_path, f"disagrees with the leases: {text}", _FORGET_INDEX)
    except IndexWrong as exc:
        yield Finding(store.index_path, f"cannot be used: {exc}", _FORGET_INDEX)
    finally:
        index.close()


def _stamp(about: os.stat_result) -> tuple[int, int]:
    return about.st_ino, about.st_ctime_ns


def _delete(directory: int, finding: Finding) -> bool:
    name = os.path.basename(finding.path)
    if name != SPARE:
        record = read_record(directory, name)
        if record is None or record.owner != finding.owner or (finding.owner == NOBODY and not record.torn):
            return False
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise IOFailureError(f"cannot repair {finding.path}: {cause_of(exc)}") from exc
    return True


def _forget_index(store: FileStore) -> None:
    import shutil

    try:
        if os.path.islink(store.index_path) or os.path.isfile(store.index_path):
            os.unlink(store.index_path)
        elif os.path.lexists(store.index_path):
            shutil.rmtree(store.index_path)
    except FileNotFoundError:
        pass  # another process makes it anew
    except OSError as exc:
        raise IOFailureError(f"cannot repair {store.index_path}: {cause_of(exc)}") from exc


def list_networks(data_dir: str) -> list[str]:
    """Return the names of the networks that have a directory of leases, or an index, sorted.

    Raises:
        IOFailureError: (5) `data_dir` cannot be read. One that does not exist is empty.
    """
    found: set[str] = set()
    for place in (data_dir, os.path.join(data_dir, DIRECTORY)):
        try:
            with os.scandir(place) as listing:
                found.update(each.name for each in listing if is_network_name(each.name) and each.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as exc:
            raise IOFailureError(f"cannot read {data_dir}: {cause_of(exc)}") from exc
    return sorted(found)
