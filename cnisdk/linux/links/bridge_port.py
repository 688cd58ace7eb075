"""Ports of a bridge: how a link is plugged in, and which VLANs it carries."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

from ..._light import NamedTuple
from ...errors import IOFailureError
from .. import rtnetlink
from ..attributes import attribute, iterate, uint32
from ..netns import NetNS
from ..rtnetlink import KernelError, Message
from . import messages
from .link import Link

_AF_BRIDGE = 7
# linux/if_bridge.h
_VLAN_PVID = 0x2
_VLAN_UNTAGGED = 0x4
_VLAN_RANGE_BEGIN = 0x8
_VLAN_RANGE_END = 0x10
_RTEXT_FILTER_BRVLAN_COMPRESSED = 0x4
_IFLA_BRIDGE_VLAN_INFO = 2
_VLAN_INFO = struct.Struct("=HH")  # flags, number

VID_MAX = 4094
"""Highest VLAN id (IEEE 802.1Q; 4095 is reserved)."""

NO_VLAN_FILTERING = "the kernel lacks bridge VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING)"
"""Message of the error where the kernel has no VLANs on bridges."""


class VLANs(NamedTuple):
    """The VLANs of a bridge port.

    Attributes:
        access: The VLAN of frames without a tag, both ways; 0 for none.
        trunk: First and last of ranges of VLANs carried with their tags.
        keep_default: Leave what the bridge gives every new port: its default VLAN, 1, untagged.
    """

    access: int = 0
    trunk: tuple[tuple[int, int], ...] = ()
    keep_default: bool = False


class Port(NamedTuple):
    """Settings with which a link becomes a port of a bridge.

    Attributes:
        bridge: The bridge.
        hairpin: If true, the bridge may send frames back out of the port they came from; None leaves the default, no.
        isolated: If true, the port talks only to ports that are not isolated; None leaves the default, no.
        vlans: VLANs that it carries; None for a bridge that does not filter VLANs.
    """

    bridge: Link
    hairpin: bool | None = None
    isolated: bool | None = None
    vlans: VLANs | None = None


class VLANEntry(NamedTuple):
    """A VLAN that a port carries.

    Attributes:
        vid: Its number, 1 to 4094.
        pvid: If true, untagged frames that come in belong to it.
        untagged: If true, its frames leave without a tag.
    """

    vid: int
    pvid: bool = False
    untagged: bool = False


def set_vlans(port: Link, vlans: VLANs) -> None:
    """Set what a bridge port carries, in at most two requests however many VLANs there are.

    Args:
        port: The port.
        vlans: What it is to carry.

    Raises:
        IOFailureError: (5) The kernel refused: it may have been built without bridge VLAN filtering.
    """
    with rtnetlink.connect(port.netns) as sock:
        for request in vlan_requests(port.index, port.name, vlans):
            try:
                sock.send([request])
            except KernelError as error:
                if error.errno == errno.EOPNOTSUPP:
                    raise IOFailureError(f"{request.what}: {NO_VLAN_FILTERING}") from error
                raise


def vlan_requests(index: int, name: str, vlans: VLANs) -> list[Message]:
    """Return the requests of :func:`set_vlans`, to be sent one after the other.

    Args:
        index: Index of the port.
        name: Its name, for the error's message.
        vlans: What it is to carry.
    """
    requests = []
    if not vlans.keep_default:
        # A new port has the bridge's default VLAN, whichever that is. Deleting what is not there is no error.
        everything = [(_VLAN_RANGE_BEGIN, 1), (_VLAN_RANGE_END, VID_MAX)]
        requests.append(
            _vlan_request(rtnetlink.DELLINK, index, f"cannot clear the VLANs of bridge port {name}", everything)
        )
    entries: list[tuple[int, int]] = []
    for first, last in merge_ranges(vlans.trunk):
        entries += [(0, first)] if first == last else [(_VLAN_RANGE_BEGIN, first), (_VLAN_RANGE_END, last)]
    if vlans.access:
        # Last: it may be one of the trunk's, and then it is to leave without a tag.
        entries.append((_VLAN_PVID | _VLAN_UNTAGGED, vlans.access))
    if entries:
        requests.append(_vlan_request(rtnetlink.SETLINK, index, f"cannot set the VLANs of bridge port {name}", entries))
    return requests


def access_requests(index: int, name: str, vlan: int) -> list[Message]:
    """Return the requests that make a port carry one VLAN only, untagged. Sent in order, the port never lacks it.

    Args:
        index: Index of the port.
        name: Its name, for the error's message.
        vlan: Number of the VLAN, from 1 to 4094.
    """
    others: list[tuple[int, int]] = []
    for first, last in ((1, vlan - 1), (vlan + 1, VID_MAX)):
        if first <= last:
            others += [(_VLAN_RANGE_BEGIN, first), (_VLAN_RANGE_END, last)] if first < last else [(0, first)]
    what = f"cannot set the VLAN of bridge port {name}"
    return [
        _vlan_request(rtnetlink.SETLINK, index, what, [(_VLAN_PVID | _VLAN_UNTAGGED, vlan)]),
        _vlan_request(rtnetlink.DELLINK, index, what, others),
    ]


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort ranges and join those that overlap or touch."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def list_vlans(port: Link) -> list[VLANEntry]:
    """List the VLANs a bridge port carries, by number; none on a kernel without VLAN filtering.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    return sorted(entry for index, entries in _dump_vlans(port.netns) if index == port.index for entry in entries)


