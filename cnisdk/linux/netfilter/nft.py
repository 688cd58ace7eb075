"""nftables: read chains and rules, delete them, and add what a script of ``nft`` says, each in one transaction.

This module reads and deletes by netlink: that takes tens of microseconds where starting ``nft`` takes milliseconds, and
does not list all rules. ``iptables`` based on nftables keeps its rules in tables of the same kind (``ip nat``,
``ip6 nat``), so this module reads and deletes these, too. Adding needs ``nft``, which compiles rules, except for the
few kinds of rules whose expressions the caller makes (:class:`NewRule`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache

from ..._light import NamedTuple, TypeVar
from ...errors import IOFailureError, cause_of, describe_errno
from ...spec.names import short_hash
from .. import attributes, program
from . import _expressions, nfnetlink, xt

# linux/netfilter.h, linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h
_FAMILIES = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}
_SUBSYSTEM = 10
_NEW_TABLE, _NEW_CHAIN, _GET_CHAIN, _DELETE_CHAIN = (_SUBSYSTEM << 8 | number for number in (0, 3, 4, 5))
_NEW_RULE, _GET_RULE, _DELETE_RULE, _GET_GENERATION = (_SUBSYSTEM << 8 | number for number in (6, 7, 8, 16))
_GENERATION = 1
_APPEND = 0x800
_COMMENT_TYPE = 0  # libnftnl's own number
_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE, _CHAIN_TYPE = 1, 3, 4, 5, 6, 7
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_COMPATIBILITY, _RULE_USERDATA = 1, 2, 3, 4, 5, 7
_PAYLOAD_BASES = ("link", "network", "transport")
_META_IIFNAME, _META_NFPROTO = 6, 15
# Where a rule compares the protocol, as :class:`Match` has it: META_L4PROTO, or a byte of IPv4's header.
_PROTOCOL_FIELDS = (("meta 16", 0), ("network", 9))
_COUNTER = attributes.attribute(1, b"counter\0")  # NFTA_EXPR_NAME
_VERDICTS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}

COMMENT_MAX = 128
"""Bytes of a comment, at most (NFTNL_UDATA_COMMENT_MAXLEN)."""

# Bytes of a chain's name, at most (NFT_NAME_MAXLEN). The reference makes names of container ids, which may be longer.
_NAME_MAX = 255

# Nothing of this name, or the kernel has no nftables, or not for this family: then it has no such chain either.
_NO_NFTABLES = nfnetlink.ABSENT | {errno.EINVAL}

# Deletions per message: the kernel takes a transaction only in one piece, and a socket's buffer is 208 KiB.
_DELETIONS_AT_ONCE = 500

_T = TypeVar("_T")

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def plain(ifname: str) -> str:
    """Return an interface's name for a script: hashed if it has characters with a meaning there.

    Names of networks and ids of containers have no such characters; names of interfaces may have any.
    """
    return ifname if _PLAIN.issuperset(ifname) else f"h-{short_hash(ifname, digits=12)}"


class Match(NamedTuple):
    """One condition of a rule.

    Attributes:
        what: ``link``, ``network``, ``transport`` (a header), ``iifname``, or the name of an unknown expression.
        offset: Of the field in the header, in bytes.
        equal: The field must be equal to the value, or must not.
        value: Bytes of the field, with those that do not count cut off.
        mask: The bits that count, cut likewise.
    """

    what: str
    offset: int
    equal: bool
    value: bytes
    mask: bytes

    def __str__(self) -> str:
        """Show it as the arguments of :func:`match`; the mask only where it leaves out bits."""
        mask = f" mask {self.mask.hex()}" if self.mask.strip(b"\xff") else ""
        return f"{self.what} {self.offset} {'is' if self.equal else 'is not'} {self.value.hex()}{mask}"


def match(what: str, offset: int, value: bytes, mask: bytes = b"", *, equal: bool = True) -> Match:
    """Make a condition in normal form: conditions that mean the same are equal.

    Args:
        what: As in :class:`Match`.
        offset: As in :class:`Match`: in the header of IPv4 12 for the source, 16 for the destination; of IPv6 8 and
            24. A port has a protocol as well, which ``nft`` adds by itself: :func:`match_protocol`, before it.
        value: Bytes of the field, in network byte order.
        mask: The bits that count; by default all.
        equal: If false, the field must be another.
    """
    mask = (mask or b"\xff" * len(value))[: len(value)].rstrip(b"\0")
    return Match(what, offset, equal, bytes(a & b for a, b in zip(value, mask, strict=False)), mask)


def match_interface(name: str) -> Match:
    """Make the condition that a frame comes in through an interface."""
    value = name.encode(errors="surrogateescape").ljust(16, b"\0")
    return match("iifname", 0, value)


def match_protocol(number: int, *, equal: bool = True) -> Match:
    """Make the condition that a packet is of a transport protocol, such as 6 for TCP and 17 for UDP.

    Args:
        number: Number of the protocol (IANA).
        equal: If false, the condition is negated.
    """
    return match("meta 16", 0, bytes([number]), equal=equal)


def match_port(number: int) -> Match:
    """Make the condition that a packet is for a port."""
    return match("transport", 2, number.to_bytes(2, "big"))


class Rule(NamedTuple):
    """A rule of a chain.

    Attributes:
        chain: Name of its chain.
        handle: The kernel's number of it.
        comment: Its comment, empty when it has none.
        matches: Its conditions, in order; dependencies such as "is IPv4" are left out.
        verdict: ``accept``, ``drop``, ``return``, ``jump CHAIN``, ``goto CHAIN``, ``masquerade``, or another name.
        spec: As ``iptables -S`` writes it; only of the legacy variant, which has no handles.
    """

    chain: str
    handle: int
    comment: str
    matches: tuple[Match, ...]
    verdict: str
    spec: str = ""

    @property
    def target(self) -> str:
        """The chain that the rule jumps or goes to; empty for none."""
        word, _, chain = self.verdict.partition(" ")
        return chain if word in ("jump", "goto") else ""

    def __str__(self) -> str:
        """Show its conditions and its verdict."""
        return (
            self.spec or f"{', '.join([*map(str, self.matches), self.verdict or 'no verdict'])} in chain {self.chain}"
        )


class NewRule(NamedTuple):
    """A rule to add: its chain, its expressions as bytes, and its comment."""

    chain: str
    expressions: tuple[bytes, ...]
    comment: str


class BaseChain(NamedTuple):
    """A chain of type filter that packets come to from a hook of the kernel, and that accepts them in the end.

    Attributes:
        name: Its name.
        hook: Number of the hook: 0 is prerouting.
        priority: Its place among the chains of the hook; the least comes first.
    """

    name: str
    hook: int
    priority: int


class KeptRules(NamedTuple):
    """Rules to be made again, just as they were.

    Attributes:
        chains: Names of the chains all of whose rules are among them.
        rules: The rules, in the order in which they were made: their attributes, or what ``iptables-restore`` reads.
    """

    chains: tuple[str, ...]
    rules: tuple[bytes, ...]


class NftTable(NamedTuple):
    """A table of nftables, which need not exist.

    Attributes:
        family: ``inet``, ``ip``, ``ip6`` or ``bridge``.
        name: Its name.
    """

    family: str
    name: str

    def __str__(self) -> str:
        return f"nftables table {self.family} {self.name}"

    def is_supported(self) -> bool:
        """Return True if the kernel takes tables of this family.

        It is asked to make the table in a transaction that it does not carry out, since a later part of it fails.

        Raises:
            IOFailureError: (5) The kernel refused to answer (EPERM: no CAP_NET_ADMIN).
        """
        family, table = _FAMILIES[self.family], attributes.text(_TABLE_NAME, f"{self.name}\0")
        absent = self._chain("cnisdk-absent")
        trial = [(_NEW_TABLE, nfnetlink.CREATE, family, table), (_DELETE_CHAIN, 0, family, absent)]
        try:
            error = nfnetlink.transact(_SUBSYSTEM, trial)
        except OSError as exc:
            error = exc.errno or errno.EIO
        if error in nfnetlink.ABSENT:
            return error == errno.ENOENT
        raise IOFailureError(f"cannot ask for {self}: {describe_errno(error)}")

    def find_chains(self, *names: str) -> set[str]:
        """Find those of these chains that exist, with one request for all.

        Raises:
            IOFailureError: (5) The kernel refused to answer (EPERM: no CAP_NET_ADMIN).
        """
        possible = [name for name in names if len(name) <= _NAME_MAX]
        answers = self._find_all(_GET_CHAIN, map(self._chain, possible))
        return {name for name, answer in zip(possible, answers, strict=True) if answer is not None}

    def has_chain(self, chain: str) -> bool:
        """Return True if the chain exists.

        Raises:
            IOFailureError: (5) The kernel refused to answer (EPERM: no CAP_NET_ADMIN).
        """
        return bool(self.find_chains(chain))

    def find_policy(self, chain: str) -> str | None:
        """Return what becomes of a packet at the end of a base chain, ``accept`` or ``drop``; None for no such chain.

        Raises:
            IOFailureError: (5) The kernel refused to answer.
        """
        (answer,) = self._find_all(_GET_CHAIN, [self._chain(chain)])
        policy = attributes.read(answer).get(_CHAIN_POLICY) if answer is not None else None
        return None if policy is None else _VERDICTS.get(_number(policy), "")

    def list_chains(self, prefix: str) -> list[str]:
        """Return the names of all chains with this prefix.

        Raises:
            IOFailureError: (5) The kernel refused to answer.
        """

        def read(message: bytes) -> str | None:
            found = attributes.read(message)
            name = attributes.read_text(found[_CHAIN_NAME])
            own = attributes.read_text(found[_CHAIN_TABLE]) == self.name and name.startswith(prefix)
            return name if own else None

        return self._ask(_GET_CHAIN, b"", (), read)

    def list_rules(self, chain: str, *words: str) -> list[Rule]:
        """Return the rules of a chain, in order; none when there is no such chain.

        Args:
            chain: Name of the chain; empty means all chains.
            words: If given, only rules that have one of these in their comment, or in the name of their chain or of one
                they jump to. A shared chain has the rules of all containers, and parsing all takes long.

        Raises:
            IOFailureError: (5) The kernel refused to answer.
        """
        return list(self._ask(_GET_RULE, self._rules_of(chain), words, lambda message: _rule(attributes.read(message))))

    def find_rule(self, chain: str, wanted: Callable[[Rule], bool], *words: str) -> Rule | None:
        """Return the first rule of a chain that is wanted; None if there is none.

        The rules behind it are not read: so this takes no longer the more there are, if it is among the first.

        Args:
            chain: Name of the chain; empty means all chains.
            wanted: Function that returns True for the rule to find.
            words: As for :meth:`list_rules`.

        Raises:
            IOFailureError: (5) The kernel refused to answer.
        """

        def read(message: bytes) -> Rule | None:
            rule = _rule(attributes.read(message))
            return rule if wanted(rule) else None

        return next(iter(self._ask(_GET_RULE, self._rules_of(chain), words, read, bool)), None)

    def find_rules(self, chain: str, handles: Iterable[int]) -> list[Rule]:
        """Find those rules of a chain that have these handles, with one request for all: no other rule is read.

        Args:
            chain: Name of the chain.
            handles: The kernel's numbers of the rules.

        Raises:
            IOFailureError: (5) The kernel refused to answer.
        """
        where = self._rules_of(chain)
        wanted = [where + _handle(handle) for handle in handles]
        answers = self._find_all(_GET_RULE, wanted)
        return [_rule(attributes.read(answer)) for answer in answers if answer is not None]

    def count_uses(self, chain: str) -> int:
        """Return how many rules are in a chain, and jump or go to it; 0 if there is no such chain.

        Raises:
            IOFailureError: (5) The kernel refused to answer.
        """
        (answer,) = self._find_all(_GET_CHAIN, [self._chain(chain)])
        return _number(attributes.read(answer)[_CHAIN_USE]) if answer is not None else 0

    def list_leading(self, *chains: str) -> list[Rule]:
        """Return the rules of chains, in order, with one request.

        The kernel lists the chains of a table in the order in which they were made. So this takes no longer the more
        chains were made after these. It reads the whole table only if one of these has no rule.

        Raises:
            IOFailureError: (5) The kernel refused to answer.
        """
        wanted = frozenset(chains)

        def enough(found: list[Rule]) -> bool:
            return found[-1].chain not in wanted and wanted <= {each.chain for each in found}

        found = self._ask(_GET_RULE, self._rules_of(""), (), lambda message: _rule(attributes.read(message)), enough)
        return [each for each in found if each.chain in wanted]

    def _chain(self, name: str) -> bytes:
        return attributes.text(_CHAIN_TABLE, f"{self.name}\0") + attributes.text(_CHAIN_NAME, f"{name}\0")

    def _rules_of(self, chain: str) -> bytes:
        wanted = attributes.text(_RULE_TABLE, f"{self.name}\0")
        return wanted + attributes.text(_RULE_CHAIN, f"{chain}\0") if chain else wanted

    def delete(self, rules: Iterable[Rule], chains: Collection[str] = (), generation: int = 0) -> bool:
        """Delete rules, and chains with all rules that are in them: up to 500 in one transaction.

        The kernel deletes a rule by its handle. In a table that was made anew, the handle may be another's rule.

        Args:
            rules: The rules.
            chains: The chains.
            generation: The ruleset's, read before looking for the rules (:func:`read_generation`); 0 for any.

        Returns:
            False if one was gone already, or the ruleset is of another generation, so that a transaction was not
            carried out: look again.

        Raises:
            IOFailureError: (5) The kernel refused; a chain that a remaining rule jumps to is busy.
        """
        messages = self._deletions(rules, chains)
        # Each transaction makes the next generation.
        return all(
            self._transact(messages[start : start + _DELETIONS_AT_ONCE], "delete", generation and generation + index)
            for index, start in enumerate(range(0, len(messages), _DELETIONS_AT_ONCE))
        )

    def keep(self, rules: Iterable[Rule], chains: Iterable[str] = ()) -> KeptRules:
        """Read rules, and chains with all rules that are in them, so that they can be made again.

        Args:
            rules: The rules.
            chains: The chains.

        Raises:
            IOFailureError: (5) The kernel refused to answer.
        """
        names = tuple(chains)
        found = [each for name in names for each in self._ask(_GET_RULE, self._rules_of(name), (), self._keep)]
        wanted = [self._rules_of(each.chain) + _handle(each.handle) for each in rules if each.chain not in names]
        found += [self._keep(answer) for answer in self._find_all(_GET_RULE, wanted) if answer is not None]
        return KeptRules(names, tuple(body for _, body in sorted(found)))

    def exchange(self, rules: Iterable[Rule], chains: Collection[str], kept: KeptRules, generation: int = 0) -> bool:
        """Delete as :meth:`delete` does, and make others again, in one transaction.

        Args:
            rules: The rules to delete.
            chains: The chains to delete, with all rules in them.
            kept: Rules to make, from :meth:`keep`.
            generation: The ruleset's, read before looking for the rules (:func:`read_generation`); 0 for any.

        Returns:
            False if a rule to delete was gone already, or the ruleset is of another generation: look again.

        Raises:
            IOFailureError: (5) The kernel refused.
        """
        make = nfnetlink.CREATE | nfnetlink.EXCLUSIVE
        messages = self._deletions(rules, chains)
        messages += [(_NEW_CHAIN, make, _FAMILIES[self.family], self._chain(name)) for name in kept.chains]
        messages += [(_NEW_RULE, nfnetlink.CREATE | _APPEND, _FAMILIES[self.family], body) for body in kept.rules]
        return self._transact(messages, "put back", generation)

    def _keep(self, message: bytes) -> tuple[int, bytes]:
        """Return a rule's handle, and the attributes that make it again."""
        found = attributes.read(message)
        body = self._rules_of(attributes.read_text(found[_RULE_CHAIN]))
        body += attributes.attribute(_RULE_EXPRESSIONS | nfnetlink.NESTED, found.get(_RULE_EXPRESSIONS, b""))
        if _RULE_USERDATA in found:
            body += attributes.attribute(_RULE_USERDATA, found[_RULE_USERDATA])
        # Some matches of iptables insist on this, and the kernel does not tell it.
        protocol = [each.value for each in _rule(found).matches if each.equal and each[:2] in _PROTOCOL_FIELDS]
        if protocol:
            numbers = _expressions.number(1, protocol[0][0]), _expressions.number(2, 0)
            body += attributes.attribute(_RULE_COMPATIBILITY | nfnetlink.NESTED, *numbers)
        return _number(found[_RULE_HANDLE]), body

    def _deletions(self, rules: Iterable[Rule], chains: Collection[str]) -> list[nfnetlink.FilterMessage]:
        family = _FAMILIES[self.family]
        going = [self._rules_of(rule.chain) + _handle(rule.handle) for rule in rules if rule.chain not in chains]
        messages = [(_DELETE_RULE, 0, family, each) for each in [*going, *map(self._rules_of, chains)]]
        return [*messages, *((_DELETE_CHAIN, 0, family, self._chain(name)) for name in chains)]

    def replace(
        self,
        rules: Iterable[Rule],
        added: Iterable[NewRule],
        base: BaseChain | None = None,
        own: str = "",
        generation: int = 0,
    ) -> bool:
        """Delete rules, and add others behind all rules of their chains, in one transaction.

        Args:
            rules: The rules to delete.
            added: The rules to add.
            base: Chain to make with the table, if they are not there.
            own: Chain to make, or to empty if it is there; empty for none.
            generation: The ruleset's, read before looking for the rules (:func:`read_generation`); 0 for any.

        Returns:
            False if the ruleset is of another generation, or, for any generation, if a rule or a chain is gone: look
            again.

        Raises:
            IOFailureError: (5) The kernel refused.
        """
        table, family = attributes.text(_RULE_TABLE, f"{self.name}\0"), _FAMILIES[self.family]
        messages: list[nfnetlink.FilterMessage] = []
        if base is not None:
            messages.append((_NEW_TABLE, nfnetlink.CREATE, family, attributes.text(_TABLE_NAME, f"{self.name}\0")))
            messages.append((_NEW_CHAIN, nfnetlink.CREATE, family, self._chain(base.name) + _hook(base)))
        if own:
            messages.append((_NEW_CHAIN, nfnetlink.CREATE, family, self._chain(own)))
            messages.append((_DELETE_RULE, 0, family, self._rules_of(own)))
        messages += self._deletions(rules, ())
        for chain, expressions, comment in added:
            text = comment.encode(errors="surrogateescape")[:COMMENT_MAX] + b"\0"
            body = (
                table
                + attributes.text(_RULE_CHAIN, f"{chain}\0")
                + attributes.attribute(_RULE_EXPRESSIONS | nfnetlink.NESTED, _expressions.join(expressions))
                + attributes.attribute(_RULE_USERDATA, bytes([_COMMENT_TYPE, len(text)]), text)
            )
            messages.append((_NEW_RULE, nfnetlink.CREATE | _APPEND, family, body))
        return self._transact(messages, "add", generation)

    def _transact(self, messages: Iterable[nfnetlink.FilterMessage], verb: str, generation: int) -> bool:
        try:
            error = nfnetlink.transact(_SUBSYSTEM, messages, generation)
        except OSError as exc:
            error = exc.errno or errno.EIO
        # Nothing is gone in the same generation: then the kernel lacks an expression.
        if error in (0, errno.ERESTART) or (error == errno.ENOENT and not generation):
            return not error
        raise IOFailureError(f"cannot {verb} rules of {self}: {describe_errno(error)}")

    def _find_all(self, number: int, wanted: Iterable[bytes]) -> list[bytes | None]:
        """Return the attributes of single objects, None for one that does not exist."""
        requests = [(number, 0, _FAMILIES[self.family], each) for each in wanted]
        try:
            return nfnetlink.ask(requests, _NO_NFTABLES | {errno.ERANGE})  # the latter: too long for a name
        except OSError as exc:
            raise IOFailureError(f"cannot read {self}: {cause_of(exc)}") from exc

    def _ask(
        self,
        number: int,
        wanted: bytes,
        words: Iterable[str],
        read: Callable[[bytes], _T | None],
        enough: Callable[[list[_T]], bool] | None = None,
    ) -> list[_T]:
        """Return the objects of a dump.

        Args:
            number: Of the request.
            wanted: Its attributes.
            words: If given, only objects that contain one of these are read.
            read: Function that reads an object's attributes; it returns None for one that is not wanted.
            enough: Function that is called after each wanted object, with all so far; True if no more are needed.
        """
        needles = [word.encode(errors="surrogateescape") for word in words]
        try:
            return nfnetlink.select(number, _FAMILIES[self.family], wanted, read, needles, enough)
        except OSError as exc:
            if exc.errno in _NO_NFTABLES:
                return []
            raise IOFailureError(f"cannot read {self}: {cause_of(exc)}") from exc


