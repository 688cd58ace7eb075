"""Tools for testing plugins: throw-away hosts that need no root."""

from typing import TYPE_CHECKING

from .._lazy import exports

if TYPE_CHECKING:
    from .sandbox import Sandbox as Sandbox, SandboxUnavailable as SandboxUnavailable

__getattr__ = exports(__name__, {".sandbox": "Sandbox SandboxUnavailable"})
