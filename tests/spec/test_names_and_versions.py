"""Grammar of names, and which version allows what."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, strategies as st

from cnisdk import Attachment, CNIError, IncompatibleVersionError, InvalidConfigError, InvalidEnvironmentError, errors
from cnisdk.spec.config import parse_args
from cnisdk.spec.names import (
    check_container_id,
    check_ifname,
    check_network_name,
    check_plugin_type,
    network_tag_prefixes,
)
from cnisdk.spec.versions import ALL, SpecVersion, Verb, allows, negotiate

HOSTILE = ["", "../x", "a/b", "a b", "a\n", "a\0b", "-a", ".a", "_a", "é", "a;b", "a" + "\x7f"]


@pytest.mark.parametrize("text", HOSTILE)
def test_container_ids_and_network_names_outside_the_grammar(text: str) -> None:
    with pytest.raises(InvalidEnvironmentError, match="CNI_CONTAINERID"):
        check_container_id(text)
    with pytest.raises(InvalidConfigError, match=r"\$\.name"):
        check_network_name(text)


@pytest.mark.parametrize("text", ["a", "0", "A-b_c.d", "x" * 300])
def test_names_inside_the_grammar(text: str) -> None:
    assert check_container_id(text) == check_network_name(text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u00a0b", "x" * 16, "é" * 8, "a\0b", "eth%d", "\udcff"]
)
def test_interface_names_the_kernel_would_not_take(text: str) -> None:
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME"):
        check_ifname(text)


@pytest.mark.parametrize("text", ["eth0", "x" * 15, "é" * 7, "a.b-c_d@1"])
def test_interface_names_the_kernel_takes(text: str) -> None:
    assert check_ifname(text) == text


@pytest.mark.parametrize("text", ["", "../../sbin/reboot", "a/b", "..", ".", "a\0b"])
def test_plugin_types_are_no_paths(text: str) -> None:
    """CVE-2021-20206."""
    with pytest.raises(InvalidConfigError):
        check_plugin_type(text)


names = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,200}", fullmatch=True)
attachments = st.builds(Attachment, names, names, st.sampled_from(["eth0", "eth1"]))


@given(attachments, attachments)
def test_tags_fit_a_link_alias_and_tell_attachments_apart(one: Attachment, other: Attachment) -> None:
    assert len(one.tag.encode()) <= 255
    assert (one.tag == other.tag) == (one == other)
    assert len(one.tag_within(127).encode()) <= 127
    assert (one.tag_within(127) == other.tag_within(127)) == (one == other)
    assert one.tag_within(127).startswith(network_tag_prefixes(one.network))
    assert one.tag.startswith(network_tag_prefixes(one.network))
    if one.network != other.network:
        assert not one.tag.startswith(network_tag_prefixes(other.network))


def test_the_gates_of_the_verbs() -> None:
    first = {verb: next(str(version) for version in ALL if allows(version, verb)) for verb in Verb}
    assert first == {
        Verb.ADD: "0.1.0",
        Verb.DEL: "0.1.0",
        Verb.CHECK: "0.4.0",
        Verb.GC: "1.1.0",
        Verb.STATUS: "1.1.0",
        Verb.VERSION: "0.1.0",
    }


@pytest.mark.parametrize(
    ("text", "version"), [("", (0, 1, 0)), ("1", (1, 0, 0)), ("1.2", (1, 2, 0)), ("0.4.0", (0, 4, 0))]
)
def test_versions_are_read(text: str, version: tuple[int, int, int]) -> None:
    assert SpecVersion.parse(text) == version


# The reference's own list of malformed versions, and what its parser lets pass.
@pytest.mark.parametrize(
    "text",
    ["asdfasdf", "asdf.", ".asdfas", "asdf.adsf.", "0.", "..", "1.2.3.4.5", "+1.0.0", "v1.0.0", "1.0.0-rc1", " 1.0.0"],
)
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(CNIError) as caught:
        SpecVersion.parse(text)
    assert caught.value.code == 6


def test_negotiation() -> None:
    assert negotiate("", ALL, Verb.ADD) == SpecVersion(0, 1, 0)
    assert negotiate("1.1.0", ALL, Verb.STATUS) == SpecVersion(1, 1, 0)
    for configured, supported, verb, msg in (
        ("1.1", ALL, Verb.ADD, "incompatible CNI versions"),
        ("zzz", ALL, Verb.ADD, "incompatible CNI versions"),
        ("0.3.1", ALL, Verb.CHECK, "config version does not allow CHECK"),
        ("1.0.0", ALL, Verb.GC, "config version does not allow GC"),
        ("1.0.0", ALL, Verb.STATUS, "config version does not allow STATUS"),
        ("0.4.0", ALL[:3], Verb.CHECK, "plugin version does not allow CHECK"),
    ):
        with pytest.raises(IncompatibleVersionError) as caught:
            negotiate(configured, supported, verb)
        assert caught.value.msg == msg
    with pytest.raises(IncompatibleVersionError) as caught:
        negotiate("0.1.0", (SpecVersion(1, 2, 3), SpecVersion(4, 3, 2)), Verb.ADD)
    assert caught.value.details == 'config is "0.1.0", plugin supports ["1.2.3" "4.3.2"]'


def test_cni_args() -> None:
    assert parse_args("IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.0.0.5;EMPTY=;") == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAME": "web",
        "IP": "10.0.0.5",
        "EMPTY": "",
    }
    assert parse_args("") == {}
    assert parse_args("A=b=c") == {"A": "b=c"}
    for text in ("A", "=b", "A=1;B"):
        with pytest.raises(InvalidEnvironmentError, match="CNI_ARGS"):
            parse_args(text)


def test_every_code_of_the_table_has_its_class() -> None:
    codes = (1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 999)
    classes = {code: type(errors.error_for_code(code, "m")) for code in codes}
    assert len(set(classes.values())) == len(codes)
    assert CNIError not in classes.values()
    unknown = errors.error_for_code(123, "m", "d")
    assert (type(unknown), unknown.code, str(unknown)) == (CNIError, 123, "m; d")


def test_errors_survive_pickling() -> None:
    import pickle

    error = CNIError("m", details="d", code=142)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.code, again.msg, again.details) == (CNIError, 142, "m", "d")


def test_each_error_of_several_is_shown_with_its_own_code() -> None:
    first = errors.IOFailureError("no disk", details="mount it")
    first.add_others([errors.TryAgainLaterError("pool is full", details="10.0.0.0/30"), CNIError("odd", code=142)])
    assert first.describe() == (
        "no disk (code 5); mount it; also: pool is full (code 11); 10.0.0.0/30; also: odd (code 142)"
    )


def test_a_right_that_is_missing_is_told_once() -> None:
    def refused(what: str) -> CNIError:
        error = errors.IOFailureError(f"cannot {what}: EPERM: Operation not permitted")
        error.__cause__ = PermissionError(errno.EPERM, "Operation not permitted")
        return error

    problems = [refused("make a link"), CNIError("odd", code=142), refused("read rules"), refused("read more rules")]
    first = problems[0]
    first.add_others(problems[1:])
    assert first.describe() == (
        "cannot make a link: EPERM: Operation not permitted (code 5); also: odd (code 142); "
        "also: other steps were not permitted either"
    )
    before = first.details
    first.add_others([refused("read a file")])
    assert first.details == before
    assert first.others[:3] == problems[1:]


def test_errors_of_the_operating_system_have_name_and_text() -> None:
    assert errors.describe_errno(1) == "EPERM: Operation not permitted"
    assert errors.describe_errno(95) == "EOPNOTSUPP: Operation not supported"
    assert (errors.describe_errno(0), errors.describe_errno(99999)) == ("unknown error", "99999: Unknown error 99999")


def test_causes_are_described_without_what_the_message_names() -> None:
    missing = FileNotFoundError(2, "No such file or directory", "/some/file")
    assert errors.cause_of(missing) == "ENOENT: No such file or directory"
    assert errors.cause_of(OSError(40, "it is a symbolic link")) == "it is a symbolic link"
    assert errors.cause_of(KeyError("member")) == "KeyError: 'member'"
    assert errors.cause_of(ValueError("not a number")) == "not a number"
    assert errors.cause_of(TimeoutError("timed out")) == "timed out"
    assert errors.cause_of(ValueError()) == "ValueError"
    assert errors.cause_of(TimeoutError()) == "TimeoutError"
    assert errors.cause_of(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("exc", "kind", "text"),
    [
        (errors.TryAgainLaterError("the pool is full"), errors.TryAgainLaterError, "the pool is full"),
        (PermissionError(13, "", "/some/file"), errors.IOFailureError, "/some/file: EACCES: Permission denied"),
        (OSError(18, "", "/a", None, "/b"), errors.IOFailureError, "/a: /b: EXDEV: Invalid cross-device link"),
        (TimeoutError(), errors.IOFailureError, "TimeoutError"),
        (OSError("no netlink here"), errors.IOFailureError, "no netlink here"),
        (KeyError("member"), errors.InternalError, "KeyError: 'member'"),
        (AssertionError(), errors.InternalError, "AssertionError"),
    ],
    ids=repr,
)
def test_any_exception_becomes_an_error_that_says_what_failed(exc: Exception, kind: type, text: str) -> None:
    error = errors.as_cni_error(exc)
    assert (type(error), error.msg, error.details) == (kind, text, "")
