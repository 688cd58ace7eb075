"""Throw-away hosts and containers for tests, on the real kernel, connected as the test wants.

Example:
    >>> from cnisdk.testing import Host
    >>> with Host() as host:                                                               # doctest: +SKIP
    ...     bridge = host.plugin("/opt/cni/bin/bridge", {"ipam": host.stub().conf})
    ...     web, client = host.container("web"), host.container("client")
    ...     bridge.add(web), bridge.add(client)
    ...     client.reaches(web)
    True
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ..linux import netns, sysctl
from ..linux.ip import address
from ..linux.links import link
from ..linux.rtnetlink import Socket
from .packets import ETH_P_ALL, Capture
from .sandbox import Sandbox

if TYPE_CHECKING:
    from ..plugin import Plugin
    from ..spec.addresses import IPAddress
    from .running import PluginUnderTest
    from .state import State
    from .stub import StubPlugin

# Kind and number of a socket; IPPROTO_SCTP, where Python knows it.
_PROTOCOLS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, 132),
}


class Node:
    """A network stack: a host's own, or a container's.

    Attributes:
        host: The host it is on.
        netns: Path of the namespace on that host; empty for the host's own.
    """

    host: Host
    netns: str

    def _inside(self, function: Any, *args: Any) -> Any:
        if not self.netns:
            return self.host.call(function, *args)
        return self.host.call(_call_in, self.netns, function, *args)

    def shell(self, command: str) -> str:
        """Run a shell command in this network, as ``ip netns exec`` does, and return what it printed.

        Raises:
            AssertionError: It failed.
        """
        inside = ["ip", "netns", "exec", os.path.basename(self.netns)] if self.netns else []
        return self.host.run([*inside, "sh", "-euc", command]).stdout

    def links(self) -> list[str]:
        """Return the names of the links, sorted."""
        return sorted(self._inside(_link_names))

    def addresses(self, ifname: str = "") -> list[str]:
        """Return the addresses of a link, or of all but ``lo``: ``["10.9.0.2/24"]``, without link-local IPv6."""
        found: list[str] = self._inside(_address_texts, ifname)
        return found

    def sysctl(self, key: str) -> str:
        """Return the value of a sysctl of this network: ``sysctl("net/ipv4/ip_forward")``."""
        value: str = self._inside(sysctl.get, key)
        return value

    def open_socket(
        self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0, bind: Any = None
    ) -> socket.socket:
        """Make a socket of this network, for use by the test itself.

        Args:
            family: ``socket.AF_INET`` and so on.
            kind: ``socket.SOCK_STREAM`` and so on.
            protocol: As for :class:`socket.socket`.
            bind: What to bind it to, before it is handed over; None means not to.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._inside(_send_socket, theirs, family, kind, protocol, bind)
            _, fds, *_ = socket.recv_fds(ours, 1, 1)
        return socket.socket(fileno=fds[0])

    def capture(self, ifname: str) -> Capture:
        """Watch the frames on a link from now on."""
        sock = self.open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL), (ifname, ETH_P_ALL))
        return Capture(sock)

    def reaches(
        self,
        target: Node,
        address: IPAddress | str | None = None,
        *,
        protocol: str = "tcp",
        port: int = 0,
        published: int = 0,
        timeout: float = 3.0,
    ) -> bool:
        """Return whether a connection, or a UDP datagram and its answer, gets from here to a server there.

        Args:
            target: Where the server listens, on all its addresses.
            address: Where to send to; None means the target's first address.
            protocol: ``tcp``, ``sctp`` or ``udp``.
            port: Where the server listens; 0 means any.
            published: The port to send to, where it is not that of the server.
            timeout: Seconds to wait for each step. A refusal is an answer, and is not waited for.
        """
        if address is None:
            address = (target.addresses() or ["127.0.0.1"])[0].partition("/")[0]
        where = ip_address(str(address))
        family, any_address = (socket.AF_INET, "0.0.0.0") if where.version == 4 else (socket.AF_INET6, "::")
        kind, number = _PROTOCOLS[protocol]
        with ExitStack() as stack:
            server = stack.enter_context(target.open_socket(family, kind, number, (any_address, port)))
            client = stack.enter_context(self.open_socket(family, kind, number))
            server.settimeout(timeout)
            client.settimeout(timeout)
            goal = (str(where), published or server.getsockname()[1])
            try:
                if kind == socket.SOCK_STREAM:
                    server.listen()
                    client.connect(goal)
                    peer = stack.enter_context(server.accept()[0])
                    peer.settimeout(timeout)
                    client.sendall(b"?")
                    return peer.recv(1) == b"?"
                client.connect(goal)
                client.send(b"?")
                question, sender = server.recvfrom(1)
                server.sendto(b"!", sender)
                return (question, client.recv(1)) == (b"?", b"!")
            except OSError:
                return False


