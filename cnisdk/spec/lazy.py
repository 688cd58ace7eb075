"""JSON objects whose parts are read on first use."""

from __future__ import annotations

from collections.abc import Callable

from .._light import Any, ClassVar, Generic, NoReturn, TypeVar, overload
from ..errors import CNIError
from ._deferred import Deferred
from ._mismatch import show_path
from .codec import structure, unstructure
from .fields import camel_case

_T = TypeVar("_T")
_ObjectT = TypeVar("_ObjectT", bound="LazyObject")


class LazyObject(Deferred):
    """A JSON object whose parts are structured on first use.

    A wrong part raises an error only for code that uses this part. Declare the parts of a subclass with
    :func:`lazy_field`; other keys are in :attr:`extra`.

    Args:
        **parts: The parts by the names of the attributes, to make an object in a program.
    """

    path: ClassVar[str] = "$"
    """Place of such an object, for messages."""

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

    def leniently(self: _ObjectT, on_problem: Callable[[CNIError], object]) -> _ObjectT:
        """Copy the object. The copy treats wrong parts as absent, and reports each on first use: DEL must work."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__, _on_problem=on_problem)
        return made

    def __setattr__(self, name: str, value: object) -> NoReturn:
        from attrs.exceptions import FrozenInstanceError

        raise FrozenInstanceError

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return self._canonical() == other._canonical()

    __hash__ = None  # type: ignore[assignment]

    def _canonical(self) -> dict[str, Any]:
        """Return the parts by their keys, typed where they are right, to compare objects whatever their spelling."""
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
        # Without the values, which may be secrets.
        return f"{type(self).__qualname__}({', '.join(sorted(self.document))})"


class LazyField(Generic[_T]):
    """A part of a :class:`LazyObject`; see :func:`lazy_field`."""

    def __init__(self, kind: type[_T], default: _T, key: str | None) -> None:
        self.kind = kind
        self.default = default
        self.key = key or ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.key = self.key or camel_case(name)

    @overload
    def __get__(self, instance: None, owner: type) -> LazyField[_T]: ...
    @overload
    def __get__(self, instance: LazyObject, owner: type) -> _T: ...
    def __get__(self, instance: LazyObject | None, owner: type) -> LazyField[_T] | _T:
        if instance is None:
            return self
        try:
            value = self.read(instance)
        except CNIError:
            on_problem = instance.__dict__.get("_on_problem")
            if on_problem is None:
                raise
            value = self._read_leniently(instance, on_problem)
        instance.__dict__[self.name] = value  # from now on Python finds it here, before this descriptor
        return value

    def _read_leniently(self, instance: LazyObject, on_problem: Callable[[CNIError], object]) -> _T:
        from ._lenient import structure_leniently

        given = str(self.find(instance))
        path = show_path((given,), instance.path)
        part = instance.document[given]
        try:
            value, problems = structure_leniently(
                part, self.kind_for(part), path=path, converter=instance.__dict__.get("_converter")
            )
        except CNIError as exc:
            value, problems = self.default, [exc]
        for problem in problems:
            on_problem(problem)
        return value

    def kind_for(self, part: object) -> type[_T]:
        """Return the type into which a value is read."""
        return self.kind

    def find(self, instance: LazyObject) -> str | None:
        """Return the key as it is written in the document; None when the part is absent."""
        document = instance.document
        if document.get(self.key) is not None:
            return self.key
        folded = self.key.lower()
        return next((key for key, part in document.items() if part is not None and key.lower() == folded), None)

    def read(self, instance: LazyObject) -> _T:
        """Structure the part.

        Raises:
            InvalidConfigError: (7) It has the wrong kind; the message has path and value.
        """
        given = self.find(instance)
        if given is None:
            return self.default
        path = show_path((given,), instance.path)
        part = instance.document[given]
        return structure(part, self.kind_for(part), path=path, converter=instance.__dict__.get("_converter"))


def lazy_field(kind: type[_T], default: _T, *, key: str | None = None) -> LazyField[_T]:
    """Declare a part of a :class:`LazyObject`.

    Args:
        kind: Its type: any that a field of a configuration may have.
        default: The value of an absent part.
        key: The JSON key; None means camelCase of the name.
    """
    return LazyField(kind, default, key)


def _lazy_fields(cls: type[LazyObject]) -> dict[str, LazyField[Any]]:
    return {
        name: each for base in reversed(cls.__mro__) for name, each in vars(base).items() if isinstance(each, LazyField)
    }
