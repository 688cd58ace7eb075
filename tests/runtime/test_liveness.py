"""The judgement of who is alive, with no kernel and no file."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cnisdk.linux.links.veth import host_names
from cnisdk.runtime.cache import CachedAttachment
from cnisdk.runtime.caches import Remembered, Unreadable, addresses_of, namespace_of
from cnisdk.runtime.hostview import Contents, HostLink, Look, Survey
from cnisdk.runtime.liveness import VERDICTS, Evidence, LeaseTrace, Liveness, Traces, assess, conclude
from cnisdk.spec.names import Attachment

ID = "2d6f3a5be0c9417c8c66f6e8d2a4b1e0"
WHO = Attachment("net", ID, "eth0")
ADDRESS = ip_address("10.9.0.2")
MAC = "0a:58:0a:09:00:02"
BLUE = "/run/netns/blue"
OWN, OTHER = 100, 200
HOST = Contents("the host's network namespace", {"eth0": "52:54:00:00:00:01", "cni0": "52:54:00:00:00:02"})
BOOTED = 1_000_000.0
GONE = Look("absent", resolved=BLUE)
RESULT: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "52:54:00:00:00:02"},
        {"name": "veth4f3d", "mac": "ae:00:00:00:00:07"},
        {"name": "eth0", "mac": MAC.upper(), "sandbox": BLUE},
    ],
    "ips": [{"interface": 2, "address": "10.9.0.2/24"}],
}


def remembered(
    netns: str = BLUE, result: dict[str, Any] | None = RESULT, *, age: float = 3600, written: float = BOOTED + 5000
) -> Remembered:
    return Remembered(CachedAttachment(WHO, netns=netns, result=result), "/cache/results/it", age, written, (7, 7))


def lease(**keys: Any) -> LeaseTrace:
    return LeaseTrace(**{"address": ADDRESS, "age": 3600.0, "written": BOOTED + 5000, "boot": "this", **keys})


def seen(**keys: Any) -> Survey:
    defaults: dict[str, Any] = {
        "own": OWN,
        "namespaces": {OWN: HOST},
        "paths": {BLUE: GONE},
        "places": ("/var/lib/cni/results",),
        "booted": BOOTED,
    }
    return Survey(**{**defaults, **keys})


BOTH = Traces(WHO, (lease(),), (remembered(),))
LEASED = Traces(WHO, (lease(),))
CACHED = Traces(WHO, (), (remembered(),))


def inside(**keys: Any) -> dict[int, Contents]:
    return {OWN: HOST, OTHER: Contents("the namespace of process 7", **keys)}


ALIVE = {
    "its path leads to a namespace": seen(paths={BLUE: Look("there", OTHER)}),
    "its namespace is mounted in another mount namespace": seen(mounted={BLUE: OTHER}),
    "its namespace is mounted where a symbolic link leads": seen(
        paths={BLUE: Look("hidden", resolved="/x/blue", parent_missing=True)}, mounted={"/x/blue": OTHER}
    ),
    "a link carries its mark": seen(links=[HostLink("whatever", "veth", MAC, WHO.tag)]),
    "a link of its name was not marked yet": seen(links=[HostLink(host_names(WHO)[1], "veth")]),
    "its address is in some namespace": seen(namespaces=inside(addresses={ADDRESS: "net1"})),
    "a plugin is at work on it": seen(working={ID: "process 7 (bridge)"}),
    "a process names its container": seen(names=f"/usr/bin/containerd-shim\0-id\0{ID}\0"),
}


@pytest.mark.parametrize("why", ALIVE)
@pytest.mark.parametrize("traces", [BOTH, CACHED], ids=["with a lease", "with a cached result alone"])
def test_alive_when(why: str, traces: Traces) -> None:
    assert assess(traces, ALIVE[why], grace=0).state == "alive"
    hidden = traces._replace(leases=(lease(boot="earlier", written=1.0),))
    assert assess(hidden, ALIVE[why], grace=1e9).state == "alive", "nothing outweighs what the kernel shows"


@pytest.mark.parametrize(
    "survey",
    [
        seen(links=[HostLink("veth4f3d", "veth", "ae:00:00:00:00:07")]),
        seen(namespaces=inside(links={"net1": MAC})),
    ],
    ids=["the host's end of its result exists", "its hardware address is in some namespace"],
)
def test_alive_by_its_cached_result_when(survey: Survey) -> None:
    assert assess(CACHED, survey, grace=0).state == "alive"


def test_a_container_the_kernel_still_has_and_all_others_forgot_is_alive() -> None:
    for survey in (ALIVE["a link carries its mark"], ALIVE["its address is in some namespace"]):
        assert assess(LEASED, survey, grace=0).state == "alive"


DEAD = {
    "its namespace is gone": (BOTH, seen(), "its namespace /run/netns/blue is gone"),
    "no runtime remembers it": (
        LEASED,
        seen(),
        "no runtime remembers it, and its address is on no link of any network namespace",
    ),
    "its lease carries the mark of an earlier boot": (
        BOTH._replace(leases=(lease(boot="earlier"),)),
        seen(paths={BLUE: Look("hidden", why="x")}, doubts=("process 5 cannot be looked at",)),
        "it is of an earlier boot",
    ),
    "its cached result is older than this boot": (
        Traces(WHO, (), (remembered(written=BOOTED - 3600),)),
        seen(paths={BLUE: Look("hidden", why="there is no directory /run/netns", parent_missing=True)}),
        "it is of an earlier boot",
    ),
    "its process is another one now": (
        Traces(WHO, (lease(),), (remembered("/proc/4711/ns/net"),)),
        seen(paths={"/proc/4711/ns/net": Look("there", OTHER)}, namespaces=inside(links={"net1": "06:00:00:00:00:01"})),
        "its namespace /proc/4711/ns/net is gone: process 4711 is another one now",
    ),
    "its process is one of the host now": (
        Traces(WHO, (lease(),), (remembered("/proc/4711/ns/net"),)),
        seen(paths={"/proc/4711/ns/net": Look("there", OWN)}),
        "its namespace /proc/4711/ns/net is gone: process 4711 is another one now",
    ),
    "its hardware address is that of a link of the host, as with ipvlan": (
        CACHED,
        seen(namespaces=inside(links={"net1": MAC}), links=[HostLink("eth1", "", MAC)]),
        "its namespace /run/netns/blue is gone",
    ),
    "another container's link has its name in it": (
        LEASED,
        seen(
            links=[HostLink("veth1", "veth", MAC, f"{WHO.tag}-mac"), HostLink("veth2", "veth", MAC, "cni:net/x/eth0")]
        ),
        "no runtime remembers it, and its address is on no link of any network namespace",
    ),
}


@pytest.mark.parametrize("why", DEAD)
def test_dead_when(why: str) -> None:
    traces, survey, text = DEAD[why]
    assert assess(traces, survey, grace=600)[:2] == ("dead", text)


UNKNOWN = {
    "something could not be looked at": (
        BOTH,
        seen(doubts=("process 5 cannot be looked at: Permission denied",)),
        "process 5 cannot be looked at: Permission denied",
    ),
    "the directory of its namespace is missing": (
        BOTH,
        seen(paths={BLUE: Look("hidden", why="there is no directory /run/netns", parent_missing=True)}),
        "its namespace /run/netns/blue cannot be looked at: there is no directory /run/netns",
    ),
    "its namespace may not be opened": (
        BOTH,
        seen(paths={BLUE: Look("hidden", why="EACCES")}),
        "its namespace /run/netns/blue cannot be looked at: EACCES",
    ),
    "it is young, though no runtime remembers it": (
        LEASED._replace(leases=(lease(age=5.0),)),
        seen(),
        "its lease is only 5 s old",
    ),
    "it is young, though its namespace is gone": (
        BOTH._replace(entries=(remembered(age=61),)),
        seen(),
        "its cached result is only 1 min old",
    ),
    "the clock was set back since it was made": (
        LEASED._replace(leases=(lease(age=-3600.0),)),
        seen(),
        "its lease was made in the future: the clock has been set back since",
    ),
    "the cached result names no namespace": (
        Traces(WHO, (lease(),), (remembered("", {"ips": RESULT["ips"]}),)),
        seen(),
        "the runtime does not say which namespace it is in",
    ),
    "its path is another one for each process": (
        Traces(WHO, (lease(),), (remembered("/proc/self/ns/net"),)),
        seen(paths={"/proc/self/ns/net": Look("there", OTHER)}),
        "its namespace is /proc/self/ns/net, which is another one for each process",
    ),
    "the namespace of its process cannot be looked into": (
        Traces(WHO, (lease(),), (remembered("/proc/4711/ns/net"),)),
        seen(paths={"/proc/4711/ns/net": Look("there", OTHER)}),
        "its namespace /proc/4711/ns/net cannot be looked into",
    ),
    "its cached result is torn": (
        LEASED._replace(unreadable=(Unreadable("/cache/results/it", "torn", "is torn", 3600),)),
        seen(),
        "its cached result /cache/results/it is torn; cnisdk fsck repairs it",
    ),
    "its cached result may not be read": (
        LEASED._replace(
            unreadable=(Unreadable("/cache/it", "not readable", "cannot be read: Permission denied", 3600),)
        ),
        seen(),
        "its cached result /cache/it cannot be read: Permission denied",
    ),
    "no runtime was found": (LEASED, seen(places=()), "no directory of a runtime was found; --cache-dir names one"),
    "another machine may have made its lease": (
        LEASED._replace(leases=(lease(boot="unknown", shared=True),)),
        seen(),
        "its lease lies where other machines may write, and may be of one of them",
    ),
    "its path is a relative one": (
        Traces(WHO, (lease(),), (remembered("netns/blue"),)),
        seen(paths={"netns/blue": GONE}),
        "its namespace is netns/blue, which is another one in each directory",
    ),
    "its path is what a process had open": (
        Traces(WHO, (lease(),), (remembered("/proc/4711/fd/5"),)),
        seen(paths={"/proc/4711/fd/5": Look("absent")}),
        "its namespace was /proc/4711/fd/5, which does not tell if it is gone",
    ),
    "its path is what each process may have open": (
        Traces(WHO, (lease(),), (remembered("/proc/self/fd/5"),)),
        seen(paths={"/proc/self/fd/5": Look("absent")}),
        "its namespace is /proc/self/fd/5, which is another one for each process",
    ),
    "the clock was set since its lease of this boot was made": (
        Traces(WHO, (lease(written=BOOTED - 3600),), (remembered("", {"ips": []}, written=BOOTED - 3600),)),
        seen(),
        "the runtime does not say which namespace it is in",
    ),
    "another container has its address now": (
        CACHED._replace(passed_on=((ADDRESS, "container other interface eth0"),)),
        seen(),
        "its address 10.9.0.2 is leased to container other interface eth0 now",
    ),
    "only the clock says that it is older than this boot": (
        Traces(WHO, (), (remembered(written=BOOTED - 3600),)),
        seen(paths={BLUE: Look("hidden", why="EACCES")}),
        "its namespace /run/netns/blue cannot be looked at: EACCES",
    ),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_not_provably_dead_when(why: str) -> None:
    traces, survey, text = UNKNOWN[why]
    assert assess(traces, survey, grace=600)[:2] == ("unknown", text)


@pytest.mark.parametrize(
    "contents",
    [{"addresses": {ADDRESS: "net1"}}, {"links": {"eth0": "06:00:00:00:00:01"}}, {"links": {"net1": MAC}}],
    ids=["its address", "a link of its name", "its hardware address"],
)
def test_the_namespace_of_a_process_is_its_own_by(contents: dict[str, Any]) -> None:
    path = "/proc/4711/ns/net"
    survey = seen(paths={path: Look("there", OTHER)}, namespaces=inside(**contents))
    assert assess(Traces(WHO, (), (remembered(path),)), survey, grace=0).state == "alive"


LO: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": BLUE}],
    "ips": [{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}],
}
EACH_HAS: dict[str, Any] = {
    "links": {"lo": "00:00:00:00:00:00"},
    "addresses": {ip_address("127.0.0.1"): "lo", ip_address("::1"): "lo"},
}


@pytest.mark.parametrize(
    ("path", "look", "written", "state"),
    [
        (BLUE, Look("there", OTHER), BOOTED + 5000, "alive"),
        (BLUE, GONE, BOOTED + 5000, "dead"),
        (BLUE, GONE, BOOTED - 5000, "dead"),
        (BLUE, Look("hidden", why="no", parent_missing=True), BOOTED - 5000, "dead"),
        ("/proc/7/ns/net", Look("there", OTHER), BOOTED + 5000, "unknown"),
        ("/proc/7/ns/net", Look("absent"), BOOTED + 5000, "dead"),
    ],
)
def test_what_each_namespace_has_is_no_sign_of_life(path: str, look: Look, written: float, state: str) -> None:
    """As after a reboot: the plugin loopback returns 127.0.0.1 on lo, and the host has them, too."""
    entry = CachedAttachment(Attachment("cni-loopback", ID, "lo"), netns=path, result=LO)
    traces = Traces(entry.attachment, (), (Remembered(entry, "/cache/results/it", 3600, written, (7, 7)),))
    host = Contents("the host's network namespace", **EACH_HAS)
    survey = seen(namespaces={OWN: host, OTHER: Contents("that of process 7", **EACH_HAS)}, paths={path: look})
    assert assess(traces, survey, grace=60).state == state


def test_an_old_record_without_interface_is_alive_by_any_link_of_its_container() -> None:
    old = Traces(Attachment("net", ID, ""), (lease(boot="unknown"),))
    assert assess(old, seen(links=[HostLink("v", "veth", "", WHO.tag)]), grace=0).state == "alive"
    assert assess(old, seen(links=[HostLink("v", "veth", "", f"cni:net/{ID}x/eth0")]), grace=0).state == "dead"


def test_short_ids_are_not_looked_for_among_processes() -> None:
    short = Traces(Attachment("net", "web", "eth0"), (lease(),))
    assert assess(short, seen(names="/usr/bin/webserver"), grace=0).state == "dead"
    assert assess(short, seen(working={"web": "process 7 (bridge)"}), grace=0).state == "alive"


def test_a_process_is_known_by_the_id_without_the_namespace_of_containerd() -> None:
    """nerdctl gives plugins ``<namespace>-<id>``; the shim has the two as words, the control group as parts."""
    whole = ID * 2
    named = Traces(Attachment("net", f"default-{whole}", "eth0"), (lease(),))
    names = f"/usr/bin/containerd-shim-runc-v2\0-namespace\0default\0-id\0{whole}\0"
    assert assess(named, seen(names=names), grace=0).state == "alive"
    assert assess(named, seen(names=names.replace(whole, ID)), grace=0).state == "dead"


def test_one_of_several_caches_is_enough() -> None:
    green = remembered("/run/netns/green")
    survey = seen(paths={BLUE: GONE, "/run/netns/green": Look("there", OTHER)})
    assert assess(Traces(WHO, (), (remembered(), green)), survey, grace=0).state == "alive"


# --- what a cached result says ----------------------------------------------------------------------------------------


def test_the_namespace_is_in_the_result_where_libcni_is_old() -> None:
    """libcni before 1.2 writes no ``netns``; a Firecracker machine's id may stand in another interface."""
    listed = [{"name": "br0"}, {"name": "tap0", "sandbox": "vm-17"}, {"name": "eth0", "sandbox": BLUE}]
    assert namespace_of(remembered("", {"interfaces": listed})) == BLUE
    assert namespace_of(remembered("/run/netns/green", {"interfaces": listed})) == "/run/netns/green"


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"ips": [{"version": "4", "address": "10.9.0.2/24"}, {"address": "fd00::2/64"}]}, ["10.9.0.2", "fd00::2"]),
        ({"ip4": {"ip": "10.9.0.2/24"}, "ip6": {"ip": "fd00::2/64"}}, ["10.9.0.2", "fd00::2"]),
        ({"ips": [{"address": "what"}, {"address": 7.5}, {}, None, "x"], "ip4": [], "interfaces": {"a": 1}}, []),
        ({"ips": None, "interfaces": [None, {"name": 5, "sandbox": []}]}, []),
        (None, []),
    ],
)
def test_addresses_of_results_of_any_version(result: dict[str, Any] | None, expected: list[str]) -> None:
    found = remembered("", result)
    assert [str(each) for each in addresses_of(found)] == expected
    assert namespace_of(found) == ""


