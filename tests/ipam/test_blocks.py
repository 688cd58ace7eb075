"""Nodes of a cluster get addresses from blocks of their own: no address twice, and etcd is seldom asked."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from cnisdk.errors import InvalidConfigError, IOFailureError, PluginNotAvailableError, TryAgainLaterError
from cnisdk.ipam import FileStore, Owner, Range, RangeSet, _resting
from cnisdk.ipam._records import Boot
from cnisdk.ipam._share import Share, ShareFile
from cnisdk.ipam.allocator import release
from cnisdk.ipam.blocks import BlockAllocator
from cnisdk.ipam.blocktable import Block, BlockTable, NotMemberError
from cnisdk.ipam.cluster import Cluster
from cnisdk.ipam.etcdclient import EtcdClient, EtcdConf
from cnisdk.ipam.holdings import Holdings
from cnisdk.ipam.sticky import StickyAddresses
from cnisdk.spec.addresses import IPAddress
from cnisdk.testing.stores import everything, range_sets

from .conftest import Member

POOL = range_sets("10.0.0.0/24", "fd00::/120")


class CountingClient(EtcdClient):
    """A client that counts its requests, and may be cut off."""

    requests = 0
    _away = False

    def cut_off(self, away: bool) -> None:
        self.close()
        self._away = away
        self._conf = evolve(self._conf, timeout=0.1 if away else 30)

    def _send(self, path: str, body: Any, patience: float) -> Any:
        if self._away:
            raise ConnectionRefusedError("cut off")
        self.requests += 1
        return super()._send(path, body, patience)


class Node:
    """One node: its leases, and its connection."""

    def __init__(
        self, url: str, network: str, name: str, root: Path, pool: tuple[RangeSet, ...], **options: Any
    ) -> None:
        self.client = CountingClient(EtcdConf(endpoints=(url,), timeout=30))
        self.store = FileStore(str(root / name), "net")
        self.cluster = Cluster(BlockTable(self.client, network, name))
        cool_down = options.pop("cool_down", 0.0)
        self.directory = str(root / name / "share")
        self.holdings = Holdings(self.store, self.cluster, self.directory, cool_down=cool_down)
        self.allocator = BlockAllocator(self.holdings, pool, **options)

    def add(self, container: str, *requested: str, pod: str = "") -> list[IPAddress]:
        wanted = [ip_address(each) for each in requested]
        return [ip.address.ip for ip in self.allocator.allocate(Owner(container, "eth0"), wanted, pod=pod)]

    def delete(self, container: str) -> None:
        self.allocator.release(Owner(container, "eth0"))

    def held(self) -> dict[IPAddress, Owner]:
        return {address: owner for address, owner in everything(self.store).items() if owner.ifname == "eth0"}


@pytest.fixture
def node(member: Member, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Node]]:
    """Make nodes of one cluster."""
    made: list[Node] = []

    def make(name: str, pool: tuple[RangeSet, ...] = POOL, root: Path = tmp_path, **options: Any) -> Node:
        made.append(Node(member.url, request.node.name, name, root, pool, **options))
        return made[-1]

    yield make
    for each in made:
        each.client.close()


def test_nodes_share_no_address_and_seldom_ask(node: Callable[..., Node]) -> None:
    nodes = [node(f"n{number}") for number in range(4)]
    given = [address for each in nodes for number in range(25) for address in each.add(f"{number}")]
    assert len(set(given)) == len(given) == 200
    for each in nodes:
        assert len(list(each.cluster.blocks())) == 8  # one of each IP version
        each.client.requests = 0
        each.add("another")
        each.delete("another")
        assert each.client.requests == 0


def test_a_block_is_used_up_before_the_next_and_single_addresses_at_last(node: Callable[..., Node]) -> None:
    pool = range_sets("10.0.0.0/25")  # two blocks, without network, gateway and broadcast address
    first, second = node("a", pool), node("b", pool)
    second.add("b0")
    taken: list[IPAddress] = []
    with suppress(TryAgainLaterError):
        for number in range(126):
            taken += first.add(f"a{number}")
    # A block with its gateway or its broadcast address, and the half of the other that the other node does not use.
    assert len(set(taken)) == len(taken) in (93, 95)
    blocks = {block.node: block for block in first.cluster.blocks()}
    assert (blocks["a"].local, blocks["b"].local) == (64, 32)
    assert len(blocks["b"].lent) in (31, 32)
    own = [second.add(f"b{number}")[0] for number in range(1, 30)]
    assert not {*own} & {*taken}
    with pytest.raises(PluginNotAvailableError):
        first.allocator.check_capacity()


def test_nothing_is_free_though_something_was_asked_for(node: Callable[..., Node]) -> None:
    """Addresses that an earlier request asked for are looked up first. If it got none, there is no address more."""
    first = node("n1", range_sets("10.0.0.0/26"), borrow=False)
    with suppress(TryAgainLaterError):
        for number in range(99):
            first.add(f"c{number}")
    (block,) = first.holdings.read().blocks
    first.holdings.change(lambda now: now._replace(asked=frozenset({block.first})))
    with pytest.raises(PluginNotAvailableError, match="no IP addresses available"):
        first.allocator.check_capacity()
    first.delete("c7")
    first.allocator.check_capacity()


def test_borrowing_can_be_turned_off(node: Callable[..., Node]) -> None:
    pool = range_sets("10.0.0.0/26")
    node("a", pool).add("a0")
    with pytest.raises(TryAgainLaterError, match="no IP addresses available"):
        node("b", pool, borrow=False).add("b0")
    assert node("c", pool).add("c0") == [IPv4Address("10.0.0.62")]


def test_what_is_borrowed_goes_back_with_its_lease(node: Callable[..., Node]) -> None:
    pool = range_sets("10.0.0.0/26")
    owner, borrower = node("a", pool), node("b", pool)
    owner.add("a0")
    (address,) = borrower.add("b0")
    borrower.delete("b0")
    (block,) = owner.cluster.blocks()
    assert block.lent == {}
    assert borrower.held() == everything(borrower.store) == {}
    others = [owner.add(f"a{number}")[0] for number in range(1, 61)]
    assert address in others


def test_an_empty_block_goes_back_while_another_is_half_empty(node: Callable[..., Node]) -> None:
    pool = range_sets("10.0.0.0/24")
    alone = node("a", pool)
    given = {f"{number}": alone.add(f"{number}")[0] for number in range(100)}
    blocks = list(alone.cluster.blocks())
    assert len(blocks) == 2
    spare = next(block for block in blocks if sum(map(block.holds, given.values())) < 40)
    for container, address in given.items():
        if spare.holds(address):
            alone.delete(container)
    assert len(list(alone.cluster.blocks())) == 2  # the other is full
    for container, address in [*given.items()][:50]:
        if not spare.holds(address):
            alone.delete(container)
    alone.add("x")
    alone.delete("x")
    assert len(list(alone.cluster.blocks())) <= 2
    other = node("b", pool)
    assert not {*(other.add(f"{number}")[0] for number in range(30))} & {*alone.held()}


def test_requested_addresses_are_the_clusters(node: Callable[..., Node]) -> None:
    a, b = node("a"), node("b")
    assert a.add("a0", "10.0.0.200")[0] == IPv4Address("10.0.0.200")
    with pytest.raises(TryAgainLaterError, match=r"10\.0\.0\.200 is not available") as caught:
        b.add("b0", "10.0.0.200")
    assert caught.value.details == "it belongs to node a"
    taken = b.add("b1")[0]
    with pytest.raises(TryAgainLaterError, match="is not available"):
        a.add("a1", str(taken))
    a.delete("a0")
    assert b.add("b0", "10.0.0.200")[0] == IPv4Address("10.0.0.200")
    assert b.add("b2", str(taken + 1 if taken + 1 not in b.held() else taken + 2))


def test_etcd_is_away(node: Callable[..., Node]) -> None:
    pool = range_sets("10.0.0.0/26")
    a, b = node("a", pool), node("b", pool)
    a.add("a0")
    (borrowed,) = b.add("b0")
    for each in (a, b):
        each.client.cut_off(True)
    given = [a.add(f"a{number}")[0] for number in range(1, 30)]  # half of the block, without asking
    with pytest.raises(
        TryAgainLaterError, match=r"node a has no free address .* cannot ask for more: etcd does not answer"
    ):
        a.add("more")
    b.delete("b0")  # works, and the cluster hears of it later
    assert b.held() == {}
    with pytest.raises(TryAgainLaterError):
        b.add("b1")
    for each in (a, b):
        each.client.cut_off(False)
    assert next(b.cluster.blocks()).lent == {borrowed: "b"}
    (again,) = b.add("b1")
    assert again not in given
    assert [*next(b.cluster.blocks()).lent] == [again]


def test_a_node_that_lost_its_file(node: Callable[..., Node], tmp_path: Path) -> None:
    before = node("a")
    before.add("a0")
    (tmp_path / "a" / "share" / "share.json").unlink()
    after = node("a")
    after.add("a1")
    assert len(list(after.cluster.blocks())) == 2
    assert len(after.held()) == 4


def test_a_block_that_an_administrator_took_away(node: Callable[..., Node]) -> None:
    a, pool = node("a"), POOL
    a.add("a0")
    for block in list(a.cluster.blocks()):
        node("a", pool).cluster.give_back(blocks=[block.first])
    a.holdings.refresh()
    assert not {*a.add("a1")} & {*node("b").add("b0")}


# --- membership -------------------------------------------------------------------------------------------------------


def test_a_new_node_asks_little(node: Callable[..., Node]) -> None:
    """However many others there are: it joins (2 requests), claims blocks (1, then 1 each), extends them (2 each)."""
    wide = range_sets("10.0.0.0/12", "fd00::/108")
    for number in range(3):
        node(f"n{number}", wide).add("x")
    a = node("a", wide)
    a.add("0")
    assert a.client.requests == 5
    for number in range(1, 40):
        a.add(f"{number}")
    assert a.client.requests == 9


def test_a_name_is_of_one_machine(node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with one host name would both hand out the same blocks: the second is refused."""
    node("a").add("a0")
    other = node("a", root=tmp_path / "other machine")
    with pytest.raises(
        InvalidConfigError, match='another machine, or another dataDir, has joined the cluster as node "a"'
    ):
        other.add("b0")
    assert other.held() == {}


