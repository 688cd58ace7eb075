"""The documentation's examples run: its Python, its JSON, its commands, and the examples in docstrings."""

import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cnisdk
from cnisdk._cli.cnisdk import available_commands
from cnisdk.conformance import Kind, Verdict, judge, select
from cnisdk.conformance.identify import identify
from cnisdk.spec.fields import get_fields
from cnisdk.testing import Sandbox, SandboxUnavailable

from ..programs import python_program

Shell = Callable[[str], str]

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<note>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """Yield (note, code) of the fenced blocks of a language; a note is a comment on the line above."""
    for match in BLOCK.finditer(page.read_text()):
        if match["language"] == language:
            yield match["note"] or "", match["code"]


def typed(codes: list[str]) -> str:
    """Join what a reader types into console blocks: `# ` is the prompt; here-documents have none."""
    return "".join(line.removeprefix("# ") + "\n" for code in codes for line in code.splitlines())


def has(language: str) -> list[Path]:
    return [page for page in PAGES if next(blocks(page, language), None)]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in has("python") if page.name != "README.md"], ids=named)
def test_python_runs(page: Path) -> None:
    """The blocks of a page run one after another, as a reader would type them."""
    namespace: dict[str, object] = {"__name__": "example"}
    for note, code in blocks(page, "python"):
        if note.startswith("of "):  # see test_code_of_a_file
            continue
        if note.startswith("not run:"):
            compile(code, f"{named(page)} (example)", "exec")
            continue
        try:
            exec(compile(code, f"{named(page)} (example)", "exec"), namespace)
        except SandboxUnavailable as unavailable:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(unavailable))


LAUNCHERS = [
    (page, line)
    for page in has("console")
    for _, code in blocks(page, "console")
    for line in code.splitlines()
    if "printf '#!/bin/sh" in line
]


@pytest.mark.parametrize(("page", "line"), LAUNCHERS, ids=[named(page) for page, _ in LAUNCHERS])
def test_a_launcher_typed_by_hand_passes_on_what_conform_asks(page: Path, line: str, tmp_path: Path) -> None:
    """Without its arguments, the plugin could not tell the configuration to judge it with."""
    command = line.removeprefix("$ ")
    name = command.rsplit(" ", 1)[1]
    (tmp_path / f"{name}.py").write_text("import sys\nprint(sys.argv[1:])\n")
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environ, check=True)
    done = subprocess.run([tmp_path / name, "--conformance"], capture_output=True, text=True, check=True)
    assert done.stdout == "['--conformance']\n"


def quoted() -> list[tuple[Path, str]]:
    """Each page, and the name of a file whose code it shows, as the comment `<!-- of patch.py -->` says."""
    return sorted({(page, note[3:]) for page in PAGES for note, _ in blocks(page, "python") if note[:3] == "of "})


@pytest.mark.parametrize(
    ("page", "file"), quoted(), ids=lambda value: named(value) if isinstance(value, Path) else value
)
def test_code_of_a_file(page: Path, file: str) -> None:
    """A reader who types what the page shows has the file that other tests run, every line of it."""
    text = (ROOT / "examples" / "tutorial" / file).read_text()
    left = text
    for note, code in blocks(page, "python"):
        if note == f"of {file}":
            assert f"\n{code}" in f"\n{text}", f"not, or no longer, in {file}"
            left = left.replace(code, "", 1)
    assert not left.strip(), f"{named(page)} does not show all of {file}"


def test_pages_can_be_read_without_the_build() -> None:
    """Most people read them where the repository is, where a directive of Sphinx is an empty box."""
    for page in PAGES:
        assert "{literalinclude}" not in page.read_text(), f"{named(page)}: write the code, below <!-- of FILE -->"


@pytest.mark.parametrize("page", has("json"), ids=named)
def test_json_is_json(page: Path) -> None:
    for _, code in blocks(page, "json"):
        json.loads(code)


def modules() -> list[str]:
    names = (path.relative_to(ROOT).with_suffix("").parts for path in sorted(ROOT.glob("cnisdk/**/*.py")))
    return [".".join(name).removesuffix(".__init__") for name in names if name[-1] != "__main__"]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failures == 0


@pytest.mark.kernel
def test_host_local_by_hand(shell: Shell, tmp_path: Path) -> None:
    page = ROOT / "docs" / "reference" / "host-local.md"
    ((_, command),) = blocks(page, "sh")
    printed = [code for _, code in blocks(page, "json")][-1]
    command = command.replace("/tmp/cni-example", f"{tmp_path}/leases")
    assert shell(f"cnisdk install --dest bin host-local >/dev/null\ncd bin\n{command}") == printed.rstrip("\n")


@pytest.mark.kernel
def test_the_tutorial(host: Sandbox, shell: Shell, tmp_path: Path) -> None:
    page = ROOT / "docs" / "tutorial" / "first-plugin.md"
    (tmp_path / "patch.py").write_text((ROOT / "examples" / "tutorial" / "patch.py").read_text())
    setup, *steps = [code for _, code in blocks(page, "console")]
    assert "pip install" in setup  # what the test's own environment stands for
    printed = shell(typed(steps))
    assert "1 received" in printed
    assert [link["ifname"] for link in host.ip("link")] == ["lo"]


