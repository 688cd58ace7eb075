"""host-device on the real kernel: the device comes back under its old name, whatever happens meanwhile."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from cnisdk.errors import CNIError, InvalidConfigError, InvalidEnvironmentError, IOFailureError, PluginNotAvailableError
from cnisdk.linux import link, netns, rtnetlink
from cnisdk.linux.links import messages
from cnisdk.testing import Container, Host, PluginUnderTest, expect_error
from cnisdk_plugins.bridge import Bridge
from cnisdk_plugins.host_device import HostDevice
from cnisdk_plugins.macvlan import Macvlan
from cnisdk_plugins.ptp import Ptp

pytestmark = pytest.mark.kernel

MAC = "02:00:00:00:00:17"


@pytest.fixture
def nic(host: Host) -> Host:
    """A host with a device to lend: a veth whose other end is the network behind it."""
    host.shell(f"ip link add nic1 address {MAC} type veth peer name wire1; ip link set wire1 up")
    return host


def make(host: Host, **keys: Any) -> PluginUnderTest:
    ipam = {} if "ipam" in keys else {"ipam": host.stub().conf}
    return host.plugin(HostDevice, {"type": "host-device", "device": "nic1", **ipam, **keys})


def links(host: Host, netns: str | None = None) -> dict[str, Any]:
    """Links by name, with what a loan changes: alias, alternative names, up."""
    return {
        each["ifname"]: (each.get("ifalias", ""), tuple(each.get("altnames", ())), "UP" in each["flags"])
        for each in host.ip("link", "show", netns=netns)
    }


HOME = {"lo": ("", (), True), "nic1": ("", (), False), "wire1": ("", (), True)}


def test_attached_checked_and_detached(nic: Host) -> None:
    web = nic.container()
    plugin = make(nic, dns={"nameservers": ["192.0.2.53"]})
    plugin.status()
    result = plugin.add(web)
    assert (links(nic), links(nic, "c1")["eth0"]) == (
        {"lo": ("", (), True), "wire1": ("", (), True)},
        ("nic1", ("cni:testnet/c1/eth0",), True),
    )
    (interface,) = result.interfaces
    assert (interface.name, interface.mac, interface.sandbox) == ("eth0", MAC, web.netns)
    assert ([ip.interface for ip in result.ips], result.dns.nameservers) == ([0], ("192.0.2.53",))
    plugin.check(web)
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 already exists in /run/netns/c1"):
        make(nic, device="wire1").add(web)
    with pytest.raises(IOFailureError, match="link nic1 does not exist; /run/netns/c1 has it"):
        plugin.add(nic.container("c2"))
    # It is not the node's fault that a container has the device.
    plugin.status()
    make(nic, device=None, hwaddr=MAC).status()
    with pytest.raises(PluginNotAvailableError, match="link nic9 does not exist"):
        plugin.status(device="nic9")
    nic.shell("ip addr add 10.9.0.1/24 dev wire1")
    assert web.reaches(nic, "10.9.0.1")
    plugin.delete(web)
    assert links(nic) == HOME
    plugin.delete(web)
    assert links(nic) == HOME


def test_layer_2(nic: Host) -> None:
    web = nic.container()
    plugin = make(nic, ipam={"type": ""}, dns={"nameservers": ["192.0.2.53"]})
    result = plugin.add(web)
    # As with the reference, the configuration's name servers go with addresses.
    assert (result.ips, result.dns.nameservers) == ((), ())
    plugin.check(web)
    web.shell("ip link set eth0 down")
    with pytest.raises(IOFailureError, match="interface eth0 in /run/netns/c1 is down"):
        plugin.check(web)
    web.shell('ip link set eth0 alias ""; ip link set eth0 up')
    with pytest.raises(IOFailureError, match="is not on loan from the host; its alias "):
        plugin.check(web)
    plugin.delete(web)
    assert links(nic) == HOME


TAG = "cni:testnet/c1/eth0"

# What a container may do to the link before DEL.
CONTAINERS = {
    "renamed": "ip link set eth0 down; ip link set eth0 name mine",
    "swapped": "ip link set eth0 down; ip link set eth0 name mine; ip link add eth0 type veth peer name x",
    "no alias": 'ip link set eth0 alias ""',
    "an alias that is no name": "ip link set eth0 alias 'a b'",
    "no tag": "untag",
    "no tag and renamed": "untag; ip link set eth0 down; ip link set eth0 name mine",
    "an alternative name of the host's": "ip link property add dev eth0 altname wire1",
    "in a bridge": "ip link add br0 type bridge; ip link set eth0 master br0 promisc on",
    "a name of the host's": "ip link set eth0 down; ip link set eth0 name wire1",
}


def test_it_comes_back_whatever_the_container_does(nic: Host) -> None:
    plugin = make(nic, ipam=None)
    for case, command in CONTAINERS.items():
        web = nic.container()
        plugin.add(web)
        if "untag" in command:
            nic.call(untag, "eth0", web.netns)
        web.shell(command.replace("untag", ":"))
        plugin.delete(web)
        assert links(nic) == HOME, case
        web.destroy()


def untag(name: str, path: str = "") -> None:
    """Take the tag away that the reference plugin does not set."""
    with netns.open(path or "/proc/thread-self/ns/net") as space:
        end = link.get(name, space)
        with rtnetlink.connect(space) as sock:
            sock.send([messages.altname_request(each, add=False, index=end.index) for each in end.altnames])


def test_its_name_is_taken_meanwhile(nic: Host, capfd: pytest.CaptureFixture[str]) -> None:
    web = nic.container()
    plugin = make(nic)
    plugin.add(web)
    nic.shell("ip link add eth0 type bridge; ip link add nic1 type bridge; ip link add nic1-0 type bridge")
    plugin.delete(web)
    (name,) = set(links(nic)) - {"lo", "wire1", "eth0", "nic1", "nic1-0"}
    assert name.startswith("nic1-")
    assert links(nic)[name] == ("nic1", (), False)
    assert f"nic1 is back on the host as {name}: another link has its name" in capfd.readouterr().err
    nic.shell("ip link del nic1")
    # It can be lent by its hardware address, and keeps its name.
    moved = make(nic, device="", hwaddr=MAC)
    moved.add(web)
    moved.delete(web)
    assert links(nic)[name] == ("", (), False)


def end_namespace(host: Host, container: Container, name: str = "eth0") -> None:
    """End a namespace as it ends with a physical link in it: the kernel moves that to the host, with its names."""
    container.shell(f"ip link set {name} down")
    host.run(["ip", "-n", container.name, "link", "set", name, "netns", str(host.pid)])
    container.destroy()


@pytest.mark.parametrize("verb", ["DEL", "GC", "ADD by name", "ADD by address"])
def test_the_namespace_is_gone(nic: Host, verb: str) -> None:
    web, other = nic.container(), nic.container("c2")
    plugin = make(nic)
    plugin.add(web)
    end_namespace(nic, web)
    assert links(nic)["eth0"] == ("nic1", (TAG,), False)
    plugin.gc(web)
    plugin.run("DEL", other, environ={"CNI_NETNS": ""}).raise_for_error()
    assert links(nic)["eth0"] == ("nic1", (TAG,), False)
    if verb == "DEL":
        plugin.run("DEL", web, environ={"CNI_NETNS": ""}).raise_for_error()
    elif verb == "GC":
        plugin.gc()
    else:
        again = plugin if verb == "ADD by name" else make(nic, device="", hwaddr=MAC)
        again.add(other)
        assert links(nic, "c2")["eth0"] == ("nic1", ("cni:testnet/c2/eth0",), True)
        plugin.run("DEL", web, environ={"CNI_NETNS": ""}).raise_for_error()
        assert "eth0" in other.links()
        again.delete(other)
    assert links(nic) == HOME


def test_the_namespace_is_gone_and_the_host_uses_the_link(nic: Host) -> None:
    """A link that an administrator has set up keeps the name it is known by now."""
    web = nic.container()
    plugin = make(nic)
    plugin.add(web)
    end_namespace(nic, web)
    nic.shell("ip link set eth0 up")
    plugin.delete(web)
    assert links(nic)["eth0"] == ("nic1", (), True)


def test_the_reference_lent_it_and_the_namespace_is_gone(nic: Host) -> None:
    web = nic.container()
    plugin = make(nic)
    result = plugin.run("ADD", web).document
    nic.call(untag, "eth0", web.netns)
    end_namespace(nic, web)
    gone: dict[str, Any] = {"environ": {"CNI_NETNS": ""}}
    described = {**result, "interfaces": [{**result["interfaces"][0], "mac": "02:00:00:00:00:18"}]}
    # An administrator's links may have aliases that look like this.
    for keys in ({}, {"prevResult": described}, {"prevResult": result, "device": "nic2"}):
        plugin.run("DEL", web, **gone, **keys).raise_for_error()
    assert links(nic)["eth0"] == ("nic1", (), False)
    plugin.run("DEL", web, **gone, prevResult=result).raise_for_error()
    assert links(nic) == HOME


PCI: dict[str, Any] = {"pciBusID": "0000:00:1f.6"}
OTHER_PCI: dict[str, Any] = {"pciBusID": "0000:00:02.0"}
OTHER_IPS = [{"interface": 0, "address": "10.9.0.77/24"}]
NAMED: dict[str, tuple[dict[str, Any], list[Any] | None, str, bool]] = {
    "by address": ({"hwaddr": MAC}, None, "", True),
    "by address, layer 2": ({"hwaddr": MAC}, [], "", True),
    "by address, the next container's": ({"hwaddr": "02:00:00:00:00:99"}, None, "", False),
    "by PCI, not comparable": (PCI, None, "", True),
    "by PCI, not comparable, the next container's": (PCI, OTHER_IPS, "", False),
    "by PCI": (PCI, None, "0000:00:1f.6", True),
    "by PCI, layer 2": (PCI, [], "0000:00:1f.6", True),
    "by PCI, the next container has it": (PCI, OTHER_IPS, "0000:00:1f.6", False),
    "by PCI, the next container's": (OTHER_PCI, None, "0000:00:1f.6", False),
    "by a device that is gone": ({"runtimeConfig": {"deviceID": "x"}}, None, "0000:00:1f.6", True),
}


@pytest.mark.parametrize("case", NAMED)
def test_the_reference_lent_it_and_its_hardware_address_is_another(
    machine: Host, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Since the DEL of tuning has put it back; or else the path of the namespace leads to the next container."""
    keys, ips, parent, goes = NAMED[case]
    web = machine.container()
    result = make(machine).run("ADD", web).document
    machine.call(untag, "eth0", web.netns)
    changed = {**result, "interfaces": [{**result["interfaces"][0], "mac": "02:00:00:00:00:99"}]}
    find = link.find

    def find_with_parent(name: str, space: netns.NetNS | None = None) -> link.Link | None:
        found = find(name, space)
        return found if found is None or space is None else found._replace(parent_device=parent)

    monkeypatch.setattr(link, "find", find_with_parent)
    late = {**changed, "ips": result["ips"] if ips is None else ips}
    make(machine, **{"device": None, **keys}).run("DEL", web, prevResult=late).raise_for_error()
    assert ("nic1" in links(machine)) == goes


