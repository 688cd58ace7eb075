"""The interface of a container: find it again, and give it what a lease says."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence

from .._light import Any
from ..errors import run_all
from ..linux import netns as namespaces, rtnetlink
from ..linux.ip import address, layer3, route
from ..linux.links import link
from ..linux.links.link import Link
from ..linux.rtnetlink import KernelError
from ..spec.result import Route
from .lease import DHCPLease


def find_place(path: str, cookie: str, index: int) -> Link | None:
    """Look up the interface of a lease.

    Args:
        path: Path of its namespace.
        cookie: Identity of that.
        index: Its index. Its name and its hardware address may change: the plugin tuning sets the latter after ADD.

    Returns:
        The link, whose namespace the caller closes; None when the interface or the namespace is gone.

    Raises:
        IOFailureError: (5) The kernel refused to tell.
    """
    netns = namespaces.find(path)
    if netns is None:
        return None
    try:
        if netns.identify() == cookie:
            return link.get_by_index(index, netns)
    except link.LinkNotFoundError:
        pass
    except BaseException:
        netns.close()
        raise
    netns.close()
    return None


def configure(end: Link, lease: DHCPLease, stale: Sequence[DHCPLease], priority: int) -> None:
    """Give an interface the address of a lease, in place of what it may still have of earlier ones.

    The new address is there before the old one goes: the kernel takes all routes of an interface with its last address.
    What other programs have added stays, but for what the kernel itself takes with an old address. Routes come next, by
    :func:`add_routes`.

    Args:
        end: The interface.
        lease: The lease.
        stale: Leases whose address and routes may be there, and are to go.
        priority: Metric of routes.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    is_new = _ensure(address.add, end, lease.interface)
    wanted = lease.list_routes(priority)
    _delete_routes(end, [each for old in stale for each in old.list_routes(priority) if each not in wanted])
    for each in {old.interface for old in stale if old.interface != lease.interface}:
        address.delete(end, each)
    # Unless told to promote them, the kernel deletes the later addresses of a network together with the first.
    _ensure(address.add, end, lease.interface)
    if is_new:  # the kernel announces the addresses that a link has as it goes up, and none that it gets later
        layer3.announce(end.refresh())  # tuning may have changed the hardware address


def add_routes(end: Link, lease: DHCPLease, priority: int) -> None:
    """Give an interface the routes of a lease: all, since the kernel took some with the address that was their source.

    One route that the kernel refuses does not keep the others from the interface.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    run_all(*(lambda each=each: _ensure_route(end, each, priority) for each in lease.list_routes(priority)))


def unconfigure(end: Link, leases: Iterable[DHCPLease], priority: int) -> None:
    """Take the addresses of leases, and their routes, from an interface. Absence is fine.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    for lease in leases:
        _delete_routes(end, lease.list_routes(priority))
        address.delete(end, lease.interface)


def _ensure_route(end: Link, wanted: Route, priority: int) -> None:
    _ensure(route.add, end, wanted.dst, wanted.gw if wanted.scope is None else None, priority=priority)


def _delete_routes(end: Link, routes: Iterable[Route]) -> None:
    unwanted = {(each.dst, each.gw if each.scope is None else None) for each in routes}
    if not unwanted:
        return
    with rtnetlink.connect(end.netns) as sock:
        # The daemon serves all containers: one with many routes of its own must not keep it from the others.
        for found in route.dump(sock, route.TABLE_MAIN, {dst for dst, _ in unwanted}):
            # That of an address is the kernel's own, comes and goes with it, and would not come back.
            if found.protocol == route.PROTO_KERNEL:
                continue
            if found.link_index == end.index and (found.dst, found.gw) in unwanted:
                sock.exchange([route.delete_request(found)])


def _ensure(add: Callable[..., object], *args: Any, **more: Any) -> bool:
    """Add something that may be there already. Return true if it was not."""
    try:
        add(*args, **more)
    except KernelError as exc:
        if exc.errno != errno.EEXIST:
            raise
        return False
    return True
