"""JSON in and out, strictly typed, through cattrs.

Reading: keys match the Go way (an exact match first, then in any case), ``null`` is absent, unknown keys are kept in
the attribute ``extra`` where a class has one, and no value is coerced: ``"false"`` is no bool, ``1.5`` and ``true`` are
no ints. A wrong value is named by its JSON path.

Writing: the keys, their order, the indentation and what is left out are those of the reference tools. So are numbers:
one without a fraction is written as an integer.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import attrs
from cattrs import BaseConverter

from ..errors import CNIError, DecodingError, InvalidConfigError
from .addresses import IPAddress, IPInterface, IPNetwork, parse_address, parse_interface, parse_network
from .fields import ALWAYS, get_attributes, key_of
from .mismatch import MISSING, Hook, Mismatch, UnsupportedAnnotationError, own_words, show_path, structure_part
from .names import shorten
from .value import Deferred, Value

T = TypeVar("T")


def _show(value: object) -> str:
    """Show a wrong value. Of objects and arrays only the kind: they may hold what must not be logged."""
    if value is MISSING:
        return "is missing"
    if isinstance(value, Mapping):
        return "is an object"
    if isinstance(value, list | tuple):
        return "is an array"
    if value is None or isinstance(value, bool):
        return f"is {json.dumps(value)}"
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
    # JSON has numbers of any size, and Python integers, too. What takes a float cannot count with them.
    if type(value) in (float, int) and -_LARGEST <= value <= _LARGEST:
        return value
    raise Mismatch(value, "a number" if type(value) not in (float, int) else f"a number up to {_LARGEST:.2g}")


def _rare(value: Any, kind: Any) -> Any:
    """Stand for a type for which cattrs has a hook of its own, and :mod:`.annotations` has another."""
    raise AssertionError(kind)


_EXACT: dict[type, Hook] = {
    bool: _exactly(bool, expected="true or false"),
    int: _exactly(int, expected="an integer"),
    float: _number,
    str: _exactly(str, expected="a string"),
    bytes: _rare,
    pathlib.Path: _rare,
}
_EXACT_HOOKS = frozenset(_EXACT.values())


def get_hook(kind: Any, converter: BaseConverter) -> Hook:
    """Return the function that reads an annotation.

    Raises:
        UnsupportedAnnotationError: There is none.
    """
    hook = converter.get_structure_hook(kind)
    # cattrs hands a subclass of str or int, such as an Enum, to the hook of its base.
    if hook in _EXACT_HOOKS and (_EXACT.get(kind) is not hook or hook is _rare):
        return _make_rare_hook(kind, converter)
    return hook


def _make_rare_hook(kind: Any, converter: BaseConverter) -> Hook:
    from .annotations import make_hook

    return make_hook(kind, lambda part: get_hook(part, converter))


def _text(parse: Callable[[str], Any], expected: str, *types: type) -> Hook:
    """A hook for values written as strings. ``types``: what the parsed value may be; none means anything."""

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


def _tuple_hook(kind: Any, converter: BaseConverter) -> Hook:
    item = get_args(kind)[0]
    item_hook = get_hook(item, converter)

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list and type(value) is not tuple:
            raise Mismatch(value, "an array")
        return tuple(structure_part(item_hook, part, item, index) for index, part in enumerate(value))

    return hook


def _mapping_hook(kind: Any, converter: BaseConverter) -> Hook:
    item = get_args(kind)[1]
    item_hook = get_hook(item, converter)
    takes_null = item is Any or item is object or _is_optional(item)

    def hook(value: Any, _: Any) -> dict[str, Any]:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise Mismatch(value, "an object")
        return {
            key: structure_part(item_hook, part, item, key)
            for key, part in value.items()
            if part is not None or takes_null  # null is absent here as well
        }

    return hook


_in_the_making: set[tuple[int, Any]] = set()


def _class_hook(cls: Any, converter: BaseConverter) -> Hook:
    key = id(converter), cls
    if key in _in_the_making:  # a class that has itself as a part
        return lambda value, kind: get_hook(cls, converter)(value, kind)  # noqa: PLW0108 - which is there by then
    _in_the_making.add(key)
    try:
        return _make_class_hook(cls, converter)
    finally:
        _in_the_making.discard(key)


def _make_class_hook(cls: Any, converter: BaseConverter) -> Hook:
    attributes = get_attributes(cls)
    keeps_extra = any(attribute.name == "extra" for attribute in attributes)
    readable = {
        key_of(attribute): attribute for attribute in attributes if attribute.name != "extra" and attribute.init
    }
    by_folded = {key.lower(): key for key in readable}
    # Of each key what it takes to read it, apart from the class's own description, which is large.
    fields = {key: (str(each.alias), each.type, _field_hook(cls, each, converter)) for key, each in readable.items()}
    required = [each for each in readable.values() if each.default is attrs.NOTHING]

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
                alias, kind, part_hook = fields[key]
                arguments[alias] = structure_part(part_hook, part, kind, given)
        for attribute in required:
            if attribute.alias not in arguments:
                raise missing_key(attribute)
        if keeps_extra and extra:
            arguments["extra"] = extra
        try:
            return cls(**arguments)
        except Exception as exc:  # what a validator, a converter or the class itself checks
            from .unchecked import find_blamed

            key = find_blamed(cls, arguments, exc)
            if key is None:
                raise Mismatch(value, problem=own_words(exc)) from exc
            given = next((each for each in value if by_folded.get(each.lower()) == key), key)
            raise Mismatch(value.get(given, MISSING), path=(given,), problem=own_words(exc)) from exc

    return hook


def _field_hook(cls: Any, attribute: "attrs.Attribute[Any]", converter: BaseConverter) -> Hook:
    try:
        return get_hook(Any if attribute.type is None else attribute.type, converter)
    except UnsupportedAnnotationError as exc:
        raise UnsupportedAnnotationError(f"{cls.__qualname__}.{attribute.name}: {exc}") from None


def missing_key(attribute: "attrs.Attribute[Any]") -> Mismatch:
    """Say that a required key is missing."""
    kinds = {str: "a string", int: "an integer", bool: "true or false", **_EXPECTED}
    return Mismatch(MISSING, kinds.get(attribute.type, "a value"), (key_of(attribute),))


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and get_origin(kind) is None and attrs.has(kind)


def _is_deferred(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Deferred)


def _deferred_hook(cls: Any, converter: BaseConverter) -> Hook:
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
    return get_origin(kind) in (Union, UnionType) and type(None) in get_args(kind)


def _optional_hook(kind: Any, converter: BaseConverter) -> Hook:
    inner: Any = Union[tuple(part for part in get_args(kind) if part is not type(None))]  # noqa: UP007 - made of a tuple
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


def make_converter() -> BaseConverter:
    """A cattrs converter with this package's rules, for authors who add hooks for types of their own."""
    converter = BaseConverter(detailed_validation=False)
    for kind, hook in _EXACT.items():
        converter.register_structure_hook(kind, hook)
    # Later registrations are asked first.
    converter.register_structure_hook_factory(lambda kind: True, _make_rare_hook)
    converter.register_structure_hook_func(lambda kind: kind is Any or kind is object, lambda value, _: value)
    converter.register_structure_hook_factory(_is_mapping, _mapping_hook)
    converter.register_structure_hook_factory(_is_tuple, _tuple_hook)
    converter.register_structure_hook_factory(_is_optional, _optional_hook)
    converter.register_structure_hook_factory(_TEXTS.__contains__, lambda kind: _TEXTS[kind])
    converter.register_structure_hook_factory(_is_class, _class_hook)
    converter.register_structure_hook_factory(_is_deferred, _deferred_hook)

    for text_type in (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network):
        converter.register_unstructure_hook(text_type, str)
    converter.register_unstructure_hook(float, _plain_number)
    converter.register_unstructure_hook_factory(attrs.has, _unstructure_hook)
    converter.register_unstructure_hook_factory(
        _is_deferred, lambda _: lambda value: converter.unstructure(dict(value.document))
    )
    return converter


