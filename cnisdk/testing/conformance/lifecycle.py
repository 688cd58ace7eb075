"""Attach and detach (spec §2 "ADD", "DEL")."""

from __future__ import annotations

import json
from typing import Any

from .bench import Bench, listed, until
from .case import ATTACHING, INTERFACE, Broken, Chapter, Kind, Level, NotApplicable

chapter = Chapter()
case = chapter.case

MUST, SHOULD, OPINION = Level.MUST, Level.SHOULD, Level.OPINION

_NO_ERROR = (
    "Plugins should generally complete a DEL action without error even if some resources are missing. For example, an "
    "IPAM plugin should generally release an IP allocation and return success even if the container network namespace "
    "no longer exists"
)
_STUCK = "The container cannot be removed: kubelet retries for ever, and its address is not freed."


@case(
    MUST,
    '§2 "ADD"',
    "create the interface defined by CNI_IFNAME inside the container at CNI_NETNS, or adjust [its] configuration",
    means="The container has no interface, or the runtime is told of another one.",
    kinds=INTERFACE,
)
def add_creates_the_interface(bench: Bench) -> None:
    container = bench.container()
    result = bench.add(container)
    ifname = bench.subject.ifname
    inside = {link.name: link for link in bench.state().of(container.name).links}
    if ifname not in inside:
        raise Broken(f"a link {ifname} in the container", f"links {listed(inside)}")
    told = [each for each in result.interfaces if each.sandbox]
    if [(each.name, each.sandbox) for each in told] != [(ifname, container.netns)]:
        raise Broken(f"{ifname} with sandbox {container.netns} in the result", str(result.interfaces))
    if told[0].mac and told[0].mac.lower() != inside[ifname].mac:
        raise Broken(f"the hardware address {inside[ifname].mac} in the result", told[0].mac)
    if told[0].mtu and told[0].mtu != inside[ifname].mtu:
        raise Broken(f"the MTU {inside[ifname].mtu} in the result", str(told[0].mtu))


@case(
    MUST,
    '§5 "ADD Success"',
    "ips: IPs assigned by this attachment. routes: Routes created by this attachment.",
    means="What `kubectl` and `podman inspect` show is not what the container has.",
    kinds=INTERFACE,
)
def the_result_is_what_the_kernel_has(bench: Bench) -> None:
    container = bench.container()
    result = bench.add(container)
    state = bench.state().of(container.name)
    present = {each.address for each in state.addresses}
    for ip in result.ips:
        if str(ip.address) not in present:
            raise Broken(f"the address {ip.address} in the container", f"addresses {listed(present)}")
        if ip.interface is None or result.interfaces[ip.interface].name != bench.subject.ifname:
            raise Broken(f"the address {ip.address} with the index of {bench.subject.ifname}", str(ip))
    ways = {each.dst for each in state.routes}
    for route in result.routes:
        if str(route.dst) not in ways:
            raise Broken(f"a route to {route.dst} in the container", f"routes to {listed(ways)}")


@case(
    MUST,
    '§5 "ADD Success"',
    "name, mac and sandbox of each interface [...] created by the attachment, including any host-level interfaces",
    means="Tools that look for a container's host end do not find it.",
    kinds=INTERFACE,
)
def interfaces_of_the_result_exist(bench: Bench) -> None:
    result = bench.add(bench.container())
    outside = {link.name: link.mac for link in bench.state().of("").links}
    for each in result.interfaces:
        if not each.sandbox and (each.name not in outside or (each.mac and each.mac.lower() != outside[each.name])):
            raise Broken(f"{each.name} with {each.mac} on the host", str(outside.get(each.name, "no such link")))


@case(
    MUST,
    '§2 "ADD"',
    "If an interface of the requested name already exists in the container, the CNI plugin MUST return with an error.",
    means="An interface of somebody else is taken over, and deleted later.",
    kinds=INTERFACE,
)
def the_interface_exists_already(bench: Bench) -> None:
    container = bench.container()
    if bench.subject.ifname == "lo":
        raise NotApplicable("it works on lo, which always exists")
    bench.add(container, "other0")
    bench.shell(f"ip link add {bench.subject.ifname} type veth peer name foreign0", container.name)
    with bench.changing_nothing("by an ADD for an interface that exists"):
        bench.request("ADD", container).must_fail(f"an error, since {bench.subject.ifname} exists")


@case(
    MUST,
    '§2 "DEL"',
    "delete the interface defined by CNI_IFNAME inside the container at CNI_NETNS, or undo any modifications applied "
    "in the plugin's ADD functionality",
    means="Interfaces, rules and addresses of dead containers pile up.",
)
def del_leaves_nothing(bench: Bench) -> None:
    bench.warm()
    container = bench.container()
    with bench.leaving_nothing("after ADD and DEL"):
        bench.add(container)
        bench.delete(container)


