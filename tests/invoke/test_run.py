"""Running plugins: what they get, what they may do wrong, and what is left of them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cnisdk.errors import (
    CNIError,
    DecodingError,
    InternalError,
    InvalidEnvironmentError,
    IOFailureError,
    TryAgainLaterError,
)
from cnisdk.invoke import execute, process, run
from cnisdk.testing.sandbox import fork_call, take_answer

from ..clocks import Clock
from .conftest import Script

ENVIRON = {"PATH": "/usr/bin:/bin", "CNI_COMMAND": "ADD"}
RESULT = '{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.2/24"}]}'


def alive(pid: int) -> bool:
    """Is the process there, and not only a zombie that init will collect?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: Path) -> bool:
    """Are all these processes gone? What was killed may take a moment to fall."""
    limit = time.monotonic() + 60
    while any(alive(int(pid)) for pid in pids.read_text().split()):
        if time.monotonic() > limit:
            return False
        os.sched_yield()
    return True


def no_children() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return True


# --- what the plugin gets ---------------------------------------------------------------------------------------------


def test_environment_and_input_arrive_whole(script: Script) -> None:
    path = script('printf \'{"environ":"%s","stdin":%s}\' "$(env | sort | tr "\\n" " ")" "$(cat)"')
    printed = json.loads(run(path, environ={"CNI_COMMAND": "ADD", "CNI_ARGS": "A=1;B=ü", "PATH": "/bin"}, stdin=b"[1]"))
    assert printed["stdin"] == [1]
    assert set(printed["environ"].split()) >= {"CNI_ARGS=A=1;B=ü", "CNI_COMMAND=ADD", "PATH=/bin"}
    assert "HOME=" not in printed["environ"]


def test_megabytes_both_ways_do_not_block(script: Script) -> None:
    path = script("cat >&2; cat /dev/null; head -c 5000000 /dev/zero | tr '\\0' x")
    seen = bytearray()
    finished = execute([path], environ=ENVIRON, stdin=b"y" * 5_000_000, timeout=30, on_stderr=seen.extend)
    assert finished.returncode == 0
    assert finished.stdout == b"x" * 5_000_000
    assert bytes(seen) == b"y" * 5_000_000
    assert finished.stderr == b"y" * process.STDERR_TAIL


def test_input_that_nobody_reads_is_no_error(script: Script) -> None:
    assert run(script(f"echo '{RESULT}'"), environ=ENVIRON, stdin=b"x" * 5_000_000).strip() == RESULT.encode()


def test_only_three_descriptors_arrive(script: Script) -> None:
    leaky = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaky, True)
    try:
        path = script('ls -l /proc/self/fd >&2; ls /proc/self/fd | tr "\\n" " "')
        finished = execute([path], environ=ENVIRON, stdin=b"")
    finally:
        os.close(leaky)
    # The fourth is the directory ls reads.
    assert finished.stdout.split() == [b"0", b"1", b"2", b"3"], finished.stderr


