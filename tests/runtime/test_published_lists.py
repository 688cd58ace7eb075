"""The lists that runtimes and distributions write, on our plugins alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cnisdk.testing import Container, Host, State

from ..modes import IN_ONE_MODE, Plugins

pytestmark = [pytest.mark.kernel]

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
DEFAULT = [{"dst": "0.0.0.0/0"}]


def host_local(subnet: str, **keys: Any) -> dict[str, Any]:
    return {"type": "host-local", "ranges": [[{"subnet": subnet, **keys}]], "routes": DEFAULT}


LISTS: dict[str, dict[str, Any]] = {
    # containers/podman, cni/87-podman-bridge.conflist
    "podman": {
        "cniVersion": "0.4.0",
        "name": "podman",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni-podman0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": host_local("10.88.0.0/16", gateway="10.88.0.1"),
            },
            PORTMAP,
            {"type": "firewall"},
            {"type": "tuning"},
        ],
    },
    # containerd/containerd, script/setup/install-cni
    "containerd": {
        "cniVersion": "1.0.0",
        "name": "containerd-net",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "promiscMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:4860:4860::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            PORTMAP,
        ],
    },
    # kubernetes-sigs/kind, images/kindnetd/cmd/kindnetd/cni.go
    "kind": {
        "cniVersion": "0.3.1",
        "name": "kindnet",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {**host_local("10.244.0.0/24"), "dataDir": "/run/cni-ipam-state"},
                "mtu": 1500,
            },
            PORTMAP,
        ],
    },
    # k3s-io/k3s, pkg/agent/flannel
    "k3s": {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": True, "forceAddress": True, "isDefaultGateway": True}},
            PORTMAP,
            BANDWIDTH,
        ],
    },
    # kubernetes/minikube, pkg/minikube/cni/bridge.go
    "minikube": {
        "cniVersion": "0.4.0",
        "name": "bridge",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "bridge",
                "addIf": "true",
                "isDefaultGateway": True,
                "forceAddress": False,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {"type": "host-local", "subnet": "10.244.0.0/16"},
            },
            PORTMAP,
            {"type": "firewall"},
        ],
    },
    # containerd/nerdctl, pkg/netutil
    "nerdctl": {
        "cniVersion": "1.0.0",
        "name": "bridge",
        "nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121",
        "nerdctlLabels": {"nerdctl/default-network": "true"},
        "plugins": [
            {
                "type": "bridge",
                "bridge": "nerdctl0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": host_local("10.4.0.0/24", gateway="10.4.0.1"),
            },
            PORTMAP,
            {"type": "firewall", "ingressPolicy": "same-bridge"},
            {"type": "tuning"},
        ],
    },
    # hashicorp/nomad, client/allocrunner/networking_bridge_linux.go
    "nomad": {
        "cniVersion": "0.4.0",
        "name": "nomad",
        "plugins": [
            {"type": "loopback"},
            {
                "type": "bridge",
                "bridge": "nomad",
                "ipMasq": True,
                "isGateway": True,
                "forceAddress": True,
                "hairpinMode": False,
                "ipam": host_local("172.26.64.0/20"),
            },
            {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "NOMAD-ADMIN"},
            {**PORTMAP, "snat": True},
        ],
    },
}
# What flanneld of k3s writes.
SUBNET = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
ARGUMENTS = {
    "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
    "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 20_000_000},
}


class Tool:
    """cnitool on a host whose only plugins are ours."""

    def __init__(self, host: Host, plugins: Plugins, directory: Path, network: dict[str, Any]) -> None:
        self._host, self._name = host, network["name"]
        (directory / "10.conflist").write_text(json.dumps(network))
        places = {"CNI_PATH": str(plugins.directory), "NETCONFPATH": str(directory)}
        self._env = {"PATH": os.environ["PATH"], **places}

    def __call__(self, verb: str, container: Container, arguments: Mapping[str, Any] = ARGUMENTS) -> Any:
        argv = [sys.executable, "-m", "cnisdk._cli.cnitool", verb, self._name, container.netns]
        printed = self._host.run(argv, env={**self._env, "CAP_ARGS": json.dumps(arguments)}).stdout
        return json.loads(printed) if printed.strip() else None


def look(host: Host) -> tuple[State, str]:
    """Return the state of the kernel, and the names of the files that plugins and cnitool leave."""
    return host.state().without("files"), host.shell("find /var/lib/cni /run/cni-ipam-state 2>/dev/null | sort; true")


@IN_ONE_MODE
@pytest.mark.parametrize("name", LISTS)
def test_a_published_list(host: Host, plugins: Plugins, tmp_path: Path, name: str) -> None:
    """ADD, CHECK where the version has it, a published port, and DEL, after which nothing of it is left."""
    network = LISTS[name]
    host.shell("mkdir -p /run/flannel")
    host.run(["tee", "/run/flannel/subnet.env"], input=SUBNET)
    with plugins.on(host):
        tool = Tool(host, plugins, tmp_path, network)
        first, second = host.container("first"), host.container("second")
        tool("add", first)
        tool("del", first)  # what stays for later attachments is there
        before = look(host)
        result = tool("add", first)
        told = [each["address"] for each in result["ips"]]
        assert first.addresses("eth0") == told
        assert first.shell("ip -4 route show default").startswith("default via ")
        if network["cniVersion"] != "0.3.1":
            tool("check", first)
        assert host.reaches(first, port=80)
        host_address = first.shell("ip -4 route show default").split()[2]
        assert host.reaches(first, host_address, port=80, published=8080)
        tool("del", first)
        assert look(host) == before
        tool("add", second)
        second.destroy()
        tool("del", second)


def dual_stack(name: str) -> dict[str, Any]:
    """Return the list of a runtime as it is with IPv6; for ``kubelet`` one with all that kubelet asks for."""
    if name == "kubelet":
        network = LISTS["containerd"]
        return {**network, "name": name, "plugins": [*network["plugins"], BANDWIDTH]}
    network = LISTS[name]
    main, *others = network["plugins"]
    (ours,) = main["ipam"]["ranges"]
    routes = [*DEFAULT, {"dst": "::/0"}]
    ipam = {**main["ipam"], "ranges": [ours, [{"subnet": "2001:db8:88::/64"}]], "routes": routes}
    return {**network, "plugins": [{**main, "ipam": ipam}, *others]}


def ports_of(number: int) -> dict[str, Any]:
    """Return what one of many containers asks for: a port of TCP, one of UDP, and a limit."""
    ports = [
        {"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8000 + number, "containerPort": 53, "protocol": "udp"},
    ]
    return {**ARGUMENTS, "portMappings": ports}


@pytest.fixture
def outside(host: Host) -> Iterator[Host]:
    """A neighbour of the host, which knows no way to the containers."""
    with Host(beside=host) as neighbour:
        host.connect(neighbour, address="198.51.100.1/24", other_address="198.51.100.2/24")
        host.shell("ip address add 2001:db8:9::1/64 dev uplink nodad")
        neighbour.shell("ip address add 2001:db8:9::2/64 dev uplink nodad; ip route del default || true")
        yield neighbour


@IN_ONE_MODE
@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1], ids=["first-goes-first", "last-goes-first"])
@pytest.mark.parametrize("name", ["podman", "nerdctl", "kubelet"])
def test_ten_attachments_at_once(
    host: Host, outside: Host, plugins: Plugins, tmp_path: Path, name: str, order: int
) -> None:
    """Their ports answer from everywhere though the host drops what it forwards, and nothing is left of them."""
    host.shell("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
    containers = [host.container(f"c{number}") for number in range(10)]
    with plugins.on(host), ThreadPoolExecutor(10) as pool:
        tool = Tool(host, plugins, tmp_path, dual_stack(name))
        tool("add", containers[0])
        tool("del", containers[0])  # what stays for later attachments is there
        before = look(host)
        arguments = [ports_of(number) for number in range(10)]
        list(pool.map(partial(tool, "add"), containers, arguments))
        for number, container in enumerate(containers):
            for protocol, port in (("tcp", 80), ("udp", 53)):
                to: dict[str, Any] = {"protocol": protocol, "port": port, "published": 8000 + number}
                for address in ("198.51.100.1", "2001:db8:9::1"):
                    for client in (outside, host, containers[number - 1]):
                        assert client.reaches(container, address, **to), (client, address, to)
                assert host.reaches(container, "127.0.0.1", **to)
        for container, each in list(zip(containers, arguments, strict=True))[::order]:
            tool("check", container, each)
            tool("del", container, each)
        assert look(host) == before
