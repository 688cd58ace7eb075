"""Keys of a configuration that look like a known one misspelt. Never an error: other readers may know them."""

from __future__ import annotations

from collections.abc import Iterator

from ._mismatch import Path, show_path
from .fields import get_fields, is_attrs_class

_ALIKE = 0.75  # difflib's ratio: twice the characters in common, by those of both


def find_misspelt(value: object, path: Path = ()) -> Iterator[tuple[str, str]]:
    """Find unknown keys that are close to a key of the object they stand in.

    Args:
        value: A configuration, or a part of one.
        path: Its place.

    Yields:
        The place of the unknown key, and the known key that may be meant.
    """
    if isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from find_misspelt(part, (*path, index))
    elif is_attrs_class(type(value)):
        fields = [each for each in get_fields(type(value), typed=False) if each.name != "extra"]
        for key in getattr(value, "extra", ()):
            if meant := _find_alike(key, [each.key for each in fields]):
                yield show_path((*path, key)), meant
        for each in fields:
            yield from find_misspelt(getattr(value, each.name), (*path, each.key))


def _find_alike(key: str, known: list[str]) -> str | None:
    """Find the known key that is most like another one."""
    folded = {each.lower(): each for each in known if _may_be_alike(key.lower(), each.lower())}
    if not folded:
        return None
    from difflib import get_close_matches  # takes milliseconds to import

    return next((folded[each] for each in get_close_matches(key.lower(), folded, n=1, cutoff=_ALIKE)), None)


def _may_be_alike(one: str, other: str) -> bool:
    """Return whether two texts begin with the same character, and have enough in common, in whatever order."""
    common = sum(min(one.count(each), other.count(each)) for each in set(one))
    return one[:1] == other[:1] and 2 * common >= _ALIKE * (len(one) + len(other))
