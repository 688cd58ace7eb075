"""Get ready for many requests: what a process would do at its first, and each fork of it again.

A plugin and the skeleton import much only when it is used, since a process that answers one request should not pay for
what others use; and the converter makes its rules for a class when it meets it. A process that forks for each request
does both once, beforehand.
"""

from __future__ import annotations

import contextlib
from functools import cache
from importlib import import_module

from .._light import Any
from ..errors import CNIError
from ..spec.addresses import parse_interface, parse_network
from ..spec.codec import structure
from ..spec.convert import convert_result, parse_result, print_result, upgrade
from ..spec.result import DNS, Interface, IPConfig, Result, Route
from ..spec.versions import ALL
from .base import Plugin

# Modules that plugins and the skeleton import on first use.
_DEFERRED = (
    "atexit",
    "binascii",
    "bisect",
    "ctypes",
    "fcntl",
    "json",
    "select",
    "threading",
    "traceback",
    "..invoke.delegate",
    "..linux.netns",
    "..linux.rtnetlink",
    "..linux.links.veth",
    "._process",
    "._within",
    "..spec.convert",
    "..spec._lenient",
    "..spec._spelling",
)


@cache
def up() -> None:
    """Import what plugins import on their first request; read and print a result of each version."""
    for name in _DEFERRED:
        import_module(name, __package__)
    address = parse_interface("192.0.2.1/24")
    sample = Result(
        interfaces=(Interface(name="eth0", sandbox="/"),),
        ips=(IPConfig(address=address, gateway=address.ip, interface=0),),
        routes=(Route(dst=parse_network("0.0.0.0/0"), gw=address.ip),),
        dns=DNS(nameservers=("192.0.2.1",)),
    )
    for version in ALL:
        upgrade(parse_result(print_result(convert_result(sample, version).result), str(version)))


@cache
def up_for(plugin: type[Plugin[Any]]) -> None:
    """Have the converter make its rules for a plugin's configuration class."""
    up()
    with contextlib.suppress(CNIError):
        structure({"name": "warm"}, plugin.conf_class())
