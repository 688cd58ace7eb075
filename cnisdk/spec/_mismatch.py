"""The exception for a wrong value of a JSON document, and for its place."""

from __future__ import annotations

from collections.abc import Callable

from .._light import Any
from ..errors import name_and_text
from ._json import write_ascii

Hook = Callable[[Any, Any], Any]
Path = tuple[str | int, ...]


class Mismatch(ValueError):
    """Raised for a JSON value of the wrong kind.

    Attributes:
        value: The JSON value.
        problem: The end of a sentence that begins with the value: ``, expected an integer``.
        path: The keys and indexes that lead to the value from the one that the hook was given.
    """

    def __init__(self, value: object, expected: str = "", path: Path = (), *, problem: str = "") -> None:
        self.problem = problem or f", expected {expected}"
        super().__init__(self.problem)
        self.value = value
        self.path = path


class UnsupportedAnnotationError(TypeError):
    """Raised for an annotation that no JSON value is read into, when the class of the plugin is defined.

    The message names class and field, and what to write instead.
    """


MISSING = object()


def show_path(path: Path, root: str = "$") -> str:
    """Write a JSON path: ``$.ipam.ranges[0].subnet``, ``$["cni.dev/valid-attachments"]``."""
    parts = [root]
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif step.isidentifier():
            parts.append(f".{step}")
        else:
            parts.append(f"[{write_ascii(step)}]")
    return "".join(parts)


def structure_part(hook: Hook, value: Any, kind: Any, step: str | int) -> Any:
    """Structure a part, and put its place before the path of a wrong value in it."""
    try:
        return hook(value, kind)
    except Mismatch as exc:
        exc.path = (step, *exc.path)
        raise
    except UnsupportedAnnotationError:
        raise
    except Exception as exc:  # a hook of a plugin's author
        raise Mismatch(value, path=(step,), problem=own_words(exc)) from exc


def structure_whole(hook: Hook, value: Any, kind: Any) -> Any:
    """Structure a value that is no part of another one here."""
    try:
        return hook(value, kind)
    except (Mismatch, UnsupportedAnnotationError):
        raise
    except Exception as exc:  # a hook of a plugin's author
        raise Mismatch(value, problem=own_words(exc)) from exc


def own_words(exc: Exception) -> str:
    """Return the text of an exception from a plugin author's check. attrs' validators have it as the first argument."""
    text = str(exc.args[0]) if exc.args else ""
    return f": {text}" if text and isinstance(exc, (ValueError, TypeError)) else f": {name_and_text(exc)}"
