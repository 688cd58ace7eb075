"""Connection tracking: delete flows, which last as long as one of the two ends sends.

The kernel decides at the first packet of a flow how to translate the flow. So a client that sent to a host port before
it was published, or while another container had it, would never reach the container. And a container that went on
sending while the rules that masquerade it were lost would never get an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address

from ...errors import IOFailureError, cause_of
from ...spec.addresses import IPAddress, IPInterface
from .. import attributes
from . import nfnetlink

# linux/netfilter/nfnetlink_conntrack.h
_SUBSYSTEM = 1
_GET, _DELETE = _SUBSYSTEM << 8 | 1, _SUBSYSTEM << 8 | 2
_ORIGINAL, _STATUS, _FILTER, _ID = 1, 3, 25, 12
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE, _DESTINATION = {4: 1, 6: 3}, {4: 2, 6: 4}
_PROTOCOL_NUMBER, _DESTINATION_PORT = 1, 3
_FILTER_ORIGINAL = 1
_BY_SOURCE = 1 << 0
_BY_PROTOCOL_AND_PORT = 1 << 3 | 1 << 5
_UDP = 17
# linux/netfilter/nf_conntrack_common.h
_SEEN_REPLY, _SOURCE_NAT = 1 << 1, 1 << 4


def forget_udp(version: int, ports: Collection[tuple[int, IPAddress | None]]) -> None:
    """Forget the UDP flows to ports of this host. Without ports, none is forgotten.

    Args:
        version: 4 or 6.
        ports: Each with the address that the flow was sent to, None for any.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    family = nfnetlink.FAMILIES[version]
    try:
        for port, address in ports:
            for flow in nfnetlink.dump(_GET, family, _to_port(port)):
                found = attributes.read(flow)
                if _is_to(found.get(_ORIGINAL, b""), version, port, address):
                    _forget(family, found)
    except OSError as exc:
        raise IOFailureError(f"cannot delete UDP flows of published ports: {cause_of(exc)}") from exc


def forget_unanswered(source: IPInterface) -> None:
    """Forget the flows from an address to beyond its network that are not masqueraded, and have had no answer.

    A flow with an answer is left alone: its other end knows the way.

    Args:
        source: The address, with the length of its network's prefix.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    family = nfnetlink.FAMILIES[source.version]
    try:
        # Flows of IPv6 are not asked for by their source: Linux 6.18 lists those from all addresses but this one.
        body = _from_address(source.ip) if source.version == 4 else b""
        for found in nfnetlink.select(_GET, family, body, attributes.read, [source.ip.packed]):
            parts = attributes.read(attributes.read(found.get(_ORIGINAL, b"")).get(_TUPLE_IP, b""))
            status = int.from_bytes(found.get(_STATUS, b""), "big")
            if (
                parts.get(_SOURCE[source.version]) == source.ip.packed
                and ip_address(parts.get(_DESTINATION[source.version], source.ip.packed)) not in source.network
                and not status & (_SEEN_REPLY | _SOURCE_NAT)
            ):
                _forget(family, found)
    except OSError as exc:
        if exc.errno not in nfnetlink.ABSENT:
            raise IOFailureError(f"cannot delete flows from {source.ip}: {cause_of(exc)}") from exc


def _forget(family: int, flow: Mapping[int, bytes]) -> None:
    # The whole flow, by its tuple and its number: a request without a tuple would forget all flows.
    body = attributes.attribute(_ORIGINAL | nfnetlink.NESTED, flow[_ORIGINAL])
    nfnetlink.ask([(_DELETE, 0, family, body + attributes.attribute(_ID, flow[_ID]))])


# The kernel lists only the flows that these attributes ask for. Kernels before 5.8 ignore them, and list all.


def _from_address(address: IPAddress) -> bytes:
    where = attributes.attribute(
        _TUPLE_IP | nfnetlink.NESTED, attributes.attribute(_SOURCE[address.version], address.packed)
    )
    return attributes.attribute(_ORIGINAL | nfnetlink.NESTED, where) + attributes.attribute(
        _FILTER | nfnetlink.NESTED, attributes.uint32(_FILTER_ORIGINAL, _BY_SOURCE)
    )


def _to_port(port: int) -> bytes:
    protocol = attributes.attribute(
        _TUPLE_PROTOCOL | nfnetlink.NESTED,
        attributes.uint8(_PROTOCOL_NUMBER, _UDP),
        attributes.attribute(_DESTINATION_PORT, port.to_bytes(2, "big")),
    )
    return attributes.attribute(_ORIGINAL | nfnetlink.NESTED, protocol) + attributes.attribute(
        _FILTER | nfnetlink.NESTED, attributes.uint32(_FILTER_ORIGINAL, _BY_PROTOCOL_AND_PORT)
    )


def _is_to(tuple_: bytes, version: int, port: int, address: IPAddress | None) -> bool:
    parts = attributes.read(tuple_)
    protocol = attributes.read(parts.get(_TUPLE_PROTOCOL, b""))
    sent_to = attributes.read(parts.get(_TUPLE_IP, b"")).get(_DESTINATION[version])
    return (
        protocol.get(_PROTOCOL_NUMBER) == bytes([_UDP])
        and protocol.get(_DESTINATION_PORT) == port.to_bytes(2, "big")
        and (address is None or sent_to == address.packed)
    )
