"""What the README says is true: its plugin is the file, and its commands work as printed."""

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cnisdk.testing import Sandbox

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PATCH = ROOT / "examples" / "tutorial" / "patch.py"


def fenced(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def step(name: str) -> str:
    """Return the block that follows the comment `<!-- walkthrough: name -->`."""
    match = re.search(rf"<!-- walkthrough: {name} -->\n```\w+\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert match, f"the README has no step {name!r}"
    return match[1]


def without_chance(result: object) -> object:
    """Replace what differs from run to run: MAC addresses and the digits of veth names."""
    text = re.sub(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC", json.dumps(result))
    return json.loads(re.sub(r"veth[0-9a-f]{8}", "vethN", text))


def environment() -> Mapping[str, str]:
    """Return an environment in which the installed commands and the kernel's tools are found."""
    scripts = str(Path(sys.executable).parent)
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("CNI_", "NETCONF", "CAP_ARGS"))}
    return {**inherited, "PATH": f"{scripts}:{system}"}


def test_the_example_is_the_file() -> None:
    assert fenced(README, "python") == [PATCH.read_text()]


def test_the_example_is_short() -> None:
    assert len(PATCH.read_text().splitlines()) <= 40


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), (
                    f"{page.relative_to(ROOT)} links to {target}, which is not there"
                )


@pytest.mark.kernel
def test_the_walkthrough(tmp_path: Path) -> None:
    with Sandbox() as host:

        def shell(script: str) -> str:
            place = f"cd {tmp_path}; export CNI_PATH=$PWD/bin NETCONFPATH=$PWD/net.d\n"
            done = host.run(["sh", "-euc", place + script], env=environment(), check=False)
            assert done.returncode == 0, f"{script}\n{done.stdout!r}\n{done.stderr!r}"
            return str(done.stdout)

        shell(step("setup"))
        first, _, _ = shell(step("add")).partition("}{")
        printed = json.JSONDecoder().raw_decode(first + "}" if not first.endswith("}") else first)[0]
        assert without_chance(printed) == without_chance(json.loads(step("result")))
        listed = shell(step("use"))
        assert "1 received" in listed
        assert "192.168.100.2" in listed
        shell(step("delete"))
        assert "192.168.100" not in shell("ls -R /var/lib/cni")
        assert [link["ifname"] for link in host.ip("link")] == ["lo"]


@pytest.mark.kernel
def test_the_example_runs(tmp_path: Path) -> None:
    """ADD and DEL of the patch plugin, over our host-local, on a bridge that exists."""
    network = {
        "cniVersion": "1.0.0",
        "name": "patched",
        "type": "patch",
        "bridge": "patch0",
        "mtu": 1400,
        "ipam": {"type": "host-local", "subnet": "10.55.0.0/24", "dataDir": str(tmp_path / "leases")},
    }
    with Sandbox() as host:
        plugins = tmp_path / "bin"
        host.run(["cnisdk", "install", "--dest", str(plugins), "host-local"], env=environment())
        launcher = plugins / "patch"
        launcher.write_text(f"#!{sys.executable}\n{PATCH.read_text()}")
        launcher.chmod(0o755)
        host.run(["ip", "link", "add", "patch0", "type", "bridge"])
        host.run(["ip", "link", "set", "patch0", "up"])
        netns = host.add_netns("one")
        base = {**environment(), "CNI_CONTAINERID": "one", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
        call = {**base, "CNI_PATH": str(plugins)}

        def plugin(verb: str) -> str:
            done = host.run([str(launcher)], env={**call, "CNI_COMMAND": verb}, input=json.dumps(network), check=False)
            assert done.returncode == 0, f"{verb}\n{done.stdout!r}\n{done.stderr!r}"
            return str(done.stdout)

        result = json.loads(plugin("ADD"))
        assert [interface["name"] for interface in result["interfaces"]][1:] == ["eth0"]
        assert result["ips"] == [{"address": "10.55.0.2/24", "gateway": "10.55.0.1", "interface": 1}]
        (port,) = [link for link in host.ip("link") if link.get("master") == "patch0"]
        assert port["ifname"] == result["interfaces"][0]["name"]
        assert port["mtu"] == 1400
        assert (tmp_path / "leases" / "patched" / "10.55.0.2").read_bytes() == b"one\r\neth0"

        plugin("DEL")
        plugin("DEL")
        assert [link["ifname"] for link in host.ip("link") if link.get("master")] == []
        assert not (tmp_path / "leases" / "patched" / "10.55.0.2").exists()
