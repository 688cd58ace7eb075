"""pyroute2's codec of route messages, without the rest of pyroute2.

Routes are what takes the most to decode: several next hops, nested metrics, encapsulations. Only CHECK and the tests
read them. ``import pyroute2`` takes 190 ms, most of it for protocols no plugin speaks, and
``pyroute2.netlink.rtnl.rtmsg`` runs it first, like any import of a submodule. So the few modules wanted are imported
below an empty package that stands in for ``pyroute2`` meanwhile: 10 ms.

A program that uses pyroute2 itself must not notice. When it has imported it already, its modules are used. Otherwise
everything that was loaded is taken out of ``sys.modules`` again, so that a later ``import pyroute2`` starts afresh.
Another thread that imports it at this moment waits, because the stand-in is loaded by the import system itself, under
its lock for the name; and if it got hold of the stand-in, that hands it on to the real one.

None of this is a documented interface of pyroute2: the version is bounded, and tests fail when a release breaks it.
"""

from __future__ import annotations

import sys
import threading
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NoReturn

# pyroute2 ships no usable annotations. A message is a dict of fields, and of "attrs": pairs of a name and a value.
Message = Any
MessageClass = Any

_loaded: MessageClass | None = None
_lock = threading.Lock()


def load() -> MessageClass:
    """Load the class of route messages, which decodes when called with the bytes, or return what was loaded before.

    Raises:
        ImportError: pyroute2 is not installed.
    """
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _import_along() if "pyroute2" in sys.modules else _import_apart()
    return _loaded


def _import_along() -> MessageClass:
    """Import the codec below the real package."""
    # Another thread may be in the middle of importing it: wait, or the two could deadlock over its modules.
    __import__("pyroute2")
    return _import_codec()


def _import_codec() -> MessageClass:
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    return rtmsg


def _import_apart() -> MessageClass:
    """Import the codec under a stand-in for the package, leaving no trace of either in ``sys.modules``."""
    finder = _StandIn()
    sys.meta_path.insert(0, finder)
    try:
        __import__("pyroute2")
    except _Done as done:
        return done.codec
    finally:
        sys.meta_path.remove(finder)
    # Another thread was faster than the finder: the real one is here now.
    return _import_codec()


class _Done(BaseException):
    """The way out of an import that is not meant to leave a module behind."""

    def __init__(self, codec: MessageClass) -> None:
        super().__init__()
        self.codec = codec


class _StandIn:
    """Finds and loads, for the thread that made it, a ``pyroute2`` that is empty but for its path."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "pyroute2" or threading.get_ident() != self.thread:
            return None
        real = PathFinder.find_spec(name)
        if real is None:
            return None
        spec = ModuleSpec(name, self, origin=real.origin, is_package=True)  # type: ignore[arg-type]
        spec.submodule_search_locations = real.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> NoReturn:
        def __getattr__(name: str) -> object:
            # `import pyroute2` in another thread waits for this one, but then goes on with what it saw first.
            if sys.modules.get(module.__name__) is module:
                raise AttributeError(name)
            return getattr(__import__(module.__name__), name)

        module.__getattr__ = __getattr__  # type: ignore[method-assign]
        try:
            codec = _import_codec()
        finally:
            # The import system removes `module` itself when an exception passes.
            for name in [name for name in sys.modules if name.startswith("pyroute2.")]:
                del sys.modules[name]
        raise _Done(codec)
