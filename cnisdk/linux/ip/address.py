"""IP addresses of links."""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Collection
from ipaddress import IPv4Interface, IPv6Interface

from ..._light import NamedTuple
from ...errors import IOFailureError
from ...spec.addresses import IPInterface
from .. import rtnetlink
from ..attributes import attribute, read, read_uint, uint32
from ..links.link import Link
from ..rtnetlink import Message, Socket

# linux/if_addr.h
_FIXED = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_F_NODAD = 0x02
_F_DADFAILED = 0x08
_F_TENTATIVE = 0x40
_F_NOPREFIXROUTE = 0x200  # for IPv4 since Linux 4.4

#: Scopes of an address (linux/rtnetlink.h, rt_scope_t): everywhere, and on its link.
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253

_AF_INET, _AF_INET6 = 2, 10
_FAMILIES = {4: _AF_INET, 6: _AF_INET6}


class LinkAddress(NamedTuple):
    """An address as the kernel has it.

    Attributes:
        interface: The address with its prefix length.
        index: Index of its link.
        scope: 0 universe (global), 253 link, 254 host.
        tentative: If true, IPv6 duplicate address detection is not done, and the address cannot be used yet.
        duplicate: If true, another host has the address, and the kernel will not use it.
    """

    interface: IPInterface
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not needed here
    scope: int = SCOPE_UNIVERSE
    tentative: bool = False
    duplicate: bool = False


def list_on(link: Link) -> list[LinkAddress]:
    """List the addresses of a link, in the kernel's order.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    with rtnetlink.connect(link.netns) as sock:
        return dump(sock, link.index)


def list_all(sock: Socket) -> list[LinkAddress]:
    """List the addresses of all links in a socket's namespace, in the kernel's order.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    answers = sock.dump(Message(rtnetlink.GETADDR, _FIXED.pack(0, 0, 0, 0, 0), "cannot list addresses"))
    return [each for each in map(parse, answers) if each is not None]


def add(link: Link, *addresses: IPInterface, nodad: bool = True) -> None:
    """Give a link addresses.

    Args:
        link: The link.
        *addresses: With prefix length.
        nodad: If true, IPv6 addresses are used at once, without duplicate address detection.

    Raises:
        KernelError: (5) The kernel refused one: EEXIST when the link has it.
    """
    with rtnetlink.connect(link.netns) as sock:
        sock.send([add_request(link.index, link.name, address, nodad=nodad) for address in addresses])


def delete(link: Link, *addresses: IPInterface) -> None:
    """Take addresses from a link; accept that it does not have them.

    Raises:
        KernelError: (5) The kernel refused one.
    """
    with rtnetlink.connect(link.netns) as sock:
        answers = sock.exchange([delete_request(link.index, link.name, address) for address in addresses])
    for answer in answers:
        if isinstance(answer, rtnetlink.KernelError) and answer.errno != errno.EADDRNOTAVAIL:
            raise answer


# -- requests and answers, for modules that send several at once -------------------------------------------------------


def add_request(
    index: int, name: str, address: IPInterface, *, nodad: bool = True, prefix_route: bool = True
) -> Message:
    """Make the request that adds an address to a link.

    Args:
        index: Index of the link.
        name: Its name, for the error.
        address: The address with its prefix length.
        nodad: If true, an IPv6 address is used at once, without duplicate address detection.
        prefix_route: If true, the kernel adds the route to the address's network.
    """
    body = _message(index, address, _F_NODAD if nodad and address.version == 6 else 0)
    if not prefix_route:
        # The header has eight bits for flags. This attribute, when it is sent, replaces them.
        body += uint32(_IFA_FLAGS, _F_NOPREFIXROUTE | (_F_NODAD if nodad and address.version == 6 else 0))
    if address.version == 4 and address.network.prefixlen < 31:
        # The kernel sets no broadcast address itself. The reference and ifconfig do, `ip address add` does not.
        body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    what = f"cannot add address {address} to link {name}"
    return Message(rtnetlink.NEWADDR, body, what, rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL)


def delete_request(index: int, name: str, address: IPInterface) -> Message:
    """Make the request that deletes an address of a link.

    Args:
        index: Index of the link.
        name: Its name, for the error's message.
        address: The address, with the length of its prefix.
    """
    return Message(rtnetlink.DELADDR, _message(index, address), f"cannot delete address {address} of link {name}")


