"""Strict JSON in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from attrs import field, frozen
from hypothesis import example, given, strategies as st

from cnisdk import DecodingError, InvalidConfigError
from cnisdk.spec import (
    IPAddress,
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
from cnisdk.spec.lenient import structure_leniently


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
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
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


def test_delete_reads_each_wrong_entry_a_few_times_however_many_there_are() -> None:
    good = {"port": 1, "names": ["a", "b"]}
    wrong = [{"port": "80"}, 5, {}, {"port": 2, "names": ["c", 3, "d"]}]
    document = {"name": "n", "entries": [*wrong * 500, good], "groups": [wrong * 500, [good]]}
    reads.clear()
    conf, problems = structure_leniently(document, Entries)
    kept = (*[Entry(port=2, names=("c", "d"))] * 500,)
    assert conf.entries == (*kept, Entry(port=1, names=("a", "b")))
    assert conf.groups == (kept, (Entry(port=1, names=("a", "b")),))
    assert len(reads) < 10 * 2000
    texts = [problem.msg for problem in problems]
    assert "$.entries[1996].port is '80'" in " ".join(texts)
    assert "$.groups[0][1999].names[1] is 3" in " ".join(texts)
    assert len(texts) == len(set(texts))


def test_a_part_is_judged_beside_its_neighbours() -> None:
    """What is right in the whole document is not wrong for what a part of it lacks."""

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


@example({"MTU": [], "mtu": None})
@example({"MTU": None, "mtu": None})
@given(st.dictionaries(st.sampled_from(["name", "mtu", "inner", "dns", "ipam", "MTU", "byName", "x"]), json_values))
def test_any_document_is_structured_or_refused_with_its_path(document: dict[str, Any]) -> None:
    try:
        conf = structure(document, Conf)
    except InvalidConfigError as exc:
        assert "$." in exc.msg  # noqa: PT017 - most documents are fine
        return
    again = structure(json.loads(dumps(conf)), Conf)
    assert again == conf


@given(json_values)
def test_lenient_structuring_never_fails_on_an_object(value: Any) -> None:
    conf, _ = structure_leniently({"name": "n", "mtu": value, "inner": value, "dns": {"search": value}}, Conf)
    assert conf.name == "n"


def test_written_keys_are_those_read() -> None:
    conf = Conf(name="n", is_gateway=True, inner=Inner(min_id=3))
    assert unstructure(conf) == {"name": "n", "isGateway": True, "inner": {"minID": 3}}
