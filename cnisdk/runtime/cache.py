"""Cache of the attachments a runtime made: one file each, in the format and under the names of libcni.

The name of a file does not tell network ``a-b`` with container ``c`` from ``a`` with ``b-c``. So each reader compares
the names in the file with those it looks for.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping

from .._files import TEMPORARY, find_dangling, make_private, read_file, replace_file
from .._light import Any, NamedTuple, cast
from ..classes import field, frozen
from ..errors import CNIError, DecodingError, InvalidEnvironmentError, IOFailureError, cause_of
from ..spec._mismatch import Mismatch
from ..spec.codec import complain, dumps_compact, loads, structure, unstructure
from ..spec.convert import convert_result, structure_result, without_null_entries
from ..spec.names import Attachment, check_container_id, check_ifname, check_network_name, shorten
from ..spec.versions import SpecVersion

DEFAULT_CACHE_DIR = "/var/lib/cni"
"""Directory of cached results, as in libcni."""

_KIND = "cniCacheV1"
_NAME_MAX = 255
# Seconds. Writing a file takes much less; a process that was killed left an older one.
_TEMPORARY_AGE = 3600


class CachedAttachment(NamedTuple):
    """An attachment, as its runtime remembers the ADD.

    Attributes:
        attachment: Network, container and interface.
        netns: The path of the container's network namespace.
        config: The network's configuration, before anything was put into it.
        cni_args: ``CNI_ARGS``.
        capability_args: All capability arguments, also those no plugin declared.
        result: The result, in the network's version.
    """

    attachment: Attachment
    netns: str = ""
    config: bytes = b""
    cni_args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, Any] = {}
    result: Mapping[str, Any] | None = None

    def result_in(self, version: SpecVersion) -> Mapping[str, Any] | None:
        """Return the result in a version of the specification; None if there is none.

        Raises:
            CNIError: It cannot be read, or converted.
        """
        if self.result is None:
            return None
        result: Mapping[str, Any] = without_null_entries(self.result)
        typed = structure_result(result, str(version), what="cached result")
        if typed.cni_version == str(version):
            return {**result, "cniVersion": typed.cni_version}
        return cast("Mapping[str, Any]", unstructure(convert_result(typed, version).result))


@frozen(kw_only=True)
class _Document:
    """A cached result as it lies in its file."""

    kind: str
    container_id: str
    config: str = ""
    if_name: str
    network_name: str
    netns: str = ""
    cni_args: tuple[tuple[str, ...], ...] = ()
    capability_args: Mapping[str, Any] = field(factory=dict)
    result: Mapping[str, Any] | None = None

    def find_mismatch(self) -> Mismatch | None:
        """Find a value that is not valid in an entry; None if there is none."""
        if self.kind != _KIND:
            return Mismatch(self.kind, f'"{_KIND}"', ("kind",))
        names = {"containerId": self.container_id, "ifName": self.if_name, "networkName": self.network_name}
        for key, name in names.items():
            if not name:
                return Mismatch(name, path=(key,), problem=": it is empty, expected a name")
        for index, pair in enumerate(self.cni_args):
            if len(pair) != 2:
                return Mismatch(pair, "an array of 2 values", ("cniArgs", index))
        return None


class ForeignEntryError(IOFailureError):
    """Code 5: the file of this attachment's name belongs to another attachment."""


