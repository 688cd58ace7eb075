"""macvlan: give containers a link with a hardware address of its own on a link of the host.

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
from cnisdk.plugin import interface


@frozen(kw_only=True)
class MacvlanConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        master: The link it lies on; empty means that of the default route.
        mode: ``bridge``, ``private``, ``vepa`` or ``passthru``.
        mtu: MTU in bytes, at most the master's; 0 takes that.
        mac: Hardware address of the container's link; empty makes one up.
        link_in_container: The master is in the container's namespace.
        bcqueuelen: How many broadcast frames may wait to be handed on; 0 leaves it to the kernel.
        accept_ra: The container hears router advertisements; None has it hear none where IPAM gives IPv6 addresses.
    """

    master: str = ""
    mode: str = "bridge"
    mtu: int = 0
    mac: str = ""
    link_in_container: bool = False
    bcqueuelen: int = 0
    accept_ra: bool | None = json_field("acceptRA", default=None)

    @property
    def data(self) -> dict[str, int | str]:
        """Return the attributes that only a macvlan has."""
        return {"mode": self.mode or "bridge"} | ({"bcqueuelen": self.bcqueuelen} if self.bcqueuelen else {})


class Macvlan(Plugin[MacvlanConf]):
    """CNI macvlan plugin: a container's own hardware address on a link of the host."""

    leaves_process_unchanged = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        conf = {"master": "up0", "mtu": 1400, "capabilities": {"mac": True}, "ipam": {"type": "stub-ipam"}}
        return {"kind": "interface", "conf": conf}

    def add(self, request: AddRequest[MacvlanConf]) -> Result:
        conf, netns = request.conf, request.open_netns()
        mac = interface.requested_mac(request, "$.mac", "CNI_ARGS", "$.runtimeConfig.mac")
        with rtnetlink.sharing():
            master = interface.get_master(request, conf.master, netns if conf.link_in_container else None)
            end = interface.create_link(request, "macvlan", netns, parent=master, mtu=conf.mtu, mac=mac, data=conf.data)
        leased = interface.lease(request, mtu=conf.mtu)
        interface.configure(end, leased, accept_ra=conf.accept_ra)
        return evolve(leased.with_interfaces(end), dns=interface.own_dns_or(request, leased.dns))

    def delete(self, request: DelRequest[MacvlanConf]) -> None:
        interface.detach(request, lambda: interface.delete_in_container(request, "macvlan"))

    def check(self, request: CheckRequest[MacvlanConf]) -> None:
        conf = request.conf
        request.ipam.check()
        end = interface.check_container(request, "macvlan")
        # The default route may lead elsewhere by now.
        where = end.netns if conf.link_in_container else None
        master = interface.get_master(request, conf.master, where) if conf.master else None
        kinds.check(end, parent=master, data=conf.data)

    def gc(self, request: GCRequest[MacvlanConf]) -> None:
        request.ipam.gc()

    def status(self, request: StatusRequest[MacvlanConf]) -> None:
        conf = request.conf
        kinds.require("macvlan")
        if not conf.link_in_container:
            interface.check_mtu(conf.mtu, interface.get_master(request, conf.master))
        request.ipam.status()


main = PluginMain(Macvlan, "CNI macvlan plugin v1.9.1")

if __name__ == "__main__":
    main()
