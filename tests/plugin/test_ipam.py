"""The result that a plugin gets of the IPAM plugin it delegates to, whatever that one prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cnisdk import AddRequest, DelRequest, Interface, NetConf, Plugin, Result
from cnisdk.plugin import respond

V4, V6 = {"address": "192.0.2.2/24", "gateway": "192.0.2.1"}, {"address": "2001:db8::2/64"}
CONTAINER = {"name": "eth0", "sandbox": "/run/netns/c1"}

# As real IPAM plugins print them: an index without interfaces, an interface of their own, two of one name.
SHAPES: dict[str, dict[str, Any]] = {
    "abbreviated": {"ips": [V4, V6]},
    "an index, no interfaces": {"ips": [{**V4, "interface": 0}, {**V6, "interface": 0}]},
    "an interface of its own": {
        "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{**V4, "interface": 0}, {**V6, "interface": 0}],
    },
    "an interface without sandbox": {"interfaces": [{"name": "eth0"}], "ips": [{**V4, "interface": 0}, V6]},
    "two of one name": {
        "interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "/x"}],
        "ips": [{**V4, "interface": 0}, {**V6, "interface": 1}],
    },
    "interfaces without an index": {"interfaces": [{"name": "veth1"}], "ips": [V4, V6]},
    "an index beyond the end": {"interfaces": [], "ips": [{**V4, "interface": 7}, {**V6, "interface": -1}]},
    "null entries": {"interfaces": [None], "ips": [None, {**V4, "interface": 0}, V6], "routes": [None]},
}


class Main(Plugin[NetConf]):
    def add(self, request: AddRequest[NetConf]) -> Result:
        leased = request.ipam.add()
        return leased.with_interfaces(Interface(name="host"), Interface(name=request.ifname, sandbox=request.netns))

    def delete(self, request: DelRequest[NetConf]) -> None:
        request.ipam.delete()


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_addresses_belong_to_the_interface_of_the_container(shape: str, version: str, tmp_path: Path) -> None:
    ips = [each and {**each, "version": "6" if ":" in each["address"] else "4"} for each in SHAPES[shape]["ips"]]
    result = {"cniVersion": version, **SHAPES[shape], "ips": ips}
    ipam = tmp_path / "ipam"
    ipam.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(json.dumps(result))}\n")
    ipam.chmod(0o755)
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(tmp_path),
    }
    stdin = json.dumps({"cniVersion": version, "name": "net", "type": "main", "ipam": {"type": "ipam"}}).encode()
    reply = respond(Main, environ, stdin)
    assert reply.status == 0, reply.stdout
    printed = json.loads(reply.stdout)
    assert printed["interfaces"] == [{"name": "host"}, CONTAINER]
    assert [(each["address"], each["interface"]) for each in printed["ips"]] == [(V4["address"], 1), (V6["address"], 1)]
