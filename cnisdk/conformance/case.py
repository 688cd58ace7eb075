"""What a case is: a sentence of the specification, and a function that holds a plugin to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .bench import Bench

Check = Callable[["Bench"], None]


class Kind(str, Enum):
    """What a plugin does, and so which cases apply to it."""

    INTERFACE = "interface"
    CHAINED = "chained"
    IPAM = "ipam"

    def __str__(self) -> str:
        return self.value


class Level(str, Enum):
    """How much the specification insists. An opinion is ours: the specification is silent, operators are not."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    OPINION = "opinion"

    def __str__(self) -> str:
        return self.value


EVERY = frozenset(Kind)
INTERFACE = frozenset({Kind.INTERFACE})
IPAM = frozenset({Kind.IPAM})
CHAINED = frozenset({Kind.CHAINED})
ATTACHING = INTERFACE | CHAINED


class Sentence(NamedTuple):
    """Words of the specification.

    Attributes:
        section: Where they stand; the version, if a later one has left them out.
        words: The words, ``[...]`` for what is left out.
    """

    section: str
    words: str


class Broken(AssertionError):
    """The plugin does not do what the case asks for.

    Attributes:
        expected: What was expected.
        seen: What was seen.
        left: What was left behind, where that is what is wrong.
    """

    def __init__(self, expected: str, seen: str, left: Iterable[str] = ()) -> None:
        super().__init__(f"expected {expected}, saw {seen}")
        self.expected = expected
        self.seen = seen
        self.left = frozenset(left)


class NotApplicable(Exception):
    """The case asks for something this plugin does not have, or this machine cannot do."""


class Unprepared(NotApplicable):
    """Something failed that the case needs, but is not about: its sentence says nothing of that."""


class Case(NamedTuple):
    """One case.

    Attributes:
        id: Its name, for ``--only``.
        level: How much the specification insists.
        section: Where in the specification.
        says: What it says there, word for word, except that ``[...]`` stands for what is left out; for an opinion
            possibly what we hold.
        note: What we have to say about it.
        means: What a failure means for an operator.
        kinds: The kinds of plugins it applies to.
        check: Returns when the plugin passes; raises :class:`Broken` or :class:`NotApplicable` otherwise.
    """

    id: str
    level: Level
    section: str
    says: str
    note: str
    means: str
    kinds: frozenset[Kind]
    check: Check

    @property
    def sentence(self) -> str:
        """What is held against a plugin, in one text."""
        return f"{self.says} ({self.note})" if self.note else self.says


class Chapter:
    """Collects the cases of one module, in their order."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def case(
        self, level: Level, sentence: Sentence, *, means: str, note: str = "", kinds: frozenset[Kind] = EVERY
    ) -> Callable[[Check], Check]:
        """Make a case of a function; its name is the case's."""

        def collect(check: Check) -> Check:
            self.add(check.__name__.replace("_", "-"), level, sentence, check, means=means, note=note, kinds=kinds)
            return check

        return collect

    def add(
        self,
        id: str,
        level: Level,
        sentence: Sentence,
        check: Check,
        *,
        means: str,
        note: str = "",
        kinds: frozenset[Kind] = EVERY,
    ) -> None:
        """Add a case: a row of a table, whose check is a function that other rows share."""
        self.cases.append(Case(id, level, sentence.section, sentence.words, note, means, kinds, check))
