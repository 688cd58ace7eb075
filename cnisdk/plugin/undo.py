"""Undo of a request that fails: the inverse of each step, in reverse order."""

from __future__ import annotations

from collections.abc import Callable

from .._light import ParamSpec

_P = ParamSpec("_P")


class UndoStack:
    """Inverses of the steps done so far. It is empty after the work was committed or undone."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._closers: list[Callable[[], object]] = []

    def __bool__(self) -> bool:
        """True if there is something to undo."""
        return bool(self._steps)

    def push(self, inverse: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> Callable[[], None]:
        """Remember an inverse. Push it *before* a step that may be interrupted; it must accept that there is no object.

        Returns:
            A function that forgets the inverse again.
        """

        def step() -> object:
            return inverse(*args, **kwargs)

        def forget() -> None:
            if step in self._steps:
                self._steps.remove(step)

        self._steps.append(step)
        return forget

    def push_last(self, inverse: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Remember an inverse that is to run after all others."""
        self.push(inverse, *args, **kwargs)
        self._steps.insert(0, self._steps.pop())

    def close_at_end(self, close: Callable[[], object]) -> None:
        """Remember how to close an object that inverses need, such as an open namespace.

        It is closed after the inverses have run, or when they are forgotten. Closing must not raise.
        """
        self._closers.append(close)

    def commit(self) -> None:
        """Forget every inverse: the work stands."""
        self._steps.clear()
        self._close()

    def _close(self) -> None:
        while self._closers:
            self._closers.pop()()

    def unwind(self) -> list[Exception]:
        """Run the inverses, last one first. A failing one does not keep the others from running.

        Returns:
            The errors.
        """
        problems: list[Exception] = []
        while self._steps:
            try:
                self._steps[-1]()
            except Exception as exc:
                problems.append(exc)
            self._steps.pop()
        self._close()
        return problems
