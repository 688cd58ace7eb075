"""Settings are written only when they differ, and read back."""

import os
from pathlib import Path

import pytest

from cnisdk.linux import netns, sysctl
from cnisdk.linux.sysctl import SysctlError
from cnisdk.testing import Sandbox, expect_error


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sysctl, "_ROOT", f"{tmp_path}/")
    return tmp_path


def test_a_fifo_in_place_of_the_list_of_allowed_sysctls_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")
    with expect_error(5, "it is a FIFO"):
        sysctl.check_allowed(str(tmp_path / "list"), ["net.ipv4.conf.all.forwarding"])


def test_a_value_is_written_and_read_back(root: Path) -> None:
    (root / "key").write_text("0\n")
    assert sysctl.ensure("key", "1") is True
    assert (root / "key").read_text() == "1\n"
    (root / "key").chmod(0o400)
    assert sysctl.ensure("key", "1") is False
    assert sysctl.get("key") == "1"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/arp_notify", "net/ipv4/conf/eth0.1/arp_notify"),
        ("net/../kernel/hostname", "kernel/hostname"),
    ],
)
def test_the_first_separator_of_a_key_decides(root: Path, key: str, path: str) -> None:
    assert sysctl.path_of(key) == path
    (root / "net").mkdir()
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    with pytest.raises(SysctlError, match=f"no file .*{path.rsplit('/', 1)[1]}"):
        sysctl.get(key)
    (root / path).write_text("0\n")
    assert sysctl.ensure(key, "1")
    assert (root / path).read_text() == "1\n"
    assert sysctl.write_all({key: "2"}) == {key: "2"}
    (root / path).unlink()
    (root / path).symlink_to("/proc/self/cmdline")
    with pytest.raises(SysctlError, match="cannot set"):
        sysctl.ensure(key, "1")


def test_one_that_does_not_exist(root: Path) -> None:
    assert sysctl.find("key") is None
    assert sysctl.ensure_if_present("key", "1") is False
    with pytest.raises(SysctlError, match=f"sysctl key does not exist; no file {root}/key"):
        sysctl.ensure("key", "1")


def test_one_that_does_not_keep_its_value(root: Path) -> None:
    (root / "key").symlink_to("/dev/null")
    with pytest.raises(SysctlError, match="sysctl key is  after 1 was written to it"):
        sysctl.ensure("key", "1")


def test_one_that_cannot_be_written(root: Path) -> None:
    (root / "key").symlink_to("/proc/self/cmdline")
    with pytest.raises(SysctlError, match=r"cannot set sysctl key from .* to 1: (EACCES|EIO|EINVAL|EPERM)"):
        sysctl.ensure("key", "1")


@pytest.mark.kernel
def test_forwarding(host: Sandbox) -> None:
    host.call(sysctl.enable_forwarding, 4, 6)
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        assert host.run(["cat", f"/proc/sys/net/{key}"]).stdout == "1\n"


@pytest.mark.kernel
def test_settings_are_those_of_the_namespace(host: Sandbox) -> None:
    path = host.add_netns("blue")

    def work() -> tuple[str, str]:
        with netns.open(path) as blue:
            blue.call(sysctl.ensure, "net/ipv4/ip_forward", "1")
            return blue.call(sysctl.get, "net/ipv4/ip_forward"), sysctl.get("net/ipv4/ip_forward")

    assert host.call(work) == ("1", "0")
