"""Objects that chained plugins make belong to one attachment, however alike the names of two are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from ipaddress import ip_interface
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings

from cnisdk import Attachment, CNIError
from cnisdk.linux import firewall, hostports, link
from cnisdk.linux.netfilter.firewall import Forwarding
from cnisdk.linux.netfilter.hostports import HostPort, Options
from cnisdk.spec.addresses import IPAddress
from cnisdk.testing import Host
from cnisdk_plugins import bandwidth

from ..linux.test_rules import COLLISIONS, Pair, pairs
from .conftest import listing

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

ADDRESSES = ([ip_interface("10.1.0.5/24")], [ip_interface("10.1.0.6/25")])
ADMIN = "CNI-ADMIN"


class Maker(NamedTuple):
    """Plugin that works for the first or the second of two attachments.

    Attributes:
        add: Make it.
        check: Raise an error unless it is as `add` made it.
        delete: Take it back.
        gc: Take back what a network has beside the valid attachments.
    """

    add: Callable[[Attachment, int], object]
    check: Callable[[Attachment, int], object]
    delete: Callable[[Attachment, int], object]
    gc: Callable[[str, Collection[Attachment]], object]


def admitting(backend: str) -> Maker:
    def addresses(index: int) -> list[IPAddress]:
        return [each.ip for each in ADDRESSES[index]]

    return Maker(
        lambda owner, index: firewall.admit(Forwarding(backend, owner, addresses(index), ADMIN)),
        lambda owner, index: firewall.check(Forwarding(backend, owner, addresses(index), ADMIN)),
        lambda owner, index: firewall.withdraw(owner, addresses(index)),
        firewall.gc,
    )


def publishing(backend: str) -> Maker:
    def ports(index: int) -> list[HostPort]:
        return [HostPort("udp", 8080 + index, None, each, 80) for each in ADDRESSES[index]]

    def call(function: Callable[..., object], owner: Attachment, index: int) -> None:
        function(backend, owner, ports(index), {4: Options()}, [("udp", 8080 + index)])

    return Maker(
        partial(call, hostports.publish),
        partial(call, hostports.check),
        lambda owner, index: hostports.withdraw(owner, ports(index)),
        hostports.gc,
    )


def limiting() -> Maker:
    def check(owner: Attachment, _: int) -> None:
        found = bandwidth.find_ifb(owner)
        if found is None or found.alias != owner.tag:
            raise CNIError(f"{owner} has no link")

    def delete(owner: Attachment, _: int) -> None:
        found = bandwidth.find_ifb(owner)
        if found is not None:
            found.delete()

    return Maker(
        lambda owner, _: bandwidth.ensure_ifb(owner, link.get("lo")),
        check,
        delete,
        lambda network, valid: link.delete_stale("ifb", network, valid),
    )


MAKERS = {
    "firewall, iptables": admitting("iptables"),
    "firewall, nftables": admitting("nftables"),
    "portmap, iptables": publishing("iptables"),
    "portmap, nftables": publishing("nftables"),
    "bandwidth": limiting(),
}


def state() -> list[str]:
    return [*listing(), *sorted(each.name for each in link.list_all())]


def nothing_is_taken(maker: Maker, first: Attachment, second: Attachment) -> None:
    maker.add(second, 1)  # with what is there for all, and stays
    maker.delete(second, 1)
    maker.add(first, 0)
    alone = state()
    maker.delete(second, 1)
    assert state() == alone, "a DEL for what was never added"
    maker.add(second, 1)
    both = state()
    for owner, index in ((first, 0), (second, 1)):
        maker.check(owner, index)
        maker.gc(owner.network, {first, second})
    assert state() == both
    maker.delete(second, 1)
    maker.check(first, 0)
    assert state() == alone
    maker.add(second, 1)
    maker.gc(second.network, {first} if first.network == second.network else ())
    maker.check(first, 0)
    assert state() == alone
    maker.add(second, 1)
    maker.delete(first, 0)
    maker.check(second, 1)
    with pytest.raises(CNIError):
        maker.check(first, 0)
    maker.delete(second, 1)
    with pytest.raises(CNIError):
        maker.check(second, 1)


@pytest.mark.parametrize("name", MAKERS)
def test_names_that_collided(host: Host, name: str) -> None:
    def all_of_them() -> None:
        for pair in COLLISIONS.values():
            nothing_is_taken(MAKERS[name], *pair)

    host.call(all_of_them)


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_of_another_attachment_is_touched(host: Host, name: str) -> None:
    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(pairs())
    def in_both_directions(pair: Pair) -> None:
        nothing_is_taken(MAKERS[name], *pair)
        nothing_is_taken(MAKERS[name], *reversed(pair))

    host.call(in_both_directions)
