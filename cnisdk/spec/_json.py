"""JSON text, read and written without importing :mod:`json` (and re) where all is well.

json hands the work to an extension module of the interpreter. So does this module, with the same settings. What that
refuses, or an interpreter without it, goes through json, which has the words for errors.
"""

from __future__ import annotations

from .._light import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _too_large(text)
    return number


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:  # Python reads some thousand digits, and its own words are for programmers
        raise _too_large(text) from exc


def _too_large(text: str) -> ValueError:
    return ValueError(f"the number {text if len(text) < 80 else f'{text[:79]}…'} is too large")


class _Settings:
    """Settings of the scanner, by the names of :class:`json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_read_float)
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)
    memo: ClassVar[dict[str, str]] = {}


write_ascii: Callable[[str], str]
"""Function that writes a text as JSON has it in ASCII."""
_scan: Any = None
_write_text: Callable[[str], str]
try:
    import _json
except ImportError:
    from json.encoder import encode_basestring as _write_text, encode_basestring_ascii as write_ascii
else:
    settings: Any = _Settings
    _scan, _write_text, write_ascii = (
        _json.make_scanner(settings),
        _json.encode_basestring,
        _json.encode_basestring_ascii,
    )


def read(text: str) -> Any:
    """Parse one document.

    Raises:
        ValueError: It is none, or has a number that no float holds, or NaN.
    """
    if _scan is not None:
        document = text.strip(" \t\n\r")
        try:
            value, end = _scan(document, 0)
        except (ValueError, StopIteration):
            pass
        except SystemError:  # Python 3.11 has no exception for it until json.decoder is loaded
            pass
        else:
            if end == len(document):
                return value
    import json

    return json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_read_float, parse_int=_read_int).decode(text)


def place_of(error: ValueError) -> str:
    """Say what is wrong with a document, and where, by the error of :func:`read`."""
    import json

    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at line {error.lineno} column {error.colno}"
    return str(error)


def write(value: Any, *, sort_keys: bool = False, indent: bool = False) -> str:
    """Write a document, with an indentation of four spaces or without white space. It may have any characters.

    It writes as :func:`json.dumps` does. With an indentation that is slow: it joins the document piece by piece.

    Raises:
        TypeError: It has a value that JSON has not.
        ValueError: It has a number that JSON has not.
    """
    return _write(value, "\n" if indent else "", sort_keys)


def _write(value: Any, newline: str, sort_keys: bool) -> str:
    kind = type(value)
    if kind is str:
        return _write_text(value)
    if value is None or kind is bool:
        return _CONSTANTS[value]
    if kind is int:
        return int.__repr__(value)
    if not value and kind in _EMPTY:
        return _EMPTY[kind]
    inner, colon = (f"{newline}    ", ": ") if newline else ("", ":")
    if value and isinstance(value, dict):
        items = sorted(value.items()) if sort_keys else value.items()
        parts = [f"{_write_key(key)}{colon}{_write(part, inner, sort_keys)}" for key, part in items]
        return f"{{{inner}{f',{inner}'.join(parts)}{newline}}}"
    if value and isinstance(value, (list, tuple)):
        return f"[{inner}{f',{inner}'.join([_write(part, inner, sort_keys) for part in value])}{newline}]"
    import json

    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _write_key(key: Any) -> str:
    if type(key) is str:
        return _write_text(key)
    import json

    return json.dumps({key: 0}, ensure_ascii=False, allow_nan=False)[1:-4]


_EMPTY: dict[type, str] = {dict: "{}", list: "[]", tuple: "[]"}
_CONSTANTS = {None: "null", True: "true", False: "false"}
