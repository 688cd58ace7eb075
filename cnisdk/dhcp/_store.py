"""Files of leases, one for each attachment, from which a daemon takes over the leases of the previous one.

Each file appears whole. It is there before the server can have acknowledged the lease, until DEL or GC has released it.
Nothing of an earlier boot is alive: those files are deleted.

The directory is beside the daemon's socket, so that plugins find it. A daemon that has its files elsewhere leaves a
pointer there. Where a plugin cannot follow it, since the daemon runs with other mounts, DEL leaves a note beside the
pointer instead, and the next daemon releases the lease.

What lies there is acted on, in the namespaces of containers: a directory that other users can change is refused.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from .._files import TEMPORARY, check_owner, check_path, read_file, replace_file
from .._light import Any
from ..classes import frozen
from ..errors import CNIError, IOFailureError, cause_of
from ..spec.codec import dumps_compact, loads
from ..spec.names import Attachment, short_hash
from ._machine import Identity
from .lease import DHCPLease

_SUFFIX, _NOTE = ".json", ".deleted"
_POINTER = "elsewhere"
_DAMAGED = (OSError, CNIError, ValueError, KeyError, TypeError, AttributeError)


@frozen(kw_only=True)
class Record:
    """A lease of an attachment, as a file has it.

    Attributes:
        owner: The attachment.
        netns: Path of the namespace.
        cookie: Identity of that namespace, see :meth:`.NetNS.identify`.
        index: Index of the interface.
        identity: Description of the client, see :class:`._machine.Identity`.
        priority: Metric of the lease's routes.
        lease: The lease, or the offer that was asked for; None while an attached container has lost its lease.
        bound: The lease was acknowledged.
        attached: ADD had its result. If false, the lease is of an ADD that did not end, and no container uses it.
        boot: Boot of the machine.
        stale: Earlier leases that the interface may still have parts of.
        add: Mark of the ADD that made the lease, which may take it back; empty if it is not known.
    """

    owner: Attachment
    netns: str
    cookie: str
    index: int
    identity: Identity
    priority: int
    lease: DHCPLease | None
    bound: bool
    attached: bool
    boot: str
    stale: tuple[DHCPLease, ...] = ()
    add: str = ""

    def to_json(self) -> dict[str, Any]:
        """Write the record as a JSON object."""
        return {
            "cni": {
                "network": self.owner.network,
                "containerID": self.owner.container_id,
                "ifname": self.owner.ifname,
            },
            "netns": self.netns,
            "cookie": self.cookie,
            "index": self.index,
            "boot": self.boot,
            "bound": self.bound,
            "attached": self.attached,
            "priority": self.priority,
            "mac": self.identity.mac,
            "provided": {str(number): value.hex() for number, value in self.identity.provided.items()},
            "requested": list(self.identity.requested),
            "broadcast": self.identity.broadcast,
            "lease": self.lease.to_json() if self.lease is not None else None,
            "stale": [each.to_json() for each in self.stale],
            "add": self.add,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Record:
        """Read what :meth:`to_json` wrote, also in an earlier version, which lacks what came later.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: It is damaged.
        """
        owner = document["cni"]
        return cls(
            owner=Attachment(owner["network"], owner["containerID"], owner["ifname"]),
            netns=document["netns"],
            cookie=document["cookie"],
            index=document["index"],
            boot=document["boot"],
            bound=document["bound"],
            attached=document["attached"],
            priority=document.get("priority", 0),
            identity=Identity(
                mac=document["mac"],
                provided={int(number): bytes.fromhex(value) for number, value in document.get("provided", {}).items()},
                requested=tuple(document.get("requested", ())),
                broadcast=document.get("broadcast", False),
            ),
            lease=DHCPLease.from_json(document["lease"]) if document["lease"] is not None else None,
            stale=tuple(map(DHCPLease.from_json, document.get("stale", ()))),
            add=document.get("add", ""),
        )


def directory_beside(socket_path: str) -> str:
    """Return the directory of the leases of the daemon at a socket: ``/run/cni/dhcp`` for ``/run/cni/dhcp.sock``."""
    stem = socket_path.removesuffix(".sock")
    return stem if stem != socket_path else f"{socket_path}.leases"


def boot_id() -> str:
    """Return the kernel's random id of this boot; empty when it cannot be read."""
    with suppress(OSError):
        return read_file("/proc/sys/kernel/random/boot_id").decode().strip()
    return ""


def _identify(directory: str) -> str:
    """Return what tells a directory from others of the same path in other mounts; empty if it cannot be reached."""
    try:
        status = os.stat(directory)
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


