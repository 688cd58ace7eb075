"""Terms of a judgement: kinds of plugins, levels of the specification, its sentences, and what a case may find."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple


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
