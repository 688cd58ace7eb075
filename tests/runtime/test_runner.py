"""Running networks over recording plugins: order, what each is sent, what is left after failures."""

import json
import os
import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest

from cnisdk.errors import (
    CNIError,
    DecodingError,
    IncompatibleVersionError,
    InternalError,
    InvalidConfigError,
    InvalidEnvironmentError,
    InvalidNetNSError,
    IOFailureError,
    PluginNotAvailableError,
    TryAgainLaterError,
)
from cnisdk.runtime import Network, Runtime, runner
from cnisdk.spec import Attachment, Result

from ..clocks import Clock
from .conftest import Bench

R100 = {"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.2/24"}]}
WHERE: Any = {"container_id": "c1", "netns": "/run/netns/x"}
FULL = """echo '{"code":11,"msg":"full","details":"192.0.2.0/30"}'; exit 1"""


# --- ADD --------------------------------------------------------------------------------------------------------------


def test_add_runs_the_chain_and_remembers_it(bench: Bench) -> None:
    bench.results("a", R100)
    bench.results("b", {**R100, "dns": {"nameservers": ["192.0.2.53"]}, "x-unknown": 12345678901234567890})
    network = bench.network({"type": "a", "capabilities": {"ips": True}}, {"type": "b", "k": [1]})
    result = bench.runtime.add(
        network, **WHERE, cni_args={"A": "1", "B": "2"}, capability_args={"ips": ["192.0.2.2"], "mac": "x"}
    )
    assert isinstance(result, Result)
    assert result.cni_version == "1.1.0"
    assert result.dns.nameservers == ("192.0.2.53",)

    first, second = bench.calls
    assert first.variables == second.variables
    assert first.variables == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=1;B=2",
        "CNI_PATH": str(bench.directory),
    }
    assert first.stdin == (b'{"cniVersion":"1.0.0","name":"net","runtimeConfig":{"ips":["192.0.2.2"]},"type":"a"}')
    assert second.config == {"cniVersion": "1.0.0", "name": "net", "type": "b", "k": [1], "prevResult": R100}

    assert bench.cached == ["net-c1-eth0"]
    entry = bench.runtime.cache.find(Attachment("net", "c1", "eth0"))
    assert entry is not None
    assert entry.config == network.source
    assert entry.cni_args == (("A", "1"), ("B", "2"))
    assert entry.capability_args == {"ips": ["192.0.2.2"], "mac": "x"}
    assert entry.result is not None
    assert entry.result["x-unknown"] == 12345678901234567890


def test_results_are_converted_between_plugins_of_a_chain(bench: Bench) -> None:
    """The reference hands on 0.3.1, which the second plugin then cannot read as 1.0.0."""
    bench.results("a", {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "192.0.2.2/24"}], "dns": {}})
    bench.results("b", R100)
    bench.runtime.add(bench.network({"type": "a"}, {"type": "b"}), **WHERE)
    assert R100.items() <= bench.calls[1].config["prevResult"].items()


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_the_result_has_the_networks_version(bench: Bench, version: str) -> None:
    bench.results("a", {"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.2/24"}], "interfaces": [{"name": "e"}]})
    result = bench.runtime.add_in_version(bench.network({"type": "a"}, version=version), **WHERE)
    assert result.cni_version == version
    entry = bench.runtime.cache.find(Attachment("net", "c1", "eth0"))
    assert entry is not None
    assert entry.result is not None
    assert entry.result["cniVersion"] == version
    assert bool(bench.warnings) == (version < "0.3.0")  # it has no place for interfaces


def test_a_result_without_version_has_the_networks(bench: Bench) -> None:
    bench.results("a", {"ips": [{"address": "192.0.2.2/24", "version": "4"}]})
    result = bench.runtime.add_in_version(bench.network({"type": "a"}, version="0.4.0"), **WHERE)
    assert result.cni_version == "0.4.0"


def test_a_failed_add_leaves_nothing(bench: Bench) -> None:
    bench.results("a", R100)
    bench.plugin("b", ADD=FULL)
    bench.plugin("c")
    network = bench.network({"type": "a"}, {"type": "b", "name": "second"}, {"type": "c"})
    with pytest.raises(TryAgainLaterError) as caught:
        bench.runtime.add(network, **WHERE)
    assert caught.value.msg == 'plugin type="b" name="second" failed (add): full'
    assert caught.value.details == "192.0.2.0/30"
    assert bench.sequence == ["ADD a", "ADD b", "DEL b", "DEL a"]
    assert [call.config.get("prevResult") for call in bench.calls] == [None, R100, R100, R100]
    assert {call.environ["CNI_NETNS"] for call in bench.calls} == {"/run/netns/x"}
    assert bench.cached == []


