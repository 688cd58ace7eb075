"""VLANs of a bridge's port, as configurations write them: ``vlan`` and ``vlanTrunk``."""

from __future__ import annotations

from collections.abc import Sequence

from ..classes import frozen
from ..errors import InvalidConfigError
from ..linux.links.bridge_port import VLANs
from ..spec.fields import json_field

MAX_VLAN = 4094
"""Highest VLAN id (IEEE 802.1Q; 4095 is reserved)."""


@frozen(kw_only=True)
class VlanTrunk:
    """One entry of ``vlanTrunk``: a VLAN, a range of them, or both."""

    id: int | None = None
    min_id: int | None = json_field("minID", default=None)
    max_id: int | None = json_field("maxID", default=None)

    def ranges(self, path: str) -> list[tuple[int, int]]:
        """Return the first and the last VLAN of each range that the entry stands for.

        Raises:
            InvalidConfigError: (7) It is no VLAN and no range of them.
        """
        for key, value in (("id", self.id), ("minID", self.min_id), ("maxID", self.max_id)):
            if value is not None and not 1 <= value <= MAX_VLAN:
                raise InvalidConfigError(
                    f"incorrect trunk {key} parameter: {path}.{key} is {value}, expected 1 to {MAX_VLAN}"
                )
        if (self.min_id is None) != (self.max_id is None):
            missing = "minID" if self.min_id is None else "maxID"
            raise InvalidConfigError(
                f"minID and maxID should be configured simultaneously, {missing} is missing", details=path
            )
        found = [] if self.id is None else [(self.id, self.id)]
        if self.min_id is not None and self.max_id is not None:
            if self.min_id > self.max_id:
                raise InvalidConfigError("minID is greater than maxID in trunk parameter", details=path)
            found.append((self.min_id, self.max_id))
        if not found:
            raise InvalidConfigError(f"{path} names no VLAN", details="expected id, or minID and maxID")
        return found


def read_vlans(vlan: int, trunk: Sequence[VlanTrunk], *, keep_default: bool = False) -> VLANs | None:
    """Return what a port carries; None when the bridge need not filter VLANs.

    Args:
        vlan: VLAN of untagged frames; 0 means none.
        trunk: What the port carries with tags.
        keep_default: Leave the bridge's default VLAN on the port.

    Raises:
        InvalidConfigError: (7) There is no such VLAN.
    """
    if not 0 <= vlan <= MAX_VLAN:
        raise InvalidConfigError(
            f"invalid VLAN ID {vlan} (must be between 0 and {MAX_VLAN})", details="$.vlan is out of range"
        )
    ranges = [each for index, entry in enumerate(trunk) for each in entry.ranges(f"$.vlanTrunk[{index}]")]
    if not vlan and not ranges:
        return None
    # As the reference: untagged frames of a trunk without VLAN belong to VLAN 1.
    access = vlan or (0 if keep_default else 1)
    return VLANs(access=access, trunk=tuple(ranges), keep_default=keep_default)
