"""An author's first plugin: two verbs, natural code. The SDK does the rest, or names the mistake."""

from __future__ import annotations

from typing import Any

import pytest

from cnisdk import AddRequest, CNIError, DelRequest, NetConf, Plugin, Result
from cnisdk.errors import InternalError, InvalidConfigError, IOFailureError
from cnisdk.linux import link, veth
from cnisdk.testing import Host, PluginUnderTest, expect_error

pytestmark = pytest.mark.kernel


class Cable(Plugin[NetConf]):
    """Two verbs only."""

    def add(self, request: AddRequest[NetConf]) -> Result:
        with request.open_netns() as netns:
            pair = veth.create(netns, request.ifname, owner=request.attachment)
            request.undo(pair.delete)
            leased = request.ipam.add()
            pair.host.set_up()
            pair.container.configure(leased)
            return leased.with_interfaces(pair.host, pair.container)

    def delete(self, request: DelRequest[NetConf]) -> None:
        request.ipam.delete()
        veth.delete(owner=request.attachment)


@pytest.fixture
def cable(host: Host) -> PluginUnderTest:
    return host.plugin(Cable, {"ipam": host.stub().conf})


def test_check_compares_the_result_with_the_kernel(host: Host, cable: PluginUnderTest) -> None:
    container = host.container()
    cable.add(container)
    cable.check(container)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("ip address flush dev eth0", "address 10.9.0.2/24 is missing"),
        ("ip link set eth0 down", "eth0 is down"),
        ("ip link set eth0 address 02:00:00:00:00:99", "hardware address 02:00:00:00:00:99"),
        ("ip link delete eth0", "eth0"),
    ],
)
def test_check_notices_damage(host: Host, cable: PluginUnderTest, damage: str, problem: str) -> None:
    container = host.container()
    cable.add(container)
    container.shell(damage)
    with pytest.raises(IOFailureError) as raised:
        cable.check(container)
    assert problem in str(raised.value) + raised.value.details


def test_check_notices_a_host_end_that_is_down(host: Host, cable: PluginUnderTest) -> None:
    container = host.container()
    name = next(each.name for each in cable.add(container).interfaces if not each.sandbox)
    host.shell(f"ip link set {name} down")
    with expect_error(5, f"{name}, the host's end of eth0, is down"):
        cable.check(container)


def test_check_leaves_the_host_end_of_a_link_without_addresses_to_the_plugin(host: Host) -> None:
    """It may be down on purpose, as the container's may."""
    bare, container = host.plugin(Cable), host.container()
    name = next(each.name for each in bare.add(container).interfaces if not each.sandbox)
    host.shell(f"ip link set {name} down")
    bare.check(container)


def test_check_without_prev_result_says_so(host: Host, cable: PluginUnderTest) -> None:
    with pytest.raises(InvalidConfigError, match="prevResult"):
        cable.check(host.container())


def test_gc_removes_links_and_asks_ipam(host: Host, cable: PluginUnderTest) -> None:
    gone, kept = host.container("gone"), host.container("kept")
    cable.add(gone)
    cable.add(kept)
    cable.gc(kept)
    assert [each.removesuffix("/eth0") for each in host.stub().leases.values()] == ["kept"]
    owners = [each["ifalias"] for each in host.ip("link") if "ifalias" in each]
    assert owners == ["cni:testnet/kept/eth0"]


def test_status_asks_ipam(host: Host) -> None:
    host.plugin(Cable, {"ipam": host.stub().conf}).status()
    with pytest.raises(CNIError):
        host.plugin(Cable, {"ipam": {"type": "missing-plugin"}}).status()


def test_without_ipam_every_verb_works(host: Host) -> None:
    cable, container = host.plugin(Cable, {}), host.container()
    before = host.state()
    assert cable.add(container).ips == ()
    cable.check(container)
    cable.status()
    cable.gc(container)
    cable.delete(container)
    assert host.state() == before


class Inside(Plugin[NetConf]):
    """Its link lies inside the container, and what undoes it is registered the natural way."""

    def add(self, request: AddRequest[NetConf]) -> Result:
        with request.open_netns() as netns:
            pair = veth.create(netns, request.ifname, owner=request.attachment)
            request.undo(pair.container.delete)
        raise IOFailureError("failed after the with")

    def delete(self, request: DelRequest[NetConf]) -> None:
        with request.open_netns() as netns:
            if (end := link.find(request.ifname, netns)) is not None:
                end.delete()


def test_undo_reaches_a_link_inside_the_container_after_the_with(host: Host) -> None:
    container = host.container()
    before = host.state()
    with pytest.raises(IOFailureError, match="failed after the with") as raised:
        host.plugin(Inside, {}).add(container)
    assert raised.value.details == ""
    assert host.state() == before


@pytest.mark.parametrize("returned", [None, {"ips": []}])
def test_an_add_that_returns_no_result_is_an_error_and_is_undone(host: Host, returned: Any) -> None:
    class Forgetful(Cable):
        def add(self, request: AddRequest[NetConf]) -> Result:
            super().add(request)
            return returned  # type: ignore[no-any-return]

    container = host.container()
    before = host.state()
    with pytest.raises(InternalError, match=f"Forgetful.add returned {type(returned).__name__}"):
        host.plugin(Forgetful, {"ipam": host.stub().conf}).add(container)
    assert host.state() == before
    assert host.stub().leases == {}
