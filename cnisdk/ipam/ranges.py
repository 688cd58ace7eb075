"""Ranges of addresses, as integers: a /8 and a /64 cost what a /30 costs.

The rules and their order are those of the reference's host-local; so are the texts, with the JSON path added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Network
from itertools import pairwise

from .._light import NamedTuple
from ..errors import CNIError, InvalidConfigError
from ..spec.addresses import IPAddress, IPNetwork, parse_address, parse_interface
from ..spec.names import shorten

# The reference refuses prefixes longer than this many bits less than the address has: in a /31 nothing is left
# besides the network and the gateway.
_SPARE_BITS = 2


class Span(NamedTuple):
    """The addresses from ``first`` to ``last``, both included, as integers."""

    first: int
    last: int


class Range(NamedTuple):
    """Addresses of one subnet that may be handed out.

    Attributes:
        subnet: The network, whose prefix length the leased addresses get.
        first: The lowest address.
        last: The highest address.
        gateway: The gateway of the containers; never handed out. It may lie outside the subnet.
        exclude: Addresses between ``first`` and ``last`` that are never handed out.
    """

    subnet: IPNetwork
    first: IPAddress
    last: IPAddress
    gateway: IPAddress
    exclude: tuple[Span, ...] = ()

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.subnet.version

    def holds(self, address: IPAddress) -> bool:
        """Return True if the address lies between the ends."""
        return address.version == self.version and int(self.first) <= int(address) <= int(self.last)

    def overlaps(self, other: Range) -> bool:
        """Return True if an address lies between the ends of both."""
        return (
            self.version == other.version and int(self.first) <= int(other.last) and int(other.first) <= int(self.last)
        )

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class RangeSet(NamedTuple):
    """Alternatives of one address family: an attachment gets one address of each set.

    Attributes:
        ranges: In the order they are used up; at least one, none overlapping another.
        path: Where in the configuration the set stands, for messages.
    """

    ranges: tuple[Range, ...]
    path: str = "$.ipam.ranges"

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.ranges[0].version

    def find(self, address: IPAddress) -> Range | None:
        """Return the range the address lies in; None when it lies in none."""
        return next((each for each in self.ranges if each.holds(address)), None)

    def holds(self, address: IPAddress) -> bool:
        """Return True if the address lies in one of the ranges."""
        return self.find(address) is not None

    def overlaps(self, other: RangeSet) -> bool:
        """Return True if a range of one overlaps a range of the other."""
        return any(mine.overlaps(theirs) for mine in self.ranges for theirs in other.ranges)

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))


class Pool(NamedTuple):
    """The addresses of a range set that can be handed out: its ranges without gateways and exclusions.

    Attributes:
        range_set: The set.
        forbidden: Addresses in the set that no attachment gets, as integers: the gateways of all ranges of the network.
    """

    range_set: RangeSet
    forbidden: frozenset[int]

    def spans(self, part: Range, first: int, last: int) -> Iterator[Span]:
        """Yield the addresses to hand out between two of a range, both included, in ascending order.

        Args:
            part: One of the set's ranges.
            first: The first address, as a number.
            last: The last address, as a number.
        """
        holes = [Span(hole, hole) for hole in self.forbidden if first <= hole <= last]
        holes += (hole for hole in part.exclude if hole.first <= last and hole.last >= first)
        for hole in sorted(holes, key=lambda hole: hole.first):
            if hole.first > first:
                yield Span(first, hole.first - 1)
            first = max(first, hole.last + 1)
        if first <= last:
            yield Span(first, last)

    def allows(self, part: Range, address: IPAddress) -> bool:
        """Return True if an address of a range is neither forbidden nor excluded.

        Args:
            part: One of the set's ranges.
            address: An address of it.
        """
        return any(self.spans(part, int(address), int(address)))

    def from_cursor(self, cursor: IPAddress | None) -> Iterator[Span]:
        """Yield all addresses to hand out, round robin: those after the cursor first, the cursor itself last.

        A cursor outside the set, or None, means from the beginning.
        """
        ranges = self.range_set.ranges
        start = self.range_set.find(cursor) if cursor is not None else None
        if cursor is None or start is None:
            for part in ranges:
                yield from self.spans(part, int(part.first), int(part.last))
            return
        at = ranges.index(start)
        yield from self.spans(start, int(cursor) + 1, int(start.last))
        for part in (*ranges[at + 1 :], *ranges[:at]):
            yield from self.spans(part, int(part.first), int(part.last))
        yield from self.spans(start, int(start.first), int(cursor))

    def size(self) -> int:
        """Count the addresses to hand out."""
        return sum(
            span.last - span.first + 1
            for part in self.range_set.ranges
            for span in self.spans(part, int(part.first), int(part.last))
        )


def pools(range_sets: Sequence[RangeSet]) -> tuple[Pool, ...]:
    """Make a pool of each set, without the gateways of all sets: ranges of one subnet may each have their own."""
    from bisect import bisect_left, bisect_right

    gateways: dict[int, list[int]] = {4: [], 6: []}
    for range_set in range_sets:
        for part in range_set.ranges:
            gateways[part.gateway.version].append(int(part.gateway))
    for numbers in gateways.values():
        numbers.sort()
    made = []
    for range_set in range_sets:
        numbers = gateways[range_set.version]
        inside: set[int] = set()
        for part in range_set.ranges:  # by bisection: there may be thousands of sets
            inside.update(numbers[bisect_left(numbers, int(part.first)) : bisect_right(numbers, int(part.last))])
        made.append(Pool(range_set, frozenset(inside)))
    return tuple(made)


def _invalid(text: str, path: str, value: object, expected: str) -> InvalidConfigError:
    return InvalidConfigError(text, details=f"{path} is {shorten(value)}, expected {expected}")


def _address(text: str, path: str) -> IPAddress:
    try:
        return parse_address(text)
    except ValueError as exc:
        raise _invalid(f"invalid IP address: {text}", path, text, "an IP address") from exc


@lru_cache(maxsize=64)
def parse_subnet(text: str, path: str = "$.ipam.subnet") -> IPNetwork:
    """Read a subnet to hand out addresses of. The requests of a worker name the same ones again and again.

    Args:
        text: The network, such as ``10.1.2.0/24``.
        path: JSON path of the value, for the error's message.

    Raises:
        InvalidConfigError: (7) It is no network, has host bits, or is too small.
    """
    if not text:
        raise _invalid("missing subnet", path, text, 'a network with its prefix length, such as "10.1.2.0/24"')
    try:
        interface = parse_interface(text)
    except ValueError as exc:
        raise _invalid(f"invalid CIDR address: {text}", path, text, 'a network such as "10.1.2.0/24"') from exc
    network = interface.network
    if (":" in text) != (network.version == 6):
        raise _invalid("IPNet IP and Mask version mismatch", path, text, f"the IPv4 network without mapping, {network}")
    longest = network.max_prefixlen - _SPARE_BITS
    if network.prefixlen > longest:
        raise _invalid(f"Network {network} too small to allocate from", path, text, f"a prefix of at most /{longest}")
    if interface.ip != network.network_address:
        raise _invalid(
            "Network has host bits set. For a subnet mask of length "
            f"{network.prefixlen} the network address is {network.network_address}",
            path,
            text,
            str(network),
        )
    return network


def parse_exclusion(text: str, subnet: IPNetwork, path: str) -> Span:
    """Read addresses that are not to be handed out: an address, ``first-last``, or a network.

    Args:
        text: The text.
        subnet: The subnet that the addresses are of.
        path: JSON path of the value, for the error's message.

    Raises:
        InvalidConfigError: (7) It is none of these, or has nothing in common with the subnet.
    """
    expected = f'an address, a range "first-last" or a network inside {subnet}'
    first, dash, last = text.partition("-")
    try:
        if dash:
            low, high = parse_address(first.strip()), parse_address(last.strip())
        elif "/" in text:
            network = parse_interface(text).network
            low, high = network.network_address, network.broadcast_address
        else:
            low = high = parse_address(text)
    except ValueError as exc:
        raise _invalid(f"invalid exclusion: {text}", path, text, expected) from exc
    if low.version != high.version or low.version != subnet.version or int(low) > int(high):
        raise _invalid(f"invalid exclusion: {text}", path, text, expected)
    if int(high) < int(subnet.network_address) or int(low) > int(subnet.broadcast_address):
        raise _invalid(f"exclusion {text} not in network {subnet}", path, text, expected)
    return Span(int(low), int(high))


def parse_range(
    subnet: str,
    range_start: str = "",
    range_end: str = "",
    gateway: str = "",
    exclude: Iterable[str] = (),
    *,
    path: str = "$.ipam",
) -> Range:
    """Read a range from the texts of its keys; an empty one means its default.

    The gateway is by default the address after the network's, as is the start; the end is the last address, in IPv4
    the one before the broadcast address. Given explicitly, the network and the broadcast address are handed out too.

    Args:
        subnet: ``"10.1.2.0/24"``.
        range_start: Lowest address.
        range_end: Highest address.
        gateway: Need not lie in the subnet.
        exclude: Each an address, ``first-last``, or a network.
        path: Where in the configuration the range stands, for messages.

    Raises:
        InvalidConfigError: (7) A text is not an address or network, or lies outside of the subnet.
    """
    network = parse_subnet(subnet, f"{path}.subnet")
    base = network.network_address
    parsed_gateway = _address(gateway, f"{path}.gateway") if gateway else base + 1
    last = network.broadcast_address - 1 if isinstance(network, IPv4Network) else network.broadcast_address
    first = base + 1
    if range_end:
        last = _address(range_end, f"{path}.rangeEnd")
        if last not in network:
            raise _outside("RangeEnd", last, network, f"{path}.rangeEnd", range_end)
    if range_start:
        first = _address(range_start, f"{path}.rangeStart")
        if first not in network or int(first) > int(last):
            raise _outside("RangeStart", first, network, f"{path}.rangeStart", range_start)
    elif int(first) > int(last):  # only an explicit end can be so low
        raise _outside("RangeEnd", last, network, f"{path}.rangeEnd", range_end)
    spans = tuple(parse_exclusion(text, network, f"{path}.exclude[{index}]") for index, text in enumerate(exclude))
    return Range(subnet=network, first=first, last=last, gateway=parsed_gateway, exclude=_merged(spans))


def _outside(what: str, address: IPAddress, network: IPNetwork, path: str, text: str) -> CNIError:
    return _invalid(
        f"{what} {address} not in network {network}",
        path,
        text,
        f"an address of {network}, the start not after the end",
    )


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sort spans, and merge those that overlap or touch."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: span.first):
        if merged and span.first <= merged[-1].last + 1:
            merged[-1] = Span(merged[-1].first, max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return tuple(merged)


def make_range_set(ranges: Sequence[Range], index: int, path: str) -> RangeSet:
    """Make a range set of alternatives.

    Args:
        ranges: The alternatives.
        index: Which set of the network this is, for messages.
        path: Where in the configuration it stands, for messages.

    Raises:
        InvalidConfigError: (7) There is none, they are of two families, or two overlap.
    """
    prefix = f"invalid range set {index}: "
    if not ranges:
        raise _invalid(f"{prefix}empty range set", path, [], "at least one range")
    if len({each.version for each in ranges}) > 1:
        raise InvalidConfigError(
            f"{prefix}mixed address families", details=f"{path}: all ranges of a set must be IPv4, or all IPv6"
        )
    _refuse_overlaps(ranges, prefix, path)
    return RangeSet(tuple(ranges), path)


def _refuse_overlaps(ranges: Sequence[Range], prefix: str, path: str) -> None:
    """Refuse ranges that overlap. If any two do, so do two neighbours in ascending order."""
    ordered: list[Range] = sorted(ranges, key=lambda each: int(each.first))
    for low, high in pairwise(ordered):
        if low.overlaps(high):
            raise InvalidConfigError(
                f"{prefix}subnets {low} and {high} overlap", details=f"{path}: the ranges of a set must be disjoint"
            )


def check_range_sets(range_sets: Sequence[RangeSet]) -> None:
    """Check that no two sets of a network share an address.

    Raises:
        InvalidConfigError: (7) There is no set, or two overlap.
    """
    if not range_sets:
        raise InvalidConfigError("no IP ranges specified", details="$.ipam.subnet and $.ipam.ranges are missing")
    # Sorted by first address, so that networks of thousands of sets do not cost millions of comparisons.
    for version in (4, 6):
        owners = sorted(
            (int(part.first), int(part.last), index)
            for index, range_set in enumerate(range_sets)
            for part in range_set.ranges
            if part.version == version
        )
        for (_, last, one), (first, _, other) in pairwise(owners):
            if first <= last:
                one, other = sorted((one, other))
                raise InvalidConfigError(
                    f"range set {one} overlaps with {other}",
                    details=f"{range_sets[one].path} ({range_sets[one]}) and "
                    f"{range_sets[other].path} ({range_sets[other]}) must be disjoint",
                )
