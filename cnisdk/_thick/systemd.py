"""systemd units for the resident server and for the daemon of the plugin dhcp, each with its socket."""

from __future__ import annotations

import os
from collections.abc import Sequence

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
    socket = os.path.join(directory, os.path.basename(protocol.SOCKET))
    service = _render_service(
        description="Resident CNI plugins",
        documentation="https://www.cni.dev",
        socket=SOCKET,
        always="meanwhile the shims run the plugins, and a start takes half a second.",
        command=f"serve --directory {_quote(directory)}",
        interpreter=interpreter,
        options=(
            "# Signal the server alone, so that running requests can end, also when the server has died.",
            "KillMode=process",
            "TimeoutStopSec=160",
            "MemoryDenyWriteExecute=no",
        ),
        capabilities="CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_KILL",
        families="AF_UNIX AF_NETLINK AF_INET AF_INET6 AF_PACKET",
    )
    return {
        SERVICE: service,
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
    service = _render_service(
        description="DHCP leases of containers",
        documentation="https://www.cni.dev/plugins/current/ipam/dhcp/",
        socket=DHCP_SOCKET,
        always="leases must be renewed.",
        command=f"dhcp --socket {_quote(socket)}",
        interpreter=interpreter,
        capabilities="CAP_NET_BIND_SERVICE CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH",
        families="AF_UNIX AF_NETLINK AF_INET AF_PACKET",
    )
    return {
        DHCP_SERVICE: service,
        DHCP_SOCKET: _render_socket("Socket of the DHCP leases of containers", f"ListenStream={socket}"),
    }


def _render_service(
    *,
    description: str,
    documentation: str,
    socket: str,
    always: str,
    command: str,
    interpreter: str,
    capabilities: str,
    families: str,
    options: Sequence[str] = (),
) -> bytes:
    """Render a service that systemd starts with its socket, and again whenever it ends.

    Args:
        description: The service, in words.
        documentation: Address of its documentation.
        socket: Name of the socket's unit.
        always: Reason to start it again always.
        command: Arguments of `cnisdk`, quoted.
        interpreter: Path of Python.
        capabilities: Capabilities beside those for entering and changing network namespaces.
        families: Families of the sockets that it opens.
        options: Further lines of the section [Service].
    """
    package = (__package__ or "").rpartition(".")[0]
    further = "".join(f"{line}\n" for line in options)
    return f"""\
# Written by `cnisdk install --units`.
[Unit]
Description={description}
Documentation={documentation}
Requires={socket}
After={socket}
# Always start it again: {always}
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={_quote(interpreter)} -I -m {package} {command}
Restart=always
RestartSec=100ms
OOMScoreAdjust=-900
{further}\
# It needs the host's namespaces, and enters those of containers by their paths: no PrivateTmp, ProtectSystem or
# PrivateNetwork. Each of these makes a mount or network namespace, in which a path means something else.
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN CAP_SYS_PTRACE
CapabilityBoundingSet={capabilities}
RestrictAddressFamilies={families}
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
Also={socket}
WantedBy=multi-user.target
""".encode()


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
