"""Rehearsal: run plugins in the server before it serves, so that workers inherit what Python does only once.

On first use, Python imports modules, cattrs makes its rules for a class, the interpreter specializes code, and memory
is written that is not written again. After a rehearsal all workers share the result. Without it, each worker does it
again, in each request.

The server enters a new network namespace, and makes a second one that stands for a container. Each plugin that offers
configurations (:meth:`cnisdk.Plugin.rehearsals`) attaches, checks and detaches containers there, :data:`_ROUNDS` times,
with its state below a temporary directory. At the end the server returns to its own namespace, and restores environment
and signal handlers.

A worker rehearses once more, by itself, if no request waits for it (:func:`rehearse_in_worker`): the kernel copies a
page of memory when a process first writes to it.

A plugin that fails is reported, and served all the same. A server that may not make namespaces, or can write no
temporary files, rehearses nothing. If it cannot return to its own namespace, it must not serve:
:class:`~cnisdk.errors.InternalError`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from ..errors import CNIError, InternalError, IOFailureError, cause_of
from ..invoke import _local
from ..linux import netns, rtnetlink
from ..linux.attributes import attribute, text
from ..linux.links import messages
from ..plugin import _process
from ..plugin._environment import replace_environment
from ..plugin._signals import Signals
from ..plugin.base import Plugin
from ..plugin.main import PluginMain
from ..plugin.reply import promises_unchanged_process, refuse_own_netns, respond
from . import protocol
from .caller import CallerPolicy
from .worker import ServedPlugin

# CPython specializes a function after eight runs, and its instructions after some more.
_ROUNDS = 12

# A path at which no process can make a directory.
_NOWHERE = "/proc/nothing/is-here"

# Versions that runtimes use today: containerd and CRI-O, and Podman.
_VERSIONS = ("1.0.0", "1.1.0", "0.4.0")


def rehearse(plugins: Mapping[str, ServedPlugin], launchers: Mapping[str, bytes]) -> list[str]:
    """Rehearse each plugin that offers configurations for it.

    Args:
        plugins: Plugins by type.
        launchers: Text of the launcher of each type.

    Returns:
        The problems, as sentences. A plugin with a problem works, but its first requests take longer.

    Raises:
        InternalError: (999) This process cannot return to its own network namespace.
    """
    _rehearse_taking(_ROUNDS, CallerPolicy())
    problems: list[str] = []
    if not any(map(_offers_rehearsals, plugins.values())):
        return problems
    try:
        with _temporary_directory() as directory:
            for type_, text in launchers.items():
                with open(os.path.join(directory, type_), "wb") as file:
                    file.write(text)
                    os.fchmod(file.fileno(), 0o755)
            with _private_namespaces() as sandbox:
                for type_, plugin in plugins.items():
                    if not _offers_rehearsals(plugin):
                        continue
                    try:
                        _rehearse_plugin(plugin, directory, sandbox)
                    except Exception as exc:  # a bug of the plugin: its requests will report it
                        problems.append(f"plugin {type_} cannot be rehearsed: {exc}")
    except (OSError, IOFailureError) as exc:
        problems.append(f"nothing can be rehearsed: {cause_of(exc)}")
    return problems


def rehearse_in_worker(plugins: Iterable[ServedPlugin], policy: CallerPolicy) -> None:
    """Write to the memory that requests write to, in a process forked from the server.

    Python writes to each object that it uses. Without this, a worker's first host-local ADD waits for 540 pages to be
    copied, and takes twice as long as a later one; with it, for 120. IPAM plugins need no network namespace, and fail
    before they make a file, since no process can make the directory. So nothing is left behind, even if this is killed.
    The environment is that of the last rehearsal afterwards.
    """
    _rehearse_taking(1, policy)
    for plugin in filter(_offers_rehearsals, plugins):
        assert isinstance(plugin.main, PluginMain)
        theirs = plugin.main.plugin
        if theirs.conformance().get("kind") != "ipam" or not promises_unchanged_process(theirs):
            continue
        for keys in theirs.rehearsals(_NOWHERE):
            for verb in ("ADD", "DEL"):
                with suppress(CNIError):
                    _respond(plugin, verb, _environment(0, _NOWHERE, _NOWHERE), _configuration(plugin, 0, keys))


def _rehearse_taking(count: int, policy: CallerPolicy) -> None:
    """Take requests as workers do, from a stand-in for a shim."""
    for _ in range(count):
        shim, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with shim, worker, here, there, open(os.devnull, "rb") as null:
            socket.send_fds(here, [b"plugin\0CNI_COMMAND=ADD\0"], [null.fileno()] * protocol.FILE_COUNT)
            prefix = protocol.offer_prefix("rehearsal", "none")
            socket.send_fds(shim, [prefix + b" 22 23 0"], [there.fileno()])
            policy.find_objection(worker)
            offer = protocol.receive_offer(worker)
            request = protocol.take_request(offer, protocol.netns_cookie(worker))
            offer.end.close()
            for fd in request.files:
                os.close(fd)


def _rehearse_plugin(plugin: ServedPlugin, directory: str, sandbox: str) -> None:
    """Attach, check and detach containers with each configuration that the plugin offers."""
    _process.run_delegates_here(Signals(), plugin.launcher)
    assert isinstance(plugin.main, PluginMain)
    for number, keys in enumerate(plugin.main.plugin.rehearsals(os.path.join(directory, "state"))):
        for turn in range(_ROUNDS):
            conf, environ = _configuration(plugin, number, keys, turn), _environment(turn, sandbox, directory)
            conf["prevResult"] = json.loads(_respond(plugin, "ADD", environ, conf))
            if turn == _ROUNDS - 1:
                _respond(plugin, "CHECK", environ, conf)
            _respond(plugin, "DEL", environ, conf)


def _configuration(plugin: ServedPlugin, number: int, keys: Mapping[str, Any], turn: int = 0) -> dict[str, Any]:
    return {**keys, "cniVersion": _VERSIONS[turn % 3], "name": f"rehearsal{number}", "type": plugin.type}


def _environment(turn: int, sandbox: str, directory: str) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", ""),
        "CNI_CONTAINERID": f"{turn:064x}",
        "CNI_NETNS": sandbox,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": directory,
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=rehearsal",
    }


def _offers_rehearsals(plugin: ServedPlugin) -> bool:
    """Return True if the plugin's class overrides :meth:`cnisdk.Plugin.rehearsals`."""
    if not isinstance(plugin.main, PluginMain):
        return False
    theirs, ours = plugin.main.plugin.rehearsals, Plugin.rehearsals
    return theirs.__func__ is not ours.__func__  # type: ignore[attr-defined]


