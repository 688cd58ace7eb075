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
from ipaddress import ip_interface

from .._light import Any, Literal, NamedTuple
from ..ipam._records import BootOf
from ..linux.links.veth import host_names
from ..spec.addresses import IPAddress
from ..spec.names import Attachment, network_tag_prefixes
from .caches import Remembered, Unreadable

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
# Seconds by which the clock may have been set, and a file still be told to be older than this boot.
_CLOCK_MARGIN = 60.0
# The link that each namespace has. It tells nothing, nor do its addresses.
_LOOPBACK = "lo"
_PROCESS_PATH = re.compile(r"/proc/(\d+)(/task/\d+)?/ns/net")
_SELF_PATH = re.compile(r"/proc/(self|thread-self)(/task/\d+)?/ns/net")


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
        age: Seconds since it was made.
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
    """

    attachment: Attachment
    leases: tuple[LeaseTrace, ...] = ()
    entries: tuple[Remembered, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


class HostLink(NamedTuple):
    """A link in the host's network namespace."""

    name: str
    kind: str = ""
    mac: str = ""
    alias: str = ""


class Contents(NamedTuple):
    """Links and addresses of one network namespace.

    Attributes:
        place: The namespace in words: ``/run/netns/blue``, ``the namespace of process 4711``.
        links: Names of links, and the hardware address of each.
        addresses: IP addresses, and the name of the link each is on.
    """

    place: str
    links: Mapping[str, str] = {}
    addresses: Mapping[IPAddress, str] = {}


class Look(NamedTuple):
    """A look at the path of a network namespace.

    Attributes:
        found: ``there``: a network namespace. ``absent``: none, in a directory that exists. ``hidden``: this process
            cannot say.
        inode: The namespace's.
        why: The reason why it is hidden.
        resolved: The path without symbolic links.
        parent_missing: It is hidden since its directory does not exist.
    """

    found: Literal["there", "absent", "hidden"]
    inode: int = 0
    why: str = ""
    resolved: str = ""
    parent_missing: bool = False


