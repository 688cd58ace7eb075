"""Versions that a plugin claims and works with (spec §2 "VERSION", §5)."""

from __future__ import annotations

from typing import Any

from . import _sentences as spec
from ._response import Response
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, Kind

chapter = Chapter()


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
