"""iptables: the nat tables of both families, read at once and changed in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..errors import IOFailureError
from . import nft, program

# Seconds to wait for the lock that the legacy variant takes around each change.
_WAIT = "30"
_PROGRAMS = {4: ("iptables", "ip", "/proc/net/ip_tables_names"), 6: ("ip6tables", "ip6", "/proc/net/ip6_tables_names")}


class NatRule(NamedTuple):
    """A rule of a nat table.

    Attributes:
        chain: Name of its chain.
        spec: The rule as ``iptables -S`` writes it, without ``-A CHAIN``.
        words: The same, split as a shell would.
    """

    chain: str
    spec: str
    words: tuple[str, ...]

    def value(self, option: str) -> str:
        """What follows an option, such as ``-j``; empty when the rule does not have it."""
        return self.words[self.words.index(option) + 1] if option in self.words[:-1] else ""


def is_installed(family: int) -> bool:
    """Is there an ``iptables`` (4) or ``ip6tables`` (6)?"""
    return program.find(_PROGRAMS[family][0]) is not None


def may_have_chain(family: int, chain: str) -> bool:
    """Can the nat table have this chain? Mostly answered without running a program.

    The variant based on nftables has its chains there; the legacy variant names its tables in ``/proc`` once they
    exist.
    """
    return nft.has_chain(_PROGRAMS[family][1], "nat", chain) or uses_legacy(family)


def uses_legacy(family: int) -> bool:
    """Does the kernel have a nat table of the legacy variant?"""
    try:
        with open(_PROGRAMS[family][2]) as file:
            return "nat\n" in file
    except OSError:
        return False


def list_nat(family: int) -> list[NatRule]:
    """Every rule of the nat table.

    Raises:
        IOFailureError: (5) ``iptables`` failed.
        PluginNotAvailableError: (50) It is not installed.
    """
    import shlex

    rules = []
    for line in program.run([_PROGRAMS[family][0], "-w", _WAIT, "-t", "nat", "-S"]).splitlines():
        if line.startswith("-A "):
            _, chain, spec = line.split(" ", 2)
            rules.append(NatRule(chain, spec, tuple(shlex.split(spec))))
        elif line.startswith("-N "):
            rules.append(NatRule(line[3:], "", ()))  # so that empty chains are known too
    return rules


def commit(family: int, lines: Iterable[str]) -> None:
    """Change the nat table in one transaction: all of it, or nothing.

    Args:
        family: 4 or 6.
        lines: Lines of ``iptables-restore``: ``:CHAIN - [0:0]`` makes a chain, or empties it; ``-A``, ``-D``, ``-X``.

    Raises:
        IOFailureError: (5) ``iptables-restore`` refused them.
        PluginNotAvailableError: (50) It is not installed.
    """
    body = "".join(f"{line}\n" for line in lines)
    if body:
        program.run([f"{_PROGRAMS[family][0]}-restore", "--noflush", "-w", _WAIT], f"*nat\n{body}COMMIT\n")


def try_list_nat(family: int) -> list[NatRule]:
    """Every rule of the nat table; none where the kernel or the host has no such table."""
    if not is_installed(family):
        return []
    try:
        return list_nat(family)
    except IOFailureError:
        # A host without the kernel part (ipv6.disable=1, no ip_tables module) has no rules to find.
        if not (uses_legacy(family) or nft.has_chain(_PROGRAMS[family][1], "nat", "POSTROUTING")):
            return []
        raise
