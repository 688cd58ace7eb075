"""Bridges: made once and shared by all containers of a network. Only an ADD that made one and failed deletes it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from ...errors import IOFailureError
from ...spec.addresses import IPInterface
from .. import lock, rtnetlink, sysctl
from ..attributes import text, uint8, uint32
from ..ip import address
from ..rtnetlink import KernelError, Message
from . import link, messages
from .bridge_port import NO_VLAN_FILTERING
from .link import Link

_MIN_MTU_IPV6 = 1280

# Seconds that an ADD waits for a process that deletes a bridge: that takes a few milliseconds.
_PATIENCE = 0.1


def ensure(
    name: str,
    *,
    mtu: int | None = None,
    vlan_filtering: bool = False,
    promisc: bool = False,
    before_making: Callable[[], object] | None = None,
) -> Link:
    """Make a bridge in the calling thread's namespace, or take the one there is; set it up.

    A new bridge gets a hardware address of its own, which stays. Otherwise the kernel gives it the lowest one of its
    ports, and containers lose the address of their gateway when that port goes. It ignores router advertisements.

    Args:
        name: Name of the bridge.
        mtu: MTU in bytes of a new bridge; an existing one keeps its own. None leaves it to the kernel.
        vlan_filtering: Turn VLAN filtering on; False leaves it as it is.
        promisc: Set it promiscuous; False leaves it as it is.
        before_making: Called before a new bridge is made, as to record that it must be undone.

    Raises:
        IOFailureError: (5) A link of that name is no bridge; or the kernel refused, for example because it was built
            without bridge VLAN filtering.
    """
    with rtnetlink.connect() as sock:
        look = messages.get_request(name=name, what=f"bridge {name}")
        (found,) = sock.exchange([look])
        if isinstance(found, KernelError) and found.errno == errno.ENODEV:
            if before_making is not None:
                before_making()
            created, found = sock.exchange([_create_request(name, mtu=mtu, vlan_filtering=vlan_filtering), look])
            if isinstance(created, KernelError) and created.errno != errno.EEXIST:
                if created.errno == errno.EOPNOTSUPP:
                    lacking = NO_VLAN_FILTERING if vlan_filtering else "the kernel lacks bridges (CONFIG_BRIDGE)"
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
            requests.append(messages.promisc_request(bridge.index, name, True))
        if not bridge.up:
            requests.append(messages.up_request(bridge.index, name))
        sock.send(requests)
        return bridge._replace(
            up=True, promisc=promisc or bridge.promisc, vlan_filtering=vlan_filtering or bridge.vlan_filtering
        )


@contextmanager
def kept() -> Iterator[None]:
    """Keep other processes from deleting an unused bridge, for the time between :func:`ensure` and its next port.

    Any number of processes may be inside; :func:`delete_unused` leaves the bridge alone then.
    """
    with lock.shared(_PATIENCE):
        yield


def delete_unused(name: str) -> None:
    """Delete a bridge without ports: what an ADD does that made it and failed. Absence is fine, and so are ports.

    A bridge that another process may be about to use (see :func:`kept`) stays.

    Raises:
        KernelError: (5) The kernel refused.
    """
    with lock.exclusive(0) as alone:
        found = link.find(name) if alone else None
        if found is None or found.kind != "bridge":
            return
        if all(each.master != found.index for each in link.list_all()):
            found.delete()


def check(name: str, *, promisc: bool = False) -> Link:
    """Verify that a bridge is there and up, and promiscuous if that is asked for.

    The hardware address is not compared: that of a bridge which another program made may follow its ports.

    Args:
        name: Name of the bridge.
        promisc: If true, the bridge has to be promiscuous.

    Returns:
        The bridge.

    Raises:
        IOFailureError: (5) It is not.
    """
    bridge = link.get(name)
    if bridge.kind != "bridge":
        raise IOFailureError(f"{name} is a link of kind {bridge.kind or 'unknown'}, not a bridge")
    if not bridge.up:
        raise IOFailureError(f"bridge {name} is down")
    if promisc and not bridge.promisc:
        raise IOFailureError(f"bridge {name} is not promiscuous, which $.promiscMode asks for")
    return bridge


def check_addresses(bridge: Link, addresses: Iterable[IPInterface]) -> None:
    """Verify that a bridge has the addresses of its gateways.

    Args:
        bridge: The bridge, or the link of a VLAN on it.
        addresses: The gateways' addresses, with the length of their network's prefix.

    Raises:
        IOFailureError: (5) One is missing.
    """
    present = {each.interface for each in address.list_on(bridge)}
    for each in addresses:
        if each not in present:
            raise IOFailureError(f"{bridge.name} does not have the gateway address {each}")


def check_port_mtu(bridge: Link, mtu: int) -> None:
    """Refuse a port that would take a bridge's IPv6 addresses, such as those of the gateway of its containers.

    The kernel gives a bridge the least MTU of its ports, and a link with less than 1280 bytes no IPv6 (RFC 8200,
    section 5).

    Args:
        bridge: The bridge.
        mtu: MTU of the port in bytes; 0 if the kernel chooses it.

    Raises:
        IOFailureError: (5) The bridge has an IPv6 address that is not link-local, and the MTU is below 1280.
    """
    if not 0 < mtu < _MIN_MTU_IPV6:
        return
    present = [each.interface for each in address.list_on(bridge)]
    if six := [each for each in present if each.version == 6 and not each.is_link_local]:
        raise IOFailureError(
            f"$.mtu is {mtu}, but bridge {bridge.name} has the IPv6 address {six[0]}, which needs {_MIN_MTU_IPV6}",
            details="with such a port, the kernel would delete it",
        )


def ensure_addresses(bridge: Link, addresses: Sequence[IPInterface], *, force: bool = False) -> None:
    """Give a bridge the addresses of its gateways, all of one ADD in one call.

    An address that it has already stays. Another IPv4 address conflicts with every IPv4 gateway; another IPv6 address
    conflicts with a gateway if their subnets overlap. The bridge's present hardware address becomes permanent, since
    neighbours learn it.

    Args:
        bridge: The bridge.
        addresses: Addresses of its gateways, with prefix length.
        force: Delete conflicting addresses.

    Raises:
        IOFailureError: (5) An address conflicts with one, and `force` is not set; or the kernel refused.
    """
    with rtnetlink.connect(bridge.netns) as sock:
        present = [each.interface for each in address.dump(sock, bridge.index)]
        missing = [each for each in dict.fromkeys(addresses) if each not in present]
        if not missing:
            return
        # The addresses of one call never conflict with each other: a second range set evicts no gateway.
        conflicts = [
            (wanted, other)
            for other in present
            if other not in addresses
            for wanted in missing
            if _conflicts(other, wanted)
        ]
        if conflicts and not force:
            wanted, other = conflicts[0]
            raise IOFailureError(
                f'"{bridge.name}" already has an IP address different from {wanted}',
                details=f"it has {other}; remove that, or set forceAddress",
            )
        answers = sock.exchange(
            [
                *(
                    address.delete_request(bridge.index, bridge.name, other)
                    for other in dict.fromkeys(other for _, other in conflicts)
                ),
                # Without duplicate address detection: containers ask for their gateway at once, and the address is
                # this host's by configuration.
                *(address.add_request(bridge.index, bridge.name, each) for each in missing),
                messages.set_request(f"cannot set the MAC of bridge {bridge.name}", index=bridge.index, mac=bridge.mac),
            ]
        )
    for answer in answers:
        # Another ADD of the network was as fast.
        if isinstance(answer, KernelError) and answer.errno not in (errno.EEXIST, errno.EADDRNOTAVAIL):
            raise answer


def _create_request(name: str, *, mtu: int | None, vlan_filtering: bool) -> Message:
    # Given with the request that makes it, the address counts as set by an administrator: neither udev's
    # MACAddressPolicy nor the kernel's choice of the lowest port's replaces it.
    body = messages.message(
        text(messages.IFLA_IFNAME, name),
        messages.mac_attribute(link.random_mac()),
        messages.info("bridge", *([uint8(messages.IFLA_BR_VLAN_FILTERING, 1)] if vlan_filtering else [])),
        uint32(messages.IFLA_MTU, mtu) if mtu else b"",
    )
    flags = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL
    return Message(rtnetlink.NEWLINK, body, f"cannot create bridge {name}", flags)


def _filter_vlans(sock: rtnetlink.Socket, bridge: Link) -> None:
    body = messages.message(messages.info("bridge", uint8(messages.IFLA_BR_VLAN_FILTERING, 1)), index=bridge.index)
    what = f"cannot turn on VLAN filtering of bridge {bridge.name}"
    try:
        sock.send([Message(rtnetlink.NEWLINK, body, what)])
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise IOFailureError(f"{what}: {NO_VLAN_FILTERING}") from error
        raise


def _conflicts(other: IPInterface, wanted: IPInterface) -> bool:
    if other.version != wanted.version:
        return False
    return other.version == 4 or (other.network.overlaps(wanted.network) and not other.ip.is_link_local)
