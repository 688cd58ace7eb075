"""Judge whether an attachment is alive: the one judgement behind ``cnisdk leases``, ``gc`` and ``fsck``.

Theory of operation. This module reads nothing: :mod:`.survey` looks at the kernel, :mod:`.caches` reads the cached
results of runtimes, and the tables of IPAM plugins their leases. Each lease, cached result, link, address and process
becomes :class:`Evidence` of one kind. The first row of this table that has evidence decides. So more evidence of life
never makes an attachment dead:

===========  ===========  ====================================================================================
evidence     verdict      such as
===========  ===========  ====================================================================================
``life``     alive        its namespace exists; a link carries its name; its address is on a link somewhere
``ended``    dead         its lease carries the mark of an earlier boot of this machine
``doubt``    unknown      this process may not look at a namespace; the attachment is too young to be judged
``earlier``  dead         its lease or cached result was written before this boot
``gone``     dead         its namespace is gone; no runtime remembers it, and its address is nowhere
(nothing)    unknown
===========  ===========  ====================================================================================

An attachment is dead only if no source shows a sign of life, and this process could read every source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from .._light import Literal, NamedTuple
from ..ipam._records import BootOf
from ..spec.addresses import IPAddress
from ..spec.names import Attachment
from .caches import Remembered, Unreadable, addresses_of, host_ends_of, macs_of, namespace_of
from .hostview import Look, Survey

LivenessState = Literal["alive", "dead", "unknown"]
"""State of an attachment, as far as the evidence shows it."""

EvidenceKind = Literal["life", "ended", "doubt", "earlier", "gone"]
"""Kind of evidence, in the order in which the kinds decide."""

VERDICTS: Mapping[EvidenceKind, LivenessState] = {
    "life": "alive",
    "ended": "dead",
    "doubt": "unknown",
    "earlier": "dead",
    "gone": "dead",
}
"""State to which each kind of evidence leads. The first kind that is present decides."""

EARLIER_BOOT = "it is of an earlier boot"
"""Reason in a judgement, as text."""

# Shorter container ids are found in too many words by chance.
_ID_MIN = 12
# nerdctl gives plugins <namespace of containerd>-<id>. Processes have the two apart.
_ID_OF_CONTAINERD = re.compile(r"-([0-9a-f]{64})$")
# The link that each namespace has. It tells nothing, nor do its addresses.
_LOOPBACK = "lo"
_PROCESS_PATH = re.compile(r"/proc/(\d+)(/task/\d+)?/ns/net")
_SELF_PATH = re.compile(r"/proc/(self|thread-self)/")


class Evidence(NamedTuple):
    """A sign of life or death of an attachment: its kind, and the reason in words."""

    kind: EvidenceKind
    text: str


class Liveness(NamedTuple):
    """A judgement: the state, the reason in words, and the kind of evidence that decided; empty when there was none."""

    state: LivenessState
    why: str
    kind: EvidenceKind | Literal[""] = ""


class LeaseTrace(NamedTuple):
    """A lease of the attachment.

    Attributes:
        address: The address.
        age: Seconds since it was made; below 0 if the clock has been set back since.
        written: Time of its last change, in seconds since the epoch.
        boot: The boot it was made in.
        shared: If true, other machines may write to the same place, and it may be a lease of one of them.
    """

    address: IPAddress
    age: float = 0.0
    written: float = 0.0
    boot: BootOf = "unknown"
    shared: bool = False


class Traces(NamedTuple):
    """The leases and cached results of one attachment.

    Attributes:
        attachment: The attachment; without ``ifname`` it stands for a record that names the container alone.
        leases: Its leases.
        entries: Its cached results.
        unreadable: Files that may have been its cached results.
        passed_on: Addresses in its cached results that another owner has leased since, each with the owner in words.
    """

    attachment: Attachment
    leases: tuple[LeaseTrace, ...] = ()
    entries: tuple[Remembered, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    passed_on: tuple[tuple[IPAddress, str], ...] = ()


def conclude(evidence: Iterable[Evidence]) -> Liveness:
    """Judge by the evidence: see the table above."""
    found = list(evidence)
    for kind, state in VERDICTS.items():
        for each in found:
            if each.kind == kind:
                return Liveness(state, each.text, kind)
    return Liveness("unknown", "nothing is known of it")


def assess(traces: Traces, survey: Survey, *, grace: float) -> Liveness:
    """Judge one attachment.

    Args:
        traces: Its leases and cached results.
        survey: The host, surveyed after the traces were read: so it shows an attachment whose ADD was running then.
        grace: Seconds for which an attachment is not judged, since its ADD may still be running.
    """
    return conclude(weigh(traces, survey, grace=grace))


def weigh(traces: Traces, survey: Survey, *, grace: float) -> Iterator[Evidence]:
    """Yield the evidence in each lease, cached result, link, address and process."""
    # The mark of a boot is right where the clock, which may have been set since, says something else.
    marked = any(lease.boot == "this" for lease in traces.leases)
    times = [*(lease.written for lease in traces.leases), *(entry.written for entry in traces.entries)]
    before = set() if marked else set(filter(survey.is_before_boot, times))
    for entry in traces.entries:
        yield from _weigh_namespace(entry, survey, before=entry.written in before)
    yield from _weigh_kernel(traces, survey)
    for lease in traces.leases:
        if lease.boot == "earlier":
            yield Evidence("ended", EARLIER_BOOT)
        elif lease.shared:
            yield Evidence("doubt", "its lease lies where other machines may write, and may be of one of them")
    if before:
        yield Evidence("earlier", EARLIER_BOOT)
    for text in survey.doubts:
        yield Evidence("doubt", text)
    for address, holder in traces.passed_on:
        # Its DEL could take the rules of that container, which some plugins find by the address.
        yield Evidence("doubt", f"its address {address} is leased to {holder} now")
    ages = [(each.age, "its lease") for each in traces.leases]
    ages += [(each.age, "its cached result") for each in traces.entries]
    ages += [(each.age, "its cached result") for each in traces.unreadable]
    if ages and min(ages)[0] < grace:
        age, what = min(ages)
        set_back = f"{what} was made in the future: the clock has been set back since"
        yield Evidence("doubt", set_back if age < 0 else f"{what} is only {describe_age(age)} old")
    for each in traces.unreadable:
        hint = "; cnisdk fsck repairs it" if each.problem in ("empty", "torn") else ""
        yield Evidence("doubt", f"its cached result {each.path} {each.text}{hint}")
    if traces.entries:
        return
    if not survey.places and not before:
        yield Evidence("doubt", "no directory of a runtime was found; --cache-dir names one")
    if traces.leases or traces.unreadable:
        where = "and its address is on no link of any network namespace" if traces.leases else "and no link is its own"
        yield Evidence("gone", f"no runtime remembers it, {where}")


def _weigh_namespace(entry: Remembered, survey: Survey, *, before: bool) -> Iterator[Evidence]:
    """Yield the evidence at the path of the namespace.

    Args:
        entry: The cached result.
        survey: The host.
        before: If true, it was written before this boot.
    """
    path = namespace_of(entry)
    if not path:
        if not before:
            yield Evidence("doubt", "the runtime does not say which namespace it is in")
        return
    if _SELF_PATH.match(path):
        yield Evidence("doubt", f"its namespace is {path}, which is another one for each process")
        return
    if not path.startswith("/"):
        yield Evidence("doubt", f"its namespace is {path}, which is another one in each directory")
        return
    look = survey.paths.get(path) or Look("hidden", why="it was not surveyed")
    process = _PROCESS_PATH.fullmatch(path)
    if look.found == "there":
        if process is None:
            yield Evidence("life", f"its namespace {path} exists")
        else:
            yield from _weigh_process(entry, path, process[1], look, survey)
    elif path in survey.mounted or look.resolved in survey.mounted:
        yield Evidence("life", f"its namespace {path} exists, in another mount namespace")
    elif look.found == "absent" and process is None and path.startswith("/proc/"):
        yield Evidence("doubt", f"its namespace was {path}, which does not tell if it is gone")
    elif look.found == "absent":
        yield Evidence("gone", f"its namespace {path} is gone")
    elif not (look.parent_missing and before):
        yield Evidence("doubt", f"its namespace {path} cannot be looked at: {look.why}")


def _weigh_process(entry: Remembered, path: str, pid: str, look: Look, survey: Survey) -> Iterator[Evidence]:
    """Yield the evidence in the namespace of a process. It may be another one's: the kernel gives numbers out again."""
    reused = f"its namespace {path} is gone: process {pid} is another one now"
    if look.inode == survey.own:
        yield Evidence("gone", reused)
        return
    contents = survey.namespaces.get(look.inode)
    if contents is None:
        yield Evidence("doubt", f"its namespace {path} cannot be looked into")
        return
    ifname = entry.entry.attachment.ifname
    has = (
        (ifname != _LOOPBACK and ifname in contents.links)
        or any(address in contents.addresses for address in addresses_of(entry))
        or any(mac in contents.links.values() for mac in macs_of(entry))
    )
    if has:
        yield Evidence("life", f"its namespace {path} exists")
    elif ifname == _LOOPBACK:
        yield Evidence("doubt", f"each namespace has a link {ifname}: nothing tells if {path} is still its own")
    else:
        yield Evidence("gone", reused)


