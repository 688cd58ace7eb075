"""Messages about links (``rtnetlink(7)``), for modules that send several at once."""

from __future__ import annotations

import struct

from .. import rtnetlink
from ..attributes import attribute, read, text, uint8, uint32
from ..netns import NetNS
from ..rtnetlink import Message

# linux/if.h, linux/if_link.h, linux/rtnetlink.h
#: Flags of a link (linux/if.h).
IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200
#: Bytes of a link's name, with the NUL (linux/if.h).
IFNAMSIZ = 16
_RTEXT_FILTER_SKIP_STATS = 0x8
#: Attributes of a link (linux/if_link.h).
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
#: More attributes of a link.
IFLA_TXQLEN, IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC = 13, 16, 18, 20, 26
#: More attributes of a link.
IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_NUM_TX_QUEUES = 28, 29, 31
#: More attributes of a link.
IFLA_PROP_LIST, IFLA_ALT_IFNAME, IFLA_PERM_ADDRESS, IFLA_PARENT_DEV_NAME = 52, 53, 54, 56
_NEWLINKPROP, _DELLINKPROP = 108, 109
_NESTED = 0x8000
#: Attributes inside IFLA_LINKINFO.
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
#: Attribute inside IFLA_INFO_DATA of a bridge.
IFLA_BR_VLAN_FILTERING = 7
#: Attributes inside IFLA_INFO_SLAVE_DATA of a bridge's port.
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
#: Attribute inside IFLA_INFO_DATA of a veth: the other end.
VETH_INFO_PEER = 1
_FIXED = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change


def message(*attributes: bytes, family: int = 0, index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """Return a link message without its netlink header.

    Args:
        *attributes: Its attributes, each from :mod:`cnisdk.linux.attributes`.
        family: ``AF_BRIDGE`` for the VLANs of a port; 0 for all else.
        index: Index of the link; 0 if an attribute names it.
        flags: New values of the flags (IFF_*) in `change`.
        change: Mask of the flags to change.
    """
    return _FIXED.pack(family, 0, index, flags, change) + b"".join(attributes)


def info(kind: str, *data: bytes) -> bytes:
    """Make the attribute of the kind of a link, and of the attributes that only this kind has."""
    inner = attribute(IFLA_INFO_DATA, *data) if data else b""
    return attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, kind.encode(), b"\0"), inner)


def get_request(*, what: str, name: str = "", index: int = 0) -> Message:
    """Make the request for one link; with neither name nor index for all, for :meth:`~.rtnetlink.Socket.dump`.

    Args:
        what: Beginning of the error's message.
        name: Name of the link.
        index: Index of the link, if there is no name.
    """
    attributes = [uint32(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)]
    if name:
        # The kernel looks through both kinds of names, whichever attribute has it; only their length differs.
        is_long = len(name.encode(errors="surrogateescape")) >= IFNAMSIZ
        attributes.append(text(IFLA_ALT_IFNAME if is_long else IFLA_IFNAME, name))
    return Message(rtnetlink.GETLINK, message(*attributes, index=index), what, flags=0)


def set_request(
    what: str,
    *,
    index: int = 0,
    name: str = "",
    flags: int = 0,
    change: int = 0,
    alias: str | None = None,
    master: int | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    txqlen: int | None = None,
    rename: str | None = None,
    netns: NetNS | None = None,
) -> Message:
    """Make the request that changes a link, given by index or name. None leaves a property as it is.

    Args:
        what: Beginning of the error's message.
        index: Index of the link.
        name: Name of the link, if there is no index.
        flags: New values of the flags (IFF_*) in `change`.
        change: Mask of the flags to change.
        alias: New alias, at most 255 bytes.
        master: Index of the bridge or VRF to put it under; 0 for none.
        mac: New hardware address.
        mtu: New MTU in bytes.
        txqlen: New length of its queue, in packets.
        rename: New name. The link must then be given by index.
        netns: Namespace to move it to.
    """
    attributes = []
    if rename is not None:
        attributes.append(text(IFLA_IFNAME, rename))
    if netns is not None:
        attributes.append(uint32(IFLA_NET_NS_FD, netns.fd))
    if txqlen is not None:
        attributes.append(uint32(IFLA_TXQLEN, txqlen))
    if name:
        attributes.append(text(IFLA_IFNAME, name))
    if alias is not None:
        attributes.append(text(IFLA_IFALIAS, alias))
    if master is not None:
        attributes.append(uint32(IFLA_MASTER, master))
    if mac is not None:
        attributes.append(mac_attribute(mac))
    if mtu is not None:
        attributes.append(uint32(IFLA_MTU, mtu))
    return Message(rtnetlink.SETLINK, message(*attributes, index=index, flags=flags, change=change), what)


