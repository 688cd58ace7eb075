"""The client's state machine: each row of its table, with a clock that the test moves; and any order of events."""

import math
from collections.abc import Mapping
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cnisdk.dhcp import _packet as packet
from cnisdk.dhcp._machine import Action, Drop, Identity, Machine, Probe, Remember, Send, Timing, Use, make_release
from cnisdk.dhcp._packet import Message
from cnisdk.dhcp.lease import DHCPLease

MAC, SERVER_MAC, OTHER_MAC = "02:42:ac:11:00:02", "02:00:00:00:00:01", "02:00:00:00:00:09"
SERVER, ADDRESS, OTHER = IPv4Address("10.1.0.1"), IPv4Address("10.1.0.50"), IPv4Address("10.1.0.51")
ME = Identity(mac=MAC, provided={61: b"\0me"})
TIMING = Timing(probe=0.5)

# One hundred seconds, of which T1 is the fiftieth and T2 the eighty-eighth.
OPTIONS = {54: SERVER.packed, 51: (100).to_bytes(4, "big"), 59: (88).to_bytes(4, "big"), 1: bytes([255, 255, 255, 0])}


def sent(actions: list[Action]) -> list[Send]:
    return [each for each in actions if isinstance(each, Send)]


def kinds(actions: list[Action]) -> list[str]:
    """The actions in order, by their names; of messages, the kind."""
    return [
        packet.KINDS[each.message.kind] if isinstance(each, Send) else type(each).__name__.lower() for each in actions
    ]


class Bench:
    """A client, and a server of the test's that answers its last message."""

    def __init__(self, identity: Identity = ME, random: float = 0.5) -> None:
        self.machine = Machine(identity, lambda: random, TIMING)
        self.now = 1000.0
        self.last: Message | None = None

    def note(self, actions: list[Action]) -> list[Action]:
        for each in sent(actions):
            self.last = each.message
        return actions

    def start(self) -> list[Action]:
        return self.note(self.machine.start(self.now))

    def wake(self, at: float | None = None) -> list[Action]:
        self.now = self.machine.deadline if at is None else at
        return self.note(self.machine.wake(self.now))

    def answer(
        self, kind: int, address: IPv4Address = ADDRESS, more: Mapping[int, bytes] | None = None
    ) -> list[Action]:
        assert self.last is not None
        message = Message(kind, self.last.xid, MAC, {**OPTIONS, **(more or {})}, yiaddr=address)
        return self.note(self.machine.receive(message, SERVER_MAC, self.now))

    def bind(self) -> "Bench":
        """Come to a lease, of the time 1000."""
        self.start()
        self.answer(packet.OFFER)
        self.answer(packet.ACK)
        self.wake()
        self.now = 1000.0
        assert self.machine.state == "bound"
        return self


def test_the_four_messages() -> None:
    bench = Bench()
    (discover,) = sent(bench.start())
    assert discover == Send(
        Message(
            packet.DISCOVER, 2**31, MAC, {61: b"\0me", 57: b"\x05\xc0", 55: bytes([1, 121, 3, 33, 6, 15, 119, 58, 59])}
        )
    )
    actions = bench.answer(packet.OFFER)
    assert kinds(actions) == ["remember", "probe", "REQUEST"]
    assert Probe(ADDRESS) in actions
    (request,) = sent(actions)
    assert request.message == discover.message._replace(
        kind=packet.REQUEST, options={50: ADDRESS.packed, 54: SERVER.packed, **discover.message.options}
    )
    # The acknowledgement comes at once; the probe has its time.
    assert bench.answer(packet.ACK) == []
    assert bench.machine.deadline == 1000.5
    lease = DHCPLease(address=ADDRESS, options=OPTIONS, started=1000.0, server_mac=SERVER_MAC)
    assert bench.wake() == [Remember(lease, bound=True), Use(lease, None)]
    assert bench.machine.lease == lease
    # RFC 2131, section 4.4.5: T1 after half of it, less up to a twentieth by chance; T2 as the server says.
    assert bench.machine.deadline == 1050 - 50 * 0.05 / 2
    assert (lease.renews, lease.rebinds, lease.expires) == (1050, 1088, 1100)


def test_a_slow_acknowledgement_is_probe_enough() -> None:
    bench = Bench()
    bench.start()
    bench.answer(packet.OFFER)
    bench.now += 0.6
    assert kinds(bench.answer(packet.ACK)) == ["remember", "use"]


