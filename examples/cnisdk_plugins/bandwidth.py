"""bandwidth: limit what a container receives and sends.

Takes the configuration of the reference plugin of that name and returns its results. What the container receives, its
host link sends: a token bucket there limits it. What it sends comes in there, and is redirected to an ``ifb`` link of
the host that has a token bucket of its own. That link carries its owner; the rest goes with the host link.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version(("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"))

from cnisdk import (
    AddRequest,
    Attachment,
    CheckRequest,
    DelRequest,
    GCRequest,
    Interface,
    InvalidConfigError,
    IOFailureError,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    evolve,
    frozen,
)
from cnisdk.linux import kinds, link, rtnetlink, traffic
from cnisdk.linux.links.link import Link
from cnisdk.linux.traffic import Limit
from cnisdk.plugin import interface
from cnisdk.spec import config
from cnisdk.spec.names import short_hash, shorten
from cnisdk.spec.versions import ALL, V0_3_0

MAX_BURST = 2**32 - 1  # bytes
MAX_RATE = 2**64 - 1  # bytes per second


@frozen(kw_only=True)
class BandwidthConf(NetConf):
    """The configuration: the keys of the newest reference plugin, or the capability ``bandwidth``.

    If one of these keys is set, the capability does not count.

    Attributes:
        ingress_rate: Bits per second that the container receives; 0 means no limit.
        ingress_burst: Bits that it may receive at once.
        egress_rate: Bits per second that it sends; 0 means no limit.
        egress_burst: Bits that it may send at once.
        shaped_subnets: Refused: releases 1.5 of the reference limited only traffic with these.
        unshaped_subnets: Refused, likewise: all but these.
    """

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0
    shaped_subnets: tuple[str, ...] = ()
    unshaped_subnets: tuple[str, ...] = ()

    def limits(self) -> tuple[Limit | None, Limit | None]:
        """Return the limits of what the container receives, and of what it sends; None where there is none.

        Raises:
            InvalidConfigError: (7) A number is not possible, or subnets are excepted.
        """
        for key, subnets in (("shapedSubnets", self.shaped_subnets), ("unshapedSubnets", self.unshaped_subnets)):
            if subnets:
                raise InvalidConfigError(
                    f"$.{key} is not supported",
                    details="the limits would hold for all traffic",
                )
        source: BandwidthConf | config.Bandwidth | None = self
        path = "$"
        if not any((self.ingress_rate, self.ingress_burst, self.egress_rate, self.egress_burst)):
            source, path = self.runtime_config.bandwidth, "$.runtimeConfig.bandwidth"
        if source is None:
            return None, None
        return (
            read_limit(f"{path}.ingress", source.ingress_rate, source.ingress_burst),
            read_limit(f"{path}.egress", source.egress_rate, source.egress_burst),
        )


def read_limit(path: str, rate: int, burst: int) -> Limit | None:
    """Return a limit in bytes; None when nothing is limited.

    Raises:
        InvalidConfigError: (7) A number is not possible, or one of the two is missing.
    """
    for key, value in (("Rate", rate), ("Burst", burst)):
        if value < 0 or 0 < value < 8:
            raise InvalidConfigError(f"{path}{key} is {shorten(value)}, expected 8 bits or more, or 0 for no limit")
    if rate // 8 > MAX_RATE:
        raise InvalidConfigError(f"{path}Rate is {shorten(rate)}, expected at most {8 * MAX_RATE} bits per second")
    if not rate and not burst:
        return None
    if not burst:
        raise InvalidConfigError("if rate is set, burst must also be set", details=f"{path}Burst is 0 or missing")
    if not rate:
        raise InvalidConfigError("if burst is set, rate must also be set", details=f"{path}Rate is 0 or missing")
    if burst // 8 >= MAX_BURST:
        raise InvalidConfigError("burst cannot be more than 4GB", details=f"{path}Burst is {shorten(burst)} bits")
    return Limit(rate // 8, burst // 8)


class Bandwidth(Plugin[BandwidthConf]):
    """CNI bandwidth plugin: limits of what a container receives and sends."""

    leaves_process_unchanged = True
    supported_versions = tuple(version for version in ALL if version >= V0_3_0)  # no result before names the host link

    @classmethod
    def conformance(cls) -> dict[str, object]:
        rates = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}
        return {"kind": "chained", "conf": rates}

    def add(self, request: AddRequest[BandwidthConf]) -> Result:
        ingress, egress = request.conf.limits()
        result = request.require_prev_result()
        if not (ingress or egress):
            return result
        with rtnetlink.sharing():
            host, found = host_end(request), find_ifb(request.attachment)
            ifb = None
            if egress:
                traffic.check_no_other_filters(host)
                with request.step():
                    ifb = ensure_ifb(request.attachment, host)
                    if found is None or found.index != ifb.index:
                        request.undo(ifb.delete)
                    else:  # another ADD of the attachment has set limits
                        request.undo(traffic.put_back, ifb, traffic.keep_limit(ifb))
            redirected = found if found and traffic.redirects(host, found) else None
            request.undo(traffic.put_back, host, traffic.keep_limit(host), redirected)
            if ingress:
                traffic.limit(host, ingress)
            if ifb is None or egress is None:
                return result
            ifb.set_up()
            traffic.limit(ifb, egress)
            traffic.redirect(host, ifb)
        return evolve(result, interfaces=(*result.interfaces, Interface(name=ifb.name, mac=ifb.mac)))

    def delete(self, request: DelRequest[BandwidthConf]) -> None:
        ifb = find_ifb(request.attachment)
        if ifb and (ifb.alias or is_own(request, ifb)):
            ifb.delete()

    def check(self, request: CheckRequest[BandwidthConf]) -> None:
        ingress, egress = request.conf.limits()
        request.require_prev_result()
        if not (ingress or egress):
            return
        with rtnetlink.sharing():
            host = host_end(request)
            if ingress:
                traffic.check_limit(host, ingress)
            if egress:
                ifb = find_ifb(request.attachment)
                if ifb is None:
                    raise IOFailureError(f"the ifb link that limits what {request.attachment} sends is gone")
                traffic.check_limit(ifb, egress)
                traffic.check_redirect(host, ifb)

    def gc(self, request: GCRequest[BandwidthConf]) -> None:
        link.delete_stale("ifb", request.network, request.valid_attachments)

    def status(self, request: StatusRequest[BandwidthConf]) -> None:
        request.conf.limits()


def host_end(request: AddRequest[BandwidthConf] | CheckRequest[BandwidthConf]) -> Link:
    """Return the host link of the container's interface.

    Raises:
        IOFailureError: (5) It has none, or one that the result of the plugins before does not have.
    """
    end = link.get(request.ifname, request.open_netns())
    if end.kind != "veth":
        raise IOFailureError(
            f"container interface {end.name} has no veth peer",
            details=f"it is of kind {end.kind or 'unknown'}, and only a veth has a host link to set limits on",
        )
    return interface.check_host_end(request, end)


def ifb_names(owner: Attachment) -> tuple[str, str]:
    """Return the reference's name, which leaves the interface out, and the one for when that is taken."""
    return f"bwp{short_hash(owner.network + owner.container_id, digits=12)}", f"bwp{short_hash(*owner, digits=12)}"


