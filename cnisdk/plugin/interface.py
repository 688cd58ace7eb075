"""Steps that interface plugins share, for a plugin to call in its own ``add``, ``delete`` and ``check``.

ADD: :func:`requested_mac`, :func:`get_master` and :func:`check_mtu` (of a veth, :func:`check_veth_mtu`) before anything
is made; :func:`create_link` for a link that is no veth; :func:`lease`, :func:`with_gateways` and
:func:`with_default_routes` for the addresses; :func:`configure` for the container's link; :func:`own_dns_or` for the
result.

DEL: :func:`detach`, around :func:`delete_in_container` or :func:`delete_veth`. GC: :func:`detach`, too.

CHECK: :func:`check_container`, and :func:`check_host_end` of a veth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .._light import TYPE_CHECKING, Any, Literal
from ..classes import evolve, frozen
from ..errors import (
    CNIError,
    InvalidConfigError,
    InvalidEnvironmentError,
    IOFailureError,
    PluginNotAvailableError,
    run_all,
)
from ..linux import netns as namespaces
from ..linux.ip import address, layer3, route
from ..linux.links import link
from ..spec.addresses import IPAddress, IPInterface, IPNetwork, parse_interface, parse_network, specified
from ..spec.codec import find_key, structure
from ..spec.result import DNS, IPConfig, Result, Route
from ..spec.versions import Verb

if TYPE_CHECKING:
    from ..linux.links.link import Link
    from ..linux.netns import NetNS
    from ..spec.result import Interface
    from .request import AddRequest, AttachmentRequest, CheckRequest, DelRequest, GCRequest, Request

MIN_MTU, MAX_MTU = 68, 65535
"""The least and the largest MTU of a veth, in bytes (linux/if_ether.h)."""

MIN_MTU_IPV6 = 1280
"""The least MTU of a link with IPv6, in bytes (RFC 8200, section 5)."""

_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_SPEAKS_OVER_THE_LINK = frozenset({"dhcp"})
_DEFAULT = {4: parse_network("0.0.0.0/0"), 6: parse_network("::/0")}

# --- what the configuration asks for ----------------------------------------------------------------------------------

MACSource = Literal["$.mac", "CNI_ARGS", "$.args.cni.mac", "$.runtimeConfig.mac"]
"""A place that may ask for a hardware address."""


@frozen(kw_only=True)
class _CNIArgs:
    """``args.cni`` (conventions, "args in network config")."""

    mac: str = ""


@frozen(kw_only=True)
class _Args:
    cni: _CNIArgs = _CNIArgs()


_MAC_READERS: dict[MACSource, Callable[[AttachmentRequest[Any]], str]] = {
    "$.mac": lambda request: str(request.conf.mac),
    "CNI_ARGS": lambda request: request.args.get("MAC", ""),
    "$.args.cni.mac": lambda request: structure(request.conf.args, _Args, path="$.args").cni.mac,
    "$.runtimeConfig.mac": lambda request: request.conf.runtime_config.mac,
}


def _is_mac(text: str) -> bool:
    parts = text.replace("-", ":").split(":")
    return len(parts) == 6 and all(len(part) == 2 and _HEXADECIMAL.issuperset(part) for part in parts)


def requested_mac(request: AttachmentRequest[Any], *sources: MACSource) -> str:
    """Return the hardware address that was asked for, in lower case with colons; empty when none was.

    Args:
        request: The request.
        *sources: Where the plugin looks; a later one wins. ``"$.mac"`` reads the field ``mac`` of the configuration,
            ``"CNI_ARGS"`` the argument ``MAC``, ``"$.runtimeConfig.mac"`` the capability ``mac``.

    Raises:
        InvalidConfigError: (7) The one that wins is no hardware address of one host.
        InvalidEnvironmentError: (4) So is the one in ``CNI_ARGS``.
    """
    for source in reversed(sources):
        mac = _MAC_READERS[source](request)
        if not mac:
            continue
        if not _is_mac(mac) or int(mac[:2], 16) & 1 or not mac.strip("0:-"):
            in_args = source == "CNI_ARGS"
            error: type[CNIError] = InvalidEnvironmentError if in_args else InvalidConfigError
            raise error(
                f'{"MAC in CNI_ARGS" if in_args else source} is "{mac}", expected the hardware address of one host, '
                'such as "02:42:ac:11:00:02"'
            )
        return mac.replace("-", ":").lower()
    return ""


def get_master(request: Request[Any], name: str, netns: NetNS | None = None, *, up: bool = False) -> Link:
    """Look up the link that the container's lies on.

    Args:
        request: The request: STATUS is told that the plugin is not available (50), other verbs of a failure (5).
        name: Its name in the configuration; empty means the link of the default route.
        netns: Where it is; None means the host.
        up: It must be up.

    Raises:
        PluginNotAvailableError: (50) In STATUS: there is none, or it is down.
        IOFailureError: (5) In other verbs: the same.
    """
    error = PluginNotAvailableError if request.verb is Verb.STATUS else IOFailureError
    where = "the host" if netns is None else netns.path
    if not name:
        found = route.find_default_link(netns)
        if found is None:
            raise error("no default route interface found", details=f"name one of {where} in $.master")
        return found
    found = link.find(name, netns)
    if found is None:
        raise error(f'failed to lookup master "{name}": Link not found', details=f"$.master is no link of {where}")
    if up and not found.up:
        raise error(f"master {name} is down", details=f"$.master: ip link set {name} up, in {where}")
    return found


def check_mtu(mtu: int, master: Link) -> None:
    """Refuse an MTU that the master cannot carry.

    Args:
        mtu: In bytes; 0 leaves it to the kernel.
        master: The link that the container's will lie on.

    Raises:
        InvalidConfigError: (7) It is negative, or larger than the master's.
    """
    if not 0 <= mtu <= master.mtu:
        raise InvalidConfigError(
            f"invalid MTU {mtu}, must be [0, master MTU({master.mtu})]", details=f"$.mtu, on {master.name}"
        )


def check_veth_mtu(mtu: int) -> None:
    """Refuse an MTU that no veth can have.

    Args:
        mtu: In bytes; 0 leaves it to the kernel.

    Raises:
        InvalidConfigError: (7) It is out of range.
    """
    if mtu and not MIN_MTU <= mtu <= MAX_MTU:
        raise InvalidConfigError(f"$.mtu is {mtu}, expected {MIN_MTU} to {MAX_MTU}, or 0 for the kernel's choice")


# --- the container's link, and its addresses --------------------------------------------------------------------------


def create_link(
    request: AddRequest[Any],
    kind: str,
    netns: NetNS,
    *,
    parent: Link | None = None,
    mtu: int = 0,
    mac: str = "",
    data: Mapping[str, int | str] | None = None,
) -> Link:
    """Make the container's link, down, with its owner's mark. It is deleted again if ADD fails later.

    Args:
        request: The request, which has the link's name.
        kind: The kind, one of :data:`cnisdk.linux.links.kinds.KINDS`.
        netns: The container's namespace.
        parent: The link it lies on; None for a kind that needs none.
        mtu: MTU in bytes; 0 leaves it to the kernel, which takes the parent's.
        mac: Hardware address; empty makes one up, but for kinds that share their parent's.
        data: Attributes that only this kind has.

    Raises:
        InvalidConfigError: (7) The parent cannot carry the MTU, or the kind has no such attribute.
        InvalidEnvironmentError: (4) There is a link of that name.
        IOFailureError: (5) The kernel refused.
    """
    from ..linux.links import kinds

    if parent is not None:
        check_mtu(mtu, parent)
    with request.step():
        end = kinds.create(
            kind,
            request.ifname,
            netns,
            parent=parent,
            mtu=mtu,
            mac=mac,
            owner=request.attachment,
            data=data,
        )
        request.undo(end.delete)
    return end


def lease(request: AddRequest[Any], *, mtu: int = 0) -> Result:
    """Have the IPAM plugin lease addresses, which are released if the request fails later.

    Args:
        request: The request.
        mtu: MTU of the container's link in bytes, if the configuration gives it; 0 if not.

    Returns:
        What it leased: at least one address; an empty result when the configuration names no IPAM plugin.

    Raises:
        CNIError: What the IPAM plugin reported.
        InvalidConfigError: (7) It leased nothing, or what the MTU does not allow.
    """
    leased = request.ipam.add()
    if request.ipam.configured and not leased.ips:
        raise InvalidConfigError(
            f'IPAM plugin "{request.conf.ipam.type}" returned no address',
            details="IPAM plugin returned missing IP config: give $.ipam some, or take it out for a layer 2 network",
        )
    if 0 < mtu < MIN_MTU_IPV6 and any(ip.address.version == 6 for ip in leased.ips):
        raise InvalidConfigError(f"$.mtu is {mtu}, but IPv6 needs {MIN_MTU_IPV6} or more")
    return leased


def with_gateways(leased: Result) -> Result:
    """Return the result with a gateway for each address that lacks one: the first address of its network.

    A network of one address has no other that could be the gateway.
    """
    ips = tuple(
        ip
        if specified(ip.gateway) or ip.address.network.num_addresses == 1
        else evolve(ip, gateway=ip.address.network.network_address + 1)
        for ip in leased.ips
    )
    return evolve(leased, ips=ips)


def with_default_routes(leased: Result) -> Result:
    """Return the result with a default route of each IP version it has addresses of, unless it has one already."""
    routes = list(leased.routes)
    for ip in leased.ips:
        default = _DEFAULT[ip.address.version]
        if all(each.dst != default for each in routes):
            routes.append(Route(dst=default, gw=ip.gateway))
    return evolve(leased, routes=tuple(routes))


def gateway_addresses(ips: Iterable[IPConfig]) -> list[IPInterface]:
    """List the gateways of addresses, each once and with the prefix length of its network, IPv4 first."""
    found = [parse_interface(f"{ip.gateway}/{ip.address.network.prefixlen}") for ip in ips if specified(ip.gateway)]
    return sorted(dict.fromkeys(found), key=lambda each: each.version)


def own_ips(result: Result, ifname: str) -> list[IPConfig]:
    """List the addresses of one interface of a result: see :func:`cnisdk.linux.ip.layer3.own_ips`.

    Args:
        result: The result.
        ifname: Name of the container's interface.
    """
    return layer3.own_ips(result, ifname)


def own_destinations(result: Result, ifname: str) -> set[IPNetwork]:
    """Return the networks to which a result gives an interface routes, and those of the interface's addresses.

    A container may have any number of other routes. With these, CHECK looks for its own only:
    :func:`cnisdk.linux.ip.route.list_to`.

    Args:
        result: The result.
        ifname: Name of the container's interface.
    """
    return {*(each.dst for each in result.routes), *(ip.address.network for ip in own_ips(result, ifname))}


def configure(end: Link, leased: Result, *, enabledad: bool = False, accept_ra: bool | None = None) -> None:
    """Give the container's link the addresses of a result, set it up, and add the result's routes.

    The kernel announces the addresses as it goes up. A result without addresses only sets it up. See
    :func:`cnisdk.linux.ip.layer3.configure`. A veth has a method of its own, which waits for its other end.

    Raises:
        IOFailureError: (5) The kernel refused, or another host has an address.
    """
    if leased.ips:
        layer3.configure(end, leased, enabledad=enabledad, accept_ra=accept_ra)
    else:
        end.set_up()


def own_dns_or(request: AddRequest[Any], leased: DNS) -> DNS:
    """Return the name resolution of the configuration. If it has none, return what IPAM returned.

    An empty list in the configuration means none, also if IPAM returned some. The reference's bridge and ptp do the
    same. Its other plugins always return their own, so that the name servers of a DHCP server are lost.

    Args:
        request: The request.
        leased: What IPAM returned.
    """
    own = find_key(request.document, "dns") or {}
    has_own = not request.ipam.configured or any(value is not None for value in own.values())
    return request.conf.dns if has_own else leased


# --- DEL --------------------------------------------------------------------------------------------------------------


def detach(request: DelRequest[Any] | GCRequest[Any], *steps: Callable[[], object]) -> None:
    """Run the steps of DEL or GC that remove links, and have the IPAM plugin release their addresses.

    The IPAM plugin comes last: as long as its link is there, the container may use an address that the next one gets.
    The exception is ``dhcp``. It comes first: it sends the release over the link, and takes the address from the link
    itself.

    Args:
        request: The request.
        *steps: Each runs, also after another has failed.

    Raises:
        CNIError: The first error, with the others in its details.
    """
    release = request.ipam.gc if request.verb is Verb.GC else request.ipam.delete
    run_all(*((release, *steps) if request.conf.ipam.type in _SPEAKS_OVER_THE_LINK else (*steps, release)))


def delete_in_container(request: DelRequest[Any], kind: str) -> bool:
    """Delete the container's link, if it is this attachment's. Absence, and a namespace that is gone, are fine.

    The link's alias names its owner. A link without alias counts as the reference plugin's, unless its kind is another,
    or ``prevResult`` describes another link (see :func:`is_own`): by now the path may lead to the next container.
    A device of the host's that the container has on loan is never deleted, nor anything outside ``CNI_NETNS``. By an
    alias, a container can only keep links of its own.

    Args:
        request: The request.
        kind: Kind of the links that the plugin makes, such as ``macvlan``.

    Returns:
        True if there was a link to delete.

    Raises:
        KernelError: (5) The kernel refused.
    """
    netns = request.find_netns()
    there = None if netns is None else link.find(request.ifname, netns)
    return there is not None and _is_own_to_delete(request, there, kind) and there.delete()


def delete_veth(request: DelRequest[Any]) -> None:
    """Delete the attachment's veth and its masquerade rules, ours or the reference plugin's. Absence is fine.

    Ours carry their owner, and need neither the namespace nor ``prevResult``. The reference plugin's veth is looked for
    in the container, and its rules by the addresses that ``prevResult`` and the container's link tell. Rules go
    whatever the configuration says today: it may have changed since ADD.

    Raises:
        CNIError: One could not be deleted; the other was tried nevertheless.
    """
    from ..linux.links import veth
    from ..linux.netfilter import masquerade

    owner, result = request.attachment, request.prev_result
    addresses = {ip.address for ip in own_ips(result, request.ifname)} if result is not None else set()
    gone = False

    def delete_links() -> None:
        nonlocal gone
        if veth.delete(owner):
            return
        netns = request.find_netns()
        gone = netns is None
        end = None if netns is None else link.find(request.ifname, netns)
        # The path may lead to another container by now, whose veth the reference plugin made.
        if end is not None and _is_own_to_delete(request, end, "veth"):
            addresses.update(each.interface for each in address.list_on(end))
            veth.delete(owner, netns=netns)

    run_all(delete_links, lambda: masquerade.delete(owner, addresses, gone=gone))


def list_own_addresses(request: AttachmentRequest[Any]) -> set[IPAddress]:
    """Return the addresses of the attachment's interface; none if its name or its namespace may be another's by now.

    An address that is also in the result is no proof here: another container may have the address by now.
    """
    netns = request.find_netns()
    there = None if netns is None else link.find(request.ifname, netns)
    if there is None or not _is_own(request, there, by_address=False):
        return set()
    return {each.interface.ip for each in address.list_on(there)}


def is_own(request: AttachmentRequest[Any], there: Link, kind: str) -> bool:
    """Return True if a link in the container, under the attachment's interface name, is the one that its ADD made.

    The alias decides, or that of a veth's other end, or the alternative name of a device on loan. If none names an
    attachment, ``prevResult`` decides: by the hardware address; if that differs, by the name of a veth's other end;
    last, by the addresses. A different hardware address alone does not prove another owner: ``tuning``, whose DEL comes
    first, has restored the earlier address.

    Args:
        request: The request.
        there: The link.
        kind: Kind of the links that the plugin makes.
    """
    return there.kind == kind and _is_own(request, there)


def _is_own_to_delete(request: AttachmentRequest[Any], there: Link, kind: str) -> bool:
    """As :func:`is_own`, but False for a device on loan: it has our alternative name, or the reference's alias."""
    is_lent = there.loan_tag or (there.alias and not there.alias.startswith("cni:") and request.prev_result is None)
    return not is_lent and is_own(request, there, kind)


