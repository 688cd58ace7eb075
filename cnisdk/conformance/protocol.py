"""Parameters, versions, output and errors (spec §2 "Parameters", §5)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..testing.hosts import Container
from .bench import Answer, Bench, listed
from .case import Chapter
from .judgement import INTERFACE, IPAM, Broken, Kind, Level, NotApplicable
from .sentences import (
    ABBREVIATED,
    ADD_TAKES_EXISTING,
    ARGS,
    CAPABILITIES,
    CONTAINER_ID,
    ERROR_KEYS,
    ERROR_VERSION,
    EXIT_STATUS,
    IFNAME,
    IPAM_DETERMINES,
    NETWORK_NAME,
    OTHER_KEYS,
    STDOUT,
    SUCCESS,
    SUCCESS_VERSION,
    VERSION_NEEDS,
    VERSION_RESULT,
    error_code,
)

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

_SAFE_VERBS = ("ADD", "DEL")
_MAC = "02:00:00:00:be:ef"


@case(
    MUST,
    VERSION_RESULT,
    means="Runtimes cannot learn what the plugin speaks; Podman drops a network whose plugin fails VERSION.",
)
def version_lists_what_it_supports(bench: Bench) -> None:
    answer = bench.request("VERSION", stdin=b'{"cniVersion": "1.1.0"}').must_succeed()
    document = _one_document(answer)
    versions = document.get("supportedVersions") if isinstance(document, dict) else None
    good = isinstance(versions, list) and versions and all(isinstance(each, str) for each in versions)
    if not good or not isinstance(document.get("cniVersion"), str):
        raise Broken("an object with cniVersion and a list supportedVersions", answer.show())


@case(
    MUST,
    VERSION_NEEDS,
    means="Runtimes that ask with little in the environment (Podman, libcni) believe the plugin is broken.",
)
def version_needs_only_the_command(bench: Bench) -> None:
    bare: dict[str, str | None] = {"CNI_PATH": None, "TMPDIR": None}
    data = b'{"cniVersion": "1.0.0"}'
    bench.request("VERSION", environ=bare, stdin=data).must_succeed("success with nothing but CNI_COMMAND")
    dummy = dict.fromkeys(("CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "dummy") | {"CNI_CONTAINERID": ""}
    bench.request("VERSION", environ=dummy, stdin=data).must_succeed("success with dummy values")


@case(
    MUST,
    SUCCESS,
    means="The runtime cannot parse the result: the container does not start, though it has been attached.",
)
def success_prints_one_document(bench: Bench) -> None:
    answer = bench.request("ADD", bench.container()).must_succeed()
    if not isinstance(_one_document(answer), dict):
        raise Broken("one JSON object on stdout", answer.show())


@case(
    OPINION,
    STDOUT,
    note="Only ADD and VERSION have a result; DEL, CHECK, GC and STATUS have nothing to say when they succeed.",
    means="Today's runtimes ignore it; stricter ones may not.",
)
def other_verbs_print_nothing(bench: Bench) -> None:
    container = bench.container()
    bench.add(container)
    for verb in (*(["CHECK"] if bench.subject.checks else []), "DEL"):
        answer = bench.request(verb, container)
        if answer.status == 0 and answer.stdout.strip():
            raise Broken(f"{verb}: nothing on stdout", answer.show())


@case(
    MUST,
    EXIT_STATUS,
    means="The runtime takes a failure for a success: containers run without their network.",
)
def failure_has_a_non_zero_status(bench: Bench) -> None:
    for stdin in (b"", b"{", b"[]", b'"text"'):
        bench.request("ADD", bench.container(f"c{len(bench.script)}"), stdin=stdin).must_fail(
            f"an error for the configuration {stdin.decode()!r}"
        )


@case(
    SHOULD,
    ERROR_KEYS,
    note="And nothing else: a runtime parses all of stdout.",
    means="The runtime shows a parse error in place of the plugin's reason, or nothing at all.",
)
def failure_prints_one_error_object(bench: Bench) -> None:
    for answer in _failures(bench):
        document = _one_document(answer.must_fail())
        code = document.get("code") if isinstance(document, dict) else None
        if type(code) is not int or not isinstance(document.get("msg"), str) or not document["msg"]:
            raise Broken("an object with a numeric code and a text msg", answer.show())
        if not isinstance(document.get("details", ""), str):
            raise Broken("text in details, where there are any", answer.show())


@case(
    SHOULD,
    ERROR_VERSION,
    note="The reference SDK never prints it, so no runtime relies on it.",
    means="Nothing today.",
)
def error_objects_tell_the_version(bench: Bench) -> None:
    for answer in _failures(bench):
        document = answer.must_fail().try_document()
        if isinstance(document, dict) and not isinstance(document.get("cniVersion"), str):
            raise Broken("cniVersion in the error object", answer.show())


@case(
    MUST,
    error_code(4),
    means="A mistake of the runtime is taken for another failure, and is hard to find.",
)
def required_variables(bench: Bench) -> None:
    container = bench.container()
    required = {"ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), "DEL": ("CNI_CONTAINERID", "CNI_IFNAME")}
    if bench.subject.checks:
        required["CHECK"] = required["ADD"]
    for verb, names in required.items():
        for name in names:
            for value in (None, ""):
                answer = bench.request(verb, container, environ={name: value})
                answer.must_fail(f"an error when {name} is {'missing' if value is None else 'empty'}")
                if name not in answer.told:
                    raise Broken(f"{verb}: an error that names {name}", answer.show())


@case(
    SHOULD,
    error_code(4),
    means="Callers that act on the code cannot tell a wrong call from a broken network.",
)
def missing_variables_have_code_4(bench: Bench) -> None:
    for name in ("CNI_CONTAINERID", "CNI_IFNAME"):
        _must_have_code(bench.request("ADD", bench.container(f"c{len(bench.script)}"), environ={name: None}), 4)


@case(
    MUST,
    CONTAINER_ID,
    means="An ID from outside can name files elsewhere (CVE-2021-20206 was of this kind).",
)
def hostile_container_ids(bench: Bench) -> None:
    container = bench.container()
    for name in ("../../../etc", "a/b", "-rf", ".", "..", "a b", "a\nb", "a\r\nb", "é", "a;b", "$(id)"):
        for verb in _SAFE_VERBS:
            bench.request(verb, container, environ={"CNI_CONTAINERID": name}).must_fail(
                f"an error for the container ID {name!r}"
            )


@case(
    MUST,
    IFNAME,
    means="The interface gets another name than the runtime was told, or names files elsewhere.",
)
def hostile_interface_names(bench: Bench) -> None:
    container = bench.container()
    for name in ("sixteenbyteslong", "é" * 8, "a/b", "../eth0", ".", "..", "a b", "a:b", "a\tb", "a\nb"):
        bench.request("ADD", container, environ={"CNI_IFNAME": name}).must_fail(f"an error for the name {name!r}")


@case(
    SHOULD,
    error_code(4),
    means="A verb of a later specification seems to succeed without being carried out.",
)
def unknown_commands(bench: Bench) -> None:
    container = bench.container()
    for verb in ("NOPE", "add", "ADD "):
        _must_have_code(bench.request(verb, container), 4)


@case(
    SHOULD,
    error_code(6),
    means="Callers cannot tell a damaged file from a wrong value.",
)
def damaged_configuration_has_code_6(bench: Bench) -> None:
    whole = json.dumps(bench.document())
    for text in ("", "{", whole[:-1], whole + "x", "\0", "\xff"):
        answer = bench.request("ADD", bench.container(f"c{len(bench.script)}"), stdin=text.encode("latin-1"))
        _must_have_code(answer, 6)


@case(
    MUST,
    NETWORK_NAME,
    means="The name becomes a path: state of one network ends up in another's directory, or anywhere.",
)
def hostile_network_names(bench: Bench) -> None:
    container = bench.container()
    for name in ("../../tmp/x", "a/b", "-x", "a b", "a\nb", "a\0b", "", None):
        bench.request("ADD", container, name=name).must_fail(f"an error for the network name {name!r}")


@case(
    SHOULD,
    error_code(7),
    means="Callers that act on the code cannot tell a wrong configuration from a broken network.",
)
def invalid_configuration_has_code_7(bench: Bench) -> None:
    for name in (None, "../x"):
        _must_have_code(bench.request("ADD", bench.container(f"c{len(bench.script)}"), name=name), 7)


@case(
    SHOULD,
    error_code(1),
    means="A configuration of a later specification is half understood, instead of refused.",
)
def unsupported_version(bench: Bench) -> None:
    for version in ("99.0.0", "0.0.1", "one"):
        answer = bench.request("ADD", bench.container(f"c{len(bench.script)}"), cniVersion=version)
        answer.must_fail(f"an error for cniVersion {version}")
        if version != "one":
            _must_have_code(answer, 1)


@case(
    MUST,
    SUCCESS_VERSION,
    means="With a version the plugin claims, the runtime gets a result it cannot read.",
)
def every_version_it_claims(bench: Bench) -> None:
    if not bench.subject.versions:
        raise Broken("at least one known version in supportedVersions", "none")
    for version, container, answer in _in_every_version(bench):
        if answer.status != 0:
            continue  # the next case says so
        document = _one_document(answer)
        if document.get("cniVersion") != version:
            raise Broken(f"a result of cniVersion {version}", answer.show())
        problem = _shape_problem(document, version)
        if problem:
            raise Broken(f"a result in the shape of {version}", f"{problem} in {answer.show()}")
        bench.parse(answer, version)
        bench.request("DEL", container, **_versioned(bench, container, version))


@case(
    OPINION,
    VERSION_RESULT,
    note="A version that a plugin claims is one that it works with. Before 0.3.0 a result without addresses cannot be "
    "told: an error is right then.",
    means="Networks of an older version, or of a newer one, do not work with the plugin.",
)
def every_version_it_claims_works(bench: Bench) -> None:
    told = bench.add(bench.container())
    for version, container, answer in _in_every_version(bench):
        if answer.code is not None and version < "0.3.0" and not told.ips:
            continue
        answer.must_succeed(f"success with cniVersion {version}")
        bench.request("DEL", container, **_versioned(bench, container, version)).must_succeed(
            f"success with cniVersion {version}"
        )


def _in_every_version(bench: Bench) -> Iterator[tuple[str, Container, Answer]]:
    for version in bench.subject.versions:
        if bench.subject.kind is Kind.CHAINED and version < "0.3.0":
            continue
        container = bench.container(f"v{version.replace('.', '-')}")
        yield version, container, bench.request("ADD", container, **_versioned(bench, container, version))


@case(
    SHOULD,
    ARGS,
    means="Runtimes that pass labels or annotations cannot use the plugin.",
)
def unknown_arguments_are_ignored(bench: Bench) -> None:
    args = {"org.example": {"labels": {"a": None}}}
    bench.request("ADD", bench.container(), args=args).must_succeed("success with unknown args")


@case(
    OPINION,
    CAPABILITIES,
    note="Judged are mac, ips and portMappings, if declared.",
    means="The address or port that a pod asked for is silently another one.",
)
def declared_capabilities_are_used(bench: Bench) -> None:
    declared = {name for name, on in (bench.subject.conf.get("capabilities") or {}).items() if on}
    container = bench.container()
    wanted: dict[str, Any] = dict(bench.document(container).get("runtimeConfig", {}))
    if "ips" in declared:
        other = bench.container("c2")
        address = bench.add(other).ips[0].address
        bench.delete(other)
        wanted["ips"] = [f"{address.ip + 7}/{address.network.prefixlen}"]
    if "mac" in declared:
        wanted["mac"] = _MAC
    if not declared & {"ips", "mac", "portMappings"}:
        raise NotApplicable("its configuration declares none that can be judged")
    result = bench.add(container, runtimeConfig=wanted)
    if "ips" in declared and wanted["ips"][0] not in {str(each.address) for each in result.ips}:
        raise Broken(f"the address {wanted['ips'][0]}, as asked for", str(result.ips))
    macs = {each.mac for each in bench.state().of(container.name).links}
    if "mac" in declared and _MAC not in macs:
        raise Broken(f"a link with the hardware address {_MAC}, as asked for", listed(macs))
    ports = {str(each["hostPort"]) for each in wanted.get("portMappings", [])}
    rules = [each.line for each in bench.state().of("").nft]
    if "portMappings" in declared and not all(any(port in line for line in rules) for port in ports):
        raise Broken(f"rules for port {listed(ports)} of the host, as asked for", listed(rules) or "no rules")


@case(
    OPINION,
    OTHER_KEYS,
    note="Every runtime leaves keys in that plugins do not know: capabilities, cniVersions, keys of other versions.",
    means="A configuration that other plugins accept does not work with this one.",
)
def unknown_keys_are_ignored(bench: Bench) -> None:
    container = bench.container()
    keys: dict[str, Any] = {"org.example/unknown": {"deep": [None]}, "disableCheck": True, "cniVersions": ["1.0.0"]}
    keys["runtimeConfig"] = {**bench.document(container).get("runtimeConfig", {}), "org.example.unknown": {"a": [1]}}
    labels = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"}
    bench.request("ADD", container, environ=labels, **keys).must_succeed("success with unknown keys")


@case(
    MUST,
    ABBREVIATED,
    means="The plugin that delegated puts addresses on the wrong interface.",
    kinds=IPAM,
)
def ipam_result_is_abbreviated(bench: Bench) -> None:
    answer = bench.request("ADD", bench.container()).must_succeed()
    document = _one_document(answer)
    if document.get("interfaces") or any("interface" in each for each in document.get("ips", [])):
        raise Broken("a result without interfaces", answer.show())


@case(
    MUST,
    IPAM_DETERMINES,
    means="The container has no address, though its network's configuration asks for one.",
    kinds=IPAM,
)
def ipam_returns_addresses(bench: Bench) -> None:
    answer = bench.request("ADD", bench.container()).must_succeed()
    if not _one_document(answer).get("ips"):
        raise Broken("a result with addresses", answer.show())


@case(
    MUST,
    EXIT_STATUS,
    note="An ADD without a container is a failure.",
    means="A file that is not a namespace is taken for one: the host's own network is changed.",
    kinds=INTERFACE,
)
def netns_is_no_namespace(bench: Bench) -> None:
    for answer in _adds_without_namespace(bench, bench.container()):
        answer.must_fail("an error, since CNI_NETNS is no network namespace")


@case(
    OPINION,
    ADD_TAKES_EXISTING,
    note="What it returns with an error for is not touched by it.",
    means="An interface of somebody else is taken over, or the host's own network is changed.",
    kinds=INTERFACE,
)
def a_refused_add_changes_nothing(bench: Bench) -> None:
    bench.warm()
    adds = _adds_without_namespace(bench, bench.container())
    with bench.changing_nothing("by an ADD that cannot work"):
        for _ in adds:
            pass
    if bench.subject.ifname != "lo":
        container = bench.container("c2")
        bench.occupy(container)
        with bench.changing_nothing("by an ADD for an interface that exists"):
            bench.request("ADD", container)


def _adds_without_namespace(bench: Bench, container: Container) -> Iterator[Answer]:
    bench.shell("echo text >/run/plain-file")  # no file of an attachment: it does not count as a change
    for path in ("/run/plain-file", "/run/absent", "/run", "/proc/self/ns/uts"):
        yield bench.request("ADD", container, environ={"CNI_NETNS": path})


def _failures(bench: Bench) -> list[Answer]:
    container = bench.container()
    return [
        bench.request("ADD", container, environ={"CNI_IFNAME": "a/b"}),
        bench.request("ADD", container, stdin=b"{"),
        bench.request("ADD", container, cniVersion="99.0.0"),
        bench.request("DEL", container, environ={"CNI_CONTAINERID": "../x"}),
    ]


def _one_document(answer: Answer) -> Any:
    try:
        return json.loads(answer.stdout)
    except ValueError as exc:
        raise Broken("exactly one JSON document on stdout", answer.show()) from exc


def _must_have_code(answer: Answer, code: int) -> None:
    answer.must_fail(f"an error with code {code}")
    if answer.code != code:
        raise Broken(f"{answer.verb}: an error with code {code}", answer.show())


def _versioned(bench: Bench, container: Any, version: str) -> dict[str, Any]:
    keys: dict[str, Any] = {"cniVersion": version}
    known = bench.results.get((container.id, bench.subject.ifname))
    if bench.subject.kind is Kind.CHAINED and known is not None:
        keys["prevResult"] = bench.in_version(known, version)
    elif version < "0.4.0":
        keys["prevResult"] = None
    return keys


def _shape_problem(document: dict[str, Any], version: str) -> str:
    if version < "0.3.0":
        return "ips is of a later version" if "ips" in document or "interfaces" in document else ""
    if "ip4" in document or "ip6" in document:
        return "ip4 or ip6 is of 0.2.0 and before"
    for each in document.get("ips", []):
        expected = None if version >= "1.0.0" else "6" if ":" in str(each.get("address")) else "4"
        if expected is not None and each.get("version") != expected:
            return f'the address {each.get("address")} has no "version": "{expected}"'
        index = each.get("interface")
        if index is not None and not 0 <= index < len(document.get("interfaces", [])):
            return f"interface index {index} leads nowhere"
    return ""
