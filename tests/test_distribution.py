"""Promises of the distribution to those who install it."""

from importlib.metadata import distribution, entry_points
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def required(name: str, extra: str) -> set[str]:
    """Return the names of the distributions that installing this one, with an extra, pulls in directly."""
    parsed = [Requirement(text) for text in distribution(name).requires or []]
    return {each.name for each in parsed if each.marker is None or each.marker.evaluate({"extra": extra})}


def test_runtime_dependencies() -> None:
    assert required("cnisdk", "") == {"attrs", "cattrs", "typing-extensions"}
    assert required("cnisdk-plugins", "") == {"cnisdk"}


def test_test_kit_and_cli_are_extras() -> None:
    assert required("cnisdk", "testing") - required("cnisdk", "") == {"pytest", "hypothesis", "pyroute2"}
    assert required("cnisdk", "cli") - required("cnisdk", "") == {"rich", "shtab"}


def test_commands() -> None:
    scripts = {point.name: point.value for point in entry_points(group="console_scripts")}
    assert scripts["cnitool"] == "cnisdk._cli.start:cnitool"
    assert scripts["cnisdk"] == "cnisdk._cli.cnisdk:main"


def test_the_plugins_are_registered() -> None:
    plugins = {point.name: point.load() for point in entry_points(group="cnisdk.plugins")}
    assert {"bridge", "host-local"} <= set(plugins)
    assert all(callable(main) for main in plugins.values())


def test_annotations_ship() -> None:
    assert (ROOT / "cnisdk" / "py.typed").exists()
    assert (ROOT / "examples" / "cnisdk_plugins" / "py.typed").exists()


def test_the_licence_is_apache_2() -> None:
    assert distribution("cnisdk").metadata["License-Expression"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
