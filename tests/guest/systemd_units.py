"""The resident server under a real systemd: its units, and a start on demand by a request of a service.

It changes the machine that it runs on, so run it in a guest: ``python tests/guest/guest.py --systemd python -m
tests.guest.systemd_units``, which is what ``nox -s systemd`` does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cnisdk._thick import protocol
from cnisdk._thick.server import ask_status
from cnisdk.errors import IOFailureError

from ..environments import ROOT, Environment

_T = TypeVar("_T")

PLUGIN = """
import os
from cnisdk import NetConf, Plugin, PluginMain, Result


class Noop(Plugin[NetConf]):
    '''noop: does nothing, or waits for the other end of a FIFO'''

    leaves_only_links = True
    leaves_process_unchanged = True

    def add(self, request):
        if fifo := request.args.get("FIFO"):
            open(fifo).read()
        return Result(extra={"parent": os.getppid()})

    def delete(self, request):
        pass


main = PluginMain(Noop)
"""
BRIDGE = {
    "name": "web",
    "type": "bridge",
    "isDefaultGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "subnet": "10.88.0.0/24"},
}
GUEST = Path("/.guest")
BIN, UNITS, FIFO = Path("/opt/cni/bin"), Path("/etc/systemd/system"), Path("/run/fifo")
FALLBACKS = Path(protocol.FALLBACKS)
DIRECTORY = os.path.dirname(protocol.SOCKET)


def say(text: str) -> None:
    print(f"{time.monotonic():6.1f} {text}", flush=True)


def run(*argv: str, check: bool = True) -> str:
    """Run a program, and return what it printed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 or not check, f"{argv} exited with {done.returncode}\n{done.stdout}{done.stderr}"
    return (done.stdout + done.stderr).strip()


def wait_until(find: Callable[[], _T], what: str) -> _T:
    """Wait until something is found that is true."""
    deadline = time.monotonic() + 300
    while not (found := find()):
        assert time.monotonic() < deadline, f"{what}\n{run('journalctl', '--no-pager', '-n', '40', check=False)}"
        time.sleep(0.1)
    return found


def show(unit: str, name: str) -> str:
    """One property of a unit."""
    return run("systemctl", "show", "--value", "-p", name, unit)


def wait_for_state(unit: str, state: str) -> None:
    wait_until(lambda: show(unit, "ActiveState") == state, f"{unit} is not {state}")


def server() -> int:
    """Process id of the server that answers; 0 if none does."""
    try:
        return int(ask_status(DIRECTORY)["pid"])
    except IOFailureError:
        return 0


def start(verb: str, conf: dict[str, object], args: str = "", container: str = "c1") -> subprocess.Popen[str]:
    """Start a request, as a container runtime does."""
    environ = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": f"/run/netns/{container}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(BIN),
        "CNI_ARGS": args,
    }
    document = json.dumps({"cniVersion": "1.0.0", "name": "net", **conf})
    pipe = subprocess.PIPE
    process = subprocess.Popen([BIN / str(conf["type"])], env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin is not None
    process.stdin.write(document)
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[str], said: str = "") -> str:
    stdout, stderr = process.communicate(timeout=400)
    assert (process.returncode, said in stderr, bool(stderr)) == (0, True, bool(said)), (stdout, stderr)
    return stdout


def parent(said: str = "") -> int:
    """The parent of the process that ran a request: the server, if it was served."""
    return int(json.loads(finish(start("ADD", {"type": "noop"}), said))["parent"])


def fallbacks() -> list[str]:
    """Take the notes of requests that shims ran themselves."""
    lines = FALLBACKS.read_text().splitlines() if FALLBACKS.exists() else []
    FALLBACKS.unlink(missing_ok=True)
    return lines


