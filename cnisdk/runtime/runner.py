"""Run a network's plugins: ADD, CHECK, DEL, GC and STATUS (spec §3, "Execution of Network Configurations")."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from .. import _releasing
from .._light import Any, NamedTuple, cast
from ..errors import (
    CNIError,
    IncompatibleVersionError,
    InvalidEnvironmentError,
    InvalidNetNSError,
    TryAgainLaterError,
    UnknownContainerError,
    error_for_code,
    raise_first,
)
from ..invoke.call import run
from ..invoke.find import get_plugin_path
from ..invoke.process import pass_on
from ..invoke.version import PluginVersions, plugin_versions
from ..spec.codec import find_key, loads, unstructure
from ..spec.convert import AnyResult, convert_result, structure_result, upgrade, without_null_entries
from ..spec.names import Attachment, check_container_id, check_ifname, check_network_name, shorten
from ..spec.result import Result
from ..spec.versions import PREV_RESULT_SINCE, SINCE, Verb, allows
from .cache import DEFAULT_CACHE_DIR, Cache, CachedAttachment
from .network import Network, NetworkPlugin

DEFAULT_TIMEOUT = 120.0
"""Seconds one call of a plugin may take: as long as kubelet waits for a pod's sandbox."""

# Seconds that a plugin has to undo its work when it is stopped. Its delegate, which it stops first, has some of them.
_GRACE = 8.0

NO_NAMESPACE = "/proc/0/ns/net"
"""Path for the DEL of an attachment whose namespace is gone: no process has the id 0, so nothing will ever be there."""

CNIArgs = Mapping[str, str] | Iterable[tuple[str, str]]
"""Keys and values of ``CNI_ARGS``."""

# How the reference names the verbs in its errors.
_DOING = {Verb.ADD: "add", Verb.DEL: "delete", Verb.CHECK: "check", Verb.GC: "gc", Verb.STATUS: "status"}


class GCReport(NamedTuple):
    """Report of a GC.

    Attributes:
        deleted: Cached attachments that were not valid any more, and got their DEL.
        asked: Types of the plugins whose GC ran.
        notes: The reason for each part of the GC that was left out.
    """

    deleted: tuple[Attachment, ...] = ()
    asked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class PluginCall(NamedTuple):
    """One call of a plugin.

    Attributes:
        verb: The verb.
        type: The plugin's type.
        path: Its executable.
        environ: All of its environment.
        request: The bytes it reads from standard input.
        printed: The bytes it printed; None before it has ended, and when it failed.
        error: The error it failed with; None before it has ended, and when it succeeded.
    """

    verb: Verb
    type: str
    path: str
    environ: Mapping[str, str]
    request: bytes
    printed: bytes | None = None
    error: CNIError | None = None