def test_taking_back_before_0_4_0_sends_no_prev_result(bench: Bench) -> None:
    bench.results("a", {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "192.0.2.2/24"}]})
    bench.plugin("b", ADD=FULL)
    with pytest.raises(TryAgainLaterError):
        bench.runtime.add(bench.network({"type": "a"}, {"type": "b"}, version="0.3.1"), **WHERE)
    assert ["prevResult" in call.config for call in bench.calls] == [False, True, False, False]


def test_all_errors_of_a_failed_add_are_told(bench: Bench) -> None:
    bench.results("a", R100)
    (bench.directory / "a.DEL").write_text("""echo '{"code":5,"msg":"stuck"}'; exit 1""")
    bench.plugin("b", ADD=FULL, DEL="exit 3")
    with pytest.raises(TryAgainLaterError) as caught:
        bench.runtime.add(bench.network({"type": "a"}, {"type": "b"}), **WHERE)
    assert caught.value.details.startswith("192.0.2.0/30; also: ")
    assert 'plugin type="b" failed (delete): netplugin failed with no error message' in caught.value.details
    assert 'plugin type="a" failed (delete): stuck (code 5)' in caught.value.details


def test_rollback_can_be_left_to_the_caller(bench: Bench) -> None:
    bench.plugin("a", ADD=FULL)
    runtime = Runtime([str(bench.directory)], cache_dir=str(bench.cache_dir), rollback=False)
    with pytest.raises(TryAgainLaterError):
        runtime.add(bench.network({"type": "a"}), **WHERE)
    assert bench.sequence == ["ADD a"]


def test_a_second_add_does_not_destroy_the_first(bench: Bench) -> None:
    bench.results("a", R100)
    network = bench.network({"type": "a"})
    bench.runtime.add(network, **WHERE)
    (bench.directory / "a.ADD").write_text(FULL)
    with pytest.raises(TryAgainLaterError):
        bench.runtime.add(network, **WHERE)
    assert bench.sequence == ["ADD a", "ADD a"]
    assert bench.cached == ["net-c1-eth0"]


def test_an_interrupted_add_leaves_nothing(bench: Bench) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(_: bytes) -> None:
        raise Interrupt

    bench.results("a", R100)
    bench.plugin("b", ADD="echo busy >&2; sleep 60")
    runtime = Runtime([str(bench.directory)], cache_dir=str(bench.cache_dir), on_stderr=interrupt)
    with pytest.raises(Interrupt):
        runtime.add(bench.network({"type": "a"}, {"type": "b"}), **WHERE)
    assert bench.sequence == ["ADD a", "ADD b", "DEL b", "DEL a"]
    assert bench.cached == []


def test_a_plugin_that_hangs(bench: Bench, clock: Clock) -> None:
    bench.plugin("a", ADD="echo busy >&2; sleep 1000")
    directories, cache = [str(bench.directory)], str(bench.cache_dir)
    runtime = Runtime(directories, cache_dir=cache, timeout=60, on_stderr=clock.put_forward)
    with pytest.raises(
        TryAgainLaterError, match=r'plugin type="a" failed \(add\): .* did not finish within 60 seconds'
    ):
        runtime.add(bench.network({"type": "a"}), **WHERE)
    assert bench.sequence == ["ADD a", "DEL a"]


@pytest.mark.parametrize("printed", ["", "log line", '{"cniVersion":"9.9.9"}', '{"ips":[{"address":"x"}]}', "[]"])
def test_an_unusable_result_is_taken_back(bench: Bench, printed: str) -> None:
    bench.plugin("a", ADD=f"printf %s '{printed}'")
    with pytest.raises(CNIError, match=r'plugin type="a" failed \(add\): '):
        bench.runtime.add(bench.network({"type": "a"}), **WHERE)
    assert bench.sequence == ["ADD a", "DEL a"]


