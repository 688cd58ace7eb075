"""Plugins that come after others in a list (spec §2 "ADD", §3): they get the result so far as prevResult."""

from __future__ import annotations

from typing import Any

from . import _sentences as spec
from ._terms import CHAINED
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken

chapter = Chapter(kinds=CHAINED)

_FOREIGN: dict[str, Any] = {
    "interfaces": [{"name": "foreign0", "mac": "02:00:00:00:0f:01", "sandbox": "/run/netns/foreign"}],
    "ips": [{"address": "192.0.2.7/24"}],
    "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
    "dns": {"nameservers": ["192.0.2.53"], "search": ["example.org"], "options": ["ndots:5"]},
}


@chapter.must(
    spec.PREV_RESULT, means="The runtime does not learn the container's addresses: no pod IP, no published ports."
)
def prev_result_is_passed_through(run: CaseRun) -> None:
    container = run.container()
    conf = run.document(container)
    before: dict[str, Any] = conf["prevResult"]
    response = run.request("ADD", container).must_succeed()
    after = response.try_document()
    if not isinstance(after, dict):
        raise Broken("a result on stdout", response.show())
    for key in ("interfaces", "ips", "routes", "dns"):
        if before.get(key) and not after.get(key):
            raise Broken(f"{key} of prevResult in the result", response.show())
    told = [each.get("name") for each in after["interfaces"]]
    for each in before["interfaces"]:
        if each["name"] not in told:
            raise Broken(f"the interface {each['name']} of prevResult in the result", response.show())
    addresses = [each.get("address") for each in after["ips"]]
    for each in before["ips"]:
        if each["address"] not in addresses:
            raise Broken(f"the address {each['address']} of prevResult in the result", response.show())


@chapter.must(
    spec.ADD_HANDLES_PREV_RESULT,
    means="Routes or name servers of the plugins before get lost on the way to the runtime.",
)
def every_part_of_prev_result_survives(run: CaseRun) -> None:
    container = run.container()
    known = run.document(container)["prevResult"]
    shift = len(known["interfaces"])
    together = {
        **known,
        "interfaces": [*known["interfaces"], *_FOREIGN["interfaces"]],
        "ips": [*known["ips"], *({**each, "interface": shift} for each in _FOREIGN["ips"])],
        "routes": [*known.get("routes", []), *_FOREIGN["routes"]],
        "dns": _FOREIGN["dns"],
    }
    together = run.in_version(together, run.subject.version)
    response = run.request("ADD", container, prevResult=together).must_succeed()
    after = response.try_document() or {}
    # A plugin may add to it, or change what is of its own interface.
    told = {(each.get("dst"), each.get("gw")) for each in after.get("routes", [])}
    for each in _FOREIGN["routes"]:
        if (each["dst"], each["gw"]) not in told:
            raise Broken(f"the route {each} of prevResult in the result", str(after.get("routes")))
    for key, values in _FOREIGN["dns"].items():
        if not set(values) <= set(after.get("dns", {}).get(key, [])):
            raise Broken(f"{key} {values} of prevResult in the result", str(after.get("dns")))


@chapter.should(
    spec.DEL_UNDOES.with_note("A chained plugin did not make the interface, so it is left to undo what it changed."),
    means="A network that is changed while containers run keeps MTU and hardware addresses of the old one.",
)
def del_undoes_changes(run: CaseRun) -> None:
    container = run.container()
    before = run.state().links
    run.add(container)
    run.delete(container)
    after = run.state().links
    for old in before:
        for new in after:
            if (new.place, new.name) == (old.place, old.name) and new != old:
                raise Broken(f"after ADD and DEL, as before: {old}", str(new))


@chapter.opinion(
    spec.ADD_HANDLES_PREV_RESULT.with_note(
        "A chained plugin cannot work without the result of the plugins before it, and does well to say so."
    ),
    means="A list with the plugins in the wrong order seems to work.",
)
def add_without_prev_result(run: CaseRun) -> None:
    response = run.request("ADD", run.container(), prevResult=None).must_fail("an error without prevResult")
    if response.code is None:
        raise Broken("an error object on stdout", response.show())
