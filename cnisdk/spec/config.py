"""Network configuration (spec §1): one plugin's, a list's, and what runtimes add to it.

Subclass :class:`NetConf` (and :class:`IPAMConf`) with the fields of a plugin; unknown keys stay in ``extra``.
"""

from collections.abc import Iterable, Mapping

from .._light import Any
from ..classes import field, frozen
from ..errors import InvalidConfigError, InvalidEnvironmentError
from .codec import find_key, structure
from .fields import json_field
from .lazy import LazyField, LazyObject, lazy_field
from .names import shorten
from .result import DNS
from .versions import ALL, V0_3_0, SpecVersion


@frozen(kw_only=True)
class IPRange:
    """A range of addresses, as the capability ``ipRanges`` and host-local's ``ranges`` write it.

    The values stay text here: the allocator parses them, and its messages are the reference's.
    """

    subnet: str = ""
    range_start: str = ""
    range_end: str = ""
    gateway: str = ""
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class PortMapping:
    """One published port (capability ``portMappings``). An empty ``host_ip`` means every address of the host."""

    host_port: int = 0
    container_port: int = 0
    protocol: str = ""
    host_ip: str = json_field("hostIP", default="")
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class Bandwidth:
    """Traffic limits (capability ``bandwidth``): rates in bits per second, bursts in bits; 0 means none."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


@frozen(kw_only=True)
class RuntimeDNS:
    """Name resolution of one container (capability ``dns``); its keys are not those of a result's ``dns``."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class _AliasesField(LazyField[tuple[str, ...] | Mapping[str, tuple[str, ...]]]):
    """The capability ``aliases`` in either of its two shapes."""

    def kind_for(self, part: object) -> Any:
        return dict[str, tuple[str, ...]] if isinstance(part, Mapping) else self.kind


class RuntimeConfig(LazyObject):
    """Capability arguments (``runtimeConfig``), by the names of the conventions. Those not known stay in ``extra``.

    Runtimes also send arguments that a plugin did not ask for, some in shapes of their own. So each argument is read
    when the plugin first uses it, and only then can it be wrong: InvalidConfigError (7), in DEL a warning. For
    capabilities of your own, subclass it, and give your configuration the field ``runtime_config`` with that type.
    """

    path = "$.runtimeConfig"

    ips = lazy_field(tuple[str, ...], ())
    mac = lazy_field(str, "")
    ip_ranges = lazy_field(tuple[tuple[IPRange, ...], ...], ())
    port_mappings = lazy_field(tuple[PortMapping, ...], ())
    bandwidth: LazyField[Bandwidth | None] = lazy_field(Bandwidth, None)
    dns: LazyField[RuntimeDNS | None] = lazy_field(RuntimeDNS, None)
    aliases = _AliasesField(tuple[str, ...], (), None)
    infiniband_guid = lazy_field(str, "", key="infinibandGUID")
    device_id = lazy_field(str, "", key="deviceID")
    cgroup_path = lazy_field(str, "")

    def aliases_in(self, network: str) -> tuple[str, ...]:
        """Return the further names of the container on a network.

        The conventions have ``aliases`` as an array; Podman sends an object with an array for each network.
        """
        aliases = self.aliases
        return aliases.get(network, ()) if isinstance(aliases, Mapping) else aliases


@frozen(kw_only=True)
class IPAMConf:
    """The ``ipam`` object of a plugin that delegates to an IPAM plugin. An empty ``type`` means there is none."""

    type: str = ""
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class NetConf:
    """Configuration of a plugin, from its standard input (spec §2 and §3, "Deriving request configuration").

    Attributes:
        cni_version: As written; empty means 0.1.0.
        name: Name of the network.
        type: Name of the plugin.
        capabilities: The capability arguments that the plugin understands.
        ipam: The IPAM plugin to delegate to.
        dns: Name resolution the administrator set.
        args: Arguments by convention (``args.cni.ips``, …).
        runtime_config: Capability arguments of the runtime.
        prev_result: Result of the plugin before in the list, or, in CHECK and DEL, of the whole ADD; not typed yet,
            since its shape depends on its version.
        extra: Every key that no field stands for.
    """

    cni_version: str = ""
    name: str = ""
    type: str = ""
    capabilities: Mapping[str, bool] = field(factory=dict)
    ipam: IPAMConf = field(factory=IPAMConf)
    dns: DNS = field(factory=DNS)
    args: Mapping[str, Any] = field(factory=dict)
    runtime_config: RuntimeConfig = field(factory=RuntimeConfig)
    prev_result: Mapping[str, Any] | None = None
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class NetConfList:
    """A network as it lies in a file (spec §1, "Configuration format").

    Attributes:
        cni_version: The version of the list; see ``cni_versions``.
        cni_versions: The versions the list may be used with (1.1.0); the runtime picks the newest it knows.
        name: Name of the network.
        disable_check: CHECK does nothing for this network.
        disable_gc: GC does nothing for this network.
        load_only_inlined_plugins: Ignore the folder of further plugins.
        plugins: The configuration of each plugin, as documents, since a plugin alone knows its keys.
        extra: Every key that no field stands for.
    """

    cni_version: str = ""
    cni_versions: tuple[str, ...] = ()
    name: str = ""
    disable_check: bool = False
    disable_gc: bool = json_field("disableGC", default=False)
    load_only_inlined_plugins: bool = False
    plugins: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, object] = field(factory=dict)


def parse_args(text: str) -> dict[str, str]:
    """Read ``CNI_ARGS`` (spec §2, "Parameters"): ``"IgnoreUnknown=1;K8S_POD_NAME=web"``.

    Keys are case-sensitive. Empty parts, as after a final semicolon, are skipped; only the first ``=`` of a part
    divides it. Keys that the plugin does not know are no error.

    Raises:
        InvalidEnvironmentError: (4) A part has no ``=``, or no key before it.
    """
    args = {}
    for part in text.split(";"):
        if not part:
            continue
        key, divider, value = part.partition("=")
        if not divider or not key:
            raise InvalidEnvironmentError(
                f"CNI_ARGS has the invalid pair {shorten(part)}", details='expected "KEY=VALUE"'
            )
        args[key] = value
    return args


def read_conventional_ips(args: Mapping[str, Any]) -> tuple[str, ...]:
    """Read ``args.cni.ips`` (conventions, "args in network config") from the object ``args``.

    Raises:
        InvalidConfigError: (7) It is no list of texts.
    """
    if not args:
        return ()
    arguments = structure(find_key(args, "cni") or {}, dict[str, Any], path="$.args.cni")
    return structure(find_key(arguments, "ips") or (), tuple[str, ...], path="$.args.cni.ips")


def check_addresses_fit(cni_version: str, families: Iterable[int]) -> None:
    """Refuse more addresses than a result can have: before 0.3.0 one of each IP version.

    Args:
        cni_version: Of the configuration, as written.
        families: The IP version of each address, 4 or 6.

    Raises:
        InvalidConfigError: (7) There are two of one IP version.
    """
    if cni_version and SpecVersion.parse(cni_version) >= V0_3_0:
        return
    given = list(families)
    if len(set(given)) < len(given):
        raise InvalidConfigError(
            f"CNI version {cni_version or ALL[0]} does not support more than 1 address per family",
            details="$.cniVersion: more addresses of an IP version need 0.3.0 or later",
        )
