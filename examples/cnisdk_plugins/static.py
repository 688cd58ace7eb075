"""static: the addresses that the configuration or the runtime names (IPAM plugin).

Configuration and result are those of the reference plugin of this name. Nothing is remembered.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence

from cnisdk import (
    DNS,
    AddRequest,
    CheckRequest,
    CNIError,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    InvalidEnvironmentError,
    IOFailureError,
    IPAMConf,
    IPConfig,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    Route,
    StatusRequest,
    field,
    frozen,
)
from cnisdk.spec.addresses import IPAddress, IPInterface, parse_address, parse_interface, specified
from cnisdk.spec.config import check_addresses_fit, read_conventional_ips


@frozen(kw_only=True)
class AddressConf:
    """One of the configured addresses.

    Attributes:
        address: With its prefix length: ``10.1.2.3/24``.
        gateway: The gateway of its network; empty means none.
        extra: Every other key.
    """

    address: str
    gateway: str = ""
    extra: Mapping[str, object] = field(factory=dict)


@frozen(kw_only=True)
class StaticIPAM(IPAMConf):
    """The object ``ipam``.

    Attributes:
        addresses: Addresses of every container.
        routes: Handed on in the result.
        dns: Handed on in the result.
    """

    addresses: tuple[AddressConf, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()


@frozen(kw_only=True)
class StaticConf(NetConf):
    """The network configuration."""

    ipam: StaticIPAM = StaticIPAM()


class Static(Plugin[StaticConf]):
    """CNI static plugin: the addresses that the configuration or the runtime names."""

    leaves_process_unchanged = True
    leaves_only_links = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        ipam = {"type": "static", "addresses": [{"address": "10.23.0.5/24", "gateway": "10.23.0.1"}]}
        return {"kind": "ipam", "conf": {"ipam": ipam}}

    @classmethod
    def lease_tables(cls, conf: StaticConf | None, directory: str = "") -> tuple[()]:
        return ()  # which says that it keeps none

    def add(self, request: AddRequest[StaticConf]) -> Result:
        ips, source = choose(request)
        if source and request.conf.ipam.addresses:
            sys.stderr.write(f"static: {source} replaces $.ipam.addresses\n")
        return Result(ips=ips, routes=request.conf.ipam.routes, dns=request.conf.ipam.dns)

    def delete(self, request: DelRequest[StaticConf]) -> None:
        """Do nothing: no address is remembered."""

    def check(self, request: CheckRequest[StaticConf]) -> None:
        present = {ip.address: specified(ip.gateway) for ip in request.require_prev_result().ips}
        for ip in choose(request)[0]:
            if ip.address not in present:
                raise IOFailureError(f"static: {ip.address} is not among the addresses of $.prevResult.ips")
            # The reference plugin forgets gateways of addresses that the runtime names.
            gateway = present[ip.address]
            if gateway is not None and gateway != (specified(ip.gateway) or gateway):
                raise IOFailureError(
                    f"static: {ip.address} has the gateway {gateway} in $.prevResult, not {ip.gateway}"
                )

    def gc(self, request: GCRequest[StaticConf]) -> None:
        """Do nothing: no address is remembered."""

    def status(self, request: StatusRequest[StaticConf]) -> None:
        list(configured(request.conf))


def choose(request: AddRequest[StaticConf] | CheckRequest[StaticConf]) -> tuple[tuple[IPConfig, ...], str]:
    """Return the addresses of an attachment, and what replaced those of the configuration; empty for nothing.

    ``CNI_ARGS`` adds to the configured addresses. ``args.cni.ips`` replaces both, and the capability ``ips`` replaces
    all. An address that replaces others keeps the gateway that was given for its network.

    Raises:
        InvalidConfigError: (7) One is no address, or there are more than the version of the configuration allows.
        InvalidEnvironmentError: (4) One in ``CNI_ARGS`` is none.
    """
    conf = request.conf
    ips = [*configured(conf), *from_args(request.args)]
    source = ""
    for path, texts in (
        ("$.args.cni.ips", read_conventional_ips(conf.args)),
        ("$.runtimeConfig.ips", conf.runtime_config.ips),
    ):
        if texts:
            gateways = [ip.gateway for ip in ips if ip.gateway is not None]
            wrong = "an entry in the 'ips' field is NOT in CIDR notation, got: '{}'"
            addresses = [read_interface(text, wrong, f"{path}[{index}]") for index, text in enumerate(texts)]
            ips, source = [with_gateway(each, gateways) for each in addresses], path
    once: dict[IPInterface, IPConfig] = {}
    for ip in ips:
        once.setdefault(ip.address, ip)
    check_addresses_fit(conf.cni_version, [each.version for each in once])
    return tuple(once.values()), source


def configured(conf: StaticConf) -> Iterator[IPConfig]:
    """Yield the addresses of the configuration.

    Raises:
        InvalidConfigError: (7) One is none, or its gateway is none.
    """
    if not conf.ipam.type and conf.ipam == StaticIPAM():
        raise InvalidConfigError("IPAM config missing 'ipam' key", details="$.ipam is missing or empty")
    for index, each in enumerate(conf.ipam.addresses):
        path = f"$.ipam.addresses[{index}]"
        wrong = "the 'address' field is expected to be in CIDR notation, got: '{}'"
        address = read_interface(each.address, wrong, f"{path}.address")
        gateway = read_gateway(each.gateway, f"{path}.gateway") if each.gateway else None
        yield IPConfig(address=address, gateway=gateway)


def from_args(args: dict[str, str]) -> Iterator[IPConfig]:
    """Yield the addresses of ``CNI_ARGS``: ``IP`` and ``GATEWAY``, each with commas between several.

    Raises:
        InvalidEnvironmentError: (4) One is none.
    """
    error, place = InvalidEnvironmentError, "in CNI_ARGS"
    gateways = [read_gateway(each.strip(), place, error) for each in args.get("GATEWAY", "").split(",") if each.strip()]
    for text in args.get("IP", "").split(","):
        if text.strip():
            wrong = "the 'ip' field is expected to be in CIDR notation, got: '{}'"
            yield with_gateway(read_interface(text.strip(), wrong, place, error), gateways)


def with_gateway(address: IPInterface, gateways: Sequence[IPAddress]) -> IPConfig:
    """Return the address with the last of the gateways that is in its network."""
    return IPConfig(address=address, gateway=next((each for each in gateways[::-1] if each in address.network), None))


def read_interface(text: str, wrong: str, place: str, error: type[CNIError] = InvalidConfigError) -> IPInterface:
    """Read an address with its prefix length."""
    try:
        return parse_interface(text)
    except ValueError as exc:
        raise error(wrong.format(text), details=f"{place}: expected an address such as 10.1.2.3/24") from exc


def read_gateway(text: str, place: str, error: type[CNIError] = InvalidConfigError) -> IPAddress:
    """Read an address without prefix length."""
    try:
        return parse_address(text)
    except ValueError as exc:
        raise error(
            f"invalid gateway address: {text}", details=f"{place}: expected an address such as 10.1.2.1"
        ) from exc


main = PluginMain(Static, "CNI static plugin v1.9.1")

if __name__ == "__main__":
    main()
