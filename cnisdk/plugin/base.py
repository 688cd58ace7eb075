"""The base class of plugins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from .._light import TYPE_CHECKING, Any, ClassVar, Generic, cast, get_args, get_origin
from ..spec.codec import check_class, make_converter
from ..spec.config import NetConf
from ..spec.result import Result
from ..spec.versions import ALL, SpecVersion
from .request import AddRequest, CheckRequest, ConfT, DelRequest, GCRequest, StatusRequest

if TYPE_CHECKING:
    from cattrs import BaseConverter

    from ..ipam.table import LeaseTable


class Plugin(ABC, Generic[ConfT]):
    """A plugin: one method for each verb, each of which returns a value or raises.

    Subclass it with the type of the configuration, ``class Patch(Plugin[PatchConf])``, and hand the subclass to
    :class:`PluginMain`. A fresh instance serves each request, so attributes may hold what one request needs.
    """

    supported_versions: ClassVar[tuple[SpecVersion, ...]] = ALL
    """The versions of the specification the plugin supports, as VERSION reports them."""

    leaves_only_links: ClassVar[bool] = False
    """True if the plugin leaves nothing outside the container but links that carry their owner.

    The default ``gc`` then removes all that a plugin leaves. ``cnisdk install`` warns of a plugin that neither sets
    this nor has a ``gc`` of its own.
    """

    leaves_process_unchanged: ClassVar[bool] = False
    """True if each request leaves the process as it found it, so that the resident mode may run another request in it.

    That is so for a plugin that changes no global variable, registers nothing with :mod:`atexit`, and ends or closes
    all that it starts and opens. The worker verifies what can be seen from outside (see docs/modes.md), and ends when
    it finds a difference. Otherwise the process ends after the request. A subclass does not inherit the promise.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class whose configuration could not be read, instead of failing in the first request.

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
        raises refuses the value: code 7, with its path and the text of the exception.
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
        """Return the type of the configuration: the argument in ``Plugin[…]``."""
        for base in cls.__mro__:
            for generic in getattr(base, "__orig_bases__", ()):
                if get_origin(generic) is Plugin:
                    argument = get_args(generic)[0]
                    if isinstance(argument, type) and issubclass(argument, NetConf):
                        return cast("type[ConfT]", argument)
        return cast("type[ConfT]", NetConf)

    @classmethod
    def lease_tables(cls, conf: ConfT | None, directory: str = "") -> Sequence[LeaseTable]:
        """Return the tables of the leases this IPAM plugin holds on this host.

        ``cnisdk leases``, ``cnisdk gc`` and ``cnisdk fsck`` call it for each network whose ``ipam.type`` is the name
        under which the plugin is registered (entry point group ``cnisdk.plugins``). Unless overridden, these commands
        say that the leases are not known. A plugin that keeps none returns nothing.

        Args:
            conf: The configuration of a network. Values that the plugin would refuse have their defaults, as in DEL.
                None asks for all networks that have leases here, configured or not.
            directory: The directory with the leases of networks whose configuration names none (``--data-dir``); empty
                means the plugin's own default.

        Raises:
            CNIError: The tables cannot be found.
        """
        return ()

    @classmethod
    def rehearsals(cls, directory: str) -> Iterable[Mapping[str, Any]]:
        """Return configurations with which the resident server may run the plugin before the first request comes.

        The server attaches, checks and detaches a container with each of them a few times, so that Python does its
        first-time work, such as imports, before a request waits for it. It does so in network namespaces made for that.
        The link ``up0`` is on the host there. With these configurations the plugin must touch nothing outside of those
        namespaces and of `directory`. Unless overridden, there are none.

        An IPAM plugin (``"kind": "ipam"`` in :meth:`conformance`) that leaves its process unchanged also runs in each
        worker, on the host itself, with a `directory` that cannot be made and no container: there it must touch nothing
        at all. It is expected to fail.

        Args:
            directory: Path for files, such as ``dataDir``. It does not exist yet.

        Returns:
            Configurations without ``cniVersion``, ``name`` and ``type``.
        """
        return ()

    @classmethod
    def conformance(cls) -> Mapping[str, Any]:
        """Return the settings with which ``cnisdk conform`` tries the plugin, unless its options say otherwise.

        Unless overridden, there are none, and the suite uses a configuration of the required keys alone.

        Returns:
            All optional: ``conf``, the configuration without ``cniVersion``, ``name`` and ``type``, in which the
            plugin ``stub-ipam`` leases addresses, and ``{number}`` in a text becomes the number of the attachment;
            ``kind``: ``interface``, ``chained`` or ``ipam``; ``ifname``, if not ``eth0``; ``setup``, shell commands
            that prepare a host on which the link ``up0`` and the bridge ``up1`` are already; ``container_setup``, shell
            commands, run on the host, that prepare each new container, and in which ``{container}`` becomes the name of
            its namespace. For a chained plugin the suite makes an interface, and the ``prevResult`` that tells of it.
            An IPAM plugin needs a small subnet, a ``/26`` at most: the cases about an exhausted pool do not apply to
            more than 70 addresses.
        """
        return {}

    @abstractmethod
    def add(self, request: AddRequest[ConfT]) -> Result:
        """Attach the container, and return the result.

        Register the inverse of each step with ``request.undo``: when a later step fails, nothing must be left.

        Returns:
            The result in the current shape; it is converted to the version the configuration asks for.

        Raises:
            CNIError: Any. The inverses registered with ``request.undo`` run.
        """

    @abstractmethod
    def delete(self, request: DelRequest[ConfT]) -> None:
        """Detach the container, also when its links, leases or namespace are gone, or there is no ``prevResult``."""

    def check(self, request: CheckRequest[ConfT]) -> None:
        """Verify that the attachment is as ADD left it, without changing anything. Raise when it is not.

        Unless overridden, compare the container's interfaces with ``prevResult``, see
        :func:`cnisdk.plugin.interface.check`, and ask the IPAM plugin. Override it to verify what the result does not
        describe.
        """
        from . import interface

        interface.check(request)
        request.ipam.check()

    def repair(self, request: CheckRequest[ConfT], *, dry_run: bool = False) -> bool:
        """Put back the packet filter rules of an attachment that CHECK would miss.

        No runtime asks for it: ``cnisdk repair`` does, after a reload of firewalld or ``nft flush ruleset``. Before it
        calls this method, it has verified that the container's interface is as ``prevResult`` says; so an attachment
        that is gone gets no rules. The request is that of CHECK, with the configuration of ADD. Do not touch what is
        whole: see :func:`cnisdk.linux.rules.repair`. Unless overridden, there is nothing to put back.

        Args:
            request: The request, as of CHECK.
            dry_run: If true, change nothing (``cnisdk repair --dry-run``).

        Returns:
            True if anything was missing. It is back, unless `dry_run` is true.

        Raises:
            CNIError: It cannot be put back.
        """
        return False

    def find_delegate_conf(self, request: CheckRequest[ConfT]) -> Mapping[str, Any] | None:
        """Find the configuration with which this plugin has delegated an attachment to another plugin (spec §4).

        ``cnisdk repair`` asks for it, and has that plugin put back its rules, too. IPAM plugins have none, and need not
        be named. Unless overridden, there is no other plugin.

        Returns:
            The configuration that the other plugin gets, ``type`` included; None if there is none.

        Raises:
            CNIError: It cannot be known.
        """
        return None

    def gc(self, request: GCRequest[ConfT]) -> None:
        """Remove what belongs to attachments that are not in ``request.valid_attachments``.

        Unless overridden, delete the veths of this network whose owner is not valid, and ask the IPAM plugin. Override
        it when the plugin leaves anything else outside the container; when it does not, set
        :attr:`leaves_only_links`.
        """
        from ..linux.links import veth
        from . import interface

        interface.detach(request, lambda: veth.delete_stale(request.network, request.valid_attachments))

    def status(self, request: StatusRequest[ConfT]) -> None:
        """Raise unless the plugin can serve ADD: PluginNotAvailableError (50) or LimitedConnectivityError (51).

        Unless overridden, ask the IPAM plugin. Override it when ADD needs a program or link that may be missing.
        """
        request.ipam.status()
