"""Results of every version: their bytes, and the way from any to any."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, strategies as st

from cnisdk import DecodingError, IncompatibleVersionError
from cnisdk.spec import (
    DNS,
    Interface,
    IPConfig,
    Result,
    Route,
    SpecVersion,
    convert_result,
    loads,
    parse_result,
    print_result,
    upgrade,
)
from cnisdk.spec.convert import CONVERTERS, SHAPES, structure_result
from cnisdk.spec.older_results import Result100
from cnisdk.spec.versions import ALL

# A full result of each version, as the reference's type tests have it: two addresses, two routes, name resolution,
# interface index 0.
FULL_020 = b"""{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "1.2.3.30/24",
        "gateway": "1.2.3.1",
        "routes": [
            {
                "dst": "15.5.6.0/24",
                "gw": "15.5.6.8"
            }
        ]
    },
    "ip6": {
        "ip": "abcd:1234:ffff::cdde/64",
        "gateway": "abcd:1234:ffff::1",
        "routes": [
            {
                "dst": "1111:dddd::/80",
                "gw": "1111:dddd::aaaa"
            }
        ]
    },
    "dns": {
        "nameservers": [
            "1.2.3.4",
            "1::cafe"
        ],
        "domain": "acompany.com",
        "search": [
            "somedomain.com",
            "otherdomain.net"
        ],
        "options": [
            "foo",
            "bar"
        ]
    }
}"""
FULL_040 = b"""{
    "cniVersion": "0.4.0",
    "interfaces": [
        {
            "name": "eth0",
            "mac": "00:11:22:33:44:55",
            "sandbox": "/proc/3553/ns/net"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 0,
            "address": "1.2.3.30/24",
            "gateway": "1.2.3.1"
        },
        {
            "version": "6",
            "interface": 0,
            "address": "abcd:1234:ffff::cdde/64",
            "gateway": "abcd:1234:ffff::1"
        }
    ],
    "routes": [
        {
            "dst": "15.5.6.0/24",
            "gw": "15.5.6.8"
        },
        {
            "dst": "1111:dddd::/80",
            "gw": "1111:dddd::aaaa"
        }
    ],
    "dns": {
        "nameservers": [
            "1.2.3.4",
            "1::cafe"
        ],
        "domain": "acompany.com",
        "search": [
            "somedomain.com",
            "otherdomain.net"
        ],
        "options": [
            "foo",
            "bar"
        ]
    }
}"""
FULL_110 = b"""{
    "cniVersion": "1.1.0",
    "dns": {
        "domain": "acompany.com",
        "nameservers": [
            "1.2.3.4"
        ]
    },
    "interfaces": [
        {
            "mac": "00:11:22:33:44:55",
            "mtu": 1500,
            "name": "eth0",
            "pciID": "8086:9a01",
            "sandbox": "/proc/3553/ns/net",
            "socketPath": "/path/to/vhost/fd"
        }
    ],
    "ips": [
        {
            "address": "1.2.3.30/24",
            "gateway": "1.2.3.1",
            "interface": 0
        }
    ],
    "routes": [
        {
            "advmss": 1400,
            "dst": "15.5.6.0/24",
            "gw": "15.5.6.8",
            "mtu": 1450,
            "priority": 10,
            "scope": 0,
            "table": 100
        }
    ]
}"""


@pytest.mark.parametrize("text", [FULL_020, FULL_040, FULL_110, FULL_040.replace(b"0.4.0", b"0.3.1")])
def test_a_full_result_keeps_its_bytes(text: bytes) -> None:
    assert print_result(parse_result(text)) == text


def test_from_040_to_020_and_back() -> None:
    down = convert_result(parse_result(FULL_040), SpecVersion(0, 2, 0))
    assert print_result(down.result) == FULL_020
    assert [lost.path for lost in down.lost] == ["$.interfaces[0]", "$.ips[0].interface", "$.ips[1].interface"]
    up = loads(print_result(convert_result(down.result, SpecVersion(0, 4, 0)).result))
    expected = loads(FULL_040)
    del expected["interfaces"]
    for ip in expected["ips"]:
        del ip["interface"]
    assert up == expected


def test_the_mtu_of_an_interface_is_typed_in_1_0_0_as_in_1_1_0() -> None:
    """As the reference has it, whose type is the same for both; the specification has the key since 1.1.0."""
    document = loads(FULL_110)
    old = structure_result({**document, "cniVersion": "1.0.0"})
    assert isinstance(old, Result100)
    assert (old.interfaces[0].mtu, old.interfaces[0].extra) == (1500, {})
    assert print_result(upgrade(old)) == FULL_110
    down = convert_result(parse_result(FULL_110), SpecVersion(1, 0, 0))
    assert down.lost == ()
    assert loads(print_result(down.result))["interfaces"] == document["interfaces"]


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_null_entries_are_no_entries(version: str) -> None:
    """As the reference's library prints a nil pointer in a slice."""
    ip = {"address": "192.0.2.2/24", "version": "4"}
    result = upgrade(
        structure_result(
            {
                "cniVersion": version,
                "Interfaces": [None, {"name": "a"}, None, {"name": "b"}],
                "ips": [None, {**ip, "interface": 3}, {**ip, "interface": 0}, {**ip, "Interface": 7}, None],
                "routes": [None, {"dst": "0.0.0.0/0"}],
            }
        )
    )
    assert [each.name for each in result.interfaces] == ["a", "b"]
    assert [each.interface for each in result.ips] == [1, None, 7]
    assert len(result.routes) == 1


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_null_routes_of_a_family_are_no_routes(version: str) -> None:
    result = upgrade(
        structure_result(
            {"cniVersion": version, "ip4": {"ip": "192.0.2.2/24", "routes": [None, {"dst": "0.0.0.0/0"}]}, "ip6": None}
        )
    )
    assert len(result.routes) == 1


