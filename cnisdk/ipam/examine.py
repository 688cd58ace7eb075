"""Look over a directory of leases, for people: who holds what since when, and what is not as it should be."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..errors import IOFailureError
from ..spec.addresses import IPAddress
from . import lockfile
from .filestore import SPARE, FileStore
from .index import DIRECTORY, Index, IndexWrong
from .place import is_exclusive
from .records import LAST_RESERVED, BootOf, parse_name, read_record
from .store import DEFAULT_TIMEOUT, Lease, Owner, insist


class LeaseFile(NamedTuple):
    """A lease, and what its file tells besides.

    Attributes:
        address: The address.
        owner: Who holds it.
        age: For how long, in seconds.
        boot: Which boot it was made in; unknown for the reference's, and for another machine's.
        written: When it was written or changed last, in seconds since the epoch.
        stamp: What tells this very file from another of its name that comes later.
    """

    address: IPAddress
    owner: Owner
    age: float
    boot: BootOf
    written: float = 0.0
    stamp: tuple[int, int] = (0, 0)


class Finding(NamedTuple):
    """Something that is not as it should be.

    Attributes:
        path: The file or directory.
        problem: What is wrong with it, in words.
        repair: What to do about it: delete the file, or the index, which makes itself anew. Empty: nothing that would
            be certain to be right.
        expected: The owner a file to be deleted must still name.
    """

    path: str
    problem: str
    repair: Literal["", "delete", "forget index"]
    expected: Owner = Owner("")


class Examination(NamedTuple):
    """What was found.

    Attributes:
        leases: In the order of their addresses, IPv4 first. Not those that are to be deleted.
        findings: In the order of their paths.
        exclusive: No other machine can write there.
    """

    leases: tuple[LeaseFile, ...]
    findings: tuple[Finding, ...]
    exclusive: bool = True


def examine(store: FileStore, *, timeout: float = DEFAULT_TIMEOUT) -> Examination:
    """Read everything, under the lock, and change nothing.

    Raises:
        TryAgainLaterError: (11) The lock was not to be had in time.
        IOFailureError: (5) Something cannot be read.
    """

    def attempt(deadline: float) -> Examination:
        with store.locked(deadline, write=False) as directory:
            if directory is None:
                orphan = os.path.isdir(store.index_path)
                finding = Finding(store.index_path, "is the index of a network that is gone", "forget index")
                return Examination((), (finding,) if orphan else ())
            return _examine(store, directory)

    return insist(attempt, timeout)


def _examine(store: FileStore, directory: int) -> Examination:
    leases: list[LeaseFile] = []
    findings: list[Finding] = []
    now = time.time()
    exclusive = is_exclusive(directory)
    for name in os.listdir(directory):
        path = f"{store.path}/{name}"
        address = parse_name(name)
        if address is None:
            if name == SPARE:
                findings.append(Finding(path, "is what a killed process left behind", "delete"))
            elif name.startswith(LAST_RESERVED) and not os.path.isfile(path):
                findings.append(Finding(path, "is no file: addresses are not handed out in turn", ""))
            elif name != lockfile.NAME and not name.startswith(LAST_RESERVED):
                findings.append(Finding(path, "is no lease, and disturbs nobody", ""))
            continue
        record = read_record(directory, name, with_boot=True)
        if record is None:
            continue
        if record.torn:
            findings.append(Finding(path, "is empty: its writer was killed before anybody got the address", "delete"))
            continue
        about = os.stat(name, dir_fd=directory, follow_symlinks=False)
        age = max(0.0, now - about.st_mtime)
        boot = store.boot.judge(record.boot, exclusive=exclusive)
        if not record.owner.container_id:
            findings.append(Finding(path, "names no owner, and keeps the address from being handed out", ""))
        elif boot == "earlier" and store.reclaims:
            findings.append(
                Finding(path, f"is of an earlier boot, with which {record.owner} ended", "delete", record.owner)
            )
        written = max(about.st_mtime, about.st_ctime)
        leases.append(LeaseFile(address, record.owner, age, boot, written, _stamp(about)))
    leases.sort(key=lambda lease: (lease.address.version, int(lease.address)))
    index = Index(directory, store.index_path, store.boot, reclaims=store.reclaims)
    try:
        if index.is_current():
            wrong = index.find_wrong([Lease(lease.address, lease.owner) for lease in leases])
            findings += (Finding(store.index_path, f"is wrong: {text}", "forget index") for text in wrong)
    except IndexWrong as exc:
        findings.append(Finding(store.index_path, f"is wrong: {exc}", "forget index"))
    finally:
        index.close()
    return Examination(tuple(leases), tuple(sorted(findings)), exclusive)


def repair(store: FileStore, findings: Iterable[Finding], *, timeout: float = DEFAULT_TIMEOUT) -> tuple[Finding, ...]:
    """Do what the findings say, as far as things still are as they were found; return what was done.

    Raises:
        TryAgainLaterError: (11) The lock was not to be had in time.
        IOFailureError: (5) Something cannot be deleted.
    """
    wanted = [finding for finding in findings if finding.repair]

    def attempt(deadline: float) -> tuple[Finding, ...]:
        done = []
        with store.locked(deadline, write=True) as directory:
            for finding in wanted:
                if finding.repair == "forget index":
                    forget_index(store)
                elif directory is None or not _delete(directory, finding):
                    continue
                done.append(finding)
        return tuple(done)

    return insist(attempt, timeout)


def drop(store: FileStore, leases: Iterable[LeaseFile], *, timeout: float = DEFAULT_TIMEOUT) -> tuple[LeaseFile, ...]:
    """Delete leases, as far as each is the very file that was examined; return those that were.

    Nothing else goes: leases of earlier boots, which the store reclaims when it writes, stay unless they are named.

    Raises:
        TryAgainLaterError: (11) The lock was not to be had in time.
        IOFailureError: (5) Something cannot be deleted.
    """
    wanted = list(leases)

    def attempt(deadline: float) -> tuple[LeaseFile, ...]:
        with store.locked(deadline, write=True) as directory:
            return tuple(each for each in wanted if directory is not None and _drop(directory, each))

    return insist(attempt, timeout)


def _drop(directory: int, lease: LeaseFile) -> bool:
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
        raise IOFailureError(f"cannot delete the lease of {name}: {exc.strerror}") from exc
    return True


def _stamp(about: os.stat_result) -> tuple[int, int]:
    return about.st_ino, about.st_ctime_ns


def _delete(directory: int, finding: Finding) -> bool:
    name = os.path.basename(finding.path)
    if name != SPARE:
        record = read_record(directory, name)
        if record is None or record.owner != finding.expected:
            return False
    os.unlink(name, dir_fd=directory)
    return True


def forget_index(store: FileStore) -> None:
    """Delete the index of a network: the next operation scans, and makes it anew."""
    import shutil

    if os.path.islink(store.index_path) or os.path.isfile(store.index_path):
        os.unlink(store.index_path)
    shutil.rmtree(store.index_path, ignore_errors=True)


def list_networks(data_dir: str) -> list[str]:
    """The networks that have a directory, or an index.

    Raises:
        OSError: The directory cannot be read; one that does not exist is empty.
    """
    found: set[str] = set()
    for place in (data_dir, os.path.join(data_dir, DIRECTORY)):
        try:
            with os.scandir(place) as listing:
                found.update(each.name for each in listing if each.name[:1].isalnum() and each.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            pass
    return sorted(found)
