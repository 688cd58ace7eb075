"""Every case, in the order of the specification."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from . import chained, checking, codes, delegation, disk, ipam, leftovers, lifecycle, protocol, robustness, upkeep
from .case import Case
from .judgement import Kind

_CHAPTERS = (protocol, codes, lifecycle, checking, delegation, upkeep, chained, ipam, robustness, disk, leftovers)

CASES: tuple[Case, ...] = tuple(case for module in _CHAPTERS for case in module.chapter.cases)
"""The catalogue."""


def select(kind: Kind | None = None, only: Iterable[str] = ()) -> list[Case]:
    """The cases that apply to a kind of plugin, and whose names match one of the patterns (``*`` and ``?``), if any."""
    patterns = list(only)
    return [
        case
        for case in CASES
        if (kind is None or kind in case.kinds)
        and (not patterns or any(fnmatchcase(case.id, pattern) for pattern in patterns))
    ]


def place_of(case: Case) -> int:
    """The place of a case in the catalogue, to sort by."""
    return _PLACES.get(case.id, len(_PLACES))


_PLACES = {case.id: place for place, case in enumerate(CASES)}
