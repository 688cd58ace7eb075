"""Packet-filter rules that belong to an attachment: describe once what is wanted, then apply, check, delete it.

A :class:`Layout` says where rules of one kind live: a table, the chains in it that all attachments share, and the name
of the chain of a single attachment. A :class:`Part` is a layout with the rules that an attachment wants there.

This module alone decides who owns a rule, by what the kernel shows:

* A rule has its owner's :func:`mark` as comment: a hash of the network, a hash of container and interface, then the
  names in clear. The hashes are over the whole names, with a separator that no name contains.
* The name of a chain is a hash of the whole attachment. Where the reference plugin looks for another name, the chain
  gets that one if it is free, so that the reference can delete what ours added. The marks of its rules then say whose
  it is.
* A rule that jumps to an attachment's chain belongs to that attachment.

:func:`apply` makes all parts of an attachment with one run of ``nft``, and one of ``iptables-restore`` per protocol.
Nothing else starts a program: this module reads and deletes by netlink. The legacy variant of iptables is the
exception, only a program can read it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from ..errors import IOFailureError, run_all
from ..spec.names import Attachment, short_hash
from . import iptables, nft
from .nft import Match, Rule

Table = nft.Table | iptables.LegacyTable

OWN = "own chain"
"""In a :class:`Wanted`: the chain of the attachment itself."""

# Another process may change the same rules while they are looked at: an ADD, a DEL and a GC at a time.
_ATTEMPTS = 10


class Layout(NamedTuple):
    """Where the rules of one kind live.

    Attributes:
        family: ``inet``, ``ip``, ``ip6`` or ``bridge``; with iptables ``ip`` or ``ip6``.
        table: Name of the table.
        base: Commands that make what all attachments share; they may be carried out again and again.
        shared: Chains that have rules of several attachments.
        fixed: Rules that ``base`` makes, for CHECK.
        prefix: How the chains of single attachments begin; empty if there are none.
        digits: How much of the hash follows the prefix.
        reference: How the reference plugin calls the chain, if it is to find ours.
        reference_comment: Comment that the reference looks for at rules that jump there.
        by_iptables: ``iptables-restore`` makes the rules, not ``nft``.
    """

    family: str
    table: str
    shared: tuple[str, ...]
    base: tuple[str, ...] = ()
    fixed: tuple[Wanted, ...] = ()
    prefix: str = ""
    digits: int = 32
    reference: Callable[[Attachment], str] | None = None
    reference_comment: Callable[[Attachment], str] | None = None
    by_iptables: bool = False

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if self.family == "ip6" else 4

    def own_chain(self, owner: Attachment) -> str:
        """Name of the chain that can be no other attachment's."""
        return f"{self.prefix}{short_hash(*owner, digits=self.digits)}"

    def tables(self) -> list[Table]:
        """Where to look: with iptables, both variants may have rules, whichever is the default today."""
        found: list[Table] = [nft.Table(self.family, self.table)]
        if self.by_iptables:
            legacy = iptables.LegacyTable(self.version, self.table)
            if legacy.exists():
                found.append(legacy)
        return found


class Wanted(NamedTuple):
    """A rule that there should be.

    Attributes:
        chain: Its chain, or :data:`OWN`.
        text: The rule as ``nft`` or ``iptables-restore`` takes it, without comment. ``{chain}`` is the own chain.
        matches: Its conditions as the kernel shows them, in order.
        verdict: What it does, as the kernel shows it; ``{chain}`` as above.
    """

    chain: str
    text: str
    matches: tuple[Match, ...]
    verdict: str

    def is_like(self, rule: Rule, chain: str) -> bool:
        """Does a rule of the kernel do this? ``chain`` is the own chain."""
        return rule.matches == self.matches and rule.verdict == self.verdict.format(chain=chain)


class Part(NamedTuple):
    """What an attachment wants of one layout."""

    layout: Layout
    wanted: tuple[Wanted, ...]


# --- whose ------------------------------------------------------------------------------------------------------------


def mark(owner: Attachment, limit: int = nft.COMMENT_MAX) -> str:
    """The comment of an attachment's rules, at most ``limit`` bytes: the reference's, of its nftables masquerade."""
    network, container_id, ifname = owner
    return f"{_key(owner)}, net: {network}, if: {nft.plain(ifname)}, id: {container_id}"[:limit]


def _network_key(network: str) -> str:
    return f"{short_hash(network, digits=16)}-"


def _key(owner: Attachment) -> str:
    # Neither an interface's name nor a container's id can have a colon.
    return _network_key(owner.network) + short_hash(f"{owner.ifname}:{owner.container_id}", digits=16)


