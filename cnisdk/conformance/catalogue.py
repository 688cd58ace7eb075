"""Every case, in the order of the specification."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from . import (
    _chained,
    _checking,
    _codes,
    _delegation,
    _disk,
    _documents,
    _gc_status,
    _ipam,
    _leftovers,
    _lifecycle,
    _refusals,
    _robustness,
    _versions,
)
from .case import Case
from .judgement import Kind

_CHAPTERS = (
    _versions,
    _documents,
    _refusals,
    _codes,
    _lifecycle,
    _checking,
    _delegation,
    _gc_status,
    _chained,
    _ipam,
    _robustness,
    _disk,
    _leftovers,
)

CASES: tuple[Case, ...] = tuple(case for module in _CHAPTERS for case in module.chapter.cases)
"""All cases, in the order of the specification."""


def select(kind: Kind | None = None, only: Iterable[str] = ()) -> list[Case]:
    """Return the cases that apply to a kind of plugin, in the order of the catalogue.

    Args:
        kind: Kind of plugin; None means all kinds.
        only: Shell patterns (``*`` and ``?``), one of which the name of a case must match; none means all cases.
    """
    patterns = list(only)
    return [
        case
        for case in CASES
        if (kind is None or kind in case.kinds)
        and (not patterns or any(fnmatchcase(case.id, pattern) for pattern in patterns))
    ]


def place_of(case: Case) -> int:
    """Return the index of a case in the catalogue, as a sort key. A case that is not in it comes last."""
    return _PLACES.get(case.id, len(_PLACES))


_PLACES = {case.id: place for place, case in enumerate(CASES)}
