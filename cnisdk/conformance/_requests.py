"""Containers of a case, and the requests about them as a runtime sends them."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ..testing.hosts import Container, Host
from ..testing.running import SYSTEM_PATH
from ..testing.stub import HOME, StubPlugin
from . import _tracing
from ._footprint import TEMPORARY
from ._known import STUB
from ._processes import RequestProcesses
from ._response import Response
from ._tracing import Traced
from .judgement import Kind, NotApplicable
from .subject import Subject


class Requests:
    """A host with the plugin under judgement, and every request to the plugin.

    Attributes:
        host: A fresh host.
        subject: The plugin.
        script: Shell commands that do what the case did so far.
        results: The result of each attachment, by container ID and interface name: ``prevResult`` of later requests.
        containers: The containers by name.
    """

    def __init__(self, host: Host, subject: Subject) -> None:
        self.host = host
        self.subject = subject
        self.script: list[str] = []
        self.results: dict[tuple[str, str], Any] = {}
        self.containers: dict[str, Container] = {}
        self.processes = RequestProcesses(host)
        self._numbers: dict[str, int] = {}
        self._attachments: dict[tuple[str, str], int] = {}

    def prepare(self) -> None:
        """Make the host ready for the plugin."""
        self.shell(f"mkdir -p {TEMPORARY} && {self.subject.setup}")
        self.processes.spare_daemons()
        if self.subject.delegates:
            self.stub  # noqa: B018 - installs it

    @cached_property
    def stub(self) -> StubPlugin:
        """The suite's IPAM plugin, which the configuration delegates to.

        Raises:
            NotApplicable: The configuration delegates to another one, or to none.
        """
        if not self.subject.delegates:
            raise NotApplicable("it leases no addresses from the suite's IPAM plugin")
        routes = [{"dst": "10.99.0.0/16", "gw": "10.9.0.1"}]
        return StubPlugin(self.host, STUB, routes=routes, note=self.script.append)

    def shell(self, command: str, netns: str = "") -> str:
        """Run a shell command on the host, or in a container, and write it into the script."""
        inside = ["ip", "netns", "exec", netns] if netns else []
        self.script.append(shlex.join([*inside, "sh", "-c", command]) if netns else command)
        return self.host.run([*inside, "sh", "-euc", command]).stdout

    def container(self, name: str = "c1") -> Container:
        """Make a container. For a chained plugin, make the interface that an earlier plugin of the list would make."""
        self.script.append(f"ip netns add {name}")
        container = self.containers[name] = self.host.container(name)
        if self.subject.container_setup:
            self.shell(self.subject.container_setup.replace("{container}", container.name))
        self._numbers.setdefault(name, len(self._numbers) + 1)
        if self.subject.kind is Kind.CHAINED:
            self.attach(container, self.subject.ifname)
        return container

    def attach(self, container: Container, ifname: str) -> None:
        """Give a container an interface with an address, and remember the result that describes it."""
        number = len(self.results) + self._numbers[container.id] + 1
        host_end, address = f"h{number}{ifname}"[:15], f"10.24.0.{number + 1}"
        mac = f"02:00:00:00:01:{number:02x}"
        first = not any(name == container.id for name, _ in self.results)
        inside = f"ip -n {container.name}"
        # One shell, and no `ip netns exec`, which mounts a file system: most of the time of a case goes into this.
        self.shell(
            f"ip link add {host_end} type veth peer name {ifname} address {mac} netns {container.name} && "
            f"ip link set {host_end} up && ip route add {address}/32 dev {host_end} && "
            f"{inside} addr add {address}/24 dev {ifname} && {inside} link set {ifname} up"
            + (f" && {inside} route add 10.99.0.0/16 via 10.24.0.1" if first else "")
        )
        self.results[container.id, ifname] = {
            "cniVersion": self.subject.version,
            "interfaces": [{"name": host_end}, {"name": ifname, "mac": mac, "sandbox": container.netns}],
            "ips": [{"address": f"{address}/24", "gateway": "10.24.0.1", "interface": 1}],
            "routes": [{"dst": "10.99.0.0/16", "gw": "10.24.0.1"}] if first else [],
            "dns": {"nameservers": ["10.24.0.1"]},
        }

    def occupy(self, container: Container) -> None:
        """Give a container an interface that no plugin made, with the name that requests ask for."""
        self.shell(f"ip link add {self.subject.ifname} type veth peer name foreign0", container.name)

    def leased(self, **keys: Any) -> dict[str, Any]:
        """Return the result of an IPAM plugin that leases one address, with further keys."""
        ip = {"address": "10.9.0.9/24", "gateway": "10.9.0.1"}
        return self.in_version({"ips": [ip], **keys}, self.subject.version)

    def document(self, container: Container | None = None, ifname: str = "", **keys: Any) -> dict[str, Any]:
        """Return the configuration of a request, with further keys. None as a value removes the key."""
        attachment = (container.id if container else "", ifname or self.subject.ifname)
        number = self._attachments.setdefault(attachment, len(self._attachments) + 1) if container else 1
        conf = self.subject.document(number)
        known = self.results.get(attachment)
        if known is not None:
            conf["prevResult"] = self.in_version(known, conf["cniVersion"])
        return {key: value for key, value in {**conf, **keys}.items() if value is not None}

    def in_version(self, result: Any, version: str) -> dict[str, Any]:
        """Return a result in the shape of a version. Before 1.0.0, each address has the key ``version``."""
        if version.startswith("1."):
            return {**result, "cniVersion": version}
        result = copy.deepcopy(result)
        for each in result.get("ips", []):
            each.setdefault("version", "6" if ":" in each["address"] else "4")
        return {**result, "cniVersion": version}

    def environ(self, verb: str, container: Container | str | None = None, ifname: str = "") -> dict[str, str]:
        """Return the environment of a request. A text stands for a container that does not exist, by its name."""
        environ = {
            "PATH": SYSTEM_PATH,
            "TMPDIR": TEMPORARY,
            "CNI_COMMAND": verb,
            "CNI_PATH": ":".join([str(HOME / "bin"), *self.subject.search]),
        }
        if container is not None:
            name = container if isinstance(container, str) else container.id
            environ["CNI_CONTAINERID"] = name
            environ["CNI_NETNS"] = f"/run/netns/{name}" if isinstance(container, str) else container.netns
            environ["CNI_IFNAME"] = ifname or self.subject.ifname
        return environ

    def request(
        self,
        verb: str,
        container: Container | None = None,
        ifname: str = "",
        *,
        environ: Mapping[str, str | None] | None = None,
        stdin: bytes | None = None,
        limits: Sequence[tuple[int, int]] = (),
        **keys: Any,
    ) -> Response:
        """Run one request to its end.

        Args:
            verb: ``CNI_COMMAND``.
            container: The container it is about; None for a verb that is about none.
            ifname: ``CNI_IFNAME``; empty means the subject's.
            environ: Variables to set; None removes one.
            stdin: Bytes to send instead of the configuration.
            limits: Resource limits (``resource.RLIMIT_NOFILE`` and so on) with their values.
            **keys: Keys to set in the configuration; None removes one. After an ADD, ``prevResult`` is set already.
        """
        data = stdin if stdin is not None else json.dumps(self.document(container, ifname, **keys)).encode()
        process = self.start(verb, container, ifname, environ=environ, data=data, limits=limits)
        response = self.processes.finish(verb, process, data)
        if verb == "ADD" and response.status == 0 and container is not None:
            result = response.try_document()
            if isinstance(result, dict):
                self.results[container.id, ifname or self.subject.ifname] = result
        if verb == "DEL" and response.status == 0 and container is not None and self.subject.kind is not Kind.CHAINED:
            self.results.pop((container.id, ifname or self.subject.ifname), None)
        return response

    def start(
        self,
        verb: str,
        container: Container | None = None,
        ifname: str = "",
        *,
        environ: Mapping[str, str | None] | None = None,
        data: bytes = b"",
        limits: Sequence[tuple[int, int]] = (),
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a request without waiting for it, and write it into the script, with ``data`` as its stdin."""
        wanted: dict[str, str | None] = {**self.environ(verb, container, ifname), **(environ or {})}
        variables = {key: value for key, value in wanted.items() if value is not None}
        self._note(variables, data)
        return self.processes.start([self.subject.path], variables, limits, **options)

    def trace(self, container: Container, *, at: int = 0, number: int = 0, waits: bool = False) -> Traced:
        """Run an ADD, and send it a signal before its Nth change. The arguments are those of :func:`._tracing.run`.

        Raises:
            NotApplicable: This machine does not allow it.
        """
        data = json.dumps(self.document(container)).encode()
        environ = self.environ("ADD", container)
        self._note(environ, data)
        try:
            traced = self.host.call(_tracing.run, [self.subject.path], environ, data, at=at, number=number, waits=waits)
        except _tracing.Untraceable as exc:
            raise NotApplicable(f"a plugin cannot be stopped at a system call: {exc}") from exc
        self.processes.end(traced.leader)
        return traced

    def _note(self, variables: Mapping[str, str], data: bytes) -> None:
        """Write a request into the script."""
        words = [f"{key}={shlex.quote(value)}" for key, value in variables.items()]
        shown = data.decode(errors="replace")
        if len(shown) > 2000:
            shown = f"…{len(data)} bytes…"
        self.script.append(f"env -i {' '.join(words)} {shlex.quote(self.subject.path)} <<'END'\n{shown}\nEND")

    def prev_result(self, container: Container) -> Any:
        """Return ``prevResult`` for a DEL whose ADD had no result: the earlier plugin's, or None without one."""
        return self.document(container)["prevResult"] if self.subject.kind is Kind.CHAINED else None