def is_of(rule: Rule, owner: Attachment) -> bool:
    """Does a rule bear the mark of an attachment? Marks are cut to a length, but their hashes come first."""
    return rule.comment.startswith(f"{_key(owner)},")


def is_marked(rule: Rule) -> bool:
    """Does a rule bear the mark of any attachment?"""
    key, _, _ = rule.comment.partition(", net: ")
    network, _, rest = key.partition("-")
    return len(network) == len(rest) == 16 and {*network, *rest} <= {*"0123456789abcdef"}


def has_rule_of(table: Table, chain: str, owner: Attachment) -> bool:
    """Does a chain have a rule with the mark of an attachment?"""
    return any(is_of(rule, owner) for rule in table.list_rules(chain, _key(owner)))


class _Owned(NamedTuple):
    chains: list[str]
    rules: list[Rule]


def _find(layout: Layout, table: Table, owner: Attachment) -> _Owned:
    """Chains of an attachment, and its rules in chains that are not its own."""
    chains = []
    rules = []
    if layout.prefix and table.has_chain(layout.own_chain(owner)):
        chains.append(layout.own_chain(owner))
    if layout.reference is not None:
        # The reference adds to a chain of this name that it finds: then only some of the rules are the owner's.
        name = layout.reference(owner)
        inside = table.list_rules(name)
        own = [rule for rule in inside if is_of(rule, owner)]
        if own and len(own) == len(inside):
            chains.append(name)
        else:
            rules += own
    for shared in layout.shared if chains or not layout.prefix else ():  # no rule jumps to a chain that is not there
        found = table.list_rules(shared, _key(owner), *chains)
        rules += [rule for rule in found if is_of(rule, owner) or rule.target in chains]
    return _Owned(chains, rules)


# --- apply, check, delete, gc -----------------------------------------------------------------------------------------


def apply(owner: Attachment, parts: Iterable[Part]) -> None:
    """Make all rules that an attachment wants. What an earlier ADD of it left in these layouts is replaced.

    Raises:
        IOFailureError: (5) The kernel, ``nft`` or ``iptables-restore`` refused.
        PluginNotAvailableError: (50) The program is not installed.
    """
    commands: list[str] = []
    for part in parts:
        if part.layout.by_iptables:
            _apply_iptables(owner, part)
        else:
            commands += _nft_commands(owner, part)
    nft.commit(commands)


def _nft_commands(owner: Attachment, part: Part) -> list[str]:
    layout = part.layout
    where = f"{layout.family} {layout.table}"
    own = layout.own_chain(owner)
    commands = [*layout.base]
    if layout.prefix:
        commands += [f"add chain {where} {own}", f"flush chain {where} {own}"]
    left = _find(layout, nft.Table(layout.family, layout.table), owner).rules
    commands += [f"delete rule {where} {rule.chain} handle {rule.handle}" for rule in left]
    for chain, text, _, _ in part.wanted:
        where_to = own if chain == OWN else chain
        commands.append(f'add rule {where} {where_to} {text.format(chain=own)} comment "{mark(owner)}"')
    return commands


def _apply_iptables(owner: Attachment, part: Part) -> None:
    layout = part.layout
    delete(layout, owner)
    own = layout.own_chain(owner)
    if layout.reference is not None:
        name = layout.reference(owner)
        with _reserve(f"{layout.family}-{name}") as reserved:
            if reserved and not any(table.has_chain(name) for table in layout.tables()):
                try:
                    _restore(owner, part, name, f"-N {name}")
                except IOFailureError:
                    # Has the reference made the chain in the meantime? Then ours has another name.
                    if not any(table.has_chain(name) for table in layout.tables()):
                        raise
                else:
                    return
    _restore(owner, part, own, f":{own} - [0:0]")