_shared: BaseConverter | None = None


def get_converter() -> BaseConverter:
    """The converter of this package, made on first use."""
    global _shared
    if _shared is None:
        _shared = make_converter()
    return _shared


def structure(
    value: object,
    cls: type[T],
    *,
    what: str = "network configuration",
    path: str = "$",
    error: type[CNIError] = InvalidConfigError,
    converter: BaseConverter | None = None,
) -> T:
    """Make a typed object of a parsed JSON value.

    Args:
        value: What :func:`loads` returned, or a part of it.
        cls: An attrs class, or any type its fields may have.
        what: What the value is, for the message.
        path: Where in its document the value stands, for the message.
        error: The class to raise.
        converter: One made by :func:`make_converter`, with further hooks.

    Raises:
        InvalidConfigError: (7) Or ``error``: a value is not what its place asks for. The message has path, value and
            what was expected.
    """
    try:
        used = converter or get_converter()
        return cast("T", get_hook(cls, used)(value, cls))
    except Mismatch as exc:
        raise complain(exc, what, path, error) from exc


def find_key(document: Mapping[str, Any], key: str) -> Any:
    """The value of a key, matched as :func:`structure` does: exactly first, then in any case; None when absent."""
    if key not in document:
        key = next((given for given in document if given.lower() == key.lower()), key)
    return document.get(key)


