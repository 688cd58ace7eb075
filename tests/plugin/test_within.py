"""A delegate run in the plugin's process and one run in its own: nobody can tell the difference. No root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cnisdk._cli.launchers import search_path
from cnisdk.plugin._launch import code_of, interpreter_of, read_launcher, render

ROOT = Path(__file__).resolve().parents[2]

PLUGINS = """
import os, select, sys
from attrs import frozen
from cnisdk import CNIError, InvalidConfigError, IPConfig, NetConf, Plugin, PluginMain, Result, TryAgainLaterError
from cnisdk.invoke import Delegate
from ipaddress import ip_interface


class Outer(Plugin[NetConf]):
    '''Delegates.'''

    def add(self, request):
        environ, cwd = dict(os.environ), os.getcwd()
        request.undo(os.write, 2, b"OUTER UNDONE\\n")
        try:
            if request.args.get("TIMEOUT"):
                return Delegate("inner", request.environ, request.stdin, timeout=5.0).add()
            leased = request.ipam.add()
        finally:
            assert (environ, cwd) == (dict(os.environ), os.getcwd())
        if request.args.get("LATER"):
            raise InvalidConfigError("later")
        os.write(2, b"OUTER %d\\n" % os.getpid())
        return leased

    def delete(self, request):
        request.ipam.delete()

    def check(self, request):
        request.ipam.check()


class Inner(Plugin[NetConf]):
    '''Does as CNI_ARGS says.'''

    def add(self, request):
        mode = request.args["MODE"]
        request.undo(os.write, 2, b"INNER UNDONE\\n")
        os.write(2, b"INNER %d\\n" % os.getpid())
        assert os.environ["CNI_COMMAND"] == request.environ["CNI_COMMAND"] == "ADD"
        if mode == "print":
            print("to people")
            sys.stdout.flush()
            os.write(1, b"raw\\n")
            os.system("echo child")
        if mode == "error":
            raise TryAgainLaterError("not now", details="soon")
        if mode == "own code":
            raise CNIError("mine", code=123)
        if mode == "bug":
            raise ZeroDivisionError("a bug")
        if mode == "exit":
            sys.exit(3)
        if mode == "os error":
            open("/nonexistent/file")
        if mode == "state":
            os.environ["MORE"] = "1"
            os.environ.pop("CNI_IFNAME")
            os.chdir("/")
        if mode == "wait":
            os.write(2, b"READY\\n")
            while True:
                select.select([], [], [], 0.1)
        assert sys.stdin.read() == ""
        return Result(ips=(IPConfig(address=ip_interface("10.1.2.3/24")),))

    def delete(self, request):
        os.write(2, b"INNER DEL\\n")

    def check(self, request):
        raise InvalidConfigError("checked")


