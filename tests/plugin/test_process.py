"""One process, one request: stdout, signals, broken pipes, exit status. Real processes, no root."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from cnisdk import AddRequest, DelRequest, NetConf, Plugin, PluginMain, Result
from cnisdk.plugin import _process, reply
from cnisdk.plugin._process import _deliver
from cnisdk.plugin._signals import Signals
from cnisdk.plugin.reply import Reply, respond
from cnisdk.plugin.undo import UndoStack

PLUGIN = """
import os, select, sys
sys.path[:0] = {path!r}
from cnisdk import NetConf, Plugin, PluginMain, Result

class Noisy(Plugin[NetConf]):
    '''A plugin that talks.'''

    def add(self, request):
        request.undo(os.write, 2, b"UNDONE\\n")
        print("print")
        sys.stdout.flush()
        os.write(1, b"write\\n")
        os.system("echo child")
        if request.args.get("MODE") == "wait":
            os.write(2, b"READY\\n")
            while True:
                select.select([], [], [], 0.1)
        if request.args.get("MODE") == "large":
            return Result(extra={{"x": "x" * 10_000_000}})
        return Result()

    def delete(self, request):
        print("print")

PluginMain(Noisy)()
"""
ENVIRON = {
    "PATH": os.environ["PATH"],
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/nowhere",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nowhere",
}
CONFIG = b'{"cniVersion": "1.1.0", "name": "net"}'

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    script = tmp_path / "noisy.py"
    script.write_text(PLUGIN.format(path=sys.path))

    def start(*, shell: str = "", **environ: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", str(script)]
        if shell:
            command = ["sh", "-c", f'exec "$0" "$@" {shell}', *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=ENVIRON | environ,
            preexec_fn=default_signals,  # noqa: PLW1509
        )

    return start


def default_signals() -> None:
    """A shell's background jobs ignore SIGINT, those of nohup SIGHUP, and what is ignored is inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_until_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line == b"READY\n":
            return
    raise AssertionError("the plugin ended early")


def test_whatever_a_handler_prints_goes_to_stderr(start: Start) -> None:
    stdout, stderr = start().communicate(CONFIG, timeout=60)
    assert json.loads(stdout) == {"cniVersion": "1.1.0"}
    for text in (b"print\n", b"write\n", b"child\n"):
        assert text in stderr
    assert b"UNDONE" not in stderr


def test_del_prints_nothing(start: Start) -> None:
    process = start(CNI_COMMAND="DEL")
    assert process.communicate(CONFIG, timeout=60)[0] == b""
    assert process.returncode == 0


def test_without_a_command_people_are_told_what_it_is(start: Start) -> None:
    process = start(CNI_COMMAND="")
    stdout, stderr = process.communicate(b"", timeout=30)
    assert (stdout, process.returncode) == (b"", 0)
    assert stderr.decode() == (
        "A plugin that talks.\nCNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
    )


def test_version_does_not_wait_for_input(start: Start) -> None:
    process = start(CNI_COMMAND="VERSION")
    assert process.stdout is not None
    assert b"supportedVersions" in process.stdout.read()  # its standard input is still open
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_takes_back_what_was_done(start: Start, signum: signal.Signals) -> None:
    process = start(CNI_ARGS="MODE=wait")
    assert process.stdin is not None
    process.stdin.write(CONFIG)
    process.stdin.close()
    process.stdin = None
    wait_until_ready(process)
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=60)
    assert json.loads(stdout)["code"] == 11
    assert stderr.count(b"UNDONE\n") == 1
    assert process.returncode == 1


def test_a_result_nobody_reads_is_taken_back(start: Start) -> None:
    process = start(CNI_ARGS="MODE=large")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(CONFIG)
    process.stdin.close()
    process.stdin = None
    select.select([process.stdout], [], [], 30)  # the first part of the reply is there
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=60)
    assert stderr.count(b"UNDONE\n") == 1
    assert process.returncode == 1


@pytest.mark.parametrize(("shell", "undone"), [(">&-", True), (">/dev/full", True), ("2>&-", False)])
def test_closed_and_full_outputs(start: Start, shell: str, undone: bool) -> None:
    process = start(shell=shell)
    stdout, stderr = process.communicate(CONFIG, timeout=60)
    assert (b"UNDONE" in stderr) is undone
    assert process.returncode == (1 if undone else 0)
    assert undone or json.loads(stdout)


def test_closed_input_is_an_input_error(start: Start) -> None:
    process = start(shell="<&-")
    stdout, _ = process.communicate(timeout=60)
    assert json.loads(stdout)["code"] == 5


