"""Look over a directory of leases, for people: who holds what since when, and what is not as it should be."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple

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
    """

    address: IPAddress
    owner: Owner
    age: float
    boot: BootOf


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
    """

    leases: tuple[LeaseFile, ...]
    findings: tuple[Finding, ...]


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
        age = max(0.0, now - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime)
        boot = store.boot.judge(record.boot, exclusive=exclusive)
        if not record.owner.container_id:
            findings.append(Finding(path, "names no owner, and keeps the address from being handed out", ""))
        elif boot == "earlier" and store.reclaims:
            findings.append(
                Finding(path, f"is of an earlier boot, with which {record.owner} ended", "delete", record.owner)
            )
        leases.append(LeaseFile(address, record.owner, age, boot))
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
    return Examination(tuple(leases), tuple(sorted(findings)))


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
