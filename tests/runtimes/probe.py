"""Program: exit with 0 if a message, and its answer, get from one network to a server in another; else with 3.

Arguments: path of the server's namespace and of the client's, tcp or udp, address and port to send to, port of the
server, seconds to wait for each step.
"""

import socket
import sys

from cnisdk.linux import netns

_NOT = 3  # an uncaught exception is 1


def main() -> int:
    """Run the server and the client."""
    server_path, client_path, protocol, address, port, server_port, patience = sys.argv[1:]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]
    with netns.open(server_path) as theirs, netns.open(client_path) as ours:
        server, client = theirs.call(socket.socket, family, kind), ours.call(socket.socket, family, kind)
    with server, client:
        for each in (server, client):
            each.settimeout(float(patience))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", int(server_port)))
        try:
            if protocol == "tcp":
                server.listen()
                client.connect((address, int(port)))
                with server.accept()[0] as peer:
                    peer.settimeout(float(patience))
                    client.sendall(b"?")
                    return 0 if peer.recv(1) == b"?" else _NOT
            client.connect((address, int(port)))
            client.send(b"?")
            _, sender = server.recvfrom(1)
            server.sendto(b"!", sender)
            return 0 if client.recv(1) == b"!" else _NOT
        except OSError:
            return _NOT


sys.exit(main())
