"""JSON in and out, strictly typed, through cattrs.

Reading: keys match the Go way (an exact match first, then in any case), ``null`` is absent, unknown keys are kept in
the attribute ``extra`` where a class has one, and no value is coerced: ``"false"`` is no bool, ``1.5`` and ``true`` are
no ints. A wrong value is named by its JSON path.

Writing: the keys, their order, the indentation and what is left out are those of the reference tools.
"""

import json
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
from typing import Any, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import BaseConverter

from ..errors import CNIError, DecodingError, InvalidConfigError
from .addresses import IPAddress, IPInterface, IPNetwork, parse_address, parse_interface, parse_network
from .names import shorten

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]
Path = tuple[str | int, ...]

_KEY, _ALWAYS = "cnisdk.key", "cnisdk.always"


def json_field(key: str | None = None, *, always: bool = False, default: Any = attrs.NOTHING) -> Any:
    """Declare an attrs field whose JSON key is not the camelCase of its name, or that is written even when it is empty.

    Args:
        key: The JSON key; None means camelCase of the name (``cni_version`` is ``cniVersion``).
        always: Write the key also when the value is the default.
        default: As for :func:`attrs.field`.
    """
    metadata: dict[str, object] = {_ALWAYS: always}
    if key is not None:
        metadata[_KEY] = key
    return attrs.field(default=default, metadata=metadata)


def key_of(attribute: "attrs.Attribute[Any]") -> str:
    """The JSON key of an attrs field."""
    key = attribute.metadata.get(_KEY)
    if key is None:
        first, *rest = attribute.name.split("_")
        key = first + "".join(word.capitalize() for word in rest)
    return str(key)


class Mismatch(ValueError):
    """A value that is not what its place asks for; carries where it stands."""

    def __init__(self, value: object, expected: str, path: Path = ()) -> None:
        super().__init__(f"expected {expected}")
        self.value = value
        self.expected = expected
        self.path = path


_MISSING = object()


def show_path(path: Path, root: str = "$") -> str:
    """Write a JSON path: ``$.ipam.ranges[0].subnet``, ``$["cni.dev/valid-attachments"]``."""
    parts = [root]
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif step.isidentifier():
            parts.append(f".{step}")
        else:
            parts.append(f"[{json.dumps(step)}]")
    return "".join(parts)


def _show(value: object) -> str:
    """Show a wrong value. Of objects and arrays only the kind: they may hold what must not be logged."""
    if value is _MISSING:
        return "is missing"
    if isinstance(value, Mapping):
        return "is an object"
    if isinstance(value, list | tuple):
        return "is an array"
    if value is None or isinstance(value, bool):
        return f"is {json.dumps(value)}"
    return f"is {shorten(value)}"


# --- structuring ------------------------------------------------------------------------------------------------------


def _exactly(*types: type, expected: str) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        # type() and not isinstance(): a bool is an int to Python, not to JSON.
        if type(value) in types:
            return value
        raise Mismatch(value, expected)

    return hook


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


def _step(hook: Hook, value: Any, kind: Any, step: str | int) -> Any:
    """Structure a part, and put its place before the path of what went wrong in it."""
    try:
        return hook(value, kind)
    except Mismatch as exc:
        exc.path = (step, *exc.path)
        raise
    except (ValueError, TypeError) as exc:  # a validator or hook of a plugin's author
        raise Mismatch(value, str(exc), (step,)) from exc


def _tuple_hook(kind: Any, converter: BaseConverter) -> Hook:
    item = get_args(kind)[0]
    item_hook = converter.get_structure_hook(item)

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list and type(value) is not tuple:
            raise Mismatch(value, "an array")
        return tuple(_step(item_hook, part, item, index) for index, part in enumerate(value))

    return hook


def _mapping_hook(kind: Any, converter: BaseConverter) -> Hook:
    arguments = get_args(kind)
    item = arguments[1] if arguments else Any
    item_hook = converter.get_structure_hook(item)

    def hook(value: Any, _: Any) -> dict[str, Any]:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise Mismatch(value, "an object")
        return {key: _step(item_hook, part, item, key) for key, part in value.items()}

    return hook


def _class_hook(cls: Any, converter: BaseConverter) -> Hook:
    attributes = attrs.fields(cls)
    if any(isinstance(attribute.type, str) for attribute in attributes):  # the author's module postpones annotations
        attributes = attrs.fields(attrs.resolve_types(cls))
    keeps_extra = any(attribute.name == "extra" for attribute in attributes)
    readable = {
        key_of(attribute): attribute for attribute in attributes if attribute.name != "extra" and attribute.init
    }
    by_folded = {key.lower(): key for key in readable}
    # Of each key what it takes to read it, apart from the class's own description, which is large.
    fields = {
        key: (attribute.alias, attribute.type, converter.get_structure_hook(attribute.type))
        for key, attribute in readable.items()
    }
    required = [key for key, attribute in readable.items() if attribute.default is attrs.NOTHING]

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
                arguments[alias] = _step(part_hook, part, kind, given)
        for key in required:
            alias, kind, _ = fields[key]
            if alias not in arguments:
                raise Mismatch(_MISSING, _describe(kind), (key,))
        if keeps_extra and extra:
            arguments["extra"] = extra
        try:
            return cls(**arguments)
        except (ValueError, TypeError) as exc:  # what the class itself checks
            raise Mismatch(value, str(exc)) from exc

    return hook


