"""Delegate to another plugin (spec §4), such as an IPAM plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import CNIError, InvalidEnvironmentError
from ..spec.codec import find_key, loads
from ..spec.convert import parse_result, upgrade
from ..spec.result import Result
from ..spec.versions import Verb
from . import _local
from .call import interpret, run
from .find import get_plugin_path, split_path
from .process import pass_on
from .version import PluginVersions, parse_versions

# Seconds for the DEL after an ADD that was interrupted, and at most for that after one that failed.
_HURRY = 5.0
_UNDO_TIMEOUT = 20.0

# The reference's host-local refuses an attachment that has addresses already in these words, and its bridge and ptp one
# that has its interface, with code 999.
_REFUSALS = ("duplicate allocation is not allowed", "container veth name provided (")


class Delegate:
    """A plugin that this plugin runs on behalf of its caller.

    It gets the caller's environment with another ``CNI_COMMAND``, and the caller's configuration, byte for byte.
    It is searched for when it is first needed. If the same installation put it there, the program of this plugin may
    run it in this process, which takes less time and differs in nothing else.

    Args:
        type: Its type.
        environ: All of the environment of this request. ``CNI_PATH`` names the directories to search.
        stdin: The configuration of this request.
        timeout: Seconds one call may take; None means for ever.
        on_stderr: Called with each piece of its stderr; by default it goes to this process's own.
    """

    def __init__(
        self,
        type: str,
        environ: Mapping[str, str],
        stdin: bytes,
        *,
        timeout: float | None = None,
        on_stderr: Callable[[bytes], object] = pass_on,
    ) -> None:
        self.type = type
        self._environ = environ
        self._stdin = stdin
        self._timeout = timeout
        self._on_stderr = on_stderr
        self._path: str | None = None

    @property
    def path(self) -> str:
        """Its executable.

        Raises:
            InvalidConfigError: (7) The type is no file name, or there is no such plugin.
            InvalidEnvironmentError: (4) ``CNI_PATH`` is empty.
        """
        if self._path is None:
            self._path = get_plugin_path(self.type, split_path(self._environ.get("CNI_PATH", "")))
        return self._path

    def add(self, *, keep: Callable[[], bool] | None = None) -> Result:
        """Run its ADD. If that fails, run its DEL, so that nothing of it is left (spec §4).

        An ADD that was refused since the attachment has addresses or its interface already is the exception: they are
        those of another ADD, whose container may be alive, and DEL would release them. Code 4 says so, since
        CNI_CONTAINERID and CNI_IFNAME are what such an ADD may not have.

        If it is interrupted by an exception such as a signal handler's, it is stopped, and its DEL is the caller's to
        run (see :meth:`delete_soon`).

        Args:
            keep: Called before that DEL. If it returns True, what the attachment has is another ADD's, and no DEL runs.

        Returns:
            Its result in the shape of 1.1.0, whatever version it has.

        Raises:
            CNIError: The error of the ADD. That of the DEL, if it failed too, is in the details.
        """
        path = self.path  # raises if there is no plugin, and then there is nothing to undo
        try:
            printed = self._run(path, Verb.ADD)
            return upgrade(parse_result(printed, self._cni_version(), what=f'result of plugin "{self.type}"'))
        except CNIError as exc:
            refused = isinstance(exc, InvalidEnvironmentError) or any(each in exc.msg for each in _REFUSALS)
            if not refused and (keep is None or not keep()):
                self._undo(path, exc)
            raise

    def check(self) -> None:
        """Run its CHECK.

        Raises:
            CNIError: The error it reported.
        """
        self._run(self.path, Verb.CHECK)

    def delete(self) -> None:
        """Run its DEL.

        Raises:
            CNIError: The error it reported.
        """
        self._run(self.path, Verb.DEL)

    def delete_soon(self) -> None:
        """Run its DEL after an ADD that was interrupted: it gets five seconds.

        Raises:
            CNIError: The error it reported.
        """
        self._run(self.path, Verb.DEL, _HURRY if self._timeout is None else min(_HURRY, self._timeout))

    def gc(self) -> None:
        """Run its GC.

        Raises:
            CNIError: The error it reported.
        """
        self._run(self.path, Verb.GC)

    def status(self) -> None:
        """Run its STATUS.

        Raises:
            CNIError: The error it reported; code 50 if it is not available.
        """
        self._run(self.path, Verb.STATUS)

    def version(self) -> PluginVersions:
        """Run its VERSION.

        Raises:
            CNIError: The error it reported.
        """
        return parse_versions(self._run(self.path, Verb.VERSION), self.path)

    def _run(self, path: str, verb: Verb, timeout: float | None = None) -> bytes:
        environ = {**self._environ, "CNI_COMMAND": str(verb)}
        timeout = self._timeout if timeout is None else timeout
        if _local.runner is not None and self._on_stderr is pass_on:
            finished = _local.runner(path, environ, self._stdin, timeout)
            if finished is not None:
                return interpret(finished, path, environ, self._stdin)
        return run(path, environ=environ, stdin=self._stdin, timeout=timeout, on_stderr=self._on_stderr)

    def _undo(self, path: str, failure: CNIError) -> None:
        """Run DEL after a failed ADD, and put its error, if it fails too, into the details of the ADD's."""
        try:
            self._run(path, Verb.DEL, _UNDO_TIMEOUT if self._timeout is None else min(_UNDO_TIMEOUT, self._timeout))
        except CNIError as exc:
            also = f'DEL of plugin "{self.type}" after it failed too: {exc.describe()}'
            failure.details = "; ".join(filter(None, (failure.details, also)))

    def _cni_version(self) -> str:
        document = loads(self._stdin)
        version = find_key(document, "cniVersion") if isinstance(document, dict) else None
        return version if isinstance(version, str) else ""
