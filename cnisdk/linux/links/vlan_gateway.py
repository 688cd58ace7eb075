"""VLAN gateways: links that hold the gateway's address in one VLAN of a bridge.

A gateway is one end of a veth. The other end is a port of the bridge and carries the VLAN. The port's name is derived
from bridge and VLAN, and its alias names them: such a port identifies a gateway that this module made.

All attachments of the VLAN share the gateway, also those of other networks. It is in use as long as the port of a
container or virtual machine carries the VLAN. Any plugin may have made that port. DEL and GC delete a gateway that is
not in use, and hold the namespace's lock meanwhile. An ADD holds that lock too, shared, from before it makes its port
until the port carries the VLAN (:func:`cnisdk.linux.links.bridge.kept`). So no gateway is deleted during an ADD.

Any other gateway was made by the reference plugin or by an operator. It is used, and never deleted.
"""

from __future__ import annotations

import errno

from ...errors import IOFailureError
from ...spec.names import short_hash
from .. import lock, rtnetlink, sysctl
from ..attributes import attribute, text, uint32
from ..rtnetlink import KernelError, Message, Socket
from . import link, messages
from .bridge_port import VID_MAX, access_requests, find_carriers
from .link import Link

_NAME_MAX = 15
_TAG = "cni-vlan-gateway:"

# Kinds of ports that containers and virtual machines have. A network card or a tunnel is the way out of the host: it
# often carries all VLANs, and stays when the last container has gone.
_USERS = frozenset({"veth", "tun"})

# Seconds. An ADD holds the lock for some milliseconds. A gateway that is left for it is found by the next DEL or GC.
_PATIENCE = 0.5


def name_of(bridge: str, vlan: int) -> str:
    """Return the name of the link with a VLAN's gateway address: ``<bridge>.<vlan>``, hashed if that is too long.

    Args:
        bridge: Name of the bridge.
        vlan: Number of the VLAN.
    """
    name = f"{bridge}.{vlan}"
    return name if len(name.encode()) <= _NAME_MAX else f"{short_hash(bridge, digits=10)}.{vlan}"


def ensure(bridge: Link, vlan: int) -> Link:
    """Make a link in one VLAN of a bridge for its gateway address, or take the one there is; set it up.

    Args:
        bridge: The bridge, filtering VLANs.
        vlan: Number of the VLAN, 1 to 4094.

    Returns:
        The end that gets the address, up.

    Raises:
        IOFailureError: (5) A link of that name belongs to no such bridge; or the kernel refused.
    """
    with rtnetlink.connect(bridge.netns) as sock:
        gateway = _find(sock, name_of(bridge.name, vlan))
        if gateway is not None:
            return _prepare(sock, bridge, vlan, gateway)
        made, gateway = _create(sock, bridge, vlan)
        try:
            return _prepare(sock, bridge, vlan, gateway)
        except BaseException:
            if made:
                link.delete_all(sock, [gateway])
            raise


def delete_unused(bridge: str, vlan: int) -> bool:
    """Delete the gateway of a VLAN if nothing uses it any more. Absence is fine.

    One that :func:`ensure` did not make stays, and so does one that another process may be about to use.

    Args:
        bridge: Name of the bridge, which may be gone itself.
        vlan: Number of the VLAN; another than 1 to 4094 has no gateway.

    Returns:
        True if it was there and is deleted.

    Raises:
        KernelError: (5) The kernel refused.
    """
    if not 1 <= vlan <= VID_MAX or _find_unused(bridge, vlan) is None:
        return False
    with lock.exclusive(_PATIENCE) as alone:
        unused = _find_unused(bridge, vlan) if alone else None
        return unused is not None and unused.delete()


def delete_all_unused(bridge: str) -> None:
    """Delete the gateways of all VLANs of a bridge that nothing uses any more, for GC.

    Raises:
        KernelError: (5) The kernel refused.
    """
    prefix = f"{_TAG}{bridge}/"
    vlans = {each.alias.removeprefix(prefix) for each in link.list_by_alias_prefix(prefix)}
    for vlan in vlans:
        if vlan.isdecimal():
            delete_unused(bridge, int(vlan))


def _port_name(bridge: str, vlan: int) -> str:
    return f"veth{short_hash(bridge, str(vlan), digits=8)}"


