"""Beside the reference: the same answers, the same files, in one directory."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest

from .conftest import Network, Program

pytestmark = pytest.mark.interop

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"]

V4, V6 = "10.9.0.0/24", "fd00:9::/64"
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.9.0.7"}, {"dst": "::/0"}]

VALID: dict[str, dict[str, Any]] = {
    "one set": {"ipam": {"ranges": [[{"subnet": V4}]]}},
    "dual stack": {"ipam": {"ranges": [[{"subnet": V4}], [{"subnet": V6}]], "routes": ROUTES}},
    "flat keys": {"ipam": {"subnet": V4, "rangeStart": "10.9.0.10", "rangeEnd": "10.9.0.20", "gateway": "10.9.0.254"}},
    "flat keys and ranges": {"ipam": {"subnet": V6, "ranges": [[{"subnet": V4}]]}},
    "keys in other case": {"ipam": {"SUBNET": V4, "RangeStart": "10.9.0.10"}},
    "null and empty": {"ipam": {"subnet": V4, "rangeStart": "", "gateway": None, "routes": None, "resolvConf": ""}},
    "start at the network": {"ipam": {"subnet": V4, "rangeStart": "10.9.0.0"}},
    "gateway outside": {"ipam": {"subnet": V4, "gateway": "192.0.2.1"}},
    "two ranges": {"ipam": {"ranges": [[{"subnet": V4, "rangeEnd": "10.9.0.2"}, {"subnet": "10.10.0.0/24"}]]}},
    "halves of a subnet": {
        "ipam": {"ranges": [[{"subnet": V6, "rangeEnd": "fd00:9::ff"}], [{"subnet": V6, "rangeStart": "fd00:9::100"}]]},
        "only from": "0.3.0",
    },
    "ranges of the runtime": {
        "ipam": {"ranges": [[{"subnet": V6}]]},
        "runtimeConfig": {"ipRanges": [[{"subnet": V4, "rangeStart": "10.9.0.77"}]]},
    },
    "requested in args": {"ipam": {"ranges": [[{"subnet": V4}]]}, "args": {"cni": {"ips": ["10.9.0.99"]}}},
    "requested by the runtime": {
        "ipam": {"ranges": [[{"subnet": V4}], [{"subnet": V6}]]},
        "runtimeConfig": {"ips": ["10.9.0.200/16", "fd00:9::77"]},
    },
    "mapped request": {"ipam": {"ranges": [[{"subnet": V4}]]}, "runtimeConfig": {"ips": ["::ffff:10.9.0.33"]}},
    "large": {"ipam": {"ranges": [[{"subnet": "10.0.0.0/8"}], [{"subnet": "fd00::/8"}]]}},
    "small": {"ipam": {"ranges": [[{"subnet": "10.9.0.0/30"}]]}},
    "unknown keys": {"ipam": {"subnet": V4, "comment": "hello"}, "labels": {"a": 1}},
}

INVALID: dict[str, dict[str, Any]] = {
    "no ranges": {"ipam": {}},
    "empty set": {"ipam": {"ranges": [[]]}},
    "/31": {"ipam": {"subnet": "10.9.0.0/31"}},
    "/128": {"ipam": {"subnet": "fd00::1/128"}},
    "host bits": {"ipam": {"subnet": "10.9.0.1/24"}},
    "mapped subnet": {"ipam": {"subnet": "::ffff:10.9.0.0/120"}},
    "start outside": {"ipam": {"subnet": V4, "rangeStart": "10.9.1.0"}},
    "end outside": {"ipam": {"subnet": V4, "rangeEnd": "10.9.1.0"}},
    "start after end": {"ipam": {"subnet": V4, "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.8"}},
    "start of the other family": {"ipam": {"subnet": V4, "rangeStart": "fd00::1"}},
    "two families": {"ipam": {"ranges": [[{"subnet": V4}, {"subnet": V6}]]}},
    "overlap in a set": {"ipam": {"ranges": [[{"subnet": V4}, {"subnet": "10.9.0.128/25"}]]}},
    "overlap of sets": {"ipam": {"ranges": [[{"subnet": V4}], [{"subnet": "10.9.0.0/16"}]]}},
    "overlap with the flat keys": {"ipam": {"subnet": V4, "ranges": [[{"subnet": V4}]]}},
    "no subnet": {"ipam": {"ranges": [[{"rangeStart": "10.9.0.1"}]]}},
    "bad subnet": {"ipam": {"subnet": "bogus"}},
    "bad gateway": {"ipam": {"subnet": V4, "gateway": "bogus"}},
    "bad start": {"ipam": {"subnet": V4, "rangeStart": "10.9.0.256"}},
    "requested elsewhere": {"ipam": {"subnet": V4}, "runtimeConfig": {"ips": ["10.8.0.1", "10.9.0.5"]}},
    "requested gateway": {"ipam": {"subnet": V4}, "runtimeConfig": {"ips": ["10.9.0.1"]}},
    "requested nonsense": {"ipam": {"subnet": V4}, "runtimeConfig": {"ips": ["bogus"]}},
    "subnet is a number": {"ipam": {"subnet": 5}},
    "missing resolv.conf": {"ipam": {"subnet": V4, "resolvConf": "/nonexistent/resolv.conf"}},
}
# Where the texts differ: the reference prints what its JSON decoder or its parser says, or nothing that helps.
OTHER_TEXT = {"no subnet", "requested nonsense", "subnet is a number", "missing resolv.conf", "no ranges"}


def document(case: dict[str, Any], version: str, data_dir: Path) -> dict[str, Any]:
    made = {"cniVersion": version, "name": "net", "type": "test", **copy.deepcopy(case)}
    made.pop("only from", None)
    made["ipam"] = {"type": "host-local", "dataDir": str(data_dir), **made["ipam"]}
    return made


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("version", VERSIONS)
def test_results_and_files_are_equal(
    ours: Program, name: str, version: str, tmp_path: Path, reference: Program
) -> None:
    case = VALID[name]
    if version < case.get("only from", ""):
        pytest.skip("has two addresses of a family")
    for container in ("one", "two", "three"):
        mine = ours("ADD", document(case, version, tmp_path / "ours"), container)
        other = reference("ADD", document(case, version, tmp_path / "theirs"), container)
        if other.status:
            assert mine.status == 1  # a full range, or a requested address that is taken
            assert mine.document["msg"] == other.document["msg"]
            continue
        assert mine.status == 0, mine.document
        assert mine.document == other.document
    assert Network(tmp_path / "ours").everything() == Network(tmp_path / "theirs").everything()


@pytest.mark.parametrize("name", INVALID)
def test_what_the_reference_refuses_is_refused(ours: Program, name: str, tmp_path: Path, reference: Program) -> None:
    mine = ours("ADD", document(INVALID[name], "0.4.0", tmp_path / "ours"))
    other = reference("ADD", document(INVALID[name], "0.4.0", tmp_path / "theirs"))
    assert other.status == 1
    assert mine.status == 1
    assert mine.document["code"] in (5, 7)
    if name not in OTHER_TEXT:
        # The reference's decoder puts the text of its own error around ours, or the other way round.
        assert (
            mine.document["msg"].rpartition(": ")[2] in other.document["msg"]
            or other.document["msg"] in mine.document["msg"]
        )
    assert not Network(tmp_path / "ours").leases()


@pytest.mark.parametrize("version", VERSIONS)
def test_one_directory_two_programs(ours: Program, version: str, network: Network, reference: Program) -> None:
    """Each of the two checks and deletes what the other added, in turns."""
    conf = network.conf(V4, V6, version=version)
    programs = itertools.cycle([ours, reference])
    added = {}
    for number in range(8):
        added[f"c{number}"] = next(programs)("ADD", conf, f"c{number}")
    addresses = [ip for answer in added.values() for ip in _addresses(answer.document)]
    assert len(set(addresses)) == 16
    assert sorted(network.leases()) == sorted(addresses)
    next(programs)  # so that each deals with what the other added
    for container, answer in added.items():
        other = next(programs)
        assert other("ADD", conf, container).status == 1
        if version >= "0.4.0":
            assert other("CHECK", {**conf, "prevResult": answer.document}, container).status == 0
        assert other("DEL", conf, container).status == 0
        if version >= "0.4.0":
            assert ours("CHECK", {**conf, "prevResult": answer.document}, container).status == 1
            assert reference("CHECK", {**conf, "prevResult": answer.document}, container).status == 1
    assert network.leases() == {}


def _addresses(result: dict[str, Any]) -> list[str]:
    if "ips" in result:
        return [ip["address"].partition("/")[0] for ip in result["ips"]]
    return [result[key]["ip"].partition("/")[0] for key in ("ip4", "ip6") if key in result]


def test_round_robin_goes_on_where_the_other_stopped(ours: Program, network: Network, reference: Program) -> None:
    conf = network.conf([{"subnet": "10.9.0.0/29"}, {"subnet": "10.9.1.0/29"}])
    programs = itertools.cycle([ours, reference, reference])
    got = []
    for number in range(25):
        program = next(programs)
        answer = program("ADD", conf, f"c{number}")
        got += answer.ips
        assert program("DEL", conf, f"c{number}").status == 0
    order = [f"10.9.{net}.{host}" for net in (0, 1) for host in range(2, 7)]
    assert got == [order[number % len(order)] for number in range(25)]


def test_old_records_without_interface(ours: Program, network: Network, reference: Program) -> None:
    conf = network.conf(V4)
    for program in (ours, reference):
        assert program("ADD", conf, "other").status == 0
        (network.path / "10.9.0.50").write_bytes(b"old")
        assert program("ADD", conf, "old").status == 1
        assert program("CHECK", conf, "old", "net5").status == 0
        assert program("DEL", conf, "old", "net5").status == 0
        assert "10.9.0.50" not in network.leases()
        # A newer record of the interface goes first, and the old one with the next DEL.
        (network.path / "10.9.0.51").write_bytes(b"other")
        assert program("DEL", conf, "other").status == 0
        assert list(network.leases()) == ["10.9.0.51"]
        assert program("DEL", conf, "other").status == 0
        assert network.leases() == {}


def test_white_space_around_an_owner_does_not_count(ours: Program, network: Network, reference: Program) -> None:
    conf = network.conf(V4)
    for program in (ours, reference):
        assert program("ADD", conf, "x").status == 0
        (network.path / "10.9.0.50").write_bytes(b"one\r\neth0\n")
        assert program("CHECK", conf, "one").status == 0
        assert program("DEL", conf, "one").status == 0
        assert program("DEL", conf, "x").status == 0
        assert network.leases() == {}


def test_cursor_with_nonsense(ours: Program, network: Network, reference: Program) -> None:
    conf = network.conf(V4)
    for program in (ours, reference):
        network.path.mkdir(parents=True, exist_ok=True)
        (network.path / "last_reserved_ip.0").write_bytes(b"10.9.0.300")
        assert program("ADD", conf, "one").ips == ["10.9.0.2"]
        assert program("DEL", conf, "one").status == 0
