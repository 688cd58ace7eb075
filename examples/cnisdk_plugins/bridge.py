"""bridge: plug containers into a Linux bridge of the host.

Takes the configuration of the reference plugin of that name and returns its results. What it makes outside the
container says whose it is: the veth by its name and alias, the rules by their comments. So DEL needs neither the
container's namespace nor a previous result, and GC asks the kernel what there is.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

from collections.abc import Iterable

from cnisdk import (
    AddRequest,
    Attachment,
    CheckRequest,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    InvalidEnvironmentError,
    IPConfig,
    NetConf,
    Plugin,
    PluginMain,
    PluginNotAvailableError,
    Result,
    StatusRequest,
    evolve,
    frozen,
    json_field,
    run_all,
)
from cnisdk.linux import (
    bridge,
    bridge_port,
    link,
    masquerade,
    rtnetlink,
    rules,
    spoofcheck,
    sysctl,
    veth,
    vlan_gateway,
)
from cnisdk.linux.links.bridge_port import VLANs
from cnisdk.linux.links.link import Link
from cnisdk.plugin import interface
from cnisdk.plugin.trunk import VlanTrunk, read_vlans
from cnisdk.spec.names import check_ifname


@frozen(kw_only=True)
class BridgeConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        bridge: Name of the bridge; made if need be.
        is_gateway: The bridge gets the gateway's address, and the host forwards.
        is_default_gateway: As ``is_gateway``, and containers get a default route through it.
        force_address: Replace another address the bridge has.
        ip_masq: Masquerade what containers send beyond their network.
        ip_masq_backend: ``iptables`` or ``nftables``.
        mtu: MTU in bytes; 0 leaves it to the kernel.
        hairpin_mode: The bridge may send frames back out of the port they came from.
        promisc_mode: The bridge is promiscuous.
        vlan: VLAN of the port; 0 means none.
        vlan_trunk: VLANs the port carries tagged.
        preserve_default_vlan: Leave the bridge's default VLAN on the port.
        macspoofchk: Drop what the container sends from another MAC than its own.
        enabledad: Wait for duplicate address detection of IPv6 addresses.
        accept_ra: The container hears router advertisements, as far as its namespace's settings say; None has it hear
            none where IPAM gives IPv6 addresses.
        disable_container_interface: Leave the container's end down.
        port_isolation: The port cannot talk to other isolated ports.
    """

    bridge: str = "cni0"
    is_gateway: bool = False
    is_default_gateway: bool = False
    force_address: bool = False
    ip_masq: bool = False
    ip_masq_backend: str = ""
    mtu: int = 0
    hairpin_mode: bool = False
    promisc_mode: bool = False
    vlan: int = 0
    vlan_trunk: tuple[VlanTrunk, ...] = ()
    preserve_default_vlan: bool = False
    macspoofchk: bool = False
    enabledad: bool = False
    accept_ra: bool | None = json_field("acceptRA", default=None)
    disable_container_interface: bool = False
    port_isolation: bool = False

    @property
    def serves_gateway(self) -> bool:
        """True if the bridge serves as the containers' gateway."""
        return self.is_gateway or self.is_default_gateway

    def validate(self) -> None:
        """Refuse what makes no sense, before anything is changed.

        Raises:
            InvalidConfigError: (7) The message has the JSON path and the value.
        """
        try:
            check_ifname(self.bridge)
        except InvalidEnvironmentError as exc:
            raise InvalidConfigError(f'$.bridge is "{self.bridge}", expected the name of a link') from exc
        interface.check_veth_mtu(self.mtu)
        self.vlans()
        if self.ipam.type and self.disable_container_interface:
            raise InvalidConfigError(
                "IPAM cannot give addresses to an interface that is disabled",
                details="$.disableContainerInterface is true and $.ipam.type is set",
            )
        if self.hairpin_mode and self.promisc_mode:
            raise InvalidConfigError(
                "cannot set hairpin mode and promiscuous mode at the same time: $.promiscMode is true"
            )
        if self.ip_masq or self.ip_masq_backend:
            masquerade.choose_backend(self.ip_masq_backend)

    def vlans(self) -> VLANs | None:
        """Return the VLANs of the port; None when the bridge need not filter VLANs.

        Raises:
            InvalidConfigError: (7) There is no such VLAN.
        """
        return read_vlans(self.vlan, self.vlan_trunk, keep_default=self.preserve_default_vlan)


