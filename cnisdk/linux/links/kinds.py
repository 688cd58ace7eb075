"""Links of kinds with few attributes: macvlan, ipvlan, vlan, vrf, dummy, ifb.

One message makes a link in its final namespace, with its final name, hardware address and MTU. A second message sets
the alias, which names the owner. Attributes that only one kind has come from the table :data:`KINDS`: with an entry
there, a kind of your own can be made and read.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping

from ..._light import NamedTuple
from ...errors import InvalidConfigError, IOFailureError, PluginNotAvailableError
from ...spec.names import Attachment
from .. import rtnetlink
from ..attributes import attribute, read, read_uint, text, uint32
from ..netns import NetNS
from ..rtnetlink import KernelError, Message, Socket
from . import link, messages
from .link import Link


class Option(NamedTuple):
    """An attribute that only links of one kind have.

    Attributes:
        number: Its number in the kernel's headers.
        size: Its size in bytes.
        values: Words for its values; None for one that is a number.
        network_order: The number is in network byte order.
    """

    number: int
    size: int = 4
    values: Mapping[str, int] | None = None
    network_order: bool = False

    def encode(self, what: str, value: int | str) -> bytes:
        """Return the attribute; `what` is what the error calls it.

        Raises:
            InvalidConfigError: (7) It has no such value.
        """
        number = self.values.get(str(value)) if self.values is not None else int(value)
        if number is None or not 0 <= number < 1 << 8 * self.size:
            known = ", ".join(self.values) if self.values is not None else f"0 to {(1 << 8 * self.size) - 1}"
            raise InvalidConfigError(f'unknown {what}: "{value}"', details=f"expected {known}")
        return attribute(self.number, number.to_bytes(self.size, "big" if self.network_order else sys.byteorder))

    def decode(self, payload: bytes) -> int | str:
        """Return the value: its word where it has one."""
        number = int.from_bytes(payload, "big") if self.network_order else read_uint(payload)
        words = {each: word for word, each in (self.values or {}).items()}
        return words.get(number, number)


KINDS: dict[str, dict[str, Option]] = {
    "dummy": {},
    "ifb": {},
    "macvlan": {
        "mode": Option(1, values={"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}),
        "bcqueuelen": Option(7),  # how many broadcast frames wait to be handed on; Linux 5.11
    },
    "ipvlan": {"mode": Option(1, 2, {"l2": 0, "l3": 1, "l3s": 2}), "flags": Option(2, 2, {"private": 1, "vepa": 2})},
    "vlan": {"id": Option(1, 2), "protocol": Option(5, 2, {"802.1Q": 0x8100, "802.1ad": 0x88A8}, network_order=True)},
    "vrf": {"table": Option(1)},
    # Made by :mod:`.tap`, since the kernel makes none by netlink.
    "tun": {
        "owner": Option(1),
        "group": Option(2),
        "type": Option(3, 1, {"tun": 1, "tap": 2}),
        "multi_queue": Option(7, 1),
    },
}
"""The attributes of each kind, as ``linux/if_link.h`` has them."""


def create(
    kind: str,
    name: str,
    netns: NetNS | None = None,
    *,
    parent: Link | None = None,
    mtu: int = 0,
    mac: str = "",
    owner: Attachment | None = None,
    data: Mapping[str, int | str] | None = None,
) -> Link:
    """Make a link in a namespace, down. Nothing is left when it fails.

    Killed between its two messages, it leaves a link without alias, which DEL takes for one of the reference plugin's.

    Args:
        kind: The kind, one of :data:`KINDS`.
        name: Its name.
        netns: Where; None means the calling thread's namespace.
        parent: The link it lies on, in the calling thread's namespace or in `netns`.
        mtu: MTU in bytes; 0 leaves it to the kernel, which takes the parent's.
        mac: Hardware address; empty makes one up, but for kinds that share their parent's.
        owner: The attachment it belongs to: its alias says so.
        data: Attributes that only this kind has, by the names in :data:`KINDS`.

    Returns:
        The link, in `netns`.

    Raises:
        InvalidConfigError: (7) The kind has no such attribute, or the attribute no such value.
        InvalidEnvironmentError: (4) There is a link of that name.
        IOFailureError: (5) The kernel refused, for example because it lacks the kind.
    """
    made = _encode(kind, name, netns, parent, mtu=mtu, mac=mac, data=data or {})
    look = messages.get_request(name=name, what=f"link {name}")
    with rtnetlink.connect(netns) as there:
        try:
            if parent is None or parent.netns == netns:
                there.send([made])
            else:  # the kernel looks the parent up where the request comes from
                with rtnetlink.connect(parent.netns) as here:
                    here.send([made])
        except KernelError as error:
            raise _explain(error, kind, name, netns, there.exchange([look])[0], owner) from error
        return _name_owner(there, look, name, netns, owner)


def require(kind: str) -> None:
    """Verify that the kernel has a kind of link. The kernel loads its module if needed. No link is made.

    Raises:
        PluginNotAvailableError: (50) The kernel lacks the kind.
    """
    # Whatever the kind, the kernel refuses to make a link without queues, when it has found the kind.
    body = messages.message(uint32(messages.IFLA_NUM_TX_QUEUES, 0), messages.info(kind))
    flags = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL
    with rtnetlink.connect() as sock:
        (answer,) = sock.exchange([Message(rtnetlink.NEWLINK, body, f"cannot create links of kind {kind}", flags)])
    if isinstance(answer, KernelError) and answer.errno == errno.EOPNOTSUPP:
        raise PluginNotAvailableError(answer.msg, details=_lacking(kind))


def options(link: Link) -> dict[str, int | str]:
    """Return the attributes that only links of its kind have, by the names in :data:`KINDS`."""
    known = KINDS.get(link.kind, {})
    present = read(link.data)
    return {name: each.decode(present[each.number]) for name, each in known.items() if each.number in present}


def check(there: Link, *, parent: Link | None = None, data: Mapping[str, int | str] | None = None) -> None:
    """Verify that a link lies on its parent and has these attributes.

    Its MTU is not compared: the chained plugin ``tuning`` may have changed it.

    Args:
        there: The link.
        parent: Link of the host that it is on; None for a kind without one.
        data: Attributes of its kind that it has to have, by name.

    Raises:
        IOFailureError: (5) It lies on another link, or an attribute differs.
    """
    if parent is not None:
        # A macvlan made on a macvlan lies on what that one lies on; so does an ipvlan.
        shared = parent.kind == there.kind and parent.kind in ("macvlan", "ipvlan")
        if there.link_index != (parent.link_index if shared else parent.index):
            raise IOFailureError(f"{there.kind} {there.name} does not lie on {parent.name}")
    present = options(there)
    for name, value in (data or {}).items():
        if present.get(name) != value:
            raise IOFailureError(f"{there.kind} {there.name} has {name} {present.get(name)}, not {value}")


def _encode(
    kind: str,
    name: str,
    netns: NetNS | None,
    parent: Link | None,
    *,
    mtu: int,
    mac: str,
    data: Mapping[str, int | str],
) -> Message:
    known = KINDS[kind]
    for each in data:
        if each not in known:
            raise InvalidConfigError(f"a {kind} has no {each}", details=f"expected one of: {', '.join(known)}")
    if not mac and kind not in link.SHARE_MAC:
        # Given even if the configuration asks for none: that marks it as set, and udev leaves it alone.
        mac = link.random_mac()
    attributes = [text(messages.IFLA_IFNAME, name)]
    if netns is not None:
        attributes.append(uint32(messages.IFLA_NET_NS_FD, netns.fd))
    if mac:
        attributes.append(messages.mac_attribute(mac.lower()))
    if mtu:
        attributes.append(uint32(messages.IFLA_MTU, mtu))
    if parent is not None:
        attributes.append(uint32(messages.IFLA_LINK, parent.index))
    attributes.append(
        messages.info(kind, *(known[each].encode(f"{kind} {each}", value) for each, value in data.items()))
    )
    where = f" in {netns.path}" if netns is not None else ""
    on = f" on {parent.name}" if parent is not None else ""
    flags = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL
    return Message(rtnetlink.NEWLINK, messages.message(*attributes), f"cannot create {kind} {name}{where}{on}", flags)


def _name_owner(there: Socket, look: Message, name: str, netns: NetNS | None, owner: Attachment | None) -> Link:
    """Set the alias of a link that was just made, and return the link."""
    alias = (
        [] if owner is None else [messages.set_request(f"cannot set the alias of {name}", name=name, alias=owner.tag)]
    )
    try:
        *named, found = there.exchange([*alias, look])
        for answer in (*named, found):
            if isinstance(answer, KernelError):
                raise answer
    except BaseException:
        there.exchange(
            [Message(rtnetlink.DELLINK, messages.message(text(messages.IFLA_IFNAME, name)), f"cannot delete {name}")]
        )
        raise
    assert isinstance(found, bytes)
    return link.parse(found, netns)


def _explain(
    error: KernelError,
    kind: str,
    name: str,
    netns: NetNS | None,
    taken: bytes | KernelError | None,
    owner: Attachment | None,
) -> Exception:
    """Return the error that says what the kernel's error means here."""
    if error.errno == errno.EEXIST and isinstance(taken, bytes):
        mine = owner is not None and link.parse(taken).alias == owner.tag
        return link.name_taken(name, netns, owner if mine else None)
    if error.errno == errno.EEXIST and kind == "vlan":
        return IOFailureError(
            error.msg, details="another link has this VLAN of it, perhaps in a container: the kernel allows only one"
        )
    if error.errno == errno.EOPNOTSUPP:
        return IOFailureError(error.msg, details=error.reason or _lacking(kind))
    return error


def _lacking(kind: str) -> str:
    return f"the kernel lacks {kind} (CONFIG_{_CONFIGS.get(kind, kind.upper())})"


_CONFIGS = {"vlan": "VLAN_8021Q", "vrf": "NET_VRF"}
