"""``cnisdk serve``: the resident server, in front of which ``cnisdk install --thick`` puts its shims."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from ..errors import InvalidConfigError
from ..plugin.launch import find_main
from ..plugin.main import PluginMain
from ..plugin.reply import respond
from ..thick import server
from ..thick.protocol import DIRECTORY
from .install import Registered, ask_versions, find_registered, render, search_path, this_interpreter


def register(subparsers: Any) -> None:
    """Add the parser of ``cnisdk serve``."""
    parser = subparsers.add_parser(
        "serve",
        help="run plugins in a resident process",
        description="Keep the registered plugins loaded, and run each request that a shim hands over in "
        "a process forked for it. Only the user who runs it, root, can use it. Without it, or when it "
        "does not answer, the shims run the plugins by themselves. SIGTERM ends it when the requests that run are "
        "done; a second server started meanwhile takes over.",
    )
    parser.add_argument("--directory", metavar="DIR", default=DIRECTORY, help="its directory (default %(default)s)")
    for name, metavar, default, help_ in (
        ("--ready", "N", server.READY, "workers that wait"),
        ("--limit", "N", server.LIMIT, "workers at a time"),
        ("--memory", "MIB", server.MEMORY, "what those that wait may hold"),
    ):
        parser.add_argument(name, metavar=metavar, type=int, default=default, help=f"{help_} (default %(default)s)")
    parser.add_argument(
        "--background",
        action="store_true",
        help="return when it serves, and leave it running; its stderr stays where yours is",
    )
    parser.add_argument(
        "--metrics", metavar="FILE", help="where to write what is counted, for Prometheus (default metrics.prom in DIR)"
    )
    parser.add_argument("--status", action="store_true", help="ask the running server how it is, and print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say."""
    if args.status:
        print(json.dumps(server.ask_status(args.directory), indent=4))
        return 0
    if args.ready < 1 or args.limit < 1:
        raise InvalidConfigError("--ready and --limit must be 1 or more")
    if args.metrics and not os.path.isdir(os.path.dirname(os.path.abspath(args.metrics))):
        raise InvalidConfigError(f"--metrics {args.metrics}: there is no such directory")
    if args.background:
        status = _leave_running(args.directory)
        if status is not None:
            return status
    from ..thick.load import load

    interpreter = this_interpreter()
    paths = search_path(interpreter)
    launchers = {
        name: render(plugin, interpreter, _versions(plugin, interpreter, paths), paths)
        for name, plugin in find_registered().items()
    }
    plugins = load(launchers)
    print(f"cnisdk serve: {', '.join(plugins) or 'no plugin'}, in {args.directory}", file=sys.stderr)
    # Requests print to descriptors of their own; nothing is read from here.
    os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
    server.Server(
        plugins, args.directory, ready=args.ready, limit=args.limit, memory=args.memory, metrics=args.metrics
    ).run(server.inherited())
    return 0


def _leave_running(directory: str) -> int | None:
    """Go on in another process: None there. Here, wait until that one serves or has ended: the exit status."""
    import select
    import socket

    server.prepare_directory(directory)
    path = os.path.join(directory, f"ready.{os.getpid()}")
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(path)
    child = os.fork()
    if child == 0:
        told.close()
        os.setsid()
        os.environ["NOTIFY_SOCKET"] = path  # what a service manager is told
        return None
    ended = os.pidfd_open(child)
    poll = select.poll()
    for fd in (told.fileno(), ended):
        poll.register(fd, select.POLLIN)
    try:
        serves = told.fileno() in dict(poll.poll())
    finally:
        os.unlink(path)
        told.close()
        os.close(ended)
    return 0 if serves else 1


def _versions(plugin: Registered, interpreter: str, paths: tuple[str, ...] | None) -> bytes:
    """The plugin's answer to VERSION, without another interpreter where that can be."""
    main = find_main(plugin.module, plugin.attribute)
    if isinstance(main, PluginMain):
        return respond(main.plugin, {"CNI_COMMAND": "VERSION"}, b"").stdout.strip()
    return ask_versions(plugin, interpreter, paths)
