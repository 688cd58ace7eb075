"""Terms of a judgement: kinds of plugins, levels of requirements, sentences of the specification, and verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .._light import TextEnum


class Kind(TextEnum):
    """Kind of a plugin. It decides which cases apply.

    Attributes:
        INTERFACE: It makes the interface ``CNI_IFNAME``, and may delegate to an IPAM plugin.
        CHAINED: It adjusts an interface that an earlier plugin of the list made, and needs ``prevResult``.
        IPAM: It leases addresses, and is called by another plugin.
    """

    INTERFACE = "interface"
    CHAINED = "chained"
    IPAM = "ipam"


class Level(TextEnum):
    """Level of a requirement: the word in the specification. Where it is silent, the suite has an opinion."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    OPINION = "opinion"


class Sentence(NamedTuple):
    """Words of the specification.

    Attributes:
        section: Section that contains them; with the version, if later versions do not have them.
        words: The words; ``[...]`` marks an omission.
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
    """Return a list for a message: the first six items in sorted order, and the number of the others."""
    ordered = sorted(items)
    return "; ".join(ordered[:6]) + (f"; and {len(ordered) - 6} more" if len(ordered) > 6 else "")
