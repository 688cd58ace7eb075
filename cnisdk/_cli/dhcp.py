"""``cnisdk dhcp``: run the daemon that keeps the leases of the plugin dhcp."""

from __future__ import annotations

import argparse
import json
import os
import socket

from .._files import make_private
from .._thick import server
from ..dhcp import client
from ..dhcp._daemon import Daemon, Settings
from ..dhcp._machine import Timing
from ..dhcp._store import directory_beside
from ..errors import InvalidConfigError, IOFailureError, cause_of
from .options import add_seconds

DESCRIPTION = (
    "Obtain, renew and release the leases of the plugin dhcp, for all containers of this host. The leases are in files "
    "too: they outlive the daemon, which may be stopped, killed and started again at any time. Only the user who runs "
    "it, root, can use it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command. Those named in one word are the reference's, and mean the same."""
    timing = Timing()
    parser.add_argument(
        "--socket",
        "--socketpath",
        metavar="PATH",
        default=client.SOCKET_PATH,
        help="socket that plugins connect to (default %(default)s)",
    )
    parser.add_argument("--state", metavar="DIR", help="directory of the leases (default: PATH without .sock)")
    parser.add_argument(
        "--hostprefix",
        metavar="DIR",
        default="",
        help="where the host's files are: put before the paths of the socket and of network namespaces",
    )
    parser.add_argument("--broadcast", action="store_true", help="have servers broadcast their answers")
    add_seconds(parser, "--resendtimeout", client.PATIENCE, "longest time that an ADD waits for a lease")
    add_seconds(
        parser, "--resendmax", timing.longest, "longest delay between two messages to a server that does not answer"
    )
    add_seconds(parser, "--probe", timing.probe, "time that another host has to object to an address (RFC 5227)")
    # The reference's, for one exchange with a server: here, that is not limited by itself.
    parser.add_argument("--timeout", help=argparse.SUPPRESS)
    parser.add_argument("--pidfile", metavar="FILE", help="file for the id of the process")
    parser.add_argument("--status", action="store_true", help="print the leases of the running daemon as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the daemon, or print what the one that runs says of itself."""
    path = args.hostprefix + args.socket
    if args.status:
        print(json.dumps(client.get_status(path), indent=4))
        return 0
    if not args.resendtimeout or not args.resendmax:
        raise InvalidConfigError("--resendtimeout and --resendmax must be more than 0")
    daemon = Daemon(
        Settings(
            directory=args.state or directory_beside(path),
            beside=directory_beside(path),
            timing=Timing(longest=args.resendmax, probe=args.probe),
            patience=args.resendtimeout,
            prefix=args.hostprefix,
            broadcast=args.broadcast,
        )
    )
    daemon.lock()
    listener = server.find_inherited_listener(socket.SOCK_STREAM)
    own = listener is None
    if listener is None:
        _make_directory(os.path.dirname(os.path.abspath(path)))
        listener = server.listen_at(path, socket.SOCK_STREAM)
    if args.pidfile:
        _write_pid(args.pidfile)
    # Listening first: what plugins ask meanwhile waits, and no DEL takes the file of a lease that is being read.
    daemon.load()
    server.notify_manager("READY=1")
    daemon.run(listener)
    if own:
        os.unlink(path)
    return 0


def _make_directory(path: str) -> None:
    try:
        make_private(path)
    except OSError as exc:
        raise IOFailureError(f"cannot make {path}: {cause_of(exc)}") from exc


def _write_pid(path: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as exc:
        raise IOFailureError(f"cannot write {path}: {cause_of(exc)}") from exc
