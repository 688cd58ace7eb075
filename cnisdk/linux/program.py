"""Run a program of the host, such as ``nft`` or ``iptables-restore``."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import IOFailureError, PluginNotAvailableError

# Rule sets of large clusters take nft more than a minute to list.
TIMEOUT = 90.0


def find(name: str) -> str | None:
    """The path of a program, or None. The sbin directories count also where ``PATH`` lacks them, or is not set."""
    import shutil

    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")


def run(argv: Sequence[str], stdin: str = "") -> str:
    """Run a program to its end.

    Returns:
        What it printed.

    Raises:
        PluginNotAvailableError: (50) It is not installed.
        IOFailureError: (5) It failed; the message has what it wrote to stderr. Or it took more than 90 seconds.
    """
    import subprocess

    path = find(argv[0])
    if path is None:
        raise PluginNotAvailableError(
            f"the program {argv[0]} is not installed", details="it is needed for packet filter rules"
        )
    try:
        done = subprocess.run(
            [path, *argv[1:]], input=stdin, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise IOFailureError(f"{' '.join(argv)} did not finish within {TIMEOUT:g} seconds") from exc
    except OSError as exc:
        raise IOFailureError(f"cannot run {path}: {exc.strerror}") from exc
    if done.returncode != 0:
        raise IOFailureError(f"{' '.join(argv)} failed with {done.returncode}: {done.stderr.strip()}", details=stdin)
    return done.stdout
