"""The errors of CNI (spec §5, "Error"): one class for each code.

A handler raises one of these; :class:`cnisdk.PluginMain` prints it as the JSON error object and exits with 1.
Callers match by class or by ``code``, never by text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar


class CNIError(Exception):
    """An error with a CNI code.

    Args:
        msg: One short sentence: the object, the value, what is wrong.
        details: Longer text, or the next step. Empty means none.
        code: The code, when it is not the one of the class: plugins may use 100 and above for their own errors.

    Attributes:
        others: Further errors of the same call, in the order in which they happened: of taking a failed ADD back, or of
            the other plugins in DEL and GC. They are told in ``details`` as text as well.
    """

    default_code: ClassVar[int] = 100

    code: int
    msg: str
    details: str
    others: list[CNIError]

    def __init__(self, msg: str, *, details: str = "", code: int | None = None) -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details
        self.code = self.default_code if code is None else code
        self.others = []

    def __str__(self) -> str:
        return f"{self.msg}; {self.details}" if self.details else self.msg

    def __repr__(self) -> str:
        return f"{type(self).__name__}(code={self.code}, msg={self.msg!r}, details={self.details!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.msg, self.details, self.code, self.others)


def _restore(cls: type[CNIError], msg: str, details: str, code: int, others: list[CNIError]) -> CNIError:
    """Unpickle an error: ``Exception`` would call the class with positional arguments only."""
    error = cls(msg, details=details, code=code)
    error.others = others
    return error


class IncompatibleVersionError(CNIError):
    """Code 1: the plugin, or the verb, does not support the configuration's ``cniVersion``."""

    default_code = 1


class UnsupportedFieldError(CNIError):
    """Code 2: a field of the network configuration is not supported; the message names key and value."""

    default_code = 2


class UnknownContainerError(CNIError):
    """Code 3: the container is unknown or does not exist: the runtime need not clean up (no DEL)."""

    default_code = 3


class InvalidEnvironmentError(CNIError):
    """Code 4: a ``CNI_*`` variable is missing or invalid; the message names it."""

    default_code = 4


class IOFailureError(CNIError):
    """Code 5: an input or output operation failed: a file, a socket, a request to the kernel."""

    default_code = 5


class DecodingError(CNIError):
    """Code 6: content could not be decoded: broken JSON, a version that is no version."""

    default_code = 6


class InvalidConfigError(CNIError):
    """Code 7: the network configuration is not valid; the message gives JSON path, value and what was expected."""

    default_code = 7


class InvalidNetNSError(CNIError):
    """Code 8: ``CNI_NETNS`` is no network namespace, or is the plugin's own.

    Not in the spec's table; the reference's SDK defines and uses it.
    """

    default_code = 8


class TryAgainLaterError(CNIError):
    """Code 11: a transient condition (a full pool, a lock held too long): the runtime should try again later."""

    default_code = 11


class PluginNotAvailableError(CNIError):
    """Code 50 (spec 1.1.0, STATUS): the plugin cannot service ADD requests."""

    default_code = 50


class LimitedConnectivityError(CNIError):
    """Code 51 (spec 1.1.0, STATUS): the plugin works, but containers it attached may have limited connectivity."""

    default_code = 51


class InternalError(CNIError):
    """Code 999: a bug, of this SDK or of the plugin.

    Not in the spec's table; the reference's SDK uses it for any other error.
    """

    default_code = 999


_BY_CODE: dict[int, type[CNIError]] = {
    cls.default_code: cls
    for cls in (
        IncompatibleVersionError,
        UnsupportedFieldError,
        UnknownContainerError,
        InvalidEnvironmentError,
        IOFailureError,
        DecodingError,
        InvalidConfigError,
        InvalidNetNSError,
        TryAgainLaterError,
        PluginNotAvailableError,
        LimitedConnectivityError,
        InternalError,
    )
}


def error_for_code(code: int, msg: str, details: str = "") -> CNIError:
    """Make the error another process reported, with the class of its code (:class:`CNIError` when it has none)."""
    return _BY_CODE.get(code, CNIError)(msg, details=details, code=code)


def run_all(*steps: Callable[[], object]) -> None:
    """Take things down: run every step, whatever happens to the others, then report.

    Raises:
        CNIError: The first that was raised, with the others in its details.
    """
    problems: list[CNIError] = []
    for step in steps:
        try:
            step()
        except CNIError as exc:
            problems.append(exc)
        except OSError as exc:
            problems.append(IOFailureError(str(exc)))
        except Exception as exc:
            problems.append(InternalError(f"{type(exc).__name__}: {exc}"))
    if problems:
        first, *others = problems
        also = [f"also: {problem}" for problem in others]
        error = type(first)(first.msg, details="; ".join(filter(None, (first.details, *also))), code=first.code)
        error.others = [*first.others, *others]
        raise error from first
