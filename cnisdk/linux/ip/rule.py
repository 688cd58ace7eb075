"""Routing rules (``ip rule``): which table a packet's route is looked up in."""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection

from ..._light import NamedTuple
from ...errors import IOFailureError
from ...spec.addresses import IPAddress, IPNetwork, parse_network
from .. import rtnetlink
from ..attributes import attribute, read, read_text, read_uint, text, uint8, uint32
from ..netns import NetNS
from ..rtnetlink import KernelError, Message
from .route import CANDIDATES, TABLE_MAIN

# linux/fib_rules.h
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
# struct fib_rule_hdr: family, lengths of destination and source, type of service, table, two reserved, action, flags
_FIXED = struct.Struct("=8BI")
_SOURCE_LENGTH = 2  # where that header has it
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK = 1, 2, 3, 6, 10
_FRA_TABLE, _FRA_OIFNAME, _FRA_PROTOCOL = 15, 17, 21
_FRA_SUPPRESS_PREFIXLEN, _FRA_FWMASK = 14, 16
_READ = {_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_OIFNAME, _FRA_PROTOCOL}
_INVERT, _ALL_BITS = 0x2, b"\xff" * 4
_TO_TABLE = 1
_TABLE_COMPAT = 252  # for numbers that do not fit the header's byte
_FAMILIES = {4: 2, 6: 10}
_VERSIONS = {family: version for version, family in _FAMILIES.items()}


class PolicyRule(NamedTuple):
    """A rule that looks routes up in a table.

    Attributes:
        version: 4 or 6.
        table: Number of the table.
        src: Only packets from there; None means from anywhere.
        dst: Only packets to there; None means to anywhere.
        priority: Rules are tried from the lowest on; None lets the kernel put it before all but that for ``local``.
        iif: Only packets that came in on the link of this name; empty means any.
        oif: Only packets of sockets bound to the link of this name; empty means any.
        fwmark: Only packets with this mark; 0 means any.
        protocol: Number of the program that made it, as in ``/etc/iproute2/rt_protos``; 0 means not specified.
        has_more: True if the kernel's rule has more than this tells, such as a port, a user, or ``not``. It holds for
            other packets than one without. None is made with it.
    """

    version: int
    table: int = TABLE_MAIN
    src: IPNetwork | None = None
    dst: IPNetwork | None = None
    priority: int | None = None
    iif: str = ""
    oif: str = ""
    fwmark: int = 0
    protocol: int = 0
    has_more: bool = False

    def __str__(self) -> str:
        """Return the rule for messages: ``from 10.1.0.2/32 lookup 100``."""
        to = f" to {self.dst}" if self.dst is not None else ""
        return f"from {self.src or 'all'}{to} lookup {self.table}"


def list_all(netns: NetNS | None = None) -> list[PolicyRule]:
    """List the rules of a namespace that look up a table, IPv4 first, in the order in which they are tried.

    Args:
        netns: None means the calling thread's namespace.

    Raises:
        KernelError: (5) The kernel refused the query.
    """
    rules = []
    with rtnetlink.connect(netns) as sock:
        for family in _FAMILIES.values():
            request = Message(_GETRULE, _FIXED.pack(family, *[0] * 8), "cannot list rules")
            try:
                rules += [_parse(data) for data in sock.dump(request) if _action(data) == _TO_TABLE]
            except KernelError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # a kernel without IPv6, or without rules
                    raise
    return rules


def list_from(sources: Collection[IPAddress], netns: NetNS | None = None) -> list[PolicyRule]:
    """List the rules for what comes from single addresses, in the order in which they are tried.

    It takes little longer the more other rules there are: they are not decoded.

    Args:
        sources: The addresses.
        netns: None means the calling thread's namespace.

    Raises:
        IOFailureError: (5) There are more than :data:`CANDIDATES`, or the kernel refused the query.
    """
    found: list[PolicyRule] = []
    for version in sorted({each.version for each in sources}):
        wanted = {parse_network(f"{each}/{each.max_prefixlen}") for each in sources if each.version == version}
        packed = {each.network_address.packed for each in wanted}
        length = max(each.prefixlen for each in wanted)
        request = Message(_GETRULE, _FIXED.pack(_FAMILIES[version], *[0] * 8), f"cannot list IPv{version} rules")
        with rtnetlink.connect(netns) as sock:
            for data in sock.scan(request):
                about = data[rtnetlink.HEADER.size + _SOURCE_LENGTH] == length and _action(data) == _TO_TABLE
                if about and any(each in data for each in packed) and (rule := _parse(data)).src in wanted:
                    found.append(rule)
                    if len(found) > CANDIDATES:
                        raise IOFailureError(f"{request.what}: more than {CANDIDATES} are for the addresses looked for")
    return found


