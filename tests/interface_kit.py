"""Kit of all interface plugins' tests: the plugins as a table, and ways to disturb and watch them.

``tests/interfaces/test_shared.py`` holds each plugin of the table to the same promises. A plugin's own tests have the
rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from attrs import evolve

from cnisdk.invoke.process import Finished
from cnisdk.linux import rtnetlink
from cnisdk.plugin import respond
from cnisdk.plugin.base import Plugin
from cnisdk.testing import Answer, Container, Fault, Host, PluginUnderTest, State
from cnisdk.testing.state import collect
from cnisdk_plugins.dummy import Dummy
from cnisdk_plugins.host_device import HostDevice
from cnisdk_plugins.host_local import HostLocal
from cnisdk_plugins.ipvlan import Ipvlan
from cnisdk_plugins.loopback import Loopback
from cnisdk_plugins.macvlan import Macvlan
from cnisdk_plugins.ptp import Ptp
from cnisdk_plugins.tap import Tap
from cnisdk_plugins.vlan import Vlan

_T = TypeVar("_T")

LEASES = "/var/lib/cni/networks"
GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))

INTEROP_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")
"""Every version that the packaged reference plugins (1.1.1) and ours support."""

DUAL_STACK = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "2001:db8:1::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}


class Subject(NamedTuple):
    """An interface plugin, and what its tests need.

    Attributes:
        plugin: Its class.
        conf: A configuration that exercises it, without IPAM.
        round_trips: How often an ADD without IPAM waits for the kernel's answer on a netlink socket.
        setup: Shell commands that prepare a host.
        inside: Shell commands that prepare a container.
        ipam: It delegates to an IPAM plugin.
        reference: Debian's package has the reference plugin.
        rules: It makes packet filter rules.
        lends: It lends a link of the host, which ends with the namespace that has it.
        tidy: Shell commands that take away what the reference plugin's DEL leaves.
        equal_since: The first version in which the reference plugin prints what that version asks for.
        marks: Marks of its tests.
    """

    plugin: type[Plugin[Any]]
    conf: Mapping[str, Any]
    round_trips: int
    setup: str = ""
    inside: str = ""
    ipam: bool = True
    reference: bool = True
    rules: bool = False
    lends: bool = False
    tidy: str = ""
    equal_since: str = INTEROP_VERSIONS[0]
    marks: Sequence[pytest.MarkDecorator] = ()


UPLINK = "ip link add up0 type veth peer name up0x; ip link set up0 up; ip link set up0x up"

SUBJECTS = {
    "host-device": Subject(
        HostDevice,
        {"device": "nic1"},
        round_trips=5,
        setup="ip link add nic1 type veth peer name wire1; ip link set wire1 up",
        lends=True,
        tidy='ip link set nic1 alias ""',
    ),
    "loopback": Subject(
        Loopback,
        {},
        round_trips=3,
        inside="ip link set lo up; ip link set lo down",  # it keeps the addresses that it got
        ipam=False,
        equal_since="1.0.0",  # before, the reference prints the newer shape
    ),
    "dummy": Subject(Dummy, {}, round_trips=3, reference=False, marks=[pytest.mark.kinds]),
    "ipvlan": Subject(Ipvlan, {"master": "up0", "mtu": 1400}, round_trips=4, setup=UPLINK, marks=[pytest.mark.kinds]),
    "macvlan": Subject(Macvlan, {"master": "up0", "mtu": 1400}, round_trips=4, setup=UPLINK),
    "ptp": Subject(Ptp, {"mtu": 1400, "ipMasq": True}, round_trips=7, rules=True),
    "vlan": Subject(
        Vlan, {"master": "up0", "vlanId": 5, "mtu": 1400}, round_trips=4, setup=UPLINK, marks=[pytest.mark.kinds]
    ),
    "tap": Subject(
        Tap,
        {"mtu": 1400, "owner": 0, "multiQueue": True},
        round_trips=3,
        reference=False,
        marks=[pytest.mark.kinds],
    ),
}


def subjects(*, delegating: bool = False, reference: bool = False) -> list[Any]:
    """The subjects as parameters of a test.

    Args:
        delegating: Only those that delegate to an IPAM plugin.
        reference: Only those of which the reference plugin is packaged.
    """
    return [
        pytest.param(name, marks=each.marks)
        for name, each in SUBJECTS.items()
        if (each.ipam or not delegating) and (each.reference or not reference)
    ]


class Bench:
    """A subject on a host, with a container.

    Attributes:
        ours: Our plugin, run in a fork of this process, over a stub of an IPAM plugin where it delegates.
        stub: That stub.
        container: The container.
    """

    def __init__(self, host: Host, name: str) -> None:
        self.type, self.host, self.subject = name, host, SUBJECTS[name]
        host.shell(f"{self.subject.setup or ':'}; mkdir -p {LEASES}")
        self.container: Container = host.container()
        if self.subject.inside:
            self.container.shell(self.subject.inside)
        self.stub = host.stub()
        self.ours = self.plugin(self.subject.plugin, ipam=self.stub.conf)
        self.before = self.state()

    def plugin(self, plugin: type[Plugin[Any]] | Path, *, ipam: Mapping[str, Any], **keys: Any) -> PluginUnderTest:
        """The plugin in another shape, with the subject's configuration; it finds the reference's IPAM plugins."""
        conf = {**self.subject.conf, "type": self.type, **keys}
        return self.host.plugin(plugin, conf | ({"ipam": dict(ipam)} if self.subject.ipam else {}), path=[GO])

    def state(self) -> State:
        """Return what plugins change on the host and in its containers, but not the notes of the stub.

        Of packet filter rules only those of an attachment: the tables and what is in them for all stay.
        """
        return self.host.call(self.state_here)

    def state_here(self) -> State:
        """The same, in a process that is on the host."""
        state = collect(rules=self.subject.rules).without("files")
        return evolve(state, nft=tuple(each for each in state.nft if re.search(r"CNI-|\bid: ", f"{each}")))

    def assert_nothing_is_left(self, what: object = "") -> None:
        """The host and its containers are as before the first request, and no address is leased."""
        __tracebackhide__ = True
        left = self.state()
        assert left == self.before, what
        assert self.stub.leases == {}, what

    def run(self, verb: str, fault: Fault | None = None) -> Answer:
        """Run one request of our plugin, without what it answered to others."""
        self.ours.fault = fault
        try:
            return self.ours.run(verb, self.container)
        finally:
            self.ours.fault = None

    def on_the_host(self, function: Callable[[Bench], _T]) -> _T:
        """Call a function in a process on the host, where only a request with a fault needs one more.

        For many rounds: each fork of a process that has a test suite in memory costs more than a request.
        """
        ours = self.ours

        def call() -> _T:
            self.ours = PluginUnderTest(None, ours.plugin, ours.conf, ours.path)
            return function(self)

        return self.host.call(call)


class CountRoundTrips(Fault):
    """No fault: count how often a plugin waits for an answer on a netlink socket."""

    counted = Path("/run/cnisdk-testing/round-trips")

    def arm(self, on_strike: Callable[[], object] = bool) -> Callable[[], bool]:
        """Write a byte for each to a file on the host."""
        exchange, stream = rtnetlink.Socket.exchange, rtnetlink.Socket._stream
        note = os.open(self.counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def counted_exchange(sock: rtnetlink.Socket, requests: Sequence[rtnetlink.Message]) -> Any:
            os.write(note, b"x" if requests else b"")
            return exchange(sock, requests)

        def counted_stream(sock: rtnetlink.Socket, request: rtnetlink.Message) -> Any:
            os.write(note, b"d")
            return stream(sock, request)

        rtnetlink.Socket.exchange = counted_exchange  # type: ignore[method-assign, assignment]
        rtnetlink.Socket._stream = counted_stream  # type: ignore[method-assign, assignment]
        return bool


def run_host_local(path: str, environ: Mapping[str, str], stdin: bytes, timeout: float | None) -> Finished:
    """Run host-local in the process of the plugin that asks for it, so that a kill ends both."""
    reply = respond(HostLocal, environ, stdin)
    reply.undo.commit()
    return Finished(reply.status, reply.stdout, b"")


def without_chance(value: Any) -> Any:
    """A result without hardware addresses, and without the hash in names."""
    if isinstance(value, dict):
        return {key: without_chance(part) for key, part in value.items() if key != "mac"}
    if isinstance(value, list):
        return [without_chance(part) for part in value]
    return re.sub(r"^veth[0-9a-f]{8}$", "veth", value) if isinstance(value, str) else value
