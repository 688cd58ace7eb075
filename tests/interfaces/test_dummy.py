"""dummy, on a kernel that has that kind of link."""

from __future__ import annotations

from typing import Any

import pytest

from cnisdk.errors import InvalidConfigError, InvalidEnvironmentError, IOFailureError, PluginNotAvailableError
from cnisdk.linux import kinds
from cnisdk.testing import Host, PluginUnderTest
from cnisdk_plugins.dummy import Dummy

pytestmark = pytest.mark.kernel

ROUTES = [{"dst": "10.20.0.0/16"}, {"dst": "2001:db8:20::/48"}]


def make(host: Host, **keys: Any) -> PluginUnderTest:
    """The plugin over an IPAM plugin that leases an address of each family."""
    stub = host.stub()
    ips = [
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1"},
        {"address": "2001:db8:1::2/64", "gateway": "2001:db8:1::1"},
    ]
    dns = {"nameservers": ["192.0.2.53"]}
    stub.answer("ADD", {"cniVersion": "1.1.0", "ips": ips, "routes": ROUTES, "dns": dns})
    for verb in ("CHECK", "DEL", "STATUS"):
        stub.answer(verb)
    return host.plugin(Dummy, {"ipam": stub.conf, **keys})


@pytest.mark.kinds
def test_attached_checked_and_detached(host: Host) -> None:
    web = host.container()
    before = host.state().without("files")
    plugin = make(host, dns={"nameservers": ["192.0.2.1"]})
    plugin.status()
    result = plugin.add(web)
    (interface,) = result.interfaces
    (shown,) = host.ip("-d", "link", "show", "eth0", netns="c1")
    assert (shown["linkinfo"]["info_kind"], shown["ifalias"]) == ("dummy", "cni:testnet/c1/eth0")
    assert (interface.name, interface.mac, interface.sandbox) == ("eth0", shown["address"], web.netns)
    # Its own name resolution is ignored, as the reference plugin does.
    assert ([ip.interface for ip in result.ips], result.dns.nameservers) == ([0, 0], ("192.0.2.53",))
    assert web.addresses() == ["10.1.0.2/24", "2001:db8:1::2/64"]
    assert [each["gateway"] for each in host.ip("route", "show", "10.20.0.0/16", netns="c1")] == ["10.1.0.1"]
    plugin.check(web)
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists"):
        plugin.add(web)
    host.shell("ip -n c1 link set eth0 down")
    with pytest.raises(IOFailureError, match="eth0 is down"):
        plugin.check(web)
    plugin.delete(web)
    plugin.delete(web)
    assert host.state().without("files") == before
    web.destroy()
    plugin.delete(web)


def test_ipam_is_required(host: Host) -> None:
    web = host.container()
    plugin = make(host, ipam={})
    for request in (lambda: plugin.add(web), plugin.status):
        with pytest.raises(InvalidConfigError, match="the network configuration names no IPAM plugin"):
            request()
    plugin.delete(web)


def test_status_sees_that_the_kernel_lacks_the_kind(host: Host) -> None:
    before = host.state()
    for kind in ("veth", "macvlan", "bridge"):
        host.call(kinds.require, kind)
    with pytest.raises(PluginNotAvailableError, match="cannot create links of kind nonsense") as caught:
        host.call(kinds.require, "nonsense")
    assert caught.value.details == "the kernel lacks nonsense (CONFIG_NONSENSE)"
    assert host.state() == before
