"""Process that has the plugins loaded and rehearsed, and forks a resident server from itself onto any host.

A server takes more than a second of a processor to load and to rehearse all plugins. Tests start hundreds of servers,
all alike. So one process does it once for a test run, in namespaces of its own, and waits at a socket. A client
(:data:`CLIENT`, run by a shell command on a host) connects. The kernel tells the client's process id. A fork of the
template enters the client's namespaces, and runs ``cnisdk serve`` there as that command does, but for loading. The
client ends when the server is ready, with its exit status.

Run as a script by root, with the path of the socket and then the arguments of ``cnisdk serve``. It ends when its
standard input does. An ordinary user cannot run it: no process may move from a user namespace to another beside it.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import socket
import struct
import sys
from collections.abc import Mapping
from typing import NoReturn

from cnisdk._cli import cnisdk, serve
from cnisdk._thick import load
from cnisdk._thick.worker import ServedPlugin
from cnisdk.testing import _holder

CLIENT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.exit(s.recv(1) != b'0')"
"""Python code that starts a server where it runs; its argument is the socket's path."""

_PRIVATE = ("/run", "/var/lib", "/etc/cni")
_KINDS = ("user", "mnt", "net")
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Load the plugins, then fork a server for each client."""
    path, *arguments = sys.argv[1:]
    try:
        _hide_the_host(os.path.dirname(path))
        launchers = serve._render_launchers()
        plugins = load.load_plugins(launchers)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(64)
            print("ready", flush=True)
            while listener in select.select([listener, sys.stdin], [], [])[0]:
                client = listener.accept()[0]
                with client:
                    if (child := os.fork()) == 0:
                        listener.close()
                        _start(client, ["serve", *arguments, "--background"], launchers, plugins)
                os.waitpid(child, 0)
    finally:
        shutil.rmtree(os.path.dirname(path))


def _hide_the_host(socket_directory: str) -> None:
    """Enter a network of its own, and hide the places where plugins keep their state."""
    _holder.check(_libc.unshare(_holder.CLONE_NEWNS | _holder.CLONE_NEWNET), "unshare mount, network")
    _holder.mount("none", "/", None, _holder.MS_REC | _holder.MS_PRIVATE)
    kept = [sys.prefix, sys.base_prefix, socket_directory, *filter(os.path.isabs, sys.path)]
    for directory in _PRIVATE:
        _holder.make_private(directory, [os.path.realpath(each) for each in kept])


def _start(
    client: socket.socket, command: list[str], launchers: Mapping[str, bytes], plugins: Mapping[str, ServedPlugin]
) -> NoReturn:
    """Run the command where the client runs, as the program ``cnisdk`` would, and tell the client its exit status."""
    status = 1
    try:
        if os.fork():
            os._exit(0)  # the server is to be no child of the template's
        starter = os.getpid()
        peer, *_ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        _enter(peer)
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.close(null)

        def load_plugins(rendered: Mapping[str, bytes]) -> Mapping[str, ServedPlugin]:
            client.close()  # this is the server: the starter has the other copy
            assert rendered == launchers
            return plugins

        serve._render_launchers = lambda: dict(launchers)  # to find them, Python reads the list of what is installed
        load.load_plugins = load_plugins  # type: ignore[assignment]
        status = cnisdk.main(command)
        if os.getpid() == starter:
            client.send(b"%d" % status)
    finally:
        os._exit(status)


def _enter(pid: int) -> None:
    """Move this process into the namespaces of another one."""
    spaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in _KINDS]
    for kind, space in zip(_KINDS, spaces, strict=True):
        if not os.path.samestat(os.fstat(space), os.stat(f"/proc/self/ns/{kind}")):
            _holder.check(_libc.setns(space, 0), "setns")
        os.close(space)
    os.chdir("/")


if __name__ == "__main__":
    main()
