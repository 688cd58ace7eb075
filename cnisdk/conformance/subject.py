"""Plugin under test: its kind, its configuration, and the commands that prepare its hosts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ._known import STUB
from .judgement import Kind

#: Shell commands for every host: they make a physical network, and a bridge of another program.
SETUP = (
    "ip link add up0 type veth peer name up0x && ip link set up0 up && ip link set up0x up && "
    "ip link add up1 address 02:00:00:00:00:01 type bridge && ip link set up1 up"
)


@frozen(kw_only=True)
class Subject:
    """A plugin to judge.

    Attributes:
        path: Its executable.
        kind: Its kind.
        conf: Its configuration, without ``cniVersion`` and ``name``.
        versions: Versions of the specification that it reports to VERSION and the suite knows, oldest first.
        search: Directories with the plugins it delegates to.
        ifname: ``CNI_IFNAME`` of requests.
        setup: Shell commands that prepare a host.
        container_setup: Shell commands, run on the host, that prepare a container, with ``{container}`` for its name.
        problem: Reason why it cannot be judged, such as the error of its ADD; empty for none.
        starts: False if it cannot be started at all, for the reason in ``problem``.
        remark: A warning about the configuration, for readers of the verdict.
        leaks: Lines of the footprint that every DEL of it leaves, generalized. Only one case reports them.
    """

    path: str
    kind: Kind
    conf: Mapping[str, Any]
    versions: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    ifname: str = "eth0"
    setup: str = SETUP
    container_setup: str = ""
    problem: str = ""
    starts: bool = True
    remark: str = ""
    leaks: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Type of the plugin: the name of its executable."""
        return os.path.basename(self.path)

    @property
    def version(self) -> str:
        """Newest of its versions; 1.0.0 if it reports none."""
        return self.versions[-1] if self.versions else "1.0.0"

    def document(self, number: int = 1) -> dict[str, Any]:
        """Return a copy of the configuration for the requests of the Nth attachment."""
        conf = _numbered(dict(self.conf), number)
        for mapping in conf.get("runtimeConfig", {}).get("portMappings", []):
            mapping["hostPort"] += number  # no two attachments can publish the same port
        conf.pop("disableCheck", None)  # a key of the list, for the runtime
        return {"cniVersion": self.version, "name": "conform", "type": self.name, **conf}

    @property
    def checks(self) -> bool:
        """True if a runtime may send it CHECK."""
        return self.version >= "0.4.0" and not self.conf.get("disableCheck")

    @property
    def delegates(self) -> bool:
        """True if it leases its addresses from the suite's IPAM plugin."""
        ipam = self.conf.get("ipam")
        return self.kind is Kind.INTERFACE and isinstance(ipam, Mapping) and ipam.get("type") == STUB


def _numbered(value: Any, number: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _numbered(each, number) for key, each in value.items()}
    if isinstance(value, list):
        return [_numbered(each, number) for each in value]
    return value.replace("{number}", str(number)) if isinstance(value, str) else value
