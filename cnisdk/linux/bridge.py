"""Bridges: made once, shared by all containers of a network, and never deleted."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ..errors import IOFailureError
from ..spec.addresses import IPInterface
from ..spec.names import short_hash
from . import address, link, rtnetlink, sysctl
from .attributes import attribute, iterate, text, uint8, uint32
from .link import Link
from .rtnetlink import KernelError, Request

_AF_BRIDGE = 7
# linux/if_bridge.h
_VLAN_PVID = 0x2
_VLAN_UNTAGGED = 0x4
_VLAN_RANGE_BEGIN = 0x8
_VLAN_RANGE_END = 0x10
_RTEXT_FILTER_BRVLAN = 0x2
_IFLA_BRIDGE_VLAN_INFO = 2
_VLAN_INFO = struct.Struct("=HH")  # flags, number

_VID_MAX = 4094
_NAME_MAX = 15

_NO_VLAN_FILTERING = "the kernel lacks bridge VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING)"


class VLANs(NamedTuple):
    """What a bridge port carries.

    Attributes:
        access: The VLAN of frames without a tag, both ways; 0 for none.
        trunk: First and last of ranges of VLANs carried with their tags.
        keep_default: Leave what the bridge gives every new port: its default VLAN, 1, untagged.
    """

    access: int = 0
    trunk: tuple[tuple[int, int], ...] = ()
    keep_default: bool = False


class Port(NamedTuple):
    """How a link is to be plugged into a bridge.

    Attributes:
        bridge: The bridge.
        hairpin: Whether it may send frames back out of the port they came from; None leaves the default, no.
        isolated: Whether the port may only talk to ports that are not isolated; None leaves the default, no.
        vlans: What it carries; None for a bridge that does not filter.
    """

    bridge: Link
    hairpin: bool | None = None
    isolated: bool | None = None
    vlans: VLANs | None = None


class VLANEntry(NamedTuple):
    """A VLAN a port carries: its number, whether untagged frames belong to it, and whether they leave without a tag."""

    vid: int
    pvid: bool = False
    untagged: bool = False


def ensure(
    name: str,
    *,
    mtu: int | None = None,
    vlan_filtering: bool = False,
    promisc: bool = False,
    before_making: Callable[[], object] | None = None,
) -> Link:
    """Make a bridge in the calling thread's namespace, or take the one there is; set it up.

    A new bridge gets a hardware address of its own, which then stays: without, the kernel gives it the lowest of its
    ports', and all containers lose their gateway's address when that port goes. It hears no router advertisements.

    Args:
        name: Name of the bridge.
        mtu: MTU in bytes of a new bridge; an existing one keeps its own. None leaves it to the kernel.
        vlan_filtering: Turn VLAN filtering on; False leaves it as it is.
        promisc: Set it promiscuous; False leaves it as it is.
        before_making: Called before a new bridge is made, to remember that.

    Raises:
        IOFailureError: (5) A link of that name is no bridge; or the kernel refused, for one thing because it was built
            without bridge VLAN filtering.
    """
    with rtnetlink.connect() as sock:
        look = link.get_request(name=name, what=f"bridge {name}")
        (found,) = sock.exchange([look])
        if isinstance(found, KernelError) and found.errno == errno.ENODEV:
            if before_making is not None:
                before_making()
            created, found = sock.exchange([_create_request(name, mtu=mtu, vlan_filtering=vlan_filtering), look])
            if isinstance(created, KernelError) and created.errno != errno.EEXIST:
                if created.errno == errno.EOPNOTSUPP:
                    lacking = _NO_VLAN_FILTERING if vlan_filtering else "the kernel lacks bridges (CONFIG_BRIDGE)"
                    raise IOFailureError(f"cannot create bridge {name}: {lacking}") from created
                raise created
        if isinstance(found, KernelError):
            raise found
        assert found is not None
        bridge = link.parse(found)
        if bridge.kind != "bridge":
            raise IOFailureError(
                f"{name} already exists but is not a bridge",
                details=f"it is a link of kind {bridge.kind or 'unknown'}",
            )
        if vlan_filtering and not bridge.vlan_filtering:
            _filter_vlans(sock, bridge)
        sysctl.refuse_advertisements(name)
        requests = []
        if promisc and not bridge.promisc:
            requests.append(link.promisc_request(bridge.index, name, True))
        if not bridge.up:
            requests.append(link.up_request(bridge.index, name))
        sock.send(requests)
        return bridge._replace(
            up=True, promisc=promisc or bridge.promisc, vlan_filtering=vlan_filtering or bridge.vlan_filtering
        )


@contextmanager
def kept() -> Iterator[None]:
    """Keep other processes from deleting an unused bridge, for the time between :func:`ensure` and its next port.

    Any number of processes may be inside; :func:`delete_unused` leaves the bridge alone then.
    """
    with _locked(fcntl.LOCK_SH, _PATIENCE):
        yield


def delete_unused(name: str) -> None:
    """Delete a bridge without ports: what an ADD does that made it and failed. Absence is fine, and so are ports.

    A bridge that another process may be about to use (see :func:`kept`) stays.

    Raises:
        KernelError: (5) The kernel refused.
    """
    with _locked(fcntl.LOCK_EX, 0) as alone:
        found = link.find(name) if alone else None
        if found is None or found.kind != "bridge":
            return
        if all(each.master != found.index for each in link.list_all()):
            found.delete()


# Seconds. Deleting a bridge takes a few milliseconds.
_PATIENCE = 0.1


@contextmanager
def _locked(kind: int, patience: float) -> Iterator[bool]:
    """Hold a lock that leaves no file behind: a namespace's file under /proc is one inode to all processes in it.

    Every user may open that file, and hold the lock for ever. So nobody waits for it long, and who does not get it goes
    on without: all that can happen then is that a bridge is left, or goes, that two ADDs fought over.
    """
    deadline = time.monotonic() + patience
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        held = False
        while not held:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.002)
        yield held
    finally:
        os.close(fd)


def ensure_addresses(bridge: Link, addresses: Sequence[IPInterface], *, force: bool = False) -> None:
    """Give a bridge the addresses of its gateways, all of one ADD in one call.

    An address it has is left. Of other addresses, any IPv4 one stands against an IPv4 gateway, and an IPv6 one stands
    against a gateway whose subnet overlaps with its own. The hardware address is made to stay, as neighbours learn it.

    Args:
        bridge: The bridge.
        addresses: What it must have.
        force: Remove what stands against them.

    Raises:
        IOFailureError: (5) Something stands against one, and `force` is not set; or the kernel refused.
    """
    with rtnetlink.connect(bridge.netns) as sock:
        present = [each.interface for each in address.dump(sock, bridge.index)]
        missing = [each for each in dict.fromkeys(addresses) if each not in present]
        if not missing:
            return
        # The addresses of one call never stand against each other: a second range set evicts no gateway.
        against = [
            (wanted, other)
            for other in present
            if other not in addresses
            for wanted in missing
            if _stands_against(other, wanted)
        ]
        if against and not force:
            wanted, other = against[0]
            raise IOFailureError(
                f'"{bridge.name}" already has an IP address different from {wanted}',
                details=f"it has {other}; remove that, or set forceAddress",
            )
        answers = sock.exchange(
            [
                *(
                    address.delete_request(bridge.index, bridge.name, other)
                    for other in dict.fromkeys(other for _, other in against)
                ),
                # Without duplicate address detection: containers ask for their gateway at once, and the address is
                # this host's by configuration.
                *(address.add_request(bridge.index, bridge.name, each) for each in missing),
                link.set_request(f"cannot set the MAC of bridge {bridge.name}", index=bridge.index, mac=bridge.mac),
            ]
        )
    for answer in answers:
        # Another ADD of the network was as fast.
        if isinstance(answer, KernelError) and answer.errno not in (errno.EEXIST, errno.EADDRNOTAVAIL):
            raise answer


def vlan_gateway_name(bridge: str, vlan: int) -> str:
    """The name of the link that holds a VLAN's gateway address: ``<bridge>.<vlan>``, hashed where that is too long."""
    name = f"{bridge}.{vlan}"
    return name if len(name.encode()) <= _NAME_MAX else f"{short_hash(bridge, digits=10)}.{vlan}"