@case(
    MUST,
    '§2 "DEL"',
    "Plugins MUST accept multiple DEL calls for the same (CNI_CONTAINERID, CNI_IFNAME) pair, and return success if the "
    "interface in question, or any modifications added, are missing.",
    means=_STUCK,
)
def del_twice(bench: Bench) -> None:
    container = bench.container()
    bench.add(container)
    conf = bench.document(container)
    bench.delete(container)
    bench.request("DEL", container).must_succeed("success the second time")
    bench.request("DEL", container, prevResult=conf.get("prevResult")).must_succeed("success the third time")


@case(
    MUST,
    '§2 "DEL"',
    "Plugins MUST accept multiple DEL calls [...] and return success if the interface in question, or any "
    "modifications added, are missing.",
    means=_STUCK,
)
def del_of_a_container_never_added(bench: Bench) -> None:
    container = bench.container()
    with bench.leaving_nothing("by DEL of what was never there"):
        bench.request("DEL", container, prevResult=None).must_succeed("success for a container never added")


@case(
    SHOULD,
    '§2 "DEL"',
    "When CNI_NETNS and/or prevResult are not provided, the plugin should clean up as many resources as possible (e.g. "
    "releasing IPAM allocations) and return a successful response. (0.4.0)",
    means="What a container had leaks when its namespace went first, as after every node reboot and OOM kill.",
)
def del_without_netns(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    bench.add(container)
    bench.shell(f"ip netns del {container.name}")
    with bench.leaving_nothing("after DEL with an empty CNI_NETNS", before):
        bench.request("DEL", container, environ={"CNI_NETNS": ""}, prevResult=None).must_succeed(
            "success with CNI_NETNS empty and without prevResult"
        )


@case(SHOULD, '§2 "DEL"', _NO_ERROR, means=_STUCK)
def del_with_a_netns_that_is_gone(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    bench.add(container)
    bench.shell(f"ip netns del {container.name}")
    with bench.leaving_nothing("after DEL with a CNI_NETNS that is gone", before):
        bench.delete(container)


@case(SHOULD, '§2 "DEL"', _NO_ERROR, means=_STUCK)
def del_with_a_netns_that_is_a_plain_file(bench: Bench) -> None:
    """As when only the mount is gone: after a reboot with a persistent /run, or `umount`."""
    before = bench.warm()
    container = bench.container()
    bench.add(container)
    bench.shell(f"ip netns del {container.name}; : >{container.netns}")
    with bench.leaving_nothing("after DEL with a CNI_NETNS that is a plain file", before):
        bench.delete(container)


@case(
    SHOULD,
    '§2 "DEL"',
    "When CNI_NETNS and/or prevResult are not provided, the plugin should clean up as many resources as possible (e.g. "
    "releasing IPAM allocations) and return a successful response. (0.4.0)",
    means="After a failed ADD runtimes send no prevResult: what it left leaks.",
)
def del_without_prev_result(bench: Bench) -> None:
    before = bench.warm()
    container = bench.container()
    known = bench.footprint()
    bench.add(container)
    with bench.leaving_nothing("after DEL without prevResult", before | known):
        bench.request("DEL", container, prevResult=None).must_succeed("success without prevResult")


@case(
    OPINION,
    '§2 "DEL"',
    "The parameters of DEL should be those of ADD; but administrators edit configurations while containers run.",
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
    '§2 "Overview of lifecycle"',
    "The container runtime must not invoke parallel operations for the same container. (Kubelet does, when an ADD "
    "takes longer than it waits.)",
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
    MUST,
    '§2 "Overview of lifecycle"',
    "The attachment is identified by (CNI_CONTAINERID, CNI_IFNAME): a container may be attached to a network more than "
    "once, under different interface names.",
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
    bench.add(container, "net1")
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
    MUST,
    '§5 "Error"',
    "Plugins should output a JSON object [...] if they encounter an error. (And nothing else: a runtime parses all of "
    "stdout. The reference SDK finds out that the namespace is the plugin's own when the result is printed already.)",
    means="The runtime shows a parse error in place of the reason.",
    kinds=INTERFACE,
)
def the_plugins_own_netns_gets_one_document(bench: Bench) -> None:
    answer = bench.request("ADD", bench.container(), environ={"CNI_NETNS": "/proc/self/ns/net"})
    if not isinstance(answer.try_document(), dict):
        raise Broken("exactly one JSON document on stdout", answer.show())


@case(
    OPINION,
    '§2 "ADD"',
    "create the interface defined by CNI_IFNAME inside the container at CNI_NETNS. (That it must not be the plugin's "
    "own namespace is not written; later reference SDKs refuse it, with code 8.)",
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
    '§2 "DEL"',
    "delete the interface defined by CNI_IFNAME inside the container at CNI_NETNS. (That it must not be the plugin's "
    "own namespace is not written; later reference SDKs say so, with code 8, when it is done.)",
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
