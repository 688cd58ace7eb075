"""Call code of plugins in this process: within a time limit, and with a word about what it waits for while it lasts."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from .._lockholders import describe, find_children, find_file_holders, find_socket_holders
from ..errors import TryAgainLaterError
from ..linux.netfilter.rules import socket_name
from ..spec.names import Attachment
from .tables import guard
from .timelimit import OutOfTime, limited

_T = TypeVar("_T")

# Files whose locks plugins wait for: that of the network namespace, of iptables' legacy variant, and of zones.
_LOCKED = ("/proc/self/ns/net", "/run/xtables.lock", "/run/cni/firewalld")


def call(timeout: float, owner: Attachment, kind: str, step: Callable[[], _T]) -> _T:
    """Run code of a plugin. If it lasts, a line on stderr says so after three seconds, and then every ten.

    Args:
        timeout: Seconds it may take; 0 means no limit.
        owner: The attachment it is about.
        kind: Type of the plugin.
        step: The code.

    Raises:
        TryAgainLaterError: (11) It took longer.
        CNIError: The plugin's own, or an InternalError (999) for any other exception.
    """
    try:
        with limited(timeout, partial(_report, owner, kind)):
            return guard(kind, step)
    except OutOfTime:
        raise TryAgainLaterError(f"it was stopped after {timeout:g} seconds{_describe_wait(owner)}") from None


def _report(owner: Attachment, kind: str, passed: float) -> None:
    # Not by print: this runs in a signal's handler, which may have interrupted the writing of another line.
    text = f"cnisdk: {owner}: plugin {kind} has been at work for {passed:.0f} seconds{_describe_wait(owner)}\n"
    with suppress(OSError):
        os.write(2, text.encode(errors="replace"))


def _describe_wait(owner: Attachment) -> str:
    """Describe the processes that a plugin may wait for, to follow a message; empty if there are none."""
    started = find_children()
    holders = find_socket_holders(socket_name(owner)).union(*map(find_file_holders, _LOCKED)) - {*started, os.getpid()}
    found = {"it runs": describe(started), "it may wait for a lock of": describe(holders)}
    return "".join(f"; {what} {', '.join(pids)}" for what, pids in found.items() if pids)
