"""Each package shows the names it offers: to type checkers, ``dir``, ``help``, completion and ``import *``."""

import ast
import importlib
import re
import runpy
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

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


# --- the public line --------------------------------------------------------------------------------------------------

# Functions of these modules are called through the module, as in `veth.create`, so that is their name.
CALLED_THROUGH_THEIR_MODULE = ("cnisdk.linux.", "cnisdk.plugin.interface")


class PublicName(NamedTuple):
    """A name without underscore at the top level of a module without underscore."""

    module: str
    name: str
    is_function: bool
    documented: bool


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def module_path(module: str) -> Path:
    return PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield dotted name and syntax tree of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), ast.parse(path.read_text())


def is_documented(statement: ast.Assign | ast.AnnAssign, following: ast.stmt, lines: list[str]) -> bool:
    """Look for what autodoc takes for a docstring: a string behind it, or a comment with a colon above or beside it."""
    comment = lines[statement.lineno - 2].startswith("#:") or "#: " in lines[statement.lineno - 1]
    return comment or (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant))


def public_names() -> list[PublicName]:
    found = []
    for module, tree in modules():
        if not is_public(module):
            continue
        lines = module_path(module).read_text().splitlines()
        for statement, following in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
            names: list[str] = []
            documented = False
            if isinstance(statement, ast.ClassDef | ast.FunctionDef):
                names, documented = [statement.name], ast.get_docstring(statement) is not None
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
                documented = is_documented(statement, following, lines)
            function = isinstance(statement, ast.FunctionDef)
            found += [
                PublicName(module, name, function, documented)
                for name in names
                if is_public(name) and name != "TYPE_CHECKING"
            ]
    return found


def test_every_public_module_has_its_place_on_a_page_of_the_api() -> None:
    pages = runpy.run_path(str(PACKAGE.parent / "docs" / "publish_api.py"))
    text = "".join(map(pages["render"], pages["PACKAGES"]))
    shown = set(re.findall(r"automodule:: (\S+)", text))
    assert shown == {module for module, _ in modules() if is_public(module)}


def test_every_public_name_is_documented() -> None:
    """The pages leave out what has no docstring: give it one, or an underscore."""
    assert [f"{each.module}.{each.name}" for each in public_names() if not each.documented] == []


def test_no_public_name_is_used_twice() -> None:
    homes: dict[str, list[str]] = {}
    for each in public_names():
        if not (each.is_function and each.module.startswith(CALLED_THROUGH_THEIR_MODULE)):
            homes.setdefault(each.name, []).append(each.module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_what_is_offered_is_public() -> None:
    for package in OFFERING:
        for name in importlib.import_module(package).__all__:
            home = getattr(getattr(importlib.import_module(package), name), "__module__", package)
            assert is_public(home), f"{package}.{name} is at home in the private module {home}"


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
    """STYLE.md: begin with a verb or a noun, not with What, Who, Whoever or Whether."""
    wrong = [
        f"{module}.{getattr(node, 'name', '')}: {text.splitlines()[0]}"
        for module, tree in [*modules(), *modules_of_plugins()]
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if re.match(r"(What|Who|Whoever|Whether)\b", text := ast.get_docstring(node) or "")
    ]
    assert wrong == []
