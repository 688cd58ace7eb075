"""Ask the daemon that keeps DHCP leases, for a plugin.

Each call ends in time: a daemon that does not answer is an error. DEL needs no daemon: without one, the lease is given
back by the plugin's own process, from the daemon's file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping

from .._light import TYPE_CHECKING, Any
from ..errors import IOFailureError, PluginNotAvailableError, cause_of, error_for_code, run_all
from ..spec.codec import dumps_compact, loads
from ..spec.names import Attachment
from .lease import DHCPLease

if TYPE_CHECKING:
    from ._store import Record

SOCKET_PATH = "/run/cni/dhcp.sock"
"""Path of the daemon's socket unless the configuration names another: the reference's."""

PATIENCE = 60.0
"""Seconds that ADD waits for a lease, unless it is told otherwise."""

# Seconds that the daemon has for what needs no server.
_SOON = 10.0
_MARGIN = 5.0
_LONGEST = 16 << 20
_ENDED = "the DHCP daemon at {} ended before it answered"


# How often DEL and GC are asked for, of daemons that end before they answer.
_ATTEMPTS = 3


class DaemonNotRunningError(IOFailureError):
    """Code 5: no daemon that understands this plugin listens at the socket."""


class DaemonEndedError(IOFailureError):
    """Code 5: the daemon ended before it answered."""


def add_lease(
    path: str,
    owner: Attachment,
    netns: str,
    *,
    provided: Mapping[int, bytes],
    requested: Collection[int],
    priority: int = 0,
    timeout: float = PATIENCE,
    undo: Callable[..., object] | None = None,
) -> DHCPLease:
    """Have the daemon obtain a lease for a container's interface, and keep it until :func:`delete_lease`.

    The interface must exist. It is set up, since an interface that is down sends nothing. If the calling process ends
    before it has the answer, the lease is given back.

    Args:
        path: Path of the daemon's socket.
        owner: The attachment.
        netns: Path of the container's namespace.
        provided: Options that the client sends, by number.
        requested: Numbers of the options that it asks for.
        priority: Metric of the routes that the daemon changes when the lease changes; 0 leaves it to the kernel.
        timeout: Seconds to wait for a server.
        undo: Function that remembers an inverse, such as ``request.undo``. That gives the lease back, unless it is an
            earlier ADD's of the attachment.

    Raises:
        IOFailureError: (5) No daemon answers, or the kernel refused.
        InvalidNetNSError: (8) There is no such namespace.
        TryAgainLaterError: (11) No server leased an address within the time.
    """
    mark = f"{os.getpid()}.{time.time_ns()}"
    if undo is not None:
        undo(_take_back, path, owner, mark)
    request = {
        "add": mark,
        "netns": netns,
        "provided": {str(number): value.hex() for number, value in provided.items()},
        "requested": list(requested),
        "priority": priority,
        "timeout": timeout,
    }
    answer = _ask(path, {"verb": "add", **_name(owner), **request}, timeout + _MARGIN)
    return DHCPLease.from_json(answer["lease"])


def _take_back(path: str, owner: Attachment, mark: str) -> None:
    """Give the lease back that an ADD has obtained, but none of another ADD."""
    _give_back(
        path, {"verb": "delete", **_name(owner), "add": mark}, lambda each: (each.owner, each.add) == (owner, mark)
    )


def get_lease(path: str, owner: Attachment) -> DHCPLease:
    """Return the lease that the daemon keeps for an attachment. Nothing is sent to a server.

    Args:
        path: Path of the daemon's socket.
        owner: The attachment.

    Raises:
        UnknownContainerError: (3) The daemon knows no such attachment.
        IOFailureError: (5) The lease is lost, or no daemon answers.
    """
    return DHCPLease.from_json(_ask(path, {"verb": "check", **_name(owner)})["lease"])


def delete_lease(path: str, owner: Attachment) -> None:
    """Give the lease of an attachment back. Absence is fine, and so is that no daemon runs.

    Without a daemon, this process does it. If the files are where only the daemon sees them, the next one does it.
    It goes to the server over the container's interface, which must still be there.

    Args:
        path: Path of the daemon's socket.
        owner: The attachment.

    Raises:
        IOFailureError: (5) The daemon does not answer in time, or a file cannot be deleted.
    """
    _give_back(path, {"verb": "delete", **_name(owner)}, lambda each: each.owner == owner, owner)


def delete_stale_leases(path: str, network: str, valid: Collection[Attachment]) -> None:
    """Give back the leases of a network whose attachment is not valid, with or without a daemon.

    Args:
        path: Path of the daemon's socket.
        network: Name of the network.
        valid: Attachments that are not touched.

    Raises:
        IOFailureError: (5) The daemon does not answer in time, or a file cannot be deleted.
    """
    pairs = [[each.container_id, each.ifname] for each in valid]
    request = {"verb": "gc", "network": network, "valid": pairs}
    _give_back(path, request, lambda each: each.owner.network == network and each.owner not in valid)


def get_status(path: str) -> dict[str, Any]:
    """Return the daemon's description of itself and its leases, as ``cnisdk dhcp --status`` prints it.

    Raises:
        PluginNotAvailableError: (50) No daemon answers.
    """
    try:
        return _ask(path, {"verb": "status"})
    except IOFailureError as exc:
        raise PluginNotAvailableError(exc.msg, details=exc.details) from exc


def _give_back(
    path: str, request: Mapping[str, Any], wanted: Callable[[Record], bool], owner: Attachment | None = None
) -> None:
    """Have the daemon give leases back, or do so without one. A daemon may end, or begin, meanwhile.

    Args:
        path: Path of the daemon's socket.
        request: The request.
        wanted: True for the leases that it is about.
        owner: The only attachment that it is about, if that is known.
    """
    deadline, ended = time.monotonic() + _SOON, 0
    while True:
        try:
            _ask(path, request)
            return
        except DaemonEndedError:
            ended += 1
            if ended == _ATTEMPTS:
                raise
        except DaemonNotRunningError as exc:
            if _release_without_daemon(path, wanted, owner):
                return
            if time.monotonic() >= deadline:
                raise IOFailureError(
                    f"the DHCP daemon has the lock of its leases, but does not listen at {path}"
                ) from exc


def _release_without_daemon(path: str, wanted: Callable[[Record], bool], owner: Attachment | None) -> bool:
    """Give back the leases that a daemon which has ended has left files of. Return False if another one has begun.

    Where the files cannot be reached, the next daemon is left a note of the owner, if there is one.
    """
    import random
    import sys

    from ._client import release
    from ._store import LeaseFiles, directory_beside

    beside, locks = LeaseFiles(directory_beside(path)), list[int]()
    directory = beside.directory
    try:
        if (lock := beside.lock(alone=False, patience=0.1)) is None:
            return False
        locks.append(lock)
        files = beside.follow()
        if files is None:
            if owner is not None:
                beside.note_deleted(owner)
                sys.stderr.write(f"dhcp: the daemon has its files elsewhere: the next one releases {owner}\n")
            return True
        directory = files.directory
        if files is not beside:
            if (lock := files.lock(alone=False, patience=0.1)) is None:
                return False
            locks.append(lock)
        records = [each for each in files.load() if wanted(each)]
        run_all(*(lambda record=record: release(record, files, random.random) for record in records))
    except (FileNotFoundError, NotADirectoryError):
        return True  # no daemon has been here
    except OSError as exc:
        raise IOFailureError(f"cannot use the directory {directory}: {cause_of(exc)}") from exc
    finally:
        for each in locks:
            os.close(each)
    return True


def _name(owner: Attachment) -> dict[str, str]:
    return {"network": owner.network, "containerID": owner.container_id, "ifname": owner.ifname}


def _ask(path: str, request: Mapping[str, Any], timeout: float = _SOON) -> dict[str, Any]:
    """Send a request and return the answer.

    Raises:
        DaemonNotRunningError: (5) No daemon listens there.
        DaemonEndedError: (5) It ended before it answered.
        CNIError: The daemon's error.
    """
    from ..linux import _sockets

    deadline, soon = time.monotonic() + timeout, min(timeout, _SOON)
    with _sockets.Socket(_sockets.AF_UNIX, _sockets.SOCK_STREAM) as sock:
        try:
            _sockets.connect_unix(sock, path, soon)
        except TimeoutError:
            raise IOFailureError(f"the DHCP daemon at {path} did not answer within {soon:g} s") from None
        except OSError as exc:
            raise DaemonNotRunningError(
                f"error dialing DHCP daemon: {path}: {cause_of(exc)}", details="start it: `cnisdk dhcp`"
            ) from exc
        try:
            sock.settimeout(soon)
            sock.sendall(dumps_compact(request) + b"\n")
            data = b""
            while not data.endswith(b"\n") and len(data) < _LONGEST:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                sock.settimeout(left)
                chunk = sock.recv(1 << 16)
                if not chunk:
                    break
                data += chunk
        except TimeoutError:
            raise IOFailureError(f"the DHCP daemon at {path} did not answer within {timeout:g} s") from None
        except ConnectionError as exc:
            raise DaemonEndedError(_ENDED.format(path)) from exc
        except OSError as exc:
            raise IOFailureError(f"cannot ask the DHCP daemon at {path}: {cause_of(exc)}") from exc
    if data.startswith(b"HTTP/"):
        raise DaemonNotRunningError(
            f"the DHCP daemon at {path} is the reference's, which speaks another protocol",
            details="stop it and start `cnisdk dhcp`, or give $.ipam.daemonSocketPath",
        )
    if not data.endswith(b"\n"):
        raise DaemonEndedError(_ENDED.format(path))
    answer: dict[str, Any] = loads(data, "answer of the DHCP daemon")
    if (error := answer.get("error")) is not None:
        raise error_for_code(error["code"], error["msg"], error["details"])
    return answer
