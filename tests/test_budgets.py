"""Each path imports no more than its budget allows, and an import changes nothing in its process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cnisdk.testing import Host

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cnisdk"

# What a plugin process must not pay for: import costs are most of a one-shot plugin's time.
SLOW = {
    "argparse",
    "ast",
    "asyncio",
    "attr",
    "cattrs",
    "concurrent.futures",
    "dataclasses",
    "enum",
    "http",
    "importlib",
    "importlib.metadata",
    "inspect",
    "json",
    "logging",
    "multiprocessing",
    "pathlib",
    "pyroute2",
    "pytest",
    "re",
    "rich",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "typing",
    "typing_extensions",
    "unittest",
}
BUDGETS = {
    "errors": SLOW,
    "spec": SLOW | {"hashlib"},
    "spec.names": SLOW,
    "spec.versions": SLOW,
    "plugin": SLOW,
    # VERSION is answered with what Python brings anyway.
    "plugin.quick": SLOW | {"collections"},
    "plugin._launch": SLOW,
    "ipam": SLOW,
    "dhcp.lease": SLOW,
    "dhcp.options": SLOW,
    "invoke": SLOW,
    "linux": SLOW,
    "runtime": SLOW,
    "_cli.cnitool": SLOW,
    "_cli.start": SLOW,
    "testing.hosts": {"pyroute2"},
}
# etcd's answers are read by json, whose time is little beside that of the network.
PLUGINS = {
    f"cnisdk_plugins.{path.stem}": SLOW - ({"enum", "json", "re"} if path.stem == "cluster" else set())
    for path in sorted((ROOT / "examples" / "cnisdk_plugins").glob("*.py"))
    if path.stem != "__init__"
}


def environment() -> dict[str, str]:
    """The environment of a Python without site module that finds what this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples"), *filter(None, sys.path)])}


def loaded_after(statement: str) -> set[str]:
    """Return the modules a fresh, isolated interpreter holds after `statement` and did not hold before."""
    script = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    argv = [sys.executable, "-S", "-c", script]  # the site module would import some of what is forbidden
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", [*BUDGETS, *PLUGINS])
def test_import_budget(name: str) -> None:
    forbidden = BUDGETS.get(name) or PLUGINS[name]
    module = name if name in PLUGINS else f"cnisdk.{name}"
    loaded = loaded_after(f"import {module}")
    over = sorted(forbidden & loaded)
    assert not over, f"import {module} loads {', '.join(over)}"


def run_and_list(
    statement: str, *argv: str, stdin: str = "{}", switches: Sequence[str] = ("-S",), **environ: str
) -> tuple[int, str, set[str]]:
    """Run a program in a fresh interpreter; return its exit status, its output and the modules it held at its end."""
    script = f"""
import atexit, os, sys
before = set(sys.modules)
atexit.register(lambda: os.write(2, ("LOADED " + " ".join(set(sys.modules) - before)).encode()))
{statement}
"""
    command = [sys.executable, *switches, "-c", script, *argv]
    done = subprocess.run(
        command, env=environment() | environ, input=stdin, capture_output=True, text=True, check=False
    )
    assert "LOADED" in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr, set(done.stderr.rpartition("LOADED ")[2].split())


ATTACHMENT = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/nowhere", "CNI_PATH": "/nowhere"}


def loaded_by_request(plugin: str, **environ: str) -> set[str]:
    """Return the modules a plugin's process holds when it ends, having refused a request without configuration."""
    launch = f"from cnisdk.plugin._launch import launch; launch({plugin!r}, 'main')"
    status, _, loaded = run_and_list(launch, **environ)
    assert status == 1
    return loaded


def run_launcher(path: Path, stdin: str, environ: dict[str, str]) -> tuple[int, str, set[str]]:
    """Do as a launcher does."""
    launcher = json.loads(path.read_text().splitlines()[3].removeprefix("# "))
    as_launched = [*launcher["argv"], "-c", launcher["code"], str(path)]
    statement = f"sys.orig_argv = {as_launched!r}; exec({launcher['code']!r})"
    return run_and_list(statement, stdin=stdin, switches=launcher["argv"][1:], **environ)