def test_repetitions_back_off() -> None:
    bench = Bench()
    bench.start()
    times = []
    for _ in range(8):
        times.append(bench.machine.deadline)
        assert kinds(bench.wake()) == ["DISCOVER"]
    assert [after - before for before, after in zip([1000.0, *times], times, strict=False)] == [
        1, 2, 4, 8, 16, 32, 62, 62,
    ]  # fmt: skip
    assert bench.last is not None
    assert bench.last.secs == 187
    # By chance between three and five quarters of that.
    for chance, expected in ((0.0, 0.75), (0.999, 1.2495)):
        other = Bench(random=chance)
        other.start()
        assert other.machine.deadline == pytest.approx(1000 + expected)


def test_a_server_that_does_not_acknowledge() -> None:
    bench = Bench()
    bench.start()
    bench.answer(packet.OFFER)
    for _ in range(3):
        assert kinds(bench.wake()) == ["REQUEST"]
    assert kinds(bench.wake()) == ["remember"]
    assert "10.1.0.1 offered 10.1.0.50, but" in bench.machine.trouble
    assert kinds(bench.wake()) == ["DISCOVER"]


@pytest.mark.parametrize("late", [False, True], ids=["before the ACK", "after the ACK"])
def test_another_host_has_the_address(late: bool) -> None:
    bench = Bench()
    bench.machine.prefer(ADDRESS)
    (discover,) = sent(bench.start())
    assert discover.message.options[50] == ADDRESS.packed
    bench.answer(packet.OFFER)
    if late:
        bench.answer(packet.ACK)
        actions = bench.machine.object(OTHER_MAC, bench.now)
    else:
        assert bench.machine.object(OTHER_MAC, bench.now) == []
        actions = bench.answer(packet.ACK)
    assert kinds(actions) == ["DECLINE", "remember"]
    (decline,) = sent(actions)
    # RFC 2131, table 5: these, and no parameters.
    assert decline.message.options == {50: ADDRESS.packed, 54: SERVER.packed, 61: b"\0me"}
    assert OTHER_MAC in bench.machine.trouble
    assert bench.machine.deadline == bench.now + 10
    (discover,) = sent(bench.wake())
    assert 50 not in discover.message.options


def test_renewal() -> None:
    bench = Bench().bind()
    (request,) = sent(bench.wake())
    # RFC 2131, table 5: ciaddr, and neither address nor server in the options; to the server itself.
    assert (request.server, request.message.ciaddr) == (SERVER, ADDRESS)
    assert not {50, 54} & set(request.message.options)
    # The same again, but for its time: nothing that uses the lease changes.
    bench.now += 1
    actions = bench.answer(packet.ACK, more={51: (200).to_bytes(4, "big")})
    assert kinds(actions) == ["remember"]
    assert bench.machine.lease is not None
    assert bench.machine.lease.expires == bench.now - 1 + 200
    assert bench.machine.state == "bound"


@pytest.mark.parametrize(
    ("address", "more"),
    [
        (OTHER, {}),
        (ADDRESS, {1: bytes([255, 255, 0, 0])}),
        (ADDRESS, {3: SERVER.packed}),
        (ADDRESS, {121: bytes([0]) + SERVER.packed}),
        (ADDRESS, {26: bytes([5, 0])}),
    ],
    ids=["address", "mask", "router", "routes", "mtu"],
)
def test_a_renewal_with_something_else_is_used(address: IPv4Address, more: dict[int, bytes]) -> None:
    bench = Bench().bind()
    before = bench.machine.lease
    bench.wake()
    *_, use = bench.answer(packet.ACK, address, more)
    assert use == Use(
        DHCPLease(address=address, options={**OPTIONS, **more}, started=bench.now, server_mac=SERVER_MAC), before
    )


def test_rebinding_and_the_end() -> None:
    bench = Bench().bind()
    moments = []
    while bench.machine.lease is not None:
        actions = bench.wake()
        moments.append((round(bench.now - 1000, 2), kinds(actions), sent(actions)[0].server))
    # Half of what is left, and at least a sixteenth of the whole (100 s last less than 16 minutes).
    assert moments == [
        (48.75, ["REQUEST"], SERVER),
        (68.38, ["REQUEST"], SERVER),
        (78.19, ["REQUEST"], SERVER),
        (84.44, ["REQUEST"], SERVER),
        (88.0, ["REQUEST"], None),
        (94.25, ["REQUEST"], None),
        (100.0, ["drop", "remember", "DISCOVER"], None),
    ]
    assert "ran out" in bench.machine.trouble
    # The server is back: the address is asked for again, and used.
    assert bench.last is not None
    assert bench.last.options[50] == ADDRESS.packed
    bench.answer(packet.OFFER)
    bench.answer(packet.ACK)
    assert kinds(bench.wake()) == ["remember", "use"]