class Cache:
    """The directory of cached attachments.

    Args:
        directory: The files are in ``results`` below it.
    """

    def __init__(self, directory: str = DEFAULT_CACHE_DIR) -> None:
        self.directory = os.path.join(directory, "results")

    def path(self, attachment: Attachment) -> str:
        """Return the path of an attachment's file.

        Raises:
            InvalidEnvironmentError: (4) A name is not valid, or all together are too long for the name of a file.
            InvalidConfigError: (7) The network's name is not valid.
        """
        check_container_id(attachment.container_id)
        check_network_name(attachment.network)
        check_ifname(attachment.ifname)
        name = "-".join(attachment)
        if len(name.encode(errors="surrogateescape")) > _NAME_MAX:
            raise InvalidEnvironmentError(
                f"the names of network, container and interface are longer than {_NAME_MAX - 2} bytes together",
                details=f"no file can be called {shorten(name)}",
            )
        return os.path.join(self.directory, name)

    def prepare(self, attachment: Attachment) -> None:
        """Make sure that the entry of an attachment can be written, before its ADD runs.

        Raises:
            ForeignEntryError: (5) There is an entry of another attachment under its name.
            IOFailureError: (5) The directory cannot be made, or cannot be written to.
            InvalidEnvironmentError: (4) See :meth:`path`.
        """
        self.path(attachment)
        try:
            self.find(attachment)
        except ForeignEntryError:
            raise
        except CNIError:
            pass  # a torn entry or a FIFO will be overwritten
        path = self.path(attachment)
        if os.path.isdir(path) and not os.path.islink(path):
            raise IOFailureError(f"cannot write cached result {path}: it is a directory", details="remove it")
        try:
            make_private(self.directory)
        except OSError as exc:
            raise IOFailureError(f"cannot make the directory {exc.filename}: {cause_of(exc)}") from exc
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise IOFailureError(f"cannot write to the directory {self.directory}")

    def store(self, entry: CachedAttachment) -> None:
        """Write an entry. It appears whole, in the place of an older one.

        There is no fsync: after a power cut, no link or namespace that an entry describes exists any more.

        Raises:
            IOFailureError: (5) It cannot be written.
        """
        path = self.path(entry.attachment)
        document: dict[str, object] = {
            "kind": _KIND,
            "containerId": entry.attachment.container_id,
            "config": b2a_base64(entry.config, newline=False).decode(),
            "ifName": entry.attachment.ifname,
            "networkName": entry.attachment.network,
        }
        if entry.netns:
            document["netns"] = entry.netns
        if entry.cni_args:
            document["cniArgs"] = [list(pair) for pair in entry.cni_args]
        if entry.capability_args:
            document["capabilityArgs"] = _sorted(entry.capability_args)
        if entry.result:
            document["result"] = _sorted(entry.result)
        try:
            replace_file(path, dumps_compact(document))
        except OSError as exc:
            raise IOFailureError(f"cannot write cached result {path}: {cause_of(exc)}") from exc

    def exists(self, attachment: Attachment) -> bool:
        """Return True if there is an entry, readable or not."""
        return os.path.lexists(self.path(attachment))

    def find(self, attachment: Attachment) -> CachedAttachment | None:
        """Read the entry of an attachment; return None if there is none.

        Entries of libcni before 0.8, which are bare results, are read too.

        Raises:
            DecodingError: (6) It is empty, torn or no entry at all.
            ForeignEntryError: (5) It is another attachment's.
            IOFailureError: (5) It cannot be read.
            InvalidEnvironmentError: (4) See :meth:`path`.
        """
        path = self.path(attachment)
        try:
            data = read_file(path, follow=False)
        except FileNotFoundError as exc:
            if dangling := find_dangling(self.directory):
                raise IOFailureError(f"cannot read cached result {path}: {dangling}") from exc
            return None
        except OSError as exc:
            raise IOFailureError(f"cannot read cached result {path}: {cause_of(exc)}") from exc
        entry = _parse(data, path, attachment)
        if entry.attachment != attachment:
            raise ForeignEntryError(f"cached result {path} is not of {attachment}, but of {entry.attachment}")
        return entry

    def stamp(self, attachment: Attachment) -> tuple[int, int] | None:
        """Return inode and change time (ns) of an entry's file, which a later file at its path has not; or None."""
        try:
            about = os.lstat(self.path(attachment))
        except OSError:
            return None
        return about.st_ino, about.st_ctime_ns

    def delete(self, attachment: Attachment, *, unless_changed: tuple[int, int] | None = None) -> None:
        """Remove the entry of an attachment, torn or not. One that is not there, or is another's, is left alone.

        Args:
            attachment: The attachment.
            unless_changed: The :meth:`stamp` of the entry to remove: a later one stays. None removes any.

        Raises:
            IOFailureError: (5) It cannot be removed.
        """
        path = self.path(attachment)
        try:
            self.find(attachment)
        except ForeignEntryError:
            return
        except CNIError:
            pass
        try:
            if unless_changed is not None and self.stamp(attachment) != unless_changed:
                return
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            # A read-only file system says so before it looks whether there is a file.
            if exc.errno != errno.EROFS or os.path.lexists(path):
                raise IOFailureError(f"cannot remove cached result {path}: {cause_of(exc)}") from exc

    def entries(self, network: str = "") -> tuple[list[CachedAttachment], list[CNIError]]:
        """Return all entries, by file name, and an error for each file that could not be read.

        Entries of libcni before 0.8 name no attachment, and so count as not readable.

        Args:
            network: Only those of this network, and only the problems with files that may be its.

        Raises:
            IOFailureError: (5) The directory cannot be read; one that does not exist is empty.
        """
        found: list[CachedAttachment] = []
        problems: list[CNIError] = []
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError as exc:
            if dangling := find_dangling(self.directory):
                raise IOFailureError(f"cannot read the directory {self.directory}: {dangling}") from exc
            return found, problems
        except OSError as exc:
            raise IOFailureError(f"cannot read the directory {self.directory}: {cause_of(exc)}") from exc
        for name in names:
            if name.startswith(".") and name.endswith(TEMPORARY):
                continue
            path = os.path.join(self.directory, name)
            try:
                entry = _parse(read_file(path, follow=False), path, None)
            except FileNotFoundError:
                continue
            except (OSError, CNIError) as exc:
                if name.startswith(f"{network}-") or not network:
                    unread = f"cached result {path} cannot be read: {exc.strerror}" if isinstance(exc, OSError) else ""
                    problems.append(exc if isinstance(exc, CNIError) else DecodingError(unread))
                continue
            if not network or entry.attachment.network == network:
                found.append(entry)
        return found, problems

    def sweep(self) -> None:
        """Remove temporary files that a killed process left behind."""
        try:
            with os.scandir(self.directory) as listing:
                for item in listing:
                    left_over = item.name.startswith(".") and item.name.endswith(TEMPORARY)
                    if left_over and time.time() - item.stat(follow_symlinks=False).st_mtime > _TEMPORARY_AGE:
                        os.unlink(item.path)
        except OSError:
            pass  # temporary files do no harm


