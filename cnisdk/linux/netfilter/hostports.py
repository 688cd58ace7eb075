"""Publish ports of a container on the host, with rules that name their owner.

There are two backends: :mod:`.hostports_nft` looks ports up in maps, :mod:`.hostports_iptables` has the layout of the
reference plugin. A host port is one container's, whichever backend publishes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial

from ...errors import InvalidConfigError, PluginNotAvailableError, TryAgainLaterError, run_all
from ...spec.addresses import IPAddress
from ...spec.names import Attachment, shorten
from .. import program, sysctl
from ..ip import route
from ..program import ProgramFailedError
from . import conntrack, hostports_iptables, hostports_nft, rules
from .base_rules import quote
from .hostport import PROTOCOLS as PROTOCOLS, HostPort as HostPort, Options as Options, udp_ports

_PROGRAMS = {"iptables": "iptables", "nftables": "nft"}


def choose_backend(name: str | None, conditions: Iterable[str] = ()) -> str:
    """Return the backend that a configuration asks for: ``iptables`` or ``nftables``.

    Args:
        name: None or empty: that whose language the conditions are in; without conditions iptables where it is
            installed, otherwise nftables.
        conditions: The first words of the conditions.

    Raises:
        InvalidConfigError: (7) There is no such backend, or the conditions are in the language of the other.
    """
    languages = {"iptables" if word.startswith(("-", "!")) else "nftables" for word in conditions}
    if not name:
        if len(languages) == 1:
            return languages.pop()
        return "nftables" if program.find("iptables") is None and program.find("nft") is not None else "iptables"
    if name not in _PROGRAMS:
        raise InvalidConfigError(
            f"unrecognized backend {shorten(name)}", details=f"$.backend: expected {' or '.join(_PROGRAMS)}"
        )
    if languages - {name}:
        raise InvalidConfigError(f"the conditions in conditionsV4 or conditionsV6 are not for the backend {name}")
    return name


def installed_backends() -> list[str]:
    """List the backends whose programs are installed."""
    return [backend for backend, name in _PROGRAMS.items() if program.find(name) is not None]


def publish(
    backend: str,
    owner: Attachment,
    ports: Collection[HostPort],
    options: dict[int, Options],
    listed: list[tuple[str, int]],
    undo: rules.Undo = rules.no_undo,
) -> None:
    """Publish ports, in place of those that an earlier ADD of the attachment published, by either backend.

    Args:
        backend: From :func:`choose_backend`.
        owner: The attachment.
        ports: The ports, of one address for each IP version; none to leave nothing of the earlier ADD.
        options: How they lead to the container, by IP version.
        listed: Protocols and numbers of all ports, whatever their host address.
        undo: Function that remembers inverses, such as ``request.undo``. They leave what the earlier ADD published.

    Raises:
        TryAgainLaterError: (11) Another container has one of them.
        InvalidConfigError: (7) A program does not take the conditions; the message has JSON path, value and reason.
        IOFailureError: (5) The kernel or a program refused.
        PluginNotAvailableError: (50) A program is not installed.
    """
    for version in (4, 6):  # also that of which only the earlier ADD had ports
        own = [port for port in ports if port.version == version]
        undo_here = partial(undo, _take_back, version)
        replaced: list[HostPort] = []
        try:
            if own and backend == "nftables":
                hostports_iptables.check_holders(owner, version, own)
                replaced += hostports_nft.apply(owner, version, own, options[version], undo_here)
                hostports_iptables.ensure_accepted(version)
            elif own:
                hostports_nft.check_holders(owner, version, own)
                replaced += hostports_iptables.apply(owner, version, own, options[version], listed, undo_here)
        except ProgramFailedError:
            _check_conditions(backend, version, options[version].conditions)
            raise
        if not own or backend != "nftables":
            replaced += hostports_nft.delete(owner, version, undo_here)
        if not own or backend == "nftables":
            replaced += hostports_iptables.delete_marked(owner, version, undo_here)
        conntrack.forget_udp(version, udp_ports([*own, *replaced]))
        if own and version == 4 and options[version].snat:
            end = route.find_link_to(own[0].target.ip)
            if end is not None:
                sysctl.ensure(f"net/ipv4/conf/{end.name}/route_localnet", "1")


def _check_conditions(backend: str, version: int, conditions: Collection[str]) -> None:
    """Verify that the backend's program takes conditions, by a rule that it reads and does not make.

    Raises:
        InvalidConfigError: (7) It does not. The message has its reason.
    """
    if not conditions:
        return
    if backend == "nftables":
        where = f"{'ip' if version == 4 else 'ip6'} cnisdk_trial"
        lines = [f"table {where}", f"chain {where} trial", f"rule {where} trial {' '.join(conditions)} counter"]
        argv, script = ["nft", "-c", "-f", "-"], "".join(f"add {line}\n" for line in lines)
    else:
        rule = f"-A TRIAL -p tcp {' '.join(map(quote, conditions))} -j RETURN"
        argv = ["iptables-restore" if version == 4 else "ip6tables-restore", "--noflush", "--test"]
        script = f"*nat\n:TRIAL - [0:0]\n{rule}\nCOMMIT\n"
    try:
        program.run(argv, script)
    except ProgramFailedError as exc:
        reason, *_ = exc.stderr.splitlines() or [exc.msg]
        raise InvalidConfigError(
            f"$.conditionsV{version} is {shorten(' '.join(conditions))}, expected conditions of {argv[0]}: "
            f"{reason.rpartition('Error: ')[2]}"
        ) from exc


def _take_back(version: int, inverse: Callable[..., Collection[HostPort]], *arguments: object) -> None:
    """Call a backend's inverse, and forget the flows to the ports that it has withdrawn."""
    conntrack.forget_udp(version, udp_ports(inverse(*arguments)))


