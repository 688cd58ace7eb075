"""Rules belong to an attachment and to no other, however alike the names of two attachments are when joined."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cnisdk import Attachment, CNIError
from cnisdk.linux import attributes, firewall, hostports, iptables, masquerade, nft, program, rules, spoofcheck
from cnisdk.linux.netfilter import _expressions, base_rules, nfnetlink
from cnisdk.linux.netfilter.firewall import Forwarding
from cnisdk.linux.netfilter.hostports import HostPort, Options
from cnisdk.linux.netfilter.ingress import Ingress
from cnisdk.spec.addresses import IPInterface
from cnisdk.testing import Host, expect_error

from ..programs import started_programs

pytestmark = pytest.mark.kernel

T = TypeVar("T")
Pair = tuple[Attachment, Attachment]
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
PORTS = ("veth00000001", "veth00000002")
ADDRESSES = ([ip_interface("10.1.0.5/24")], [ip_interface("10.1.0.6/25")])
ADDRESSES_V6 = ([ip_interface("2001:db8::5/64")], [ip_interface("2001:db8::6/64")])


@st.composite
def regrouped(draw: st.DrawFn) -> Pair:
    """Two attachments whose names are the same text when joined: by nothing, '-', '_' or '.'."""
    tokens = draw(st.lists(st.sampled_from(["a", "b", "c1", "mac", "eth0"]), min_size=4, max_size=6))
    joint = draw(st.sampled_from(["", "-", "_", "."]))
    cuts = st.lists(st.integers(1, len(tokens) - 1), min_size=2, max_size=2, unique=True).map(sorted)

    def group(first: int, second: int) -> Attachment:
        return Attachment(*(joint.join(part) for part in (tokens[:first], tokens[first:second], tokens[second:])))

    return group(*draw(cuts)), group(*draw(cuts))


@st.composite
def alike(draw: st.DrawFn) -> Pair:
    """Two attachments that differ in one name, by an ending or beyond any length at which a comment is cut."""
    one = Attachment(draw(st.sampled_from(["a", "a" * 130])), draw(st.sampled_from(["c", "c" * 250])), "eth0")
    field = draw(st.sampled_from(Attachment._fields))
    ending = draw(st.sampled_from(["-mac", "x", "-eth0", ".1"]))
    return one, one._replace(**{field: getattr(one, field) + ending})


def pairs() -> st.SearchStrategy[Pair]:
    return st.one_of(regrouped(), alike()).filter(
        lambda pair: pair[0] != pair[1] and all(len(each.ifname) <= 15 for each in pair)
    )


def wanted(index: int, backends: Iterable[str] = ("iptables", "nftables")) -> list[rules.Part]:
    masquerading = [part for backend in backends for part in masquerade.wanted(backend, ADDRESSES[index])]
    return [spoofcheck.wanted(PORTS[index], MACS[index]), *masquerading]


def delete(owner: Attachment) -> None:
    masquerade.delete(owner, gone=True)
    spoofcheck.delete(owner)


def gc(network: str, *valid: Attachment) -> None:
    masquerade.gc(network, frozenset(valid))
    spoofcheck.gc(network, frozenset(valid))


def check(owner: Attachment, index: int) -> None:
    for backend in ("iptables", "nftables"):
        masquerade.check(backend, owner, ADDRESSES[index])
    spoofcheck.check(owner, PORTS[index], MACS[index])


def listing() -> list[str]:
    """The kernel's rules, as ``nft`` writes them; the order of chains in a table is that of their making."""
    text = subprocess.run(["nft", "-s", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    return sorted(text.splitlines())


def nothing_is_taken(first: Attachment, second: Attachment) -> None:
    rules.apply(first, wanted(0))
    alone = listing()
    rules.apply(second, wanted(1))
    check(first, 0)
    check(second, 1)
    delete(second)
    assert listing() == alone
    rules.apply(second, wanted(1))
    both = listing()
    gc(first.network, first, second)
    gc(second.network, second, first)
    assert listing() == both
    if first.network != second.network:
        gc(second.network)
    else:
        gc(second.network, first)
    assert listing() == alone
    rules.apply(second, wanted(1))
    delete(first)
    check(second, 1)
    with pytest.raises(CNIError):
        spoofcheck.check(first, PORTS[0], MACS[0])
    delete(second)
    assert not [line for line in listing() if "CNI-" in line or "cni-" in line or "saddr" in line]


@pytest.mark.parametrize("examples", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_no_rule_of_another_attachment_is_touched(host: Host, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(pairs())
    def in_both_directions(pair: Pair) -> None:
        nothing_is_taken(*pair)
        nothing_is_taken(*reversed(pair))

    host.call(in_both_directions)


COLLISIONS = {
    "an interface called as another's MAC chain": (Attachment("a", "c", "eth0"), Attachment("a", "c", "eth0-mac")),
    "container and interface joined": (Attachment("a", "c-d", "eth0"), Attachment("a", "c", "d-eth0")),
    "network and container joined": (Attachment("a", "bc", "eth0"), Attachment("ab", "c", "eth0")),
    "one interface on two networks": (Attachment("a", "c", "eth0"), Attachment("b", "c", "eth0")),
    "two interfaces on one network": (Attachment("a", "c", "eth0"), Attachment("a", "c", "eth1")),
    "long names of networks": (Attachment("n" * 124, "c", "eth0"), Attachment("n" * 125, "c", "eth0")),
}


@pytest.mark.parametrize("collision", COLLISIONS)
def test_names_that_collided(host: Host, collision: str) -> None:
    host.call(nothing_is_taken, *COLLISIONS[collision])


@given(pairs())
def test_names_and_marks_differ(pair: Pair) -> None:
    first, second = pair
    for layout in (spoofcheck.LAYOUT, *masquerade.IPTABLES.values()):
        assert layout.own_chain(first) != layout.own_chain(second)
    assert rules.mark(first) != rules.mark(second)
    rule = nft.Rule("chain", 1, rules.mark(first), (), "drop")
    assert rules.is_marked(rule)
    assert rules.is_of(rule, first)
    assert not rules.is_of(rule, second)


@given(st.one_of(st.just(""), st.tuples(st.sampled_from("-, nt:"), st.text("0123456789abcdef-, net:", max_size=50))))
def test_comments_of_others_are_no_marks(parts: tuple[str, ...]) -> None:
    comment = "".join(parts)
    assert not rules.is_marked(nft.Rule("chain", 1, comment, (), "drop"))


def test_attachments_added_at_the_same_moment_share_no_chain(host: Host) -> None:
    """iptables-restore alone lets two processes make the same chain."""

    def add_at_once() -> None:
        owners = {Attachment("net", "c", f"eth{number}"): ip_interface(f"10.1.0.{number}/24") for number in range(4)}

        def add(owner: Attachment) -> None:
            rules.apply(owner, masquerade.wanted("iptables", [owners[owner]]))

        for _ in range(10):
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(add, owners))
            for owner, address in owners.items():
                masquerade.check("iptables", owner, [address])
                masquerade.delete(owner)
        assert nft.NftTable("ip", "nat").list_chains("CNI-") == []

    host.call(add_at_once)


def test_few_programs_are_started(host: Host) -> None:
    owner, other = Attachment("net", "c1", "eth0"), Attachment("net", "c2", "eth0")
    both: list[IPInterface] = [ip_interface("10.1.0.5/24"), ip_interface("2001:db8::5/64")]
    spoof = [spoofcheck.wanted(PORTS[0], MACS[0])]
    restores = ["iptables-restore", "ip6tables-restore"]
    for backend, first, second in (("nftables", ["nft"], []), ("iptables", restores, restores)):
        parts = [*spoof, *masquerade.wanted(backend, both)]
        for expected in (first, second):  # a second ADD replaces what a killed one left
            assert host.call(started_programs, rules.apply, owner, parts) == expected
        assert host.call(started_programs, masquerade.check, backend, owner, both) == []
        assert host.call(started_programs, delete, other) == []
        assert host.call(started_programs, delete, owner) == []
        assert host.call(started_programs, gc, "net") == []


@pytest.mark.parametrize("prefixlen", [8, 17, 24, 32])
def test_what_netlink_masquerades_is_what_nft_would(host: Host, prefixlen: int) -> None:
    """To the last byte; and ``nft`` is not started once its table is there."""
    owner, other = Attachment("net", "c" * 200, "eth0"), Attachment("net", "c2", "eth0")
    both: list[IPInterface] = [ip_interface(f"10.1.0.5/{prefixlen}"), ip_interface(f"2001:db8::5/{prefixlen * 4}")]
    asked = masquerade.wanted("nftables", both)

    def rules_there() -> list[tuple[bytes, bytes]]:
        listed = [attributes.read(each) for each in nfnetlink.dump(10 << 8 | 7, 1, b"")]
        return [(each[4], each[7]) for each in listed if each[2] == b"masq_checks\0"]

    def add_twice() -> None:
        assert started_programs(rules.apply, owner, asked) == ["nft"]
        by_program = rules_there()
        assert len(by_program) == 2
        for _ in range(2):  # the second replaces the first
            assert started_programs(rules.apply, owner, asked) == []
            assert rules_there() == by_program
        masquerade.check("nftables", owner, both)
        everything = [ip_interface("10.1.0.6/0")]  # of which no address is beyond
        assert started_programs(rules.apply, other, masquerade.wanted("nftables", everything)) == ["nft"]
        subprocess.run(["nft", "flush chain inet cni_plugins_masquerade postrouting"], check=True)
        assert started_programs(rules.apply, owner, asked) == ["nft"]
        masquerade.check("nftables", owner, both)

    host.call(add_twice)


def test_the_spoof_check_of_netlink_is_what_nft_would_make(host: Host) -> None:
    """To the last byte, the table and the chains with it; no program is started."""
    owner = Attachment("net", "c" * 200, "eth0")
    asked = [spoofcheck.wanted(PORTS[0], MACS[0])]

    def rules_there() -> list[tuple[bytes, bytes, bytes]]:
        listed = [attributes.read(each) for each in nfnetlink.dump(10 << 8 | 7, 7, b"")]
        return [(each[2], each[4], each[7]) for each in listed]

    def chains_there() -> list[dict[int, bytes]]:
        listed = [attributes.read(each) for each in nfnetlink.dump(10 << 8 | 4, 7, b"")]
        return [{key: value for key, value in each.items() if key != 2} for each in listed]  # but for handles

    def add_twice() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rules, "_add_at_once", lambda *_: False)
            assert started_programs(rules.apply, owner, asked) == ["nft"]
        by_program = rules_there(), chains_there()
        assert [len(each) for each in by_program] == [3, 2]
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        for _ in range(2):  # the second replaces the first
            assert started_programs(rules.apply, owner, asked) == []
            assert (rules_there(), chains_there()) == by_program
        spoofcheck.check(owner, PORTS[0], MACS[0])

    host.call(add_twice)


def test_a_chain_of_others_in_the_place_of_the_spoof_checks(host: Host) -> None:
    """It is reported, and nothing is made beside it."""
    host.shell("nft 'add table bridge nat; add chain bridge nat PREROUTING'")
    with expect_error(5, "nft"):
        host.call(rules.apply, Attachment("net", "c1", "eth0"), [spoofcheck.wanted(PORTS[0], MACS[0])])
    assert "cni-macspoofchk" not in host.shell("nft list ruleset")


@pytest.mark.parametrize("name", ["iptables-restore", "nft"])
def test_del_waits_for_the_program_of_a_killed_add(host: Host, tmp_path: Path, name: str) -> None:
    started, go = tmp_path / "started", tmp_path / "go"
    for pipe in (started, go):
        os.mkfifo(pipe)
    slow = tmp_path / name
    slow.write_text(f'#!/bin/sh\nexec 9>{started}; echo >&9; read -r _ <{go}; exec {program.find(name)} "$@"\n')
    slow.chmod(0o755)
    host.call(kill_and_delete, tmp_path, "iptables" if name == "iptables-restore" else "nftables")


def kill_and_delete(directory: Path, backend: str) -> None:
    owner, before = Attachment("net", "c1", "eth0"), listing()
    child = os.fork()
    if child == 0:
        os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"
        rules.apply(owner, masquerade.wanted(backend, ADDRESSES[0]))
        os._exit(0)
    with (directory / "started").open() as running:
        running.readline()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        released: list[int] = []

        def release(_: float = 0) -> None:
            if not released:
                released.append((directory / "go").write_text("go\n"))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.sleep", release)
            masquerade.delete(owner)
        release()
        assert running.read() == "", "the program has ended"
    assert not [line for line in listing() if line not in before and "10.1.0.5" in line]


def test_a_changed_rule_is_noticed(host: Host) -> None:
    """CHECK compares values, not only that something with the comment is there."""
    owner = Attachment("net", "c1", "eth0")
    host.call(rules.apply, owner, wanted(0))
    host.call(check, owner, 0)
    with pytest.raises(CNIError, match=r"10\.1\.0\.6"):
        host.call(masquerade.check, "nftables", owner, ADDRESSES[1])
    own = spoofcheck.LAYOUT.own_chain(owner)
    chain = masquerade.chain_name(owner)
    for command in (
        f"nft insert rule bridge nat {own} accept",
        f"iptables -t nat -I {chain} -j RETURN",
        "nft flush chain inet cni_plugins_masquerade postrouting",
    ):
        host.run(command.split())
    with pytest.raises(CNIError, match="let only 02:00:00:00:00:01 in"):
        host.call(spoofcheck.check, owner, PORTS[0], MACS[0])
    with pytest.raises(CNIError, match=r"a rule of .* is missing or was changed: -d 10\.1\.0\.0/24"):
        host.call(masquerade.check, "iptables", owner, ADDRESSES[0])
    with pytest.raises(CNIError, match="goto masq_checks"):
        host.call(masquerade.check, "nftables", owner, ADDRESSES[0])


@pytest.mark.parametrize("prefix", ["10.1.0.5/0", "10.1.0.5/1", "10.1.0.5/25", "10.1.0.5/32", "2001:db8::5/61"])
@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_prefixes_of_any_length(host: Host, backend: str, prefix: str) -> None:
    owner, addresses = Attachment("net", "c1", "eth0"), [ip_interface(prefix)]
    host.call(rules.apply, owner, masquerade.wanted(backend, addresses))
    host.call(masquerade.check, backend, owner, addresses)


def test_a_chain_that_the_reference_added_to_keeps_the_references_rules(host: Host) -> None:
    """Another container whose network and id make the same text, added by the reference."""
    ours, other = COLLISIONS["network and container joined"]
    chain = masquerade.chain_name(ours)
    assert chain == masquerade.chain_name(other)
    host.call(rules.apply, ours, masquerade.wanted("iptables", ADDRESSES[0]))
    comment = ["-m", "comment", "--comment", 'name: "ab" id: "c"']
    nat = ["iptables", "-t", "nat"]
    host.run([*nat, "-A", chain, "-d", "10.1.0.0/25", "-j", "ACCEPT", *comment])
    host.run([*nat, "-A", chain, "!", "-d", "224.0.0.0/4", "-j", "MASQUERADE", *comment])
    host.run([*nat, "-A", "POSTROUTING", "-s", "10.1.0.6", "-j", chain, *comment])
    host.call(masquerade.delete, ours, ADDRESSES[0])
    host.call(masquerade.gc, "a", frozenset())
    assert "10.1.0.5" not in host.run([*nat, "-S"]).stdout
    host.call(masquerade.check, "iptables", other, ADDRESSES[1])
    host.call(masquerade.delete, other, ADDRESSES[1])
    assert "CNI-" not in host.run([*nat, "-S"]).stdout


def add_as_the_reference(host: Host, owner: Attachment, port: str, mac: str) -> None:
    """The reference's spoof check."""
    comment = f"macspoofchk-{owner.container_id}-{owner.ifname}"
    chain = f"cni-br-iface-{owner.container_id}-{owner.ifname}"
    script = (
        "add table bridge nat",
        "add chain bridge nat PREROUTING { type filter hook prerouting priority -300 ; policy accept ; }",
        f"add chain bridge nat {chain}",
        f"add chain bridge nat {chain}-mac",
        f"flush chain bridge nat {chain}",
        f"flush chain bridge nat {chain}-mac",
        f'add rule bridge nat PREROUTING iifname "{port}" jump {chain} comment "{comment}"',
        f'add rule bridge nat {chain} jump {chain}-mac comment "{comment}"',
        f'add rule bridge nat {chain}-mac ether saddr {mac} return comment "{comment}"',
        f'add rule bridge nat {chain}-mac drop comment "{comment}"',
    )
    host.run(["nft", "-f", "-"], input="\n".join(script))


def test_spoof_rules_of_the_reference_go_with_their_port(host: Host) -> None:
    """The reference's names leave the network out: a live port is another attachment's."""
    owner = Attachment("a", "c", "eth0")
    for port in PORTS:
        host.run(["ip", "link", "add", port, "type", "bridge"])
    add_as_the_reference(host, owner, PORTS[0], MACS[0])
    host.call(spoofcheck.check, owner, PORTS[0], MACS[0])
    with pytest.raises(CNIError):
        host.call(spoofcheck.check, owner, PORTS[1], MACS[0])
    with pytest.raises(CNIError):
        host.call(spoofcheck.check, owner, PORTS[0], MACS[1])
    before = host.call(listing)
    host.call(spoofcheck.delete, owner._replace(network="b"))  # the port lives
    host.call(spoofcheck.gc, "a", frozenset())
    assert host.call(listing) == before
    host.run(["ip", "link", "del", PORTS[0]])
    host.call(spoofcheck.delete, owner)
    assert not any("cni-br-iface" in line for line in host.call(listing))


def test_spoof_rules_of_the_reference_that_share_a_chain(host: Host) -> None:
    owners = COLLISIONS["an interface called as another's MAC chain"]
    host.run(["ip", "link", "add", PORTS[0], "type", "bridge"])
    for owner, port, mac in zip(owners, PORTS, MACS, strict=True):
        add_as_the_reference(host, owner, port, mac)
    host.call(spoofcheck.delete, owners[1])  # its port is gone; its chain is the other's, too
    assert any(PORTS[0] in line for line in host.call(listing))
    assert not any(PORTS[1] in line for line in host.call(listing))
    host.run(["ip", "link", "del", PORTS[0]])
    host.call(spoofcheck.delete, owners[0])
    assert not any("jump" in line and "iifname" in line for line in host.call(listing))


def test_many_rules_are_read_and_deleted(host: Host) -> None:
    table = nft.NftTable("inet", "t")
    host.run(["nft", "add table inet t; add chain inet t c"])
    for start in (0, 600):  # more do not fit into an ordinary user's message
        rules_of_many = (
            f'add rule inet t c ip saddr 10.0.0.1 drop comment "x{each}"' for each in range(start, start + 600)
        )
        host.run(["nft", "-f", "-"], input="\n".join(rules_of_many))

    def delete_odd() -> int:
        found = table.list_rules("c")
        assert [rule.comment for rule in found] == [f"x{each}" for each in range(1200)]
        assert len(table.list_rules("c", "x119")) == 11  # 119, and 1190 to 1199
        assert table.delete(found[::2])
        assert not table.delete(found[:1])  # not there any more
        return len(table.list_rules("c"))

    assert host.call(delete_odd) == 600


def test_a_chain_in_use_is_not_deleted(host: Host) -> None:
    host.run(["nft", "add table inet t; add chain inet t c; add chain inet t d; add rule inet t d jump c"])
    with pytest.raises(CNIError, match="cannot delete rules of nftables table inet t: EBUSY: "):
        host.call(nft.NftTable("inet", "t").delete, [], ["c"])


@pytest.mark.parametrize("collision", ["network and container joined", "two interfaces on one network"])
def test_the_legacy_variant_of_iptables(legacy: Host, collision: str) -> None:
    first, second = COLLISIONS[collision]

    def add_and_delete() -> None:
        table = iptables.LegacyTable(4, "nat")
        rules.apply(first, masquerade.wanted("iptables", ADDRESSES[0]))
        rules.apply(second, masquerade.wanted("iptables", ADDRESSES[1]))
        assert len(table.list_chains("CNI-")) == 2
        masquerade.check("iptables", first, ADDRESSES[0])
        masquerade.check("iptables", second, ADDRESSES[1])
        masquerade.delete(first, gone=True)
        masquerade.check("iptables", second, ADDRESSES[1])
        masquerade.gc(second.network, frozenset({second}))
        masquerade.check("iptables", second, ADDRESSES[1])
        masquerade.gc(second.network, frozenset())
        assert iptables.LegacyTable(4, "nat").list_chains("CNI-") == []

    legacy.call(add_and_delete)


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("again", [(0, 1), (1, 0), ()], ids=["in order", "in reverse", "not again"])
def test_chains_that_iptables_has_flushed(variant: str, again: tuple[int, ...], request: pytest.FixtureRequest) -> None:
    """`iptables -F` leaves them, empty: they are filled again, each by its own attachment, and go with DEL."""
    host: Host = request.getfixturevalue("legacy" if variant == "legacy" else "host")
    owners = COLLISIONS["two interfaces on one network"]

    def published(index: int) -> tuple[Any, ...]:
        port = HostPort("udp", 8080 + index, None, ADDRESSES[index][0], 80)
        return "iptables", owners[index], [port], {4: Options()}, [("udp", 8080 + index)]

    def add(index: int) -> None:
        rules.apply(owners[index], masquerade.wanted("iptables", ADDRESSES[index]))
        hostports.publish(*published(index))

    def chains() -> list[str]:
        done = subprocess.run(["iptables", "-t", "nat", "-S"], check=True, capture_output=True, text=True)
        return sorted(each for each in done.stdout.splitlines() if each.startswith("-N ") and "HOSTPORT" not in each)

    def flush_and_delete() -> None:
        add(0)
        add(1)
        before = chains()
        assert len(before) == 4
        subprocess.run(["iptables", "-t", "nat", "-F"], check=True)
        assert chains() == before
        for index in again:
            add(index)
        for index in again:
            masquerade.check("iptables", owners[index], ADDRESSES[index])
            hostports.check(*published(index))
        if again:
            assert len(chains()) == 4
        for owner in owners:
            masquerade.delete(owner)
            hostports.withdraw(owner)
        assert chains() == []

    host.call(flush_and_delete)


@pytest.mark.parametrize("policy", ["open", "same-bridge"])
def test_a_flush_in_the_middle_of_an_add(host: Host, policy: str) -> None:
    """`nft flush ruleset`, right after the shared chains were there: they are made again."""
    owner, other = COLLISIONS["two interfaces on one network"]
    ingress = Ingress(policy, "br0") if policy != "open" else None
    flushed: list[int] = []

    def look_and_flush(*arguments: Any) -> dict[str, list[str]]:
        lacking = making(*arguments)
        if len(flushed) < 2:
            flushed.append(subprocess.run(["nft", "flush", "ruleset"], check=True).returncode)
        return lacking

    making = base_rules._making

    def add() -> None:
        port = HostPort("udp", 8080, None, ADDRESSES[0][0], 80)
        published: tuple[Any, ...] = ("iptables", owner, [port], {4: Options()}, [("udp", 8080)])
        admitted = Forwarding("iptables", owner, [ADDRESSES[0][0].ip], ingress=ingress)
        firewall.admit(admitted._replace(owner=other, addresses=[ADDRESSES[1][0].ip]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base_rules, "_making", look_and_flush)
            firewall.admit(admitted)
            firewall.check(admitted)
            flushed.clear()
            hostports.publish(*published)
            hostports.check(*published)

    host.call(add)


def applied(kind: str, backend: str, index: int) -> None:
    """Have the ADD of one of two containers on a bridge make its rules."""
    owner, addresses = COLLISIONS["two interfaces on one network"][index], [*ADDRESSES[index], *ADDRESSES_V6[index]]
    if kind == "masquerade":
        rules.apply(owner, masquerade.wanted(backend, addresses))
    elif kind == "spoofcheck":
        rules.apply(owner, [spoofcheck.wanted(PORTS[index], MACS[index])])
    elif kind == "hostports":
        ports = [HostPort("tcp", 8080 + index, None, each, 80) for each in addresses]
        hostports.publish(backend, owner, ports, {4: Options(), 6: Options()}, [("tcp", 8080 + index)])
    else:
        ips = [each.ip for each in addresses]
        policy = Ingress(kind.partition(" ")[2], "br0", (PORTS[index],)) if " " in kind else None
        firewall.admit(Forwarding(backend, owner, ips, ingress=policy))


@pytest.mark.parametrize(
    ("kind", "backend", "beside"),
    [
        *(
            (*each, beside)
            for each in [
                *product(("masquerade", "hostports", "firewall"), ("iptables", "nftables")),
                ("firewall same-bridge", "iptables"),
                ("firewall isolated", "nftables"),
                ("spoofcheck", "nftables"),
            ]
            for beside in ("", "another")
        ),
        ("firewall", "iptables", "firewall same-bridge"),
        ("firewall", "nftables", "firewall same-bridge"),
    ],
)
def test_an_add_succeeds_whenever_another_program_flushes_all_rules(
    host: Host, kind: str, backend: str, beside: str
) -> None:
    """`nft flush ruleset` comes right before any program that is started, or any message to the kernel."""

    def prepare() -> None:
        if beside == "another":
            applied(kind, backend, 1)
        elif beside:
            applied(beside, "iptables", 1)

    assert host.call(flush_before_each_call, prepare, lambda: applied(kind, backend, 0)) > 2


@pytest.mark.parametrize(
    ("kind", "backend"), [*product(("hostports", "firewall same-bridge"), ("iptables", "nftables"))]
)
def test_a_del_succeeds_whenever_another_program_flushes_all_rules(host: Host, kind: str, backend: str) -> None:
    owner = COLLISIONS["two interfaces on one network"][0]

    def prepare() -> None:
        for index in (0, 1):
            applied("masquerade", backend, index)
            applied("spoofcheck", backend, index)
            applied(kind, backend, index)

    def withdraw() -> None:
        hostports.withdraw(owner)
        firewall.withdraw(owner, [each[0].ip for each in (ADDRESSES[0], ADDRESSES_V6[0])])
        delete(owner)

    assert host.call(flush_before_each_call, prepare, withdraw) > 2


def flush_before_each_call(prepare: Callable[[], object], act: Callable[[], object]) -> int:
    """Call a function that must not fail, each time with a flush before another of its calls; return their number."""
    calls = ((program, "run"), (nfnetlink, "transact"), (nfnetlink, "ask"), (nfnetlink, "select"))

    def flush_before(number: int) -> bool:
        """Flush before a call of this number; return False if there are not so many."""
        count = 0

        def flushing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    subprocess.run(["nft", "flush", "ruleset"], check=True)
                return real(*arguments, **keywords)

            return call

        subprocess.run(["nft", "flush", "ruleset"], check=True)
        prepare()
        with pytest.MonkeyPatch.context() as patch:
            for module, name in calls:
                patch.setattr(module, name, flushing(getattr(module, name)))
            try:
                act()
            except CNIError as exc:
                raise AssertionError(f"flushed before call {number}: {exc}") from exc
        return count >= number

    number = 1
    while flush_before(number):
        number += 1
    return number


def test_what_is_forwarded_by_the_legacy_variant(legacy: Host) -> None:
    """An address that two attachments have, a changed policy, and DEL in either order."""
    late, following = Attachment("net", "late", "eth0"), Attachment("net", "c1", "eth0")
    both = [ip_address("10.1.0.5"), ip_address("2001:db8::5")]

    def saved() -> str:
        programs = ("iptables-legacy-save", "ip6tables-legacy-save")
        return "".join(subprocess.run([each], check=True, capture_output=True, text=True).stdout for each in programs)

    def add_and_delete() -> None:
        wanted = Forwarding("iptables", following, both, "ADMINS", Ingress("same-bridge", "br0"))
        for each in (wanted._replace(owner=late, ingress=Ingress("isolated", "br0")), wanted, wanted):
            firewall.admit(each)
            firewall.check(each)
        assert "-A CNI-ISOLATION-STAGE-1 -i br0 -o br0" not in saved()
        assert saved().count("-s 10.1.0.5/32 -j ACCEPT") == 2
        for _ in range(2):
            firewall.withdraw(late, both)
            firewall.check(wanted)
        firewall.gc("other", frozenset())
        firewall.check(wanted)
        subprocess.run(["iptables-legacy", "-D", "CNI-FORWARD", "-s", "10.1.0.5", "-j", "ACCEPT"], check=True)
        with pytest.raises(CNIError, match=r"-s 10\.1\.0\.5"):
            firewall.check(wanted)
        firewall.gc("net", frozenset())
        assert not [line for line in saved().splitlines() if any(word in line for word in ("br0", "10.1.0.5", "::5"))]
        assert '-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j ADMINS' in saved()

    legacy.call(add_and_delete)


FOREIGN = [
    '-m comment --comment "-s" -j ACCEPT',
    '-m comment --comment "-j" -j ACCEPT',
    '-m comment --comment "!" -j ACCEPT',
    '-m comment --comment "--comment" -j ACCEPT',
    '-m comment --comment "" -j ACCEPT',
    """-m comment --comment "it's \\"quoted\\" \\\\" -j ACCEPT""",
    """-m comment --comment 'two\n-A FORWARD "lines\x85\u2028' -j ACCEPT""",
    "-s 10.0.0.0/255.0.255.0 -j ACCEPT",
    '-m string --string "-s" --algo bm -j ACCEPT',
    '-m recent --name "-s" --rcheck -j ACCEPT',
    "-m addrtype --dst-type LOCAL --limit-iface-in -j ACCEPT",
    "-m connmark --mark 100000 -j ACCEPT",
    "-m quota --quota 100000 -j ACCEPT",
    """-i "a'b" -j ACCEPT""",
    """-i 'a"b' -j ACCEPT""",
    '-m comment --comment x -j LOG --log-prefix "-m comment"',
    "! -p tcp -m comment --comment last -j ACCEPT",
]


def test_foreign_rules_of_the_legacy_variant_are_read(legacy: Host) -> None:
    """Whatever they say: ADD and DEL look at all rules of FORWARD. The reading is compared with that of netlink."""
    owner, address = Attachment("net", "c1", "eth0"), [ip_address("10.1.0.5")]
    for each in FOREIGN:
        for variant in ("legacy", "nft"):
            legacy.shell(f"iptables-{variant} -A FORWARD {each}")

    def read() -> None:
        plain, native = (
            [(rule.comment, rule.verdict.removeprefix("jump ")) for rule in table.list_rules("FORWARD")]
            for table in (iptables.LegacyTable(4, "filter"), nft.NftTable("ip", "filter"))
        )
        assert plain == native
        assert len(plain) == len(FOREIGN)
        firewall.admit(Forwarding("iptables", owner, address))
        firewall.check(Forwarding("iptables", owner, address))
        firewall.withdraw(owner)

    legacy.call(read)


@pytest.mark.parametrize("act", ["delete", "replace", "commit"])
def test_a_table_made_anew_keeps_the_rules_of_others(host: Host, act: str) -> None:
    """Between look and transaction another program makes the table anew: a handle is another attachment's rule now."""
    gone, living = Attachment("net", "gone", "eth0"), Attachment("net", "living", "eth0")
    layout = rules.Layout(family="ip", table="t", shared=("c",), base_chain=nft.BaseChain("c", 0, 0))
    table, place = nft.NftTable("ip", "t"), nft if act == "commit" else nft.NftTable
    carry_out = getattr(place, act)
    part = rules.Part(layout, (rules.Wanted("c", "accept", (), "accept", (_expressions.verdict(1),)),))
    by_program = rules.Part(layout, tuple(each._replace(expressions=()) for each in part.wanted))

    def make_anew(*arguments: object) -> object:
        patch.undo()
        subprocess.run(["nft", "delete table ip t"], check=True)
        rules.apply(living, [part])
        return carry_out(*arguments)

    def look_and_act() -> list[str]:
        rules.apply(gone, [part])
        patch.setattr(place, act, make_anew)
        if act == "delete":
            rules.delete(layout, gone)
        else:
            rules.apply(gone, [by_program if act == "commit" else part])
        return sorted(rule.comment for rule in table.list_rules("c"))

    with pytest.MonkeyPatch.context() as patch:
        left = host.call(look_and_act)
    assert left == sorted(rules.mark(each) for each in ([living] if act == "delete" else [gone, living]))


COUNTED = rules.Layout(
    family="inet", table="t", shared=("c",), base=("add table inet t", "add chain inet t c"), prefix="own-"
)
BY_TEXT = rules.Part(
    COUNTED,
    (
        rules.Wanted("c", "counter accept", (), "accept"),
        rules.Wanted(rules.OWN, "drop", (), "drop"),
        rules.Wanted("c", "jump {chain}", (), rules.JUMP_TO_OWN),
    ),
)


@pytest.mark.parametrize(
    ("kind", "variant"),
    [("iptables", "nft"), ("iptables", "legacy"), ("nftables", "nft"), ("a layout of an author", "nft")],
)
def test_there_is_no_moment_of_a_second_add_without_the_rules(
    kind: str, variant: str, request: pytest.FixtureRequest
) -> None:
    """An ADD that is killed takes nothing back: so whenever that happens, the container keeps what it had."""
    host = request.getfixturevalue("legacy" if variant == "legacy" else "host")
    owner, (addresses, others) = Attachment("net", "c1", "eth0"), ADDRESSES
    parts = masquerade.wanted(kind, addresses) if "tables" in kind else [BY_TEXT]
    more = masquerade.wanted(kind, [*addresses, *others]) if "tables" in kind else parts

    def owned() -> list[int]:
        tables = [table for part in parts for table in part.layout.tables()]
        return [len(table.list_rules(chain)) for table in tables for chain in ("c", "masq_checks", "POSTROUTING")]

    def add_again() -> list[str]:
        def look_after(act: Callable[..., T]) -> Callable[..., T]:
            def wrapped(*arguments: Any, **keys: Any) -> T:
                done = act(*arguments, **keys)
                if act is transact or "-S" not in arguments[0]:  # which only reads
                    try:
                        rules.check(owner, parts)
                    except CNIError as exc:
                        problems.append(str(exc))
                    else:
                        problems.append("")
                return done

            return wrapped

        rules.apply(owner, parts)
        rules.check(owner, parts)
        problems: list[str] = []
        before, transact = owned(), nfnetlink.transact
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "run", look_after(program.run))
            patch.setattr(nfnetlink, "transact", look_after(transact))
            rules.apply(owner, parts)
        assert owned() == before
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rules, "delete_earlier", lambda *_: None)  # as if killed before
            rules.apply(owner, more)
        rules.check(owner, more)
        rules.apply(owner, parts)
        assert owned() == before
        rules.apply(owner, more)
        rules.apply(owner, parts)
        assert owned() == before
        for part in parts:
            rules.delete(part.layout, owner)
        assert "c1" not in subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
        return problems

    problems = host.call(add_again)
    assert problems
    assert set(problems) == {""}


@pytest.mark.parametrize("chain", [rules.OWN, "c"])
def test_parts_of_one_layout_are_added_together(host: Host, chain: str) -> None:
    """Each part replaces what an earlier ADD left, not what the part before it has made."""
    owner = Attachment("net", "c1", "eth0")
    jump = rules.Wanted("c", "jump {chain}", (), rules.JUMP_TO_OWN)
    parts = [rules.Part(COUNTED, (rules.Wanted(chain, verdict, (), verdict), jump)) for verdict in ("accept", "drop")]

    def add_twice() -> None:
        for _ in range(2):
            rules.apply(owner, parts)
            rules.check(owner, parts)

    host.call(add_twice)


def test_what_the_kernel_refuses_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that a program is missing which was to be asked next."""
    owner = Attachment("net", "c1", "eth0")
    parts = [spoofcheck.wanted(PORTS[0], MACS[0])]
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(nfnetlink, "transact", lambda *_: errno.ENOMEM)
    with expect_error(5, "cannot add rules of nftables table bridge nat: ENOMEM"):
        host.call(rules.apply, owner, parts)


def test_an_expression_that_the_kernel_lacks_is_told(host: Host) -> None:
    """The kernel has the same error for it as for a chain that is gone."""
    unknown = (_expressions.expression("cnisdk-none"),)
    layout = rules.Layout(family="ip", table="t", shared=("c",), base_chain=nft.BaseChain("c", 0, 0))
    part = rules.Part(layout, (rules.Wanted("c", "accept", (), "accept", unknown),))
    with expect_error(5, "cannot add rules of nftables table ip t: ENOENT"):
        host.call(rules.apply, Attachment("net", "c1", "eth0"), [part])


def test_conditions_of_the_guide_are_those_of_the_kernel(host: Host) -> None:
    """And what is there instead is shown, for those who write the conditions of a rule."""
    owner = Attachment("net", "c1", "eth0")
    layout = rules.Layout("inet", "mine", ("seen",), ("add table inet mine", "add chain inet mine seen"))
    four, six = ip_address("192.0.2.1"), ip_address("2001:db8::1")
    written = {
        f"ip saddr {four} ip daddr {four}": (
            nft.match("network", 12, four.packed),
            nft.match("network", 16, four.packed),
        ),
        f"ip6 saddr {six} ip6 daddr {six}": (
            nft.match("network", 8, six.packed),
            nft.match("network", 24, six.packed),
        ),
        "tcp dport 25": (nft.match_protocol(6), nft.match_port(25)),
        "udp dport 53": (nft.match_protocol(17), nft.match_port(53)),
        'iifname "eth1"': (nft.match_interface("eth1"),),
    }

    def parts(*conditions: nft.Match) -> list[rules.Part]:
        wanted = [rules.Wanted("seen", f"{text} counter drop", found, "drop") for text, found in written.items()]
        if conditions:
            wanted = [rules.Wanted("seen", "tcp dport 25 counter drop", conditions, "drop")]
        return [rules.Part(layout, tuple(wanted))]

    def apply_and_check() -> None:
        rules.apply(owner, parts())
        rules.check(owner, parts())
        rules.apply(owner, parts(nft.match_port(25)))
        with expect_error(5, "tcp dport 25 counter drop", "meta 16 0 is 06, transport 2 is 0019, drop in chain seen"):
            rules.check(owner, parts(nft.match_port(25)))
        rules.delete(layout, owner)
        with expect_error(5, "none of its rules is there"):
            rules.check(owner, parts())

    host.call(apply_and_check)