def test_it_works_with_closed_standard_streams(script: Script) -> None:
    path = script("cat")
    code = (
        "import os; os.close(0); os.close(1); os.close(2)\n"
        "from cnisdk.invoke import execute\n"
        f"done = execute([{path!r}], environ={{'PATH': '/bin'}}, stdin=b'hello')\n"
        "os._exit(0 if done == (0, b'hello', b'') else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_signals_are_as_a_shell_would_set_them(script: Script) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        finished = execute([script("grep -E '^Sig(Blk|Ign)' /proc/self/status")], environ=ENVIRON, stdin=b"")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    masks = [int(line.split()[1], 16) for line in finished.stdout.decode().splitlines()]
    assert masks[0] == 0
    assert not masks[1] & (1 << (signal.SIGPIPE - 1))


def test_stderr_comes_while_the_plugin_runs(script: Script, tmp_path: Path) -> None:
    """The plugin waits for a file that is only made when its first words have arrived."""
    go = tmp_path / "go"
    path = script(f"echo first >&2; while [ ! -e {go} ]; do sleep 0.01; done; echo second >&2; echo '{RESULT}'")
    seen: list[bytes] = []

    def listen(chunk: bytes) -> None:
        seen.append(chunk)
        go.touch()

    run(path, environ=ENVIRON, stdin=b"", timeout=10, on_stderr=listen)
    assert b"".join(seen) == b"first\nsecond\n"
    assert len(seen) == 2


def test_stderr_is_passed_on_by_default(script: Script, capfd: pytest.CaptureFixture[str]) -> None:
    run(script(f"echo note >&2; echo '{RESULT}'"), environ=ENVIRON, stdin=b"")
    assert capfd.readouterr() == ("", "note\n")


# --- what it answers --------------------------------------------------------------------------------------------------


def failure(script: Script, body: str, command: str = "ADD") -> CNIError:
    with pytest.raises(CNIError) as caught:
        run(
            script(body),
            environ={**ENVIRON, "CNI_COMMAND": command},
            stdin=b"{}",
            timeout=10,
            on_stderr=lambda _: None,
        )
    return caught.value


def test_a_reported_error_keeps_code_text_and_details(script: Script) -> None:
    error = failure(script, """echo '{"cniVersion":"1.0.0","code":11,"msg":"full","details":"10.0.0.0/30"}'; exit 1""")
    assert type(error) is TryAgainLaterError
    assert (error.code, error.msg, error.details) == (11, "full", "10.0.0.0/30")


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_an_error_object_counts_with_status_0_too(script: Script, command: str) -> None:
    error = failure(script, """echo '{"code":100,"msg":"no luck"}'""", command)
    assert (error.code, error.msg) == (100, "no luck")


# The texts of the reference's messages begin these; what it loses (stderr, the code) follows.
@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ("exit 3", InternalError, "netplugin failed with no error message: exit status 3"),
        ("kill -9 $$", InternalError, "netplugin failed with no error message: signal: killed"),
        ("kill -SEGV $$", InternalError, "netplugin failed with no error message: signal: segmentation fault"),
        ("echo oh dear >&2; exit 1", InternalError, 'netplugin failed: "oh dear": exit status 1'),
        (
            "echo bla; echo oh dear >&2; exit 1",
            InternalError,
            'netplugin failed but error parsing its diagnostic message "bla": exit status 1; plugin PATH; its std',
        ),
        (
            "echo '{}{}'; exit 1",
            InternalError,
            'netplugin failed but error parsing its diagnostic message "{}{}": exit status 1; plugin PATH',
        ),
        (
            f"echo '{RESULT}'; exit 1",
            InternalError,
            f"netplugin failed but printed no error object but {json.dumps(RESULT)}: exit status 1; plugin PATH",
        ),
        (
            """echo '{"code":"7","msg":"x"}'; exit 1""",
            InternalError,
            'netplugin failed but printed no error object but "{\\"code\\":\\"7\\",\\"msg\\":\\"x\\"}": exit status 1',
        ),
        (
            """echo '{"code":7}'; exit 1""",
            InternalError,
            'netplugin failed but printed no error object but "{\\"code\\":7}": exit status 1',
        ),
        ("", DecodingError, "netplugin succeeded but printed nothing, expected one JSON object; plugin PATH"),
        ("echo log line", DecodingError, 'netplugin succeeded but printed "log line", expected one JSON object'),
        ("echo '[]'", DecodingError, 'netplugin succeeded but printed "[]", expected one JSON object'),
        ("echo 'null'", DecodingError, 'netplugin succeeded but printed "null", expected one JSON object'),
        (
            f"echo '{RESULT}{RESULT}'",
            DecodingError,
            f"netplugin succeeded but printed {json.dumps(RESULT + RESULT)}, expected one JSON object",
        ),
    ],
)
def test_wrong_answers(script: Script, body: str, kind: type[CNIError], text: str) -> None:
    error = failure(script, body)
    assert type(error) is kind
    assert str(error).replace(script(body), "PATH").startswith(text)


def test_ten_megabytes_of_garbage_are_not_repeated(script: Script) -> None:
    error = failure(script, "head -c 10000000 /dev/urandom; head -c 10000000 /dev/zero >&2; exit 1")
    assert "bytes of " in error.msg
    assert len(str(error)) < 30_000


