"""Run a plugin on a throw-away host: a class in this process's own code, or an executable."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

from ..errors import InternalError, error_for_code
from ..plugin import Plugin, respond, warm
from ..plugin._repair import repair
from ..plugin.reply import refuse_own_netns
from ..spec.codec import unstructure
from ..spec.convert import parse_result, upgrade
from ..spec.result import Result
from .faults import Fault
from .sandbox import ProcessEndedError, Sandbox, fork_call, take_answer
from .stub import HOME

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of the plugins under test."""


class Answer(NamedTuple):
    """Answer of a plugin.

    Attributes:
        status: The exit status; negative for the signal that ended it.
        stdout: Its standard output.
        stderr: Its standard error, which is for people.
        struck: The plugin reached the step of its ``fault``.
    """

    status: int
    stdout: str
    stderr: str
    struck: bool = False

    @property
    def document(self) -> Any:
        """Parsed standard output; None when it is empty.

        Raises:
            AssertionError: It is not one JSON document.
        """
        if not self.stdout.strip():
            return None
        try:
            return json.loads(self.stdout)
        except ValueError as exc:
            raise AssertionError(f"not one JSON document: {self.stdout!r} ({exc})") from exc

    def raise_for_error(self) -> None:
        """Raise the error of the answer, and do nothing for a success.

        Raises:
            CNIError: The error it answered, as the class of its code.
            InternalError: It failed without a proper one, or was killed.
        """
        if self.status == 0:
            return
        error = self.document if self.status > 0 else None
        if not isinstance(error, dict) or not isinstance(error.get("code"), int):
            how = f"exit status {self.status}" if self.status > 0 else signal.Signals(-self.status).name
            raise InternalError(f"the plugin ended with {how}", details=f"{self.stdout}{self.stderr}".strip())
        raise error_for_code(error["code"], str(error.get("msg", "")), str(error.get("details", "")))


class Attachable(Protocol):
    """Thing that a plugin attaches: a :class:`~.hosts.Container`, or another object with an id and a namespace."""

    @property
    def id(self) -> str:
        """``CNI_CONTAINERID``."""

    @property
    def netns(self) -> str:
        """Path of its network namespace."""


