"""Ports of the host that lead to a container: the types that plugins and both backends use."""

from __future__ import annotations

from collections.abc import Iterable

from ..._light import NamedTuple
from ...errors import TryAgainLaterError
from ...spec.addresses import IPAddress, IPInterface
from ...spec.names import Attachment

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
"""Numbers of the protocols that have ports."""


CONNECTION_MARK = 0x2000
"""Bit of the connection mark of what came through a host port, for the rule that accepts it."""


class HostPort(NamedTuple):
    """A port of the host that leads to a port of a container, for one IP version.

    Attributes:
        protocol: ``tcp``, ``udp`` or ``sctp``.
        port: Port of the host.
        host_ip: Address of the host; None means all of them.
        target: Address of the container, with the length of its network's prefix.
        target_port: Port of the container.
    """

    protocol: str
    port: int
    host_ip: IPAddress | None
    target: IPInterface
    target_port: int

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.target.version

    @property
    def destination(self) -> str:
        """Address and port of the container, as a URL has them."""
        ip = f"[{self.target.ip}]" if self.version == 6 else str(self.target.ip)
        return f"{ip}:{self.target_port}"

    def __str__(self) -> str:
        where = f" of {self.host_ip}" if self.host_ip is not None else ""
        return f"port {self.port}/{self.protocol}{where}"

    def overlaps(self, protocol: str, port: int, host_ip: IPAddress | None) -> bool:
        """Return True if a packet could be sent to this port and to another.

        Args:
            protocol: Protocol of the other.
            port: Number of the other.
            host_ip: Address of the host that the other is for; None means all of them.
        """
        return (self.protocol, self.port) == (protocol, port) and (
            self.host_ip is None or host_ip is None or self.host_ip == host_ip
        )


class Options(NamedTuple):
    """Settings for all published ports of an attachment.

    Attributes:
        snat: Masquerade what would not come back otherwise: what comes from the container's own network or localhost.
        masq_all: Masquerade everything.
        conditions: Further conditions, in the backend's language.
        mark_bit: Number of the bit of a packet's mark that asks iptables to masquerade it.
        mark_chain: Chain of iptables that sets a mark to that end; empty means our own.
    """

    snat: bool = True
    masq_all: bool = False
    conditions: tuple[str, ...] = ()
    mark_bit: int = 13
    mark_chain: str = ""


def is_same_container(mark: str, owner: Attachment, limit: int) -> bool:
    """Return True if a mark, cut to `limit` bytes, is of any attachment of the owner's container.

    Args:
        mark: The comment of a rule.
        owner: The attachment.
        limit: Bytes at which the mark was cut.
    """
    _, _, container_id = mark.partition(", id: ")
    return bool(container_id) and (
        container_id == owner.container_id
        or (len(mark.encode()) >= limit and owner.container_id.startswith(container_id))
    )


def taken(wanted: HostPort, holder: str) -> TryAgainLaterError:
    """Make the error for a port that another container has.

    Args:
        wanted: The port.
        holder: The comment that names its owner.
    """
    _, _, names = holder.partition(", net: ")
    network, _, rest = names.partition(", if: ")
    ifname, _, container_id = rest.partition(", id: ")
    shown = f"container {container_id}" if container_id else holder
    details = f"network {network}, interface {ifname}" if network else ""
    return TryAgainLaterError(f"{wanted} of the host is taken by {shown}", details=details)


def udp_ports(ports: Iterable[HostPort]) -> list[tuple[int, IPAddress | None]]:
    """Return the UDP ports among these, for :func:`.conntrack.forget_udp`."""
    return [(each.port, each.host_ip) for each in ports if each.protocol == "udp"]
