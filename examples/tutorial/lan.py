"""lan: give a container a hardware address of its own on a link of the host."""

from cnisdk import AddRequest, DelRequest, NetConf, Plugin, PluginMain, Result, frozen, run_all
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
        conf, netns = request.conf, request.open_netns()
        master = interface.get_master(request, conf.master)
        end = interface.create_link(request, "macvlan", netns, parent=master, mtu=conf.mtu)
        leased = interface.lease(request, mtu=conf.mtu)
        interface.configure(end, leased)
        return leased.with_interfaces(end)

    def delete(self, request: DelRequest[LanConf]) -> None:
        run_all(lambda: interface.delete_in_container(request, "macvlan"), request.ipam.delete)


main = PluginMain(Lan)

if __name__ == "__main__":
    main()
