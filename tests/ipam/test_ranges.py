from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, strategies as st

from cnisdk.errors import InvalidConfigError
from cnisdk.ipam.ranges import Pool, Range, RangeSet, Span, check_range_sets, make_range_set, parse_range, pools
from cnisdk.ipam.store import Owner


def one(subnet: str, **keys: str) -> RangeSet:
    return make_range_set([parse_range(subnet, **keys)], 0, "$.ipam.ranges[0]")


def addresses(pool: Pool, cursor: str | None = None) -> list[int]:
    """Everything a pool hands out, in order."""
    spans = pool.from_cursor(ip_address(cursor) if cursor else None)
    return [number for span in spans for number in range(span.first, span.last + 1)]


def shown(pool: Pool, cursor: str | None = None) -> list[str]:
    return [str(IPv4Address(number)) for number in addresses(pool, cursor)]


def test_defaults_in_ipv4() -> None:
    parsed = parse_range("10.1.0.0/16")
    assert (str(parsed.first), str(parsed.last), str(parsed.gateway)) == ("10.1.0.1", "10.1.255.254", "10.1.0.1")


def test_defaults_in_ipv6() -> None:
    parsed = parse_range("2001:db8::/64")
    assert parsed.first == parsed.gateway == IPv6Address("2001:db8::1")
    assert parsed.last == IPv6Address("2001:db8::ffff:ffff:ffff:ffff")


def test_a_large_pool_costs_nothing() -> None:
    (pool,) = pools([one("2001:db8::/32")])
    assert pool.size() == 2**96 - 2  # the network and the gateway


def test_round_robin_order() -> None:
    both = make_range_set([parse_range("10.0.0.0/29"), parse_range("10.0.1.0/29", "10.0.1.3", "10.0.1.4")], 0, "")
    (pool,) = pools([both])
    first, second = [f"10.0.0.{host}" for host in range(2, 7)], ["10.0.1.3", "10.0.1.4"]
    assert shown(pool) == first + second
    assert shown(pool, "10.0.0.4") == [*first[3:], *second, *first[:3]]
    assert shown(pool, "10.0.1.4") == [*first, *second]
    assert shown(pool, "10.0.1.3") == ["10.0.1.4", *first, "10.0.1.3"]
    assert shown(pool, "192.0.2.1") == first + second  # of another configuration


def test_gateways_of_other_sets_are_left_out() -> None:
    sets = [one("10.0.0.0/29", range_end="10.0.0.3"), one("10.0.0.0/29", range_start="10.0.0.4", gateway="10.0.0.2")]
    low, high = pools(sets)
    assert shown(low) == ["10.0.0.3"]
    assert shown(high) == ["10.0.0.4", "10.0.0.5", "10.0.0.6"]


def test_exclusions() -> None:
    parsed = parse_range("10.0.0.0/28", exclude=["10.0.0.4/30", "10.0.0.8 - 10.0.0.9", "10.0.0.13", "10.0.0.5"])
    assert parsed.exclude == (
        Span(int(IPv4Address("10.0.0.4")), int(IPv4Address("10.0.0.9"))),
        Span(int(IPv4Address("10.0.0.13")), int(IPv4Address("10.0.0.13"))),
    )
    (pool,) = pools([make_range_set([parsed], 0, "")])
    assert shown(pool) == [f"10.0.0.{host}" for host in (2, 3, 10, 11, 12, 14)]
    assert shown(pool, "10.0.0.5")[0] == "10.0.0.10"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"subnet": "10.0.0.0/31"}, "Network 10.0.0.0/31 too small to allocate from"),
        ({"subnet": "10.0.0.7/24"}, "For a subnet mask of length 24 the network address is 10.0.0.0"),
        ({"subnet": "::ffff:10.0.0.0/120"}, "IPNet IP and Mask version mismatch"),
        ({"subnet": "10.0.0.0/24", "range_start": "10.0.1.1"}, "RangeStart 10.0.1.1 not in network 10.0.0.0/24"),
        ({"subnet": "10.0.0.0/24", "range_end": "10.0.1.1"}, "RangeEnd 10.0.1.1 not in network 10.0.0.0/24"),
        ({"subnet": "10.0.0.0/24", "range_end": "10.0.0.0"}, "RangeEnd 10.0.0.0 not in network 10.0.0.0/24"),
        ({"subnet": "10.0.0.0/24", "gateway": "10.0.0"}, "invalid IP address: 10.0.0"),
        ({"subnet": "10.0.0.0/255.255.255.0"}, "invalid CIDR address: 10.0.0.0/255.255.255.0"),
        ({"subnet": "fe80::%eth0/64"}, "invalid CIDR address: fe80::%eth0/64"),
    ],
)
def test_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse_range(**keys, path="$.here")
    assert message in caught.value.msg
    assert "$.here." in caught.value.details