class Bridge(Plugin[BridgeConf]):
    """CNI bridge plugin: plug containers into a Linux bridge."""

    leaves_process_unchanged = True

    @classmethod
    def rehearsals(cls, directory: str) -> tuple[dict[str, object], ...]:
        ranges = [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]  # RFC 5737, RFC 3849: for documentation
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        ipam = {"type": "host-local", "dataDir": directory, "ranges": ranges, "routes": routes}
        return ({"bridge": "rehearsal", "isGateway": True, "hairpinMode": True, "ipam": ipam},)

    @classmethod
    def conformance(cls) -> dict[str, object]:
        conf = {"bridge": "cni0", "isGateway": True, "ipMasq": True, "capabilities": {"mac": True}}
        return {"kind": "interface", "conf": {**conf, "ipam": {"type": "stub-ipam"}}}

    def add(self, request: AddRequest[BridgeConf]) -> Result:
        conf, owner = request.conf, request.attachment
        conf.validate()
        mac = interface.requested_mac(request, "CNI_ARGS", "$.args.cni.mac", "$.runtimeConfig.mac")
        with rtnetlink.sharing(), request.open_netns() as netns:
            if veth.find_host_end(owner) is not None:
                raise link.name_taken(request.ifname, netns, owner)
            with bridge.kept():
                master = bridge.ensure(
                    conf.bridge,
                    mtu=conf.mtu,
                    promisc=conf.promisc_mode,
                    vlan_filtering=conf.vlans() is not None,
                    before_making=lambda: request.undo(bridge.delete_unused, conf.bridge),
                )
                bridge.check_port_mtu(master, conf.mtu)
                if conf.vlan and conf.serves_gateway:
                    request.undo(vlan_gateway.delete_unused, conf.bridge, conf.vlan)
                port = wanted_port(conf, master)
                with request.step():
                    pair = veth.create(netns, request.ifname, owner=owner, mtu=conf.mtu, mac=mac, port=port)
                    request.undo(pair.delete)
            leased = interface.lease(request, mtu=conf.mtu)
            if conf.serves_gateway:
                leased = interface.with_gateways(leased)
            if conf.is_default_gateway:
                leased = interface.with_default_routes(leased)
            # Before the interface is up: a container may run already.
            if wanted := wanted_rules(conf, pair, leased.ips):
                request.undo(delete_rules, owner)
                rules.apply(owner, wanted)
            if leased.ips:
                pair.container.configure(leased, enabledad=conf.enabledad, accept_ra=conf.accept_ra)
            elif not conf.disable_container_interface:
                pair.container.set_up()
                pair.host.wait_running()
            gateway = serve_gateway(conf, master, leased.ips) if conf.serves_gateway and leased.ips else None
            result = leased.with_interfaces(master.refresh(), pair.host, pair.container)
            if gateway is not None:
                result = evolve(result, interfaces=(*result.interfaces, gateway.interface))
            return evolve(result, dns=interface.own_dns_or(request, leased.dns))

    def delete(self, request: DelRequest[BridgeConf]) -> None:
        with rtnetlink.sharing():
            interface.detach(
                request,
                lambda: interface.delete_veth(request),
                lambda: spoofcheck.delete(request.attachment),
                lambda: vlan_gateway.delete_unused(request.conf.bridge, request.conf.vlan),
            )

    def check(self, request: CheckRequest[BridgeConf]) -> None:
        conf, owner = request.conf, request.attachment
        conf.validate()
        ips = interface.own_ips(request.require_prev_result(), request.ifname)
        request.ipam.check()
        with rtnetlink.sharing():
            container = interface.check_container(request, "veth", up=not conf.disable_container_interface)
            host = interface.check_host_end(request, container)
            master = bridge.check(conf.bridge, promisc=conf.promisc_mode)
            bridge_port.check(host, wanted_port(conf, master), up=not conf.disable_container_interface)
            if conf.serves_gateway and ips:
                addresses = interface.gateway_addresses(ips)
                holder = link.get(vlan_gateway.name_of(conf.bridge, conf.vlan)) if conf.vlan else master
                bridge.check_addresses(holder, addresses)
                sysctl.check_forwarding(*(each.version for each in addresses))
            if conf.ip_masq and ips:
                backend = masquerade.choose_backend(conf.ip_masq_backend)
                masquerade.check(backend, owner, [ip.address for ip in ips])
            if conf.macspoofchk:
                spoofcheck.check(owner, host.name, container.mac)

    def repair(self, request: CheckRequest[BridgeConf], *, dry_run: bool = False) -> bool:
        conf, owner = request.conf, request.attachment
        ips = interface.own_ips(request.require_prev_result(), request.ifname)
        missed = False
        with rtnetlink.sharing():
            container = link.get(request.ifname, request.open_netns())
            if conf.macspoofchk:
                host = interface.check_host_end(request, container)
                missed = spoofcheck.repair(owner, host.name, container.mac, dry_run=dry_run)
            if conf.ip_masq and ips:
                backend = masquerade.choose_backend(conf.ip_masq_backend)
                missed |= masquerade.repair(backend, owner, [ip.address for ip in ips], dry_run=dry_run)
        return missed

    def gc(self, request: GCRequest[BridgeConf]) -> None:
        network, valid = request.network, request.valid_attachments
        interface.detach(
            request,
            lambda: veth.delete_stale(network, valid),
            lambda: vlan_gateway.delete_all_unused(request.conf.bridge),
            lambda: masquerade.gc(network, valid),
            lambda: spoofcheck.gc(network, valid),
        )

    def status(self, request: StatusRequest[BridgeConf]) -> None:
        conf = request.conf
        conf.validate()
        master = link.find(conf.bridge)
        if master is not None and master.kind != "bridge":
            raise PluginNotAvailableError(
                f"{conf.bridge} already exists but is not a bridge", details=f"it is a link of kind {master.kind}"
            )
        if conf.ip_masq:
            masquerade.status(masquerade.choose_backend(conf.ip_masq_backend))
        if conf.macspoofchk:
            spoofcheck.status()
        request.ipam.status()


