"""Reading networks, choosing their version, and what plugins are sent."""

import base64
import json
from typing import Any

import pytest

from cnisdk.errors import CNIError, DecodingError, IncompatibleVersionError, InvalidConfigError
from cnisdk.runtime import Network


def parse(document: object, *, path: str = "", single: bool | None = None) -> Network:
    return Network.parse(json.dumps(document).encode(), path=path, single=single)


def plugins(**more: object) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}], **more}


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "kind", "text"),
    [
        (b"", DecodingError, "network configuration /x is empty, expected a JSON document"),
        (b'{"name": "a",}', DecodingError, "network configuration /x is not JSON: "),
        ([], InvalidConfigError, "invalid network configuration /x: $ is an array, expected an object"),
        ({"plugins": []}, InvalidConfigError, "missing network name; /x: $.name"),
        (plugins(name=1), InvalidConfigError, "/x: $.name is 1, expected a string"),
        (plugins(name=""), InvalidConfigError, "missing network name; /x: $.name"),
        (plugins(name="../x"), InvalidConfigError, "invalid characters found in network name '../x'; /x: $.name"),
        (plugins(cniVersion=1), InvalidConfigError, "/x: $.cniVersion is 1, expected a string"),
        (plugins(cniVersion="zzz"), DecodingError, "/x: $.cniVersion: invalid CNI version 'zzz'"),
        (plugins(cniVersion="8.0.0"), IncompatibleVersionError, "/x: $.cniVersion: no version of the specification"),
        (plugins(cniVersions="1.0.0"), InvalidConfigError, "/x: $.cniVersions is '1.0.0', expected an array"),
        (plugins(cniVersions=["1.0.0", 2]), InvalidConfigError, "/x: $.cniVersions[1] is 2, expected a string"),
        (plugins(cniVersions=["x"]), DecodingError, "/x: $.cniVersions: invalid CNI version 'x'"),
        (plugins(disableCheck="maybe"), InvalidConfigError, "/x: $.disableCheck is 'maybe', expected true or false"),
        (plugins(disableGC=0), InvalidConfigError, "/x: $.disableGC is 0, expected true or false"),
        (plugins(loadOnlyInlinedPlugins=1), InvalidConfigError, "/x: $.loadOnlyInlinedPlugins is 1, expected true or"),
        (plugins(plugins={}), InvalidConfigError, "/x: $.plugins is an object, expected an array"),
        (plugins(plugins=["x"]), InvalidConfigError, "/x: $.plugins[0] is 'x', expected an object"),
        (
            plugins(plugins=[{"type": "a"}, {}]),
            InvalidConfigError,
            "/x: $.plugins[1].type is missing, expected a string",
        ),
        (plugins(plugins=[{"type": 1}]), InvalidConfigError, "/x: $.plugins[0].type is 1, expected a string"),
        (
            plugins(plugins=[{"type": "../../sbin/reboot"}]),
            InvalidConfigError,
            "invalid plugin name '../../sbin/reboot'; /x: $.plugins[0].type",
        ),
        (
            plugins(plugins=[{"type": "a", "capabilities": ["ips"]}]),
            InvalidConfigError,
            "/x: $.plugins[0].capabilities is an array, expected an object",
        ),
        (
            plugins(plugins=[{"type": "a", "capabilities": {"ips": "true"}}]),
            InvalidConfigError,
            "/x: $.plugins[0].capabilities.ips is 'true', expected true or false",
        ),
    ],
)
def test_what_is_wrong_is_named_by_file_and_path(document: object, kind: type[CNIError], text: str) -> None:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(kind) as caught:
        Network.parse(data, path="/x")
    assert text in str(caught.value)


def test_a_single_plugin_becomes_a_list_as_the_reference_makes_it() -> None:
    """The bytes are what Go's ConfListFromConf() marshals, and what it would write to the cache."""
    network = Network.parse(b'{"cniVersion":"0.4.0", "type":"bridge","name":"mynet", "mtu": 1400}')
    assert network.source == (
        b'{"cniVersion":"0.4.0","name":"mynet","plugins":'
        b'[{"cniVersion":"0.4.0","mtu":1400,"name":"mynet","type":"bridge"}]}'
    )
    assert [plugin.type for plugin in network.plugins] == ["bridge"]
    assert str(network.version) == "0.4.0"


def test_errors_of_a_single_plugin_have_its_own_paths() -> None:
    with pytest.raises(InvalidConfigError, match=r"/x: \$\.capabilities\.ips is 1"):
        parse({"name": "net", "type": "a", "capabilities": {"ips": 1}}, path="/x", single=True)
    with pytest.raises(InvalidConfigError, match=r"/x: \$\.type is missing"):
        parse({"name": "net"}, path="/x", single=True)


def test_what_belongs_to_the_list_is_read_from_a_single_plugin_too() -> None:
    network = parse(
        {"name": "net", "type": "a", "cniVersions": ["0.3.1", "0.4.0"], "disableCheck": True, "disableGC": "true"}
    )
    assert (str(network.version), network.disable_check, network.disable_gc) == ("0.4.0", True, True)


def test_a_single_plugin_may_have_a_key_plugins_of_its_own() -> None:
    document = {"name": "net", "type": "meta", "plugins": ["its", "own"]}
    (plugin,) = parse(document, single=True).plugins
    assert plugin.document["plugins"] == ["its", "own"]


