"""Rules of a container's chain for host ports in iptables: as they are written, and as the kernel shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network

from ..._light import NamedTuple
from ...spec.addresses import parse_interface
from .. import attributes
from . import iptables, xt, xt_rules
from .hostport import PROTOCOLS, HostPort, Options
from .nft import Match, Rule

SETMARK = "CNI-HOSTPORT-SETMARK"
"""Chain that marks what must be masqueraded."""

_PORTS_AT_ONCE = 15  # of xt_multiport
_META_L4PROTO = "meta 16"
_IPV4_PROTOCOL = 9  # offset in the header


class ShownRule(NamedTuple):
    """A rule in normal form: rules that do the same are equal, whichever program and options made them."""

    protocol: int
    ports: frozenset[int]
    others: frozenset[Match]
    verdict: str


def show(rule: Rule) -> ShownRule:
    """Bring a rule into normal form."""
    protocol, ports, others = 0, frozenset[int](), set()
    for each in rule.matches:
        if each.what == _META_L4PROTO or (
            each.what == "network" and (each.offset, len(each.value)) == (_IPV4_PROTOCOL, 1)
        ):
            protocol = each.value[0]
        elif each.what == "transport" and each.offset == 2:
            ports = frozenset([int.from_bytes(each.value, "big")])
        elif each.what == iptables.PORTS:
            ports = frozenset(int.from_bytes(each.value[at : at + 2], "big") for at in range(0, len(each.value), 2))
        elif found := _read_match(each):
            ports = frozenset(found)
        else:
            others.add(each)
    return ShownRule(protocol, ports, frozenset(others), rule.verdict)


def _read_match(each: Match) -> tuple[int, ...]:
    if each.what != "match":
        return ()
    parts = attributes.read(each.value)
    return xt.read_ports(attributes.read_text(parts[1]), parts.get(3, b""))


class PortRule(NamedTuple):
    """A rule of an attachment's chain.

    Attributes:
        port: The port that it is about.
        source: Network from which it takes packets, to mark them; empty for one that translates.
        mark_chain: The chain that marks them.
    """

    port: HostPort
    source: str = ""
    mark_chain: str = ""

    @property
    def text(self) -> str:
        """The rule as ``iptables-restore`` reads it."""
        port = self.port
        text = f"-p {port.protocol} --dport {port.port}" + (f" -d {port.host_ip}" if port.host_ip is not None else "")
        if self.source:
            return f"{text} -s {self.source} -j {self.mark_chain}"
        return f"{text} -j DNAT --to-destination {port.destination}"

    @property
    def shown(self) -> ShownRule:
        """The rule as the kernel shows it."""
        port, conditions = self.port, set()
        if port.host_ip is not None:
            conditions.add(iptables.match_address(port.version, "-d", str(port.host_ip)))
        if self.source and not self.source.endswith("/0"):
            conditions.add(iptables.match_address(port.version, "-s", self.source))
        verdict = f"jump {self.mark_chain}" if self.source else f"DNAT {port.destination}"
        return ShownRule(PROTOCOLS[port.protocol], frozenset([port.port]), frozenset(conditions), verdict)

    def written(self, chain: str) -> xt_rules.IptablesRule:
        """Return the rule as netlink adds it to a chain."""
        port = self.port
        action = xt_rules.jump(self.mark_chain) if self.source else xt_rules.translate(port.target.ip, port.target_port)
        protocol, source = PROTOCOLS[port.protocol], ip_network(self.source) if self.source else None
        return xt_rules.IptablesRule(
            chain, xt_rules.to_port(protocol, port.port, port.host_ip, source, action), protocol
        )


def wanted_rules(ports: Iterable[HostPort], options: Options) -> Iterator[PortRule]:
    """Yield the rules of an attachment's chain.

    Args:
        ports: Ports of one IP version.
        options: How they lead to the container.
    """
    for port in ports:
        for source in _masqueraded(port, options):
            yield PortRule(port, source, options.mark_chain or SETMARK)
        yield PortRule(port)


def _masqueraded(port: HostPort, options: Options) -> list[str]:
    """List the sources whose packets are masqueraded."""
    if not options.snat:
        return []
    if options.masq_all:
        return ["0.0.0.0/0" if port.version == 4 else "::/0"]
    return [str(port.target.network), *(["127.0.0.1"] if port.version == 4 else [])]


def group_ports(listed: Iterable[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    """Group ports by protocol, as many as a rule can have."""
    by_protocol: dict[str, list[int]] = {}
    for protocol, port in listed:
        by_protocol.setdefault(protocol, []).append(port)
    return [
        (protocol, ports[start : start + _PORTS_AT_ONCE])
        for protocol, ports in sorted(by_protocol.items())
        for start in range(0, len(ports), _PORTS_AT_ONCE)
    ]


def read_port(rule: Rule) -> HostPort | None:
    """Return the port that a rule translates; None if it does something else."""
    shown = show(rule)
    protocol = next((name for name, number in PROTOCOLS.items() if number == shown.protocol), "")
    if not shown.verdict.startswith("DNAT ") or not protocol or len(shown.ports) != 1:
        return None
    address, _, port = shown.verdict.removeprefix("DNAT ").rpartition(":")
    target = parse_interface(f"{address.strip('[]')}/{128 if address.startswith('[') else 32}")
    host_ip = next((ip_address(each.value) for each in shown.others if each.what == "network"), None)
    return HostPort(protocol, min(shown.ports), host_ip, target, int(port))
