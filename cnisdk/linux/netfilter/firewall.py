"""Accept what a container sends, and the replies, on a host that drops what it forwards: rules that name their owner.

There are two backends here: :mod:`.firewall_iptables` has the layout of the reference plugin, :mod:`.firewall_nft`
looks addresses up in sets. Where firewalld decides, :mod:`cnisdk.plugin.zones` makes them sources of a zone of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial

from ..._light import NamedTuple
from ...errors import InvalidConfigError, IOFailureError, PluginNotAvailableError, run_all
from ...spec.addresses import IPAddress
from ...spec.names import Attachment, shorten
from .. import program, sysctl
from . import firewall_iptables, firewall_nft, firewalld, iptables, nft, rules, sets
from .ingress import POLICIES as POLICIES, Ingress as Ingress

_PROGRAMS = {"iptables": "iptables", "nftables": "nft"}
_KNOWN = ("iptables", "firewalld", "nftables")


def choose_backend(name: str | None) -> str:
    """Return the backend that a configuration asks for: ``iptables``, ``nftables`` or ``firewalld``.

    Args:
        name: None or empty: firewalld where it runs, otherwise iptables where it is installed, otherwise nftables.

    Raises:
        InvalidConfigError: (7) There is no such backend.
        CNIError: It cannot be found out if firewalld runs.
    """
    if not name:
        return "firewalld" if firewalld.is_running() else default_backend()
    if name not in _KNOWN:
        raise InvalidConfigError(
            f"unrecognized backend {shorten(name)}", details=f"$.backend: expected one of {', '.join(_KNOWN)}"
        )
    return name


def default_backend() -> str:
    """Return iptables where it is installed, otherwise nftables."""
    return "nftables" if program.find("iptables") is None and program.find("nft") is not None else "iptables"


def installed_backends() -> list[str]:
    """List the backends here whose programs are installed."""
    return [backend for backend, name in _PROGRAMS.items() if program.find(name) is not None]


def _by_version(addresses: Iterable[IPAddress]) -> dict[int, list[IPAddress]]:
    found: dict[int, list[IPAddress]] = {}
    for each in dict.fromkeys(addresses):
        found.setdefault(each.version, []).append(each)
    return dict(sorted(found.items()))


class Forwarding(NamedTuple):
    """Packets that a host is to forward for an attachment.

    Attributes:
        backend: ``iptables`` or ``nftables``.
        owner: The attachment.
        addresses: Its addresses.
        admin: Name of the chain of iptables in which the administrator has rules that come first.
        ingress: The policy for its bridge; None for a bridge without one.
        accepts: If false, something else accepts packets, such as firewalld: there is nothing but the policy, for the
            IP versions of the addresses.
    """

    backend: str
    owner: Attachment
    addresses: Collection[IPAddress]
    admin: str = "CNI-ADMIN"
    ingress: Ingress | None = None
    accepts: bool = True

    @property
    def accepted(self) -> dict[int, list[IPAddress]]:
        """The addresses to accept packets of, by IP version."""
        return _by_version(self.addresses) if self.accepts else {}

    def find_isolated_ports(self) -> tuple[str, ...]:
        """Return the ports to be kept from the others on the bridge; none if iptables does that, without ``nft``.

        Raises:
            PluginNotAvailableError: (50) Nothing can do that.
        """
        if self.ingress is None or not self.ingress.isolates:
            return ()
        if self.backend == "nftables" or program.find("nft") is not None:
            return self.ingress.ports
        _require_visible(_by_version(self.addresses))
        return ()


def admit(wanted: Forwarding, undo: rules.Undo = rules.no_undo) -> None:
    """Accept what an attachment sends, and the replies, in place of what an earlier ADD of it had, by either backend.

    Args:
        wanted: What is to be forwarded.
        undo: Function that remembers inverses, such as ``request.undo``. They leave what the earlier ADD had.

    Raises:
        InvalidConfigError: (7) iptables would take the name of the bridge for something else.
        IOFailureError: (5) The kernel or a program refused.
        PluginNotAvailableError: (50) A program is not installed.
    """
    owner, admin, accepted = wanted.owner, wanted.admin, wanted.accepted
    ports, versions = wanted.find_isolated_ports(), _by_version(wanted.addresses)
    if wanted.backend == "nftables":
        firewall_nft.apply(owner, [each for own in accepted.values() for each in own], wanted.ingress, ports, undo)
    else:
        firewall_nft.apply(owner, (), None, ports, undo)
    for version in (4, 6):  # also for a version of which only the earlier ADD had an address
        if wanted.backend == "nftables":
            firewall_iptables.apply(owner, version, (), admin, None, undo)
        else:
            policy = wanted.ingress if version in versions else None
            firewall_iptables.apply(owner, version, accepted.get(version, ()), admin, policy, undo)
    for version in accepted if wanted.backend == "nftables" else ():
        firewall_iptables.ensure_accepted(version, admin)


def _require_visible(versions: Iterable[int]) -> None:
    """Refuse to isolate containers of a bridge from each other by iptables, if it does not see what they send.

    Raises:
        PluginNotAvailableError: (50) It does not.
    """
    for version in versions:
        switch = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}[version]
        if sysctl.find(f"net/bridge/{switch}") != "1":
            raise PluginNotAvailableError(
                "ingressPolicy isolated needs the program nft, which is not installed",
                details=f"or the kernel's module br_netfilter, with the sysctl net.bridge.{switch} = 1",
            )


def check(wanted: Forwarding) -> None:
    """Verify that what an attachment sends is accepted, and the replies, and the policy of its bridge.

    Raises:
        IOFailureError: (5) A rule is missing, or was changed, or is one of another policy.
        PluginNotAvailableError: (50) Nothing can isolate the containers of a bridge any more.
    """
    owner, ingress, accepted = wanted.owner, wanted.ingress, wanted.accepted
    if not accepted and ingress is None:
        return
    ports = wanted.find_isolated_ports()
    if wanted.backend == "nftables":
        firewall_nft.check(owner, [each for own in accepted.values() for each in own], ingress)
    firewall_nft.check_isolation(owner, ports)
    for version in _by_version(wanted.addresses):
        if wanted.backend != "nftables":
            firewall_iptables.check(owner, version, accepted.get(version, ()), wanted.admin, ingress)
        elif version in accepted:
            firewall_iptables.check_accepted(version, wanted.admin)


def repair(wanted: Forwarding, *, dry_run: bool = False) -> bool:
    """Put back what :func:`check` misses, and return whether anything was missing.

    A policy for which another attachment has asked since, and which holds for the bridge, is not replaced.

    Args:
        wanted: What is to be forwarded.
        dry_run: If true, change nothing: only find out if anything is missing.

    Raises:
        IOFailureError: (5) The kernel or a program refused.
        PluginNotAvailableError: (50) A program is not installed.
    """
    ingress = wanted.ingress
    if ingress is not None:
        if wanted.backend == "nftables":
            overruled = firewall_nft.is_overruled(wanted.owner, ingress)
        else:
            versions = _by_version(wanted.addresses)
            overruled = all(firewall_iptables.is_overruled(wanted.owner, each, ingress) for each in versions)
        wanted = wanted._replace(ingress=ingress._replace(yields=overruled))
    try:
        check(wanted)
    except IOFailureError:
        if not dry_run:
            admit(wanted)
        return True
    return False


def withdraw(
    owner: Attachment,
    addresses: Collection[IPAddress] = (),
    is_used: Callable[[IPAddress], bool] = lambda _: False,
) -> None:
    """Delete what an attachment has, by either backend. Absence is fine.

    Args:
        owner: The attachment.
        addresses: Its addresses, as far as they are known: the reference's rules say nothing else about their owner.
        is_used: Function that tells if another container uses an address. It is asked only of an address whose rules
            would be deleted without a record.

    Raises:
        CNIError: Something failed; the rest was done nevertheless.
    """
    run_all(
        partial(firewall_nft.delete, owner),
        *(partial(firewall_iptables.delete, owner, version, addresses, is_used) for version in (4, 6)),
    )


def gc(network: str, valid: Collection[Attachment]) -> None:
    """Delete what a network's attachments that are not valid have, by either backend.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        CNIError: Something failed; the rest was done nevertheless.
    """
    run_all(partial(firewall_nft.gc, network, valid), partial(firewall_iptables.gc, network, valid))


def status(backend: str, policy: str = "") -> None:
    """Raise :class:`PluginNotAvailableError` (50) unless rules can be made.

    Args:
        backend: From :func:`choose_backend`.
        policy: One of :data:`POLICIES`.
    """
    name = _PROGRAMS[backend]
    if program.find(name) is None:
        raise PluginNotAvailableError(f"the backend {backend} needs the program {name}, which is not installed")
    if backend == "nftables" or isinstance(iptables.current(4, "filter"), nft.NftTable):
        try:
            generation = sets.read_generation()
        except IOFailureError as exc:
            raise PluginNotAvailableError(f"the kernel's nf_tables cannot be used: {exc.msg}") from exc
        if not generation:
            raise PluginNotAvailableError(f"the backend {backend} needs nf_tables, which this kernel lacks")
    if policy == "isolated" and program.find("nft") is None:
        _require_visible((4,))
