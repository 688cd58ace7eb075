"""Where runtimes keep what they remember, and what is found there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnisdk.runtime.cache import Cache, CachedAttachment
from cnisdk.runtime.caches import (
    VARIABLE,
    Place,
    Remembered,
    find_places,
    forget,
    known_directories,
    read_all,
    read_of,
)
from cnisdk.spec.names import Attachment

WHO = Attachment("net", "c1", "eth0")


def store(directory: Path, attachment: Attachment = WHO) -> Path:
    cache = Cache(str(directory))
    cache.store(CachedAttachment(attachment, netns="/run/netns/blue"))
    return Path(cache.path(attachment))


def found(directory: Path, network: str = "") -> set[str]:
    return {each.path for each in read_all(find_places([str(directory)]), network).entries}


def test_all_places_below_a_cache_directory(tmp_path: Path) -> None:
    """libcni's own, that of multus for its delegates, and that of a Firecracker machine, both ways round."""
    paths = [store(tmp_path), store(tmp_path / "multus"), store(tmp_path / "vm-17")]
    loose = tmp_path / "vm-18" / "net-c1-eth0"
    loose.parent.mkdir()
    paths[0].rename(loose)
    paths[0] = store(tmp_path)
    assert found(tmp_path) == {str(each) for each in [*paths, loose]}


def test_what_is_no_cached_result_below_it_is_passed_over(tmp_path: Path) -> None:
    """The leases of host-local, what multus notes of its delegates, programs."""
    for name, content in {
        "networks/results/10.9.0.2": "c1\r\neth0",
        "networks/results/a-b-c": "c1\r\neth0",
        "multus/0123-4567-89ab": json.dumps([{"name": "net"}]),
        "bin/a-plug-in": "#!/bin/sh",
        "results/.12.34.tmp": "{",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    memory = read_all(find_places([str(tmp_path)]))
    assert (memory.entries, memory.unreadable, memory.hidden) == ((), (), ())


def test_only_one_network(tmp_path: Path) -> None:
    store(tmp_path, Attachment("other", "c1", "eth0"))
    (tmp_path / "results" / "other-x-eth0").touch()
    assert found(tmp_path, "net") == set()
    assert read_all(find_places([str(tmp_path)]), "net").unreadable == ()


def test_further_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/srv/a:/srv/b")
    assert known_directories(["/srv/c", "/srv/a"]) == ("/var/lib/cni", "/srv/a", "/srv/b", "/srv/c")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"\0" * 100, "empty"),
        (b'{"kind": "cniCacheV1", "containerId"', "torn"),
        (b'{"kind": "cniCacheV2"}', "foreign"),
        (b'{"cniVersion": "0.3.1"}', "foreign"),
        (b"[]", "foreign"),
        (b"Do not delete: for the audit in March.\n", "foreign"),
    ],
)
def test_what_tells_nothing(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "results" / "net-c1-eth0"
    path.parent.mkdir()
    path.write_bytes(content)
    (unreadable,) = read_all(find_places([str(tmp_path)])).unreadable
    assert unreadable.problem == problem
    assert unreadable.may_be_of(WHO)
    assert unreadable.may_be_of(WHO._replace(ifname=""))
    assert not unreadable.may_be_of(WHO._replace(container_id="c"))


@pytest.mark.parametrize(
    ("kind", "problem"),
    [("pipe", "foreign"), ("directory", "foreign"), ("loop", "foreign"), ("link to nowhere", "not readable")],
)
def test_what_is_no_file_at_all_stops_nothing(tmp_path: Path, kind: str, problem: str) -> None:
    path = tmp_path / "results" / "net-c1-eth0"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "loop" else "/nowhere")
    (unreadable,) = read_all(find_places([str(tmp_path)])).unreadable
    assert unreadable.problem == problem
    assert [each.path for each in read_of(WHO, find_places([str(tmp_path)]))] == [str(path)]


@pytest.mark.parametrize("link", ["", "results", "multus", "multus/results"])
def test_a_link_to_a_disk_that_is_not_mounted_hides_cached_results(tmp_path: Path, link: str) -> None:
    """What lies there may be of containers that live."""
    store(tmp_path / "cni")
    path = tmp_path / "cni" / link
    if path.exists():
        path.rename(tmp_path / "moved")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "not-mounted")
    memory = read_all(find_places([str(tmp_path / "cni")]))
    assert memory.hidden == (f"{path} is a symbolic link that leads nowhere",)


def test_a_torn_result_in_a_place_of_many_things_may_be_an_attachments(tmp_path: Path) -> None:
    path = tmp_path / "vm-18" / "net-c1-eth0"
    path.parent.mkdir()
    path.write_text('{"kind"')
    memory = read_all(find_places([str(tmp_path)]))
    assert not memory.unreadable
    assert [(each.path, each.problem) for each in memory.loose] == [(str(path), "torn")]
    assert memory.loose[0].may_be_of(WHO)


def test_what_this_user_may_not_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(tmp_path)
    forbidden = {str(path)}

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        """Root may read everything: refuse what an ordinary user is refused."""

        def call(name: Any, *args: Any, **kwargs: Any) -> Any:
            if str(name) in forbidden:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
            return function(name, *args, **kwargs)

        return call

    for name in ("open", "listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    (unreadable,) = read_all(find_places([str(tmp_path)])).unreadable
    assert (unreadable.problem, unreadable.text) == ("not readable", "cannot be read: Permission denied")
    forbidden.add(str(path.parent))
    memory = read_all(find_places([str(tmp_path)]))
    assert memory.hidden == (f"{path.parent} cannot be read: Permission denied",)


def test_only_the_very_file_that_was_read_is_forgotten(tmp_path: Path) -> None:
    path = store(tmp_path)
    (entry,) = read_all([Place(str(path.parent))]).entries
    assert isinstance(entry, Remembered)
    assert entry.cache_dir == str(tmp_path)
    store(tmp_path)  # the same attachment again
    assert not forget(entry)
    (entry,) = read_all([Place(str(path.parent))]).entries
    assert forget(entry)
    assert not forget(entry)
    assert not path.exists()
