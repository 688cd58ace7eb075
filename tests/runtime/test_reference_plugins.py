"""Real plugins, run through our runtime on a host of their own: the Go ones of Debian's package, and ours."""

import base64
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnisdk.testing import Sandbox

from ..modes import Plugins

ROOT = Path(__file__).resolve().parents[2]
GO = Path("/usr/lib/cni")
NETNS = "/var/run/netns/testing1"
ID = "cnitool-49346948b0d506e05f2d"

pytestmark = [
    pytest.mark.interop,
    pytest.mark.kernel,
    pytest.mark.skipif(not (GO / "bridge").exists(), reason="needs Debian's containernetworking-plugins"),
]

MYNET = {
    "cniVersion": "0.4.0",
    "name": "mynet",
    "type": "bridge",
    "bridge": "mybridge",
    "isDefaultGateway": True,
    "ipam": {"type": "host-local", "subnet": "192.168.100.0/24"},
}


@pytest.fixture(scope="session", params=["go", "one-shot", "resident"])
def installed(request: pytest.FixtureRequest, install: Callable[[str], Plugins]) -> Plugins | None:
    """Directory of bridge and host-local; None for the Go ones."""
    return None if request.param == "go" else install(request.param)


@pytest.fixture
def path(host: Sandbox, installed: Plugins | None) -> Iterator[str]:
    """A ``CNI_PATH``: the Go plugins, behind ours if ours are meant."""
    if installed is None:
        yield str(GO)
        return
    with installed.on(host):
        yield f"{installed.directory}:{GO}"


class Tool:
    """cnitool on that host."""

    def __init__(self, host: Sandbox, path: str, conf: Path, *networks: dict[str, Any]) -> None:
        self.host = host
        self.env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_PATH": path, "NETCONFPATH": str(conf)}
        if "PYTHONPATH" in os.environ:
            self.env["PYTHONPATH"] = os.environ["PYTHONPATH"]
        for network in networks:
            ending = "conflist" if "plugins" in network else "conf"
            (conf / f"{network['name']}.{ending}").write_text(json.dumps(network))

    def __call__(self, *arguments: str, ok: bool = True, **env: str) -> str:
        done = self.host.run(
            [sys.executable, "-m", "cnisdk._cli.cnitool", *arguments], env={**self.env, **env}, cwd=ROOT, check=ok
        )
        assert ok == (done.returncode == 0), done
        return done.stdout if ok else done.stderr

    def files(self, directory: str) -> dict[str, str]:
        """The files of a directory on the host, whose /var/lib is its own."""

        def read() -> dict[str, str]:
            path = Path(directory)
            return {each.name: each.read_bytes().decode() for each in path.iterdir()} if path.exists() else {}

        return self.host.call(read)


def test_the_walk_through(host: Sandbox, path: str, tmp_path: Path) -> None:
    tool = Tool(host, path, tmp_path, MYNET)
    host.add_netns("testing1")
    printed = tool("add", "mynet", NETNS)
    result = json.loads(printed)
    assert result["cniVersion"] == "0.4.0"
    assert [each["name"] for each in result["interfaces"]][::2] == ["mybridge", "eth0"]
    assert re.fullmatch("veth[0-9a-f]{8}", result["interfaces"][1]["name"])
    assert result["interfaces"][2]["sandbox"] == NETNS
    assert result["ips"] == [
        {"version": "4", "interface": 2, "address": "192.168.100.2/24", "gateway": "192.168.100.1"}
    ]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "192.168.100.1"}]
    assert result["dns"] == {}
    # Go prints struct fields in this order, indented by four, without a newline.
    assert list(result) == ["cniVersion", "interfaces", "ips", "routes", "dns"]
    assert printed == json.dumps(result, indent=4)

    (name, text) = next(iter(tool.files("/var/lib/cni/results").items()))
    assert name == f"mynet-{ID}-eth0"
    cached = json.loads(text)
    assert list(cached) == ["kind", "containerId", "config", "ifName", "networkName", "netns", "result"]
    assert cached["kind"] == "cniCacheV1"
    assert cached["result"] == result
    config = json.loads(base64.b64decode(cached["config"]))
    assert config == {"cniVersion": "0.4.0", "name": "mynet", "plugins": [MYNET]}
    assert tool.files("/var/lib/cni/networks/mynet")["192.168.100.2"] == f"{ID}\r\neth0"

    tool("check", "mynet", NETNS)
    host.run(["ip", "-n", "testing1", "route", "del", "default"])
    assert "failed (check)" in tool("check", "mynet", NETNS, ok=False)

    tool("del", "mynet", NETNS)
    assert tool.files("/var/lib/cni/results") == {}
    assert "192.168.100.2" not in tool.files("/var/lib/cni/networks/mynet")
    tool("del", "mynet", NETNS)
    host.del_netns("testing1")
    tool("del", "mynet", NETNS)


