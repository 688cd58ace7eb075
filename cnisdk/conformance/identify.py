"""Identify a plugin: by what it declares, by its name, and by an ADD on a throw-away host."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve

from ..errors import InvalidConfigError
from ..testing.hosts import Container, Host
from ..testing.running import SYSTEM_PATH
from ._footprint import watched_for
from ._known import KNOWN, Trial
from ._start_failures import explain, find_obstacle
from .case_run import CaseRun
from .judgement import Kind
from .subject import SETUP, Subject

_ORDER = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def identify(
    path: str,
    *,
    conf: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
    search: Sequence[str] = (),
    ifname: str = "",
    setup: str | None = None,
    container_setup: str | None = None,
) -> Subject:
    """Find the kind and the configuration of a plugin.

    The plugin may declare them, or its name may be known. Otherwise ADD on a throw-away host tells the kind.

    Args:
        path: Its executable.
        conf: Its configuration; None means the one that it declares (:meth:`cnisdk.Plugin.conformance`), else the one
            that the suite knows for its name, else none beyond the required keys.
        kind: Its kind; None means to detect it.
        search: Directories with the plugins it delegates to.
        ifname: ``CNI_IFNAME``; empty means what it declares, or ``eth0``.
        setup: Shell commands to prepare a host with, beside those the suite needs and those it declares.
        container_setup: Shell commands to prepare a container with, beside those it declares. ``{container}`` in them
            becomes its name.

    Returns:
        The plugin. If :attr:`Subject.problem` is not empty, it cannot be started, or its ADD does not work: then it
        cannot be judged.

    Raises:
        InvalidConfigError: (7) It declares a kind that does not exist.
        SandboxUnavailable: This machine does not allow namespaces.
    """
    path = os.path.abspath(path)
    if obstacle := find_obstacle(path):
        return _unstartable(path, obstacle)
    with Host(watched=watched_for(path)) as host:
        try:
            declared = _find_declared(host, path)
        except OSError as exc:
            if exc.filename != path:
                raise
            return _unstartable(path, explain(exc, path, host))
        trial = declared or KNOWN.get(os.path.basename(path)) or Trial()
        given = {key: value for key, value in (conf or {}).items() if key not in ("cniVersion", "name", "type")}
        subject = Subject(
            path=path,
            kind=kind or trial.kind or Kind.INTERFACE,
            conf=trial.conf if conf is None else given,
            search=(*map(os.path.abspath, search), os.path.dirname(path)),
            ifname=ifname or trial.ifname or "eth0",
            setup=" && ".join(filter(None, [SETUP, trial.setup.replace("{plugin}", shlex.quote(path)), setup])),
            container_setup=" && ".join(filter(None, [trial.container_setup, container_setup])),
        )
        subject = evolve(subject, versions=_ask_versions(host, subject))
        kind = kind or trial.kind
        ipam = subject.conf.get("ipam")
        if kind is None and isinstance(ipam, Mapping) and ipam.get("type") == subject.name:
            kind = Kind.IPAM
        tried = _try(host, evolve(subject, kind=kind) if kind else subject, known=kind is not None)
    if kind is None and tried.problem and tried.starts:
        # ADD may have failed for want of a prevResult: then it is a chained plugin.
        with Host(watched=watched_for(path)) as host:
            chained = _try(host, evolve(subject, kind=Kind.CHAINED), known=True)
        if chained.problem:
            return evolve(tried, problem=f"{tried.problem}; after another plugin, {chained.problem}")
        return chained
    return tried


def _unstartable(path: str, reason: str) -> Subject:
    return Subject(path=path, kind=Kind.INTERFACE, conf={}, problem=reason, starts=False)


def _run(host: Host, path: str, environ: Mapping[str, str], *arguments: str) -> Any:
    """Run a plugin with a bare environment, and return its parsed output; None if that is not JSON."""
    environ = {"PATH": SYSTEM_PATH, **environ}
    done = host.run([path, *arguments], env=environ, input='{"cniVersion": "1.1.0"}', check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return None


def _ask_versions(host: Host, subject: Subject) -> tuple[str, ...]:
    document = _run(host, subject.path, {"CNI_COMMAND": "VERSION"})
    listed = document.get("supportedVersions") if isinstance(document, dict) else None
    return (
        tuple(version for version in _ORDER if version in listed) if isinstance(listed, list) else ()
    )  # the case version-lists-what-it-supports reports it


def _find_declared(host: Host, path: str) -> Trial | None:
    """Ask a plugin for its declaration (``--conformance``). Plugins made without this SDK have none: return None."""
    document = _run(host, path, {}, "--conformance")
    if (
        not document
        or not isinstance(document, dict)
        or not document.keys() <= {"kind", "conf", "ifname", "setup", "container_setup"}
    ):
        return None
    try:
        return Trial(**{**document, "kind": Kind(document["kind"]) if "kind" in document else None})
    except ValueError as exc:
        raise InvalidConfigError(f"{path} --conformance: {exc}") from exc


def _try(host: Host, subject: Subject, *, known: bool) -> Subject:
    """Attach a container, to see if the configuration works. If the kind is not known, detect it by the result."""
    run = CaseRun(host, subject)
    try:
        run.prepare()
        container = run.container("try1")
    except AssertionError as exc:
        return evolve(subject, problem=f"the host cannot be prepared for it: {exc}")
    before = _visible(run, container) if subject.kind is Kind.CHAINED else []
    response = run.request("ADD", container)
    if response.status != 0 and response.code is None and not subject.versions:
        reason = f"it answers neither VERSION nor ADD: {response.show_all()} (it is run with PATH={SYSTEM_PATH})"
        return evolve(subject, problem=reason, starts=False)
    if response.status != 0:
        return evolve(subject, problem=response.show_all())
    if before and before == _visible(run, container):
        remark = "its ADD changes nothing that the suite can see: does its configuration ask for anything?"
        return evolve(subject, remark=remark)
    document = response.try_document()
    if known or not isinstance(document, dict) or document.get("interfaces"):
        return subject
    if not document.get("ips"):
        return evolve(subject, problem="its ADD has an empty result")
    return evolve(subject, kind=Kind.IPAM)  # only such a plugin's result has addresses, and no interfaces


_LINK = ("ifname", "mtu", "address", "txqlen", "promiscuity", "allmulti", "master")
_TEXTS = ("ip rule show", "tc qdisc show", "sysctl -a 2>/dev/null | grep '^net.ipv[46].conf' || true")


def _visible(run: CaseRun, container: Container) -> list[object]:
    """List everything that an ADD can change: the condition of the host, link settings, rules, qdiscs and sysctls."""
    seen: list[object] = [run.look().condition()]
    for netns, inside in (("", []), (container.name, ["ip", "netns", "exec", container.name])):
        seen += [[each.get(key) for key in _LINK] for each in run.host.ip("link", "show", netns=netns or None)]
        seen += [run.host.run([*inside, "sh", "-c", text]).stdout for text in _TEXTS]
    return seen
