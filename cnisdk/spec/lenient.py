"""Configurations that became invalid: DEL must work nevertheless, with defaults in place of what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, TypeVar, cast

import attrs
from cattrs import BaseConverter

from ..errors import CNIError, InvalidConfigError
from .codec import complain, find_key, get_converter, get_hook, missing_key
from .fields import get_attributes, key_of
from .mismatch import MISSING, Mismatch, Path
from .unchecked import make_unchecked

T = TypeVar("T")


def structure_leniently(
    value: object,
    cls: type[T],
    *,
    what: str = "network configuration",
    path: str = "$",
    converter: BaseConverter | None = None,
) -> tuple[T, list[CNIError]]:
    """Make a typed object, leaving out what is wrong.

    Returns:
        The object, with the default in each place that was wrong, and what :func:`.codec.structure` would have raised
        for each. A required key that is missing or wrong has its type's empty value: ``""``, ``0``, ``False``, ``()``,
        the first of an Enum or Literal, or None.

    Raises:
        InvalidConfigError: (7) The value is not of the kind at all: no object, for a class.
    """
    used = converter or get_converter()
    hook = get_hook(cls, used)
    problems: list[CNIError] = []
    cleaned = False
    while True:
        try:
            return cast("T", hook(value, cls)), problems
        except Mismatch as exc:
            if not cleaned:
                cleaned = True
                found: list[Mismatch] = []
                value = _clean(value, (), (), lambda part: hook(part, cls), found)
                problems.extend(complain(each, what, path, InvalidConfigError) for each in found)
                continue
            problem = complain(exc, what, path, InvalidConfigError)
            wrong = exc.path[:-1] if exc.value is MISSING else exc.path  # what lacks a part goes as a whole
            if wrong:
                problems.append(problem)
                value = _replace(value, wrong, MISSING)
            elif attrs.has(cls) and isinstance(value, Mapping):
                problems.append(problem)
                return cast("T", _without_checks(value, cls, used, what, path, problems)), problems
            else:
                raise problem from exc


def _clean(part: Any, path: Path, alone: Path, read: Callable[[Any], object], problems: list[Mismatch]) -> Any:
    """Leave out of a part what is wrong in it.

    The entries of a list are read one by one, each in a document that has nothing but the keys which lead to it. So n
    wrong ones do not have the whole document read n times.

    Args:
        part: The part.
        path: Where it stands.
        alone: Where it stands in a document of its own: in lists, first.
        read: Reads a document.
        problems: Gets what was wrong.

    Returns:
        The part; ``MISSING`` when nothing of it can be kept.
    """
    lists: set[Path] = set()
    while True:
        document = part
        for step in reversed(alone):
            document = [document] if isinstance(step, int) else {step: document}
        try:
            read(document)
            return part
        except Mismatch as exc:
            if exc.path[: len(alone)] != alone:
                return part  # what leads to it lacks something in this document
            inside = exc.path[len(alone) :]
            wrong = inside[:-1] if exc.value is MISSING else inside  # what lacks a part goes as a whole
            place = tuple(takewhile(lambda step: not isinstance(step, int), wrong))
            if not wrong and not path:
                return part  # the document as a whole is the caller's
            if not wrong or place == wrong or place in lists:
                exc.path = (*path, *inside)
                problems.append(exc)
                if not wrong:
                    return MISSING
                part = _replace(part, wrong, MISSING)
                continue
        lists.add(place)
        entries = part
        for step in place:
            entries = entries[step]
        kept = (
            _clean(entry, (*path, *place, index), (*alone, *place, 0), read, problems)
            for index, entry in enumerate(entries)
        )
        part = _replace(part, place, [entry for entry in kept if entry is not MISSING])


def _replace(value: Any, path: Path, new: Any) -> Any:
    """A copy of the value that has something else where the path leads to; with ``MISSING``, that lacks it."""
    if not path:
        return new
    step, rest = path[0], path[1:]
    items = enumerate(value) if isinstance(step, int) else value.items()
    parts = {key: _replace(part, rest, new) if key == step else part for key, part in items}
    if parts[step] is MISSING:
        del parts[step]
    return list(parts.values()) if isinstance(step, int) else parts


def _without_checks(
    document: Mapping[str, Any],
    cls: Any,
    converter: BaseConverter,
    what: str,
    path: str,
    problems: list[CNIError],
) -> Any:
    """Make an object whose class would refuse to be made of this document."""
    arguments: dict[str, Any] = {}
    known = set()
    for attribute in get_attributes(cls):
        key = key_of(attribute)
        known.add(key.lower())
        part = find_key(document, key)
        if attribute.name == "extra":
            continue
        if part is None:
            if attribute.default is attrs.NOTHING:
                missing = complain(missing_key(attribute), what, path, InvalidConfigError)
                if all(each.msg != missing.msg for each in problems):
                    problems.append(missing)
            continue
        try:
            kind: Any = Any if attribute.type is None else attribute.type
            arguments[str(attribute.alias)], found = structure_leniently(
                part, kind, what=what, path=f"{path}.{key}", converter=converter
            )
            problems.extend(found)
        except InvalidConfigError as exc:
            problems.append(exc)
    if "extra" in attrs.fields_dict(cls):
        arguments["extra"] = {key: part for key, part in document.items() if key.lower() not in known}
    return make_unchecked(cls, arguments)
