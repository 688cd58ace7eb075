"""Attach and detach (spec §2 "ADD", "DEL")."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .bench import Bench, listed, until
from .case import Chapter
from .judgement import ATTACHING, INTERFACE, Broken, Kind, Level, NotApplicable, Sentence
from .sentences import (
    ADD_CREATES,
    ADD_TAKES_EXISTING,
    DEL_AGAIN,
    DEL_UNDOES,
    DEL_WITH_LESS,
    DEL_WITHOUT,
    NOT_PARALLEL,
    ONE_DOCUMENT,
    PRIMARY_KEY,
    SAME_CONFIGURATION,
    SUCCESS_INTERFACES,
    SUCCESS_IPS,
    SUCCESS_SANDBOX,
)

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

_STUCK = "The container cannot be removed: kubelet retries for ever, and its address is not freed."


@case(
    SHOULD,
    ADD_CREATES,
    means="The container has no interface, or one of another name.",
    kinds=INTERFACE,
)
def add_creates_the_interface(bench: Bench) -> None:
    container = bench.container()
    bench.request("ADD", container).must_succeed()
    inside = [link.name for link in bench.state().of(container.name).links]
    if bench.subject.ifname not in inside:
        raise Broken(f"a link {bench.subject.ifname} in the container", f"links {listed(inside)}")


@case(
    SHOULD,
    SUCCESS_SANDBOX,
    means="The runtime does not find the container's addresses in the result.",
    kinds=INTERFACE,
)
def the_sandbox_is_the_netns(bench: Bench) -> None:
    container = bench.container()
    result = bench.add(container)
    told = [each.sandbox for each in result.interfaces if each.name == bench.subject.ifname]
    if told != [container.netns]:
        raise Broken(f"{bench.subject.ifname} with sandbox {container.netns} in the result", str(result.interfaces))


@case(
    MUST,
    SUCCESS_IPS,
    means="What `kubectl` and `podman inspect` show is not what the container has.",
    kinds=INTERFACE,
)
def the_result_is_what_the_kernel_has(bench: Bench) -> None:
    container = bench.container()
    result = bench.add(container)
    state = bench.state()
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


@case(
    MUST,
    SUCCESS_INTERFACES,
    means="Tools that look for a container's interface, or for its host end, do not find it.",
    kinds=INTERFACE,
)
def interfaces_of_the_result_exist(bench: Bench) -> None:
    container = bench.container()
    result = bench.add(container)
    state = bench.state()
    if bench.subject.ifname not in [each.name for each in result.interfaces]:
        raise Broken(f"{bench.subject.ifname} in the result", str(result.interfaces))
    for each in result.interfaces:
        own = each.name == bench.subject.ifname
        if each.sandbox and not own:
            continue
        place = container.name if own else ""
        links = [link for link in state.of(place).links if link.name == each.name]
        if not links or (each.mac and each.mac.lower() != links[0].mac) or (each.mtu and each.mtu != links[0].mtu):
            expected = f"a link that is as the result tells in {place or 'the host'}: {each}"
            raise Broken(expected, listed(map(str, links)) or "no such link")


@case(
    MUST,
    ADD_TAKES_EXISTING,
    means="An interface of somebody else is taken over, and deleted later.",
    kinds=INTERFACE,
)
def the_interface_exists_already(bench: Bench) -> None:
    if bench.subject.ifname == "lo":
        raise NotApplicable("it works on lo, which always exists")
    container = bench.container()
    bench.occupy(container)
    bench.request("ADD", container).must_fail(f"an error, since {bench.subject.ifname} exists")


@case(SHOULD, DEL_UNDOES, means="Interfaces, rules and addresses of dead containers pile up.")
def del_leaves_nothing(bench: Bench) -> None:
    bench.warm()
    container = bench.container()
    with bench.leaving_nothing("after ADD and DEL"):
        bench.add(container)
        bench.delete(container)


@case(MUST, DEL_AGAIN, means=_STUCK)
def del_twice(bench: Bench) -> None:
    container = bench.container()
    bench.add(container)
    conf = bench.document(container)
    bench.delete(container)
    bench.request("DEL", container).must_succeed("success the second time")
    bench.request("DEL", container, prevResult=conf.get("prevResult")).must_succeed("success the third time")


@case(MUST, DEL_AGAIN, means=_STUCK)
def del_of_a_container_never_added(bench: Bench) -> None:
    bench.request("DEL", bench.container(), prevResult=None).must_succeed("success for a container never added")


class Less(NamedTuple):
    """What a DEL has to do without.

    Attributes:
        case: The name of the case.
        sentence: What the plugin is held to.
        what: It, in words.
        means: What a failure means for an operator.
        commands: What happens to the container before, ``@`` for its name.
        netns: ``CNI_NETNS`` of the request; None means as it was at ADD.
        prev_result: The result of the ADD is sent along.
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
    Less("del-without-netns", DEL_WITHOUT, "with an empty CNI_NETNS", _LEAKS, commands="ip netns del @", netns=""),
    Less(
        "del-without-netns-and-prev-result",
        DEL_WITHOUT,
        "with an empty CNI_NETNS and without prevResult",
        _LEAKS,
        commands="ip netns del @",
        netns="",
        prev_result=False,
    ),
    Less(
        "del-without-prev-result",
        DEL_WITHOUT,
        "without prevResult",
        "After a failed ADD runtimes send no prevResult: what it left leaks.",
        prev_result=False,
    ),
    Less("del-with-a-netns-that-is-gone", DEL_WITH_LESS, "with a CNI_NETNS that is gone", _STUCK, "ip netns del @"),
    # As when only the mount is gone: after a reboot with a persistent /run, or `umount`.
    Less(
        "del-with-a-netns-that-is-a-plain-file",
        DEL_WITH_LESS,
        "with a CNI_NETNS that is a plain file",
        _STUCK,
        "ip netns del @; : >/run/netns/@",
    ),
):

    def _with_less(bench: Bench, less: Less = _less) -> None:
        before = bench.warm()
        container = bench.container()
        known = before if less.commands else before | bench.footprint()
        bench.add(container)
        if less.commands:
            bench.shell(less.commands.replace("@", container.name))
        keys: dict[str, Any] = {} if less.prev_result else {"prevResult": None}
        environ = {} if less.netns is None else {"CNI_NETNS": less.netns}
        with bench.leaving_nothing(f"after DEL {less.what}", known):
            bench.request("DEL", container, environ=environ, **keys).must_succeed(f"success {less.what}")

    chapter.add(_less.case, SHOULD, _less.sentence, _with_less, means=_less.means)


