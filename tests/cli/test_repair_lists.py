"""``cnisdk repair`` on whole lists as runtimes write them: traffic, and the rules as they were before the flush."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections import Counter
from typing import Any

import pytest

from cnisdk.runtime import Network, Runtime
from cnisdk.testing import Container, Host

from ..modes import Plugins

pytestmark = [pytest.mark.kernel, pytest.mark.resident]

OUTSIDE = "198.51.100.2"
FLUSH_NFT = "nft flush ruleset"
FLUSH_IPTABLES = "for each in iptables ip6tables; do $each -F; $each -t nat -F; done"
# What a script of the administrator sets after the flush.
DROP = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"

# By a program or by netlink: a rule of iptables is listed with its protocol twice, or once.
LISTED_TWICE = re.compile(r"meta l4proto (tcp|udp) (?=.*\1 dport)")


def podman(backend: str, **keys: Any) -> dict[str, Any]:
    """Return a network as `podman network create -o isolate=true` writes it, with our plugins' choice of backend."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    masquerades = {"isGateway": True, "ipMasq": True, "hairpinMode": True, "ipMasqBackend": backend}
    return {
        "cniVersion": "0.4.0",
        "name": "podman1",
        "plugins": [
            {"type": "bridge", "bridge": "cni-podman1", **masquerades, "ipam": ipam, "capabilities": {"ips": True}},
            {"type": "portmap", "capabilities": {"portMappings": True}, "backend": backend},
            {"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"},
            {"type": "tuning"},
        ],
        **keys,
    }