def test_a_node_that_was_released_joins_again(node: Callable[..., Node]) -> None:
    a, operator = node("a"), node("")
    given = a.add("a0")
    with pytest.raises(TryAgainLaterError, match="node a has joined again: it lives"):
        operator.cluster.release_node("a", 1)
    operator.cluster.release_node("a", operator.cluster.table.list_nodes()["a"].revision)
    assert list(operator.cluster.blocks()) == []
    # Whatever it still sends changes nothing, and it learns that nothing is its own any more.
    before = a.client.look("x").revision
    with pytest.raises(NotMemberError):
        a.cluster.claim(IPv4Address("10.0.0.0"), IPv4Address("10.0.0.255"))
    assert a.client.look("x").revision == before
    b = node("b")
    taken = {address for number in range(31) for address in b.add(f"b{number}")}
    a.holdings.refresh()
    assert a.holdings.read().blocks == ()
    assert not {*a.add("a1")} & ({*given} | taken)


def test_what_is_given_back_late_does_no_harm(node: Callable[..., Node]) -> None:
    """A process is stopped before it gives an address back; the node joins again, and hands the address out."""
    pool = range_sets("10.0.0.0/26")
    node("a", pool).add("a0")
    b, late = node("b", pool), node("b", pool)
    (address,) = b.add("b0")
    late.cluster.table.member = late.holdings.read().member
    (tmp := Path(b.directory) / "share.json").unlink()
    b.holdings.refresh()  # its file was lost
    assert tmp.exists()
    with pytest.raises(NotMemberError):
        late.cluster.give_back([address])
    assert [*next(b.cluster.blocks()).lent] == [address]


