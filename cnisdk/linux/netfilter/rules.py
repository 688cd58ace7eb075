"""Packet-filter rules that belong to an attachment: describe the wanted rules once, then apply, check and delete them.

Theory of operation. A :class:`Layout` describes the place of rules of one kind: a table, the chains in it that all
attachments share, and the name of the chain of a single attachment. A :class:`Part` is a layout with the rules that an
attachment wants there.

This module alone decides which attachment owns a rule, by the rule as the kernel shows it:

* A rule has its owner's :func:`mark` as comment: a hash of the network, a hash of container and interface, then the
  names in clear. The hashes are over the whole names, with a separator that no name contains.
* The name of a chain is a hash of the whole attachment. Where the reference plugin looks for another name, the chain
  gets that one if it is free, so that the reference can delete our rules. The marks of its rules then name the owner.
* A rule that jumps to an attachment's chain belongs to that attachment.

:func:`apply` makes all parts of an attachment with one run of ``nft``, and one of ``iptables-restore`` per protocol;
without ``nft`` where this module knows the bytes of the rules, and the table is there or is made by netlink, too.
Reading and deleting start no program, since they use netlink. The legacy variant of iptables is the exception: only a
program can read it.

Rules that an earlier ADD left are deleted in the same transaction, or after it: an attachment is never without its
rules.

Other processes change the same tables meanwhile. A deletion is one transaction, which the kernel refuses if a rule in
it is gone; then this module looks again. Killed between two transactions, an ADD leaves rules with its mark, which DEL
and GC find; killed while a program runs, it leaves that program, which DEL waits for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

from ..._light import NamedTuple, TypeVar
from ...errors import IOFailureError, TryAgainLaterError, run_all
from ...spec.names import Attachment, short_hash
from .. import _sockets
from ..program import ProgramFailedError
from . import _expressions, iptables, nft
from .nft import KeptRules, Match, Rule

_T = TypeVar("_T")

Undo = Callable[..., object]
"""Function that remembers an inverse, with its arguments, for the case that the request fails: ``AddRequest.undo``."""

Table = nft.NftTable | iptables.LegacyTable
"""Table of rules, in nftables or in iptables' legacy variant."""

Kept = dict[str, KeptRules]
"""Rules that an ADD has replaced, by the table's name in full."""

OWN = "own chain"
"""In a :class:`Wanted`: the chain of the attachment itself."""

JUMP_TO_OWN = "jump {chain}"
"""In a :class:`Wanted`: the verdict of a rule that jumps there."""

# Rules that an error shows.
_SHOWN = 5
# Attempts. Other processes may change the same rules meanwhile: an ADD, a DEL and a GC at the same time.
_ATTEMPTS = 100
# The same of programs that make rules.
_PROGRAM_ATTEMPTS = 4
# Seconds to wait for the program of an ADD that was killed.
_PATIENCE = 5.0


class Layout(NamedTuple):
    """The place of the rules of one kind.

    Attributes:
        family: ``inet``, ``ip``, ``ip6`` or ``bridge``; with iptables ``ip`` or ``ip6``.
        table: Name of the table.
        base: Commands that make the shared table and chains.
        made: The rules that ``base`` makes, all in one chain. An ADD that finds just these there does not carry
            ``base`` out again.
        base_chain: The chain that ``base`` makes, if that is all. Without this and ``made``, an ADD always carries
            ``base`` out.
        shared: Chains that have rules of several attachments.
        fixed: Rules that ``base`` makes, for CHECK.
        prefix: Beginning of the names of single attachments' chains; empty if there are none.
        digits: Digits of the hash that follow the prefix.
        reference: Function that returns the reference plugin's name of the chain, if the reference is to find ours.
        reference_comment: Function that returns the comment by which the reference finds rules that jump there.
        by_iptables: If true, ``iptables-restore`` makes the rules, and not ``nft``.
    """

    family: str
    table: str
    shared: tuple[str, ...]
    base: tuple[str, ...] = ()
    made: tuple[Wanted, ...] = ()
    base_chain: nft.BaseChain | None = None
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
        """Return the name of the chain that no other attachment can have."""
        return f"{self.prefix}{short_hash(*owner, digits=self.digits)}"

    def tables(self) -> list[Table]:
        """Return the tables to look into: with iptables, rules may be in those of both variants."""
        found: list[Table] = [nft.NftTable(self.family, self.table)]
        if self.by_iptables:
            legacy = iptables.LegacyTable(self.version, self.table)
            if legacy.exists():
                found.append(legacy)
        return found


