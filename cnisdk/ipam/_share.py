"""Share of a network's addresses that a node has, and the file in which the node keeps it: ``share.json``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType

from .._files import open_file, read_open_file, replace_file
from .._light import Any, NamedTuple
from ..classes import evolve
from ..errors import IOFailureError, cause_of
from ..spec import _json
from ..spec.addresses import IPAddress
from ._keys import address_of_key, key_of_address
from .blocktable import Block, parse_block
from .ranges import Range, RangeSet, Span

_NONE: Mapping[IPAddress, str] = MappingProxyType({})


class Share(NamedTuple):
    """Addresses of a network that a node has.

    Attributes:
        member: Revision of the node's key in etcd when it joined; 0 before.
        blocks: Its blocks, as etcd had them when this node last changed them. Fewer addresses may be lent by now.
        borrowed: Addresses that are lent to it, each with the pod for which it is kept, or an empty text.
        returning: Borrowed addresses that are no longer its own, and etcd does not know yet; each with its pod.
        leaving: Blocks that are no longer its own, and etcd does not know yet.
        asked: First addresses of blocks of which it may have got something and not know it.
        silence: Time of ``CLOCK_BOOTTIME`` before which no DEL sends requests to etcd: it has not answered.
    """

    member: int = 0
    blocks: tuple[Block, ...] = ()
    borrowed: Mapping[IPAddress, str] = _NONE
    returning: Mapping[IPAddress, str] = _NONE
    leaving: tuple[Block, ...] = ()
    asked: frozenset[IPAddress] = frozenset()
    silence: float = 0.0

    @property
    def is_unsettled(self) -> bool:
        """True if etcd and this file may differ: something was asked for, or is not given back in etcd yet."""
        return bool(self.returning or self.leaving or self.asked)

    @property
    def may_shrink(self) -> bool:
        """True if something may be given back: a borrowed address, or one of several blocks of an IP version."""
        return bool(self.borrowed) or len({each.first.version for each in self.blocks}) < len(self.blocks)

    def has_same(self, other: Share) -> bool:
        """Return True if both have the same blocks and borrowed addresses. Revisions may differ."""
        mine, theirs = ([evolve(each, revision=0) for each in share.blocks] for share in (self, other))
        return (mine, self.borrowed) == (theirs, other.borrowed)

    def holds(self, address: IPAddress, pod: str = "") -> bool:
        """Return True if this node may hand out an address, to this pod or, without one, to any."""
        spans = self._spans(address.version, pod)
        return any(span.first <= int(address) <= span.last for span in spans)

    def within(self, range_set: RangeSet, pod: str = "") -> tuple[Range, ...]:
        """Return the parts of a range set that this node may hand out, in ascending order."""
        make: Callable[[int], IPAddress] = IPv4Address if range_set.version == 4 else IPv6Address
        spans = sorted(self._spans(range_set.version, pod))
        found = []
        for part in range_set.ranges:
            for span in spans:
                first, last = max(int(part.first), span.first), min(int(part.last), span.last)
                if first <= last:
                    found.append(Range(part.subnet, make(first), make(last), part.gateway, part.exclude))
        return tuple(found)

    def _spans(self, version: int, pod: str) -> Iterator[Span]:
        for block in self.blocks:
            if block.first.version == version:
                yield from block.spans
        for address, owner in self.borrowed.items():
            if address.version == version and owner in ("", pod):
                yield Span(int(address), int(address))

    def with_block(self, block: Block) -> Share:
        """Return the share with a block added, or in place of its older state. It does not leave any more."""
        others = (each for each in self.blocks if each.first != block.first)
        return self._replace(
            blocks=tuple(sorted((*others, block), key=lambda each: (each.first.version, each.first))),
            leaving=tuple(each for each in self.leaving if each.first != block.first),
        )

    def with_borrowed(self, addresses: Iterable[IPAddress], pod: str = "") -> Share:
        """Return the share with addresses added that were lent to this node. They do not go back any more."""
        added = dict.fromkeys(addresses, pod)
        returning = {address: pod for address, pod in self.returning.items() if address not in added}
        return self._replace(borrowed={**self.borrowed, **added}, returning=returning)


class ShareFile:
    """The file. Each change replaces it by another one.

    Args:
        directory: Its directory.
    """

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/share.json"

    def read(self) -> Share:
        """Read the share; an empty one if there is no file.

        Raises:
            IOFailureError: (5) It cannot be read.
        """
        with self.look() as (share, _):
            return share

    @contextmanager
    def look(self) -> Iterator[tuple[Share, Callable[[], bool]]]:
        """Read the share. Yield it, and a function that returns True as long as the file is unchanged.

        Raises:
            IOFailureError: (5) It cannot be read.
        """
        fd = -1
        try:
            try:
                fd = open_file(self._path, follow=False)
                share = _parse(read_open_file(fd, self._path))
            except FileNotFoundError:
                share = Share()
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
                raise IOFailureError(f"cannot read {self._path}: {cause_of(exc)}") from exc
            yield share, lambda: fd >= 0 and self._is_at_path(fd)
        finally:
            if fd >= 0:
                os.close(fd)

    def _is_at_path(self, fd: int) -> bool:
        # The number of its links does not tell: NFS gives an open file that is replaced another name.
        try:
            return os.path.samestat(os.stat(self._path, follow_symlinks=False), os.fstat(fd))
        except OSError:
            return False

    def write(self, share: Share) -> None:
        """Replace the file.

        Raises:
            IOFailureError: (5) It cannot be written.
        """
        value = {
            "member": share.member,
            "blocks": {key_of_address(each.first): each.to_json() for each in share.blocks},
            "borrowed": {key_of_address(address): pod for address, pod in share.borrowed.items()},
            "returning": {key_of_address(address): pod for address, pod in share.returning.items()},
            "leaving": {key_of_address(each.first): each.to_json() for each in share.leaving},
            "asked": sorted(map(key_of_address, share.asked)),
            "silence": share.silence,
        }
        try:
            replace_file(self._path, _json.write(value).encode())
        except OSError as exc:
            raise IOFailureError(f"cannot write {self._path}: {cause_of(exc)}") from exc


@lru_cache(maxsize=4)
def _parse(data: bytes) -> Share:
    """Read what :meth:`ShareFile.write` wrote. A process that serves many requests finds the same most of the time."""
    value = _json.read(data.decode())
    return Share(
        member=int(value["member"]),
        blocks=_parse_blocks(value["blocks"]),
        borrowed=_parse_addresses(value["borrowed"]),
        returning=_parse_addresses(value["returning"]),
        leaving=_parse_blocks(value["leaving"]),
        asked=frozenset(map(address_of_key, value["asked"])),
        silence=float(value["silence"]),
    )


def _parse_blocks(value: Mapping[str, Any]) -> tuple[Block, ...]:
    return tuple(parse_block(address_of_key(key), each) for key, each in value.items())


def _parse_addresses(value: Mapping[str, Any]) -> Mapping[IPAddress, str]:
    return MappingProxyType({address_of_key(key): str(pod) for key, pod in value.items()}) if value else _NONE