def dump(sock: Socket, index: int) -> list[LinkAddress]:
    """List the addresses of a link, in the kernel's order.

    Args:
        sock: Socket in the link's namespace.
        index: Index of the link.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    answers = sock.dump(Message(rtnetlink.GETADDR, _FIXED.pack(0, 0, 0, 0, index), "cannot list addresses"))
    # Kernels before 4.20 ignore the index and list the addresses of every link.
    return [each for each in map(parse, answers) if each is not None and each.index == index]


def scan(sock: Socket, index: int, wanted: Collection[IPInterface]) -> dict[IPInterface, LinkAddress]:
    """Find the wanted addresses of a link, however many others it has.

    Call :meth:`.Socket.finish` before the next request: the kernel may have more to send.

    Args:
        sock: Socket in the link's namespace.
        index: Index of the link.
        wanted: The addresses, with the length of their prefixes.

    Raises:
        IOFailureError: (5) The kernel refused the query, or there are too many addresses to read.
    """
    versions = {each.version for each in wanted}
    family = _FAMILIES[versions.pop()] if len(versions) == 1 else 0
    prefixes = rtnetlink.Prefixes((_FAMILIES[each.version], each.network.prefixlen, each.ip.packed) for each in wanted)
    found: dict[IPInterface, LinkAddress] = {}
    missing = set(wanted)
    if missing:
        body = _FIXED.pack(family, 0, 0, 0, index)
        for data in sock.scan(Message(rtnetlink.GETADDR, body, f"cannot list addresses of link {index}")):
            each = parse(data) if data in prefixes else None
            if each is not None and each.index == index and each.interface in missing:
                found[each.interface] = each
                missing.remove(each.interface)
                if not missing:
                    break
    return found


def parse(data: bytes) -> LinkAddress | None:
    """Read an address message, with its header; None for families other than IP."""
    family, prefix, flags, scope, index = _FIXED.unpack_from(data, rtnetlink.HEADER.size)
    found = read(data, rtnetlink.HEADER.size + _FIXED.size)
    # For IPv4, IFA_ADDRESS is the peer's on point-to-point links, and IFA_LOCAL is always ours; IPv6 has it the other
    # way around only where a peer is set.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if packed is None or family not in (_AF_INET, _AF_INET6):
        return None
    if _IFA_FLAGS in found:
        flags = read_uint(found[_IFA_FLAGS])
    kind = IPv4Interface if family == _AF_INET else IPv6Interface
    return LinkAddress(
        interface=kind((packed, prefix)),
        index=index,
        scope=scope,
        tentative=bool(flags & _F_TENTATIVE),
        duplicate=bool(flags & _F_DADFAILED),
    )


def wait_for_dad(sock: Socket, link: Link, addresses: Collection[IPInterface], timeout: float) -> None:
    """Wait for the end of duplicate address detection (RFC 4862, section 5.4), by the kernel's notifications.

    Args:
        sock: A socket that joined :data:`~.rtnetlink.GROUP_IPV6_IFADDR` before the addresses were added.
        link: Their link, up.
        addresses: The addresses; IPv4 ones need no wait.
        timeout: Seconds.

    Raises:
        IOFailureError: (5) Another host has an address, it vanished, or it is not usable after that time.
    """
    deadline = time.monotonic() + timeout
    while True:
        there = {each.interface: each for each in dump(sock, link.index)}
        waiting = []
        for address in addresses:
            state = there.get(address)
            if state is None:
                raise IOFailureError(f"address {address} vanished from link {link.name}")
            if state.duplicate:
                raise IOFailureError(
                    f"address {address} of link {link.name} is in use by another host",
                    details="IPv6 duplicate address detection failed",
                )
            if state.tentative:
                waiting.append(address)
        if not waiting:
            return
        try:
            for kind, data in sock.listen(deadline):
                if kind in (rtnetlink.NEWADDR, rtnetlink.DELADDR):
                    changed = parse(data)
                    if changed is not None and changed.index == link.index:
                        break
        except TimeoutError:
            raise IOFailureError(
                f"address {waiting[0]} of link {link.name} is still tentative after {timeout:g} s",
                details="IPv6 duplicate address detection needs a link that is up at both ends",
            ) from None
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _message(index: int, address: IPInterface, flags: int = 0) -> bytes:
    scope = SCOPE_LINK if address.version == 6 and address.ip.is_link_local else SCOPE_UNIVERSE
    fixed = _FIXED.pack(_FAMILIES[address.version], address.network.prefixlen, flags, scope, index)
    return fixed + attribute(_IFA_LOCAL, address.ip.packed) + attribute(_IFA_ADDRESS, address.ip.packed)