def test_nothing_runs_if_a_plugin_is_missing(bench: Bench) -> None:
    bench.results("a", R100)
    with pytest.raises(InvalidConfigError, match=r'plugin type="gone" failed \(add\): failed to find plugin "gone" in'):
        bench.runtime.add(bench.network({"type": "a"}, {"type": "gone"}), **WHERE)
    assert bench.sequence == []


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"container_id": "../../x"}, InvalidEnvironmentError),
        ({"container_id": ""}, InvalidEnvironmentError),
        ({"container_id": "c" * 250}, InvalidEnvironmentError),
        ({"ifname": "a/b"}, InvalidEnvironmentError),
        ({"ifname": "sixteen-letters-"}, InvalidEnvironmentError),
        ({"netns": ""}, InvalidNetNSError),
        ({"cni_args": {"A": "1;B=2"}}, InvalidEnvironmentError),
        ({"cni_args": {"A=B": "1"}}, InvalidEnvironmentError),
        ({"cni_args": [("", "1")]}, InvalidEnvironmentError),
    ],
)
def test_nothing_runs_with_bad_arguments(bench: Bench, arguments: dict[str, Any], kind: type[CNIError]) -> None:
    bench.results("a", R100)
    with pytest.raises(kind):
        bench.runtime.add(bench.network({"type": "a"}), **{**WHERE, **arguments})
    assert bench.sequence == []
    assert bench.cached == []


def test_nothing_runs_if_it_could_not_be_remembered(bench: Bench) -> None:
    bench.results("a", R100)
    bench.cache_dir.write_text("not a directory")
    with pytest.raises(IOFailureError, match="cannot make the directory"):
        bench.runtime.add(bench.network({"type": "a"}), **WHERE)
    assert bench.sequence == []


def test_what_cannot_be_remembered_is_taken_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.results("a", R100)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(IOFailureError, match="No space left"):
        bench.runtime.add(bench.network({"type": "a"}), **WHERE)
    assert bench.sequence == ["ADD a", "DEL a"]


def test_the_rest_of_the_environment_is_the_callers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-1-2-3")
    monkeypatch.setenv("CNI_CONTAINERID", "wrong")
    monkeypatch.setenv("CNI_NETNS_OVERRIDE", "1")
    bench.results("a", R100)
    Runtime([str(bench.directory), "/else"], cache_dir=str(bench.cache_dir)).add(bench.network({"type": "a"}), **WHERE)
    environ = bench.calls[0].environ
    assert environ["TRACEPARENT"] == "00-1-2-3"
    assert environ["CNI_NETNS_OVERRIDE"] == "1"
    assert environ["CNI_CONTAINERID"] == "c1"
    assert environ["CNI_PATH"] == f"{bench.directory}:/else"
    assert os.environ["CNI_CONTAINERID"] == "wrong"


# --- DEL --------------------------------------------------------------------------------------------------------------


def added(bench: Bench, *plugins: str, version: str = "1.0.0", **more: Any) -> Network:
    for name in plugins:
        bench.results(name, {"cniVersion": version, "ips": [{"version": "4", "address": "192.0.2.2/24"}]})
    network = bench.network(*({"type": name, "capabilities": {"ips": True}} for name in plugins), version=version)
    bench.runtime.add(network, **WHERE, **more)
    bench.forget()
    return network


def test_del_goes_backwards_with_the_result_and_arguments_of_add(bench: Bench) -> None:
    network = added(bench, "a", "b", cni_args={"A": "1"}, capability_args={"ips": ["192.0.2.2"]})
    bench.runtime.delete(network, container_id="c1", netns="")
    assert bench.sequence == ["DEL b", "DEL a"]
    for call in bench.calls:
        assert call.config["prevResult"]["ips"] == [{"version": "4", "address": "192.0.2.2/24"}]
        assert call.config["runtimeConfig"] == {"ips": ["192.0.2.2"]}
        assert call.environ["CNI_ARGS"] == "A=1"
        assert call.environ["CNI_NETNS"] == ""
    assert bench.cached == []
    bench.forget()
    bench.runtime.delete(network, **WHERE, cni_args={"B": "2"})
    assert bench.sequence == ["DEL b", "DEL a"]
    for call in bench.calls:
        assert "prevResult" not in call.config
        assert "runtimeConfig" not in call.config
        assert call.environ["CNI_ARGS"] == "B=2"


@pytest.mark.parametrize(("version", "given"), [("0.3.1", False), ("0.4.0", True), ("1.1.0", True)])
def test_del_has_a_prev_result_from_0_4_0_on(bench: Bench, version: str, given: bool) -> None:
    network = added(bench, "a", version=version)
    bench.runtime.delete(network, **WHERE)
    assert ("prevResult" in bench.calls[0].config) == given
    assert bench.cached == []


