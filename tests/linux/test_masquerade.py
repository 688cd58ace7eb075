"""Masquerade and spoof rules on the real kernel, in the layouts of the reference plugins."""

from __future__ import annotations

import json
from ipaddress import ip_interface

import pytest

from cnisdk import Attachment, CNIError, InvalidConfigError
from cnisdk.linux import masquerade, nft, rules, spoofcheck
from cnisdk.spec.addresses import IPInterface
from cnisdk.testing import Sandbox

pytestmark = pytest.mark.kernel

ONE = Attachment("net", "c1", "eth0")
SECOND_INTERFACE = Attachment("net", "c1", "eth1")
OTHER_CONTAINER = Attachment("net", "c2", "eth0")
OTHER_NETWORK = Attachment("net2", "c1", "eth0")
ADDRESSES = [ip_interface("10.1.0.5/24"), ip_interface("2001:db8::5/64")]
MORE = [ip_interface("10.1.0.6/24")]


@pytest.fixture(params=["iptables", "nftables"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def add(backend: str, attachment: Attachment, addresses: list[IPInterface]) -> None:
    rules.apply(attachment, masquerade.wanted(backend, addresses))


def add_spoof_check(attachment: Attachment, port: str, mac: str) -> None:
    rules.apply(attachment, [spoofcheck.wanted(port, mac)])


def ruleset(host: Sandbox) -> list[str]:
    """Every packet filter rule of the sandbox, as ``nft`` writes it."""
    return host.run(["nft", "list", "ruleset"]).stdout.splitlines()


def mentions(host: Sandbox, text: str) -> int:
    return sum(text in line for line in ruleset(host))


def test_hashes_are_the_references() -> None:
    """Vectors from the reference's own tests."""
    assert rules.mark(Attachment("unit-test", "one", "eth0")) == (
        "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one"
    )
    assert masquerade.chain_name(Attachment("test", "1234", "eth0")) == "CNI-2bbe0c48b91a7d1b8a6753a8"


def test_rules_come_and_go(host: Sandbox, backend: str) -> None:
    host.call(masquerade.delete, ONE)  # nothing there: fine
    host.call(add, backend, ONE, ADDRESSES)
    host.call(masquerade.check, backend, ONE, ADDRESSES)
    assert mentions(host, "10.1.0.5") == 1
    assert mentions(host, "2001:db8::5") == 1
    host.call(add, backend, ONE, ADDRESSES)  # again: replaced, not doubled
    assert mentions(host, "10.1.0.5") == 1
    host.call(masquerade.delete, ONE)
    assert mentions(host, "10.1.0.5") == mentions(host, "2001:db8::5") == mentions(host, "CNI-") == 0
    with pytest.raises(CNIError, match=r"is missing or was changed: .*10\.1\.0\.5"):
        host.call(masquerade.check, backend, ONE, ADDRESSES)


def test_attachments_do_not_share_a_rule(host: Sandbox, backend: str) -> None:
    host.call(add, backend, ONE, ADDRESSES)
    for number, other in enumerate((SECOND_INTERFACE, OTHER_CONTAINER, OTHER_NETWORK), 6):
        addresses = [ip_interface(f"10.1.0.{number}/24")]
        host.call(add, backend, other, addresses)
        host.call(masquerade.delete, ONE)
        host.call(masquerade.check, backend, other, addresses)
        host.call(add, backend, ONE, ADDRESSES)
        host.call(masquerade.delete, other)
        host.call(masquerade.check, backend, ONE, ADDRESSES)
        with pytest.raises(CNIError):
            host.call(masquerade.check, backend, other, addresses)


def test_gc_keeps_what_is_valid_and_other_networks(host: Sandbox, backend: str) -> None:
    everyone = {
        each: [ip_interface(f"10.1.0.{number}/24")]
        for number, each in enumerate((ONE, SECOND_INTERFACE, OTHER_CONTAINER, OTHER_NETWORK), 5)
    }
    for attachment, addresses in everyone.items():
        host.call(add, backend, attachment, addresses)
    host.call(masquerade.gc, "net", frozenset({ONE}))
    for attachment, addresses in everyone.items():
        if attachment in (ONE, OTHER_NETWORK):
            host.call(masquerade.check, backend, attachment, addresses)
        else:
            with pytest.raises(CNIError):
                host.call(masquerade.check, backend, attachment, addresses)


def test_deleting_needs_no_backend(host: Sandbox, backend: str) -> None:
    host.call(add, backend, ONE, ADDRESSES)
    host.call(masquerade.delete, ONE)
    assert mentions(host, "10.1.0.5") == mentions(host, "CNI-") == 0


@pytest.mark.parametrize("length", [250, 100_000])
def test_long_container_ids(host: Sandbox, backend: str, length: int) -> None:
    attachment = Attachment("net", "x" * length, "eth0")
    host.call(add, backend, attachment, MORE)
    host.call(masquerade.check, backend, attachment, MORE)
    host.call(masquerade.delete, attachment)
    assert mentions(host, "10.1.0.6") == 0
    host.call(rules.apply, attachment, [spoofcheck.wanted("veth0", "02:00:00:00:00:01")])
    host.call(spoofcheck.check, attachment, "veth0", "02:00:00:00:00:01")
    host.call(spoofcheck.delete, attachment)
    assert "veth0" not in host.run(["nft", "list", "ruleset"]).stdout


@pytest.mark.interop
def test_chains_the_reference_made(host: Sandbox) -> None:
    """Written with the commands the reference runs: its chain, its comment."""
    chain = masquerade.chain_name(ONE)
    comment = ["-m", "comment", "--comment", 'name: "net" id: "c1"']
    nat = ["iptables", "-t", "nat"]
    host.run([*nat, "-N", chain])
    host.run([*nat, "-A", chain, "-d", "10.1.0.0/24", "-j", "ACCEPT", *comment])
    host.run([*nat, "-A", chain, "!", "-d", "224.0.0.0/4", "-j", "MASQUERADE", *comment])
    for address in ("10.1.0.5", "10.1.0.6"):  # two attachments share it
        host.run([*nat, "-A", "POSTROUTING", "-s", address, "-j", chain, *comment])
    host.call(masquerade.check, "iptables", ONE, [ip_interface("10.1.0.5/24")])
    third = [ip_interface("10.1.0.7/24")]
    host.call(add, "iptables", Attachment("net", "c1", "eth2"), third)
    host.call(masquerade.delete, ONE, [ip_interface("10.1.0.5/24")])
    assert mentions(host, "10.1.0.5") == 0
    host.call(masquerade.check, "iptables", SECOND_INTERFACE, MORE)
    host.call(masquerade.delete, SECOND_INTERFACE, MORE)
    assert mentions(host, chain) == 0
    host.call(masquerade.check, "iptables", Attachment("net", "c1", "eth2"), third)


def test_our_jump_is_what_the_reference_deletes(host: Sandbox) -> None:
    chain = masquerade.chain_name(ONE)
    host.call(add, "iptables", ONE, MORE)
    comment = ["-m", "comment", "--comment", 'name: "net" id: "c1"']
    host.run(["iptables", "-t", "nat", "-D", "POSTROUTING", "-s", "10.1.0.6", "-j", chain, *comment])
    host.run(["iptables", "-t", "nat", "-F", chain])
    host.run(["iptables", "-t", "nat", "-X", chain])
    assert mentions(host, "10.1.0.6") == mentions(host, "CNI-") == 0


def test_the_kernel_is_asked_for_chains(host: Sandbox) -> None:
    assert not host.call(nft.NftTable("inet", "t").has_chain, "c")
    host.run(["nft", "add table inet t; add chain inet t c"])
    assert host.call(nft.NftTable("inet", "t").has_chain, "c")
    assert not host.call(nft.NftTable("inet", "t").has_chain, "d")
    assert not host.call(nft.NftTable("ip", "t").has_chain, "c")


def test_unknown_backends() -> None:
    with pytest.raises(InvalidConfigError, match="unknown ipmasq backend 'ebtables'"):
        masquerade.choose_backend("ebtables")


MAC = "02:00:00:00:00:01"


def test_spoof_rules_come_and_go(host: Sandbox) -> None:
    for attachment in (ONE, Attachment("net", "y" * 250, "eth0")):
        host.call(spoofcheck.delete, attachment)
        host.call(add_spoof_check, attachment, "veth01234567", MAC)
        host.call(add_spoof_check, attachment, "veth01234567", MAC)
        assert mentions(host, 'iifname "veth01234567" jump') == 1
        host.call(spoofcheck.check, attachment, "veth01234567", MAC)
        with pytest.raises(CNIError):
            host.call(spoofcheck.check, attachment, "veth01234567", "02:00:00:00:00:02")
        host.call(spoofcheck.delete, attachment)
        assert mentions(host, "cni-macspoofchk") == 0
        with pytest.raises(CNIError):
            host.call(spoofcheck.check, attachment, "veth01234567", MAC)


def test_spoof_rules_are_collected(host: Sandbox) -> None:
    for attachment in (ONE, OTHER_CONTAINER, Attachment("net2", "c3", "eth0")):
        host.call(add_spoof_check, attachment, "veth0", MAC)
    host.call(spoofcheck.gc, "net", frozenset({ONE}))
    host.call(spoofcheck.check, ONE, "veth0", MAC)
    host.call(spoofcheck.check, Attachment("net2", "c3", "eth0"), "veth0", MAC)
    with pytest.raises(CNIError):
        host.call(spoofcheck.check, OTHER_CONTAINER, "veth0", MAC)


def test_status_of_the_spoof_check_asks_the_kernel(host: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is needed, and no rule is made."""
    monkeypatch.setenv("PATH", "/nonexistent")
    before = host.call(nft.read_generation)
    host.call(spoofcheck.status)
    assert host.call(nft.read_generation) == before
    monkeypatch.setitem(nft._FAMILIES, "bridge", 12)  # DECnet: no kernel has tables of it
    with pytest.raises(CNIError, match="needs nf_tables for bridges, which this kernel lacks"):
        host.call(spoofcheck.status)


def test_spoof_rules_name_their_owner(host: Sandbox) -> None:
    host.call(add_spoof_check, ONE, "veth0", MAC)
    listing = json.loads(host.run(["nft", "-j", "list", "table", "bridge", "nat"]).stdout)["nftables"]
    chains = {entry["chain"]["name"]: entry["chain"] for entry in listing if "chain" in entry}
    # sha512 of "net", "c1" and "eth0", joined by NUL
    assert sorted(chains) == ["PREROUTING", "cni-macspoofchk-0b29d7cd0d2236b79f95ff34578cdf04"]
    assert (chains["PREROUTING"]["hook"], chains["PREROUTING"]["prio"]) == ("prerouting", -300)
    comments = {entry["rule"]["comment"] for entry in listing if "rule" in entry}
    assert comments == {rules.mark(ONE)}


HOSTILE = ('a"b', "a;b", "a{b}", "$(id)", "é", "a\\b")


@pytest.mark.parametrize("ifname", HOSTILE)
def test_interface_names_mean_nothing_in_a_script(host: Sandbox, backend: str, ifname: str) -> None:
    attachment = Attachment("net", "c1", ifname)
    host.call(add, backend, attachment, ADDRESSES)
    host.call(masquerade.check, backend, attachment, ADDRESSES)
    host.call(add_spoof_check, attachment, "veth0", MAC)
    host.call(spoofcheck.check, attachment, "veth0", MAC)
    host.call(masquerade.gc, "net", frozenset({attachment}))
    host.call(masquerade.check, backend, attachment, ADDRESSES)
    host.call(masquerade.delete, attachment)
    host.call(spoofcheck.delete, attachment)
    assert mentions(host, "10.1.0.5") == mentions(host, "CNI-") == mentions(host, "cni-macspoofchk") == 0