def parse_entry(data: bytes, path: str) -> CachedAttachment:
    """Read the content of an entry, which must name its attachment.

    Raises:
        DecodingError: (6) It is empty, torn or no entry at all.
    """
    return _parse(data, path, None)


def _parse(data: bytes, path: str, legacy: Attachment | None) -> CachedAttachment:
    """Read an entry.

    Args:
        data: The content of the file.
        path: The file, for messages.
        legacy: The attachment of a bare result, which names none; None means that bare results are refused.
    """
    what = f"cached result {path}"
    document = loads(data, what)
    if legacy is not None and isinstance(document, dict) and "kind" not in document:
        version = document.get("cniVersion")
        if isinstance(version, str):
            return CachedAttachment(legacy, result=document)
    entry = structure(document, _Document, what=what, error=DecodingError)
    mismatch = entry.find_mismatch()
    if mismatch is not None:
        raise complain(mismatch, what, "$", DecodingError)
    try:
        config = _read_base64(entry.config)
    except ValueError as exc:
        raise DecodingError(f"invalid {what}: $.config is not base64") from exc
    return CachedAttachment(
        Attachment(entry.network_name, entry.container_id, entry.if_name),
        netns=entry.netns,
        config=config,
        cni_args=tuple((key, value) for key, value in entry.cni_args),
        capability_args=entry.capability_args,
        result=entry.result or None,
    )


def _read_base64(text: str) -> bytes:
    if sys.version_info >= (3, 11):
        return a2b_base64(text, strict_mode=True)
    import base64

    return base64.b64decode(text, validate=True)


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(part) for part in value]
    return value
