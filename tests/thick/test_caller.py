"""The server works only for a caller that could do the same itself; docs/modes.md says what it takes over of it."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnisdk._cli.launchers import search_path
from cnisdk._thick import caller, protocol, shim
from cnisdk._thick.caller import CallerPolicy, ProcessCredentials
from cnisdk.plugin._launch import code_of, interpreter_of, render
from cnisdk.testing import Sandbox

from .compiled import compiled_shim

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = b'{"cniVersion":"1.1.0","supportedVersions":["1.0.0"]}'
DECLINES = "cnisdk: running the plugin in a process of its own instead: the server declines: the caller "
UNTOUCHED = "/run/elsewhere"

# What a plugin sees of itself.
PLUGIN = """
import ctypes, json, os, platform, resource, signal, sys
from cnisdk import NetConf, Plugin, PluginMain, Result

libc = ctypes.CDLL(None)
IOPRIO_GET = {"x86_64": 252, "aarch64": 31}.get(platform.machine())


class Facts(Plugin[NetConf]):
    '''Tells what it sees.'''

    def add(self, request):
        umask = os.umask(0)
        os.umask(umask)
        return Result(extra={
            "environment": os.environ.get("MARK"), "name": os.path.basename(sys.argv[-1]), "cwd": os.getcwd(),
            "umask": umask, "netns": os.readlink("/proc/self/ns/net"), "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "policy": os.sched_getscheduler(0), "processors": sorted(os.sched_getaffinity(0)),
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "cgroup": open("/proc/self/cgroup").read(),
            "oom": int(open("/proc/self/oom_score_adj").read()), "slack": libc.prctl(30),
            "ioprio": IOPRIO_GET and libc.syscall(IOPRIO_GET, 1, 0), "parent": os.getppid(), "session": os.getsid(0),
            "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
            "ignored": signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN, "open": os.path.exists("/proc/self/fd/77"),
        })

    def delete(self, request):
        pass


main = PluginMain(Facts)
"""

SERVE = """
import sys
from pathlib import Path
from cnisdk._thick.load import load_plugins
from cnisdk._thick.server import Server
Server(load_plugins({"facts": Path(sys.argv[1]).read_bytes()}), sys.argv[2], ready=2, limit=8).run()
"""

# Becomes a caller that differs from others, and asks.
CALLER = """
import ctypes, os, platform, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def unshare(flags):
    check(libc.unshare(flags))
