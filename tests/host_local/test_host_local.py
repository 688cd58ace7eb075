"""Host-local's features beyond the reference, and cases in which the reference is wrong."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnisdk.ipam import FileStore, Owner, RoundRobin
from cnisdk.ipam._records import Boot, current_boot
from cnisdk.ipam.ranges import make_range_set, parse_range
from cnisdk.plugin.reply import respond
from cnisdk.testing import expect_error
from cnisdk_plugins.host_local import HostLocal

from .conftest import Network, Program, environment

V4, V6 = "10.9.0.0/24", "fd00:9::/64"


def attachments(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"cni.dev/valid-attachments": [{"containerID": cid, "ifname": ifname} for cid, ifname in pairs]}


# --- ADD --------------------------------------------------------------------------------------------------------------


def test_dual_stack_by_hand(tmp_path: Path) -> None:
    """The reference's README, through the real entry point."""
    conf = {
        "cniVersion": "0.3.1",
        "name": "examplenet",
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "203.0.113.0/24"}], [{"subnet": "2001:db8:1::/64"}]],
            "dataDir": str(tmp_path / "cni-example"),
        },
    }
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "example",
        "CNI_NETNS": "/dev/null",
        "CNI_IFNAME": "dummy0",
        "CNI_PATH": ".",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "cnisdk_plugins.host_local"],
        input=json.dumps(conf).encode(),
        env=env,
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == {
        "cniVersion": "0.3.1",
        "ips": [
            {"version": "4", "address": "203.0.113.2/24", "gateway": "203.0.113.1"},
            {"version": "6", "address": "2001:db8:1::2/64", "gateway": "2001:db8:1::1"},
        ],
        "dns": {},
    }
    assert done.stderr == b""
    lease = tmp_path / "cni-example" / "examplenet" / "203.0.113.2"
    assert lease.read_bytes() == b"example\r\ndummy0"
    assert lease.stat().st_mode & 0o777 == 0o600


def test_result_in_the_newest_version(ours: Program, network: Network) -> None:
    answer = ours("ADD", network.conf(V4, version="1.1.0", routes=[{"dst": "0.0.0.0/0", "mtu": 1400, "table": 100}]))
    assert answer.document == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "mtu": 1400, "table": 100}],
    }


