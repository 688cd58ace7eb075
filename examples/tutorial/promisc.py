"""promisc: let a container's interface receive every frame of its network."""

from cnisdk import AddRequest, DelRequest, NetConf, Plugin, PluginMain, Result
from cnisdk.linux import link


class Promisc(Plugin[NetConf]):
    """Make the interface of the plugin before promiscuous."""

    leaves_only_links = True  # nothing outside the container: the default GC is enough

    def add(self, request: AddRequest[NetConf]) -> Result:
        result = request.require_prev_result()
        end = link.get(request.ifname, request.open_netns())
        with request.step():
            request.undo(end.set_promisc, False)
            end.set_promisc(True)
        return result

    def delete(self, request: DelRequest[NetConf]) -> None:
        netns = request.find_netns()
        end = link.find(request.ifname, netns) if netns else None
        if end:
            end.set_promisc(False)


main = PluginMain(Promisc)

if __name__ == "__main__":
    main()