def _is_own(request: AttachmentRequest[Any], there: Link, *, by_address: bool = True) -> bool:
    owner, result = request.attachment, request.prev_result
    if there.alias.startswith("cni:"):
        return there.alias == owner.tag
    if there.loan_tag:
        return there.loan_tag == owner.tag_within(link.ALTNAME_MAX)
    described = None if result is None else find_described(result, request.ifname)
    mac = "" if described is None else described.mac.lower()
    # It has the hardware address of the link below, and so has the next container's link.
    says_nothing = by_address and there.kind in link.SHARE_MAC
    if mac == there.mac and mac and not says_nothing:
        return True
    host = link.find_peer(there) if there.kind == "veth" else None
    if host is not None and host.alias.startswith("cni:"):
        return host.alias == owner.tag
    if result is None or not (mac or says_nothing):
        return True
    outside = [each for each in result.interfaces if not each.sandbox] if host is not None else []
    if host is not None and any(each.name == host.name and each.mac.lower() in ("", host.mac) for each in outside):
        return True
    # A veth that ends with its container takes its other end along, so the one that is here is another's.
    if not by_address or any(link.find(each.name) is None for each in outside):
        return False
    common = has_own_address(request, there)
    # Without addresses, a link goes with its namespace at the latest.
    return common is not False if says_nothing else bool(common)


