"""cnisdk plugins, over directories with plugins of ours, the Go set's and others, beside networks that use them."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from cnisdk import __version__
from cnisdk._cli import cnisdk, inventory, options
from cnisdk.errors import IOFailureError
from cnisdk.testing import Host

from ..modes import SERVE

CNISDK = [sys.executable, "-I", "-m", "cnisdk"]
GO = Path("/usr/lib/cni")
ALL = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
NETWORK = {
    "cniVersion": "1.0.0",
    "name": "blue",
    "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local"}},
        {"type": "meshed", "delegate": {"type": "vlan", "ipam": {"type": "dhcp"}}},
    ],
}


class Node:
    """A directory with plugins, and one with networks."""

    def __init__(self, directory: Path) -> None:
        self.bin, self.conf = directory / "bin", directory / "net.d"
        self.bin.mkdir()
        self.conf.mkdir()

    def install(self, *types: str, kind: str = "--no-server") -> None:
        assert cnisdk.main(["install", "--dest", str(self.bin), *([kind] if kind else []), *types]) == 0

    def write(self, name: str, content: str | bytes) -> None:
        path = self.bin / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o755)

    def use(self, document: dict[str, Any]) -> None:
        (self.conf / "10.conflist").write_text(json.dumps(document))

    def list(self, capsys: pytest.CaptureFixture[str], *directories: Path) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = cnisdk.main(["plugins", "--conf-dir", str(self.conf), "--json", *map(str, directories or (self.bin,))])
        return status, json.loads(capsys.readouterr().out)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def by_type(document: dict[str, Any], directory: int = 0) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in document["directories"][directory]["plugins"]}


def test_ours(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.install("bridge", "host-local")
    status, document = node.list(capsys)
    assert (status, document["missing"]) == (0, [])
    assert "tuning" in document["available"]
    found = by_type(document)
    assert sorted(found) == ["bridge", "host-local"]
    bridge = found["bridge"]
    assert (bridge["origin"], bridge["package"]) == ("cnisdk", f"cnisdk-plugins {__version__}")
    assert bridge["supportedVersions"] == ALL
    assert bridge["verbs"] == ["ADD", "DEL", "CHECK", "GC", "STATUS"]
    assert (bridge["mode"], bridge["server"], bridge["problem"], bridge["outdated"]) == ("one-shot", "", "", "")


def test_what_networks_use_and_lack(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Types are counted wherever a configuration names them: of a plugin, its IPAM plugin, and its delegate."""
    node.install("bridge", "vlan")
    node.use(NETWORK)
    status, document = node.list(capsys)
    assert status == 1
    assert {name: each["networks"] for name, each in by_type(document).items()} == {
        "bridge": ["blue"],
        "vlan": ["blue"],
    }
    missing = [{"type": name, "networks": ["blue"]} for name in ("dhcp", "host-local", "meshed")]
    assert document["missing"] == missing


def test_shims_and_their_server(node: Node, host: Host) -> None:
    node.install("bridge", "vlan", kind="--thick")
    # Another version has another identity.
    node.write("vlan", re.sub(rb"[0-9a-f]{32}", b"0" * 32, (node.bin / "vlan").read_bytes()))

    def look() -> tuple[list[dict[str, Any]], str]:
        done = host.run([*CNISDK, "plugins", "--json", str(node.bin)])
        return json.loads(done.stdout)["directories"][0]["plugins"], done.stderr

    found, told = look()
    assert [each["mode"] for each in found] == ["one-shot: no server answers"] * 2
    assert (found[0]["package"], found[0]["supportedVersions"]) == (f"cnisdk-plugins {__version__}", ALL)
    assert found[0]["server"] == "/run/cnisdk"
    assert "no server answers at /run/cnisdk/control.sock" in told
    host.run(["sh", "-euc", f"{shlex.join(SERVE)} </dev/null >/dev/null 2>&1"])
    found, told = look()
    assert [each["mode"] for each in found] == ["resident", "one-shot: the server has another version"]
    assert told == ""


