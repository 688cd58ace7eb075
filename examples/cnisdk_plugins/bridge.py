"""bridge: plug containers into a Linux bridge of the host.

Takes the configuration of the reference plugin of that name and returns its results. What it makes outside the
container says whose it is: the veth by its name and alias, the rules by their comments. So DEL needs neither the
container's namespace nor a previous result, and GC asks the kernel what there is.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext
from typing import Any

from attrs import evolve, frozen

from cnisdk import (
    AddRequest,
    Attachment,
    CheckRequest,
    CNIError,
    DelRequest,
    GCRequest,
    Interface,
    InvalidConfigError,
    InvalidEnvironmentError,
    IOFailureError,
    IPConfig,
    NetConf,
    Plugin,
    PluginMain,
    PluginNotAvailableError,
    Result,
    Route,
    StatusRequest,
    json_field,
    run_all,
)
from cnisdk.linux import address, bridge, layer3, link, masquerade, rtnetlink, rules, spoofcheck, sysctl, veth
from cnisdk.linux.bridge import VLANs
from cnisdk.linux.link import Link
from cnisdk.linux.netns import NetNS
from cnisdk.spec.addresses import IPInterface, parse_interface, parse_network, specified
from cnisdk.spec.codec import find_key, structure
from cnisdk.spec.names import check_ifname

MAX_VLAN = 4094
MIN_MTU, MAX_MTU = 68, 65535  # of a veth, linux/if_ether.h
MIN_MTU_IPV6 = 1280  # RFC 8200, section 5
_MAC = re.compile(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}")
_DEFAULT = {4: parse_network("0.0.0.0/0"), 6: parse_network("::/0")}


@frozen(kw_only=True)
class VlanTrunk:
    """One entry of ``vlanTrunk``: a VLAN, a range of them, or both."""

    id: int | None = None
    min_id: int | None = json_field("minID", default=None)
    max_id: int | None = json_field("maxID", default=None)

    def ranges(self, path: str) -> list[tuple[int, int]]:
        """First and last VLAN of what the entry stands for.

        Raises:
            InvalidConfigError: (7) It is no VLAN and no range of them.
        """
        for key, value in (("id", self.id), ("minID", self.min_id), ("maxID", self.max_id)):
            if value is not None and not 1 <= value <= MAX_VLAN:
                raise InvalidConfigError(
                    f"incorrect trunk {key} parameter: {path}.{key} is {value}, expected 1 to {MAX_VLAN}"
                )
        found = [] if self.id is None else [(self.id, self.id)]
        if self.min_id is not None and self.max_id is not None:
            if self.min_id > self.max_id:
                raise InvalidConfigError("minID is greater than maxID in trunk parameter", details=path)
            found.append((self.min_id, self.max_id))
        elif self.min_id is not None or self.max_id is not None:
            missing = "minID" if self.min_id is None else "maxID"
            raise InvalidConfigError(
                f"minID and maxID should be configured simultaneously, {missing} is missing", details=path
            )
        if not found:
            raise InvalidConfigError(f"{path} names no VLAN", details="expected id, or minID and maxID")
        return found


@frozen(kw_only=True)
class _CNIArgs:
    """``args.cni`` (conventions, "args in network config")."""

    mac: str = ""


@frozen(kw_only=True)
class _Args:
    cni: _CNIArgs = _CNIArgs()


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
        """Does the bridge serve as the containers' gateway?"""
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
        if self.mtu and not MIN_MTU <= self.mtu <= MAX_MTU:
            raise InvalidConfigError(
                f"$.mtu is {self.mtu}, expected {MIN_MTU} to {MAX_MTU}, or 0 for the kernel's choice"
            )
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
        """What the port carries; None when the bridge need not filter VLANs.

        Raises:
            InvalidConfigError: (7) There is no such VLAN.
        """
        if not 0 <= self.vlan <= MAX_VLAN:
            raise InvalidConfigError(
                f"invalid VLAN ID {self.vlan} (must be between 0 and {MAX_VLAN})", details="$.vlan is out of range"
            )
        trunk = [each for index, entry in enumerate(self.vlan_trunk) for each in entry.ranges(f"$.vlanTrunk[{index}]")]
        if not self.vlan and not trunk:
            return None
        # As the reference: untagged frames of a trunk without VLAN belong to VLAN 1.
        access = self.vlan or (0 if self.preserve_default_vlan else 1)
        return VLANs(access=access, trunk=tuple(trunk), keep_default=self.preserve_default_vlan)


