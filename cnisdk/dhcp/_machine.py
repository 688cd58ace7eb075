"""State machine of a DHCP client (RFC 2131, section 4.4), without I/O: events and the time go in, actions come out.

============== =========================================== ==================================================
state          the client                                  left by
============== =========================================== ==================================================
``idle``       does nothing                                :meth:`~Machine.start`, :meth:`~Machine.resume`
``waiting``    waits before it starts over                 deadline: ``selecting``
``selecting``  looks for a server                          OFFER: ``requesting``
``requesting`` asks for the offered address, probes for it ACK: ``probing``; NAK, no answer: ``waiting``
``probing``    has the ACK, waits for hosts that object    deadline: ``bound``; objection: ``waiting``
``bound``      has a lease                                 T1: ``renewing``
``renewing``   asks its server for more time               ACK: ``bound``; T2: ``rebinding``; NAK: lost
``rebinding``  asks any server for more time               ACK: ``bound``; its end, NAK: lost
============== =========================================== ==================================================

A client that lost its lease drops the address and goes to ``selecting`` at once. If servers refuse what they gave again
and again, without a renewal in between, it waits in ``waiting`` first, each time twice as long.

The duplicate address probe (RFC 5227) goes out together with the REQUEST, not after the ACK: the time that the server
takes is time in which another host can object, so that ADD waits for no more than :attr:`Timing.probe` seconds in all.

The caller carries out the actions in their order, and calls :meth:`Machine.wake` at :attr:`Machine.deadline`. Times are
seconds of a clock that counts in suspend, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

from .._light import Literal, NamedTuple
from ..classes import evolve, frozen
from . import _packet as packet, options
from ._packet import Message
from .lease import DHCPLease

State = Literal["idle", "waiting", "selecting", "requesting", "probing", "bound", "renewing", "rebinding"]


class Timing(NamedTuple):
    """Delays, in seconds.

    Attributes:
        first: Delay before a DISCOVER or REQUEST is repeated, ± a quarter; each further delay is twice as long.
        longest: The longest delay between repetitions.
        declined: Delay before the client starts over after a DECLINE (RFC 2131, section 3.1).
        probe: Delay between the probe for an address and its first use.
        floor: Least delay between repetitions in ``renewing`` and ``rebinding`` (RFC 2131, section 4.4.5). For a
            lease shorter than 16 times this, a sixteenth of the lease, but at least :attr:`least`.
        least: Least delay between a lease's beginning and its renewal, or between two renewals.
    """

    first: float = 1.0
    longest: float = 62.0
    declined: float = 10.0
    probe: float = 0.02
    floor: float = 60.0
    least: float = 0.5


@frozen(kw_only=True)
class Identity:
    """Identity that a client sends to servers, and the options that it asks for.

    Attributes:
        mac: Hardware address of the interface.
        provided: Options it sends, by number; the client identifier is among them.
        requested: Options it asks for, in order.
        broadcast: Servers are to broadcast their answers.
    """

    mac: str
    provided: Mapping[int, bytes]
    requested: tuple[int, ...] = options.REQUESTED
    broadcast: bool = False


class Send(NamedTuple):
    """Send a message.

    Attributes:
        message: The message.
        server: Server to send it to, from the leased address; None means to all, from the address in ``ciaddr``.
        mac: Hardware address of the next hop to the server, if it must be used: the address may soon be gone.
    """

    message: Message
    server: IPv4Address | None = None
    mac: str = ""


class Probe(NamedTuple):
    """Ask the network which host has an address. Pass the answers to :meth:`Machine.object`."""

    address: IPv4Address


class Remember(NamedTuple):
    """Write to the lease file, before the next action, that this client may hold a lease; None: it holds none now."""

    lease: DHCPLease | None
    bound: bool = False


class Use(NamedTuple):
    """Use a lease: it is new, or differs from the previous one."""

    lease: DHCPLease
    before: DHCPLease | None


class Drop(NamedTuple):
    """Stop using a lease: take its address from the interface."""

    lease: DHCPLease


Action = Send | Probe | Remember | Use | Drop

# Further REQUESTs for an offered address before the client starts over. RFC 2131, section 3.1, has four in a minute.
_REQUESTS = 3
# Refusals after which the delay is not doubled any more; it has reached the longest one by then.
_DOUBLINGS = 16


class Machine:
    """One client.

    Args:
        identity: What it says of itself.
        random: Returns a float from 0 to 1, below 1, as :func:`random.random` does.
        timing: Delays.

    Attributes:
        state: Its state.
        deadline: Time at which to call :meth:`wake`; infinite for never.
        lease: The lease it holds; None without one.
        trouble: What went wrong last, in words; empty when nothing did.
    """

    def __init__(self, identity: Identity, random: Callable[[], float], timing: Timing | None = None) -> None:
        self.identity = identity
        self.state: State = "idle"
        self.deadline = math.inf
        self.lease: DHCPLease | None = None
        self.trouble = ""
        self._random, self._timing = random, timing or Timing()
        self._xid = 0
        self._began = 0.0
        self._sent = 0.0
        self._tries = 0
        self._offer: DHCPLease | None = None
        self._wanted: IPv4Address | None = None
        self._probed = 0.0
        self._objector = ""
        self._refusals = 0  # since the last renewal

    @property
    def probed(self) -> IPv4Address | None:
        """The address that other hosts may object to with :meth:`object`; None while none is probed."""
        return self._offer.address if self._offer is not None else None

    def prefer(self, address: IPv4Address | None) -> None:
        """Ask for an address from now on; a server may offer another. With None, the server chooses."""
        self._wanted = address

    # --- events -------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Begin to look for a server."""
        self.state, self._tries, self._began = "selecting", 0, now
        self._xid = self._new_xid()
        return self._repeat(now)

    def resume(self, lease: DHCPLease, now: float) -> list[Action]:
        """Go on with a lease that was obtained earlier, in whatever part of its life it is."""
        self.lease, self.state = lease, "bound"
        if now >= lease.expires:
            return self.wake(now)
        self._set_renewal(lease)
        return []

    def wake(self, now: float) -> list[Action]:
        """Tell the machine that its deadline may have come."""
        if self.state in ("bound", "renewing", "rebinding"):
            return self._age(now)
        if now < self.deadline:
            return []
        if self.state == "waiting":
            return self.start(now)
        if self.state == "probing":
            return self._bind()
        if self.state == "requesting" and self._tries > _REQUESTS:
            self.trouble = (
                f"{self._server_name()} offered {self._offer_address()}, but did not answer the request for it"
            )
            return self._start_over(now, self._timing.first)
        if self.state in ("selecting", "requesting"):
            return self._repeat(now)
        return []

    def receive(self, message: Message, sender: str, now: float) -> list[Action]:
        """Tell of a server's message.

        Args:
            message: The message; one for another client is ignored.
            sender: Hardware address it came from.
            now: The time.
        """
        if message.xid != self._xid or message.mac != self.identity.mac:
            return []
        handler = _HANDLERS.get((self.state, message.kind))
        return handler(self, message, sender, now) if handler is not None else []

    def object(self, mac: str, now: float) -> list[Action]:
        """Tell that another host has the address that was probed for, or probes for it too."""
        if self.state == "requesting":
            self._objector = mac
        elif self.state == "probing":
            self._objector = mac
            return self._decline(now)
        return []

    def stop(self) -> DHCPLease | None:
        """Become idle, and return the lease to give back: the one it holds, or one that it may have been given."""
        held = self.lease or self._offer
        self.state, self.deadline, self.lease, self._offer = "idle", math.inf, None, None
        return held

    # --- without a lease ----------------------------------------------------------------------------------------------

    def _repeat(self, now: float) -> list[Action]:
        """Send the DISCOVER or REQUEST of the state again, and set the deadline of the next one."""
        delay = min(self._timing.first * 2**self._tries, self._timing.longest)
        self.deadline = now + delay * (0.75 + self._random() / 2)
        self._tries += 1
        self._sent = now
        wanted = self._wanted if self._offer is None else self._offer.address
        told = {options.REQUESTED_ADDRESS: wanted.packed} if wanted is not None else {}
        if self.state == "selecting":
            return [self._ask(packet.DISCOVER, told, now)]
        assert self._offer is not None
        told[options.SERVER_ID] = self._offer.options[options.SERVER_ID]
        return [self._ask(packet.REQUEST, told, now)]

    def _take_offer(self, message: Message, sender: str, now: float) -> list[Action]:
        offer = DHCPLease(address=message.yiaddr, options=message.options, started=now, server_mac=sender)
        if problem := offer.find_problem():
            self.trouble = f"an offer is of no use: {problem}"
            return []
        self.state, self._tries, self._offer = "requesting", 0, offer
        self._probed, self._objector = now, ""
        return [Remember(offer), Probe(offer.address), *self._repeat(now)]

    def _take_first_ack(self, message: Message, sender: str, now: float) -> list[Action]:
        lease = DHCPLease(address=message.yiaddr, options=message.options, started=self._sent, server_mac=sender)
        assert self._offer is not None
        problem = lease.keeping_mask_of(self._offer).find_problem()
        if lease.address != self._offer.address:  # it was not probed for, and is in no file
            problem = f"it is for {lease.address}, and the request was for {self._offer.address}"
        if problem:
            self.trouble = f"an acknowledgement is of no use: {problem}"
            return []
        self._offer = lease.keeping_mask_of(self._offer)
        if self._objector:
            return self._decline(now)
        self.state, self.deadline = "probing", self._probed + self._timing.probe
        return self.wake(now)

    def _bind(self) -> list[Action]:
        lease, self._offer = self._offer, None
        assert lease is not None
        self.state, self.lease, self.trouble, self._wanted = "bound", lease, "", lease.address
        self._set_renewal(lease)
        return [Remember(lease, bound=True), Use(lease, None)]

    def _decline(self, now: float) -> list[Action]:
        """Refuse the offered address: another host has it (RFC 2131, section 3.1, step 5)."""
        lease = self._offer
        assert lease is not None
        self.trouble = f"the server leased {lease.address}, which the host {self._objector} has already"
        told = {
            options.REQUESTED_ADDRESS: lease.address.packed,
            options.SERVER_ID: lease.options[options.SERVER_ID],
        }
        self._wanted = None
        decline = self._ask(packet.DECLINE, told, now)
        return [decline, *self._start_over(now, self._timing.declined)]

    def _refused(self, message: Message, sender: str, now: float) -> list[Action]:
        """Start over after a NAK. A NAK of a server that was not asked is ignored."""
        server = next(iter(options.read_addresses(message.options, options.SERVER_ID)), None)
        asked = self._offer if self.state == "requesting" else self.lease
        if self.state != "rebinding" and asked is not None and server not in (None, asked.server):
            return []
        said = options.read_text(message.options, options.ERROR_MESSAGE)
        address = asked.address if asked is not None else "the address"
        self.trouble = f"server {server or 'without name'} refused {address}{f': {said}' if said else ''}"
        self._wanted = None
        self._refusals += 1
        return self._lose(now)

    def _start_over(self, now: float, delay: float) -> list[Action]:
        forget: list[Action] = [Remember(None)] if self._offer is not None else []
        self.state, self.deadline, self._offer = "waiting", now + delay, None
        return forget

    # --- with a lease -------------------------------------------------------------------------------------------------

    def _set_renewal(self, lease: DHCPLease) -> None:
        # A little earlier than T1, by chance, so that clients that began together do not stay together (RFC 2131,
        # section 4.4.5, "fuzz").
        self.deadline = lease.renews - (lease.renews - lease.started) * 0.05 * self._random()
        self.deadline = max(self.deadline, lease.started + self._timing.least)
        if lease.renews == math.inf:
            self.deadline = math.inf

    def _age(self, now: float) -> list[Action]:
        """Do what the age of the lease asks for."""
        lease = self.lease
        assert lease is not None
        if now >= lease.expires:
            self.trouble = f"the lease of {lease.address} ran out, and no server answered"
            return self._lose(now)
        if now >= lease.rebinds and self.state != "rebinding":
            self.state, self._began = "rebinding", now
        elif self.state == "bound" and now >= self.deadline:
            self.state, self._began = "renewing", now
        elif now < self.deadline:
            return []
        self._xid, self._sent = self._new_xid(), now
        until = lease.rebinds if self.state == "renewing" else lease.expires
        # RFC 2131, section 4.4.5: half of the time that is left, but not below a minute.
        floor = max(min(self._timing.floor, lease.lifetime / 16), self._timing.least)
        self.deadline = min(until, now + max((until - now) / 2, floor))
        request = self._ask(packet.REQUEST, {}, now, ciaddr=lease.address)
        return [request._replace(server=lease.server) if self.state == "renewing" else request]

    def _take_renewal(self, message: Message, sender: str, now: float) -> list[Action]:
        before = self.lease
        assert before is not None
        lease = DHCPLease(
            address=message.yiaddr, options=message.options, started=self._sent, server_mac=sender
        ).keeping_mask_of(before)
        if problem := lease.find_problem():
            self.trouble = f"an acknowledgement is of no use: {problem}"
            return []
        self.state, self.lease, self.trouble, self._wanted = "bound", lease, "", lease.address
        self._refusals = 0
        self._set_renewal(lease)
        changed = lease.interface != before.interface or _without_times(lease) != _without_times(before)
        use: list[Action] = [Use(lease, before)] if changed else []
        return [Remember(lease, bound=True), *use]

    def _lose(self, now: float) -> list[Action]:
        """Give up the lease that ran out or was refused, and start over."""
        lease, self.lease = self.lease, None
        doubled = min(self._timing.first * 2 ** max(0, min(self._refusals, _DOUBLINGS) - 1), self._timing.longest)
        if lease is None:
            return self._start_over(now, doubled)
        dropped: list[Action] = [Drop(lease), Remember(None)]
        # Once is what an operator does who gives the container another address: the new one is to come at once.
        return [*dropped, *(self.start(now) if self._refusals < 2 else self._start_over(now, doubled))]

    # --- messages -----------------------------------------------------------------------------------------------------

    def _ask(self, kind: int, told: Mapping[int, bytes], now: float, ciaddr: IPv4Address = packet.ANY) -> Send:
        """Make a message to all servers. A DECLINE asks for nothing (RFC 2131, table 5)."""
        own = dict(self.identity.provided)
        if kind == packet.DECLINE:
            own = {number: value for number, value in own.items() if number == options.CLIENT_ID}
        else:
            own[options.MAX_MESSAGE_SIZE] = packet.MAX_SIZE.to_bytes(2, "big")
            own[options.PARAMETERS] = bytes(self.identity.requested)
        return Send(
            Message(
                kind,
                self._xid,
                self.identity.mac,
                {**told, **{number: value for number, value in own.items() if value}},
                secs=int(now - self._began),
                broadcast=self.identity.broadcast and ciaddr == packet.ANY,
                ciaddr=ciaddr,
            )
        )

    def _new_xid(self) -> int:
        return int(self._random() * 2**32)

    def _server_name(self) -> str:
        return f"server {self._offer.server}" if self._offer is not None else "a server"

    def _offer_address(self) -> str:
        return str(self._offer.address) if self._offer is not None else "an address"


