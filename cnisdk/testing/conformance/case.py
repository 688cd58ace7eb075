"""What a case is: a sentence of the specification, and a function that holds a plugin to it."""

from __future__ import annotations

from collections.abc import Callable
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


class Broken(AssertionError):
    """The plugin does not do what the case asks for."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}, saw {seen}")
        self.expected = expected
        self.seen = seen


class NotApplicable(Exception):
    """The case asks for something this plugin does not have, or this machine cannot do."""


class Case(NamedTuple):
    """One case.

    Attributes:
        id: Its name, for ``--only``.
        level: How much the specification insists.
        section: Where in the specification.
        says: What it says there, or what we hold.
        means: What a failure means for an operator.
        kinds: The kinds of plugins it applies to.
        check: Returns when the plugin passes; raises :class:`Broken` or :class:`NotApplicable` otherwise.
    """

    id: str
    level: Level
    section: str
    says: str
    means: str
    kinds: frozenset[Kind]
    check: Check


class Chapter:
    """Collects the cases of one module, in their order."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def case(
        self, level: Level, section: str, says: str, *, means: str, kinds: frozenset[Kind] = EVERY
    ) -> Callable[[Check], Check]:
        """Make a case of a function; its name is the case's."""

        def collect(check: Check) -> Check:
            self.cases.append(Case(check.__name__.replace("_", "-"), level, section, says, means, kinds, check))
            return check

        return collect
