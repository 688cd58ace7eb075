"""Tests as a plugin author writes them: a plugin of this test's own, on hosts, in a few lines."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import pytest
from attrs import frozen

from cnisdk import AddRequest, CNIError, DelRequest, NetConf, Plugin, Result, StatusRequest
from cnisdk.errors import InternalError
from cnisdk.linux import veth
from cnisdk.testing import Container, Host, PluginUnderTest, describe_difference, expect_error, fail, kill, kill_after
from cnisdk.testing.faults import Fault

pytestmark = pytest.mark.kernel


@frozen(kw_only=True)
class CableConf(NetConf):
    bridge: str = "br0"


class Cable(Plugin[CableConf]):
    """Plugs a container into a bridge."""

    def add(self, request: AddRequest[CableConf]) -> Result:
        with request.open_netns() as netns:
            pair = veth.create(netns, request.ifname, owner=request.attachment)
            request.undo(pair.delete)
            pair.host.join(request.conf.bridge)
            leased = request.ipam.add()
            pair.container.configure(leased)
            return leased.with_interfaces(pair.host, pair.container)

    def delete(self, request: DelRequest[CableConf]) -> None:
        request.ipam.delete()
        veth.delete(owner=request.attachment)


class Suicidal(Cable):
    """Looks at a file, and dies."""

    def status(self, request: StatusRequest[CableConf]) -> None:
        Path("/proc/self/status").read_text()
        signal.raise_signal(signal.SIGKILL)


@pytest.fixture
def bridged(host: Host) -> Host:
    host.shell("ip link add br0 address 02:00:00:00:00:01 type bridge; ip link set br0 up")
    return host


def test_two_containers_talk(bridged: Host) -> None:
    """In process."""
    stub = bridged.stub()
    cable = bridged.plugin(Cable, {"ipam": stub.conf})
    web, client = bridged.container("web"), bridged.container("client")
    before = bridged.state()
    assert str(cable.add(web).ips[0].address) == "10.9.0.2/24"
    cable.add(client, "net1")
    assert stub.leases == {"10.9.0.2": "web/eth0", "10.9.0.3": "client/net1"}
    assert client.reaches(web)
    assert web.reaches(client, protocol="udp")
    assert not web.reaches(client, "10.9.0.77", timeout=0.2)
    assert client.addresses("net1") == ["10.9.0.3/24"]
    cable.delete(web)
    cable.delete(client, "net1")
    cable.delete(client, "net1")
    assert bridged.state() == before
    assert stub.verbs == ["ADD", "ADD", "DEL", "DEL", "DEL"]


def test_an_executable(bridged: Host, plugin_directory: Path) -> None:
    """The same words for the program a runtime runs, beside other programs."""
    bridge = bridged.plugin(
        plugin_directory / "bridge",
        {"bridge": "br0", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}},
        path=[plugin_directory],
    )
    web = bridged.container("web")
    result = bridge.add(web)
    assert [each.name for each in result.interfaces][-1] == "eth0"
    assert [lease.address for lease in bridged.state().leases] == ["10.1.0.2"]
    bridge.check(web)
    bridge.status()
    assert "1.1.0" in bridge.versions()
    bridge.gc(web)
    assert bridged.state().leases
    bridge.gc()
    assert not bridged.state().leases
    with expect_error(3, "Failed to find address added by container web"):
        bridge.check(web)


def test_errors_are_of_their_class(bridged: Host) -> None:
    stub = bridged.stub(size=1)
    cable = bridged.plugin(Cable, {"ipam": stub.conf})
    one, two = bridged.container("one"), bridged.container("two")
    cable.add(one)
    before = bridged.state()
    with expect_error(11, "no address is left"):
        cable.add(two)
    assert bridged.state() == before.without("files")
    stub.answer("DEL", "not JSON", status=1, stderr="boom")
    with expect_error(999, "not JSON", "boom"):
        cable.delete(one)
    stub.recover("DEL")
    cable.delete(one)
    assert stub.leases == {}


@pytest.mark.parametrize("fault", [kill, fail])
def test_it_fails_or_dies_at_each_step(bridged: Host, fault: Callable[[int], Fault]) -> None:
    """The last request is the one that no fault reaches any more."""
    stub = bridged.stub()
    cable = bridged.plugin(Cable, {"ipam": stub.conf})
    container = bridged.container()
    before = bridged.state()
    statuses = []
    for answer in cable.at_each_step(fault, "ADD", container):
        statuses.append(answer.status)
        if answer.status != 1:  # a failed ADD has taken back what it did
            cable.delete(container)
        assert bridged.state().without("files") == before.without("files"), answer
        assert stub.leases == {}
    *failed, last = statuses
    assert last == 0
    assert set(failed) <= ({-signal.SIGKILL} if fault is kill else {0, 1})
    assert len(failed) > 13
    assert cable.fault is None
    assert not cable.run("ADD", container).struck


def test_a_killed_plugin_answers_an_error(bridged: Host) -> None:
    cable = bridged.plugin(Cable, {"ipam": bridged.stub().conf})
    cable.fault = kill(5)
    with expect_error(999, "SIGKILL"):
        cable.add(bridged.container())


@pytest.mark.parametrize(("line", "status"), [("mkdir /run/made", 1), ("mkdir /run/made || true", 0)])
def test_an_executable_fails_at_each_step(bridged: Host, tmp_path: Path, line: str, status: int) -> None:
    """strace tells of the step, also if the program copes with it."""
    script = tmp_path / "program"
    script.write_text(f"#!/bin/sh -e\n{line}\n")
    script.chmod(0o755)
    program = bridged.plugin(script)
    answers = [(answer.status, answer.struck) for answer in program.at_each_step(fail, "STATUS")]
    assert answers == [(status, True), (0, False)]


def test_an_executable_or_its_helpers_die_at_each_step(bridged: Host, tmp_path: Path) -> None:
    """The program copes with the death of the second helper. Each process has steps of its own."""
    script = tmp_path / "program"
    script.write_text("#!/bin/sh\nmkdir /run/a\nstatus=$?\nmkdir /run/b /run/c || true\nrmdir /run/?\nexit $status\n")
    script.chmod(0o755)
    program = bridged.plugin(script)
    answers = [(answer.status, answer.struck) for answer in islice(program.at_each_step(kill, "STATUS"), 9)]
    assert answers == [(137, True), (0, True), (0, False)]


def test_a_plugin_that_dies_by_itself_reaches_no_step(bridged: Host, tmp_path: Path) -> None:
    """Else there would be one more step for ever."""
    script = tmp_path / "program"
    script.write_text("#!/bin/sh\nmkdir /run/made\nrmdir /run/made\nkill -KILL $$\n")
    script.chmod(0o755)
    for plugin in (bridged.plugin(script), bridged.plugin(Suicidal)):
        for fault in (kill, fail):
            answers = list(islice(plugin.at_each_step(fault, "STATUS"), 9))
            assert [answer.struck for answer in answers] == [True] * (len(answers) - 1) + [False]
            assert answers[-1].status == -signal.SIGKILL


def test_an_executable_dies_at_a_step(bridged: Host, plugin_directory: Path) -> None:
    container = bridged.container()
    bridge = bridged.plugin(plugin_directory / "bridge", {"bridge": "br0"})
    bridge.fault = kill(3)
    with pytest.raises(InternalError):
        bridge.add(container)
    bridge.fault = fail(3, errno.ENOBUFS)
    with pytest.raises(CNIError):
        bridge.add(container)
    bridge.fault = None
    bridge.delete(container)
    assert not bridged.state().since(bridged.state())


def test_a_fault_without_a_host_is_that_of_a_fork() -> None:
    """Otherwise the plugin runs in this process, which would fail or die."""
    plugin = PluginUnderTest(None, Cable, {})
    plugin.fault = kill_after(1e-6)
    assert plugin.run("STATUS").status == -signal.SIGALRM
    plugin.fault = None
    plugin.status()


def test_hosts_are_linked(new_host: Callable[[], Host]) -> None:
    east, west = new_host(), new_host()
    east.connect(west, "uplink", "192.0.2.1/24", "192.0.2.2/24")
    east.connect(west, "second", "2001:db8::1/64", "2001:db8::2/64")
    assert east.links() == west.links() == ["lo", "second", "uplink"]
    assert east.reaches(west)
    assert east.reaches(west, "2001:db8::2", protocol="udp")
    assert not east.reaches(west, "192.0.2.3", timeout=0.2)


def test_captures(new_host: Callable[[], Host]) -> None:
    east, west = new_host(), new_host()
    east.connect(west, "uplink", "192.0.2.1/24", "192.0.2.2/24")
    with west.capture("uplink") as seen:
        assert east.reaches(west)
        asked = seen.wait_for("arp request")
        assert (str(asked.sender), str(asked.target), asked.announces) == ("192.0.2.1", "192.0.2.2", False)
        assert seen.wait_for("arp reply").destination == asked.source
        assert "0x0800" in seen.kinds()
        east.shell("ip addr add 2001:db8::1/64 dev uplink")
        probe = seen.wait_for(
            lambda frame: frame.kind == "neighbour solicitation" and str(frame.target) == "2001:db8::1"
        )
        assert str(probe.sender) == "::"
        with pytest.raises(AssertionError, match="no router advertisement came, but 0x0800"):
            seen.wait_for("router advertisement", timeout=0.01)
        with east.open_socket(socket.AF_PACKET, socket.SOCK_RAW, bind=("uplink", 0)) as router:
            router.send(ADVERTISEMENT)
        advertised = seen.wait_for("router advertisement")
        assert (str(advertised.sender), advertised.source) == ("fe80::1", "02:00:00:00:00:01")
        assert not advertised.announces


# To all nodes: an IPv6 header of version 6 with 16 bytes of ICMPv6 (RFC 4861, 4.2), hop limit 64, for 1800 seconds.
ADVERTISEMENT = bytes.fromhex(
    "333300000001 020000000001 86dd"
    "60000000 0010 3a ff fe800000000000000000000000000001 ff020000000000000000000000000001"
    "86 00 0000 40 00 0708 00000000 00000000"
)


def test_states_compare_and_tell(host: Host) -> None:
    container = host.container()
    host.shell("sysctl -qw net.ipv4.ip_forward=0")  # a new namespace has the setting of the machine
    before = host.state("net/ipv4/ip_forward")
    host.shell("ip link add br0 type bridge; ip addr add 10.0.0.1/24 dev br0; sysctl -qw net.ipv4.ip_forward=1")
    host.shell("mkdir -p /var/lib/cni/networks/net; printf 'c1\\r\\neth0' >/var/lib/cni/networks/net/10.0.0.2")
    host.shell("nft add table inet t; ip rule add from 10.0.0.2 lookup 100; echo x >/run/file")
    container.shell("ip link set lo up; ip route add 10.2.0.0/24 dev lo")
    after = host.state("net/ipv4/ip_forward")
    assert before != after
    told = "\n".join(describe_difference(before, after))
    for expected in (
        "+ host: links: name=br0, kind=bridge",
        "+ host: addresses: link=br0, address=10.0.0.1/24",
        "+ host: leases: network=net, address=10.0.0.2, container_id=c1, ifname=eth0",
        "+ host: files: path=/run/file, size=2",
        "+ host: rules: version=4, rule=32765: src=10.0.0.2/32 lookup 100",
        "- host: sysctls: key=net/ipv4/ip_forward, value=0",
        "+ host: sysctls: key=net/ipv4/ip_forward, value=1",
        "+ host: nft: line=table inet t",
        "+ c1: routes: dst=10.2.0.0/24, link=lo",
    ):
        assert expected in told, told
    new = after.since(before)
    assert [lease.address for lease in new.leases] == ["10.0.0.2"]
    assert [each.name for each in new.of("c1").links] == ["lo"]
    assert not after.since(after)


def test_the_state_of_a_host_at_rest_does_not_change(bridged: Host, plugin_directory: Path) -> None:
    """Duplicate address detection, carrier and counters come and go by themselves."""
    bridge = bridged.plugin(
        plugin_directory / "bridge",
        {"bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}},
        path=[plugin_directory],
    )
    container = bridged.container()
    bridge.add(container)
    first = bridged.state()
    assert bridged.reaches(container)
    assert bridged.state() == first


SUITE = """
import os, pytest
from cnisdk.testing import State
from cnisdk.testing.state import LinkState

