"""Run of a case: its host, its requests to the plugin, and the assertions that cases use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..spec.convert import parse_result, upgrade
from ..spec.result import Result
from ..testing.hosts import Container, Host
from ..testing.state import State
from ._footprint import Snapshot, generalize, look, read_files
from ._processes import wait_until
from ._requests import Requests
from ._response import Response
from .judgement import Broken, NotApplicable, Unprepared, listed
from .subject import Subject

_T = TypeVar("_T")

_MARK = "cnisdk-mark"
# Seconds. The kernel removes namespaces in batches, one after another, for all sandboxes of the machine together.
_SETTLE_TIMEOUT = 30.0
# Seconds that a resident server may take, after its response, to close what it has open of a container.
_RELEASE_TIMEOUT = 1.0


class CaseRun(Requests):
    """Requests of a case, and assertions about their effects."""

    def __init__(self, host: Host, subject: Subject) -> None:
        super().__init__(host, subject)
        self._done: dict[Callable[[CaseRun], Any], tuple[Any, Broken | NotApplicable | None]] = {}

    def once(self, ask: Callable[[CaseRun], _T]) -> _T:
        """Call a function once on this host. Later calls return its first result, or raise its first verdict again."""
        if ask not in self._done:
            try:
                self._done[ask] = ask(self), None
            except (Broken, NotApplicable) as exc:
                self._done[ask] = None, exc
        value, error = self._done[ask]
        if error is not None:
            raise error
        found: _T = value
        return found

    def add(self, container: Container, ifname: str = "", **keys: Any) -> Result:
        """Attach a container that the case needs, and return the result in the newest version.

        Args:
            container: The container.
            ifname: ``CNI_IFNAME``; empty means the subject's.
            **keys: Keys to set in the configuration; None removes one.

        Raises:
            Unprepared: ADD fails, or its result is not valid. A case that judges ADD uses :meth:`request`.
        """
        response = self.request("ADD", container, ifname, **keys)
        try:
            return self.parse(response.must_succeed(), str(keys.get("cniVersion", self.subject.version)))
        except Broken as broken:
            raise Unprepared(f"it needs an ADD that works, and this one does not: {broken.seen}") from broken

    def parse(self, response: Response, version: str) -> Result:
        """Return the result of a response in the newest version, or raise :class:`~.judgement.Broken`.

        Args:
            response: Response to an ADD.
            version: ``cniVersion`` of the request.
        """
        try:
            return upgrade(parse_result(response.stdout, version))
        except Exception as exc:
            raise Broken("a result as the specification describes it", f"{exc} in {response.show()}") from exc

    def delete(self, container: Container, ifname: str = "", **keys: Any) -> Response:
        """Detach a container. The arguments are those of :meth:`add`.

        Raises:
            Broken: DEL fails.
        """
        return self.request("DEL", container, ifname, **keys).must_succeed()

    def check(self, container: Container, ifname: str = "", **keys: Any) -> Response:
        """Send CHECK for an attachment. The arguments are those of :meth:`add`.

        Raises:
            NotApplicable: No runtime may send CHECK.
        """
        self.need_check()
        return self.request("CHECK", container, ifname, **keys)

    def need(self, version: str) -> None:
        """Skip the case (:class:`~.judgement.NotApplicable`) unless the plugin supports this version or a newer one."""
        if _number(self.subject.version) < _number(version):
            raise NotApplicable(f"it claims no version from {version} on")

    def need_check(self) -> None:
        """Skip the case (:class:`~.judgement.NotApplicable`) unless a runtime may send CHECK."""
        self.need("0.4.0")
        if not self.subject.checks:
            raise NotApplicable("its configuration says disableCheck, so that no runtime sends CHECK")

    def state(self) -> State:
        """Return the state of the host and its containers."""
        return self.host.state()

    def look(self) -> Snapshot:
        """Return a snapshot of the host."""
        return look(self.host, self.containers, self.stub if self.subject.delegates else None)

    def footprint(self) -> frozenset[str]:
        """Return the host's footprint: see :mod:`._footprint`."""
        return self.look().footprint()

    def warm(self) -> frozenset[str]:
        """Attach and detach a container, so that shared objects such as a bridge exist. Return the footprint."""
        container = self.container("warm")
        self.add(container)
        response = self.request("DEL", container)
        if response.status != 0:
            raise Unprepared(f"it needs a DEL that works, and this one does not: {response.show()}")
        return self.footprint()

    def fresh_container(self) -> tuple[Container, frozenset[str]]:
        """Make a container on a host on which another one was attached and detached before.

        Returns:
            The container, and the footprint to which its ADD and DEL must return.
        """
        before = self.warm()
        container = self.container()
        return container, before | self.footprint()

    def undo(self, container: Container, known: frozenset[str], after: str, **keys: Any) -> None:
        """Send DEL after an ADD that failed or was interrupted, and assert that nothing is left.

        Args:
            container: The container.
            known: The footprint of :meth:`fresh_container`.
            after: The ADD, for messages: ``"an ADD that was killed"``.
            **keys: Further arguments of :meth:`request`.
        """
        keys = {"prevResult": self.prev_result(container), **keys}
        with self.leaving_nothing(f"after {after}, and DEL", known):
            self.request("DEL", container, **keys).must_succeed(f"success after {after}")

    def settle(self) -> None:
        """Wait until the kernel has removed every namespace that was deleted, with all links in it.

        The kernel removes them in the order of their deletion. So a namespace is made and deleted now: when its link is
        gone, all earlier ones are.
        """
        link = f"ip link add {_MARK}0 type veth peer name {_MARK}1 netns {_MARK}"
        self.host.run(["sh", "-euc", f"ip netns add {_MARK}; {link}; ip netns del {_MARK}"])
        wait_until(lambda: f"{_MARK}0" not in self.host.links(), _SETTLE_TIMEOUT)

    def remains(self, known: frozenset[str]) -> frozenset[str]:
        """Return the lines of the present footprint that are not in a known one.

        Lines that every DEL of this plugin leaves do not count: the case ``del-leaves-nothing`` reports them.
        """

        def left() -> frozenset[str]:
            new = self.footprint() - known
            return frozenset(each for each in new if generalize(each, self.containers) not in self.subject.leaks)

        found = left()
        if found:
            self.settle()
            wait_until(lambda: not left(), _RELEASE_TIMEOUT)
            found = left()
        return found

    @contextmanager
    def leaving_nothing(self, what: str, before: frozenset[str] | None = None) -> Iterator[None]:
        """Raise :class:`~.judgement.Broken` if the block leaves something behind.

        Args:
            what: End of the message "nothing left …", for example ``"after ADD and DEL"``.
            before: The footprint to compare with; None means the one before the block.
        """
        known = self.footprint() if before is None else before
        yield
        self.must_be_nothing(self.remains(known), what)

    def must_be_nothing(self, left: frozenset[str], what: str) -> None:
        """Raise :class:`~.judgement.Broken` unless ``left``, lines of a footprint, is empty."""
        if left:
            raise Broken(f"nothing left {what}", listed(left), (generalize(each, self.containers) for each in left))

    @contextmanager
    def changing_nothing(self, what: str) -> Iterator[None]:
        """Raise :class:`~.judgement.Broken` if the block changes anything on the host.

        Args:
            what: End of the message "nothing changed …", for example ``"by a second DEL"``.
        """
        before = self.look().condition()
        yield
        after = self.look().condition()
        if before != after:
            changes = [f"- {item}" for item in before - after] + [f"+ {item}" for item in after - before]
            raise Broken(f"nothing changed {what}", listed(changes))

    def read_host_files(self) -> dict[str, bytes]:
        """Return the content of every file below the directories that plugins write to, by path; without the stubs'."""
        return self.host.call(read_files)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
