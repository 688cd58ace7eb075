"""iptables: change a table in one transaction, and read the tables of its legacy variant.

The variant based on nftables keeps its rules in tables that :class:`.nft.NftTable` reads and changes. Only a program
can read those of the legacy variant; a kernel that has such tables names them in ``/proc``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import ip_network

from ...errors import IOFailureError
from .. import program
from .nft import KeptRules, Match, NftTable, Rule, match, match_protocol

# Seconds to wait for the lock that the legacy variant takes around each change.
_WAIT = "30"
_PROGRAMS = {4: ("iptables", "/proc/net/ip_tables_names"), 6: ("ip6tables", "/proc/net/ip6_tables_names")}
_KEYWORDS = {4: "ip", 6: "ip6"}
_OFFSETS = {(4, "-s"): 12, (4, "-d"): 16, (6, "-s"): 8, (6, "-d"): 24}
INTERFACES = {"-i": "iifname", "-o": "meta 7"}
"""Conditions on the interface a packet comes from or leaves by: options, and names in :class:`.nft.Match`."""

_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "RETURN": "return", "MASQUERADE": "masquerade"}


def commit_all(
    version: int, tables: Mapping[str, Iterable[str]], inherited: Sequence[int] = (), variant: str = ""
) -> None:
    """Change tables with one run of the program, each in one transaction: all of it, or nothing.

    Args:
        version: 4 or 6.
        tables: Lines of ``iptables-restore`` by the name of the table: ``:CHAIN - [0:0]`` makes a chain, or empties it;
            ``-N`` makes one, and fails if it exists; ``-A``, ``-D``, ``-F``, ``-X``. Without any, no program runs.
        inherited: Descriptors that the program keeps open: see :func:`.program.run`.
        variant: ``nft`` or ``legacy``; by default that of the program without such an addition.

    Raises:
        IOFailureError: (5) ``iptables-restore`` refused them.
        PluginNotAvailableError: (50) It is not installed.
    """
    bodies = {table: "".join(f"{line}\n" for line in lines) for table, lines in tables.items()}
    script = "".join(f"*{table}\n{body}COMMIT\n" for table, body in bodies.items() if body)
    if script:
        program.run([_restoring(version, variant), "--noflush", "-w", _WAIT], script, inherited)


def _restoring(version: int, variant: str = "") -> str:
    """Return the name of the program that changes the tables of a variant."""
    return f"{_PROGRAMS[version][0]}{variant and f'-{variant}'}-restore"


def find_other(version: int) -> str | None:
    """Return the variant that ``iptables-restore`` is not, ``nft`` or ``legacy``; None if its program is missing."""
    variant = "nft" if _is_legacy(version) else "legacy"
    return variant if program.find(_restoring(version, variant)) is not None else None


def current(version: int, name: str) -> NftTable | LegacyTable:
    """Return the table that the program ``iptables-restore`` changes.

    Args:
        version: 4 or 6.
        name: Name of the table, such as ``nat``.
    """
    return currents(version, [name])[name]


def currents(version: int, names: Iterable[str], variant: str = "") -> dict[str, NftTable | LegacyTable]:
    """Return the tables that the program ``iptables-restore`` changes, or that of a variant, by name."""
    if variant == "legacy" or (not variant and _is_legacy(version)):
        return {name: LegacyTable(version, name) for name in names}
    return {name: NftTable(_KEYWORDS[version], name) for name in names}


def _is_legacy(version: int) -> bool:
    found = program.find(_restoring(version))
    return found is not None and "legacy" in os.path.basename(os.path.realpath(found))


def match_address(version: int, option: str, network: str, *, equal: bool = True) -> Match:
    """Make the condition of ``-s`` or ``-d``.

    Args:
        version: 4 or 6.
        option: ``-s`` or ``-d``.
        network: The network, or one address, as the rule has it.
        equal: If false, the condition is negated (``!``).

    Raises:
        ValueError: The text is no network.
    """
    parsed = ip_network(network)
    value, mask = parsed.network_address.packed, parsed.netmask.packed
    return match("network", _OFFSETS[version, option], value, mask, equal=equal)


class LegacyTable:
    """A table of the legacy variant, with the methods of :class:`.nft.NftTable`.

    A program lists it once, and again after a change.

    Args:
        version: 4 or 6.
        name: Its name.
    """

    def __init__(self, version: int, name: str) -> None:
        self.version = version
        self.name = name
        self._listed: list[str] | None = None

    version: int
    name: str

    def __str__(self) -> str:
        return f"{self._program} table {self.name}"

    @property
    def _program(self) -> str:
        plain, _ = _PROGRAMS[self.version]
        return f"{plain}-legacy" if program.find(f"{plain}-legacy") is not None else plain

    def exists(self) -> bool:
        """Return True if the kernel has the table, and the host the program."""
        try:
            with open(_PROGRAMS[self.version][1]) as file:
                return f"{self.name}\n" in file and program.find(self._program) is not None
        except OSError:
            return False

    def find_chains(self, *names: str) -> set[str]:
        """Find those of these chains that exist."""
        return {name for name in names if self.has_chain(name)}

    def has_chain(self, chain: str) -> bool:
        """Return True if the chain exists."""
        if not self.exists():  # to list it would make it
            return False
        return f"-N {chain}" in self._list() or self.find_policy(chain) is not None

    def find_policy(self, chain: str) -> str | None:
        """Return what becomes of a packet at the end of a built-in chain, ``accept`` or ``drop``; None for another."""
        start = f"-P {chain} "
        return next((_VERDICTS[line[len(start) :]] for line in self._list() if line.startswith(start)), None)

    def list_chains(self, prefix: str) -> list[str]:
        """Return the names of all chains, but for built-in ones, with this prefix."""
        return [line[3:] for line in self._list() if line.startswith(f"-N {prefix}")]

    def list_rules(self, chain: str, *words: str) -> list[Rule]:
        """Return the rules of a chain, in order; only those that contain one of the words."""
        start = f"-A {chain} "
        return [
            self._rule(chain, line[len(start) :])
            for line in self._list()
            if line.startswith(start) and (not words or any(word in line for word in words))
        ]

    def find_rule(self, chain: str, wanted: Callable[[Rule], bool], *words: str) -> Rule | None:
        """Return the first rule of a chain that is wanted; None if there is none."""
        return next(filter(wanted, self.list_rules(chain, *words)), None)

    def delete(self, rules: Iterable[Rule], chains: Collection[str] = (), generation: int = 0) -> bool:
        """Delete rules, and chains with all rules that are in them, in one transaction.

        The generation means nothing here: a rule is deleted by what it says, not by its handle.

        Args:
            rules: The rules.
            chains: The chains.
            generation: Of no meaning here: a rule is deleted by what it says, not by its handle.

        Returns:
            False if the kernel refused since a rule or chain was gone already: look again.

        Raises:
            IOFailureError: (5) The kernel refused.
        """
        return self.exchange(rules, chains, KeptRules((), ()))

    def keep(self, rules: Iterable[Rule], chains: Iterable[str] = ()) -> KeptRules:
        """Read rules, and chains with all rules that are in them, so that they can be made again."""
        names = tuple(chains)
        found = [each for name in names for each in self.list_rules(name)]
        found += [each for each in rules if each.chain not in names]
        lines = tuple(f"-A {each.chain} {each.spec}".encode(errors="surrogateescape") for each in found)
        return KeptRules(names, lines)

    def exchange(self, rules: Iterable[Rule], chains: Collection[str], kept: KeptRules, generation: int = 0) -> bool:
        """Delete as :meth:`delete` does, and make others again, in one transaction. The generation means nothing here.

        Returns:
            False if the program refused since a rule or chain to delete was gone already: look again.

        Raises:
            IOFailureError: (5) The program refused.
        """
        going = [rule for rule in rules if rule.chain not in chains]
        lines = [f"-D {rule.chain} {rule.spec}" for rule in going]
        lines += [f"{command} {chain}" for command in ("-F", "-X") for chain in chains]
        lines += [f"-N {chain}" for chain in kept.chains]
        lines += [each.decode(errors="surrogateescape") for each in kept.rules]
        self._listed = None
        try:
            _restore(self._program, self.name, lines)
        except IOFailureError:
            there = self._list()
            if {f"-A {rule.chain} {rule.spec}" for rule in going} | {f"-N {chain}" for chain in chains} <= set(there):
                raise
            return False
        return True

    def _list(self) -> list[str]:
        if self._listed is None:
            self._listed = _split_lines(program.run([self._program, "-w", _WAIT, "-t", self.name, "-S"]))
        return self._listed

    def _rule(self, chain: str, spec: str) -> Rule:
        words = _split_words(spec)
        matches: list[Match] = []
        comment = verdict = ""
        equal = True
        while words:
            word = words.pop(0)
            if word == "!":
                equal = False
                continue
            if word in ("-s", "-d"):
                matches.append(self._match_address(word, words.pop(0), equal=equal))
            elif word in INTERFACES:
                matches.append(match(INTERFACES[word], 0, f"{words.pop(0)}\0".encode(), equal=equal))
            elif word == "-p":
                matches.append(_match_protocol(words.pop(0), equal=equal))
            elif word in ("-j", "-g"):
                target, options = words[0], words[1:]
                words = []
                if target in _NAMED_BY_OPTION and options[:1] == [_NAMED_BY_OPTION[target]] and len(options) == 2:
                    verdict = f"{target} {options[1]}"
                else:
                    verdict = _VERDICTS.get(target) or f"{'jump' if word == '-j' else 'goto'} {target}"
                    matches += [Match(option, 0, True, b"", b"") for option in options]
            elif word == "-m":
                name = words.pop(0)
                if name == "comment":
                    _, comment = words.pop(0), words.pop(0)
                else:
                    matches += _matches_of(name, _take_options(words))
            else:
                matches.append(Match(word, 0, equal, b"", b""))
            equal = True
        return Rule(chain, 0, comment, tuple(matches), verdict, spec)

    def _match_address(self, option: str, network: str, *, equal: bool) -> Match:
        try:
            return match_address(self.version, option, network, equal=equal)
        except ValueError:  # a mask with holes, which is in no rule of ours
            return Match(f"{option} {network}", 0, equal, b"", b"")


# Targets whose option belongs to the verdict, as :func:`.xt.read_target` has it.
_NAMED_BY_OPTION = {"DNAT": "--to-destination", "MARK": "--set-xmark", "CONNMARK": "--set-xmark"}
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_OUTER = ("-s", "-d", "-p", "-m", "-j", "-g", *INTERFACES)
# Options of matches whose value is any text, such as one that looks like an option.
_WITH_TEXT = ("--string", "--hex-string", "--name", "--hashlimit-name", "--helper", "--path")
_QUOTED = r'"((?:\\.|[^"\\])*)"'
PORTS = "multiport"
"""Condition on several destination ports in :class:`.nft.Match`, of two bytes each."""


def _match_protocol(name: str, *, equal: bool) -> Match:
    number = _PROTOCOLS.get(name)
    return Match(f"-p {name}", 0, equal, b"", b"") if number is None else match_protocol(number, equal=equal)


def _take_options(words: list[str]) -> list[str]:
    """Take the options of a match from the words of a rule."""
    taken: list[str] = []
    while words and ((taken and taken[-1] in _WITH_TEXT) or not _is_outer(words)):
        taken.append(words.pop(0))
    return taken


def _is_outer(words: list[str]) -> bool:
    return words[0] in _OUTER or (words[0] == "!" and words[1:2] != [] and words[1] in _OUTER)


def _split_lines(listed: str) -> list[str]:
    """Split what ``iptables -S`` prints: a comment may have newlines."""
    import re  # loaded for the legacy variant alone

    found = re.finditer(rf"(?: {_QUOTED}|[^\n])+", listed, re.DOTALL)
    return [each[0] for each in found]


def _split_words(spec: str) -> list[str]:
    """Split a rule as ``iptables -S`` quotes it: words with anything but letters, digits and dashes, but no names."""
    import re

    found = re.finditer(rf"{_QUOTED}(?!\S)|\S+", spec, re.DOTALL)
    return [each[0] if each[1] is None else re.sub(r"\\(.)", r"\1", each[1], flags=re.DOTALL) for each in found]


def _matches_of(name: str, options: list[str]) -> list[Match]:
    """Return the conditions of a match with options."""
    if name in _PROTOCOLS and not options:
        return []  # the program loads it for -p
    one = name in _PROTOCOLS and options[:1] == ["--dport"]
    several = name == "multiport" and options[:1] == ["--dports"]
    if (one or several) and len(options) == 2 and all(each.isdecimal() for each in options[1].split(",")):
        ports = b"".join(int(each).to_bytes(2, "big") for each in options[1].split(","))
        return [match("transport", 2, ports) if one else Match(PORTS, 0, True, ports, b"")]
    return [Match(f"-m {name} {' '.join(options)}", 0, True, b"", b"")]


def _restore(variant: str, table: str, lines: Iterable[str]) -> None:
    body = "".join(f"{line}\n" for line in lines)
    if body:
        program.run([f"{variant}-restore", "--noflush", "-w", _WAIT], f"*{table}\n{body}COMMIT\n")
