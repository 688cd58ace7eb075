"""Command ``cnitool``: attach network namespaces to networks, as a container runtime does.

It replaces the Go tool of that name, with the same commands, variables, container ids, cache and output.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence

from .. import __version__
from .._light import TYPE_CHECKING, Any, NamedTuple
from .._signals import signal
from ..errors import CNIError, InvalidEnvironmentError, IOFailureError, as_cni_error
from ..invoke.find import split_path
from ..invoke.process import pass_on
from ..runtime.cache import DEFAULT_CACHE_DIR
from ..runtime.load import DEFAULT_CONF_DIR, load_network
from ..runtime.network import Network
from ..runtime.runner import DEFAULT_TIMEOUT, PluginCall, Runtime
from ..spec.codec import dumps_compact, loads
from ..spec.config import parse_args
from ..spec.convert import print_result
from ..spec.names import Attachment, digest, shorten
from .stopping import Stopped, stoppable

if TYPE_CHECKING:
    import argparse

_VERBS = ("add", "check", "del", "gc", "status")

_DESCRIPTION = """\
Attach network namespaces to networks of the Container Network Interface (CNI), as a container runtime does.

  add     attach NETNS to NETWORK; print the result as JSON
  check   check that the attachment is as `add` left it
  del     detach it again; parts that are gone already are no error
  gc      detach everything that was attached to NETWORK, except what --valid
          names, and let its plugins remove what has no owner
  status  ask the plugins if NETWORK can take containers
"""

_EPILOG = """\
environment (the options come first):
  CNI_PATH     directories with plugins, separated by colons
  NETCONFPATH  directory with network configuration; /etc/cni/net.d if unset
  CNI_ARGS     arguments for the plugins, KEY=VALUE;KEY=VALUE
  CAP_ARGS     capability arguments, a JSON object such as
               {"portMappings": [{"hostPort": 8080, "containerPort": 80,
               "protocol": "tcp"}]}
  CNI_IFNAME   name of the interface in the namespace; eth0 if unset

The container's id is made from the path of NETNS, so `check` and `del` need the same path as `add`. An `add` that
fails takes back what it did, unless NETNS was attached to NETWORK before. `check` and `del` use the arguments of the
`add` where none are given.

The exit status is 0 on success, 1 with a message on standard error on failure, and 2
for a mistake in the arguments.

example:
  ip netns add testing
  CNI_PATH=/opt/cni/bin cnitool add mynet /var/run/netns/testing
  CNI_PATH=/opt/cni/bin cnitool del mynet /var/run/netns/testing
"""


_NAMED = "/var/run/netns"  # where `ip netns add` makes namespaces, as it says itself


def container_id(netns: str) -> str:
    """Make the container id of a namespace from its path. Links are not followed."""
    path = os.path.abspath(netns)
    return f"cnitool-{digest(os.fsencode(path))[:20]}"


class Arguments(NamedTuple):
    """Arguments of a command; :func:`make_parser` describes each."""

    verb: str
    network: str
    netns: str = ""
    ifname: str | None = None
    cni_path: str | None = None
    conf_dir: str | None = None
    cni_args: str | None = None
    cap_args: str | None = None
    container_id: str | None = None
    cache_dir: str = DEFAULT_CACHE_DIR
    timeout: float = DEFAULT_TIMEOUT
    verbose: bool = False
    no_rollback: bool = False
    valid: list[tuple[str, str]] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or with those of this process, and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        make_parser().print_help()
        return 0
    args = read_arguments(arguments)
    stderr = _HeldStderr(args.verbose)
    try:
        with stoppable(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            _run(args, stderr)
    except CNIError as exc:
        print(f"cnitool: {exc.describe()}", file=sys.stderr)
        return 1
    except OSError as exc:  # of a file that nothing has expected to fail, such as on a broken disk
        print(f"cnitool: {as_cni_error(exc).describe()}", file=sys.stderr)
        return 1
    except Stopped as exc:  # the plugin was stopped, and a started add undone
        return 128 + exc.number
    finally:
        stderr.release()
    return 0


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """Read the arguments. A mistake ends the process with status 2, and the wish for help with 0."""
    # Most commands have no option: variables say the rest. To import and make the parser takes longer than their work.
    if 2 <= len(arguments) <= 3 and arguments[0] in _VERBS and not any(each.startswith("-") for each in arguments):
        verb, network, netns = (*arguments, "")[:3]
        return Arguments(verb, network, netns)
    return Arguments(**vars(make_parser().parse_intermixed_args(arguments)))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the program."""
    from .options import add_seconds
    from .parsers import Parser

    defaults = Arguments("", "")
    parser = Parser(
        prog="cnitool",
        usage="cnitool [OPTIONS] {add,check,del,gc,status} NETWORK [NETNS]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"cnitool (cnisdk) {__version__}")
    parser.add_argument("verb", choices=_VERBS, metavar="COMMAND", help="one of the commands above")
    parser.add_argument("network", metavar="NETWORK", help="name of the network")
    parser.add_argument(
        "netns", metavar="NETNS", nargs="?", default="", help="path of the namespace; gc and status need none"
    )
    parser.add_argument("-i", "--ifname", metavar="NAME", help="name of the interface in the namespace (CNI_IFNAME)")
    parser.add_argument("--cni-path", metavar="DIR:DIR", help="directories with plugins (CNI_PATH)")
    parser.add_argument("--conf-dir", metavar="DIR", help="directory with network configuration (NETCONFPATH)")
    parser.add_argument("--cni-args", metavar="K=V;K=V", help="arguments for the plugins (CNI_ARGS)")
    parser.add_argument("--cap-args", metavar="JSON", help="capability arguments (CAP_ARGS)")
    parser.add_argument("--container-id", metavar="ID", help="use this id instead of the one made from NETNS")
    parser.add_argument(
        "--cache-dir", metavar="DIR", default=defaults.cache_dir, help="directory of cached results (%(default)s)"
    )
    add_seconds(parser, "--timeout", defaults.timeout, "longest time for one call of a plugin; 0 means no limit")
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print on standard error what each plugin is sent and what it returns: the whole configuration, with "
        "its secrets",
    )
    parser.add_argument("--no-rollback", action="store_true", help="leave what a failed add did, for inspection")
    parser.add_argument(
        "--valid",
        metavar="ID/IFNAME",
        action="append",
        type=_attachment,
        help="gc: keep this attachment; may be given several times",
    )
    return parser


