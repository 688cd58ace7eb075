"""Veth pairs: one end in the container, the other on the host.

Theory of operation. One netlink message makes both ends in their final namespaces, with their final names, MAC and MTU.
A second message in the same send sets the host end's alias, which names the owner. The kernel handles both before the
process runs again, so a kill cannot come between. The host end's name is derived from the attachment, so DEL finds it
without the namespace and without ``prevResult``. The kernel refuses a second link of that name: of two ADDs of one
attachment, one succeeds.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from ..._light import TYPE_CHECKING, NamedTuple
from ...errors import IOFailureError
from ...spec.names import Attachment, short_hash
from .. import rtnetlink, sysctl
from ..attributes import attribute, text, uint32
from ..netns import NetNS
from ..rtnetlink import KernelError, Message
from . import bridge_port, link, messages
from .bridge_port import Port
from .link import Link, LinkNotFoundError

if TYPE_CHECKING:
    from ...spec.result import Result

# Names are eight hexadecimal digits of a hash. Among 10,000 attachments of a host two share one with a probability of
# 1 %, so a name taken by another owner has three alternatives.
_NAMES = 4


class HostEnd(Link):
    """The end on the host."""

    __slots__ = ()


class ContainerEnd(Link):
    """The end in the container, down until it is configured."""

    __slots__ = ()

    def configure(
        self,
        result: Result,
        *,
        enabledad: bool = False,
        accept_ra: bool | None = None,
        routed: bool = False,
        timeout: float = 5.0,
    ) -> None:
        """Give it the result's addresses, set it up, add the result's routes, and announce the addresses.

        This waits until frames get through the other end, since the port of a bridge drops them until the kernel has
        seen that the link has carrier. See :func:`cnisdk.linux.ip.layer3.configure` and
        :func:`cnisdk.linux.ip.layer3.announce`.

        Args:
            result: Its addresses without an interface, or with this link's; all its routes.
            enabledad: If true, duplicate address detection runs for IPv6 addresses, and this waits for it.
            accept_ra: True keeps the kernel's setting for router advertisements; false makes the link ignore them. None
                makes it ignore them if the result has IPv6 addresses.
            routed: If true, only the gateways are neighbours on the link.
            timeout: Seconds to wait for duplicate address detection, and for the other end.

        Raises:
            IOFailureError: (5) The kernel refused, or the other end is not operational after ``timeout`` seconds.
        """
        from ..ip import layer3

        peer = Link(index=self.link_index, name=f"with index {self.link_index}")
        layer3.configure(
            self, result, enabledad=enabledad, accept_ra=accept_ra, routed=routed, peer=peer, timeout=timeout
        )


class VethPair(NamedTuple):
    """Both ends of a veth."""

    host: HostEnd
    container: ContainerEnd

    def delete(self) -> None:
        """Delete both ends of this pair, and no other of the attachment; absence is fine.

        Raises:
            KernelError: (5) The kernel refused.
        """
        self.host.delete()


def host_names(owner: Attachment) -> tuple[str, ...]:
    """Return the names that the host end of an attachment may have, in the order in which they are tried."""
    return tuple(f"veth{short_hash(*owner, str(number), digits=8)}" for number in range(_NAMES))


def create(
    netns: NetNS,
    ifname: str,
    *,
    owner: Attachment,
    mtu: int | None = None,
    mac: str | None = None,
    port: Port | None = None,
) -> VethPair:
    """Make a veth pair between the calling thread's namespace and a container's.

    The host end is up when this returns, ignores router advertisements (verified), and carries the owner's tag as its
    alias. Nothing is left when it fails.

    Of several calls that make the pair of one attachment at the same moment, one succeeds. For undo, register
    :meth:`VethPair.delete`, which deletes this very pair, and not :func:`delete`, which deletes any pair of the
    attachment. Make the pair before you ask an IPAM plugin, so that the other calls fail before they touch its lease.

    Args:
        netns: The container's namespace.
        ifname: Name of the end in there.
        owner: The attachment it is for.
        mtu: MTU of both ends in bytes; None or 0 leaves it to the kernel.
        mac: Hardware address of the container's end; None or empty makes one up.
        port: Plug the host end into this bridge before it is up.

    Raises:
        InvalidEnvironmentError: (4) The attachment has a pair, or the container an interface of that name.
        IOFailureError: (5) The kernel refused.
    """
    # Hardware addresses are set even if the configuration names none: udev's MACAddressPolicy=persistent leaves
    # addresses alone that were set. It also saves a request for the addresses that the kernel chose.
    mac = mac.lower() if mac else link.random_mac()
    with rtnetlink.connect() as sock:
        host = _create(sock, netns, ifname, owner=owner, mtu=mtu or None, mac=mac, port=port)
        pair = VethPair(
            HostEnd(*host._replace(up=True)),
            ContainerEnd(
                index=host.link_index,
                name=ifname,
                kind="veth",
                mac=mac,
                mtu=host.mtu,
                txqlen=host.txqlen,
                link_index=host.index,
                netns=netns,
            ),
        )
        try:
            sysctl.refuse_advertisements(host.name)
            if port is not None and port.vlans is not None:
                bridge_port.set_vlans(host, port.vlans)
            sock.send([messages.up_request(host.index, host.name)])
        except BaseException:
            link.delete_all(sock, [host])
            raise
    return pair


def find_host_end(owner: Attachment) -> HostEnd | None:
    """Look up the host end of an attachment's veth in the calling thread's namespace; None when there is none.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    with rtnetlink.connect() as sock:
        ends = _host_ends(sock, owner)
    return HostEnd(*ends[0]) if ends else None


