"""Rules of iptables that all attachments share: read by netlink, and made if they are missing.

They are made together with an attachment's own rules, in one run of ``iptables-restore``. Two processes that find the
same rule missing would both add it, so the one that adds holds the lock of the network namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from ..._light import NamedTuple
from ...errors import IOFailureError
from .. import lock
from . import iptables, nft
from .nft import Rule
from .rules import Table

IP_FAMILIES = {4: "ip", 6: "ip6"}
"""Families of nftables, by IP version."""

XT_COMMENT_MAX = 255
"""Bytes of a comment, at most (xt_comment)."""

_PATIENCE = 5.0
# Attempts: other processes may flush all rules meanwhile.
_ATTEMPTS = 4


class BaseRule(NamedTuple):
    """A rule that all attachments share.

    Attributes:
        table: Its table.
        chain: Its chain.
        text: The rule for ``iptables-restore``.
        is_it: Function that returns True if a rule of the kernel is this one.
        word: Text that the rule contains, by which most others are skipped before they are decoded; empty for none.
        position: Its place in the chain where it is made, from 1; 0 for the last.
        before: Chain that no rule before this one may jump to; empty if the order does not matter.
    """

    table: str
    chain: str
    text: str
    is_it: Callable[[Rule], bool]
    word: str = ""
    position: int = 0
    before: str = ""

    def is_in(self, table: Table) -> bool:
        """Return True if a table has the rule, in its place."""
        words = filter(None, [self.word, self.before])
        found = table.find_rule(self.chain, lambda rule: self.is_it(rule) or rule.target == self.before != "", *words)
        return found is not None and self.is_it(found)


def quote(text: str) -> str:
    """Return a text as one word of ``iptables-restore``."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def tables(version: int, name: str) -> list[Table]:
    """Return the table of iptables based on nftables, and that of the legacy variant if the kernel has it.

    Args:
        version: 4 or 6.
        name: Name of the table, such as ``filter``.
    """
    legacy = iptables.LegacyTable(version, name)
    return [nft.NftTable(IP_FAMILIES[version], name), *([legacy] if legacy.exists() else [])]


def may_drop_forwarded(table: Table) -> bool:
    """Return True unless each packet that the host forwards is accepted by a filter table's chain, if that exists."""
    policy = table.find_policy("FORWARD")
    return policy is not None and (
        policy != "accept" or any(rule.verdict != "accept" for rule in table.list_rules("FORWARD"))
    )


def list_filters(version: int) -> list[tuple[str, Table]]:
    """List the filter tables in which what is forwarded must be accepted, each with its variant for :func:`commit`.

    Both variants may have one. That which ``iptables-restore`` does not change is looked at only if it may drop.
    """
    other = iptables.find_other(version)
    found: list[tuple[str, Table]] = []
    for variant in ("",) if other is None else ("", other):
        table = iptables.currents(version, ["filter"], variant)["filter"]
        if table.has_chain("FORWARD") and (not variant or may_drop_forwarded(table)):
            found.append((variant, table))
    return found


def _find_missing(there: Mapping[str, Table], base: Iterable[BaseRule]) -> list[BaseRule]:
    lacking: list[BaseRule] = []
    for each in base:
        if not each.is_in(there[each.table]) or any(each.before == other.word != "" for other in lacking):
            lacking.append(each)
    return lacking


def commit(
    version: int,
    base: Collection[BaseRule],
    chains: Mapping[str, Iterable[str]],
    own: Mapping[str, Iterable[str]],
    inherited: Sequence[int] = (),
    *,
    locked: bool = False,
    quickly: Callable[[], bool] = lambda: False,
    variant: str = "",
) -> None:
    """Make the shared rules that are lacking, then carry out commands; without commands, start no program.

    Args:
        version: 4 or 6.
        base: The shared rules.
        chains: Names of the chains that must be there, by table.
        own: The attachment's own lines, by table.
        inherited: Descriptors that the program keeps open: see :func:`.program.run`.
        locked: Hold the lock also if nothing is lacking: another process may delete shared rules that no attachment
            needs.
        quickly: Function that does the same as the own lines, without a program, and returns whether it could. It is
            tried when nothing is lacking.
        variant: As for :func:`.iptables.commit_all`.

    Raises:
        IOFailureError: (5) The kernel or ``iptables-restore`` refused.
        PluginNotAvailableError: (50) ``iptables-restore`` is not installed.
    """
    making = partial(_making, version, base, chains, variant)
    write = partial(iptables.commit_all, version, inherited=inherited, variant=variant)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _commit(making, write, own, locked, quickly)
        except IOFailureError:
            # Has `nft flush ruleset` deleted in between what was there?
            if attempt == _ATTEMPTS or not any(making().values()):
                raise


def _commit(
    making: Callable[[], dict[str, list[str]]],
    write: Callable[[Mapping[str, Iterable[str]]], object],
    own: Mapping[str, Iterable[str]],
    locked: bool,
    quickly: Callable[[], bool],
) -> None:
    if not locked and not any(making().values()):
        if not quickly():
            write(own)
        return
    with lock.exclusive(_PATIENCE):  # or two processes would add the same
        lines = making()
        if not any(lines.values()) and quickly():
            return
        for table, more in own.items():
            lines.setdefault(table, []).extend(more)
        write(lines)


def _making(
    version: int, base: Collection[BaseRule], chains: Mapping[str, Iterable[str]], variant: str
) -> dict[str, list[str]]:
    """Return the lines that make what is lacking, by table."""
    lines: dict[str, list[str]] = {}
    there = iptables.currents(version, {*chains, *(each.table for each in base)}, variant)
    for table, names in chains.items():
        wanted = sorted(names)
        found = there[table].find_chains(*wanted) if wanted else set()
        lines[table] = [f"-N {name}" for name in wanted if name not in found]
    for each in _find_missing(there, base):
        where = f"-I {each.chain} {each.position}" if each.position else f"-A {each.chain}"
        lines.setdefault(each.table, []).append(f"{where} {each.text}")
    return lines
