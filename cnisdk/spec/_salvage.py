"""The reader of documents with wrong values: it keeps what is right in them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from . import _annotations, codec
from ._annotations import inner_of, is_fixed_tuple, json_kinds_of
from ._mismatch import MISSING, Mismatch, Path, UnsupportedAnnotationError, own_words, structure_whole
from ._unchecked import empty_value, find_blamed, find_refused, make_unchecked
from .codec import get_hook, missing_key, refused_value, skips_null
from .fields import JSONField, get_fields, is_attrs_class

if TYPE_CHECKING:
    from .codec import Converter

_OWN_MODULES = (codec.__name__, _annotations.__name__)


class Reader:
    """Reads a document part by part, each once, whatever is wrong in it.

    Attributes:
        problems: The errors found, with their places in the document.
    """

    def __init__(self, converter: Converter) -> None:
        self.converter = converter
        self.problems: list[Mismatch] = []

    def read(self, value: Any, kind: Any, path: Path) -> Any:
        """Read a value, and keep what is right in it.

        Args:
            value: The JSON value.
            kind: The annotation.
            path: Its place in the document.

        Raises:
            Mismatch: Nothing of it can be kept. The path is relative to the value.
        """
        hook = get_hook(kind, self.converter)
        shape = "an object" if isinstance(value, Mapping) else "an array" if isinstance(value, list | tuple) else ""
        # What a hook of the plugin's author reads, it reads as a whole.
        if shape and getattr(hook, "__module__", None) in _OWN_MODULES:
            member = _member(kind, shape)
            if member is not None:
                return self.read(value, member, path)
            if shape in json_kinds_of(kind):
                if is_attrs_class(kind):
                    return self._read_object(value, kind, path)
                if shape == "an object":
                    return self._read_mapping(value, kind, path)
                if not is_fixed_tuple(kind):
                    # An empty array tells which collection the annotation means.
                    return type(hook([], kind))(self._read_entries(value, kind, path))
                if len(value) == len(_items(kind)):
                    return self._read_fixed_tuple(value, kind, path)
        return structure_whole(hook, value, kind)

    def _read_part(self, value: Any, kind: Any, path: Path) -> Any:
        """Read a part of a value; ``MISSING``, with a problem noted, when nothing of it can be kept."""
        try:
            return self.read(value, kind, path)
        except UnsupportedAnnotationError:
            raise
        except Mismatch as exc:
            exc.path = (*path, *exc.path)
            self.problems.append(exc)
        except Exception as exc:  # such as a dictionary in a set, or nested too deeply
            self.problems.append(Mismatch(value, path=path, problem=own_words(exc)))
        return MISSING

    def _read_entries(self, value: Any, kind: Any, path: Path) -> list[Any]:
        item = (*get_args(kind), Any)[0]
        entries = [self._read_part(part, item, (*path, index)) for index, part in enumerate(value)]
        return [entry for entry in entries if entry is not MISSING]

    def _read_fixed_tuple(self, value: Any, kind: Any, path: Path) -> tuple[Any, ...]:
        items = _items(kind)
        entries = [self._read_part(part, items[index], (*path, index)) for index, part in enumerate(value)]
        return tuple(
            empty_value(item) if entry is MISSING else entry for entry, item in zip(entries, items, strict=True)
        )

    def _read_mapping(self, value: Mapping[str, Any], kind: Any, path: Path) -> dict[str, Any]:
        item = (*get_args(kind), Any, Any)[1]
        skips = skips_null(kind)
        entries = {
            key: self._read_part(part, item, (*path, key))
            for key, part in value.items()
            if part is not None or not skips
        }
        return {key: entry for key, entry in entries.items() if entry is not MISSING}

    def _read_object(self, document: Mapping[str, Any], cls: Any, path: Path) -> Any:
        fields = _fields(cls)
        by_folded = {key.lower(): key for key in fields}
        arguments: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        present = set()
        for given, part in document.items():
            key = given if given in fields else by_folded.get(given.lower())
            if key is None:
                extra[given] = part
            elif part is not None and (given == key or document.get(key) is None):
                present.add(key)
                read = self._read_part(part, fields[key].type, (*path, given))
                if read is not MISSING:
                    arguments[fields[key].argument] = read
        for key, each in fields.items():
            if each.required and key not in present:
                self._note(missing_key(each), path)
        if extra and any(each.name == "extra" for each in get_fields(cls)):
            arguments["extra"] = extra
        return self._make_object(document, cls, arguments, path)

    def _make_object(self, document: Mapping[str, Any], cls: Any, arguments: dict[str, Any], path: Path) -> Any:
        """Make an object without the values that its validators and converters refuse."""
        aliases = {key: each.argument for key, each in _fields(cls).items()}
        required = {aliases[key] for key, each in _fields(cls).items() if each.required}
        while True:
            key: str | None
            error: Exception
            if required <= arguments.keys():
                try:
                    return cls(**arguments)
                except Exception as exc:
                    key, error = find_blamed(cls, arguments, exc), exc
            else:
                # A validator that needs what is missing cannot judge.
                refused = (each for each in find_refused(cls, arguments) if not isinstance(each[1], AttributeError))
                found = next((each for each in refused if aliases.get(each[0]) in arguments), None)
                if found is None:
                    return make_unchecked(cls, arguments)
                key, error = found
            self._note(refused_value(document, key, error), path)
            if key is None or aliases.get(key) not in arguments:  # the class refuses the object as a whole
                return make_unchecked(cls, arguments)
            del arguments[aliases[key]]

    def _note(self, problem: Mismatch, path: Path) -> None:
        problem.path = (*path, *problem.path)
        self.problems.append(problem)


def _member(kind: Any, shape: str) -> Any:
    """Return what an annotation wraps, or the type of a union that reads a shape of JSON values; else None."""
    if get_origin(kind) in (Union, UnionType):
        return next((each for each in get_args(kind) if shape in json_kinds_of(each)), None)
    return inner_of(kind)


def _items(kind: Any) -> tuple[Any, ...]:
    """Return the types of a fixed tuple's values."""
    return () if get_args(kind) == ((),) else get_args(kind)


@cache
def _fields(cls: Any) -> dict[str, JSONField]:
    return {each.key: each for each in get_fields(cls) if each.name != "extra" and each.argument}
