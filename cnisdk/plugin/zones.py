"""Addresses of containers as sources of firewalld's zones, with a record of whose they are.

Theory of operation. A source names no owner, and is gone when firewalld restarts or reloads. So there is a state file
beside it for each attachment that has the address, named by both. Two attachments may have one address: that of a
container that is gone without DEL, and that of the next one. The source goes with the last file.

A source that was there before the first file is foreign: an administrator's, or the reference plugin's. The
file notes that, and the source stays, until firewalld forgets it and ADD adds one of ours in its place. A source of the
permanent configuration, which only an administrator changes, stays always.

An ADD may find files and no source: firewalld has forgotten it, or the reference plugin's DEL has removed it and left
the file. The source that this ADD adds is foreign to those other attachments, and goes without them. CHECK fails for
one of them that is still there, and its repair, an ADD, makes the source that of both.

It may also be the reference's ADD that adds a source then, for the next container, and no file tells. So GC leaves a
file and its source as long as another container is seen to have the address. The file has the identifier of the network
namespace of its own container, which may live though GC is told that the attachment is not valid.

Files and sources change together, under the lock of the directory. ADD writes the file before it adds the source, and
DEL deletes the file after the source: killed between the two, either leaves a file, which DEL and GC find. The
directory is below ``/run``: a boot, which ends all containers and firewalld's memory, empties it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address

from .._files import make_private
from ..errors import IOFailureError, PluginNotAvailableError, TryAgainLaterError, cause_of, run_all
from ..linux import firewalld, lock, rules
from ..linux.netns import NetNS
from ..spec.addresses import IPAddress
from ..spec.names import Attachment, short_hash
from .statefile import StateFile, delete_stale, find_file

_DIRECTORY = "/run/cni/firewalld"

# Keys of a file: the zone, the identifier of the container's network namespace, and if the source was there before.
_ZONE, _NETNS, _FOREIGN = "zone", "netns", "foreign"

# Seconds to wait for other processes, of which each may wait for firewalld.
_PATIENCE = 60.0


def admit(
    owner: Attachment,
    zone: str,
    addresses: Collection[IPAddress],
    undo: Callable[..., object] = rules.no_undo,
    *,
    netns: NetNS | None = None,
) -> None:
    """Make addresses of an attachment sources of a zone, in the place of those that an earlier ADD of it had.

    Args:
        owner: The attachment.
        zone: The zone.
        addresses: Its addresses. Without any, firewalld need not run.
        undo: Function that remembers the inverse. That makes the earlier ADD's addresses sources again.
        netns: The container's network namespace.

    Raises:
        InvalidConfigError: (7) There is no such zone.
        PluginNotAvailableError: (50) firewalld does not run.
        TryAgainLaterError: (11) It, or another process, keeps us waiting.
        IOFailureError: (5) An address is a source of another zone, or firewalld refused for another reason.
    """
    if not addresses and not (os.path.isdir(_DIRECTORY) and _files_of(owner)):
        return
    identity = netns.identify() if netns is not None else ""
    with _alone():
        undo(_put_back, owner, {address: _place_in(file) for address, file in _files_of(owner)})
        _replace(owner, dict.fromkeys(addresses, (zone, identity)))


def _put_back(owner: Attachment, places: Mapping[IPAddress, tuple[str, str]]) -> None:
    with _alone():
        _replace(owner, places)


def _replace(owner: Attachment, places: Mapping[IPAddress, tuple[str, str]]) -> None:
    """Make addresses sources, each of its zone, in the place of those that the attachment has."""
    for address, file in _files_of(owner):
        if address not in places or places[address][0] != _zone_in(file):
            _release(address, file)
    for address, (zone, netns) in places.items():
        _note(zone, address, owner, netns)
        firewalld.add_source(zone, address)


def check(owner: Attachment, zone: str, addresses: Collection[IPAddress]) -> None:
    """Verify that addresses are sources of a zone, and stay until DEL of their attachment.

    Args:
        owner: The attachment. It need not have records: the reference keeps none.
        zone: The zone.
        addresses: Its addresses.

    Raises:
        PluginNotAvailableError: (50) firewalld does not run.
        TryAgainLaterError: (11) It does not answer.
        IOFailureError: (5) An address is none, or goes with another attachment.
    """
    for address in addresses:
        there = firewalld.find_zone(address)
        if there != zone:
            where = f"it is in zone {there}" if there else "it is in no zone"
            raise IOFailureError(f"{firewalld.source_of(address)} is no source of firewalld's zone {zone}: {where}")
        if _is_foreign(_file(owner, address)) and (others := _list_holders(zone, address, owner)):
            raise IOFailureError(
                f"{firewalld.source_of(address)} in firewalld's zone {zone} was lost, and goes with {others[0].owner}"
            )


def repair(
    owner: Attachment,
    zone: str,
    addresses: Collection[IPAddress],
    netns: NetNS | None,
    *,
    dry_run: bool = False,
) -> bool:
    """Put back what :func:`check` misses, as :func:`admit` does, and return whether anything was missing.

    Args:
        owner: The attachment.
        zone: The zone.
        addresses: Its addresses.
        netns: The container's network namespace.
        dry_run: If true, change nothing: only find out if anything is missing.

    Raises:
        PluginNotAvailableError: (50) firewalld does not run.
        TryAgainLaterError: (11) firewalld, or another process, keeps us waiting.
        CNIError: It cannot be put back.
    """
    try:
        check(owner, zone, addresses)
    except IOFailureError:
        if not dry_run:
            admit(owner, zone, addresses, netns=netns)
        return True
    return False


def withdraw(
    owner: Attachment,
    zone: str = "",
    known: Collection[IPAddress] = (),
    is_used: Callable[[IPAddress], bool] = lambda _: False,
) -> None:
    """Remove the sources that an attachment has. Absence is fine.

    Args:
        owner: The attachment.
        zone: Zone in which the reference plugin would have added its addresses.
        known: Its addresses, as far as they are known. The reference keeps no record: if there is none, those of these
            addresses are removed that no other attachment has.
        is_used: Function that tells if another container uses an address. It is asked only of an address whose source
            would be removed without a record.

    Raises:
        TryAgainLaterError: (11) firewalld, or another process, keeps us waiting.
        CNIError: Something failed; the rest was done nevertheless.
    """
    if not known and not os.path.isdir(_DIRECTORY):
        return
    with _alone():
        own = _files_of(owner)
        taken = {address for address, _ in _records()}
        foreign = [] if own else [each for each in known if str(each) not in taken and _is_source(zone, each)]
        run_all(
            *(partial(_release, address, file) for address, file in own),
            *(partial(_remove, zone, address) for address in foreign if not is_used(address)),
            StateFile(_DIRECTORY, owner).delete,  # what an ADD that was killed left of a file
        )


def gc(
    network: str,
    valid: Collection[Attachment],
    find_taken: Callable[[Mapping[IPAddress, str]], Collection[IPAddress]] = lambda _: (),
) -> None:
    """Remove the sources of a network's attachments that are not valid.

    Args:
        network: Name of the network.
        valid: Its attachments that are valid.
        find_taken: Function that finds the addresses that another container is seen to have. It is given the addresses
            whose sources would be removed, each with the identifier of the network namespace of its own container.

    Raises:
        TryAgainLaterError: (11) firewalld, or another process, keeps us waiting.
        CNIError: Something failed; the rest was done nevertheless.
    """
    if not os.path.isdir(_DIRECTORY):
        return
    with _alone():
        stale = list[StateFile]()
        delete_stale(_DIRECTORY, network, valid, stale.append)
        going = {each.owner for each in stale}
        asked = dict[IPAddress, str]()
        for file in stale:
            address, (zone, netns) = _address_of(file), _place_in(file)
            holders = _list_holders(zone, address, file.owner)
            if netns and not _is_foreign(file) and going.issuperset(each.owner for each in holders):
                asked[address] = netns
        taken = find_taken(asked) if asked else ()
        run_all(*(partial(_release, _address_of(each), each) for each in stale if _address_of(each) not in taken))


@contextmanager
def _alone() -> Iterator[None]:
    """Keep other processes from changing sources."""
    try:
        make_private(_DIRECTORY)
        with lock.directory(_DIRECTORY, _PATIENCE) as held:
            if not held:
                raise TryAgainLaterError(f"other processes have had the lock of {_DIRECTORY} for {_PATIENCE:g} seconds")
            yield
    except OSError as exc:
        raise IOFailureError(f"cannot use {_DIRECTORY}: {cause_of(exc)}") from exc


def _key(owner: Attachment) -> str:
    return short_hash(*owner, digits=32)


def _file(owner: Attachment, address: IPAddress) -> StateFile:
    return StateFile(_DIRECTORY, owner, f"{address},{_key(owner)}.json")


def _records() -> list[tuple[str, str]]:
    """List address and owner's key of each file. What a killed process left of one is passed over."""
    names = (name.removesuffix(".json").partition(",") for name in os.listdir(_DIRECTORY) if name.endswith(".json"))
    return [(address, key) for address, comma, key in names if comma]


