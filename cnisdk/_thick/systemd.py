"""systemd units for the resident server and for the daemon of the plugin dhcp, each with its socket."""

from __future__ import annotations

import os

from . import protocol

SERVICE = "cnisdk.service"
SOCKET = "cnisdk.socket"
DHCP_SERVICE = "cnisdk-dhcp.service"
DHCP_SOCKET = "cnisdk-dhcp.socket"


def render_units(interpreter: str, directory: str) -> dict[str, bytes]:
    """Render the units.

    Args:
        interpreter: Absolute path of the Python that has the plugins installed.
        directory: Directory of the server's sockets.

    Returns:
        Content of the units, by file name.
    """
    package = (__package__ or "").rpartition(".")[0]
    socket = os.path.join(directory, os.path.basename(protocol.SOCKET))
    service = f"""\
# Written by `cnisdk install --units`.
[Unit]
Description=Resident CNI plugins
Documentation=https://www.cni.dev
Requires={SOCKET}
After={SOCKET}
# Always start it again: meanwhile the shims run the plugins, and a start takes half a second.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={_quote(interpreter)} -I -m {package} serve --directory {_quote(directory)}
Restart=always
RestartSec=100ms
# Signal the server alone, so that running requests can end, also when the server has died.
KillMode=process
TimeoutStopSec=160
OOMScoreAdjust=-900
# Plugins need the host's namespaces: no PrivateTmp, ProtectSystem or PrivateNetwork. Each of these makes a mount or
# network namespace, in which the paths of a request mean something else.
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_KILL
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH
RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6 AF_PACKET
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=no
SystemCallArchitectures=native

[Install]
Also={SOCKET}
WantedBy=multi-user.target
"""
    return {
        SERVICE: service.encode(),
        SOCKET: _render_socket("Socket of the resident CNI plugins", f"ListenSequentialPacket={socket}"),
    }


def render_dhcp_units(interpreter: str, socket: str) -> dict[str, bytes]:
    """Render the units of the daemon of the plugin dhcp.

    Args:
        interpreter: Absolute path of the Python that has the plugins installed.
        socket: Path of its socket.

    Returns:
        Content of the units, by file name.
    """
    package = (__package__ or "").rpartition(".")[0]
    service = f"""\
# Written by `cnisdk install --units`.
[Unit]
Description=DHCP leases of containers
Documentation=https://www.cni.dev/plugins/current/ipam/dhcp/
Requires={DHCP_SOCKET}
After={DHCP_SOCKET}
# Always start it again: leases must be renewed.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={_quote(interpreter)} -I -m {package} dhcp --socket {_quote(socket)}
Restart=always
RestartSec=100ms
OOMScoreAdjust=-900
# It enters the namespaces of containers by their paths: no PrivateTmp, ProtectSystem or PrivateNetwork, each of which
# makes a mount or network namespace.
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_ADMIN CAP_SYS_PTRACE
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH
RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_PACKET
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
Also={DHCP_SOCKET}
WantedBy=multi-user.target
"""
    return {
        DHCP_SERVICE: service.encode(),
        DHCP_SOCKET: _render_socket("Socket of the DHCP leases of containers", f"ListenStream={socket}"),
    }


def _render_socket(description: str, listen: str) -> bytes:
    return f"""\
# Written by `cnisdk install --units`.
[Unit]
Description={description}

[Socket]
{listen}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
""".encode()


def _quote(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
