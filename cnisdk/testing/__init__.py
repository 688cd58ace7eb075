"""Tools for testing plugins: throw-away hosts that need no root, with containers, captures, faults and stubs."""

from typing import TYPE_CHECKING

from .._lazy import exports

if TYPE_CHECKING:
    from .expectations import expect_error as expect_error
    from .faults import Fault as Fault, fail as fail, kill as kill, kill_after as kill_after
    from .hosts import Container as Container, Host as Host, Node as Node
    from .packets import Capture as Capture, Frame as Frame
    from .running import Answer as Answer, PluginUnderTest as PluginUnderTest
    from .sandbox import Sandbox as Sandbox, SandboxUnavailable as SandboxUnavailable
    from .state import State as State, describe_difference as describe_difference
    from .stub import StubPlugin as StubPlugin

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".expectations": "expect_error",
        ".faults": "Fault fail kill kill_after",
        ".hosts": "Container Host Node",
        ".packets": "Capture Frame",
        ".running": "Answer PluginUnderTest",
        ".sandbox": "Sandbox SandboxUnavailable",
        ".state": "State describe_difference",
        ".stub": "StubPlugin",
    },
)
