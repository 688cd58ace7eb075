"""A host with the plugin under judgement on it, and the words cases are written in."""

from __future__ import annotations

import copy
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..spec.convert import parse_result, upgrade
from ..spec.result import Result
from ..testing.hosts import Container, Host
from ..testing.running import SYSTEM_PATH
from ..testing.state import State
from ..testing.stub import HOME, StubPlugin
from . import tracing
from .judgement import Broken, Kind, NotApplicable, Unprepared
from .known import STUB
from .subject import Subject
from .tracing import Traced

_TIMEOUT = 60.0  # a request on a machine that has no time for it takes half of that
_PATIENCE = 1.0
# The kernel removes namespaces one batch after another, for all of the machine's sandboxes together.
_SETTLING = 30.0
_MARK = "cnisdk-mark"
_MAIN = 254  # the table of routes that needs no name
TEMPORARY = "/run/cnisdk-testing/tmp"
# Where plugins that do not ask for the temporary directory leave things, and where they log.
WATCHED = ("/tmp", "/var/tmp", "/var/log")


def watched_for(path: str) -> list[str]:
    """The places to watch on a host for a plugin: all but the one it is in itself."""
    return [place for place in WATCHED if place != os.path.dirname(path)]


class Answer(NamedTuple):
    """What the plugin did with one request.

    Attributes:
        verb: What was asked.
        status: Exit status; negative for the signal that ended it.
        stdout: What it printed.
        stderr: What it said beside.
        left: Processes it left behind.
        timed_out: It was killed after a minute.
        held: It ended, but processes it left behind held its standard output or error open.
    """

    verb: str
    status: int
    stdout: bytes
    stderr: bytes
    left: tuple[int, ...] = ()
    timed_out: bool = False
    held: bool = False

    def try_document(self) -> Any:
        """What it printed, parsed; None when that is nothing, or not JSON."""
        try:
            return json.loads(self.stdout)
        except ValueError:
            return None

    @property
    def code(self) -> int | None:
        """The code of the error object; None when there is none."""
        document = self.try_document()
        code = document.get("code") if isinstance(document, dict) else None
        return code if type(code) is int else None

    @property
    def told(self) -> str:
        """What the error says."""
        document = self.try_document()
        if not isinstance(document, dict):
            return ""
        return f"{document.get('msg', '')} {document.get('details', '')}".strip()

    def show(self) -> str:
        """Itself in a line."""
        if self.timed_out:
            return f"{self.verb} did not end within {_TIMEOUT:.0f} seconds"
        how = f"exit status {self.status}" if self.status >= 0 else signal.Signals(-self.status).name
        said = b" ".join(self.stdout.split()).decode(errors="replace")
        return f"{self.verb}: {how}, stdout {_cut(said) or 'empty'}"

    def must_succeed(self, why: str = "success") -> Answer:
        """Raise :class:`Broken` unless it did."""
        if self.status != 0:
            stderr = _cut(b" ".join(self.stderr.split()).decode(errors="replace"), 200)
            raise Broken(f"{self.verb}: {why}", self.show() + (f", stderr {stderr}" if stderr else ""))
        return self

    def must_fail(self, why: str = "an error") -> Answer:
        """Raise :class:`Broken` unless it reported an error by its exit status."""
        if self.status <= 0:
            raise Broken(f"{self.verb}: {why}", self.show())
        return self