def is_own_device(request: AttachmentRequest[Any], there: Link, asked: bool | None) -> bool:
    """Return True if a device that a container got from the host, with another hardware address, is the attachment's.

    Args:
        request: The request.
        there: The device, under the attachment's name.
        asked: True if it is the one that the configuration asks for; None if that is unknown.
    """
    if asked is None:
        return is_own(request, there, there.kind)
    return asked and has_own_address(request, there) is not False


def has_own_address(request: AttachmentRequest[Any], there: Link) -> bool | None:
    """Return whether a link has an address of ``prevResult``'s interface; None if either has none at all."""
    result = request.prev_result
    known = {ip.address.ip for ip in own_ips(result, request.ifname)} if result is not None else set()
    present = {each.interface.ip for each in address.list_on(there)} if known else set()
    if not known or all(ip.is_link_local and ip not in known for ip in present):
        return None
    return not known.isdisjoint(present)


# --- CHECK ------------------------------------------------------------------------------------------------------------


def check(request: CheckRequest[Any]) -> None:
    """Compare the container's interfaces with ``prevResult`` (spec §2, "CHECK").

    Each interface that the result places in the container must exist and have the hardware address the result gives.
    ``CNI_IFNAME`` must also have its addresses and routes, and be up where it has any; then the host's end of the
    attachment's veth, if it has one on the host, must be up too. Nothing is changed.

    A result without interfaces, as an IPAM plugin returns, describes nothing that the kernel could show.

    Raises:
        InvalidConfigError: (7) There is no ``prevResult``.
        InvalidNetNSError: (8) The namespace is gone.
        IOFailureError: (5) Something is missing or different.
    """
    result = request.require_prev_result()
    inside = [each for each in result.interfaces if each.sandbox]
    if not inside:
        return
    netns = request.open_netns()
    for described in inside:
        check_sandbox(described, request.netns, netns)
        check_mac(described, link.get(described.name, netns))
    has_layer3 = bool(result.routes) or bool(own_ips(result, request.ifname))
    if any(each.name == request.ifname for each in inside) and has_layer3:
        # Without addresses and routes, it may be down on purpose.
        layer3.verify(netns, request.ifname, result)
        from ..linux.links import veth

        host = veth.find_host_end(request.attachment)
        if host is not None and not host.up:
            raise IOFailureError(f"{host.name}, the host's end of {request.ifname}, is down")