def nerdctl(backend: str) -> dict[str, Any]:
    """Return a network as nerdctl writes it, with our plugins' choice of backend."""
    ipam = {
        "type": "host-local",
        "ranges": [
            [{"subnet": "10.4.0.0/24", "gateway": "10.4.0.1"}],
            [{"subnet": "fd00:4::/64", "gateway": "fd00:4::1"}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    masquerades = {"isGateway": True, "ipMasq": True, "hairpinMode": True, "ipMasqBackend": backend}
    return {
        "cniVersion": "1.0.0",
        "name": "bridge",
        "nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121",
        "nerdctlLabels": {"nerdctl/default-network": "true"},
        "plugins": [
            {"type": "bridge", "bridge": "nerdctl0", **masquerades, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}, "backend": backend},
            {"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"},
            {"type": "tuning"},
        ],
    }


class Node:
    """A host whose runtimes have a resident server, with an uplink to a neighbour that knows no way to containers."""

    def __init__(self, host: Host, outside: Host, plugins: Plugins) -> None:
        self.host, self.outside, self.directory = host, outside, str(plugins.directory)
        self.environ = {"PATH": os.environ["PATH"]}
        host.shell("mkdir -p /var/lib/cni")
        host.connect(outside, address="198.51.100.1/24", other_address=f"{OUTSIDE}/24")

    def add(self, conf: dict[str, Any], name: str, port: int = 0, cache_dir: str = "/var/lib/cni") -> Container:
        container = self.host.container(name)
        self.run("add", conf, container, port, cache_dir)
        return container

    def run(
        self, verb: str, conf: dict[str, Any], container: Container, port: int = 0, cache_dir: str = "/var/lib/cni"
    ) -> None:
        network = Network.parse(json.dumps(conf).encode())
        ports = [{"hostPort": port, "containerPort": 80, "protocol": protocol} for protocol in ("tcp", "udp")]
        self.host.call(
            getattr(Runtime([self.directory], cache_dir=cache_dir, environ=self.environ), verb),
            network,
            container_id=container.id,
            netns=container.netns,
            **({"capability_args": {"portMappings": ports}} if port else {}),
        )

    def argv(self, *more: str, pause: str = "0") -> list[str]:
        """Return the command; it fails where it would wait for a lock that it has itself."""
        return [
            sys.executable,
            "-c",
            NEVER_WAITS,
            "repair",
            "--inside",
            "--pause",
            pause,
            "--cni-path",
            self.directory,
            *more,
        ]

    @property
    def repairs_with(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def repair(self, *more: str) -> str:
        done = self.host.run(self.argv(*more), env=self.repairs_with)
        return done.stdout + done.stderr

    def rules(self) -> Counter[str]:
        """Return chains, rules and elements, each with its place, however they are ordered."""
        found: Counter[str] = Counter()
        table = block = ""
        for line in self.host.shell("nft --stateless list ruleset").splitlines():
            text = LISTED_TWICE.sub("", line.strip())
            if line.startswith("table"):
                table = text
            elif text.endswith("{"):
                block = text
                found[f"{table} {block}"] += 1
            elif text not in ("", "}"):
                for each in re.split(
                    r",\s*(?=\S+ (?:\. |comment )|\")", text.removeprefix("elements = {").rstrip("},")
                ):
                    found[f"{table} {block} {each.strip()}"] += 1
        return found


NEVER_WAITS = """
import sys
from types import SimpleNamespace
from cnisdk._cli import cnisdk
from cnisdk.linux import lock

def wait(seconds):
    raise AssertionError("it waits for a lock that no other process can have")

lock.time = SimpleNamespace(monotonic=lock.time.monotonic, sleep=wait)
sys.exit(cnisdk.main(sys.argv[1:]))
"""


@pytest.fixture
def node(new_host: Any, install: Any) -> Any:
    plugins: Plugins = install("resident")
    host, outside = new_host(), new_host()
    with plugins.on(host):
        yield Node(host, outside, plugins)


@pytest.mark.parametrize(
    ("backend", "flush"),
    [("iptables", FLUSH_NFT), ("nftables", FLUSH_NFT), ("iptables", FLUSH_IPTABLES)],
    ids=["iptables", "nftables", "iptables, flushed by iptables"],
)
def test_lists_of_podman_and_nerdctl_are_whole_again(node: Node, backend: str, flush: str) -> None:
    node.host.shell(DROP)
    first, second = (node.add(podman(backend), f"podman-{number}", 8080 + number) for number in (1, 2))
    third, fourth = (node.add(nerdctl(backend), f"nerdctl-{number}", 8090 + number) for number in (1, 2))

    def flows() -> dict[str, bool]:
        quickly = 0.3
        return {
            "out": first.reaches(node.outside, OUTSIDE, timeout=quickly),
            "out, of the other runtime": fourth.reaches(node.outside, OUTSIDE, protocol="udp", timeout=quickly),
            "in": node.outside.reaches(second, "198.51.100.1", port=80, published=8082, timeout=quickly),
            "in, of the other runtime": node.outside.reaches(
                third, "198.51.100.1", port=80, published=8091, protocol="udp", timeout=quickly
            ),
            "beside": first.reaches(second, timeout=quickly),
            "to another network": first.reaches(third, timeout=quickly),
        }

    before, whole = node.rules(), flows()
    assert whole == dict.fromkeys(whole, True) | {"to another network": False}
    node.host.shell(f"{flush}; {DROP}")
    assert not any(flows()[each] for each in ("out", "in"))
    assert "4 known, 4 repaired, 0 left alone" in node.repair()
    assert node.rules() == before
    assert flows() == whole
    assert "4 known, 0 repaired, 0 left alone" in node.repair()
    for conf, containers in ((podman(backend), (first, second)), (nerdctl(backend), (third, fourth))):
        for each in containers:
            node.run("check", conf, each)
            node.run("delete", conf, each)
    left = [each for each in node.rules() if re.search(r"10\.(89|4)\.|fd00:4::|chain CNI-(DN-)?[0-9a-f]{16}", each)]
    assert not left


@pytest.mark.parametrize(("backend", "version"), [("iptables", 4), ("nftables", 6)])
def test_a_client_that_went_on_sending_is_masqueraded_again(node: Node, backend: str, version: int) -> None:
    """The kernel decides about NAT at the first packet of a flow, and a flow lasts as long as its client sends."""
    container = node.add(nerdctl(backend), "sender")
    flush, family, there, before, after = {
        4: ("iptables -t nat -F", socket.AF_INET, OUTSIDE, "10.4.0.2", "198.51.100.1"),
        6: (
            "nft flush chain inet cni_plugins_masquerade masq_checks",
            *(socket.AF_INET6, "2001:db8:9::2", "fd00:4::2", "2001:db8:9::1"),
        ),
    }[version]
    for each, address in ((node.host, "2001:db8:9::1"), (node.outside, "2001:db8:9::2")):
        each.shell(f"ip address add {address}/64 dev uplink nodad")
    # A firewall that follows connections.
    node.host.shell("nft 'add table inet other; add chain inet other c { type filter hook forward priority 0; }'")
    node.host.shell("nft add rule inet other c ct state invalid drop")
    with (
        node.outside.open_socket(family, socket.SOCK_DGRAM, bind=(there, 0)) as server,
        container.open_socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.settimeout(3)
        client.connect(server.getsockname())

        def source() -> str:
            client.send(b"?")
            return str(server.recvfrom(1)[1][0])

        node.host.shell(flush)
        assert source() == before
        assert "1 repaired" in node.repair()
        assert source() == after
