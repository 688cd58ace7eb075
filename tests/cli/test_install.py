"""cnisdk install, in virtual environments with plugins of their own."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnisdk._cli import cnisdk
from cnisdk._thick import shim, shim_build

from ..environments import PLUGIN, Environment


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("shared") / "venv")


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Environment]:
    return lambda name: Environment(tmp_path / name)


def run(launcher: Path, command: str | None, **more: str) -> "subprocess.CompletedProcess[str]":
    environ = {"PATH": "/usr/bin:/bin", "CNISDK_SERVER": "off", **({"CNI_COMMAND": command} if command else {}), **more}
    return subprocess.run([launcher], env=environ, input="{}", capture_output=True, text=True, check=False)


VERSIONS = '{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}\n'


def test_every_registered_plugin_is_installed(shared: Environment, tmp_path: Path) -> None:
    done = shared.install("--dest", str(tmp_path / "new" / "bin"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/new/bin/dotted: installed\n{tmp_path}/new/bin/noop: installed\n"
    for name in ("noop", "dotted"):
        launcher = tmp_path / "new" / "bin" / name
        assert launcher.stat().st_mode & 0o777 == 0o755
        assert run(launcher, "VERSION").stdout == VERSIONS
        about = run(launcher, None)
        assert (about.returncode, about.stdout) == (0, "")
        assert about.stderr.startswith("noop: does nothing\n")
        failed = run(launcher, "ADD")
        assert failed.returncode == 1
        assert '"code": 4' in failed.stdout
    assert sorted(os.listdir(tmp_path / "new" / "bin")) == ["dotted", "noop"]


def test_only_those_named(shared: Environment, tmp_path: Path) -> None:
    assert shared.install("--dest", str(tmp_path), "noop", "noop").returncode == 0
    assert os.listdir(tmp_path) == ["noop"]


def test_an_unknown_type(shared: Environment, tmp_path: Path) -> None:
    done = shared.install("--dest", str(tmp_path / "bin"), "noop", "bride")
    assert done.returncode == 1
    assert done.stderr == "cnisdk install: no plugin is registered as 'bride' (code 7); known types: dotted, noop\n"
    assert not (tmp_path / "bin").exists()


def test_list(shared: Environment) -> None:
    done = shared.install("--list")
    assert done.returncode == 0
    assert done.stdout == (
        "dotted  demo_plugins:Box.main  (demo-plugins 1.0)\nnoop    demo_plugins:main  (demo-plugins 1.0)\n"
    )


def test_dest_is_needed(shared: Environment) -> None:
    done = shared.install("noop")
    assert done.returncode == 2
    assert "required: --dest" in done.stderr


def test_check(shared: Environment, tmp_path: Path) -> None:
    def check(*types: str) -> tuple[int, str]:
        done = shared.install("--dest", str(tmp_path), "--check", *types)
        return done.returncode, done.stdout.replace(f"{tmp_path}/", "")

    assert check() == (1, "dotted: missing\nnoop: missing\n")
    shared.install("--dest", str(tmp_path))
    assert check() == (0, "dotted: up to date\nnoop: up to date\n")
    first = (tmp_path / "noop").read_bytes()
    (tmp_path / "noop").write_bytes(first + b"\n")
    (tmp_path / "dotted").write_bytes(b"\x7fELF")
    assert check() == (1, "dotted: is another program\nnoop: out of date\n")
    assert check("noop") == (1, "noop: out of date\n")
    done = shared.install("--dest", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, f"{tmp_path}/noop: updated\n")
    done = shared.install("--dest", str(tmp_path), "--force")
    assert done.returncode == 0
    assert (tmp_path / "noop").read_bytes() == first
    (tmp_path / "noop").chmod(0o644)
    (tmp_path / "gone").write_bytes(first)
    assert check() == (
        1,
        "dotted: up to date\nnoop: is not executable\ngone: its plugin is not installed any more; remove the file\n",
    )
    shared.install("--dest", str(tmp_path))
    assert check("noop") == (0, "noop: up to date\n")


def test_a_file_that_is_being_run_is_replaced(shared: Environment, tmp_path: Path) -> None:
    """Writing into it would fail with "text file busy"."""
    running = tmp_path / "noop"
    running.write_bytes(Path("/bin/sleep").read_bytes())
    running.chmod(0o755)
    with subprocess.Popen([running, "60"]) as process:
        try:
            assert shared.install("--dest", str(tmp_path), "--force", "noop").returncode == 0
            assert process.poll() is None
        finally:
            process.kill()
    assert run(running, "VERSION").stdout == VERSIONS
    assert sorted(os.listdir(tmp_path)) == ["noop", "noop.before-cnisdk"]


def test_a_link_is_replaced_and_not_followed(shared: Environment, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("x")
    (tmp_path / "noop").symlink_to(target)
    assert shared.install("--dest", str(tmp_path), "--force", "noop").returncode == 0
    assert target.read_text() == "x"
    assert not (tmp_path / "noop").is_symlink()


def test_launchers_are_isolated(shared: Environment, tmp_path: Path) -> None:
    """Neither PYTHONPATH nor the current directory lead a plugin that runs as root to another module."""
    shared.install("--dest", str(tmp_path / "bin"), "noop")
    (tmp_path / "demo_plugins.py").write_text("raise SystemExit('hijacked')\n")
    done = subprocess.run(
        [tmp_path / "bin" / "noop"],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(tmp_path),
            "PYTHONHOME": "/nowhere",
            "CNI_COMMAND": "ADD",
            "CNISDK_SERVER": "off",
        },
        cwd=tmp_path,
        input="{}",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "hijacked" not in done.stderr
    assert '"code": 4' in done.stdout


@pytest.mark.parametrize("name", ["with space and 'quotes' and $HOME", "long" + "/x" * 120])
def test_paths_a_first_line_could_not_hold(make: Callable[[str], Environment], tmp_path: Path, name: str) -> None:
    environment = make(name)
    done = environment.install("--dest", str(tmp_path / "bin"), "noop")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"code": 4' in run(tmp_path / "bin" / "noop", "ADD").stdout


def test_a_plugin_that_cannot_be_imported_does_not_stop_the_others(
    make: Callable[[str], Environment], tmp_path: Path
) -> None:
    environment = make("venv")
    environment.register({"broken": "no_such_module:main", "wrong": "demo_plugins:nothing"}, "broken-plugins")
    done = environment.install("--dest", str(tmp_path / "bin"))
    assert done.returncode == 1
    assert (
        'plugin "broken" (no_such_module:main) does not run (code 999); '
        "the plugin no_such_module:main cannot be started: ModuleNotFoundError: No module named 'no_such_module'; "
    ) in done.stderr
    assert "-I does not see PYTHONPATH: install the package that has it" in done.stderr
    assert (
        'plugin "wrong" (demo_plugins:nothing) does not run (code 999); '
        "the plugin demo_plugins:nothing cannot be started: "
    ) in done.stderr
    assert sorted(os.listdir(tmp_path / "bin")) == ["dotted", "noop"]


def test_a_type_registered_twice(make: Callable[[str], Environment], tmp_path: Path) -> None:
    environment = make("venv")
    environment.register({"noop": "other:main"}, "other-plugins")
    done = environment.install("--dest", str(tmp_path / "bin"))
    assert done.returncode == 1
    assert 'plugin type "noop" is registered twice: by ' in done.stderr
    assert "demo-plugins 1.0" in done.stderr
    assert "other-plugins 1.0" in done.stderr


def test_no_plugin_at_all(make: Callable[[str], Environment], tmp_path: Path) -> None:
    environment = make("venv")
    environment.register({})
    done = environment.install("--dest", str(tmp_path / "bin"))
    assert done.returncode == 1
    assert "no plugin is registered under cnisdk.plugins" in done.stderr


def test_a_plugin_whose_gc_may_not_be_enough_is_named(make: Callable[[str], Environment], tmp_path: Path) -> None:
    environment = make("venv")
    module = environment.site / "demo_plugins.py"
    module.write_text(module.read_text().replace("leaves_only_links = True", ""))
    done = environment.install("--dest", str(tmp_path / "bin"), "noop")
    assert done.returncode == 0
    assert "note: noop has no GC of its own" in done.stderr


# --- launchers and shims ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "record"),
    [
        ([], ("on-demand", "/run/cnisdk")),
        (["--directory", "relative"], ("on-demand", "{cwd}/relative")),
        (["--thick"], ("thick", "/run/cnisdk")),
        (["--no-server"], None),
    ],
)
def test_what_is_written(
    shared: Environment, tmp_path: Path, options: list[str], record: tuple[str, str] | None
) -> None:
    if shim.find_prebuilt() is None and shim.find_compiler() is None:
        pytest.skip("no C compiler")
    assert shared.install("--dest", str(tmp_path), *options, "noop").returncode == 0
    content = (tmp_path / "noop").read_bytes()
    expected = record and (record[0], record[1].format(cwd=shared.directory))
    assert shim.read_record(content) == expected
    assert content.startswith(b"#!/bin/sh" if record is None else b"\x7fELF")
    assert shared.install("--dest", str(tmp_path), "--check", *options, "noop").returncode == 0


def test_options_that_exclude_each_other(shared: Environment, tmp_path: Path) -> None:
    assert shared.install("--dest", str(tmp_path), "--thick", "--no-server", "noop").returncode == 2


@pytest.mark.parametrize("why", ["no C compiler", "too long"])
def test_where_no_shim_can_be_made_a_launcher_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    if why == "too long":
        monkeypatch.setattr(shim, "find_prebuilt", shim._payload_mark)
        monkeypatch.setattr(shim_build, "PAYLOAD_SIZE", 1000)
    else:
        monkeypatch.setattr(shim, "find_prebuilt", lambda: None)
        monkeypatch.setattr(shim, "find_compiler", lambda: None)
    assert cnisdk.main(["install", "--dest", str(tmp_path), "loopback"]) == 0
    assert why in capsys.readouterr().err
    assert (tmp_path / "loopback").read_bytes().startswith(b"#!/bin/sh")
    assert cnisdk.main(["install", "--dest", str(tmp_path), "--thick", "loopback"]) == 1
    assert why in capsys.readouterr().err


# --- what is there already --------------------------------------------------------------------------------------------


def uninstall(environment: Environment, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [environment.python, "-m", "cnisdk", "uninstall", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_another_program_is_replaced_only_by_force_and_comes_back(shared: Environment, tmp_path: Path) -> None:
    program = tmp_path / "noop"
    program.write_bytes(b"\x7fELF another program")
    done = shared.install("--dest", str(tmp_path))
    assert done.returncode == 1
    assert (
        f"{program} is another program, nothing was changed (code 7); --force replaces it and keeps it as"
        in done.stderr
    )
    assert program.read_bytes() == b"\x7fELF another program"

    done = shared.install("--dest", str(tmp_path), "--force", "noop")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{program}: installed; the other program is kept as {program}.before-cnisdk\n"
    assert run(program, "VERSION").stdout == VERSIONS
    assert shared.install("--dest", str(tmp_path), "noop").stdout == f"{program}: up to date\n"

    done = uninstall(shared, "--dest", str(tmp_path))
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path}/dotted: removed\n{program}: removed; the program it replaced is back\n"
    assert program.read_bytes() == b"\x7fELF another program"
    assert os.listdir(tmp_path) == ["noop"]


def test_a_symbolic_link_is_another_program_even_if_it_leads_to_a_launcher(shared: Environment, tmp_path: Path) -> None:
    away = tmp_path / "away"
    shared.install("--dest", str(away), "noop")
    (tmp_path / "noop").symlink_to(away / "noop")
    done = shared.install("--dest", str(tmp_path), "noop")
    assert done.returncode == 1
    assert f"is a symbolic link to {away}/noop, nothing was changed" in done.stderr
    assert (
        f"{tmp_path}/noop: is a symbolic link to" in shared.install("--dest", str(tmp_path), "--check", "noop").stdout
    )
    assert shared.install("--dest", str(tmp_path), "--force", "noop").returncode == 0
    assert not (tmp_path / "noop").is_symlink()
    assert run(tmp_path / "noop", "VERSION").stdout == VERSIONS
    assert uninstall(shared, "--dest", str(tmp_path)).returncode == 0
    assert (tmp_path / "noop").readlink() == away / "noop"
    assert run(away / "noop", "VERSION").stdout == VERSIONS


def test_uninstall_removes_what_it_is_told_and_nothing_of_others(shared: Environment, tmp_path: Path) -> None:
    shared.install("--dest", str(tmp_path))
    (tmp_path / "other").write_text("#!/bin/sh\n")
    done = uninstall(shared, "--dest", str(tmp_path), "noop", "other")
    assert done.returncode == 1
    assert "is named 'other', nothing was removed (code 7); `cnisdk install` did not write it" in done.stderr
    assert "there is no such file" in uninstall(shared, "--dest", str(tmp_path), "absent").stderr
    assert uninstall(shared, "--dest", str(tmp_path), "noop").stdout == f"{tmp_path}/noop: removed\n"
    assert sorted(os.listdir(tmp_path)) == ["dotted", "other"]


# --- what a launcher needs is gone ------------------------------------------------------------------------------------


def answer(launcher: Path) -> dict[str, Any]:
    done = run(launcher, "ADD")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert set(document) == {"cniVersion", "code", "msg", "details"}
    assert isinstance(document, dict)
    return document


def test_an_interpreter_that_is_gone_is_said_in_json(make: Callable[[str], Environment], tmp_path: Path) -> None:
    environment = make('it\'s "gone"')
    environment.install("--dest", str(tmp_path), "noop")
    os.rename(environment.directory, tmp_path / "away")
    error = answer(tmp_path / "noop")
    assert (error["code"], error["msg"]) == (
        5,
        f"the plugin cannot be started: there is no program {environment.python}",
    )
    assert "`cnisdk install`" in error["details"]
    assert run(tmp_path / "noop", "VERSION").stdout == VERSIONS


@pytest.mark.parametrize("missing", ["cnisdk", "attr", "demo_plugins.py"])
def test_a_package_that_is_gone_is_said_in_json(
    make: Callable[[str], Environment], tmp_path: Path, missing: str
) -> None:
    environment = make("venv")
    environment.install("--dest", str(tmp_path), "noop")
    os.rename(environment.site / missing, tmp_path / "away")
    if missing == "attr":  # which is imported only for plugins that want it
        assert '"code": 4' in run(tmp_path / "noop", "ADD").stdout
        (environment.site / "demo_plugins.py").write_text(f"import attr\n{PLUGIN}")
    error = answer(tmp_path / "noop")
    assert error["code"] == 5
    assert error["msg"].startswith("the plugin ")
    assert f"No module named '{missing.removesuffix('.py')}" in error["msg"]
    assert f"install the plugin's package again for {environment.python}" in error["details"]
