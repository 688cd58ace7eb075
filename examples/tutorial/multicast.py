"""multicast: let a container's interface receive every multicast frame."""

from cnisdk import AddRequest, DelRequest, NetConf, Plugin, PluginMain, Result
from cnisdk.linux import link


class Multicast(Plugin[NetConf]):
    """Let the interface of the plugin before receive every multicast frame."""

    def add(self, request: AddRequest[NetConf]) -> Result:
        result = request.require_prev_result()
        end = link.get(request.ifname, request.open_netns())
        request.undo(end.set_allmulti, False)
        end.set_allmulti(True)
        return result

    def delete(self, request: DelRequest[NetConf]) -> None:
        netns = request.find_netns()
        if netns and (end := link.find(request.ifname, netns)):
            end.set_allmulti(False)


main = PluginMain(Multicast)

if __name__ == "__main__":
    main()
