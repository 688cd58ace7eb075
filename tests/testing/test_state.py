"""State of a host: the parts of it that are compared."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cnisdk.linux import link
from cnisdk.linux.netns import NetNS
from cnisdk.testing import Host, Sandbox
from cnisdk.testing.state import State, collect, read_regular_file


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
    ("rule", "expected"),
    [
        ("-4 rule add from 10.0.0.2 lookup 100", "32765: src=10.0.0.2/32 lookup 100"),
        ("-4 rule add lookup main suppress_prefixlength 0 priority 32766", "32766: suppress_prefixlen=0 lookup 254"),
        ("-6 rule add to fd00::/64 lookup 1000 priority 7", "7: dst=fd00::/64 lookup 1000"),
        ("-6 rule add fwmark 1 lookup main priority 32766", "32766: fwmark=1 fwmask=4294967295 lookup 254"),
        ("-4 rule add iif lo blackhole priority 32767", "32767: iifname=lo action 6"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_rules_that_a_fresh_namespace_does_not_have(host: Host, rule: str, expected: str, inside: bool) -> None:
    node = host.container() if inside else host
    node.shell(f"ip {rule}")
    (found,) = host.state().rules
    assert found == ("c1" if inside else "", int(rule[1]), expected)
    node.shell("nft add table bridge t")
    assert [each.line for each in host.state().nft] == ["table bridge t"]


def test_elements_of_a_set_are_things_of_their_own(host: Host) -> None:
    host.shell(
        """
        nft add table inet t
        nft add set inet t one '{ type ipv4_addr . inet_service ; }'
        nft add map inet t two '{ type ipv4_addr : verdict ; }'
        nft add element inet t one '{ 10.0.0.1 . 80 comment "net: a, } if: b", 10.0.0.2 . 81, 10.0.0.3 . 82 }'
        nft add element inet t two '{ 10.0.0.1 : drop, 10.0.0.2 : accept }'
        """
    )
    assert {(each.chain, each.line) for each in host.state().nft if each.line.startswith("element")} == {
        ("table inet t set one", 'element 10.0.0.1 . 80 comment "net: a, } if: b"'),
        ("table inet t set one", "element 10.0.0.2 . 81"),
        ("table inet t set one", "element 10.0.0.3 . 82"),
        ("table inet t map two", "element 10.0.0.1 : drop"),
        ("table inet t map two", "element 10.0.0.2 : accept"),
    }


def test_a_file_that_is_removed_while_it_is_looked_at_is_not_there(tmp_path: Path) -> None:
    class Vanishing(type(tmp_path)):  # type: ignore[misc]
        def is_file(self) -> bool:
            there = super().is_file()
            self.unlink()
            return bool(there)

    (tmp_path / "pages.7").write_bytes(b"of a server that works meanwhile")
    assert read_regular_file(Vanishing(tmp_path / "pages.7")) is None
    (tmp_path / "lease").write_bytes(b"web")
    assert read_regular_file(tmp_path / "lease") == b"web"
    assert read_regular_file(tmp_path) is None