def _respond(plugin: ServedPlugin, verb: str, environ: Mapping[str, str], conf: Mapping[str, Any]) -> bytes:
    assert isinstance(plugin.main, PluginMain)
    environ = {**environ, "CNI_COMMAND": verb}
    replace_environment(environ)
    reply = respond(plugin.main.plugin, environ, json.dumps(conf).encode(), guard=refuse_own_netns)
    reply.undo.commit()
    if reply.status:
        error = json.loads(reply.stdout)
        raise CNIError(f"{verb}: {error['msg']}", details=error.get("details", ""), code=error["code"])
    return reply.stdout


@contextmanager
def _temporary_directory() -> Iterator[str]:
    """Make a temporary directory. A TemporaryDirectory would be removed by the exit functions of a forked copy."""
    directory = mkdtemp(prefix="cnisdk-rehearsal-")
    try:
        yield directory
    finally:
        rmtree(directory, ignore_errors=True)


@contextmanager
def _private_namespaces() -> Iterator[str]:
    """Move this process into a new network namespace, and yield the path of a second one, which stands for a container.

    Raises:
        OSError: The kernel lets this user make no namespaces.
        IOFailureError: (5) The kernel would not let this process return.
        InternalError: (999) This process could not return.
    """
    environ, runner = os.environ.copy(), _local.runner
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    with netns.current() as home:
        netns.enter(home)  # the current namespace: fails if this process may not return to it later
        _enter_new_netns()
        try:
            with netns.current() as sandbox:
                _enter_new_netns()
                _make_uplink()
                yield f"/proc/self/fd/{sandbox.fd}"
        finally:
            try:
                netns.enter(home)
            except IOFailureError as exc:
                raise InternalError("the server cannot return to its network namespace after rehearsing") from exc
            _local.runner = runner
            replace_environment(environ)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _make_uplink() -> None:
    """Make the link ``up0``, which has carrier, for plugins that need a link of the host."""
    names = ("up0", "up0-peer")
    peer = messages.message(text(messages.IFLA_IFNAME, names[1]))
    body = messages.message(
        text(messages.IFLA_IFNAME, names[0]), messages.info("veth", attribute(messages.VETH_INFO_PEER, peer))
    )
    flags = rtnetlink.F_ACK | rtnetlink.F_CREATE | rtnetlink.F_EXCL
    made = rtnetlink.Message(rtnetlink.NEWLINK, body, "cannot create link up0", flags)
    up = [
        messages.set_request(f"cannot set link {name} up", name=name, flags=_IFF_UP, change=_IFF_UP) for name in names
    ]
    with rtnetlink.connect() as sock:
        sock.send([made, *up])


def _enter_new_netns() -> None:
    """Move this process into a new network namespace."""
    if sys.version_info >= (3, 12):
        os.unshare(_CLONE_NEWNET)
    elif _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot make a network namespace: {os.strerror(number)}")


_CLONE_NEWNET = 0x40000000
_IFF_UP = 0x1
_libc = ctypes.CDLL(None, use_errno=True)
