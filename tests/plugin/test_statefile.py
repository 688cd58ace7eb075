"""State files: no attachment takes another's, whatever their names make when they are joined."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from cnisdk import InvalidEnvironmentError
from cnisdk.plugin.statefile import StateFile, delete_stale, read_text_file
from cnisdk.spec.names import Attachment
from cnisdk.testing import expect_error

# Each makes the name a_b_c.json.
ONE, OTHER = Attachment("net", "a_b", "c"), Attachment("net", "a", "b_c")


@pytest.mark.parametrize(("first", "second"), list(permutations((ONE, OTHER))))
@pytest.mark.parametrize("goes", [0, 1])
def test_names_that_make_the_same_text_when_joined(
    tmp_path: Path, first: Attachment, second: Attachment, goes: int
) -> None:
    files = [StateFile(str(tmp_path), each) for each in (first, second)]
    for number, file in enumerate(files):
        for _ in range(2):
            file.write({"value": number})
    assert [file.find() for file in files] == [{"value": 0}, {"value": 1}]
    assert files[0].path == str(tmp_path / "a_b_c.json"), "the reference's name"
    files[goes].delete()
    assert files[goes].find() is None
    assert files[1 - goes].find() == {"value": 1 - goes}
    delete_stale(str(tmp_path), "net", [files[1 - goes].owner])
    assert files[1 - goes].find() == {"value": 1 - goes}
    files[1 - goes].delete()
    assert os.listdir(tmp_path) == []


def test_the_same_interface_in_another_network_takes_the_file_over(tmp_path: Path) -> None:
    """A container has one interface of a name: the DEL of the one before comes too late to put anything back."""
    before, now = (StateFile(str(tmp_path), Attachment(network, "c", "eth0")) for network in ("a", "b"))
    before.write({"value": 1})
    now.write({"value": 2})
    assert (before.find(), now.find()) == (None, {"value": 2})
    before.delete()
    assert now.find() == {"value": 2}


@pytest.mark.parametrize("place", ["above", "the directory"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, place: str) -> None:
    """A disk that is not mounted: DEL and GC must not say that there was nothing to put back."""
    link = tmp_path / "disk"
    link.symlink_to("/nowhere/at/all")
    directory = str(link / "state" if place == "above" else link)
    file = StateFile(directory, ONE)
    steps: list[Callable[[], object]] = [
        lambda: file.write({}),
        file.find,
        file.delete,
        file.find_others,
        lambda: delete_stale(directory, "net", []),
    ]
    for step in steps:
        with expect_error(5, f"{link} is a symbolic link to /nowhere/at/all, which does not exist"):
            step()


@pytest.mark.parametrize("kind", ["file", "FIFO"])
def test_what_is_no_directory_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "here"
    path.touch() if kind == "file" else os.mkfifo(path)
    with expect_error(5, f"{path} is a {kind}, not a directory"):
        StateFile(str(path / "state"), ONE).write({})


def test_a_text_that_a_configuration_names_is_never_waited_for(tmp_path: Path) -> None:
    """A FIFO in its place would keep a request, or the worker of a server, for ever."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_bytes(b"a\xff\n")
    (tmp_path / "link").symlink_to("text")
    with pytest.raises(OSError, match="it is a FIFO, not a regular file"):
        read_text_file(str(tmp_path / "fifo"))
    assert read_text_file(str(tmp_path / "link")) == "a\ufffd\n"
    assert read_text_file("/dev/null") == ""


def test_a_container_id_that_is_too_long_for_a_file(tmp_path: Path) -> None:
    """ADD says whose fault it is; CHECK, DEL and GC find no file."""
    file = StateFile(str(tmp_path), Attachment("net", "c" * 250, "eth0"))
    with pytest.raises(InvalidEnvironmentError, match="CNI_CONTAINERID has 250 characters") as caught:
        file.write({})
    assert caught.value.code == 4
    assert (file.find(), file.find_others(), file.is_free()) == (None, [], True)
    file.delete()
    assert os.listdir(tmp_path) == []


def test_files_of_an_earlier_namespace_are_no_other_interfaces(tmp_path: Path) -> None:
    now, other, stale, silent = (
        StateFile(str(tmp_path), Attachment("net", "c", f"eth{number}")) for number in range(4)
    )
    now.write({"netns": "2"})
    other.write({"netns": "2", "value": 1})
    stale.write({"netns": "1", "value": 2})
    silent.write({"value": 3})
    assert [each["value"] for each in now.find_others("2")] == [1, 3]
    assert [each["value"] for each in now.find_others()] == [1, 2, 3]