@contextmanager
def _reserve(name: str) -> Iterator[bool]:
    """Keep other processes from making a chain of this name; False if one is about to.

    ``-N`` alone is not enough: where two run at once, iptables-nft 1.8.9 starts over, and takes the other's chain for
    its own. An abstract socket exists once in a network namespace, as the chain does, and goes with its process.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.bind(f"\0cnisdk-{name}")
        except OSError:
            yield False
        else:
            yield True


def _restore(owner: Attachment, part: Part, chain: str, make: str) -> None:
    layout = part.layout
    inside = jump = mark(owner, _XT_COMMENT_MAX)
    if layout.reference_comment is not None and chain != layout.own_chain(owner):
        jump = layout.reference_comment(owner)
    lines = [*layout.base, make]
    for where, text, _, _ in part.wanted:
        in_chain, comment = (chain, inside) if where == OWN else (where, jump)
        quoted = comment.replace('"', '\\"')
        lines.append(f'-A {in_chain} -m comment --comment "{quoted}" {text.format(chain=chain)}')
    iptables.commit(layout.version, layout.table, lines)


_XT_COMMENT_MAX = 255  # of xt_comment, in bytes


def check(owner: Attachment, parts: Iterable[Part]) -> None:
    """Verify that the rules are there, and do what they should.

    Raises:
        IOFailureError: (5) One is missing, or was changed; the message has it.
    """
    for layout, wanted in parts:
        missing = [missing_in(layout, table, owner, wanted) for table in layout.tables()]
        if all(missing):
            raise IOFailureError(f"{owner} has no rule like this: {missing[0]}")


def missing_in(layout: Layout, table: Table, owner: Attachment, wanted: Sequence[Wanted]) -> str:
    """The first rule that a table lacks, or empty."""
    for rule in layout.fixed:
        if not any(rule.is_like(each, "") for each in table.list_rules(rule.chain)):
            return f"{rule.text} in chain {rule.chain} of {table}"
    chains = _find(layout, table, owner).chains
    if layout.reference is not None and has_rule_of(table, layout.reference(owner), owner):
        chains = [layout.reference(owner)]  # perhaps with rules that the reference added for another attachment
    chain = chains[0] if chains else ""
    for rule in wanted:
        if rule.chain != OWN and not any(
            rule.is_like(each, chain) and (is_of(each, owner) or each.target == chain)
            for each in table.list_rules(rule.chain, _key(owner), *chains)
        ):
            return f"{rule.text.format(chain=chain or layout.own_chain(owner))} in chain {rule.chain} of {table}"
    inside = [rule for rule in wanted if rule.chain == OWN]
    present = table.list_rules(chain) if chain else []
    for index, rule in enumerate(inside):
        if index >= len(present) or not rule.is_like(present[index], chain):
            return f"{rule.text} in chain {chain or layout.own_chain(owner)} of {table}"
    return ""


def delete(
    layout: Layout,
    owner: Attachment,
    *,
    foreign: str = "",
    look: Callable[[Table], tuple[Collection[str], Collection[Rule]]] | None = None,
) -> None:
    """Delete all rules and chains of an attachment. Absence is fine.

    Args:
        layout: Where to look.
        owner: Whose rules.
        foreign: Chain that the reference would have made for it.
        look: Finds chains and rules that the reference made for it, if there is that chain.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    for table in layout.tables():
        own = [layout.own_chain(owner)] if layout.prefix else []
        if layout.reference is not None:
            own.append(layout.reference(owner))
        there = table.find_chains(*own, *filter(None, [foreign])) if layout.prefix else set()
        if not layout.prefix or not there.isdisjoint(own):
            delete_found(table, partial(_find, layout, table, owner))
        if look is not None and foreign in there:
            delete_found(table, partial(look, table))


def delete_found(table: Table, look: Callable[[], tuple[Collection[str], Collection[Rule]]]) -> None:
    """Delete the chains and rules that ``look`` finds, and look again if others deleted some of them meanwhile.

    Raises:
        IOFailureError: (5) The kernel refused.
    """
    for _ in range(_ATTEMPTS):
        chains, found = look()
        if not (chains or found) or table.delete(found, chains):
            return
    raise IOFailureError(f"cannot delete rules of {table}: others change them all the time")


def gc(layout: Layout, network: str, valid: Collection[Attachment]) -> None:
    """Delete the rules of a network's attachments that are not valid.

    Raises:
        IOFailureError: (5) The kernel refused; the other tables have been looked at nevertheless.
    """
    kept = tuple(f"{_key(owner)}," for owner in valid)
    network_key = _network_key(network)

    def stale(rule: Rule) -> bool:
        return is_marked(rule) and rule.comment.startswith(network_key) and not rule.comment.startswith(kept)

    def look(table: Table) -> tuple[list[str], list[Rule]]:
        names = table.list_chains(layout.prefix) if layout.prefix else []
        inside = {name: table.list_rules(name) for name in names}
        chains = [name for name, has in inside.items() if has and all(map(stale, has))]
        going = [rule for name, has in inside.items() if name not in chains for rule in has if stale(rule)]
        for shared in layout.shared:
            found = table.list_rules(shared, network_key, *chains)
            going += [rule for rule in found if stale(rule) or rule.target in chains]
        # An empty chain does not say whose it is; the rule that jumps there does.
        chains += sorted({rule.target for rule in going} & {name for name, has in inside.items() if not has})
        return chains, going

    run_all(*(partial(delete_found, table, partial(look, table)) for table in layout.tables()))
