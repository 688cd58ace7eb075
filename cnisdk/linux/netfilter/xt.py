"""Matches and targets of iptables as the kernel has them (``linux/netfilter/xt_*.h``, ``linux/netfilter/nf_nat.h``)."""

from __future__ import annotations

import struct
from ipaddress import ip_address

_PAIR = struct.Struct("=II")
# Where the two ends of the range of destination ports are, in the host's byte order.
_DESTINATION_PORTS = {"tcp": 4, "udp": 4, "sctp": 0}
_MULTIPORT = struct.Struct("=BB15H15BB")
_MULTIPORT_DESTINATION = 1
# struct xt_conntrack_mtinfo3: what is looked at, what is inverted, and the states, after addresses and ports.
_CONNTRACK, _CONNTRACK_OFFSET = struct.Struct("=HHH"), 146
_CONNTRACK_STATE = 1
_STATES = {0x4: "RELATED", 0x2: "ESTABLISHED"}


def read_ports(name: str, info: bytes) -> tuple[int, ...]:
    """Return the destination ports that a match is for; none if it is not about single destination ports.

    Args:
        name: Name of the match (xt_tcpudp, xt_multiport).
        info: Its data, as the kernel has it in ``struct xt_entry_match``.
    """
    if name == "multiport" and len(info) >= _MULTIPORT.size:
        flags, count, *rest = _MULTIPORT.unpack_from(info)
        ports, ranges, inverted = rest[:15], rest[15:30], rest[30]
        return tuple(ports[:count]) if (flags, any(ranges), inverted) == (_MULTIPORT_DESTINATION, False, 0) else ()
    if name in _DESTINATION_PORTS and len(info) >= 8:
        first, last = struct.unpack_from("=HH", info, _DESTINATION_PORTS[name])
        return (first,) if first == last else ()
    return ()


def read_states(name: str, info: bytes) -> str:
    """Return the states that a match is for, in the notation of ``--ctstate``; empty if it looks at anything else.

    Args:
        name: Name of the match (xt_conntrack).
        info: Its data, as the kernel has it in ``struct xt_entry_match``.
    """
    if name != "conntrack" or len(info) < _CONNTRACK.size + _CONNTRACK_OFFSET:
        return ""
    looked_at, inverted, states = _CONNTRACK.unpack_from(info, _CONNTRACK_OFFSET)
    if (looked_at, inverted) != (_CONNTRACK_STATE, 0):
        return ""
    return ",".join(state for bit, state in _STATES.items() if states & bit) if not states & ~sum(_STATES) else ""


def read_target(name: str, info: bytes) -> str:
    """Return a target with what counts of its options, in the notation of ``iptables -S``; or its name alone.

    Args:
        name: Name of the target.
        info: Its data, as the kernel has it in ``struct xt_entry_target``.
    """
    if name == "MASQUERADE":
        return "masquerade"
    if name in ("MARK", "CONNMARK") and len(info) >= _PAIR.size:
        mark, mask = _PAIR.unpack_from(info)
        return f"{name} {mark:#x}/{mask:#x}"
    if name == "DNAT":
        return f"{name} {_read_range(info)}"
    return name


def _read_range(info: bytes) -> str:
    """Read ``struct nf_nat_range2`` or ``nf_nat_range``, or the older one of IPv4, which is shorter."""
    if len(info) < 40:
        start, size, ports = 8, 4, 16
    else:
        start, ports = 4, 36
        size = 16 if any(info[8:20]) else 4
    address = ip_address(info[start : start + size])
    port = int.from_bytes(info[ports : ports + 2], "big")
    return f"[{address}]:{port}" if size == 16 else f"{address}:{port}"
