"""Keys of a configuration that look like a known one misspelt. Never an error: other readers may know them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from .._light import Any
from .fields import get_fields

_SHORTEST = 4  # of shorter keys, too many are alike


def find_misspelt(unknown: Iterable[str], cls: Any) -> Iterator[tuple[str, str]]:
    """Find unknown keys that are close to a key of a configuration class.

    Args:
        unknown: The keys that no field stands for.
        cls: The class.

    Yields:
        The unknown key, and the known key that may be meant.
    """
    for key in unknown:
        near = [
            each
            for each in _known_keys(cls)
            if abs(len(each) - len(key)) <= 2 and min(len(each), len(key)) >= _SHORTEST and each[:1] == key[:1]
        ]
        if near:  # difflib takes milliseconds to import
            from difflib import get_close_matches

            for meant in get_close_matches(key, near, n=1, cutoff=0.75):
                yield key, meant


@cache
def _known_keys(cls: Any) -> tuple[str, ...]:
    return tuple(each.key for each in get_fields(cls, typed=False) if each.name != "extra")
