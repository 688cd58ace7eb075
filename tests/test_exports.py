"""Each package shows the names it offers: to type checkers, ``dir``, ``help``, completion and ``import *``."""

import ast
import importlib
from importlib.metadata import version
from pathlib import Path

import pytest

import cnisdk

PACKAGE = Path(cnisdk.__file__).parent
OFFERING = sorted(
    ".".join(path.parent.relative_to(PACKAGE.parent).parts)
    for path in PACKAGE.rglob("__init__.py")
    if "exports(" in path.read_text()
)


def seen_by_type_checkers(package: str) -> set[str]:
    """The names below ``if TYPE_CHECKING`` in a package."""
    tree = ast.parse(Path(importlib.import_module(package).__file__ or "").read_text())
    return {
        alias.asname
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
        if alias.asname
    }


@pytest.mark.parametrize("package", OFFERING)
def test_everyone_sees_the_same_names(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) == seen_by_type_checkers(package)
    assert set(module.__all__) <= set(dir(module))
    for name in dir(module):
        getattr(module, name)


def test_help_and_star_import_offer_the_names_of_authors() -> None:
    names: dict[str, object] = {}
    exec("from cnisdk import *", names)
    assert names["Plugin"] is cnisdk.Plugin
    assert {"Plugin", "PluginMain", "NetConf", "Result", "linux", "spec"} <= set(dir(cnisdk))
    assert not {name for name in dir(cnisdk) if name in {"exports", "TYPE_CHECKING", "_lazy"}}


def test_the_version_is_the_distributions() -> None:
    assert cnisdk.__version__ == version("cnisdk")