def test_long_leases_are_renewed_each_minute_at_most() -> None:
    bench = Bench()
    bench.start()
    day = {51: (86400).to_bytes(4, "big"), 59: (75600).to_bytes(4, "big")}
    bench.answer(packet.OFFER, more=day)
    bench.answer(packet.ACK, more=day)
    bench.wake()
    gaps: list[float] = []
    before = bench.now = bench.machine.deadline
    while bench.machine.lease is not None:
        bench.wake()
        gaps.append(round(bench.now - before, 3))
        before = bench.now
    # But at T2, when all servers are asked, and at the end, however soon after the last question that is.
    assert sum(gap < 60 for gap in gaps[1:]) <= 2
    assert len(gaps) < 30


@pytest.mark.parametrize("state", ["renewing", "rebinding"])
def test_refusal(state: str) -> None:
    bench = Bench().bind()
    bench.wake(None if state == "renewing" else 1088)
    assert bench.machine.state == state
    stranger = {54: IPv4Address("10.1.0.2").packed}
    if state == "renewing":
        assert bench.answer(packet.NAK, more=stranger) == []  # only its own server may refuse it
    actions = bench.answer(packet.NAK, more={56: b"wrong network"})
    assert kinds(actions) == ["drop", "remember", "DISCOVER"]
    assert "10.1.0.50: wrong network" in bench.machine.trouble
    assert 50 not in sent(actions)[0].message.options


def test_refusal_of_the_first_request() -> None:
    bench = Bench()
    bench.start()
    bench.answer(packet.OFFER)
    assert kinds(bench.answer(packet.NAK)) == ["remember"]
    assert kinds(bench.wake()) == ["DISCOVER"]


def test_refusals_without_end() -> None:
    """The client asks less and less often, until a server renews what it gave."""
    bench = Bench()
    bench.start()
    pauses = []
    for _ in range(8):
        bench.answer(packet.OFFER)
        bench.answer(packet.NAK)
        pauses.append(bench.machine.deadline - bench.now)
        assert kinds(bench.wake()) == ["DISCOVER"]
    assert pauses == [1, 2, 4, 8, 16, 32, 62, 62]
    for renewed, expected in ((False, ["drop", "remember"]), (True, ["drop", "remember", "DISCOVER"])):
        bench.answer(packet.OFFER)
        bench.answer(packet.ACK)
        bench.wake()
        bench.wake()
        if renewed:
            bench.answer(packet.ACK)
            bench.wake()
        assert kinds(bench.answer(packet.NAK)) == expected
        if not renewed:
            assert bench.machine.deadline == bench.now + 62
            bench.wake()


def test_an_acknowledgement_of_another_address() -> None:
    """It was neither remembered nor probed for."""
    bench = Bench()
    bench.start()
    bench.answer(packet.OFFER)
    assert bench.answer(packet.ACK, OTHER) == []
    assert "it is for 10.1.0.51, and the request was for 10.1.0.50" in bench.machine.trouble
    bench.answer(packet.ACK)
    assert kinds(bench.wake()) == ["remember", "use"]


def test_the_shortest_lease_is_renewed_twice_a_second() -> None:
    bench = Bench()
    bench.start()
    second = {51: (1).to_bytes(4, "big"), 59: b""}
    bench.answer(packet.OFFER, more=second)
    bench.answer(packet.ACK, more=second)
    bench.wake()
    times = [bench.now]
    while len(times) < 6:
        bench.wake()
        bench.answer(packet.ACK, more=second)
        times.append(bench.now)
    assert all(after - before >= 0.5 for before, after in pairwise(times[1:]))