def check(
    backend: str,
    owner: Attachment,
    ports: Collection[HostPort],
    options: dict[int, Options],
    listed: list[tuple[str, int]],
) -> None:
    """Verify that ports are published.

    Args:
        backend: From :func:`choose_backend`.
        owner: The attachment.
        ports: The ports, of one address for each IP version.
        options: How they lead to the container, by IP version.
        listed: Protocols and numbers of all ports, whatever their host address.

    Raises:
        IOFailureError: (5) One is not, or a rule was changed.
    """
    for version in sorted({port.version for port in ports}):
        own = [port for port in ports if port.version == version]
        if backend == "nftables":
            hostports_nft.check(owner, version, own, options[version])
            hostports_iptables.check_accepted(version)
        else:
            hostports_iptables.check(owner, version, own, options[version], listed)


def withdraw(owner: Attachment, ports: Iterable[HostPort] = (), addresses: Collection[IPAddress] | None = None) -> None:
    """Take back what an attachment has published, by either backend. Absence is fine.

    Args:
        owner: The attachment.
        ports: Its ports, as far as they are known: flows to them are forgotten, too, unless another attachment has the
            port by now.
        addresses: Its addresses, None if they are not known. The reference's rules do not name the interface: those
            that lead to other addresses only are of another interface, and stay.

    Raises:
        CNIError: Something failed; the rest was done nevertheless.
    """
    known = set(ports)

    def clean(version: int) -> None:
        own = {port for port in known if port.version == version}
        gone: set[HostPort] = set()

        def forget_free() -> None:
            rest = set(udp_ports(own)) - set(udp_ports(gone))
            free = [port for port in own if not rest.isdisjoint(udp_ports([port])) and _is_free(owner, port)]
            conntrack.forget_udp(version, udp_ports(free))

        run_all(
            lambda: gone.update(hostports_nft.delete(owner, version)),
            lambda: gone.update(hostports_iptables.delete(owner, version, addresses)),
            lambda: conntrack.forget_udp(version, udp_ports(port for port in gone if port.version == version)),
            forget_free,
        )

    run_all(*(partial(clean, version) for version in (4, 6)))


def _is_free(owner: Attachment, port: HostPort) -> bool:
    """Return True if no other attachment has a port, in either backend: another interface of the container neither."""
    try:
        hostports_nft.check_holders(owner, port.version, [port], siblings=True)
        hostports_iptables.check_holders(owner, port.version, [port], siblings=True)
    except TryAgainLaterError:
        return False
    return True


def gc(network: str, valid: Collection[Attachment]) -> None:
    """Take back what a network's attachments that are not valid have published, by either backend.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        CNIError: Something failed; the rest was done nevertheless.
    """

    def clean(collect: Callable[[str, Collection[Attachment]], Collection[HostPort]]) -> None:
        gone = collect(network, valid)
        for version in (4, 6):
            conntrack.forget_udp(version, udp_ports(port for port in gone if port.version == version))

    run_all(partial(clean, hostports_nft.gc), partial(clean, hostports_iptables.gc))


def status(backend: str) -> None:
    """Raise :class:`PluginNotAvailableError` (50) unless ports can be published."""
    name = _PROGRAMS[backend]
    if program.find(name) is None:
        raise PluginNotAvailableError(f"the backend {backend} needs the program {name}, which is not installed")
