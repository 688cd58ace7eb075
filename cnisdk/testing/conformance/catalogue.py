"""Every case, in the order of the specification."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from . import chained, delegation, ipam, lifecycle, protocol, robustness
from .case import Case, Kind

CASES: tuple[Case, ...] = tuple(
    case for chapter in (protocol, lifecycle, delegation, chained, ipam, robustness) for case in chapter.chapter.cases
)
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