def ensure_vlan_gateway(bridge: Link, vlan: int) -> Link:
    """Make a link in one VLAN of a bridge for its gateway address: one end of a veth whose other end is a port.

    Args:
        bridge: The bridge, filtering VLANs.
        vlan: Number of the VLAN, 1 to 4094.

    Returns:
        The end that gets the address, up.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    name = vlan_gateway_name(bridge.name, vlan)
    port_name = f"veth{short_hash(bridge.name, str(vlan), digits=8)}"
    with rtnetlink.connect(bridge.netns) as sock:
        peer = link.message(text(link.IFLA_IFNAME, name), link.mac_attribute(link.random_mac()))
        body = link.message(
            text(link.IFLA_IFNAME, port_name),
            link.mac_attribute(link.random_mac()),
            uint32(link.IFLA_MASTER, bridge.index),
            link.info("veth", attribute(link.VETH_INFO_PEER, peer)),
        )
        flags = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL
        created, port, gateway = sock.exchange(
            [
                Request(rtnetlink.NEWLINK, body, f"cannot create link {name}", flags),
                link.get_request(name=port_name, what=f"link {port_name}"),
                link.get_request(name=name, what=f"link {name}"),
            ]
        )
        if isinstance(created, KernelError) and created.errno != errno.EEXIST:
            raise created
        for answer in (port, gateway):
            if isinstance(answer, KernelError):
                raise answer
        assert port is not None
        assert gateway is not None
        own, other = link.parse(gateway), link.parse(port)  # type: ignore[arg-type]
        set_vlans(other, VLANs(access=vlan))
        for name_ in (other.name, own.name):
            sysctl.refuse_advertisements(name_)
        sock.send([link.up_request(other.index, other.name), link.up_request(own.index, own.name)])
        return own._replace(up=True)


# -- VLANs of a port ---------------------------------------------------------------------------------------------------


def set_vlans(port: Link, vlans: VLANs) -> None:
    """Set what a bridge port carries, in at most two requests however many VLANs there are.

    Raises:
        IOFailureError: (5) The kernel refused: it may have been built without bridge VLAN filtering.
    """
    with rtnetlink.connect(port.netns) as sock:
        for request in vlan_requests(port.index, port.name, vlans):
            try:
                sock.send([request])
            except KernelError as error:
                if error.errno == errno.EOPNOTSUPP:
                    raise IOFailureError(f"{request.what}: {_NO_VLAN_FILTERING}") from error
                raise


def vlan_requests(index: int, name: str, vlans: VLANs) -> list[Request]:
    """The requests of :func:`set_vlans`, to be sent one after the other."""
    requests = []
    if not vlans.keep_default:
        # A new port has the bridge's default VLAN, whichever that is. Deleting what is not there is no error.
        everything = [(_VLAN_RANGE_BEGIN, 1), (_VLAN_RANGE_END, _VID_MAX)]
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
        KernelError: (5) The kernel refused to tell.
    """
    body = link.message(uint32(link.IFLA_EXT_MASK, _RTEXT_FILTER_BRVLAN), family=_AF_BRIDGE)
    with rtnetlink.connect(port.netns) as sock:
        answers = sock.dump(Request(rtnetlink.GETLINK, body, f"cannot list the VLANs of bridge port {port.name}"))
    entries = []
    for data in answers:
        index, vlans = parse_vlans(data)
        if index == port.index:
            entries += vlans
    return sorted(entries)