def test_shims_that_start_a_server_lack_none(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.install("bridge", kind="")
    if not (node.bin / "bridge").read_bytes().startswith(b"\x7fELF"):
        pytest.skip("no program for shims")
    monkeypatch.setattr(inventory, "_ask_server", lambda _: IOFailureError("no server answers"))
    status, document = node.list(capsys)
    (found,) = document["directories"][0]["plugins"]
    assert (status, found["mode"], found["server"]) == (0, "on demand: no server runs", "/run/cnisdk")


@pytest.mark.skipif(
    not GO.is_dir() and os.environ.get("CI") != "true",
    reason="the Go plugins are not installed (containernetworking-plugins)",
)
def test_the_go_set(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A program of ours before it in another directory hides one of the Go set."""
    node.install("bridge")
    go = node.bin.parent / "go"
    go.mkdir()
    for name in ("bridge", "firewall"):
        shutil.copy(GO / name, go)
    (go / "LICENSE").write_text("not a plugin")
    found = by_type(node.list(capsys, node.bin, go)[1], 1)
    assert sorted(found) == ["bridge", "firewall"]
    assert {each["origin"] for each in found.values()} == {"go"}
    assert found["firewall"]["supportedVersions"] == ["0.4.0", "1.0.0"]
    assert found["firewall"]["verbs"] == ["ADD", "DEL", "CHECK"]
    assert (found["bridge"]["hiddenBy"], found["firewall"]["hiddenBy"]) == (str(node.bin / "bridge"), "")


def test_an_unknown_program_runs_only_if_runtimes_would_run_it(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Any program may be in a directory: ``CNI_COMMAND=VERSION reboot`` is no question."""
    for name, word in (("reboot", ""), ("plugin", "CNI_COMMAND"), ("meshed", "")):
        node.write(
            name,
            f'#!/bin/sh\n: {word}\ntouch "$0.ran"\necho \'{{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}}\'',
        )
    node.use(NETWORK)
    found = by_type(node.list(capsys)[1])
    assert {name for name in found if (node.bin / f"{name}.ran").exists()} == {"plugin", "meshed"}
    assert {name: each["supportedVersions"] for name, each in found.items()} == {
        "meshed": ["1.0.0"],
        "plugin": ["1.0.0"],
        "reboot": [],
    }
    assert {each["origin"] for each in found.values()} == {"unknown"}


def test_what_cannot_run(node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "_TIMEOUT", 1.0)
    node.install("bridge", "host-local", "vlan")
    (node.bin / "bridge").chmod(0o644)
    text = (node.bin / "host-local").read_text()
    node.write("host-local", text.replace(sys.executable, "/no/such/python"))
    node.write("vlan", (node.bin / "vlan").read_text().replace("# {", "# ["))
    node.write("dhcp", "#!/bin/sh\nexec sleep 60")
    (node.bin / "dangling").symlink_to("/no/such/file")
    (node.bin / "meshed").mkdir()
    node.use(NETWORK)
    status, document = node.list(capsys)
    assert (status, document["missing"]) == (1, [])
    assert {name: each["problem"] for name, each in by_type(document).items()} == {
        "bridge": "it is not executable (mode 0644)",
        "dangling": "No such file or directory",
        "dhcp": f"its VERSION fails: {node.bin}/dhcp did not finish within 1 seconds and was stopped",
        "host-local": "there is no program /no/such/python",
        "meshed": "it is not a regular file",
        "vlan": "its text was changed since `cnisdk install` wrote it",
    }


def test_another_version_of_its_package(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A launcher tells the version for which it was written. Its Python may have another one by now."""
    node.install("bridge")
    node.write("bridge", (node.bin / "bridge").read_text().replace(f"plugins {__version__}", "plugins 0.0.1"))
    node.write("old", (node.bin / "bridge").read_text())
    found = by_type(node.list(capsys)[1])
    assert found["bridge"]["outdated"] == f"cnisdk-plugins {__version__} is installed now: run `cnisdk install` again"
    assert found["old"]["outdated"].startswith("cnisdk-plugins 0.0.1 is not installed any more")


def test_as_text(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.write("bridge", "#!/bin/sh\n")
    node.install("--force", "bridge", "vlan")
    node.use(NETWORK)
    capsys.readouterr()
    assert cnisdk.main(["plugins", "--conf-dir", str(node.conf), str(node.bin)]) == 1
    lines = capsys.readouterr().out.splitlines()
    made = f"cnisdk-plugins {__version__}  0.1.0-1.1.0  ADD,DEL,CHECK,GC,STATUS  one-shot  blue"
    assert lines[:7] == [
        str(node.bin),
        f"  bridge  {made}",
        f"  vlan    {made}",
        f"  {node.bin}/bridge: replaces {node.bin}/bridge.before-cnisdk",
        "missing: dhcp, for blue",
        "missing: host-local, for blue",
        "missing: meshed, for blue",
    ]
    assert lines[7].startswith("not installed, but known to this Python: ")


@pytest.mark.parametrize("command", [["gc", "net"], ["repair"]], ids=" ".join)
def test_other_commands_find_plugins_where_this_one_does(
    node: Node, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose runtime has its plugins in /usr/lib/cni, as Debian's have, needs no option."""
    monkeypatch.setattr(options, "USUAL_DIRECTORIES", ("/no/such/directory", str(node.bin)))
    for variable, expected in (("", str(node.bin)), ("/a:/b", "/a:/b")):
        monkeypatch.setenv("CNI_PATH", variable)
        assert cnisdk.make_parser().parse_args(command).cni_path == expected
    monkeypatch.delenv("CNI_PATH")
    monkeypatch.setattr(options, "USUAL_DIRECTORIES", ("/no/such/directory", "/nor/this"))
    assert cnisdk.make_parser().parse_args(command).cni_path == "/no/such/directory"


def test_the_directories_it_looks_into(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of CNI_PATH; else the usual ones that exist, a directory and a link to it counted once."""
    node.install("bridge")
    link = node.bin.parent / "link"
    link.symlink_to(node.bin)
    arguments = ["plugins", "--conf-dir", str(node.conf), "--json"]
    monkeypatch.setattr(options, "USUAL_DIRECTORIES", (str(node.bin), str(link), "/no/such/directory"))
    for variable, directories in ((str(link), [link]), ("", [node.bin])):
        monkeypatch.setenv("CNI_PATH", variable)
        capsys.readouterr()
        assert cnisdk.main(arguments) == 0
        assert [each["path"] for each in json.loads(capsys.readouterr().out)["directories"]] == [*map(str, directories)]
    monkeypatch.setattr(options, "USUAL_DIRECTORIES", ("/no/such/directory",))
    assert cnisdk.main(arguments) == 1
    assert "/home/kubernetes/bin, /var/lib/rancher/k3s/data/cni (code 5); name the directory" in capsys.readouterr().err