def read_generation() -> int:
    """Return the generation of the ruleset, which each change of it increases; 0 if the kernel tells none.

    Raises:
        IOFailureError: (5) The kernel refused to answer.
    """
    try:
        answers = nfnetlink.ask([(_GET_GENERATION, 0, 0, b"")])
    except OSError as exc:
        raise IOFailureError(f"cannot read the generation of the ruleset: {cause_of(exc)}") from exc
    return int.from_bytes(attributes.read(answers[0] or b"").get(_GENERATION, b""), "big")


def commit(commands: Iterable[str], inherited: Sequence[int] = ()) -> None:
    """Carry out commands in one transaction: all of them, or none.

    Args:
        commands: The commands; none start no program.
        inherited: Descriptors that ``nft`` keeps open: see :func:`.program.run`.

    Raises:
        IOFailureError: (5) ``nft`` refused them.
        PluginNotAvailableError: (50) ``nft`` is not installed.
    """
    script = "".join(f"{command}\n" for command in commands)
    if script:
        program.run(["nft", "-f", "-"], script, inherited)


# --- netlink ----------------------------------------------------------------------------------------------------------


def _hook(base: BaseChain) -> bytes:
    """Return the attributes that make a chain a base chain."""
    priority = attributes.attribute(2, base.priority.to_bytes(4, "big", signed=True))
    hook = attributes.attribute(_CHAIN_HOOK | nfnetlink.NESTED, _expressions.number(1, base.hook), priority)
    return hook + _expressions.number(_CHAIN_POLICY, _expressions.ACCEPT) + attributes.text(_CHAIN_TYPE, "filter\0")


