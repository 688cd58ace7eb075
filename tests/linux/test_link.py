"""Links, compared with what iproute2 says."""

import pytest

from cnisdk.errors import IOFailureError
from cnisdk.linux import link, netns
from cnisdk.linux.links.link import Link, LinkNotFoundError
from cnisdk.spec import Interface
from cnisdk.testing import Sandbox

pytestmark = pytest.mark.kernel


def test_links_are_what_iproute2_says(host: Sandbox) -> None:
    path = host.add_netns("blue")
    host.run(["ip", "link", "add", "b0", "mtu", "1400", "type", "bridge"])
    host.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "eth0", "netns", "blue"])
    host.run(["ip", "link", "set", "v0", "master", "b0", "alias", "cni:net/id/eth0", "up"])
    host.run(["ip", "link", "set", "b0", "promisc", "on", "up"])
    seen = host.call(lambda: [each._asdict() for each in link.list_all()])
    said = host.ip("link", "show")
    assert [each["name"] for each in seen] == [each["ifname"] for each in said]
    for ours, theirs in zip(seen, said, strict=True):
        assert ours["index"] == theirs["ifindex"]
        assert ours["mac"] == theirs["address"]
        assert ours["mtu"] == theirs["mtu"]
        assert ours["up"] == ("UP" in theirs["flags"])
        assert ours["promisc"] == ("PROMISC" in theirs["flags"])
        assert ours["running"] == (theirs["operstate"] == "UP")
        assert ours["kind"] == theirs.get("linkinfo", {}).get("info_kind", "")
        assert ours["alias"] == theirs.get("ifalias", "")
        assert ours["link_index"] == theirs.get("link_index", 0)
    bridge, port = host.call(lambda: (link.get("b0"), link.get("v0")))
    assert port.master == bridge.index
    assert (port.hairpin, port.isolated, bridge.hairpin, bridge.vlan_filtering) == (False, False, None, False)

    def inside() -> tuple[Link, Interface]:
        with netns.open(path) as blue:
            end = link.get("eth0", blue)
            return end._replace(netns=None), end.interface

    end, interface = host.call(inside)
    assert end.link_index == port.index
    assert interface == Interface(name="eth0", mac=end.mac, mtu=1500, sandbox=path)


def test_a_link_is_found_by_its_alternative_names(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "b0", "type", "bridge"])
    for name in ("uplink", "the-uplink-of-this-host", "u" * 127):
        host.run(["ip", "link", "property", "add", "dev", "b0", "altname", name])
        assert host.call(link.get, name).name == "b0"


def test_lookups_that_find_nothing(host: Sandbox) -> None:
    path = host.add_netns("blue")

    def look() -> None:
        assert link.find("nope") is None
        for size in (15, 16, 127, 128, 5000):  # of a name 15 bytes, of an alternative one 127
            assert link.find("n" * size) is None
        with pytest.raises(LinkNotFoundError, match="link nope does not exist"):
            link.get("nope")
        with pytest.raises(LinkNotFoundError, match="link with index 4711 does not exist"):
            link.get_by_index(4711)
        assert link.get_by_index(1).name == "lo"
        with (
            netns.open(path) as blue,
            pytest.raises(LinkNotFoundError, match="does not exist in network namespace /run/netns/blue"),
        ):
            link.get("nope", blue)

    host.call(look)


def test_what_can_be_done_to_a_link(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "b0", "type", "bridge"])
    host.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"])

    def work() -> None:
        v0 = link.get("v0")
        v0.join("b0", hairpin=True, isolated=True)
        v0.set_alias("x" * 255)
        v0.set_up()
        v0.set_promisc(True)

    host.call(work)
    (said,) = host.ip("link", "show", "v0")
    assert said["master"] == "b0"
    assert said["ifalias"] == "x" * 255
    assert {"UP", "PROMISC"} <= set(said["flags"])
    assert said["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert said["linkinfo"]["info_slave_data"]["isolated"] is True

    def undo() -> None:
        v0 = link.get("v0")
        assert (v0.hairpin, v0.isolated, v0.promisc) == (True, True, True)
        v0.join(link.get("b0"), hairpin=False, isolated=False)
        v0.set_promisc(False)
        v0.set_down()
        again = v0.refresh()
        assert (again.hairpin, again.isolated, again.promisc, again.up) == (False, False, False, False)
        with pytest.raises(LinkNotFoundError, match="bridge nope does not exist"):
            v0.join("nope")
        assert v0.delete() is True
        assert v0.delete() is False
        assert link.find("v1") is None

    host.call(undo)


def test_owned_links_are_found_by_alias(host: Sandbox) -> None:
    for name, alias in (("b0", "cni:net/a/eth0"), ("b1", "cni:net2/a/eth0"), ("b2", "cni:net/b/eth0")):
        host.run(["ip", "link", "add", name, "type", "bridge"])
        host.run(["ip", "link", "set", name, "alias", alias])
    assert host.call(lambda: [each.name for each in link.list_by_alias_prefix("cni:net/")]) == ["b0", "b2"]


def test_an_alias_need_not_be_text(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "b0", "type", "bridge"])
    host.run(["sh", "-c", r"ip link set b0 alias $(printf 'caf\351')"])
    assert host.call(lambda: link.get("b0").alias) == "caf\udce9"


def test_waiting_for_carrier(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
    host.run(["ip", "link", "set", "v0", "up"])

    def work() -> None:
        v0, v1 = link.get("v0"), link.get("v1")
        with pytest.raises(IOFailureError, match=r"v0 is not operational after 0.05 s; it is up but has no carrier"):
            v0.wait_running(0.05)
        v1.set_up()
        v0.wait_running(5)
        assert v0.refresh().running

    host.call(work)