outer, inner = PluginMain(Outer), PluginMain(Inner)
"""


class Outcome(NamedTuple):
    status: int
    stdout: str
    stderr: str
    pids: dict[str, str]


class Host:
    """Launchers in two directories: in `apart` that of the delegate is not what the installation would write."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "delegating.py").write_text(PLUGINS)
        found = search_path(sys.executable)
        paths = [str(directory), str(ROOT), *(found or [path for path in sys.path if path])]
        for name in ("within", "apart"):
            (directory / name).mkdir()
            for plugin in ("outer", "inner"):
                code = code_of("delegating", plugin, paths)
                text = render(
                    f"{plugin}: delegating:{plugin} of a test", interpreter_of(sys.executable, paths), code, ""
                )
                if (name, plugin) == ("apart", "inner"):
                    text += b"# changed\n"
                path = directory / name / plugin
                path.write_bytes(text)
                path.chmod(0o755)

    def start(self, where: str, verb: str, args: str, version: str = "1.0.0") -> subprocess.Popen[str]:
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/nowhere",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.directory / where),
            "CNI_ARGS": args,
            "OTHER": "1",
        }
        process = subprocess.Popen(
            # A suite that runs in the background ignores SIGINT, and so would the plugin.
            ["env", "--default-signal=INT,HUP", self.directory / where / "outer"],
            env=environ,
            cwd=self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(
            f'{{"cniVersion": "{version}", "name": "net", "type": "outer", "ipam": {{"type": "inner"}}}}'
        )
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self, process: subprocess.Popen[str], where: str) -> Outcome:
        stdout, stderr = process.communicate(timeout=60)
        lines, pids = [], {}
        for line in stderr.splitlines():
            who, _, number = line.partition(" ")
            if who in ("INNER", "OUTER") and number.isdigit():
                pids[who] = number
            else:
                lines.append(line)
        own, text = f"{self.directory / where}/", "\n".join(lines)
        return Outcome(process.returncode, stdout.replace(own, "/DIR/"), text.replace(own, "/DIR/"), pids)

    def run(self, where: str, verb: str, args: str, version: str = "1.0.0") -> Outcome:
        return self.finish(self.start(where, verb, args, version), where)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host"))


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("ADD", "MODE=result"),
        ("ADD", "MODE=result;LATER=1"),
        ("ADD", "MODE=print"),
        ("ADD", "MODE=error"),
        ("ADD", "MODE=own code"),
        ("ADD", "MODE=bug"),
        ("ADD", "MODE=exit"),
        ("ADD", "MODE=os error"),
        ("ADD", "MODE=state"),
        ("DEL", ""),
        ("CHECK", "MODE=result"),
    ],
)
def test_nobody_can_tell(host: Host, verb: str, args: str) -> None:
    within, apart = host.run("within", verb, args), host.run("apart", verb, args)
    assert within[:3] == apart[:3]
    if verb == "ADD" and "OUTER" in within.pids:
        assert within.pids["INNER"] == within.pids["OUTER"]
        assert apart.pids["INNER"] != apart.pids["OUTER"]


def test_a_version_the_delegate_refuses(host: Host) -> None:
    within, apart = (host.run(where, "ADD", "MODE=result", "9.9.9") for where in ("within", "apart"))
    assert within[:3] == apart[:3]


def test_a_deadline(host: Host) -> None:
    """It is long enough for a delegate that starts in a process of its own on a busy machine: both wait at once."""
    started = [(host.start(where, "ADD", "MODE=wait;TIMEOUT=1"), where) for where in ("within", "apart")]
    for each in [host.finish(*process) for process in started]:
        assert each.status == 1
        assert "/DIR/inner did not finish within 5 seconds and was stopped" in each.stdout
        assert '"code": 11' in each.stdout
        assert "INNER UNDONE" in each.stderr
        assert "INNER DEL" in each.stderr
        assert "OUTER UNDONE" in each.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal(host: Host, number: signal.Signals) -> None:
    outcomes = []
    for where in ("within", "apart"):
        process = host.start(where, "ADD", "MODE=wait")
        assert process.stderr is not None
        for line in process.stderr:
            if line == "READY\n":
                break
        process.send_signal(number)
        outcomes.append(host.finish(process, where))
    for each in outcomes:
        assert each.status == 1
        assert f"ended by signal {number.value}" in each.stdout
        assert set(each.stderr.split("\n")) == {"INNER DEL", "INNER UNDONE", "OUTER UNDONE"}
    assert outcomes[0][:3] == outcomes[1][:3]


def test_killed_together(host: Host) -> None:
    """A delegate of its own process would live on, and do what nobody waits for."""
    process = host.start("within", "ADD", "MODE=wait")
    assert process.stderr is not None
    inner = 0
    for line in process.stderr:
        if line.startswith("INNER"):
            inner = int(line.split()[1])
        if line == "READY\n":
            break
    assert inner == process.pid
    process.kill()
    host.finish(process, "within")


def test_what_is_no_launcher_of_ours(host: Host) -> None:
    good = (host.directory / "within" / "inner").read_bytes()
    found = read_launcher(good)
    assert found is not None
    assert (found.module, found.attribute) == ("delegating", "inner")
    assert read_launcher(b"\x7fELF whatever\0" + good) == found
    for bad in (b"", b"#!/bin/sh\n", good[:-1], good + b"\n", good.replace(b"exit", b"true"), good[:200], good[20:]):
        assert read_launcher(bad) is None
    other = read_launcher(good.replace(sys.executable.encode(), b"/usr/bin/other"))
    assert other is not None
    assert not found.same_installation(other)
    assert found.same_installation(read_launcher((host.directory / "within" / "outer").read_bytes()) or other)
