"""The program of all shims: made the same everywhere, for each processor, and part of the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NoReturn

import pytest

from cnisdk._cli import cnisdk
from cnisdk._thick import shim, shim_build
from cnisdk._thick.shim import ON_DEMAND, THICK, ShimTexts
from cnisdk.errors import InvalidConfigError
from cnisdk.plugin._launch import find_launcher, render

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = b'{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}'
LAUNCHER = render("noop: a:b of a test", ["/bin/echo", "run"], "code", VERSIONS.decode())


def refuse(missing: str) -> NoReturn:
    """Skip a test that lacks a tool; in CI, which installs the tools, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


def compiler_for(machine: str) -> list[str]:
    for command in shim_build.compilers_for(machine):
        # Debian's cross compilers come without the headers of a C library.
        probe = [*command, "-x", "c", "-fsyntax-only", "-include", "sys/socket.h", "/dev/null"]
        if shutil.which(command[0]) and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return command
    refuse(f"no compiler for {machine}")


def build(machine: str, output: Path, cwd: Path) -> bytes:
    command = shim_build.compiler_command(compiler_for(machine), str(output))
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return output.read_bytes()


@pytest.mark.parametrize("machine", shim_build.MACHINES)
def test_it_is_the_same_wherever_it_is_built(tmp_path: Path, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(machine, tmp_path / "one", Path("/"))
    other = tmp_path / "another place" / "x"
    other.mkdir(parents=True)
    source = Path(shutil.copy(shim_build.SOURCE, other / "shim.c"))
    os.utime(source, (0, 0))
    monkeypatch.setattr(shim_build, "SOURCE", str(source))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert build(machine, other / "two", other) == first
    assert first.count(shim_build.source_digest().encode()) == 1


@pytest.mark.parametrize("machine", shim_build.MACHINES)
def test_it_runs_on_each_processor(tmp_path: Path, machine: str) -> None:
    runner: list[str] = []
    if machine != os.uname().machine:
        emulator = shutil.which(f"qemu-{machine}") or shutil.which(f"qemu-{machine}-static")
        if emulator is None:
            refuse(f"no emulator of {machine} (qemu-user)")
        runner = [emulator]
    texts = ShimTexts("noop", LAUNCHER, VERSIONS, str(tmp_path / "run"))
    program = tmp_path / "noop"
    program.write_bytes(shim.make_shim(build(machine, tmp_path / "program", tmp_path), texts))
    program.chmod(0o755)

    def run(command: str) -> tuple[int, str, str]:
        environ = {"PATH": "/usr/bin:/bin", "CNI_COMMAND": command}
        done = subprocess.run([*runner, program], env=environ, input="", capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert run("VERSION") == (0, VERSIONS.decode() + "\n", "")
    status, stdout, stderr = run("ADD")
    assert (status, stdout) == (0, f"run -c code {program}\n")
    assert stderr == (
        f"cnisdk: running the plugin in a process of its own instead: no server listens at {tmp_path}/run/server.sock\n"
    )


def test_what_a_shim_tells_programs() -> None:
    mark = shim._payload_mark()
    blank = b"head" + mark.ljust(shim_build.PAYLOAD_SIZE, b"\0") + b"tail"
    for start, server in ((b"", THICK), (b"exit", ON_DEMAND)):
        made = shim.make_shim(blank, ShimTexts("noop", LAUNCHER, VERSIONS, '/a "b" é', start))
        assert (made[:4], made[-4:], len(made)) == (b"head", b"tail", len(blank))
        assert shim.read_record(made) == (server, '/a "b" é')
        assert find_launcher(made) == LAUNCHER
    assert shim.read_record(LAUNCHER) is None
    assert shim.read_record(b"cnisdk-shim {") is None


@pytest.mark.parametrize(
    ("directory", "launcher"), [("/x" * 60, LAUNCHER), ("/run", LAUNCHER + b"#" * shim_build.PAYLOAD_SIZE)]
)
def test_what_does_not_fit_is_refused(directory: str, launcher: bytes) -> None:
    with pytest.raises(InvalidConfigError, match="too long"):
        shim.make_shim(shim._payload_mark(), ShimTexts("noop", launcher, VERSIONS, directory))


def test_a_program_of_another_source_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "_PREBUILT", str(tmp_path))
    assert shim.find_prebuilt() is None
    path = tmp_path / shim_build.file_name(os.uname().machine)
    path.write_bytes(b"cnisdk-shim-payload 0123456789abcdef0123456789abcdef")
    assert shim.find_prebuilt() is None
    path.write_bytes(shim._payload_mark())
    assert shim.find_prebuilt() == shim._payload_mark()


def test_where_there_is_no_program_thick_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shim in Python was tried: it took as long as the plugin in a process of its own."""
    for find in ("find_compiler", "find_prebuilt"):
        monkeypatch.setattr(shim, find, lambda: None)
    assert cnisdk.main(["install", "--dest", str(tmp_path), "--thick", "static"]) == 1
    assert "there is no C compiler (cc), and no ready-made shim for this processor" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["all", "none"])
def test_the_wheel_has_it(tmp_path: Path, wish: str) -> None:
    machines = shim_build.MACHINES if wish == "all" else ()
    expected = {each: build(each, tmp_path / each, tmp_path) for each in machines}
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(argv, cwd=ROOT, env={**os.environ, "CNISDK_SHIMS": wish}, capture_output=True, check=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if "/prebuilt/" in name}
    assert found == {f"cnisdk/_thick/prebuilt/shim.{name}": content for name, content in expected.items()}
