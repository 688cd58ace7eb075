"""cable: plug a container into an existing Linux bridge, with every verb a runtime may ask for."""

from cnisdk import (
    AddRequest,
    CheckRequest,
    DelRequest,
    GCRequest,
    NetConf,
    Plugin,
    PluginMain,
    PluginNotAvailableError,
    Result,
    StatusRequest,
    frozen,
)
from cnisdk.linux import layer3, link, veth


@frozen(kw_only=True)
class CableConf(NetConf):
    """Configuration keys of the plugin, beside those that every plugin has."""

    bridge: str = "cni0"
    mtu: int | None = None


class Cable(Plugin[CableConf]):
    """Plug a container into an existing Linux bridge."""

    @classmethod
    def conformance(cls) -> dict[str, object]:
        return {"kind": "interface", "conf": {"bridge": "up1", "ipam": {"type": "stub-ipam"}}}

    def add(self, request: AddRequest[CableConf]) -> Result:
        with request.open_netns() as netns:
            with request.step():
                pair = veth.create(netns, request.ifname, owner=request.attachment, mtu=request.conf.mtu)
                request.undo(pair.delete)
            pair.host.join(request.conf.bridge)
            leased = request.ipam.add()
            pair.container.configure(leased)
            return leased.with_interfaces(pair.host, pair.container)

    def delete(self, request: DelRequest[CableConf]) -> None:
        request.ipam.delete()
        veth.delete(owner=request.attachment)

    def check(self, request: CheckRequest[CableConf]) -> None:
        result = request.require_prev_result()
        request.ipam.check()
        with request.open_netns() as netns:
            layer3.verify(netns, request.ifname, result)
        veth.get_host_end(request.attachment).check_port(request.conf.bridge)

    def gc(self, request: GCRequest[CableConf]) -> None:
        veth.delete_stale(request.network, request.valid_attachments)
        request.ipam.gc()

    def status(self, request: StatusRequest[CableConf]) -> None:
        if link.find(request.conf.bridge) is None:
            raise PluginNotAvailableError(f"there is no bridge {request.conf.bridge}")
        request.ipam.status()


main = PluginMain(Cable)

if __name__ == "__main__":
    main()