def test_del_goes_on_after_a_failure_and_forgets_nothing(bench: Bench) -> None:
    """The reference stops at the first that fails, a missing one too."""
    network = added(bench, "a", "b", "c")
    (bench.directory / "c").unlink()
    (bench.directory / "b.DEL").write_text(FULL)
    with pytest.raises(InvalidConfigError) as caught:
        bench.runtime.delete(network, **WHERE)
    assert caught.value.msg.startswith('plugin type="c" failed (delete): failed to find plugin "c"')
    assert 'also: plugin type="b" failed (delete): full (code 11); 192.0.2.0/30' in caught.value.details
    assert bench.sequence == ["DEL b", "DEL a"]
    assert bench.cached == ["net-c1-eth0"]


@pytest.mark.parametrize("torn", [b"", b'{"kind":"cniCacheV1","contai', b"{}", b"null", b'{"cniVersion":"7.7.7"}'])
def test_a_torn_cache_never_blocks_del(bench: Bench, torn: bytes) -> None:
    network = added(bench, "a")
    (bench.cache_dir / "results" / "net-c1-eth0").write_bytes(torn)
    bench.runtime.delete(network, **WHERE)
    assert bench.sequence == ["DEL a"]
    assert "prevResult" not in bench.calls[0].config
    assert bench.cached == []
    assert "DEL without the result of ADD" in bench.warnings[0]


def test_a_cache_that_is_a_directory_never_blocks_del(bench: Bench) -> None:
    network = added(bench, "a")
    path = bench.cache_dir / "results" / "net-c1-eth0"
    path.unlink()
    path.mkdir()
    bench.runtime.delete(network, **WHERE)
    assert bench.sequence == ["DEL a"]
    assert len(bench.warnings) == 2


def test_anothers_entry_is_neither_used_nor_removed(bench: Bench) -> None:
    bench.results("a", R100)
    theirs = bench.network({"type": "a"}, name="a-b")
    ours = bench.network({"type": "a"}, name="a")
    bench.runtime.add(theirs, container_id="c", netns="/x")
    bench.forget()
    with pytest.raises(IOFailureError, match="is not of container"):
        bench.runtime.add(ours, container_id="b-c", netns="/x")
    bench.runtime.delete(ours, container_id="b-c")
    assert bench.sequence == ["DEL a"]
    assert "prevResult" not in bench.calls[0].config
    assert bench.cached == ["a-b-c-eth0"]
    with pytest.raises(CNIError, match="is not of container"):
        bench.runtime.check(ours, container_id="b-c", netns="/x")


def test_an_old_result_is_converted(bench: Bench) -> None:
    """The list was 0.3.1 when the container was added, and is 1.0.0 now."""
    added(bench, "a", version="0.3.1")
    bench.runtime.delete(bench.network({"type": "a"}, version="1.0.0"), **WHERE)
    assert R100.items() <= bench.calls[0].config["prevResult"].items()


def test_names_cannot_lead_out_of_the_cache(bench: Bench) -> None:
    network = added(bench, "a")
    victim = bench.directory / "victim"
    victim.write_text("precious")
    for verb in (bench.runtime.delete, bench.runtime.check, bench.runtime.add):
        with pytest.raises(InvalidEnvironmentError):
            verb(network, container_id="x/../../../victim", netns="/x", ifname="eth0")
    assert victim.exists()
    assert bench.sequence == []


# --- CHECK ------------------------------------------------------------------------------------------------------------


def test_check_goes_forward_with_the_result_of_add(bench: Bench) -> None:
    network = added(bench, "a", "b", capability_args={"ips": ["192.0.2.2"]})
    bench.runtime.check(network, **WHERE)
    assert bench.sequence == ["CHECK a", "CHECK b"]
    for call in bench.calls:
        assert call.config["prevResult"]["ips"] == [{"version": "4", "address": "192.0.2.2/24"}]
        assert call.config["runtimeConfig"] == {"ips": ["192.0.2.2"]}


