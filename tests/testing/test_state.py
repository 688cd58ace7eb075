"""What is taken for the state of a host."""

from __future__ import annotations

import subprocess

from cnisdk.linux import link
from cnisdk.linux.netns import NetNS
from cnisdk.testing import Sandbox
from cnisdk.testing.state import State, collect


def collect_while_it_goes() -> State:
    """The state of a host, one of whose links is deleted when it has been listed."""
    subprocess.run(["ip", "link", "add", "going", "type", "bridge"], check=True)
    real = link.list_all

    def listed(netns: NetNS | None = None) -> list[link.Link]:
        links = real(netns)
        subprocess.run(["ip", "link", "del", "going"], check=True)
        return links

    link.list_all = listed
    try:
        return collect()
    finally:
        link.list_all = real


def test_a_link_that_goes_while_one_looks(host: Sandbox) -> None:
    assert [each.name for each in host.call(collect_while_it_goes).links] == ["lo"]
