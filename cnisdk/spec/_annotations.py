"""Annotations of configuration classes beyond the everyday ones: how each reads JSON, and which are refused.

:mod:`.codec` reads ``str``, ``int``, ``bool``, ``float``, optional values, arrays, objects, addresses and attrs classes
by itself, and uses this module for the rest. An annotation that no JSON value can be checked against is refused when
the class is defined, and not by the first request. The message says what to write instead.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, MutableSequence, Sequence, Set
from enum import Enum
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from ._mismatch import Hook, Mismatch, UnsupportedAnnotationError, structure_part
from .fields import is_attrs_class

HookOf = Callable[[Any], Hook]
"""Function that returns the hook of a part's annotation."""

_LISTS = {list, MutableSequence}
_TUPLES = {tuple, Sequence, Collection, Iterable}
_SETS = {frozenset, Set}
_MUTABLE_SETS = {set}
_MAPPINGS = {dict, Mapping, MutableMapping}
_OWN_TYPE = "write a class decorated with @frozen(kw_only=True)"
_AS_TEXT = "write str and parse it in a property, or add a hook in Plugin.configure_converter"


def make_hook(kind: Any, hook_of: HookOf) -> Hook:
    """Make the hook of an annotation.

    Raises:
        UnsupportedAnnotationError: There is none.
    """
    for applies, factory in _FACTORIES:
        if applies(kind):
            return factory(kind, hook_of)
    raise _refusal(kind)


def _refusal(kind: Any) -> UnsupportedAnnotationError:
    return UnsupportedAnnotationError(f"{name_of(kind)} is not read from JSON: {_advice(kind)}")


def name_of(kind: Any) -> str:
    """Write an annotation as an author would."""
    arguments = get_args(kind)
    if kind is type(None):
        return "None"
    if kind is Ellipsis:
        return "..."
    if isinstance(kind, list):
        return f"[{', '.join(map(name_of, kind))}]"
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(map(name_of, arguments))
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if arguments:
        parts = arguments if get_origin(kind) is not Annotated else (arguments[0], ...)
        return f"{name_of(get_origin(kind))}[{', '.join(map(name_of, parts))}]"
    return str(getattr(kind, "__qualname__", None) or getattr(kind, "__name__", None) or str(kind).split(".")[-1])


def _advice(kind: Any) -> str:
    """Return what to write in place of an annotation that is not supported."""
    origin = get_origin(kind) or kind
    if isinstance(kind, TypeVar):
        return "write a type without type variables"
    if kind is None or kind is type(None):
        return "write Any, or a type that may be None, such as int | None"
    if not isinstance(origin, type):
        return _AS_TEXT
    if is_attrs_class(origin):
        return "write a class without type variables"
    if hasattr(origin, "__total__") or hasattr(origin, "_fields") or hasattr(origin, "__dataclass_fields__"):
        return _OWN_TYPE
    if issubclass(origin, (str, int, float)):
        plain = next(each for each in (str, int, float) if issubclass(origin, each))
        return f"write {plain.__name__}"
    if issubclass(origin, Mapping):
        return "write Mapping[str, …] or dict[str, …]"
    if issubclass(origin, Collection) and origin is not bytes:
        return "write tuple[…, …], list[…] or set[…]"
    if origin.__module__.partition(".")[0] in _STANDARD:
        return _AS_TEXT
    return f"{_OWN_TYPE}, or add a hook in Plugin.configure_converter"


_STANDARD = {"builtins", "collections", "datetime", "decimal", "fractions", "os", "re", "typing", "uuid"}


# --- one value of a list ----------------------------------------------------------------------------------------------


def _show(value: object) -> str:
    import json

    return json.dumps(value)


def _choice(values: Mapping[Any, Any], kind: Any) -> Hook:
    """Make a hook that accepts some JSON values. Types are compared, too: true is not 1."""
    chosen = {(type(value), value): meaning for value, meaning in values.items()}
    if not all(plain in (str, int, float, bool) for plain, _ in chosen):
        raise UnsupportedAnnotationError(f"{name_of(kind)} has values that JSON has not: write text or numbers")
    shown = [_show(value) for value in values]
    expected = f"one of {', '.join(shown)}" if len(shown) > 1 else "".join(shown)

    def hook(value: Any, _: Any) -> Any:
        try:
            return chosen[type(value), value]
        except (KeyError, TypeError):
            raise Mismatch(value, expected) from None

    return hook


def _literal(kind: Any, hook_of: HookOf) -> Hook:
    values = [value for value in get_args(kind) if value is not None]
    hook = _choice({value: value for value in values}, kind)
    if len(values) == len(get_args(kind)):
        return hook
    return lambda value, kind: None if value is None else hook(value, kind)


def _enum(kind: Any, hook_of: HookOf) -> Hook:
    return _choice({member.value: member for member in kind}, kind)


def _path(kind: Any, hook_of: HookOf) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not str or not value or "\0" in value:
            raise Mismatch(value, "a path")
        return kind(value)

    return hook


# --- several values ---------------------------------------------------------------------------------------------------


def _items(kind: Any, hook_of: HookOf) -> Callable[[Any], list[Any]]:
    """Make a function that reads a JSON array into a list."""
    arguments = get_args(kind)
    item = arguments[0] if arguments else Any
    item_hook = hook_of(item)

    def read(value: Any) -> list[Any]:
        if type(value) is not list and type(value) is not tuple:
            raise Mismatch(value, "an array")
        return [structure_part(item_hook, part, item, index) for index, part in enumerate(value)]

    return read