def test_another_network_of_the_container(nic: Host) -> None:
    """DEL of an ADD that failed because the name was taken leaves the other network's link alone."""
    web = nic.container()
    make(nic).add(web)
    other = make(nic, name="other", device="wire1")
    with pytest.raises(InvalidEnvironmentError, match="already exists"):
        other.add(web)
    other.delete(web)
    assert links(nic, "c1")["eth0"] == ("nic1", (TAG,), True)
    make(nic).delete(web)
    assert links(nic) == HOME


@pytest.mark.parametrize("ifname", ["net1", "eth0"])
@pytest.mark.parametrize("device", ["nic1", "wire1"])
def test_a_failed_add_leaves_what_the_reference_lent_the_container(nic: Host, device: str, ifname: str) -> None:
    """Its DEL has no result to tell by: the link that the container's other attachment has is not its own."""
    web = nic.container()
    first = make(nic)
    result = first.run("ADD", web).document
    nic.call(untag, "eth0", web.netns)
    second = make(nic, name="other", device=device)
    second.run("DEL", web, ifname)
    # An ADD of the same device and name may have failed after the move: it looks the same.
    assert ("eth0" in web.links()) == ((device, ifname) != ("nic1", "eth0"))
    first.run("DEL", web, prevResult=result).raise_for_error()
    assert links(nic) == HOME


