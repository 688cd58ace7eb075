"""Policies between containers that reach each other over the host: the types that plugins and backends use."""

from __future__ import annotations

from ..._light import NamedTuple

POLICIES = ("open", "same-bridge", "isolated")
"""Names of the policies: all containers; those on its bridge; none."""


class Ingress(NamedTuple):
    """A policy for a bridge. It holds for all containers there.

    Attributes:
        policy: ``same-bridge`` or ``isolated``.
        bridge: Name of the bridge.
        ports: Names of the ports of the attachment: the host's ends of its links.
        yields: If true, another policy holds for the bridge, for which another attachment asks, and is left alone.
    """

    policy: str
    bridge: str
    ports: tuple[str, ...] = ()
    yields: bool = False

    def __str__(self) -> str:
        return f"{self.policy} {self.bridge}"

    @property
    def isolates(self) -> bool:
        """True if it keeps the containers of the bridge from each other."""
        return self.policy == "isolated"


def read_ingress(text: str) -> Ingress | None:
    """Read a policy as it is written in a record; return None for something else."""
    policy, _, bridge = text.partition(" ")
    return Ingress(policy, bridge) if policy in POLICIES[1:] and bridge else None
