"""Run a program of the host, such as ``nft`` or ``iptables-restore``."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import IOFailureError, PluginNotAvailableError, cause_of

TIMEOUT = 90.0
"""Seconds that a program may take. nft needs more than a minute to list the rule set of a large cluster."""


class ProgramFailedError(IOFailureError):
    """Code 5: a program of the host ended with an error; the message has its stderr.

    Attributes:
        stderr: That alone.
    """

    stderr: str = ""


def find(name: str) -> str | None:
    """Return the path of a program, or None. The sbin directories are searched also when ``PATH`` lacks them."""
    import shutil

    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")


def run(argv: Sequence[str], stdin: str = "", inherited: Sequence[int] = ()) -> str:
    """Run a program to its end.

    Args:
        argv: Its name and arguments.
        stdin: Text of its standard input.
        inherited: Descriptors that it keeps open: they tell that it runs, also when this process is killed.

    Returns:
        Its standard output.

    Raises:
        PluginNotAvailableError: (50) It is not installed.
        ProgramFailedError: (5) It failed.
        IOFailureError: (5) It cannot be run, or took more than 90 seconds.
    """
    import subprocess

    path = find(argv[0])
    if path is None:
        raise PluginNotAvailableError(
            f"the program {argv[0]} is not installed", details="install its package, or add its directory to PATH"
        )
    try:
        done = subprocess.run(
            [path, *argv[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            pass_fds=inherited,
        )
    except subprocess.TimeoutExpired as exc:
        raise IOFailureError(f"{' '.join(argv)} did not finish within {TIMEOUT:g} seconds") from exc
    except OSError as exc:
        raise IOFailureError(f"cannot run {path}: {cause_of(exc)}") from exc
    if done.returncode != 0:
        failure = ProgramFailedError(
            f"{' '.join(argv)} failed with {done.returncode}: {done.stderr.strip()}", details=stdin
        )
        failure.stderr = done.stderr
        raise failure
    return done.stdout
