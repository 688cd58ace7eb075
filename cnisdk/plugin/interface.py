"""The container's interface, as a plugin's result describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidConfigError, IOFailureError
from ..linux import layer3, link, netns as namespaces

if TYPE_CHECKING:
    from ..linux.link import Link
    from ..linux.netns import NetNS
    from ..spec.result import Interface, Result
    from .request import CheckRequest


def check(request: CheckRequest[Any]) -> None:
    """Compare the container's interfaces with ``prevResult`` (spec §2, "CHECK").

    Each interface that the result places in the container must exist and have the hardware address the result gives.
    ``CNI_IFNAME`` must also have its addresses and routes, and be up where it has any. Nothing is changed.

    A result without interfaces, as an IPAM plugin returns, describes nothing that the kernel could show.

    Raises:
        InvalidConfigError: (7) There is no ``prevResult``.
        InvalidNetNSError: (8) The namespace is gone.
        IOFailureError: (5) Something is missing or different.
    """
    result = request.require_prev_result()
    inside = [each for each in result.interfaces if each.sandbox]
    if not inside:
        return
    netns = request.open_netns()
    for described in inside:
        check_sandbox(described, request.netns, netns)
        check_mac(described, link.get(described.name, netns))
    if any(each.name == request.ifname for each in inside) and _has_layer3(result, request.ifname):
        layer3.verify(netns, request.ifname, result)


def _has_layer3(result: Result, ifname: str) -> bool:
    """Does the result give this interface an address, or routes? Without, it may be left down on purpose."""
    names = [each.name for each in result.interfaces]
    own = (ip.interface is None or names[ip.interface : ip.interface + 1] == [ifname] for ip in result.ips)
    return bool(result.routes) or any(own)


def check_sandbox(described: Interface, path: str, netns: NetNS) -> None:
    """Verify that an interface of a result is in this namespace, however its path is written.

    Raises:
        IOFailureError: (5) It is in another one.
    """
    if described.sandbox == path:
        return
    other = namespaces.find(described.sandbox)
    if other is not None:
        with other:
            if other == netns:
                return
    raise IOFailureError(f"$.prevResult says sandbox {described.sandbox}, which is not CNI_NETNS {path}")


def check_mac(described: Interface, there: Link) -> None:
    """Verify that a link has the hardware address its result gives it, if it gives one.

    Raises:
        IOFailureError: (5) It has another.
    """
    if described.mac and described.mac.lower() != there.mac:
        raise IOFailureError(f"interface {there.name} has the hardware address {there.mac}, not {described.mac}")


def get_described(result: Result, ifname: str) -> Interface:
    """Return what a result says of the container's interface.

    Raises:
        InvalidConfigError: (7) It has no interface of that name in a container.
    """
    for each in result.interfaces:
        if each.name == ifname and each.sandbox:
            return each
    raise InvalidConfigError(f"$.prevResult.interfaces has no interface {ifname} of the container")
