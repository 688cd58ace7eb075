"""Read configurations that became invalid: DEL must work nevertheless, with defaults in place of wrong values."""

from __future__ import annotations

from .._light import TYPE_CHECKING, TypeVar, cast
from ..errors import CNIError, InvalidConfigError
from ._mismatch import Mismatch, structure_whole
from .codec import complain, get_converter, get_hook

if TYPE_CHECKING:
    from .codec import Converter

_T = TypeVar("_T")


def structure_leniently(
    value: object,
    cls: type[_T],
    *,
    what: str = "network configuration",
    path: str = "$",
    converter: Converter | None = None,
) -> tuple[_T, list[CNIError]]:
    """Make a typed object, and leave out wrong values, at any depth.

    Returns:
        The object, with the default in place of each wrong value and without wrong entries of arrays and mappings, and
        an error for each, as :func:`.codec.structure` would have raised it. A required key that is missing or wrong has
        its type's empty value: ``""``, ``0``, ``False``, ``()``, the first of an Enum or Literal, or None. An object
        that its class refuses as a whole is kept nevertheless.

    Raises:
        InvalidConfigError: (7) The value is not of the kind at all: no object, for a class.
    """
    used = converter or get_converter()
    try:
        return cast("_T", structure_whole(get_hook(cls, used), value, cls)), []
    except Mismatch:  # a rare case, whose imports the others must not pay for
        from ._salvage import Reader
    reader = Reader(used)
    try:
        read = reader.read(value, cls, ())
    except Mismatch as exc:
        raise complain(exc, what, path, InvalidConfigError) from exc
    return cast("_T", read), [complain(each, what, path, InvalidConfigError) for each in reader.problems]
