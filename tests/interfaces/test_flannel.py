"""flannel: the daemon's file becomes a configuration of another plugin, and nothing of an attachment gets lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cnisdk.errors import (
    CNIError,
    DecodingError,
    InvalidConfigError,
    InvalidEnvironmentError,
    PluginNotAvailableError,
    TryAgainLaterError,
)
from cnisdk.testing import Host, PluginUnderTest, expect_error, fail
from cnisdk_plugins.flannel import Flannel, read_subnet

ENV = """\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=2001:db8:42::/48
FLANNEL_IPV6_SUBNET=2001:db8:42:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""
FILE = Path("/run/flannel/subnet.env")
STATE = Path("/var/lib/cni/flannel")


def make(host: Host, plugins: Path, env: str = ENV, **keys: Any) -> PluginUnderTest:
    host.call(write, FILE, env)
    return host.plugin(Flannel, {"name": "cbr0", **keys}, path=[plugins])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def kept(host: Host) -> list[str]:
    return sorted(host.call(lambda: [path.name for path in STATE.iterdir()] if STATE.exists() else []))


pytestmark = pytest.mark.kernel


def test_bridge_and_host_local_attach_with_the_subnet_of_the_node(host: Host, plugin_directory: Path) -> None:
    web, db = host.container(), host.container("c2")
    plugin = make(host, plugin_directory)
    plugin.status()
    result = plugin.add(web)
    assert [str(each.address) for each in result.ips] == ["10.244.1.2/24", "2001:db8:42:1::2/64"]
    assert {str(each.dst) for each in result.routes} == {"10.244.0.0/16", "2001:db8:42::/48"}
    assert result.interfaces[0].name == "cni0"
    (link,) = host.ip("link", "show", "eth0", netns="c1")
    assert link["mtu"] == 1450
    assert "10.244.1.1/24" in {
        f"{a['local']}/{a['prefixlen']}" for a in host.ip("addr", "show", "cni0")[0]["addr_info"]
    }
    plugin.add(db)
    assert web.reaches(db)
    assert kept(host) == ["c1", "c2"]
    plugin.check(web)
    host.shell("ip -n c1 address del 10.244.1.2/24 dev eth0")
    with pytest.raises(Exception, match=r"10\.244\.1\.2/24"):
        plugin.check(web)
    plugin.delete(web)
    plugin.gc()  # db's, too
    assert kept(host) == []
    state = host.state()
    assert [each.name for each in state.links if each.place == ""] == ["cni0", "lo"]
    plugin.delete(db)
    plugin.delete(db)


def test_what_the_other_plugin_gets(host: Host) -> None:
    """The keys that flannel's plugin sets, as its documentation lists them; what the user wrote stays."""
    web, stub = host.container(), host.stub("other")
    stub.answer("ADD", {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.244.1.2/24"}]})
    stub.answer("DEL")
    delegate = {"type": "other", "hairpinMode": True, "MTU": 9000, "isDefaultGateway": None}
    plugin = make(
        host,
        Path("/nowhere"),
        delegate=delegate,
        cniVersion="0.3.1",
        ipam={"dataDir": "/run/ipam", "routes": [{"dst": "192.0.2.0/24"}]},
        runtimeConfig={"portMappings": [{"hostPort": 8080}]},
        dns={"nameservers": ["192.0.2.53"]},
        args={"cni": {"ips": ["10.0.0.1"]}},
    )
    plugin.add(web)
    wanted = {
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "other",
        "hairpinMode": True,
        "MTU": 9000,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/ipam",
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "2001:db8:42:1::/64"}]],
            "routes": [{"dst": "192.0.2.0/24"}, {"dst": "10.244.0.0/16"}, {"dst": "2001:db8:42::/48"}],
        },
        "runtimeConfig": {"portMappings": [{"hostPort": 8080}]},
    }
    assert stub.configuration("ADD") == wanted
    host.call(FILE.unlink)
    plugin.delete(web, delegate={}, runtimeConfig=None)  # by what was kept, whatever the configuration says by now
    assert stub.configuration("DEL") == wanted


