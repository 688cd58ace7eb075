"""Strict JSON in and out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any

import pytest
from attrs import field, frozen, validators
from hypothesis import example, given, strategies as st

from cnisdk import CNIError, DecodingError, InvalidConfigError
from cnisdk.spec import (
    IPAddress,
    IPAMConf,
    NetConf,
    NetConfList,
    RuntimeConfig,
    dumps,
    dumps_compact,
    json_field,
    lazy_field,
    loads,
    structure,
    unstructure,
)
from cnisdk.spec._lenient import structure_leniently
from cnisdk.spec.codec import make_converter


@frozen(kw_only=True)
class Inner:
    address: IPAddress | None = None
    numbers: tuple[int, ...] = ()
    min_id: int | None = json_field("minID", default=None)


class Mine(RuntimeConfig):
    tunnel_id = lazy_field(int, 0, key="tunnelID")


@frozen(kw_only=True)
class MyConf(NetConf):
    runtime_config: Mine = Mine()


@frozen(kw_only=True)
class Conf(NetConf):
    is_gateway: bool = False
    mtu: int | None = None
    ratio: float = 1.0
    inner: Inner = Inner()
    by_name: Mapping[str, Inner] = field(factory=dict)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"isGateway": "false"}, "$.isGateway is 'false', expected true or false"),
        ({"isGateway": 0}, "$.isGateway is 0, expected true or false"),
        ({"mtu": 1.5}, "$.mtu is 1.5, expected an integer"),
        ({"mtu": True}, "$.mtu is true, expected an integer"),
        ({"mtu": "1500"}, "$.mtu is '1500', expected an integer"),
        ({"name": 7}, "$.name is 7, expected a string"),
        ({"ratio": "1"}, "$.ratio is '1', expected a number"),
        ({"inner": []}, "$.inner is an array, expected an object"),
        ({"inner": {"numbers": {}}}, "$.inner.numbers is an object, expected an array"),
        ({"inner": {"numbers": [1, None]}}, "$.inner.numbers[1] is null, expected an integer"),
        ({"inner": {"address": "10.0.0.256"}}, "$.inner.address is '10.0.0.256', expected an IP address"),
        ({"byName": {"a b": {"minID": []}}}, '$.byName["a b"].minID is an array, expected an integer'),
        ({"capabilities": {"mac": "yes"}}, "$.capabilities.mac is 'yes', expected true or false"),
        ({"ipam": "host-local"}, "$.ipam is 'host-local', expected an object"),
        ({"dns": {"search": "example.org"}}, "$.dns.search is 'example.org', expected an array"),
        ({"ISGATEWAY": 1}, "$.ISGATEWAY is 1, expected true or false"),
        ([], "$ is an array, expected an object"),
    ],
)
def test_a_wrong_value_is_named_by_path_value_and_expectation(document: object, message: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        structure(document, Conf)
    assert caught.value.msg == f"invalid network configuration: {message}"


def test_messages_do_not_show_what_objects_hold() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        structure({"mtu": {"token": "s3cr3t"}}, Conf)
    assert "s3cr3t" not in str(caught.value)


def test_keys_match_in_any_case_and_exactly_first() -> None:
    assert structure({"ISGATEWAY": True, "cniversion": "1.0.0"}, Conf).is_gateway
    both = structure({"mtu": 2, "MTU": 1}, Conf)
    assert (both.mtu, both.extra) == (2, {})
    assert structure({"MTU": 1, "mtu": None}, Conf).mtu == 1
    assert structure({"MTU": None, "mtu": None}, Conf) == Conf()
    go = {"runtimeConfig": {"PortMappings": [{"HostPort": 80, "ContainerPort": 8080, "HostIP": ""}]}}
    ours = {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080}]}}
    assert structure(go, Conf) == structure(ours, Conf)


def test_containerd_capability_arguments() -> None:
    """As containerd's CRI sends them: Go's field names, null for what is not set."""
    document = {
        "runtimeConfig": {
            "dns": {"Servers": ["10.0.0.10"], "Searches": None, "Options": None},
            "bandwidth": {"IngressRate": 1, "IngressBurst": 4294967295, "EgressRate": 2, "EgressBurst": 3},
            "io.kubernetes.cri.pod-annotations": None,
        }
    }
    runtime = structure(document, NetConf).runtime_config
    assert runtime.dns is not None
    assert (runtime.dns.servers, runtime.dns.searches) == (("10.0.0.10",), ())
    assert runtime.bandwidth is not None
    assert runtime.bandwidth.ingress_burst == 4294967295


def test_a_capability_can_only_fail_who_uses_it() -> None:
    document: dict[str, Any] = {
        "runtimeConfig": {"ips": [1], "MAC": "0a:00:00:00:00:01", "bandwidth": "much", "x": {}, "dns": None}
    }
    runtime = structure(document, NetConf).runtime_config
    assert (runtime.mac, runtime.dns, runtime.extra) == ("0a:00:00:00:00:01", None, {"x": {}})
    with pytest.raises(InvalidConfigError) as caught:
        _ = runtime.ips
    assert caught.value.msg == "invalid network configuration: $.runtimeConfig.ips[0] is 1, expected a string"
    with pytest.raises(InvalidConfigError, match=r"\$\.runtimeConfig\.bandwidth is 'much', expected an object"):
        _ = runtime.bandwidth


def test_aliases_come_in_two_shapes() -> None:
    """The conventions have an array; Podman sends an object with one for each network."""
    podman = structure({"runtimeConfig": {"aliases": {"web": ["a", "b"], "other": None}}}, NetConf).runtime_config
    assert podman.aliases_in("web") == ("a", "b")
    assert podman.aliases_in("other") == ()
    assert structure({"runtimeConfig": {"aliases": ["c"]}}, NetConf).runtime_config.aliases_in("web") == ("c",)
    assert NetConf().runtime_config.aliases_in("web") == ()
    wrong = structure({"runtimeConfig": {"aliases": {"web": "a"}}}, NetConf).runtime_config
    with pytest.raises(InvalidConfigError, match=r"\$\.runtimeConfig\.aliases\.web is 'a', expected an array"):
        wrong.aliases_in("web")


def test_an_author_adds_a_capability() -> None:
    conf = structure({"runtimeConfig": {"tunnelid": 3, "mac": "x"}}, MyConf)
    assert (conf.runtime_config.tunnel_id, conf.runtime_config.mac) == (3, "x")
    assert unstructure(MyConf(runtime_config=Mine(tunnel_id=4))) == {"runtimeConfig": {"tunnelID": 4}}


def test_null_is_absent_in_an_object_of_values() -> None:
    conf = structure({"capabilities": {"ips": None, "mac": True}}, NetConf)
    assert conf.capabilities == {"mac": True}


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (1e6, "1000000"),
        (1400.0, "1400"),
        (-2.0, "-2"),
        (1.5, "1.5"),
        (1e21, "1e+21"),
        (1e17, "100000000000000000"),
    ],
)
def test_numbers_without_fraction_are_written_as_integers(number: float, written: str) -> None:
    """As the reference's encoder writes them: a plugin in Go takes ``1e+06`` for no integer."""
    conf = NetConf(extra={"mtu": number, "deep": [{"mtu": number}]}, args={"cni": {"mtu": number}})
    assert dumps_compact(conf) == b'{"args":{"cni":{"mtu":%b}},"mtu":%b,"deep":[{"mtu":%b}]}' % (
        (written.encode(),) * 3
    )
    assert f'"mtu": {written}' in dumps({"mtu": number}).decode()


