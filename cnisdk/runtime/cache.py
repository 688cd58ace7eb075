"""The attachments a runtime made: one file each, in the format and under the names of libcni.

What a file says is verified: names do not tell network ``a-b`` with container ``c`` from ``a`` with ``b-c``.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import CNIError, DecodingError, InvalidEnvironmentError, IOFailureError
from ..spec.codec import dumps_compact, loads
from ..spec.names import Attachment, check_container_id, check_ifname, check_network_name, shorten
from .files import read_file

DEFAULT_CACHE_DIR = "/var/lib/cni"

_KIND = "cniCacheV1"
_NAME_MAX = 255
_TEMPORARY = ".tmp"
# Nothing writes for longer; what is older was left by a process that was killed.
_TEMPORARY_AGE = 3600


class CachedAttachment(NamedTuple):
    """What is remembered of one ADD.

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
        """The file of an attachment.

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
        """Make sure that an entry can be written, before there is anything to write down.

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
            pass  # a torn one will be overwritten, and so will a FIFO
        path = self.path(attachment)
        if os.path.isdir(path) and not os.path.islink(path):
            raise IOFailureError(f"cannot write cached result {path}: it is a directory", details="remove it")
        try:
            _make_private(self.directory)
        except OSError as exc:
            raise IOFailureError(f"cannot make the directory {exc.filename}: {exc.strerror}") from exc
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise IOFailureError(f"cannot write to the directory {self.directory}")

    def store(self, entry: CachedAttachment) -> None:
        """Write an entry. It appears whole, in place of one that is there.

        There is no fsync: after a power cut nothing that an entry describes exists any more.

        Raises:
            IOFailureError: (5) It cannot be written.
        """
        path = self.path(entry.attachment)
        document: dict[str, object] = {
            "kind": _KIND,
            "containerId": entry.attachment.container_id,
            "config": base64.b64encode(entry.config).decode(),
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
        # Short, since the names themselves may already be as long as a file's name can be.
        temporary = os.path.join(self.directory, f".{os.getpid()}.{time.monotonic_ns()}{_TEMPORARY}")
        try:
            _make_private(self.directory)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "wb") as file:
                    file.write(dumps_compact(document))
                os.rename(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as exc:
            raise IOFailureError(f"cannot write cached result {path}: {exc.strerror}") from exc

    def exists(self, attachment: Attachment) -> bool:
        """Is there an entry, readable or not?"""
        return os.path.lexists(self.path(attachment))

    def find(self, attachment: Attachment) -> CachedAttachment | None:
        """Read the entry of an attachment; None if there is none.

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
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise IOFailureError(f"cannot read cached result {path}: {exc.strerror}") from exc
        entry = _parse(data, path, attachment)
        if entry.attachment != attachment:
            raise ForeignEntryError(f"cached result {path} is not of {attachment}, but of {entry.attachment}")
        return entry

    def delete(self, attachment: Attachment) -> None:
        """Remove the entry of an attachment, torn or not. One that is not there, or is another's, is left alone.

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
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise IOFailureError(f"cannot remove cached result {path}: {exc.strerror}") from exc

    def entries(self, network: str = "") -> tuple[list[CachedAttachment], list[CNIError]]:
        """All entries, by file name, and what could not be read.

        Legacy entries do not say whose they are; they count as not readable.

        Args:
            network: Only those of this network, and only the problems with files that may be its.

        Raises:
            IOFailureError: (5) The directory cannot be read; one that does not exist is empty.
        """
        found: list[CachedAttachment] = []
        problems: list[CNIError] = []
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return found, problems
        except OSError as exc:
            raise IOFailureError(f"cannot read the directory {self.directory}: {exc.strerror}") from exc
        for name in names:
            if name.startswith(".") and name.endswith(_TEMPORARY):
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
                    left_over = item.name.startswith(".") and item.name.endswith(_TEMPORARY)
                    if left_over and time.time() - item.stat(follow_symlinks=False).st_mtime > _TEMPORARY_AGE:
                        os.unlink(item.path)
        except OSError:
            pass  # they do no harm


def parse_entry(data: bytes, path: str) -> CachedAttachment:
    """Read the content of an entry, which must say whose it is.

    Raises:
        DecodingError: (6) It is empty, torn or no entry at all.
    """
    return _parse(data, path, None)


def _parse(data: bytes, path: str, legacy: Attachment | None) -> CachedAttachment:
    """Read an entry.

    Args:
        data: The content of the file.
        path: The file, for messages.
        legacy: Whose a bare result is, which does not say so; None means that it is not accepted.
    """
    document = loads(data, f"cached result {path}")
    if not isinstance(document, dict):
        raise DecodingError(f"cached result {path} is {shorten(document)}, expected an object")
    kind = document.get("kind")
    if kind != _KIND:
        if legacy is not None and kind is None and isinstance(document.get("cniVersion"), str):
            return CachedAttachment(legacy, result=document)
        raise DecodingError(f'cached result {path} has kind {shorten(kind)}, expected "{_KIND}"')
    names = []
    for key in ("networkName", "containerId", "ifName"):
        value = document.get(key)
        if not isinstance(value, str) or not value:
            raise DecodingError(f"cached result {path}: $.{key} is {shorten(value)}, expected a name")
        names.append(value)
    try:
        config = base64.b64decode(document.get("config") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as exc:
        raise DecodingError(f"cached result {path}: $.config is not base64") from exc
    pairs = document.get("cniArgs") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs
    ):
        raise DecodingError(f"cached result {path}: $.cniArgs is {shorten(pairs)}, expected pairs of strings")
    parts: dict[str, Any] = {}
    for key in ("capabilityArgs", "result"):
        parts[key] = document.get(key)
        if parts[key] is not None and not isinstance(parts[key], dict):
            raise DecodingError(f"cached result {path}: $.{key} is {shorten(parts[key])}, expected an object")
    netns = document.get("netns")
    return CachedAttachment(
        Attachment(*names),
        netns=netns if isinstance(netns, str) else "",
        config=config,
        cni_args=tuple((key, value) for key, value in pairs),
        capability_args=parts["capabilityArgs"] or {},
        result=parts["result"] or None,
    )


def _make_private(directory: str) -> None:
    """Make a directory and its parents, readable by nobody else: results and configuration may be confidential."""
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    if parent != directory:
        _make_private(parent)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(part) for part in value]
    return value
