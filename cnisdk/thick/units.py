"""Units for systemd: the server, and the socket that waits for it."""

from __future__ import annotations

import os

from . import protocol

SERVICE = "cnisdk.service"
SOCKET = "cnisdk.socket"


def render_units(interpreter: str, directory: str) -> dict[str, bytes]:
    """The units, by file name.

    Args:
        interpreter: Absolute path of the Python that has the plugins installed.
        directory: The server's.
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
# However often it ends: the shims serve meanwhile, and a start costs half a second.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={_quote(interpreter)} -I -m {package}.cli.cnisdk serve --directory {_quote(directory)}
Restart=always
RestartSec=100ms
# Requests that run are let end, also when the server dies: signals are for the server alone.
KillMode=process
TimeoutStopSec=160
OOMScoreAdjust=-900
# What plugins do to the network needs the host's namespaces: no PrivateTmp, ProtectSystem or PrivateNetwork. Each makes
# a mount or network namespace in which the paths of a request would mean something else.
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
    text = f"""\
# Written by `cnisdk install --units`.
[Unit]
Description=Socket of the resident CNI plugins

[Socket]
ListenSequentialPacket={socket}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""
    return {SERVICE: service.encode(), SOCKET: text.encode()}


def _quote(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