def test_release() -> None:
    bench = Bench().bind()
    lease = bench.machine.stop()
    assert lease == DHCPLease(address=ADDRESS, options=OPTIONS, started=1000.0, server_mac=SERVER_MAC)
    assert lease is not None
    release = make_release(ME, lease, 7)
    assert (release.server, release.mac) == (SERVER, SERVER_MAC)
    assert release.message == Message(packet.RELEASE, 7, MAC, {54: SERVER.packed, 61: b"\0me"}, ciaddr=ADDRESS)
    assert (bench.machine.state, bench.machine.deadline, bench.machine.stop()) == ("idle", math.inf, None)


def test_what_was_asked_for_is_released_too() -> None:
    """The server may have acknowledged it already."""
    bench = Bench()
    bench.start()
    assert bench.machine.stop() is None
    bench.start()
    bench.answer(packet.OFFER)
    assert bench.machine.stop() is not None


@pytest.mark.parametrize(
    ("later", "expected", "state"),
    [
        (10, [], "bound"),
        (60, ["REQUEST"], "renewing"),
        (90, ["REQUEST"], "rebinding"),
        (100, ["drop", "remember", "DISCOVER"], "selecting"),
    ],
)
def test_resuming(later: float, expected: list[str], state: str) -> None:
    """A daemon that starts goes on in whatever part of its life a lease is."""
    lease = DHCPLease(address=ADDRESS, options=OPTIONS, started=1000.0, server_mac=SERVER_MAC)
    machine = Machine(ME, lambda: 0.5, TIMING)
    actions = machine.resume(lease, 1000.0 + later)
    assert kinds(actions or machine.wake(1000.0 + later)) == expected
    assert machine.state == state


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (3600, 1800, 3150)),
        ({51: 0xFFFFFFFF}, (math.inf, math.inf, math.inf)),
        ({51: 80}, (80, 40, 70)),
        ({51: 80, 58: 10, 59: 20}, (80, 10, 20)),
        ({51: 80, 58: 30, 59: 20}, (80, 20, 20)),  # T1 behind T2
        ({51: 80, 58: 100, 59: 90}, (80, 40, 70)),  # both behind the end
        ({51: 80, 58: 75}, (80, 40, 70)),
    ],
)
def test_times(options: dict[int, int], expected: tuple[float, float, float]) -> None:
    lease = DHCPLease(
        address=ADDRESS, options={key: value.to_bytes(4, "big") for key, value in options.items()}, started=0.0
    )
    assert (lease.lifetime, lease.renews, lease.rebinds) == expected
    assert DHCPLease.from_json(lease.to_json()) == lease


@pytest.mark.parametrize(
    ("address", "options"),
    [
        (packet.ANY, {}),
        (IPv4Address("0.1.2.3"), {}),
        (IPv4Address("127.0.0.1"), {}),
        (IPv4Address("224.0.0.1"), {}),
        (packet.BROADCAST, {}),
        (IPv4Address("10.1.0.0"), {}),
        (IPv4Address("10.1.0.255"), {}),
        (ADDRESS, {1: bytes(4)}),
        (ADDRESS, {54: bytes([127, 0, 0, 1])}),
        (ADDRESS, {1: b""}),
        (ADDRESS, {1: bytes([255, 0, 255, 0])}),
        (ADDRESS, {54: b""}),
    ],
)
def test_offers_of_no_use(address: IPv4Address, options: dict[int, bytes]) -> None:
    bench = Bench()
    bench.start()
    assert bench.answer(packet.OFFER, address, options) == []
    assert "of no use" in bench.machine.trouble
    assert kinds(bench.answer(packet.OFFER)) == ["remember", "probe", "REQUEST"]


def test_what_is_not_for_this_client() -> None:
    bench = Bench(evolve(ME, broadcast=True))
    bench.start()
    assert bench.last is not None
    assert bench.last.broadcast
    good = Message(packet.OFFER, bench.last.xid, MAC, OPTIONS, yiaddr=ADDRESS)
    for other in (good._replace(xid=1), good._replace(mac=OTHER_MAC), good._replace(kind=packet.ACK)):
        assert bench.machine.receive(other, SERVER_MAC, 1000.0) == []
    assert bench.machine.receive(good, SERVER_MAC, 1000.0) != []