def test_null_is_absent_and_unknown_keys_are_kept() -> None:
    document = {"mtu": None, "isGateway": None, "x-vendor": {"a": None}, "ipam": {"type": "x", "dataDir": "/d"}}
    conf = structure(document, Conf)
    assert (conf.mtu, conf.is_gateway) == (None, False)
    assert conf.extra == {"x-vendor": {"a": None}}
    assert conf.ipam.extra == {"dataDir": "/d"}


def test_empty_text_is_no_address() -> None:
    assert structure({"inner": {"address": ""}}, Conf).inner.address is None


def test_a_list_of_plugins() -> None:
    document = {"cniVersion": "1.1.0", "name": "n", "disableGC": True, "plugins": [{"type": "bridge", "mtu": 1}]}
    network = structure(document, NetConfList)
    assert (network.disable_gc, network.plugins) == (True, ({"type": "bridge", "mtu": 1},))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"{", "at line 1 column 2"),
        (b'{"a', "is not JSON: Unterminated string starting at line 1 column 2"),
        (b"{}x", "Extra data"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"// c\n{}", "is not JSON"),
        (b"\xff", "byte 0 is 0xff"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ["\\ud800"]}', "surrogate"),
        (b'{"\\uDFFF": 1}', "surrogate"),
        (b"[" * 200_000, "nested too deeply"),
        (b"x" * 10_000_000, "line 1 column 1"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the number 99999"),
    ],
)
def test_what_is_no_json_document(data: bytes, message: str) -> None:
    with pytest.raises(DecodingError) as caught:
        loads(data)
    assert caught.value.code == 6
    assert message in caught.value.msg
    assert len(str(caught.value)) < 300