@pytest.mark.parametrize("lender", ["ours", "the reference"])
@pytest.mark.parametrize("kind", ["veth", "macvlan"])
def test_another_plugin_whose_add_failed_deletes_no_device_of_the_host(nic: Host, kind: str, lender: str) -> None:
    """Its interface has the name already. The runtime sends the DEL after it without a result."""
    plugins: dict[str, list[PluginUnderTest]] = {
        "veth": [nic.plugin(each, {"name": "other", "ipam": nic.stub().conf}) for each in (Bridge, Ptp)],
        "macvlan": [nic.plugin(Macvlan, {"name": "other", "master": "wire1", "ipam": nic.stub().conf})],
    }
    if kind == "macvlan":
        nic.shell(
            "ip link del nic1; ip link add wire1 type veth peer name up1; ip link add nic1 link wire1 type macvlan"
        )
    before = links(nic)
    web = nic.container()
    first = make(nic)
    result = first.run("ADD", web).document
    if lender == "the reference":
        nic.call(untag, "eth0", web.netns)
    lent = links(nic, "c1")
    for other in plugins[kind]:
        with expect_error(4, "eth0 already exists"):
            other.add(web)
        other.run("DEL", web, prevResult=None).raise_for_error()
        assert links(nic, "c1") == lent
    # Nor does it when the network's configuration was changed while the container ran.
    for other in plugins[kind]:
        other.run("DEL", web, name="testnet", prevResult=None).raise_for_error()
        assert links(nic, "c1") == lent
    first.run("DEL", web, prevResult=result).raise_for_error()
    assert {*links(nic)} == {*before}


