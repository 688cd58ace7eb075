"""Veths: made in one send, found by their owner alone, refused clearly; compared with what iproute2 says."""

import os
import random
import select
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from cnisdk.errors import InvalidEnvironmentError, IOFailureError
from cnisdk.linux import bridge, bridge_port, link, netns, rtnetlink, sysctl, veth
from cnisdk.linux.rtnetlink import Message, Socket
from cnisdk.plugin.undo import UndoStack
from cnisdk.spec.names import Attachment
from cnisdk.testing import Sandbox

pytestmark = pytest.mark.kernel

OWNER = Attachment("mynet", "c1", "eth0")
BLUE = "/run/netns/blue"


def create(owner: Attachment = OWNER, ifname: str = "eth0", *, mtu: int | None = None, mac: str = "") -> str:
    """Attach blue to a bridge, and return the name of the host end."""
    with netns.open(BLUE) as blue:
        port = bridge_port.Port(bridge.ensure("br0"), hairpin=True, isolated=True)
        return veth.create(blue, ifname, owner=owner, mtu=mtu, mac=mac, port=port).host.name


def test_a_pair_is_what_was_asked_for(host: Sandbox) -> None:
    host.add_netns("blue")

    def work() -> tuple[veth.VethPair, veth.VethPair]:
        with netns.open(BLUE) as blue:
            port = bridge_port.Port(bridge.ensure("br0"), hairpin=True, isolated=True)
            pair = veth.create(blue, "eth0", owner=OWNER, mtu=1400, mac="02:42:AC:11:00:02", port=port)
            # The handles know without asking what the kernel knows.
            asked = veth.VethPair(pair.host.refresh(), pair.container.refresh())
            return tuple(  # type: ignore[return-value]
                veth.VethPair(each.host, veth.ContainerEnd(*each.container._replace(netns=None)))
                for each in (pair, asked)
            )

    pair, asked = host.call(work)
    assert pair == asked
    (outer,) = host.ip("link", "show", pair.host.name)
    (inner,) = host.ip("link", "show", "eth0", netns="blue")
    assert outer["ifname"] == veth.host_names(OWNER)[0]
    assert outer["master"] == "br0"
    assert outer["ifalias"] == "cni:mynet/c1/eth0"
    assert "UP" in outer["flags"]
    assert outer["mtu"] == inner["mtu"] == 1400
    assert outer["address"] == pair.host.mac
    assert (outer["link_index"], inner["link_index"]) == (inner["ifindex"], outer["ifindex"])
    assert outer["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert outer["linkinfo"]["info_slave_data"]["isolated"] is True
    assert inner["address"] == "02:42:ac:11:00:02"
    assert "UP" not in inner["flags"]


def test_both_ends_keep_their_addresses(host: Sandbox) -> None:
    """NET_ADDR_SET (3), which udev's MACAddressPolicy=persistent leaves alone."""
    host.add_netns("blue")
    name = host.call(create)
    host.run(["mount", "-t", "sysfs", "sysfs", "/sys"])
    for each in (name, "br0"):
        assert host.run(["cat", f"/sys/class/net/{each}/addr_assign_type"]).stdout == "3\n"
    inside = "mount -t sysfs sysfs /sys; cat /sys/class/net/eth0/addr_assign_type"
    assert host.run(["ip", "netns", "exec", "blue", "sh", "-c", inside]).stdout == "3\n"


def test_router_advertisements_are_off(host: Sandbox) -> None:
    host.add_netns("blue")
    host.run(["sh", "-c", "echo 2 > /proc/sys/net/ipv6/conf/default/accept_ra"])
    name = host.call(create)
    for each in (name, "br0"):
        for key in ("accept_ra", "accept_redirects"):
            assert host.run(["cat", f"/proc/sys/net/ipv6/conf/{each}/{key}"]).stdout == "0\n"


def test_no_pair_is_left_when_they_cannot_be_turned_off(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add_netns("blue")
    host.call(bridge.ensure, "br0")

    def refuse(key: str, value: str) -> bool:
        raise sysctl.SysctlError(f"cannot set sysctl {key}")

    def work() -> None:
        with netns.open(BLUE) as blue, pytest.raises(sysctl.SysctlError):
            veth.create(blue, "eth0", owner=OWNER)

    with monkeypatch.context() as patch:
        patch.setattr(sysctl, "ensure_if_present", refuse)
        host.call(work)
    assert [each["ifname"] for each in host.ip("link", "show")] == ["lo", "br0"]


def test_the_host_end_is_up_only_when_they_are_off(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add_netns("blue")
    original = sysctl.refuse_advertisements
    seen: list[tuple[str, bool]] = []

    def look(name: str) -> None:
        seen.append((name, link.get(name).up))
        original(name)

    def work() -> list[tuple[str, bool]]:
        monkeypatch.setattr(sysctl, "refuse_advertisements", look)
        create()
        return seen

    assert host.call(work) == [("br0", False), (veth.host_names(OWNER)[0], False)]


def test_a_host_without_ipv6(host: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host.add_netns("blue")
    monkeypatch.setattr(sysctl, "_ROOT", f"{tmp_path}/")  # as with ipv6.disable=1: no such directory
    host.call(create)
    assert "UP" in host.ip("link", "show", veth.host_names(OWNER)[0])[0]["flags"]


def test_ipv6_disabled_by_sysctl(host: Sandbox) -> None:
    host.add_netns("blue")
    host.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"])
    host.call(create)


def test_an_interface_that_exists(host: Sandbox) -> None:
    host.add_netns("blue")
    host.run(["ip", "-n", "blue", "link", "add", "eth0", "type", "bridge"])
    before = host.ip("link", "show", netns="blue")
    with pytest.raises(InvalidEnvironmentError, match=r"CNI_IFNAME eth0 already exists in /run/netns/blue") as caught:
        host.call(create)
    assert caught.value.code == 4
    assert host.ip("link", "show", netns="blue") == before
    assert [each["ifname"] for each in host.ip("link", "show")] == ["lo", "br0"]


def test_the_same_attachment_twice(host: Sandbox) -> None:
    host.add_netns("blue")
    name = host.call(create)
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists"):
        host.call(create)
    assert [each["ifname"] for each in host.ip("link", "show")] == ["lo", "br0", name]


def test_the_same_attachment_with_another_namespace(host: Sandbox) -> None:
    """The other namespace has no such interface, but two pairs of one attachment would be one too many."""
    host.add_netns("blue")
    host.add_netns("red")
    name = host.call(create)

    def attach() -> None:
        with netns.open("/run/netns/red") as red:
            veth.create(red, "eth0", owner=OWNER)

    with pytest.raises(InvalidEnvironmentError, match=r"CNI_IFNAME eth0 already exists; .* is attached: DEL it first"):
        host.call(attach)
    assert [each["ifname"] for each in host.ip("link", "show")] == ["lo", "br0", name]


def test_one_of_several_at_once_succeeds_and_the_others_take_nothing_back(host: Sandbox) -> None:
    """An author's code: each call that fails takes back its own work, and nothing else."""
    host.add_netns("blue")
    host.call(bridge.ensure, "br0")

    def add(number: int) -> None:
        undo = UndoStack()
        with netns.open(BLUE) as blue:
            try:
                pair = veth.create(blue, "eth0", owner=OWNER)
                undo.push(pair.delete)
                if number:  # something later fails in all but one
                    raise IOFailureError("injected")
            except (IOFailureError, InvalidEnvironmentError):
                undo.unwind()
                os._exit(1)
        os._exit(0)

    def strike() -> list[int]:
        children = []
        for number in range(4):
            pid = os.fork()
            if pid == 0:
                add(number)
            children.append(pid)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]

    for _ in range(5):
        first, *others = host.call(strike)
        left = [each["ifname"] for each in host.ip("link", "show")]
        assert left == ["lo", "br0", *([] if first else [veth.host_names(OWNER)[0]])]
        assert others == [1, 1, 1]
        host.call(lambda: veth.delete(OWNER))


def test_a_name_of_another_owner_is_passed_over(host: Sandbox) -> None:
    host.add_netns("blue")
    first, second, *_ = veth.host_names(OWNER)
    host.run(["ip", "link", "add", first, "type", "veth", "peer", "name", "other"])
    host.run(["ip", "link", "set", first, "alias", "cni:other/c9/eth0"])
    assert host.call(create) == second
    assert host.ip("link", "show", first)[0]["ifalias"] == "cni:other/c9/eth0"
    # DEL takes ours and leaves theirs.
    assert host.call(lambda: veth.delete(OWNER)) is True
    assert [each["ifname"] for each in host.ip("link", "show")] == ["lo", "other", first, "br0"]


def test_all_names_taken(host: Sandbox) -> None:
    host.add_netns("blue")
    for name in veth.host_names(OWNER):
        host.run(["ip", "link", "add", name, "type", "bridge"])
    with pytest.raises(IOFailureError, match="no free name for the host end of"):
        host.call(create)
    assert host.call(lambda: veth.delete(OWNER)) is False
    assert [each["ifname"] for each in host.ip("link", "show", netns="blue")] == ["lo"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"mtu": 10}, "EINVAL"), ({"mtu": 70000}, "EINVAL"), ({"mac": "01:00:5e:00:00:01"}, "EADDRNOTAVAIL")],
)
def test_what_the_kernel_refuses(host: Sandbox, arguments: dict[str, object], words: str) -> None:
    host.add_netns("blue")
    with pytest.raises(IOFailureError, match=rf"cannot create veth eth0 in /run/netns/blue .*{words}"):
        host.call(create, **arguments)  # type: ignore[arg-type]
    assert [each["ifname"] for each in host.ip("link", "show")] == ["lo", "br0"]
    assert [each["ifname"] for each in host.ip("link", "show", netns="blue")] == ["lo"]


