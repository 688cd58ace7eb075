"""The cache of attachments: libcni's format, and files that are torn, foreign or hostile."""

import base64
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from cnisdk.errors import CNIError, DecodingError, InvalidConfigError, InvalidEnvironmentError, IOFailureError
from cnisdk.runtime import Cache, CachedAttachment
from cnisdk.runtime.cache import ForeignEntryError
from cnisdk.spec import Attachment
from cnisdk.testing import Host, expect_error

ATTACHMENT = Attachment("mynet", "c1", "eth0")

# Laid out as libcni 1.1 writes it.
GO = (
    b'{"kind":"cniCacheV1","containerId":"c1","config":"eyJuYW1lIjoibXluZXQifQ==","ifName":"eth0","networkName":"mynet",'
    b'"netns":"/var/run/netns/x","cniArgs":[["IgnoreUnknown","1"],["K","v"]],'
    b'"capabilityArgs":{"ips":["10.1.0.5"],"portMappings":[{"containerPort":80,"hostPort":8080}]},'
    b'"result":{"cniVersion":"0.4.0","dns":{},"ips":[{"address":"10.1.0.5/16","version":"4"}]}}'
)
ENTRY = CachedAttachment(
    ATTACHMENT,
    netns="/var/run/netns/x",
    config=b'{"name":"mynet"}',
    cni_args=(("IgnoreUnknown", "1"), ("K", "v")),
    capability_args={"portMappings": [{"hostPort": 8080, "containerPort": 80}], "ips": ["10.1.0.5"]},
    result={"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.5/16"}], "dns": {}},
)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "var" / "cni"))