def _is_ours(port: Link, bridge: str, vlan: int) -> bool:
    """Return True if this module made the port. One without alias counts: a name like this is no chance (1 in 2³²)."""
    return (port.name, port.kind) == (_port_name(bridge, vlan), "veth") and port.alias in (f"{_TAG}{bridge}/{vlan}", "")


def _find_unused(bridge: str, vlan: int) -> Link | None:
    """Find the port of a gateway of ours, in a VLAN that no port of a container or virtual machine carries."""
    port = link.find(_port_name(bridge, vlan))
    if port is None or not _is_ours(port, bridge, vlan):
        return None
    if not port.master:
        return port  # the bridge is gone
    others = {
        each.index
        for each in link.list_all()
        if each.master == port.master and each.kind in _USERS and each.index != port.index
    }
    return port if not others or others.isdisjoint(find_carriers(vlan)) else None


def _find(sock: Socket, name: str) -> Link | None:
    (answer,) = sock.exchange([messages.get_request(name=name, what=f"link {name}")])
    if isinstance(answer, KernelError):
        if answer.errno == errno.ENODEV:
            return None
        raise answer
    assert answer is not None
    return link.parse(answer)


def _create(sock: Socket, bridge: Link, vlan: int) -> tuple[bool, Link]:
    """Make the pair, with its mark; return whether it was this call that did, and the gateway."""
    name, port_name = name_of(bridge.name, vlan), _port_name(bridge.name, vlan)
    what = f"cannot create link {name} with its end {port_name} in bridge {bridge.name}"
    # Looked at first, because the kernel goes on after a request it refuses: the alias would be set on another's link.
    if (taken := _find(sock, port_name)) is not None and not _is_ours(taken, bridge.name, vlan):
        raise KernelError(what, errno.EEXIST)
    peer = messages.message(text(messages.IFLA_IFNAME, name), messages.mac_attribute(link.random_mac()))
    body = messages.message(
        text(messages.IFLA_IFNAME, port_name),
        messages.mac_attribute(link.random_mac()),
        uint32(messages.IFLA_MASTER, bridge.index),
        messages.info("veth", attribute(messages.VETH_INFO_PEER, peer)),
    )
    flags = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL
    tag = f"{_TAG}{bridge.name}/{vlan}"
    created, _, _, found = sock.exchange(
        [
            Message(rtnetlink.NEWLINK, body, what, flags),
            # In the same send: no kill comes between.
            messages.set_request(f"cannot set the alias of link {port_name}", name=port_name, alias=tag),
            messages.set_request(f"cannot set the alias of link {name}", name=name, alias=tag),
            messages.get_request(name=name, what=f"link {name}"),
        ]
    )
    # With EEXIST, another ADD was as fast.
    if isinstance(created, KernelError) and (created.errno != errno.EEXIST or not isinstance(found, bytes)):
        raise created
    if isinstance(found, KernelError):
        raise found
    assert found is not None
    return created is None, link.parse(found)


def _prepare(sock: Socket, bridge: Link, vlan: int, gateway: Link) -> Link:
    """Verify that a link leads into the VLAN of the bridge, and set it up. Repair a gateway that this module made."""
    if gateway.kind == "vlan" and gateway.link_index == bridge.index:  # `ip link add link br0 name br0.100 type vlan`
        sock.send([messages.up_request(gateway.index, gateway.name)])
        return gateway._replace(up=True)
    what = f"the bridge's end of {gateway.name}"
    (found,) = (
        sock.exchange([messages.get_request(index=gateway.link_index, what=what)]) if gateway.kind == "veth" else [None]
    )
    port = link.parse(found) if isinstance(found, bytes) else None
    ours = port is not None and _is_ours(port, bridge.name, vlan)
    # A gateway of ours outlives its bridge, if an operator deletes that.
    if port is None or port.master not in ((bridge.index, 0) if ours else (bridge.index,)):
        raise IOFailureError(
            f"{gateway.name} already exists but does not lead into bridge {bridge.name}",
            details=f"it is a link of kind {gateway.kind or 'unknown'}: delete it, or rename it",
        )
    if ours:
        if not port.master:
            port.join(bridge)
        sock.send(access_requests(port.index, port.name, vlan))
        for each in (port.name, gateway.name):
            sysctl.refuse_advertisements(each)
    sock.send([messages.up_request(port.index, port.name), messages.up_request(gateway.index, gateway.name)])
    return gateway._replace(up=True)