def _describe(kind: Any) -> str:
    """What a missing value should have been."""
    return {str: "a string", int: "an integer", bool: "true or false", **_EXPECTED}.get(kind, "a value")


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) in (dict, Mapping)


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and type(None) in get_args(kind)


def _optional_hook(kind: Any, converter: BaseConverter) -> Hook:
    inner: Any = Union[tuple(part for part in get_args(kind) if part is not type(None))]  # noqa: UP007 - made of a tuple
    inner_hook = converter.get_structure_hook(inner)
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
    for kind, hook in (
        (bool, _exactly(bool, expected="true or false")),
        (int, _exactly(int, expected="an integer")),
        (float, _exactly(float, int, expected="a number")),
        (str, _exactly(str, expected="a string")),
    ):
        converter.register_structure_hook(kind, hook)
    # Later registrations are asked first.
    converter.register_structure_hook_func(lambda kind: kind is Any or kind is object, lambda value, _: value)
    converter.register_structure_hook_factory(_is_mapping, _mapping_hook)
    converter.register_structure_hook_factory(_is_tuple, _tuple_hook)
    converter.register_structure_hook_factory(_is_optional, _optional_hook)
    converter.register_structure_hook_factory(_TEXTS.__contains__, lambda kind: _TEXTS[kind])
    converter.register_structure_hook_factory(attrs.has, _class_hook)

    for text_type in (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network):
        converter.register_unstructure_hook(text_type, str)
    converter.register_unstructure_hook_factory(attrs.has, _unstructure_hook)
    return converter


_shared: BaseConverter | None = None


def _converter() -> BaseConverter:
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
        return (converter or _converter()).structure(value, cls)
    except Mismatch as exc:
        raise _complain(exc, what, path, error) from exc


def find_key(document: Mapping[str, Any], key: str) -> Any:
    """The value of a key, matched as :func:`structure` does: exactly first, then in any case; None when absent."""
    if key not in document:
        key = next((given for given in document if given.lower() == key.lower()), key)
    return document.get(key)


def structure_leniently(
    value: object, cls: type[T], *, what: str = "network configuration"
) -> tuple[T, list[CNIError]]:
    """Make a typed object, leaving out what is wrong: DEL must work with a configuration that became invalid.

    Returns:
        The object, with the default in each place that was wrong, and what :func:`structure` would have raised for
        each.

    Raises:
        InvalidConfigError: (7) Something the class cannot do without is wrong or missing.
    """
    problems: list[CNIError] = []
    while True:
        try:
            return _converter().structure(value, cls), problems
        except Mismatch as exc:
            problem = _complain(exc, what, "$", InvalidConfigError)
            wrong = exc.path[:-1] if exc.value is _MISSING else exc.path  # what lacks a part goes as a whole
            if not wrong:
                raise problem from exc
            problems.append(problem)
            value = _without(value, wrong)


def _without(value: Any, path: Path) -> Any:
    """A copy of the value that lacks what the path leads to."""
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        kept = [part for index, part in enumerate(value) if rest or index != step]
        if rest:
            kept[step] = _without(kept[step], rest)
        return kept
    return {key: _without(part, rest) if key == step else part for key, part in value.items() if rest or key != step}


def _complain(mismatch: Mismatch, what: str, root: str, error: type[CNIError]) -> CNIError:
    place = show_path(mismatch.path, root)
    return error(f"invalid {what}: {place} {_show(mismatch.value)}, expected {mismatch.expected}")


# --- unstructuring ----------------------------------------------------------------------------------------------------


def _default(attribute: "attrs.Attribute[Any]") -> object:
    factory = getattr(attribute.default, "factory", None)
    return attribute.default if factory is None else factory()


def _unstructure_hook(cls: Any, converter: BaseConverter) -> Callable[[Any], dict[str, Any]]:
    fields = [
        (attribute.name, key_of(attribute), None if attribute.metadata.get(_ALWAYS) else _default(attribute))
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
            document.setdefault(key, value)
        return document

    return hook


_PLAIN = frozenset({str, int, bool, float})


def unstructure(value: object) -> Any:
    """Make JSON values of typed objects: keys in the reference's order, absent and empty ones left out."""
    return _converter().unstructure(value)


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