def fork():
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
{change}
os.execv(sys.argv[1], sys.argv[1:2])
"""

MAP = 'for name, text in ("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1"):\n'
MAP += '    open(f"/proc/self/{name}", "w").write(text)'
FILTER = "code = (ctypes.c_ushort * 4)(6, 0, 0, 0x7FFF)\n"  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
FILTER += "program = (ctypes.c_ulong * 2)(1, ctypes.addressof(code))\ncheck(libc.prctl(22, 2, program))"
IOPRIO = 'check(libc.syscall({"x86_64": 251, "aarch64": 30}[platform.machine()], 1, 0, 3 << 13))'


class Case(NamedTuple):
    """A caller that differs in one thing.

    Attributes:
        change: What it does to differ.
        fact: What a plugin sees of it.
        value: What it would see in a process of its own; None where the caller itself tells.
        reason: Why such a caller is declined.
    """

    change: str
    fact: str = ""
    value: Any = None
    reason: str = ""


# By the rows of the table in docs/modes.md. Rows with no change are held by test_each_difference_counts.
CASES = {
    "environment": Case('os.environ["MARK"] = "x"', "environment", "x"),
    "name of the program": Case('os.execv(sys.argv[1], ["other"])', "name", "other"),
    "standard input, output and error": Case("pass", "name", "facts"),  # it answers, through pipes
    "working directory": Case('os.chdir("/usr")', "cwd", "/usr"),
    "umask": Case("os.umask(0o123)", "umask", 0o123),
    "network namespace": Case('unshare(0x40000000); print(os.readlink("/proc/self/ns/net"), flush=True)', "netns"),
    "nice value": Case("os.nice(5); print(os.getpriority(0, 0), flush=True)", "nice"),
    "scheduling class": Case("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "policy", os.SCHED_BATCH),
    "processors it may use": Case(
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", "processors", [min(os.sched_getaffinity(0))]
    ),
    "mount namespace": Case("unshare(0x20000)", reason="is in another mnt namespace"),
    "user namespace": Case(f"unshare(0x10000000)\n{MAP}", reason="is in another user namespace"),
    "PID namespace": Case("unshare(0x20000000); fork()", reason="is in another pid namespace"),
    "UTS namespace": Case("unshare(0x4000000)", reason="is in another uts namespace"),
    "IPC namespace": Case("unshare(0x8000000)", reason="is in another ipc namespace"),
    "cgroup namespace": Case("unshare(0x2000000)", reason="is in another cgroup namespace"),
    "time namespace": Case("unshare(0x80); fork()", reason="is in another time namespace"),
    "root directory": Case(f'os.chroot("{UNTOUCHED}")', reason="has another root directory"),
    "user and group ids": Case(""),
    "capabilities": Case("check(libc.prctl(24, 27, 0, 0, 0))", reason="has fewer capabilities"),  # CAP_MKNOD
    "supplementary groups": Case(""),
    "no_new_privs": Case("check(libc.prctl(38, 1, 0, 0, 0))", reason="is confined by no_new_privs"),
    "seccomp filters": Case(FILTER, reason="is confined by seccomp"),
    "AppArmor profile": Case(""),
    "personality": Case("libc.personality(0x40000)", reason="has another personality (setarch)"),
    "resource limits": Case("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))", "nofile", 99),
    "OOM score adjustment": Case('open("/proc/self/oom_score_adj", "w").write("555")', "oom", 555),
    "cgroup": Case("", "cgroup"),  # to change it takes another right in each of cgroups' versions
    "I/O priority": Case(IOPRIO, "ioprio", 3 << 13),
    "timer slack": Case("check(libc.prctl(29, 7777777))", "slack", 7777777),
    "session and parent": Case("fork(); os.setsid(); print(os.getsid(0), flush=True)", "session"),
    "blocked and ignored signals": Case("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "ignored", True),
    "other open descriptors": Case("os.dup2(0, 77)", "open", True),
}


class Setting:
    """A host with a server of one plugin."""

    def __init__(self, host: Sandbox, directory: Path) -> None:
        self.host, self.runtime = host, str(directory / "run")
        (directory / "factual.py").write_text(PLUGIN)
        paths = [str(directory), str(ROOT), *(search_path(sys.executable) or [path for path in sys.path if path])]
        argv, code = interpreter_of(sys.executable, paths), code_of("factual", "main", paths)
        launcher = render("facts: factual:main of a test", argv, code, VERSIONS.decode())
        (directory / "launcher").write_bytes(launcher)
        self.shim = directory / "facts"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol, "SHIM_TIMEOUT", 30.0)  # a busy machine is no failure
            known, alone = shim.launcher_id(launcher), b"#!/bin/sh\necho {}\n"
            patch.setattr(shim, "launcher_id", lambda _: known)
            self.shim.write_bytes(compiled_shim(shim.ShimTexts("facts", alone, VERSIONS, self.runtime)))
        self.shim.chmod(0o755)
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with told:
            told.bind(str(directory / "told"))
            told.settimeout(60)
            self.server = host.popen(
                [sys.executable, "-c", SERVE, directory / "launcher", self.runtime],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NOTIFY_SOCKET": str(directory / "told")},
            )
            assert told.recv(100) == b"READY=1"

    def ask(self, change: str) -> tuple[str, dict[str, Any], str]:
        """Return what a caller that differs says of itself, what the plugin tells, and what is on stderr."""
        environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/x", "CNI_IFNAME": "e", "CNI_PATH": "/x"}
        done = self.host.run(
            [sys.executable, "-I", "-S", "-c", CALLER.format(change=change), self.shim],
            env={**environ, "PATH": os.environ["PATH"]},
            input='{"cniVersion": "1.0.0", "name": "net", "type": "facts"}',
            check=False,
        )
        assert done.returncode == 0, (change, done)
        said, _, document = done.stdout.partition("{")
        return said.strip(), json.loads("{" + document), done.stderr


@pytest.fixture
def setting(host: Sandbox, tmp_path: Path) -> Iterator[Setting]:
    if shim.find_compiler() is None:
        pytest.skip("no C compiler")
    made = Setting(host, tmp_path)
    yield made
    made.server.kill()
    made.server.communicate()


def rows() -> dict[str, str]:
    """The table in docs/modes.md: what happens to each thing."""
    text = (ROOT / "docs" / "modes.md").read_text()
    table = text.partition("| of the caller |")[2].partition("\n\n")[0]
    return {
        row[1]: row[2] for row in re.finditer(r"^\| (.+?) \| (carried|declined|the server's) \|", table, re.MULTILINE)
    }


def test_what_a_caller_has_is_carried_declined_or_the_servers_as_documented(setting: Setting) -> None:
    setting.host.run(["sh", "-c", f"mkdir {UNTOUCHED} && mount --rbind / {UNTOUCHED}"])
    assert rows().keys() == CASES.keys()
    _, usual, stderr = setting.ask("pass")
    assert stderr == ""
    for row, what in rows().items():
        case = CASES[row]
        if not case.change and not case.fact:
            assert row in DIFFERENT
            continue
        said, facts, stderr = setting.ask(case.change or "pass")
        if what == "declined":
            assert (row, stderr) == (row, f"{DECLINES}{case.reason}\n")
            continue
        assert (row, stderr) == (row, "")
        value = said if case.value is None else case.value
        if what == "carried":
            assert (row, str(facts[case.fact])) == (row, str(value))
        else:
            assert (row, facts[case.fact]) == (row, usual[case.fact])
            assert (row, str(value)) != (row, str(usual[case.fact]))


# --- what cannot be made everywhere -----------------------------------------------------------------------------------

LESS = ProcessCredentials(
    b"0/0", frozenset({b"0", b"27"}), 0b1001, 0, 0, b"p (enforce)", ("mnt:[1]", "user:[2]"), (1, 2, 3)
)

DIFFERENT: dict[str, list[tuple[dict[str, Any], str | None]]] = {
    "user and group ids": [({"users": b"0/5"}, "the caller has other user or group ids")],
    "supplementary groups": [
        ({"groups": frozenset({b"0"})}, "the caller is not in all groups of the server"),
        ({"groups": frozenset({b"0"}), "capabilities": 0b1001001}, None),  # it may join them
        ({"groups": frozenset({b"0", b"27", b"44"})}, None),
    ],
    "AppArmor profile": [
        ({"profile": b"q (enforce)"}, "the caller is confined by AppArmor"),
        ({"profile": b"unconfined"}, None),
    ],
    "capabilities": [({"capabilities": 0b0001}, "the caller has fewer capabilities"), ({"capabilities": 0b1011}, None)],
    "seccomp filters": [({"filters": 1}, "the caller is confined by seccomp")],
    "root directory": [({"root": (1, 2, 4)}, "the caller has another root directory")],
}


@pytest.mark.parametrize("row", DIFFERENT)
def test_each_difference_counts(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "read_credentials", lambda *_, **__: LESS)
    monkeypatch.setattr(caller, "NAMESPACE_KINDS", ("mnt", "user"))
    policy = CallerPolicy()
    assert policy.compare(LESS) is None
    for difference, reason in DIFFERENT[row]:
        assert policy.compare(LESS._replace(**difference)) == reason


# --- who is judged ----------------------------------------------------------------------------------------------------


# Kernels differ in what they say of a process that has ended.
FAILURES = ("ESRCH", "EINVAL", "ENOENT")


class Listener:
    """A socket a server would listen at, and connections to it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(self.path)
        self.socket.listen()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.path)
        return connection

    def find_objection_or_error(self, policy: CallerPolicy) -> str:
        try:
            return str(self.find_objection(policy))
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]

    def find_objection(self, policy: CallerPolicy) -> str | None:
        connection, _ = self.socket.accept()
        with connection:
            return policy.find_objection(connection)