@pytest.mark.kernel
def test_difference(host):
    before = host.state()
    host.shell("ip link add br7 type bridge")
    assert host.state() == before

@pytest.mark.parametrize("n", range(6))
def test_parallel(host, n):
    host.shell("ip link add br0 type bridge")
    assert host.container("c").netns == "/run/netns/c"
"""


def run_pytest(directory: Path, *args: str, environ: Mapping[str, str] | None = None) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args, str(directory)]
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=directory, env={**own, **(environ or {})}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_a_suite_of_another_project(tmp_path: Path) -> None:
    """Installed, the fixtures are just there; a failing comparison shows the difference; xdist workers don't meet."""
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    printed = run_pytest(tmp_path, "-n", "2")
    assert "1 failed, 6 passed" in printed, printed
    assert "- host: links: name=br7, kind=bridge" in printed


@pytest.mark.parametrize("parallel", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_nothing_outlives_a_killed_test(tmp_path: Path, parallel: tuple[str, ...]) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os, signal\n"
        "def test(host):\n"
        "    sleeper = host.popen(['sleep', '1000'])\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(f'{{host.pid}} {{sleeper.pid}}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run_pytest(tmp_path, *parallel)
    for pid in (tmp_path / "pids").read_text().split():
        # It may still be dying, or wait to be reaped.
        try:
            fd = os.pidfd_open(int(pid))
        except ProcessLookupError:
            continue
        assert select.select([fd], [], [], 60)[0], f"process {pid} lives on"
        os.close(fd)


@pytest.mark.parametrize(("ci", "expected"), [("", "1 skipped"), ("true", "1 error")])
def test_a_machine_without_namespaces(tmp_path: Path, ci: str, expected: str) -> None:
    """The reason names the setting; where a run has to prove something, it fails."""
    (tmp_path / "switch").write_text("0\n")
    (tmp_path / "_holder.py").write_text("print('unshare user: not permitted')")
    (tmp_path / "conftest.py").write_text(
        "from cnisdk.testing import sandbox\n"
        f"sandbox.__file__ = {str(tmp_path / 'sandbox.py')!r}\n"
        f"sandbox._SWITCHES = {{{str(tmp_path / 'switch')!r}: ('0', 'user.max_user_namespaces=1000')}}\n"
    )
    (tmp_path / "test_it.py").write_text("def test(host): pass\n")
    printed = run_pytest(tmp_path, "-rs", environ={"CI": ci})
    assert expected in printed, printed
    assert "unshare user: not permitted (sysctl user.max_user_namespaces=1000 allows it)" in printed


def test_a_container_can_be_destroyed(host: Host) -> None:
    container = host.container()
    assert isinstance(container, Container)
    assert container.sysctl("net/ipv4/ip_forward") in ("0", "1")  # that of the machine
    container.destroy()
    assert host.shell("ls /run/netns") == ""
