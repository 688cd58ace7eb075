"""Terms of a judgement: kinds of plugins, levels of the specification, its sentences, and what a case may find."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .._light import TextEnum


class Kind(TextEnum):
    """Kind of a plugin. It decides which cases apply."""

    INTERFACE = "interface"
    CHAINED = "chained"
    IPAM = "ipam"


class Level(TextEnum):
    """How strictly the specification asks for something. Where it is silent, the suite has an opinion of its own."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    OPINION = "opinion"


class Sentence(NamedTuple):
    """Words of the specification.

    Attributes:
        section: Where they stand; the version, if a later one has left them out.
        words: The words, ``[...]`` for what is left out.
        note: The suite's own note.
    """

    section: str
    words: str
    note: str = ""

    def with_note(self, note: str) -> Sentence:
        """Return the sentence with a note of the suite's own."""
        return self._replace(note=note)


class Broken(AssertionError):
    """Verdict: the plugin does not do what the case asks for.

    Attributes:
        expected: The right behaviour.
        seen: The behaviour that the case saw.
        left: Lines of the footprint that were left behind, generalized; empty for faults of another kind.
    """

    def __init__(self, expected: str, seen: str, left: Iterable[str] = ()) -> None:
        super().__init__(f"expected {expected}, saw {seen}")
        self.expected = expected
        self.seen = seen
        self.left = frozenset(left)


class NotApplicable(Exception):
    """Verdict: the case asks for something that this plugin does not have, or that this machine cannot do."""


class Unprepared(NotApplicable):
    """Verdict: a request failed that the case needs, but that its sentence is not about."""


def listed(items: Iterable[str]) -> str:
    """Return the first six of some items in their order, and how many more there are, for a message."""
    ordered = sorted(items)
    return "; ".join(ordered[:6]) + (f"; and {len(ordered) - 6} more" if len(ordered) > 6 else "")