def _files_of(owner: Attachment) -> list[tuple[IPAddress, StateFile]]:
    own = _key(owner)
    addresses = [ip_address(address) for address, key in _records() if key == own]
    return [(address, _file(owner, address)) for address in addresses]


def _address_of(file: StateFile) -> IPAddress:
    return ip_address(os.path.basename(file.path).partition(",")[0])


def _is_source(zone: str, address: IPAddress) -> bool:
    try:
        return firewalld.find_zone(address) == zone
    except PluginNotAvailableError:
        return False  # nor will it be, when firewalld runs again


def _note(zone: str, address: IPAddress, owner: Attachment, netns: str) -> None:
    """Write the file of a source that is about to be added, unless it is there: also if it is foreign."""
    file, others = _file(owner, address), _list_holders(zone, address, owner)
    is_there = firewalld.find_zone(address) == zone
    is_own = _zone_in(file) == zone and not _is_foreign(file)
    foreign = is_there and not is_own and not others
    _write(file, zone, netns, foreign)
    for each in () if is_there else others:  # theirs is gone, and that of this ADD takes its place
        _write(each, *_place_in(each), True)


def _write(file: StateFile, zone: str, netns: str, foreign: bool) -> None:
    file.write({_ZONE: zone, _NETNS: netns, **({_FOREIGN: True} if foreign else {})})


