"""Log of what ``cnisdk repair`` has done and could not do: printed at once, and summed up at the end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from ..errors import CNIError, IOFailureError, cause_of, error_for_code
from ..spec.names import Attachment
from .repairable import RepairRequest


class RepairLog:
    """The outcome of a repair.

    Attributes:
        repaired: Attachments of which a plugin has put something back; with ``--dry-run``, of which one would.
        touched: The requests by which something was put back, or may have been before they failed, by attachment and
            type of plugin.
        alone: Attachments that were left alone.
        failed: Attachments of which a plugin has failed.
        failures: Errors.
    """

    def __init__(self) -> None:
        self.repaired: set[Attachment] = set()
        self.touched: dict[Attachment, dict[str, RepairRequest]] = {}
        self.alone: set[Attachment] = set()
        self.failed: set[Attachment] = set()
        self.failures: list[CNIError] = []

    def say(self, text: str) -> None:
        """Print a line. If that fails, such as on a full disk, the work goes on."""
        try:
            print(text, flush=True)
        except OSError as exc:
            self.failures.append(IOFailureError(f"cannot print what was done: {cause_of(exc)}"))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def leave_alone(self, owner: Attachment, why: str) -> None:
        """Note and print that an attachment is left alone, and why."""
        self.alone.add(owner)
        self.say(f"left alone {owner}: {why}")

    def fail(self, owner: Attachment, exc: CNIError, where: str = "") -> None:
        """Note an error of an attachment; it is printed at the end. `where` comes before its text."""
        self.failed.add(owner)
        self.failures.append(error_for_code(exc.code, f"{owner}: {where}{exc.msg}", exc.details))


def warn(text: str) -> None:
    """Print a line to stderr. If that fails, the work goes on."""
    with suppress(OSError):
        print(f"cnisdk: {text}", file=sys.stderr)