def test_check_stops_at_what_is_wrong(bench: Bench) -> None:
    network = added(bench, "a", "b")
    (bench.directory / "a.CHECK").write_text("""echo '{"code":101,"msg":"no address"}'; exit 1""")
    with pytest.raises(CNIError) as caught:
        bench.runtime.check(network, **WHERE)
    assert (caught.value.code, caught.value.msg) == (101, 'plugin type="a" failed (check): no address')
    assert bench.sequence == ["CHECK a"]


def test_check_needs_0_4_0(bench: Bench) -> None:
    network = added(bench, "a", version="0.3.1")
    with pytest.raises(
        IncompatibleVersionError, match=r'configuration version "0\.3\.1" does not support the CHECK command'
    ):
        bench.runtime.check(network, **WHERE)
    assert bench.sequence == []


def test_disable_check(bench: Bench) -> None:
    bench.plugin("a")
    bench.runtime.check(bench.network({"type": "a"}, disableCheck=True), **WHERE)
    assert bench.sequence == []


def test_check_does_not_guess_a_torn_result(bench: Bench) -> None:
    network = added(bench, "a")
    (bench.cache_dir / "results" / "net-c1-eth0").write_bytes(b"")
    with pytest.raises(DecodingError, match=r"cached result .* is empty"):
        bench.runtime.check(network, **WHERE)


# --- GC ---------------------------------------------------------------------------------------------------------------


def populate(bench: Bench, version: str = "1.1.0") -> Network:
    for name in ("a", "b"):
        bench.results(name, {"cniVersion": version, "ips": [{"version": "4", "address": "192.0.2.2/24"}]})
    network = bench.network({"type": "a"}, {"type": "b"}, version=version)
    for container in ("c1", "c2"):
        bench.runtime.add(network, container_id=container, netns=f"/run/netns/{container}", cni_args={"ID": container})
    bench.runtime.add(bench.network({"type": "a"}, name="other", version=version), container_id="c1", netns="/x")
    bench.forget()
    return network


def test_gc_deletes_what_is_not_valid_then_asks_the_plugins(bench: Bench) -> None:
    network = populate(bench)
    report = bench.runtime.gc(network, [("c2", "eth0"), ("c3", "eth0")])
    assert report == ((Attachment("net", "c1", "eth0"),), ("a", "b"), ())
    assert bench.sequence == ["DEL b", "DEL a", "GC a", "GC b"]
    deleted, _, first, second = bench.calls
    assert deleted.environ["CNI_NETNS"] == "/run/netns/c1"
    assert deleted.environ["CNI_ARGS"] == "ID=c1"
    valid = [{"containerID": "c2", "ifname": "eth0"}, {"containerID": "c3", "ifname": "eth0"}]
    for call in (first, second):
        assert call.config == {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": call.type,
            "cni.dev/valid-attachments": valid,
            "cni.dev/attachments": valid,
        }
        assert (call.environ["CNI_CONTAINERID"], call.environ["CNI_PATH"]) == ("", str(bench.directory))
    assert bench.cached == ["net-c2-eth0", "other-c1-eth0"]


def test_gc_of_what_is_stale_does_not_reach_into_a_namespace_that_a_valid_attachment_has(bench: Bench) -> None:
    """Paths are used again. The reference's plugins delete the interface that they find at the path."""
    network = populate(bench)
    bench.runtime.add(network, container_id="next", netns="/run/netns/c1")
    bench.forget()
    bench.runtime.gc(network, [("c2", "eth0"), ("next", "eth0")])
    assert bench.sequence == ["DEL b", "DEL a", "GC a", "GC b"]
    for call in bench.calls[:2]:
        assert (call.environ["CNI_CONTAINERID"], call.environ["CNI_NETNS"]) == ("c1", "/proc/0/ns/net")


def test_gc_that_keeps_nothing(bench: Bench) -> None:
    """Plugins are told so: a request without a list would not say what is stale."""
    network = populate(bench)
    assert len(bench.runtime.gc(network).deleted) == 2
    assert bench.calls[-1].config["cni.dev/valid-attachments"] == []
    assert bench.cached == ["other-c1-eth0"]


def test_gc_before_1_1_0_says_what_it_did_not_do(bench: Bench) -> None:
    network = populate(bench, version="1.0.0")
    report = bench.runtime.gc(network, [])
    assert len(report.deleted) == 2
    assert report.asked == ()
    assert "which does not know GC" in report.notes[0]
    assert bench.sequence == ["DEL b", "DEL a"] * 2


