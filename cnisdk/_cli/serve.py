"""``cnisdk serve``: run the resident server, to which the shims of ``cnisdk install`` hand their requests."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from .._thick import server
from .._thick.ondemand import OnDemand
from .._thick.protocol import DIRECTORY
from ..errors import InvalidConfigError
from ..plugin._launch import load_main
from ..plugin.main import PluginMain
from ..plugin.reply import respond
from .launchers import (
    RegisteredPlugin,
    ask_versions,
    registered_plugins,
    render_launcher,
    search_path,
    this_interpreter,
)

# Nice value of a server on demand while it loads.
_LOADING_NICE = 10

DESCRIPTION = (
    "Keep the registered plugins loaded, and run each request that a shim hands over in "
    "a process forked for it. Only the user who runs it, root, can use it. Without it, or when it "
    "does not answer, the shims run the plugins by themselves. SIGTERM ends it when the requests that run are "
    "done; a second server started meanwhile takes over."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--directory",
        metavar="DIR",
        default=DIRECTORY,
        help="directory of its sockets and metrics (default %(default)s)",
    )
    for name, metavar, default, help_ in (
        ("--ready", "N", server.DEFAULT_READY, "workers that are kept, at least"),
        ("--limit", "N", server.DEFAULT_LIMIT, "idle and busy workers, at most"),
    ):
        parser.add_argument(name, metavar=metavar, type=int, default=default, help=f"{help_} (default %(default)s)")
    parser.add_argument(
        "--background",
        action="store_true",
        help="return when the server is ready, and leave it running; it keeps this command's stderr",
    )
    parser.add_argument(
        "--metrics",
        metavar="FILE",
        help="file for its counters, in the format of Prometheus (default metrics.prom in DIR)",
    )
    parser.add_argument(
        "--on-demand",
        metavar="SHIM",
        help="end when the server is not needed, or when this shim's installation changes; shims start it like this",
    )
    parser.add_argument("--status", action="store_true", help="print the status of the running server as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the server, or print the status of the one that runs."""
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
    if args.on_demand:
        return _serve_on_demand(args)
    _serve(args, _render_launchers())
    return 0


def _serve(args: argparse.Namespace, launchers: dict[str, bytes], on_demand: OnDemand | None = None) -> None:
    from .._thick.load import load_plugins

    plugins = load_plugins(launchers)
    print(f"cnisdk serve: {', '.join(plugins) or 'no plugin'}, in {args.directory}", file=sys.stderr)
    # Workers replace stdin by the caller's.
    os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0)
    serving = server.Server(
        plugins, args.directory, ready=args.ready, limit=args.limit, metrics=args.metrics, on_demand=on_demand
    )
    serving.run(server.find_inherited_listener())


def _serve_on_demand(args: argparse.Namespace) -> int:
    """Serve as a shim starts it, unless another server does, or this one would be of no use.

    Returns:
        The exit status.
    """
    from .._thick import departure, ondemand

    server.ensure_directory(args.directory)
    since = time.time_ns()
    lock = ondemand.take_lock(args.directory)
    if lock is None or server.is_served(args.directory):
        return 0
    ondemand.keep_to_this_process(lock)
    for kept in departure.leave_caller(args.directory):
        print(f"cnisdk serve: it keeps {kept}", file=sys.stderr)
    try:
        launchers = _render_launchers()
    except Exception:  # such as a plugin that cannot be imported: the next attempt would fail likewise
        ondemand.postpone(lock, ondemand.MISMATCH_PAUSE)
        raise
    problem = ondemand.find_mismatch(args.on_demand, launchers)
    if problem is not None or ondemand.is_memory_short():
        ondemand.postpone(lock, ondemand.PRESSURE_PAUSE if problem is None else ondemand.MISMATCH_PAUSE)
        print(f"cnisdk serve: it ends, since {problem or 'memory is short'}", file=sys.stderr)
        return 1
    # Requests that run one-shot meanwhile go first.
    os.setpriority(os.PRIO_PROCESS, 0, _LOADING_NICE)
    _serve(args, launchers, OnDemand(args.on_demand, lock, since))
    return 0


def _leave_running(directory: str) -> int | None:
    """Fork a process that goes on to serve.

    Returns:
        None in the new process. In this one, the exit status, once the new one is ready (0) or has ended (1).
    """
    import select
    import socket

    server.ensure_directory(directory)
    path = os.path.join(directory, f"ready.{os.getpid()}")
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(path)
    child = os.fork()
    if child == 0:
        told.close()
        os.setsid()
        os.environ["NOTIFY_SOCKET"] = path  # the server reports READY=1 there
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


def _render_launchers() -> dict[str, bytes]:
    """Return the launchers of all registered plugins, by type."""
    interpreter = this_interpreter()
    paths = search_path(interpreter)
    return {
        name: render_launcher(plugin, interpreter, _versions(plugin, interpreter, paths), paths)
        for name, plugin in registered_plugins().items()
    }


def _versions(plugin: RegisteredPlugin, interpreter: str, paths: tuple[str, ...] | None) -> bytes:
    """Return the plugin's answer to VERSION, where possible without starting another interpreter."""
    main = load_main(plugin.module, plugin.attribute)
    if isinstance(main, PluginMain):
        return respond(main.plugin, {"CNI_COMMAND": "VERSION"}, b"").stdout.strip()
    return ask_versions(plugin, interpreter, paths)