@pytest.mark.kernel
def test_the_chain(host: Sandbox, shell: Shell, tmp_path: Path) -> None:
    """The list in the guide, with the chained plugin above it."""
    page = ROOT / "docs" / "how-to" / "write-a-plugin.md"
    (network,) = [code for _, code in blocks(page, "json") if "promisc" in code]
    (plugin,) = [code for note, code in blocks(page, "python") if note == "of promisc.py"]
    shell("cnisdk install --dest bin bridge host-local >/dev/null; mkdir net.d; ip netns add one")
    (tmp_path / "net.d" / "10.conflist").write_text(network)
    (tmp_path / "bin" / "promisc").write_text(python_program(plugin))
    (tmp_path / "bin" / "promisc").chmod(0o755)
    cnitool = "export CNI_PATH=$PWD/bin NETCONFPATH=$PWD/net.d; cnitool"
    shell(f"{cnitool} add watched /run/netns/one; cnitool check watched /run/netns/one")
    assert host.ip("link", "show", "eth0", netns="one")[0]["promiscuity"] == 1
    shell(f"{cnitool} del watched /run/netns/one")
    assert [link["ifname"] for link in host.ip("link", netns="one")] == ["lo"]


@pytest.mark.kernel
@pytest.mark.slow
def test_the_chained_plugin_conforms(tmp_path: Path) -> None:
    """The plugin of the guide: its methods have ten lines."""
    page = ROOT / "docs" / "how-to" / "chained-plugin.md"
    (plugin,) = [code for note, code in blocks(page, "python") if note == "of multicast.py"]
    methods = plugin[plugin.index("    def add") : plugin.index("main =")]
    assert len([line for line in methods.splitlines() if line]) <= 10
    program = tmp_path / "multicast"
    program.write_text(python_program(plugin))
    program.chmod(0o755)
    subject = identify(str(program))
    assert (subject.kind, subject.problem) == (Kind.CHAINED, "")
    outcomes = list(judge(subject, select(subject.kind), jobs=2))
    assert [each for each in outcomes if each.verdict in (Verdict.FAILED, Verdict.ERROR)] == []


@pytest.mark.kernel
def test_the_interface_plugin(host: Sandbox, shell: Shell, tmp_path: Path) -> None:
    """The plugin at the end of the guide, on the network below it."""
    page = ROOT / "docs" / "how-to" / "interface-plugin.md"
    ((_, network),) = blocks(page, "json")
    (plugin,) = [code for note, code in blocks(page, "python") if note == "of lan.py"]
    assert len(plugin.splitlines()) < 40
    host.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire"])
    shell("cnisdk install --dest bin host-local >/dev/null; mkdir net.d; ip netns add one; ip link set eth0 up")
    (tmp_path / "net.d" / "10.conf").write_text(network)
    (tmp_path / "bin" / "lan").write_text(python_program(plugin))
    (tmp_path / "bin" / "lan").chmod(0o755)
    cnitool = "export CNI_PATH=$PWD/bin NETCONFPATH=$PWD/net.d; cnitool"
    shell(f"{cnitool} add lan /run/netns/one; {cnitool} check lan /run/netns/one")
    assert host.ip("-d", "link", "show", "eth0", netns="one")[0]["linkinfo"]["info_kind"] == "macvlan"
    shell(f"{cnitool} del lan /run/netns/one")
    assert [link["ifname"] for link in host.ip("link", netns="one")] == ["lo"]


def commands() -> list[str]:
    return ["cnitool", *(f"cnisdk {name}" for name in available_commands())]


@pytest.mark.parametrize("command", commands())
def test_every_option_is_documented(command: str, environment: dict[str, str]) -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    heading = f"## {command}\n" if command == "cnitool" else f"### {command}\n"
    assert heading in page
    section = page[page.index(heading) :]
    helped = subprocess.run(
        [*command.split(), "--help"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    for option in sorted(set(re.findall(r"(?<![\w-])--[a-z-]+", helped)) - {"--help"}):
        assert f"`{option}" in section, f"{option} is not in docs/reference/cli.md"


def keys_of(cls: type) -> set[str]:
    """The JSON keys a configuration class reads beyond those of its base."""
    inherited = {each.name for base in cls.__bases__ if base is not object for each in get_fields(base)}
    return {each.key for each in get_fields(cls) if each.name not in inherited}


def tabled(page: str, heading: str) -> set[str]:
    """The keys in the first column of the first table below a heading."""
    text = (ROOT / "docs" / "reference" / page).read_text()
    rows = text[text.index(heading) :].partition("\n\n| ")[2].partition("\n\n")[0]
    return {key for row in rows.splitlines() for key in re.findall(r"`(\w+)`", row.lstrip("| ").partition(" | ")[0])}


def test_every_key_of_host_local_is_documented() -> None:
    from cnisdk_plugins.host_local import HostLocalIPAM, RangeConf

    assert keys_of(HostLocalIPAM) == tabled("host-local.md", "## Configuration")
    assert keys_of(RangeConf) | {"subnet", "rangeStart", "rangeEnd", "gateway"} == tabled("host-local.md", "\nA range:")


def test_every_key_of_static_is_documented() -> None:
    from cnisdk_plugins.static import StaticIPAM

    assert keys_of(StaticIPAM) == tabled("static.md", "## Configuration")


def test_what_plugins_use_is_there() -> None:
    """Each name of the page can be imported as it is written, and none of those in `cnisdk` is missing."""
    page = (ROOT / "docs" / "reference" / "sdk.md").read_text()
    names = re.findall(r"^\| `(cnisdk[\w.]+)`", page, re.MULTILINE)
    assert [name for name in names if not callable(pkgutil.resolve_name(name))] == []
    assert {f"cnisdk.{name}" for name in cnisdk.__all__} <= set(names)