def _zone_in(file: StateFile) -> str:
    return _place_in(file)[0]


def _place_in(file: StateFile) -> tuple[str, str]:
    """Return the zone and the identifier of the network namespace that a file has."""
    noted = file.find() or {}
    return str(noted.get(_ZONE, "")), str(noted.get(_NETNS, ""))


def _is_foreign(file: StateFile) -> bool:
    return bool((file.find() or {}).get(_FOREIGN))


def _list_holders(zone: str, address: IPAddress, owner: Attachment) -> list[StateFile]:
    """List the files of other attachments that a source is for, without those to which it is foreign."""
    names = [f"{each},{key}.json" for each, key in _records() if each == str(address) and key != _key(owner)]
    files = [found for name in names if (found := find_file(_DIRECTORY, name)) is not None]
    return [each for each in files if _zone_in(each) == zone and not _is_foreign(each)]


def _release(address: IPAddress, file: StateFile) -> None:
    """Delete a file; before it, the source, unless another attachment has a file for it, or it is foreign."""
    zone = _zone_in(file)
    if not _is_foreign(file) and not _list_holders(zone, address, file.owner):
        _remove(zone, address)
    file.delete()


def _remove(zone: str, address: IPAddress) -> None:
    """Remove a source, unless the permanent configuration has it: that is the administrator's."""
    if firewalld.find_permanent_zone(address) != zone:
        firewalld.remove_source(zone, address)