class LeaseFiles:
    """The files in a directory.

    A daemon holds a lock on the directory as long as it lives; a process that does without a daemon, as long as it
    works. So no daemon goes on with a lease that such a process gives back.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def lock(self, *, alone: bool, patience: float) -> int | None:
        """Lock the directory, until the descriptor is closed.

        Args:
            alone: For a daemon. If false, other processes may hold the lock too, but no daemon.
            patience: Seconds to wait for it.

        Returns:
            The descriptor; None if another process kept the lock.

        Raises:
            OSError: The directory is not there, cannot be opened, or belongs to another user.
        """
        deadline = time.monotonic() + patience
        check_path(self.directory)
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        while True:
            try:
                check_owner(fd, self.directory)
                fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return None
                time.sleep(0.01)
            except BaseException:
                os.close(fd)
                raise

    def save(self, record: Record) -> None:
        """Write a record in place of the previous one.

        Raises:
            IOFailureError: (5) It cannot be written.
        """
        path = self._path(record.owner)
        try:
            replace_file(path, dumps_compact(record.to_json()))
        except OSError as exc:
            raise IOFailureError(f"cannot write {path}: {cause_of(exc)}") from exc

    def find(self, owner: Attachment) -> Record | None:
        """Return the record of an attachment; None without one, and for one of an earlier boot."""
        try:
            record = self._read(self._path(owner))
        except _DAMAGED:
            return None
        return record if record.owner == owner and record.boot == boot_id() else None

    def delete(self, owner: Attachment) -> None:
        """Delete the record of an attachment. Absence is fine.

        Raises:
            IOFailureError: (5) It cannot be deleted.
        """
        self._delete(self._path(owner))

    def load(self, log: Callable[[str], None] = lambda _: None) -> list[Record]:
        """Return all records of this boot, and delete those of others, and what a killed daemon left half written.

        A file that is damaged stays: it may be another program's.

        Args:
            log: Is told of each that is damaged.

        Raises:
            IOFailureError: (5) The directory cannot be read.
        """
        try:
            paths = self._list(_SUFFIX)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise IOFailureError(f"cannot read the directory {self.directory}: {cause_of(exc)}") from exc
        boot, records = boot_id(), []
        for path in paths:
            try:
                record = self._read(path)
            except _DAMAGED as exc:
                what = "its lease is neither renewed nor released by this daemon, and the file stays"
                log(f"cnisdk dhcp: cannot read {path}: {cause_of(exc)}: {what}")
                continue
            if record.boot == boot:
                records.append(record)
            elif boot:
                self._delete(path)
        return records

    # --- of the directory beside the socket ---------------------------------------------------------------------------

    def point_to(self, directory: str) -> str:
        """Leave a pointer to the directory with the files, or none if this is it.

        Returns:
            Path of the directory that the pointer led to before, if that is another and exists; else empty.

        Raises:
            OSError: The pointer cannot be written.
        """
        directory, (before, _) = os.path.abspath(directory), self._read_pointer() or ("", "")
        path = os.path.join(self.directory, _POINTER)
        if os.path.samefile(directory, self.directory):
            with suppress(FileNotFoundError):
                os.unlink(path)
        else:
            replace_file(path, dumps_compact({"directory": directory, "id": _identify(directory)}))
        return before if _identify(before) not in ("", _identify(directory)) else ""

    def follow(self) -> LeaseFiles | None:
        """Return the files that the pointer leads to, these without one; None if that directory is none of this host.

        A directory of another daemon's mounts may have a path that is another directory here.
        """
        pointer = self._read_pointer()
        if pointer is None:
            return self
        directory, identity = pointer
        return LeaseFiles(directory) if identity and _identify(directory) == identity else None

    def _read_pointer(self) -> tuple[str, str] | None:
        """Return the directory that the pointer names, and its identity; empty if it is damaged, None without one."""
        try:
            document = loads(read_file(os.path.join(self.directory, _POINTER), follow=False))
            return str(document["directory"]), str(document["id"])
        except FileNotFoundError:
            return None
        except _DAMAGED:
            return "", ""

    def note_deleted(self, owner: Attachment) -> None:
        """Leave a note that an attachment was deleted without its lease's being released.

        Raises:
            OSError: It cannot be written.
        """
        replace_file(self._path(owner, _NOTE), dumps_compact({"cni": list(owner), "boot": boot_id()}))

    def take_deleted(self) -> dict[Attachment, str]:
        """Return the attachments of the notes of this boot, with the path of each; delete other notes.

        Raises:
            IOFailureError: (5) A note cannot be deleted.
        """
        found: dict[Attachment, str] = {}
        with suppress(OSError):
            for path in self._list(_NOTE):
                try:
                    document = loads(read_file(path, follow=False))
                    if document["boot"] == boot_id():
                        found[Attachment(*map(str, document["cni"]))] = path
                        continue
                except OSError:
                    continue  # not certain
                except _DAMAGED:
                    pass
                self.delete_note(path)
        return found

    def delete_note(self, path: str) -> None:
        """Delete a note: what it asks for is done.

        Raises:
            IOFailureError: (5) It cannot be deleted.
        """
        self._delete(path)

    # --- inner --------------------------------------------------------------------------------------------------------

    def _list(self, suffix: str) -> list[str]:
        """Return the paths of the files whose names end so. Files that a killed daemon left half written are deleted.

        Raises:
            OSError: The directory cannot be read.
            IOFailureError: (5) A half-written file cannot be deleted.
        """
        names = sorted(os.listdir(self.directory))
        for name in names:
            if name.startswith(".") and name.endswith(TEMPORARY):
                self._delete(os.path.join(self.directory, name))
        return [os.path.join(self.directory, name) for name in names if name.endswith(suffix)]

    def _path(self, owner: Attachment, suffix: str = _SUFFIX) -> str:
        return os.path.join(self.directory, short_hash(*owner, digits=32) + suffix)

    @staticmethod
    def _read(path: str) -> Record:
        return Record.from_json(loads(read_file(path, follow=False)))

    @staticmethod
    def _delete(path: str) -> None:
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)
        except OSError as exc:
            raise IOFailureError(f"cannot delete {path}: {cause_of(exc)}") from exc