def test_text_is_escaped_as_the_reference_does() -> None:
    assert dumps_compact({"a": "<&>\u2028é\ud800"}) == '{"a":"\\u003c\\u0026\\u003e\\u2028é\ufffd"}'.encode()
    assert dumps({"code": 7, "list": [], "object": {}}) == b'{\n    "code": 7,\n    "list": [],\n    "object": {}\n}'


def test_large_integers_keep_their_value() -> None:
    assert dumps_compact(loads(b'{"n":12345678901234567890}')) == b'{"n":12345678901234567890}'


def test_delete_goes_on_without_what_is_wrong() -> None:
    document = {"name": "n", "mtu": "x", "isGateway": True, "inner": {"numbers": [1, "2", 3]}, "dns": 5}
    conf, problems = structure_leniently(document, Conf)
    assert (conf.mtu, conf.is_gateway, conf.inner.numbers) == (None, True, (1, 3))
    assert [problem.code for problem in problems] == [7, 7, 7]


reads: list[object] = []


def count_reads(value: int) -> int:
    reads.append(value)
    return value


@frozen(kw_only=True)
class Entry:
    port: int = field(converter=count_reads)
    names: tuple[str, ...] = ()


@frozen(kw_only=True)
class Entries(NetConf):
    entries: tuple[Entry, ...] = ()
    groups: tuple[tuple[Entry, ...], ...] = ()
    by_name: Mapping[str, Entry] = field(factory=dict)


def test_delete_reads_each_entry_a_few_times_however_many_are_wrong() -> None:
    good = {"port": 1, "names": ["a", "b"]}
    wrong = [{"port": "80"}, 5, {}, {"port": 2, "names": ["c", 3, "d"]}]
    document: dict[str, Any] = {"name": "n", "entries": [*wrong * 500, good], "groups": [wrong * 500, [good]]}
    document["byName"] = {str(index): entry for index, entry in enumerate([*wrong * 500, good])}
    reads.clear()
    conf, problems = structure_leniently(document, Entries)
    kept = (Entry(port=0), Entry(port=0), Entry(port=2, names=("c", "d"))) * 500
    assert conf.entries == (*kept, Entry(port=1, names=("a", "b")))
    assert conf.groups == (kept, (Entry(port=1, names=("a", "b")),))
    assert tuple(conf.by_name.values()) == conf.entries
    assert len(reads) < 10 * 3000
    texts = [problem.msg for problem in problems]
    assert "$.entries[1996].port is '80'" in " ".join(texts)
    assert "$.groups[0][1999].names[1] is 3" in " ".join(texts)
    assert len(texts) == len(set(texts)) == 3 * 2000


@frozen(kw_only=True)
class Pool:
    """A part of a configuration, with a key that is required."""

    subnet: str
    data_dir: str = "/x"
    size: int = field(default=1, validator=validators.ge(1))
    pair: tuple[int, str] = (0, "")
    pools: tuple[Pool, ...] = ()

    @size.validator
    def _check_size(self, attribute: object, value: int) -> None:
        if self.subnet == "" or (self.subnet == "10.1.0.0/30" and value > 2):
            raise ValueError("the subnet is too small")

    def __attrs_post_init__(self) -> None:
        if self.data_dir == "/forbidden":
            raise ValueError("no such directory is allowed")


@frozen(kw_only=True)
class PoolIPAM(IPAMConf):
    subnet: str
    data_dir: str = "/x"


@frozen(kw_only=True)
class PoolConf(NetConf):
    mtu: int
    ipam: PoolIPAM = PoolIPAM(subnet="")
    pool: Pool | None = None
    needed: Pool
    by_name: Mapping[str, Pool] = field(factory=dict)
    either: Pool | tuple[Pool, ...] | bool = False
    wrapped: Annotated[list[Pool], "doc"] = field(factory=list)


FINE: dict[str, Any] = {"name": "n", "mtu": 1400, "needed": {"subnet": "s"}}
POOL = {"subnet": "", "data_dir": "/mine"}