def test_the_alias_is_in_the_send_that_makes_the_link(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add_netns("blue")
    sends: list[list[int]] = []
    original = Socket.exchange

    def record(self: Socket, requests: Sequence[Message]) -> list[bytes | rtnetlink.KernelError | None]:
        sends.append([request.kind for request in requests])
        return original(self, requests)

    def work() -> list[list[int]]:
        master = bridge.ensure("br0")
        with netns.open(BLUE) as blue:
            monkeypatch.setattr(Socket, "exchange", record)
            veth.create(blue, "eth0", owner=OWNER, port=bridge_port.Port(master))
            return sends

    new, change, get = rtnetlink.NEWLINK, rtnetlink.SETLINK, rtnetlink.GETLINK
    # Three round trips: is the name free, make it, set it up.
    assert host.call(work) == [[get], [new, change, get], [change]]


def test_a_kill_at_any_moment_leaves_no_link_without_owner(host: Sandbox) -> None:
    host.add_netns("blue")
    host.call(create)  # how long does it take?
    host.call(lambda: veth.delete(OWNER))
    dice = random.Random(4711)

    def strike() -> None:
        pid = os.fork()
        if pid == 0:
            create()
            os._exit(0)
        fd = os.pidfd_open(pid)
        select.select([fd], [], [], dice.uniform(0, 0.008))  # until it ends, or so long
        os.close(fd)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    for _ in range(15):
        host.call(strike)
        for each in host.ip("link", "show"):
            assert each["ifname"] in ("lo", "br0") or each["ifalias"] == OWNER.tag
        host.call(lambda: veth.delete(OWNER))
        assert [each["ifname"] for each in host.ip("link", "show", netns="blue")] == ["lo"]


def test_del_needs_no_namespace_and_comes_twice(host: Sandbox) -> None:
    host.add_netns("blue")
    name = host.call(create)
    assert host.call(veth.find_host_end, OWNER).name == name  # type: ignore[union-attr]
    host.run(["umount", BLUE])  # the name is gone; the namespace lives on in its veth's peer for a moment
    assert isinstance(host.call(lambda: veth.delete(OWNER)), bool)
    assert host.call(lambda: veth.delete(OWNER)) is False
    assert host.call(veth.find_host_end, OWNER) is None
    assert [each["ifname"] for each in host.ip("link", "show")] == ["lo", "br0"]


def test_del_takes_what_the_reference_made(host: Sandbox) -> None:
    """Its host end has a random name and no alias; the container's end has the attachment's name."""
    host.add_netns("blue")
    host.run(["ip", "link", "add", "veth12345678", "type", "veth", "peer", "name", "eth0", "netns", "blue"])
    host.run(["ip", "-n", "blue", "link", "add", "eth1", "type", "bridge"])

    def work() -> tuple[bool, bool, bool, bool]:
        with netns.open(BLUE) as blue:
            return (
                veth.delete(OWNER),
                veth.delete(OWNER._replace(ifname="eth1"), netns=blue),  # no veth: not ours
                veth.delete(OWNER, netns=blue),
                veth.delete(OWNER, netns=blue),
            )

    assert host.call(work) == (False, False, True, False)
    assert [each["ifname"] for each in host.ip("link", "show")] == ["lo"]
    assert [each["ifname"] for each in host.ip("link", "show", netns="blue")] == ["lo", "eth1"]


def test_gc_takes_what_is_not_valid(host: Sandbox) -> None:
    host.add_netns("blue")
    owners = [
        Attachment("mynet", "c1", "eth0"),
        Attachment("mynet", "c" * 250, "eth1"),
        Attachment("mynet", "c2", "eth2"),
        Attachment("mynet", "d" * 250, "eth3"),
        Attachment("mynet2", "c1", "eth4"),
    ]
    names = [host.call(create, owner, owner.ifname) for owner in owners]
    host.run(["ip", "link", "add", "veth99999999", "type", "veth", "peer", "name", "foreign"])
    deleted = host.call(lambda: [each.name for each in veth.delete_stale("mynet", owners[:2])])
    assert sorted(deleted) == sorted(names[2:4])
    left = {each["ifname"] for each in host.ip("link", "show")}
    assert left == {"lo", "br0", "veth99999999", "foreign", names[0], names[1], names[4]}


def test_the_port_of_an_attachment(host: Sandbox) -> None:
    host.add_netns("blue")

    def work() -> str:
        with pytest.raises(link.LinkNotFoundError, match='no veth of container "c1" interface "eth0"'):
            veth.get_host_end(OWNER)
        with netns.open(BLUE) as blue:
            bridge.ensure("br0")
            bridge.ensure("br1")
            made = veth.create(blue, "eth0", owner=OWNER).host
        with pytest.raises(IOFailureError, match="is no port of bridge br0"):
            veth.get_host_end(OWNER).check_port("br0")
        made.join("br0")
        veth.get_host_end(OWNER).check_port("br0")
        veth.get_host_end(OWNER).check_port(link.get("br0"))
        with pytest.raises(IOFailureError, match="is no port of bridge br1"):
            veth.get_host_end(OWNER).check_port("br1")
        with pytest.raises(link.LinkNotFoundError, match="br2"):
            veth.get_host_end(OWNER).check_port("br2")
        made.set_down()
        with pytest.raises(IOFailureError, match="is down"):
            veth.get_host_end(OWNER).check_port("br0")
        return made.name

    host.call(work)


def test_deleting_a_pair_and_joining_later(host: Sandbox) -> None:
    host.add_netns("blue")

    def work() -> None:
        bridge.ensure("br0")
        with netns.open(BLUE) as blue:
            pair = veth.create(blue, "eth0", owner=OWNER)
            pair.host.join("br0")
            assert pair.host.refresh().master == link.get("br0").index
            assert pair.host.interface.sandbox == ""
            assert (pair.container.interface.name, pair.container.interface.sandbox) == ("eth0", BLUE)
            pair.delete()
            pair.delete()
            assert link.find("eth0", blue) is None

    host.call(work)
