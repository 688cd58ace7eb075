"""JSON in and out, strictly typed.

Reading: keys match the Go way (an exact match first, then in any case), ``null`` is absent, unknown keys are kept in
the attribute ``extra`` where a class has one, and no value is coerced: ``"false"`` is no bool, ``1.5`` and ``true`` are
no ints. A wrong value is named by its JSON path.

Writing: keys, their order, the indentation, and the rule by which empty ones are left out are those of the reference
tools. So are numbers: one without a fraction is written as an integer.

:class:`Rules` find the function that reads an annotation, or writes an object. They are this package's own, in a table.
Authors who add hooks for types of their own get a cattrs converter with the same table, see :func:`make_converter`.
Importing cattrs takes as long as serving a request, so nothing else here does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from .._light import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin, is_any, is_union
from ..errors import CNIError, DecodingError, InvalidConfigError
from ._deferred import Deferred
from ._json import place_of, read, write
from ._mismatch import (
    MISSING,
    Hook,
    Mismatch,
    UnsupportedAnnotationError,
    own_words,
    show_path,
    structure_part,
    structure_whole,
)
from .addresses import IPAddress, IPInterface, IPNetwork, parse_address, parse_interface, parse_network
from .fields import JSONField, get_fields, is_attrs_class
from .names import shorten

if TYPE_CHECKING:
    from typing import TypeAlias

    from cattrs import BaseConverter

    Converter: TypeAlias = "BaseConverter | Rules"

_T = TypeVar("_T")


def _show(value: object) -> str:
    """Show a wrong value. Objects and arrays may hold secrets, so only their kind is shown."""
    if value is MISSING:
        return "is missing"
    if isinstance(value, Mapping):
        return "is an object"
    if isinstance(value, list | tuple):
        return "is an array"
    if value is None or isinstance(value, bool):
        return f"is {write(value)}"
    return f"is {shorten(value)}"


_LARGEST = 1.7976931348623157e308

# --- structuring ------------------------------------------------------------------------------------------------------


def _exactly(*types: type, expected: str) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        # type() and not isinstance(): a bool is an int to Python, not to JSON.
        if type(value) in types:
            return value
        raise Mismatch(value, expected)

    return hook


def _number(value: Any, _: Any) -> Any:
    # Integers of JSON and of Python have any size; a larger one than a float can be is refused.
    if type(value) in (float, int) and -_LARGEST <= value <= _LARGEST:
        return value
    raise Mismatch(value, "a number" if type(value) not in (float, int) else f"a number up to {_LARGEST:.2g}")


def _rare(value: Any, kind: Any) -> Any:
    """Stand for a type for which cattrs has a hook of its own, and :mod:`._annotations` has another."""
    raise AssertionError(kind)


_EXACT: dict[Any, Hook] = {
    bool: _exactly(bool, expected="true or false"),
    int: _exactly(int, expected="an integer"),
    float: _number,
    str: _exactly(str, expected="a string"),
}
_EXACT_HOOKS = frozenset((*_EXACT.values(), _rare))


def get_hook(kind: Any, converter: Converter) -> Hook:
    """Return the function that reads an annotation.

    Raises:
        UnsupportedAnnotationError: There is none.
    """
    hook: Hook = converter.get_structure_hook(kind)
    # cattrs hands a subclass of str or int, such as an Enum, to the hook of its base.
    if hook in _EXACT_HOOKS and _EXACT.get(kind) is not hook:
        return _make_rare_hook(kind, converter)
    return hook


def _make_rare_hook(kind: Any, converter: Converter) -> Hook:
    from ._annotations import make_hook

    return make_hook(kind, lambda part: get_hook(part, converter))


def _text(parse: Callable[[str], Any], expected: str, *types: type) -> Hook:
    """Make a hook for values written as strings. `types` are those the parsed value may have; none means any."""

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not str:
            raise Mismatch(value, expected)
        try:
            parsed = parse(value)
        except ValueError as exc:
            raise Mismatch(value, expected) from exc
        if types and not isinstance(parsed, types):
            raise Mismatch(value, expected)
        return parsed

    return hook


def _tuple_hook(kind: Any, converter: Converter) -> Hook:
    item = get_args(kind)[0]
    item_hook = get_hook(item, converter)

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list and type(value) is not tuple:
            raise Mismatch(value, "an array")
        return tuple(structure_part(item_hook, part, item, index) for index, part in enumerate(value))

    return hook


def _mapping_hook(kind: Any, converter: Converter) -> Hook:
    item = get_args(kind)[1]
    item_hook = get_hook(item, converter)
    skips = skips_null(kind)

    def hook(value: Any, _: Any) -> dict[str, Any]:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise Mismatch(value, "an object")
        return {
            key: structure_part(item_hook, part, item, key)
            for key, part in value.items()
            if part is not None or not skips
        }

    return hook


def skips_null(kind: Any) -> bool:
    """Report whether ``null`` counts as absent among the values of a mapping."""
    item = get_args(kind)[1] if _is_mapping(kind) else object
    return not (is_any(item) or _is_optional(item))


_in_the_making: set[tuple[int, Any]] = set()


def _class_hook(cls: Any, converter: Converter) -> Hook:
    key = id(converter), cls
    if key in _in_the_making:  # a class that has itself as a part
        return lambda value, kind: get_hook(cls, converter)(value, kind)  # noqa: PLW0108 - which is there by then
    _in_the_making.add(key)
    try:
        return _make_class_hook(cls, converter)
    finally:
        _in_the_making.discard(key)


def _make_class_hook(cls: Any, converter: Converter) -> Hook:
    all_fields = get_fields(cls)
    keeps_extra = any(each.name == "extra" for each in all_fields)
    readable = [each for each in all_fields if each.name != "extra" and each.argument]
    by_folded = {each.key.lower(): each.key for each in readable}
    fields = {each.key: (each.argument, each.type, _field_hook(cls, each, converter)) for each in readable}
    required = [each for each in readable if each.required]

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise Mismatch(value, "an object")
        arguments: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for given, part in value.items():
            key = given if given in fields else by_folded.get(given.lower())
            if key is None:
                extra[given] = part
            elif part is not None and (given == key or value.get(key) is None):
                argument, kind, part_hook = fields[key]
                arguments[argument] = structure_part(part_hook, part, kind, given)
        for each in required:
            if each.argument not in arguments:
                raise missing_key(each)
        if keeps_extra and extra:
            arguments["extra"] = extra
        try:
            return cls(**arguments)
        except Exception as exc:  # of a validator, a converter or the class itself
            from ._unchecked import find_blamed

            raise refused_value(value, find_blamed(cls, arguments, exc), exc) from exc

    return hook


def _field_hook(cls: Any, each: JSONField, converter: Converter) -> Hook:
    try:
        return get_hook(each.type, converter)
    except UnsupportedAnnotationError as exc:
        raise UnsupportedAnnotationError(f"{cls.__qualname__}.{each.name}: {exc}") from None


def missing_key(each: JSONField) -> Mismatch:
    """Make the exception for a required key that is missing."""
    kinds = {str: "a string", int: "an integer", bool: "true or false", **_EXPECTED}
    return Mismatch(MISSING, kinds.get(each.type, "a value"), (each.key,))


def refused_value(document: Mapping[str, Any], key: str | None, exc: Exception) -> Mismatch:
    """Make the exception for a value that its field's validator or converter refuses; `key` None: for the object."""
    if key is None:
        return Mismatch(document, problem=own_words(exc))
    given = next((each for each in document if each.lower() == key.lower()), key)
    return Mismatch(document.get(given, MISSING), path=(given,), problem=own_words(exc))


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and get_origin(kind) is None and is_attrs_class(kind)


