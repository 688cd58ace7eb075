"""State files: what a plugin must remember of an attachment until DEL, and the kernel cannot keep for it.

The first choice is no file at all: a link's alias or a rule's comment says whose the object is. A state file is for
what is gone once ADD has changed it, such as the values that an interface had before. It is one JSON object with the
attachment under the key ``cni``, so that DEL and GC never take another's. Files without that key, which the reference
plugins write, count as the attachment's they are named after. Container ``a_b`` with interface ``c`` and ``a`` with
``b_c`` make the same name, which is the reference's: the second of them gets another one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial

from .._files import TEMPORARY, find_dangling, read_file, replace_file
from .._light import Any
from ..errors import CNIError, InvalidEnvironmentError, IOFailureError, cause_of, run_all
from ..spec.codec import dumps, loads
from ..spec.names import Attachment, short_hash

_OWNER = "cni"
_NAME_MAX = 255
# A name that is too long for a file is that of no file.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class StateFile:
    """A plugin's state file of one attachment.

    Attributes:
        owner: Whose it is.
    """

    def __init__(self, directory: str, owner: Attachment, name: str = "") -> None:
        """Nothing is read or written yet.

        Args:
            directory: Where the plugin keeps such files; made when it is needed.
            owner: The attachment.
            name: Name of the file; by default ``<container id>_<ifname>.json``, or with a hash in it where the file of
                that name is of another container or interface.
        """
        self.owner = owner
        self._directory = directory
        self._name = name

    @property
    def path(self) -> str:
        """Path at which the file is, or will be.

        Raises:
            IOFailureError: (5) The file that may be there cannot be read.
        """
        owner = self.owner
        if self._name:
            return os.path.join(self._directory, self._name)
        usual = os.path.join(self._directory, f"{owner.container_id}_{owner.ifname}.json")
        spare = f"{usual.removesuffix('json')}{short_hash(*owner, digits=16)}.json"
        if os.path.lexists(spare):  # also when the other one has gone since
            return spare
        document = find_document(usual)
        other = None if document is None else _owner_of(document)
        return usual if other is None or other[1:] == owner[1:] else spare

    def write(self, document: Mapping[str, Any]) -> None:
        """Write the file. It appears whole, in place of one that is there.

        Raises:
            InvalidEnvironmentError: (4) The container id is too long for the name of a file.
            IOFailureError: (5) It cannot be written.
        """
        path = self.path
        if len(os.fsencode(os.path.basename(path))) > _NAME_MAX:
            raise InvalidEnvironmentError(
                f"CNI_CONTAINERID has {len(self.owner.container_id)} characters: too long for the name of a file",
                details=f"a file name has at most {_NAME_MAX} bytes",
            )
        owner = {
            "network": self.owner.network,
            "containerID": self.owner.container_id,
            "ifname": self.owner.ifname,
        }
        try:
            replace_file(path, dumps({**document, _OWNER: owner}), self._temporary)
        except OSError as exc:
            raise IOFailureError(f"cannot write {path}: {cause_of(exc)}") from exc

    def find(self) -> dict[str, Any] | None:
        """Return what was written; None when there is no file, it is another attachment's, or a power cut has torn it.

        Raises:
            IOFailureError: (5) It cannot be read.
        """
        document = find_document(self.path)
        if document is None or _owner_of(document) not in (None, self.owner):
            return None
        return {key: value for key, value in document.items() if key != _OWNER}

    def find_others(self, netns: str = "") -> list[dict[str, Any]]:
        """Return what was written for the other interfaces of the same container, on any network.

        It tells what of a container's namespace is still in use: a setting that several interfaces share is put back by
        the last of them.

        Args:
            netns: If given, the container's namespace (:meth:`.NetNS.identify`). Documents with another value under the
                key ``netns`` are left out: a container of the same id had that namespace before, and its DEL is late.

        Raises:
            IOFailureError: (5) The directory or a file cannot be read.
        """
        directory, own = os.path.split(self.path)
        names = [name for name in _list(directory) if name.startswith(f"{self.owner.container_id}_") and name != own]
        documents = [find_document(os.path.join(directory, name)) for name in sorted(names)]
        owned = [(each, _owner_of(each)) for each in documents if each is not None]
        return [
            {key: value for key, value in document.items() if key != _OWNER}
            for document, owner in owned
            if owner is not None
            and owner.container_id == self.owner.container_id
            and (not netns or document.get("netns", netns) == netns)
        ]

    def is_free(self) -> bool:
        """Return whether :meth:`write` takes nothing from another: no file is there, or it names this attachment.

        Raises:
            IOFailureError: (5) It cannot be read.
        """
        document = find_document(self.path)
        return document is None or _owner_of(document) == self.owner

    def delete(self) -> None:
        """Delete the file, and what a killed process left of one. Absence is fine; another attachment's file stays.

        Raises:
            IOFailureError: (5) It cannot be deleted.
        """
        path = self.path
        document = find_document(path)
        if document is None or _owner_of(document) in (None, self.owner):
            _delete(path)
        _delete(self._temporary)

    @property
    def _temporary(self) -> str:
        # Not named after the file, which may be another attachment's as well.
        return os.path.join(self._directory, f".{short_hash(*self.owner, digits=32)}{TEMPORARY}")


def delete_stale(
    directory: str,
    network: str,
    valid: Collection[Attachment],
    delete: Callable[[StateFile], object] = StateFile.delete,
) -> None:
    """Delete the state files of a network whose attachment is not valid: what GC does.

    Files that name no owner, as the reference's, may be another network's: they stay.

    Args:
        directory: Where the plugin keeps such files.
        network: The network.
        valid: Its valid attachments.
        delete: Function that deletes a file, after what the file is about.

    Raises:
        IOFailureError: (5) The directory cannot be read, or a file cannot be deleted; the others were.
    """

    def consider(name: str) -> None:
        file = find_file(directory, name)
        if file is not None and file.owner.network == network and file.owner not in valid:
            delete(file)

    run_all(*(partial(consider, name) for name in sorted(_list(directory)) if not name.startswith(".")))


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory) if "\0" not in directory else []
    except FileNotFoundError as exc:
        if dangling := find_dangling(directory):
            raise IOFailureError(f"cannot read the directory {directory}: {dangling}") from exc
        return []
    except OSError as exc:
        raise IOFailureError(f"cannot read the directory {directory}: {cause_of(exc)}") from exc


def find_file(directory: str, name: str) -> StateFile | None:
    """Return the state file of a name; None when there is none, or it names no owner.

    Raises:
        IOFailureError: (5) It cannot be read.
    """
    document = find_document(os.path.join(directory, name))
    owner = None if document is None else _owner_of(document)
    return None if owner is None else StateFile(directory, owner, name)


def find_document(path: str) -> dict[str, Any] | None:
    """Return what a state file has, its owner included; None when there is no file, or a power cut has torn it.

    Raises:
        IOFailureError: (5) It cannot be read.
    """
    try:
        document = loads(read_file(path, follow=False))
    except OSError as exc:
        dangling = find_dangling(os.path.dirname(path)) if exc.errno == errno.ENOENT else None
        if exc.errno in _ABSENT and dangling is None:
            return None
        raise IOFailureError(f"cannot read {path}: {dangling or cause_of(exc)}") from exc
    except CNIError:
        return None
    return document if isinstance(document, dict) else None


def read_text_file(path: str) -> str:
    """Read a text file that a configuration names, such as ``resolv.conf``.

    Bytes that are not UTF-8 become U+FFFD. Links are followed. A FIFO is refused, since a request would wait for it.

    Raises:
        OSError: It cannot be read, or is no regular file. ``/dev/null`` is an empty one.
    """
    if path == os.devnull:
        return ""
    return read_file(path).decode(errors="replace")


def _owner_of(document: Mapping[str, Any]) -> Attachment | None:
    owner = document.get(_OWNER)
    if not isinstance(owner, dict):
        return None
    parts = [owner.get(key) for key in ("network", "containerID", "ifname")]
    return Attachment(*map(str, parts))


def _delete(path: str) -> None:
    if "\0" in path:
        return  # no file can be there
    try:
        os.unlink(path)
    except OSError as exc:
        # The kernel does not look whether there is a file to delete before it says that the file system is read-only.
        if exc.errno in _ABSENT or (exc.errno == errno.EROFS and not os.path.lexists(path)):
            return
        raise IOFailureError(f"cannot delete {path}: {cause_of(exc)}") from exc