class Survey:
    """A host as it was seen at one moment; see :func:`cnisdk.runtime.survey.survey_host`.

    Args:
        own: Inode of the host's network namespace.
        links: The links in it.
        namespaces: The contents of each network namespace, by inode; the host's too.
        mounted: Inodes of the mounted network namespaces, by path, in any mount namespace of the host.
        paths: The look at each path that was asked for.
        working: The process of each plugin at work, by container id.
        names: Command lines and control groups of all processes.
        doubts: The parts of the host that could not be looked at, in words. With a doubt, no attachment is judged dead.
        unseen: Those doubts that are about a process or namespace that exists, and may be another container's.
        places: Directories of cached results that were read.
        booted: Time at which this machine was started, in seconds since the epoch.
    """

    def __init__(
        self,
        *,
        own: int = 0,
        links: Iterable[HostLink] = (),
        namespaces: Mapping[int, Contents] | None = None,
        mounted: Mapping[str, int] | None = None,
        paths: Mapping[str, Look] | None = None,
        working: Mapping[str, str] | None = None,
        names: str = "",
        doubts: Iterable[str] = (),
        unseen: Iterable[str] = (),
        places: Iterable[str] = (),
        booted: float = 0.0,
    ) -> None:
        self.own = own
        self.links = tuple(links)
        self.namespaces = namespaces or {}
        self.mounted = mounted or {}
        self.paths = paths or {}
        self.working = working or {}
        self.names = names
        self.doubts = tuple(doubts)
        self.unseen = tuple(unseen)
        self.places = tuple(places)
        self.booted = booted
        self._by_alias = {link.alias: link.name for link in self.links if link.alias}
        self._unmarked = {link.name for link in self.links if link.kind == "veth" and not link.alias}
        self._veths = {(link.name, link.mac) for link in self.links if link.kind == "veth"}
        self._addresses: dict[IPAddress, str] = {}
        self._macs: dict[str, str] = {}
        for inode, contents in self.namespaces.items():
            for address, name in contents.addresses.items():
                self._addresses.setdefault(address, f"{name} in {contents.place}")
            for name, mac in contents.links.items():
                if inode != own:
                    self._macs.setdefault(mac, f"{name} in {contents.place}")
        # An ipvlan has the hardware address of the host's link it is on, as do all others on that link.
        for mac in (*(link.mac for link in self.links), ""):
            self._macs.pop(mac, None)

    def is_before_boot(self, written: float) -> bool:
        """Return whether a time lies before this boot, by more than the clock may have been set meanwhile."""
        return 0 < written < self.booted - _CLOCK_MARGIN

    def find_link(self, attachment: Attachment) -> str | None:
        """Return the name of a link on the host that carries the attachment's mark; None when there is none."""
        if not attachment.ifname:
            prefix = f"{network_tag_prefixes(attachment.network)[0]}{attachment.container_id}/"
            return next((name for alias, name in self._by_alias.items() if alias.startswith(prefix)), None)
        derived = next((name for name in host_names(attachment) if name in self._unmarked), None)
        return self._by_alias.get(attachment.tag, derived)

    def find_marked(self, network: str) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
        """Find the links on the host that carry the mark of an attachment of a network.

        Returns:
            Container id and interface of each, and the marks of those with names too long to be in them.
        """
        clear, hashed = network_tag_prefixes(network)
        pairs = []
        for alias in self._by_alias:
            container_id, slash, ifname = alias.removeprefix(clear).partition("/")
            if alias.startswith(clear) and slash:
                pairs.append((container_id, ifname))
        return tuple(pairs), tuple(alias for alias in self._by_alias if alias.startswith(hashed))

    def has_veth(self, name: str, mac: str) -> bool:
        """Return whether the host has a veth of this name and hardware address; if so, its peer's namespace lives."""
        return (name, mac) in self._veths

    def find_address(self, address: IPAddress) -> str | None:
        """Return the place of an address in words, such as ``eth0 in /run/netns/blue``; None when no link has it."""
        return self._addresses.get(address)

    def find_use(self, address: IPAddress, *, but: int | None = None) -> str | None:
        """Return the place in words where a container uses an address, or might use it unseen; None when none does.

        A process or namespace counts as unseen only if it exists and could not be looked at. A command in a container
        does not see all of the host. But it sees the containers of its runtime, which gives it the path of each
        namespace.

        Args:
            address: The address.
            but: Inode of the namespace that is known to have the address. It is passed over, and so is what is unseen.
        """
        for inode, each in self.namespaces.items():
            if inode not in (self.own, but) and address in each.addresses:
                return f"{each.addresses[address]} in {each.place}"
        return self.unseen[0] if self.unseen and but is None else None

    def find_mac(self, mac: str) -> str | None:
        """Return the place of a hardware address in words; None when no link has it, or one of the host's own."""
        return self._macs.get(mac)


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
    for entry in traces.entries:
        yield from _weigh_namespace(entry, survey)
    yield from _weigh_kernel(traces, survey)
    for lease in traces.leases:
        if lease.boot == "earlier":
            yield Evidence("ended", EARLIER_BOOT)
        elif lease.shared:
            yield Evidence("doubt", "its lease lies where other machines may write, and may be of one of them")
        if survey.is_before_boot(lease.written):
            yield Evidence("earlier", EARLIER_BOOT)
    for entry in traces.entries:
        if survey.is_before_boot(entry.written):
            yield Evidence("earlier", EARLIER_BOOT)
    for text in survey.doubts:
        yield Evidence("doubt", text)
    ages = [(each.age, "its lease") for each in traces.leases]
    ages += [(each.age, "its cached result") for each in traces.entries]
    ages += [(each.age, "its cached result") for each in traces.unreadable]
    if ages and min(ages)[0] < grace:
        age, what = min(ages)
        yield Evidence("doubt", f"{what} is only {describe_age(age)} old")
    for each in traces.unreadable:
        hint = "; cnisdk fsck repairs it" if each.problem in ("empty", "torn") else ""
        yield Evidence("doubt", f"its cached result {each.path} {each.text}{hint}")
    if traces.entries:
        return
    before = any(survey.is_before_boot(lease.written) for lease in traces.leases)
    if not survey.places and not before:
        yield Evidence("doubt", "no directory of a runtime was found; --cache-dir names one")
    if traces.leases or traces.unreadable:
        where = "and its address is on no link of any network namespace" if traces.leases else "and no link is its own"
        yield Evidence("gone", f"no runtime remembers it, {where}")


