"""Results (spec §5): the 1.1.0 shape, the one plugins work with. Older shapes are in :mod:`.older_results`."""

from collections.abc import Mapping

from .._light import Protocol
from ..classes import evolve, field, frozen
from .addresses import IPAddress, IPInterface, IPNetwork
from .fields import json_field


@frozen(kw_only=True)
class DNS:
    """Name resolution (spec §5, ``dns``).

    Attributes:
        nameservers: Addresses of servers, in order of preference.
        domain: The local domain.
        search: Search domains, in order of preference.
        options: Options for the resolver.
    """

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    extra: Mapping[str, object] = field(factory=dict)

    def __bool__(self) -> bool:
        return self != _NO_DNS


_NO_DNS = DNS()


@frozen(kw_only=True)
class Route:
    """A route (spec §5, ``routes``).

    One type for all versions, as in the reference: the later keys survive in older results.

    Attributes:
        dst: The destination.
        gw: The next hop; None means the gateway of the address family, or none.
        mtu: Path MTU in bytes; 0 means unset.
        advmss: Advertised maximal segment size in bytes; 0 means unset.
        priority: Metric, lower is preferred; 0 means unset.
        table: Routing table; None means main.
        scope: Scope, as in ``rtnetlink(7)``: 0 universe, 253 link, 254 host.

    Raises:
        ValueError: A number is out of the kernel's range.
    """

    dst: IPNetwork = json_field(always=True)
    gw: IPAddress | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None
    extra: Mapping[str, object] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for name, limit in _ROUTE_LIMITS.items():
            if not 0 <= (getattr(self, name) or 0) <= limit:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to {limit}")


_ROUTE_LIMITS = {"mtu": 2**32 - 1, "advmss": 2**32 - 1, "priority": 2**32 - 1, "table": 2**32 - 1, "scope": 255}


@frozen(kw_only=True)
class Interface:
    """A link the plugin made or used (spec §5, ``interfaces``).

    Attributes:
        name: Name of the link.
        mac: Hardware address, ``02:42:ac:11:00:02``.
        mtu: MTU in bytes; 0 means not told.
        sandbox: Path of the network namespace, verbatim as in ``CNI_NETNS``; empty for the host's.
        socket_path: Absolute path of a socket file for this interface.
        pci_id: PCI address of the device.
    """

    name: str = json_field(always=True)
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = json_field("pciID", default="")
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class IPConfig:
    """An address (spec §5, ``ips``).

    Attributes:
        interface: Index into ``interfaces``; None in results of IPAM plugins.
        address: The address with its prefix length, host part kept.
        gateway: The default gateway of this subnet.
    """

    interface: int | None = None
    address: IPInterface = json_field(always=True)
    gateway: IPAddress | None = None
    extra: Mapping[str, object] = field(factory=dict)


class HasInterface(Protocol):
    """An object that can describe itself as an interface of a result, such as a link."""

    @property
    def interface(self) -> Interface:
        """The description."""


@frozen(kw_only=True)
class Result:
    """Result of ADD (spec §5, "Add Success"), in the shape of 1.1.0."""

    cni_version: str = json_field(always=True, default="1.1.0")
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()
    extra: Mapping[str, object] = field(factory=dict)

    def with_interfaces(self, *interfaces: Interface | HasInterface) -> "Result":
        """Copy the result with these interfaces appended. Addresses that have none get the last one, the container's.

        Give them as spec §5 orders them, the container's interface last.
        """
        described = tuple(each if isinstance(each, Interface) else each.interface for each in interfaces)
        together = self.interfaces + described
        ips = tuple(ip if ip.interface is not None else evolve(ip, interface=len(together) - 1) for ip in self.ips)
        return evolve(self, interfaces=together, ips=ips)