def test_the_plugins_own_namespace_is_refused_before_any_work(start: Start) -> None:
    for command in ("ADD", "DEL"):
        process = start(CNI_COMMAND=command, CNI_NETNS="/proc/self/ns/net")
        stdout, stderr = process.communicate(CONFIG, timeout=60)
        assert json.loads(stdout)["code"] == 8
        assert b"print" not in stderr
    process = start(CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE="TRUE")
    stdout, stderr = process.communicate(CONFIG, timeout=60)
    assert "code" not in json.loads(stdout)


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12", "012", ""])
def test_any_of_the_standard_descriptors_may_be_closed(start: Start, closed: str, tmp_path: Path) -> None:
    """A result that cannot be delivered is taken back; one that can is one document."""
    done = tmp_path / "stderr"
    shell = " ".join(f"{fd}{'<' if fd == '0' else '>'}&-" for fd in closed)
    if "2" not in closed:
        shell += f" 2>{done}"
    process = start(shell=shell)
    stdout, _ = process.communicate(CONFIG, timeout=60)
    succeeded = closed in ("", "2")
    assert process.returncode == (0 if succeeded else 1)
    if "1" in closed:
        assert stdout == b""
    else:
        assert json.loads(stdout).get("code") == (5 if "0" in closed else None)
    if closed == "1":
        assert b"UNDONE" in done.read_bytes()


def test_notes_need_no_stderr(start: Start) -> None:
    process = start(shell="2>&-", CNI_COMMAND="DEL")
    stdout, _ = process.communicate(b'{"cniVersion": "1.1.0", "name": "net", "ipam": 5}', timeout=30)
    assert (stdout, process.returncode) == (b"", 0)
    process = start(shell="2>&-", CNI_COMMAND="")
    assert process.communicate(b"", timeout=30)[0] == b""
    assert process.returncode == 0


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_signal_while_the_configuration_is_read_is_answered(start: Start, command: str) -> None:
    process = start(CNI_COMMAND=command)
    assert process.stdin is not None
    # More than a pipe takes twice: when it is written, the plugin has read the beginning, and waits for more.
    os.write(process.stdin.fileno(), b'{"cniVersion": "0.4.0",'.ljust(2 << 16) + b"{")
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert json.loads(stdout) == {
        "cniVersion": "0.4.0",
        "code": 11,
        "msg": "ended by signal 15",
        "details": "everything done so far was taken back",
    }
    assert process.returncode == 1
    assert b"print" not in stderr


@pytest.fixture
def handlers() -> Iterator[None]:
    """Have the test runner's handlers of signals back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def late() -> Signals:
    """This process has got SIGTERM while nothing could be interrupted."""
    signals = Signals()
    signal.raise_signal(signal.SIGTERM)
    return signals


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "is_spent", False)


def test_a_signal_before_the_answer_is_written_is_answered(handlers: None, fresh: None) -> None:
    undone: list[str] = []
    undo = UndoStack()
    undo.push(undone.append, "first")
    reading, writing = os.pipe()
    assert _deliver(Reply(b'{"cniVersion": "0.4.0", "ips": []}', 0, "", undo), writing, late(), list) == 1
    os.close(writing)
    with open(reading) as answer:
        document = json.load(answer)
    assert (document["cniVersion"], document["code"], undone) == ("0.4.0", 11, ["first"])
    assert reply.is_spent


def test_a_process_that_could_not_deliver_its_answer_is_spent(handlers: None, fresh: None) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert _deliver(Reply(b"{}", 0, "", UndoStack()), writing, Signals(), list) == 1
    os.close(writing)
    assert reply.is_spent


def test_a_process_that_a_signal_ends_while_it_reads_is_spent(
    handlers: None, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNI_COMMAND", "ADD")
    reading, writing = os.pipe()
    monkeypatch.setattr(_process, "_take_stdout", lambda: writing)
    assert _process.serve(PluginMain(Maker), None, late()) == 1
    with open(reading) as answer:
        assert json.load(answer)["code"] == 11
    assert reply.is_spent


def test_a_signal_after_a_del_has_done_its_work_changes_nothing(handlers: None) -> None:
    """There is nothing to deliver that could be lost."""
    reading, writing = os.pipe()
    assert _deliver(Reply(b"", 0, "", UndoStack()), writing, late(), list) == 0
    os.close(writing)
    with open(reading) as answer:
        assert answer.read() == ""


class Maker(Plugin[NetConf]):
    """Makes something, and is told to end before it could say how to take that back."""

    made: ClassVar[list[str]] = []

    def add(self, request: AddRequest[NetConf]) -> Result:
        with request.step():
            self.made.append("link")
            signal.raise_signal(signal.SIGTERM)  # for this thread: the test runner may have others
            request.undo(self.made.remove, "link")
        raise AssertionError("the signal was lost")

    def delete(self, request: DelRequest[NetConf]) -> None:
        pass


def test_no_signal_comes_between_a_step_and_its_undo(handlers: None) -> None:
    reply = respond(Maker, ENVIRON, CONFIG, interruptible=Signals())
    assert json.loads(reply.stdout)["msg"] == "ended by signal 15"
    assert Maker.made == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
