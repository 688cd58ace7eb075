"""Quote what a plugin printed in an error, without what it was given: its configuration may hold secrets.

A plugin that fails may print its standard input, its environment, or a part of either. Errors go to logs and to people
who may not see the configuration. So every value of the request, and every longer piece of one, is replaced in the
quotation. The names of networks and plugins, and versions, stay: the runtime itself puts them into errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from .._light import Any

# Characters of a plugin's output that a message quotes.
SHOWN = 1024

_WINDOW = 4096  # characters of the output that are searched
_HIDDEN = "[…]"
# Pieces of values of this length are found. A shorter piece may stand where the output was cut off.
_PIECE = 8
# And pieces of this length of the request's own text: keys and punctuation.
_RAW_PIECE = 24
# Shorter values are only hidden as words of their own: a "1" is no reason to hide every 1.
_WORD = 4
# The output of a plugin with a larger request is not quoted: searching it would take too long.
_REQUEST_MAX = 8 << 20


def quote(printed: bytes, request: bytes, environ: Mapping[str, str], *, tail: bool = False, cut: bool = False) -> str:
    """Make an :func:`excerpt`, as a JSON string, that says how much it leaves out; empty when the output is empty."""
    printed = printed.strip()
    if not printed:
        return ""
    kept, whole = excerpt(printed, request, environ, tail=tail, cut=cut)
    quoted = json.dumps(kept, ensure_ascii=False)
    if whole:
        return quoted
    size = f"{'more than ' if cut else ''}{len(printed)}"
    return f"{quoted} ({'the last' if tail else 'the first'} {len(kept)} bytes of {size})"


def excerpt(
    printed: bytes, request: bytes, environ: Mapping[str, str], *, tail: bool = False, cut: bool = False
) -> tuple[str, bool]:
    """Make an excerpt of a plugin's output: its beginning, or its end.

    Args:
        printed: The output.
        request: The standard input of the plugin.
        environ: Its environment, of which ``CNI_ARGS`` counts.
        tail: If true, make the excerpt of the end.
        cut: If true, `printed` is a part of the output.

    Returns:
        The text, and whether it is the whole output, apart from hidden values.
    """
    printed = printed.strip()
    if len(request) > _REQUEST_MAX:
        return "", not printed
    window = printed[-_WINDOW:] if tail else printed[:_WINDOW]
    cut = cut or len(window) < len(printed)
    text = window.decode(errors="replace")
    hidden = _find_values(text, request, environ)
    if cut:  # the rest of a value, too short to be found
        hidden.update(range(_PIECE - 1) if tail else range(max(0, len(text) - _PIECE + 1), len(text)))
    shown = _hide(text, hidden)
    kept = shown[-SHOWN:] if tail else shown[:SHOWN]
    return kept, not cut and len(kept) == len(shown)


def _hide(text: str, hidden: set[int]) -> str:
    parts: list[str] = []
    for position, mark in enumerate(text):
        if position not in hidden:
            parts.append(mark)
        elif position - 1 not in hidden:
            parts.append(_HIDDEN)
    return "".join(parts)


def _find_values(text: str, request: bytes, environ: Mapping[str, str]) -> set[int]:
    """Return the positions of the text that belong to a value of the request."""
    given = request.decode(errors="replace")
    try:
        document = json.loads(given)
    except (ValueError, RecursionError):
        document = None
    known = _harmless(document)
    values = {value for value in _values(document) if value not in known}
    values.update(part.partition("=")[2] for part in environ.get("CNI_ARGS", "").split(";"))
    values.discard("")
    spelled = {each for value in values for each in _spellings(value)}
    hidden = _find_pieces(text, spelled, _PIECE)
    hidden |= _find_pieces(text, [given], _PIECE if document is None else _RAW_PIECE)
    for value in spelled:
        pattern = re.escape(value)
        if len(value) < _WORD:
            pattern = rf"(?<![0-9A-Za-z]){pattern}(?![0-9A-Za-z])"
        for match in re.finditer(pattern, text):
            hidden.update(range(*match.span()))
    return hidden


def _find_pieces(text: str, given: Iterable[str], length: int) -> set[int]:
    """Return the positions of the text that belong to pieces of this length of the given texts."""
    starts = range(len(text) - length + 1)
    pieces = {text[start : start + length] for start in starts}
    found = set()
    for each in given:
        for start in range(len(each) - length + 1):
            piece = each[start : start + length]
            if piece in pieces:
                found.add(piece)
    return {start + offset for start in starts if text[start : start + length] in found for offset in range(length)}


def _values(document: Any) -> Iterator[str]:
    """Yield each value of a document as text, without keys."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str):
            yield value
        elif value is not None and not isinstance(value, bool):
            yield json.dumps(value)


def _spellings(value: str) -> set[str]:
    """Yield a value as it is, and as JSON writes it."""
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}


def _harmless(document: Any) -> set[str]:
    """Return the values that the runtime puts into errors itself."""
    if not isinstance(document, dict):
        return set()
    found = [document.get(key) for key in ("cniVersion", "name", "type")]
    for key, inner in (("ipam", "type"), ("prevResult", "cniVersion")):
        part = document.get(key)
        found.append(part.get(inner) if isinstance(part, dict) else None)
    return {value for value in found if isinstance(value, str)}