class Runtime:
    """Run networks: attach containers, check them, and detach them.

    **Threads.** A runtime keeps no state but the cache, whose files appear whole, and its attributes stay as they were
    made. So threads may share one, and call it at the same time for different containers. It takes no lock: the caller
    must not run two operations on one container at the same time, nor GC beside ADD (spec §3). ``on_stderr`` and
    ``on_warning`` are called in the thread of the call they belong to.

    **asyncio.** The methods block. Run them in threads: ``await asyncio.to_thread(runtime.add, …)``. When the task that
    waits is cancelled, only the waiting ends: the thread goes on, and the ADD may still succeed. Do not start another
    operation on that container until it has ended; shield the call, or wait for the thread in another way, and then
    DEL. ``deadline`` bounds how long that takes.

    **Time.** ``timeout`` is for one call of a plugin; ``deadline``, in seconds, for all calls of one method. When it is
    over, the plugin that runs is stopped, no other is started, and the method raises TryAgainLaterError (11). A plugin
    that is stopped has eight seconds more to undo its work.

    Args:
        path: Directories with plugins, in order: ``CNI_PATH``.
        cache_dir: Directory of the cached attachments; shared with libcni.
        timeout: Seconds one call of a plugin may take; None means for ever.
        rollback: If true, an ADD that fails is followed by the DEL of the plugins that ran. If false, as in libcni, the
            caller must do that.
        environ: The environment of plugins, but for the variables of CNI; None means that of this process.
        on_stderr: Called with each piece of a plugin's stderr as it comes; by default it goes to this process's own.
        on_warning: Called with a sentence for each failure that does not make the call fail.
        on_call: Called twice for each plugin: before it runs, and with its answer. A call contains the whole
            configuration, which may hold secrets.
    """

    def __init__(
        self,
        path: Sequence[str],
        *,
        cache_dir: str = DEFAULT_CACHE_DIR,
        timeout: float | None = DEFAULT_TIMEOUT,
        rollback: bool = True,
        environ: Mapping[str, str] | None = None,
        on_stderr: Callable[[bytes], object] = pass_on,
        on_warning: Callable[[str], object] = lambda text: None,
        on_call: Callable[[PluginCall], object] = lambda call: None,
    ) -> None:
        self.path = tuple(path)
        self.cache = Cache(cache_dir)
        self.timeout = timeout
        self.rollback = rollback
        self._environ = environ
        self._on_stderr = on_stderr
        self._on_warning = on_warning
        self._on_call = on_call

    # --- ADD ----------------------------------------------------------------------------------------------------------

    def add(
        self,
        network: Network,
        *,
        container_id: str,
        netns: str,
        ifname: str = "eth0",
        cni_args: CNIArgs = (),
        capability_args: Mapping[str, object] | None = None,
        deadline: float | None = None,
    ) -> Result:
        """Attach a container to a network.

        If a plugin fails, or the call is interrupted, the plugins that ran get a DEL, in reverse (see ``rollback``),
        unless the attachment was there before: then it is not this call's to remove.

        Args:
            network: The network.
            container_id: The container's id.
            netns: Path of its network namespace, handed on verbatim.
            ifname: The interface to make in it.
            cni_args: Arguments for the plugins.
            capability_args: Capability arguments; each plugin gets those it declares.
            deadline: Seconds for all plugins together, see :class:`Runtime`. The rollback may take as long again.

        Returns:
            The result in the shape of 1.1.0, whatever the network's version is.

        Raises:
            CNIError: The error of a plugin, with its code and ``plugin type="…" failed (add)`` before the text.
            InvalidConfigError: (7) A plugin, or the network's name, is not valid or not there: no plugin was run.
            InvalidEnvironmentError: (4) Another argument is not valid: no plugin was run.
            IOFailureError: (5) The attachment cannot be cached.
            TryAgainLaterError: (11) ``cnisdk gc`` has been releasing what is left under these names for a minute.
        """
        return upgrade(
            self.add_in_version(
                network,
                container_id=container_id,
                netns=netns,
                ifname=ifname,
                cni_args=cni_args,
                capability_args=capability_args,
                deadline=deadline,
            )
        )

    def add_in_version(
        self,
        network: Network,
        *,
        container_id: str,
        netns: str,
        ifname: str = "eth0",
        cni_args: CNIArgs = (),
        capability_args: Mapping[str, object] | None = None,
        deadline: float | None = None,
    ) -> AnyResult:
        """Attach a container as :meth:`add` does, and return the result in the network's version."""
        attachment = Attachment(network.name, container_id, ifname)
        if not netns:
            raise InvalidNetNSError("the path of the container's network namespace is empty")
        until = _until(deadline)
        args = _check_args(cni_args)
        entry = CachedAttachment(attachment, netns, network.source, args, dict(capability_args or {}))
        present = self.cache.exists(attachment)
        self.cache.prepare(attachment)
        paths = [self._get_path(plugin, Verb.ADD) for plugin in network.plugins]
        environ = self._variables(attachment, netns, args)
        started: list[NetworkPlugin] = []
        result: Mapping[str, Any] | None = None
        _releasing.wait(attachment)
        try:
            for plugin, path in zip(network.plugins, paths, strict=True):
                started.append(plugin)
                request = network.request(plugin, capability_args=capability_args, prev_result=result)
                printed = self._run(Verb.ADD, plugin, path, environ, request, until)
                result = self._understand(network, plugin, printed)
            typed = structure_result(result, str(network.version), what=f'result of network "{network.name}"')
            self.cache.store(entry._replace(result=result))
        except BaseException as exc:
            if self.rollback and started and not present:
                problems = self._delete_all(network, started, environ, capability_args, result, _until(deadline))
                if isinstance(exc, CNIError):
                    exc.add_others(problems)
                else:
                    for problem in problems:
                        self._on_warning(f"taking back an interrupted ADD: {problem}")
            raise
        return typed

    def _understand(self, network: Network, plugin: NetworkPlugin, printed: bytes) -> Mapping[str, Any]:
        """Check a result; hand it on as it is if it has the network's version, converted otherwise."""
        try:
            document = cast("dict[str, Any]", without_null_entries(loads(printed, "result")))
            typed = structure_result(document, str(network.version))
        except CNIError as exc:
            raise _wrap(plugin, Verb.ADD, exc) from exc
        if typed.cni_version == str(network.version):
            return {**document, "cniVersion": typed.cni_version}
        # The next plugin could not read it: it expects the version of its own configuration.
        try:
            conversion = convert_result(typed, network.version)
        except CNIError as exc:
            raise _wrap(plugin, Verb.ADD, exc) from exc
        for lost in conversion.lost:
            self._on_warning(
                f"{plugin}: the result has version {typed.cni_version}, and {network.version} has no place for {lost}"
            )
        return cast("Mapping[str, Any]", unstructure(conversion.result))

    # --- CHECK --------------------------------------------------------------------------------------------------------

    def check(
        self,
        network: Network,
        *,
        container_id: str,
        netns: str,
        ifname: str = "eth0",
        cni_args: CNIArgs | None = None,
        capability_args: Mapping[str, object] | None = None,
        deadline: float | None = None,
    ) -> None:
        """Check that an attachment is as ADD left it.

        Args:
            network: The network. If it sets ``disableCheck``, nothing is checked.
            container_id: As for :meth:`add`.
            netns: As for :meth:`add`.
            ifname: As for :meth:`add`.
            cni_args: None means those of the ADD.
            capability_args: None means those of the ADD.
            deadline: Seconds for all plugins together, see :class:`Runtime`.

        Raises:
            IncompatibleVersionError: (1) The network's version, before 0.4.0, does not know CHECK.
            UnknownContainerError: (3) The attachment is not in the cache.
            CNIError: The error of the first plugin that fails; or the cached result cannot be used.
        """
        attachment = Attachment(network.name, container_id, ifname)
        self.cache.path(attachment)
        if not allows(network.version, Verb.CHECK):
            raise IncompatibleVersionError(
                f'configuration version "{network.version}" does not support the CHECK command',
                details=f"CHECK needs {SINCE[Verb.CHECK]} or newer",
            )
        if network.disable_check:
            return
        if not netns:
            raise InvalidNetNSError("the path of the container's network namespace is empty")
        entry = self.cache.find(attachment)
        if entry is None:
            raise UnknownContainerError(
                f"{attachment} is not attached",
                details=f"there is no cached result {self.cache.path(attachment)}: ADD it first, or name the directory "
                "that its runtime caches in",
            )
        result = entry.result_in(network.version)
        if capability_args is None:
            capability_args = entry.capability_args
        environ = self._variables(attachment, netns, _args_or_cached(cni_args, entry))
        until = _until(deadline)
        for plugin in network.plugins:
            request = network.request(plugin, capability_args=capability_args, prev_result=result)
            self._run(Verb.CHECK, plugin, self._get_path(plugin, Verb.CHECK), environ, request, until)

    # --- DEL ----------------------------------------------------------------------------------------------------------

    def delete(
        self,
        network: Network,
        *,
        container_id: str,
        netns: str = "",
        ifname: str = "eth0",
        cni_args: CNIArgs | None = None,
        capability_args: Mapping[str, object] | None = None,
        deadline: float | None = None,
    ) -> None:
        """Detach a container from a network. It is fine if it is not attached, or if its cached result is torn.

        All plugins are run, also after one failed; if none did, the cached result is removed. One that an ADD has
        written meanwhile stays.

        Args:
            network: The network.
            container_id: As for :meth:`add`.
            netns: Path of the network namespace; empty if it is gone.
            ifname: As for :meth:`add`.
            cni_args: None means those of the ADD.
            capability_args: None means those of the ADD.
            deadline: Seconds for all plugins together, see :class:`Runtime`.

        Raises:
            CNIError: The error of the first plugin that failed; further ones are in the details.
        """
        attachment = Attachment(network.name, container_id, ifname)
        self.cache.path(attachment)
        entry: CachedAttachment | None = None
        result: Mapping[str, Any] | None = None
        stamp = self.cache.stamp(attachment)
        try:
            entry = self.cache.find(attachment)
            if entry is not None and network.version >= PREV_RESULT_SINCE[Verb.DEL]:
                result = entry.result_in(network.version)
        except CNIError as exc:
            self._on_warning(f"DEL without the result of ADD: {exc}")
        if capability_args is None and entry is not None:
            capability_args = entry.capability_args
        environ = self._variables(attachment, netns, _args_or_cached(cni_args, entry))
        problems = self._delete_all(network, network.plugins, environ, capability_args, result, _until(deadline))
        raise_first(problems)
        if stamp is None:
            return  # one that is there now is of a later ADD
        try:
            self.cache.delete(attachment, unless_changed=stamp)
        except CNIError as exc:
            self._on_warning(str(exc))

    def find_cached_network(self, name: str, *, container_id: str, ifname: str = "eth0") -> Network | None:
        """Return a network as it was when a container was attached.

        DEL needs it when the configuration is gone or broken.

        Args:
            name: The network's name.
            container_id: As for :meth:`add`.
            ifname: As for :meth:`add`.

        Returns:
            The network; None if the attachment is not in the cache, or cannot be read or used.
        """
        attachment = Attachment(name, container_id, ifname)
        path = self.cache.path(attachment)
        try:
            entry = self.cache.find(attachment)
            if entry is None or not entry.config:
                return None
            return Network.parse(entry.config, path=f"in {path}")
        except CNIError as exc:
            self._on_warning(f"the configuration of the add cannot be used either: {exc}")
            return None

    def _delete_all(
        self,
        network: Network,
        plugins: Sequence[NetworkPlugin],
        environ: Mapping[str, str],
        capability_args: Mapping[str, object] | None,
        result: Mapping[str, Any] | None,
        until: float | None,
    ) -> list[CNIError]:
        """Run DEL on plugins in reverse; return their errors."""
        problems = []
        if network.version < PREV_RESULT_SINCE[Verb.DEL]:
            result = None
        for plugin in reversed(plugins):
            try:
                request = network.request(plugin, capability_args=capability_args, prev_result=result)
                self._run(Verb.DEL, plugin, self._get_path(plugin, Verb.DEL), environ, request, until)
            except CNIError as exc:
                problems.append(exc)
        return problems

    # --- GC and STATUS ------------------------------------------------------------------------------------------------

    def gc(
        self,
        network: Network,
        valid: Iterable[tuple[str, str]] = (),
        *,
        deadline: float | None = None,
        raise_version: bool = False,
    ) -> GCReport:
        """Remove the remains of attachments that are not valid any more.

        Cached attachments that are not listed get their DEL; then each plugin's GC runs, if the network's version knows
        it. An error does not keep the rest from being done.

        Args:
            network: The network. If it sets ``disableGC``, nothing is done.
            valid: Container id and interface name of each attachment to keep; by default none. The plugins always get
                the list: without one, they cannot know which attachments are stale.
            deadline: Seconds for all plugins together, see :class:`Runtime`.
            raise_version: If true, and the network's version is too old to know GC, those plugins that offer 1.1.0 are
                asked in that version all the same. The notes name the others.

        Raises:
            CNIError: The first error; further ones are in the details. The notes are warnings then.
        """
        check_network_name(network.name)
        if network.disable_gc:
            return GCReport(notes=(f'network "{network.name}" sets disableGC: nothing was done',))
        until = _until(deadline)
        keep = {(check_container_id(each), check_ifname(name)) for each, name in valid}
        entries, unreadable = self.cache.entries(network.name)
        notes = [str(each) for each in unreadable]
        problems: list[CNIError] = []
        deleted: list[Attachment] = []
        kept = [each for each in entries if each.netns and each.attachment[1:] in keep]
        taken = {(each.netns, each.attachment.ifname) for each in kept}
        for entry in entries:
            _, container_id, ifname = entry.attachment
            if (container_id, ifname) in keep:
                continue
            # Paths are used again: what is there by now may be a valid attachment's.
            netns = NO_NAMESPACE if (entry.netns, ifname) in taken else entry.netns
            try:
                left = None if until is None else max(until - time.monotonic(), 0)
                self.delete(network, container_id=container_id, netns=netns, ifname=ifname, deadline=left)
                deleted.append(entry.attachment)
            except CNIError as exc:
                text = f"failed to delete stale attachment {container_id} {ifname}: {exc.msg}"
                problem = error_for_code(exc.code, text, exc.details)
                problem.others = exc.others
                problems.append(problem)
        self.cache.sweep()
        asked: list[str] = []
        raised = self._raise_version(network, notes, problems, until) if raise_version else network
        if allows(raised.version, Verb.GC):
            environ = self._variables(None, "", ())
            for plugin in raised.plugins:
                try:
                    request = raised.request(plugin, valid=keep)
                    self._run(Verb.GC, plugin, self._get_path(plugin, Verb.GC), environ, request, until)
                    asked.append(plugin.type)
                except CNIError as exc:
                    if raised is not network:
                        why = f"GC was asked in version {raised.version}, the network has {network.version}"
                        exc.details = "; ".join(filter(None, (exc.details, why)))
                    problems.append(exc)
        else:
            notes.append(
                f'network "{network.name}" has version {network.version}, which does not know GC: '
                f"no plugin was asked to look for leftovers"
            )
        if problems:
            for note in notes:
                self._on_warning(note)
        raise_first(problems)
        return GCReport(tuple(deleted), tuple(asked), tuple(notes))

    def _raise_version(
        self, network: Network, notes: list[str], problems: list[CNIError], until: float | None
    ) -> Network:
        """Return a network in the first version that knows GC, with those of its plugins that offer that version.

        Where a plugin does and its IPAM plugin does not, the request names no IPAM plugin: it would fail.
        """
        if allows(network.version, Verb.GC):
            return network
        since = SINCE[Verb.GC]

        @cache
        def offers(kind: str) -> bool:
            try:
                offered = self._versions(kind, until).supported
            except CNIError as exc:
                text = f'plugin type="{kind}" failed (version): {exc.msg}'
                problems.append(error_for_code(exc.code, text, exc.details))
                return False
            if str(since) not in offered:
                shown = ", ".join(offered)
                notes.append(f"plugin {kind} was not asked to look for leftovers: GC needs {since}, it offers {shown}")
            return str(since) in offered

        plugins = []
        for plugin in network.plugins:
            if offers(plugin.type):
                ipam = find_key(plugin.document, "ipam")
                kind = find_key(ipam, "type") if isinstance(ipam, dict) else None
                if isinstance(kind, str) and kind and not offers(kind):
                    left_out = {key: value for key, value in plugin.document.items() if key.lower() != "ipam"}
                    plugin = plugin._replace(document=left_out)
                plugins.append(plugin)
        return network._replace(version=since, plugins=tuple(plugins))

    def status(self, network: Network, *, deadline: float | None = None) -> tuple[str, ...]:
        """Ask the plugins if the network can take containers (spec §2, STATUS).

        Args:
            network: The network.
            deadline: Seconds for all plugins together, see :class:`Runtime`.

        Returns:
            Types of the plugins that were asked: none if the network's version, before 1.1.0, does not know STATUS.

        Raises:
            CNIError: The error of the first plugin that is not ready: code 50 (not available) or 51 (limited).
        """
        check_network_name(network.name)
        if not allows(network.version, Verb.STATUS):
            return ()
        environ = self._variables(None, "", ())
        until = _until(deadline)
        for plugin in network.plugins:
            self._run(Verb.STATUS, plugin, self._get_path(plugin, Verb.STATUS), environ, network.request(plugin), until)
        return tuple(plugin.type for plugin in network.plugins)

    # --- VERSION ------------------------------------------------------------------------------------------------------

    def versions(self, type: str, *, deadline: float | None = None) -> PluginVersions:
        """Ask a plugin which versions it supports.

        Args:
            type: The plugin.
            deadline: Seconds it may take, where that is less than ``timeout``.

        Raises:
            CNIError: It is not there, or does not answer.
        """
        return self._versions(type, _until(deadline))

    def _versions(self, type: str, until: float | None) -> PluginVersions:
        environ = os.environ if self._environ is None else self._environ
        path = get_plugin_path(type, self.path)
        timeout = self._timeout(type, until)
        return plugin_versions(path, environ=environ, timeout=timeout, on_stderr=self._on_stderr)

    def validate(self, network: Network, *, deadline: float | None = None) -> frozenset[str]:
        """Make sure that every plugin is there and supports the network's version.

        Args:
            network: The network.
            deadline: Seconds for all plugins together, see :class:`Runtime`.

        Returns:
            The capability arguments that some plugin declares.

        Raises:
            CNIError: The first error; further ones are in the details.
        """
        problems: list[CNIError] = []
        until = _until(deadline)
        for kind in dict.fromkeys(plugin.type for plugin in network.plugins):
            try:
                if str(network.version) not in self._versions(kind, until).supported:
                    problems.append(
                        IncompatibleVersionError(f'plugin {kind} does not support config version "{network.version}"')
                    )
            except CNIError as exc:
                problems.append(exc)
        raise_first(problems)
        return frozenset().union(*(plugin.capabilities for plugin in network.plugins))

    # --- shared -------------------------------------------------------------------------------------------------------

    def _variables(self, attachment: Attachment | None, netns: str, args: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return the environment of plugins, without ``CNI_COMMAND``."""
        return {
            **(os.environ if self._environ is None else self._environ),
            "CNI_CONTAINERID": attachment.container_id if attachment else "",
            "CNI_NETNS": netns,
            "CNI_IFNAME": attachment.ifname if attachment else "",
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in args),
            "CNI_PATH": os.pathsep.join(self.path),
        }

    def _get_path(self, plugin: NetworkPlugin, verb: Verb) -> str:
        try:
            return get_plugin_path(plugin.type, self.path)
        except CNIError as exc:
            raise _wrap(plugin, verb, exc) from exc

    def _timeout(self, type: str, until: float | None) -> float | None:
        """Return the seconds that the next call of a plugin may take."""
        if until is None:
            return self.timeout
        left = until - time.monotonic()
        if left <= 0:
            raise TryAgainLaterError(f"plugin {type} was not run: the deadline of the call is over")
        return left if self.timeout is None else min(left, self.timeout)

    def _run(
        self,
        verb: Verb,
        plugin: NetworkPlugin,
        path: str,
        environ: Mapping[str, str],
        request: bytes,
        until: float | None,
    ) -> bytes:
        call = PluginCall(verb, plugin.type, path, {**environ, "CNI_COMMAND": str(verb)}, request)
        self._on_call(call)
        try:
            printed = run(
                path,
                environ=call.environ,
                stdin=request,
                timeout=self._timeout(plugin.type, until),
                grace=_GRACE,
                on_stderr=self._on_stderr,
            )
        except CNIError as exc:
            self._on_call(call._replace(error=exc))
            raise _wrap(plugin, verb, exc) from exc
        self._on_call(call._replace(printed=printed))
        return printed


def _wrap(plugin: NetworkPlugin, verb: Verb, exc: CNIError) -> CNIError:
    """Put the plugin's name before its error, as the reference does."""
    return error_for_code(exc.code, f"{plugin} failed ({_DOING[verb]}): {exc.msg}", exc.details)


def _until(deadline: float | None) -> float | None:
    """Return the time of the monotonic clock after so many seconds; None for no deadline."""
    return None if deadline is None else time.monotonic() + deadline


def _check_args(args: CNIArgs) -> tuple[tuple[str, str], ...]:
    """Refuse keys and values that ``KEY=VALUE;KEY=VALUE``, which has no escapes, cannot carry."""
    pairs = tuple(args.items()) if isinstance(args, Mapping) else tuple(args)
    for key, value in pairs:
        if not key or any(mark in key or mark in value for mark in ";="):
            raise InvalidEnvironmentError(
                f"CNI_ARGS cannot carry {shorten(key)} = {shorten(value)}", details="neither part may contain ; or ="
            )
    return pairs


def _args_or_cached(args: CNIArgs | None, entry: CachedAttachment | None) -> tuple[tuple[str, str], ...]:
    if args is not None:
        return _check_args(args)
    return () if entry is None else entry.cni_args