@pytest.mark.parametrize("version", [str(version) for version in ALL])
def test_gateways_of_a_route_are_handed_on(version: str) -> None:
    """The key ``gws`` is in no version of the specification; some plugins use it for several next hops."""
    gws = [{"gw": "192.0.2.1", "weight": 1}]
    route = {"dst": "0.0.0.0/0", "gws": gws}
    ips = {"ip4": {"ip": "192.0.2.2/24", "routes": [route]}} if version < "0.3" else {"routes": [route]}
    result = upgrade(structure_result({"cniVersion": version, **ips}))
    ip = IPConfig(address=IPv4Interface("192.0.2.2/24"))
    printed = loads(print_result(convert_result(evolve(result, ips=(ip,)), SpecVersion.parse(version)).result))
    routes = printed["ip4"]["routes"] if version < "0.3" else printed["routes"]
    assert routes == [route]


def test_what_0_4_0_cannot_hold_is_told() -> None:
    conversion = convert_result(parse_result(FULL_110), SpecVersion(0, 4, 0))
    assert [str(lost) for lost in conversion.lost] == [
        "$.interfaces[0].mtu (1500)",
        "$.interfaces[0].socketPath (/path/to/vhost/fd)",
        "$.interfaces[0].pciID (8086:9a01)",
    ]
    document = loads(print_result(conversion.result))
    assert document["interfaces"] == [
        {"name": "eth0", "mac": "00:11:22:33:44:55", "sandbox": "/proc/3553/ns/net"},
    ]


def test_an_empty_result_of_each_version() -> None:
    printed = {str(version): print_result(convert_result(Result(), version).result).decode() for version in ALL}
    for version in ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"):
        assert printed[version] == f'{{\n    "cniVersion": "{version}",\n    "dns": {{}}\n}}'
    assert printed["1.1.0"] == '{\n    "cniVersion": "1.1.0"\n}'


def test_every_pair_of_versions_has_a_converter() -> None:
    shapes = set(SHAPES.values())
    assert set(CONVERTERS) == {(source, target) for source in shapes for target in shapes}
    assert set(SHAPES) == set(ALL)


def test_second_addresses_and_lone_routes_are_lost_before_0_3_0() -> None:
    result = Result(
        ips=(IPConfig(address=IPv4Interface("10.0.0.2/24")), IPConfig(address=IPv4Interface("10.0.1.2/24"))),
        routes=(Route(dst=IPv6Network("::/0")), Route(dst=IPv4Network("0.0.0.0/0"), mtu=1400, table=0)),
    )
    lost = convert_result(result, SpecVersion(0, 1, 0)).lost
    assert [each.path for each in lost] == ["$.ips[1]", "$.routes[0]", "$.routes[1].mtu", "$.routes[1].table"]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b'{"cniVersion": "1.2.0"}', IncompatibleVersionError, 'unsupported CNI result version "1.2.0"'),
        (b'{"cniVersion": "one"}', DecodingError, "invalid CNI version 'one'"),
        (b'{"cniVersion": "1.0.0", "ips": [{}]}', DecodingError, "$.ips[0].address is missing"),
        (b'{"cniVersion": "1.0.0", "ips": [{"address": "1.2.3.4"}]}', DecodingError, "with its prefix length"),
        (b'{"cniVersion": "0.4.0", "routes": [{"gw": "1.2.3.4"}]}', DecodingError, "$.routes[0].dst is missing"),
        (b'{"cniVersion": "1.1.0", "routes": [{"dst": "::/0", "mtu": -1}]}', DecodingError, "$.routes[0]"),
        (
            b'{"cniVersion": "1.1.0", "routes": [{"dst": "::/0", "scope": 300}]}',
            DecodingError,
            "scope is 300, expected 0 to 255",
        ),
        (b"[]", DecodingError, "$ is an array, expected an object"),
        (b"null", DecodingError, "$ is null, expected an object"),
        (b"log line\n{}", DecodingError, "is not JSON"),
    ],
)
def test_what_is_no_result(data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_result(data)
    assert message in str(caught.value)


def test_a_result_without_version_has_the_one_of_the_configuration() -> None:
    assert parse_result(b'{"ips":[{"address":"10.0.0.2/24"}]}', "1.0.0").cni_version == "1.0.0"
    assert parse_result(b'{"cniVersion":"","ip4":{"ip":"10.0.0.2/24"}}').cni_version == "0.1.0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("::ffff:1.2.3.4/120", "1.2.3.4/24"), ("10.1.2.3/024", "10.1.2.3/24"), ("2001:DB8:0::1/64", "2001:db8::1/64")],
)
def test_addresses_are_written_canonically(text: str, expected: str) -> None:
    result = upgrade(parse_result(b'{"cniVersion":"1.0.0","ips":[{"address":"%s"}]}' % text.encode()))
    assert str(result.ips[0].address) == expected


