"""Cases: each holds a plugin to a sentence of the specification.

A case runs on a fresh host of its own. Cases that judge the same requests share one: they have the same ``shares``, and
get the responses through :meth:`~.case_run.CaseRun.once`, so that the requests are sent once. They run in the order of
the catalogue, and only the last one may change what the others look at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ._terms import EVERY
from .judgement import Kind, Level, Sentence

if TYPE_CHECKING:
    from .case_run import CaseRun

Check = Callable[["CaseRun"], None]
"""Function of a case. It raises a verdict, or returns if the plugin passes."""


class Case(NamedTuple):
    """One case.

    Attributes:
        id: Its name, for ``--only``.
        level: How much the specification insists.
        section: Where in the specification.
        says: What it says there, word for word, except that ``[...]`` stands for what is left out; for an opinion
            possibly what we hold.
        note: The suite's own note.
        means: What a failure means for an operator.
        kinds: The kinds of plugins it applies to.
        shares: The host it shares with the other cases of this word; empty for a host of its own.
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
    shares: str
    check: Check

    @property
    def sentence(self) -> str:
        """Words of the specification with the suite's note."""
        return f"{self.says} ({self.note})" if self.note else self.says


class Chapter:
    """Collector of the cases of one module, in their order.

    Args:
        kinds: The kinds of plugins that a case applies to, unless it says otherwise.
    """

    def __init__(self, kinds: frozenset[Kind] = EVERY) -> None:
        self.cases: list[Case] = []
        self._kinds = kinds

    def case(self, level: Level, sentence: Sentence, **options: Any) -> Callable[[Check], Check]:
        """Make a case of a function; its name is the case's. The options are those of :meth:`add`."""

        def collect(check: Check) -> Check:
            self.add(check.__name__.replace("_", "-"), level, sentence, check, **options)
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
        kinds: frozenset[Kind] | None = None,
        shares: str = "",
    ) -> None:
        """Add a case: a row of a table, whose check is a function that other rows share.

        Args:
            id: Its name.
            level: Its level.
            sentence: The sentence of the specification.
            check: As :class:`Case` has it.
            means: What a failure means for an operator.
            note: The suite's own note.
            kinds: The kinds of plugins it applies to; None means the chapter's.
            shares: As :class:`Case` has it.
        """
        kinds = self._kinds if kinds is None else kinds
        self.cases.append(Case(id, level, sentence.section, sentence.words, note, means, kinds, shares, check))