def test_a_failed_add_leaves_nothing(host: Sandbox, path: str, tmp_path: Path) -> None:
    """The second plugin fails; the link and the lease of the first are taken back, unless that is not wanted."""
    broken = {"type": "tuning", "sysctl": {"net.no.such.thing": "1"}}
    tool = Tool(host, path, tmp_path, {"cniVersion": "1.0.0", "name": "mynet", "plugins": [MYNET, broken]})
    host.add_netns("testing1")

    def leftovers() -> tuple[bool, bool]:
        leases = [name for name in tool.files("/var/lib/cni/networks/mynet") if name.startswith("192.")]
        links = json.loads(host.run(["ip", "-n", "testing1", "-j", "link", "show"]).stdout)
        return bool(leases), "eth0" in [each["ifname"] for each in links]

    assert 'plugin type="tuning" failed (add): ' in tool("add", "mynet", NETNS, ok=False)
    assert leftovers() == (False, False)
    tool("add", "mynet", NETNS, "--no-rollback", ok=False)
    assert leftovers() == (True, True)
    assert tool.files("/var/lib/cni/results") == {}
    tool("del", "mynet", NETNS)
    assert leftovers() == (False, False)


def test_a_second_add_does_not_harm_the_first(host: Sandbox, path: str, tmp_path: Path) -> None:
    tool = Tool(host, path, tmp_path, MYNET)
    host.add_netns("testing1")
    tool("add", "mynet", NETNS)
    tool("add", "mynet", NETNS, ok=False)
    tool("check", "mynet", NETNS)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_a_chain(host: Sandbox, path: str, tmp_path: Path, version: str) -> None:
    bridge = {**MYNET, "capabilities": {"mac": True}}
    tuning = {"type": "tuning", "mtu": 1400}
    tool = Tool(host, path, tmp_path, {"cniVersion": version, "name": "mynet", "plugins": [bridge, tuning]})
    host.add_netns("testing1")
    mac = "02:00:5e:10:00:01"
    result = json.loads(tool("add", "mynet", NETNS, CAP_ARGS=json.dumps({"mac": mac, "ips": ["1.2.3.4/8"]})))
    assert result["cniVersion"] == version
    assert result["interfaces"][2]["mac"] == mac
    (link,) = json.loads(host.run(["ip", "-n", "testing1", "-j", "link", "show", "eth0"]).stdout)
    assert (link["address"], link["mtu"]) == (mac, 1400)
    if version == "0.3.1":
        assert "does not support the CHECK command" in tool("check", "mynet", NETNS, ok=False)
    else:
        tool("check", "mynet", NETNS)
    tool("del", "mynet", NETNS)
    assert "192.168.100.2" not in tool.files("/var/lib/cni/networks/mynet")


def test_loopback(host: Sandbox, tmp_path: Path) -> None:
    tool = Tool(host, str(GO), tmp_path, {"cniVersion": "0.3.1", "name": "lo", "type": "loopback"})
    host.add_netns("testing1")
    result = json.loads(tool("add", "lo", NETNS, "-i", "lo"))
    assert result["interfaces"][0]["name"] == "lo"
    (link,) = json.loads(host.run(["ip", "-n", "testing1", "-j", "link", "show", "lo"]).stdout)
    assert "UP" in link["flags"]
    tool("del", "lo", NETNS, "-i", "lo")


def test_gc_through_the_cache(host: Sandbox, path: str, tmp_path: Path) -> None:
    """No Go plugin implements GC; there, the runtime's DEL of what it remembers works all the same."""
    tool = Tool(host, path, tmp_path, {"cniVersion": "1.0.0", "name": "mynet", "plugins": [MYNET]})
    for name in ("testing1", "testing2"):
        host.add_netns(name)
        tool("add", "mynet", f"/var/run/netns/{name}")
    host.del_netns("testing2")
    tool("gc", "mynet", "--valid", f"{ID}/eth0")
    leases = tool.files("/var/lib/cni/networks/mynet")
    assert "192.168.100.2" in leases
    assert "192.168.100.3" not in leases
    assert list(tool.files("/var/lib/cni/results")) == [f"mynet-{ID}-eth0"]
