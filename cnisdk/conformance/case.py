"""What a case is: a sentence of the specification, and a function that holds a plugin to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .judgement import EVERY, Kind, Level, Sentence

if TYPE_CHECKING:
    from .bench import Bench

Check = Callable[["Bench"], None]


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
        check: Returns when the plugin passes; raises
            :class:`~.judgement.Broken` or :class:`~.judgement.NotApplicable` otherwise.
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
