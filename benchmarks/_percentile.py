"""Percentiles of measured times."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the values that at least this share of them do not exceed (nearest rank).

    Args:
        values: In any order, at least one.
        share: More than 0, at most 1.
    """
    return sorted(values)[math.ceil(share * len(values)) - 1]
