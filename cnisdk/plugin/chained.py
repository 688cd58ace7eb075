"""Functions that chained plugins share: their part of the previous plugins' result, and the result to hand on."""

from __future__ import annotations

from .._light import Any
from ..classes import evolve
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
