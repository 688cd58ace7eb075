"""host-device: give containers a link of the host, such as a network card, for as long as they are attached.

Takes the configuration of the reference plugin of that name and returns its results. The link itself says whose it is
and what the host calls it, so that it comes back under its old name whatever becomes of the container.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

import os
import sys

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
    json_field,
)
from cnisdk.linux import device, link, loan, rtnetlink
from cnisdk.linux.links.link import Link
from cnisdk.plugin import interface
from cnisdk.spec.result import DNS

USERSPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")
"""Drivers that leave a device to a program, with DPDK: the kernel has no link for it."""


@frozen(kw_only=True)
class HostDeviceConf(NetConf):
    """The configuration: the keys of the newest reference plugin. Of those that name a device, the first one counts.

    Attributes:
        device: Name of the link on the host.
        hwaddr: Hardware address of the link.
        kernelpath: Path of the device below ``/sys/devices/``.
        pci_bus_id: PCI address of the device; ``runtimeConfig.deviceID`` takes its place.
        dpdk_mode: A program drives the device, not the kernel. A PCI device's driver tells it by itself.
        accept_ra: The container hears router advertisements; None has it hear none where IPAM gives IPv6 addresses.
    """

    device: str = ""
    hwaddr: str = ""
    kernelpath: str = ""
    pci_bus_id: str = json_field("pciBusID", default="")
    dpdk_mode: bool = json_field("dpdkmode", default=False)
    accept_ra: bool | None = json_field("acceptRA", default=None)

    def bus_path(self) -> str:
        """Return where sysfs has the PCI or auxiliary device; empty when none is asked for.

        Raises:
            InvalidConfigError: (7) There is no such device.
        """
        wanted = self.runtime_config.device_id
        if not wanted:
            return device.bus_path("pci", self.pci_bus_id, "$.pciBusID") if self.pci_bus_id else ""
        for bus in ("pci", "auxiliary"):
            path = device.bus_path(bus, wanted, "$.runtimeConfig.deviceID")
            if os.path.isdir(path):
                return path
        raise InvalidConfigError(f"runtime config DeviceID {wanted} not found or unsupported")

    def path(self) -> str:
        """Return where sysfs has the device; empty when none is asked for by path or address."""
        return device.kernel_path(self.kernelpath, "$.kernelpath") if self.kernelpath else self.bus_path()

    def in_user_space(self) -> bool:
        """Return whether a program drives the device."""
        path = self.bus_path()
        return device.find_driver(path) in USERSPACE_DRIVERS if path else self.dpdk_mode

    def find_link(self) -> Link:
        """Return the link on the host.

        Raises:
            InvalidConfigError: (7) The configuration names no device, or none that there could be.
            IOFailureError: (5) It is not on the host.
        """
        if self.device:
            return loan.get_on_host(self.device)
        if self.hwaddr:
            return device.get_by_mac(self.hwaddr, "$.hwaddr")
        if path := self.path():
            return device.get_link(path)
        raise InvalidConfigError('specify either "device", "hwaddr", "kernelpath" or "pciBusID"')

    def find_borrower(self) -> str | None:
        """Return the path of the network namespace that has the link; None when none is known to have it."""
        if self.device:
            return loan.find_borrower(lambda each: each.alias == self.device)
        return loan.find_borrower(lambda each: bool(device.is_of(each, self.path, self.hwaddr)))


class HostDevice(Plugin[HostDeviceConf]):
    """CNI host-device plugin: a link of the host in a container."""

    leaves_process_unchanged = True

    @classmethod
    def rehearsals(cls, directory: str) -> tuple[dict[str, object], ...]:
        ranges = [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]  # RFC 5737, RFC 3849: for documentation
        return ({"device": "up0", "ipam": {"type": "host-local", "dataDir": directory, "ranges": ranges}},)

    @classmethod
    def conformance(cls) -> dict[str, object]:
        setup = "seq 20 | sed 's/.*/link add dev& type veth peer name peer&/' | ip -batch -"
        return {"kind": "interface", "conf": {"device": "dev{number}", "ipam": {"type": "stub-ipam"}}, "setup": setup}

    def add(self, request: AddRequest[HostDeviceConf]) -> Result:
        conf, netns = request.conf, request.open_netns()
        if conf.in_user_space():
            leased = interface.lease(request)
            return evolve(leased, dns=interface.own_dns_or(request, leased.dns) if request.ipam.configured else DNS())
        with rtnetlink.sharing():
            try:
                there = conf.find_link()
            except IOFailureError as exc:
                borrower = conf.find_borrower()
                raise IOFailureError(exc.msg, details=f"{borrower} has it" if borrower else exc.details) from exc
            with request.step():
                lent = loan.lend(there, netns, request.ifname, owner=request.attachment)
                request.undo(lent.take_back)
        leased = interface.lease(request)
        interface.configure(lent.end, leased, accept_ra=conf.accept_ra)
        dns = interface.own_dns_or(request, leased.dns) if request.ipam.configured else DNS()
        return evolve(leased.with_interfaces(lent.end), dns=dns)

    def delete(self, request: DelRequest[HostDeviceConf]) -> None:
        interface.detach(request, lambda: give_back(request))

    def check(self, request: CheckRequest[HostDeviceConf]) -> None:
        request.ipam.check()
        result = request.require_prev_result()
        if request.conf.in_user_space():
            return
        interface.get_described(result, request.ifname)
        interface.check(request)
        end = link.get(request.ifname, request.open_netns())
        if not end.up:
            raise IOFailureError(f"interface {end.name} in {request.netns} is down")
        if not loan.name_at_home(end):
            raise IOFailureError(
                f"interface {end.name} in {request.netns} is not on loan from the host",
                details=f'its alias should be its name on the host, and is "{end.alias}"',
            )

    def gc(self, request: GCRequest[HostDeviceConf]) -> None:
        interface.detach(request, lambda: loan.settle_stale(request.network, request.valid_attachments))

    def status(self, request: StatusRequest[HostDeviceConf]) -> None:
        conf = request.conf
        # The runtime names the device of each container with ADD.
        if not conf.capabilities.get("deviceID") and not conf.in_user_space():
            try:
                conf.find_link()
            except IOFailureError as exc:
                # One that a container has is no fault of the node's.
                if not conf.find_borrower():
                    raise PluginNotAvailableError(exc.msg, details=exc.details) from exc
        request.ipam.status()


def give_back(request: DelRequest[HostDeviceConf]) -> None:
    """Bring the link home, wherever it is by now."""
    conf, owner, netns, result = request.conf, request.attachment, request.find_netns(), request.prev_result
    described = interface.find_described(result, request.ifname) if result is not None else None
    mac = described.mac.lower() if described is not None else ""

    def is_own(each: Link) -> bool:
        return interface.is_own_device(request, each, device.is_of(each, conf.path, conf.hwaddr))

    there = loan.find_lent(owner, netns, device=conf.device, mac=mac, is_own=is_own) if netns is not None else None
    if there is not None:
        home = loan.give_back(there, owner=owner, name="" if loan.name_at_home(there) else conf.device)
    else:
        # It is on the host when the kernel moved it there as the namespace ended, or when DEL was interrupted.
        home = loan.settle(owner)
        if home is None and (returned := loan.find_returned(conf.device, mac)) is not None:
            home = loan.bring_home(returned)
    if home is not None and home.alias:
        sys.stderr.write(f"host-device: {home.alias} is back on the host as {home.name}: another link has its name\n")


main = PluginMain(HostDevice, "CNI host-device plugin v1.9.1")

if __name__ == "__main__":
    main()
