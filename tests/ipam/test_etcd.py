"""The store in etcd, against a real one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cnisdk.errors import InvalidConfigError, IOFailureError, TryAgainLaterError
from cnisdk.ipam import Owner, RoundRobin, Store
from cnisdk.ipam.etcd import EtcdStore
from cnisdk.ipam.etcdclient import Compare, EtcdClient, EtcdConf, end_of
from cnisdk.ipam.store import Changes, Lease, View
from cnisdk.testing.stores import StoreSuite, everything, range_sets

from .conftest import Member


class TestEtcdStore(StoreSuite):
    """The suite that every store passes; each place of it is a network."""

    rounds = 5
    examples = 10

    @pytest.fixture(autouse=True)
    def _member(self, member: Member) -> Iterator[None]:
        self.url = member.url
        self.clients: list[EtcdClient] = []
        yield
        for client in self.clients:
            client.close()

    def open(self, place: Path) -> Store:
        self.clients.append(EtcdClient(EtcdConf(endpoints=(self.url,))))
        return EtcdStore(self.clients[-1], f"{place.parent.name}-{place.name}")


@pytest.fixture
def store(client: EtcdClient, request: pytest.FixtureRequest) -> EtcdStore:
    return EtcdStore(client, request.node.name)


A = Owner("a", "eth0")
TWO = IPv4Address("10.0.0.2")


def test_free_addresses_are_found_in_few_requests(store: EtcdStore, client: EtcdClient) -> None:
    """In a pool with a hole, and in a full one; the number of requests does not grow with the pool."""
    first, hole = IPv4Address("10.1.0.0"), 700
    numbers = [number for number in range(1024) if number != hole]
    for at in range(0, len(numbers), 50):
        leases = tuple(Lease(first + number, Owner(f"c{number}", "eth0")) for number in numbers[at : at + 50])
        with store.view(time.monotonic() + 10, write=True) as view:
            store.commit(view, Changes(leases, (), {}, {}))
    asked: list[str] = []
    send = client._send

    def counted(path: str, *args: object) -> object:
        asked.append(path)
        return send(path, *args)  # type: ignore[arg-type]

    client._send = counted  # type: ignore[method-assign, assignment]
    assert store.read(lambda view: view.find_free(first, first + 1023)) == first + hole
    assert len(asked) <= 24
    asked.clear()
    assert store.read(lambda view: view.find_free(first + hole + 1, first + 1023)) is None
    assert len(asked) <= 12


def test_an_answer_that_gets_lost(store: EtcdStore, client: EtcdClient) -> None:
    """The transaction was carried out, nobody heard of it, and it is sent again: it is known as its own."""
    send = client._send
    lost: list[str] = []

    def lossy(path: str, *args: object) -> object:
        answer = send(path, *args)  # type: ignore[arg-type]
        if path == "kv/txn" and not lost:
            lost.append(path)
            raise ConnectionResetError("lost")
        return answer

    client._send = lossy  # type: ignore[method-assign, assignment]
    given = RoundRobin(store, range_sets("10.0.0.0/29")).allocate(A)
    assert lost
    assert [str(each.address) for each in given] == ["10.0.0.2/29"]
    assert everything(store) == {TWO: A}


def test_more_than_one_transaction_holds(store: EtcdStore) -> None:
    allocator = RoundRobin(store, range_sets("10.0.0.0/24", "fd00::/64"))
    for number in range(100):
        allocator.allocate(Owner(f"c{number}", "eth0"))
    assert len(allocator.retain([Owner("c5", "eth0")])) == 198
    assert len(everything(store)) == 2


def test_a_revision_that_is_no_longer_kept(store: EtcdStore, client: EtcdClient) -> None:
    def look(view: View) -> Owner | None:
        looks.append(view.find_owner(TWO))
        if len(looks) == 1:  # others change much, and etcd forgets what was
            RoundRobin(EtcdStore(client, "other"), range_sets("10.0.0.0/29")).allocate(A)
            revision = client.look("x").revision
            client._ask("kv/compaction", {"revision": revision, "physical": True}, None)
        return view.find_owner(TWO)

    looks: list[Owner | None] = []
    assert store.read(look) is None
    assert len(looks) == 2


def test_comparisons(client: EtcdClient) -> None:
    assert client.transact([Compare("k", 0)], {"k": b"1"}).done
    assert not client.transact([Compare("k", 0)], {"k": b"2"}).done
    (entry,) = client.look("k").entries
    assert entry.value == b"1"
    assert client.transact([Compare("k", entry.revision)], {"k": b"3"}).done
    assert not client.transact([Compare("k", entry.revision)], {}, ["k"]).done
    assert client.transact([], {}, ["k"]).done
    assert client.look("k", end_of("k")).entries == ()


def test_the_next_endpoint_is_asked(member: Member) -> None:
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        urls = [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in (closed, silent)]
        with EtcdClient(EtcdConf(endpoints=(*urls, member.url), timeout=30)) as client:
            assert client.look("nothing").entries == ()
            assert client.look("nothing").entries == ()


def test_nobody_answers() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        store = EtcdStore(EtcdClient(EtcdConf(endpoints=(url,), timeout=0.2)), "net")
        with pytest.raises(IOFailureError, match=f"etcd does not answer: {url}: .*refused"):
            store.read(lambda view: view.find_owner(TWO))
        with pytest.raises(TryAgainLaterError):
            store.read(lambda view: view.find_owner(TWO), timeout=0.1)


@pytest.mark.parametrize("url", ["10.0.0.1:2379", "ftp://x", "http://", "http://x:y", ""])
def test_an_endpoint_that_is_none(url: str) -> None:
    with pytest.raises(InvalidConfigError, match="is no endpoint of etcd") as caught:
        EtcdClient(EtcdConf(endpoints=("http://ok", url)))
    assert caught.value.details.startswith("$.ipam.etcd.endpoints[1]")
    with pytest.raises(InvalidConfigError, match="no endpoint of etcd"):
        EtcdClient(EtcdConf())
