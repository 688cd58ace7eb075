"""The program behind a launcher, and the quick answer to VERSION. Real processes, no root."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnisdk import AddRequest, DelRequest, NetConf, Plugin, Result
from cnisdk.plugin import quick, respond
from cnisdk.spec.versions import ALL

ROOT = Path(__file__).resolve().parents[2]


class Empty(Plugin[NetConf]):
    def add(self, request: AddRequest[NetConf]) -> Result:
        return Result()

    def delete(self, request: DelRequest[NetConf]) -> None:
        pass


def python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_the_quick_answer_is_the_same() -> None:
    assert tuple(map(str, ALL)) == quick._ALL
    code = "from cnisdk.plugin.quick import answer_version; answer_version(); print('went on')"
    done = python(code, CNI_COMMAND="VERSION")
    assert (done.returncode, done.stdout.encode()) == (0, respond(Empty, {"CNI_COMMAND": "VERSION"}, b"").stdout)
    assert python(code, CNI_COMMAND="ADD").stdout == "went on\n"


def test_versions_a_plugin_chooses() -> None:
    code = "from cnisdk.plugin.quick import answer_version; answer_version(('0.4.0', '1.0.0'))"
    done = python(code, CNI_COMMAND="VERSION")
    assert done.stdout == '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0"]}\n'


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples/cnisdk_plugins").glob("[!_]*.py")))
def test_each_plugin_answers_the_same_quickly_and_in_a_server(name: str) -> None:
    main = importlib.import_module(f"cnisdk_plugins.{name}").main
    command, env = [sys.executable, "-m", f"cnisdk_plugins.{name}"], {**os.environ, "CNI_COMMAND": "VERSION"}
    quickly = subprocess.run(command, env=env, capture_output=True, check=True).stdout
    assert quickly == respond(main.plugin, {"CNI_COMMAND": "VERSION"}, b"").stdout


def test_a_version_nobody_reads() -> None:
    code = "import os; os.close(1); from cnisdk.plugin.quick import answer_version; answer_version()"
    assert python(code, CNI_COMMAND="VERSION").returncode == 1


PROGRAM = """
import sys, types
module = types.ModuleType("program")
sys.modules["program"] = module
exec({body!r}, module.__dict__)
from cnisdk.plugin._launch import launch
launch("program", "box.main")
"""


@pytest.mark.parametrize(
    ("returned", "status", "stderr"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise SystemExit(4)", 4, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('said')", 1, "said\n"),
    ],
)
def test_a_launched_program_ends_as_it_would(returned: str, status: int, stderr: str) -> None:
    body = f"""
import atexit, types
def main():
    atexit.register(print, "at exit")
    print("printed")
    {returned}
box = types.SimpleNamespace(main=main)
"""
    done = python(PROGRAM.format(body=body))
    assert (done.returncode, done.stdout, done.stderr) == (status, "printed\nat exit\n", stderr)


def test_threads_are_waited_for() -> None:
    body = """
import threading, types
def main():
    event = threading.Event()
    threading.Thread(target=lambda: (event.wait(0.2), print("finished"))).start()
box = types.SimpleNamespace(main=main)
"""
    done = python(PROGRAM.format(body=body))
    assert (done.returncode, done.stdout) == (0, "finished\n")


def test_a_failing_import_is_shown() -> None:
    done = python(PROGRAM.format(body="raise ValueError('broken')"))
    assert done.returncode == 1
    assert "ValueError: broken" in done.stderr
