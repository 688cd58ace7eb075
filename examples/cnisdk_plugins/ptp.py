"""ptp: connect containers to the host by a veth of their own, over which the host routes.

Takes the configuration of the reference plugin of that name and returns its results. The host's end carries its owner,
and the routes to the container's addresses go with it; so DEL needs neither the container's namespace nor a previous
result.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

from collections.abc import Iterable

from cnisdk import (
    AddRequest,
    CheckRequest,
    DelRequest,
    GCRequest,
    IOFailureError,
    IPConfig,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    Route,
    StatusRequest,
    evolve,
    frozen,
    json_field,
)
from cnisdk.linux import kinds, layer3, masquerade, rtnetlink, rules, sysctl, veth
from cnisdk.linux.links.link import Link
from cnisdk.plugin import interface
from cnisdk.spec.addresses import network_of_one, parse_interface, specified


@frozen(kw_only=True)
class PtpConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        ip_masq: Masquerade what containers send beyond their network.
        ip_masq_backend: ``iptables`` or ``nftables``.
        mtu: MTU in bytes; 0 leaves it to the kernel.
        accept_ra: The container hears router advertisements; None has it hear none where IPAM gives IPv6 addresses.
    """

    ip_masq: bool = False
    ip_masq_backend: str = ""
    mtu: int = 0
    accept_ra: bool | None = json_field("acceptRA", default=None)

    def validate(self) -> None:
        """Refuse what makes no sense, before anything is changed.

        Raises:
            InvalidConfigError: (7) The message has the JSON path and the value.
        """
        interface.check_veth_mtu(self.mtu)
        if self.ip_masq or self.ip_masq_backend:
            masquerade.choose_backend(self.ip_masq_backend)


class Ptp(Plugin[PtpConf]):
    """CNI ptp plugin: connect containers to the host by a routed veth."""

    leaves_process_unchanged = True

    @classmethod
    def rehearsals(cls, directory: str) -> tuple[dict[str, object], ...]:
        ranges = [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]  # RFC 5737, RFC 3849: for documentation
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        return ({"ipam": {"type": "host-local", "dataDir": directory, "ranges": ranges, "routes": routes}},)

    @classmethod
    def conformance(cls) -> dict[str, object]:
        return {"kind": "interface", "conf": {"ipMasq": True, "ipam": {"type": "stub-ipam"}}}

    def add(self, request: AddRequest[PtpConf]) -> Result:
        conf, owner = request.conf, request.attachment
        conf.validate()
        request.ipam.require()
        with rtnetlink.sharing(), request.open_netns() as netns:
            with request.step():
                pair = veth.create(netns, request.ifname, owner=owner, mtu=conf.mtu)
                request.undo(pair.delete)
            leased = interface.lease(request, mtu=conf.mtu)
            sysctl.enable_forwarding(*(ip.address.version for ip in leased.ips))
            if conf.ip_masq:  # before the interface is up: a container may run already
                backend = masquerade.choose_backend(conf.ip_masq_backend)
                request.undo(masquerade.delete, owner)
                rules.apply(owner, masquerade.wanted(backend, [ip.address for ip in leased.ips]))
            layer3.configure(pair.host, host_side(leased.ips))
            for key, value in proxy_settings(pair.host, leased.ips).items():
                sysctl.ensure(key, value)
            pair.container.configure(leased, routed=True, accept_ra=conf.accept_ra)
            result = leased.with_interfaces(pair.host, pair.container)
            return evolve(result, dns=interface.own_dns_or(request, leased.dns))

    def delete(self, request: DelRequest[PtpConf]) -> None:
        with rtnetlink.sharing():
            interface.detach(request, lambda: interface.delete_veth(request))

    def check(self, request: CheckRequest[PtpConf]) -> None:
        conf = request.conf
        conf.validate()
        request.ipam.check()
        ips = interface.own_ips(request.require_prev_result(), request.ifname)
        with rtnetlink.sharing():
            end = interface.check_container(
                request, "veth", routes=[each for ip in ips for each in layer3.gateway_routes(ip)]
            )
            host = interface.check_host_end(request, end)
            layer3.verify(None, host.name, host_side(ips))
            sysctl.check_forwarding(*(ip.address.version for ip in ips))
            for key, value in proxy_settings(host, ips).items():
                if (there := sysctl.get(key)) != value:
                    raise IOFailureError(f"sysctl {key} is {there}, not {value}")
            if conf.ip_masq:
                backend = masquerade.choose_backend(conf.ip_masq_backend)
                masquerade.check(backend, request.attachment, [ip.address for ip in ips])

    def repair(self, request: CheckRequest[PtpConf], *, dry_run: bool = False) -> bool:
        conf = request.conf
        if not conf.ip_masq:
            return False
        ips = interface.own_ips(request.require_prev_result(), request.ifname)
        backend = masquerade.choose_backend(conf.ip_masq_backend)
        return masquerade.repair(backend, request.attachment, [ip.address for ip in ips], dry_run=dry_run)

    def gc(self, request: GCRequest[PtpConf]) -> None:
        network, valid = request.network, request.valid_attachments
        interface.detach(request, lambda: veth.delete_stale(network, valid), lambda: masquerade.gc(network, valid))

    def status(self, request: StatusRequest[PtpConf]) -> None:
        conf = request.conf
        conf.validate()
        request.ipam.require()
        if conf.ip_masq:
            masquerade.status(masquerade.choose_backend(conf.ip_masq_backend))
        kinds.require("veth")
        request.ipam.status()


def host_side(ips: Iterable[IPConfig]) -> Result:
    """Describe the host's end: it has the gateways' addresses, and leads to each of the container's."""
    ips = tuple(ips)
    gateways = dict.fromkeys(gateway for ip in ips if (gateway := specified(ip.gateway)))
    return Result(
        ips=tuple(IPConfig(address=parse_interface(f"{each}/{each.max_prefixlen}")) for each in gateways),
        routes=tuple(Route(dst=network_of_one(ip.address.ip)) for ip in ips),
    )


def proxy_settings(host: Link, ips: Iterable[IPConfig]) -> dict[str, str]:
    """Return the sysctls by which the host answers for what a container without gateway seeks on the link.

    Only for IPv4: there is no such setting for IPv6, where ``fe80::1`` serves as gateway.
    """
    if all(ip.address.version == 6 or specified(ip.gateway) for ip in ips):
        return {}
    return {f"net/ipv4/conf/{host.name}/proxy_arp": "1", f"net/ipv4/neigh/{host.name}/proxy_delay": "0"}


main = PluginMain(Ptp, "CNI ptp plugin v1.9.1")

if __name__ == "__main__":
    main()
