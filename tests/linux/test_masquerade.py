"""Masquerade and spoof rules on the real kernel, in the layouts of the reference plugins."""

from __future__ import annotations

import json
from ipaddress import ip_interface

import pytest

from cnisdk import Attachment, CNIError, InvalidConfigError
from cnisdk.linux import masquerade, nft, spoofcheck
from cnisdk.testing import Sandbox

pytestmark = pytest.mark.kernel

ONE = Attachment("net", "c1", "eth0")
SECOND_INTERFACE = Attachment("net", "c1", "eth1")
OTHER_CONTAINER = Attachment("net", "c2", "eth0")
OTHER_NETWORK = Attachment("net2", "c1", "eth0")
ADDRESSES = [ip_interface("10.1.0.5/24"), ip_interface("2001:db8::5/64")]
MORE = [ip_interface("10.1.0.6/24")]


@pytest.fixture(params=["iptables", "nftables"])
def backend(request: pytest.FixtureRequest) -> masquerade.Backend:
    return masquerade.backend(request.param)


def rules(host: Sandbox) -> list[str]:
    """Every packet filter rule of the sandbox, as ``nft`` writes it."""
    return host.run(["nft", "list", "ruleset"]).stdout.splitlines()


def mentions(host: Sandbox, text: str) -> int:
    return sum(text in line for line in rules(host))


def test_hashes_are_the_references() -> None:
    """Vectors from the reference's own tests."""
    assert masquerade.NFTables.comment(Attachment("unit-test", "one", "eth0")) == (
        "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one"
    )
    assert masquerade.chain_names(Attachment("test", "1234", "eth0"))[0] == "CNI-2bbe0c48b91a7d1b8a6753a8"


def test_rules_come_and_go(host: Sandbox, backend: masquerade.Backend) -> None:
    host.call(backend.delete, ONE)  # nothing there: fine
    host.call(backend.add, ONE, ADDRESSES)
    host.call(backend.check, ONE, ADDRESSES)
    assert mentions(host, "10.1.0.5") == 1
    assert mentions(host, "2001:db8::5") == 1
    host.call(backend.add, ONE, ADDRESSES)  # again: replaced, not doubled
    assert mentions(host, "10.1.0.5") == 1
    host.call(backend.delete, ONE)
    assert mentions(host, "10.1.0.5") == mentions(host, "2001:db8::5") == mentions(host, "CNI-") == 0
    with pytest.raises(CNIError, match="no masquerade rule for 10"):
        host.call(backend.check, ONE, ADDRESSES)


def test_attachments_do_not_share_a_rule(host: Sandbox, backend: masquerade.Backend) -> None:
    host.call(backend.add, ONE, ADDRESSES)
    for number, other in enumerate((SECOND_INTERFACE, OTHER_CONTAINER, OTHER_NETWORK), 6):
        addresses = [ip_interface(f"10.1.0.{number}/24")]
        host.call(backend.add, other, addresses)
        host.call(backend.delete, ONE)
        host.call(backend.check, other, addresses)
        host.call(backend.add, ONE, ADDRESSES)
        host.call(backend.delete, other)
        host.call(backend.check, ONE, ADDRESSES)
        with pytest.raises(CNIError):
            host.call(backend.check, other, addresses)


def test_gc_keeps_what_is_valid_and_other_networks(host: Sandbox, backend: masquerade.Backend) -> None:
    everyone = {
        each: [ip_interface(f"10.1.0.{number}/24")]
        for number, each in enumerate((ONE, SECOND_INTERFACE, OTHER_CONTAINER, OTHER_NETWORK), 5)
    }
    for attachment, addresses in everyone.items():
        host.call(backend.add, attachment, addresses)
    host.call(masquerade.gc, "net", frozenset({ONE}))
    for attachment, addresses in everyone.items():
        if attachment in (ONE, OTHER_NETWORK):
            host.call(backend.check, attachment, addresses)
        else:
            with pytest.raises(CNIError):
                host.call(backend.check, attachment, addresses)


def test_deleting_needs_no_backend(host: Sandbox, backend: masquerade.Backend) -> None:
    host.call(backend.add, ONE, ADDRESSES)
    host.call(masquerade.delete, ONE)
    assert mentions(host, "10.1.0.5") == mentions(host, "CNI-") == 0


def test_long_container_ids(host: Sandbox, backend: masquerade.Backend) -> None:
    attachment = Attachment("net", "x" * 250, "eth0")
    host.call(backend.add, attachment, MORE)
    host.call(backend.check, attachment, MORE)
    host.call(backend.delete, attachment)
    assert mentions(host, "10.1.0.6") == 0


