"""Links (network interfaces): snapshots of them, and what can be done to any kind of link."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Sequence

from ..._light import TYPE_CHECKING, NamedTuple, TypeVar
from ...errors import InvalidEnvironmentError, IOFailureError
from ...spec.names import Attachment, network_tag_prefixes
from .. import rtnetlink
from ..attributes import find as find_attribute, iterate, read, read_text, read_uint
from ..netns import NetNS
from ..rtnetlink import KernelError, Message
from .messages import (
    IFF_ALLMULTI,
    IFF_PROMISC,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_ALT_IFNAME,
    IFLA_BR_VLAN_FILTERING,
    IFLA_BRPORT_ISOLATED,
    IFLA_BRPORT_MODE,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_OPERSTATE,
    IFLA_PARENT_DEV_NAME,
    IFLA_PERM_ADDRESS,
    IFLA_PROP_LIST,
    IFLA_TXQLEN,
    down_request,
    get_request,
    message,
    port_requests,
    promisc_request,
    set_request,
    take_apart,
    up_request,
)

if TYPE_CHECKING:
    from ...spec.result import Interface

_OPERSTATE_UP = 6  # linux/if.h

#: Kinds of links that have the hardware address of the link below them, and follow it.
SHARE_MAC = frozenset({"ipvlan", "vlan"})

ALTNAME_MAX = 127
"""Bytes of an alternative name, at most (ALTIFNAMSIZ in linux/if.h, less one)."""

_L = TypeVar("_L", bound="Link")


class LinkNotFoundError(IOFailureError):
    """Code 5: there is no such link."""


def name_taken(name: str, netns: NetNS | None = None, attached: Attachment | None = None) -> InvalidEnvironmentError:
    """Return the error of an ADD whose interface would have the name of another one.

    Args:
        name: The name.
        netns: Namespace of the other interface; None does not tell.
        attached: The attachment of the ADD, if the other interface is its own already.
    """
    mine = f"{attached} is attached: DEL it first"
    foreign = "delete that interface, or the attachment it belongs to, or choose another name"
    return InvalidEnvironmentError(
        f"CNI_IFNAME {name} already exists" + (f" in {netns.path}" if netns is not None else ""),
        details=foreign if attached is None else mine,
    )


class Link(NamedTuple):
    """Snapshot of a link, as the kernel described it. Methods act on the link; the snapshot stays as it was.

    Attributes:
        index: Its number in its namespace.
        name: Its name.
        kind: ``veth``, ``bridge``, …; empty for physical links and ``lo``.
        mac: Hardware address, lower case with colons; empty when it has none.
        mtu: MTU in bytes.
        up: Administratively up.
        running: Its operational state (RFC 2863) is up: it has carrier too.
        promisc: Set promiscuous by an administrator; packet sockets do not show.
        master: Index of the bridge it is a port of, or of the VRF it is in; 0 for none.
        link_index: Index that the kernel's ``IFLA_LINK`` gives: of a veth's other end, or of the link a vlan or macvlan
            is on, in the namespace of that link; 0 for none.
        alias: Its alias, which carries the owner.
        allmulti: An administrator had it receive all multicast frames.
        txqlen: Length of its queue, in packets.
        hairpin: The bridge sends frames back out of this port; None when it is no bridge port.
        isolated: The bridge keeps this port from other isolated ones; None when it is no bridge port.
        vlan_filtering: The bridge filters VLANs; None when it is no bridge.
        altnames: Its alternative names (Linux 5.5).
        parent_device: The device it belongs to, such as ``0000:00:1f.6`` on the PCI bus; empty for virtual links, and
            before Linux 5.14.
        permanent_mac: The hardware address it was made with; empty for virtual links, and before Linux 5.6.
        data: Attributes of its kind (IFLA_INFO_DATA), for :func:`cnisdk.linux.links.kinds.options`; empty for a bridge.
        netns: Where it is; None means the namespace of the thread that asked. Not closed by the link.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which has no use here
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    up: bool = False
    running: bool = False
    promisc: bool = False
    master: int = 0
    link_index: int = 0
    alias: str = ""
    allmulti: bool = False
    txqlen: int = 0
    hairpin: bool | None = None
    isolated: bool | None = None
    vlan_filtering: bool | None = None
    altnames: tuple[str, ...] = ()
    parent_device: str = ""
    permanent_mac: str = ""
    data: bytes = b""
    netns: NetNS | None = None

    @property
    def interface(self) -> Interface:
        """The link as it is described in a result."""
        from ...spec.result import Interface

        return Interface(
            name=self.name, mac=self.mac, mtu=self.mtu, sandbox=self.netns.path if self.netns is not None else ""
        )

    @property
    def loan_tag(self) -> str:
        """Alternative name that tells which attachment has it on loan from the host; empty if none has."""
        return next((each for each in self.altnames if each.startswith("cni:")), "")

    def refresh(self: _L) -> _L:
        """Ask the kernel again, by index.

        Raises:
            LinkNotFoundError: (5) It is gone.
        """
        with rtnetlink.connect(self.netns) as sock:
            return type(self)(*_get(sock, get_request(index=self.index, what=f"link {self.name}"), self.netns))

    def set_up(self) -> None:
        """Set it administratively up.

        Raises:
            KernelError: (5) The kernel refused.
        """
        self._change(up_request(self.index, self.name))

    def set_down(self) -> None:
        """Set it administratively down.

        Raises:
            KernelError: (5) The kernel refused.
        """
        self._change(down_request(self.index, self.name))

    def set_promisc(self, on: bool) -> None:
        """Make it receive all frames, or only those for it.

        Raises:
            KernelError: (5) The kernel refused.
        """
        self._change(promisc_request(self.index, self.name, on))

    def set_allmulti(self, on: bool) -> None:
        """Make it receive all multicast frames, or only those of groups joined.

        Raises:
            KernelError: (5) The kernel refused.
        """
        what = f"cannot {'set' if on else 'clear'} all-multicast mode of link {self.name}"
        self._change(set_request(what, index=self.index, flags=IFF_ALLMULTI if on else 0, change=IFF_ALLMULTI))

    def set_mtu(self, mtu: int) -> None:
        """Set its MTU, in bytes.

        Raises:
            KernelError: (5) The kernel refused: EINVAL outside the range the link supports.
        """
        self._change(set_request(f"cannot set the MTU of link {self.name} to {mtu}", index=self.index, mtu=mtu))

    def set_mac(self, mac: str) -> None:
        """Set its hardware address, such as ``02:42:ac:11:00:02``.

        Raises:
            KernelError: (5) The kernel refused.
        """
        what = f"cannot set the hardware address of link {self.name} to {mac}"
        self._change(set_request(what, index=self.index, mac=mac))

    def set_txqlen(self, length: int) -> None:
        """Set the length of its queue, in packets.

        Raises:
            KernelError: (5) The kernel refused.
        """
        what = f"cannot set the queue length of link {self.name} to {length}"
        self._change(set_request(what, index=self.index, txqlen=length))

    def rename(self: _L, name: str) -> _L:
        """Give it another name; it must be down before Linux 6.2.

        Returns:
            The link with that name; this snapshot keeps the old one.

        Raises:
            KernelError: (5) The kernel refused: EEXIST when another link has that name, EBUSY when this one is up.
        """
        what = f"cannot rename link {self.name} to {name}"
        self._change(set_request(what, index=self.index, rename=name))
        return self._replace(name=name)

    def move(self: _L, netns: NetNS, name: str = "") -> _L:
        """Move it to another namespace, where it is down and has no addresses.

        It keeps its alias. If a link there has the name, nothing is moved.

        Args:
            netns: Where to.
            name: Its name there; empty keeps the one it has.

        Returns:
            The link there.

        Raises:
            KernelError: (5) The kernel refused: EEXIST when there is a link of that name.
        """
        name = name or self.name
        what = f"cannot move link {self.name} to {name} in {netns.path}"
        with rtnetlink.connect(netns) as there, rtnetlink.connect(self.netns) as here:
            look = get_request(name=name, what=f"link {name}")
            # The kernel would move it first and find the name taken then.
            (taken,) = there.exchange([look])
            if not isinstance(taken, KernelError):
                raise KernelError(what, errno.EEXIST)
            here.send([set_request(what, index=self.index, rename=name, netns=netns)])
            return type(self)(*_get(there, look, netns))

    def set_alias(self, alias: str) -> None:
        """Give it an alias of at most 255 bytes.

        Raises:
            KernelError: (5) The kernel refused.
        """
        self._change(set_request(f"cannot set the alias of link {self.name}", index=self.index, alias=alias))

    def join(self, bridge: str | Link, *, hairpin: bool | None = None, isolated: bool | None = None) -> None:
        """Make it a port of a bridge in the same namespace.

        Args:
            bridge: The bridge, or its name.
            hairpin: If true, the bridge may send frames back out of this port; None leaves it (off for a new port).
            isolated: If true, this port talks only to ports that are not isolated; None leaves it (off for a new one).

        Raises:
            LinkNotFoundError: (5) There is no such bridge.
            KernelError: (5) The kernel refused.
        """
        with rtnetlink.connect(self.netns) as sock:
            if isinstance(bridge, str):
                bridge = _get(sock, get_request(name=bridge, what=f"bridge {bridge}"), self.netns)
            what = f"cannot make link {self.name} a port of {bridge.name}"
            sock.send(
                [
                    set_request(what, index=self.index, master=bridge.index),
                    *port_requests(self.index, self.name, hairpin=hairpin, isolated=isolated),
                ]
            )

    def check_port(self, bridge: str | Link) -> None:
        """Verify that it is up, and a port of a bridge in the same namespace, as :meth:`join` makes it.

        Args:
            bridge: The bridge, or its name.

        Raises:
            LinkNotFoundError: (5) There is no such bridge.
            IOFailureError: (5) It is down, or no port of this bridge.
        """
        if isinstance(bridge, str):
            bridge = _look_up(self.netns, f"bridge {bridge}", name=bridge)
        if not self.up:
            raise IOFailureError(f"link {self.name} is down")
        if self.master != bridge.index:
            raise IOFailureError(f"link {self.name} is no port of bridge {bridge.name}")

    def set_master(self, master: Link | None) -> None:
        """Put it under a link in the same namespace, such as a VRF, or under none. For bridges, see :meth:`join`.

        Raises:
            KernelError: (5) The kernel refused.
        """
        what = f"cannot put link {self.name} under {master.name}" if master else f"cannot release link {self.name}"
        self._change(set_request(what, index=self.index, master=master.index if master else 0))

    def delete(self) -> bool:
        """Delete it, by index; the kernel then deletes a veth's other end, too. Absence is fine.

        Returns:
            True if it was there.

        Raises:
            KernelError: (5) The kernel refused.
        """
        with rtnetlink.connect(self.netns) as sock:
            return delete_all(sock, [self]) > 0

    def wait_running(self, timeout: float = 5.0) -> None:
        """Wait until its operational state (RFC 2863) is up, by the kernel's notifications.

        Args:
            timeout: Seconds.

        Raises:
            IOFailureError: (5) It is not up after that time, or is gone.
        """
        if self.refresh().running:
            return
        deadline = time.monotonic() + timeout
        # Two sockets: where many links change, notifications fill one, and what else the kernel sends there is lost.
        with rtnetlink.connect(self.netns, rtnetlink.GROUP_LINK) as changes:
            # Subscribed first, looked at second: no change can slip between.
            while not (now := self.refresh()).running:
                try:
                    for kind, data in changes.listen(deadline):
                        if kind == rtnetlink.NEWLINK and take_apart(data)[0] == self.index:
                            break
                except TimeoutError:
                    raise IOFailureError(
                        f"link {self.name} is not operational after {timeout:g} s",
                        details="it is up but has no carrier" if now.up else "it is down",
                    ) from None
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise

    def _change(self, request: Message) -> None:
        with rtnetlink.connect(self.netns) as sock:
            sock.send([request])