def test_a_second_interface_keeps_its_own_file(host: Host, plugin_directory: Path) -> None:
    web = host.container()
    plugin = make(host, plugin_directory)
    plugin.add(web, "eth0")
    before = host.state().without("files")
    plugin.add(web, "eth1")
    assert kept(host) == ["c1", "c1:eth1"]
    plugin.delete(web, "eth1")
    assert (kept(host), host.state().without("files")) == (["c1"], before)
    plugin.check(web, "eth0")
    plugin.add(web, "eth1")
    plugin.delete(web, "eth0")
    plugin.delete(web, "eth1")
    assert kept(host) == []
    assert web.links() == ["lo"]


def test_a_del_that_failed_comes_again(host: Host) -> None:
    web, stub = host.container(), host.stub("other")
    stub.answer("ADD", {"cniVersion": "1.1.0"})
    stub.fail("DEL", 11, "not now")
    plugin = make(host, Path("/nowhere"), delegate={"type": "other"})
    plugin.add(web)
    with pytest.raises(TryAgainLaterError, match="not now"):
        plugin.delete(web)
    assert kept(host) == ["c1"]
    stub.answer("DEL")
    plugin.delete(web)
    assert kept(host) == []


def test_a_failed_add_leaves_no_file_and_a_second_one_keeps_the_first_ones(host: Host, plugin_directory: Path) -> None:
    web, stub = host.container(), host.stub("other")
    stub.fail("ADD", 11, "not now")
    stub.answer("DEL")
    plugin = make(host, plugin_directory, delegate={"type": "other"})
    with pytest.raises(TryAgainLaterError, match="not now"):
        plugin.add(web)
    assert kept(host) == []
    plugin = make(host, plugin_directory)
    plugin.add(web)
    before = host.state()
    with pytest.raises(InvalidEnvironmentError, match="eth0 already exists"):
        plugin.add(web)
    assert host.state() == before
    plugin.check(web)
    plugin.delete(web)


@pytest.mark.parametrize("first", ["ours", "flannel's own"])
def test_a_second_add_that_fails_leaves_the_interface_and_the_file(
    host: Host, plugin_directory: Path, first: str
) -> None:
    """The configuration has changed meanwhile: the other plugin's DEL would take the first one's interface."""
    web, stub = host.container(), host.stub("other")
    plugin = make(host, plugin_directory)
    plugin.add(web)
    if first != "ours":
        drop_owner(host)
    before, files = host.state(), host.call(read_files)
    second = make(host, plugin_directory, delegate={"type": "other"})
    for code in (4, 11, 999):
        stub.fail("ADD", code, "not now")
        with pytest.raises(CNIError, match="not now"):
            second.add(web)
        assert (host.state(), host.call(read_files)) == (before, files)
    assert "DEL" not in stub.verbs
    plugin.check(web)
    stub.answer("ADD", {"cniVersion": "1.1.0"})
    for answer in second.at_each_step(fail, "ADD", web):
        assert not answer.status or host.call(read_files) == files, answer
        if not answer.status:  # a step that ADD can do without may have failed
            break
    assert web.links() == ["eth0", "lo"]


def read_files() -> dict[str, str]:
    return {path.name: path.read_text() for path in STATE.iterdir()}


def drop_owner(host: Host) -> None:
    """Make the file one of flannel's own plugin: compact JSON, without an owner."""
    document = host.call(lambda: json.loads((STATE / "c1").read_text()))
    del document["cni"]
    host.call(write, STATE / "c1", json.dumps(document, separators=(",", ":"), sort_keys=True))


def test_files_of_flannels_own_plugin(host: Host, plugin_directory: Path) -> None:
    web = host.container()
    plugin = make(host, plugin_directory)
    plugin.add(web)
    drop_owner(host)
    host.call(FILE.unlink)
    plugin.delete(web, name="another")  # another network's: not taken
    assert kept(host) == ["c1"]
    plugin.delete(web)
    assert kept(host) == []
    assert web.links() == ["lo"]


