"""Each code of the table of errors means what the table says (spec §5 "Error")."""

from __future__ import annotations

import os
from typing import Any

from . import _sentences as spec
from ._refusals import ask_what_fails
from ._terms import INTERFACE
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken

chapter = Chapter()
interfaces = chapter.of(INTERFACE)

# 8 (a namespace that cannot be used) is in the reference SDK's table only.
_WELL_KNOWN = {1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51}


@chapter.should(
    spec.ERROR_CODES.with_note("8, a namespace that cannot be used, is in the table of the reference SDK."),
    means="Callers that act on the code do the wrong thing; code 0 looks like no error at all.",
    shares="failures",
)
def codes_are_of_the_table(run: CaseRun) -> None:
    container = run.container("odd")
    responses = [
        *run.once(ask_what_fails),
        run.request("ADD", container, environ={"CNI_NETNS": "/run/absent"}),
        run.request("ADD", container, name=None),
    ]
    if run.subject.delegates:
        run.stub.answer("ADD", "", status=1, stderr="it fails and prints nothing\n")
        responses.append(run.request("ADD", container))
    for response in responses:
        if response.code is not None and response.code < 100 and response.code not in _WELL_KNOWN:
            raise Broken("a code of the table, or one from 100 on", response.show())


@chapter.must(spec.error_code(2), means="The operator cannot tell which key of the configuration to change.")
def unsupported_fields_are_named(run: CaseRun) -> None:
    key: dict[str, Any] = {"org.example/unsupported": "value-7"}
    response = run.request("ADD", run.container(), **key)
    if response.code == 2 and not ("org.example/unsupported" in response.told and "value-7" in response.told):
        raise Broken("the key org.example/unsupported and its value in the message", response.show())


@interfaces.opinion(
    spec.error_code(3), means="The runtime is told that there is nothing to clean up, and what is left stays."
)
def after_code_3_nothing_is_left(run: CaseRun) -> None:
    container, known = run.fresh_container()
    response = run.request("ADD", container, environ={"CNI_NETNS": "/run/netns/absent"})
    if response.code == 3:
        run.must_be_nothing(run.remains(known), "by an ADD that failed with code 3")


@chapter.should(
    spec.error_code(5), means="A runtime that passes the wrong descriptor is told that its configuration is damaged."
)
def unreadable_stdin_has_code_5(run: CaseRun) -> None:
    container = run.container()
    for_writing = os.open(os.devnull, os.O_WRONLY)
    try:
        process = run.start("ADD", container, stdin=for_writing)
    finally:
        os.close(for_writing)
    run.script[-1] = f"{run.script[-1].partition(' <<')[0]} 0>/dev/null"
    run.processes.finish("ADD", process).must_have_code(5, ", since stdin cannot be read")