def test_a_tag_that_another_container_has_copied(nic: Host) -> None:
    """Its own link takes the tag to the host as its namespace ends: nothing of it harms the other's link."""
    nic.shell("ip link add nic2 type veth peer name wire2")
    web, evil = nic.container(), nic.container("c2")
    plugin, second = make(nic), make(nic, device="nic2")
    plugin.add(web)
    second.add(evil)
    nic.call(untag, "eth0", evil.netns)
    nic.call(retag, "eth0", evil.netns)
    end_namespace(nic, evil)
    plugin.delete(web)
    second.run("DEL", evil, environ={"CNI_NETNS": ""}).raise_for_error()
    assert links(nic) == HOME | {"nic2": ("", (), False), "wire2": ("", (), False)}


def retag(name: str, path: str) -> None:
    with netns.open(path) as space:
        end = link.get(name, space)
        with rtnetlink.connect(space) as sock:
            sock.send([messages.altname_request(TAG, add=True, index=end.index)])


# --- ADD that fails ---------------------------------------------------------------------------------------------------


def test_a_failed_add_restores_the_device(nic: Host) -> None:
    nic.shell("ip link set nic1 alias 'rack 7' up")
    web = nic.container()
    stub = nic.stub()
    stub.fail("ADD")
    before = (nic.state(rules=False), links(nic))
    with pytest.raises(CNIError, match="the stub was told to fail"):
        make(nic).add(web)
    assert (nic.state(rules=False), links(nic)) == before
    stub.recover("ADD")
    stub.answer("ADD", {"cniVersion": "1.1.0", "ips": []})
    with pytest.raises(InvalidConfigError, match="no address"):
        make(nic).add(web)
    assert (nic.state(rules=False), links(nic)) == before


