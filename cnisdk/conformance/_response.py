"""Response of a plugin to one request, and the assertions on it."""

from __future__ import annotations

import json
import signal
from typing import Any, NamedTuple

from .judgement import Broken

TIMEOUT = 60.0
"""Seconds that a request may take: twice the time of the slowest one on a loaded machine."""


class Response(NamedTuple):
    """Response of the plugin to one request, with what its processes did.

    Attributes:
        verb: ``CNI_COMMAND`` of the request.
        status: Exit status; negative for the signal that ended the plugin.
        stdout: Bytes on its standard output.
        stderr: Bytes on its standard error.
        left: Processes it left behind.
        timed_out: The suite killed it after :data:`TIMEOUT` seconds.
        held: It ended, but processes it left behind held its standard output or error open.
    """

    verb: str
    status: int
    stdout: bytes
    stderr: bytes
    left: tuple[int, ...] = ()
    timed_out: bool = False
    held: bool = False

    def try_document(self) -> Any:
        """Return the parsed standard output; None when it is empty, or not JSON."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            return None

    def one_document(self) -> Any:
        """Return the parsed standard output, or raise :class:`~.judgement.Broken` unless it is one JSON document."""
        try:
            return json.loads(self.stdout)
        except ValueError as exc:
            raise Broken("exactly one JSON document on stdout", self.show()) from exc

    @property
    def code(self) -> int | None:
        """The code of the error object; None when there is none."""
        document = self.try_document()
        code = document.get("code") if isinstance(document, dict) else None
        return code if type(code) is int else None

    @property
    def told(self) -> str:
        """Message and details of the error object; empty when there is none."""
        document = self.try_document()
        if not isinstance(document, dict):
            return ""
        return f"{document.get('msg', '')} {document.get('details', '')}".strip()

    def show(self) -> str:
        """Return a line for people."""
        if self.timed_out:
            return f"{self.verb} did not end within {TIMEOUT:.0f} seconds"
        how = f"exit status {self.status}" if self.status >= 0 else signal.Signals(-self.status).name
        return f"{self.verb}: {how}, stdout {_excerpt(self.stdout, 300) or 'empty'}"

    def show_all(self) -> str:
        """Return a line for people, with standard error."""
        stderr = _excerpt(self.stderr, 200, end=True)  # the last line of a traceback says what is wrong
        return self.show() + (f", stderr {stderr}" if stderr else "")

    def must_succeed(self, why: str = "success") -> Response:
        """Return the response itself, or raise :class:`~.judgement.Broken` unless the exit status is 0."""
        if self.status != 0:
            raise Broken(f"{self.verb}: {why}", self.show_all())
        return self

    def must_fail(self, why: str = "an error") -> Response:
        """Return the response itself, or raise :class:`~.judgement.Broken` unless the exit status tells of an error."""
        if self.status <= 0:
            raise Broken(f"{self.verb}: {why}", self.show())
        return self

    def must_have_code(self, code: int, why: str = "") -> Response:
        """Return the response itself, or raise :class:`~.judgement.Broken` unless it is an error with this code."""
        why = f"an error with code {code}{why}"
        self.must_fail(why)
        if self.code != code:
            raise Broken(f"{self.verb}: {why}", self.show())
        return self


def _excerpt(output: bytes, limit: int, *, end: bool = False) -> str:
    text = b" ".join(output.split()).decode(errors="replace")
    if len(text) <= limit:
        return text
    return f"…{text[1 - limit :]}" if end else f"{text[: limit - 1]}…"