def make_release(identity: Identity, lease: DHCPLease, xid: int) -> Send:
    """Make the message that gives a lease back (RFC 2131, table 5).

    Beside ciaddr it has client and server identifier alone: with option 50, dnsmasq reads ciaddr as zero.
    """
    told = {options.SERVER_ID: lease.options.get(options.SERVER_ID, b"")}
    if options.CLIENT_ID in identity.provided:
        told[options.CLIENT_ID] = identity.provided[options.CLIENT_ID]
    message = Message(packet.RELEASE, xid, identity.mac, told, ciaddr=lease.address)
    return Send(message, lease.server, lease.server_mac)


def _without_times(lease: DHCPLease) -> DHCPLease:
    """Return a lease without what changes with each renewal."""
    times = {options.LEASE_TIME, options.RENEWAL_TIME, options.REBINDING_TIME, options.SERVER_ID}
    kept = {number: value for number, value in lease.options.items() if number not in times}
    return evolve(lease, options=kept, started=0.0, server_mac="")


_HANDLERS: dict[tuple[str, int], Callable[[Machine, Message, str, float], list[Action]]] = {
    ("selecting", packet.OFFER): Machine._take_offer,
    ("requesting", packet.ACK): Machine._take_first_ack,
    ("requesting", packet.NAK): Machine._refused,
    ("renewing", packet.ACK): Machine._take_renewal,
    ("renewing", packet.NAK): Machine._refused,
    ("rebinding", packet.ACK): Machine._take_renewal,
    ("rebinding", packet.NAK): Machine._refused,
}
