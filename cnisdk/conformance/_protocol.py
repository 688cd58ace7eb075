"""Parameters, versions, output and errors (spec §2 "Parameters", §5)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..testing.hosts import Container
from . import _sentences as spec
from ._response import Response
from ._terms import INTERFACE, IPAM, MUST, SHOULD
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, Kind, Level, NotApplicable, Sentence, listed

chapter = Chapter()
interfaces = chapter.of(INTERFACE)

_MAC = "02:00:00:00:be:ef"


@chapter.must(
    spec.VERSION_RESULT,
    means="Runtimes cannot learn what the plugin speaks; Podman drops a network whose plugin fails VERSION.",
)
def version_lists_what_it_supports(run: CaseRun) -> None:
    response = run.request("VERSION", stdin=b'{"cniVersion": "1.1.0"}').must_succeed()
    document = _one_document(response)
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
    if not isinstance(_one_document(response), dict):
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


# -- what has to be refused ----------------------------------------------------------------------------------------


class Mistake(NamedTuple):
    """A request that no plugin may accept.

    Attributes:
        what: The mistake, for messages.
        verbs: The verbs to send it with.
        environ: Variables; None takes one out.
        stdin: Makes the standard input of the whole configuration.
        keys: Keys of the configuration; None takes one out.
    """

    what: str
    verbs: Sequence[str] = ("ADD",)
    environ: Mapping[str, str | None] = {}
    stdin: Callable[[bytes], bytes] | None = None
    keys: Mapping[str, Any] = {}


class Refusal(NamedTuple):
    """A case that asks for errors.

    Attributes:
        case: The name of the case.
        level: Its level.
        sentence: The sentence that the plugin is held to.
        means: What a failure means for an operator.
        mistakes: The requests.
        code: The code that each error must have; 0 for any.
    """

    case: str
    level: Level
    sentence: Sentence
    means: str
    mistakes: Sequence[Mistake]
    code: int = 0


def _always(text: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: text


_CONTAINER_IDS = ("../../../etc", "a/b", "-rf", ".", "..", "a b", "a\nb", "a\r\nb", "é", "a;b", "$(id)")
_IFNAMES = ("sixteenbyteslong", "é" * 8, "a/b", "../eth0", ".", "..", "a b", "a:b", "a\tb", "a\nb")
_NETWORKS = ("../../tmp/x", "a/b", "-x", "a b", "a\nb", "a\0b", "", None)
_NOT_OBJECTS = (b"", b"{", b"[]", b'"text"')

for _refusal in (
    Refusal(
        "failure-has-a-non-zero-status",
        MUST,
        spec.EXIT_STATUS,
        "The runtime takes a failure for a success: containers run without their network.",
        [Mistake(f"the configuration {text.decode()!r}", stdin=_always(text)) for text in _NOT_OBJECTS],
    ),
    Refusal(
        "missing-variables-have-code-4",
        SHOULD,
        spec.error_code(4),
        "Callers that act on the code cannot tell a wrong call from a broken network.",
        [Mistake(f"a request without {name}", environ={name: None}) for name in ("CNI_CONTAINERID", "CNI_IFNAME")],
        code=4,
    ),
    Refusal(
        "hostile-container-ids",
        MUST,
        spec.CONTAINER_ID,
        "An ID from outside can name files elsewhere (CVE-2021-20206 was of this kind).",
        [
            Mistake(f"the container ID {name!r}", ("ADD", "DEL"), environ={"CNI_CONTAINERID": name})
            for name in _CONTAINER_IDS
        ],
    ),
    Refusal(
        "hostile-interface-names",
        MUST,
        spec.IFNAME,
        "The interface gets another name than the runtime was told, or names files elsewhere.",
        [Mistake(f"the name {name!r}", environ={"CNI_IFNAME": name}) for name in _IFNAMES],
    ),
    Refusal(
        "unknown-commands",
        SHOULD,
        spec.error_code(4),
        "A verb of a later specification seems to succeed without being carried out.",
        [Mistake(f"the verb {verb!r}", [verb]) for verb in ("NOPE", "add", "ADD ")],
        code=4,
    ),
    Refusal(
        "damaged-configuration-has-code-6",
        SHOULD,
        spec.error_code(6),
        "Callers cannot tell a damaged file from a wrong value.",
        [
            Mistake("an empty configuration", stdin=_always(b"")),
            Mistake("the first byte of the configuration", stdin=lambda whole: whole[:1]),
            Mistake("a configuration without its last byte", stdin=lambda whole: whole[:-1]),
            Mistake("a configuration with a letter behind it", stdin=lambda whole: whole + b"x"),
            Mistake("a byte of zeros", stdin=_always(b"\0")),
            Mistake("a byte of ones", stdin=_always(b"\xff")),
        ],
        code=6,
    ),
    Refusal(
        "hostile-network-names",
        MUST,
        spec.NETWORK_NAME,
        "The name becomes a path: state of one network ends up in another's directory, or anywhere.",
        [Mistake(f"the network name {name!r}", keys={"name": name}) for name in _NETWORKS],
    ),
    Refusal(
        "invalid-configuration-has-code-7",
        SHOULD,
        spec.error_code(7),
        "Callers that act on the code cannot tell a wrong configuration from a broken network.",
        [Mistake(f"the network name {name!r}", keys={"name": name}) for name in (None, "../x")],
        code=7,
    ),
):

    def _refuses(run: CaseRun, mistakes: Sequence[Mistake] = _refusal.mistakes, code: int = _refusal.code) -> None:
        for number, mistake in enumerate(mistakes):
            container = run.container(f"c{number}")
            stdin = mistake.stdin(json.dumps(run.document()).encode()) if mistake.stdin else None
            for verb in mistake.verbs:
                response = run.request(verb, container, environ=mistake.environ, stdin=stdin, **mistake.keys)
                if code:
                    response.must_have_code(code, f" for {mistake.what}")
                else:
                    response.must_fail(f"an error for {mistake.what}")

    chapter.add(_refusal.case, _refusal.level, _refusal.sentence, _refuses, means=_refusal.means)


@chapter.should(
    spec.ERROR_KEYS.with_note("And nothing else: a runtime parses all of stdout."),
    means="The runtime shows a parse error in place of the plugin's reason, or nothing at all.",
    shares="failures",
)
def failure_prints_one_error_object(run: CaseRun) -> None:
    for response in run.once(ask_what_fails):
        document = _one_document(response.must_fail())
        code = document.get("code") if isinstance(document, dict) else None
        if type(code) is not int or not isinstance(document.get("msg"), str) or not document["msg"]:
            raise Broken("an object with a numeric code and a text msg", response.show())
        if not isinstance(document.get("details", ""), str):
            raise Broken("text in details, where there are any", response.show())


@chapter.should(
    spec.ERROR_VERSION.with_note("The reference SDK never prints it, so no runtime relies on it."),
    means="Nothing today.",
    shares="failures",
)
def error_objects_tell_the_version(run: CaseRun) -> None:
    for response in run.once(ask_what_fails):
        document = response.must_fail().try_document()
        if isinstance(document, dict) and not isinstance(document.get("cniVersion"), str):
            raise Broken("cniVersion in the error object", response.show())


@chapter.must(spec.error_code(4), means="A mistake of the runtime is taken for another failure, and is hard to find.")
def required_variables(run: CaseRun) -> None:
    container = run.container()
    required = {"ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), "DEL": ("CNI_CONTAINERID", "CNI_IFNAME")}
    if run.subject.checks:
        required["CHECK"] = required["ADD"]
    for verb, names in required.items():
        for name in names:
            for value in (None, ""):
                response = run.request(verb, container, environ={name: value})
                response.must_fail(f"an error when {name} is {'missing' if value is None else 'empty'}")
                if name not in response.told:
                    raise Broken(f"{verb}: an error that names {name}", response.show())


@chapter.should(
    spec.error_code(1), means="A configuration of a later specification is half understood, instead of refused."
)
def unsupported_version(run: CaseRun) -> None:
    for version in ("99.0.0", "0.0.1", "one"):
        response = run.request("ADD", run.container(f"c{len(run.script)}"), cniVersion=version)
        response.must_fail(f"an error for cniVersion {version}")
        if version != "one":
            response.must_have_code(1)


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
        document = _one_document(response)
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
    document = _one_document(response)
    if document.get("interfaces") or any("interface" in each for each in document.get("ips", [])):
        raise Broken("a result without interfaces", response.show())


@chapter.must(
    spec.IPAM_DETERMINES,
    means="The container has no address, though its network's configuration asks for one.",
    kinds=IPAM,
)
def ipam_returns_addresses(run: CaseRun) -> None:
    response = run.request("ADD", run.container()).must_succeed()
    if not _one_document(response).get("ips"):
        raise Broken("a result with addresses", response.show())


@interfaces.must(
    spec.EXIT_STATUS.with_note("An ADD without a container is a failure."),
    means="A file that is not a namespace is taken for one: the host's own network is changed.",
)
def netns_is_no_namespace(run: CaseRun) -> None:
    for response in _adds_without_namespace(run, run.container()):
        response.must_fail("an error, since CNI_NETNS is no network namespace")


@interfaces.opinion(
    spec.ADD_TAKES_EXISTING.with_note("What it returns with an error for is not touched by it."),
    means="An interface that another program made is taken over, or the host's own network is changed.",
)
def a_refused_add_changes_nothing(run: CaseRun) -> None:
    run.warm()
    adds = _adds_without_namespace(run, run.container())
    with run.changing_nothing("by an ADD that cannot work"):
        for _ in adds:
            pass
    if run.subject.ifname != "lo":
        container = run.container("c2")
        run.occupy(container)
        with run.changing_nothing("by an ADD for an interface that exists"):
            run.request("ADD", container)


def _adds_without_namespace(run: CaseRun, container: Container) -> Iterator[Response]:
    run.shell("echo text >/run/plain-file")  # no file of an attachment: it does not count as a change
    for path in ("/run/plain-file", "/run/absent", "/run", "/proc/self/ns/uts"):
        yield run.request("ADD", container, environ={"CNI_NETNS": path})


def ask_what_fails(run: CaseRun) -> list[Response]:
    """Send requests that have to fail, and return the responses."""
    container = run.container()
    return [
        run.request("ADD", container, environ={"CNI_IFNAME": "a/b"}),
        run.request("ADD", container, stdin=b"{"),
        run.request("ADD", container, cniVersion="99.0.0"),
        run.request("DEL", container, environ={"CNI_CONTAINERID": "../x"}),
    ]


def _one_document(response: Response) -> Any:
    try:
        return json.loads(response.stdout)
    except ValueError as exc:
        raise Broken("exactly one JSON document on stdout", response.show()) from exc


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
