"""Versions, arguments and results (spec §2 "Parameters", §5)."""

from __future__ import annotations

from typing import Any

from . import _sentences as spec
from ._response import Response
from ._terms import IPAM
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, Kind, NotApplicable, listed

chapter = Chapter()

_MAC = "02:00:00:00:be:ef"


@chapter.must(
    spec.VERSION_RESULT,
    means="Runtimes cannot learn what the plugin speaks; Podman drops a network whose plugin fails VERSION.",
)
def version_lists_what_it_supports(run: CaseRun) -> None:
    response = run.request("VERSION", stdin=b'{"cniVersion": "1.1.0"}').must_succeed()
    document = response.one_document()
    versions = document.get("supportedVersions") if isinstance(document, dict) else None
    good = isinstance(versions, list) and versions and all(isinstance(each, str) for each in versions)
    if not good or not isinstance(document.get("cniVersion"), str):
        raise Broken("an object with cniVersion and a list supportedVersions", response.show())


@chapter.must(
    spec.VERSION_NEEDS,
    means="Runtimes that ask with little in the environment (Podman, libcni) believe the plugin is broken.",
)
def version_needs_only_the_command(run: CaseRun) -> None:
    bare: dict[str, str | None] = {"CNI_PATH": None, "TMPDIR": None}
    data = b'{"cniVersion": "1.0.0"}'
    run.request("VERSION", environ=bare, stdin=data).must_succeed("success with nothing but CNI_COMMAND")
    dummy = dict.fromkeys(("CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "dummy") | {"CNI_CONTAINERID": ""}
    run.request("VERSION", environ=dummy, stdin=data).must_succeed("success with dummy values")


@chapter.must(
    spec.SUCCESS,
    means="The runtime cannot parse the result: the container does not start, though it has been attached.",
)
def success_prints_one_document(run: CaseRun) -> None:
    response = run.request("ADD", run.container()).must_succeed()
    if not isinstance(response.one_document(), dict):
        raise Broken("one JSON object on stdout", response.show())


@chapter.opinion(
    spec.STDOUT.with_note(
        "Only ADD and VERSION have a result; DEL, CHECK, GC and STATUS have nothing to say when they succeed."
    ),
    means="Today's runtimes ignore it; stricter ones may not.",
)
def other_verbs_print_nothing(run: CaseRun) -> None:
    container = run.container()
    run.add(container)
    for verb in (*(["CHECK"] if run.subject.checks else []), "DEL"):
        response = run.request(verb, container)
        if response.status == 0 and response.stdout.strip():
            raise Broken(f"{verb}: nothing on stdout", response.show())


@chapter.must(
    spec.SUCCESS_VERSION,
    means="With a version the plugin claims, the runtime gets a result it cannot read.",
    shares="every version",
)
def every_version_it_claims(run: CaseRun) -> None:
    if not run.subject.versions:
        raise Broken("at least one known version in supportedVersions", "none")
    for version, response, _ in run.once(_try_every_version):
        if response.status != 0:
            continue  # the next case says so
        document = response.one_document()
        if document.get("cniVersion") != version:
            raise Broken(f"a result of cniVersion {version}", response.show())
        problem = _shape_problem(document, version)
        if problem:
            raise Broken(f"a result in the shape of {version}", f"{problem} in {response.show()}")
        run.parse(response, version)


@chapter.opinion(
    spec.VERSION_RESULT.with_note(
        "A version that a plugin claims is one that it works with. Before 0.3.0 a result without addresses cannot be "
        "told: an error is right then."
    ),
    means="Networks of an older version, or of a newer one, do not work with the plugin.",
    shares="every version",
)
def every_version_it_claims_works(run: CaseRun) -> None:
    told = run.add(run.container())
    for version, added, deleted in run.once(_try_every_version):
        if added.code is not None and version < "0.3.0" and not told.ips:
            continue
        added.must_succeed(f"success with cniVersion {version}")
        deleted.must_succeed(f"success with cniVersion {version}")


def _try_every_version(run: CaseRun) -> list[tuple[str, Response, Response]]:
    """Attach and detach a container in each version, and return the responses."""
    tried = []
    for version in run.subject.versions:
        if run.subject.kind is Kind.CHAINED and version < "0.3.0":
            continue
        container = run.container(f"v{version.replace('.', '-')}")
        added = run.request("ADD", container, **_versioned(run, container, version))
        tried.append((version, added, run.request("DEL", container, **_versioned(run, container, version))))
    return tried


@chapter.should(spec.ARGS, means="Runtimes that pass labels or annotations cannot use the plugin.")
def unknown_arguments_are_ignored(run: CaseRun) -> None:
    args = {"org.example": {"labels": {"a": None}}}
    run.request("ADD", run.container(), args=args).must_succeed("success with unknown args")


@chapter.opinion(
    spec.CAPABILITIES.with_note("Judged are mac, ips and portMappings, if declared."),
    means="The address or port that a pod asked for is silently another one.",
)
def declared_capabilities_are_used(run: CaseRun) -> None:
    declared = {name for name, on in (run.subject.conf.get("capabilities") or {}).items() if on}
    container = run.container()
    wanted: dict[str, Any] = dict(run.document(container).get("runtimeConfig", {}))
    if "ips" in declared:
        other = run.container("c2")
        address = run.add(other).ips[0].address
        run.delete(other)
        wanted["ips"] = [f"{address.ip + 7}/{address.network.prefixlen}"]
    if "mac" in declared:
        wanted["mac"] = _MAC
    if not declared & {"ips", "mac", "portMappings"}:
        raise NotApplicable("its configuration declares none that can be judged")
    result = run.add(container, runtimeConfig=wanted)
    if "ips" in declared and wanted["ips"][0] not in {str(each.address) for each in result.ips}:
        raise Broken(f"the address {wanted['ips'][0]}, as asked for", str(result.ips))
    macs = {each.mac for each in run.state().of(container.name).links}
    if "mac" in declared and _MAC not in macs:
        raise Broken(f"a link with the hardware address {_MAC}, as asked for", listed(macs))
    ports = {str(each["hostPort"]) for each in wanted.get("portMappings", [])}
    rules = [each.line for each in run.state().of("").nft]
    if "portMappings" in declared and not all(any(port in line for line in rules) for port in ports):
        raise Broken(f"rules for port {listed(ports)} of the host, as asked for", listed(rules) or "no rules")


@chapter.opinion(
    spec.OTHER_KEYS.with_note(
        "Every runtime leaves keys in that plugins do not know: capabilities, cniVersions, keys of other versions."
    ),
    means="A configuration that other plugins accept does not work with this one.",
)
def unknown_keys_are_ignored(run: CaseRun) -> None:
    container = run.container()
    keys: dict[str, Any] = {"org.example/unknown": {"deep": [None]}, "disableCheck": True, "cniVersions": ["1.0.0"]}
    keys["runtimeConfig"] = {**run.document(container).get("runtimeConfig", {}), "org.example.unknown": {"a": [1]}}
    labels = {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"}
    run.request("ADD", container, environ=labels, **keys).must_succeed("success with unknown keys")


@chapter.must(spec.ABBREVIATED, means="The plugin that delegated puts addresses on the wrong interface.", kinds=IPAM)
def ipam_result_is_abbreviated(run: CaseRun) -> None:
    response = run.request("ADD", run.container()).must_succeed()
    document = response.one_document()
    if document.get("interfaces") or any("interface" in each for each in document.get("ips", [])):
        raise Broken("a result without interfaces", response.show())


@chapter.must(
    spec.IPAM_DETERMINES,
    means="The container has no address, though its network's configuration asks for one.",
    kinds=IPAM,
)
def ipam_returns_addresses(run: CaseRun) -> None:
    response = run.request("ADD", run.container()).must_succeed()
    if not response.one_document().get("ips"):
        raise Broken("a result with addresses", response.show())


def _versioned(run: CaseRun, container: Any, version: str) -> dict[str, Any]:
    keys: dict[str, Any] = {"cniVersion": version}
    known = run.results.get((container.id, run.subject.ifname))
    if run.subject.kind is Kind.CHAINED and known is not None:
        keys["prevResult"] = run.in_version(known, version)
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