def put(cache: Cache, data: bytes, name: str = "mynet-c1-eth0") -> Path:
    path = Path(cache.directory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_written_as_libcni_writes_it(cache: Cache) -> None:
    cache.store(ENTRY)
    assert (Path(cache.directory) / "mynet-c1-eth0").read_bytes() == GO


def test_empty_parts_are_left_out(cache: Cache) -> None:
    cache.store(CachedAttachment(ATTACHMENT))
    assert (Path(cache.directory) / "mynet-c1-eth0").read_bytes() == (
        b'{"kind":"cniCacheV1","containerId":"c1","config":"","ifName":"eth0","networkName":"mynet"}'
    )


def test_libcnis_files_are_read(cache: Cache) -> None:
    put(cache, GO)
    assert cache.find(ATTACHMENT) == ENTRY
    assert cache.entries() == ([ENTRY], [])


def test_null_config_and_result(cache: Cache) -> None:
    document = json.loads(GO) | {"config": None, "result": None, "cniArgs": None, "capabilityArgs": None}
    put(cache, json.dumps(document).encode())
    assert cache.find(ATTACHMENT) == CachedAttachment(ATTACHMENT, netns="/var/run/netns/x")


def test_legacy_files_are_bare_results(cache: Cache) -> None:
    result = {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.0.5/16"}]}
    put(cache, json.dumps(result).encode())
    assert cache.find(ATTACHMENT) == CachedAttachment(ATTACHMENT, result=result)


def test_nothing_there(cache: Cache) -> None:
    assert cache.find(ATTACHMENT) is None
    assert cache.entries() == ([], [])
    assert not cache.exists(ATTACHMENT)
    cache.delete(ATTACHMENT)
    cache.sweep()


def test_permissions(cache: Cache) -> None:
    before = os.umask(0)
    try:
        cache.store(ENTRY)
    finally:
        os.umask(before)
    directory = Path(cache.directory)
    for path, mode in ((directory / "mynet-c1-eth0", 0o600), (directory, 0o700), (directory.parent, 0o700)):
        assert path.stat().st_mode & 0o777 == mode, path


def test_an_entry_is_replaced_whole(cache: Cache) -> None:
    path = put(cache, b"torn")
    with path.open("rb") as reader:
        cache.store(ENTRY)
        assert reader.read() == b"torn"
    assert path.read_bytes() == GO
    assert os.listdir(cache.directory) == ["mynet-c1-eth0"]


def test_a_failed_write_leaves_what_was_there(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(cache, GO)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(IOFailureError, match=r"cannot write cached result .*No space left"):
        cache.store(ENTRY._replace(netns="/other"))
    assert path.read_bytes() == GO
    assert os.listdir(cache.directory) == ["mynet-c1-eth0"]


V1: dict[str, Any] = json.loads(GO)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        GO[:100],
        GO + GO,
        b"null",
        b"[]",
        b"{}",
        b'{"kind":"cniCacheV2","cniVersion":"1.0.0"}',
        *(
            json.dumps({**V1, key: value}).encode()
            for key, value in (
                ("config", "not base64!"),
                ("config", 5),
                ("result", []),
                ("cniArgs", ["a"]),
                ("cniArgs", [["a", "b", "c"]]),
                ("capabilityArgs", "x"),
                ("networkName", ""),
                ("containerId", None),
                ("ifName", 7),
            )
        ),
    ],
)
def test_what_is_no_entry(cache: Cache, data: bytes) -> None:
    path = put(cache, data)
    put(cache, GO.replace(b'"c1"', b'"c2"'), "mynet-c2-eth0")
    with pytest.raises(DecodingError) as caught:
        cache.find(ATTACHMENT)
    assert str(path) in caught.value.msg
    entries, problems = cache.entries("mynet")
    assert [entry.attachment.container_id for entry in entries] == ["c2"]
    (problem,) = problems
    assert str(path) in str(problem)
    assert cache.entries("other") == ([], [])
    cache.delete(ATTACHMENT)
    assert not path.exists()


def test_names_that_meet_in_one_file(cache: Cache) -> None:
    ours, theirs = Attachment("a", "b-c", "eth0"), Attachment("a-b", "c", "eth0")
    assert cache.path(ours) == cache.path(theirs)
    cache.store(CachedAttachment(theirs))
    with pytest.raises(ForeignEntryError, match='is not of container "b-c" interface "eth0" on network "a"'):
        cache.find(ours)
    with pytest.raises(ForeignEntryError):
        cache.prepare(ours)
    cache.delete(ours)
    assert cache.find(theirs) == CachedAttachment(theirs)


@pytest.mark.parametrize(
    ("attachment", "kind"),
    [
        (Attachment("net", "x/../../../victim/f", "eth0"), InvalidEnvironmentError),
        (Attachment("net", "", "eth0"), InvalidEnvironmentError),
        (Attachment("net", "..", "eth0"), InvalidEnvironmentError),
        (Attachment("net", "c1", "../../x"), InvalidEnvironmentError),
        (Attachment("net", "c1", ""), InvalidEnvironmentError),
        (Attachment("../net", "c1", "eth0"), InvalidConfigError),
        (Attachment("", "c1", "eth0"), InvalidConfigError),
        (Attachment("n", "c" * 249, "eth0"), InvalidEnvironmentError),
    ],
)
def test_names_that_could_leave_the_directory(cache: Cache, attachment: Attachment, kind: type[CNIError]) -> None:
    for method in (cache.path, cache.find, cache.delete, cache.prepare, cache.exists):
        with pytest.raises(kind):
            method(attachment)
    with pytest.raises(kind):
        cache.store(CachedAttachment(attachment))


def test_names_as_long_as_a_file_name_can_be(cache: Cache) -> None:
    attachment = Attachment("n", "c" * 248, "eth0")
    cache.prepare(attachment)
    cache.store(CachedAttachment(attachment))
    assert cache.find(attachment) == CachedAttachment(attachment)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(str(tmp_path / "file"))
    with pytest.raises(IOFailureError, match="cannot make the directory"):
        cache.prepare(ATTACHMENT)


def test_a_directory_behind_a_link_that_leads_nowhere_is_not_empty(tmp_path: Path) -> None:
    """A disk that is not mounted: what is remembered there is not known, and not nothing."""
    (tmp_path / "disk").symlink_to("/nowhere/at/all")
    cache = Cache(str(tmp_path / "disk" / "results"))
    for step in (lambda: cache.prepare(ATTACHMENT), lambda: cache.find(ATTACHMENT), cache.entries):
        with expect_error(5, f"{tmp_path}/disk is a symbolic link to /nowhere/at/all, which does not exist"):
            step()


def test_what_a_killed_process_left_is_swept_away(cache: Cache) -> None:
    old, young = put(cache, b"", ".1.2.tmp"), put(cache, b"", ".3.4.tmp")
    os.utime(old, (1, 1))
    cache.store(ENTRY)
    assert cache.entries() == ([ENTRY], [])
    cache.sweep()
    assert not old.exists()
    assert young.exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
names = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,20}", fullmatch=True)


