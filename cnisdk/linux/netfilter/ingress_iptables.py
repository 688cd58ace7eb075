"""Policies between bridges by iptables, in the layout of the reference.

``FORWARD`` of the filter table jumps to ``CNI-ISOLATION-STAGE-1`` before anything is accepted. That sends what leaves a
bridge with a policy to ``CNI-ISOLATION-STAGE-2``, which drops what enters another such bridge. For ``isolated``, stage
1 also drops what stays on the bridge.

The rules are a bridge's, and not an attachment's. Ours have a comment of their own, so that DEL of the last attachment
with a policy for the bridge can delete them. The reference never deletes its rules. An ADD of ours deletes those of
another policy for its bridge, which it replaces, also the reference's. The reference's others stay.
"""

from __future__ import annotations

from collections.abc import Collection

from ...errors import InvalidConfigError
from ...spec.names import shorten
from . import iptables, nft
from .base_rules import BaseRule
from .ingress import Ingress
from .nft import Match, Rule
from .rules import Table

STAGES = ("CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2")
"""The chains."""

_COMMENT = "CNI firewall: ingressPolicy"
_DIRECTIONS = {each: option for option, each in iptables.INTERFACES.items()}

Condition = tuple[str, bool, str]
"""Option, whether it must be equal, and name of the interface."""


def interfaces_of(rule: Rule) -> tuple[Condition, ...] | None:
    """Return the conditions of a rule; None if there are others than those on interfaces."""
    if any(each.what not in _DIRECTIONS for each in rule.matches):
        return None
    return tuple((_DIRECTIONS[each.what], each.equal, name_of(each)) for each in rule.matches)


def name_of(condition: Match) -> str:
    """Return the name that a condition on an interface compares with."""
    return condition.value.rstrip(b"\0").decode(errors="surrogateescape")


def jump(before: str) -> BaseRule:
    """Return the rule that jumps to the first stage, before a jump to the chain that accepts."""
    return BaseRule(
        "filter",
        "FORWARD",
        f'-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge)" -j {STAGES[0]}',
        lambda rule: rule.target == STAGES[0] and not rule.matches,
        STAGES[0],
        1,
        before,
    )


def bridge_rules(ingress: Ingress) -> list[BaseRule]:
    """Return the rules of a bridge: none if the policy yields to another.

    Raises:
        InvalidConfigError: (7) iptables would take the name for something else.
    """
    name, (first, second) = ingress.bridge, STAGES
    if nft.plain(name) != name or name.startswith("-"):
        raise InvalidConfigError(
            f"$.ingressPolicy is not possible with iptables on a bridge called {shorten(name)}",
            details="expected letters, digits, '.', '_' and '-', not beginning with '-': rename it, or use nftables",
        )
    if ingress.yields:
        return []
    found = [
        _rule(first, (("-i", True, name), ("-o", False, name)), f"jump {second}"),
        _rule(second, (("-o", True, name),), "drop"),
    ]
    return [*found, _neighbours(name)] if ingress.isolates else found


def _neighbours(bridge: str) -> BaseRule:
    return _rule(STAGES[0], (("-i", True, bridge), ("-o", True, bridge)), "drop")


def _rule(chain: str, conditions: tuple[Condition, ...], verdict: str) -> BaseRule:
    text = " ".join(f"{'' if equal else '! '}{option} {name}" for option, equal, name in conditions)
    target = "DROP" if verdict == "drop" else verdict.removeprefix("jump ")
    _, _, bridge = conditions[0]
    return BaseRule(
        "filter",
        chain,
        f'{text} -m comment --comment "{_COMMENT}" -j {target}',
        lambda rule: (interfaces_of(rule), rule.verdict) == (conditions, verdict),
        bridge,
        1,
    )


def list_outdated(table: Table, ingress: Ingress) -> list[Rule]:
    """List the rules of another policy for the bridge, which this one replaces: ours or the reference's.

    Args:
        table: The filter table.
        ingress: The policy that is to hold.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    if ingress.isolates or ingress.yields:
        return []
    neighbours = _neighbours(ingress.bridge)
    return [rule for rule in table.list_rules(neighbours.chain, ingress.bridge) if neighbours.is_it(rule)]


def holds(table: Table, ingress: Ingress) -> bool:
    """Return True if a policy is the one of its bridge.

    Args:
        table: The filter table.
        ingress: The policy.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    return all(each.is_in(table) for each in bridge_rules(ingress)) and not list_outdated(table, ingress)


def list_own(table: Table, bridges: Collection[str]) -> list[Rule]:
    """List our rules of bridges.

    Args:
        table: The filter table.
        bridges: Names of the bridges.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    return [
        rule
        for chain in STAGES
        for rule in (table.list_rules(chain, *bridges) if bridges else ())
        if rule.comment == _COMMENT and {name for _, _, name in interfaces_of(rule) or ()} <= {*bridges}
    ]