# --- properties -------------------------------------------------------------------------------------------------------

kinds = st.sampled_from(list(VERDICTS))
pieces = st.lists(st.builds(Evidence, kinds, st.text(max_size=3)), max_size=6)
RANK = {"alive": 0, "unknown": 1, "dead": 2}


@given(pieces, st.randoms())
def test_evidence_of_life_outweighs_everything(found: list[Evidence], random: Any) -> None:
    together = [*found, Evidence("life", "it lives")]
    random.shuffle(together)
    assert conclude(together).state == "alive"


@given(pieces, pieces)
def test_more_doubt_and_more_life_never_make_anything_dead(found: list[Evidence], more: list[Evidence]) -> None:
    kind = [each for each in more if each.kind in ("life", "doubt")]
    assert RANK[conclude([*found, *kind]).state] <= RANK[conclude(found).state] or conclude(found).kind == ""


@given(st.sampled_from(sorted(DEAD) + sorted(UNKNOWN)), st.sampled_from(sorted(ALIVE)), st.floats(0, 1e6))
def test_what_shows_life_besides_never_leaves_it_dead(case: str, life: str, grace: float) -> None:
    """Put two surveys together: all of the one, and the signs of life of the other."""
    traces, before, _ = {**DEAD, **UNKNOWN}[case]
    extra = ALIVE[life]
    together = Survey(
        own=OWN,
        links=(*before.links, *extra.links),
        namespaces={**before.namespaces, **extra.namespaces},
        mounted={**before.mounted, **extra.mounted},
        paths=before.paths if extra.paths == {BLUE: GONE} else {**before.paths, **extra.paths},
        working={**before.working, **extra.working},
        names=before.names + extra.names,
        doubts=before.doubts,
        places=before.places,
        booted=before.booted,
    )
    by_path = "namespace" in life.partition(" in ")[0]
    if not by_path or any(namespace_of(each) == BLUE for each in traces.entries):
        assert assess(traces, together, grace=grace).state == "alive"
    else:
        assert assess(traces, together, grace=grace) == assess(traces, before, grace=grace)


@given(st.lists(st.sampled_from(["a doubt", "another"]), max_size=2), st.booleans(), st.floats(0, 1e7))
def test_what_is_hidden_is_never_dead_but_by_the_mark_of_its_boot(doubts: list[str], cached: bool, age: float) -> None:
    traces = Traces(WHO, (lease(age=age),), (remembered(age=age),) if cached else ())
    verdict = assess(traces, seen(doubts=doubts), grace=600)
    assert verdict.state == ("unknown" if doubts or age < 600 else "dead")


def test_nothing_known_is_not_dead() -> None:
    assert conclude([]) == Liveness("unknown", "nothing is known of it")