# what is wrong · where it is · what is kept of it there · messages
WRONG_LEAVES: list[tuple[dict[str, Any], str, dict[str, Any], list[str]]] = [
    (
        {"ipam": {"type": "t", "dataDir": "/mine", "other": 1}},
        "ipam",
        {"type": "t", "subnet": "", "data_dir": "/mine", "extra": {"other": 1}},
        ["$.ipam.subnet is missing, expected a string"],
    ),
    (
        {"ipam": {"type": "t", "subnet": None, "SUBNET": 5, "dataDir": "/mine"}},
        "ipam",
        {"type": "t", "subnet": "", "data_dir": "/mine"},
        ["$.ipam.SUBNET is 5, expected a string"],
    ),
    ({"mtu": "1400"}, "", {"mtu": 0}, ["$.mtu is '1400', expected an integer"]),
    ({"mtu": None}, "", {"mtu": 0}, ["$.mtu is missing, expected an integer"]),
    ({"needed": {"dataDir": "/mine"}}, "needed", POOL, ["$.needed.subnet is missing, expected a string"]),
    ({"needed": None}, "needed", {"subnet": "", "data_dir": "/x"}, ["$.needed is missing, expected a value"]),
    ({"needed": 5}, "needed", {"subnet": "", "data_dir": "/x"}, ["$.needed is 5, expected an object"]),
    ({"pool": {"dataDir": "/mine", "subnet": []}}, "pool", POOL, ["$.pool.subnet is an array, expected a string"]),
    ({"either": {"dataDir": "/mine"}}, "either", POOL, ["$.either.subnet is missing, expected a string"]),
    ({"either": [{"dataDir": "/mine"}, 5]}, "either[0]", POOL, ["$.either[0].subnet is missing", "$.either[1] is 5"]),
    ({"wrapped": [{"dataDir": "/mine"}]}, "wrapped[0]", POOL, ["$.wrapped[0].subnet is missing, expected a string"]),
    ({"byName": {"a": {"dataDir": "/mine"}, "b": 5}}, "by_name['a']", POOL, ["$.byName.a.subnet is", "$.byName.b is"]),
    (
        {"pool": {"subnet": "s", "pools": [{"dataDir": "/mine", "pools": [{"dataDir": "/mine"}]}]}},
        "pool.pools[0].pools[0]",
        POOL,
        ["$.pool.pools[0].pools[0].subnet is missing", "$.pool.pools[0].subnet is missing"],
    ),
    (
        {"pool": {"subnet": "s", "pair": [1, 2], "dataDir": "/mine"}},
        "pool",
        {"subnet": "s", "pair": (1, ""), "data_dir": "/mine"},
        ["$.pool.pair[1] is 2, expected a string"],
    ),
    (  # a validator refuses a value
        {"pool": {"subnet": "s", "size": 0, "dataDir": "/mine"}},
        "pool",
        {"subnet": "s", "size": 1, "data_dir": "/mine"},
        ["$.pool.size is 0: 'size' must be >= 1: 0"],
    ),
    (  # and beside a key that is missing
        {"pool": {"size": 0, "dataDir": "/mine"}},
        "pool",
        {"subnet": "", "size": 1, "data_dir": "/mine"},
        ["$.pool.subnet is missing, expected a string", "$.pool.size is 0: 'size' must be >= 1: 0"],
    ),
    (  # but it says nothing about what stands in for that key
        {"pool": {"size": 9, "dataDir": "/mine"}},
        "pool",
        {"subnet": "", "size": 9, "data_dir": "/mine"},
        ["$.pool.subnet is missing, expected a string"],
    ),
    (  # the class refuses the object as a whole
        {"pool": {"subnet": "s", "dataDir": "/forbidden"}},
        "pool",
        {"subnet": "s", "data_dir": "/forbidden"},
        ["$.pool is an object: no such directory is allowed"],
    ),
]


@pytest.mark.parametrize(("document", "place", "kept", "messages"), WRONG_LEAVES, ids=lambda each: str(each)[:50])
def test_delete_replaces_a_wrong_leaf_alone(
    document: dict[str, Any], place: str, kept: dict[str, Any], messages: list[str]
) -> None:
    conf, problems = structure_leniently({**FINE, **document}, PoolConf)
    there = eval(f"conf.{place}" if place else "conf")
    assert {name: getattr(there, name) for name in kept} == kept
    assert (conf.name, conf.mtu) == ("n", 1400 if place else 0)
    for problem, message in zip(problems, messages, strict=True):
        assert problem.msg.startswith(f"invalid network configuration: {message}")