def parse_vlans(data: bytes) -> tuple[int, list[VLANEntry]]:
    """Read a port's index and VLANs from a link message of the bridge family, with its header."""
    entries: list[VLANEntry] = []
    begin = 0
    index, _, attributes = link.take_apart(data)
    for number, payload in iterate(attributes.get(link.IFLA_AF_SPEC, b"")):
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


def _create_request(name: str, *, mtu: int | None, vlan_filtering: bool) -> Request:
    # Given with the request that makes it, the address counts as set by an administrator: neither udev's
    # MACAddressPolicy nor the kernel's choice of the lowest port's replaces it.
    body = link.message(
        text(link.IFLA_IFNAME, name),
        link.mac_attribute(link.random_mac()),
        link.info("bridge", *([uint8(link.IFLA_BR_VLAN_FILTERING, 1)] if vlan_filtering else [])),
        uint32(link.IFLA_MTU, mtu) if mtu else b"",
    )
    flags = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL
    return Request(rtnetlink.NEWLINK, body, f"cannot create bridge {name}", flags)


def _filter_vlans(sock: rtnetlink.Socket, bridge: Link) -> None:
    body = link.message(link.info("bridge", uint8(link.IFLA_BR_VLAN_FILTERING, 1)), index=bridge.index)
    what = f"cannot turn on VLAN filtering of bridge {bridge.name}"
    try:
        sock.send([Request(rtnetlink.NEWLINK, body, what)])
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise IOFailureError(f"{what}: {_NO_VLAN_FILTERING}") from error
        raise


def _vlan_request(kind: int, index: int, what: str, entries: Iterable[tuple[int, int]]) -> Request:
    infos = [attribute(_IFLA_BRIDGE_VLAN_INFO, _VLAN_INFO.pack(flags, vid)) for flags, vid in entries]
    body = link.message(attribute(link.IFLA_AF_SPEC, *infos), family=_AF_BRIDGE, index=index)
    return Request(kind, body, what)


def _stands_against(other: IPInterface, wanted: IPInterface) -> bool:
    if other.version != wanted.version:
        return False
    return other.version == 4 or (other.network.overlaps(wanted.network) and not other.ip.is_link_local)
