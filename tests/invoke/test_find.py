"""Finding plugins along CNI_PATH."""

import os
from pathlib import Path

import pytest

from cnisdk.errors import InvalidConfigError, InvalidEnvironmentError
from cnisdk.invoke import get_plugin_path, split_path


def plugin(directory: Path, name: str, mode: int = 0o755) -> str:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_first_directory_wins(tmp_path: Path) -> None:
    first, second = plugin(tmp_path / "a", "bridge"), plugin(tmp_path / "b", "bridge")
    assert get_plugin_path("bridge", [str(tmp_path / "a"), str(tmp_path / "b")]) == first
    assert get_plugin_path("bridge", [str(tmp_path / "b"), str(tmp_path / "a")]) == second


def test_links_are_followed_but_not_resolved(tmp_path: Path) -> None:
    target = plugin(tmp_path / "a", "real")
    (tmp_path / "b").mkdir()
    link = tmp_path / "b" / "bridge"
    link.symlink_to(target)
    assert get_plugin_path("bridge", [str(tmp_path / "b")]) == str(link)


def test_a_file_that_is_not_executable_does_not_hide_a_good_one(tmp_path: Path) -> None:
    plugin(tmp_path / "a", "bridge", 0o644)
    (tmp_path / "b" / "bridge").mkdir(parents=True)
    good = plugin(tmp_path / "c", "bridge")
    assert get_plugin_path("bridge", [str(tmp_path / each) for each in "abc"]) == good


def test_what_was_unfit_is_named(tmp_path: Path) -> None:
    path = plugin(tmp_path / "a", "bridge", 0o644)
    with pytest.raises(InvalidConfigError) as caught:
        get_plugin_path("bridge", [str(tmp_path / "a"), "/nowhere"])
    assert caught.value.code == 7
    assert caught.value.msg == f'failed to find plugin "bridge" in path [{tmp_path}/a /nowhere]'
    assert caught.value.details == f"{path} is not executable (mode 0644)"


@pytest.mark.parametrize("name", ["", ".", "..", "../bridge", "a/b", "/bin/sh", "a\\b", "a\0b", "b" * 5000])
def test_names_that_are_no_file_names(tmp_path: Path, name: str) -> None:
    plugin(tmp_path / "a", "bridge")
    with pytest.raises(InvalidConfigError):
        get_plugin_path(name, [str(tmp_path / "a"), str(tmp_path)])


@pytest.mark.parametrize("paths", [[], [""], ["a\0b"]])
def test_no_directory(paths: list[str]) -> None:
    with pytest.raises(InvalidEnvironmentError, match="no paths provided"):
        get_plugin_path("sh", paths)


def test_relative_directories_mean_the_current_one_never_the_path_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    with pytest.raises(InvalidConfigError):
        get_plugin_path("sh", ["", "."])
    here, below = plugin(tmp_path, "sh"), plugin(tmp_path / "bin", "x")
    assert get_plugin_path("sh", ["."]) == here
    assert get_plugin_path("x", ["bin"]) == below
    with pytest.raises(InvalidConfigError):
        get_plugin_path("sh", ["", "/nowhere"])


def test_split_path() -> None:
    assert split_path(f"/a{os.pathsep}{os.pathsep}/b c{os.pathsep}") == ("/a", "/b c")
    assert split_path("") == ()