def offering(*versions: str) -> str:
    """Return the shell command of a plugin that answers VERSION."""
    return f"printf %s {shlex.quote(json.dumps({'cniVersion': versions[-1], 'supportedVersions': versions}))}"


def test_gc_raises_the_version_for_plugins_that_offer_one_with_gc(bench: Bench) -> None:
    for name in ("a", "b", "new"):
        bench.plugin(name, VERSION=offering("0.4.0", "1.0.0", "1.1.0"))
    bench.plugin("old", VERSION=offering("0.4.0", "1.0.0"))
    with_old = {"type": "b", "IPAM": {"type": "old"}, "key": 1}
    others = [{"type": "old", "ipam": {"type": "not there"}}, with_old, {"type": "old"}]
    network = bench.network({"type": "a", "ipam": {"type": "new"}}, *others, version="0.4.0")
    report = bench.runtime.gc(network, [("c1", "eth0")], raise_version=True)
    assert report.asked == ("a", "b")
    note = "plugin old was not asked to look for leftovers: GC needs 1.1.0, it offers 0.4.0, 1.0.0"
    assert report.notes == (note,)
    assert bench.sequence == ["VERSION a", "VERSION new", "VERSION old", "VERSION b", "GC a", "GC b"]
    one, two = (call.config for call in bench.calls if call.verb == "GC")
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    assert one["ipam"] == {"type": "new"}
    assert two.keys() == {"name", "cniVersion", "type", "key", "cni.dev/valid-attachments", "cni.dev/attachments"}
    for config in (one, two):
        assert (config["cniVersion"], config["cni.dev/valid-attachments"]) == ("1.1.0", valid)


def test_gc_with_a_raised_version_deletes_in_the_networks_own(bench: Bench) -> None:
    network = populate(bench, version="1.0.0")
    for name in ("a", "b"):
        bench.plugin(name, VERSION=offering("1.0.0", "1.1.0"))
    report = bench.runtime.gc(network, [("c2", "eth0")], raise_version=True)
    assert (len(report.deleted), report.asked, report.notes) == (1, ("a", "b"), ())
    assert {call.config["cniVersion"] for call in bench.calls if call.verb == "DEL"} == {"1.0.0"}


def test_gc_asks_for_no_versions_where_the_networks_own_knows_it(bench: Bench) -> None:
    network = populate(bench)
    bench.runtime.gc(network, [("c1", "eth0"), ("c2", "eth0")], raise_version=True)
    assert bench.sequence == ["GC a", "GC b"]


def test_gc_with_a_raised_version_goes_on_after_failures(bench: Bench) -> None:
    bench.plugin("silent", VERSION="exit 1")
    bench.plugin("full", VERSION=offering("1.1.0"), GC=FULL)
    bench.plugin("a", VERSION=offering("1.1.0"))
    bench.plugin("old", VERSION=offering("1.0.0"))
    plugins = [{"type": "silent"}, {"type": "old"}, {"type": "full"}, {"type": "a", "ipam": {"type": "lost"}}]
    network = bench.network(*plugins)
    with pytest.raises(CNIError) as caught:
        bench.runtime.gc(network, raise_version=True)
    first, others = caught.value.msg, caught.value.details
    assert first.startswith('plugin type="silent" failed (version): ')
    assert 'plugin type="lost" failed (version): failed to find plugin "lost"' in others
    assert 'plugin type="full" failed (gc): full' in others
    assert "GC was asked in version 1.1.0, the network has 1.0.0" in others
    assert bench.sequence[-2:] == ["GC full", "GC a"]
    (warning,) = bench.warnings
    assert warning.startswith("plugin old was not asked")


def test_disable_gc_says_so(bench: Bench) -> None:
    populate(bench)
    report = bench.runtime.gc(bench.network({"type": "a"}, version="1.1.0", disableGC=True), [])
    assert report == ((), (), ('network "net" sets disableGC: nothing was done',))
    assert bench.sequence == []


def test_gc_goes_on_after_failures(bench: Bench) -> None:
    network = populate(bench)
    (bench.directory / "b.DEL").write_text('[ "$CNI_CONTAINERID" = c2 ] || exit 3')
    (bench.directory / "a.GC").write_text(FULL)
    with pytest.raises(InternalError) as caught:
        bench.runtime.gc(network, [])
    assert caught.value.msg.startswith("failed to delete stale attachment c1 eth0: plugin type=")
    assert 'plugin type="a" failed (gc): full' in caught.value.details
    assert bench.sequence == ["DEL b", "DEL a", "DEL b", "DEL a", "GC a", "GC b"]
    assert bench.cached == ["net-c1-eth0", "other-c1-eth0"]


