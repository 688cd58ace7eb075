"""Fields of configuration classes, and their JSON keys."""

from __future__ import annotations

from typing import Any

import attrs

_KEY, ALWAYS = "cnisdk.key", "cnisdk.always"


def json_field(key: str | None = None, *, always: bool = False, default: Any = attrs.NOTHING) -> Any:
    """Declare an attrs field whose JSON key is not the camelCase of its name, or that is written even when it is empty.

    Args:
        key: The JSON key; None means camelCase of the name (``cni_version`` is ``cniVersion``).
        always: Write the key also when the value is the default.
        default: As for :func:`attrs.field`.
    """
    metadata: dict[str, object] = {ALWAYS: always}
    if key is not None:
        metadata[_KEY] = key
    return attrs.field(default=default, metadata=metadata)


def key_of(attribute: attrs.Attribute[Any]) -> str:
    """The JSON key of an attrs field."""
    key = attribute.metadata.get(_KEY)
    return camel_case(attribute.name) if key is None else str(key)


def camel_case(name: str) -> str:
    """The JSON key of a name: ``cni_version`` is ``cniVersion``."""
    first, *rest = name.strip("_").split("_")
    return first + "".join(word.capitalize() for word in rest)


def get_attributes(cls: Any) -> tuple[attrs.Attribute[Any], ...]:
    """Return the fields of an attrs class, with types in place of annotations that its module postpones."""
    attributes = attrs.fields(cls)
    if any(isinstance(attribute.type, str) for attribute in attributes):
        attributes = attrs.fields(attrs.resolve_types(cls))
    return tuple(attributes)