@pytest.mark.interop
def test_chains_the_reference_made(host: Sandbox) -> None:
    """Written with the commands the reference runs: its chain, its comment."""
    chain, _ = masquerade.chain_names(ONE)
    comment = ["-m", "comment", "--comment", 'name: "net" id: "c1"']
    nat = ["iptables", "-t", "nat"]
    host.run([*nat, "-N", chain])
    host.run([*nat, "-A", chain, "-d", "10.1.0.0/24", "-j", "ACCEPT", *comment])
    host.run([*nat, "-A", chain, "!", "-d", "224.0.0.0/4", "-j", "MASQUERADE", *comment])
    for address in ("10.1.0.5", "10.1.0.6"):  # two attachments share it
        host.run([*nat, "-A", "POSTROUTING", "-s", address, "-j", chain, *comment])
    iptables = masquerade.backend("iptables")
    host.call(iptables.check, ONE, [ip_interface("10.1.0.5/24")])
    third = [ip_interface("10.1.0.7/24")]
    host.call(iptables.add, Attachment("net", "c1", "eth2"), third)
    host.call(iptables.delete, ONE, [ip_interface("10.1.0.5/24")])
    assert mentions(host, "10.1.0.5") == 0
    host.call(iptables.check, SECOND_INTERFACE, MORE)
    host.call(iptables.delete, SECOND_INTERFACE, MORE)
    assert mentions(host, chain) == 0
    host.call(iptables.check, Attachment("net", "c1", "eth2"), third)


def test_our_jump_is_what_the_reference_deletes(host: Sandbox) -> None:
    chain, _ = masquerade.chain_names(ONE)
    host.call(masquerade.backend("iptables").add, ONE, MORE)
    comment = ["-m", "comment", "--comment", 'name: "net" id: "c1"']
    host.run(["iptables", "-t", "nat", "-D", "POSTROUTING", "-s", "10.1.0.6", "-j", chain, *comment])
    host.run(["iptables", "-t", "nat", "-F", chain])
    host.run(["iptables", "-t", "nat", "-X", chain])
    assert mentions(host, "10.1.0.6") == mentions(host, "CNI-") == 0


def test_the_kernel_is_asked_for_chains(host: Sandbox) -> None:
    assert not host.call(nft.has_chain, "inet", "t", "c")
    host.run(["nft", "add table inet t; add chain inet t c"])
    assert host.call(nft.has_chain, "inet", "t", "c")
    assert not host.call(nft.has_chain, "inet", "t", "d")
    assert not host.call(nft.has_chain, "ip", "t", "c")


def test_unknown_backends() -> None:
    with pytest.raises(InvalidConfigError, match="unknown ipmasq backend 'ebtables'"):
        masquerade.backend("ebtables")


MAC = "02:00:00:00:00:01"


def test_spoof_rules_come_and_go(host: Sandbox) -> None:
    for attachment in (ONE, Attachment("net", "y" * 250, "eth0")):
        host.call(spoofcheck.delete, attachment)
        host.call(spoofcheck.add, attachment, "veth01234567", MAC)
        host.call(spoofcheck.add, attachment, "veth01234567", MAC)
        assert mentions(host, 'iifname "veth01234567" jump') == 1
        host.call(spoofcheck.check, attachment, MAC)
        with pytest.raises(CNIError):
            host.call(spoofcheck.check, attachment, "02:00:00:00:00:02")
        host.call(spoofcheck.delete, attachment)
        assert mentions(host, "cni-br-iface") == 0
        with pytest.raises(CNIError):
            host.call(spoofcheck.check, attachment, MAC)


def test_spoof_rules_are_collected(host: Sandbox) -> None:
    for attachment in (ONE, OTHER_CONTAINER, Attachment("net2", "c3", "eth0")):
        host.call(spoofcheck.add, attachment, "veth0", MAC)
    host.call(spoofcheck.gc, "net", frozenset({ONE}))
    host.call(spoofcheck.check, ONE, MAC)
    host.call(spoofcheck.check, Attachment("net2", "c3", "eth0"), MAC)
    with pytest.raises(CNIError):
        host.call(spoofcheck.check, OTHER_CONTAINER, MAC)


def test_spoof_rules_have_the_references_layout(host: Sandbox) -> None:
    host.call(spoofcheck.add, ONE, "veth0", MAC)
    listing = json.loads(host.run(["nft", "-j", "list", "table", "bridge", "nat"]).stdout)["nftables"]
    chains = {entry["chain"]["name"]: entry["chain"] for entry in listing if "chain" in entry}
    assert sorted(chains) == ["PREROUTING", "cni-br-iface-c1-eth0", "cni-br-iface-c1-eth0-mac"]
    assert (chains["PREROUTING"]["hook"], chains["PREROUTING"]["prio"]) == ("prerouting", -300)
    comments = {entry["rule"]["comment"] for entry in listing if "rule" in entry}
    assert comments == {"macspoofchk-c1-eth0", ONE.tag}


HOSTILE = ('a"b', "a;b", "a{b}", "$(id)", "é", "a\\b")


@pytest.mark.parametrize("ifname", HOSTILE)
def test_interface_names_mean_nothing_in_a_script(host: Sandbox, backend: masquerade.Backend, ifname: str) -> None:
    attachment = Attachment("net", "c1", ifname)
    host.call(backend.add, attachment, ADDRESSES)
    host.call(backend.check, attachment, ADDRESSES)
    host.call(spoofcheck.add, attachment, "veth0", MAC)
    host.call(spoofcheck.check, attachment, MAC)
    host.call(masquerade.gc, "net", frozenset({attachment}))
    host.call(backend.check, attachment, ADDRESSES)
    host.call(masquerade.delete, attachment)
    host.call(spoofcheck.delete, attachment)
    assert mentions(host, "10.1.0.5") == mentions(host, "CNI-") == mentions(host, "cni-br-iface") == 0
