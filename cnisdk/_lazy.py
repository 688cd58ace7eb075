"""Lazy exports: a package offers names from its modules, and imports a module on first use of one of its names."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType
    from typing import NamedTuple

    class Exports(NamedTuple):
        """Values of the three names that a package's ``__init__`` assigns."""

        all: tuple[str, ...]
        dir: Callable[[], list[str]]
        getattr: Callable[[str], object]


def load(name: str) -> ModuleType:
    """Import a module, as ``importlib.import_module`` does, without importing importlib."""
    __import__(name)
    return sys.modules[name]


def exports(package: str, homes: Mapping[str, str], modules: str = "") -> Exports:
    """Make a package's ``__all__``, ``__dir__`` and ``__getattr__`` (PEP 562).

    Args:
        package: ``__name__`` of the package.
        homes: The names each module gives, separated by spaces, by the module's relative name. A package gives the
            modules in it.
        modules: The modules and packages inside that users import as such, separated by spaces.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}
    inside = modules.split()

    def __dir__() -> list[str]:
        own = (name for name in vars(sys.modules[package]) if name.startswith("__"))
        return sorted({*own, *home_of, *inside})

    def __getattr__(name: str) -> object:
        if name in inside:
            return load(f"{package}.{name}")
        try:
            home = home_of[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        value = getattr(load(package + home), name, None) or load(f"{package}{home}.{name}")
        setattr(sys.modules[package], name, value)
        return value

    return tuple(home_of), __dir__, __getattr__  # type: ignore[return-value] # the class is for type checkers only