def test_a_name_that_is_taken_as_it_moves(nic: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel moves first and finds the name taken then."""
    web = nic.container()
    nic.shell("ip link set nic1 up")
    before = links(nic)
    request = messages.get_request

    def race(*, what: str, name: str = "", index: int = 0) -> rtnetlink.Message:
        return request(what=what, name="free" if name == "eth0" else name, index=index)

    web.shell("ip link add eth0 type bridge")
    with monkeypatch.context() as patch:
        patch.setattr(messages, "get_request", race)
        with pytest.raises(IOFailureError, match="EEXIST"):
            make(nic).add(web)
    assert (links(nic), web.links()) == (before, ["eth0", "lo"])


def test_links_that_cannot_be_lent(nic: Host) -> None:
    web = nic.container()
    with pytest.raises(IOFailureError, match="cannot move link lo to eth0 in /run/netns/c1"):
        make(nic, device="lo").add(web)
    assert links(nic) == HOME


# --- which device -----------------------------------------------------------------------------------------------------

TREE = """
d=/run/tree
mkdir -p $d/devices/pci0000:00/0000:00:1f.6/net/nic1 $d/devices/pci0000:00/0000:00:02.0/virtio3/net/nic2
mkdir -p $d/devices/pci0000:00/0000:00:03.0 $d/devices/pci0000:00/0000:00:04.0 $d/devices/mlx5_core.sf.4/net/nic2
mkdir -p $d/bus/pci/devices $d/bus/auxiliary/devices $d/drivers/vfio-pci $d/drivers/e1000e
for each in $d/devices/pci0000:00/*; do ln -s ../../../devices/pci0000:00/${each##*/} $d/bus/pci/devices/; done
ln -s ../../../devices/mlx5_core.sf.4 $d/bus/auxiliary/devices/
ln -s ../../../drivers/e1000e $d/devices/pci0000:00/0000:00:1f.6/driver
ln -s ../../../drivers/e1000e $d/devices/pci0000:00/0000:00:02.0/driver
ln -s ../../../drivers/e1000e $d/devices/pci0000:00/0000:00:04.0/driver
ln -s ../../../drivers/vfio-pci $d/devices/pci0000:00/0000:00:03.0/driver
mount --bind $d /sys
ip link add nic2 type veth peer name wire2
"""


@pytest.fixture
def machine(nic: Host) -> Host:
    """A host with PCI devices, as sysfs would show them."""
    nic.shell(TREE)
    return nic


DEVICES: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"device": "nic2"}, "nic2"),
    "address": ({"hwaddr": MAC}, "nic1"),
    "address, otherwise written": ({"hwaddr": "0200.0000.0017"}, "nic1"),
    "path": ({"kernelpath": "/sys/devices/pci0000:00/0000:00:1f.6"}, "nic1"),
    "PCI": ({"pciBusID": "0000:00:1f.6"}, "nic1"),
    "virtio": ({"pciBusID": "0000:00:02.0"}, "nic2"),
    "capability, PCI": ({"pciBusID": "0000:00:1f.6", "runtimeConfig": {"deviceID": "0000:00:02.0"}}, "nic2"),
    "capability, auxiliary bus": (
        {"pciBusID": "0000:00:1f.6", "runtimeConfig": {"deviceID": "mlx5_core.sf.4"}},
        "nic2",
    ),
    "name before all": (
        {"device": "nic1", "hwaddr": "02:00:00:00:00:99", "runtimeConfig": {"deviceID": "0000:00:02.0"}},
        "nic1",
    ),
    "address before path": ({"hwaddr": MAC, "kernelpath": "/sys/devices/pci0000:00/0000:00:02.0/virtio3"}, "nic1"),
    "path before PCI": (
        {"kernelpath": "/sys/devices/pci0000:00/0000:00:02.0/virtio3", "pciBusID": "0000:00:1f.6"},
        "nic2",
    ),
}


def test_devices(machine: Host) -> None:
    web = machine.container()
    before = links(machine)
    for case, (keys, name) in DEVICES.items():
        plugin = make(machine, **{"device": None, "ipam": None, **keys})
        plugin.status()
        plugin.add(web)
        assert (links(machine, "c1")["eth0"][0], case) == (name, case)
        plugin.check(web)
        plugin.delete(web)
        assert links(machine) == before, case


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'),
    "no such name": ({"device": "nic9"}, "failed to find host device: link nic9 does not exist"),
    "no address": ({"hwaddr": "nic1"}, 'failed to parse MAC address "nic1"'),
    "no such address": ({"hwaddr": "02:00:00:00:00:99"}, "no link of the host has the hardware address 02:00"),
    "two of an address": ({"hwaddr": "02:00:00:00:00:42"}, "links twin1, twin2 have the hardware address 02:00"),
    "a path elsewhere": ({"kernelpath": "/etc"}, 'kernel device path "/etc" must be absolute and begin with /sys/dev'),
    "a path that leads away": ({"kernelpath": "/sys/devices/../../etc"}, "must be absolute and begin with /sys/dev"),
    "no such path": ({"kernelpath": "/sys/devices/x"}, "device /sys/devices/x does not exist"),
    "a PCI address that leads away": ({"pciBusID": "../../devices"}, r'\$.pciBusID is "../../devices", expected the'),
    "no such PCI device": ({"pciBusID": "0000:00:09.0"}, "device /sys/bus/pci/devices/0000:00:09.0 does not exist"),
    "no link": ({"pciBusID": "0000:00:04.0"}, "failed to find network device in path"),
    "no such device ID": ({"runtimeConfig": {"deviceID": "x"}}, "runtime config DeviceID x not found or unsupported"),
}


def test_devices_that_are_refused(machine: Host) -> None:
    web = machine.container()
    machine.shell("ip link add twin1 address 02:00:00:00:00:42 type veth peer name twin2 address 02:00:00:00:00:42")
    before = machine.state(rules=False)
    for case, (keys, message) in REFUSED.items():
        plugin = make(machine, **{"device": None, "ipam": None, **keys})
        for verb in (partial(plugin.add, web), plugin.status):
            with pytest.raises((InvalidConfigError, IOFailureError, PluginNotAvailableError), match=message):
                verb()
        plugin.delete(web)
        assert machine.state(rules=False) == before, case


def test_the_runtime_names_the_device(nic: Host) -> None:
    """STATUS cannot know which one the next ADD brings."""
    make(nic, device=None, capabilities={"deviceID": True}).status()


def test_a_device_of_user_space(machine: Host) -> None:
    """DPDK: addresses are leased and reported, and no link is touched."""
    web = machine.container()
    before = machine.state(rules=False)
    for keys in ({"pciBusID": "0000:00:03.0"}, {"runtimeConfig": {"deviceID": "0000:00:03.0"}}, {"dpdkMode": True}):
        plugin = make(machine, **{"device": None, "dns": {"domain": "example.org"}, **keys})
        plugin.status()
        result = plugin.add(web)
        assert (result.interfaces, [ip.interface for ip in result.ips]) == ((), [None])
        assert result.dns.domain == "example.org"
        plugin.check(web)
        plugin.delete(web)
        assert machine.state(rules=False) == before
        bare = make(machine, **{"device": None, "ipam": None, **keys})
        assert bare.run("ADD", web).document == {"cniVersion": "1.1.0"}
        bare.delete(web)
    # The driver was changed since.
    make(machine, device=None).run("DEL", web, pciBusID="0000:00:1f.6").raise_for_error()