def test_a_plugin_that_prints_without_end_is_stopped(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STDOUT_LIMIT", 1 << 20)
    error = failure(script, "yes")
    assert isinstance(error, IOFailureError)
    assert "printed more than 1 MiB" in error.msg
    assert no_children()


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_verbs_without_result_may_print_what_they_like(script: Script, command: str) -> None:
    run(script("echo whatever"), environ={**ENVIRON, "CNI_COMMAND": command}, stdin=b"")


# --- plugins that cannot be started -----------------------------------------------------------------------------------


def test_no_such_interpreter(script: Script) -> None:
    path = script("", interpreter="/no/such/interpreter")
    with pytest.raises(IOFailureError, match=r"cannot run .*plugin: ENOENT: .*; the interpreter"):
        run(path, environ=ENVIRON, stdin=b"")


def test_no_format(tmp_path: Path) -> None:
    path = tmp_path / "plugin"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o755)
    with pytest.raises(IOFailureError, match="ENOEXEC"):
        run(str(path), environ=ENVIRON, stdin=b"")


def test_an_environment_that_cannot_be_passed(script: Script) -> None:
    path = script("")
    for name, value in (("CNI_ARGS", "a\0b"), ("A=B", "c"), ("", "c")):
        with pytest.raises(InvalidEnvironmentError):
            run(path, environ={**ENVIRON, name: value}, stdin=b"")
    with pytest.raises(IOFailureError, match="E2BIG"):
        run(path, environ={**ENVIRON, "CNI_ARGS": "x" * 200_000}, stdin=b"")


