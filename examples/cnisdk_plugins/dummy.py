"""dummy: give containers a link that leads nowhere, with addresses of its own.

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
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
)
from cnisdk.linux import kinds
from cnisdk.plugin import interface


class Dummy(Plugin[NetConf]):
    """CNI dummy plugin: a link that leads nowhere, with addresses of its own."""

    leaves_process_unchanged = True
    leaves_only_links = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        return {"kind": "interface", "conf": {"ipam": {"type": "stub-ipam"}}}

    def add(self, request: AddRequest[NetConf]) -> Result:
        request.ipam.require()
        end = interface.create_link(request, "dummy", request.open_netns())
        leased = interface.lease(request)
        interface.configure(end, leased)
        return leased.with_interfaces(end)

    def delete(self, request: DelRequest[NetConf]) -> None:
        interface.detach(request, lambda: interface.delete_in_container(request, "dummy"))

    def check(self, request: CheckRequest[NetConf]) -> None:
        request.ipam.check()
        interface.check_container(request, "dummy")

    def status(self, request: StatusRequest[NetConf]) -> None:
        request.ipam.require()
        kinds.require("dummy")
        request.ipam.status()


main = PluginMain(Dummy, "CNI dummy plugin v1.9.1")

if __name__ == "__main__":
    main()