def _attachment(text: str) -> tuple[str, str]:
    container, _, ifname = text.partition("/")
    if not container or not ifname:
        import argparse

        raise argparse.ArgumentTypeError(f"expected ID/IFNAME, not {text!r}")
    return container, ifname


def _run(args: Arguments, stderr: _HeldStderr) -> None:
    if not args.netns and args.verb in ("add", "check", "del"):
        make_parser().error(f"{args.verb} needs NETNS, the path of a network namespace")
    if (
        args.netns
        and "/" not in args.netns
        and not os.path.exists(args.netns)
        and os.path.exists(named := f"{_NAMED}/{args.netns}")
    ):
        make_parser().error(f"NETNS is a path, and there is no file {args.netns} here: did you mean {named}?")
    if args.valid and args.verb != "gc":
        make_parser().error("--valid is for gc")
    runtime = Runtime(
        split_path(_choose(args.cni_path, "CNI_PATH")),
        cache_dir=args.cache_dir,
        timeout=args.timeout or None,
        rollback=not args.no_rollback,
        on_warning=_warn,
        on_stderr=stderr.add,
        on_call=stderr.on_call,
    )
    ifname = _choose(args.ifname, "CNI_IFNAME", "eth0")
    try:
        netns = os.path.abspath(args.netns) if args.netns else ""
    except FileNotFoundError as exc:
        raise InvalidEnvironmentError(f"NETNS {args.netns} is relative to a directory that is gone") from exc
    container = args.container_id or (container_id(netns) if netns else "")
    network = _load(runtime, args, container, ifname)
    if args.verb == "status":
        if not runtime.status(network):
            _warn(f'network "{network.name}" has version {network.version}, without STATUS: no plugin was asked')
    elif args.verb == "gc":
        for note in runtime.gc(network, args.valid or ()).notes:
            _warn(note)
    else:
        where: dict[str, Any] = {"container_id": container, "netns": netns, "ifname": ifname}
        cni_args, capability_args = _arguments(args)
        _note_undeclared(network, capability_args or {})
        if args.verb != "add" and not args.container_id:
            _note_other_path(runtime, network, netns, ifname)
        if args.verb == "add":
            present = runtime.cache.exists(Attachment(network.name, container, ifname))
            result = runtime.add_in_version(network, **where, cni_args=cni_args or (), capability_args=capability_args)
            try:
                _print(print_result(result))
            except OSError as exc:
                if runtime.rollback and not present:
                    runtime.delete(network, container_id=container, netns=netns, ifname=ifname)
                raise IOFailureError(
                    f"cannot print the result: {exc}", details="the attachment was taken back"
                ) from exc
        elif args.verb == "check":
            runtime.check(network, **where, cni_args=cni_args, capability_args=capability_args)
        else:
            runtime.delete(network, **where, cni_args=cni_args, capability_args=capability_args)


