"""patch: plug a container into an existing Linux bridge."""

from cnisdk import AddRequest, CheckRequest, DelRequest, NetConf, Plugin, PluginMain, Result, frozen
from cnisdk.linux import veth


@frozen(kw_only=True)
class PatchConf(NetConf):
    """Configuration keys of the plugin, beside those that every plugin has."""

    bridge: str = "cni0"
    mtu: int | None = None


class Patch(Plugin[PatchConf]):
    """Plug a container into an existing Linux bridge."""

    def add(self, request: AddRequest[PatchConf]) -> Result:
        with request.open_netns() as netns:
            with request.step():  # which no signal interrupts
                pair = veth.create(netns, request.ifname, owner=request.attachment, mtu=request.conf.mtu)
                request.undo(pair.delete)  # runs only if something below fails
            pair.host.join(request.conf.bridge)
            leased = request.ipam.add()  # released again if something below fails
            pair.container.configure(leased)
            return leased.with_interfaces(pair.host, pair.container)

    def check(self, request: CheckRequest[PatchConf]) -> None:
        super().check(request)  # the container's interface is as ADD left it
        veth.get_host_end(request.attachment).check_port(request.conf.bridge)

    def delete(self, request: DelRequest[PatchConf]) -> None:
        request.ipam.delete()
        veth.delete(owner=request.attachment)  # absent is fine; a missing netns is fine


main = PluginMain(Patch)

if __name__ == "__main__":
    main()
