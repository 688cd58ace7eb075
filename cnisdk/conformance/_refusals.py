"""Requests that have to be refused, and the errors (spec §2 "Parameters", §5 "Error")."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..testing.hosts import Container
from . import _sentences as spec
from ._response import Response
from ._terms import INTERFACE, MUST, SHOULD
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, Level, Sentence

chapter = Chapter()
interfaces = chapter.of(INTERFACE)


class Mistake(NamedTuple):
    """A request that no plugin may accept.

    Attributes:
        what: The mistake, for messages.
        verbs: The verbs to send it with.
        environ: Variables to set; None removes one.
        stdin: Function from the whole configuration to the bytes to send instead; None sends the configuration.
        keys: Keys to set in the configuration; None removes one.
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
        means: Consequence of a failure for an operator.
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
        document = response.must_fail().one_document()
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
