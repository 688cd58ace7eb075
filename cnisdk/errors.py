"""The errors of CNI (spec §5, "Error"): one class for each code.

A handler raises one of these; :class:`cnisdk.PluginMain` prints it as the JSON error object and exits with status 1.
Callers match errors by class or by ``code``, never by text.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence

from ._light import ClassVar


class CNIError(Exception):
    """An error with a CNI code.

    Args:
        msg: One short sentence: the object, the value, what is wrong.
        details: Longer text, or the next step. Empty means none.
        code: The code, when it is not the one of the class: plugins may use 100 and above for their own errors.

    Attributes:
        others: Further errors of the same call, in the order in which they happened: of the undo of a failed ADD, or of
            the other plugins in DEL and GC. Their texts are in ``details`` as well.
    """

    default_code: ClassVar[int] = 100

    code: int
    msg: str
    details: str
    others: list[CNIError]

    def __init_subclass__(cls, *, code: int | None = None) -> None:
        """Give a subclass its code: ``class DecodingError(CNIError, code=6)``."""
        if code is not None:
            cls.default_code = code

    def __init__(self, msg: str, *, details: str = "", code: int | None = None) -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details
        self.code = self.default_code if code is None else code
        self.others = []

    def add_others(self, others: Iterable[CNIError]) -> None:
        """Attach further errors of the same call, and name each in the details.

        Of those that were not permitted only one is told: a capability that is missing fails every step.
        """
        others = tuple(others)
        self.others.extend(others)
        told: list[str] = []
        refused = _is_not_permitted(self)
        for other in others:
            if not refused or not _is_not_permitted(other):
                told.append(f"also: {other.describe()}")
                refused = refused or _is_not_permitted(other)
            elif _NOT_PERMITTED_EITHER not in (*told, *self.details.split("; ")):
                told.append(_NOT_PERMITTED_EITHER)
        self.details = "; ".join(filter(None, (self.details, *told)))

    def describe(self) -> str:
        """Return message, code and details for people, as in ``pool is full (code 11); 10.0.0.0/30``."""
        return "; ".join(filter(None, (f"{self.msg} (code {self.code})", self.details)))

    def __str__(self) -> str:
        return f"{self.msg}; {self.details}" if self.details else self.msg

    def __repr__(self) -> str:
        return f"{type(self).__name__}(code={self.code}, msg={self.msg!r}, details={self.details!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.msg, self.details, self.code, self.others)


_NOT_PERMITTED_EITHER = "also: other steps were not permitted either"


def _is_not_permitted(error: BaseException | None) -> bool:
    """Return whether the kernel refused for lack of a right. The error or one of its causes has the number."""
    while error is not None and getattr(error, "errno", None) is None:
        error = error.__cause__
    return getattr(error, "errno", None) == errno.EPERM


def _restore(cls: type[CNIError], msg: str, details: str, code: int, others: list[CNIError]) -> CNIError:
    """Unpickle an error: ``Exception`` would call the class with positional arguments only."""
    error = cls(msg, details=details, code=code)
    error.others = others
    return error


class IncompatibleVersionError(CNIError, code=1):
    """Code 1: the plugin, or the verb, does not support the configuration's ``cniVersion``."""


class UnsupportedFieldError(CNIError, code=2):
    """Code 2: a field of the network configuration is not supported; the message names key and value."""


class UnknownContainerError(CNIError, code=3):
    """Code 3: the container is unknown or does not exist: the runtime need not clean up (no DEL)."""


class InvalidEnvironmentError(CNIError, code=4):
    """Code 4: a ``CNI_*`` variable is missing or invalid; the message names it."""


class IOFailureError(CNIError, code=5):
    """Code 5: an input or output operation failed: a file, a socket, a request to the kernel."""


class DecodingError(CNIError, code=6):
    """Code 6: content could not be decoded: broken JSON, a version that is no version."""


class InvalidConfigError(CNIError, code=7):
    """Code 7: the network configuration is not valid; the message gives JSON path, value and what was expected."""


class InvalidNetNSError(CNIError, code=8):
    """Code 8: ``CNI_NETNS`` is no network namespace, or is the plugin's own.

    Not in the spec's table; the reference's SDK defines and uses it.
    """


class TryAgainLaterError(CNIError, code=11):
    """Code 11: a transient condition (a full pool, a lock held too long): the runtime should try again later."""


class PluginNotAvailableError(CNIError, code=50):
    """Code 50 (spec 1.1.0, STATUS): the plugin cannot service ADD requests."""


class LimitedConnectivityError(CNIError, code=51):
    """Code 51 (spec 1.1.0, STATUS): the plugin works, but containers it attached may have limited connectivity."""


class InternalError(CNIError, code=999):
    """Code 999: a bug in this SDK or in the plugin.

    Not in the spec's table; the reference's SDK uses it for any other error.
    """


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
    """Make the error that another process reported, of the class of its code (:class:`CNIError` for other codes)."""
    return _BY_CODE.get(code, CNIError)(msg, details=details, code=code)


def describe_errno(number: int | None) -> str:
    """Return name and text of an error of the operating system, as in ``EPERM: Operation not permitted``.

    Args:
        number: As in :mod:`errno`.
    """
    if not number:
        return "unknown error"
    # Python has two names for this number. The kernel uses this one.
    name = "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode.get(number, number)
    return f"{name}: {os.strerror(number)}"


def cause_of(exc: Exception) -> str:
    """Return what went wrong, for the end of a message that names the object itself.

    An error of the operating system has its name and text. A text that was written for the error stands alone, and
    other errors have the name of their class.
    """
    text = str(exc)
    if isinstance(exc, OSError) and exc.errno:
        return exc.strerror if exc.strerror and exc.strerror != os.strerror(exc.errno) else describe_errno(exc.errno)
    return text if text and isinstance(exc, (CNIError, OSError, ValueError)) else name_and_text(exc)


def as_cni_error(exc: Exception) -> CNIError:
    """Return an exception as an error of CNI: itself, code 5 for one of the operating system, 999 for any other.

    The message begins with the files that the operating system's error is about.
    """
    if isinstance(exc, CNIError):
        return exc
    if isinstance(exc, OSError):
        names = [str(name) for name in (exc.filename, exc.filename2) if name is not None]
        return IOFailureError(": ".join([*names, cause_of(exc)]))
    return InternalError(name_and_text(exc))


def name_and_text(exc: Exception) -> str:
    """Return the class of an exception, and its text if it has one: ``KeyError: 'member'``."""
    text = str(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def run_all(*steps: Callable[[], object]) -> None:
    """Run all steps of a teardown, also after one has failed; then raise the errors.

    Raises:
        CNIError: The first error, with the others in its details.
    """
    problems: list[CNIError] = []
    for step in steps:
        try:
            step()
        except Exception as exc:
            problems.append(as_cni_error(exc))
    raise_first(problems)


def raise_first(problems: Sequence[CNIError]) -> None:
    """Raise the first of several errors, with the others in its details; return when there are none."""
    if problems:
        first, *others = problems
        first.add_others(others)
        raise first
