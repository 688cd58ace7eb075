"""vrf: put the container's interface into a VRF of the container, a routing domain with a table of its own.

Takes the configuration of the reference plugin of that name and returns its results. The VRF is made if need be, has
any number of interfaces, and goes with the last one. All of it is in the container's namespace and goes with it.
"""

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

import sys
from collections.abc import Iterable
from functools import partial

from cnisdk import (
    AddRequest,
    CheckRequest,
    DelRequest,
    InvalidConfigError,
    InvalidEnvironmentError,
    IOFailureError,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    frozen,
    run_all,
)
from cnisdk.linux import kinds, layer3, link, lock, route, sysctl, tables
from cnisdk.linux.ip.route import TABLE_MAIN, KernelRoute
from cnisdk.linux.links.link import Link
from cnisdk.linux.netns import NetNS
from cnisdk.plugin import interface
from cnisdk.spec.names import check_ifname, shorten

LOCK_PATIENCE = 5.0  # seconds; a container can hold this lock for ever


@frozen(kw_only=True)
class VrfConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        vrfname: Name of the VRF in the container; required.
        table: Number of its routing table; 0 finds one that nothing uses.
    """

    vrfname: str = ""
    table: int = 0

    def validate(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InvalidConfigError: (7) There is no name, or it is none of a link; or the table is none of a VRF.
        """
        if not self.vrfname:
            raise InvalidConfigError(
                "configuration is expected to have a valid vrf name", details="$.vrfname is empty or missing"
            )
        try:
            check_ifname(self.vrfname)
        except InvalidEnvironmentError as exc:
            raise InvalidConfigError(f'$.vrfname is "{self.vrfname}", expected the name of a link') from exc
        if self.table and (self.table in tables.OF_THE_KERNEL or not 0 < self.table <= tables.LAST):
            raise InvalidConfigError(
                f"$.table is {shorten(self.table)}, expected 1 to {tables.LAST}, but not 253 to 255"
            )


class Vrf(Plugin[VrfConf]):
    """CNI vrf plugin: the container's interface in a routing domain of its own."""

    leaves_process_unchanged = True
    leaves_only_links = True  # nothing outside the container

    @classmethod
    def conformance(cls) -> dict[str, object]:
        return {"kind": "chained", "conf": {"vrfname": "red"}}

    def add(self, request: AddRequest[VrfConf]) -> Result:
        conf = request.conf
        conf.validate()
        result, netns = request.require_prev_result(), request.open_netns()
        end = link.get(request.ifname, netns)
        with lock.exclusive(LOCK_PATIENCE, netns):  # another interface's ADD may make the same VRF, or choose its table
            domain = find_domain(conf, netns)
            if domain is None:
                with request.step():
                    number = conf.table or next(tables.find_unused(netns))
                    data = {"table": number}
                    domain = kinds.create("vrf", conf.vrfname, netns, owner=request.attachment, data=data)
                    request.undo(domain.delete)
            domain.set_up()
            if end.master and end.master != domain.index:
                other = link.get_by_index(end.master, netns).name
                raise IOFailureError(f"interface {end.name} has already a master set: {other}")
            if not end.master:
                routes = tables.list_over(end, None)
                request.undo(move, end, None, routes)
                move(end, domain, routes, (TABLE_MAIN, table_of(domain)))
        return result

    def delete(self, request: DelRequest[VrfConf]) -> None:
        netns = request.find_netns()
        if netns is None:
            return
        with lock.exclusive(LOCK_PATIENCE, netns):
            end = link.find(request.ifname, netns)
            domains = [each for each in link.list_all(netns) if each.kind == "vrf"]
            marked = any(each.alias == request.attachment.tag for each in domains)
            if end is not None and not marked and not interface.is_own(request, end, end.kind):
                return  # the path of the namespace leads to another container by now
            for domain in domains:
                # The name may be another one since ADD; whose VRF it is then, its alias says.
                if request.conf.vrfname == domain.name or request.attachment.tag == domain.alias:
                    if end is not None and end.master == domain.index:
                        take_out(end, domain)
                    delete_unused(domain)

    def check(self, request: CheckRequest[VrfConf]) -> None:
        conf = request.conf
        conf.validate()
        result, netns = request.require_prev_result(), request.open_netns()
        domain, end = find_domain(conf, netns), link.get(request.ifname, netns)
        if domain is None or end.master != domain.index:
            raise IOFailureError(f"interface {end.name} is not in VRF {conf.vrfname}")
        if not domain.up:
            raise IOFailureError(f"VRF {domain.name} is down")
        layer3.verify(netns, end.name, result)  # routes may be in any table, such as one of sbr, but for the main one
        # A container may have any number of routes of its own.
        if left := tables.list_over(end, destinations=interface.own_destinations(result, end.name)):
            shown = route.describe(left[0].dst, left[0].gw)
            raise IOFailureError(f"route {shown} of {end.name} is in the main table, not in VRF {domain.name}")

    def status(self, request: StatusRequest[VrfConf]) -> None:
        request.conf.validate()
        kinds.require("vrf")