def _is_deferred(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Deferred)


def _deferred_hook(cls: Any, converter: Converter) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise Mismatch(value, "an object")
        made = cls()
        made.__dict__.update(document=value, _converter=converter)
        return made

    return hook


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) in (dict, Mapping) and get_args(kind)[0] is str


def _is_optional(kind: Any) -> bool:
    return is_union(kind) and type(None) in get_args(kind)


def _optional_hook(kind: Any, converter: Converter) -> Hook:
    inner, *others = [part for part in get_args(kind) if part is not type(None)]
    for each in others:
        inner = inner | each
    inner_hook = get_hook(inner, converter)
    # Runtimes written in Go send "" for an address that is not set.
    absent = (None, "") if inner in _TEXTS else (None,)

    def hook(value: Any, _: Any) -> Any:
        return None if value in absent else inner_hook(value, inner)

    return hook


_ADDRESS = "an IP address"
_CIDR = 'an address with its prefix length, such as "10.1.2.3/24"'
_NETWORK = 'a network with its prefix length, such as "10.1.2.0/24"'
_EXPECTED: dict[Any, str] = {IPAddress: _ADDRESS, IPInterface: _CIDR, IPNetwork: _NETWORK}
_TEXTS: dict[Any, Hook] = {
    IPv4Address: _text(parse_address, "an IPv4 address", IPv4Address),
    IPv6Address: _text(parse_address, "an IPv6 address", IPv6Address),
    IPAddress: _text(parse_address, _ADDRESS),
    IPv4Interface: _text(parse_interface, _CIDR, IPv4Interface),
    IPv6Interface: _text(parse_interface, _CIDR, IPv6Interface),
    IPInterface: _text(parse_interface, _CIDR),
    IPv4Network: _text(parse_network, _NETWORK, IPv4Network),
    IPv6Network: _text(parse_network, _NETWORK, IPv6Network),
    IPNetwork: _text(parse_network, _NETWORK),
}