def find(name: str, netns: NetNS | None = None) -> Link | None:
    """Look a link up by name.

    Args:
        name: Its name, or one of its alternative names (Linux 5.5).
        netns: Where; None means the calling thread's namespace.

    Returns:
        The link, or None when there is none of that name.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    try:
        return get(name, netns)
    except LinkNotFoundError:
        return None


def get(name: str, netns: NetNS | None = None) -> Link:
    """Look a link up by name.

    Args:
        name: Its name, or one of its alternative names (Linux 5.5).
        netns: Where; None means the calling thread's namespace.

    Raises:
        LinkNotFoundError: (5) There is none.
        KernelError: (5) The kernel refused the query.
    """
    return _look_up(netns, f"link {name}", name=name)


def get_by_index(index: int, netns: NetNS | None = None) -> Link:
    """Look a link up by its index.

    Args:
        index: Its index.
        netns: Where; None means the calling thread's namespace.

    Raises:
        LinkNotFoundError: (5) There is none.
        KernelError: (5) The kernel refused the query.
    """
    return _look_up(netns, f"link with index {index}", index=index)


def find_peer(end: Link, netns: NetNS | None = None) -> Link | None:
    """Look up the other end of a veth.

    Args:
        end: One end.
        netns: Where the other one is looked for; None means the calling thread's namespace.

    Returns:
        The other end; None when it is elsewhere.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    if not end.link_index:
        return None
    with rtnetlink.connect(netns) as sock:
        (answer,) = sock.exchange([get_request(index=end.link_index, what=f"the other end of {end.name}")])
    if isinstance(answer, KernelError):
        if answer.errno == errno.ENODEV:
            return None
        raise answer
    assert answer is not None
    peer = parse(answer, netns)
    return peer if (peer.kind, peer.link_index) == ("veth", end.index) else None