def _cut(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class Bench:
    """The host and the plugin of one case.

    Attributes:
        host: A fresh host.
        subject: The plugin.
        script: Shell commands that do what the case did so far.
        results: The result of each attachment: what is sent as ``prevResult``.
        containers: The containers by name.
    """

    def __init__(self, host: Host, subject: Subject) -> None:
        self.host = host
        self.subject = subject
        self.script: list[str] = []
        self.results: dict[tuple[str, str], Any] = {}
        self.containers: dict[str, Container] = {}
        self._numbers: dict[str, int] = {}
        self._attachments: dict[tuple[str, str], int] = {}
        self._leaders: set[int] = set()  # first processes of requests that have not come to an end
        self._daemons: set[int] = set()  # sessions of what the preparation of the host has started

    def prepare(self) -> None:
        """Make the host ready."""
        self.shell(f"mkdir -p {TEMPORARY}")
        self.shell(self.subject.setup)
        self._daemons = {session for _, session in self._processes()}
        if self.subject.delegates:
            self.stub  # noqa: B018 - installs it

    @cached_property
    def stub(self) -> StubPlugin:
        """The IPAM plugin the configuration delegates to.

        Raises:
            NotApplicable: It delegates to none of ours.
        """
        if not self.subject.delegates:
            raise NotApplicable("it leases no addresses from the suite's IPAM plugin")
        routes = [{"dst": "10.99.0.0/16", "gw": "10.9.0.1"}]
        return StubPlugin(self.host, STUB, routes=routes, note=self.script.append)

    def shell(self, command: str, netns: str = "") -> str:
        """Run a shell command on the host, or in a container; it goes into the script."""
        inside = ["ip", "netns", "exec", netns] if netns else []
        self.script.append(shlex.join([*inside, "sh", "-c", command]) if netns else command)
        return self.host.run([*inside, "sh", "-euc", command]).stdout

    def container(self, name: str = "c1") -> Container:
        """Make a container; for a chained plugin, one with an interface as the plugin before would have left it."""
        self.script.append(f"ip netns add {name}")
        container = self.containers[name] = self.host.container(name)
        self._numbers.setdefault(name, len(self._numbers) + 1)
        if self.subject.kind is Kind.CHAINED:
            self.attach(container, self.subject.ifname)
        return container

    def attach(self, container: Container, ifname: str) -> None:
        """Give a container an interface with an address, and remember the result that describes it."""
        number = len(self.results) + self._numbers[container.id] + 1
        host_end, address = f"h{number}{ifname}"[:15], f"10.24.0.{number + 1}"
        mac = f"02:00:00:00:01:{number:02x}"
        self.shell(
            f"ip link add {host_end} type veth peer name {ifname} address {mac} netns {container.name} && "
            f"ip link set {host_end} up && ip route add {address}/32 dev {host_end}"
        )
        first = not any(name == container.id for name, _ in self.results)
        self.shell(
            f"ip addr add {address}/24 dev {ifname} && ip link set {ifname} up"
            + (" && ip route add 10.99.0.0/16 via 10.24.0.1" if first else ""),
            container.name,
        )
        self.results[container.id, ifname] = {
            "cniVersion": self.subject.version,
            "interfaces": [{"name": host_end}, {"name": ifname, "mac": mac, "sandbox": container.netns}],
            "ips": [{"address": f"{address}/24", "gateway": "10.24.0.1", "interface": 1}],
            "routes": [{"dst": "10.99.0.0/16", "gw": "10.24.0.1"}] if first else [],
            "dns": {"nameservers": ["10.24.0.1"]},
        }

    def occupy(self, container: Container) -> None:
        """Give a container an interface that is no plugin's, of the name that requests ask for."""
        self.shell(f"ip link add {self.subject.ifname} type veth peer name foreign0", container.name)

    def leased(self, **keys: Any) -> dict[str, Any]:
        """What an IPAM plugin answers that leases one address."""
        ip = {"address": "10.9.0.9/24", "gateway": "10.9.0.1"}
        return self.in_version({"ips": [ip], **keys}, self.subject.version)

    # -- requests ------------------------------------------------------------------------------------------------------

    def document(self, container: Container | None = None, ifname: str = "", **keys: Any) -> dict[str, Any]:
        """The configuration of a request; None as a key's value takes it out."""
        attachment = (container.id if container else "", ifname or self.subject.ifname)
        number = self._attachments.setdefault(attachment, len(self._attachments) + 1) if container else 1
        conf = self.subject.document(number)
        known = self.results.get(attachment)
        if known is not None:
            conf["prevResult"] = self.in_version(known, conf["cniVersion"])
        return {key: value for key, value in {**conf, **keys}.items() if value is not None}

    def in_version(self, result: Any, version: str) -> dict[str, Any]:
        """A result in the words of a version: before 1.0.0, addresses tell their family."""
        if version.startswith("1."):
            return {**result, "cniVersion": version}
        result = copy.deepcopy(result)
        for each in result.get("ips", []):
            each.setdefault("version", "6" if ":" in each["address"] else "4")
        return {**result, "cniVersion": version}

    def environ(self, verb: str, container: Container | str | None = None, ifname: str = "") -> dict[str, str]:
        """The environment of a request; a container may be given by its name alone, when it is not there."""
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
    ) -> Answer:
        """Run one request to its end.

        Args:
            verb: ``CNI_COMMAND``.
            container: Whom it is about.
            ifname: ``CNI_IFNAME``; empty means the usual one.
            environ: Other values for variables; None takes one out.
            stdin: What to send instead of the configuration.
            limits: Resource limits to run it under.
            **keys: Keys of the configuration; None takes one out. After an ADD, ``prevResult`` is there by itself.
        """
        data = stdin if stdin is not None else json.dumps(self.document(container, ifname, **keys)).encode()
        process = self.start(verb, container, ifname, environ=environ, data=data, limits=limits)
        answer = self.finish(verb, process, data)
        if verb == "ADD" and answer.status == 0 and container is not None:
            result = answer.try_document()
            if isinstance(result, dict):
                self.results[container.id, ifname or self.subject.ifname] = result
        if verb == "DEL" and answer.status == 0 and container is not None and self.subject.kind is not Kind.CHAINED:
            self.results.pop((container.id, ifname or self.subject.ifname), None)
        return answer

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
        """Start one request, in a session of its own; the script gets its command line with ``data`` as stdin."""
        wanted: dict[str, str | None] = {**self.environ(verb, container, ifname), **(environ or {})}
        variables = {key: value for key, value in wanted.items() if value is not None}
        self._note(variables, data)
        argv: list[str] = [self.subject.path]
        if limits:
            argv = ["prlimit", *(f"--{_LIMITS[which]}={value}" for which, value in limits), *argv]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = self.host.popen(argv, env=variables, text=False, start_new_session=True, **{**pipes, **options})
        self._leaders.add(process.pid)
        return process

    def trace(self, container: Container, *, at: int = 0, number: int = 0, waits: bool = False) -> Traced:
        """Run an ADD, and send it a signal before its Nth change; the arguments are those of :func:`.tracing.run`.

        Raises:
            NotApplicable: This machine does not allow it.
        """
        data = json.dumps(self.document(container)).encode()
        environ = self.environ("ADD", container)
        self._note(environ, data)
        try:
            traced = self.host.call(tracing.run, [self.subject.path], environ, data, at=at, number=number, waits=waits)
        except tracing.Untraceable as exc:
            raise NotApplicable(f"a plugin cannot be stopped at a system call: {exc}") from exc
        self.end(traced.leader)
        return traced

    def _note(self, variables: Mapping[str, str], data: bytes) -> None:
        """Write a request into the script."""
        words = [f"{key}={shlex.quote(value)}" for key, value in variables.items()]
        shown = data.decode(errors="replace")
        if len(shown) > 2000:
            shown = f"…{len(data)} bytes…"
        self.script.append(f"env -i {' '.join(words)} {shlex.quote(self.subject.path)} <<'END'\n{shown}\nEND")

    def finish(
        self, verb: str, process: subprocess.Popen[Any], data: bytes | None = None, timeout: float = _TIMEOUT
    ) -> Answer:
        """Wait for the end of a request, and kill what does not come to an end.

        Args:
            verb: ``CNI_COMMAND``.
            process: Its first process, as of :meth:`start`.
            data: What it still has to be sent.
            timeout: Seconds it may take.
        """
        deadline = time.monotonic() + timeout
        left: tuple[int, ...] = ()
        timed_out = ended = held = False
        told: tuple[bytes, bytes] | None = None
        while told is None:
            try:
                told = process.communicate(data, timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                data = None
                # Its pipes have that long to come to their end, too.
                held, ended = ended, process.poll() is not None
                timed_out = timed_out or time.monotonic() > deadline
                if held or timed_out:
                    left += self.end(process.pid)
        left += self.end(process.pid)
        return Answer(verb, process.returncode, *told, left, timed_out, held)

    def end(self, leader: int) -> tuple[int, ...]:
        """Kill what lives on of a request, and tell which processes these were.

        Args:
            leader: Its first process, as of :meth:`start`.
        """
        left = tuple(self.living(leader))
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        until(lambda: not any(True for _ in self.living(leader)), _SETTLING)
        self._leaders.discard(leader)
        return left

    def living(self, leader: int) -> Iterator[int]:
        """The living processes of a request: of its session, or, for those that left it, on its host and no other's."""
        others = (self._leaders | self._daemons) - {leader}
        return (pid for pid, session in self._processes(leader) if session not in others)

    def _processes(self, leader: int = 0) -> Iterator[tuple[int, int]]:
        """The living processes on the host, or in the session of a request; and the session of each."""
        mounts = os.stat(f"/proc/{self.host.pid}/ns/mnt").st_ino
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == self.host.pid:
                continue
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                session = int(fields[3])
                if fields[0] in "ZX":
                    continue
                if session == leader or os.stat(f"/proc/{entry}/ns/mnt").st_ino == mounts:
                    yield int(entry), session
            except OSError:
                continue

    def prev_result(self, container: Container) -> Any:
        """What a DEL has to be sent after an ADD of which there is no result: a chained plugin's is known before."""
        return self.document(container)["prevResult"] if self.subject.kind is Kind.CHAINED else None

    # -- whole verbs ---------------------------------------------------------------------------------------------------

    def add(self, container: Container, ifname: str = "", **keys: Any) -> Result:
        """Attach a container, which the case needs, and return the result in the current shape.

        Raises:
            Unprepared: It does not work. A case that is about ADD uses :meth:`request`.
        """
        answer = self.request("ADD", container, ifname, **keys)
        try:
            return self.parse(answer.must_succeed(), str(keys.get("cniVersion", self.subject.version)))
        except Broken as broken:
            raise Unprepared(f"it needs an ADD that works, and this one does not: {broken.seen}") from broken

    def parse(self, answer: Answer, version: str) -> Result:
        """The result in the current shape."""
        try:
            return upgrade(parse_result(answer.stdout, version))
        except Exception as exc:
            raise Broken("a result as the specification describes it", f"{exc} in {answer.show()}") from exc

    def delete(self, container: Container, ifname: str = "", **keys: Any) -> Answer:
        """Detach a container, which must work."""
        return self.request("DEL", container, ifname, **keys).must_succeed()

    def check(self, container: Container, ifname: str = "", **keys: Any) -> Answer:
        """CHECK an attachment."""
        self.need_check()
        return self.request("CHECK", container, ifname, **keys)

    def need(self, version: str) -> None:
        """Skip the case unless the plugin claims a version as new as this."""
        if _number(self.subject.version) < _number(version):
            raise NotApplicable(f"it claims no version from {version} on")

    def need_check(self) -> None:
        """Skip the case unless a runtime may send CHECK."""
        self.need("0.4.0")
        if not self.subject.checks:
            raise NotApplicable("its configuration says disableCheck, so that no runtime sends CHECK")

    # -- looking -------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """The state of the host and its containers."""
        return self.host.state()

    def condition(self) -> frozenset[str]:
        """The footprint, and what is up, and in which bridge."""
        state = self.state()
        up = {f"link {each.place or 'host'}:{each.name} up" for each in state.links if each.up}
        ports = {f"link {each.place or 'host'}:{each.name} in {each.master}" for each in state.links if each.master}
        return self.footprint(state) | up | ports

    def footprint(self, state: State | None = None) -> frozenset[str]:
        """What there is that somebody must have made, without what changes by itself, such as a bridge's MAC."""
        state = self.state() if state is None else state
        found = {f"link {each.place or 'host'}:{each.name}" for each in state.links}
        found |= {
            f"address {each.place or 'host'}:{each.link} {each.address}"
            for each in state.addresses
            if each.link != "lo" or each.address not in ("127.0.0.1/8", "::1/128")  # the kernel's own
        }
        for way in state.routes:
            table = f" table {way.table}" if way.table != _MAIN else ""
            found.add(f"route {way.place or 'host'}: {way.dst} {way.link}{table}")
        found |= {f"rule {each.place or 'host'}: {each.rule}" for each in state.rules}
        # Tables stay empty behind those who looked for something in them.
        found |= {f"nft {each.place or 'host'}: {each.chain}: {each.line}" for each in state.nft if each.chain}
        found |= {f"lease {each.network}: {each.address} of {each.container_id}" for each in state.leases}
        # A file counts when it tells of an attachment: caches and indexes for all of them are nobody's leak.
        told = re.compile(rb"(?<![A-Za-z0-9])(%s)(?![A-Za-z0-9])" % b"|".join(map(str.encode, self.containers)))
        for path, content in self.read_host_files().items() if self.containers else ():
            if not path.startswith(TEMPORARY) and (told.search(path.encode()) or told.search(content)):
                found.add(f"file {path}")
        found |= {f"temporary file {path}" for path in self.host.call(_list_temporary)}
        if self.subject.delegates:
            found |= {f"lease {address} of {owner}" for address, owner in self.stub.leases.items()}
        return frozenset(found)

    def warm(self) -> frozenset[str]:
        """Attach and detach once, so that what is made once for all is there; return the footprint of that."""
        container = self.container("warm")
        self.add(container)
        answer = self.request("DEL", container)
        if answer.status != 0:
            raise Unprepared(f"it needs a DEL that works, and this one does not: {answer.show()}")
        return self.footprint()

    def settle(self) -> None:
        """Wait until the kernel has removed every namespace that is gone, with what was in it.

        It does so in the order in which they went: when a link of a namespace that goes now has gone, they have.
        """
        link = f"ip link add {_MARK}0 type veth peer name {_MARK}1 netns {_MARK}"
        self.host.run(["sh", "-euc", f"ip netns add {_MARK}; {link}; ip netns del {_MARK}"])
        until(lambda: f"{_MARK}0" not in self.host.links(), _SETTLING)

    def remains(self, known: frozenset[str]) -> frozenset[str]:
        """What there is beyond what is known, and beyond what every DEL of this plugin leaves: that is said once."""

        def left() -> frozenset[str]:
            new = self.footprint() - known
            return frozenset(each for each in new if self._likeness(each) not in self.subject.leaks)

        found = left()
        if found:
            self.settle()
            until(lambda: not left(), _PATIENCE)  # for what a resident server still has to let go of
            found = left()
        return found

    def _likeness(self, item: str) -> str:
        """An item without what tells one attachment from another."""
        names = "|".join(sorted(map(re.escape, self.containers), key=len, reverse=True))
        alike = re.sub(rf"(?<![A-Za-z0-9])({names})(?![A-Za-z0-9])", "@", item) if names else item
        return re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "#", alike)

    @contextmanager
    def leaving_nothing(self, what: str, before: frozenset[str] | None = None) -> Iterator[None]:
        """The block leaves nothing behind that was not there before it."""
        known = self.footprint() if before is None else before
        yield
        left = self.remains(known)
        if left:
            raise Broken(f"nothing left {what}", listed(left), map(self._likeness, left))

    @contextmanager
    def changing_nothing(self, what: str) -> Iterator[None]:
        """The block changes nothing at all."""
        before = self.condition()
        yield
        after = self.condition()
        if before != after:
            changes = [f"- {item}" for item in before - after] + [f"+ {item}" for item in after - before]
            raise Broken(f"nothing changed {what}", listed(changes))

    def read_host_files(self) -> dict[str, bytes]:
        """The content of every file where plugins keep, log or leave something, stubs apart."""
        return self.host.call(_read_files)


