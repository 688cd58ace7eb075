"""What is taken for the state of a host."""

from __future__ import annotations

import subprocess

import pytest

from cnisdk.linux import link
from cnisdk.linux.netns import NetNS
from cnisdk.testing import Host, Sandbox
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


@pytest.mark.parametrize(
    "rule",
    [
        "-4 rule add from 10.0.0.2 lookup 100",
        "-4 rule add lookup main suppress_prefixlength 0 priority 32766",
        "-6 rule add lookup main priority 7",
        "-6 rule add fwmark 1 lookup main priority 32766",
        "-4 rule add blackhole priority 32767",
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_rules_that_a_fresh_namespace_does_not_have(host: Host, rule: str, inside: bool) -> None:
    node = host.container() if inside else host
    node.shell(f"ip {rule}")
    ((place, text),) = host.state().rules
    assert place == ("c1" if inside else "")
    assert text.split(":")[0] in node.shell(f"ip {rule[:2]} rule")
    node.shell("nft add table bridge t")
    assert [each.line for each in host.state().nft] == ["table bridge t"]
