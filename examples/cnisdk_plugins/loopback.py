"""loopback: set up the loopback interface of a container.

Takes the configuration of the reference plugin of that name and returns its results. containerd starts it before all
other plugins.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()


from cnisdk import (
    AddRequest,
    CheckRequest,
    DelRequest,
    GCRequest,
    IOFailureError,
    IPConfig,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    evolve,
)
from cnisdk.linux import address, layer3, link, shared
from cnisdk.linux.links.link import Link
from cnisdk.plugin import interface


class Loopback(Plugin[NetConf]):
    """CNI loopback plugin: set up the loopback interface of a container."""

    leaves_process_unchanged = True
    leaves_only_links = True

    @classmethod
    def rehearsals(cls, directory: str) -> tuple[dict[str, object], ...]:
        return ({},)

    @classmethod
    def conformance(cls) -> dict[str, object]:
        return {"kind": "interface", "ifname": "lo"}

    def add(self, request: AddRequest[NetConf]) -> Result:
        lo = link.get("lo", request.open_netns())
        with request.step():
            if shared.set_up(lo, request.attachment):
                request.undo(lambda: shared.set_down(lo.refresh(), request.attachment, keep_up=lo.up))
        ips = loopback_addresses(lo)
        result = request.prev_result
        return Result(ips=ips).with_interfaces(lo) if result is None else result

    def delete(self, request: DelRequest[NetConf]) -> None:
        netns = request.find_netns()
        if netns is not None:
            shared.set_down(link.get("lo", netns), request.attachment)

    def check(self, request: CheckRequest[NetConf]) -> None:
        netns, result = request.open_netns(), request.prev_result
        lo = link.get("lo", netns)
        if not lo.up:
            raise IOFailureError(f"loopback interface is down in {request.netns}")
        # No others: a container may give it the address of a service.
        if result is not None and interface.find_described(result, "lo") is not None:
            layer3.verify(netns, "lo", evolve(result, routes=()))

    def gc(self, request: GCRequest[NetConf]) -> None:
        """Do nothing: nothing is outside the container."""

    def status(self, request: StatusRequest[NetConf]) -> None:
        """Do nothing: every namespace has a loopback interface."""


def loopback_addresses(lo: Link) -> tuple[IPConfig, ...]:
    """List the first address of each IP version.

    Raises:
        IOFailureError: (5) One is not of the loopback network: it would not stay in the container.
    """
    first: dict[int, IPConfig] = {}
    for each in address.list_on(lo):
        if not each.interface.ip.is_loopback:
            raise IOFailureError(f'loopback interface found with non-loopback address "{each.interface.ip}"')
        first.setdefault(each.interface.version, IPConfig(address=each.interface))
    return tuple(first.values())


main = PluginMain(Loopback, "CNI loopback plugin v1.9.1")

if __name__ == "__main__":
    main()
