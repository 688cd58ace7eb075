"""tap: give containers a TAP device, whose frames a program such as a virtual machine reads and writes.

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
    IOFailureError,
    NetConf,
    Plugin,
    PluginMain,
    PluginNotAvailableError,
    Result,
    StatusRequest,
    evolve,
    frozen,
)
from cnisdk.linux import kinds, link, tap
from cnisdk.linux.links.link import Link
from cnisdk.linux.netns import NetNS
from cnisdk.plugin import interface

MAX_ID = 0xFFFFFFFE  # the largest number that can be a user's or a group's


@frozen(kw_only=True)
class TapConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        mtu: MTU in bytes; 0 leaves it to the kernel.
        mac: Hardware address of the device; empty makes one up.
        owner: Id of the user who may open the device.
        group: Id of the group whose members may.
        multi_queue: Several queues may be open at the same time.
        selinux_context: SELinux context of the device.
        bridge: Bridge in the container of which the device becomes a port.
    """

    mtu: int = 0
    mac: str = ""
    owner: int | None = None
    group: int | None = None
    multi_queue: bool = False
    selinux_context: str = ""
    bridge: str = ""

    def validate(self) -> None:
        """Refuse what no device can have.

        Raises:
            InvalidConfigError: (7) The message has the JSON path and the value.
        """
        if self.mtu and not tap.MIN_TAP_MTU <= self.mtu <= tap.MAX_TAP_MTU:
            raise InvalidConfigError(f"$.mtu is {self.mtu}, expected {tap.MIN_TAP_MTU} to {tap.MAX_TAP_MTU}, or 0")
        for key, value in (("owner", self.owner), ("group", self.group)):
            if value is not None and not 0 <= value <= MAX_ID:
                raise InvalidConfigError(f"$.{key} is {value}, expected 0 to {MAX_ID}")

    def find_bridge(self, netns: NetNS) -> Link | None:
        """Return the bridge in the container; None when the configuration names none.

        Raises:
            InvalidConfigError: (7) It is no bridge.
            LinkNotFoundError: (5) There is none.
        """
        found = link.get(self.bridge, netns) if self.bridge else None
        if found is not None and found.kind != "bridge":
            raise InvalidConfigError(
                f"$.bridge is {self.bridge}, a link of kind {found.kind or 'unknown'} in the container, not a bridge"
            )
        return found


class Tap(Plugin[TapConf]):
    """CNI tap plugin: a TAP device in the container."""

    leaves_process_unchanged = True
    leaves_only_links = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        conf = {"mtu": 1400, "owner": 0, "multiQueue": True, "capabilities": {"mac": True}}
        return {"kind": "interface", "conf": {**conf, "ipam": {"type": "stub-ipam"}}}

    def add(self, request: AddRequest[TapConf]) -> Result:
        conf, netns = request.conf, request.open_netns()
        conf.validate()
        mac = interface.requested_mac(request, "$.mac", "CNI_ARGS", "$.runtimeConfig.mac")
        bridge = conf.find_bridge(netns)
        with request.step():
            end = tap.create(
                request.ifname,
                netns,
                owner=request.attachment,
                mtu=conf.mtu,
                mac=mac,
                user=conf.owner,
                group=conf.group,
                multi_queue=conf.multi_queue,
                bridge=bridge,
                selinux_context=conf.selinux_context,
            )
            request.undo(end.delete)
        leased = interface.lease(request, mtu=conf.mtu)
        interface.configure(end, leased)
        return evolve(leased.with_interfaces(end), dns=interface.own_dns_or(request, leased.dns))

    def delete(self, request: DelRequest[TapConf]) -> None:
        interface.detach(request, lambda: interface.delete_in_container(request, "tun"))

    def check(self, request: CheckRequest[TapConf]) -> None:
        conf = request.conf
        request.ipam.check()
        end = interface.check_container(request, "tun")
        present, wanted = kinds.options(end), {"type": "tap", "multi_queue": int(conf.multi_queue)}
        wanted |= {} if conf.owner is None else {"owner": conf.owner}
        wanted |= {} if conf.group is None else {"group": conf.group}
        for key, value in wanted.items():
            if present.get(key) != value:
                raise IOFailureError(f"tap {end.name} has {key} {present.get(key)}, not {value}")
        bridge = conf.find_bridge(request.open_netns())
        if bridge is not None and end.master != bridge.index:
            raise IOFailureError(f"tap {end.name} is not a port of bridge {bridge.name}")

    def gc(self, request: GCRequest[TapConf]) -> None:
        request.ipam.gc()

    def status(self, request: StatusRequest[TapConf]) -> None:
        request.conf.validate()
        try:
            tap.require()
        except IOFailureError as exc:
            raise PluginNotAvailableError(exc.msg, details=exc.details) from exc
        request.ipam.status()


main = PluginMain(Tap, "CNI tap plugin v1.9.1")

if __name__ == "__main__":
    main()
