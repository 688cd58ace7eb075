"""ipvlan: give containers addresses of their own behind the hardware address of a link of the host.

Takes the configuration of the reference plugin of that name and returns its results. Nothing of it is outside the
container but the lease.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()


from cnisdk import (
    AddRequest,
    CheckRequest,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    evolve,
    frozen,
    json_field,
)
from cnisdk.linux import kinds, rtnetlink
from cnisdk.linux.links.link import Link
from cnisdk.linux.netns import NetNS
from cnisdk.plugin import interface


@frozen(kw_only=True)
class IpvlanConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        master: The link it lies on; empty means the one interface of ``prevResult``, or without ``prevResult`` the link
            of the default route.
        mode: ``l2``, ``l3`` or ``l3s``; empty means ``l2``. The kernel gives all ipvlans of a master the mode of the
            newest.
        mtu: MTU in bytes, at most the master's; 0 takes that.
        link_in_container: The master is in the container's namespace.
        accept_ra: The container hears router advertisements; None has it hear none where IPAM gives IPv6 addresses.
    """

    master: str = ""
    mode: str = ""
    mtu: int = 0
    link_in_container: bool = False
    accept_ra: bool | None = json_field("acceptRA", default=None)

    @property
    def data(self) -> dict[str, int | str]:
        """Return the attributes that only an ipvlan has."""
        return {"mode": self.mode or "l2"}


class Ipvlan(Plugin[IpvlanConf]):
    """CNI ipvlan plugin: a container's own addresses on a link of the host."""

    leaves_process_unchanged = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        return {"kind": "interface", "conf": {"master": "up0", "mtu": 1400, "ipam": {"type": "stub-ipam"}}}

    def add(self, request: AddRequest[IpvlanConf]) -> Result:
        conf, netns = request.conf, request.open_netns()
        with rtnetlink.sharing():
            master = get_master(request, netns)
            end = interface.create_link(request, "ipvlan", netns, parent=master, mtu=conf.mtu, data=conf.data)
        leased = chained_addresses(request) or interface.lease(request, mtu=conf.mtu)
        interface.configure(end, leased, accept_ra=conf.accept_ra)
        return evolve(leased.with_interfaces(end), dns=interface.own_dns_or(request, leased.dns))

    def delete(self, request: DelRequest[IpvlanConf]) -> None:
        interface.detach(request, lambda: interface.delete_in_container(request, "ipvlan"))

    def check(self, request: CheckRequest[IpvlanConf]) -> None:
        conf = request.conf
        request.ipam.check()
        end = interface.check_container(request, "ipvlan")
        # Without, ADD took one from a result that CHECK does not see, or from a default route of that time.
        where = end.netns if conf.link_in_container else None
        master = interface.get_master(request, conf.master, where) if conf.master else None
        kinds.check(end, parent=master, data=conf.data)

    def gc(self, request: GCRequest[IpvlanConf]) -> None:
        request.ipam.gc()

    def status(self, request: StatusRequest[IpvlanConf]) -> None:
        conf = request.conf
        kinds.require("ipvlan")
        # Without, it may be chained, on a link that the plugin before makes: STATUS is not told.
        if conf.master and not conf.link_in_container:
            interface.check_mtu(conf.mtu, interface.get_master(request, conf.master))
        request.ipam.status()


def get_master(request: AddRequest[IpvlanConf], netns: NetNS) -> Link:
    """Look up the link to lie on: the configuration's, that of the plugin before, or that of the default route.

    Raises:
        InvalidConfigError: (7) The plugin before made none, or several.
        IOFailureError: (5) There is no such link.
    """
    conf, before = request.conf, request.prev_result
    if conf.master or before is None:
        return interface.get_master(request, conf.master, netns if conf.link_in_container else None)
    made = [each for each in before.interfaces if each.name]
    if len(before.interfaces) != 1 or not made:
        raise InvalidConfigError(
            "chained master failure. PrevResult lacks a single named interface",
            details=f"$.prevResult.interfaces has {len(before.interfaces)}: name the link in $.master",
        )
    if made[0].sandbox:
        interface.check_sandbox(made[0], request.netns, netns)
    return interface.get_master(request, made[0].name, netns if made[0].sandbox or conf.link_in_container else None)


def chained_addresses(request: AddRequest[IpvlanConf]) -> Result | None:
    """Return addresses and routes of the plugin before, unless an IPAM plugin is to lease others; None without any."""
    before = request.prev_result
    if request.ipam.configured or before is None or not before.ips:
        return None
    return Result(ips=tuple(evolve(each, interface=None) for each in before.ips), routes=before.routes)


main = PluginMain(Ipvlan, "CNI ipvlan plugin v1.9.1")

if __name__ == "__main__":
    main()
