"""Functions that chained plugins share: their part of the previous plugins' result, and the result to hand on."""

from __future__ import annotations

from .._light import Any
from ..classes import evolve
from ..errors import InvalidConfigError, InvalidEnvironmentError
from ..linux.links import link
from ..spec.names import check_ifname, shorten
from ..spec.result import Result


def change_interface(result: Result, ifname: str, **changes: Any) -> Result:
    """Return the result with a change of the container's interface, and everything else as it came.

    A result that does not list the interface, such as those of the versions before 0.3.0, comes back as it is.

    Args:
        result: The result of the plugin before.
        ifname: Name of the interface. A link of that name outside the container is another.
        changes: Attributes of :class:`cnisdk.Interface`, such as ``mac`` and ``mtu``.
    """
    if not changes:
        return result
    changed = (evolve(each, **changes) if each.name == ifname and each.sandbox else each for each in result.interfaces)
    return evolve(result, interfaces=tuple(changed))


def find_bridge(result: Result, path: str) -> tuple[str, tuple[str, ...]]:
    """Return the bridge that a result names, and the attachment's ports; without a bridge the host's link, as of ptp.

    Args:
        result: The result of the plugin before.
        path: JSON path of the key for which a bridge is needed, for the error.

    Raises:
        InvalidConfigError: (7) The result names no link of the host, or what can be no name of a link.
    """
    names = [each.name for each in result.interfaces if not each.sandbox]
    if not names:
        raise InvalidConfigError(
            f"{path} needs a bridge, but $.prevResult.interfaces has no link of the host",
            details="put the plugin behind one that attaches to a bridge, such as bridge",
        )
    try:
        check_ifname(names[0])
    except InvalidEnvironmentError as exc:
        raise InvalidConfigError(
            f"$.prevResult.interfaces has {shorten(names[0])}, expected the name of a link"
        ) from exc
    links = [found for name in names if (found := link.find(name)) is not None]
    bridge = next((each for each in links if each.kind == "bridge"), None)
    if bridge is None:
        return names[0], ()
    return bridge.name, tuple(each.name for each in links if each.master == bridge.index)
