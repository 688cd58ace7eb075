"""Options that several subcommands have in common."""

from __future__ import annotations

import argparse
import os

from ..errors import InvalidEnvironmentError
from ..runtime.cache import DEFAULT_CACHE_DIR
from ..runtime.caches import VARIABLE
from ..runtime.load import DEFAULT_CONF_DIR

USUAL_DIRECTORIES = (
    "/opt/cni/bin",
    "/usr/libexec/cni",
    "/usr/lib/cni",
    "/usr/local/lib/cni",
    "/var/lib/cni/bin",
    "/home/kubernetes/bin",
    "/var/lib/rancher/k3s/data/cni",
)
"""Directories in which runtimes and distributions keep plugins, in the order they are searched."""


def add_conf_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--conf-dir``."""
    parser.add_argument(
        "--conf-dir",
        metavar="DIR",
        default=os.environ.get("NETCONFPATH") or DEFAULT_CONF_DIR,
        help="directory with network configuration (NETCONFPATH, %(default)s)",
    )


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--cache-dir``, for :func:`cnisdk.runtime.caches.known_directories`."""
    parser.add_argument(
        "--cache-dir",
        metavar="DIR",
        action="append",
        default=[],
        help=f"one more directory with cached results of a runtime; may be given several times ({VARIABLE}). "
        f"{DEFAULT_CACHE_DIR} and the directories in it are always read",
    )


def add_cni_path(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--cni-path``.

    Args:
        parser: The command's parser.
        what: The plugins in these directories.
    """
    parser.add_argument(
        "--cni-path",
        metavar="DIR:DIR",
        default=os.environ.get("CNI_PATH") or os.pathsep.join(find_usual_directories() or USUAL_DIRECTORIES[:1]),
        help=f"directories with {what} (CNI_PATH, or else the usual ones that exist, such as {USUAL_DIRECTORIES[0]})",
    )


def find_usual_directories() -> list[str]:
    """Return those of the usual directories with plugins that exist, each once: one may be a link to another."""
    existing = {os.path.realpath(each): each for each in reversed(USUAL_DIRECTORIES) if os.path.isdir(each)}
    return [*reversed(existing.values())]


def add_seconds(parser: argparse.ArgumentParser, option: str, default: float, help: str) -> None:
    """Add an option for a time in seconds, 0 or more; its help ends with the default."""
    parser.add_argument(option, metavar="SECONDS", type=_seconds, default=default, help=f"{help} (%(default)g)")


def _seconds(text: str) -> float:
    """Read a number of seconds, or a duration as Go programs write it: ``1m2s``."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = _go_duration(text)
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, not {text!r}")
    return seconds


def _go_duration(text: str) -> float:
    """Return the seconds of a duration; -1 if it is none."""
    import re

    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"(\d+(?:\.\d*)?)(h|ms|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return -1
    return sum(float(number) * units[unit] for number, unit in parts)


def add_inside(parser: argparse.ArgumentParser) -> None:
    """Add ``--inside``, for a judgement of namespaces from within a container."""
    parser.add_argument(
        "--inside",
        action="store_true",
        help="treat the namespaces of this command as the host's: for a node that is itself a container. Without it, "
        "they must be those of process 1 of the machine",
    )


def require_host(args: argparse.Namespace, why: str) -> None:
    """Refuse to go on where this process does not see the host, unless ``--inside`` says that it is one.

    Args:
        args: The parsed arguments.
        why: What would be wrong otherwise, for the message.

    Raises:
        InvalidEnvironmentError: (4) This is not the host.
    """
    from ..runtime.survey import find_obstacle

    obstacle = None if args.inside else find_obstacle()
    if obstacle:
        raise InvalidEnvironmentError(
            f"nothing was done, since {why}: {obstacle}",
            details="run it as root on the host itself, such as with nsenter --target 1 --mount --net; "
            "--inside is for a node that is itself a container",
        )
