"""lan: give a container a hardware address of its own on a link of the host."""

from cnisdk import AddRequest, DelRequest, NetConf, Plugin, PluginMain, Result, frozen, run_all
from cnisdk.linux import kinds
from cnisdk.plugin import interface


@frozen(kw_only=True)
class LanConf(NetConf):
    """Configuration keys of the plugin, beside those that every plugin has."""

    master: str = ""
    mtu: int = 0


class Lan(Plugin[LanConf]):
    @classmethod
    def conformance(cls) -> dict[str, object]:  # `cnisdk conform` prepares a host with the link up0
        return {"kind": "interface", "conf": {"master": "up0", "ipam": {"type": "stub-ipam"}}}

    def add(self, request: AddRequest[LanConf]) -> Result:
        netns, owner, mtu = request.open_netns(), request.attachment, request.conf.mtu
        master = interface.get_master(request, request.conf.master)
        interface.check_mtu(mtu, master)
        with request.step():
            end = kinds.create("macvlan", request.ifname, netns, parent=master, mtu=mtu, owner=owner)
            request.undo(end.delete)
        leased = interface.lease(request, mtu=mtu)
        interface.configure(end, leased)
        return leased.with_interfaces(end)

    def delete(self, request: DelRequest[LanConf]) -> None:
        run_all(lambda: interface.delete_in_container(request, "macvlan"), request.ipam.delete)


main = PluginMain(Lan)

if __name__ == "__main__":
    main()