def test_another_network_keeps_its_file(host: Host) -> None:
    web, stub = host.container(), host.stub("other")
    stub.answer("ADD", {"cniVersion": "1.1.0"})
    stub.answer("DEL")
    names = ("red", "green", "blue")
    red, green, blue = (make(host, Path("/nowhere"), name=name, delegate={"type": "other"}) for name in names)
    red.add(web)
    green.add(web)
    with pytest.raises(InvalidEnvironmentError, match="CNI_IFNAME eth0 of this container belongs to another network"):
        blue.add(web)
    blue.delete(web)
    assert "DEL" not in stub.verbs
    assert kept(host) == ["c1", "c1:eth0"]
    red.delete(web)
    assert stub.configuration("DEL")["name"] == "red"
    green.delete(web)
    assert stub.configuration("DEL")["name"] == "green"
    assert kept(host) == []


def test_a_lost_file_loses_no_attachment(host: Host, plugin_directory: Path) -> None:
    web = host.container()
    plugin = make(host, plugin_directory)
    plugin.add(web)
    host.call(write, STATE / "c1", '{"torn')
    plugin.delete(web)
    assert web.links() == ["lo"]
    assert host.state().leases == ()
    host.call(FILE.unlink)
    plugin.delete(web)  # nothing is known of it any more, and nothing is there


def test_without_the_daemon(host: Host, plugin_directory: Path) -> None:
    plugin = make(host, plugin_directory)
    host.call(FILE.unlink)
    web = host.container()
    text = "failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: no such file or directory"
    with pytest.raises(TryAgainLaterError, match=text):
        plugin.add(web)
    with pytest.raises(PluginNotAvailableError, match=text):
        plugin.status()
    plugin.delete(web)


@pytest.mark.parametrize(
    ("delegate", "text"),
    [
        ({"name": "x"}, r"'delegate' dictionary must not have 'name' field, it'll be set by flannel"),
        ({"IPAM": {}}, r"'delegate' dictionary must not have 'ipam' field, it'll be set by flannel"),
        ({"type": 5}, r"'delegate' dictionary, if present, must have \(string\) 'type' field"),
    ],
)
def test_a_delegate_that_is_refused(host: Host, delegate: dict[str, Any], text: str) -> None:
    plugin, web = make(host, Path("/nowhere"), delegate=delegate), host.container()
    with pytest.raises(InvalidConfigError, match=text):
        plugin.add(web)
    plugin.delete(web)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is missing FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"),
        ("FLANNEL_NETWORK\nno equals sign\n", "is missing FLANNEL_NETWORK"),
        (ENV.replace("10.244.1.1/24", "10.244.1.1/99"), "has a malformed value: '10.244.1.1/99'"),
        (ENV.replace("1450", "many"), "has a malformed value"),
    ],
)
def test_a_broken_file(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "subnet.env").write_text(text)
    with pytest.raises(DecodingError) as caught:
        read_subnet(str(tmp_path / "subnet.env"))
    assert problem in caught.value.msg


def test_a_fifo_in_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "subnet.env")
    with expect_error(5, f"{tmp_path}/subnet.env", "it is a FIFO"):
        read_subnet(str(tmp_path / "subnet.env"))


def test_networks_are_named_once(tmp_path: Path) -> None:
    networks = "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16,10.1.0.0/16"
    (tmp_path / "subnet.env").write_text(
        f"{networks}\nFLANNEL_SUBNET=10.1.5.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=no\n"
    )
    subnet = read_subnet(str(tmp_path / "subnet.env"))
    assert (subnet.networks, subnet.ranges, subnet.ip_masq) == (["10.1.0.0/16", "10.2.0.0/16"], ["10.1.5.0/24"], False)