def list_all(netns: NetNS | None = None) -> list[Link]:
    """List the links of a namespace.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    with rtnetlink.connect(netns) as sock:
        return [parse(data, netns) for data in sock.dump(get_request(what="cannot list links"))]


def list_by_alias_prefix(*prefixes: str, netns: NetNS | None = None) -> list[Link]:
    """List the links whose alias begins with one of the prefixes: those an owner left."""
    return [link for link in list_all(netns) if link.alias.startswith(prefixes)]


def delete_stale(kind: str, network: str, valid: Collection[Attachment]) -> list[Link]:
    """Delete the links of a network's attachments that are not among the valid ones, for GC.

    Only links in the calling thread's namespace whose alias names the network are touched.

    Args:
        kind: Kind of the links.
        network: The network.
        valid: Attachments whose links stay.

    Returns:
        The links deleted.

    Raises:
        KernelError: (5) The kernel refused one; the others were deleted.
    """
    keep = {attachment.tag for attachment in valid}
    owned = list_by_alias_prefix(*network_tag_prefixes(network))
    stale = [each for each in owned if each.kind == kind and each.alias not in keep]
    with rtnetlink.connect() as sock:
        delete_all(sock, stale)
    return stale


def random_mac() -> str:
    """Return a random hardware address: unicast, locally administered (IEEE 802)."""
    octets = bytearray(os.urandom(6))
    octets[0] = octets[0] & 0xFE | 0x02
    return octets.hex(":")


def delete_all(sock: rtnetlink.Socket, links: Sequence[Link]) -> int:
    """Delete links, by index; those that are gone are fine.

    Args:
        sock: Socket in the links' namespace.
        links: The links.

    Returns:
        How many were there.

    Raises:
        KernelError: (5) The kernel refused one; the others were deleted.
    """
    requests = [
        Message(rtnetlink.DELLINK, message(index=link.index), f"cannot delete link {link.name}") for link in links
    ]
    deleted = 0
    refused: KernelError | None = None
    for answer in sock.exchange(requests):
        if answer is None:
            deleted += 1
        elif isinstance(answer, KernelError) and answer.errno != errno.ENODEV:
            refused = refused or answer
    if refused is not None:
        raise refused
    return deleted


def parse(data: bytes, netns: NetNS | None = None) -> Link:
    """Read a link message, with its header.

    Args:
        data: The message: ``struct nlmsghdr``, ``struct ifinfomsg``, and attributes.
        netns: Namespace that the link is in; None for the calling thread's.
    """
    index, flags, found = take_apart(data)
    about = read(found.get(IFLA_LINKINFO, b""))
    kind = read_text(about.get(IFLA_INFO_KIND, b""))
    filtering = find_attribute(about.get(IFLA_INFO_DATA, b""), IFLA_BR_VLAN_FILTERING) if kind == "bridge" else None
    is_port = read_text(about.get(IFLA_INFO_SLAVE_KIND, b"")) == "bridge" and IFLA_INFO_SLAVE_DATA in about
    port = read(about[IFLA_INFO_SLAVE_DATA]) if is_port else None
    return Link(
        index=index,
        name=read_text(found.get(IFLA_IFNAME, b"")),
        kind=kind,
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=read_uint(found.get(IFLA_MTU, b"")),
        up=bool(flags & IFF_UP),
        running=read_uint(found.get(IFLA_OPERSTATE, b"")) == _OPERSTATE_UP,
        promisc=bool(flags & IFF_PROMISC),
        master=read_uint(found.get(IFLA_MASTER, b"")),
        link_index=read_uint(found.get(IFLA_LINK, b"")),
        alias=read_text(found.get(IFLA_IFALIAS, b"")),
        allmulti=bool(flags & IFF_ALLMULTI),
        txqlen=read_uint(found.get(IFLA_TXQLEN, b"")),
        hairpin=None if port is None else bool(read_uint(port.get(IFLA_BRPORT_MODE, b""))),
        isolated=None if port is None else bool(read_uint(port.get(IFLA_BRPORT_ISOLATED, b""))),
        vlan_filtering=bool(read_uint(filtering or b"")) if kind == "bridge" else None,
        altnames=tuple(
            read_text(name) for number, name in iterate(found.get(IFLA_PROP_LIST, b"")) if number == IFLA_ALT_IFNAME
        ),
        parent_device=read_text(found.get(IFLA_PARENT_DEV_NAME, b"")),
        permanent_mac=found.get(IFLA_PERM_ADDRESS, b"").hex(":"),
        data=b"" if kind == "bridge" else about.get(IFLA_INFO_DATA, b""),
        netns=netns,
    )


def _look_up(netns: NetNS | None, what: str, *, name: str = "", index: int = 0) -> Link:
    with rtnetlink.connect(netns) as sock:
        return _get(sock, get_request(what=what, name=name, index=index), netns)


def _get(sock: rtnetlink.Socket, request: Message, netns: NetNS | None) -> Link:
    (answer,) = sock.exchange([request])
    if isinstance(answer, KernelError):
        where = f" in network namespace {netns.path}" if netns is not None else ""
        if answer.errno in (errno.ENODEV, errno.ERANGE):  # the latter: too long for a name
            raise LinkNotFoundError(f"{request.what} does not exist{where}") from answer
        raise KernelError(f"cannot look up {request.what}{where}", answer.errno, reason=answer.reason) from answer
    assert answer is not None
    return parse(answer, netns)
