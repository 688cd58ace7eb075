"""Small client of the Container Runtime Interface: the calls of a kubelet that start and stop pods.

Messages are written by their field numbers in kubernetes/cri-api, pkg/apis/runtime/v1/api.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

Field = tuple[int, "int | str | bytes"]


def encode(*fields: Field) -> bytes:
    """Encode a message of Protocol Buffers."""
    data = b""
    for number, value in fields:
        if isinstance(value, int):
            data += _varint(number << 3) + _varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            data += _varint(number << 3 | 2) + _varint(len(value)) + value
    return data


def decode(data: bytes) -> dict[int, list[Any]]:
    """Decode a message whose fields are numbers, texts and messages."""
    found: dict[int, list[Any]] = {}
    at = iter(data)
    for tag in _varints(at):
        if tag & 7 not in (0, 2):
            raise ValueError(f"wire type {tag & 7}")
        value = next(_varints(at))
        found.setdefault(tag >> 3, []).append(bytes(next(at) for _ in range(value)) if tag & 7 else value)
    return found


def _varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def _varints(at: Iterator[int]) -> Iterator[int]:
    for byte in at:
        value, shift = byte & 0x7F, 7
        while byte & 0x80:
            byte = next(at)
            value |= (byte & 0x7F) << shift
            shift += 7
        yield value


class Port(NamedTuple):
    """Port of a pod that is published on the host."""

    host: int
    container: int
    protocol: str = "tcp"


class Pod(NamedTuple):
    """A pod's sandbox, as a kubelet asks for it."""

    name: str
    ports: Iterable[Port] = ()
    annotations: Mapping[str, str] = {}

    def config(self) -> bytes:
        """Encode its PodSandboxConfig."""
        metadata = encode((1, self.name), (2, f"uid-{self.name}"), (3, "default"))
        ports = [
            encode((1, ["tcp", "udp"].index(each.protocol)), (2, each.container), (3, each.host)) for each in self.ports
        ]
        notes = [encode((1, key), (2, value)) for key, value in self.annotations.items()]
        return encode(
            (1, metadata),
            (2, self.name),
            *((5, each) for each in ports),
            *((7, each) for each in notes),
            (8, b""),
        )


class Client:
    """Connection to the CRI of containerd.

    Args:
        path: Path of its socket.
    """

    def __init__(self, path: str) -> None:
        grpc: Any = import_module("grpc")  # which has no types; only these tests need it

        self._channel = grpc.insecure_channel(f"unix://{path}")
        self.Error: type[Exception] = grpc.RpcError

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, method: str, *fields: Field) -> dict[int, list[Any]]:
        call = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}", request_serializer=bytes, response_deserializer=bytes
        )
        return decode(call(encode(*fields), timeout=120, wait_for_ready=True))

    def run(self, pod: Pod) -> str:
        """Run a pod's sandbox, and return its id."""
        (identity,) = self._call("RunPodSandbox", (1, pod.config()))[1]
        return str(identity, "utf-8")

    def addresses(self, identity: str) -> list[str]:
        """Return the addresses that the runtime reports for a sandbox."""
        status = decode(self._call("PodSandboxStatus", (1, identity))[1][0])
        network = decode(status[5][0])
        more = [decode(each)[1][0] for each in network.get(2, [])]
        return [str(each, "utf-8") for each in [*network.get(1, []), *more]]

    def stop(self, identity: str) -> None:
        """Stop a sandbox: DEL."""
        self._call("StopPodSandbox", (1, identity))

    def remove(self, identity: str) -> None:
        """Remove a sandbox, as a kubelet does after it stopped it: a second DEL."""
        self._call("RemovePodSandbox", (1, identity))

    def list(self) -> list[str]:
        """Return the ids of all sandboxes."""
        return [str(decode(each)[1][0], "utf-8") for each in self._call("ListPodSandbox").get(1, [])]

    def conditions(self) -> dict[str, tuple[bool, str]]:
        """Return the runtime's conditions: if it is so, and the message."""
        listed = [decode(each) for each in decode(self._call("Status")[1][0])[1]]
        return {
            str(each[1][0], "utf-8"): (bool(each.get(2, [0])[0]), str(each.get(4, [b""])[0], "utf-8"))
            for each in listed
        }