def test_what_a_killed_process_got_is_found(node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed when etcd had carried its request out. The DEL that follows finds what it got."""
    pool = range_sets("10.0.0.0/26")
    a, b = node("a", pool), node("b", pool)
    monkeypatch.setattr(Holdings, "change", killed(Holdings.change))
    for each, options in ((a, {}), (b, {}), (b, {"pod": POD})):
        with pytest.raises(Killed):
            each.add("x", **options)
    monkeypatch.undo()
    (block,) = a.cluster.blocks()
    assert (block.node, [*block.lent.values()], [*block.kept.values()]) == ("a", ["b"], [POD])  # b's first is back
    for each in (a, b):
        each.delete("x")
    (block,) = a.cluster.blocks()
    assert (block.node, block.lent, [*block.kept.values()]) == ("a", {}, [POD])
    assert [each.first for each in a.holdings.read().blocks] == [block.first]
    assert a.holdings.compare() == b.holdings.compare() == []


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed(change: Callable[..., Share]) -> Callable[..., Share]:
    """Let a process be killed before it notes that it has got something."""

    def change_or_die(self: Holdings, function: Callable[[Share], Share]) -> Share:
        before = self.read()
        after = function(before)
        if len(after.blocks) > len(before.blocks) or len(after.borrowed) > len(before.borrowed):
            raise Killed
        return change(self, function)

    return change_or_die


# --- pods and rest ----------------------------------------------------------------------------------------------------

POD = "ns/web-0/eth0"


def test_a_pod_keeps_its_addresses_on_another_node(node: Callable[..., Node]) -> None:
    a, b = node("a"), node("b")
    given = a.add("first", pod=POD)
    assert len(given) == 2
    with pytest.raises(TryAgainLaterError, match="which is kept for pod ns/web-0/eth0, is still in use on node a"):
        b.add("second", pod=POD)
    a.delete("first")
    assert b.add("second", pod=POD) == given
    b.delete("second")
    assert a.add("third", pod=POD) == given
    a.client.requests = 0
    a.delete("third")
    assert not [block.lent for block in a.cluster.blocks() if block.lent]
    with pytest.raises(TryAgainLaterError, match=r"requested IP address .* is not available") as caught:
        b.add("thief", str(given[0]))
    assert caught.value.details == "it is kept for pod ns/web-0/eth0"


def test_two_nodes_that_keep_for_one_pod_at_once(node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has chosen when the first is done: it chooses again, and is told where the pod is."""
    a, b = node("a"), node("b")
    choose = BlockAllocator._choose
    given: list[IPAddress] = []

    def choose_late(self: BlockAllocator, *args: Any) -> IPAddress:
        chosen = choose(self, *args)
        if self is b.allocator and not given:
            given.extend(a.add("first", pod=POD))
        return chosen

    monkeypatch.setattr(BlockAllocator, "_choose", choose_late)
    with pytest.raises(TryAgainLaterError, match="is still in use on node a"):
        b.add("second", pod=POD)
    a.delete("first")
    assert b.add("second", pod=POD) == given


def test_no_other_pod_gets_a_kept_address(node: Callable[..., Node]) -> None:
    pool = range_sets("10.0.0.0/27")
    a = node("a", pool)
    (kept,) = a.add("web", pod=POD)
    a.delete("web")
    others: list[IPAddress] = []
    with suppress(TryAgainLaterError):
        for number in range(31):
            others += a.add(f"{number}")
    assert len(others) == 28
    assert kept not in others
    assert a.add("web", pod=POD) == [kept]
    with pytest.raises(TryAgainLaterError, match="no IP addresses available") as caught:
        a.add("db", pod="ns/db-0/eth0")
    assert "could be kept for a pod" in caught.value.details


def test_forgetting_a_pod(node: Callable[..., Node]) -> None:
    a = node("a")
    given = a.add("web", pod=POD)
    sticky = StickyAddresses(node("").cluster.table)
    assert sticky.list_pods() == {POD: tuple(given)}
    with pytest.raises(TryAgainLaterError, match="is in use on node a"):
        sticky.forget(POD)
    a.delete("web")
    assert sticky.forget(POD) == tuple(given)
    assert sticky.forget(POD) == ()
    assert not [block for block in a.cluster.blocks() if block.kept or block.lent]
    assert sticky.list_pods() == {}


def test_released_addresses_rest(node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not handed out, do not make the node claim, and are its own again afterwards."""
    clock = Clock(monkeypatch)
    a = node("a", range_sets("10.0.0.0/25"), cool_down=60)
    given = {address for number in range(62) for address in a.add(f"{number}")}
    (block,) = a.cluster.blocks()
    for number in range(30):
        a.delete(f"{number}")
    clock.now += 59
    others = {address for number in range(100, 105) for address in a.add(f"{number}")}
    assert not given & others
    assert [each.node for each in a.cluster.blocks()].count("a") == 1
    assert len(a.holdings.read().borrowed) + sum(map(block.holds, others)) == 5
    clock.now += 2
    for number in range(100, 105):
        a.delete(f"{number}")
    assert {address for number in range(200, 230) for address in a.add(f"{number}")} <= given
    clock.now += 61
    a.holdings.refresh()
    assert dict(a.holdings.read().borrowed) == {}  # they went back after their rest


def test_a_rest_begins_anew_after_a_boot(node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    a = node("a", range_sets("10.0.0.0/29"), cool_down=60)
    (first,) = a.add("0")
    a.delete("0")
    clock.reboot(5.0)
    assert first not in {*a.add("1"), *a.add("2")}
    assert a.holdings.resting.find()[first] == 60
    clock.now += 61
    assert a.holdings.resting.find() == {}


class Clock:
    """The clock that addresses rest by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(_resting, "clock_gettime", lambda _: self.now)

    def reboot(self, now: float) -> None:
        self.now = now
        self.monkeypatch.setattr(_resting, "current_boot", lambda: Boot("another", ""))


# --- kills ------------------------------------------------------------------------------------------------------------


def work(node: Node, seed: int) -> None:
    """Attach and detach at random, until killed."""
    dice, alive = random.Random(seed), [owner.container_id for owner in {*node.held().values()}]
    while True:
        if alive and dice.random() < 0.5:
            node.delete(alive.pop(dice.randrange(len(alive))))
        else:
            name = f"{node.cluster.node}-{dice.getrandbits(40):x}"
            try:
                node.add(name, *(["10.0.0.77"] if dice.random() < 0.1 else []))
                alive.append(name)
            except TryAgainLaterError:
                pass


def test_killed_at_any_moment_no_address_is_twice(node: Callable[..., Node], tmp_path: Path) -> None:
    """Six nodes want more than there is; each is killed again and again."""
    nodes = [node(f"n{number}") for number in range(6)]
    dice = random.Random(1)
    children = {each.cluster.node: start(work, each, number) for number, each in enumerate(nodes)}
    for number in range(12):
        each = dice.choice(nodes)
        os.waitid(os.P_PID, children[each.cluster.node], os.WNOHANG | os.WEXITED | os.WNOWAIT)
        wait(dice.random() * 0.15)
        os.kill(children[each.cluster.node], signal.SIGKILL)
        os.waitpid(children[each.cluster.node], 0)
        children[each.cluster.node] = start(work, each, 100 + number)
    for child in children.values():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    counted = Counter(address for each in nodes for address in each.held())
    assert [address for address, count in counted.items() if count > 1] == []
    assert counted
    for each in nodes:  # nothing is lost: all of it comes back
        for owner in {*each.held().values()}:
            each.delete(owner.container_id)
        each.holdings.refresh()
        assert everything(each.store) == {}
        own = [block.first for block in each.cluster.blocks() if block.node == each.cluster.node]
        each.cluster.give_back(blocks=own)
    assert list(nodes[0].cluster.blocks()) == []
    last = node("last")
    whole = [last.add(f"{number}")[0] for number in range(150)]
    assert len(set(whole)) == 150


def start(job: Callable[[Node, int], None], node: Node, seed: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            job(node, seed)
        finally:
            os._exit(1)
    return child


def wait(seconds: float) -> None:
    """Let the others work for a moment: the moments of the kills are what is tried."""
    signal.sigtimedwait([], seconds)


# --- two processes of one node ----------------------------------------------------------------------------------------


def borrowing(node: Callable[..., Node]) -> tuple[Node, Node, IPAddress]:
    """Make a node with an address that it has borrowed, and what another process of it is."""
    pool = range_sets("10.0.0.0/26")
    node("a", pool).add("a0")
    one, other = node("b", pool), node("b", pool)
    (address,) = one.add("b0")
    return one, other, address


def test_an_address_goes_back_between_look_and_lease(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node gets it at once. The lease is taken back."""
    one, other, address = borrowing(node)
    third = node("c", range_sets("10.0.0.0/26"))
    update, stolen = other.store.update, list[IPAddress]()

    def update_late(*args: Any, **options: Any) -> Any:
        if not stolen:
            one.delete("b0")
            stolen.extend(third.add("c0", str(address)))
        return update(*args, **options)

    monkeypatch.setattr(other.store, "update", update_late)
    assert address not in other.add("b1")
    assert stolen == [address]
    assert address not in other.held()


def test_an_address_is_leased_between_look_and_return(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that gives it back puts it back, and etcd hears nothing."""
    one, other, address = borrowing(node)
    other.delete("b0")
    (address,) = one.add("b0", str(address))
    look, leased = one.holdings._list_leased, list[IPAddress]()

    def look_and_wait() -> Any:
        found = look()
        if not leased:
            leased.extend(other.add("b1"))
        return found

    monkeypatch.setattr(one.holdings, "_list_leased", look_and_wait)
    release(one.store, Owner("b0", "eth0"))
    one.holdings.give_back()
    assert leased == [address]
    assert [*next(one.cluster.blocks()).lent] == [address]
    assert one.holdings.read().borrowed == {address: ""}
    assert not one.holdings.read().is_unsettled


def test_an_address_is_leased_while_it_is_set_aside(node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """For a pod, out of what the node hands out itself: the pod gets another one."""
    a, other = node("a", range_sets("10.0.0.0/27")), node("a", range_sets("10.0.0.0/27"))
    a.add("a0")
    look, leased = a.holdings._list_leased, list[IPAddress]()

    def look_and_wait() -> Any:
        found = look()
        if not leased:
            leased.extend(other.add("a1"))
        return found

    monkeypatch.setattr(a.holdings, "_list_leased", look_and_wait)
    (kept,) = a.add("web", pod=POD)
    assert leased
    assert kept not in leased
    assert set(a.held()) == {*other.held()}
    assert len(a.held()) == 3
    assert a.holdings.compare() == []


@pytest.mark.parametrize("ends", [True, False])
def test_what_was_set_aside_and_is_not_kept_is_free_again(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """Another change was ahead, and the pod gets another address; or etcd did not answer, and it gets none."""
    a = node("a", range_sets("10.0.0.0/27"))
    a.add("a0")
    lend, aside = StickyAddresses.lend, a.holdings.set_aside
    chosen: list[IPAddress | None] = []

    def lend_late(self: StickyAddresses, *args: Any) -> bool:
        if len(chosen) > 1:
            return lend(self, *args)
        if ends:
            return False
        raise IOFailureError("etcd does not answer")

    def choose_another(spans: Any, pod: str) -> IPAddress | None:
        chosen.append(aside(spans, pod))
        return chosen[-1]

    monkeypatch.setattr(BlockAllocator, "_choose_mine", lambda self, _, spans, pod: choose_another(spans, pod))
    monkeypatch.setattr(StickyAddresses, "lend", lend_late)
    if ends:
        assert a.add("web", pod=POD) == [chosen[1]]
    else:
        with pytest.raises(IOFailureError):
            a.add("web", pod=POD)
        a.delete("a0")
    assert chosen[0] not in {address for block in a.holdings.read().blocks for address in block.kept}
    assert not a.holdings.read().is_unsettled
    assert a.holdings.compare() == []


def test_the_file_was_replaced_though_it_has_a_name_still(tmp_path: Path) -> None:
    """As on NFS, which gives an open file that is replaced another one."""
    file = ShareFile(str(tmp_path))
    file.write(Share(member=1))
    with file.look() as (_, is_current):
        assert is_current()
        (tmp_path / ".nfs0001").hardlink_to(tmp_path / "share.json")
        file.write(Share(member=2))
        assert not is_current()


def test_a_block_that_grows_while_another_process_gives_it_back(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADD extends a block of which a DEL has just said that it goes: whoever has it then, it is one node."""
    parts = [
        Range(subnet=ip_network("10.0.0.0/24"), first=first, last=last, gateway=ip_address("10.0.0.1"))
        for first, last in (
            (IPv4Address("10.0.0.192"), IPv4Address("10.0.0.200")),
            (IPv4Address("10.0.0.100"), IPv4Address("10.0.0.127")),
        )
    ]
    pool = (RangeSet(tuple(parts), "$"),)
    adding, deleting, other = node("a", pool), node("a", pool), node("b", pool)
    for number in range(9):
        adding.add(f"c{number}")
    extend = adding.cluster.extend

    def extend_meanwhile(block: Block) -> Block | None:
        monkeypatch.setattr(adding.cluster, "extend", extend)
        extended = extend(block)
        release(deleting.store, Owner("c0", "eth0"))
        deleting.holdings.change(deleting.holdings._shrink)  # and it waits for its turn to tell etcd
        return extended

    monkeypatch.setattr(adding.cluster, "extend", extend_meanwhile)
    update = adding.store.update

    def update_late(*args: Any, **options: Any) -> Any:
        if adding.holdings.read().leaving:
            with deleting.holdings.synchronised():
                pass
        return update(*args, **options)

    monkeypatch.setattr(adding.store, "update", update_late)
    mine = [*adding.add("x0"), *adding.add("x1")]
    theirs = []
    with suppress(TryAgainLaterError):
        for number in range(28):
            theirs += other.add(f"n{number}")
    assert not {*mine} & {*theirs}
    assert adding.holdings.compare() == []


def test_what_was_told_before_a_kill_is_not_taken_back(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Etcd knows that a borrowed address is free, and another node has it; a lease of the first must not keep it."""
    pool = range_sets("10.0.0.64/26")
    owner, adding, killed, telling, other = (node(name, pool) for name in ("o", "a", "a", "a", "b"))
    owner.add("o0")
    (address,) = adding.add("p0")
    give_back = killed.cluster.give_back

    def give_back_and_die(*args: Any) -> None:
        give_back(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(killed.cluster, "give_back", give_back_and_die)
    update, late = adding.store.update, list[int]()

    def update_late(*args: Any, **options: Any) -> Any:
        if late:
            return update(*args, **options)
        late.append(1)
        with pytest.raises(KeyboardInterrupt):
            killed.delete("p0")
        assert other.add("n0", str(address)) == [address]
        done = update(*args, **options)
        telling.holdings.give_back()
        return done

    monkeypatch.setattr(adding.store, "update", update_late)
    assert adding.add("p1") != [address]
    assert adding.holdings.compare() == []
