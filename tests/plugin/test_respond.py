"""The path from environment and bytes to reply: no I/O, every verb, every way it can be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Interface
from typing import Any, ClassVar

import pytest
from attrs import field, frozen
from hypothesis import given, strategies as st

from cnisdk import (
    AddRequest,
    CheckRequest,
    CNIError,
    DelRequest,
    GCRequest,
    Interface,
    IPConfig,
    NetConf,
    Plugin,
    Result,
    StatusRequest,
)
from cnisdk.linux.links.link import LinkNotFoundError
from cnisdk.linux.rtnetlink import KernelError
from cnisdk.linux.sysctl import SysctlError
from cnisdk.plugin import Reply, respond
from cnisdk.plugin.request import REQUIRED_VARIABLES
from cnisdk.spec import RuntimeConfig, SpecVersion, Verb
from cnisdk.spec.versions import ALL


@frozen(kw_only=True)
class Conf(NetConf):
    size: int = 0


class Recorder(Plugin[Conf]):
    """Remembers what it was asked."""

    seen: ClassVar[list[Any]] = []

    def add(self, request: AddRequest[Conf]) -> Result:
        self.seen.append(request)
        request.undo(self.seen.append, "undone first")
        request.undo(self.seen.append, "undone last")
        if request.conf.size < 0:
            raise CNIError("too small", details="size", code=142)
        if request.conf.size > 100:
            raise ValueError("too large")
        address = IPConfig(address=IPv4Interface("10.0.0.2/24"))
        return Result(ips=(address,)).with_interfaces(Interface(name=request.ifname, sandbox=request.netns, mtu=1500))

    def delete(self, request: DelRequest[Conf]) -> None:
        self.seen.append(request)

    def check(self, request: CheckRequest[Conf]) -> None:
        self.seen.append(request)

    def gc(self, request: GCRequest[Conf]) -> None:
        self.seen.append(request)

    def status(self, request: StatusRequest[Conf]) -> None:
        self.seen.append(request)


class Minimal(Plugin[Conf]):
    def add(self, request: AddRequest[Conf]) -> Result:
        return Result()

    def delete(self, request: DelRequest[Conf]) -> None:
        pass


@frozen(kw_only=True)
class Part:
    width: int = 0
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class NestedConf(Conf):
    parts: tuple[tuple[Part, ...], ...] = ()


class Nested(Plugin[NestedConf]):
    def add(self, request: AddRequest[NestedConf]) -> Result:
        return Result()

    def delete(self, request: DelRequest[NestedConf]) -> None:
        pass


@pytest.fixture(autouse=True)
def seen() -> list[Any]:
    Recorder.seen.clear()
    return Recorder.seen


def environ(command: str, **changes: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    } | changes


def config(version: object = "1.1.0", **keys: object) -> bytes:
    return json.dumps({"cniVersion": version, "name": "net", "type": "recorder"} | keys).encode()


def failure(reply: Reply) -> dict[str, Any]:
    assert reply.status == 1
    document = json.loads(reply.stdout)
    assert list(document)[:3] == ["cniVersion", "code", "msg"]
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("version", [str(version) for version in ALL])
def test_add_answers_in_the_version_of_the_configuration(version: str) -> None:
    reply = respond(Recorder, environ("ADD"), config(version))
    document = json.loads(reply.stdout)
    assert reply.status == 0
    assert document["cniVersion"] == version
    if version < "0.3":
        assert document["ip4"] == {"ip": "10.0.0.2/24"}
    else:
        assert document["ips"][0]["interface"] == 0
        assert document["ips"][0].get("version") == ("4" if version < "1" else None)
        assert document["interfaces"][0].get("mtu") == (1500 if version == "1.1.0" else None)


@pytest.mark.parametrize("command", ["DEL", "CHECK", "STATUS"])
def test_verbs_without_result_print_nothing(command: str, seen: list[Any]) -> None:
    reply = respond(Recorder, environ(command), config())
    assert reply[:3] == (b"", 0, "")
    assert seen[0].verb == command


def test_version_needs_nothing_else() -> None:
    reply = respond(Recorder, {"CNI_COMMAND": "VERSION"}, b"")
    assert reply.stdout == (
        b'{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}\n'
    )
    assert reply.status == 0


# Written out, not taken from the code: spec §2, "CNI operations".
REQUIRED = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "GC": {"CNI_PATH"},
    "STATUS": set[str](),
    "VERSION": set[str](),
}


@pytest.mark.parametrize("command", list(Verb))
@pytest.mark.parametrize("gone", ["", None])
@pytest.mark.parametrize("name", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"])
def test_each_missing_variable(command: str, name: str, gone: str | None, seen: list[Any]) -> None:
    variables = environ(command)
    variables.pop(name, None)
    if gone is not None:
        variables[name] = gone
    reply = respond(Recorder, variables, config("1.1.0", **{"cni.dev/valid-attachments": []}))
    if name in REQUIRED[command]:
        error = failure(reply)
        assert (error["code"], error["msg"]) == (4, f"required env variables [{name}] missing")
        assert not seen
    else:
        assert reply.status == 0


def test_all_missing_variables_are_named() -> None:
    error = failure(respond(Recorder, {"CNI_COMMAND": "ADD"}, config()))
    assert error["msg"] == "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing"
    assert set(REQUIRED_VARIABLES) == set(Verb)


@pytest.mark.parametrize("command", ["", "add", "NOPE", "ADD "])
def test_unknown_verbs(command: str) -> None:
    error = failure(respond(Recorder, environ(command), config()))
    assert error["code"] == 4
    assert "CNI_COMMAND" in error["msg"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_CONTAINERID", "../../etc"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_CONTAINERID", "-rf"),
        ("CNI_IFNAME", "0123456789abcdef"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_ARGS", "IgnoreUnknown"),
    ],
)
def test_malformed_variables(name: str, value: str, seen: list[Any]) -> None:
    error = failure(respond(Recorder, environ("ADD", **{name: value}), config()))
    assert error["code"] == 4
    assert name in error["msg"]
    assert not seen


@pytest.mark.parametrize(
    ("stdin", "code", "message"),
    [
        (b"", 6, "is empty"),
        (b"{", 6, "is not JSON"),
        (b"x" * 10_000_000, 6, "is not JSON"),
        (b"[]", 7, "expected an object"),
        (b"{}", 7, "missing network name"),
        (config(name=""), 7, "missing network name"),
        (config(name="a/b"), 7, "network name"),
        (config(name=5), 7, "$.name is 5, expected a string"),
        (config(version="1.2.0"), 1, "incompatible CNI versions"),
        (config(cniVersion=1), 7, "$.cniVersion is 1, expected a string"),
        (config(size="3"), 7, "$.size is '3', expected an integer"),
        (config(prevResult=[]), 7, "$.prevResult is an array, expected an object"),
        (config(prevResult={"ips": [{"address": 1}]}), 6, "$.prevResult.ips[0].address is 1"),
    ],
)
def test_malformed_configurations(stdin: bytes, code: int, message: str, seen: list[Any]) -> None:
    error = failure(respond(Recorder, environ("ADD"), stdin))
    assert error["code"] == code
    assert message in error["msg"]
    assert not seen


@pytest.mark.parametrize(
    ("command", "version"),
    [("CHECK", "0.3.1"), ("CHECK", ""), ("GC", "1.0.0"), ("STATUS", "1.0.0"), ("STATUS", "0.4.0")],
)
def test_verbs_a_version_does_not_know(command: str, version: str, seen: list[Any]) -> None:
    error = failure(respond(Recorder, environ(command), config(version)))
    assert (error["code"], error["msg"]) == (1, f"config version does not allow {command}")
    assert not seen


def test_a_plugin_may_support_fewer_versions() -> None:
    class Old(Minimal):
        supported_versions = (SpecVersion(0, 3, 1), SpecVersion(0, 4, 0))

    assert b'["0.3.1","0.4.0"]' in respond(Old, {"CNI_COMMAND": "VERSION"}, b"").stdout
    error = failure(respond(Old, environ("ADD"), config("1.0.0")))
    assert error["details"] == 'config is "1.0.0", plugin supports ["0.3.1" "0.4.0"]'


def test_a_plugin_without_status_knows_of_nothing_that_keeps_it_from_serving() -> None:
    assert respond(Minimal, environ("STATUS"), config("1.1.0"))[:2] == (b"", 0)


def test_a_failing_handler_is_undone_in_reverse(seen: list[Any]) -> None:
    error = failure(respond(Recorder, environ("ADD"), config(size=-1)))
    assert (error["code"], error["msg"], error["details"]) == (142, "too small", "size")
    assert seen[1:] == ["undone last", "undone first"]


def test_a_bug_is_code_999_and_its_traceback_is_for_people(seen: list[Any]) -> None:
    reply = respond(Recorder, environ("ADD"), config(size=101))
    assert failure(reply)["code"] == 999
    assert failure(reply)["msg"] == "ValueError: too large"
    assert "Traceback" in reply.stderr
    assert seen[1:] == ["undone last", "undone first"]


def test_a_successful_add_can_still_be_taken_back(seen: list[Any]) -> None:
    reply = respond(Recorder, environ("ADD"), config())
    assert len(seen) == 1
    assert reply.undo.unwind() == []
    assert seen[1:] == ["undone last", "undone first"]


@pytest.mark.parametrize(
    "error",
    [KernelError("cannot set link eth0 up", 19), LinkNotFoundError("eth0"), SysctlError("no"), TypeError("late")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_any_class_is_told_where_undoing_fails_too(error: Exception) -> None:
    class Clumsy(Minimal):
        def add(self, request: AddRequest[Conf]) -> Result:
            request.undo(int, "no number")
            raise error

    told = failure(respond(Clumsy, environ("ADD"), config()))
    assert told["code"] == (999 if isinstance(error, TypeError) else 5)
    assert "cleaning up failed too: invalid literal" in told["details"]


def test_failures_while_undoing_are_reported_and_do_not_stop_it(seen: list[Any]) -> None:
    class Clumsy(Minimal):
        def add(self, request: AddRequest[Conf]) -> Result:
            request.undo(seen.append, "undone")
            request.undo(int, "no number")
            raise CNIError("failed", code=100)

    error = failure(respond(Clumsy, environ("ADD"), config()))
    assert error["details"].startswith("cleaning up failed too: invalid literal")
    assert seen == ["undone"]


def test_delete_works_with_a_configuration_that_became_invalid(seen: list[Any]) -> None:
    reply = respond(Recorder, environ("DEL", CNI_NETNS=""), config(size="x", prevResult={"ips": 3}))
    assert reply.status == 0
    assert "$.size is 'x'" in reply.stderr
    assert (seen[0].conf.size, seen[0].prev_result) == (0, None)


class UsesIPs(Minimal):
    def add(self, request: AddRequest[Conf]) -> Result:
        assert request.conf.runtime_config.ips is not None
        return Result()

    def delete(self, request: DelRequest[Conf]) -> None:
        assert request.conf.runtime_config.ips == ()


def test_a_wrong_capability_argument_fails_only_the_plugin_that_uses_it() -> None:
    """Podman sends ``aliases`` as an object, which is no list of names."""
    runtime_config = {"aliases": {"web": ["db"]}, "ips": {"web": ["192.0.2.2"]}}
    assert respond(Minimal, environ("ADD"), config(runtimeConfig=runtime_config)).status == 0
    error = failure(respond(UsesIPs, environ("ADD"), config(runtimeConfig=runtime_config)))
    assert error["code"] == 7
    assert "$.runtimeConfig.ips is an object, expected an array" in error["msg"]


def test_a_wrong_capability_argument_does_not_keep_delete_from_working() -> None:
    reply = respond(UsesIPs, environ("DEL"), config(runtimeConfig={"ips": 5}))
    assert reply.status == 0
    assert "$.runtimeConfig.ips is 5, expected an array" in reply.stderr


def test_a_delete_leaves_no_trace_in_the_defaults_of_later_requests() -> None:
    """A resident worker serves many requests with one configuration class."""

    @frozen(kw_only=True)
    class Odd(Conf):
        runtime_config: RuntimeConfig = RuntimeConfig(ips=5)

    served: list[DelRequest[Odd]] = []

    class HasOddDefault(Plugin[Odd]):
        def add(self, request: AddRequest[Odd]) -> Result:
            assert request.conf.runtime_config.ips is not None
            return Result()

        def delete(self, request: DelRequest[Odd]) -> None:
            assert request.conf.runtime_config.ips == ()
            served.append(request)

    for _ in range(2):
        reply = respond(HasOddDefault, environ("DEL"), config())
        assert (reply.status, reply.stderr.count("$.runtimeConfig.ips is 5")) == (0, 1)
    assert [len(each.problems) for each in served] == [1, 1]
    assert failure(respond(HasOddDefault, environ("ADD"), config()))["code"] == 7


def test_requests_do_not_share_the_objects_of_absent_keys() -> None:
    one, other = NetConf(name="n"), NetConf(name="n")
    assert one == other
    assert one.runtime_config is not other.runtime_config
    assert one.ipam.extra is not other.ipam.extra
    assert one.dns.extra is not other.dns.extra


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_an_ordinary_add_of_an_old_version_says_nothing_on_stderr(version: str) -> None:
    reply = respond(Recorder, environ("ADD"), config(version))
    assert (reply.status, reply.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variables", "stdin", "version"),
    [
        ({}, config("0.4.0"), "0.4.0"),
        ({"CNI_COMMAND": "NOPE"}, config("0.3.1"), "0.3.1"),
        ({"CNI_COMMAND": "ADD"}, b'{"CNIVersion":"0.2.0"}', "0.2.0"),
        ({"CNI_COMMAND": "ADD"}, b"{}", "0.1.0"),
        (environ("ADD"), b'{"cniVersion": "1.0.0", "name": "net",}', "1.0.0"),
        (environ("ADD"), config("1.0.0", name="/"), "1.0.0"),
        (environ("CHECK"), config("0.3.0"), "0.3.0"),
        (environ("ADD"), config("7.0.0"), "1.1.0"),
        (environ("ADD"), b"nothing", "1.1.0"),
        (environ("ADD"), b"[]", "1.1.0"),
    ],
)
def test_an_error_before_the_configuration_is_read_has_its_version(
    variables: dict[str, str], stdin: bytes, version: str
) -> None:
    assert failure(respond(Recorder, variables, stdin))["cniVersion"] == version


def test_the_previous_result_comes_in_the_current_shape(seen: list[Any]) -> None:
    old = {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.7/24"}}
    respond(Recorder, environ("CHECK"), config("0.4.0", prevResult=old))
    assert seen[0].prev_result.ips == (IPConfig(address=IPv4Interface("10.0.0.7/24")),)


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_accepts_both_keys(key: str, seen: list[Any]) -> None:
    entries = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]
    assert respond(Recorder, environ("GC"), config("1.1.0", **{key: entries})).status == 0
    assert {(each.container_id, each.ifname) for each in seen[0].valid_attachments} == {("a", "eth0"), ("b", "eth1")}
    assert {each.network for each in seen[0].valid_attachments} == {"net"}


def test_gc_never_guesses_what_is_valid(seen: list[Any]) -> None:
    error = failure(respond(Recorder, environ("GC"), config()))
    assert error["code"] == 7
    malformed = config("1.1.0", **{"cni.dev/valid-attachments": [{"containerID": "a"}]})
    error = failure(respond(Recorder, environ("GC"), malformed))
    assert '$["cni.dev/valid-attachments"][0].ifname is missing' in error["msg"]
    assert not seen
    # The reference's runtime library writes an empty list as null.
    assert respond(Recorder, environ("GC"), config("1.1.0", **{"cni.dev/valid-attachments": None})).status == 0


def test_the_guard_is_asked_before_any_work(seen: list[Any]) -> None:
    def guard(request: Any) -> None:
        raise CNIError("no", code=8)

    assert failure(respond(Recorder, environ("ADD"), config(), guard=guard))["code"] == 8
    assert not seen


@given(st.dictionaries(st.sampled_from([*environ("ADD"), "CNI_ARGS"]), st.text(max_size=20)), st.binary(max_size=100))
def test_any_input_gives_exactly_one_document_or_nothing(variables: dict[str, str], stdin: bytes) -> None:
    reply = respond(Recorder, environ("ADD") | variables, stdin)
    if reply.status == 0:
        assert reply.stdout == b"" or json.loads(reply.stdout)
    else:
        assert failure(reply)["code"] in (1, 4, 6, 7)


@pytest.mark.parametrize("value", [{}, "", False, 0, "x", 7, [None], [[]]])
def test_gc_with_a_malformed_list_removes_nothing(value: object, seen: list[Any]) -> None:
    error = failure(respond(Recorder, environ("GC"), config("1.1.0", **{"cni.dev/valid-attachments": value})))
    assert error["code"] == 7
    assert 'cni.dev/valid-attachments"]' in error["msg"]
    assert not seen


def test_gc_matches_its_key_in_any_case(seen: list[Any]) -> None:
    assert respond(Recorder, environ("GC"), config("1.1.0", **{"CNI.dev/Valid-Attachments": []})).status == 0
    assert len(seen) == 1


def test_a_key_that_looks_misspelt_is_named_once_and_is_no_error() -> None:
    keys = {"sise": 3, "size": 1, "unrelated": True, "ipam": {"tipe": "host-local", "subnet": "10.0.0.0/24"}}
    reply = respond(Recorder, environ("ADD"), config(**keys))
    assert reply.status == 0
    assert reply.stderr.splitlines() == [
        "$.sise is not known: did you mean size?",
        "$.ipam.tipe is not known: did you mean type?",
        "$.ipam.type is not set: no IPAM plugin is asked for addresses",
    ]
    assert respond(Recorder, environ("CHECK"), config(**keys)).stderr == ""
    assert respond(Recorder, environ("DEL"), config(**keys)).stderr == ""
    minimal = respond(Minimal, environ("ADD"), config(isDefaultGatway=True))
    assert (minimal.status, minimal.stderr) == (0, "")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dn": {}}, "$.dn is not known: did you mean dns?\n"),
        ({"ipa": {"type": "static"}}, "$.ipa is not known: did you mean ipam?\n"),
        ({"SIZES": 1}, "$.SIZES is not known: did you mean size?\n"),
        ({"dns": {"nameserver": ["192.0.2.53"]}}, "$.dns.nameserver is not known: did you mean nameservers?\n"),
        ({"parts": [[{"wide": 1}, {"widht": 1}]]}, "$.parts[0][1].widht is not known: did you mean width?\n"),
        (
            {"sbr": 1, "mac": "", "id": 1, "s": 2, "x-size": 3, "": 4, "seize": 5},
            "$.seize is not known: did you mean size?\n",
        ),
        ({"ipam": {"subnet": "10.0.0.0/24"}}, "$.ipam.type is not set: no IPAM plugin is asked for addresses\n"),
        ({"ipam": {"type": "", "subnet": "x"}}, "$.ipam.type is not set: no IPAM plugin is asked for addresses\n"),
        ({"ipam": {"type": ""}}, ""),
        ({"ipam": {}}, ""),
    ],
)
def test_a_mistake_that_may_be_none_is_noted(keys: dict[str, Any], said: str) -> None:
    reply = respond(Nested, environ("ADD"), config(**keys))
    assert (reply.status, reply.stderr) == (0, said)


def test_delete_says_in_one_line_what_is_wrong_however_much_it_is(seen: list[Any]) -> None:
    routes = [{"dst": number} for number in range(1000)]
    reply = respond(Recorder, environ("DEL"), config(prevResult=None, size="x", dns={"search": routes}))
    assert reply.status == 0
    assert reply.stderr.count("\n") == 1
    assert "$.size is 'x'" in reply.stderr
    assert "(and 998 more)" in reply.stderr


def test_the_mtu_that_a_plugin_before_wrote_in_1_0_0_is_handed_on() -> None:
    class Chained(Minimal):
        def add(self, request: AddRequest[Conf]) -> Result:
            return request.require_prev_result()

    before = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "mtu": 1400}]}
    reply = respond(Chained, environ("ADD"), config("1.0.0", prevResult=before))
    assert json.loads(reply.stdout)["interfaces"] == [{"name": "eth0", "mtu": 1400}]


def test_bytes_that_are_no_text_do_not_block_del(seen: list[Any]) -> None:
    stdin = config().replace(b'"recorder"', b'"recorder", "comment": "caf\xe9"')
    assert failure(respond(Recorder, environ("ADD"), stdin))["code"] == 6
    reply = respond(Recorder, environ("DEL"), stdin)
    assert reply[:2] == (b"", 0)
    assert "is not UTF-8" in reply.stderr
    assert [request.network for request in seen] == ["net"]
    assert failure(respond(Recorder, environ("DEL"), b"{"))["code"] == 6


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_result_before_0_3_0_makes_no_noise_about_the_interface_of_an_address(version: str) -> None:
    """No result of these versions has interfaces: there is nothing an operator could do about it."""
    reply = respond(Recorder, environ("ADD"), config(version))
    assert json.loads(reply.stdout)["ip4"] == {"ip": "10.0.0.2/24"}
    assert (reply.status, reply.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('{"cniVersion": "0.4.0", "name": "n"', "0.4.0"),
        ('{"prevResult": {"cniVersion": "0.2.0"}, "cniVersion": "0.4.0", "x": ', "0.4.0"),
        ('{"plugins": [{"cniVersion": "0.2.0"}], "CNIVersion": "0.4.0", "x": ', "0.4.0"),
        ('{"note": "{{[", "cniVersion": "0.4.0", "prevResult": {"cniVersion": "0.2.0"', "0.4.0"),
        ('{"note": "\\"cniVersion\\": \\"0.2.0\\"", "cniVersion": "0.4.0", ', "0.4.0"),
        ('{"prevResult": {"cniVersion": "0.2.0"', "1.1.0"),
        ('{"name": "n"', "1.1.0"),
    ],
)
def test_the_error_about_a_broken_configuration_has_its_version(text: str, version: str) -> None:
    """And not that of a result in it."""
    assert json.loads(respond(Minimal, environ("ADD"), text.encode()).stdout)["cniVersion"] == version