def complain(mismatch: Mismatch, what: str, root: str, error: type[CNIError]) -> CNIError:
    """Make the error that a runtime is told."""
    place = show_path(mismatch.path, root)
    return error(f"invalid {what}: {place} {_show(mismatch.value)}{mismatch.problem}")


def check_class(cls: type[Any], converter: BaseConverter | None = None) -> None:
    """Verify that configurations can be read into a class. Costs what the first configuration would cost.

    Raises:
        UnsupportedAnnotationError: It has an annotation that no JSON value is read into.
        TypeError: It is no attrs class, or one of its bases is none.
    """
    for each in cls.__mro__:
        if each is Value:
            break
        if "__attrs_attrs__" not in vars(each):
            raise TypeError(f"{each.__qualname__} is no attrs class: put @frozen(kw_only=True) above it")
    try:
        get_hook(cls, converter or get_converter())
    except NameError:
        pass  # an annotation names what the module defines later


# --- unstructuring ----------------------------------------------------------------------------------------------------


def _default(attribute: "attrs.Attribute[Any]") -> object:
    factory = getattr(attribute.default, "factory", None)
    return attribute.default if factory is None else factory()


def _unstructure_hook(cls: Any, converter: BaseConverter) -> Callable[[Any], dict[str, Any]]:
    fields = [
        (attribute.name, key_of(attribute), None if attribute.metadata.get(ALWAYS) else _default(attribute))
        for attribute in attrs.fields(cls)
        if attribute.name != "extra"
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


_PLAIN = frozenset({str, int, bool})

# From here on the reference writes numbers with an exponent.
_LARGE = 1e21


def _plain_number(value: float) -> int | float:
    """A number as the reference writes it: tools write 1e6 and 1400.0, and no plugin takes those for an integer."""
    return int(value) if value.is_integer() and abs(value) < _LARGE else value


def unstructure(value: object) -> Any:
    """Make JSON values of typed objects: keys in the reference's order, absent and empty ones left out."""
    return get_converter().unstructure(value)


# --- text -------------------------------------------------------------------------------------------------------------


_HALF_PAIR = "\\ud"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {shorten(text)} is too large")
    return number


_decoder = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def loads(data: bytes, what: str = "network configuration") -> Any:
    """Parse one JSON document, strictly: UTF-8, no comments, no NaN, nothing after it.

    Raises:
        DecodingError: (6) ``data`` is not such a document. The message says where.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise DecodingError(f"{what} is not UTF-8: byte {exc.start} is 0x{data[exc.start]:02x}") from exc
    try:
        document = _decoder.decode(text)
        if _HALF_PAIR in text.lower():
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except UnicodeEncodeError as exc:
        raise DecodingError(f"{what} is not JSON: it has half a surrogate pair, which stands for no character") from exc
    except json.JSONDecodeError as exc:
        if not text.strip():
            raise DecodingError(f"{what} is empty, expected a JSON document") from exc
        raise DecodingError(f"{what} is not JSON: {exc.msg} at line {exc.lineno} column {exc.colno}") from exc
    except ValueError as exc:
        raise DecodingError(f"{what} is not JSON: {exc}") from exc
    except RecursionError as exc:
        raise DecodingError(f"{what} is nested too deeply") from exc


# What the reference's encoder escapes beyond JSON's own rules, so that the text can stand in HTML.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def _encode(text: str) -> bytes:
    # A lone surrogate (JSON allows "\\ud800") has no UTF-8 form; the reference writes U+FFFD.
    return text.translate(_ESCAPES).encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def dumps(value: object, *, sort_keys: bool = False) -> bytes:
    """Write a document as the reference prints results and errors: four spaces, no newline at the end."""
    return _encode(_indent(unstructure(value), "\n", sort_keys))


_scalar = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _indent(value: Any, newline: str, sort_keys: bool) -> str:
    """As json.dumps(indent=4) would, which goes through a document character by character in Python."""
    inner = f"{newline}    "
    if value and isinstance(value, dict):
        items = sorted(value.items()) if sort_keys else value.items()
        parts = [f"{_scalar(key)}: {_indent(part, inner, sort_keys)}" for key, part in items]
        return f"{{{inner}{f',{inner}'.join(parts)}{newline}}}"
    if value and isinstance(value, (list, tuple)):
        return f"[{inner}{f',{inner}'.join([_indent(part, inner, sort_keys) for part in value])}{newline}]"
    return _scalar(value)


def dumps_compact(value: object, *, sort_keys: bool = False) -> bytes:
    """Write a document without white space."""
    return _encode(
        json.dumps(unstructure(value), separators=(",", ":"), ensure_ascii=False, sort_keys=sort_keys, allow_nan=False)
    )
