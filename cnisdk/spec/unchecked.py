"""Objects of attrs classes, made without the checks that would refuse them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, cast, get_args, get_origin

import attrs

from .fields import get_attributes, key_of


def make_unchecked(cls: Any, arguments: Mapping[str, Any]) -> Any:
    """Make an instance of an attrs class without running its validators or its own checks."""
    instance = cls.__new__(cls)
    for attribute in get_attributes(cls):
        if str(attribute.alias) in arguments:
            try:
                value = _convert(instance, attribute, arguments[str(attribute.alias)])
            except Exception:
                value = empty_value(attribute.type)
        elif attribute.default is attrs.NOTHING:
            value = empty_value(attribute.type)
        elif isinstance(attribute.default, attrs.Factory):  # type: ignore[arg-type] # a class, whatever its stub says
            factory: Any = attribute.default
            value = factory.factory(instance) if factory.takes_self else factory.factory()
        else:
            value = attribute.default
        object.__setattr__(instance, attribute.name, value)
    return instance


def _convert(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> Any:
    """Run the converter of a field."""
    converter: Any = attribute.converter
    if converter is None:
        return value
    return converter(*((value, instance, attribute) if isinstance(converter, attrs.Converter) else (value,)))


def empty_value(kind: Any) -> Any:
    """Return what stands in the place of a required value of a type."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return get_args(kind)[0]
    if origin is Union or not isinstance(origin, type):
        return None
    if origin in (str, int, float, bool, list, tuple, set, frozenset, dict):
        return origin()
    if attrs.has(origin):
        return make_unchecked(origin, {})
    if hasattr(origin, "__members__"):
        return next(iter(cast("Iterable[Any]", origin)))
    return {} if issubclass(origin, Mapping) else None


def find_blamed(cls: type[Any], arguments: Mapping[str, Any], error: Exception) -> str | None:
    """Find the field whose validator or converter raised an error.

    Returns:
        Its JSON key; None when the error came from the class as a whole.
    """
    instance = make_unchecked(cls, arguments)
    for attribute in get_attributes(cls):
        try:
            if str(attribute.alias) in arguments:
                _convert(instance, attribute, arguments[str(attribute.alias)])
            if attribute.validator is not None:
                attribute.validator(instance, attribute, getattr(instance, attribute.name))
        except Exception as own:
            if type(own) is type(error) and own.args[:1] == error.args[:1]:
                return key_of(attribute)
    return None
