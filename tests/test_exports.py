"""Each package shows the names it offers: to type checkers, ``dir``, ``help``, completion and ``import *``."""

import ast
import importlib
import re
from collections.abc import Iterator
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


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield dotted name and syntax tree of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), ast.parse(path.read_text())


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


def test_what_is_offered_is_public() -> None:
    for package in OFFERING:
        for name in importlib.import_module(package).__all__:
            home = getattr(getattr(importlib.import_module(package), name), "__module__", package)
            private = [part for part in home.split(".") if part.startswith("_")]
            assert not private, f"{package}.{name} is at home in the private module {home}"


def test_find_may_find_nothing() -> None:
    """`find_` returns None, or an empty collection, when there is nothing; `get_` raises."""
    nothing = re.compile(r"\bNone\b|^(Any|tuple|list|set|frozenset|dict|Iterator)\b")
    wrong = [
        f"{module}.{node.name} -> {ast.unparse(node.returns or node)}"
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and re.match(r"_?find(_|$)", node.name)
        if node.returns is None or not nothing.search(ast.unparse(node.returns))
    ]
    assert wrong == []


def modules_of_plugins() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((PACKAGE.parent / "examples").rglob("*.py")):
        yield path.name, ast.parse(path.read_text())


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    """STYLE.md: begin with a verb or a noun, not with What, Who, Whoever or Whether; name the actor; do not ask."""
    unclear = re.compile(r"^(What|Who|Whoever|Whether)\b|\b([Nn]o|[Ss]ome|[Aa]ny)body\b|\b[Ww]hoever\b|\?(\s|$)")
    wrong = [
        f"{module}.{getattr(node, 'name', '')}: {text.splitlines()[0]}"
        for module, tree in [*modules(), *modules_of_plugins()]
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if unclear.search(text := ast.get_docstring(node) or "")
    ]
    assert wrong == []
