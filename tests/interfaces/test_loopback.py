"""loopback on the real kernel."""

from __future__ import annotations

import pytest

from cnisdk.errors import IOFailureError
from cnisdk.testing import Host
from cnisdk_plugins.loopback import Loopback

pytestmark = pytest.mark.kernel


def is_up(host: Host) -> bool:
    return "UP" in host.ip("link", "show", "lo", netns="c1")[0]["flags"]


@pytest.mark.parametrize("ifname", ["lo", "eth0"])
def test_it_is_set_up_and_down(host: Host, ifname: str) -> None:
    web = host.container()
    host.shell("ip netns exec c1 ip link set lo down")
    plugin = host.plugin(Loopback)
    plugin.status()
    answer = plugin.run("ADD", web, ifname, cniVersion="0.3.1", name="cni-loopback")
    assert answer.document == {
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": web.netns}],
        "ips": [
            {"version": "4", "interface": 0, "address": "127.0.0.1/8"},
            {"version": "6", "interface": 0, "address": "::1/128"},
        ],
        "dns": {},
    }
    assert is_up(host)
    plugin.add(web, ifname)
    plugin.check(web, ifname)
    plugin.delete(web, ifname)
    assert not is_up(host)
    with pytest.raises(IOFailureError, match="loopback interface is down"):
        plugin.check(web, ifname)
    plugin.delete(web, ifname)
    web.destroy()
    plugin.delete(web, ifname)
    plugin.gc()


def test_a_previous_result_is_passed_on(host: Host) -> None:
    web = host.container()
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x", "mtu": 1400}],
        "ips": [{"interface": 0, "address": "10.1.0.2/24"}],
    }
    assert host.plugin(Loopback).run("ADD", web, "lo", prevResult=result).document == result


def test_an_address_that_others_could_reach_is_refused(host: Host) -> None:
    web = host.container()
    host.shell("ip netns exec c1 ip link set lo down; ip netns exec c1 ip addr add 10.200.0.1/32 dev lo")
    with pytest.raises(IOFailureError, match=r'loopback interface found with non-loopback address "10\.200\.0\.1"'):
        host.plugin(Loopback).add(web, "lo")
    assert not is_up(host)