class Container(Node):
    """A network namespace of a host, as a runtime makes one for a container.

    Attributes:
        host: Its host.
        name: Name of the namespace.
        id: ``CNI_CONTAINERID``: the name.
        netns: ``CNI_NETNS``: ``/run/netns/<name>``.
    """

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = self.id = name
        self.netns = f"/run/netns/{name}"

    def __repr__(self) -> str:
        return f"<container {self.name}>"

    def destroy(self) -> None:
        """Remove the namespace, with all that is in it, as when the container's last process ends."""
        self.host.del_netns(self.name)


class Host(Sandbox, Node):
    """A :class:`Sandbox` with the words of a plugin's test."""

    netns = ""

    def __init__(self, *, beside: Sandbox | None = None, watched: Iterable[str] = ()) -> None:
        super().__init__(beside=beside, watched=watched)
        self.host = self

    def container(self, name: str = "c1") -> Container:
        """Make a container."""
        self.add_netns(name)
        return Container(self, name)

    def plugin(
        self,
        plugin: type[Plugin[Any]] | str | os.PathLike[str],
        conf: Mapping[str, Any] | None = None,
        *,
        path: Iterable[str | os.PathLike[str]] = (),
    ) -> PluginUnderTest:
        """Return a plugin to run on this host; the arguments are those of :class:`~.running.PluginUnderTest`."""
        from .running import PluginUnderTest

        return PluginUnderTest(self, plugin, conf or {}, path)

    def stub(
        self,
        name: str = "stub-ipam",
        *,
        prefix: str = "10.9.0",
        size: int = 253,
        routes: Sequence[Mapping[str, str]] = (),
    ) -> StubPlugin:
        """Install an IPAM plugin that leases addresses, records its calls and fails on demand."""
        from .stub import StubPlugin

        return StubPlugin(self, name, prefix=prefix, size=size, routes=routes)

    def state(self, *sysctls: str, rules: bool = True) -> State:
        """Return everything that plugins change on this host and in its containers.

        Args:
            *sysctls: Keys to look up too: ``"net/ipv4/ip_forward"``.
            rules: Include policy routing and nft.
        """
        from .state import collect

        return self.call(collect, None, sysctls, rules=rules)

    def connect(self, other: Host, ifname: str = "uplink", address: str = "", other_address: str = "") -> None:
        """Lay a cable between two hosts: a link of this name on both, up.

        Args:
            other: The other host; one of the two was made ``beside`` the other, as those of a test are.
            ifname: The name of the link on both.
            address: This end's address with its prefix length; empty means none.
            other_address: The other end's.
        """
        self.run(
            ["ip", "link", "add", ifname, "type", "veth", "peer", "name", ifname, "netns", str(other.pid)], timeout=10
        )
        for end, own in ((self, address), (other, other_address)):
            if own:
                end.run(["ip", "addr", "add", own, "dev", ifname, *(["nodad"] if ":" in own else [])])
            end.run(["ip", "link", "set", ifname, "up"])


def _call_in(path: str, function: Any, *args: Any) -> Any:
    with netns.open(path) as space:
        return space.call(function, *args)


def _link_names() -> list[str]:
    return [each.name for each in link.list_all()]


def _address_texts(ifname: str) -> list[str]:
    with Socket() as sock:
        names = {each.index: each.name for each in link.list_all()}
        found = [
            (names.get(each.index, ""), str(each.interface))
            for each in address.list_all(sock)
            if not (each.interface.is_link_local and each.interface.version == 6)
        ]
    return [text for name, text in sorted(found) if (name == ifname if ifname else name != "lo")]


def _send_socket(channel: socket.socket, family: int, kind: int, protocol: int, bind: Any) -> None:
    with socket.socket(family, kind, protocol) as made:
        if bind is not None:
            if kind == socket.SOCK_STREAM:
                made.setsockopt(
                    socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
                )  # else a server's port stays taken for a minute
            made.bind(bind)
        socket.send_fds(channel, [b"s"], [made.fileno()])
