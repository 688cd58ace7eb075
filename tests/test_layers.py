"""Imports run downwards only and in no circle, and each public name is documented and stands for one thing."""

import ast
import importlib
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cnisdk"

# A layer may import the layers of the rows above it, and itself. The rows are docs/architecture.md's, bottom first.
LAYERS = [
    {"_lazy", "_light"},
    {"errors", "_files", "classes", "_signals", "_lockholders"},
    {"spec", "_releasing"},
    {"invoke", "ipam", "linux"},
    {"plugin", "runtime", "dhcp"},
    {"testing", "_thick"},
    {"conformance"},
    {"_cli"},
]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name below the package) for every import of our own modules in a file."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    package = here[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)]
            assert node.level - 1 <= len(package), f"{path}:{node.lineno} imports from outside the package"
            if node.module:
                yield node.lineno, ".".join((*base, node.module))
            else:
                for alias in node.names:
                    yield node.lineno, ".".join((*base, alias.name))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    layer = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if layer in {"__init__", "__main__"}:
        return  # the front door hands on names from every layer, lazily
    for line, imported in relative_imports(path):
        target = imported.split(".")[0]
        if target == "__version__":
            continue
        assert target in RANK, f"{path.relative_to(ROOT)}:{line} imports {imported!r}, which is no layer"
        assert target == layer or RANK[target] < RANK[layer], (
            f"{path.relative_to(ROOT)}:{line}: {layer} must not import {imported}"
        )


def every_module() -> dict[str, Path]:
    """The modules of the package, the plugins and the benchmarks, by the name under which they are imported."""
    plugins, benchmarks = ROOT / "examples" / "cnisdk_plugins", ROOT / "benchmarks"
    files = [(path, PACKAGE.parent) for path in modules()]
    files += [(path, plugins.parent) for path in plugins.rglob("*.py")]
    files += [(path, benchmarks) for path in benchmarks.glob("*.py")]
    return {".".join(path.relative_to(top).with_suffix("").parts): path for path, top in files}


@cache
def homes(package: str) -> dict[str, str]:
    """The module, or the package, from which a package hands on each of its names."""
    path = ROOT.joinpath(*package.split("."), "__init__.py")
    dicts = (
        [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Dict)] if path.exists() else []
    )
    given = {home: names for each in dicts for home, names in ast.literal_eval(each).items()}
    return {name: f"{package}{home}" for home, names in given.items() for name in names.split()}


def imported_modules(name: str, names: dict[str, Path]) -> set[str]:
    """The modules that a module imports, at whatever place, also for type checkers alone.

    A name that a package hands on counts as imported from the module that has it.
    """
    own = name.split(".")
    found = set()
    for node in ast.walk(ast.parse(names[name].read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level] if node.level else []
            package = ".".join(filter(None, [*base, *(node.module or "").split(".")]))
            for alias in node.names:
                home = homes(package).get(alias.name, package)
                found |= {f"{home}.{alias.name}", home}
    return found & names.keys() - {name}


def test_imports_go_in_no_circle() -> None:
    """Neither between modules nor in the eyes of type checkers: a reader can begin with the lowest."""
    names = {name: path for name, path in every_module().items() if path.name != "__init__.py"}
    left = {name: imported_modules(name, names) for name in names}
    while free := {name for name, imports in left.items() if not imports & left.keys()}:
        left = {name: left[name] for name in left.keys() - free}
    # Those that only import from a circle are in none.
    while free := left.keys() - set().union(*left.values()):
        left = {name: left[name] for name in left.keys() - free}
    assert not left, f"a circle is among {', '.join(sorted(left))}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_of_the_package_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        ours = [name for name in names if name.split(".")[0] in {"cnisdk", "cnisdk_plugins"}]
        assert not ours, f"{path.relative_to(ROOT)} imports {ours[0]} by its absolute name"


def test_one_module_imports_pyroute2() -> None:
    """Its import takes a quarter of a second: for the test kit's states that is little, for a plugin it is not."""
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any(
            name.split(".")[0] == "pyroute2"
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        )
    }
    assert users == {"testing/state.py"}


def test_plugins_use_only_the_public_api() -> None:
    for path in sorted((ROOT / "examples").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cnisdk":
                private = [
                    name
                    for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                    if name.startswith("_")
                ]
                assert not private, f"{path.relative_to(ROOT)}:{node.lineno} imports the private name {private[0]}"


def lazy_packages() -> list[Path]:
    return [path for path in modules() if path.name == "__init__.py" and "exports(" in path.read_text()]


@pytest.mark.parametrize("path", lazy_packages(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lazy_names_are_the_typed_ones(path: Path) -> None:
    """A package offers at run time what type checkers believe it offers, and every name exists."""
    tree = ast.parse(path.read_bytes())
    typed = {
        alias.asname or alias.name
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    (homes,) = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    offered = {name for value in homes.values for name in ast.literal_eval(value).split()}
    assert offered == typed
    package = importlib.import_module(".".join(path.relative_to(ROOT).parent.parts))
    for name in sorted(offered):
        assert getattr(package, name) is not None


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


def public_modules() -> dict[str, Path]:
    return {name: path for name, path in every_module().items() if name.startswith("cnisdk.") and is_public(name)}


def is_documented(statement: ast.Assign | ast.AnnAssign, following: ast.stmt, lines: list[str]) -> bool:
    """Look for what autodoc takes for a docstring: a string behind it, or a comment with a colon above or beside it."""
    comment = lines[statement.lineno - 2].startswith("#:") or "#: " in lines[statement.lineno - 1]
    return comment or (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant))


def public_names() -> list[PublicName]:
    found = []
    for module, path in public_modules().items():
        tree, lines = ast.parse(path.read_bytes()), path.read_text().splitlines()
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
    pages = runpy.run_path(str(ROOT / "docs" / "publish_api.py"))
    text = "".join(map(pages["render"], pages["PACKAGES"]))
    shown = set(re.findall(r"automodule:: (\S+)", text))
    assert shown == public_modules().keys()


def test_every_public_name_is_documented() -> None:
    """The pages leave out what has no docstring: give it one, or an underscore."""
    assert [f"{each.module}.{each.name}" for each in public_names() if not each.documented] == []


def test_every_public_method_is_documented() -> None:
    wrong = [
        f"{name}.{each.name}.{method.name}"
        for name, path in public_modules().items()
        for each in ast.parse(path.read_bytes()).body
        if isinstance(each, ast.ClassDef) and is_public(each.name)
        for method in each.body
        if isinstance(method, ast.FunctionDef) and is_public(method.name) and not ast.get_docstring(method)
    ]
    assert wrong == []


def test_no_public_name_is_used_twice() -> None:
    homes: dict[str, list[str]] = {}
    for each in public_names():
        if not (each.is_function and each.module.startswith(CALLED_THROUGH_THEIR_MODULE)):
            homes.setdefault(each.name, []).append(each.module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}
