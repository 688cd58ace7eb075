"""The plugin that is judged: what it is, how it is configured, and what a host needs for it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from ...errors import InvalidConfigError
from ..hosts import Host
from ..running import SYSTEM_PATH
from .case import Kind

STUB = "stub-ipam"

# How to configure the plugins everybody has, so that much of them is exercised. A stub leases their addresses.
KNOWN: dict[str, dict[str, Any]] = {
    "bridge": {
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "capabilities": {"mac": True},
        "ipam": {"type": STUB},
    },
    "ptp": {"ipMasq": True, "ipam": {"type": STUB}},
    "macvlan": {"master": "up0", "capabilities": {"mac": True}, "ipam": {"type": STUB}},
    "ipvlan": {"master": "up0", "ipam": {"type": STUB}},
    "loopback": {},
    "host-local": {
        "capabilities": {"ips": True},
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/26"}]]},
    },
    "static": {"ipam": {"type": "static", "addresses": [{"address": "10.23.0.5/24", "gateway": "10.23.0.1"}]}},
    "portmap": {
        "capabilities": {"portMappings": True},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    },
    "tuning": {"capabilities": {"mac": True}, "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}, "mtu": 1400},
    # The tutorials' plugins; the smaller one has no CHECK.
    "patch": {"bridge": "up1", "disableCheck": True, "ipam": {"type": STUB}},
    "cable": {"bridge": "up1", "ipam": {"type": STUB}},
}
_KINDS = {
    "host-local": Kind.IPAM,
    "static": Kind.IPAM,
    "dhcp": Kind.IPAM,
    "portmap": Kind.CHAINED,
    "tuning": Kind.CHAINED,
    "firewall": Kind.CHAINED,
    "bandwidth": Kind.CHAINED,
    "sbr": Kind.CHAINED,
}
# A physical network to lean on, and a bridge of somebody else's.
SETUP = (
    "ip link add up0 type veth peer name up0x && ip link set up0 up && ip link set up0x up && "
    "ip link add up1 address 02:00:00:00:00:01 type bridge && ip link set up1 up"
)


@frozen(kw_only=True)
class Subject:
    """A plugin to judge.

    Attributes:
        path: Its executable.
        kind: What it does.
        conf: Its configuration, without ``cniVersion`` and ``name``.
        versions: The versions of the specification it claims, oldest first.
        search: Directories with the plugins it delegates to.
        ifname: ``CNI_IFNAME`` of requests.
        setup: Shell commands that prepare a host.
    """

    path: str
    kind: Kind
    conf: Mapping[str, Any]
    versions: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    ifname: str = "eth0"
    setup: str = SETUP
    extra: Mapping[str, Any] = field(factory=dict)

    @property
    def name(self) -> str:
        """The plugin's type: the name of its executable."""
        return os.path.basename(self.path)

    @property
    def version(self) -> str:
        """The newest version it claims that the suite knows."""
        return self.versions[-1] if self.versions else "1.0.0"

    def document(self, number: int = 1) -> dict[str, Any]:
        """The configuration for the request of the Nth container, a copy."""
        conf = copy.deepcopy(dict(self.conf))
        for mapping in conf.get("runtimeConfig", {}).get("portMappings", []):
            mapping["hostPort"] += number  # no two containers can publish the same port
        conf.pop("disableCheck", None)  # a key of the list, for the runtime
        return {"cniVersion": self.version, "name": "conform", "type": self.name, **conf}

    @property
    def checks(self) -> bool:
        """A runtime may send it CHECK."""
        return self.version >= "0.4.0" and not self.conf.get("disableCheck")

    @property
    def delegates(self) -> bool:
        """It leases its addresses from our stub."""
        ipam = self.conf.get("ipam")
        return self.kind is Kind.INTERFACE and isinstance(ipam, Mapping) and ipam.get("type") == STUB


_ORDER = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def identify(
    path: str,
    *,
    conf: Mapping[str, Any] | None = None,
    kind: Kind | None = None,
    search: Sequence[str] = (),
    ifname: str = "",
    setup: str | None = None,
) -> Subject:
    """Find out what a plugin is, by what is known of its name, its configuration, and by asking it.

    Args:
        path: Its executable.
        conf: Its configuration; None means what is known to suit its name, or nothing beyond the required keys.
        kind: What it is; None means to find out.
        search: Directories with the plugins it delegates to.
        ifname: ``CNI_IFNAME``; empty means ``eth0``, or for loopback ``lo``.
        setup: Shell commands to prepare a host with, beside those the suite needs.

    Raises:
        InvalidConfigError: (7) There is no such executable.
        SandboxUnavailable: This machine does not allow namespaces.
    """
    path = os.path.abspath(path)
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        raise InvalidConfigError(f"{path} is not an executable file")
    name = os.path.basename(path)
    document = {key: value for key, value in (conf or {}).items() if key not in ("cniVersion", "name", "type")}
    if conf is None:
        document = KNOWN.get(name, {})
    subject = Subject(
        path=path,
        kind=kind or Kind.INTERFACE,
        conf=document,
        search=(*map(os.path.abspath, search), os.path.dirname(path)),
        ifname=ifname or ("lo" if name == "loopback" else "eth0"),
        setup=SETUP if not setup else f"{SETUP} && {setup}",
    )
    with Host() as host:
        subject = evolve(subject, versions=_ask_versions(host, subject))
        if kind is None:
            subject = evolve(subject, kind=_find_kind(host, subject))
    return subject


def _ask_versions(host: Host, subject: Subject) -> tuple[str, ...]:
    environ = {"PATH": SYSTEM_PATH, "CNI_COMMAND": "VERSION"}
    done = host.run([subject.path], env=environ, input='{"cniVersion": "1.1.0"}', check=False)
    try:
        listed = json.loads(done.stdout)["supportedVersions"]
        return tuple(version for version in _ORDER if version in listed)
    except (ValueError, KeyError, TypeError):
        return ()  # a case says so


def _find_kind(host: Host, subject: Subject) -> Kind:
    ipam = subject.conf.get("ipam")
    if isinstance(ipam, Mapping) and ipam.get("type") == subject.name:
        return Kind.IPAM
    if subject.name in _KINDS:
        return _KINDS[subject.name]
    # Only a chained plugin fails for want of a prevResult, and only an IPAM plugin's result has no interfaces.
    from .bench import Bench

    bench = Bench(host, subject)
    bench.prepare()
    alone = bench.request("ADD", bench.container("ask1"))
    if alone.status == 0:
        document = alone.try_document()
        has_interface = isinstance(document, dict) and document.get("interfaces")
        return Kind.INTERFACE if has_interface or not isinstance(document, dict) else Kind.IPAM
    chained = Bench(host, evolve(subject, kind=Kind.CHAINED))
    return Kind.CHAINED if chained.request("ADD", chained.container("ask2")).status == 0 else Kind.INTERFACE