class Wanted(NamedTuple):
    """A rule that an attachment wants.

    Attributes:
        chain: Its chain, or :data:`OWN`.
        text: The rule for ``nft`` or ``iptables-restore``, without comment. ``{chain}`` is the own chain.
        matches: Its conditions as the kernel shows them, in order.
        verdict: Its verdict as the kernel shows it; ``{chain}`` as above.
        expressions: The rule as netlink adds it, without a jump to the own chain; empty if only a program can make it.
    """

    chain: str
    text: str
    matches: tuple[Match, ...]
    verdict: str
    expressions: tuple[bytes, ...] = ()

    def is_like(self, rule: Rule, chain: str) -> bool:
        """Return True if a rule of the kernel is this rule. `chain` is the own chain."""
        return rule.matches == self.matches and rule.verdict == self.verdict.format(chain=chain)


class Part(NamedTuple):
    """The rules that an attachment wants in one layout; parts of the same layout count as one."""

    layout: Layout
    wanted: tuple[Wanted, ...]


# --- owners -----------------------------------------------------------------------------------------------------------


def mark(owner: Attachment, limit: int = nft.COMMENT_MAX) -> str:
    """Return the comment of an attachment's rules, at most `limit` bytes, in the reference's format for masquerade.

    Args:
        owner: The attachment.
        limit: Bytes that the comment may have. It is cut there: the hashes come first.
    """
    network, container_id, ifname = owner
    return f"{key(owner)}, net: {network}, if: {nft.plain(ifname)}, id: {container_id}"[:limit]


def _network_key(network: str) -> str:
    return f"{short_hash(network, digits=16)}-"


def key(owner: Attachment) -> str:
    """Return the beginning of each mark of an attachment: the hash of its network, and that of its other names."""
    # Neither an interface's name nor a container's id can have a colon.
    return _network_key(owner.network) + short_hash(f"{owner.ifname}:{owner.container_id}", digits=16)


def is_of(rule: Rule, owner: Attachment) -> bool:
    """Return True if a rule has the mark of an attachment. Marks are cut to a length, but their hashes come first."""
    return rule.comment.startswith(f"{key(owner)},")


def is_marked(rule: Rule) -> bool:
    """Return True if a rule has the mark of any attachment."""
    key, _, _ = rule.comment.partition(", net: ")
    network, _, rest = key.partition("-")
    return len(network) == len(rest) == 16 and {*network, *rest} <= {*"0123456789abcdef"}