def _array(make: Callable[[list[Any]], Any]) -> Callable[[Any, HookOf], Hook]:
    def factory(kind: Any, hook_of: HookOf) -> Hook:
        read = _items(kind, hook_of)
        return lambda value, _: make(read(value))

    return factory


def _set(make: Callable[[list[Any]], Any]) -> Callable[[Any, HookOf], Hook]:
    def factory(kind: Any, hook_of: HookOf) -> Hook:
        for item in get_args(kind):
            if (get_origin(item) or item) in _LISTS | _MUTABLE_SETS | _MAPPINGS:
                raise UnsupportedAnnotationError(f"a set cannot hold {name_of(item)}: write tuple[…, ...]")
        return _array(make)(kind, hook_of)

    return factory


def _fixed_tuple(kind: Any, hook_of: HookOf) -> Hook:
    """Make a hook for ``tuple[int, str]``: an array of as many values, each of its own type."""
    items = [] if get_args(kind) == ((),) else [(each, hook_of(each)) for each in get_args(kind)]
    expected = f"an array of {len(items)} value{'' if len(items) == 1 else 's'}"

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) not in (list, tuple) or len(value) != len(items):
            raise Mismatch(value, expected)
        return tuple(
            structure_part(item_hook, part, item, index)
            for index, (part, (item, item_hook)) in enumerate(zip(value, items, strict=True))
        )

    return hook


def _mapping(kind: Any, hook_of: HookOf) -> Hook:
    arguments = get_args(kind)
    if arguments and arguments[0] not in (str, Any):
        raise UnsupportedAnnotationError(
            f"{name_of(kind)} is not read from JSON, where every key is a string: write str for it"
        )
    item = arguments[1] if arguments else Any
    item_hook = hook_of(item)

    def hook(value: Any, _: Any) -> dict[str, Any]:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise Mismatch(value, "an object")
        return {key: structure_part(item_hook, part, item, key) for key, part in value.items()}

    return hook


# --- one of several types ---------------------------------------------------------------------------------------------


def json_kinds_of(kind: Any) -> frozenset[str]:
    """Return which kinds of JSON values an annotation reads."""
    inner = inner_of(kind)
    if inner is not None:
        return json_kinds_of(inner)
    if get_origin(kind) is Literal:
        return frozenset(_JSON_KINDS[type(value)] for value in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return frozenset(_JSON_KINDS[type(member.value)] for member in kind)
    origin = get_origin(kind) or kind
    if origin in _LISTS | _TUPLES | _SETS | _MUTABLE_SETS:
        return frozenset({"an array"})
    if origin in _MAPPINGS or is_attrs_class(origin):
        return frozenset({"an object"})
    return frozenset({_JSON_KINDS.get(kind, "a string")})


_JSON_KINDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


def _kind_of(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "an array"
    return _JSON_KINDS.get(type(value), "")


def _union(kind: Any, hook_of: HookOf) -> Hook:
    """Make a hook for ``int | str``: the kind of the JSON value tells which type is meant."""
    reads: dict[str, tuple[Any, Hook]] = {}
    for member in get_args(kind):
        hook: Hook = (lambda value, _: value) if member is type(None) else hook_of(member)
        for each in json_kinds_of(member):
            if each in reads:
                raise UnsupportedAnnotationError(
                    f"{name_of(kind)} is ambiguous: {name_of(reads[each][0])} and {name_of(member)} both read {each}; "
                    "write one of them"
                )
            reads[each] = member, hook
    if "a number" in reads:
        reads.setdefault("an integer", reads["a number"])
    names = [name for name in reads if name != "null" and not (name == "an integer" and "a number" in reads)]
    expected = " or ".join(names)

    def read(value: Any, _: Any) -> Any:
        found = reads.get(_kind_of(value))
        if found is None:
            raise Mismatch(value, expected)
        member, member_hook = found
        return member_hook(value, member)

    return read


# --- wrappers ---------------------------------------------------------------------------------------------------------


def inner_of(kind: Any) -> Any:
    """Return what an annotation wraps: ``Annotated``, ``Final``, a ``NewType`` or a ``type`` alias; else None."""
    if get_origin(kind) in (Annotated, Final):
        return get_args(kind)[0]
    if hasattr(kind, "__supertype__"):
        return kind.__supertype__
    return getattr(kind, "__value__", None) if not isinstance(kind, type) else None


def _wrapped(kind: Any, hook_of: HookOf) -> Hook:
    inner = inner_of(kind)
    hook = hook_of(inner)
    return lambda value, _: hook(value, inner)


def _is(origins: Collection[Any]) -> Callable[[Any], bool]:
    return lambda kind: (get_origin(kind) or kind) in origins


def is_fixed_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and Ellipsis not in get_args(kind)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _is_path(kind: Any) -> bool:
    # By name: a plugin without paths must not pay for importing pathlib.
    return isinstance(kind, type) and any(each.__qualname__ == "PurePath" for each in kind.__mro__)


_FACTORIES: tuple[tuple[Callable[[Any], bool], Callable[[Any, HookOf], Hook]], ...] = (
    (lambda kind: inner_of(kind) is not None, _wrapped),
    (lambda kind: get_origin(kind) is Literal, _literal),
    (_is_enum, _enum),
    (lambda kind: get_origin(kind) in (Union, types.UnionType), _union),
    (is_fixed_tuple, _fixed_tuple),
    (_is(_LISTS), _array(list)),
    (_is(_TUPLES), _array(tuple)),
    (_is(_SETS), _set(frozenset)),
    (_is(_MUTABLE_SETS), _set(set)),
    (_is(_MAPPINGS), _mapping),
    (_is_path, _path),
)
