"""Two ADDs of one attachment, with a plugin that leases before it makes anything: the loser takes nothing away."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cnisdk import AddRequest, CNIError, DelRequest, IOFailureError, NetConf, Plugin, Result
from cnisdk.invoke import Delegate
from cnisdk.ipam import FileStore
from cnisdk.linux import veth
from cnisdk.spec.codec import dumps
from cnisdk.testing import Host
from cnisdk.testing.launchers import write_launchers
from cnisdk.testing.stores import everything

from ..programs import python_program

GO = Path(os.environ.get("CNI_REFERENCE_PLUGINS", "/usr/lib/cni"))
PLUGIN = '''
import os

from cnisdk import IOFailureError, NetConf, Plugin, PluginMain


class Main(Plugin[NetConf]):
    """Lease an address, then make what there can be only one of."""

    def add(self, request):
        leased = request.ipam.add()
        mark = f"{request.conf.extra['place']}/{request.container_id}"
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise IOFailureError(f"{mark} exists")
        request.undo(os.unlink, mark)
        return leased

    def delete(self, request):
        request.ipam.delete()


PluginMain(Main)()
'''


class Network:
    """A network of the plugin above and a host-local."""

    def __init__(self, root: Path, host_local: str) -> None:
        if host_local == "reference" and not (GO / "host-local").exists():
            pytest.skip(f"there is no {GO}/host-local")
        self.bin = root / "bin"
        self.bin.mkdir()
        write_launchers(self.bin)
        if host_local == "reference":
            (self.bin / "host-local").unlink()
            (self.bin / "host-local").symlink_to(GO / "host-local")
        self.main = self.bin / "main"
        self.main.write_text(python_program(PLUGIN))
        self.main.chmod(0o755)
        (root / "made").mkdir()
        ipam = {"type": "host-local", "dataDir": str(root / "data"), "ranges": [[{"subnet": "10.7.0.0/24"}]]}
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "main", "place": str(root / "made"), "ipam": ipam}
        self.conf = json.dumps(conf)
        self.store = FileStore(str(root / "data"), "net")

    def start_add(self, container: str) -> subprocess.Popen[str]:
        environ = {
            **os.environ,
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": container,
            "CNI_NETNS": "/dev/null",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.bin),
        }
        pipe = subprocess.PIPE
        started = subprocess.Popen([self.main], env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert started.stdin is not None
        started.stdin.write(self.conf)
        started.stdin.close()
        started.stdin = None
        return started

    def held(self) -> dict[str, str]:
        return {owner.container_id: str(address) for address, owner in everything(self.store).items()}


def answer(process: subprocess.Popen[str]) -> tuple[int, Any]:
    out, _ = process.communicate(timeout=60)
    return process.returncode, json.loads(out)


@pytest.fixture(params=["ours", "reference"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Network:
    return Network(tmp_path, request.param)


def test_an_add_that_is_refused_releases_nothing(network: Network) -> None:
    """A runtime that sends an ADD again, without a DEL, gets an error: the container keeps its address."""
    assert answer(network.start_add("web"))[0] == 0
    status, error = answer(network.start_add("web"))
    assert status == 1
    assert "duplicate allocation is not allowed" in error["msg"]
    assert network.held() == {"web": "10.7.0.2"}


def test_two_adds_at_the_same_moment(network: Network) -> None:
    containers = [f"c{number}" for number in range(5)]
    started = {container: [network.start_add(container) for _ in range(2)] for container in containers}
    winners = {}
    for container, pair in started.items():
        answers = [answer(each) for each in pair]
        (result,) = (document for status, document in answers if status == 0)
        winners[container] = result["ips"][0]["address"].partition("/")[0]
    assert network.held() == winners


class LeasesFirst(Plugin[NetConf]):
    """Lease an address, and then make the link that only one of two ADDs can make."""

    def add(self, request: AddRequest[NetConf]) -> Result:
        leased = request.ipam.add()
        with request.step():
            pair = veth.create(request.open_netns(), request.ifname, owner=request.attachment)
            request.undo(pair.delete)
        if request.conf.extra.get("fails"):
            raise IOFailureError("a later step fails")
        return leased.with_interfaces(pair.host, pair.container)

    def delete(self, request: DelRequest[NetConf]) -> None:
        request.ipam.delete()
        veth.delete(owner=request.attachment)


@pytest.mark.kernel
@pytest.mark.parametrize("verdict", ["the same again", "it fails", "it is too late"])
def test_an_add_that_loses_the_interface_releases_no_address(
    host: Host, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPAM gives an attachment the same addresses again, as with ``onDuplicate: return``, or runs out of time."""
    container, stub = host.container(), host.stub()
    plugin = host.plugin(LeasesFirst, {"ipam": stub.conf})
    plugin.add(container)
    before, leased = host.state(), stub.leases
    if verdict == "the same again":
        stub.answer("ADD", {"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]})
    elif verdict == "it fails":
        stub.fail("ADD", 11, "not now")
    else:
        monkeypatch.setattr("cnisdk.plugin.request.IPAM_TIMEOUT", 0.5)
        stub.hang("ADD")
    with pytest.raises(CNIError):
        plugin.add(container)
    stub.recover("ADD")
    assert (host.state(), stub.leases) == (before, leased)
    plugin.delete(container)
    assert stub.leases == {}


@pytest.mark.kernel
def test_an_add_that_fails_alone_releases_its_address(host: Host) -> None:
    container, stub = host.container(), host.stub()
    with pytest.raises(IOFailureError, match="a later step fails"):
        host.plugin(LeasesFirst, {"ipam": stub.conf, "fails": True}).add(container)
    assert stub.leases == {}


@pytest.mark.kernel
@pytest.mark.interop
@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_delegate_that_finds_the_interface_taken_gets_no_del(host: Host, kind: str) -> None:
    """Flannel with the reference's bridge: the second of two ADDs takes nothing of the first one's away."""
    if not (GO / kind).exists():
        pytest.skip(f"there is no {GO}/{kind}")
    container, stub = host.container(), host.stub()
    conf = {"delegate": {"type": kind, "bridge": "cni7", "ipam": stub.conf}}
    plugin = host.plugin(Through, conf, path=[GO])
    plugin.add(container)
    before, leased = host.state(), stub.leases
    with pytest.raises(CNIError, match="already exists"):
        plugin.add(container)
    assert host.state() == before
    assert kind == "ptp" or stub.leases == leased, "the reference's ptp runs the DEL of IPAM itself"


class Through(Plugin[NetConf]):
    """Have another plugin attach the container."""

    def add(self, request: AddRequest[NetConf]) -> Result:
        delegate: dict[str, Any] = dict(request.conf.extra["delegate"])  # type: ignore[call-overload]
        conf = {"cniVersion": "1.0.0", "name": request.network, **delegate}
        return request.add_through(Delegate(delegate["type"], request.environ, dumps(conf)))

    def delete(self, request: DelRequest[NetConf]) -> None:
        """Nothing that this test needs."""