def _weigh_namespace(entry: Remembered, survey: Survey) -> Iterator[Evidence]:
    """Yield the evidence at the path of the namespace."""
    path = namespace_of(entry)
    before = survey.is_before_boot(entry.written)
    if not path:
        if not before:
            yield Evidence("doubt", "the runtime does not say which namespace it is in")
        return
    if _SELF_PATH.fullmatch(path):
        yield Evidence("doubt", f"its namespace is {path}, which is another one for each process")
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
        or any(mac in contents.links.values() for mac in _macs_of(entry))
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
        for mac in _macs_of(entry):
            where = survey.find_mac(mac)
            if where:
                yield Evidence("life", f"its hardware address {mac} is that of {where}")
        for name, mac in _host_ends_of(entry):
            if survey.has_veth(name, mac):
                yield Evidence("life", f"link {name} on the host is its own")
    if attachment.container_id in survey.working:
        yield Evidence("life", f"{survey.working[attachment.container_id]} is at work on it")
    if len(attachment.container_id) >= _ID_MIN and attachment.container_id in survey.names:
        yield Evidence("life", "a process has its container id in its command line or control group")


# --- what a cached result says ----------------------------------------------------------------------------------------


def namespace_of(entry: Remembered) -> str:
    """Return the path of the namespace. Libcni before 1.2 has it only in the result, as ``sandbox`` of an interface."""
    if entry.entry.netns:
        return entry.entry.netns
    return next((each["sandbox"] for each in _interfaces(entry) if each["sandbox"].startswith("/")), "")


def addresses_of(entry: Remembered) -> tuple[IPAddress, ...]:
    """Return the addresses in a result of any version, without loopback addresses and texts that are no address."""
    result = entry.entry.result or {}
    texts = [each.get("address") for each in _objects(result.get("ips"))]
    texts += [each.get("ip") for each in _objects([result.get("ip4"), result.get("ip6")])]
    found = []
    for text in texts:
        try:
            address = ip_interface(str(text)).ip
        except ValueError:
            continue
        if not address.is_loopback:
            found.append(address)
    return tuple(found)


def _macs_of(entry: Remembered) -> tuple[str, ...]:
    """Return the hardware addresses of the links in the container, without that of lo, which is all zeros."""
    return tuple(each["mac"].lower() for each in _interfaces(entry) if each["sandbox"] and each["mac"].strip("0:"))


def _host_ends_of(entry: Remembered) -> tuple[tuple[str, str], ...]:
    """Return the names and hardware addresses of the links on the host."""
    return tuple(
        (each["name"], each["mac"].lower())
        for each in _interfaces(entry)
        if not each["sandbox"] and each["name"] and each["mac"]
    )


def _interfaces(entry: Remembered) -> list[dict[str, str]]:
    listed = _objects((entry.entry.result or {}).get("interfaces"))
    keys = ("name", "mac", "sandbox")
    return [{key: value if isinstance(value := each.get(key), str) else "" for key in keys} for each in listed]


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def describe_age(seconds: float) -> str:
    """Return an age as text for people: ``"3 d"``, ``"17 min"``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
