"""Undo of a request that fails: the inverse of each step, in reverse order."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


class UndoStack:
    """Inverses of steps done so far. Empty once the work is committed or taken back."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._closers: list[Callable[[], object]] = []

    def push(self, inverse: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Callable[[], None]:
        """Remember an inverse. Push it *before* a step that may be interrupted: inverses accept that nothing is there.

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

    def push_last(self, inverse: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Remember an inverse that is to run after all others."""
        self.push(inverse, *args, **kwargs)
        self._steps.insert(0, self._steps.pop())

    def close_at_end(self, close: Callable[[], object]) -> None:
        """Remember how to close something that inverses need, such as an open namespace.

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
            What went wrong.
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
