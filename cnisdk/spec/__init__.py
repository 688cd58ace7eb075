"""Typed objects and versions of the CNI specification. Pure: no I/O, no operating system."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .addresses import IPAddress, IPInterface, IPNetwork
    from .codec import dumps, dumps_compact, json_field, loads, structure, unstructure
    from .config import (
        Bandwidth,
        IPAMConf,
        IPRange,
        NetConf,
        NetConfList,
        PortMapping,
        RuntimeConfig,
        RuntimeDNS,
        parse_args,
    )
    from .convert import AnyResult, Conversion, Lost, convert, parse_result, print_result, upgrade
    from .names import Attachment
    from .older_results import Result020, Result040, Result100
    from .result import DNS, Interface, IPConfig, Result, Route
    from .versions import SpecVersion, Verb

_MODULES = {
    "addresses": ("IPAddress", "IPInterface", "IPNetwork"),
    "codec": ("dumps", "dumps_compact", "json_field", "loads", "structure", "unstructure"),
    "config": (
        "Bandwidth",
        "IPAMConf",
        "IPRange",
        "NetConf",
        "NetConfList",
        "PortMapping",
        "RuntimeConfig",
        "RuntimeDNS",
        "parse_args",
    ),
    "convert": ("AnyResult", "Conversion", "Lost", "convert", "parse_result", "print_result", "upgrade"),
    "names": ("Attachment",),
    "older_results": ("Result020", "Result040", "Result100"),
    "result": ("DNS", "IPConfig", "Interface", "Result", "Route"),
    "versions": ("SpecVersion", "Verb"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import the module of a name when it is first asked for: a plugin pays only for what it uses."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
