"""Fields of configuration classes, and their JSON keys."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from .._light import TYPE_CHECKING, Any
from ..classes import FIELDS, REQUIRED, Field, field

if TYPE_CHECKING:
    from attrs import Attribute

_KEY = "cnisdk.key"

ALWAYS = "cnisdk.always"
"""Key in the metadata of an attrs field: the field is written even if it has its default."""


def json_field(key: str | None = None, *, always: bool = False, default: Any = REQUIRED) -> Any:
    """Declare an attrs field whose JSON key is not the camelCase of its name, or that is written even when it is empty.

    Args:
        key: The JSON key; None means camelCase of the name (``cni_version`` is ``cniVersion``).
        always: Write the key also when the value is the default.
        default: As for :func:`attrs.field`.
    """
    metadata: dict[str, object] = {ALWAYS: always}
    if key is not None:
        metadata[_KEY] = key
    return field(metadata=metadata) if default is REQUIRED else field(default=default, metadata=metadata)


def camel_case(name: str) -> str:
    """Return the JSON key of a name: ``cni_version`` is ``cniVersion``."""
    first, *rest = name.strip("_").split("_")
    return first + "".join(word.capitalize() for word in rest)


class JSONField:
    """A field of an attrs class, and how JSON has it.

    Attributes:
        name: Name of the attribute.
        key: The JSON key.
        argument: Name of the argument; empty if the class sets the field itself.
        type: The type.
        required: True if the field has no default.
        make_default: Returns the default. The argument is the object, or None.
        always: True if the field is written even if it has its default.
        attribute: What attrs says of the field; None if it has no validator and no converter.
    """

    __slots__ = ("always", "argument", "attribute", "key", "make_default", "name", "required", "type")

    def __init__(self, name: str, kind: Any, metadata: Mapping[Any, Any]) -> None:
        key = metadata.get(_KEY)
        self.name = name
        self.key = camel_case(name) if key is None else str(key)
        self.argument = name
        self.type: Any = object if kind is None else kind
        self.required = False
        self.make_default: Callable[[Any], Any]
        self.always = bool(metadata.get(ALWAYS))
        self.attribute: Attribute[Any] | None = None


def is_attrs_class(kind: type) -> bool:
    """Return whether a class is an attrs class, or derived from one."""
    return hasattr(kind, FIELDS) or hasattr(kind, "__attrs_attrs__")


def get_fields(cls: Any, *, typed: bool = True) -> tuple[JSONField, ...]:
    """Return the fields of an attrs class.

    Args:
        cls: The class.
        typed: Put types in place of the annotations that the module of the class postpones.

    Raises:
        NameError: Such an annotation names what its module has not defined yet.
    """
    own: tuple[Field, ...] = vars(cls).get(FIELDS, ())
    if own and not (typed and any(_has_text(each) for each in own)):
        return tuple([_of_ours(each, typed) for each in own])
    import attrs

    attributes = attrs.fields(cls)
    if typed and any(isinstance(each.type, str) for each in attributes):
        attributes = attrs.fields(attrs.resolve_types(cls))
    return tuple(_of_attrs(each) for each in attributes)


def _has_text(each: Field) -> bool:
    """Return whether the annotation of a field has text in it that stands for a type."""
    return type(each.type) is str and not {"'", '"'}.isdisjoint(each.type)


class _Names(dict[str, Any]):
    """Names that stand in an annotation, beside those of its module: plugins import typing for type checkers alone."""

    def __missing__(self, name: str) -> Any:
        if name == "Any":
            return object
        raise KeyError(name)


# What annotations mean that need no evaluation, which takes longer.
_COMMON: dict[str, Any] = {
    **{each.__name__: each for each in (str, int, bool, float)},
    "tuple[str, ...]": tuple[str, ...],
    "str | None": str | None,
    "int | None": int | None,
    "bool | None": bool | None,
}


def _of_ours(each: Field, typed: bool) -> JSONField:
    kind = each.type
    if typed and type(kind) is str:
        kind = _COMMON.get(kind) or eval(kind, vars(sys.modules[each.home.__module__]), _Names(vars(each.home)))
    made = JSONField(each.name, kind, each.metadata)
    made.required = each.required
    factory, default = each.factory, each.default
    made.make_default = (lambda _: default) if factory is None else (lambda _: factory())
    return made


def _of_attrs(attribute: Attribute[Any]) -> JSONField:
    import attrs

    made = JSONField(attribute.name, attribute.type, attribute.metadata)
    made.argument = str(attribute.alias) if attribute.init else ""
    default: Any = attribute.default
    made.required = default is attrs.NOTHING
    if not isinstance(default, attrs.Factory):  # type: ignore[arg-type] # a class, whatever its stub says
        made.make_default = lambda _: default
    elif default.takes_self:
        made.make_default = default.factory
    else:
        made.make_default = lambda _: default.factory()
    if attribute.validator is not None or attribute.converter is not None:
        made.attribute = attribute
    return made