def check_container(request: CheckRequest[Any], kind: str, *, up: bool = True, routes: Iterable[Route] = ()) -> Link:
    """Verify the container's link against ``prevResult``: namespace, kind, hardware address, up, addresses, routes.

    Args:
        request: The request.
        kind: Kind that it must have.
        up: It must be up and have the addresses and routes; False for one that the configuration leaves down.
        routes: Routes that it must have besides those of the result.

    Returns:
        The link.

    Raises:
        InvalidConfigError: (7) There is no ``prevResult``, or it does not tell of the link.
        InvalidNetNSError: (8) The namespace is gone.
        IOFailureError: (5) Something is missing or different.
    """
    result, ifname = request.require_prev_result(), request.ifname
    described = get_described(result, ifname)
    netns = request.open_netns()
    check_sandbox(described, request.netns, netns)
    wanted = evolve(result, routes=(*routes, *result.routes))
    end = layer3.verify(netns, ifname, wanted) if up else link.get(ifname, netns)
    if end.kind != kind:
        raise IOFailureError(f"interface {ifname} in {request.netns} is of kind {end.kind or 'unknown'}, not {kind}")
    check_mac(described, end)
    return end


def check_host_end(request: AttachmentRequest[Any], end: Link) -> Link:
    """Verify that the host has the other end of the container's veth, and that ``prevResult`` tells of it.

    Args:
        request: The request, with its ``prevResult``.
        end: The container's end.

    Returns:
        The host's end.

    Raises:
        IOFailureError: (5) It is not there, or another.
    """
    host = link.get_by_index(end.link_index)
    names = [each.name for each in request.require_prev_result().interfaces if not each.sandbox]
    if host.name not in names or host.link_index != end.index:
        raise IOFailureError(f"the host end of {end.name} is {host.name}, which $.prevResult.interfaces does not have")
    return host