@case(
    OPINION,
    SAME_CONFIGURATION,
    note="But administrators edit configurations while containers run.",
    means=_STUCK,
)
def del_with_a_changed_configuration(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    known = bench.footprint()
    bench.add(container)
    changed: dict[str, Any] = {key: None for key in bench.subject.conf if key not in ("ipam", "runtimeConfig")}
    with bench.leaving_nothing("after DEL with other keys in the configuration", before | known):
        bench.request("DEL", container, **{**changed, "mtu": 1280}).must_succeed("success with other keys")


@case(
    OPINION,
    NOT_PARALLEL,
    note="Kubelet does, when an ADD takes longer than it waits.",
    means="What an ADD does after the DEL that came too early is never taken back.",
)
def del_before_add_has_finished(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    known = before | bench.footprint()
    data = json.dumps(bench.document(container)).encode()
    sent = data if bench.subject.delegates else data[: len(data) // 2]
    if bench.subject.delegates:
        calls = len(bench.stub.calls)
        bench.stub.hang("ADD")
    process = bench.start("ADD", container, data=data)
    assert process.stdin is not None
    process.stdin.write(sent)
    process.stdin.flush()
    if bench.subject.delegates:
        process.stdin.close()
        process.stdin = None
        until(lambda: len(bench.stub.calls) > calls, 30)
    early = bench.request("DEL", container, prevResult=bench.prev_result(container))
    if bench.subject.delegates:
        bench.stub.recover("ADD")
    bench.finish("ADD", process, data[len(sent) :] if len(sent) < len(data) else None)
    bench.script.append("# the DEL above ran while the ADD was not finished")
    if early.timed_out:
        raise Broken("an end of the DEL that came while ADD was not finished", early.show())
    with bench.leaving_nothing("after an ADD, a DEL before it had finished, and a DEL", known):
        bench.request("DEL", container, prevResult=bench.prev_result(container)).must_succeed("success the second time")


@case(
    SHOULD,
    PRIMARY_KEY,
    means="Removing one interface of a pod cuts off the other.",
    kinds=ATTACHING,
)
def two_attachments_of_one_container(bench: Bench) -> None:
    if bench.subject.ifname == "lo":
        raise NotApplicable("it works on lo, of which there is one")
    container = bench.container()
    if bench.subject.kind is Kind.CHAINED:
        bench.attach(container, "net1")
    bench.add(container)
    bench.request("ADD", container, "net1").must_succeed("success for a second interface of the container")
    before = bench.footprint()
    healthy = bench.subject.checks and bench.check(container, "net1").status == 0
    bench.delete(container)
    if healthy:
        bench.check(container, "net1").must_succeed("success for net1 after DEL of the other interface")
    gone = {item for item in before - bench.footprint() if "net1" in item}
    if gone:
        raise Broken("all of net1 left in place by DEL of the other interface", listed(gone))
    bench.delete(container, "net1")


@case(
    SHOULD,
    ONE_DOCUMENT,
    note="One of the two: a runtime parses all of stdout. The reference SDK finds out that the namespace is the "
    "plugin's own when the result is printed already.",
    means="The runtime shows a parse error in place of the reason.",
    kinds=INTERFACE,
)
def the_plugins_own_netns_gets_one_document(bench: Bench) -> None:
    answer = bench.request("ADD", bench.container(), environ={"CNI_NETNS": "/proc/self/ns/net"})
    if not isinstance(answer.try_document(), dict):
        raise Broken("exactly one JSON document on stdout", answer.show())


_NOT_WRITTEN = "That it must not be the plugin's own namespace is not written; later reference SDKs"


@case(
    OPINION,
    ADD_CREATES,
    note=f"{_NOT_WRITTEN} refuse it, with code 8.",
    means="A runtime that passes its own namespace by mistake changes the network of the node.",
    kinds=INTERFACE,
)
def the_plugins_own_netns_is_refused(bench: Bench) -> None:
    container = bench.container()
    before = bench.warm()
    with bench.leaving_nothing("by an ADD into the plugin's own namespace", before):
        answer = bench.request("ADD", container, environ={"CNI_NETNS": "/proc/self/ns/net"})
        answer.must_fail("an error when CNI_NETNS is the plugin's own")


@case(
    OPINION,
    DEL_UNDOES,
    note=f"{_NOT_WRITTEN} say so, with code 8, when it is done.",
    means="A runtime that passes its own namespace by mistake takes the node off the network.",
    kinds=INTERFACE,
)
def del_spares_the_plugins_own_netns(bench: Bench) -> None:
    bench.warm()
    container, ifname = bench.container(), bench.subject.ifname
    if ifname != "lo":
        bench.shell(f"ip link add {ifname} type veth peer name foreign0 && ip link set {ifname} up")
    with bench.changing_nothing("by a DEL in the plugin's own namespace"):
        bench.request("DEL", container, environ={"CNI_NETNS": "/proc/self/ns/net"})


@case(
    OPINION,
    DEL_AGAIN,
    note="And so for a container that was never added: there is nothing to change.",
    means="Each DEL of an unknown container, which runtimes send after a restart, leaves something on the node.",
)
def del_of_a_container_never_added_changes_nothing(bench: Bench) -> None:
    bench.warm()
    container = bench.container()
    with bench.changing_nothing("by DEL of what was never there"):
        bench.request("DEL", container, prevResult=None)
