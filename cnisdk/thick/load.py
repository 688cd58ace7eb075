"""Load plugins, and everything they would import on their first request, before the first worker is forked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ..errors import CNIError, InternalError
from ..plugin.launch import Launcher, find_main, read_launcher
from ..plugin.main import PluginMain
from ..spec.addresses import parse_interface, parse_network
from ..spec.codec import structure
from ..spec.convert import convert_result, parse_result, print_result, upgrade
from ..spec.result import DNS, Interface, IPConfig, Result, Route
from ..spec.versions import ALL
from .rehearsal import rehearse
from .shim import identify
from .worker import Loaded

# What handlers and the program around them import when they need it.
_LATER = (
    "atexit",
    "ctypes",
    "fcntl",
    "socket",
    "traceback",
    "..invoke.delegate",
    "..linux.netns",
    "..linux.rtnetlink",
    "..linux.veth",
    "..plugin.process",
    "..plugin.within",
    "..spec.convert",
    "..spec.lenient",
    "..spec.spelling",
)


def load(launchers: Mapping[str, bytes]) -> dict[str, Loaded]:
    """Import plugins, and rehearse them.

    Args:
        launchers: The text of the launcher of each type; it says what to import, and identifies the installation.

    Raises:
        InternalError: (999) One cannot be imported.
    """
    loaded = {}
    for type_, text in launchers.items():
        launcher = read_launcher(text)
        if launcher is None:
            raise InternalError(f'the launcher of plugin "{type_}" cannot be read')
        loaded[type_] = Loaded(type_, identify(text), launcher, _import(type_, launcher))
    for name in _LATER:
        import_module(name, __package__)
    _meet_results()
    lessons, problems = rehearse(loaded, launchers)
    for problem in problems:
        sys.stderr.write(f"cnisdk serve: {problem}\n")
    return {
        type_: plugin._replace(lessons={verb: pages for (of, verb), pages in lessons.items() if of == type_})
        for type_, plugin in loaded.items()
    }


def _meet_results() -> None:
    """Read and print a result of each version: the converter makes its rules for a class when it first meets it."""
    address = parse_interface("192.0.2.1/24")
    sample = Result(
        interfaces=(Interface(name="eth0", sandbox="/"),),
        ips=(IPConfig(address=address, gateway=address.ip, interface=0),),
        routes=(Route(dst=parse_network("0.0.0.0/0"), gw=address.ip),),
        dns=DNS(nameservers=("192.0.2.1",)),
    )
    for version in ALL:
        upgrade(parse_result(print_result(convert_result(sample, version).result), str(version)))


def _import(type_: str, launcher: Launcher) -> Callable[[], Any]:
    try:
        main = find_main(launcher.module, launcher.attribute)
    except Exception as exc:
        raise InternalError(f'plugin "{type_}" cannot be imported: {exc}') from exc
    if isinstance(main, PluginMain):
        # The converter makes its rules for a class when it first meets it.
        with contextlib.suppress(CNIError):
            structure({"name": "warm"}, main.plugin.conf_class())
    return main