def _weigh_kernel(traces: Traces, survey: Survey) -> Iterator[Evidence]:
    """Yield the evidence of links, addresses and processes."""
    attachment = traces.attachment
    link = survey.find_link(attachment)
    if link:
        yield Evidence("life", f"link {link} on the host is its own")
    for address in dict.fromkeys(
        [lease.address for lease in traces.leases]
        + [address for entry in traces.entries for address in addresses_of(entry)]
    ):
        where = survey.find_address(address)
        if where:
            yield Evidence("life", f"its address {address} is on {where}")
    for entry in traces.entries:
        for mac in macs_of(entry):
            where = survey.find_mac(mac)
            if where:
                yield Evidence("life", f"its hardware address {mac} is that of {where}")
        for name, mac in host_ends_of(entry):
            if survey.has_veth(name, mac):
                yield Evidence("life", f"link {name} on the host is its own")
    if attachment.container_id in survey.working:
        yield Evidence("life", f"{survey.working[attachment.container_id]} is at work on it")
    ids = [attachment.container_id, *_ID_OF_CONTAINERD.findall(attachment.container_id)]
    if any(len(each) >= _ID_MIN and each in survey.names for each in ids):
        yield Evidence("life", "a process has its container id in its command line or control group")


def describe_age(seconds: float) -> str:
    """Return an age as text for people: ``"3 d"``, ``"17 min"``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"