def ensure_ifb(owner: Attachment, host: Link) -> Link:
    """Return the ifb link of an attachment, made if need be."""
    found = find_ifb(owner)
    if found is not None and found.alias:
        return found
    reference, own = ifb_names(owner)
    return kinds.create("ifb", own if found or link.find(reference) else reference, mtu=host.mtu, owner=owner)


def find_ifb(owner: Attachment) -> Link | None:
    """Return the ifb link of an attachment: its alias says so. One without alias, if there is no other, is Go's."""
    found = [each for name in ifb_names(owner) if (each := link.find(name)) is not None and each.kind == "ifb"]
    return next((each for alias in (owner.tag, "") for each in found if each.alias == alias), None)


def is_own(request: DelRequest[BandwidthConf], ifb: Link) -> bool:
    """Tell whether an ifb link without alias is the attachment's. The reference's name for it leaves the interface out.

    Without a result, the link that is redirected to it tells. Where it limits nothing, an ADD was killed.
    """
    result = request.prev_result
    if result is not None:
        return ifb.name in [each.name for each in result.interfaces] or not traffic.has_limit(ifb)
    users = [each for each in link.list_all() if traffic.redirects(each, ifb)]
    netns = request.find_netns() if users else None
    end = None if netns is None else link.find(request.ifname, netns)
    host = link.find_peer(end) if end and interface.is_own(request, end, "veth") else None
    return not users or (host is not None and host.index in [each.index for each in users])


main = PluginMain(Bandwidth, "CNI bandwidth plugin v1.9.1")

if __name__ == "__main__":
    main()
