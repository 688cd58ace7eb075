"""Cases: each tests a plugin against one sentence of the specification.

A case runs on a fresh host of its own. Cases that judge the same requests have the same ``shares``, and run on one host
in the order of the catalogue. They get the responses through :meth:`~.case_run.CaseRun.once`, so each request is sent
once. Only the last of these cases may change the state that the others inspect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ._terms import EVERY
from .judgement import Kind, Level, Sentence

if TYPE_CHECKING:
    from .case_run import CaseRun

Check = Callable[["CaseRun"], None]
"""Function of a case. It returns if the plugin passes, and raises :class:`~.judgement.Broken` or
:class:`~.judgement.NotApplicable` otherwise."""


class Case(NamedTuple):
    """One case.

    Attributes:
        id: Name of the case, as ``--only`` takes it.
        level: Level of the requirement.
        section: Section of the specification that contains the sentence.
        says: The sentence, word for word; ``[...]`` marks an omission.
        note: The suite's own note to the sentence; empty for none.
        means: Consequence of a failure for an operator.
        kinds: The kinds of plugins it applies to.
        shares: Name of the host that it shares with other cases; empty for a host of its own.
        check: Function that tests the plugin.
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
        """The sentence, and the suite's note in parentheses."""
        return f"{self.says} ({self.note})" if self.note else self.says


class Chapter:
    """Collector of the cases of one module, in their order.

    A case is a function decorated with :meth:`must`, :meth:`should` or :meth:`opinion`. The name of the function, with
    hyphens for underscores, is the name of the case.

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
        """Add a case. Tables call it, whose rows share one function.

        Args:
            id: Name of the case.
            level: Level of the requirement.
            sentence: The sentence of the specification.
            check: Function that tests the plugin.
            means: Consequence of a failure for an operator.
            kinds: The kinds of plugins it applies to; None means the chapter's.
            shares: Name of the host that it shares with other cases; empty for a host of its own.
        """
        kinds = self._kinds if kinds is None else kinds
        section, says, note = sentence
        self.cases.append(Case(id, level, section, says, note, means, kinds, shares, check))