@pytest.mark.parametrize(
    ("value", "meant"), [(True, True), (False, False), ("true", True), ("TRUE", True), ("False", False)]
)
def test_booleans_may_be_strings(value: object, meant: bool) -> None:
    network = parse(plugins(disableCheck=value, disableGC=value, loadOnlyInlinedPlugins=value))
    assert (network.disable_check, network.disable_gc, network.load_only_inlined_plugins) == (meant, meant, meant)


def test_null_is_absent_here_as_elsewhere() -> None:
    network = parse(plugins(cniVersion=None, cniVersions=None, disableCheck=None, disableGC=None))
    assert (str(network.version), network.disable_check, network.disable_gc) == ("0.1.0", False, False)


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "versions", "chosen"),
    [
        ("1.0.0", None, "1.0.0"),
        ("", None, "0.1.0"),
        (None, None, "0.1.0"),
        ("0.4.0", ["0.3.1", "1.0.0"], "1.0.0"),
        ("1.1.0", ["0.3.1", "1.0.0"], "1.1.0"),
        ("0.4.0", ["1.1.0", "99.0.0"], "1.1.0"),
        ("99.0.0", ["0.4.0", "0.3.1"], "0.4.0"),
        (None, ["0.3.1", "0.4.0"], "0.4.0"),
        ("0.4.0", [], "0.4.0"),
        # Versions that do not exist cannot win, as they can with the reference.
        ("0.4.0", ["0.9.9", "1.0.7"], "0.4.0"),
    ],
)
def test_the_newest_version_that_exists_is_chosen(version: str | None, versions: object, chosen: str) -> None:
    document = plugins()
    del document["cniVersion"]
    if version is not None:
        document["cniVersion"] = version
    if versions is not None:
        document["cniVersions"] = versions
    assert str(parse(document).version) == chosen


# --- requests ---------------------------------------------------------------------------------------------------------


def request(plugin: dict[str, Any], **arguments: Any) -> Any:
    network = parse(plugins(plugins=[plugin]))
    return json.loads(network.request(network.plugins[0], **arguments))


def test_name_and_version_are_the_lists() -> None:
    assert request({"type": "a", "name": "own", "cniVersion": "0.1.0"}) == {
        "type": "a",
        "name": "net",
        "cniVersion": "1.0.0",
    }


def test_a_request_is_sorted_and_compact_as_the_reference_writes_it() -> None:
    network = parse(plugins(plugins=[{"type": "a", "z": {"b": 1, "a": "<&>"}, "ä": None}]))
    assert network.request(network.plugins[0]) == (
        '{"cniVersion":"1.0.0","name":"net","type":"a","z":{"a":"\\u003c\\u0026\\u003e","b":1},"ä":null}'.encode()
    )


def test_unknown_keys_arrive_exactly() -> None:
    """The reference turns the first two into 9007199254740992 and 12345678901234567000."""
    values = {"a": 9007199254740993, "b": 12345678901234567890, "c": 1.0, "d": [None, {"e": "\u2028"}], "f": 1e300}
    assert request({"type": "a", "x": values})["x"] == values


def test_only_declared_and_supplied_capabilities_arrive() -> None:
    plugin: dict[str, Any] = {"type": "a", "capabilities": {"ips": True, "mac": False, "dns": True, "bandwidth": True}}
    given = {"ips": ["10.0.0.1/8"], "mac": "02:00:00:00:00:01", "other": 1, "bandwidth": None}
    made = request(plugin, capability_args=given)
    assert made["runtimeConfig"] == {"ips": ["10.0.0.1/8"]}
    assert "capabilities" not in made


def test_runtime_config_in_the_file() -> None:
    """As with the reference: it stays unless there are capability arguments, which replace it whole."""
    plugin: dict[str, Any] = {"type": "a", "capabilities": {"ips": True}, "runtimeConfig": {"mac": "x"}}
    assert request(plugin)["runtimeConfig"] == {"mac": "x"}
    assert request(plugin, capability_args={"mac": "y"})["runtimeConfig"] == {"mac": "x"}
    assert request(plugin, capability_args={"ips": []})["runtimeConfig"] == {"ips": []}


def test_prev_result_comes_from_the_runtime_alone() -> None:
    plugin: dict[str, Any] = {"type": "a", "prevResult": {"ips": []}}
    assert "prevResult" not in request(plugin)
    assert request(plugin, prev_result={"cniVersion": "1.0.0"})["prevResult"] == {"cniVersion": "1.0.0"}


def test_both_names_of_valid_attachments() -> None:
    made = request({"type": "a"}, valid=[("b", "eth0"), ("a", "eth1"), ("a", "eth1")])
    expected = [{"containerID": "a", "ifname": "eth1"}, {"containerID": "b", "ifname": "eth0"}]
    assert made["cni.dev/valid-attachments"] == made["cni.dev/attachments"] == expected
    assert request({"type": "a"}, valid=[])["cni.dev/attachments"] == []
    assert "cni.dev/attachments" not in request({"type": "a"})


def test_the_source_is_kept_byte_for_byte() -> None:
    data = b'{ "name":"net",\n "cniVersion":"1.0.0", "plugins":[ {"type":"a"} ] }\n'
    assert Network.parse(data).source == data
    assert base64.b64encode(Network.parse(data).source)
