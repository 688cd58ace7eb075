"""Links of simple kinds, and what can be changed of any link, compared with what iproute2 says."""

from __future__ import annotations

from typing import Any

import pytest

from cnisdk.errors import InvalidConfigError, InvalidEnvironmentError, IOFailureError
from cnisdk.linux import kinds, link, netns, route
from cnisdk.linux.rtnetlink import KernelError
from cnisdk.spec.names import Attachment
from cnisdk.testing import Sandbox

pytestmark = pytest.mark.kernel

OWNER = Attachment("net", "c1", "eth0")
UPLINK = "ip link add up0 type veth peer name wire0; ip link set up0 up; ip link set wire0 up"


def test_a_link_is_made_in_its_final_place(host: Sandbox) -> None:
    path = host.add_netns("blue")
    host.run(["sh", "-euc", UPLINK])

    def make() -> None:
        with netns.open(path) as blue:
            parent = link.get("up0")
            data: dict[str, int | str] = {"mode": "vepa", "bcqueuelen": 1500}
            made = kinds.create(
                "macvlan", "eth0", blue, parent=parent, mtu=1300, mac="02:00:00:00:00:AA", owner=OWNER, data=data
            )
            assert (made.mac, made.mtu, made.alias, made.up) == ("02:00:00:00:00:aa", 1300, OWNER.tag, False)
            assert kinds.options(made) == data
            kinds.check(made, parent=parent, data={"mode": "vepa"})
            with pytest.raises(IOFailureError, match="does not lie on wire0"):
                kinds.check(made, parent=link.get("wire0"))
            with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists in /run/netns/blue"):
                kinds.create("macvlan", "eth0", blue, parent=parent, owner=OWNER)
            with pytest.raises(InvalidConfigError, match=r'unknown macvlan mode: "source"'):
                kinds.create("macvlan", "eth1", blue, parent=parent, data={"mode": "source"})
            with pytest.raises(InvalidConfigError, match="a macvlan has no colour"):
                kinds.create("macvlan", "eth1", blue, parent=parent, data={"colour": 7})
            # An alias that the kernel refuses: the link does not stay.
            with pytest.raises(KernelError, match="cannot set the alias"):
                kinds.create("macvlan", "eth1", blue, parent=parent, owner=_Overlong("net", "c1", "eth1"))
            assert link.find("eth1", blue) is None

    host.call(make)
    (shown,) = host.ip("-d", "link", "show", "eth0", netns="blue")
    assert (shown["address"], shown["mtu"], shown["ifalias"]) == ("02:00:00:00:00:aa", 1300, OWNER.tag)
    assert shown["linkinfo"]["info_data"]["mode"] == "vepa"


class _Overlong(Attachment):
    @property
    def tag(self) -> str:
        return "x" * 300


def test_what_can_be_changed_of_a_link(host: Sandbox) -> None:
    path = host.add_netns("blue")
    host.run(["sh", "-euc", UPLINK])

    def shown(name: str, place: str | None = None) -> Any:
        return host.ip("link", "show", name, netns=place)[0]

    def change() -> None:
        end = link.get("up0")
        end.set_mtu(1300)
        end.set_mac("02:00:00:00:00:bb")
        end.set_txqlen(77)
        end.set_allmulti(True)
        end.set_alias("mine")
        now = end.refresh()
        assert (now.mtu, now.mac, now.txqlen, now.allmulti, now.alias) == (1300, "02:00:00:00:00:bb", 77, True, "mine")

    host.call(change)
    seen = shown("up0")
    assert (seen["mtu"], seen["address"], seen["txqlen"]) == (1300, "02:00:00:00:00:bb", 77)
    assert "ALLMULTI" in seen["flags"]

    def move() -> None:
        with netns.open(path) as blue:
            wire = link.get("wire0")
            with pytest.raises(KernelError, match="EEXIST"):
                wire.move(blue, "lo")
            assert link.get("wire0").index == wire.index
            inside = link.get("up0").move(blue, "eth0")
            assert (inside.name, inside.alias, inside.up, inside.netns) == ("eth0", "mine", False, blue)
            assert link.find("up0") is None
            assert inside.rename("eth1").refresh().name == "eth1"
            with netns.current() as here:
                back = inside.move(here, "up0")
            assert (back.name, back.alias) == ("up0", "mine")
            assert link.find("eth1", blue) is None

    host.call(move)
    assert shown("up0")["ifalias"] == "mine"


def test_the_link_of_the_default_route(host: Sandbox) -> None:
    host.run(["sh", "-euc", UPLINK])

    def found() -> str | None:
        default = route.find_default_link()
        return default and default.name

    def after(*commands: str) -> str | None:
        host.run(["sh", "-euc", "; ".join(commands)])
        return host.call(found)

    assert host.call(found) is None
    assert after("ip addr add 192.0.2.1/24 dev up0; ip route add unreachable default metric 9") is None
    assert after("ip route add default dev up0 table 100") is None
    assert after("ip addr add 2001:db8::1/64 dev up0 nodad; ip -6 route add default via 2001:db8::2") == "up0"
    assert after("ip route add default dev wire0 metric 5") == "wire0"
    assert after("ip route add default via 192.0.2.2 metric 3") == "up0"
