"""pyroute2's netlink messages, without the rest of pyroute2.

``import pyroute2`` takes 190 ms, most of it for protocols no plugin speaks, and ``pyroute2.netlink.rtnl.ifinfmsg``
runs it first, like any import of a submodule. So the few modules wanted are imported below an empty package that
stands in for ``pyroute2`` meanwhile: 10 ms.

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
from typing import Any, NamedTuple, NoReturn

# pyroute2 ships no usable annotations. A message is a dict of fields, and of "attrs": pairs of a name and a value.
Message = Any
MessageClass = Any


class Codecs(NamedTuple):
    """The message classes: each encodes what it is given, and decodes when called with the bytes."""

    link: MessageClass
    address: MessageClass
    route: MessageClass


_loaded: Codecs | None = None
_lock = threading.Lock()


def load() -> Codecs:
    """Load the codecs, or return those loaded before.

    Raises:
        ImportError: pyroute2 is not installed.
    """
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                _loaded = _import_along() if "pyroute2" in sys.modules else _import_apart()
    return _loaded


def _import_along() -> Codecs:
    """Import the codecs below the real package."""
    # Another thread may be in the middle of importing it: wait, or the two could deadlock over its modules.
    __import__("pyroute2")
    return _import_codecs()


def _import_codecs() -> Codecs:
    from pyroute2.netlink import nla, nla_string, nlmsg
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    return Codecs(_link_message(nlmsg, nla, nla_string), ifaddrmsg, rtmsg)


def _import_apart() -> Codecs:
    """Import the codecs under a stand-in for the package, leaving no trace of either in ``sys.modules``."""
    finder = _StandIn()
    sys.meta_path.insert(0, finder)
    try:
        __import__("pyroute2")
    except _Done as done:
        return done.codecs
    finally:
        sys.meta_path.remove(finder)
    # Another thread was faster than the finder: the real one is here now.
    return _import_codecs()


class _Done(BaseException):
    """The way out of an import that is not meant to leave a module behind."""

    def __init__(self, codecs: Codecs) -> None:
        super().__init__()
        self.codecs = codecs


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
            codecs = _import_codecs()
        finally:
            # The import system removes `module` itself when an exception passes.
            for name in [name for name in sys.modules if name.startswith("pyroute2.")]:
                del sys.modules[name]
        raise _Done(codecs)


def _link_message(nlmsg: Any, nla: Any, nla_string: Any) -> MessageClass:
    """Declare the link message with the attributes used here.

    pyroute2's own, ifinfmsg, costs as much again as all the rest: it brings the data of some forty kinds of link, and
    multiprocessing. Numbers are those of linux/if_link.h and linux/if_bridge.h; attributes left out decode as unknown.
    """

    class text(nla_string):  # type: ignore[misc]
        """Text in whatever encoding, sent without the NUL: an alias has room for 255 bytes all told."""

        def encode(self) -> None:
            self["value"] = self.value.encode(errors="surrogateescape")
            nla_string.encode(self)

        def decode(self) -> None:
            nla_string.decode(self)
            self.value = self["value"].rstrip(b"\0").decode(errors="surrogateescape")

    class hardware_address(nla_string):  # type: ignore[misc]
        """Bytes with colons between them: six for Ethernet, but four for a tunnel and twenty for InfiniBand."""

        def encode(self) -> None:
            self["value"] = bytes.fromhex(self.value.replace(":", ""))
            nla_string.encode(self)

        def decode(self) -> None:
            nla_string.decode(self)
            self.value = self["value"].hex(":")

    class port_data(nla):  # type: ignore[misc]
        prefix = "IFLA_BRPORT_"
        nla_map = (
            (4, "IFLA_BRPORT_MODE", "uint8"),
            (33, "IFLA_BRPORT_ISOLATED", "uint8"),
        )

    class bridge_data(nla):  # type: ignore[misc]
        prefix = "IFLA_BR_"
        nla_map = (
            (7, "IFLA_BR_VLAN_FILTERING", "uint8"),
            (39, "IFLA_BR_VLAN_DEFAULT_PVID", "uint16"),
        )

    class veth_data(nla):  # type: ignore[misc]
        nla_map = ((1, "VETH_INFO_PEER", "peer"),)

        @staticmethod
        def peer(message: Message, *args: object, **kwargs: object) -> MessageClass:
            return link_peer

    class link_info(nla):  # type: ignore[misc]
        prefix = "IFLA_INFO_"
        nla_map = (
            (1, "IFLA_INFO_KIND", "asciiz"),
            (2, "IFLA_INFO_DATA", "own_data"),
            (4, "IFLA_INFO_SLAVE_KIND", "asciiz"),
            (5, "IFLA_INFO_SLAVE_DATA", "slave_data"),
        )

        # Which class decodes them depends on the kind, which comes first in a message.
        @staticmethod
        def own_data(message: Message, *args: object, **kwargs: object) -> MessageClass:
            return _DATA.get(message.get_attr("IFLA_INFO_KIND"), message.hex)

        @staticmethod
        def slave_data(message: Message, *args: object, **kwargs: object) -> MessageClass:
            return port_data if message.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge" else message.hex

    _DATA: dict[str, MessageClass] = {"bridge": bridge_data, "veth": veth_data}

    class bridge_af(nla):  # type: ignore[misc]
        class vlan_info(nla):  # type: ignore[misc]
            fields = (("flags", "H"), ("vid", "H"))

        nla_map = (
            (0, "IFLA_BRIDGE_FLAGS", "uint16"),
            (2, "IFLA_BRIDGE_VLAN_INFO", "vlan_info"),
        )

    class link_fields:
        prefix = "IFLA_"
        fields = (
            ("family", "B"),
            ("__align", "x"),
            ("ifi_type", "H"),
            ("index", "i"),
            ("flags", "I"),
            ("change", "I"),
        )
        nla_map = (
            (1, "IFLA_ADDRESS", "hardware_address"),
            (3, "IFLA_IFNAME", "text"),
            (4, "IFLA_MTU", "uint32"),
            (5, "IFLA_LINK", "uint32"),
            (10, "IFLA_MASTER", "uint32"),
            (16, "IFLA_OPERSTATE", "uint8"),
            (18, "IFLA_LINKINFO", "link_info"),
            (20, "IFLA_IFALIAS", "text"),
            (26, "IFLA_AF_SPEC", "af_spec"),
            (28, "IFLA_NET_NS_FD", "uint32"),
            (29, "IFLA_EXT_MASK", "uint32"),
            (30, "IFLA_PROMISCUITY", "uint32"),
            (33, "IFLA_CARRIER", "uint8"),
            (37, "IFLA_LINK_NETNSID", "int32"),
        )

        @staticmethod
        def af_spec(message: Message, *args: object, **kwargs: object) -> MessageClass:
            # The same number holds one thing for PF_BRIDGE messages (7) and another for all others.
            return bridge_af if message["family"] == 7 else message.hex

    for name, codec in (("link_info", link_info), ("text", text), ("hardware_address", hardware_address)):
        setattr(link_fields, name, codec)

    class link(link_fields, nlmsg):  # type: ignore[misc]
        pass

    class link_peer(link_fields, nla):  # type: ignore[misc]
        """The other end of a veth, inside the data of the one: a whole link message without its netlink header."""

    return link