class Bridge(Plugin[BridgeConf]):
    """CNI bridge plugin: plug containers into a Linux bridge."""

    @classmethod
    def rehearsals(cls, directory: str) -> tuple[dict[str, Any], ...]:
        ranges = [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]  # RFC 5737, RFC 3849: for documentation
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        ipam = {"type": "host-local", "dataDir": directory, "ranges": ranges, "routes": routes}
        return ({"bridge": "rehearsal", "isGateway": True, "hairpinMode": True, "ipam": ipam},)

    @classmethod
    def conformance(cls) -> dict[str, Any]:
        conf = {"bridge": "cni0", "isGateway": True, "ipMasq": True, "capabilities": {"mac": True}}
        return {"kind": "interface", "conf": {**conf, "ipam": {"type": "stub-ipam"}}}

    def add(self, request: AddRequest[BridgeConf]) -> Result:
        conf, owner = request.conf, request.attachment
        conf.validate()
        mac = requested_mac(request)
        with rtnetlink.sharing(), request.open_netns() as netns:
            if veth.find_host_end(owner) is not None:
                raise InvalidEnvironmentError(
                    f"CNI_IFNAME {request.ifname} already exists: {owner} is attached", details="DEL it first"
                )
            with bridge.kept():
                vlans = conf.vlans()
                master = bridge.ensure(
                    conf.bridge,
                    mtu=conf.mtu,
                    promisc=conf.promisc_mode,
                    vlan_filtering=vlans is not None,
                    before_making=lambda: request.undo(bridge.delete_unused, conf.bridge),
                )
                port = bridge.Port(master, hairpin=conf.hairpin_mode, isolated=conf.port_isolation, vlans=vlans)
                with request.step():
                    pair = veth.create(netns, request.ifname, owner=owner, mtu=conf.mtu, mac=mac, port=port)
                    request.undo(pair.delete)
            leased = with_gateways(conf, request.ipam.add()) if request.ipam.configured else Result()
            # Before the interface is up: a container may run already.
            if wanted := wanted_rules(conf, pair, leased.ips):
                request.undo(delete_rules, owner)
                rules.apply(owner, wanted)
            if request.ipam.configured:
                pair.container.configure(leased, enabledad=conf.enabledad, accept_ra=conf.accept_ra)
                gateway = serve_gateway(conf, master, leased.ips) if conf.serves_gateway else None
            else:
                gateway = None
                if not conf.disable_container_interface:
                    pair.container.set_up()
                    pair.host.wait_running()
            result = leased.with_interfaces(master.refresh(), pair.host, pair.container)
            if gateway is not None:
                result = evolve(result, interfaces=(*result.interfaces, gateway.interface))
            return evolve(result, dns=conf.dns if has_own_dns(request) else leased.dns)

    def delete(self, request: DelRequest[BridgeConf]) -> None:
        owner = request.attachment
        result = request.prev_result
        addresses = {ip.address for ip in own_ips(result, request.ifname)} if result is not None else set()
        gone = False

        def delete_link() -> None:
            nonlocal gone
            # Ours carries its owner: only what the reference added has to be looked for in the container.
            if not veth.delete(owner):
                with request.find_netns() or nullcontext() as netns:
                    gone = netns is None
                    if netns is not None and (end := link.find(request.ifname, netns)) is not None:
                        addresses.update(each.interface for each in address.list_on(end))
                    veth.delete(owner, netns=netns)

        with rtnetlink.sharing():
            run_all(
                delete_link,
                request.ipam.delete if request.ipam.configured else nothing,
                # Whatever the configuration says today: it may have changed since ADD.
                lambda: delete_rules(owner, addresses, gone=gone),
            )

    def check(self, request: CheckRequest[BridgeConf]) -> None:
        conf, owner = request.conf, request.attachment
        conf.validate()
        result = request.require_prev_result()
        if request.ipam.configured:
            request.ipam.check()
        with rtnetlink.sharing(), request.open_netns() as netns:
            container = check_container(request, result, netns)
            master = check_bridge(conf)
            check_port(conf, result, container, master)
            own = own_ips(result, request.ifname)
            if conf.serves_gateway and request.ipam.configured:
                check_gateway(conf, master, own)
            if conf.ip_masq and own:
                backend = masquerade.choose_backend(conf.ip_masq_backend)
                masquerade.check(backend, owner, [ip.address for ip in own])
            if conf.macspoofchk:
                spoofcheck.check(owner, link.get_by_index(container.peer_index).name, container.mac)

    def gc(self, request: GCRequest[BridgeConf]) -> None:
        network, valid = request.network, request.valid_attachments
        run_all(
            lambda: veth.delete_stale(network, valid),
            lambda: masquerade.gc(network, valid),
            lambda: spoofcheck.gc(network, valid),
            request.ipam.gc if request.ipam.configured else nothing,
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
        if request.ipam.configured:
            request.ipam.status()


def wanted_rules(conf: BridgeConf, pair: veth.VethPair, ips: Iterable[IPConfig]) -> list[rules.Part]:
    """The packet filter rules that the configuration asks for."""
    wanted = [spoofcheck.wanted(pair.host.name, pair.container.mac)] if conf.macspoofchk else []
    if conf.ip_masq:
        wanted += masquerade.wanted(masquerade.choose_backend(conf.ip_masq_backend), [ip.address for ip in ips])
    return wanted


def delete_rules(owner: Attachment, addresses: Collection[IPInterface] = (), *, gone: bool = False) -> None:
    """Delete all packet filter rules of an attachment whose link is gone."""
    run_all(lambda: masquerade.delete(owner, addresses, gone=gone), lambda: spoofcheck.delete(owner))


def nothing() -> None:
    """Do nothing: there is no IPAM plugin."""


def requested_mac(request: AddRequest[BridgeConf]) -> str:
    """The hardware address asked for; later ones win: ``CNI_ARGS``, ``args.cni.mac``, the capability ``mac``.

    Raises:
        InvalidConfigError: (7) It is none.
        InvalidEnvironmentError: (4) The one in ``CNI_ARGS`` is none.
    """
    by_convention = structure(request.conf.args, _Args, path="$.args").cni.mac
    error: Callable[[str], CNIError] = InvalidConfigError
    if request.conf.runtime_config.mac:
        mac, source = request.conf.runtime_config.mac, "$.runtimeConfig.mac"
    elif by_convention:
        mac, source = by_convention, "$.args.cni.mac"
    else:
        mac, source, error = request.args.get("MAC", ""), "MAC in CNI_ARGS", InvalidEnvironmentError
    if mac and (_MAC.fullmatch(mac) is None or int(mac[:2], 16) & 1 or not mac.strip("0:-")):
        raise error(f'{source} is "{mac}", expected the hardware address of one host, such as "02:42:ac:11:00:02"')
    return mac.replace("-", ":").lower()


def has_own_dns(request: AddRequest[BridgeConf]) -> bool:
    """Does the configuration say anything of name resolution? An empty list says: none, whatever IPAM says."""
    dns = find_key(request.document, "dns") or {}
    return not request.ipam.configured or any(value is not None for value in dns.values())


def with_gateways(conf: BridgeConf, leased: Result) -> Result:
    """What IPAM leased, with the gateways and default routes the configuration asks for.

    Raises:
        InvalidConfigError: (7) IPAM leased nothing, or what the MTU does not allow.
    """
    if not leased.ips:
        raise InvalidConfigError(
            f'IPAM plugin "{conf.ipam.type}" returned no address',
            details="IPAM plugin returned missing IP config: give $.ipam some, or take it out for a layer 2 network",
        )
    if conf.mtu and conf.mtu < MIN_MTU_IPV6 and any(ip.address.version == 6 for ip in leased.ips):
        raise InvalidConfigError(f"$.mtu is {conf.mtu}, but IPv6 needs {MIN_MTU_IPV6} or more")
    ips = leased.ips
    if conf.serves_gateway:
        # A network of one address has no other that could be the gateway.
        ips = tuple(
            ip
            if specified(ip.gateway) or ip.address.network.num_addresses == 1
            else evolve(ip, gateway=ip.address.network.network_address + 1)
            for ip in ips
        )
    routes = list(leased.routes)
    if conf.is_default_gateway:
        for ip in ips:
            default = _DEFAULT[ip.address.version]
            if all(route.dst != default for route in routes):
                routes.append(Route(dst=default, gw=ip.gateway))
    return evolve(leased, ips=ips, routes=tuple(routes))


def gateway_addresses(ips: Iterable[IPConfig]) -> list[IPInterface]:
    """The addresses the bridge serves as gateway, each with the prefix length of its subnet, IPv4 first."""
    found = [parse_interface(f"{ip.gateway}/{ip.address.network.prefixlen}") for ip in ips if specified(ip.gateway)]
    return sorted(dict.fromkeys(found), key=lambda each: each.version)


def serve_gateway(conf: BridgeConf, master: Link, ips: Iterable[IPConfig]) -> Link | None:
    """Give the bridge the gateways' addresses, and let the host forward.

    Returns:
        The link that has them, if they are those of a VLAN and so not on the bridge itself.
    """
    addresses = gateway_addresses(ips)
    gateway = bridge.ensure_vlan_gateway(master, conf.vlan) if conf.vlan else None
    bridge.ensure_addresses(gateway or master, addresses, force=conf.force_address)
    sysctl.enable_forwarding(**_protocols(addresses))
    return gateway


def _protocols(addresses: Iterable[IPInterface]) -> dict[str, bool]:
    return {f"ipv{address.version}": True for address in addresses}


# --- CHECK ------------------------------------------------------------------------------------------------------------


def own_ips(result: Result, ifname: str) -> list[IPConfig]:
    """The addresses of the container's interface."""
    names = [interface.name for interface in result.interfaces]
    return [ip for ip in result.ips if ip.interface is None or names[ip.interface : ip.interface + 1] == [ifname]]


def check_container(request: CheckRequest[BridgeConf], result: Result, netns: NetNS) -> Link:
    """Verify the container's end, its addresses and its routes."""
    ifname = request.ifname
    described = [each for each in result.interfaces if each.name == ifname and each.sandbox]
    if not described:
        raise InvalidConfigError(f"$.prevResult.interfaces has no interface {ifname} of the container")
    _check_sandbox(described[0], request.netns, netns)
    disabled = request.conf.disable_container_interface
    end = link.get(ifname, netns) if disabled else layer3.verify(netns, ifname, result)
    if end.kind != "veth":
        raise IOFailureError(f"interface {ifname} in {request.netns} is of kind {end.kind or 'unknown'}, not veth")
    _check_mac(described[0], end)
    return end


def _check_sandbox(described: Interface, path: str, netns: NetNS) -> None:
    """The previous result must be about this namespace, however its path is written."""
    if described.sandbox == path:
        return
    from cnisdk.linux import netns as namespaces

    other = namespaces.find(described.sandbox)
    if other is None:
        raise IOFailureError(f"$.prevResult says sandbox {described.sandbox}, which is not CNI_NETNS {path}")
    with other:
        if other != netns:
            raise IOFailureError(f"$.prevResult says sandbox {described.sandbox}, which is not CNI_NETNS {path}")


def _check_mac(described: Interface, there: Link) -> None:
    if described.mac and described.mac.lower() != there.mac:
        raise IOFailureError(f"interface {there.name} has the hardware address {there.mac}, not {described.mac}")


def check_bridge(conf: BridgeConf) -> Link:
    """Verify the bridge."""
    master = link.get(conf.bridge)
    if master.kind != "bridge":
        raise IOFailureError(f"{conf.bridge} is a link of kind {master.kind or 'unknown'}, not a bridge")
    if not master.up:
        raise IOFailureError(f"bridge {conf.bridge} is down")
    if conf.promisc_mode and not master.promisc:
        raise IOFailureError(f"bridge {conf.bridge} is not promiscuous, which $.promiscMode asks for")
    # Not its hardware address: that may follow the ports of a bridge that somebody else made, and no attachment asked
    # for one.
    return master


def check_port(conf: BridgeConf, result: Result, container: Link, master: Link) -> None:
    """Verify the host's end: a port of the bridge, with the flags and VLANs it was given."""
    port = link.get_by_index(container.peer_index)
    names = [each.name for each in result.interfaces if not each.sandbox]
    if port.name not in names:
        raise IOFailureError(
            f"the host end of {container.name} is {port.name}, which $.prevResult.interfaces does not have"
        )
    if port.master != master.index:
        raise IOFailureError(f"interface {port.name} is not a port of bridge {master.name}")
    if not port.up and not conf.disable_container_interface:
        raise IOFailureError(f"interface {port.name} is down")
    for key, wanted, there in (
        ("hairpinMode", conf.hairpin_mode, port.hairpin),
        ("portIsolation", conf.port_isolation, port.isolated),
    ):
        if wanted != bool(there):
            raise IOFailureError(f"bridge port {port.name}: $.{key} is {wanted}, the kernel says {bool(there)}")
    vlans = conf.vlans()
    if vlans is not None:
        present = {entry.vid for entry in bridge.list_vlans(port)}
        wanted_vlans = {each for first, last in vlans.trunk for each in range(first, last + 1)} | {vlans.access} - {0}
        if missing := sorted(wanted_vlans - present):
            raise IOFailureError(f"bridge port {port.name} does not carry VLAN {missing[0]}")


def check_gateway(conf: BridgeConf, master: Link, ips: Iterable[IPConfig]) -> None:
    """Verify that the bridge has the gateways' addresses and the host forwards."""
    holder = link.get(bridge.vlan_gateway_name(conf.bridge, conf.vlan)) if conf.vlan else master
    present = {each.interface for each in address.list_on(holder)}
    wanted = gateway_addresses(ips)
    for each in wanted:
        if each not in present:
            raise IOFailureError(f"{holder.name} does not have the gateway address {each}")
    for version, key in ((4, "net/ipv4/ip_forward"), (6, "net/ipv6/conf/all/forwarding")):
        if any(each.version == version for each in wanted) and sysctl.find(key) == "0":
            raise IOFailureError(f"the host does not forward IPv{version}: sysctl {key} is 0")


main = PluginMain(Bridge)

if __name__ == "__main__":
    main()