_LIMITS = {resource.RLIMIT_NOFILE: "nofile", resource.RLIMIT_FSIZE: "fsize"}


def listed(items: Any) -> str:
    """Some of the items, for a message."""
    ordered = sorted(items)
    return "; ".join(ordered[:6]) + (f"; and {len(ordered) - 6} more" if len(ordered) > 6 else "")


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _read_files() -> dict[str, bytes]:
    found = {}
    for top in ("/run", "/var/lib", "/etc/cni", *WATCHED):
        for directory, subdirectories, names in os.walk(top):
            if top in WATCHED:  # what is mounted there was there before
                subdirectories[:] = [name for name in subdirectories if not os.path.ismount(f"{directory}/{name}")]
            if directory == "/run":
                subdirectories[:] = [name for name in subdirectories if name != "netns"]
            if directory == str(HOME):
                subdirectories[:] = ["tmp"]
            for name in names:
                path = Path(directory, name)
                if path.is_file():
                    found[str(path)] = path.read_bytes()
    return found


def _list_temporary() -> list[str]:
    places = (TEMPORARY, *(place for place in WATCHED if place != "/var/log" and os.path.isdir(place)))
    paths = [f"{place}/{name}" for place in places for name in os.listdir(place)]
    return [path for path in paths if not os.path.ismount(path)]
