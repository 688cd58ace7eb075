"""Names of :mod:`typing` and :mod:`enum` for modules on the path of a request, without importing these.

Theory of operation. typing, enum and re, which both need, take half as long to import as a whole request takes. Most of
what a module imports of typing stands in annotations, which never run. The rest does little: ``TypeVar`` names a type,
``Generic`` lets a class be subscripted, ``NamedTuple`` makes a class. Type checkers see the names of typing here, and
programs see counterparts. :func:`get_origin` and :func:`get_args` know annotations of typing too: these come only from
a program that has imported it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from enum import Enum
    from typing import (
        Any as Any,
        ClassVar as ClassVar,
        Generic as Generic,
        Literal as Literal,
        NamedTuple as NamedTuple,
        NoReturn as NoReturn,
        ParamSpec as ParamSpec,
        Protocol as Protocol,
        TypeVar as TypeVar,
        cast as cast,
        overload as overload,
    )

UnionType: Any = type(int | str)
_GenericAlias: Any = type(list[int])


def get_origin(kind: Any) -> Any:
    """Return the class of a subscripted annotation, as :func:`typing.get_origin` does."""
    if type(kind) is _GenericAlias:
        return kind.__origin__
    if type(kind) is UnionType:
        return UnionType
    typing = sys.modules.get("typing")
    return None if typing is None else typing.get_origin(kind)


def get_args(kind: Any) -> tuple[Any, ...]:
    """Return the arguments of a subscripted annotation, as :func:`typing.get_args` does."""
    if type(kind) is _GenericAlias or type(kind) is UnionType:
        arguments: tuple[Any, ...] = kind.__args__
        return arguments
    typing = sys.modules.get("typing")
    return () if typing is None else typing.get_args(kind)


def is_union(kind: Any) -> bool:
    """Return whether an annotation is a union, written either way."""
    origin = get_origin(kind)
    return origin is not None and (origin is UnionType or origin is getattr(sys.modules.get("typing"), "Union", None))


def is_any(kind: Any) -> bool:
    """Return whether an annotation allows any value."""
    return kind is object or (kind is not None and kind is getattr(sys.modules.get("typing"), "Any", None))


# --- tuples with names ------------------------------------------------------------------------------------------------


class _TupleMaker(type):
    """Metaclass of :class:`NamedTuple` alone: the classes it makes are of type ``type``, as those of typing are."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, body)
        fields = tuple(body.get("__annotations__", ()))
        defaults = {field: body[field] for field in fields if field in body}
        if tuple(defaults) != fields[len(fields) - len(defaults) :]:
            raise TypeError(f"{name}: fields without a default come first")
        for index, field in enumerate(fields):
            body[field] = _get_item(index)
        members = {"_fields": fields, "_field_defaults": defaults, "__match_args__": fields, "__slots__": ()}
        made: Any = type(name, (tuple,), {**_TUPLE_METHODS, **members, **body})
        made.__new__ = _make_new(made, fields, defaults)
        made.__signature__ = _TupleSignature(made)
        return made


def _get_item(index: int) -> Any:
    """Make the descriptor of a field."""
    try:
        from _collections import _tuplegetter  # type: ignore[import-not-found]
    except ImportError:  # a Python without it
        return property(lambda self: self[index])
    return _tuplegetter(index, f"Alias for field number {index}")


def _make_new(made: type, fields: tuple[str, ...], defaults: dict[str, Any]) -> Any:
    count, new = len(fields), tuple.__new__

    def __new__(cls: Any, /, *given: Any, **named: Any) -> Any:
        if len(given) == count and not named:
            return new(cls, given)
        values = {**defaults, **named}
        if given:
            positional = dict(zip(fields, given, strict=False))
            if len(given) > count or not positional.keys().isdisjoint(named):
                return _slow_twin(made)(*given, **named)  # which says what is wrong
            values.update(positional)
        if len(values) == count:
            try:
                return new(cls, map(values.__getitem__, fields))
            except KeyError:
                pass
        return _slow_twin(made)(*given, **named)

    __new__.__qualname__ = f"{made.__qualname__}.__new__"
    return __new__


def _slow_twin(made: Any) -> Any:
    """Make a class with the same fields by the standard library."""
    from collections import namedtuple

    defaults = list(made._field_defaults.values())
    return namedtuple(made.__name__, made._fields, defaults=defaults, module=made.__module__)


