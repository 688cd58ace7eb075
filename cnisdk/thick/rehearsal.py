"""Run plugins before the first request comes, so that every worker inherits what Python does only the first time.

That is more than imports: cattrs makes its rules for a class when it first meets it, the interpreter specializes code
it has run a few times, and much of a process's memory is written to only once. Done in the server, its workers share
it; not done there, each of them pays for it, on every request.

Only plugins that offer a configuration for it (:meth:`cnisdk.Plugin.rehearsals`) are run, in a pair of network
namespaces made for that and thrown away, with a directory that is thrown away too.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from ..errors import CNIError, InternalError, IOFailureError
from ..invoke import local
from ..linux import netns
from ..plugin import process
from ..plugin.base import Plugin
from ..plugin.environment import replace_environment
from ..plugin.main import PluginMain
from ..plugin.reply import refuse_own_netns, respond
from ..plugin.signals import Signals
from . import pages, protocol
from .pages import Kind, Pages
from .peer import Border
from .protocol import Request
from .worker import Loaded, prepare, serve

# CPython specializes a function after it has run eight times, and each instruction some executions later.
_ROUNDS = 12

# What runtimes ask for today: containerd and CRI-O, and Podman.
_VERSIONS = ("1.0.0", "1.1.0", "0.4.0")


def rehearse(plugins: Mapping[str, Loaded], launchers: Mapping[str, bytes]) -> tuple[dict[Kind, Pages], list[str]]:
    """Run each plugin that offers it a few times.

    Args:
        plugins: By type.
        launchers: The text of the launcher of each type.

    Returns:
        Which pages of memory each kind of request touches, and what went wrong, in sentences: the plugins work all the
        same, more slowly at first.


    Raises:
        InternalError: (999) This process is not in its own network namespace any more.
    """
    border = Border()
    _take_requests(_ROUNDS, border)
    lessons: dict[Kind, Pages] = {}
    problems: list[str] = []
    if not any(map(_offers, plugins.values())):
        return lessons, problems
    with _directory() as directory:
        for type_, text in launchers.items():
            with open(os.path.join(directory, type_), "wb") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o755)
        try:
            with _scene() as sandbox:
                for type_, plugin in plugins.items():
                    if not _offers(plugin):
                        continue
                    try:
                        for verb, touched in _perform(type_, plugin, directory, sandbox, border):
                            lessons[type_, verb] = lessons.get((type_, verb), pages.NONE) | touched
                    except Exception as exc:  # of the plugin's author: it shows when it is used
                        problems.append(f"plugin {type_} cannot be rehearsed: {exc}")
        except (OSError, IOFailureError) as exc:
            problems.append(f"nothing can be rehearsed: {exc}")
    return lessons, problems


def _take_requests(count: int, border: Border) -> None:
    """Take requests as workers do, from shims that are not there."""
    for _ in range(count):
        shim, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with shim, worker, here, there, open(os.devnull, "rb") as null:
            socket.send_fds(here, [b"plugin\0CNI_COMMAND=ADD\0"], [null.fileno()] * protocol.FILES)
            about = protocol.describe("rehearsal", "none")
            socket.send_fds(shim, [about + b" 22 23 0"], [there.fileno()])
            border.judge(worker)
            offer = protocol.receive(worker)
            request = protocol.take(offer, protocol.netns_cookie(worker))
            offer.end.close()
            for fd in request.files:
                os.close(fd)


def _perform(type_: str, plugin: Loaded, directory: str, sandbox: str, border: Border) -> Iterator[tuple[str, Pages]]:
    """Attach, check and detach a container with each configuration the plugin offers.

    Yields:
        Verbs, and what pages each touches in a worker, which is a copy of this process.
    """
    process.run_delegates_here(Signals(), plugin.launcher)
    assert isinstance(plugin.main, PluginMain)
    for number, keys in enumerate(plugin.main.plugin.rehearsals(os.path.join(directory, "state"))):
        environ: dict[str, str] = {}
        conf: dict[str, Any] = {}
        for turn in range(_ROUNDS):
            conf = {**keys, "cniVersion": _VERSIONS[turn % 3], "name": f"rehearsal{number}", "type": type_}
            environ = {
                "PATH": os.environ.get("PATH", ""),
                "CNI_CONTAINERID": f"{turn:064x}",
                "CNI_NETNS": sandbox,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": directory,
                "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=rehearsal",
            }
            conf["prevResult"] = json.loads(_ask(plugin, "ADD", environ, conf))
            if turn == _ROUNDS - 1:
                _ask(plugin, "CHECK", environ, conf)
            _ask(plugin, "DEL", environ, conf)
        for verb in ("ADD", "DEL"):
            yield verb, _observe(plugin, verb, environ, conf, border)


def _observe(plugin: Loaded, verb: str, environ: Mapping[str, str], conf: Mapping[str, Any], border: Border) -> Pages:
    """Have a copy of this process serve a request as a worker does, and say what it touched."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ready = prepare()
            _take_requests(1, border)
            stdin, null = os.memfd_create("stdin"), os.open(os.devnull, os.O_RDWR)
            os.write(stdin, json.dumps(conf).encode())
            os.lseek(stdin, 0, os.SEEK_SET)
            files = (stdin, null, os.dup(2), os.open(".", os.O_PATH))
            variables = {**environ, "CNI_COMMAND": verb}.items()
            request = Request("plugin", {os.fsencode(k): os.fsencode(v) for k, v in variables}, files, -1, 0o22)
            if serve(plugin, request, ready) == 0:
                with open(writing, "wb") as pipe:
                    pipe.write(pages.dump(pages.touched()))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    if not data:
        raise InternalError(f"{verb} fails in a process of its own")
    return pages.load(data)


def _offers(plugin: Loaded) -> bool:
    """Does the plugin's author say how it can be rehearsed?"""
    if not isinstance(plugin.main, PluginMain):
        return False
    theirs, ours = plugin.main.plugin.rehearsals, Plugin.rehearsals
    return theirs.__func__ is not ours.__func__  # type: ignore[attr-defined]


def _ask(plugin: Loaded, verb: str, environ: Mapping[str, str], conf: Mapping[str, Any]) -> bytes:
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
def _directory() -> Iterator[str]:
    """Not a TemporaryDirectory: that is also removed when a copy of this process ends, as its exit functions run."""
    directory = mkdtemp(prefix="cnisdk-rehearsal-")
    try:
        yield directory
    finally:
        rmtree(directory, ignore_errors=True)


@contextmanager
def _scene() -> Iterator[str]:
    """Move this process into a new network namespace, and yield the path of another one, to be attached to it.

    Raises:
        OSError: The kernel makes none for this user.
        IOFailureError: (5) It would not let this process back.
    """
    environ, runner = os.environ.copy(), local.runner
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    with netns.current() as home:
        netns.enter(home)  # it is here already: this shows whether it may come back
        _leave()
        try:
            with netns.current() as sandbox:
                _leave()
                yield f"/proc/self/fd/{sandbox.fd}"
        finally:
            try:
                netns.enter(home)
            except IOFailureError as exc:
                raise InternalError("rehearsing has led into another network namespace for good") from exc
            local.runner = runner
            replace_environment(environ)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _leave() -> None:
    """Move this process into a new network namespace."""
    if sys.version_info >= (3, 12):
        os.unshare(_CLONE_NEWNET)
    elif _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot make a network namespace: {os.strerror(number)}")


_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
