"""An ADD of an attachment that is attached already fails, at whatever step, and takes nothing of the first one's."""

from __future__ import annotations

from typing import Any

import pytest

from cnisdk import Plugin
from cnisdk.testing import Host, fail
from cnisdk_plugins.bridge import Bridge
from cnisdk_plugins.host_device import HostDevice
from cnisdk_plugins.loopback import Loopback
from cnisdk_plugins.macvlan import Macvlan
from cnisdk_plugins.ptp import Ptp
from cnisdk_plugins.tap import Tap

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

BRIDGE = {"bridge": "cni0", "isGateway": True, "ipMasq": True, "macspoofchk": True}
SUBJECTS: dict[str, tuple[type[Plugin[Any]], dict[str, Any], dict[str, Any]]] = {
    "bridge": (Bridge, BRIDGE, {}),
    "bridge, by nftables": (Bridge, {**BRIDGE, "ipMasqBackend": "nftables"}, {}),
    "bridge, another": (Bridge, BRIDGE, {"bridge": "cni1", "ipMasqBackend": "nftables", "macspoofchk": False}),
    "host-device": (HostDevice, {"device": "dev0"}, {}),
    "host-device, another": (HostDevice, {"device": "dev0"}, {"device": "dev1"}),
    "loopback": (Loopback, {}, {}),
    "macvlan": (Macvlan, {"master": "dev0"}, {}),
    "macvlan, another master": (Macvlan, {"master": "dev0"}, {"master": "dev1"}),
    "ptp": (Ptp, {"ipMasq": True}, {}),
    "tap": (Tap, {}, {}),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_second_add_that_fails_leaves_what_the_first_made(host: Host, name: str) -> None:
    for number in (0, 1):
        host.shell(f"ip link add dev{number} type veth peer name peer{number}; ip link set dev{number} up")
    kind, conf, changed = SUBJECTS[name]
    ifname = "lo" if kind is Loopback else "eth0"
    container, stub = host.container(), host.stub()
    ipam = {} if kind is Loopback else {"ipam": stub.conf}
    first, second = (host.plugin(kind, {**conf, **keys, **ipam}) for keys in ({}, changed))
    first.add(container, ifname)
    before, leased, failed = host.state(), stub.leases, 0
    for answer in second.at_each_step(fail, "ADD", container, ifname):
        failed += answer.status > 0
        assert (host.state(), stub.leases) == (before, leased), answer
    assert failed
    first.check(container, ifname)
    first.delete(container, ifname)
    assert stub.leases == {}
