"""Assertions about the errors that plugins answer."""

from __future__ import annotations

import sys
from types import TracebackType

from ..errors import CNIError

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self


class expect_error:
    """Assert that a block raises an error with this CNI code and these texts.

    The assertion shows the whole error when it differs from the expected one, and when the block raises none.

    Example:
        >>> from cnisdk.errors import InvalidConfigError
        >>> with expect_error(7, "$.mtu", "-1") as expected:
        ...     raise InvalidConfigError("$.mtu is -1", details="at least 68 is needed")
        >>> expected.error.details
        'at least 68 is needed'

    Args:
        code: The CNI code.
        *texts: Parts of the message or the details, letter by letter.

    Attributes:
        error: The error, for further assertions after the block.

    Raises:
        AssertionError: On leaving: the block raised no :class:`~cnisdk.errors.CNIError`, or one with another code or
            without one of the texts. Exceptions of other classes pass through.
    """

    error: CNIError

    def __init__(self, code: int, *texts: str) -> None:
        self._code = code
        self._texts = texts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            raise AssertionError(f"expected {self}\ngot no error")
        if not isinstance(error, CNIError):
            return False
        if error.code != self._code or not all(text in str(error) for text in self._texts):
            raise AssertionError(f"expected {self}\ngot code {error.code}: {error}") from error
        self.error = error
        return True

    def __str__(self) -> str:
        return f"an error with code {self._code}" + "".join(f", that says {text!r}" for text in self._texts)
