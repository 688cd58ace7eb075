"""Results in the shapes of 1.0.0 and older. See :mod:`.convert` for the way from and to the current one."""

from collections.abc import Mapping

from ..classes import field, frozen
from .addresses import IPAddress, IPInterface
from .fields import json_field
from .result import DNS, Interface, IPConfig, Route


@frozen(kw_only=True)
class OlderInterface:
    """A link as 0.3.0 to 0.4.0 wrote it, without ``mtu``, ``socketPath`` and ``pciID``."""

    name: str = json_field(always=True)
    mac: str = ""
    sandbox: str = ""
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class Result100:
    """A result of 1.0.0.

    The specification gave interfaces their ``mtu``, ``socketPath`` and ``pciID`` in 1.1.0. The reference reads and
    writes them in 1.0.0 as well, so they are typed here too: nothing is lost between the two.
    """

    cni_version: str = json_field(always=True, default="1.0.0")
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = json_field(always=True, default=DNS())
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class VersionedIPConfig:
    """An address as 0.3.0 to 0.4.0 wrote it, with its family: ``"4"`` or ``"6"``."""

    version: str = json_field(always=True, default="")
    interface: int | None = None
    address: IPInterface = json_field(always=True)
    gateway: IPAddress | None = None
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class Result040:
    """A result of 0.3.0, 0.3.1 or 0.4.0."""

    cni_version: str = json_field(always=True, default="0.4.0")
    interfaces: tuple[OlderInterface, ...] = ()
    ips: tuple[VersionedIPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = json_field(always=True, default=DNS())
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class FamilyConfig:
    """The one address of a family, as 0.1.0 and 0.2.0 wrote it."""

    ip: IPInterface = json_field(always=True)
    gateway: IPAddress | None = None
    routes: tuple[Route, ...] = ()
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class Result020:
    """A result of 0.1.0 or 0.2.0: at most one address of each family, no interfaces."""

    cni_version: str = json_field(always=True, default="0.2.0")
    ip4: FamilyConfig | None = None
    ip6: FamilyConfig | None = None
    dns: DNS = json_field(always=True, default=DNS())
    extra: Mapping[str, object] = field(factory=dict)