def add(rule: PolicyRule, netns: NetNS | None = None) -> None:
    """Add a rule. One that is there already is fine.

    Args:
        rule: The rule.
        netns: None means the calling thread's namespace.

    Raises:
        KernelError: (5) The kernel refused.
    """
    # Without a priority, the kernel gives each a new one, and would have the rule twice.
    if rule.priority is None and any(each._replace(priority=None) == rule for each in list_all(netns)):
        return
    _change(rule, netns, _NEWRULE, f"cannot add rule {rule}", errno.EEXIST)


def delete(rule: PolicyRule, netns: NetNS | None = None) -> None:
    """Delete the first rule with these properties. Absence is fine.

    Args:
        rule: The rule. Without a priority, a rule of any priority.
        netns: None means the calling thread's namespace.

    Raises:
        KernelError: (5) The kernel refused.
    """
    _change(rule, netns, _DELRULE, f"cannot delete rule {rule}", errno.ENOENT)


def _change(rule: PolicyRule, netns: NetNS | None, kind: int, what: str, fine: int) -> None:
    flags = rtnetlink.F_ACK | (rtnetlink.F_CREATE | rtnetlink.F_EXCL if kind == _NEWRULE else 0)
    with rtnetlink.connect(netns) as sock:
        (answer,) = sock.exchange([Message(kind, _encode(rule), what, flags)])
    if isinstance(answer, KernelError) and answer.errno != fine:
        raise answer


def _encode(rule: PolicyRule) -> bytes:
    lengths = [each.prefixlen if each is not None else 0 for each in (rule.dst, rule.src)]
    table = rule.table if rule.table <= 255 else _TABLE_COMPAT
    body = _FIXED.pack(_FAMILIES[rule.version], *lengths, 0, table, 0, 0, _TO_TABLE, 0)
    body += uint32(_FRA_TABLE, rule.table)
    for number, network in ((_FRA_DST, rule.dst), (_FRA_SRC, rule.src)):
        if network is not None:
            body += attribute(number, network.network_address.packed)
    if rule.priority is not None:
        body += uint32(_FRA_PRIORITY, rule.priority)
    for number, name in ((_FRA_IIFNAME, rule.iif), (_FRA_OIFNAME, rule.oif)):
        if name:
            body += text(number, f"{name}\0")
    if rule.fwmark:
        body += uint32(_FRA_FWMARK, rule.fwmark)
    if rule.protocol:
        body += uint8(_FRA_PROTOCOL, rule.protocol)
    return body


def _action(data: bytes) -> int:
    return data[rtnetlink.HEADER.size + 7]


def _parse(data: bytes) -> PolicyRule:
    family, to, source, service, table, _, _, _, flags = _FIXED.unpack_from(data, rtnetlink.HEADER.size)
    found = read(data, rtnetlink.HEADER.size + _FIXED.size)
    more = found.keys() - _READ - {_FRA_SUPPRESS_PREFIXLEN, _FRA_FWMASK}
    suppresses = found.get(_FRA_SUPPRESS_PREFIXLEN, _ALL_BITS) != _ALL_BITS
    masked = found.get(_FRA_FWMASK, _ALL_BITS) != _ALL_BITS
    return PolicyRule(
        version=_VERSIONS[family],
        table=read_uint(found[_FRA_TABLE]) if _FRA_TABLE in found else table,
        src=_network(found.get(_FRA_SRC), source),
        dst=_network(found.get(_FRA_DST), to),
        priority=read_uint(found.get(_FRA_PRIORITY, b"")),
        iif=read_text(found.get(_FRA_IIFNAME, b"")),
        oif=read_text(found.get(_FRA_OIFNAME, b"")),
        fwmark=read_uint(found.get(_FRA_FWMARK, b"")),
        protocol=read_uint(found.get(_FRA_PROTOCOL, b"")),
        has_more=bool(more or service or flags & _INVERT or suppresses or masked),
    )


def _network(address: bytes | None, length: int) -> IPNetwork | None:
    from ipaddress import ip_address

    return None if address is None else parse_network(f"{ip_address(address)}/{length}")