def test_requested_addresses_from_all_three_places(ours: Program, network: Network) -> None:
    conf = network.conf(V4, V6, "10.10.0.0/24")
    conf["args"] = {"cni": {"ips": ["fd00:9::55"]}}
    conf["runtimeConfig"] = {"ips": ["10.10.0.66/24"]}
    answer = ours("ADD", conf, CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.9.0.44")
    assert answer.ips == ["10.9.0.44", "fd00:9::55", "10.10.0.66"]
    assert (network.path / "last_reserved_ip.1").read_bytes() == b"fd00:9::55"


def test_requested_address_that_is_taken(ours: Program, network: Network) -> None:
    conf = {**network.conf(V4, V6), "runtimeConfig": {"ips": ["fd00:9::2"]}}
    assert ours("ADD", conf).ips == ["10.9.0.2", "fd00:9::2"]
    with expect_error(11, "fd00:9::2", "container one", "eth0"):
        ours("ADD", conf, "two").raise_for_error()
    assert sorted(network.leases()) == ["10.9.0.2", "fd00:9::2"]


@pytest.mark.parametrize("ips", [["10.8.0.1"], ["10.9.0.5", "10.9.0.6"]], ids=["outside", "two of a set"])
def test_requested_addresses_that_cannot_all_be_had(ours: Program, network: Network, ips: list[str]) -> None:
    with expect_error(7, "all requested IPs", ips[-1]):
        ours("ADD", {**network.conf(V4), "runtimeConfig": {"ips": ips}}).raise_for_error()
    assert network.leases() == {}


def test_requested_nonsense_in_cni_args(ours: Program, network: Network) -> None:
    with expect_error(4, "CNI_ARGS", "10.9.0"):
        ours("ADD", network.conf(V4), CNI_ARGS="IP=10.9.0").raise_for_error()


def test_no_gateway_of_any_range_is_handed_out(ours: Program, network: Network) -> None:
    """The reference skips only the gateway of the very range."""
    conf = network.conf(
        [
            {"subnet": "10.9.0.0/28", "rangeStart": "10.9.0.1", "rangeEnd": "10.9.0.3", "gateway": "10.9.0.4"},
            {"subnet": "10.9.0.0/28", "rangeStart": "10.9.0.4", "rangeEnd": "10.9.0.6", "gateway": "10.9.0.9"},
        ],
        [{"subnet": "10.9.0.0/28", "rangeStart": "10.9.0.8", "rangeEnd": "10.9.0.12", "gateway": "10.9.0.2"}],
    )
    got = [ours("ADD", conf, f"c{number}").ips for number in range(4)]
    assert got == [
        ["10.9.0.1", "10.9.0.8"],
        ["10.9.0.3", "10.9.0.10"],
        ["10.9.0.5", "10.9.0.11"],
        ["10.9.0.6", "10.9.0.12"],
    ]
    with expect_error(7, "10.9.0.4", "gateway"):
        ours("ADD", {**conf, "runtimeConfig": {"ips": ["10.9.0.4"]}}, "c9").raise_for_error()


def test_exhausted(ours: Program, network: Network) -> None:
    conf = network.conf(V6, "10.9.0.0/30")
    assert ours("ADD", conf).status == 0
    before = network.everything()
    with expect_error(11, "no IP addresses available", "10.9.0.1-10.9.0.2", "$.ipam.ranges[1]"):
        ours("ADD", conf, "two").raise_for_error()
    assert network.everything() == before


def test_a_second_add_is_refused_and_frees_nothing(ours: Program, network: Network) -> None:
    """In the reference, a second ADD that fails late releases the addresses of the first."""
    assert ours("ADD", network.conf(V4, V6)).status == 0
    before = network.everything()
    requested = {**network.conf("10.8.0.0/24", V4, V6), "runtimeConfig": {"ips": ["10.8.0.9"]}}
    with expect_error(4, "duplicate allocation is not allowed", "CNI_CONTAINERID", "eth0"):
        ours("ADD", requested).raise_for_error()
    assert network.everything() == before
    # Another requested address does not get it a second one either.
    with expect_error(4, "10.9.0.2"):
        ours("ADD", {**network.conf(V4), "runtimeConfig": {"ips": ["10.9.0.9"]}}).raise_for_error()


def test_another_interface_of_the_container_is_another_attachment(ours: Program, network: Network) -> None:
    assert ours("ADD", network.conf(V4)).ips == ["10.9.0.2"]
    assert ours("ADD", network.conf(V4), ifname="eth1").ips == ["10.9.0.3"]
    assert ours("DEL", network.conf(V4)).status == 0
    assert list(network.leases()) == ["10.9.0.3"]


def test_on_duplicate_return(ours: Program, network: Network) -> None:
    conf = network.conf(V4, V6, onDuplicate="return")
    first = ours("ADD", conf)
    before = network.everything()
    assert ours("ADD", conf) == first
    assert ours("ADD", {**conf, "runtimeConfig": {"ips": first.ips}}) == first
    assert network.everything() == before
    with expect_error(4, "10.9.0.2", "10.9.0.9"):
        ours("ADD", {**conf, "runtimeConfig": {"ips": ["10.9.0.9"]}}).raise_for_error()
    # A killed ADD may have left one of two: the other is added.
    (network.path / "fd00:9::2").unlink()
    assert ours("ADD", conf).ips == ["10.9.0.2", "fd00:9::3"]


def test_on_duplicate_nonsense(ours: Program, network: Network) -> None:
    with expect_error(7, "$.ipam.onDuplicate", "ignore"):
        ours("ADD", network.conf(V4, onDuplicate="ignore")).raise_for_error()


@pytest.mark.parametrize("place", ["ranges", "flat", "runtime"])
def test_exclude(ours: Program, network: Network, place: str) -> None:
    one = {"subnet": "10.9.0.0/28", "exclude": ["10.9.0.2-10.9.0.4", "10.9.0.8/29", "10.9.0.6"]}
    conf = network.conf([one]) if place == "ranges" else network.conf()
    if place == "flat":
        conf["ipam"].update(one)
    elif place == "runtime":
        conf["runtimeConfig"] = {"ipRanges": [[one]]}
    assert [ours("ADD", conf, f"c{number}").ips for number in range(2)] == [["10.9.0.5"], ["10.9.0.7"]]
    with expect_error(11, "all 2 are held"):
        ours("ADD", conf, "c2").raise_for_error()
    with expect_error(7, "10.9.0.3", "excluded"):
        ours("ADD", {**conf, "args": {"cni": {"ips": ["10.9.0.3"]}}}, "c2").raise_for_error()


@pytest.mark.parametrize("text", ["10.9.1.0", "10.9.0.9-10.9.0.8", "fd00::1", "x", "10.9.0.1-", "10.9.0.0/99", ""])
def test_bad_exclude(ours: Program, network: Network, text: str) -> None:
    conf = network.conf([{"subnet": V4, "exclude": ["10.9.0.4", text]}])
    with expect_error(7, "$.ipam.ranges[0][0].exclude[1]", text):
        ours("ADD", conf).raise_for_error()


@pytest.mark.parametrize(
    ("ipam", "path"),
    [
        ({"ranges": 5}, "$.ipam.ranges"),
        ({"ranges": [{"subnet": V4}]}, "$.ipam.ranges[0]"),
        ({"ranges": [[V4]]}, "$.ipam.ranges[0][0]"),
        ({"ranges": [[{"subnet": 5}]]}, "$.ipam.ranges[0][0].subnet"),
        ({"subnet": V4, "routes": [{}]}, "$.ipam.routes[0].dst"),
        ({"subnet": V4, "routes": [{"dst": "10.0.0.0/8", "mtu": "1"}]}, "$.ipam.routes[0].mtu"),
        ({"subnet": V4, "dataDir": 1}, "$.ipam.dataDir"),
        ({"subnet": V4, "dataDir": "/tmp/\0x"}, "$.ipam.dataDir"),
        ({"subnet": V4, "resolvConf": {}}, "$.ipam.resolvConf"),
        ({"subnet": V4, "reclaimEarlierBoots": "no"}, "$.ipam.reclaimEarlierBoots"),
        ({"subnet": "10.9.0.1/24"}, "$.ipam.subnet"),
        ({"ranges": [[{"subnet": V6}], [{"subnet": V4, "rangeEnd": "10.0.0.1"}]]}, "$.ipam.ranges[1][0].rangeEnd"),
    ],
)
def test_bad_values_are_named_by_their_path(ours: Program, network: Network, ipam: dict[str, Any], path: str) -> None:
    conf = network.conf()
    del conf["ipam"]["ranges"]
    conf["ipam"].update(ipam)
    with expect_error(7, path):
        ours("ADD", conf).raise_for_error()
    assert not network.path.exists()


def test_no_ipam(ours: Program, network: Network) -> None:
    with expect_error(7, "IPAM config missing 'ipam' key", "$.ipam"):
        ours("ADD", {"cniVersion": "1.0.0", "name": "net"}).raise_for_error()


def test_resolv_conf(ours: Program, network: Network, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53 # second\n; old\ndomain first.example\n"
        "domain second.example\nsearch a.example b.example\nsearch c.example\noptions ndots:2 rotate\nsortlist x\n"
    )
    assert ours("ADD", network.conf(V4, resolvConf=str(file))).document["dns"] == {
        "nameservers": ["192.0.2.53", "2001:db8::53"],
        "domain": "second.example",
        "search": ["a.example", "b.example", "c.example"],
        "options": ["ndots:2", "rotate"],
    }


def test_missing_resolv_conf_leases_nothing(ours: Program, network: Network) -> None:
    with expect_error(5, "/nonexistent/resolv.conf"):
        ours("ADD", network.conf(V4, resolvConf="/nonexistent/resolv.conf")).raise_for_error()
    assert not network.path.exists()


def test_a_fifo_in_place_of_resolv_conf_is_not_waited_for(ours: Program, network: Network, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "resolv.conf")
    with expect_error(5, f"{tmp_path}/resolv.conf: it is a FIFO", "$.ipam.resolvConf"):
        ours("ADD", network.conf(V4, resolvConf=str(tmp_path / "resolv.conf"))).raise_for_error()
    assert not network.path.exists()


def test_relative_data_dir(ours: Program, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the reference: relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    assert ours("ADD", network.conf(V4, dataDir="some/where")).status == 0
    assert (tmp_path / "some/where/net/10.9.0.2").exists()


def test_data_dir_that_is_a_file(ours: Program, network: Network, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    conf = network.conf(V4, dataDir=str(tmp_path / "file"), version="1.1.0")
    with expect_error(5, str(tmp_path / "file"), "ENOTDIR"):
        ours("ADD", conf).raise_for_error()
    with expect_error(50, str(tmp_path / "file"), "ENOTDIR"):
        ours("STATUS", conf).raise_for_error()


def test_network_name_too_long_for_a_directory(ours: Program, network: Network) -> None:
    with expect_error(5, "ENAMETOOLONG"):
        ours("ADD", {**network.conf(V4), "name": "n" * 300}).raise_for_error()


def test_a_lock_that_is_held(ours: Program, network: Network) -> None:
    conf = network.conf(V4, lockTimeout=0.05)
    assert ours("ADD", conf).status == 0
    before = network.everything()
    with open(network.path / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with expect_error(50, f"{network.path}/lock", f"process {os.getpid()}"):
            ours("STATUS", {**conf, "cniVersion": "1.1.0"}).raise_for_error()
        for verb in ("ADD", "DEL"):
            with expect_error(11, f"{network.path}/lock", f"process {os.getpid()}"):
                ours(verb, conf, "two").raise_for_error()
    assert network.everything() == before
    assert ours("ADD", conf, "two").status == 0


@pytest.mark.parametrize("seconds", [-1, 0, 1e300])
def test_extreme_lock_timeouts(ours: Program, network: Network, seconds: float) -> None:
    assert ours("ADD", network.conf(V4, lockTimeout=seconds)).status == 0


# --- DEL --------------------------------------------------------------------------------------------------------------


def test_del_of_nothing_makes_nothing(ours: Program, network: Network) -> None:
    assert ours("DEL", network.conf(V4)).status == 0
    assert not network.data_dir.exists()


@pytest.mark.parametrize(
    "ipam",
    [
        {},
        {"ranges": []},
        {"ranges": [[{"subnet": "10.9.0.1/24"}]]},
        {"ranges": [[{"subnet": 7}]]},
        {"ranges": "all"},
        {"subnet": "usePodCidr"},
        {"routes": [{"dst": "nowhere"}]},
        {"resolvConf": "/nonexistent"},
        {"onDuplicate": "what"},
        {"lockTimeout": "long"},
    ],
)
def test_del_with_a_configuration_that_became_invalid(ours: Program, network: Network, ipam: dict[str, Any]) -> None:
    assert ours("ADD", network.conf(V4, V6)).status == 0
    conf = network.conf()
    conf["ipam"] = {"type": "host-local", "dataDir": str(network.data_dir), **ipam}
    assert ours("DEL", conf).status == 0
    assert network.leases() == {}


def test_del_twice_and_with_bad_arguments(ours: Program, network: Network) -> None:
    assert ours("ADD", network.conf(V4, V6)).status == 0
    for _ in range(2):
        assert ours("DEL", network.conf(V4, V6), CNI_ARGS="broken", CNI_NETNS="").status == 0
        assert network.leases() == {}


# --- CHECK ------------------------------------------------------------------------------------------------------------


def test_check(ours: Program, network: Network) -> None:
    conf = network.conf(V4, V6)
    result = ours("ADD", conf).document
    assert ours("CHECK", {**conf, "prevResult": result}).status == 0
    assert ours("CHECK", conf).status == 0
    with expect_error(3, "two", "eth0"):
        ours("CHECK", {**conf, "prevResult": result}, "two").raise_for_error()
    with expect_error(3, "eth1"):
        ours("CHECK", {**conf, "prevResult": result}, ifname="eth1").raise_for_error()
    # Addresses that are none of ours (a main plugin's own) are none of our business.
    more = {**result, "ips": [*result["ips"], {"address": "192.0.2.1/24"}]}
    assert ours("CHECK", {**conf, "prevResult": more}).status == 0


def test_check_finds_a_lost_and_a_surplus_address(ours: Program, network: Network) -> None:
    """The reference is content with any one lease."""
    conf = network.conf(V4, V6)
    result = ours("ADD", conf).document
    (network.path / "10.9.0.77").write_bytes(b"one\r\neth0")
    with expect_error(3, "10.9.0.77"):
        ours("CHECK", {**conf, "prevResult": result}).raise_for_error()
    (network.path / "10.9.0.77").unlink()
    (network.path / "fd00:9::2").unlink()
    with expect_error(3, "fd00:9::2"):
        ours("CHECK", {**conf, "prevResult": result}).raise_for_error()
    assert sorted(network.leases()) == ["10.9.0.2"]


# --- GC and STATUS ----------------------------------------------------------------------------------------------------


def test_gc_by_owner(ours: Program, network: Network) -> None:
    conf = network.conf(V4, V6, version="1.1.0")
    for number in range(4):
        assert ours("ADD", conf, f"c{number}").status == 0
    assert ours("ADD", conf, "c0", "eth1").status == 0
    (network.path / "10.9.0.100").write_bytes(b"c1")  # old records: of a container that lives, and of one that does not
    (network.path / "10.9.0.101").write_bytes(b"gone")
    (network.path / "10.9.0.102").write_bytes(b"reserved for the printer\n")
    answer = ours("GC", {**conf, **attachments(("c0", "eth0"), ("c1", "eth0"), ("c9", "eth0"))}, "")
    assert answer.status == 0
    assert sorted(network.leases()) == [
        "10.9.0.100",
        "10.9.0.102",
        "10.9.0.2",
        "10.9.0.3",
        "fd00:9::2",
        "fd00:9::3",
    ]


def test_gc_with_a_configuration_that_became_invalid_for_add(ours: Program, network: Network) -> None:
    conf = network.conf(V4, version="1.1.0")
    assert ours("ADD", conf).status == 0
    assert ours("GC", {**network.conf("10.9.0.1/24", version="1.1.0"), **attachments()}).status == 0
    assert network.leases() == {}


def test_gc_without_a_list_drops_nothing(ours: Program, network: Network) -> None:
    conf = network.conf(V4, version="1.1.0")
    assert ours("ADD", conf).status == 0
    with expect_error(7, "cni.dev/valid-attachments"):
        ours("GC", conf).raise_for_error()
    assert sorted(network.leases()) == ["10.9.0.2"]


def test_status(ours: Program, network: Network) -> None:
    conf = network.conf("10.9.0.0/30", V6, version="1.1.0")
    assert ours("STATUS", conf).status == 0
    assert not network.data_dir.exists()  # asking makes nothing
    assert ours("ADD", conf).status == 0
    with expect_error(50, "no IP addresses available", "10.9.0.1-10.9.0.2"):
        ours("STATUS", conf).raise_for_error()
    assert ours("DEL", conf).status == 0
    assert ours("STATUS", conf).status == 0


def test_status_of_a_broken_configuration(ours: Program, network: Network) -> None:
    with expect_error(7, "$.ipam.ranges[0][0].subnet"):
        ours("STATUS", network.conf("10.9.0.1/24", version="1.1.0")).raise_for_error()


# --- leases nobody needs ----------------------------------------------------------------------------------------------


def test_empty_and_torn_leases_are_reclaimed(
    ours: Program, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = network.conf("10.9.0.0/29", version="1.1.0")
    assert ours("ADD", conf).status == 0
    for name, content in (("10.9.0.3", b""), ("10.9.0.4", b"\0\0\0"), ("10.9.0.5", b"???"), ("10.9.0.6", b"me")):
        (network.path / name).write_bytes(content)
    asked = ours("STATUS", conf)
    assert (asked.status, asked.stderr, capsys.readouterr().err) == (0, "", "")
    assert (network.path / "10.9.0.3").exists()  # a question changes nothing
    answers = [ours("ADD", conf, f"c{number}") for number in range(2)]
    assert [answer.ips for answer in answers] == [["10.9.0.3"], ["10.9.0.4"]]
    said = "".join([capsys.readouterr().err, *(answer.stderr for answer in answers)])
    assert [line.partition(": it is empty")[0] for line in sorted(said.splitlines())] == [
        f"host-local: reclaimed {network.path}/10.9.0.3",
        f"host-local: reclaimed {network.path}/10.9.0.4",
    ]
    with expect_error(11):
        ours("ADD", conf, "c2").raise_for_error()


def leases_of_another_boot(network: Network, boot: Boot) -> None:
    store = FileStore(str(network.data_dir), network.name, boot=boot)
    RoundRobin(store, [make_range_set([parse_range(V4)], 0, "")]).allocate(Owner("old", "eth0"))


def test_reclaiming_earlier_boots_can_be_switched_off(ours: Program, network: Network) -> None:
    this = current_boot()
    leases_of_another_boot(network, Boot("11111111-2222-3333-4444-555555555555", this.machine_id))
    (network.path / "10.9.0.3").write_bytes(b"unknown\r\neth0")  # the reference's, of whichever boot
    conf = network.conf(V4)
    with expect_error(3, "old"):
        ours("CHECK", conf, "old").raise_for_error()
    assert ours("ADD", network.conf(V4, reclaimEarlierBoots=False), "kept").ips == ["10.9.0.4"]
    assert sorted(network.leases()) == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]


def test_leases_of_earlier_boots_are_reclaimed_by_the_first_change(ours: Program, network: Network) -> None:
    this = current_boot()
    leases_of_another_boot(network, Boot("11111111-2222-3333-4444-555555555555", this.machine_id))
    (network.path / "10.9.0.3").write_bytes(b"unknown\r\neth0")
    assert ours("DEL", network.conf(V4), "somebody").status == 0
    assert network.leases() == {"10.9.0.3": b"unknown\r\neth0"}


def test_leases_of_another_machine_are_left_alone(ours: Program, network: Network) -> None:
    leases_of_another_boot(network, Boot("11111111-2222-3333-4444-555555555555", "0123456789abcdef"))
    assert ours("ADD", network.conf(V4)).ips == ["10.9.0.3"]


def test_undo_releases_only_what_this_add_leased(ours: Program, network: Network) -> None:
    conf = network.conf(V4, V6, onDuplicate="return")
    stdin = json.dumps(conf).encode()
    respond(HostLocal, environment("ADD"), stdin).undo.unwind()
    assert network.leases() == {}
    assert ours("ADD", conf).status == 0
    respond(HostLocal, environment("ADD"), stdin).undo.unwind()
    assert len(network.leases()) == 2


def test_version(ours: Program, network: Network) -> None:
    assert ours("VERSION", b"{}").document["supportedVersions"][-1] == "1.1.0"


def test_the_kernel_modules_are_never_imported(network: Network) -> None:
    """An IPAM plugin has nothing to do with links: importing what talks to the kernel would double its time."""
    script = (
        "import os, sys\n"
        "from cnisdk.plugin.reply import respond\n"
        "from cnisdk_plugins.host_local import HostLocal\n"
        "sys.stdout.write(respond(HostLocal, os.environ, sys.stdin.buffer.read()).stdout.decode())\n"
        "print(*(name for name in sys.modules if name.startswith(('cnisdk.linux', 'pyroute2'))), file=sys.stderr)"
    )
    env = environment("ADD", PYTHONPATH=os.pathsep.join(sys.path))
    stdin = json.dumps(network.conf(V4)).encode()
    done = subprocess.run([sys.executable, "-c", script], input=stdin, env=env, capture_output=True, check=True)
    assert json.loads(done.stdout)["ips"]
    assert done.stderr == b"\n"


# --- links that lead nowhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
@pytest.mark.parametrize("place", ["above", "dataDir", "network", "lock"])
def test_a_link_that_leads_nowhere_is_named_at_once(ours: Program, network: Network, place: str, verb: str) -> None:
    """A disk that is not mounted: no verb waits, and a DEL does not say that nothing was leased."""
    conf = network.conf(V4, version="1.1.0") | attachments()
    if place == "lock":
        assert ours("ADD", conf, "other").status == 0
        (network.path / "lock").unlink()
    else:
        network.data_dir.mkdir(exist_ok=True)
    link = {
        "above": network.data_dir / "disk",
        "dataDir": network.data_dir / "disk",
        "network": network.path,
        "lock": network.path / "lock",
    }[place]
    if place in ("above", "dataDir"):
        conf["ipam"]["dataDir"] = f"{link}/state" if place == "above" else str(link)
    link.symlink_to("/nowhere/at/all")
    before = sorted(network.data_dir.rglob("*"))
    answer = ours(verb, conf | {"ipam": conf["ipam"] | {"lockTimeout": 3600}})  # it would take an hour
    with expect_error(50 if verb == "STATUS" else 5, str(link), "/nowhere/at/all"):
        answer.raise_for_error()
    assert sorted(network.data_dir.rglob("*")) == before


def test_a_place_where_nothing_can_be_made_is_named_at_once(ours: Program, network: Network) -> None:
    conf = network.conf(V4, dataDir="/proc/self/here", lockTimeout=3600)
    with expect_error(5, "/proc/self/here", "ENOENT"):
        ours("ADD", conf).raise_for_error()


# --- values of any size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400])
def test_a_number_no_clock_can_count_with(ours: Program, network: Network, number: str) -> None:
    """It is refused by name where the configuration must be right, and DEL works as without it."""
    conf = network.conf(V4, version="1.1.0") | attachments()
    assert ours("ADD", conf).status == 0
    wrong = json.dumps(conf | {"ipam": conf["ipam"] | {"lockTimeout": "HERE"}}).replace('"HERE"', number).encode()
    for verb in ("ADD", "CHECK", "GC", "STATUS"):
        with expect_error(7, "$.ipam.lockTimeout"):
            ours(verb, wrong).raise_for_error()
    assert ours("DEL", wrong).status == 0
    assert network.leases() == {}


def test_a_container_id_that_no_lease_can_hold_is_refused(ours: Program, network: Network) -> None:
    """It would be leased to a name cut short: DEL would not find it, or find that of another."""
    conf = network.conf(V4, version="1.1.0")
    longest = "c" * (64 * 1024 - len("\r\neth0"))
    assert ours("ADD", conf, longest).ips == ["10.9.0.2"]
    for container in (longest + "c", "c" * 100_000):
        with expect_error(4, "CNI_CONTAINERID", str(len(container))):
            ours("ADD", conf, container).raise_for_error()
        assert ours("DEL", conf, container).status == 0
    (network.path / "10.9.0.9").write_bytes(b"c" * 100_000 + b"\r\neth0")
    assert ours("GC", conf | attachments((longest, "eth0"))).status == 0
    assert sorted(network.leases()) == ["10.9.0.2", "10.9.0.9"]
    assert ours("DEL", conf, longest).status == 0
    assert list(network.leases()) == ["10.9.0.9"]


@pytest.mark.parametrize(
    ("route", "complaint"),
    [
        ({"dst": "10.0.0.0/99"}, "$.ipam.routes[0].dst is '10.0.0.0/99', expected a network"),
        ({"dst": ""}, "$.ipam.routes[0].dst is '', expected a network"),
        ({"gw": "10.9.0.1"}, "$.ipam.routes[0].dst is missing"),
    ],
)
def test_a_malformed_destination_is_not_called_missing(tmp_path: Path, route: dict[str, str], complaint: str) -> None:
    ipam = {"type": "host-local", "subnet": V4, "routes": [route], "dataDir": str(tmp_path)}
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam}
    variables = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/x",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/x",
    }
    reply = respond(HostLocal, variables, json.dumps(conf).encode())
    assert (reply.status, json.loads(reply.stdout)["code"]) == (1, 7)
    assert complaint in json.loads(reply.stdout)["msg"]
