"""host-device with a network card: what the kernel does with it when a namespace ends, and what sysfs shows.

Only the machine's first network namespace has cards, so this happens there, and only in the guest of ``nox -s kernel``,
which has a card for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

CARD = os.environ.get("CNISDK_SPARE_CARD", "")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.kinds,
    pytest.mark.skipif(not CARD, reason="no network card that may be moved about: the guest of nox -s kernel has one"),
]


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def cards() -> list[Any]:
    """The card, if it is on the host: its name, alias and alternative names."""
    found = [each for each in json.loads(run("ip", "-j", "-d", "link")) if each["address"] == CARD]
    return [(each["ifname"], each.get("ifalias", ""), each.get("altnames", [])) for each in found]


def ask(verb: str, *within: str, netns: str = "/run/netns/c1", **keys: str) -> Any:
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "host-device", **keys}
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "net1", "CNI_NETNS": netns}
    argv = [*within, sys.executable, "-m", "cnisdk_plugins.host_device"]
    done = subprocess.run(
        argv,
        env={**os.environ, **environ, "CNI_PATH": "/nowhere"},
        input=json.dumps(conf),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else None


def test_a_network_card() -> None:
    run("modprobe", "e1000")
    ((name, _, _),) = cards()
    path = os.path.realpath(f"/sys/class/net/{name}/device")
    pci = os.path.basename(path)
    for netns in ("c1", "other"):
        run("ip", "netns", "add", netns)
    result = ask("ADD", pciBusID=pci)
    assert [each["mac"] for each in result["interfaces"]] == [CARD]
    assert (cards(), os.listdir(f"{path}/net")) == ([], [])
    # A container has it: no fault of the node's.
    ask("STATUS", pciBusID=pci, cniVersion="1.1.0")
    ask("DEL", pciBusID=pci)
    assert cards() == [(name, "", [])]
    # The kernel moves it to the host under the name it had in the container, and takes its time for that.
    ask("ADD", kernelpath=path)
    run("ip", "netns", "del", "c1")
    deadline = time.monotonic() + 60
    while not cards() and time.monotonic() < deadline:
        pass
    assert cards() == [("net1", name, ["cni:net/c1/net1"])]
    ask("DEL", kernelpath=path, netns="")
    assert cards() == [(name, "", [])]
    # With the sysfs of another namespace: `ip netns exec` mounts that one's.
    run("ip", "netns", "add", "c1")
    elsewhere = ("ip", "netns", "exec", "other", "nsenter", "--net=/proc/1/ns/net")
    assert run(*elsewhere, "ls", f"{path}/net") == ""
    ask("ADD", *elsewhere, pciBusID=pci)
    assert cards() == []
    ask("DEL", pciBusID=pci)
    assert cards() == [(name, "", [])]
