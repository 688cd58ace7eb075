"""Connection tracking: delete UDP flows, which last as long as one of the two ends sends.

The kernel decides at the first packet of a flow how to translate the flow. So a client that sent to a host port before
it was published, or while another container had it, would never reach the container.
"""

from __future__ import annotations

from collections.abc import Collection

from ...errors import IOFailureError, cause_of
from ...spec.addresses import IPAddress
from .. import attributes
from . import nfnetlink

# linux/netfilter/nfnetlink_conntrack.h
_SUBSYSTEM = 1
_GET, _DELETE = _SUBSYSTEM << 8 | 1, _SUBSYSTEM << 8 | 2
_ORIGINAL, _FILTER, _ID = 1, 25, 12
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_DESTINATION = {4: 2, 6: 4}
_PROTOCOL_NUMBER, _DESTINATION_PORT = 1, 3
_FILTER_ORIGINAL = 1
_BY_PROTOCOL_AND_PORT = 1 << 3 | 1 << 5
_UDP = 17


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
            for flow in nfnetlink.dump(_GET, family, _filter(port)):
                found = attributes.read(flow)
                if _is_to(found.get(_ORIGINAL, b""), version, port, address):
                    # The whole flow, by its tuple and its number: a request without a tuple would forget all flows.
                    body = attributes.attribute(_ORIGINAL | nfnetlink.NESTED, found[_ORIGINAL])
                    nfnetlink.ask([(_DELETE, 0, family, body + attributes.attribute(_ID, found[_ID]))])
    except OSError as exc:
        raise IOFailureError(f"cannot delete UDP flows of published ports: {cause_of(exc)}") from exc


def _filter(port: int) -> bytes:
    """Return the attributes that ask for the flows of one port only. Kernels before 5.8 ignore them, and list all."""
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