def check_sandbox(described: Interface, path: str, netns: NetNS) -> None:
    """Verify that an interface of a result is in this namespace, however its path is written.

    Args:
        described: The interface, as the result has it.
        path: Path of the namespace (``CNI_NETNS``).
        netns: The namespace.

    Raises:
        IOFailureError: (5) It is in another one.
    """
    if described.sandbox == path:
        return
    other = namespaces.find(described.sandbox)
    if other is not None:
        with other:
            if other == netns:
                return
    raise IOFailureError(f"$.prevResult.interfaces says sandbox {described.sandbox}, which is not CNI_NETNS {path}")


def check_mac(described: Interface, there: Link) -> None:
    """Verify that a link has the hardware address its result gives it, if it gives one.

    Args:
        described: The interface, as the result has it.
        there: The link.

    Raises:
        IOFailureError: (5) It has another.
    """
    if described.mac and described.mac.lower() != there.mac:
        raise IOFailureError(
            f"interface {there.name} has the hardware address {there.mac}, $.prevResult.interfaces says {described.mac}"
        )


def find_described(result: Result, ifname: str) -> Interface | None:
    """Return what a result says of the container's interface; None when it says nothing.

    Args:
        result: The result.
        ifname: Name of the container's interface.
    """
    return next((each for each in result.interfaces if each.name == ifname and each.sandbox), None)


def get_described(result: Result, ifname: str) -> Interface:
    """Return what a result says of the container's interface.

    Args:
        result: The result.
        ifname: Name of the container's interface.

    Raises:
        InvalidConfigError: (7) It has no interface of that name in a container.
    """
    described = find_described(result, ifname)
    if described is None:
        raise InvalidConfigError(f"$.prevResult.interfaces has no interface {ifname} of the container")
    return described
