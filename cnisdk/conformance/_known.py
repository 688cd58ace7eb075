"""Configurations with which the suite judges well-known plugins.

A plugin made with this SDK declares its own (:meth:`cnisdk.Plugin.conformance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from .judgement import Kind

STUB = "stub-ipam"
"""The suite's own IPAM plugin."""


@frozen(kw_only=True)
class Trial:
    """Configuration of a plugin, and preparation of its hosts.

    Attributes:
        kind: Its kind; None means to detect it.
        conf: Its configuration, without ``cniVersion``, ``name`` and ``type``. In its texts, ``{number}`` becomes the
            number of the attachment.
        ifname: ``CNI_IFNAME``; empty means ``eth0``.
        setup: Shell commands that prepare a host, which has the link ``up0`` and the bridge ``up1`` already.
            ``{plugin}`` in them becomes the path of the plugin.
        container_setup: Shell commands, run on the host, that prepare each new container. ``{container}`` in them
            becomes the name of its namespace.
    """

    kind: Kind | None = None
    conf: Mapping[str, Any] = field(factory=dict)
    ifname: str = ""
    setup: str = ""
    container_setup: str = ""


_LEASED = {"ipam": {"type": STUB}}
# One device for each attachment: no case makes more than twenty.
_DEVICES = "seq 1 20 | sed 's/.*/link add dev& type veth peer name dev&x/' | ip -batch -"

_DHCP_SERVER = (
    "{ command -v dnsmasq >/dev/null || { echo 'dnsmasq, the DHCP server, is not installed' >&2; false; }; } && "
    "ip netns add server && ip link set up0x netns server && ip -n server addr add 10.25.0.1/24 dev up0x && "
    "ip -n server link set up0x up && mkdir -p /run/cni && { ip netns exec server dnsmasq --no-daemon "
    "--conf-file=/dev/null --port=0 --interface=up0x --bind-interfaces --no-ping --dhcp-authoritative --pid-file= "
    "--dhcp-leasefile=/run/dnsmasq.leases --dhcp-range=10.25.0.2,10.25.0.254,1h </dev/null >/dev/null 2>&1 & }"
)
# Go on without them after 30 seconds: each ADD then says why it fails.
_DHCP_READY = (
    "timeout 30 sh -c 'until [ -e /run/dnsmasq.leases ] && [ -S /run/cni/dhcp.sock ]; do sleep 0.02; done' || true"
)

KNOWN: dict[str, Trial] = {
    # Interface plugins. A stub leases their addresses.
    "bridge": Trial(
        kind=Kind.INTERFACE,
        conf={"bridge": "cni0", "isGateway": True, "ipMasq": True, "capabilities": {"mac": True}, **_LEASED},
    ),
    "ptp": Trial(kind=Kind.INTERFACE, conf={"ipMasq": True, **_LEASED}),
    "macvlan": Trial(kind=Kind.INTERFACE, conf={"master": "up0", "capabilities": {"mac": True}, **_LEASED}),
    "ipvlan": Trial(kind=Kind.INTERFACE, conf={"master": "up0", **_LEASED}),
    # A link can have a VLAN ID only once, so each attachment has a link of its own.
    "vlan": Trial(
        kind=Kind.INTERFACE,
        conf={"master": "dev{number}", "vlanId": 42, **_LEASED},
        setup=f"{_DEVICES}; seq 1 20 | sed 's/.*/link set dev& up/' | ip -batch -",
    ),
    "dummy": Trial(kind=Kind.INTERFACE, conf=_LEASED),
    "tap": Trial(kind=Kind.INTERFACE, conf={"capabilities": {"mac": True}, **_LEASED}),
    "host-device": Trial(kind=Kind.INTERFACE, conf={"device": "dev{number}", **_LEASED}, setup=_DEVICES),
    "loopback": Trial(kind=Kind.INTERFACE, ifname="lo"),
    # Chained plugins: the suite makes the interface, and the prevResult that describes it.
    "portmap": Trial(
        kind=Kind.CHAINED,
        conf={
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        },
    ),
    "tuning": Trial(
        kind=Kind.CHAINED,
        conf={"capabilities": {"mac": True}, "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}, "mtu": 1400},
    ),
    "bandwidth": Trial(
        kind=Kind.CHAINED,
        conf={"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000},
    ),
    "firewall": Trial(kind=Kind.CHAINED, conf={"backend": "iptables"}),
    "sbr": Trial(kind=Kind.CHAINED),
    "vrf": Trial(kind=Kind.CHAINED, conf={"vrfname": "red"}),
    # IPAM plugins.
    "host-local": Trial(
        kind=Kind.IPAM,
        conf={"capabilities": {"ips": True}, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/27"}]]}},
    ),
    "static": Trial(
        kind=Kind.IPAM,
        conf={"ipam": {"type": "static", "addresses": [{"address": "10.23.0.5/24", "gateway": "10.23.0.1"}]}},
    ),
    # A DHCP server runs behind up0. Each container gets macvlan interfaces on up0, as from an interface plugin.
    "dhcp": Trial(
        kind=Kind.IPAM,
        conf={"ipam": {"type": "dhcp"}},
        setup=f"{_DHCP_SERVER} && {{ {{plugin}} daemon </dev/null >/dev/null 2>&1 & }} && {_DHCP_READY}",
        container_setup=(
            "for name in eth0 net1; do ip link add link up0 name $name netns {container} type macvlan mode bridge; "
            "ip -n {container} link set $name up; done"
        ),
    ),
}
