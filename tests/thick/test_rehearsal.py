"""Plugins are rehearsed where it can be seen by nobody, and whatever comes of that, the server serves."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnisdk import AddRequest, CheckRequest, DelRequest, NetConf, Plugin, PluginMain, Result
from cnisdk._cli.launchers import registered_plugins, this_interpreter
from cnisdk._thick.caller import CallerPolicy
from cnisdk._thick.load import load_plugins
from cnisdk._thick.rehearsal import rehearse, rehearse_in_worker
from cnisdk._thick.worker import ServedPlugin
from cnisdk.plugin._launch import Launcher, code_of, interpreter_of, render
from cnisdk.plugin.reply import respond
from cnisdk.testing import Sandbox
from cnisdk_plugins.host_local import HostLocal

pytestmark = pytest.mark.kernel

LAUNCHER = Launcher(("python",), "", "none", "main")
CALLS: list[tuple[str, str, str]] = []


class Recorder(Plugin[NetConf]):
    """Notes what it is asked, and where."""

    @classmethod
    def rehearsals(cls, directory: str) -> list[dict[str, Any]]:
        return [{"dataDir": directory}, {"dataDir": directory, "second": True}]

    def note(self, request: AddRequest[NetConf] | CheckRequest[NetConf] | DelRequest[NetConf]) -> None:
        with request.open_netns() as netns:
            CALLS.append((str(request.verb), os.readlink("/proc/self/ns/net"), f"net:[{netns.inode}]"))
        assert not os.path.exists(request.document["dataDir"])
        os.environ["LEFT"] = "behind"

    def add(self, request: AddRequest[NetConf]) -> Result:
        self.note(request)
        return Result(cni_version=request.conf.cni_version)

    def check(self, request: CheckRequest[NetConf]) -> None:
        self.note(request)

    def delete(self, request: DelRequest[NetConf]) -> None:
        self.note(request)


class Broken(Recorder):
    """Fails."""

    def delete(self, request: DelRequest[NetConf]) -> None:
        raise ValueError("not today")


def loaded(plugin: type[Plugin[Any]], type_: str = "recorder") -> dict[str, ServedPlugin]:
    return {type_: ServedPlugin(type_, "id", LAUNCHER, PluginMain(plugin))}


def test_what_is_rehearsed_happens_elsewhere(host: Sandbox) -> None:
    def work() -> tuple[list[str], list[tuple[str, str, str]], tuple[object, ...], tuple[object, ...]]:
        def look() -> tuple[object, ...]:
            handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
            return os.readlink("/proc/self/ns/net"), dict(os.environ), os.listdir("/proc/self/fd"), str(handlers)

        before = look()
        problems = rehearse(loaded(Recorder), {"recorder": b"#!/bin/sh\n"})
        return problems, CALLS, before, look()

    problems, calls, before, after = host.call(work)
    assert problems == []
    assert before == after
    assert [verb for verb, _, _ in calls].count("ADD") == [verb for verb, _, _ in calls].count("DEL") == 24
    assert {verb for verb, _, _ in calls} == {"ADD", "CHECK", "DEL"}
    (mine,), (theirs,) = {own for _, own, _ in calls}, {container for _, _, container in calls}
    assert len({before[0], mine, theirs}) == 3


def test_a_plugin_that_fails_is_told_of(host: Sandbox) -> None:
    def work() -> tuple[list[str], str, str]:
        before = os.readlink("/proc/self/ns/net")
        return rehearse(loaded(Broken), {}), before, os.readlink("/proc/self/ns/net")

    problems, before, after = host.call(work)
    assert len(problems) == 1
    assert problems[0].startswith("plugin recorder cannot be rehearsed: DEL: ValueError: not today")
    assert before == after


def test_who_may_not_make_namespaces_goes_without(host: Sandbox) -> None:
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", sys.executable, "-c", WITHOUT]
    done = host.run(argv, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nothing can be rehearsed\n"


WITHOUT = """
from tests.thick.test_rehearsal import Recorder, loaded
from cnisdk._thick.caller import CallerPolicy
from cnisdk._thick.rehearsal import rehearse, rehearse_in_worker
(problem,) = rehearse(loaded(Recorder), {})
print(problem.partition(":")[0])
"""


def test_a_server_that_can_write_no_temporary_files_goes_without(
    host: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    (problem,) = host.call(lambda: rehearse(loaded(Recorder), {}))
    assert problem.startswith("nothing can be rehearsed: ENOENT")


def test_the_reference_plugins_are_rehearsed(host: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> tuple[list[str], str]:
        interpreter = interpreter_of(this_interpreter(), None)
        load_plugins(
            {
                plugin.type: render(
                    f"{plugin.type}: {plugin.module}:{plugin.attribute} of a test",
                    interpreter,
                    code_of(plugin.module, plugin.attribute, None),
                    "{}",
                )
                for plugin in registered_plugins().values()
            }
        )
        links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
        return [line.split()[0] for line in links.splitlines()], str(sorted(map(str, Path("/var/lib").rglob("*"))))

    links, files = host.call(work)
    assert "cannot be rehearsed" not in capfd.readouterr().err
    assert links == ["lo"]
    assert files == "[]"


def test_a_worker_has_copied_most_of_its_memory_before_the_first_request(host: Sandbox, tmp_path: Path) -> None:
    plugin = ServedPlugin("host-local", "id", LAUNCHER, PluginMain(HostLocal))
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "subnet": "10.1.0.0/24"}
    conf = json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "host-local", "ipam": ipam}).encode()

    def attach(number: int) -> None:
        names = {"CNI_CONTAINERID": f"c{number}", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/x"}
        for verb in ("ADD", "DEL"):
            done = respond(HostLocal, {**names, "CNI_COMMAND": verb}, conf)
            assert done.status == 0, done.stdout
            done.undo.commit()

    def count_faults(number: int, *, rehearsed: bool) -> int:
        """Of a request in a process forked from this one."""
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                if rehearsed:
                    rehearse_in_worker([plugin], CallerPolicy())
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                attach(number)
                os.write(writing, b"%d" % (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
            finally:
                os._exit(0)
        os.wait()
        return int(os.read(reading, 100))

    def work() -> tuple[int, int]:
        for number in range(12):
            attach(number)
        gc.freeze()
        return count_faults(20, rehearsed=True), count_faults(21, rehearsed=False)

    with_rehearsal, without = host.call(work)
    assert with_rehearsal < without / 2


def test_a_worker_rehearses_ipam_plugins_alone(host: Sandbox) -> None:
    """It does so on the host itself, where others would change something."""
    asked: list[str] = []

    class Other(Recorder):
        leaves_process_unchanged = True

        def add(self, request: AddRequest[NetConf]) -> Result:
            asked.append(type(self).__name__)
            return super().add(request)

    class Addresses(Other):
        leaves_process_unchanged = True

        @classmethod
        def conformance(cls) -> dict[str, object]:
            return {"kind": "ipam"}

    class Untidy(Addresses):
        """It promises nothing."""

    def work() -> list[str]:
        plugins = [ServedPlugin("recorder", "id", LAUNCHER, PluginMain(each)) for each in (Other, Addresses, Untidy)]
        rehearse_in_worker(plugins, CallerPolicy())
        return asked

    assert host.call(work) == ["Addresses", "Addresses"]  # with two configurations