def _any_hook(kind: Any, converter: Converter) -> Hook:
    return lambda value, _: value


_READERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Converter], Hook]], ...] = (
    (_is_deferred, _deferred_hook),
    (_is_class, _class_hook),
    (_TEXTS.__contains__, lambda kind, _: _TEXTS[kind]),
    (_is_optional, _optional_hook),
    (_is_tuple, _tuple_hook),
    (_is_mapping, _mapping_hook),
    (is_any, _any_hook),
    (lambda kind: True, _make_rare_hook),
)
"""Which annotations the second function makes hooks for. The first that applies counts."""


class Rules:
    """The functions that read annotations and write objects, each made on first use.

    It has the methods of a cattrs converter that this package uses, so that either serves.

    Args:
        hooks: Hooks for some annotations, in place of the usual ones.
    """

    def __init__(self, hooks: Mapping[Any, Hook] | None = None) -> None:
        self._hooks = _EXACT | dict(hooks or {})
        self._writers: dict[type, Callable[[Any], Any]] = {}

    def get_structure_hook(self, kind: Any) -> Hook:
        """Return the function that reads an annotation."""
        hook = self._hooks.get(kind)
        if hook is None:
            make = next(factory for applies, factory in _READERS if applies(kind))
            hook = self._hooks[kind] = make(kind, self)
        return hook

    def unstructure(self, value: Any) -> Any:
        """Make JSON values of an object."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        write = self._writers.get(kind)
        if write is None:
            write = self._writers[kind] = _make_writer(kind, self)
        return write(value)


def make_converter() -> BaseConverter:
    """Make a cattrs converter with this package's rules, for authors who add hooks for types of their own."""
    from pathlib import Path

    from cattrs import BaseConverter

    converter = BaseConverter(detailed_validation=False)
    for kind, hook in {**_EXACT, bytes: _rare, Path: _rare}.items():
        converter.register_structure_hook(kind, hook)
    # Later registrations are asked first.
    for applies, factory in reversed(_READERS):
        converter.register_structure_hook_factory(applies, factory)

    for text_type in _WRITTEN_AS_TEXT:
        converter.register_unstructure_hook(text_type, str)
    converter.register_unstructure_hook(float, _plain_number)
    converter.register_unstructure_hook_factory(is_attrs_class, _unstructure_hook)
    converter.register_unstructure_hook_factory(
        _is_deferred, lambda _: lambda value: converter.unstructure(dict(value.document))
    )
    return converter


_shared = Rules()


def get_converter() -> Rules:
    """Return the rules of this package."""
    return _shared


def structure(
    value: object,
    cls: type[_T],
    *,
    what: str = "network configuration",
    path: str = "$",
    error: type[CNIError] = InvalidConfigError,
    converter: Converter | None = None,
) -> _T:
    """Make a typed object of a parsed JSON value.

    Args:
        value: The value that :func:`loads` returned, or a part of it.
        cls: An attrs class, or any type its fields may have.
        what: Name of the document, for the message.
        path: Place of the value in its document, for the message.
        error: The class to raise.
        converter: One made by :func:`make_converter`, with further hooks.

    Raises:
        InvalidConfigError: (7) Or `error`: a value has the wrong kind. The message has its path, the value and the kind
            that was expected.
    """
    try:
        return cast("_T", structure_whole(get_hook(cls, converter or get_converter()), value, cls))
    except Mismatch as exc:
        raise complain(exc, what, path, error) from exc


def find_repeated_key(text: bytes, name: str) -> str | None:
    """Return a key that an object of the document's own key `name` has twice; None when it has none.

    JSON does not say which of the two counts: where that matters, refuse the document.

    Args:
        text: A document that :func:`loads` accepts.
        name: A key of the document, in any case.
    """

    class Object(dict[str, Any]):
        repeated: str | None = None

    def parse(pairs: list[tuple[str, Any]]) -> Object:
        parsed = Object()
        for key, value in pairs:
            if key in parsed:
                parsed.repeated = key
            parsed[key] = value
        return parsed

    import json

    return getattr(find_key(json.loads(text, object_pairs_hook=parse), name), "repeated", None)