def test_a_busy_file_is_tried_again(script: Script) -> None:
    path = script(f"echo '{RESULT}'")
    writer = os.open(path, os.O_WRONLY)
    timer = threading.Timer(0.1, os.close, [writer])
    timer.start()
    try:
        assert run(path, environ=ENVIRON, stdin=b"").strip() == RESULT.encode()
    finally:
        timer.join()


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_file_that_stays_busy_is_an_error(script: Script, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(process, "BUSY_LIMIT", 0.05)
    path = script("exit 0")
    with open(path, "ab"), pytest.raises(IOFailureError, match="ETXTBSY"):
        run(path, environ={**ENVIRON, "CNI_COMMAND": command}, stdin=b"")


# --- deadlines and interruptions --------------------------------------------------------------------------------------


def test_a_deadline(script: Script) -> None:
    with pytest.raises(TryAgainLaterError, match=r"did not finish within 0\.1 seconds"):
        run(script("sleep 1000"), environ=ENVIRON, stdin=b"", timeout=0.1)
    assert no_children()


def test_the_deadline_ends_the_whole_group(script: Script, tmp_path: Path, clock: Clock) -> None:
    pids = tmp_path / "pids"
    path = script(f"sleep 1000 & echo $$ $! > {pids}; echo waiting >&2; wait")
    with pytest.raises(TryAgainLaterError, match=r"did not finish within 60 seconds") as caught:
        run(path, environ=ENVIRON, stdin=b"", timeout=60, on_stderr=clock.put_forward)
    assert caught.value.details == "its stderr ends with: waiting"
    assert gone(pids)
    assert no_children()


def test_a_plugin_is_asked_before_it_is_killed(script: Script, tmp_path: Path, clock: Clock) -> None:
    undone = tmp_path / "undone"
    seen = bytearray()
    path = script(f"trap 'echo undoing >&2; : > {undone}; exit 1' TERM; echo ready >&2; sleep 1000 & wait")

    def listen(chunk: bytes) -> None:
        seen.extend(chunk)
        clock.put_forward()

    with pytest.raises(TryAgainLaterError):
        run(path, environ=ENVIRON, stdin=b"", timeout=60, grace=60, on_stderr=listen)
    assert undone.exists()
    assert bytes(seen) == b"ready\nundoing\n"


def test_the_child_of_a_shell_that_is_gone_has_time_to_undo(script: Script, tmp_path: Path, clock: Clock) -> None:
    undone = tmp_path / "undone"
    inner = script(
        f"trap 'sleep 0.2; : > {undone}; exit 1' TERM; echo ready >&2; while :; do sleep 0.01; done", name="inner"
    )
    with pytest.raises(TryAgainLaterError):
        run(
            script(f"{inner} & wait"),
            environ=ENVIRON,
            stdin=b"",
            timeout=60,
            grace=60,
            on_stderr=clock.put_forward,
        )
    assert undone.exists()


def test_a_plugin_that_ignores_sigterm_is_killed(script: Script, tmp_path: Path, clock: Clock) -> None:
    pids = tmp_path / "pids"
    path = script(f"trap '' TERM; echo $$ > {pids}; echo ready >&2; while :; do sleep 1; done")
    with pytest.raises(TryAgainLaterError):
        run(path, environ=ENVIRON, stdin=b"", timeout=60, grace=0.1, on_stderr=clock.put_forward)
    assert gone(pids)


def test_what_runs_for_a_killed_plugin_has_ended_when_the_call_returns(
    script: Script, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker of the resident server, which the kernel kills when its shim is: the next DEL must not meet it."""
    monkeypatch.setattr(process, "LINGER", 60)
    ended = tmp_path / "ended"
    worker = script(f"trap '' TERM; echo ready >&2; sleep 0.4; : > {ended}", name="worker")
    path = script(f"trap '' TERM; setsid {worker} & while :; do sleep 1; done")
    with pytest.raises(TryAgainLaterError):
        run(path, environ=ENVIRON, stdin=b"", timeout=60, grace=0.1, on_stderr=clock.put_forward)
    assert ended.exists()


def test_a_grandchild_that_holds_the_pipes_delays_nothing(script: Script, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    path = script(f"sleep 1000 & echo $! > {pids}; echo '{RESULT}'")
    try:
        assert run(path, environ=ENVIRON, stdin=b"").strip() == RESULT.encode()
        # A plugin may leave a daemon on purpose.
        assert alive(int(pids.read_text()))
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)


def test_an_interrupted_call_leaves_no_process(script: Script, tmp_path: Path) -> None:
    """As by a signal handler that raises."""
    pids = tmp_path / "pids"
    path = script(f"sleep 60 & echo $$ $! > {pids}; echo started >&2; wait")

    class Interrupt(BaseException):
        pass

    def interrupt(_: bytes) -> None:
        raise Interrupt

    before = os.listdir("/proc/self/fd")
    with pytest.raises(Interrupt):
        run(path, environ=ENVIRON, stdin=b"", on_stderr=interrupt)
    assert gone(pids)
    assert no_children()
    assert os.listdir("/proc/self/fd") == before


def test_a_real_signal_interrupts(script: Script, tmp_path: Path) -> None:
    """In a process of one thread: another thread may take a signal that the main thread holds back for a moment."""
    pids = tmp_path / "pids"
    path = script(f"echo $$ > {pids}; kill -TERM $PPID; while :; do sleep 1; done")

    class Terminated(BaseException):
        pass

    def handle(*_: object) -> None:
        raise Terminated

    def work() -> bool:
        signal.signal(signal.SIGTERM, handle)
        with pytest.raises(Terminated):
            run(path, environ=ENVIRON, stdin=b"")
        return no_children()

    pipe, pid = fork_call(work)
    assert take_answer(pipe, pid) is True
    assert gone(pids)


@pytest.mark.parametrize("body", [f"echo '{RESULT}'", "sleep 60"])
def test_kernels_without_pidfd(script: Script, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    if body.startswith("echo"):
        assert run(script(body), environ=ENVIRON, stdin=b"", timeout=10).strip() == RESULT.encode()
    else:
        with pytest.raises(TryAgainLaterError):
            run(script(body), environ=ENVIRON, stdin=b"", timeout=0.2)
    assert no_children()


def test_descriptors_are_closed_again(script: Script) -> None:
    path = script(f"echo '{RESULT}'")
    run(path, environ=ENVIRON, stdin=b"")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        run(path, environ=ENVIRON, stdin=b"")
    assert os.listdir("/proc/self/fd") == before


def test_sigchld_ignored_by_the_host_program(script: Script) -> None:
    path = script(f"echo '{RESULT}'")
    code = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from cnisdk.errors import IOFailureError\n"
        "from cnisdk.invoke import execute\n"
        "try:\n"
        f"    execute([{path!r}], environ={{'PATH': '/bin'}}, stdin=b'', timeout=5)\n"
        "except IOFailureError as exc:\n"
        "    assert 'SIGCHLD is ignored' in str(exc), exc\n"
        "else:\n"
        "    raise SystemExit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_import_of_subprocess() -> None:
    code = (
        "import sys, attrs, cattrs; before = 'subprocess' in sys.modules\n"  # theirs do, on Python 3.10
        "from cnisdk.invoke import Delegate, execute\n"
        "execute(['/bin/true'], environ={}, stdin=b''); sys.exit('subprocess' in sys.modules and not before)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