def check(port: Link, wanted: Port, *, up: bool = True) -> None:
    """Verify that a link is plugged into its bridge as wanted.

    Args:
        port: The link.
        wanted: As it was plugged in.
        up: It must be up, too.

    Raises:
        IOFailureError: (5) It is no port of that bridge, it is down, or a flag or a VLAN differs.
    """
    if port.master != wanted.bridge.index:
        raise IOFailureError(f"interface {port.name} is not a port of bridge {wanted.bridge.name}")
    if up and not port.up:
        raise IOFailureError(f"interface {port.name} is down")
    for key, asked, there in (
        ("hairpinMode", wanted.hairpin, port.hairpin),
        ("portIsolation", wanted.isolated, port.isolated),
    ):
        if asked is not None and asked != bool(there):
            raise IOFailureError(f"bridge port {port.name}: $.{key} is {asked}, the kernel says {bool(there)}")
    if wanted.vlans is not None:
        check_vlans(port, wanted.vlans)


def check_vlans(port: Link, vlans: VLANs) -> None:
    """Verify that a bridge port carries VLANs, perhaps among others.

    Args:
        port: The port.
        vlans: What it has to carry.

    Raises:
        IOFailureError: (5) It lacks one.
    """
    present = {entry.vid for entry in list_vlans(port)}
    wanted = {each for first, last in vlans.trunk for each in range(first, last + 1)} | {vlans.access} - {0}
    if missing := sorted(wanted - present):
        raise IOFailureError(f"bridge port {port.name} does not carry VLAN {missing[0]}")


def find_carriers(vlan: int, netns: NetNS | None = None) -> set[int]:
    """Find the ports that carry a VLAN, of all bridges of a namespace.

    Args:
        vlan: Its number.
        netns: None means the calling thread's namespace.

    Returns:
        Their indexes, and those of bridges that carry it themselves; none on a kernel without VLAN filtering.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    return {index for index, entries in _dump_vlans(netns) if any(entry.vid == vlan for entry in entries)}


def _dump_vlans(netns: NetNS | None) -> list[tuple[int, list[VLANEntry]]]:
    # Compressed: a port that carries all VLANs takes two entries, not four thousand.
    body = messages.message(uint32(messages.IFLA_EXT_MASK, _RTEXT_FILTER_BRVLAN_COMPRESSED), family=_AF_BRIDGE)
    with rtnetlink.connect(netns) as sock:
        return [parse_vlans(data) for data in sock.dump(Message(rtnetlink.GETLINK, body, "cannot list bridge VLANs"))]


def parse_vlans(data: bytes) -> tuple[int, list[VLANEntry]]:
    """Read a port's index and VLANs from a link message of the bridge family, with its header."""
    entries: list[VLANEntry] = []
    begin = 0
    index, _, attributes = messages.take_apart(data)
    for number, payload in iterate(attributes.get(messages.IFLA_AF_SPEC, b"")):
        if number != _IFLA_BRIDGE_VLAN_INFO:
            continue
        flags, vid = _VLAN_INFO.unpack_from(payload)
        if flags & _VLAN_RANGE_BEGIN:
            begin = vid
            continue
        first = begin if flags & _VLAN_RANGE_END else vid
        entries += [
            VLANEntry(number, bool(flags & _VLAN_PVID), bool(flags & _VLAN_UNTAGGED))
            for number in range(first, vid + 1)
        ]
    return index, entries


def _vlan_request(kind: int, index: int, what: str, entries: Iterable[tuple[int, int]]) -> Message:
    infos = [attribute(_IFLA_BRIDGE_VLAN_INFO, _VLAN_INFO.pack(flags, vid)) for flags, vid in entries]
    body = messages.message(attribute(messages.IFLA_AF_SPEC, *infos), family=_AF_BRIDGE, index=index)
    return Message(kind, body, what)
