"""The README tells the truth: its plugin is the file, and its commands work as printed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cnisdk.testing import Sandbox

from ..programs import python_program

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PATCH = ROOT / "examples" / "tutorial" / "patch.py"

Shell = Callable[[str], str]


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


def test_the_example_is_the_file() -> None:
    assert fenced(README, "python") == [PATCH.read_text()]


def test_the_example_is_short() -> None:
    assert len(PATCH.read_text().splitlines()) <= 40


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            made_by_the_build = "reference/api/" in target
            if not made_by_the_build and not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), (
                    f"{page.relative_to(ROOT)} links to {target}, which is not there"
                )


@pytest.mark.parametrize("project", [ROOT, ROOT / "examples"], ids=["cnisdk", "cnisdk-plugins"])
def test_what_a_package_index_shows_links_to_no_file(project: Path) -> None:
    metadata = (project / "pyproject.toml").read_text()
    shown = re.search(r'^readme = "(.*?)"', metadata, re.MULTILINE)
    assert shown
    links = re.findall(r"\]\(([^)]+)\)", (project / shown[1]).read_text())
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.mark.kernel
def test_the_walkthrough(host: Sandbox, shell: Shell) -> None:
    variables = next(line for line in step("setup").splitlines() if line.startswith("export "))
    shell(step("setup"))
    printed = json.JSONDecoder().raw_decode(shell(f"{variables}\n{step('add')}"))[0]
    assert without_chance(printed) == without_chance(json.loads(step("result")))
    used = shell(f"{variables}\n{step('use')}")
    assert "1 received" in used
    assert "192.168.100.3" in used
    shell(f"{variables}\n{step('delete')}")
    assert "192.168.100.2" not in shell("ls /var/lib/cni/networks/mynet")
    assert shell("ls /var/lib/cni/results") == ""
    assert [link["ifname"] for link in host.ip("link")] == ["lo"]


@pytest.mark.kernel
def test_the_example_runs(host: Sandbox, shell: Shell, tmp_path: Path) -> None:
    """ADD and DEL of the patch plugin, over our host-local, on a bridge that exists."""
    network = {
        "cniVersion": "1.0.0",
        "name": "patched",
        "type": "patch",
        "bridge": "patch0",
        "mtu": 1400,
        "ipam": {"type": "host-local", "subnet": "10.55.0.0/24"},
    }
    shell("cnisdk install --dest bin host-local; ip link add patch0 type bridge; ip link set patch0 up")
    launcher = tmp_path / "bin" / "patch"
    launcher.write_text(python_program(PATCH.read_text()))
    launcher.chmod(0o755)
    (tmp_path / "request.json").write_text(json.dumps(network))
    netns = host.add_netns("one")
    variables = f"export CNI_CONTAINERID=one CNI_NETNS={netns} CNI_IFNAME=eth0 CNI_PATH=$PWD/bin"

    result = json.loads(shell(f"{variables}\nCNI_COMMAND=ADD bin/patch < request.json"))
    assert [interface["name"] for interface in result["interfaces"]][1:] == ["eth0"]
    assert result["ips"] == [{"address": "10.55.0.2/24", "gateway": "10.55.0.1", "interface": 1}]
    (port,) = [link for link in host.ip("link") if link.get("master") == "patch0"]
    assert port["ifname"] == result["interfaces"][0]["name"]
    assert port["mtu"] == 1400
    assert "10.55.0.2" in shell("ls /var/lib/cni/networks/patched")

    for _ in range(2):
        shell(f"{variables}\nCNI_COMMAND=DEL bin/patch < request.json")
        assert [link["ifname"] for link in host.ip("link") if link.get("master")] == []
        assert "10.55.0.2" not in shell("ls /var/lib/cni/networks/patched")