def wanted_port(conf: BridgeConf, master: Link) -> bridge_port.Port:
    """Return how the host's end is to be plugged into the bridge."""
    return bridge_port.Port(master, hairpin=conf.hairpin_mode, isolated=conf.port_isolation, vlans=conf.vlans())


def wanted_rules(conf: BridgeConf, pair: veth.VethPair, ips: Iterable[IPConfig]) -> list[rules.Part]:
    """Return the packet filter rules that the configuration asks for."""
    wanted = [spoofcheck.wanted(pair.host.name, pair.container.mac)] if conf.macspoofchk else []
    if conf.ip_masq:
        wanted += masquerade.wanted(masquerade.choose_backend(conf.ip_masq_backend), [ip.address for ip in ips])
    return wanted


def delete_rules(owner: Attachment) -> None:
    """Delete all packet filter rules of an attachment that ADD made."""
    run_all(lambda: masquerade.delete(owner), lambda: spoofcheck.delete(owner))


def serve_gateway(conf: BridgeConf, master: Link, ips: Iterable[IPConfig]) -> Link | None:
    """Give the bridge the gateways' addresses, and let the host forward.

    Returns:
        The link that has them, if they are those of a VLAN and so not on the bridge itself.
    """
    addresses = interface.gateway_addresses(ips)
    gateway = vlan_gateway.ensure(master, conf.vlan) if conf.vlan else None
    bridge.ensure_addresses(gateway or master, addresses, force=conf.force_address)
    sysctl.enable_forwarding(*(each.version for each in addresses))
    return gateway


main = PluginMain(Bridge, "CNI bridge plugin v1.9.1")

if __name__ == "__main__":
    main()
