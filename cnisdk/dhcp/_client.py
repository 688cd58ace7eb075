"""Client of one attachment: carries out what its state machine says, with sockets, file and interface."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

from ..classes import evolve, frozen
from ..errors import CNIError, InvalidConfigError, IOFailureError
from ..linux import netns as namespaces
from ..linux.links import link
from ..linux.links.link import Link
from ..spec.names import Attachment
from . import _interface, options
from ._machine import Action, Drop, Identity, Machine, Probe, Remember, Send, Timing, Use, make_release
from ._store import LeaseFiles, Record, boot_id
from ._wire import Wire, open_wire
from .lease import DHCPLease

# Seconds to wait for carrier: frames that are sent before are lost. Without any, the client tries nevertheless.
_CARRIER = 1.0
_LOOK = 0.002
# Messages that are taken in a row.
_AT_ONCE = 8
# Seconds until an interface that did not take a lease is tried again, the first time and at most: it is down, or its
# namespace cannot be reached for now.
_AGAIN, _AGAIN_AT_MOST = 1.0, 60.0

# Links with the hardware address of another: frames to that address alone do not reach them (RFC 2131, section 4.1).
_SHARED_MAC = frozenset({"ipvlan", "ipvtap"})


@frozen(kw_only=True)
class Surroundings:
    """Things that all clients of a daemon share.

    Attributes:
        files: Files of the leases.
        random: As for :class:`._machine.Machine`.
        timing: Delays.
        log: Writes a line for the operator.
        close_later: Closes sockets when no plugin waits. The kernel waits for all processors before it lets a packet
            socket go (``synchronize_net``): some ten milliseconds on a busy machine.
    """

    files: LeaseFiles
    random: Callable[[], float]
    timing: Timing
    log: Callable[[str], None]
    close_later: Callable[[Wire], None]


class Client:
    """Client of one attachment.

    Attributes:
        owner: The attachment.
        machine: Its state machine.
        attached: ADD had its result: the client keeps the interface in step with the lease, and tries again, later and
            later, as long as the interface does not take it.
        before: Client of an earlier ADD of the attachment, whose lease the container uses. It goes on if this ADD
            fails; until this one has ended, the file is that client's. None if there is no such client.
    """

    def __init__(self, record: Record, around: Surroundings) -> None:
        """Nothing is sent yet.

        Args:
            record: The attachment and its client; :meth:`resume` takes its lease into account.
            around: Things that all clients share.
        """
        self.owner = record.owner
        self.attached = record.attached
        self.before: Client | None = None
        self.machine = Machine(record.identity, around.random, around.timing)
        self.machine.prefer(record.lease.address if record.lease is not None else None)
        self._record, self._around = record, around
        self._end: Link | None = None
        self._wire: Wire | None = None
        self._carrier_by = math.inf
        self._look_at = math.inf
        self._wait = _LOOK
        self._stale = list(record.stale)
        self._apply_at = math.inf
        self._again = _AGAIN
        self._obstacle = ""

    # --- events -------------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Look for a server as soon as the interface has carrier.

        Raises:
            CNIError: The interface is gone, or the kernel refused.
        """
        end = self._reach()
        if end is None:
            raise IOFailureError(f"interface {self.owner.ifname} in {self._record.netns} is gone")
        if not end.up:
            end.set_up()
        self._carrier_by, self._look_at = now + _CARRIER, now

    def resume(self, now: float) -> None:
        """Go on with the lease of a daemon before, or look for one again."""
        lease = self._record.lease
        if lease is not None and self._record.bound:
            self._follow(self.machine.resume(lease, now), now)
        else:
            self._follow(self.machine.start(now), now)
        if self._stale:  # the daemon before was killed while it changed the interface, or could not
            self._apply_at = now

    @property
    def deadline(self) -> float:
        """Time at which to call :meth:`wake`."""
        return min(self.machine.deadline, self._look_at, self._apply_at)

    @property
    def trouble(self) -> str:
        """The last thing that went wrong, in words; empty when nothing did."""
        return self.machine.trouble or self._obstacle

    def wake(self, now: float) -> None:
        """Do what is due.

        Raises:
            CNIError: ADD failed: see :attr:`attached`. Once attached, nothing is raised.
        """
        if self._look_at < math.inf:
            if now < self._look_at:
                return
            end = self._end.refresh() if self._end is not None else None
            if end is not None and not end.running and now < self._carrier_by:
                self._look_at, self._wait = now + self._wait, self._wait * 2
                return
            self._look_at = math.inf
            self._follow(self.machine.start(now), now)
            return
        if now >= self.machine.deadline:
            if self.attached:
                self._close()  # its sockets must not keep alive a namespace that is gone: look for it again
            self._follow(self.machine.wake(now), now)
        if now >= self._apply_at:
            self._apply(now)
        if self.attached and self.machine.state == "bound":
            self._close()

    def postpone(self, until: float) -> None:
        """Do nothing before that time."""
        self.machine.deadline = max(self.machine.deadline, until)
        if self._apply_at < math.inf:
            self._apply_at = max(self._apply_at, until)

    def filenos(self) -> list[int]:
        """List the descriptors to wait on."""
        return self._wire.filenos() if self._wire is not None else []

    def read(self, now: float) -> None:
        """Read what the sockets have received.

        Raises:
            CNIError: As for :meth:`wake`.
        """
        probed = self.machine.probed
        with suppress(OSError):  # the interface is down or gone: told once, and the deadline comes in any case
            if self._wire is not None and probed is not None:
                other = self._wire.receive_conflict(probed)
                if other is not None:
                    self._follow(self.machine.object(other, now), now)
        with suppress(OSError):
            # Some, not all: a server that sends without end must not keep the daemon from other clients.
            for _ in range(_AT_ONCE):
                if self._wire is None or (received := self._wire.receive_message()) is None:
                    break
                self._follow(self.machine.receive(*received, now), now)

    def accept(self) -> None:
        """Note that ADD gets its result: from here on, the container uses the lease.

        Raises:
            CNIError: The file cannot be written.
        """
        lease = self.machine.lease
        assert lease is not None
        if (end := self._reach()) is not None:
            self._set_mtu(end, lease)
        self.attached = True
        self._save(lease, bound=True)

    def rest(self) -> None:
        """Need nothing until the next deadline. The sockets are closed later, which no plugin should wait for."""
        if self._wire is not None:
            self._around.close_later(self._wire)
            self._wire = None
        self._close()

    def release(self) -> None:
        """Give the lease back, and forget it.

        Raises:
            CNIError: The file cannot be deleted.
        """
        self._look_at = self._apply_at = math.inf
        self.rest()
        # Before it has one of its own, an ADD holds that of the ADD before it.
        lease = self.machine.stop() or (None if self.attached else self._record.lease)
        record = evolve(self._record, lease=lease, identity=self.machine.identity, stale=tuple(self._stale))
        around = self._around
        release(record, around.files, around.random, around.log, around.close_later)

    def give_way(self, before: Client) -> None:
        """Let the client of an earlier ADD go on. A lease of another address than that one's is given back.

        Raises:
            CNIError: The file cannot be written.
        """
        lease, kept = self.machine.stop(), before.machine.lease
        self._look_at = self._apply_at = math.inf
        try:
            changed = lease is not None and kept is not None and lease.address != kept.address
            if lease is not None and changed and (end := self._reach()) is not None:
                around = self._around
                _send_release(end, self.machine.identity, lease, int(around.random() * 2**32), around.close_later)
        except (CNIError, OSError) as exc:
            self._log(f"releasing: {exc}")
        self.rest()
        before._save(kept, bound=kept is not None)

    @property
    def add(self) -> str:
        """Mark of the ADD that made the lease."""
        return self._record.add

    def is_of(self, record: Record) -> bool:
        """Return whether the client is for the same interface as a record."""
        return (record.cookie, record.index) == (self._record.cookie, self._record.index)

    def forget(self) -> None:
        """Close everything, and leave the file as it is: a later client goes on."""
        self._close()

    def list_stale(self, record: Record) -> tuple[DHCPLease, ...]:
        """List the earlier leases that the interface of a record may still have parts of."""
        return tuple(self._stale) if self.is_of(record) else ()

    @property
    def is_dead(self) -> bool:
        """True if there is neither a lease nor an interface to get one for."""
        if not self.attached or self.machine.lease is not None:
            return False
        self._close()
        try:
            return self._reach() is None
        except CNIError:
            return False  # not certain
        finally:
            self._close()

    # --- actions ------------------------------------------------------------------------------------------------------

    def _follow(self, actions: list[Action], now: float) -> None:
        """Carry out the actions in order. If one of an attached client fails, log it, and go on with the next."""
        for action in actions:
            # Noted before the file is written: a daemon that is killed before the interface is changed has a successor.
            if isinstance(action, Use) and action.before is not None:
                self._note_stale(action.before)
            elif isinstance(action, Drop):
                self._note_stale(action.lease)
        for action in actions:
            try:
                self._do(action, now)
            except (CNIError, OSError) as exc:
                if not self.attached and not isinstance(exc, OSError):
                    raise
                if isinstance(action, Send):  # an answer takes it back
                    self.machine.trouble = f"cannot send on {self.owner.ifname}: {exc}"
                self._log(str(exc))
        if self.attached and self.machine.state == "bound":
            self._close()

    def _do(self, action: Action, now: float) -> None:
        if isinstance(action, Send):
            self._send(action)
        elif isinstance(action, Probe):
            if self._connect():
                assert self._wire is not None
                self._inside(self._wire.open_arp)
                self._wire.probe(action.address)
        elif isinstance(action, Remember):
            self._remember(action)
        elif isinstance(action, Use):
            self._log(f"leased {action.lease.interface} from {action.lease.server} for {action.lease.lifetime:g} s")
            if self.attached:
                self._apply(now)
        else:
            self._log(f"lost {action.lease.address}: {self.machine.trouble}")
            self._apply(now)

    def _send(self, action: Send) -> None:
        if not self._connect():
            return
        assert self._wire is not None
        assert self._end is not None
        # The plugin tuning may have changed it meanwhile.
        message = action.message._replace(mac=self.machine.identity.mac)
        if action.server is not None:
            self._inside(self._wire.open_udp, message.ciaddr)
            self._wire.send_udp(message, action.server)
        else:
            self._wire.send_frame(message)

    def _remember(self, action: Remember) -> None:
        if self.before is not None:
            return
        if action.lease is None and not self.attached and not self._stale:
            self._around.files.delete(self.owner)
        else:
            self._save(action.lease, bound=action.bound)

    def _apply(self, now: float) -> None:
        """Give the interface what the lease says, and nothing of earlier leases. If that fails, plan another try."""
        lease, self._apply_at = self.machine.lease, math.inf
        stale = [each for each in self._stale if each != lease]
        try:
            end = self._reach()
            if end is None:
                raise IOFailureError(f"interface {self.owner.ifname} in {self._record.netns} is gone")
            if lease is None:
                _interface.unconfigure(end, stale, self._record.priority)
            else:
                _interface.configure(end, lease, stale, self._record.priority)
                self._stale.clear()
                _interface.add_routes(end, lease, self._record.priority)
                self._set_mtu(end, lease)
        except (CNIError, OSError) as exc:
            if str(exc) != self._obstacle:
                self._obstacle = str(exc)
                self._log(f"the interface does not have what the lease says: {exc}")
            self._apply_at, self._again = now + self._again, min(self._again * 2, _AGAIN_AT_MOST)
            return
        if self._obstacle:
            self._log("the interface has what the lease says")
        self._obstacle, self._again = "", _AGAIN
        self._stale.clear()
        self._save(lease, bound=lease is not None)

    def _set_mtu(self, end: Link, lease: DHCPLease) -> None:
        """Set the MTU that the server names, if the client asked for one. If the kernel refuses, only log it."""
        if not lease.mtu or options.INTERFACE_MTU not in self._record.identity.requested:
            return
        try:
            end.set_mtu(lease.mtu)
        except CNIError as exc:
            self._log(f"{exc}, as the server wants")

    def _note_stale(self, lease: DHCPLease) -> None:
        """Note a lease whose address and routes the interface must lose, unless one with the same is noted."""
        if all(_parts(each) != _parts(lease) for each in self._stale):
            self._stale.append(lease)

    # --- inner --------------------------------------------------------------------------------------------------------

    def _save(self, lease: DHCPLease | None, *, bound: bool) -> None:
        record = evolve(
            self._record,
            lease=lease,
            bound=bound,
            attached=self.attached,
            identity=self.machine.identity,
            stale=tuple(self._stale),
        )
        self._around.files.save(record)

    def _reach(self) -> Link | None:
        """Return the interface, whose namespace stays open until :meth:`_close`; None if it is gone."""
        if self._end is None:
            record = self._record
            self._end = _interface.find_place(record.netns, record.cookie, record.index)
            if self._end is not None and self._end.mac != self.machine.identity.mac:
                self.machine.identity = evolve(self.machine.identity, mac=self._end.mac)
        return self._end

    def _connect(self) -> bool:
        """Open the sockets, unless they are. Return False if the interface is gone."""
        end = self._reach()
        if end is None:
            return False
        if self._wire is None:
            self._wire = open_wire(end)
        return True

    def _inside(self, function: Callable[..., object], *args: object) -> None:
        assert self._end is not None
        if self._end.netns is not None:
            self._end.netns.call(function, *args)

    def _close(self) -> None:
        """Close the sockets and the namespace, which must not be kept alive."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._end is not None:
            if self._end.netns is not None:
                self._end.netns.close()
            self._end = None

    def _log(self, text: str) -> None:
        self._around.log(f"{self.owner}: {text}")


def _parts(lease: DHCPLease) -> object:
    """Return what a lease puts on the interface."""
    return lease.interface, lease.list_routes()


def release(
    record: Record,
    files: LeaseFiles,
    random: Callable[[], float],
    log: Callable[[str], None] = lambda _: None,
    close: Callable[[Wire], None] = Wire.close,
) -> None:
    """Give the lease of a record back, take it from the interface, and delete the file.

    If the interface is gone, the lease cannot be given back: the server keeps it until it ends.

    Args:
        record: The record.
        files: Where its file is.
        random: As for :class:`._machine.Machine`.
        log: Writes a line for the operator.
        close: Closes the sockets that have sent the RELEASE, at once or later.

    Raises:
        CNIError: The file cannot be deleted.
    """
    lease = record.lease
    leases = (*record.stale, lease) if lease is not None else record.stale
    try:
        end = _interface.find_place(record.netns, record.cookie, record.index) if leases else None
        if end is not None and end.netns is not None:
            with end.netns:
                if lease is not None:
                    _send_release(end, record.identity, lease, int(random() * 2**32), close)
                _interface.unconfigure(end, leases, record.priority)
        if lease is not None:
            done = "released" if end is not None else "its interface is gone, and the server keeps for now"
            log(f"{record.owner}: {done} {lease.address}")
    except (CNIError, OSError) as exc:
        log(f"{record.owner}: releasing: {exc}")
    finally:
        files.delete(record.owner)


def _send_release(end: Link, identity: Identity, lease: DHCPLease, xid: int, close: Callable[[Wire], None]) -> None:
    wire = open_wire(end)
    try:
        message, server, mac = make_release(identity, lease, xid)
        wire.send_frame(message, server, mac)
    finally:
        close(wire)


def make_record(
    owner: Attachment, netns: str, identity: Identity, priority: int, *, broadcast: bool, add: str = ""
) -> Record:
    """Make the record of a client that is to begin.

    Args:
        owner: The attachment.
        netns: Path of its namespace.
        identity: Description of the client; its hardware address is looked up.
        priority: Metric of routes.
        broadcast: Servers are to broadcast their answers, whatever kind the interface is of.
        add: Mark of the ADD.

    Raises:
        InvalidNetNSError: (8) There is no such namespace.
        LinkNotFoundError: (5) The interface is not there: the plugin that calls must have made it.
        InvalidConfigError: (7) It has no hardware address.
    """
    with namespaces.open(netns) as space:
        end = link.get(owner.ifname, space)
        if len(end.mac) != len("00:00:00:00:00:00"):
            raise InvalidConfigError(f"interface {owner.ifname} in {netns} has no hardware address")
        return Record(
            owner=owner,
            netns=netns,
            cookie=space.identify(),
            index=end.index,
            identity=evolve(identity, mac=end.mac, broadcast=broadcast or end.kind in _SHARED_MAC),
            priority=priority,
            lease=None,
            bound=False,
            attached=False,
            boot=boot_id(),
            add=add,
        )
