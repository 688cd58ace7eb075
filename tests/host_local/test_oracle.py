"""The same random sequence of requests and foreign edits for our store, the memory store, and the reference."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cnisdk.errors import CNIError
from cnisdk.ipam import Lease, MemoryStore, Owner, RoundRobin
from cnisdk.ipam._records import content
from cnisdk.ipam.allocator import release_exactly
from cnisdk.spec.addresses import parse_address
from cnisdk.testing.stores import everything, range_sets, reserve
from cnisdk_plugins.host_local import HostLocal

from .conftest import GO, Network, Program

SUBNETS = ("10.9.0.0/29", "fd00:9::/125")
EXAMPLES = 200 if os.environ.get("CNISDK_STRESS") else 12

containers = st.sampled_from(["one", "two", "three", "four"])
ifnames = st.sampled_from(["eth0", "eth1"])
hosts = st.integers(2, 6)


class Three(RuleBasedStateMachine):
    """Requests go to all three. The reference has no GC: there, DEL of what GC must drop stands in."""

    ours = Program(HostLocal)
    theirs = Program(GO)

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.mine = Network(Path(self.directory.name, "mine"))
        self.other = Network(Path(self.directory.name, "theirs")) if GO.exists() else None
        self.memory = MemoryStore()
        self.allocator = RoundRobin(self.memory, range_sets(*SUBNETS))
        for network in self.networks:
            network.path.mkdir(parents=True)

    @property
    def networks(self) -> list[Network]:
        return [each for each in (self.mine, self.other) if each is not None]

    def conf(self, network: Network, **more: Any) -> dict[str, Any]:
        return {**network.conf(*SUBNETS, version=more.pop("version", "1.0.0")), **more}

    def allocate(self, owner: Owner) -> tuple[list[str], int]:
        """Return the addresses of the memory store, or the code of its error."""
        try:
            return [str(ip.address.ip) for ip in self.allocator.allocate(owner)], 0
        except CNIError as exc:
            return [], exc.code

    @rule(container=containers, ifname=ifnames)
    def add(self, container: str, ifname: str) -> None:
        owner = Owner(container, ifname)
        held = self.allocator.find(owner)
        answer = self.ours("ADD", self.conf(self.mine), container, ifname)
        expected, code = self.allocate(owner)
        if expected:
            assert answer.ips == expected
        else:
            assert (answer.status, answer.document["code"]) == (1, code)
        if self.other is None or (held and not expected):
            return  # where a second ADD fails late, the reference frees the addresses of the first: not followed
        reply = self.theirs("ADD", self.conf(self.other), container, ifname)
        assert reply.status == answer.status
        if expected:
            assert reply.document == answer.document

    @rule(container=containers, ifname=ifnames)
    def delete(self, container: str, ifname: str) -> None:
        released = self.allocator.release(Owner(container, ifname))
        assert self.ours("DEL", self.conf(self.mine), container, ifname).status == 0
        if self.other is None:
            return
        if released and released[0].owner.ifname and self.allocator.find(Owner(container)):
            # The reference releases once for each range set, and so takes the container's old record for the second.
            for lease in released:
                (self.other.path / str(lease.address)).unlink()
        else:
            assert self.theirs("DEL", self.conf(self.other), container, ifname).status == 0

    @rule(container=containers, ifname=ifnames)
    def check(self, container: str, ifname: str) -> None:
        held = bool(self.allocator.find(Owner(container, ifname)))
        assert self.ours("CHECK", self.conf(self.mine), container, ifname).status == (0 if held else 1)
        if self.other is not None:
            assert self.theirs("CHECK", self.conf(self.other), container, ifname).status == (0 if held else 1)

    @rule(valid=st.sets(st.tuples(containers, ifnames), max_size=5))
    def collect(self, valid: set[tuple[str, str]]) -> None:
        dropped = self.allocator.retain([Owner(*each) for each in valid])
        entries = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        conf = self.conf(self.mine, version="1.1.0", **{"cni.dev/valid-attachments": entries})
        assert self.ours("GC", conf).status == 0
        if self.other is not None:
            for lease in dropped:
                (self.other.path / str(lease.address)).unlink()

    @rule(host=hosts, six=st.booleans(), container=containers, ifname=st.sampled_from(["eth0", ""]))
    def write_by_hand(self, host: int, six: bool, container: str, ifname: str) -> None:
        address, owner = parse_address(f"fd00:9::{host}" if six else f"10.9.0.{host}"), Owner(container, ifname)
        if address in everything(self.memory):
            return
        reserve(self.memory, Lease(address, owner))
        for network in self.networks:
            (network.path / str(address)).write_bytes(content(owner))

    @rule(data=st.data())
    def delete_by_hand(self, data: st.DataObject) -> None:
        leases = everything(self.memory)
        if not leases:
            return
        address = data.draw(st.sampled_from(sorted(leases, key=str)))
        release_exactly(self.memory, [Lease(address, leases[address])])
        for network in self.networks:
            (network.path / str(address)).unlink()

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "memory"):
            return
        leases = {str(address): content(owner) for address, owner in everything(self.memory).items()}
        for network in self.networks:
            assert network.leases() == leases

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.cleanup()


@pytest.mark.interop
def test_three_agree() -> None:
    run_state_machine_as_test(
        Three,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
