"""The class plugin authors subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, cast, get_args, get_origin

from ..errors import run_all
from ..spec.codec import check_class, make_converter
from ..spec.config import NetConf
from ..spec.result import Result
from ..spec.versions import ALL, SpecVersion
from .request import AddRequest, CheckRequest, ConfT, DelRequest, GCRequest, StatusRequest

if TYPE_CHECKING:
    from cattrs import BaseConverter


class Plugin(ABC, Generic[ConfT]):
    """A plugin: one method for each verb, each of which returns a value or raises.

    Subclass it with the type of the configuration, ``class Patch(Plugin[PatchConf])``, and hand the subclass to
    :class:`PluginMain`. A fresh instance serves each request, so attributes may hold what one request needs.
    """

    supported_versions: ClassVar[tuple[SpecVersion, ...]] = ALL
    """The versions of the specification the plugin supports, as VERSION reports them."""

    leaves_only_links: ClassVar[bool] = False
    """Outside the container the plugin leaves nothing, or only links that carry their owner.

    True says that the default ``gc`` removes everything. ``cnisdk install`` warns of a plugin that neither says so nor
    has a ``gc`` of its own.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class whose configuration could not be read: the first request would be too late.

        Raises:
            TypeError: The configuration is no attrs class, or has an annotation that no JSON value is read into.
        """
        super().__init_subclass__(**kwargs)
        check_class(cls.conf_class(), cls.converter())

    @classmethod
    def configure_converter(cls, converter: BaseConverter) -> None:
        """Add hooks for types of your own to the converter that reads this plugin's configuration.

        Unless overridden, the plugin shares a converter with the others. For ``when: datetime``, write
        ``converter.register_structure_hook(datetime, lambda value, _: datetime.fromisoformat(value))``. A hook that
        raises refuses the value: code 7, with its path and what the exception says.
        """

    @classmethod
    @cache
    def converter(cls) -> BaseConverter | None:
        """Return the plugin's own converter; None when it adds no hooks."""
        if cls.configure_converter.__func__ is Plugin.configure_converter.__func__:  # type: ignore[attr-defined]
            return None
        converter = make_converter()
        cls.configure_converter(converter)
        return converter

    @classmethod
    @cache
    def conf_class(cls) -> type[ConfT]:
        """The type of the configuration: the argument in ``Plugin[…]``."""
        for base in cls.__mro__:
            for generic in getattr(base, "__orig_bases__", ()):
                if get_origin(generic) is Plugin:
                    argument = get_args(generic)[0]
                    if isinstance(argument, type) and issubclass(argument, NetConf):
                        return cast("type[ConfT]", argument)
        return cast("type[ConfT]", NetConf)

    @classmethod
    def rehearsals(cls, directory: str) -> Iterable[Mapping[str, Any]]:
        """Configurations with which the resident server may run the plugin before the first request comes.

        It attaches, checks and detaches a container with each a few times, so that Python has done what it only does
        the first time. That happens in network namespaces made for it; outside of these, and of `directory`, a
        configuration given here must not touch anything. Unless overridden, there are none.

        Args:
            directory: For files, such as ``dataDir``. It does not exist yet.

        Returns:
            Each without ``cniVersion``, ``name`` and ``type``.
        """
        return ()

    @classmethod
    def conformance(cls) -> Mapping[str, Any]:
        """How ``cnisdk conform`` is to try the plugin, where it is not told otherwise.

        Unless overridden, nothing is said, and the suite finds out what it can with the required keys alone.

        Returns:
            All optional: ``conf``, the configuration without ``cniVersion``, ``name`` and ``type``, in which the
            plugin ``stub-ipam`` leases addresses, and ``{number}`` in a text becomes the number of the attachment;
            ``kind``: ``interface``, ``chained`` or ``ipam``; ``ifname``, if not ``eth0``; ``setup``, shell commands
            that prepare a host on which the link ``up0`` and the bridge ``up1`` are already. For a chained plugin the
            suite makes an interface, and the ``prevResult`` that tells of it.
        """
        return {}

    @abstractmethod
    def add(self, request: AddRequest[ConfT]) -> Result:
        """Attach the container, and say how.

        Either all of it succeeds or nothing is left: register each step's inverse with ``request.undo``.

        Returns:
            The result in the current shape; it is converted to the version the configuration asks for.

        Raises:
            CNIError: Any; what was registered with ``request.undo`` is taken back.
        """

    @abstractmethod
    def delete(self, request: DelRequest[ConfT]) -> None:
        """Detach the container. What is gone already is fine; so is a namespace that is gone, and no ``prevResult``."""

    def check(self, request: CheckRequest[ConfT]) -> None:
        """Verify that the attachment is as ADD left it, without changing anything. Raise when it is not.

        Unless overridden, compare the container's interfaces with ``prevResult``, see
        :func:`cnisdk.plugin.interface.check`, and ask the IPAM plugin. Override it to verify what the result does not
        describe.
        """
        from . import interface

        interface.check(request)
        request.ipam.check()

    def gc(self, request: GCRequest[ConfT]) -> None:
        """Remove what belongs to attachments that are not in ``request.valid_attachments``.

        Unless overridden, delete the veths of this network whose owner is not valid, and ask the IPAM plugin. Override
        it when the plugin leaves anything else outside the container; when it does not, set
        :attr:`leaves_only_links`.
        """
        from ..linux import veth

        run_all(lambda: veth.delete_stale(request.network, request.valid_attachments), request.ipam.gc)

    def status(self, request: StatusRequest[ConfT]) -> None:
        """Raise unless the plugin can serve ADD: PluginNotAvailableError (50) or LimitedConnectivityError (51).

        Unless overridden, ask the IPAM plugin. Override it when ADD needs anything that may be missing.
        """
        request.ipam.status()