class _TupleSignature:
    """Signature of a class for :mod:`inspect`, made on first use."""

    def __init__(self, made: type) -> None:
        self.made = made

    def __get__(self, instance: object, owner: Any) -> Any:
        import inspect

        if owner.__new__ is not self.made.__new__ or owner.__init__ is not object.__init__:
            raise AttributeError(f"{owner.__qualname__} has a constructor of its own")
        twin = _slow_twin(self.made)
        twin.__new__.__annotations__ = dict(self.made.__annotations__)
        return inspect.signature(twin)


def _make(cls: Any, values: Any) -> Any:
    made = tuple.__new__(cls, values)
    if len(made) != len(cls._fields):
        raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
    return made


def _replace(self: Any, /, **changes: Any) -> Any:
    given = dict(changes)
    made = self._make([given.pop(field, value) for field, value in zip(self._fields, self, strict=True)])
    if given:
        _slow_twin(type(self))(*self)._replace(**changes)  # which says what is wrong
    return made


def _asdict(self: Any) -> dict[str, Any]:
    return dict(zip(self._fields, self, strict=True))


def _repr(self: Any) -> str:
    fields = zip(self._fields, self, strict=True)
    return f"{self.__class__.__name__}({', '.join([f'{field}={value!r}' for field, value in fields])})"


def _get_new_arguments(self: Any) -> tuple[Any, ...]:
    return tuple(self)


_TUPLE_METHODS: dict[str, Any] = {
    "_make": classmethod(_make),
    "_replace": _replace,
    "__replace__": _replace,
    "_asdict": _asdict,
    "__repr__": _repr,
    "__getnewargs__": _get_new_arguments,
}

# --- texts with names -------------------------------------------------------------------------------------------------


class _TextMaker(type):
    """Metaclass of :class:`TextEnum`: its classes have fixed members, as those of enum."""

    __members__: Mapping[str, Any] = {}

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        members = {key: value for key, value in body.items() if type(value) is str and not key.startswith("_")}
        made: Any = super().__new__(cls, name, bases, {key: body[key] for key in body if key not in members})
        made.__members__ = {}
        for key, value in members.items():
            member = str.__new__(made, value)
            member.__dict__.update(name=key, value=value)
            setattr(made, key, member)
            made.__members__[key] = member
        return made

    def __call__(cls, value: object) -> Any:
        for member in cls.__members__.values():
            if member == value:
                return member
        raise ValueError(f"{value!r} is not a valid {cls.__qualname__}")

    def __getitem__(cls, name: str) -> Any:
        return cls.__members__[name]

    def __iter__(cls) -> Iterator[Any]:
        return iter(cls.__members__.values())

    def __len__(cls) -> int:
        return len(cls.__members__)

    def __contains__(cls, value: object) -> bool:
        return value in list(cls.__members__.values())

    def __repr__(cls) -> str:
        return f"<enum {cls.__qualname__!r}>"


def _text_repr(self: Any) -> str:
    return f"<{type(self).__name__}.{self.name}: {str.__repr__(self)}>"


def _text_reduce(self: Any, _: int) -> tuple[Any, ...]:
    return type(self), (self.value,)


if TYPE_CHECKING:

    class TextEnum(str, Enum):
        """Base of enumerations whose members are texts, which str() returns."""

else:
    # A class attribute that is annotated with Any may have any value.
    Any = object

    class NamedTuple(metaclass=_TupleMaker):
        """Counterpart of :class:`typing.NamedTuple`."""

    class TextEnum(str, metaclass=_TextMaker):  # noqa: SLOT000 - members have names
        """Base of enumerations whose members are texts, which str() returns."""

        __repr__ = _text_repr
        __reduce_ex__ = _text_reduce

    class Generic:
        """Counterpart of :class:`typing.Generic`."""

        __class_getitem__ = classmethod(_GenericAlias)

    class Protocol:
        """Counterpart of :class:`typing.Protocol`, for type checkers alone."""

    class Literal:
        """Counterpart of :data:`typing.Literal`, for names of annotations: any value of the type."""

        def __class_getitem__(cls, values):
            return type(values[0]) if type(values) is tuple else type(values)

    class TypeVar:
        """Counterpart of :class:`typing.TypeVar` and :class:`typing.ParamSpec`."""

        def __init__(self, name, *_, **__):
            self.__name__ = name

        def __repr__(self):
            return f"~{self.__name__}"

    ParamSpec = TypeVar
    ClassVar = NoReturn = object

    def cast(_, value):
        """Return the value."""
        return value

    def overload(function):
        """Return the function."""
        return function
