"""Write a plugin (spec §2): requests, the class to subclass, and the program around it."""

from .._lazy import exports

TYPE_CHECKING = False  # type checkers know better; importing typing's takes longer than VERSION
if TYPE_CHECKING:
    from .base import Plugin as Plugin
    from .main import PluginMain as PluginMain
    from .reply import Reply as Reply, respond as respond
    from .request import (
        AddRequest as AddRequest,
        CheckRequest as CheckRequest,
        DelRequest as DelRequest,
        GCRequest as GCRequest,
        StatusRequest as StatusRequest,
    )
    from .undo import UndoStack as UndoStack

__all__, __dir__, __getattr__ = exports(
    __name__,
    {
        ".base": "Plugin",
        ".main": "PluginMain",
        ".request": "AddRequest CheckRequest DelRequest GCRequest StatusRequest",
        ".reply": "Reply respond",
        ".undo": "UndoStack",
    },
)