def test_gc_names_what_it_cannot_read(bench: Bench) -> None:
    network = populate(bench)
    (bench.cache_dir / "results" / "net-c9-eth0").write_bytes(b"")
    report = bench.runtime.gc(network, [("c1", "eth0"), ("c2", "eth0")])
    assert "net-c9-eth0 is empty, expected a JSON document" in report.notes[0]


def test_gc_is_not_silent_when_the_cache_cannot_be_listed(bench: Bench) -> None:
    bench.plugin("a")
    bench.cache_dir.mkdir()
    (bench.cache_dir / "results").write_text("")
    with pytest.raises(IOFailureError, match="cannot read the directory"):
        bench.runtime.gc(bench.network({"type": "a"}, version="1.1.0"), [])


# --- STATUS and VERSION -----------------------------------------------------------------------------------------------


def test_status(bench: Bench) -> None:
    bench.plugin("a")
    bench.plugin("b")
    network = bench.network({"type": "a", "capabilities": {"ips": True}}, {"type": "b"}, version="1.1.0")
    assert bench.runtime.status(network) == ("a", "b")
    assert bench.sequence == ["STATUS a", "STATUS b"]
    assert bench.calls[0].config == {"cniVersion": "1.1.0", "name": "net", "type": "a"}
    assert bench.calls[0].variables == {
        "CNI_COMMAND": "STATUS",
        "CNI_CONTAINERID": "",
        "CNI_NETNS": "",
        "CNI_IFNAME": "",
        "CNI_ARGS": "",
        "CNI_PATH": str(bench.directory),
    }


def test_status_stops_at_the_first_and_keeps_its_code(bench: Bench) -> None:
    bench.plugin("a", STATUS="""echo '{"code":50,"msg":"exhausted"}'; exit 1""")
    bench.plugin("b")
    with pytest.raises(PluginNotAvailableError, match=r'plugin type="a" failed \(status\): exhausted'):
        bench.runtime.status(bench.network({"type": "a"}, {"type": "b"}, version="1.1.0"))
    assert bench.sequence == ["STATUS a"]


def test_status_before_1_1_0_asks_nobody(bench: Bench) -> None:
    bench.plugin("a")
    assert bench.runtime.status(bench.network({"type": "a"}, version="1.0.0")) == ()
    assert bench.sequence == []


def test_validate(bench: Bench) -> None:
    versions = json.dumps({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]})
    bench.plugin("a", VERSION=f"echo '{versions}'")
    network = bench.network({"type": "a", "capabilities": {"ips": True, "mac": False}}, {"type": "a"})
    assert bench.runtime.validate(network) == {"ips"}
    assert bench.sequence == ["VERSION a"]
    bench.plugin("b", VERSION="exit 1")
    with pytest.raises(IncompatibleVersionError) as caught:
        bench.runtime.validate(bench.network({"type": "a"}, {"type": "b"}, {"type": "c"}, version="1.1.0"))
    assert caught.value.msg == 'plugin a does not support config version "1.1.0"'
    assert "netplugin failed" in caught.value.details
    assert 'failed to find plugin "c"' in caught.value.details


def test_entries_of_the_reference_are_deleted(bench: Bench, tmp_path: Path) -> None:
    """Our DEL uses and removes libcni's cached results, also those of a single plugin."""
    bench.plugin("a")
    results = bench.cache_dir / "results"
    results.mkdir(parents=True)
    (results / "net-c1-eth0").write_bytes(
        b'{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0","networkName":"net",'
        b'"netns":"/var/run/netns/x","result":{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.2/24"}]}}'
    )
    bench.runtime.delete(bench.network({"type": "a"}), **WHERE)
    assert bench.calls[0].config["prevResult"] == R100
    assert bench.cached == []


# --- time, further errors, and what tools write -----------------------------------------------------------------------


def test_errors_of_taking_back_are_a_list(bench: Bench) -> None:
    bench.results("a", R100)
    (bench.directory / "a.DEL").write_text("""echo '{"code":5,"msg":"stuck"}'; exit 1""")
    bench.plugin("b", ADD=FULL, DEL="exit 3")
    with pytest.raises(TryAgainLaterError) as caught:
        bench.runtime.add(bench.network({"type": "a"}, {"type": "b"}), **WHERE)
    assert [each.code for each in caught.value.others] == [999, 5]
    assert caught.value.others[1].msg == 'plugin type="a" failed (delete): stuck'
    assert [each.code for each in pickle.loads(pickle.dumps(caught.value)).others] == [999, 5]