@pytest.mark.parametrize(
    "text", ["10.1.2.3", "10.1.2.3/255.255.255.0", "10.1.2.3/33", "fe80::1%eth0/64", "10.1.2.3/+24", ""]
)
def test_what_is_no_address_with_prefix_length(text: str) -> None:
    with pytest.raises(DecodingError):
        parse_result(b'{"cniVersion":"1.0.0","ips":[{"address":"%s"}]}' % text.encode())


unknown = st.dictionaries(st.sampled_from(["x-a", "x-b"]), st.integers() | st.text(), max_size=1)
interfaces4 = st.builds(IPv4Interface, st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)))
interfaces6 = st.builds(
    IPv6Interface,
    st.tuples(st.integers(2**120, 2**128 - 1), st.integers(0, 128)),
)
ips = st.builds(
    IPConfig,
    interface=st.none() | st.integers(0, 3),
    address=interfaces4 | interfaces6,
    gateway=st.none() | st.builds(IPv4Address, st.integers(0, 2**32 - 1)) | st.builds(IPv6Address, st.integers(2**120)),
    extra=unknown,
)
routes = st.builds(
    Route,
    dst=interfaces4.map(lambda each: each.network) | interfaces6.map(lambda each: each.network),
    mtu=st.integers(0, 9000),
    table=st.none() | st.integers(0, 300),
    extra=unknown,
)
words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
results = st.builds(
    Result,
    interfaces=st.lists(
        st.builds(Interface, name=words, mac=words, mtu=st.integers(0, 9000), extra=unknown), max_size=3
    ).map(tuple),
    ips=st.lists(ips, max_size=4).map(tuple),
    routes=st.lists(routes, max_size=4).map(tuple),
    dns=st.builds(DNS, nameservers=st.lists(words, max_size=2).map(tuple), domain=words),
    extra=unknown,
)


@given(results, st.sampled_from(ALL))
def test_text_and_type_agree(result: Result, version: SpecVersion) -> None:
    converted = convert_result(result, version).result
    assert converted.cni_version == str(version)
    assert parse_result(print_result(converted)) == converted


def by_family(result: Result) -> Result:
    """Results of 0.2.0 hold one address of each family, in no order: IPv4 comes first when they are read."""
    return evolve(
        result,
        ips=tuple(sorted(result.ips, key=lambda ip: ip.address.version)),
        routes=tuple(sorted(result.routes, key=lambda route: route.dst.version)),
    )


@given(results, st.sampled_from(ALL), st.sampled_from(ALL))
def test_nothing_is_lost_silently(result: Result, first: SpecVersion, second: SpecVersion) -> None:
    down = convert_result(result, first)
    if not down.lost:
        assert by_family(upgrade(down.result)) == by_family(result)
    over = convert_result(down.result, second)
    if not over.lost and SHAPES[first] is not SHAPES[second]:
        back = convert_result(over.result, first).result
        assert by_family(upgrade(back)) == by_family(upgrade(down.result))


@given(results)
def test_up_and_down_is_the_identity(result: Result) -> None:
    old: Any = convert_result(result, SpecVersion(0, 3, 1)).result
    for version in (SpecVersion(1, 0, 0), SpecVersion(1, 1, 0)):
        up = convert_result(old, version)
        assert not up.lost
        assert convert_result(up.result, SpecVersion(0, 3, 1)).result == old
