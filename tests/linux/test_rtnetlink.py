"""The netlink socket: batches, errors with the kernel's words, dumps that are asked for again."""

import errno
import pickle
import socket
import struct

import pytest

from cnisdk import AddRequest, CheckRequest, DelRequest, NetConf, Plugin, Result
from cnisdk.linux import link, netns, route, rtnetlink
from cnisdk.linux.links import messages
from cnisdk.linux.rtnetlink import KernelError, Message, Socket
from cnisdk.plugin.reply import respond
from cnisdk.testing import Sandbox

pytestmark = pytest.mark.kernel


def test_a_batch_tells_each_fate_in_order(host: Sandbox) -> None:
    host.run(["ip", "link", "add", "b0", "type", "bridge"])

    def fate(answer: bytes | KernelError | None) -> object:
        if isinstance(answer, KernelError):
            return answer.errno, answer.reason
        return link.parse(answer).alias if answer is not None else None

    def batch() -> list[object]:
        requests = [
            messages.get_request(name="nope", what="link nope"),
            messages.set_request("alias", name="b0", alias="hello"),
            messages.set_request("too long", name="b0", alias="x" * 256),
            messages.get_request(name="b0", what="link b0"),
        ]
        with Socket() as sock:
            return [fate(answer) for answer in sock.exchange(requests)]

    gone, done, refused, found = host.call(batch)
    assert isinstance(gone, tuple)
    assert gone[0] == errno.ENODEV
    assert done is None
    assert refused == (errno.ERANGE, "Attribute failed policy validation")
    assert found == "hello"


def test_a_socket_is_kept_for_one_namespace(host: Sandbox) -> None:
    def look(path: str) -> list[bool]:
        with netns.open(path) as space, netns.open(path) as same:
            close, again = rtnetlink.keep(space), rtnetlink.keep(same)
            with rtnetlink.connect(space) as first, rtnetlink.connect(same) as second, rtnetlink.connect() as own:
                seen = [first is second, first is own]
            again()
            with rtnetlink.connect(space) as later, rtnetlink.connect(space, rtnetlink.GROUP_LINK) as listening:
                seen += [later is first, listening is first]
            close()
            with rtnetlink.connect(space) as after:
                return [*seen, after is first, bool(link.find("lo", space))]

    assert host.call(look, host.add_netns("kept")) == [True, False, True, False, False, True]


def test_sharing_is_of_the_own_namespace(host: Sandbox) -> None:
    def look() -> list[bool]:
        with rtnetlink.sharing(), rtnetlink.connect() as first:
            with rtnetlink.sharing(), rtnetlink.connect() as inner:
                seen = [inner is first]
            with rtnetlink.connect() as later:
                seen.append(later is first)
        with rtnetlink.connect() as after:
            return [*seen, after is first]

    assert host.call(look) == [True, True, False]


def test_after_half_a_table_others_are_read_whole(host: Sandbox) -> None:
    """The kernel has more to tell of the first, and refuses to begin with another (EBUSY)."""

    routes = Message(rtnetlink.GETROUTE, bytes([socket.AF_INET, *[0] * 11]), "cannot list routes")

    def look() -> tuple[bool, int]:
        with rtnetlink.sharing():
            with rtnetlink.connect() as sock:
                next(sock.scan(routes))
            with rtnetlink.connect() as other:
                return other is sock, len(route.list_all())

    host.run(["ip", "link", "set", "lo", "up"])
    assert host.call(look) == (True, 0)
    lines = "".join(f"route add 10.{high}.{low}.0/24 dev lo\n" for high in range(16) for low in range(256))
    host.run(["ip", "-batch", "-"], input=lines)
    assert host.call(look) == (False, 4096)


