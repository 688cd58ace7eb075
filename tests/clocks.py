"""Clock that a test puts forward: then a deadline is over, however long a process takes to get ready for it."""

from __future__ import annotations

import time


class Clock:
    """Stand-in for the module ``time`` in the code under test."""

    sleep = staticmethod(time.sleep)

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def put_forward(self, *_: object) -> None:
        """Put the clock an hour ahead, once. It can be called with what a plugin says, as ``on_stderr``."""
        self._ahead = 3600.0