def has_rule_of(table: Table, chain: str, owner: Attachment) -> bool:
    """Return True if a chain has a rule with the mark of an attachment.

    Args:
        table: The table.
        chain: Name of the chain; it need not exist.
        owner: The attachment.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    return any(is_of(rule, owner) for rule in table.list_rules(chain, key(owner)))


class _Owned(NamedTuple):
    chains: list[str]
    rules: list[Rule]


def _list_owned(layout: Layout, table: Table, owner: Attachment) -> _Owned:
    """Find the chains of an attachment, and its rules in chains that are not its own."""
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
        found = table.list_rules(shared, key(owner), *chains)
        rules += [rule for rule in found if is_of(rule, owner) or rule.target in chains]
    return _Owned(chains, rules)


# --- apply, check, delete, gc -----------------------------------------------------------------------------------------


def apply(owner: Attachment, parts: Iterable[Part]) -> None:
    """Make all rules that an attachment wants, in place of those that an earlier ADD of it left in these layouts.

    Args:
        owner: The attachment.
        parts: All rules that it wants in these layouts.

    Raises:
        IOFailureError: (5) The kernel, ``nft`` or ``iptables-restore`` refused.
        PluginNotAvailableError: (50) The program is not installed.
        TryAgainLaterError: (11) Other processes change the rules all the time.
    """
    with alone(owner) as sign:
        commands: list[str] = []
        slow: list[Part] = []
        for part in _join(parts):
            if part.layout.by_iptables:
                repeat(partial(_apply_iptables, owner, part, sign))
            elif not _add_at_once(owner, part):
                slow.append(part)
                commands += _nft_commands(owner, part)
        nft.commit(commands, [sign])
        for part in slow:
            table = nft.NftTable(part.layout.family, part.layout.table)
            _delete_earlier(owner, part, table, part.layout.own_chain(owner))


def _join(parts: Iterable[Part]) -> list[Part]:
    """Make one part of those that have the same layout, since an ADD replaces all that a layout has."""
    joined: dict[Layout, tuple[Wanted, ...]] = {}
    for layout, wanted in parts:
        joined[layout] = (*joined.get(layout, ()), *wanted)
    return [Part(*each) for each in joined.items()]


def _delete_earlier(owner: Attachment, part: Part, current: Table, chain: str) -> None:
    numbers = Counter(each.chain for each in part.wanted)
    delete_earlier(part.layout.tables(), lambda table: _list_owned(part.layout, table, owner), current, chain, numbers)


def alone(owner: Attachment) -> AbstractContextManager[int]:
    """Wait until no program changes the rules of an attachment; give a descriptor that tells others to wait.

    When an ADD is killed, its program runs on. If DEL did not wait, it would find nothing, and the program would make
    the rules afterwards. So the program inherits the descriptor.
    """
    return hold(socket_name(owner))


@contextmanager
def hold(name: str) -> Iterator[int]:
    """Wait until no other process holds a name in the network namespace; yield the descriptor that holds it.

    It is an abstract socket. Its name exists once, until the last process that has the socket ends. After five seconds,
    this waits no longer.
    """
    deadline = time.monotonic() + _PATIENCE
    with _sockets.Socket(_sockets.AF_UNIX, _sockets.SOCK_DGRAM | _sockets.SOCK_CLOEXEC) as sock:
        while True:
            try:
                sock.bind(f"\0{name}")
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.002)
                    continue
            yield sock.fileno()
            return


def socket_name(owner: Attachment) -> str:
    """Return the name of the abstract socket that the process has which changes the rules of an attachment."""
    return f"cnisdk-{short_hash(*owner, digits=32)}"


def _add_at_once(owner: Attachment, part: Part) -> bool:
    """Make the rules of a part without a program, and return True; return False if that takes a program."""
    layout, table = part.layout, nft.NftTable(part.layout.family, part.layout.table)
    if not all(rule.expressions for rule in part.wanted):
        return False
    own = layout.own_chain(owner) if layout.prefix else ""
    added = []
    for rule in part.wanted:
        jump = (_expressions.verdict(_expressions.JUMP, own),) if rule.verdict == JUMP_TO_OWN else ()
        chain = own if rule.chain == OWN else rule.chain
        added.append(nft.NewRule(chain, (*rule.expressions, *jump), mark(owner)))
    seen = False
    for _ in range(_ATTEMPTS):
        if layout.base_chain is None and not _is_made(layout, table):
            return False
        # A handle is of the generation in which it was read.
        generation = nft.read_generation() if seen else 0
        old = _list_owned(layout, table, owner).rules
        if (seen or not old) and table.replace(old, added, layout.base_chain, own, generation):
            return True
        seen = True
    raise changed_too_often(table, _ATTEMPTS)


def _is_made(layout: Layout, table: nft.NftTable) -> bool:
    if not layout.made:
        return False
    there = table.list_rules(layout.made[0].chain)
    return len(there) == len(layout.made) and all(
        wanted.is_like(rule, "") for wanted, rule in zip(layout.made, there, strict=True)
    )


def _nft_commands(owner: Attachment, part: Part) -> list[str]:
    layout = part.layout
    where = f"{layout.family} {layout.table}"
    own = layout.own_chain(owner)
    commands = [*layout.base]
    if layout.prefix:
        commands += [f"add chain {where} {own}", f"flush chain {where} {own}"]
    for chain, text, *_ in part.wanted:
        where_to = own if chain == OWN else chain
        commands.append(f'add rule {where} {where_to} {text.format(chain=own)} comment "{mark(owner)}"')
    return commands


def repeat(step: Callable[[], _T]) -> _T:
    """Call a function that looks what is there, and runs a program that relies on it; again if the program fails.

    ``nft flush ruleset`` may have deleted meanwhile what was there.

    Raises:
        ProgramFailedError: (5) The program failed each time.
        CNIError: The function's own.
    """
    for _ in range(1, _PROGRAM_ATTEMPTS):
        with suppress(ProgramFailedError):
            return step()
    return step()


def _apply_iptables(owner: Attachment, part: Part, sign: int) -> None:
    layout, table = part.layout, iptables.current(part.layout.version, part.layout.table)
    before = {str(each): _list_owned(layout, each, owner) for each in layout.tables()}
    chains = before.get(str(table), _Owned([], [])).chains
    chain = chains[0] if chains else _add_chain(owner, part, sign)
    if chains:
        _restore(owner, part, chain, f"-F {chain}", sign)
    if any(any(each) for each in before.values()):
        _delete_earlier(owner, part, table, chain)


def _add_chain(owner: Attachment, part: Part, sign: int) -> str:
    """Make the chain of an attachment, and all of its rules; return the name of the chain."""
    layout = part.layout
    own = layout.own_chain(owner)
    if layout.reference is not None:
        name = layout.reference(owner)
        with reserve(f"{layout.family}-{name}") as reserved:
            there = {str(table): table for table in layout.tables() if table.has_chain(name)}
            if reserved and all(_is_empty(layout, table, name) for table in there.values()):
                made = str(iptables.current(layout.version, layout.table)) in there
                try:
                    _restore(owner, part, name, f"-F {name}" if made else f"-N {name}", sign)
                except IOFailureError:
                    # Has the reference made the chain in the meantime? Then ours has another name.
                    if not any(table.has_chain(name) for table in layout.tables()):
                        raise
                else:
                    return name
    _restore(owner, part, own, f":{own} - [0:0]", sign)
    return own


def _is_empty(layout: Layout, table: Table, chain: str) -> bool:
    """Return True if there is no rule in a chain or to it. ``iptables -F`` leaves chains like this, whosever they were.

    No packet gets there, and it names no owner.
    """
    return not table.list_rules(chain) and not any(
        rule.target == chain for shared in layout.shared for rule in table.list_rules(shared, chain)
    )


@contextmanager
def reserve(name: str) -> Iterator[bool]:
    """Keep other processes from making a chain of this name; yield false if one is about to.

    ``-N`` alone is not enough: where two run at once, iptables-nft 1.8.9 starts over, and takes the other's chain for
    its own. An abstract socket exists once in a network namespace, as the chain does, and ends with its process.
    """
    with _sockets.Socket(_sockets.AF_UNIX, _sockets.SOCK_DGRAM | _sockets.SOCK_CLOEXEC) as sock:
        try:
            sock.bind(f"\0cnisdk-{name}")
        except OSError:
            yield False
        else:
            yield True


def _restore(owner: Attachment, part: Part, chain: str, make: str, sign: int) -> None:
    layout = part.layout
    inside = jump = mark(owner, _XT_COMMENT_MAX)
    if layout.reference_comment is not None and chain != layout.own_chain(owner):
        jump = layout.reference_comment(owner)
    lines = [*layout.base, make]
    for where, text, *_ in part.wanted:
        in_chain, comment = (chain, inside) if where == OWN else (where, jump)
        quoted = comment.replace('"', '\\"')
        lines.append(f'-A {in_chain} -m comment --comment "{quoted}" {text.format(chain=chain)}')
    iptables.commit_all(layout.version, {layout.table: lines}, [sign])


_XT_COMMENT_MAX = 255  # of xt_comment, in bytes


def check(owner: Attachment, parts: Iterable[Part]) -> None:
    """Verify that the rules are there, with their conditions and verdicts.

    Args:
        owner: The attachment.
        parts: The rules that it wants.

    Raises:
        IOFailureError: (5) One is missing, or was changed; the message has it. The details have the owner's rules that
            are there, as the kernel shows them.
    """
    for part in _join(parts):
        if missing := _missing_of(owner, part):
            raise IOFailureError(
                f"a rule of {owner} is missing or was changed: {missing}", details=_describe_own(part.layout, owner)
            )


def _describe_own(layout: Layout, owner: Attachment) -> str:
    found: list[Rule] = []
    for table in layout.tables():
        chains, shared = _list_owned(layout, table, owner)
        found += [*(rule for chain in chains for rule in table.list_rules(chain)), *shared]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return f"there is: {'; '.join([*map(str, found[:_SHOWN]), *more])}" if found else "none of its rules is there"


def repair(owner: Attachment, parts: Iterable[Part], *, dry_run: bool = False) -> bool:
    """Make the rules of the layouts that :func:`check` would refuse. The others are not touched.

    Args:
        owner: The attachment.
        parts: The rules it wants.
        dry_run: If true, make none: only find out if any are missing.

    Returns:
        True if there were any.

    Raises:
        CNIError: As :func:`apply` does.
    """
    broken = [part for part in _join(parts) if _missing_of(owner, part)]
    if not dry_run:
        apply(owner, broken)
    return bool(broken)


def _missing_of(owner: Attachment, part: Part) -> str:
    """Return the first rule of a part that is not there; empty if all are, in one of the tables."""
    missing = [missing_in(part.layout, table, owner, part.wanted) for table in part.layout.tables()]
    return missing[0] if all(missing) else ""


def missing_in(layout: Layout, table: Table, owner: Attachment, wanted: Sequence[Wanted]) -> str:
    """Return the first rule that a table lacks; empty if it has all.

    Args:
        layout: The place of the rules.
        table: The table to look into.
        owner: The attachment.
        wanted: The rules, in order.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    for rule in layout.fixed:
        if not any(rule.is_like(each, "") for each in table.list_rules(rule.chain)):
            return f"{rule.text} in chain {rule.chain} of {table}"
    chains = _list_owned(layout, table, owner).chains
    if layout.reference is not None and has_rule_of(table, layout.reference(owner), owner):
        chains = [layout.reference(owner)]  # perhaps with rules that the reference added for another attachment
    chain = chains[0] if chains else ""
    for rule in wanted:
        if rule.chain != OWN and not any(
            rule.is_like(each, chain) and (is_of(each, owner) or each.target == chain)
            for each in table.list_rules(rule.chain, key(owner), *chains)
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
        layout: The place of the rules.
        owner: The attachment.
        foreign: Name of the chain that the reference would have made for it.
        look: Function that finds the chains and rules that the reference made for it, called if that chain exists.

    Raises:
        IOFailureError: (5) The kernel refused.
    """

    def find(table: Table) -> tuple[list[str], list[Rule]]:
        chains, found = _list_owned(layout, table, owner)
        name = layout.reference(owner) if layout.reference is not None else ""
        if name and name not in chains and table.has_chain(name) and _is_empty(layout, table, name):
            chains.append(name)
        return chains, found

    with alone(owner):
        for table in layout.tables():
            own = [layout.own_chain(owner)] if layout.prefix else []
            if layout.reference is not None:
                own.append(layout.reference(owner))
            there = table.find_chains(*own, *filter(None, [foreign])) if layout.prefix else set()
            if not layout.prefix or not there.isdisjoint(own):
                delete_found(table, partial(find, table))
            if look is not None and foreign in there:
                delete_found(table, partial(look, table))


def changed_too_often(table: Table, attempts: int) -> TryAgainLaterError:
    """Return the error for a table that other processes have changed during every attempt to change it."""
    return TryAgainLaterError(
        f"cannot change {table}: other processes changed it during each of {attempts} attempts", details="try again"
    )


def delete_found(table: Table, look: Callable[[], tuple[Collection[str], Collection[Rule]]]) -> None:
    """Delete the chains and rules that `look` finds; look again if another process changed the ruleset meanwhile.

    A handle says which rule is meant only in the generation of the ruleset in which it was read: a table that was made
    anew numbers its rules from the beginning.

    Args:
        table: The table.
        look: Function that returns the chains and the rules to delete. It is called again after each change by another
            process.

    Raises:
        IOFailureError: (5) The kernel refused.
        TryAgainLaterError: (11) Other processes change the rules all the time.
    """
    for _ in range(_ATTEMPTS):
        generation = nft.read_generation() if isinstance(table, nft.NftTable) else 0
        chains, found = look()
        if not (chains or found) or table.delete(found, chains, generation):
            return
    raise changed_too_often(table, _ATTEMPTS)


def delete_earlier(
    tables: Iterable[Table],
    look: Callable[[Table], tuple[Collection[str], Sequence[Rule]]],
    current: Table,
    chain: str,
    numbers: Mapping[str, int],
) -> None:
    """Delete what an earlier ADD of an attachment left, once this ADD has made the same anew.

    Args:
        tables: The tables to look into.
        look: Function that finds the chains and rules of the attachment, the newest rules of a chain last.
        current: The table in which this ADD has made its rules.
        chain: The attachment's chain in it, with no other rules.
        numbers: How many rules this ADD has made in other chains.

    Raises:
        IOFailureError: (5) The kernel refused.
        TryAgainLaterError: (11) Other processes change the rules all the time.
    """

    def earlier(table: Table) -> tuple[Collection[str], Collection[Rule]]:
        chains, found = look(table)
        if str(table) != str(current):
            return chains, found
        left = Counter(rule.chain for rule in found)
        left.subtract(numbers)
        going = []
        for rule in found:
            if left[rule.chain] > 0:
                going.append(rule)
            left[rule.chain] -= 1
        return [each for each in chains if each != chain], going

    for table in tables:
        delete_found(table, partial(earlier, table))


def no_undo(inverse: Callable[..., object], *args: object) -> None:
    """Remember no inverse: an :data:`Undo` for a caller that undoes nothing."""


def keep_found(tables: Iterable[Table], look: Callable[[Table], tuple[Collection[str], list[Rule]]]) -> Kept:
    """Read the chains and rules that `look` finds, which an ADD is about to replace, for :func:`put_back`.

    Args:
        tables: The tables to look into.
        look: Function that returns the chains and the rules of a table, for example what an attachment has.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    found = {str(table): (table, *look(table)) for table in tables}
    return {name: table.keep(has, chains) for name, (table, chains, has) in found.items() if chains or has}


def put_back(tables: Iterable[Table], look: Callable[[Table], tuple[Collection[str], list[Rule]]], kept: Kept) -> None:
    """Restore kept rules, and delete the chains and rules that `look` finds now: one transaction for each table.

    Args:
        tables: The tables.
        look: Function that returns the chains and the rules of a table that are to go.
        kept: Rules from :func:`keep_found`, by table.

    Raises:
        IOFailureError: (5) The kernel refused.
        TryAgainLaterError: (11) Other processes change the rules all the time.
    """
    for table in tables:
        before = kept.get(str(table), KeptRules((), ()))
        for _ in range(_ATTEMPTS):
            generation = nft.read_generation() if isinstance(table, nft.NftTable) else 0
            chains, found = look(table)
            if not (chains or found or before.rules) or table.exchange(found, chains, before, generation):
                break
        else:
            raise changed_too_often(table, _ATTEMPTS)


def is_stale(network: str, valid: Collection[Attachment]) -> Callable[[Rule], bool]:
    """Return a function that tells if a rule has the mark of an attachment of the network that is not valid.

    Args:
        network: Name of the network.
        valid: Attachments that are not touched.
    """
    kept = tuple(f"{key(owner)}," for owner in valid)
    network_key = _network_key(network)

    def stale(rule: Rule) -> bool:
        return is_marked(rule) and rule.comment.startswith(network_key) and not rule.comment.startswith(kept)

    return stale


def list_stale(table: Table, chain: str, network: str, valid: Collection[Attachment]) -> list[Rule]:
    """List the rules of a chain that have the mark of an attachment of the network that is not valid.

    Args:
        table: The table.
        chain: Name of the chain.
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    return list(filter(is_stale(network, valid), table.list_rules(chain, _network_key(network))))


def gc(layout: Layout, network: str, valid: Collection[Attachment]) -> None:
    """Delete the rules of a network's attachments that are not valid.

    Args:
        layout: The place of the rules.
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        IOFailureError: (5) The kernel refused; the other tables were cleaned nevertheless.
    """
    network_key, stale = _network_key(network), is_stale(network, valid)

    def look(table: Table) -> tuple[list[str], list[Rule]]:
        names = table.list_chains(layout.prefix) if layout.prefix else []
        inside = {name: table.list_rules(name) for name in names}
        chains = [name for name, has in inside.items() if has and all(map(stale, has))]
        going = [rule for name, has in inside.items() if name not in chains for rule in has if stale(rule)]
        for shared in layout.shared:
            found = table.list_rules(shared, network_key, *chains)
            going += [rule for rule in found if stale(rule) or rule.target in chains]
        # An empty chain does not name its owner; the rule that jumps there does.
        chains += sorted({rule.target for rule in going} & {name for name, has in inside.items() if not has})
        return chains, going

    run_all(*(partial(delete_found, table, partial(look, table)) for table in layout.tables()))
