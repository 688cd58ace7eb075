"""Values that are not what their place asks for, and where they stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Hook = Callable[[Any, Any], Any]
Path = tuple[str | int, ...]


class Mismatch(ValueError):
    """A value that is not what its place asks for.

    Attributes:
        value: The JSON value.
        problem: What is wrong with it, to be read after the value: ``, expected an integer``.
        path: Where it stands, seen from the hook that raised this.
    """

    def __init__(self, value: object, expected: str = "", path: Path = (), *, problem: str = "") -> None:
        self.problem = problem or f", expected {expected}"
        super().__init__(self.problem)
        self.value = value
        self.path = path


class UnsupportedAnnotationError(TypeError):
    """A configuration class has an annotation that no JSON value is read into.

    Raised when the class of the plugin is defined. The message names class and field, and what to write instead.
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
            parts.append(f"[{json.dumps(step)}]")
    return "".join(parts)


def structure_part(hook: Hook, value: Any, kind: Any, step: str | int) -> Any:
    """Structure a part, and put its place before the path of what went wrong in it."""
    try:
        return hook(value, kind)
    except Mismatch as exc:
        exc.path = (step, *exc.path)
        raise
    except UnsupportedAnnotationError:
        raise
    except Exception as exc:  # a hook of a plugin's author
        raise Mismatch(value, path=(step,), problem=own_words(exc)) from exc


def own_words(exc: Exception) -> str:
    """What a check of a plugin's author says of a value. attrs' own validators put it first of several arguments."""
    text = str(exc.args[0]) if exc.args else ""
    return f": {text}" if text and isinstance(exc, (ValueError, TypeError)) else f": {type(exc).__name__}: {text}"
