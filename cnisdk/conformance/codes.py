"""Each code of the table of errors means what the table says (spec §5 "Error")."""

from __future__ import annotations

import os
from typing import Any

from .bench import Bench
from .case import Chapter
from .judgement import INTERFACE, Broken, Level
from .sentences import ERROR_CODES, error_code

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

# 8 (a namespace that cannot be used) is in the reference SDK's table only.
_WELL_KNOWN = {1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51}


@case(
    SHOULD,
    ERROR_CODES,
    note="8, a namespace that cannot be used, is in the table of the reference SDK.",
    means="Callers that act on the code do the wrong thing; code 0 looks like no error at all.",
)
def codes_are_of_the_table(bench: Bench) -> None:
    container = bench.container()
    answers = [
        bench.request("ADD", container, environ={"CNI_IFNAME": "a/b"}),
        bench.request("ADD", container, environ={"CNI_NETNS": "/run/absent"}),
        bench.request("ADD", container, stdin=b"{"),
        bench.request("ADD", container, name=None),
        bench.request("ADD", container, cniVersion="99.0.0"),
    ]
    if bench.subject.delegates:
        bench.stub.answer("ADD", "", status=1, stderr="it fails and prints nothing\n")
        answers.append(bench.request("ADD", container))
    for answer in answers:
        if answer.code is not None and answer.code < 100 and answer.code not in _WELL_KNOWN:
            raise Broken("a code of the table, or one from 100 on", answer.show())


@case(
    MUST,
    error_code(2),
    means="Nobody can tell which line of the configuration to change.",
)
def unsupported_fields_are_named(bench: Bench) -> None:
    key: dict[str, Any] = {"org.example/unsupported": "value-7"}
    answer = bench.request("ADD", bench.container(), **key)
    if answer.code == 2 and not ("org.example/unsupported" in answer.told and "value-7" in answer.told):
        raise Broken("the key org.example/unsupported and its value in the message", answer.show())


@case(
    OPINION,
    error_code(3),
    means="The runtime is told that there is nothing to clean up, and what is left stays.",
    kinds=INTERFACE,
)
def after_code_3_nothing_is_left(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    answer = bench.request("ADD", container, environ={"CNI_NETNS": "/run/netns/absent"})
    if answer.code == 3:
        with bench.leaving_nothing("by an ADD that failed with code 3", known):
            pass


@case(
    SHOULD,
    error_code(5),
    means="A runtime that passes the wrong descriptor is told that its configuration is damaged.",
)
def unreadable_stdin_has_code_5(bench: Bench) -> None:
    container = bench.container()
    for_writing = os.open(os.devnull, os.O_WRONLY)
    try:
        process = bench.start("ADD", container, stdin=for_writing)
    finally:
        os.close(for_writing)
    bench.script[-1] = f"{bench.script[-1].partition(' <<')[0]} 0>/dev/null"
    answer = bench.finish("ADD", process).must_fail("an error, since stdin cannot be read")
    if answer.code != 5:
        raise Broken("ADD: an error with code 5, since stdin cannot be read", answer.show())