def _load(runtime: Runtime, args: Arguments, container: str, ifname: str) -> Network:
    directory = _choose(args.conf_dir, "NETCONFPATH", DEFAULT_CONF_DIR)
    try:
        return load_network(directory, args.network, on_problem=lambda problem: _warn(str(problem)))
    except CNIError as exc:  # the configuration is gone, or became unusable
        if args.verb != "del":
            raise
        network = runtime.find_cached_network(args.network, container_id=container, ifname=ifname)
        if network is None:
            raise
        _warn(f"{exc.msg}; using the configuration of the add")
        return network


def _choose(option: str | None, variable: str, default: str = "") -> str:
    return option if option is not None else os.environ.get(variable) or default


def _arguments(args: Arguments) -> tuple[Mapping[str, str] | None, Mapping[str, Any] | None]:
    """Return ``CNI_ARGS`` and the capability arguments; None for those that are not given."""
    cni_args = _choose(args.cni_args, "CNI_ARGS")
    cap_args = _choose(args.cap_args, "CAP_ARGS")
    parsed = loads(cap_args.encode(errors="surrogateescape"), "CAP_ARGS") if cap_args.strip() else None
    if parsed is not None and not isinstance(parsed, dict):
        raise InvalidEnvironmentError(
            f"CAP_ARGS is {shorten(parsed)}, expected a JSON object", details='such as {"ips": ["10.1.2.3/24"]}'
        )
    return parse_args(cni_args) if cni_args else None, parsed


def _note_undeclared(network: Network, capability_args: Mapping[str, Any]) -> None:
    """Note arguments that reach no plugin. A runtime passes all it has to every network, a person means one."""
    declared = frozenset[str]().union(*(plugin.capabilities for plugin in network.plugins))
    for name in capability_args:
        if name not in declared:
            _warn(f'capability argument "{name}" is passed to no plugin: none has it in its "capabilities"')


def _note_other_path(runtime: Runtime, network: Network, netns: str, ifname: str) -> None:
    """Note that the namespace was attached by its other path: it has another container id, and DEL finds nothing."""
    short, long = "/run/", "/var/run/"
    other = long + netns.removeprefix(short) if netns.startswith(short) else short + netns.removeprefix(long)
    if (
        netns.startswith((short, long))
        and not runtime.cache.exists(Attachment(network.name, container_id(netns), ifname))
        and runtime.cache.exists(Attachment(network.name, container_id(other), ifname))
    ):
        _warn(f"{netns} was attached as {other}: name it by that path")


def _print(data: bytes) -> None:
    """Print without a newline at the end, as the Go tool does; with one on a terminal, for the prompt."""
    if sys.stdout is None:  # it was closed when Python started
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if sys.stdout.isatty():
        data += b"\n"
    # Not through sys.stdout: after an error it would try again, and fail, when the process ends.
    while data:
        data = data[os.write(1, data) :]


class _HeldStderr:
    """Standard error of the plugins, each of which is told after the error that it belongs to.

    What a plugin says is held back until its call has ended. Once a call has failed, all of it waits for the end of the
    program: an ADD that fails is followed by DELs, and their words would come before the error.
    """

    _MOST = 64 * 1024  # bytes to hold back

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._pieces: list[bytes] = []
        self._failed = False

    def add(self, piece: bytes) -> None:
        """Hold a piece back; if there are too many, print all."""
        self._pieces.append(piece)
        if sum(map(len, self._pieces)) > self._MOST:
            self.release()

    def on_call(self, call: PluginCall) -> None:
        """Print what a call that has ended said, unless it belongs to an error that is not printed yet."""
        if self._verbose:
            _show(call)  # with the error, if it failed
        self._failed |= call.error is not None
        if self._verbose or (call.printed is not None and not self._failed):
            self.release()

    def release(self) -> None:
        """Print what was held back."""
        pieces, self._pieces = self._pieces, []
        pass_on(b"".join(pieces))


def _show(call: PluginCall) -> None:
    """Print what a plugin is sent, or what it returned."""
    if call.error is not None:
        text = f"< {call.type} failed: {call.error.describe()}"
    elif call.printed is not None:
        text = f"< {call.type} returned {_one_line(call.printed) or 'nothing'}"
    else:
        variables = (f"{name}={value}" for name, value in sorted(call.environ.items()) if name.startswith("CNI_"))
        text = f"> {call.path} {' '.join(variables)}\n> {_one_line(call.request)}"
    print(text, file=sys.stderr, flush=True)


def _one_line(document: bytes) -> str:
    try:
        return dumps_compact(loads(document)).decode() if document.strip() else ""
    except CNIError:
        return repr(document.decode(errors="replace"))


def _warn(text: str) -> None:
    print(f"cnitool: warning: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