def test_the_result() -> None:
    more = {3: SERVER.packed + OTHER.packed, 6: SERVER.packed, 15: b"example.org", 119: b"\x01a\x00", 26: bytes([5, 0])}
    lease = DHCPLease(address=ADDRESS, options={**OPTIONS, **more}, started=0.0)
    result = lease.to_result(priority=7)
    assert [(str(each.address), str(each.gateway)) for each in result.ips] == [("10.1.0.50/24", "10.1.0.1")]
    assert [(str(each.dst), str(each.gw), each.priority) for each in result.routes] == [("0.0.0.0/0", "10.1.0.1", 7)]
    assert (result.dns.nameservers, result.dns.domain, result.dns.search) == (("10.1.0.1",), "example.org", ("a",))
    assert lease.mtu == 1280
    # RFC 3442: these, and nothing of the options 3 and 33. Without a router, a route ends on the link.
    classless = evolve(lease, options={**lease.options, 121: bytes([8, 10]) + bytes(4) + bytes([0]) + OTHER.packed})
    assert [(str(each.dst), str(each.gw), each.scope) for each in classless.to_result().routes] == [
        ("10.0.0.0/8", "0.0.0.0", 253),
        ("0.0.0.0/0", "10.1.0.51", None),
    ]


def test_both_addresses_of_a_link_of_two_are_hosts() -> None:
    """RFC 3021."""
    for last in (0, 1):
        options = {**OPTIONS, 1: bytes([255, 255, 255, 254])}
        lease = DHCPLease(address=IPv4Address(f"10.1.0.{last}"), options=options, started=0.0)
        assert lease.find_problem() is None


def test_routers_outside_of_the_network() -> None:
    """Each gets a route of its own, unless a route onto the link leads there; a host's mask is an usual case."""
    lease = DHCPLease(address=ADDRESS, options={**OPTIONS, 1: b"\xff" * 4, 3: SERVER.packed}, started=0.0)
    assert [(str(each.dst), str(each.gw), each.scope) for each in lease.list_routes(5)] == [
        ("10.1.0.1/32", "0.0.0.0", 253),
        ("0.0.0.0/0", "10.1.0.1", None),
    ]
    near = bytes([32]) + SERVER.packed + bytes(4) + bytes([0]) + SERVER.packed
    lease = evolve(lease, options={**lease.options, 121: near})
    assert [(str(each.dst), str(each.gw)) for each in lease.list_routes()] == [
        ("10.1.0.1/32", "0.0.0.0"),
        ("0.0.0.0/0", "10.1.0.1"),
    ]


# --- any order of events ----------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens: one address is in use at most, it is the lease's, and there is always something to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.used: DHCPLease | None = None
        self.remembered: DHCPLease | None = None
        self.follow(self.bench.start())

    def follow(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Use(lease, before):
                    assert (before and before.interface) == (self.used and self.used.interface)
                    self.used = lease
                case Drop(lease):
                    assert lease.interface == (self.used and self.used.interface)
                    self.used = None
                case Remember(lease, _):
                    self.remembered = lease
                case Send(message) if message.ciaddr != packet.ANY:
                    assert self.used is not None
                    assert message.ciaddr == self.used.address
                case Send(message) if message.kind == packet.REQUEST:
                    # What may be acknowledged is remembered before: a killed daemon's successor can give it back.
                    assert self.remembered is not None
                    assert message.options[50] == self.remembered.address.packed

    @rule(
        kind=st.sampled_from([packet.OFFER, packet.ACK, packet.NAK]),
        address=st.sampled_from([ADDRESS, OTHER]),
        lifetime=st.sampled_from([0, 1, 100, 2**32 - 1]),
    )
    def answer(self, kind: int, address: IPv4Address, lifetime: int) -> None:
        self.follow(self.bench.answer(kind, address, {51: lifetime.to_bytes(4, "big")}))

    @rule()
    def object(self) -> None:
        self.follow(self.bench.machine.object(OTHER_MAC, self.bench.now))

    @precondition(lambda self: self.bench.machine.deadline < math.inf)
    @rule()
    def wait(self) -> None:
        self.follow(self.bench.wake())

    @rule(seconds=st.floats(0, 200))
    def come_late(self, seconds: float) -> None:
        self.follow(self.bench.wake(self.bench.now + seconds))

    @invariant()
    def one_lease(self) -> None:
        machine = self.bench.machine
        if machine.lease is None:
            assert self.used is None
            assert machine.state in ("waiting", "selecting", "requesting", "probing")
            assert machine.deadline < math.inf
        else:
            assert self.used is not None
            assert machine.lease.interface == self.used.interface
            assert self.remembered == machine.lease
            assert machine.deadline <= machine.lease.expires


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
