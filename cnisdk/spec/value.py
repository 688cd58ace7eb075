"""What the typed objects of this package have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class Value:
    """Base of frozen attrs classes that are equal when all their fields are.

    attrs would write and compile these methods for each class anew, and a plugin process has no time for that: it takes
    half of what making a class takes. To be used with ``@frozen(kw_only=True, eq=False, repr=False)``.
    """

    __slots__ = ()
    __attrs_attrs__: ClassVar[tuple[Any, ...]] = ()

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(getattr(self, each.name) == getattr(other, each.name) for each in self.__attrs_attrs__)

    def __hash__(self) -> int:
        return hash((self.__class__, *(getattr(self, each.name) for each in self.__attrs_attrs__)))

    def __repr__(self) -> str:
        fields = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in self.__attrs_attrs__)
        return f"{type(self).__qualname__}({fields})"


class Deferred:
    """Base of objects that keep the JSON object they are made of, and read it later; see :mod:`.lazy`."""

    document: Mapping[str, Any]
    """The object as it was parsed."""

    def __init__(self) -> None:
        self.__dict__["document"] = {}