def altname_request(altname: str, *, add: bool, index: int = 0, name: str = "") -> Message:
    """Make the request that adds or deletes an alternative name of a link (Linux 5.5), given by index or name.

    Args:
        altname: The alternative name, at most 127 bytes.
        add: If false, it is deleted.
        index: Index of the link.
        name: Name of the link, if there is no index.
    """
    names = attribute(IFLA_PROP_LIST | _NESTED, attribute(IFLA_ALT_IFNAME, altname.encode(), b"\0"))
    flags = rtnetlink.F_ACK | (rtnetlink.F_CREATE | rtnetlink.F_EXCL if add else 0)
    body = message(text(IFLA_IFNAME, name) if name else b"", names, index=index)
    what = f"cannot change the alternative name {altname} of link {name or index}"
    return Message(_NEWLINKPROP if add else _DELLINKPROP, body, what, flags)


def mac_attribute(mac: str) -> bytes:
    """Return the attribute of a hardware address: six bytes for Ethernet, four for a tunnel, twenty for InfiniBand."""
    return attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))


def up_request(index: int, name: str) -> Message:
    """Make the request that sets a link up.

    Args:
        index: Index of the link.
        name: Its name, for the error's message.
    """
    return set_request(f"cannot set link {name} up", index=index, flags=IFF_UP, change=IFF_UP)


def down_request(index: int, name: str) -> Message:
    """Make the request that sets a link down.

    Args:
        index: Index of the link.
        name: Its name, for the error's message.
    """
    return set_request(f"cannot set link {name} down", index=index, flags=0, change=IFF_UP)


def promisc_request(index: int, name: str, on: bool) -> Message:
    """Make the request that sets or clears IFF_PROMISC of a link.

    Args:
        index: Index of the link.
        name: Its name, for the error's message.
        on: If false, the flag is cleared.
    """
    return set_request(
        f"cannot {'set' if on else 'clear'} promiscuous mode of link {name}",
        index=index,
        flags=IFF_PROMISC if on else 0,
        change=IFF_PROMISC,
    )


def port_requests(
    index: int = 0, name: str = "", *, hairpin: bool | None = None, isolated: bool | None = None
) -> list[Message]:
    """Make the requests that change the flags of a bridge port, given by index or name. None leaves a flag as it is.

    They are requests of their own so that the error says which flag an old kernel lacks (isolated: Linux 4.18).

    Args:
        index: Index of the port.
        name: Name of the port, if there is no index, and for the error's message.
        hairpin: New value of hairpin mode: frames may go back to the port they came from.
        isolated: New value of isolation: no frames go to another isolated port.
    """
    requests = []
    for number, value, title in (
        (IFLA_BRPORT_MODE, hairpin, "hairpin mode"),
        (IFLA_BRPORT_ISOLATED, isolated, "port isolation"),
    ):
        if value is None:
            continue
        kind = attribute(IFLA_INFO_SLAVE_KIND, b"bridge\0")
        data = attribute(IFLA_INFO_SLAVE_DATA, uint8(number, value))
        body = message(b"" if index else text(IFLA_IFNAME, name), attribute(IFLA_LINKINFO, kind, data), index=index)
        requests.append(Message(rtnetlink.NEWLINK, body, f"cannot set {title} of bridge port {name}"))
    return requests


def take_apart(data: bytes) -> tuple[int, int, dict[int, bytes]]:
    """Return index, flags and attributes of a link message, which begins with the netlink header."""
    _, _, index, flags, _ = _FIXED.unpack_from(data, rtnetlink.HEADER.size)
    return index, flags, read(data, rtnetlink.HEADER.size + _FIXED.size)
