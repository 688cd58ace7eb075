"""Attach and detach (spec §2 "ADD", "DEL")."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from . import _sentences as spec
from ._processes import feed, wait_until
from ._terms import ATTACHING, INTERFACE, SHOULD
from .case import Chapter
from .case_run import CaseRun
from .judgement import Broken, Kind, NotApplicable, Sentence, listed

chapter = Chapter()
interfaces = chapter.of(INTERFACE)

_STUCK = "The container cannot be removed: kubelet retries for ever, and its address is not freed."


@interfaces.should(spec.ADD_CREATES, means="The container has no interface, or one of another name.")
def add_creates_the_interface(run: CaseRun) -> None:
    container = run.container()
    run.request("ADD", container).must_succeed()
    inside = [link.name for link in run.state().of(container.name).links]
    if run.subject.ifname not in inside:
        raise Broken(f"a link {run.subject.ifname} in the container", f"links {listed(inside)}")


@interfaces.should(spec.SUCCESS_SANDBOX, means="The runtime does not find the container's addresses in the result.")
def the_sandbox_is_the_netns(run: CaseRun) -> None:
    container = run.container()
    result = run.add(container)
    told = [each.sandbox for each in result.interfaces if each.name == run.subject.ifname]
    if told != [container.netns]:
        raise Broken(f"{run.subject.ifname} with sandbox {container.netns} in the result", str(result.interfaces))


@interfaces.must(spec.SUCCESS_IPS, means="What `kubectl` and `podman inspect` show is not what the container has.")
def the_result_is_what_the_kernel_has(run: CaseRun) -> None:
    container = run.container()
    result = run.add(container)
    state = run.state()
    inside, outside = state.of(container.name), state.of("")
    for ip in result.ips:
        if ip.interface is None:  # it may be one outside the container
            present = {each.address for each in (*inside.addresses, *outside.addresses)}
        elif ip.interface >= len(result.interfaces):
            raise Broken(f"the address {ip.address} with the index of an interface", f"{ip} of {result.interfaces}")
        else:
            of = result.interfaces[ip.interface]
            where = inside if of.sandbox else outside
            present = {each.address for each in where.addresses if each.link == of.name}
        if str(ip.address) not in present:
            raise Broken(f"the address {ip.address} where the result tells it", f"addresses {listed(present)}")
    ways = {each.dst for each in inside.routes}
    for route in result.routes:
        if str(route.dst) not in ways:
            raise Broken(f"a route to {route.dst} in the container", f"routes to {listed(ways)}")


@interfaces.must(
    spec.SUCCESS_INTERFACES, means="Tools that look for a container's interface, or for its host end, do not find it."
)
def interfaces_of_the_result_exist(run: CaseRun) -> None:
    container = run.container()
    result = run.add(container)
    state = run.state()
    if run.subject.ifname not in [each.name for each in result.interfaces]:
        raise Broken(f"{run.subject.ifname} in the result", str(result.interfaces))
    for each in result.interfaces:
        own = each.name == run.subject.ifname
        if each.sandbox and not own:
            continue
        place = container.name if own else ""
        links = [link for link in state.of(place).links if link.name == each.name]
        if not links or (each.mac and each.mac.lower() != links[0].mac) or (each.mtu and each.mtu != links[0].mtu):
            expected = f"a link that is as the result tells in {place or 'the host'}: {each}"
            raise Broken(expected, listed(map(str, links)) or "no such link")


@interfaces.must(
    spec.ADD_TAKES_EXISTING, means="An interface that another program made is taken over, and deleted later."
)
def the_interface_exists_already(run: CaseRun) -> None:
    if run.subject.ifname == "lo":
        raise NotApplicable("it works on lo, which always exists")
    container = run.container()
    run.occupy(container)
    run.request("ADD", container).must_fail(f"an error, since {run.subject.ifname} exists")


@chapter.should(spec.DEL_UNDOES, means="Interfaces, rules and addresses of dead containers pile up.")
def del_leaves_nothing(run: CaseRun) -> None:
    run.warm()
    container = run.container()
    with run.leaving_nothing("after ADD and DEL"):
        run.add(container)
        run.delete(container)


@chapter.must(spec.DEL_AGAIN, means=_STUCK)
def del_twice(run: CaseRun) -> None:
    container = run.container()
    run.add(container)
    conf = run.document(container)
    run.delete(container)
    run.request("DEL", container).must_succeed("success the second time")
    run.request("DEL", container, prevResult=conf.get("prevResult")).must_succeed("success the third time")


@chapter.must(spec.DEL_AGAIN, means=_STUCK)
def del_of_a_container_never_added(run: CaseRun) -> None:
    run.request("DEL", run.container(), prevResult=None).must_succeed("success for a container never added")


class IncompleteDel(NamedTuple):
    """DEL from which something is missing that ADD had.

    Attributes:
        case: The name of the case.
        sentence: The sentence that the plugin is held to.
        what: The missing thing, for messages.
        means: Consequence of a failure for an operator.
        commands: Shell commands before the DEL, ``@`` for the name of the container.
        netns: ``CNI_NETNS`` of the request; None means as it was at ADD.
        prev_result: Send the result of the ADD along.
    """

    case: str
    sentence: Sentence
    what: str
    means: str
    commands: str = ""
    netns: str | None = None
    prev_result: bool = True


_LEAKS = "What a container had leaks when its namespace went first, as after every node reboot and OOM kill."

for _less in (
    IncompleteDel(
        "del-without-netns", spec.DEL_WITHOUT, "with an empty CNI_NETNS", _LEAKS, commands="ip netns del @", netns=""
    ),
    IncompleteDel(
        "del-without-netns-and-prev-result",
        spec.DEL_WITHOUT,
        "with an empty CNI_NETNS and without prevResult",
        _LEAKS,
        commands="ip netns del @",
        netns="",
        prev_result=False,
    ),
    IncompleteDel(
        "del-without-prev-result",
        spec.DEL_WITHOUT,
        "without prevResult",
        "After a failed ADD runtimes send no prevResult: what it left leaks.",
        prev_result=False,
    ),
    IncompleteDel(
        "del-with-a-netns-that-is-gone", spec.DEL_WITH_LESS, "with a CNI_NETNS that is gone", _STUCK, "ip netns del @"
    ),
    # As when only the mount is gone: after a reboot with a persistent /run, or `umount`.
    IncompleteDel(
        "del-with-a-netns-that-is-a-plain-file",
        spec.DEL_WITH_LESS,
        "with a CNI_NETNS that is a plain file",
        _STUCK,
        "ip netns del @; : >/run/netns/@",
    ),
):

    def _with_less(run: CaseRun, less: IncompleteDel = _less) -> None:
        container, known = run.fresh_container()
        run.add(container)
        if less.commands:
            run.shell(less.commands.replace("@", container.name))
        keys: dict[str, Any] = {} if less.prev_result else {"prevResult": None}
        environ = {} if less.netns is None else {"CNI_NETNS": less.netns}
        with run.leaving_nothing(f"after DEL {less.what}", known):
            run.request("DEL", container, environ=environ, **keys).must_succeed(f"success {less.what}")

    chapter.add(_less.case, SHOULD, _less.sentence, _with_less, means=_less.means)


@chapter.opinion(
    spec.SAME_CONFIGURATION.with_note("But administrators edit configurations while containers run."), means=_STUCK
)
def del_with_a_changed_configuration(run: CaseRun) -> None:
    container, known = run.fresh_container()
    run.add(container)
    changed: dict[str, Any] = {key: None for key in run.subject.conf if key not in ("ipam", "runtimeConfig")}
    with run.leaving_nothing("after DEL with other keys in the configuration", known):
        run.request("DEL", container, **{**changed, "mtu": 1280}).must_succeed("success with other keys")


@chapter.opinion(
    spec.NOT_PARALLEL.with_note("Kubelet does, when an ADD takes longer than it waits."),
    means="What an ADD does after the DEL that came too early is never taken back.",
)
def del_before_add_has_finished(run: CaseRun) -> None:
    container, known = run.fresh_container()
    data = json.dumps(run.document(container)).encode()
    sent = data if run.subject.delegates else data[: len(data) // 2]
    if run.subject.delegates:
        calls = len(run.stub.calls)
        run.stub.hang("ADD")
    process = run.start("ADD", container, data=data)
    feed(process, sent, close=run.subject.delegates)
    if run.subject.delegates:
        wait_until(lambda: len(run.stub.calls) > calls, 30)
    early = run.request("DEL", container, prevResult=run.prev_result(container))
    if run.subject.delegates:
        run.stub.recover("ADD")
    run.processes.finish("ADD", process, data[len(sent) :] if len(sent) < len(data) else None)
    run.script.append("# the DEL above ran while the ADD was not finished")
    if early.timed_out:
        raise Broken("an end of the DEL that came while ADD was not finished", early.show())
    run.undo(container, known, "an ADD, and a DEL before it had finished")


@chapter.should(spec.PRIMARY_KEY, means="Removing one interface of a pod cuts off the other.", kinds=ATTACHING)
def two_attachments_of_one_container(run: CaseRun) -> None:
    if run.subject.ifname == "lo":
        raise NotApplicable("it works on lo, of which there is one")
    container = run.container()
    if run.subject.kind is Kind.CHAINED:
        run.attach(container, "net1")
    run.add(container)
    run.request("ADD", container, "net1").must_succeed("success for a second interface of the container")
    before = run.footprint()
    healthy = run.subject.checks and run.check(container, "net1").status == 0
    run.delete(container)
    if healthy:
        run.check(container, "net1").must_succeed("success for net1 after DEL of the other interface")
    gone = {item for item in before - run.footprint() if "net1" in item}
    if gone:
        raise Broken("all of net1 left in place by DEL of the other interface", listed(gone))
    run.delete(container, "net1")


@interfaces.should(
    spec.ONE_DOCUMENT.with_note("One of the two. The reference SDK prints the error behind the result."),
    means="The runtime shows a parse error in place of the reason.",
)
def the_plugins_own_netns_gets_one_document(run: CaseRun) -> None:
    response = run.request("ADD", run.container(), environ={"CNI_NETNS": "/proc/self/ns/net"})
    if not isinstance(response.try_document(), dict):
        raise Broken("exactly one JSON document on stdout", response.show())


_NOT_WRITTEN = "That it must not be the plugin's own namespace is not written; later reference SDKs"


@interfaces.opinion(
    spec.ADD_CREATES.with_note(f"{_NOT_WRITTEN} refuse it, with code 8."),
    means="A runtime that passes its own namespace by mistake changes the network of the node.",
)
def the_plugins_own_netns_is_refused(run: CaseRun) -> None:
    container = run.container()
    before = run.warm()
    with run.leaving_nothing("by an ADD into the plugin's own namespace", before):
        response = run.request("ADD", container, environ={"CNI_NETNS": "/proc/self/ns/net"})
        response.must_fail("an error when CNI_NETNS is the plugin's own")


@interfaces.opinion(
    spec.DEL_UNDOES.with_note(f"{_NOT_WRITTEN} say so, with code 8, when it is done."),
    means="A runtime that passes its own namespace by mistake takes the node off the network.",
)
def del_spares_the_plugins_own_netns(run: CaseRun) -> None:
    run.warm()
    container, ifname = run.container(), run.subject.ifname
    if ifname != "lo":
        run.shell(f"ip link add {ifname} type veth peer name foreign0 && ip link set {ifname} up")
    with run.changing_nothing("by a DEL in the plugin's own namespace"):
        run.request("DEL", container, environ={"CNI_NETNS": "/proc/self/ns/net"})


@chapter.opinion(
    spec.DEL_AGAIN.with_note("And so for a container that was never added: there is nothing to change."),
    means="Each DEL of an unknown container, which runtimes send after a restart, leaves something on the node.",
)
def del_of_a_container_never_added_changes_nothing(run: CaseRun) -> None:
    run.warm()
    container = run.container()
    with run.changing_nothing("by DEL of what was never there"):
        run.request("DEL", container, prevResult=None)
