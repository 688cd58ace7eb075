"""Objects of attrs classes, made without the checks that would refuse them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin

from .fields import JSONField, get_fields, is_attrs_class


def make_unchecked(cls: Any, arguments: Mapping[str, Any]) -> Any:
    """Make an instance of an attrs class without running its validators or its own checks."""
    instance = cls.__new__(cls)
    for each in get_fields(cls):
        try:
            value = _convert(instance, each, arguments[each.argument])
        except Exception:  # it is absent, or the field's converter refuses it
            value = empty_value(each.type) if each.required else each.make_default(instance)
        object.__setattr__(instance, each.name, value)
    return instance


def _convert(instance: Any, each: JSONField, value: Any) -> Any:
    """Run the converter of a field."""
    attribute = each.attribute
    converter: Any = None if attribute is None else attribute.converter
    if converter is None:
        return value
    import attrs

    return converter(*((value, instance, attribute) if isinstance(converter, attrs.Converter) else (value,)))


def empty_value(kind: Any) -> Any:
    """Return the empty value of a type, for a required key that is missing."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return get_args(kind)[0]
    if origin is Union or not isinstance(origin, type):
        return None
    if origin in (str, int, float, bool, list, tuple, set, frozenset, dict):
        return origin()
    if is_attrs_class(origin):
        return make_unchecked(origin, {})
    if hasattr(origin, "__members__"):
        return next(iter(cast("Iterable[Any]", origin)))
    return {} if issubclass(origin, Mapping) else None


def find_blamed(cls: type[Any], arguments: Mapping[str, Any], error: Exception) -> str | None:
    """Find the field whose validator or converter raised an error.

    Returns:
        Its JSON key; None when the error came from the class as a whole.
    """
    for key, own in find_refused(cls, arguments):
        if type(own) is type(error) and own.args[:1] == error.args[:1]:
            return key
    return None


def find_refused(cls: type[Any], arguments: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
    """Find the fields whose validator or converter raises an error.

    Required fields may be missing. They have no value then: a validator that looks at one raises AttributeError.

    Yields:
        The JSON key, and the error.
    """
    instance = make_unchecked(cls, arguments)
    fields = get_fields(cls)
    for each in fields:
        if each.argument and each.required and each.argument not in arguments:
            object.__delattr__(instance, each.name)
    for each in fields:
        try:
            if each.argument in arguments:
                _convert(instance, each, arguments[each.argument])
            if each.attribute is not None and each.attribute.validator is not None:
                each.attribute.validator(instance, each.attribute, getattr(instance, each.name))
        except Exception as exc:
            yield each.key, exc