def test_delete_keeps_what_is_right_in_runtime_config() -> None:
    class Capabilities(RuntimeConfig):
        pools = lazy_field(tuple[Pool, ...], ())
        when = lazy_field(date, date.min)

    converter = make_converter()
    converter.register_structure_hook(date, lambda value, _: date.fromisoformat(value))
    document = {"pools": [{"dataDir": "/mine"}], "aliases": {"web": ["a", 1], "other": 5}, "when": "soon"}
    read = structure(document, Capabilities, path="$.runtimeConfig", converter=converter)
    problems: list[CNIError] = []
    read = read.leniently(problems.append)
    assert [(each.subnet, each.data_dir) for each in read.pools] == [("", "/mine")]
    assert (read.aliases_in("web"), read.aliases_in("other"), read.when) == (("a",), (), date.min)
    assert [problem.msg.removeprefix("invalid network configuration: $.runtimeConfig.") for problem in problems] == [
        "pools[0].subnet is missing, expected a string",
        "aliases.web[1] is 1, expected a string",
        "aliases.other is 5, expected an array",
        "when is 'soon': Invalid isoformat string: 'soon'",
    ]


def test_a_hook_of_the_author_reads_a_part_as_a_whole() -> None:
    converter = make_converter()
    converter.register_structure_hook(Pool, lambda value, _: Pool(subnet=value["net"]))
    document = {**FINE, "needed": {"net": "a"}, "either": [{"net": "b"}, {"subnet": "c"}]}
    conf, problems = structure_leniently(document, PoolConf, converter=converter)
    assert (conf.needed, conf.either) == (Pool(subnet="a"), (Pool(subnet="b"),))
    assert [problem.msg for problem in problems] == [
        "invalid network configuration: $.either[1] is an object: KeyError: 'net'"
    ]


def test_delete_survives_what_is_nested_too_deeply_to_read() -> None:
    deep: dict[str, Any] = {"subnet": "s", "dataDir": 5}
    for _ in range(2000):
        deep = {"subnet": "s", "pools": [deep]}
    conf, problems = structure_leniently({**FINE, "pool": deep}, PoolConf)
    assert (conf.name, conf.mtu) == ("n", 1400)
    assert problems


def test_a_part_is_judged_beside_its_neighbours() -> None:
    """A value that is right in the whole document is not wrong because a part of it lacks a key."""

    @frozen(kw_only=True)
    class Span(NetConf):
        low: int = 0
        high: int = 1
        tags: tuple[str, ...] = ()

        def __attrs_post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low must be at most high")

    conf, problems = structure_leniently({"name": "n", "low": 5, "tags": ["a", 1], "high": 7}, Span)
    assert (conf.low, conf.high, conf.tags) == (5, 7, ("a",))
    assert len(problems) == 1


def test_a_plugin_author_may_postpone_annotations() -> None:
    from tests.spec.postponed import PostponedConf

    assert structure({"size": 3, "inner": {"text": "x"}}, PostponedConf).size == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


# With the same rules as the package's own.
CATTRS = make_converter()


@example({"MTU": [], "mtu": None})
@example({"MTU": None, "mtu": None})
@given(st.dictionaries(st.sampled_from(["name", "mtu", "inner", "dns", "ipam", "MTU", "byName", "x"]), json_values))
def test_any_document_is_structured_or_refused_with_its_path(document: dict[str, Any]) -> None:
    try:
        conf = structure(document, Conf)
    except InvalidConfigError as exc:
        assert "$." in exc.msg  # noqa: PT017 - most documents are fine
        with pytest.raises(InvalidConfigError, match=re.escape(exc.msg)):
            structure(document, Conf, converter=CATTRS)
        return
    again = structure(json.loads(dumps(conf)), Conf)
    assert again == conf
    assert structure(document, Conf, converter=CATTRS) == conf
    assert CATTRS.unstructure(conf) == unstructure(conf)


@given(json_values)
def test_lenient_structuring_never_fails_on_an_object(value: Any) -> None:
    conf, _ = structure_leniently({"name": "n", "mtu": value, "inner": value, "dns": {"search": value}}, Conf)
    assert conf.name == "n"


def test_written_keys_are_those_read() -> None:
    conf = Conf(name="n", is_gateway=True, inner=Inner(min_id=3))
    assert unstructure(conf) == {"name": "n", "isGateway": True, "inner": {"minID": 3}}


@pytest.mark.parametrize("text", ["{", '{"a":', '{"a": 1,}', '"', "[1", "{]", ""])
def test_a_damaged_document_in_a_process_without_the_module_json(text: str) -> None:
    """The scanner in C makes its errors with a module that may not be there."""
    code = f"""
import sys
from cnisdk.spec import codec
assert "json" not in sys.modules
try:
    codec.loads({text.encode()!r})
except codec.CNIError as exc:
    print(exc.code)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "6\n"