class Waiting:
    """A request that a worker runs until it is told to go on."""

    def __init__(self) -> None:
        FIFO.unlink(missing_ok=True)
        os.mkfifo(FIFO)
        self._process = start("ADD", {"type": "noop"}, f"FIFO={FIFO}")
        self._end = wait_until(self._open, "the request does not run")

    @staticmethod
    def _open() -> int:
        try:
            return os.open(FIFO, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return 0  # it has no reader yet

    def go_on(self) -> None:
        os.close(self._end)
        finish(self._process)


def install(environment: Environment, *options: str) -> None:
    done = subprocess.run(
        [environment.python, "-I", "-c", INSTALL, "--dest", str(BIN), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done


# The emulated processor needs longer to start a server than shims wait.
INSTALL = """
import sys
from cnisdk._cli import cnisdk
from cnisdk._thick import protocol
protocol.SHIM_TIMEOUT = 300.0
sys.exit(cnisdk.main(["install", *sys.argv[1:]]))
"""


def units(environment: Environment) -> None:
    install(environment, "--thick", "--units", str(UNITS))
    names = sorted(each.name for each in UNITS.glob("cnisdk*"))
    assert names == ["cnisdk-dhcp.service", "cnisdk-dhcp.socket", "cnisdk.service", "cnisdk.socket"]
    said = run("systemd-analyze", "verify", *(str(UNITS / name) for name in names))
    assert not [line for line in said.splitlines() if "cnisdk" in line], said
    run("systemctl", "daemon-reload")

    say("the socket starts the server")
    run("systemctl", "start", "cnisdk.socket")
    assert show("cnisdk.service", "ActiveState") == "inactive"
    first = parent()
    run("systemctl", "enable", "--now", "cnisdk.socket", "cnisdk.service")
    assert first == server() == int(show("cnisdk.service", "MainPID"))

    say("what it may do suffices")
    run("ip", "netns", "add", "c1")
    result = finish(start("ADD", BRIDGE))
    finish(start("CHECK", {**BRIDGE, "prevResult": json.loads(result)}))
    run("ip", "netns", "exec", "c1", "ping", "-c1", "-W5", "10.88.0.1")
    finish(start("DEL", BRIDGE))
    assert "10.88.0" not in run("nft", "list", "ruleset")

    say("it is started again when it dies, and its requests go on")
    waiting = Waiting()
    os.kill(first, signal.SIGKILL)
    second = wait_until(lambda: server() not in (0, first) and server(), "no other server")
    assert show("cnisdk.service", "NRestarts") == "1"
    assert parent() == second
    waiting.go_on()

    say("a restart after an upgrade waits for requests that run")
    waiting = Waiting()
    module = environment.site / "demo_plugins.py"
    module.write_text(module.read_text().replace("does nothing", "does nothing at all"))
    install(environment, "--thick", "--units", str(UNITS))
    run("systemctl", "restart", "--no-block", "cnisdk.service")
    wait_for_state("cnisdk.service", "deactivating")
    waiting.go_on()
    third = wait_until(lambda: server() not in (0, second) and server(), "no server of the new version")
    assert parent() == third == int(show("cnisdk.service", "MainPID"))
    assert fallbacks() == []

    say("an end for good")
    run("systemctl", "disable", "--now", "cnisdk.socket", "cnisdk.service")
    assert not Path(protocol.SOCKET).exists()
    assert parent("no server listens") == os.getpid()
    assert len(fallbacks()) == 1
    assert show("cnisdk.service", "Result") == "success"

    say("the daemon of dhcp")
    run("systemctl", "start", "cnisdk-dhcp.service")
    run("systemctl", "stop", "cnisdk-dhcp.socket", "cnisdk-dhcp.service")
    assert show("cnisdk-dhcp.service", "Result") == "success"


# As containerd's and kubelet's units have it.
CALLER = ("--unit=runtime", "--property=Delegate=yes", "--property=OOMScoreAdjust=-999", "--property=LimitCORE=1")


def on_demand(environment: Environment) -> None:
    for each in UNITS.glob("cnisdk*"):
        each.unlink()
    run("systemctl", "daemon-reload")
    install(environment)
    say("a request of a service starts a server")
    conf = json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "noop"})
    request = (
        f"echo '{conf}' | CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/c1 CNI_IFNAME=eth0 CNI_PATH={BIN} "
        f"{BIN}/noop >/run/answer; exec sleep infinity"
    )
    run("systemd-run", "--quiet", *CALLER, "sh", "-c", request)
    pid = wait_until(server, "no server on demand")
    assert ask_status(DIRECTORY)["onDemand"]
    (group,) = (line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0:"))
    unit = os.path.basename(group)
    assert unit.startswith("cnisdk-on-demand-"), group
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    say("it survives the end of the service")
    run("systemctl", "stop", "runtime.service")
    assert parent() == pid == server()
    assert "Active: active (running)" in run("systemctl", "status", "--no-pager", unit)
    assert "cnisdk serve: bridge, host-local, noop, in /run/cnisdk" in run("journalctl", "--no-pager", "-u", unit)

    say("it ends when its installation changes, and the next one when it is idle")
    module = environment.site / "cnisdk" / "_thick" / "lifetime.py"
    module.write_text(module.read_text().replace("IDLE = 600.0", "IDLE = 3.0"))
    wait_until(lambda: show(unit, "LoadState") == "not-found", f"{unit} is still there")
    assert server() == 0
    parent()
    os.utime(f"{DIRECTORY}/lock", (0, 0))  # it says that the next attempt is too early
    parent()
    pid = wait_until(server, "no second server on demand")
    unit = os.path.basename(Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1])
    wait_until(lambda: show(unit, "LoadState") == "not-found", f"{unit} is still there")
    said = run("journalctl", "--no-pager", "-u", unit)
    assert "no request came for 3 seconds" in said, said


def main() -> int:
    """Run all steps."""
    assert GUEST.exists(), "it runs in a guest only"
    environment = Environment(Path("/opt/cnisdk"))
    (environment.site / "cnisdk").unlink()
    shutil.copytree(ROOT / "cnisdk", environment.site / "cnisdk")
    (environment.site / "cnisdk_plugins").symlink_to(ROOT / "examples" / "cnisdk_plugins")
    (environment.site / "demo_plugins.py").write_text(PLUGIN)
    environment.register(
        {
            "noop": "demo_plugins:main",
            "bridge": "cnisdk_plugins.bridge:main",
            "host-local": "cnisdk_plugins.host_local:main",
        }
    )
    say("an environment is there")
    units(environment)
    on_demand(environment)
    say("all is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