def test_overlaps_are_found_among_thousands() -> None:
    sets = [one(f"10.{high}.{low}.0/24") for high in range(20) for low in range(200)]
    check_range_sets(sets)
    with pytest.raises(InvalidConfigError, match="range set 4 overlaps with 4000"):
        check_range_sets([*sets, one("10.0.4.0/25")])


networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 30)).map(lambda p: ip_network((p[0], p[1]), strict=False)),
    st.tuples(st.integers(2**100, 2**128 - 1), st.integers(0, 126)).map(
        lambda p: ip_network((p[0], p[1]), strict=False)
    ),
)


@given(networks, st.data())
def test_what_is_inside(network: object, data: st.DataObject) -> None:
    """Against the standard library's own arithmetic."""
    subnet = ip_network(str(network))
    low, high = int(subnet.network_address), int(subnet.broadcast_address)
    start, end = sorted((data.draw(st.integers(low, high)), data.draw(st.integers(low, high))))
    make = type(subnet.network_address)
    parsed = parse_range(str(subnet), str(make(start)), str(make(end)))
    probe = make(data.draw(st.integers(low, high)))
    assert parsed.holds(probe) == (start <= int(probe) <= end)
    assert parsed.overlaps(parsed)


small = st.integers(1, 62)


@given(
    st.lists(st.tuples(small, small), max_size=4),
    st.lists(small, max_size=3),
    st.one_of(st.none(), small),
    st.tuples(small, small),
)
def test_pools_hand_out_each_address_once(
    holes: list[tuple[int, int]], gateways: list[int], cursor: int | None, ends: tuple[int, int]
) -> None:
    """Against the obvious: a list of all addresses, less those that must not be."""
    first, last = sorted(ends)
    exclude = [f"10.0.0.{min(hole)}-10.0.0.{max(hole)}" for hole in holes]
    parsed = parse_range("10.0.0.0/26", f"10.0.0.{first}", f"10.0.0.{last}", "192.0.2.1", exclude)
    base = int(IPv4Address("10.0.0.0"))
    pool = Pool(RangeSet((parsed,)), frozenset(base + gateway for gateway in gateways))
    excluded = {number for hole in holes for number in range(min(hole), max(hole) + 1)} | set(gateways)
    expected = [base + number for number in range(first, last + 1) if number not in excluded]
    if cursor is not None and first <= cursor <= last:
        at = base + cursor
        expected = [each for each in expected if each > at] + [each for each in expected if each <= at]
    assert addresses(pool, f"10.0.0.{cursor}" if cursor else None) == expected
    assert pool.size() == len(expected)
    for number in range(base, base + 64):
        address = IPv4Address(number)
        assert (parsed.holds(address) and pool.allows(parsed, address)) == (number in expected)


def test_ranges_are_values() -> None:
    assert len({parse_range("10.0.0.0/8"), parse_range("10.0.0.0/8")}) == 1
    assert isinstance(parse_range("10.0.0.0/8"), Range)
    assert str(Owner("abc", "eth0")) == "container abc interface eth0"
