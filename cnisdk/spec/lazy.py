"""JSON objects whose parts are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, overload

from attrs.exceptions import FrozenInstanceError

from ..errors import CNIError
from .codec import structure, unstructure
from .fields import camel_case
from .mismatch import show_path
from .value import Deferred

T = TypeVar("T")


class LazyObject(Deferred):
    """A JSON object whose parts are structured when they are asked for.

    Something wrong in one part fails whoever asks for that part, and nobody else. Give subclasses their parts with
    :func:`lazy_field`; what no part stands for is in :attr:`extra`.

    Args:
        **parts: The parts by the names of the attributes, to make an object in a program.
    """

    path: ClassVar[str] = "$"
    """Where such an object stands, for messages."""

    def __init__(self, **parts: Any) -> None:
        fields = _lazy_fields(type(self))
        document: dict[str, Any] = {}
        for name, value in parts.items():
            if name == "extra":
                document.update(value)
            elif name not in fields:
                raise TypeError(f"{type(self).__name__} has no part {name!r}")
            elif value is not None and value != fields[name].default:
                document[fields[name].key] = unstructure(value)
        self.__dict__["document"] = document

    @property
    def extra(self) -> dict[str, Any]:
        """Every key that no part stands for."""
        known = {each.key.lower() for each in _lazy_fields(type(self)).values()}
        return {key: value for key, value in self.document.items() if key.lower() not in known}

    def leniently(self, on_problem: Callable[[CNIError], object]) -> None:
        """Have wrong parts be absent from now on, and tell of each when it is asked for: DEL must work nevertheless."""
        self.__dict__["_on_problem"] = on_problem

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return self._canonical() == other._canonical()

    __hash__ = None  # type: ignore[assignment]

    def _canonical(self) -> dict[str, Any]:
        """The parts by their keys, typed where they are right, so that spelling and absence make no difference."""
        parts: dict[str, Any] = {}
        for each in _lazy_fields(type(self)).values():
            given = each.find(self)
            if given is not None:
                try:
                    value = each.read(self)
                except CNIError:
                    value = self.document[given]
                if value != each.default:
                    parts[each.key] = value
        return {**self.extra, **parts}

    def __repr__(self) -> str:
        # Not the values: they may be what must not be logged.
        return f"{type(self).__qualname__}({', '.join(sorted(self.document))})"


class LazyField(Generic[T]):
    """A part of a :class:`LazyObject`; see :func:`lazy_field`."""

    def __init__(self, kind: type[T], default: T, key: str | None) -> None:
        self.kind = kind
        self.default = default
        self.key = key or ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.key = self.key or camel_case(name)

    @overload
    def __get__(self, instance: None, owner: type) -> LazyField[T]: ...
    @overload
    def __get__(self, instance: LazyObject, owner: type) -> T: ...
    def __get__(self, instance: LazyObject | None, owner: type) -> LazyField[T] | T:
        if instance is None:
            return self
        try:
            value = self.read(instance)
        except CNIError:
            on_problem = instance.__dict__.get("_on_problem")
            if on_problem is None:
                raise
            value = self._read_leniently(instance, on_problem)
        instance.__dict__[self.name] = value  # found there before this descriptor, from now on
        return value

    def _read_leniently(self, instance: LazyObject, on_problem: Callable[[CNIError], object]) -> T:
        from .lenient import structure_leniently

        given = str(self.find(instance))
        path = show_path((given,), instance.path)
        try:
            value, problems = structure_leniently(
                instance.document[given], self.kind, path=path, converter=instance.__dict__.get("_converter")
            )
        except CNIError as exc:
            value, problems = self.default, [exc]
        for problem in problems:
            on_problem(problem)
        return value

    def find(self, instance: LazyObject) -> str | None:
        """The key as it is written; None when the part is absent."""
        document = instance.document
        if document.get(self.key) is not None:
            return self.key
        folded = self.key.lower()
        return next((key for key, part in document.items() if part is not None and key.lower() == folded), None)

    def read(self, instance: LazyObject) -> T:
        """Structure the part.

        Raises:
            InvalidConfigError: (7) It is not what it should be; the message has path and value.
        """
        given = self.find(instance)
        if given is None:
            return self.default
        path = show_path((given,), instance.path)
        converter = instance.__dict__.get("_converter")
        return structure(instance.document[given], self.kind, path=path, converter=converter)


def lazy_field(kind: type[T], default: T, *, key: str | None = None) -> LazyField[T]:
    """Declare a part of a :class:`LazyObject`.

    Args:
        kind: What it must be: any type that a field of a configuration may have.
        default: What an absent one is.
        key: The JSON key; None means camelCase of the name.
    """
    return LazyField(kind, default, key)


def _lazy_fields(cls: type[LazyObject]) -> dict[str, LazyField[Any]]:
    return {
        name: each for base in reversed(cls.__mro__) for name, each in vars(base).items() if isinstance(each, LazyField)
    }