def _handle(number: int) -> bytes:
    return attributes.attribute(_RULE_HANDLE, number.to_bytes(8, "big"))


def _number(payload: bytes) -> int:
    return int.from_bytes(payload, "big")


def _rule(found: dict[int, bytes]) -> Rule:
    elements = (element for _, element in attributes.iterate(found.get(_RULE_EXPRESSIONS, b"")))
    comment, matches, verdict = _read_expressions(tuple(each for each in elements if not each.startswith(_COUNTER)))
    chain, handle = attributes.read_text(found[_RULE_CHAIN]), _number(found[_RULE_HANDLE])
    return Rule(chain, handle, comment or _comment(found.get(_RULE_USERDATA, b"")), matches, verdict)


# Each request looks at the same rules of the tables' own: a worker of the resident server knows them from a rehearsal.
@lru_cache(maxsize=128)
def _read_expressions(elements: tuple[bytes, ...]) -> tuple[str, tuple[Match, ...], str]:
    """Return the comment, the conditions and the verdict that the expressions of a rule say, those but counters."""
    matches: list[Match] = []
    comment = verdict = ""
    field: tuple[str, int, bytes] | None = None  # the field in the register, and the mask of its bits that count
    for element in elements:
        expression = attributes.read(element)
        name = attributes.read_text(expression[1])
        parts = attributes.read(expression.get(2, b""))
        if name == "payload" and 1 in parts:
            base = _number(parts[2])
            what = _PAYLOAD_BASES[base] if base < len(_PAYLOAD_BASES) else f"payload {base}"
            field = (what, _number(parts[3]), b"\xff" * _number(parts[4]))
        elif name == "meta" and 1 in parts:
            key = _number(parts[2])
            field = ("iifname" if key == _META_IIFNAME else f"meta {key}", 0, b"\xff" * 16)
        elif name == "bitwise" and field is not None and 4 in parts:
            field = (field[0], field[1], attributes.read(parts[4]).get(1, b""))
        elif name == "cmp" and field is not None:
            if field[0] != f"meta {_META_NFPROTO}":
                equal = _number(parts[2]) == 0
                matches.append(match(*field[:2], attributes.read(parts[3])[1], field[2], equal=equal))
            field = None
        elif name == "immediate":
            judged = attributes.read(attributes.read(parts[2]).get(2, b""))
            if 1 in judged:
                code = int.from_bytes(judged[1], "big", signed=True)
                chain = f" {attributes.read_text(judged[2])}" if 2 in judged else ""
                verdict = f"{_VERDICTS.get(code, code)}{chain}"
        elif name == "masq":
            verdict = "masquerade"
        elif name == "match" and parts[1].rstrip(b"\0") == b"comment":
            comment = attributes.read_text(parts[3].split(b"\0", 1)[0])
        elif name == "target":
            verdict = xt.read_target(attributes.read_text(parts[1]), parts[3])
        else:
            matches.append(Match(name, 0, True, expression.get(2, b""), b""))
    return comment, tuple(matches), verdict


def _comment(data: bytes) -> str:
    # libnftnl's own format: type, length and value, one byte each for the first two; type 0 is a comment.
    start = 0
    while start + 2 <= len(data):
        kind, length = data[start], data[start + 1]
        if kind == 0:
            return attributes.read_text(data[start + 2 : start + 2 + length])
        start += 2 + length
    return ""