@given(
    attachment=st.builds(Attachment, names, names, st.just("eth0")),
    config=st.binary(max_size=50),
    args=st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple),
    capability_args=st.dictionaries(st.text(), json_values, max_size=3),
    result=st.dictionaries(st.text(), json_values, min_size=1, max_size=3),
)
def test_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    attachment: Attachment,
    config: bytes,
    args: tuple[tuple[str, str], ...],
    capability_args: dict[str, object],
    result: dict[str, object],
) -> None:
    cache = Cache(str(tmp_path_factory.getbasetemp() / "cache"))
    entry = CachedAttachment(attachment, "/x", config, args, capability_args, result)
    cache.store(entry)
    assert cache.find(attachment) == entry
    assert base64.b64decode(json.loads(Path(cache.path(attachment)).read_bytes())["config"]) == config
    cache.delete(attachment)


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "socket"])
def test_what_is_no_file_in_the_place_of_a_result_is_never_waited_for(cache: Cache, kind: str, tmp_path: Path) -> None:
    path = Path(cache.path(ATTACHMENT))
    path.parent.mkdir(parents=True)
    put_in_place(path, kind, tmp_path)
    with pytest.raises(IOFailureError, match=r"cannot read cached result .*: it is a .*, not a regular file"):
        cache.find(ATTACHMENT)
    found, problems = cache.entries("mynet")
    assert found == []
    assert [problem.code for problem in problems] == [6]
    if kind == "directory":
        with pytest.raises(IOFailureError, match="it is a directory"):
            cache.prepare(ATTACHMENT)
    else:
        cache.prepare(ATTACHMENT)
        cache.store(ENTRY)
        assert cache.find(ATTACHMENT) == ENTRY


def put_in_place(path: Path, kind: str, tmp_path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH | os.O_CLOEXEC)}/{path.name}")


@pytest.mark.kernel
def test_nothing_to_remove_on_a_read_only_file_system(host: Host) -> None:
    """The kernel says that it is read-only before it looks whether there is a file."""
    host.shell("mkdir -p /run/ro/results; mount --bind /run/ro /run/ro; mount -o remount,bind,ro /run/ro")
    host.call(Cache("/run/ro").delete, ATTACHMENT)


def test_a_result_written_while_the_old_one_is_read_stays(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that attaches the container again does not wait for a DEL."""
    cache.store(ENTRY)
    stamp, find = cache.stamp(ATTACHMENT), cache.find

    def find_and_attach_again(attachment: Attachment) -> CachedAttachment | None:
        found = find(attachment)
        cache.store(ENTRY._replace(netns="/var/run/netns/y"))
        return found

    monkeypatch.setattr(cache, "find", find_and_attach_again)
    cache.delete(ATTACHMENT, unless_changed=stamp)
    entry = find(ATTACHMENT)
    assert entry is not None
    assert entry.netns == "/var/run/netns/y"