def test_further_errors_of_del_are_a_list(bench: Bench) -> None:
    bench.plugin("a", DEL="exit 3")
    bench.plugin("b", DEL=FULL)
    with pytest.raises(TryAgainLaterError) as caught:
        bench.runtime.delete(bench.network({"type": "a"}, {"type": "b"}), **WHERE)
    assert [each.code for each in caught.value.others] == [999]


def test_an_interrupted_add_warns_of_what_could_not_be_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.results("a", R100)
    (bench.directory / "a.DEL").write_text("exit 3")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.runtime, "_understand", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.runtime.add(bench.network({"type": "a"}), **WHERE)
    assert len(bench.warnings) == 1
    assert bench.warnings[0].startswith('taking back an interrupted ADD: plugin type="a" failed (delete)')


def test_the_deadline_of_a_call_is_for_all_its_plugins(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first plugin takes all of it; the second is not run, and what the first did is taken back."""
    monkeypatch.setattr(runner, "time", clock)
    bench.results("a", R100)
    (bench.directory / "a.ADD").write_text("trap 'exit 1' TERM; echo busy >&2; sleep 1000 & wait")
    bench.results("b", R100)
    runtime = Runtime([str(bench.directory)], cache_dir=str(bench.cache_dir), on_stderr=clock.put_forward)
    with pytest.raises(TryAgainLaterError, match="did not finish within"):
        runtime.add(bench.network({"type": "a"}, {"type": "b"}), **WHERE, deadline=60)
    assert bench.sequence[0] == "ADD a"
    assert "ADD b" not in bench.sequence


@pytest.mark.parametrize("verb", ["check", "delete", "gc", "status", "validate"])
def test_no_plugin_is_run_when_the_deadline_is_over(bench: Bench, verb: str) -> None:
    bench.results("a", R100)
    network = bench.network({"type": "a"}, version="1.1.0")
    where = WHERE if verb in ("check", "delete") else {}
    if verb == "check":
        bench.runtime.add(network, **WHERE)
        bench.forget()
    with pytest.raises(TryAgainLaterError, match="plugin a was not run: the deadline of the call is over"):
        getattr(bench.runtime, verb)(network, **where, deadline=0)
    assert bench.calls == []


def test_numbers_that_are_whole_reach_plugins_as_integers(bench: Bench) -> None:
    """Helm writes 1e+06. A plugin in Go takes neither that nor 1400.0 for an integer; libcni sends an integer."""
    bench.results("a", R100)
    text = b'{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"a","mtu":1400.0,"deep":[{"rate":1e6}],"ratio":0.5,'
    network = Network.parse(text + b'"capabilities":{"bandwidth":true,"ips":null}}]}')
    bench.runtime.add(network, **WHERE, capability_args={"bandwidth": {"ingressRate": 2e6}, "ips": ["192.0.2.9"]})
    assert bench.calls[0].stdin == (
        b'{"cniVersion":"1.0.0","deep":[{"rate":1000000}],"mtu":1400,"name":"net","ratio":0.5,'
        b'"runtimeConfig":{"bandwidth":{"ingressRate":2000000}},"type":"a"}'
    )


def test_null_entries_of_a_result_are_not_handed_on(bench: Bench) -> None:
    """A plugin in Go crashes on them."""
    link = {"name": "eth0", "sandbox": "/run/netns/x"}
    ip = {"address": "192.0.2.2/24"}
    route = {"dst": "0.0.0.0/0", "gws": [{"gw": "192.0.2.1"}]}
    bench.results(
        "a", {**R100, "interfaces": [None, link], "ips": [None, {**ip, "interface": 1}], "routes": [None, route]}
    )
    bench.plugin("b", ADD="""sed 's/.*"prevResult"://; s/,"type":"b"}$//' "$call/stdin\"""")
    bench.runtime.add(bench.network({"type": "a"}, {"type": "b"}), **WHERE)
    expected = {**R100, "interfaces": [link], "ips": [{**ip, "interface": 0}], "routes": [route]}
    assert bench.calls[1].config["prevResult"] == expected
