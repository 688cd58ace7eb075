"""vlan: give a container a VLAN of a link of the host.

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
from cnisdk.plugin import interface

MAX_VLAN = 4094


@frozen(kw_only=True)
class VlanConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        master: The link that carries the VLAN; it must be up.
        vlan_id: Number of the VLAN, 0 to 4094. The kernel gives each VLAN of a link to one container at a time.
        mtu: MTU in bytes, at most the master's; 0 takes that.
        link_in_container: The master is in the container's namespace.
        accept_ra: The container hears router advertisements; None has it hear none where IPAM gives IPv6 addresses.
    """

    master: str = ""
    vlan_id: int = 0
    mtu: int = 0
    link_in_container: bool = False
    accept_ra: bool | None = json_field("acceptRA", default=None)

    def validate(self) -> None:
        """Refuse what makes no sense, before anything is changed.

        Raises:
            InvalidConfigError: (7) There is no master, or no such VLAN.
        """
        if not self.master:
            raise InvalidConfigError(
                '"master" field is required. It specifies the host interface name to create the VLAN for',
                details="$.master is not set",
            )
        if not 0 <= self.vlan_id <= MAX_VLAN:
            raise InvalidConfigError(
                f"invalid VLAN ID {self.vlan_id} (must be between 0 and {MAX_VLAN} inclusive)",
                details="$.vlanId is out of range",
            )


class Vlan(Plugin[VlanConf]):
    """CNI vlan plugin: a VLAN of a link of the host."""

    leaves_process_unchanged = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        # The kernel gives a VLAN of a link away once, so each attachment has a link of its own.
        masters = "seq 1 20 | sed 's/.*/link add dev& up type veth peer name dev&x/' | ip -batch -"
        conf = {"master": "dev{number}", "vlanId": 42, "mtu": 1400, "ipam": {"type": "stub-ipam"}}
        return {"kind": "interface", "conf": conf, "setup": masters}

    def add(self, request: AddRequest[VlanConf]) -> Result:
        conf, netns = request.conf, request.open_netns()
        conf.validate()
        with rtnetlink.sharing():
            where = netns if conf.link_in_container else None
            master = interface.get_master(request, conf.master, where, up=True)
            end = interface.create_link(request, "vlan", netns, parent=master, mtu=conf.mtu, data={"id": conf.vlan_id})
        leased = interface.lease(request, mtu=conf.mtu)
        interface.configure(end, leased, accept_ra=conf.accept_ra)
        return evolve(leased.with_interfaces(end), dns=interface.own_dns_or(request, leased.dns))

    def delete(self, request: DelRequest[VlanConf]) -> None:
        interface.detach(request, lambda: interface.delete_in_container(request, "vlan"))

    def check(self, request: CheckRequest[VlanConf]) -> None:
        conf = request.conf
        conf.validate()
        request.ipam.check()
        end = interface.check_container(request, "vlan")
        master = interface.get_master(request, conf.master, end.netns if conf.link_in_container else None)
        kinds.check(end, parent=master, data={"id": conf.vlan_id})

    def gc(self, request: GCRequest[VlanConf]) -> None:
        request.ipam.gc()

    def status(self, request: StatusRequest[VlanConf]) -> None:
        conf = request.conf
        conf.validate()
        kinds.require("vlan")
        if not conf.link_in_container:
            interface.check_mtu(conf.mtu, interface.get_master(request, conf.master, up=True))
        request.ipam.status()


main = PluginMain(Vlan, "CNI vlan plugin v1.9.1")

if __name__ == "__main__":
    main()
