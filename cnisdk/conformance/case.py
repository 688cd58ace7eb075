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

    A case is a function below :meth:`must`, :meth:`should` or :meth:`opinion`; the function's name is the case's.

    Attributes:
        cases: The cases so far.

    Args:
        kinds: The kinds of plugins that a case applies to, unless it says otherwise.
        cases: The list to add to; None means a new one.
    """

    def __init__(self, kinds: frozenset[Kind] = EVERY, cases: list[Case] | None = None) -> None:
        self.cases: list[Case] = [] if cases is None else cases
        self._kinds = kinds

    def of(self, kinds: frozenset[Kind]) -> Chapter:
        """Return a collector for the same chapter, of cases for other kinds of plugins."""
        return Chapter(kinds, self.cases)

    def must(self, sentence: Sentence, **options: Any) -> Callable[[Check], Check]:
        """Make a case of a *must*. The options are those of :meth:`add`."""
        return self._collect(Level.MUST, sentence, options)

    def should(self, sentence: Sentence, **options: Any) -> Callable[[Check], Check]:
        """Make a case of a *should*. The options are those of :meth:`add`."""
        return self._collect(Level.SHOULD, sentence, options)

    def opinion(self, sentence: Sentence, **options: Any) -> Callable[[Check], Check]:
        """Make a case of the suite's own opinion. The options are those of :meth:`add`."""
        return self._collect(Level.OPINION, sentence, options)

    def _collect(self, level: Level, sentence: Sentence, options: dict[str, Any]) -> Callable[[Check], Check]:
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
            kinds: The kinds of plugins it applies to; None means the chapter's.
            shares: As :class:`Case` has it.
        """
        kinds = self._kinds if kinds is None else kinds
        section, says, note = sentence
        self.cases.append(Case(id, level, section, says, note, means, kinds, shares, check))
