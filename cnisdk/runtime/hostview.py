"""A host as it was seen at one moment: its links, its network namespaces, and what is in them.

:mod:`.survey` fills these objects, and :mod:`.liveness` judges by them. This module reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .._light import Literal, NamedTuple
from ..linux.links.veth import host_names
from ..spec.addresses import IPAddress
from ..spec.names import Attachment, network_tag_prefixes

# Seconds by which the clock may have been set since the boot. A file that is older than the boot by less is not judged.
_CLOCK_MARGIN = 60.0


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
        path: Path by which it was opened; empty for the host's.
    """

    place: str
    links: Mapping[str, str] = {}
    addresses: Mapping[IPAddress, str] = {}
    path: str = ""


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
        """Return True if a time lies before this boot, by more than the clock may have been set meanwhile."""
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
        """Return True if the host has a veth of this name and hardware address; if so, its peer's namespace lives."""
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
