"""loopback on the real kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cnisdk.errors import IOFailureError
from cnisdk.testing import Host, expect_error
from cnisdk_plugins.loopback import Loopback

pytestmark = pytest.mark.kernel

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))


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
    plugin.run("DEL", web, ifname, name="cni-loopback").raise_for_error()
    assert not is_up(host)
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


def test_check_does_not_mind_what_a_container_adds(host: Host) -> None:
    """An address of a service, for which a load balancer sends packets as they are: it is the container's own."""
    web = host.container()
    plugin = host.plugin(Loopback)
    plugin.add(web, "lo")
    web.shell("ip address add 198.51.100.7/32 dev lo; ip address add 2001:db8::7/128 dev lo")
    plugin.check(web, "lo")
    web.shell("ip address del 127.0.0.1/8 dev lo")
    with expect_error(5, "address 127.0.0.1/8 is missing"):
        plugin.check(web, "lo")


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
    assert host.ip("link", "show", "lo", netns="c1")[0].get("altnames", []) == [], "undo takes the mark, too"


@pytest.mark.interop
@pytest.mark.parametrize("adder", ["ours", "reference"])
def test_a_late_del_leaves_the_next_container_at_the_path_alone(host: Host, adder: str) -> None:
    """The path of a namespace, such as that of a process, leads to another container by now."""
    if adder == "reference" and not (GO / "loopback").exists():
        pytest.skip(f"there is no {GO}/loopback")
    web = host.container()
    host.shell("ip netns exec c1 ip link add eth0 up type veth peer name eth1")
    ours = host.plugin(Loopback, {"cniVersion": "1.0.0"})
    alive = ours if adder == "ours" else host.plugin(GO / "loopback", {"cniVersion": "1.0.0"})
    alive.add(web, "lo")
    before = host.state()
    for result in (None, alive.run("ADD", web, "lo").document):
        ours.run("DEL", web, "lo", environ={"CNI_CONTAINERID": "late"}, prevResult=result).raise_for_error()
        assert host.state() == before
    ours.delete(web, "lo")
    assert is_up(host) is (adder == "reference"), "the reference leaves no mark, and eth0 is up"


def test_lo_stays_up_until_the_last_network_is_detached(host: Host) -> None:
    """A container may have two networks whose lists begin with loopback."""
    web = host.container()
    host.shell("ip netns exec c1 ip link set lo down")
    one, two = (host.plugin(Loopback, {"name": name}) for name in ("one", "two"))
    one.add(web, "lo")
    two.add(web, "lo")
    one.delete(web, "lo")
    assert is_up(host)
    two.delete(web, "lo")
    assert not is_up(host)


def test_an_add_that_fails_takes_nothing_from_the_one_before(host: Host) -> None:
    web = host.container()
    host.shell("ip netns exec c1 ip link set lo down")
    plugin = host.plugin(Loopback)
    plugin.add(web, "lo")
    host.shell("ip netns exec c1 ip addr add 10.200.0.1/32 dev lo")
    before = host.state()
    for name in ("", "other"):
        with pytest.raises(IOFailureError, match="non-loopback address"):
            plugin.add(web, "lo", **({"name": name} if name else {}))
        assert host.state() == before
    plugin.delete(web, "lo")
    assert not is_up(host)