def find_key(document: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key, matched as by :func:`structure`: exactly first, then in any case; None when absent."""
    if key not in document:
        key = next((given for given in document if given.lower() == key.lower()), key)
    return document.get(key)


def complain(mismatch: Mismatch, what: str, root: str, error: type[CNIError]) -> CNIError:
    """Make the error for the runtime."""
    place = show_path(mismatch.path, root)
    return error(f"invalid {what}: {place} {_show(mismatch.value)}{mismatch.problem}")


def check_class(cls: type[Any], converter: Converter | None = None) -> None:
    """Verify that configurations can be read into a class. It takes as long as reading the first configuration.

    Raises:
        UnsupportedAnnotationError: It has an annotation that no JSON value is read into.
        TypeError: It is no attrs class, or one of its bases is none.
    """
    made = ["__attrs_attrs__" in vars(each) for each in cls.__mro__]
    last = max((place for place, is_made in enumerate(made) if is_made), default=0)
    for each, is_made in zip(cls.__mro__[: last + 1], made, strict=False):
        if not is_made:
            raise TypeError(f"{each.__qualname__} is no attrs class: put @frozen(kw_only=True) above it")
    try:
        get_hook(cls, converter or get_converter())
    except NameError:
        pass  # an annotation names what the module defines later


# --- unstructuring ----------------------------------------------------------------------------------------------------


_WRITTEN_AS_TEXT = (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network)


def _make_writer(kind: type, rules: Rules) -> Callable[[Any], Any]:
    """Make the function that writes objects of a class."""
    if kind in _WRITTEN_AS_TEXT:
        return str
    if kind is float:
        return _plain_number
    if kind is list or kind is tuple:
        return lambda value: kind([rules.unstructure(part) for part in value])
    if kind is dict:
        return lambda value: {rules.unstructure(key): rules.unstructure(part) for key, part in value.items()}
    if _is_deferred(kind):
        return lambda value: rules.unstructure(dict(value.document))
    if is_attrs_class(kind):
        return _unstructure_hook(kind, rules)
    return make_converter().get_unstructure_hook(kind)  # a class this package never makes


def _unstructure_hook(cls: Any, converter: Converter) -> Callable[[Any], dict[str, Any]]:
    fields = [
        (each.name, each.key, None if each.always else each.make_default(None))
        for each in get_fields(cls, typed=False)
        if each.name != "extra"
    ]

    def hook(instance: Any) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for name, key, default in fields:
            value = getattr(instance, name)
            if value is None or (default is not None and value == default):
                continue
            document[key] = value if type(value) in _PLAIN else converter.unstructure(value)
        for key, value in getattr(instance, "extra", {}).items():
            if key not in document:
                document[key] = value if type(value) in _PLAIN else converter.unstructure(value)
        return document

    return hook


_PLAIN = frozenset({str, int, bool, type(None)})

# From here on the reference writes numbers with an exponent.
_LARGE = 1e21


def _plain_number(value: float) -> int | float:
    """Write a number as the reference does: tools write 1e6 and 1400.0, which plugins do not accept as integers."""
    return int(value) if value.is_integer() and abs(value) < _LARGE else value


def unstructure(value: object) -> Any:
    """Make JSON values of typed objects: keys in the reference's order, absent and empty ones left out."""
    return get_converter().unstructure(value)


# --- text -------------------------------------------------------------------------------------------------------------


_HALF_PAIR = "\\ud"


def loads(data: bytes, what: str = "network configuration") -> Any:
    """Parse one JSON document, strictly: UTF-8, no comments, no NaN, nothing after it.

    Raises:
        DecodingError: (6) `data` is not such a document. The message has the position.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise DecodingError(f"{what} is not UTF-8: byte {exc.start} is 0x{data[exc.start]:02x}") from exc
    try:
        document = read(text)
        if _HALF_PAIR in text.lower():
            write(document).encode()
        return document
    except UnicodeEncodeError as exc:
        raise DecodingError(f"{what} is not JSON: it has half a surrogate pair, which stands for no character") from exc
    except ValueError as exc:
        if not text.strip():
            raise DecodingError(f"{what} is empty, expected a JSON document") from exc
        raise DecodingError(f"{what} is not JSON: {place_of(exc)}") from exc
    except RecursionError as exc:
        raise DecodingError(f"{what} is nested too deeply") from exc


# Characters that the reference's encoder escapes beyond JSON's own rules, for texts in HTML.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def _encode(text: str) -> bytes:
    # A lone surrogate (JSON allows "\\ud800") has no UTF-8 form; the reference writes U+FFFD.
    return text.translate(_ESCAPES).encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def dumps(value: object, *, sort_keys: bool = False) -> bytes:
    """Write a document as the reference prints results and errors: four spaces, no newline at the end."""
    return _encode(write(unstructure(value), sort_keys=sort_keys, indent=True))


def dumps_compact(value: object, *, sort_keys: bool = False) -> bytes:
    """Write a document without white space."""
    return _encode(write(unstructure(value), sort_keys=sort_keys))