def get_host_end(owner: Attachment) -> HostEnd:
    """Look up the host end of an attachment's veth in the calling thread's namespace.

    Raises:
        LinkNotFoundError: (5) The attachment has none.
        KernelError: (5) The kernel refused the query.
    """
    end = find_host_end(owner)
    if end is None:
        raise LinkNotFoundError(f"the host has no veth of {owner}")
    return end


def delete(owner: Attachment, *, netns: NetNS | None = None) -> bool:
    """Delete the veth of an attachment, made by any call, for DEL. Absence and a namespace that is gone are fine.

    Args:
        owner: The attachment.
        netns: Its namespace, if there is one. If the host has no end of ours, a veth of the attachment's interface name
            in there is deleted: the reference plugin makes such ones, with a random name on the host. A veth that
            another attachment owns stays, and so does a device that the container has on loan from the host.

    Returns:
        True if there was a veth to delete.

    Raises:
        KernelError: (5) The kernel refused.
    """
    with rtnetlink.connect() as sock:
        deleted = link.delete_all(sock, _host_ends(sock, owner))
    if not deleted and netns is not None:
        there = link.find(owner.ifname, netns)
        if there is not None and there.kind == "veth" and not _is_of_another(there, owner):
            return there.delete()
    return deleted > 0


def _is_of_another(end: Link, owner: Attachment) -> bool:
    """Return True if the alias of the host end names another owner, or the end is a device on loan."""
    if end.loan_tag:
        return True
    host = link.find_peer(end)
    return host is not None and host.alias.startswith("cni:") and host.alias != owner.tag


def delete_stale(network: str, valid: Collection[Attachment]) -> list[Link]:
    """Delete the veths of a network's attachments that are not among the valid ones, for GC.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Returns:
        The host ends deleted.

    Raises:
        KernelError: (5) The kernel refused one; the others were deleted.
    """
    return link.delete_stale("veth", network, valid)


