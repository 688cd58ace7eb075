"""The reference page of each interface plugin lists the keys that its configuration class has, with their defaults."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from cnisdk import NetConf
from cnisdk.spec.fields import JSONField, get_fields

PAGES = Path(__file__).resolve().parents[2] / "docs" / "reference"
COMMON = {each.key for each in get_fields(NetConf)}
INSTALLED = {each.name: each for each in entry_points(group="cnisdk.plugins") if "cnisdk_plugins" in each.value}


def keys_of_page(name: str) -> dict[str, str]:
    """The keys of the table below "Configuration", and the default of each as it is written."""
    text = (PAGES / f"{name}.md").read_text().partition("\n## Configuration\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]+ \| ([^|]*?) ?\|", text, re.MULTILINE)
    return {key: default.strip("` ") for keys, default in rows for key in re.findall(r"\w+", keys)}


def written(field: JSONField) -> str:
    """A default as the pages write it; nothing for what stands for absence."""
    default = field.make_default(None)
    return "" if default in (None, "", ()) or not isinstance(default, str | int) else json.dumps(default)


def test_a_plugin_file_is_as_short_as_the_table_says() -> None:
    """The number of lines of each plugin, give or take a few."""
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) \|", (PAGES.parent / "architecture.md").read_text(), re.MULTILINE)
    assert len(rows) >= 9
    for name, told in rows:
        lines = len(Path(str(import_module(INSTALLED[name].module).__file__)).read_text().splitlines())
        assert abs(lines - int(told)) <= 20, name
        assert lines <= (300 if name == "bridge" else 200), name


@pytest.mark.parametrize("name", ["bandwidth", "firewall", "portmap", "sbr", "tuning", "vrf"])
def test_a_chained_plugin_is_short(name: str) -> None:
    lines = Path(str(import_module(INSTALLED[name].module).__file__)).read_text().splitlines()
    assert len(lines) <= 250


@pytest.mark.parametrize("name", sorted(name for name in INSTALLED if (PAGES / f"{name}.md").exists()))
def test_keys_of_a_page(name: str) -> None:
    plugin = import_module(INSTALLED[name].module).main.plugin
    own = {each.key: written(each) for each in get_fields(plugin.conf_class()) if each.key not in COMMON}
    page = {key: default for key, default in keys_of_page(name).items() if key not in COMMON} if own else {}
    assert page == {key: default for key, default in own.items() if key in page}
    # A key that is refused with a reason of its own is not in the table, but explained.
    text = (PAGES / f"{name}.md").read_text()
    assert [key for key in own if f"`{key}`" not in text] == []
