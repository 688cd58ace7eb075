"""Documents that plugins read and print: configurations, arguments and results (spec §2 "Parameters", §5)."""

from __future__ import annotations

from typing import Any

from . import _sentences as spec
from ._terms import IPAM
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, NotApplicable, listed

chapter = Chapter()

_MAC = "02:00:00:00:be:ef"


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
