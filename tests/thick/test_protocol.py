"""The protocol between shim and worker: what the worker learns from the kernel, and who gets the request."""

from __future__ import annotations

import os
import socket

import pytest

from cnisdk._thick import protocol
from cnisdk.errors import DecodingError
from cnisdk.linux import netns
from cnisdk.testing import Sandbox


def offer() -> protocol.RequestOffer:
    """Offer a request of one variable, as a shim does."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, open(os.devnull, "rb") as null:
        socket.send_fds(here, [b"plugin\0KEY=value\0"], [null.fileno()] * protocol.FILE_COUNT)
    return protocol.RequestOffer(b"", 0o22, 17, 0.0, protocol.make_socket(there.detach()))


def taken(path: str, own: bytes | None) -> tuple[protocol.ShimRequest, int, int]:
    """Take a request of a shim in a namespace. Return it, its namespace's inode, and the expected one."""
    with netns.open(path) as there:
        made = there.call(offer)
    with socket.socket(socket.AF_UNIX) as sock:
        request = protocol.take_request(made, protocol.netns_cookie(sock) if own is None else own)
    made.end.close()
    return request, 0 if request.netns < 0 else os.fstat(request.netns).st_ino, os.stat(path).st_ino


@pytest.mark.parametrize("own", [None, b""], ids=["cookies", "a kernel without cookies"])
def test_the_namespace_is_the_callers(host: Sandbox, own: bytes | None) -> None:
    path = str(host.add_netns("blue"))
    request, inode, expected = host.call(taken, path, own)
    assert inode == expected
    assert (request.name, request.environ, request.umask) == ("plugin", {b"KEY": b"value"}, 0o22)


def test_the_workers_own_namespace_needs_no_descriptor(host: Sandbox) -> None:
    assert host.call(taken, "/proc/self/ns/net", None)[0].netns == -1


@pytest.mark.parametrize("numbers", [b"22 17 " + b"9" * 400, b"22 0 1", b"22 -1 1", b"x 17 1", b"22 17 1.5", b"22 17"])
def test_an_offer_with_impossible_numbers_is_none(numbers: bytes) -> None:
    shim, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with shim, worker, open(os.devnull, "rb") as null:
        socket.send_fds(shim, [b"cnisdk4 plugin id 0 " + numbers], [null.fileno()])
        with pytest.raises(DecodingError):
            protocol.receive_offer(worker)


def test_a_request_is_taken_once() -> None:
    made = offer()
    own = protocol.netns_cookie(made.end)
    assert protocol.take_request(made, own).name == "plugin"
    with pytest.raises(DecodingError):
        protocol.take_request(made, own)
    made.end.close()