class PluginUnderTest:
    """A plugin with its configuration, on a host.

    The verbs raise :class:`~cnisdk.errors.CNIError` when the plugin answers an error. ADD's result is remembered for
    the ``prevResult`` of later requests, as runtimes do.

    Args:
        host: Where it runs; None means this process, for plugins that leave the kernel alone, as IPAM plugins do.
        plugin: A :class:`~cnisdk.Plugin` class, which is run in a fork of this process (with no host, in this process
            itself, but for requests with a fault), or the path of an executable.
        conf: The network configuration; ``cniVersion``, ``name`` and ``type`` have defaults.
        path: Directories with the executables it delegates to, beside the host's stubs.
    """

    def __init__(
        self,
        host: Sandbox | None,
        plugin: type[Plugin[Any]] | str | os.PathLike[str],
        conf: Mapping[str, Any],
        path: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self.host = host
        self.plugin = plugin
        name = plugin.__name__.lower() if isinstance(plugin, type) else os.path.basename(plugin)
        self.conf = {"cniVersion": "1.1.0", "name": "testnet", "type": name, **conf}
        self.path = [str(HOME / "bin"), *(str(os.fspath(each)) for each in path)]
        self.fault: Fault | None = None
        self._results: dict[tuple[str, str], Any] = {}

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def add(self, container: Attachable, ifname: str = "eth0", *, args: str = "", **keys: Any) -> Result:
        """Attach a container.

        Args:
            container: What to attach.
            ifname: The name of its new interface.
            args: ``CNI_ARGS``.
            **keys: Keys of the configuration, for this request only.
        """
        answer = self.run("ADD", container, ifname, args=args, **keys)
        answer.raise_for_error()
        self._results[container.id, ifname] = answer.document
        return upgrade(parse_result(answer.stdout.encode(), self.conf["cniVersion"]))

    def delete(self, container: Attachable, ifname: str = "eth0", *, args: str = "", **keys: Any) -> None:
        """Detach a container."""
        self.run("DEL", container, ifname, args=args, **self._with_result(container, ifname, keys)).raise_for_error()
        self._results.pop((container.id, ifname), None)

    def check(self, container: Attachable, ifname: str = "eth0", *, args: str = "", **keys: Any) -> None:
        """Ask whether a container is attached as it should be."""
        self.run("CHECK", container, ifname, args=args, **self._with_result(container, ifname, keys)).raise_for_error()

    def repair(
        self,
        container: Attachable,
        ifname: str = "eth0",
        *,
        args: str = "",
        dry_run: bool = False,
        **keys: Any,
    ) -> bool:
        """Have it put back what CHECK would miss, as ``cnisdk repair`` does; return whether anything was missing.

        Args:
            container: The container.
            ifname: Name of its interface.
            args: ``CNI_ARGS``.
            dry_run: If true, nothing is put back.
            **keys: Keys of the configuration, for this request only.

        Raises:
            TypeError: It is an executable: no verb asks one for that.
        """
        plugin = self.plugin
        if not isinstance(plugin, type):
            raise TypeError(f"{plugin} is an executable: repair calls a method of a class")
        environ = self._variables("CHECK", container, ifname, args)
        stdin = self._text(self._with_result(container, ifname, keys)).encode()
        if self.host is None:
            return repair(plugin, environ, stdin, dry_run=dry_run)
        return self.host.call(repair, plugin, environ, stdin, dry_run=dry_run)

    def gc(self, *keep: Attachable | tuple[str, str], **keys: Any) -> None:
        """Tell which attachments are valid: containers (their ``eth0``), or pairs of container ID and interface."""
        pairs = [each if isinstance(each, tuple) else (each.id, "eth0") for each in keep]
        valid = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in pairs]
        self.run("GC", **{"cni.dev/valid-attachments": valid, **keys}).raise_for_error()

    def status(self, **keys: Any) -> None:
        """Ask whether it is ready for ADD."""
        self.run("STATUS", **keys).raise_for_error()

    def versions(self) -> list[str]:
        """Return the versions of the specification that the plugin supports."""
        answer = self.run("VERSION")
        answer.raise_for_error()
        return [str(each) for each in answer.document["supportedVersions"]]

    def _with_result(self, container: Attachable, ifname: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        known = self._results.get((container.id, ifname))
        return ({} if known is None else {"prevResult": known}) | dict(keys)

    # -- any request ---------------------------------------------------------------------------------------------------

    def run(
        self,
        verb: str,
        container: Attachable | None = None,
        ifname: str = "eth0",
        *,
        args: str = "",
        environ: Mapping[str, str] | None = None,
        stdin: str | None = None,
        **keys: Any,
    ) -> Answer:
        """Run one request, and return its answer, error or not.

        Args:
            verb: ``CNI_COMMAND``.
            container: The container it is about; None for verbs that are about none.
            ifname: ``CNI_IFNAME``.
            args: ``CNI_ARGS``.
            environ: More variables, or other values for those the request would have.
            stdin: What to send instead of the configuration.
            **keys: Keys of the configuration, for this request only; None takes one out. A
                :class:`~cnisdk.spec.Result` is written in the configuration's version.
        """
        variables = {**self._variables(verb, container, ifname, args), **(environ or {})}
        text = self._text(keys) if stdin is None else stdin
        if isinstance(self.plugin, type):
            return self._respond(self.plugin, variables, text.encode())
        with tempfile.NamedTemporaryFile("r") if self.fault else nullcontext() as log:
            argv: Sequence[str] = [os.fspath(self.plugin)]
            if self.fault and log:
                argv = [*self.fault.strace(log.name), *argv]
            if self.host is None:
                done = subprocess.run(argv, env=variables, input=text, capture_output=True, text=True, check=False)
            else:
                done = self.host.run(argv, env=variables, input=text, check=False)
            struck = False
            if self.fault and log:
                struck = done.returncode < 0 if self.fault.seconds else self.fault.was_reached(log.read())
        return Answer(done.returncode, done.stdout, done.stderr, struck)

    def at_each_step(
        self,
        fault: Callable[[int], Fault],
        verb: str,
        container: Attachable | None = None,
        ifname: str = "eth0",
        *,
        args: str = "",
        **keys: Any,
    ) -> Iterator[Answer]:
        """Run a request with a fault at its first step, then at its second, and so on, and yield each answer.

        The last answer is that of the request that had no such step any more: its ``struck`` is false. Between two of
        them ``fault`` is None, so that the loop's body may delete what is left::

            for answer in plugin.at_each_step(kill, "ADD", container):
                plugin.delete(container)
                assert host.state() == before, answer

        Args:
            fault: :func:`~.faults.kill` or :func:`~.faults.fail`, or another function that makes a fault for a step.
            verb: ``CNI_COMMAND``.
            container: The container it is about; None for verbs that are about none.
            ifname: ``CNI_IFNAME``.
            args: ``CNI_ARGS``.
            **keys: Keys of the configuration, for these requests only.
        """
        step, answer = 0, None
        while answer is None or answer.struck:
            step += 1
            self.fault = fault(step)
            try:
                answer = self.run(verb, container, ifname, args=args, **keys)
            finally:
                self.fault = None
            yield answer

    def _variables(self, verb: str, container: Attachable | None, ifname: str, args: str) -> dict[str, str]:
        variables = {"PATH": SYSTEM_PATH, "CNI_COMMAND": verb, "CNI_PATH": ":".join(self.path)}
        if container is not None:
            variables |= {"CNI_CONTAINERID": container.id, "CNI_NETNS": container.netns, "CNI_IFNAME": ifname}
        if args:
            variables["CNI_ARGS"] = args
        return variables

    def _text(self, keys: Mapping[str, Any]) -> str:
        conf = {key: value for key, value in {**self.conf, **keys}.items() if value is not None}
        return json.dumps(unstructure(conf))

    def _respond(self, plugin: type[Plugin[Any]], environ: Mapping[str, str], stdin: bytes) -> Answer:
        if self.host is None and self.fault is None:
            reply = respond(plugin, environ, stdin, guard=refuse_own_netns)
            return Answer(reply.status, reply.stdout.decode(), reply.stderr)
        fault = self.fault
        warm.up_for(plugin)  # here, not in each fork
        reached = mmap.mmap(-1, 1)  # shared with the fork, which cannot answer when it is killed

        def work() -> tuple[bytes, int, str, bool]:
            disarm = fault.arm(lambda: reached.write_byte(1)) if fault is not None else bool
            reply = respond(plugin, environ, stdin, guard=refuse_own_netns)
            return reply.stdout, reply.status, reply.stderr, disarm()

        try:
            if self.host is None:
                stdout, status, stderr, struck = take_answer(*fork_call(work))
            else:
                stdout, status, stderr, struck = self.host.call(work)
        except ProcessEndedError as ended:
            number = os.WTERMSIG(ended.status)
            in_time = fault is not None and fault.seconds > 0 and number == signal.SIGALRM
            return Answer(-number if number else 70, "", "", in_time or reached[0] == 1)
        return Answer(status, stdout.decode(), stderr, struck)