def find_domain(conf: VrfConf, netns: NetNS) -> Link | None:
    """Look the VRF up; None when there is no link of its name.

    Raises:
        IOFailureError: (5) The link of that name is no VRF, or one with another table.
    """
    found = link.find(conf.vrfname, netns)
    if found is not None and found.kind != "vrf":
        raise IOFailureError(f"Netlink {found.name} is not a VRF", details=f"it is a link of kind {found.kind}")
    if found is not None and conf.table not in (0, table_of(found)):
        raise IOFailureError(
            f"VRF {found.name} already exist with different routing table {table_of(found)}",
            details=f"$.table is {conf.table}",
        )
    return found


def table_of(domain: Link) -> int:
    """Return the number of a VRF's table."""
    return int(kinds.options(domain)["table"])


def move(end: Link, domain: Link | None, routes: Iterable[KernelRoute], to: tuple[int, int] = (0, 0)) -> None:
    """Put a link into a VRF, or out of it, and give it routes: those of the first table go to the second.

    The kernel sets the link down and up again, and drops its routes in all tables. The sysctl keeps its IPv6 addresses,
    with their flags.

    Raises:
        IOFailureError: (5) The kernel refused, or the link is not operational again.
    """
    netns, source, target = end.netns, *to
    assert netns is not None
    if (end := end.refresh()).master != (domain.index if domain else 0):
        netns.call(sysctl.ensure_if_present, f"net/ipv6/conf/{end.name}/keep_addr_on_down", "1")
        end.set_master(domain)
        if end.running:
            end.wait_running()  # before that, the kernel knows no way to IPv6 gateways
    tables.clear(end, source)
    copies = [(each, target, True) if each.table == source else (each, each.table, domain is None) for each in routes]
    run_all(*(partial(route.copy, each, table, netns, src=src) for each, table, src in copies))


def take_out(end: Link, domain: Link) -> None:
    """Take a link out of its VRF. Routes that lead nowhere any more, such as by an address that is gone, are told of.

    Raises:
        IOFailureError: (5) The kernel left the link in the VRF.
    """
    try:
        move(end, None, tables.list_over(end, None), (table_of(domain), TABLE_MAIN))
    except IOFailureError as exc:
        if end.refresh().master == domain.index:
            raise
        sys.stderr.write(f"vrf: not all routes of {end.name} are back: {exc}\n")


def delete_unused(domain: Link) -> None:
    """Delete a VRF that has no link any more, unless its alias says that it is not a plugin's."""
    used = any(each.master == domain.index for each in link.list_all(domain.netns))
    if not used and (not domain.alias or domain.alias.startswith("cni:")):
        domain.delete()


main = PluginMain(Vrf, "CNI vrf plugin v1.9.1")

if __name__ == "__main__":
    main()