@pytest.mark.parametrize("pidfd", [True, False], ids=["this kernel", "a kernel before 6.5"])
def test_the_server_itself_could_be_a_caller(tmp_path: Path, pidfd: bool) -> None:
    policy, listener = CallerPolicy(), Listener(tmp_path / "socket")
    policy._has_peerpidfd = policy._has_peerpidfd and pidfd
    with listener.socket, listener.connect():
        assert listener.find_objection(policy) is None


@pytest.mark.parametrize("pidfd", [True, False], ids=["this kernel", "a kernel before 6.5"])
def test_a_connection_whose_maker_has_ended_is_nobodys(tmp_path: Path, pidfd: bool) -> None:
    """Its child has it still, and says what it likes."""
    policy, listener = CallerPolicy(), Listener(tmp_path / "socket")
    policy._has_peerpidfd = policy._has_peerpidfd and pidfd
    with listener.socket, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        child = os.fork()
        if child == 0:
            connection.connect(listener.path)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert listener.find_objection_or_error(policy) in FAILURES


def judge_a_reused_number(path: Path) -> str:
    """Connect in a process, end it, and have another one get its number; called as PID 1 of a PID namespace."""
    policy, listener = CallerPolicy(), Listener(path)
    with listener.socket, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        first = os.fork()
        if first == 0:
            connection.connect(listener.path)
            os._exit(0)
        os.waitpid(first, 0)
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(first - 1))
        second = os.fork()
        if second == 0:
            signal.pause()
        assert first == second
        try:
            return listener.find_objection_or_error(policy)
        finally:
            os.kill(second, signal.SIGKILL)


REUSED = """
import sys
from pathlib import Path
from tests.thick.test_caller import judge_a_reused_number
print(judge_a_reused_number(Path(sys.argv[1])))
"""


def test_a_process_that_got_the_number_of_the_caller_is_not_the_caller(host: Sandbox, tmp_path: Path) -> None:
    if not CallerPolicy()._has_peerpidfd:
        pytest.skip("Linux before 6.5 does not tell them apart")
    done = host.run(
        ["unshare", "--pid", "--mount-proc", "--fork", sys.executable, "-c", REUSED, tmp_path / "socket"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    )
    assert done.stdout.strip() in FAILURES, done