def test_a_request_keeps_one_socket_in_the_container(host: Sandbox) -> None:
    def look(path: str) -> list[bool]:
        environ = {"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "c1", "CNI_NETNS": path, "CNI_IFNAME": "eth0"}
        conf = b'{"cniVersion": "1.0.0", "name": "net", "type": "kept"}'
        seen = []

        class Kept(Plugin[NetConf]):
            def add(self, request: AddRequest[NetConf]) -> Result:
                raise NotImplementedError

            def delete(self, request: DelRequest[NetConf]) -> None:
                raise NotImplementedError

            def check(self, request: CheckRequest[NetConf]) -> None:
                with rtnetlink.connect(request.open_netns()) as first, rtnetlink.connect(request.open_netns()) as same:
                    seen.append(first is same)

        respond(Kept, environ, conf)
        with netns.open(path) as space, rtnetlink.connect(space) as one, rtnetlink.connect(space) as other:
            return [*seen, one is other]

    assert host.call(look, host.add_netns("kept")) == [True, False]


def test_errors_name_the_errno_and_survive_pickling() -> None:
    error = KernelError("cannot set link eth0 up", errno.EPERM, position=3, reason="because")
    assert str(error) == "cannot set link eth0 up: EPERM: Operation not permitted; because"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is KernelError
    assert (str(copy), copy.errno, copy.position, copy.code) == (str(error), errno.EPERM, 3, 5)


class FakeSocket(Socket):
    """A socket whose kernel is a list of datagrams."""

    def __init__(self, *datagrams: bytes) -> None:
        self._sequence = 0
        self._reading = False
        self.waiting = list(datagrams)
        self.sent: list[bytes] = []
        self._socket = self  # type: ignore[assignment]

    def send(self, data: bytes) -> int:  # type: ignore[override]
        self.sent.append(data)
        return len(data)

    def recv(self, size: int, flags: int) -> bytes:
        return self.waiting.pop(0)


def message(kind: int, flags: int, sequence: int, body: bytes = b"") -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


DONE = struct.pack("=i", 0)
ENTRY = struct.pack("=BxHiII", 0, 1, 1, 0, 0)


def test_an_interrupted_dump_is_asked_for_again() -> None:
    sock = FakeSocket(
        message(16, 2 | rtnetlink.F_DUMP_INTR, 1, ENTRY) + message(3, 2, 1, DONE),
        message(16, 2, 2, ENTRY) + message(16, 2, 2, ENTRY),
        message(3, 2, 2, DONE),
    )
    assert len(sock.dump(messages.get_request(what="cannot list links"))) == 2
    assert len(sock.sent) == 2
    assert [struct.unpack_from("=H", data, 6)[0] for data in sock.sent] == [0x301, 0x301]


def test_a_dump_interrupted_only_at_its_end_counts() -> None:
    sock = FakeSocket(message(16, 2, 1, ENTRY), message(3, 2 | rtnetlink.F_DUMP_INTR, 1, DONE), message(3, 2, 2, DONE))
    assert sock.dump(messages.get_request(what="cannot list links")) == []


def test_a_dump_that_never_holds_still_is_an_error() -> None:
    sock = FakeSocket(*(message(3, 2 | rtnetlink.F_DUMP_INTR, number, DONE) for number in range(1, 30)))
    with pytest.raises(KernelError, match="cannot list links: EINTR"):
        sock.dump(messages.get_request(what="cannot list links"))


def test_a_dump_that_is_refused_raises() -> None:
    sock = FakeSocket(message(2, 0, 1, struct.pack("=i", -errno.EPERM) + message(18, 0x301, 1)))
    with pytest.raises(KernelError, match="cannot list links: EPERM"):
        sock.dump(messages.get_request(what="cannot list links"))


def test_answers_to_earlier_requests_are_passed_over() -> None:
    acknowledgement = struct.pack("=i", 0) + message(19, 5, 1)
    sock = FakeSocket(message(2, 0x100, 77, acknowledgement) + message(2, 0x100, 1, acknowledgement))
    assert sock.exchange([messages.up_request(1, "lo")]) == [None]
    assert sock.exchange([]) == []