def _create(
    sock: rtnetlink.Socket,
    netns: NetNS,
    ifname: str,
    *,
    owner: Attachment,
    mtu: int | None,
    mac: str,
    port: Port | None,
) -> Link:
    """Make the pair under the first name that is free."""
    for name in host_names(owner):
        # This looks first, because the kernel goes on after a request that it refuses: if the name is taken, the second
        # request would change the alias of another owner's link.
        (taken,) = sock.exchange([messages.get_request(name=name, what=f"link {name}")])
        if not isinstance(taken, KernelError):
            _check_not_attached(taken, owner)
            continue
        created, *changed, found = sock.exchange(
            [
                _create_request(netns, ifname, name, mtu=mtu, mac=mac, port=port),
                messages.set_request(f"cannot set the alias of link {name}", name=name, alias=owner.tag),
                *_port_requests(name, port),
                messages.get_request(name=name, what=f"link {name}"),
            ]
        )
        if isinstance(created, KernelError):
            if created.errno == errno.EEXIST and not isinstance(found, KernelError):
                _check_not_attached(found, owner)
                continue  # another owner took the name this moment
            raise _explain(created, netns, ifname)
        if isinstance(found, KernelError):
            raise found
        assert found is not None
        host = link.parse(found)
        for answer in changed:
            if isinstance(answer, KernelError):
                link.delete_all(sock, [host])
                raise answer
        return host
    # Our own four names, all taken: by earlier attachments that were never deleted, or by others.
    raise IOFailureError(
        f"no free name for the host end of {owner}",
        details=f"links {', '.join(host_names(owner))} exist; DEL of this attachment removes those it owns",
    )


def _check_not_attached(taken: bytes | None, owner: Attachment) -> None:
    """Refuse a second pair of one attachment: another ADD of it came first, perhaps at this moment."""
    assert taken is not None
    if _is_own(link.parse(taken), owner):
        raise link.name_taken(owner.ifname, attached=owner)


def _is_own(there: Link, owner: Attachment) -> bool:
    """Return True if a link of a name derived from the attachment is its host end.

    A link without alias counts: another program makes a veth of that name only by a coincidence of 32 bits.
    """
    return there.kind == "veth" and there.alias in (owner.tag, "")


def _create_request(netns: NetNS, ifname: str, name: str, *, mtu: int | None, mac: str, port: Port | None) -> Message:
    size = uint32(messages.IFLA_MTU, mtu) if mtu else b""
    peer = messages.message(
        text(messages.IFLA_IFNAME, ifname), messages.mac_attribute(mac), uint32(messages.IFLA_NET_NS_FD, netns.fd), size
    )
    body = messages.message(
        text(messages.IFLA_IFNAME, name),
        messages.mac_attribute(link.random_mac()),
        size,
        b"" if port is None else uint32(messages.IFLA_MASTER, port.bridge.index),
        messages.info("veth", attribute(messages.VETH_INFO_PEER, peer)),
    )
    what = f"cannot create veth {ifname} in {netns.path} with its host end {name}"
    return Message(rtnetlink.NEWLINK, body, what, rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL)


def _port_requests(name: str, port: Port | None) -> list[Message]:
    if port is None:
        return []
    # A new port has neither flag. Only flags to be set are sent: old kernels do not know them.
    return messages.port_requests(name=name, hairpin=port.hairpin or None, isolated=port.isolated or None)


def _explain(error: KernelError, netns: NetNS, ifname: str) -> Exception:
    if error.errno == errno.EEXIST:
        explained: Exception = link.name_taken(ifname, netns)
    elif error.errno == errno.EOPNOTSUPP:
        explained = IOFailureError(error.msg, details="the kernel lacks veth (CONFIG_VETH)")
    elif error.errno == errno.EPERM:
        explained = IOFailureError(error.msg, details="it takes CAP_NET_ADMIN in both namespaces")
    else:
        return error
    explained.__cause__ = error
    return explained


def _host_ends(sock: rtnetlink.Socket, owner: Attachment) -> list[Link]:
    """Find the links with a name derived from the attachment that are its own."""
    answers = sock.exchange([messages.get_request(name=name, what=f"link {name}") for name in host_names(owner)])
    ends = []
    for answer in answers:
        if isinstance(answer, KernelError):
            if answer.errno != errno.ENODEV:
                raise answer
        elif answer is not None:
            found = link.parse(answer)
            if _is_own(found, owner):
                ends.append(found)
    return ends