def test_requests_load_nothing_slow(host: Host, tmp_path: Path) -> None:
    """Requests that succeed, from begin to end: ADD, CHECK and DEL of bridge, with host-local in its process."""
    install = [sys.executable, "-I", "-m", "cnisdk", "install", "--no-server", "--dest", str(tmp_path)]
    subprocess.run([*install, "bridge", "host-local"], check=True, capture_output=True)
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "subnet": "10.1.0.0/16"}
    conf = {"cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "b0", "isGateway": True, "ipam": ipam}
    attachment = {**ATTACHMENT, "CNI_NETNS": host.container("c1").netns, "CNI_PATH": str(tmp_path)}
    for plugin in ("host-local", "bridge"):
        stdin = json.dumps(conf)
        for verb in ("ADD", "CHECK", "DEL"):
            environ = {**attachment, "CNI_COMMAND": verb}
            status, printed, loaded = host.call(run_launcher, tmp_path / plugin, stdin, environ)
            assert (status, (SLOW | {"hashlib", "traceback"}) & loaded) == (0, set()), printed
            if verb == "ADD":
                assert ("cnisdk_plugins.host_local" in loaded, "cnisdk.linux" in loaded) == (True, plugin == "bridge")
                result = json.JSONDecoder().raw_decode(printed)[0]
                stdin = json.dumps({**conf, "prevResult": result})


def test_a_question_to_the_dhcp_daemon_loads_nothing_slow() -> None:
    """Which is all of a request to dhcp while a daemon runs."""
    ipam = {"type": "dhcp", "daemonSocketPath": "/nowhere"}
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "dhcp", "ipam": ipam}
    launch = "from cnisdk.plugin._launch import launch; launch('cnisdk_plugins.dhcp', 'main')"
    status, printed, loaded = run_and_list(launch, stdin=json.dumps(conf), CNI_COMMAND="STATUS", CNI_PATH="/nowhere")
    assert (status, SLOW & loaded) == (1, set()), printed
    assert '"code": 50' in printed


def test_cnitool_loads_nothing_slow(host: Host, tmp_path: Path) -> None:
    """Its commands without options, from begin to end."""
    (tmp_path / "loopback").write_text('#!/bin/sh\ncat >/dev/null\necho \'{"cniVersion": "1.0.0"}\'\n')
    (tmp_path / "loopback").chmod(0o755)
    network = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "loopback"}]}
    (tmp_path / "n.conflist").write_text(json.dumps(network))
    environ = {"CNI_PATH": str(tmp_path), "NETCONFPATH": str(tmp_path)}
    start = "from cnisdk._cli.start import cnitool; cnitool()"
    netns = host.container("c1").netns
    for verb in ("add", "check", "del"):
        called = host.call(run_and_list, start, verb, "n", netns, **environ)
        # Before Python 3.11, base64 alone reads strictly, and imports re.
        slow = SLOW if sys.version_info >= (3, 11) else SLOW - {"enum", "re"}
        assert (called[0], (slow | {"hashlib", "traceback"}) & called[2]) == (0, set()), called[1]


def test_host_local_never_loads_the_kernel_layer() -> None:
    loaded = loaded_by_request("cnisdk_plugins.host_local", CNI_COMMAND="ADD", **ATTACHMENT)
    assert "cnisdk.ipam.filestore" in loaded or "cnisdk_plugins.host_local" in loaded
    assert not {name for name in loaded if name.startswith(("cnisdk.linux", "pyroute2"))}
    assert not (SLOW | {"hashlib", "traceback"}) & loaded


def test_an_error_loads_next_to_nothing() -> None:
    loaded = loaded_by_request("cnisdk_plugins.bridge", CNI_COMMAND="ADD", **ATTACHMENT)
    assert not {name for name in loaded if name.startswith("pyroute2")}
    assert not (SLOW | {"hashlib", "traceback"}) & loaded


def test_version_needs_no_plugin() -> None:
    """`python -m` of a reference plugin answers before it imports what the other verbs need."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]), "CNI_COMMAND": "VERSION"}
    argv = [sys.executable, "-X", "importtime", "-m", "cnisdk_plugins.bridge"]
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "cnisdk.plugin.quick" in loaded
    brought = {"importlib", "threading"}  # by `python -m` and the site module
    assert not ((SLOW - brought) | {"cnisdk.spec"}) & loaded


def test_the_spec_imports_off_linux() -> None:
    """The typed objects load where the kernel's modules do not exist."""
    absent = (
        "import sys; sys.modules.update(fcntl=None, termios=None, resource=None, pwd=None, grp=None, pyroute2=None)"
    )
    script = (
        f"{absent}; sys.platform = 'win32'; import cnisdk, cnisdk.errors, cnisdk.spec; from cnisdk.spec import Result"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_does_nothing() -> None:
    """No thread, no file, no signal handler, no child: an import of any module changes no process state."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    names = [name for name in names if not name.endswith("__main__")]
    script = f"""
import os, signal, sys, threading, warnings
def state():
    return (sorted(os.listdir("/proc/self/fd")), threading.active_count(), dict(os.environ), os.getcwd(),
            [signal.getsignal(n) for n in sorted(signal.valid_signals())], os.readlink("/proc/self/ns/net"),
            list(warnings.filters), sys.stdout, sys.stderr, list(sys.meta_path), list(sys.path))
import attrs, cattrs, pytest, hypothesis, pyroute2, asyncio, logging
before = state()
import importlib
for name in {names!r}:
    importlib.import_module(name)
after = state()
for old, new in zip(before, after):
    assert old == new, (old, new)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
